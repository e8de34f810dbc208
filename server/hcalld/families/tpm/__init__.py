# SPDX-License-Identifier: Apache-2.0
"""H_TPM_COMM."""
