# SPDX-License-Identifier: Apache-2.0
"""The commands of SEV over ``hcalld.domain.sev``."""
