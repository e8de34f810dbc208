# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.unit.hcalld.crypto.tpm_replay import KEY

from hcalld.core.errors import StoreError
from hcalld.core.records import Record
from hcalld.domain.esm.key_record import from_json, from_records, to_json, to_record


def test_key_when_kept_then_found_among_other_records():
    others = [Record("esm", b"other", b""), Record("pks", b"wrapping-key", b"")]
    assert from_records([*others, to_record(KEY)]) == KEY
    assert from_records(others) is None
    assert from_json(to_json(KEY)) == KEY


@pytest.mark.parametrize("value", [b"", b"\2{}"])
def test_record_when_of_another_version_then_refused(value: bytes):
    with pytest.raises(StoreError, match="unknown version"):
        from_records([Record("esm", b"wrapping-key", value)])


def test_record_when_damaged_then_refused():
    good = to_record(KEY).value
    for value in (good[:-3], b"\1{}", good.replace(b"2172649473", b"5")):
        with pytest.raises(StoreError, match="provision-tpm again"):
            from_records([Record("esm", b"wrapping-key", value)])
