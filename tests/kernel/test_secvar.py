# SPDX-License-Identifier: Apache-2.0
"""Secure variables, by the files that Linux shows below /sys/firmware/secvar.

The updates are openssl's and this repository's own second reading of the format
(``tests/e2e/authvar.py``); the kernel is the one that hands them over, and its errors are what is
seen of the hypervisor's codes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from tests.e2e import authvar
from tests.e2e.authvar import APPEND, DYNAMIC, SHA256, STATIC, X509_SHA256, stored_header, update
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import PARTITION
from tests.kernel.guestside import (
    LIBRARY,
    OVERHEAD,
    WRAPPING_KEY_SPACE,
    calls,
    profile,
    results,
    succeed,
    wait_until_off,
)
from tests.kernel.secvars import EINVAL, ENOMEM, EPERM, Sequence

if TYPE_CHECKING:
    import datetime

    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

SB_VERSION_SPACE = OVERHEAD + 10 + 1
"""Firmware's object that says that the mode is dynamic."""

DYNAMIC_SPACE = WRAPPING_KEY_SPACE + SB_VERSION_SPACE

DYNAMIC_MODE = "linux_dynamic_key_secure_boot = 1\n"
LATCH = "keystore_signed_updates_without_verification = 1\n"

MODE = "say format $(cat /sys/firmware/secvar/format)\nsay names $(ls $vars)\n"

HASHES = [hashlib.sha256(bytes([n])).digest() for n in range(4)]


def run(lab: Lab, daemon: Daemon, sequence: Sequence, after: str = "", before: str = "") -> str:
    """Boots a guest that does the steps, checks them, gives the console."""
    script = sequence.script(before) + after
    text = succeed(lab.linux("own", script, daemon, files=sequence.files))
    sequence.check(text)
    return text


def arm_latch(daemon: Daemon) -> None:
    """Has the next update of PK taken without verification, as an operator does."""
    wait_until_off(daemon)
    done = run_hcalld(
        *("ctl", "set", "--state-dir", str(daemon.state_dir), PARTITION),
        "keystore_signed_updates_without_verification=1",
    )
    assert done.returncode == 0, done.stderr


def hash_list(*hashes: bytes) -> bytes:
    """A signature list of images' hashes."""
    return authvar.signature_list(SHA256, hashes)


class Author:
    """Makes updates, each a second later than the one before unless told else."""

    def __init__(self) -> None:
        self._dates = authvar.dates()
        self.when = next(self._dates)

    def __call__(
        self,
        variable: str,
        data: bytes,
        signer: authvar.Identity,
        flags: int = authvar.REPLACE,
        when: datetime.datetime | None = None,
    ) -> bytes:
        """Gives an update's file."""
        self.when = next(self._dates) if when is None else when
        return update(variable, data, signer, self.when, flags)

    def stored(self, data: bytes) -> bytes:
        """What a variable holds after the last update."""
        return stored_header(self.when) + data


def enrol(sequence: Sequence, author: Author, keys: Keys) -> None:
    """PK under the latch, KEK by PK: what everything else stands on."""
    file = author("PK", keys.pk.esl, keys.pk)
    sequence.works("enrol PK under the latch", "PK", file, author.stored(keys.pk.esl))
    file = author("KEK", keys.kek.esl, keys.pk)
    sequence.works("enrol KEK", "KEK", file, author.stored(keys.kek.esl))


