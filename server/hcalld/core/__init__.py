# SPDX-License-Identifier: Apache-2.0
"""What every handler is written against: calls, effects, outcomes. Pure, no event loop."""
