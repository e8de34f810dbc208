# SPDX-License-Identifier: Apache-2.0
"""A daemon's numbers while a real guest calls: they are those of its trace, wherever they show."""

from __future__ import annotations

import collections
import http.client
import json
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.daemon import COMMAND, Daemon, run_hcalld
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import patience, wait_until
from tests.e2e.stubwords import CALLING, KEYSTORE

pytestmark = pytest.mark.qemu

LINE: Final = re.compile(r" cpu\d+ #\d+ (.+?)\(.*\) = (\S+) ")
ADDRESS: Final = re.compile(r"\bmetrics\b.*address=(\S+)")

Counts = Mapping[tuple[str, str], float]
"""Call and return code to how often."""


def traced(daemon: Daemon) -> Counts:
    """What the trace says."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for line in daemon.trace_lines():
        match = LINE.search(line.partition(" -- ")[0])
        assert match is not None, line
        name = "unknown" if match[1].startswith("hcall 0x") else match[1]
        found[name, match[2]] += 1
    return found


def top(daemon: Daemon, *words: str) -> str:
    done = run_hcalld("top", "--state-dir", str(daemon.state_dir), *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stats(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(top(daemon, "--once", "--json"))
    return found


def counted(daemon: Daemon) -> Counts:
    """What ``hcalld top`` says."""
    (guest,) = stats(daemon)["guests"]
    assert guest["partition"] == PARTITION
    return {
        (call["call"], code): count
        for call in guest["calls"]
        for code, count in call["codes"].items()
    }


class _Connection(http.client.HTTPConnection):
    """To a unix socket or to a port."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(host or "here", int(port) if host else None, timeout=patience(20))
        self._address = address if not host else None

    def connect(self) -> None:
        if self._address is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._address)


def metrics(address: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a daemon serves, read by Prometheus' own parser."""
    connection = _Connection(address)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 200, text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def address_of(daemon: Daemon) -> str:
    """Where the daemon says that its metrics are."""
    match = ADDRESS.search(daemon.log_text())
    assert match is not None, daemon.log_text()
    return match[1]


@pytest.mark.parametrize("where", ["path", "port"])
def test_top_and_metrics_count_what_the_trace_shows(lab: Lab, where: str) -> None:
    address = str(lab.socket_dir / "metrics") if where == "path" else "127.0.0.1:0"
    daemon = lab.daemon("--metrics", address)
    lab.stub(KEYSTORE, daemon).report().must_pass("pks_object", "pks_user")
    counts = traced(daemon)
    assert sum(counts.values()) > 100
    assert counted(daemon) == counts
    found = metrics(address_of(daemon))
    assert counts == {
        (labels["call"], labels["return"]): value for labels, value in found["hcalld_calls_total"]
    }
    seen = {labels["call"]: value for labels, value in found["hcalld_call_seconds_count"]}
    assert seen == {
        name: sum(count for (call, _), count in counts.items() if call == name)
        for name, _ in counts
    }
    refused = sum(count for (_, code), count in counts.items() if code != "H_SUCCESS")
    (one,) = stats(daemon)["guests"]
    assert 0 < one["refused"] <= refused
    # The last refusals are those of the trace, with their reasons.
    lines = [
        line for line in daemon.trace_lines() if " -- " in line and " = H_SUCCESS " not in line
    ]
    for refusal, line in zip(reversed(one["refusals"]), reversed(lines), strict=False):
        assert f"{refusal['call']}(" in line or refusal["call"] == "unknown"
        assert f"= {refusal['code']} " in line
        assert line.partition(" -- ")[2].startswith(refusal["reason"])
    text = top(daemon, "--once")
    for (name, code), count in counts.items():
        (row,) = [row for row in text.splitlines() if row.split()[:2] == [PARTITION, name]]
        assert re.search(rf"\b{code} {count:.0f}\b", row)
    daemon.terminate()
    if where == "path":
        assert not (lab.socket_dir / "metrics").exists()


def test_top_goes_on_while_guests_and_daemons_come_and_go(lab: Lab) -> None:
    daemon = lab.daemon()
    lab.stub(CALLING, daemon).console.expect("= soak")
    watching = subprocess.Popen(
        [*COMMAND, "top", "--state-dir", daemon.state_dir, "--json", "--interval", "0.2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert watching.stderr is not None
        first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
        before, after = (one["guests"][0]["guest"]["calls"] for one in (first, second))
        assert after > before, "the guest goes on calling"
        assert second["uptime_ns"] > first["uptime_ns"]
        guest = second["guests"][0]
        assert guest["keystore"]["total"] == 64 << 10
        assert 0 <= guest["keystore"]["used"] <= guest["keystore"]["total"]
        daemon.kill()
        assert "the daemon is gone; trying again" in watching.stderr.readline()
        daemon.start()
        while json.loads(watching.stdout.readline())["uptime_ns"] >= second["uptime_ns"]:
            pass
        watching.send_signal(signal.SIGINT)
        assert watching.wait(patience(20)) == 0
    finally:
        watching.kill()
        watching.communicate()


def test_nobody_else_sees_metrics_unless_an_option_says_so(lab: Lab) -> None:
    done = run_hcalld("serve", "--metrics", "0.0.0.0:0", "--memory", "--socket-path", "/x")
    assert done.returncode == 1
    assert "0.0.0.0 is no loopback address" in done.stderr
    daemon = lab.daemon("--metrics", "0.0.0.0:0", "--allow-remote-metrics")
    port = address_of(daemon).rpartition(":")[2]
    wait_until(lambda: metrics(f"127.0.0.1:{port}")["hcalld_uptime_seconds"], "metrics")
