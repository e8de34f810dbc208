# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus, from the same numbers as ``hcalld top``."""
