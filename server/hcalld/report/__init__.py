# SPDX-License-Identifier: Apache-2.0
"""``hcalld report``: a capture as one HTML page, to be looked at and sent around.

``gather.py`` reads the capture once, in bounded memory; ``page.py`` writes what it found.
"""
