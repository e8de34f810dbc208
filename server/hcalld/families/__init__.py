# SPDX-License-Identifier: Apache-2.0
"""Handlers: the glue between a family's calls and its model. One folder a family."""
