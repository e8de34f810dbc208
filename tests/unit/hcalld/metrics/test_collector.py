# SPDX-License-Identifier: Apache-2.0
"""Metrics: Prometheus' own reader understands them, and they are the daemon's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from hcalld.control.messages import (
    CallStats,
    CaptureState,
    Fault,
    Guest,
    GuestStats,
    KeystoreStats,
    Pef,
    PefState,
    Stats,
)
from hcalld.core.histogram import Histogram
from hcalld.faults.rules import Rule
from hcalld.metrics.collector import LIMITS, render

TIMES: Final = (9_000, 9_100, 40_000, 2_000_000, 90_000_000_000)


def call_stats(name: str, **codes: int) -> CallStats:
    latency = Histogram()
    for time_ns in TIMES:
        latency.add(time_ns)
    return CallStats(
        call=name,
        codes=codes,
        p50_ns=latency.percentile(50),
        p90_ns=latency.percentile(90),
        p99_ns=latency.percentile(99),
        max_ns=latency.largest,
        total_ns=latency.total,
        latency=latency.pairs(),
    )


def guest_stats(partition: str, *calls: CallStats, state: PefState | None = None) -> GuestStats:
    guest = None
    if state is not None:
        pef = Pef(state=state, secure=7, shared=2, out=1, paged_out=5)
        guest = Guest(
            partition=partition, peer="x", vcpus=4, calls=5, waiting=1, tpm="open", pef=pef
        )
    keystore = None if guest is None else KeystoreStats(used=100, total=65536, objects=2)
    return GuestStats(
        partition=partition,
        guest=guest,
        keystore=keystore,
        refused=3,
        calls=list(calls),
        refusals=[],
    )


def stats(
    *guests: GuestStats,
    capture: CaptureState | None = None,
    faults: Sequence[Fault] = (),
    uptime_ns: int = 2_500_000_000,
) -> Stats:
    return Stats(
        uptime_ns=uptime_ns,
        guests=list(guests),
        capture=capture or CaptureState(path=None),
        faults=list(faults),
    )


def metrics(numbers: Stats) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels of each sample to its value, as Prometheus' parser reads them."""
    families = text_string_to_metric_families(render(numbers).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def one(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_calls_when_they_were_counted_then_each_return_code_is_a_counter():
    codes = {"H_SUCCESS": 4, "H_NOT_FOUND": 1}
    found = metrics(stats(guest_stats("lpar7", call_stats("H_PKS_READ_OBJECT", **codes))))
    for code, count in codes.items():
        labels = {"partition": "lpar7", "call": "H_PKS_READ_OBJECT", "return": code}
        assert one(found, "hcalld_calls_total", **labels) == count
    assert one(found, "hcalld_refused_calls_total", partition="lpar7") == 3


def test_latency_when_it_is_shown_then_the_buckets_have_what_took_less():
    found = metrics(stats(guest_stats("lpar7", call_stats("H_PKS_READ_OBJECT", H_SUCCESS=5))))
    labels = {"partition": "lpar7", "call": "H_PKS_READ_OBJECT"}
    for limit in LIMITS:
        told = one(found, "hcalld_call_seconds_bucket", le=str(limit / 1e9), **labels)
        assert told == sum(time_ns < limit for time_ns in TIMES)
    assert one(found, "hcalld_call_seconds_bucket", le="+Inf", **labels) == len(TIMES)
    assert one(found, "hcalld_call_seconds_count", **labels) == len(TIMES)
    assert one(found, "hcalld_call_seconds_sum", **labels) == sum(TIMES) / 1e9


def test_guests_when_they_are_connected_then_their_state_is_shown():
    found = metrics(stats(guest_stats("a", state="secure"), guest_stats("b", state="none")))
    assert one(found, "hcalld_guest_connected", partition="a") == 1
    assert one(found, "hcalld_guest_vcpus", partition="a") == 4
    assert one(found, "hcalld_waiting_calls", partition="a") == 1
    assert one(found, "hcalld_tpm_session_open", partition="a") == 1
    assert one(found, "hcalld_keystore_used_bytes", partition="a") == 100
    assert one(found, "hcalld_keystore_size_bytes", partition="a") == 65536
    assert one(found, "hcalld_keystore_objects", partition="a") == 2
    assert one(found, "hcalld_secure_vm_state", partition="a", state="secure") == 1
    assert one(found, "hcalld_secure_vm_state", partition="a", state="normal") == 0
    for where, pages in (("secure", 7), ("shared", 2), ("out", 1)):
        assert one(found, "hcalld_secure_vm_pages", partition="a", where=where) == pages
    assert one(found, "hcalld_secure_vm_paged_out_total", partition="a") == 5
    assert not any(
        "secure_vm" in name and ("partition", "b") in labels for name, labels in found
    ), "a guest that cannot become secure has no secure VM"


def test_guests_when_one_is_gone_then_its_counters_stay_and_its_gauges_go():
    found = metrics(stats(guest_stats("a", call_stats("H_PKS_GET_CONFIG", H_SUCCESS=1))))
    assert one(found, "hcalld_guest_connected", partition="a") == 0
    about = {name for name, labels in found if ("partition", "a") in labels}
    assert about == {
        "hcalld_guest_connected",
        "hcalld_calls_total",
        "hcalld_refused_calls_total",
        *(f"hcalld_call_seconds_{what}" for what in ("bucket", "count", "sum")),
    }


def test_daemon_when_it_captures_then_that_is_shown():
    found = metrics(stats(capture=CaptureState(path="/x", frames=9, dropped=2)))
    assert one(found, "hcalld_uptime_seconds") == 2.5
    assert one(found, "hcalld_capture_active") == 1
    assert one(found, "hcalld_capture_frames_total") == 9
    assert one(found, "hcalld_capture_dropped_frames_total") == 2
    assert one(metrics(stats()), "hcalld_capture_active") == 0


def test_faults_when_they_were_met_then_each_rule_is_a_counter():
    rule = Rule(call="H_PKS_GET_CONFIG", returns="H_BUSY")
    found = metrics(stats(faults=[Fault(number=3, rule=rule, matched=9, met=4, spent=False)]))
    assert one(found, "hcalld_fault_met_total", rule="3") == 4


def test_names_when_a_partition_has_a_hostile_name_then_it_stays_a_label():
    name = 'evil"} 1\nforged_total 5\\'
    found = metrics(stats(guest_stats(name, state="none")))
    assert one(found, "hcalld_guest_connected", partition=name) == 1
    assert not any("forged" in sample for sample, _ in found)
