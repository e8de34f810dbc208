# SPDX-License-Identifier: Apache-2.0
"""Measurements: what a call costs, against floors measured in the same run."""
