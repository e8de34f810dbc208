# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the runtime's tests, for connections that are recorded and played again."""

from tests.unit.hcalld.runtime.conftest import ledger_served, logs

__all__ = ["ledger_served", "logs"]
