# SPDX-License-Identifier: Apache-2.0
"""``hcalld dissector``: the file is there, wherever hcalld was installed."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from hcalld.cli import cli


def test_dissector_when_asked_then_the_path_is_that_of_a_lua_file():
    done = CliRunner().invoke(cli, ["dissector"])
    assert done.exit_code == 0
    path = Path(done.stdout.removesuffix("\n"))
    assert path.is_absolute()
    assert 'Proto("hcalld"' in path.read_text("utf-8")
