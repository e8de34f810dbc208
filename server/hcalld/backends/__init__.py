# SPDX-License-Identifier: Apache-2.0
"""Other programs and devices that calls need: constructed by ``hcalld.app``, handed in."""
