# SPDX-License-Identifier: Apache-2.0
"""UV_*: the ultracalls."""
