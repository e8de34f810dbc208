# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose: what a machine does once in a year, at the call that is being tested.

``rules`` says what a rule is, ``engine`` which one a call meets.
"""
