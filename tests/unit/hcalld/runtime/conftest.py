# SPDX-License-Identifier: Apache-2.0
"""A daemon without sockets, disk or QEMU, serving the family of ``ledger.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from tests.unit.hcalld.runtime import ledger
from tests.unit.hcalld.runtime.daemon import Daemon

from hcalld.runtime import partition
from hcalld.testing.logs import capture_logs

Logs = list[dict[str, Any]]


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What is logged, as dictionaries."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def ledger_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "SERVED", ledger.SERVED)


@pytest.fixture
async def daemon(nursery: trio.Nursery, logs: Logs, ledger_served: None) -> AsyncIterator[Daemon]:
    """A server that answers H_LEDGER_*; a bug in a handler ends the test."""
    daemon = Daemon(nursery)
    yield daemon
    daemon.close()


@pytest.fixture
async def lenient_daemon(
    nursery: trio.Nursery, logs: Logs, ledger_served: None
) -> AsyncIterator[Daemon]:
    """The same, with bugs answered as in production."""
    daemon = Daemon(nursery, strict=False)
    yield daemon
    daemon.close()
