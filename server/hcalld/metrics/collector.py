# SPDX-License-Identifier: Apache-2.0
"""The daemon's numbers as metrics.

Names of calls and return codes are those of the table. A guest can make up none: its unknown
calls are one, and how many partitions are counted is bounded (``observe/figures.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from hcalld import __version__
from hcalld.control.messages import CallStats, PefState, Stats
from hcalld.core.histogram import Histogram

_SECOND: Final = 1e9
LIMITS: Final = tuple(1 << shift for shift in range(13, 36))
"""Upper bounds of the buckets, in nanoseconds: powers of two from 8 us to 34 s."""


CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


def render(stats: Stats) -> bytes:
    """The metrics as text, of type ``CONTENT_TYPE``; may take a tenth of a second."""
    registry = CollectorRegistry()
    registry.register(_Numbers(stats))
    return generate_latest(registry)


class _Numbers(Collector):
    """The numbers of one moment."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        stats = self._stats
        yield InfoMetricFamily("hcalld", "This daemon.", {"version": __version__})
        yield GaugeMetricFamily(
            "hcalld_uptime_seconds", "Since the daemon began.", stats.uptime_ns / _SECOND
        )
        yield from _calls(stats)
        yield from _guests(stats)
        yield from _keystores(stats)
        yield from _secure_vms(stats)
        yield from _capture(stats)
        yield from _faults(stats)


def _calls(stats: Stats) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "hcalld_calls", "Calls that were answered.", labels=("partition", "call", "return")
    )
    seconds = HistogramMetricFamily(
        "hcalld_call_seconds", "From a call to its answer.", labels=("partition", "call")
    )
    refused = CounterMetricFamily(
        "hcalld_refused_calls", "Calls that were refused.", labels=("partition",)
    )
    for guest in stats.guests:
        refused.add_metric((guest.partition,), guest.refused)
        for call in guest.calls:
            for code, count in call.codes.items():
                calls.add_metric((guest.partition, call.call, code), count)
            seconds.add_metric(
                (guest.partition, call.call), _buckets(call), call.total_ns / _SECOND
            )
    yield from (calls, seconds, refused)


def _buckets(call: CallStats) -> list[tuple[str, float]]:
    latency = Histogram.of_pairs(call.latency, call.max_ns)
    below = zip(LIMITS, latency.below(LIMITS), strict=True)
    buckets = [(str(limit / _SECOND), float(count)) for limit, count in below]
    return [*buckets, ("+Inf", float(latency.count))]


def _guests(stats: Stats) -> Iterator[Metric]:
    connected = GaugeMetricFamily(
        "hcalld_guest_connected", "1 while the guest is connected.", labels=("partition",)
    )
    vcpus = GaugeMetricFamily(
        "hcalld_guest_vcpus", "Virtual CPUs of the guest.", labels=("partition",)
    )
    waiting = GaugeMetricFamily(
        "hcalld_waiting_calls", "Calls that wait for something.", labels=("partition",)
    )
    tpm = GaugeMetricFamily(
        "hcalld_tpm_session_open",
        "1 while the session of the guest with its TPM is open; only of those that have one.",
        labels=("partition",),
    )
    for stat in stats.guests:
        guest, labels = stat.guest, (stat.partition,)
        connected.add_metric(labels, guest is not None)
        if guest is None:
            continue
        vcpus.add_metric(labels, guest.vcpus)
        waiting.add_metric(labels, guest.waiting)
        if guest.tpm != "none":
            tpm.add_metric(labels, guest.tpm == "open")
    yield from (connected, vcpus, waiting, tpm)


def _keystores(stats: Stats) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "hcalld_keystore_used_bytes",
        "What the objects in the keystore take.",
        labels=("partition",),
    )
    size = GaugeMetricFamily(
        "hcalld_keystore_size_bytes",
        "Room in the keystore, for what is there and what may come.",
        labels=("partition",),
    )
    objects = GaugeMetricFamily(
        "hcalld_keystore_objects", "Objects in the keystore.", labels=("partition",)
    )
    for stat in stats.guests:
        if stat.keystore is not None:
            labels = (stat.partition,)
            used.add_metric(labels, stat.keystore.used)
            size.add_metric(labels, stat.keystore.total)
            objects.add_metric(labels, stat.keystore.objects)
    yield from (used, size, objects)


def _secure_vms(stats: Stats) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "hcalld_secure_vm_state",
        "1 at the state that the secure VM is in; only of guests that may become secure.",
        labels=("partition", "state"),
    )
    pages = GaugeMetricFamily(
        "hcalld_secure_vm_pages",
        "Pages of 64 KiB of a secure VM, by where they are.",
        labels=("partition", "where"),
    )
    out = CounterMetricFamily(
        "hcalld_secure_vm_paged_out", "Page-outs of a secure VM.", labels=("partition",)
    )
    for stat in stats.guests:
        if stat.guest is None or stat.guest.pef.state == "none":
            continue
        pef = stat.guest.pef
        for name in get_args(PefState)[1:]:
            state.add_metric((stat.partition, name), pef.state == name)
        for where, count in (("secure", pef.secure), ("shared", pef.shared), ("out", pef.out)):
            pages.add_metric((stat.partition, where), count)
        out.add_metric((stat.partition,), pef.paged_out)
    yield from (state, pages, out)


def _capture(stats: Stats) -> Iterator[Metric]:
    capture = stats.capture
    yield GaugeMetricFamily(
        "hcalld_capture_active", "1 while a capture goes on.", capture.path is not None
    )
    yield CounterMetricFamily(
        "hcalld_capture_frames", "Frames of the capture that goes on.", capture.frames
    )
    yield CounterMetricFamily(
        "hcalld_capture_dropped_frames",
        "Frames that are missing in the capture that goes on.",
        capture.dropped,
    )


def _faults(stats: Stats) -> Iterator[Metric]:
    met = CounterMetricFamily(
        "hcalld_fault_met",
        "Calls with which something was made to go wrong, by the number of the rule.",
        labels=("rule",),
    )
    for fault in stats.faults:
        met.add_metric((str(fault.number),), fault.met)
    yield met
