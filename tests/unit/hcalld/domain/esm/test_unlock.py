# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
from tests.esm import private_key
from tests.unit.hcalld.crypto.tpm_replay import KEY, KNOWN, Replay
from tests.unit.hcalld.domain.esm.guest import MACHINE, OTHER, OWNER, STRANGER, blob

from hcalld.crypto.lockbox import fingerprints
from hcalld.crypto.tpm_session import run
from hcalld.crypto.wrapping_key import WrappingKey, read_public
from hcalld.domain.esm.blob import Blob, Lockbox
from hcalld.domain.esm.errors import KeyUnavailableError
from hcalld.domain.esm.unlock import candidates, unlock_with_key, unlock_with_tpm
from hcallproto.payloads.tpm import Cc


@pytest.mark.parametrize(
    ("who", "name"),
    [(OWNER, "origin-lockbox"), (MACHINE, "lockbox-1"), (OTHER, "lockbox-2")],
)
def test_key_when_it_has_a_lockbox_then_that_one_opens(who: int, name: str):
    unlocked = unlock_with_key(blob(), private_key(who))
    assert unlocked.lockbox.name == name
    assert len(unlocked.key) == 32
    assert candidates(blob(), private_key(who).public_key())[0].name == name


def test_key_when_its_fingerprint_is_another_then_all_are_tried():
    unmarked = tuple(dataclasses.replace(box, fingerprint=bytes(32)) for box in blob().lockboxes)
    unlocked = unlock_with_key(Blob(unmarked, None), private_key(OTHER))
    assert unlocked.lockbox.name == "lockbox-2"
    order = candidates(Blob(unmarked, None), private_key(OTHER).public_key())
    assert [box.name for box in order] == ["lockbox-1", "lockbox-2", "origin-lockbox"]


def test_key_when_it_has_no_lockbox_then_told():
    with pytest.raises(KeyUnavailableError, match=r"none of 3 lockboxes .*\(lockbox-1: the priv"):
        unlock_with_key(blob(), private_key(STRANGER))
    with pytest.raises(KeyUnavailableError, match=r"none of 3 lockboxes is for this key$"):
        unlock_with_key(blob(), private_key(STRANGER, 3072))


def test_key_when_many_lockboxes_do_not_open_then_the_reason_is_short():
    box = blob().lockboxes[1]
    boxes = tuple(dataclasses.replace(box, name=f"lockbox-{i}") for i in range(1, 10))
    with pytest.raises(KeyUnavailableError, match=r"lockbox-4: [^;]*; \.\.\.\)$"):
        unlock_with_key(Blob(boxes, None), private_key(STRANGER))


# -- with a TPM ---------------------------------------------------------------------------------


def box(name: str, sealed: bytes, fingerprint: bytes = bytes(32)) -> Lockbox:
    return Lockbox(name, fingerprint, sealed)


class Tpm(Replay):
    """One conversation after another, each recorded."""

    def __init__(self, *scenarios: str) -> None:
        super().__init__("read_public")
        self._entropies = []
        for scenario in scenarios:
            other = Replay(scenario)
            self.exchanges += other.exchanges
            self._entropies.append(other.entropy)

    async def random(self, size: int) -> bytes:
        return await self._entropies.pop(0)(size)


WRONG = box("lockbox-1", KNOWN["lockbox"][:-1] + b"\0")
RIGHT = box("lockbox-2", KNOWN["lockbox"])


def test_tpm_when_a_lockbox_is_not_its_own_then_the_next_is_tried():
    tpm = Tpm("wrong_lockbox", "decrypt")
    unlocked = run(unlock_with_tpm(Blob((WRONG, RIGHT), None), tpm.transmit, KEY, tpm.random))
    assert unlocked.lockbox is RIGHT
    assert unlocked.key.reveal() == KNOWN["symmetric_key"]
    assert tpm.sent.count(Cc.RSA_DECRYPT) == tpm.sent.count(Cc.FLUSH_CONTEXT) == 2


def test_tpm_when_a_fingerprint_is_its_own_then_that_one_is_tried_first():
    public = run(read_public(Replay("read_public").transmit, KEY))
    marked = dataclasses.replace(RIGHT, fingerprint=fingerprints(public)[0])
    tpm = Tpm("decrypt")
    assert (
        run(unlock_with_tpm(Blob((WRONG, marked), None), tpm.transmit, KEY, tpm.random)).lockbox
        is marked
    )
    assert tpm.sent.count(Cc.RSA_DECRYPT) == 1


def test_tpm_when_nothing_opens_then_each_reason_is_told():
    tpm = Tpm("wrong_lockbox")
    with pytest.raises(
        KeyUnavailableError, match=r"key unavailable: none of 1 .*lockbox-1: .*0x101"
    ):
        run(unlock_with_tpm(Blob((WRONG,), None), tpm.transmit, KEY, tpm.random))


def test_tpm_when_the_password_is_wrong_then_no_other_lockbox_is_tried():
    tpm = Tpm("wrong_password")
    two = Blob((RIGHT, dataclasses.replace(RIGHT, name="lockbox-3")), None)
    with pytest.raises(KeyUnavailableError, match=r"key unavailable: .*wrong password"):
        run(unlock_with_tpm(two, tpm.transmit, KEY, tpm.random))
    assert tpm.sent.count(Cc.RSA_DECRYPT) == 1


def test_tpm_when_it_is_another_then_told():
    tpm = Tpm()
    other = WrappingKey(KEY.password, bytes(34))
    with pytest.raises(KeyUnavailableError, match="another than the one known"):
        run(unlock_with_tpm(Blob((RIGHT,), None), tpm.transmit, other, tpm.random))


def test_tpm_when_the_lockbox_holds_no_key_then_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hcalld.crypto.lockbox.KEY_SIZE", 33)
    tpm = Tpm("decrypt")
    with pytest.raises(KeyUnavailableError, match="lockbox-2: the lockbox holds 32 bytes"):
        run(unlock_with_tpm(Blob((RIGHT,), None), tpm.transmit, KEY, tpm.random))
