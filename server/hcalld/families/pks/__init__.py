# SPDX-License-Identifier: Apache-2.0
"""Platform KeyStore: ``handlers.py`` over ``hcalld.domain.keystore``."""
