# SPDX-License-Identifier: Apache-2.0
"""H_SVM_* and H_RANDOM of a secure VM."""
