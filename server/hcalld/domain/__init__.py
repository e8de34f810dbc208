# SPDX-License-Identifier: Apache-2.0
"""The emulated firmware's models, without registers, guest memory or event loop."""
