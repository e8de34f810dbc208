# SPDX-License-Identifier: Apache-2.0
"""All numbers of the daemon at one moment, from where each is kept.

``hcalld top`` and the metrics both show these, and nothing else.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Final

from hcalld.control import faulting
from hcalld.control.figures import guest_of
from hcalld.control.messages import (
    CallStats,
    CaptureState,
    GuestStats,
    KeystoreStats,
    RefusalStats,
    Stats,
)
from hcalld.core.errors import HcalldError
from hcalld.domain.keystore import Keystore
from hcalld.families.registry import Kind
from hcalld.observe.capturing import Captured, Capturing
from hcalld.observe.figures import CallFigures, Figures, GuestFigures, Refused
from hcalld.runtime.server import Server
from hcalld.runtime.session import Session
from hcallproto.abi.families import pks
from hcallproto.abi.returns import code_name

_PERCENTILES: Final = (50, 90, 99)


class Statistics:
    """Gathers the numbers.

    Args:
        server: its guests.
        capturing: its capture.
        figures: what was counted.
        clock: nanoseconds, from whenever.
    """

    def __init__(
        self,
        server: Server,
        capturing: Capturing,
        figures: Figures,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._server = server
        self._capturing = capturing
        self._figures = figures
        self._clock = clock
        self._started = clock()
        self._keystores: weakref.WeakKeyDictionary[Session, tuple[int, KeystoreStats | None]] = (
            weakref.WeakKeyDictionary()
        )
        """Of each guest, after how many calls which."""

    def now(self) -> Stats:
        """The numbers."""
        sessions, figures = self._server.sessions, self._figures.guests
        return Stats(
            uptime_ns=self._clock() - self._started,
            guests=[
                self._guest(name, sessions.get(name), figures.get(name))
                for name in sorted({*sessions, *figures})
            ],
            capture=capture_of(self._capturing.now),
            faults=list(map(faulting.told, self._server.faults)),
        )

    def _guest(
        self, partition: str, session: Session | None, figures: GuestFigures | None
    ) -> GuestStats:
        calls = {} if figures is None else figures.calls
        return GuestStats(
            partition=partition,
            guest=None if session is None else guest_of(partition, session),
            keystore=None if session is None else self._keystore(session),
            refused=0 if figures is None else figures.refused_count,
            calls=[_call(name, calls[name]) for name in sorted(calls)],
            refusals=[] if figures is None else list(map(_refusal, figures.refusals)),
        )

    def _keystore(self, session: Session) -> KeystoreStats | None:
        """A store that rests is not loaded again and again: only calls change it."""
        count = session.answered_count
        known = self._keystores.get(session)
        if known is None or known[0] != count:
            known = self._keystores[session] = count, _keystore_of(session)
        return known[1]


def _keystore_of(session: Session) -> KeystoreStats | None:
    """None: it has none, or it cannot be read, which its calls tell of."""
    if session.partition is None or session.partition.kind is not Kind.GUEST:
        return None
    try:
        keystore = session.partition.model(pks.FAMILY.name)
    except HcalldError:
        return None
    if not isinstance(keystore, Keystore) or not keystore.is_enabled:
        return None
    return KeystoreStats(
        used=keystore.used_space,
        total=keystore.attributes.total_size,
        objects=keystore.object_count,
    )


def _call(name: str, figures: CallFigures) -> CallStats:
    latency = figures.latency
    p50, p90, p99 = map(latency.percentile, _PERCENTILES)
    return CallStats(
        call=name,
        codes={code_name(code): count for code, count in sorted(figures.codes.items())},
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99,
        max_ns=latency.largest,
        total_ns=latency.total,
        latency=latency.pairs(),
    )


def _refusal(refused: Refused) -> RefusalStats:
    return RefusalStats(
        time_ns=refused.time_ns,
        vcpu=refused.vcpu,
        call=refused.call,
        code=code_name(refused.code),
        reason=refused.reason,
    )


def capture_of(captured: Captured | None) -> CaptureState:
    """A capture."""
    if captured is None:
        return CaptureState(path=None)
    return CaptureState(
        path=str(captured.path),
        frames=captured.frames,
        dropped=captured.dropped,
        answers_dropped=captured.entries_dropped,
        is_whole=captured.is_whole,
        not_written=captured.unwritten,
    )
