# SPDX-License-Identifier: Apache-2.0
"""Secure variables: which there are, what a signed update does, and how one is made."""