def test_nine_variables_of_dynamic_mode(keys: Keys, lab: Lab) -> None:
    """From an empty store to every variable, its change, append, reset and deletion."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    contents = {
        "db": keys.db.esl,
        "dbx": hash_list(HASHES[0]),
        "grubdb": keys.db.esl,
        "grubdbx": hash_list(HASHES[1]),
        "sbat": authvar.sbat_list(b"sbat,1,2024010900\ngrub,4\n"),
        "trustedcadb": keys.ca.esl,
        "moduledb": keys.module.esl,
    }
    for name, data in contents.items():
        for signer in (keys.pk, keys.kek):
            steps.fails("nothing before PK", name, author(name, data, signer), EPERM)
    steps.fails("no KEK before PK", "KEK", author("KEK", keys.kek.esl, keys.kek), EPERM)
    enrol(steps, author, keys)
    file = author("PK", keys.next_pk.esl, keys.stranger)
    steps.fails("the latch is used up", "PK", file, EPERM)
    file = author("KEK", keys.stranger.esl, keys.kek)
    steps.fails("KEK by KEK", "KEK", file, EPERM)
    for name, data in contents.items():
        file = author(name, data, keys.stranger)
        steps.fails("by a stranger", name, file, EPERM)
        file = author(name, data, keys.kek)
        steps.works("by KEK", name, file, author.stored(data))
        steps.fails("the same once more", name, file, EPERM)
        file = author(name, data, keys.pk)
        steps.works("by PK, later", name, file, author.stored(data))
        file = author(name, b"", keys.kek)
        steps.works("reset by KEK keeps the date", name, file, author.stored(b""))
        file = author(name, b"", keys.pk)
        steps.works("reset by PK deletes", name, file, None)
        file = author(name, data, keys.kek)
        steps.works("again from nothing", name, file, author.stored(data))
    text = run(lab, daemon, steps, MODE)
    got = results(text)
    assert got["format"] == "ibm,plpks-sb-v1"
    assert set(got["names"].split()) == set(DYNAMIC)

    again = results(
        succeed(
            lab.linux(
                "own",
                LIBRARY
                + 'for name in $(ls $vars); do say "$name" $(hex $vars/$name/data); done\n'
                + "say used $(used)\n",
                daemon,
            )
        )
    )
    assert {name: bytes.fromhex(again[name]) for name in DYNAMIC} == steps.objects
    assert again["used"] == str(steps.space)


def test_three_variables_of_static_mode(keys: Keys, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, LATCH))
    author, steps = Author(), Sequence()
    file = author("PK", keys.pk.esl, keys.stranger)
    steps.works("PK under the latch, whoever signed", "PK", file, author.stored(keys.pk.esl))
    for name, data in (("trustedcadb", keys.ca.esl), ("moduledb", keys.module.esl)):
        steps.fails("by a stranger", name, author(name, data, keys.stranger), EPERM)
        file = author(name, data, keys.pk)
        steps.works("by PK", name, file, author.stored(data))
        file = author(name, b"", keys.pk)
        steps.works("reset deletes", name, file, None)
    file = author("PK", keys.next_pk.esl, keys.pk)
    steps.works("next PK by PK", "PK", file, author.stored(keys.next_pk.esl))
    file = author("moduledb", keys.module.esl, keys.pk)
    steps.fails("by the PK that was", "moduledb", file, EPERM)
    file = author("moduledb", keys.module.esl, keys.next_pk)
    steps.works("by the PK that is", "moduledb", file, author.stored(keys.module.esl))
    text = run(lab, daemon, steps, MODE + "cat $vars/db/size\nls /sys/firmware/secvar\n")
    got = results(text)
    assert got["format"] == "ibm,plpks-sb-v0"
    assert set(got["names"].split()) == set(STATIC)


def test_append_and_dates(keys: Keys, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)

    early = author.when
    file = author("dbx", hash_list(HASHES[0]), keys.kek, APPEND)
    steps.works("append to nothing", "dbx", file, author.stored(hash_list(HASHES[0])))
    file = author("dbx", hash_list(HASHES[1]), keys.kek, APPEND)
    both = hash_list(HASHES[0], HASHES[1])
    steps.works("append a hash", "dbx", file, author.stored(both))
    late = author.when
    steps.works("an append may be repeated", "dbx", file, author.stored(both))
    file = author("dbx", hash_list(HASHES[1], HASHES[2]), keys.pk, APPEND, early)
    three = hash_list(*HASHES[:3])
    steps.works(
        "an append of earlier keeps the later date", "dbx", file, stored_header(late) + three
    )
    file = author("dbx", hash_list(HASHES[0]), keys.pk, when=late)
    steps.fails("a replacement of the same second", "dbx", file, EPERM)
    file = author("dbx", hash_list(HASHES[0]), keys.pk, when=early)
    steps.fails("a replacement of earlier", "dbx", file, EPERM)
    file = author("dbx", keys.revoked.esl, keys.kek, APPEND)
    steps.works("another type of list", "dbx", file, author.stored(three + keys.revoked.esl))
    file = author("dbx", hash_list(HASHES[3]), keys.kek)
    steps.works("a replacement", "dbx", file, author.stored(hash_list(HASHES[3])))

    file = author("db", keys.db.esl, keys.kek)
    steps.works("a certificate", "db", file, author.stored(keys.db.esl))
    file = author("db", keys.module.esl, keys.kek, APPEND)
    certificates = keys.db.esl + keys.module.esl
    steps.works("append a certificate", "db", file, author.stored(certificates))
    file = author("db", keys.db.esl, keys.kek, APPEND)
    steps.works("append one that is there", "db", file, author.stored(certificates))

    file = author("KEK", keys.next_pk.esl, keys.pk, APPEND)
    keks = keys.kek.esl + keys.next_pk.esl
    steps.works("append to KEK", "KEK", file, author.stored(keks))
    file = author("db", hash_list(HASHES[0]), keys.next_pk)
    steps.works("by the second KEK", "db", file, author.stored(hash_list(HASHES[0])))
    file = author("PK", keys.next_pk.esl, keys.pk, APPEND)
    steps.fails("append to PK", "PK", file, EINVAL)

    # Of a variable that is deleted the date is forgotten with it: what was refused works.
    replay = author("grubdb", keys.db.esl, keys.kek)
    steps.works("a certificate", "grubdb", replay, author.stored(keys.db.esl))
    stored = author.stored(keys.db.esl)
    file = author("grubdb", b"", keys.kek)
    steps.works("reset by KEK", "grubdb", file, author.stored(b""))
    steps.fails("a replay after it", "grubdb", replay, EPERM)
    file = author("grubdb", b"", keys.pk)
    steps.works("reset by PK", "grubdb", file, None)
    steps.works("a replay after that", "grubdb", replay, stored)
    run(lab, daemon, steps)


def test_updates_that_were_tampered_with_or_are_malformed(keys: Keys, lab: Lab) -> None:
    """EPERM is a signature that does not hold, EINVAL a structure or a content that cannot be."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    good = author("db", keys.db.esl, keys.kek)
    size_at = 8 + 16
    signature = 8 + 16 + 24

    def changed(at: int, value: bytes) -> bytes:
        return good[:at] + value + good[at + len(value) :]

    for what, file in {
        "signed for another variable": author("dbx", hash_list(HASHES[0]), keys.kek),
        "append that was signed as a replacement": changed(7, b"\1"),
        "another date": changed(8 + 6, b"\7"),
        "other data": good[:-1] + bytes([good[-1] ^ 1]),
        "data added": good + hash_list(HASHES[0]),
        "data taken away": good[: -len(keys.db.esl)],
    }.items():
        steps.fails(what, "db", file, EPERM)
    for what, file in {
        "flags alone": good[:8],
        "flags and a byte": good[:9],
        "a date alone": good[:24],
        "cut off in the signature": good[: signature + 100],
        "unknown flag": changed(0, b"\x80"),
        "unknown low flag": changed(7, b"\2"),
        "a nanosecond": changed(8 + 8, b"\1"),
        "a time zone": changed(8 + 12, b"\1"),
        "a certificate of no size": changed(size_at, b"\x18\0\0\0"),
        "a certificate beyond the end": changed(size_at, b"\xff\xff\xff\x7f"),
        "another revision": changed(size_at + 4, b"\0\1"),
        "another type of certificate": changed(size_at + 6, b"\xf0\x0e"),
        "another GUID": changed(size_at + 8, b"\0"),
        "no DER": changed(signature, b"\0"),
        "nothing but zeros": bytes(500),
        "text": b"#!/bin/sh\n" * 40,
    }.items():
        steps.fails(what, "db", file, EINVAL)
    for what, name, data, signer in (
        ("a list too long", "db", keys.db.esl + b"\0", keys.kek),
        ("a list cut off", "db", keys.db.esl[:-1], keys.kek),
        ("no CA", "trustedcadb", keys.module.esl, keys.kek),
        ("a hash of a certificate", "db", authvar.signature_list(X509_SHA256, HASHES), keys.kek),
        ("a certificate", "sbat", keys.db.esl, keys.kek),
        ("a hash", "moduledb", hash_list(HASHES[0]), keys.kek),
        ("a hash", "KEK", hash_list(HASHES[0]), keys.pk),
        ("two certificates", "PK", keys.pk.esl + keys.next_pk.esl, keys.pk),
        ("none", "PK", b"", keys.pk),
    ):
        steps.fails(what, name, author(name, data, signer), EINVAL)
    # The kernel passes on a page of what is written: the signature is of more than that.
    long = author("db", b"".join([keys.db.esl] * 5), keys.kek)
    assert len(long) > 4096 + 8
    steps.fails("longer than a page", "db", long, EPERM)
    steps.works("the good one, after all that", "db", good, b"\0" + good[8:15] + keys.db.esl)
    run(lab, daemon, steps)
    # All but the eight bytes of flags, for which Linux makes no call.
    assert len(calls(daemon, "H_PKS_SIGNED_UPDATE")) == len(steps.steps) - 1


