# SPDX-License-Identifier: Apache-2.0
"""Structures in guest memory that the calls point at, as construct schemas."""
