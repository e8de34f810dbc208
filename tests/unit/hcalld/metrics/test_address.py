# SPDX-License-Identifier: Apache-2.0
"""Where metrics are to be had: this machine, unless an operator says otherwise."""

from __future__ import annotations

import pathlib
import stat

import pytest

from hcalld.core.errors import ConfigError
from hcalld.metrics.address import MetricsOptions, listen, parse_address


def test_socket_when_it_is_a_path_then_it_is_for_its_owner_alone(tmp_path: pathlib.Path):
    path = tmp_path / "metrics"
    with listen(parse_address(str(path))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9477", "127.0.0.1", 9477),
        ("127.8.9.1:0", "127.8.9.1", 0),
        ("[::1]:1", "::1", 1),
        ("localhost:2", "localhost", 2),
    ],
)
def test_address_when_it_is_this_machine_then_it_is_taken(text: str, host: str, port: int):
    assert parse_address(text) == MetricsOptions(host=host, port=port)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org", "127.0.0.1.x"])
def test_address_when_others_could_come_then_an_option_has_to_say_so(host: str):
    with pytest.raises(ConfigError, match="--allow-remote-metrics"):
        parse_address(f"{host}:9477")
    assert parse_address(f"{host}:9477", is_open=True).host == host.strip("[]")


@pytest.mark.parametrize("text", ["9477", ":9477", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000"])
def test_address_when_it_is_none_then_that_is_said(text: str):
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_address(text)