def test_wipe_goes_back_to_static_keys(keys: Keys, lab: Lab) -> None:
    """It needs the operator: the latch is set while the guest is off."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, first = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(first, author, keys)
    file = author("db", keys.db.esl, keys.kek)
    first.works("db", "db", file, author.stored(keys.db.esl))
    wipe = author("PK", authvar.wipe_list(), keys.pk)
    first.fails("wipe without the latch", "PK", wipe, EINVAL)
    run(lab, daemon, first)

    arm_latch(daemon)
    second = Sequence(first.objects, base=DYNAMIC_SPACE)
    file = author("KEK", keys.stranger.esl, keys.stranger)
    second.fails("the latch is PK's alone", "KEK", file, EPERM)
    second.wipes("wipe under the latch", wipe)
    second.fails("nobody signs any more", "db", author("db", keys.db.esl, keys.kek), EPERM)
    text = run(lab, daemon, second, MODE)
    # The running kernel has chosen its mode.
    assert set(results(text)["names"].split()) == set(DYNAMIC)

    third = Sequence()
    file = author("PK", keys.pk.esl, keys.pk)
    third.fails("the wipe used up the latch", "PK", file, EPERM)
    got = results(run(lab, daemon, third, MODE))
    assert got["format"] == "ibm,plpks-sb-v0"
    assert set(got["names"].split()) == set(STATIC)


def test_latch_is_set_anew_for_a_lost_key(keys: Keys, lab: Lab) -> None:
    """An older date and anyone's signature do for PK, once; then it is PK's turn again."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, first = Author(), Sequence(base=DYNAMIC_SPACE)
    older = author("PK", keys.next_pk.esl, keys.stranger)
    stored = author.stored(keys.next_pk.esl)
    enrol(first, author, keys)
    first.fails("without the latch", "PK", older, EPERM)
    run(lab, daemon, first)
    arm_latch(daemon)
    second = Sequence(first.objects, base=DYNAMIC_SPACE)
    second.works("with the latch", "PK", older, stored)
    second.fails("once", "PK", older, EPERM)
    file = author("PK", keys.pk.esl, keys.next_pk)
    second.works("by the new PK", "PK", file, author.stored(keys.pk.esl))
    run(lab, daemon, second)


def test_no_room(keys: Keys, lab: Lab) -> None:
    """What does not fit changes nothing; what is given back can be used."""
    daemon = lab.daemon(*profile(lab, "keystore_kbytes = 4\n" + DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    name, data = "grubdb", hash_list(*HASHES)
    file = author(name, data, keys.kek)
    steps.works("fits", name, file, author.stored(data))
    label = OVERHEAD + 16 + 2 * len("db") + 8
    left = 4096 - steps.space - label - 28
    entries = [hashlib.sha256(bytes([n, n])).digest() for n in range(left // 48)]
    steps.fails(
        "one too many",
        "db",
        author("db", hash_list(*entries, HASHES[0]), keys.kek),
        ENOMEM,
    )
    file = author("db", hash_list(*entries), keys.kek)
    steps.works("just fits", "db", file, author.stored(hash_list(*entries)))
    file = author("dbx", hash_list(HASHES[0]), keys.kek)
    steps.fails("nothing is left", "dbx", file, ENOMEM)
    file = author("db", hash_list(HASHES[0]), keys.kek, APPEND)
    steps.fails("nor for an append", "db", file, ENOMEM)
    file = author("db", hash_list(*entries[:-1], HASHES[0]), keys.kek)
    steps.works(
        "a replacement of the same size",
        "db",
        file,
        author.stored(hash_list(*entries[:-1], HASHES[0])),
    )
    file = author(name, b"", keys.pk)
    steps.works("given back", name, file, None)
    file = author("dbx", hash_list(HASHES[0]), keys.kek)
    steps.works("and used", "dbx", file, author.stored(hash_list(HASHES[0])))
    run(lab, daemon, steps)


def grow(steps: Sequence, author: Author, keys: Keys, appends: int) -> list[bytes]:
    """Appends to dbx as much as a page takes, several times; gives the hashes."""
    hashes: list[bytes] = []
    for number in range(appends):
        fresh = [hashlib.sha256(bytes([number, n])).digest() for n in range(48)]
        hashes += fresh
        file = author("dbx", hash_list(*fresh), keys.kek, APPEND)
        steps.works("grow", "dbx", file, author.stored(hash_list(*hashes)))
    return hashes


def test_object_of_many_pages(keys: Keys, lab: Lab) -> None:
    """An update fits a page, but what appends make of it need not; the kernel loads all of it."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    hashes = grow(steps, author, keys, 8)
    run(lab, daemon, steps)
    assert len(steps.objects["dbx"]) > 4 * 4096
    script = "say blacklisted $(grep -c ' blacklist  *bin:' /proc/keys)\n"
    got = results(succeed(lab.linux("own", LIBRARY + script, daemon)))
    assert got["blacklisted"] == str(len(hashes))


def test_object_that_would_grow_too_big(keys: Keys, lab: Lab) -> None:
    limit = 8 + 28 + 3 * 48 * 48
    options = f"{DYNAMIC_MODE}{LATCH}[pks]\nmax_object_size = {limit}\n"
    daemon = lab.daemon(*profile(lab, options))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    hashes = grow(steps, author, keys, 3)
    assert len(steps.objects["dbx"]) == limit
    file = author("dbx", hash_list(HASHES[0]), keys.kek, APPEND)
    steps.fails("one hash too many", "dbx", file, ENOMEM)
    file = author("dbx", hash_list(hashes[0]), keys.kek, APPEND)
    steps.works("one that is there", "dbx", file, author.stored(hash_list(*hashes)))
    run(lab, daemon, steps)


def test_operator_forbids_signed_updates(keys: Keys, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, "keystore_signed_updates = 0\n"))
    author, steps = Author(), Sequence()
    steps.fails("PK", "PK", author("PK", keys.pk.esl, keys.pk), EPERM)
    script = "say algorithms $(cat /sys/firmware/plpks/config/signed_update_algorithms)\n"
    assert results(run(lab, daemon, steps, script))["algorithms"] == "0000000000000000"
