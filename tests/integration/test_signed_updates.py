# SPDX-License-Identifier: Apache-2.0
"""Signed updates made on the host and carried out by the guest stub, which believes nothing.

Each boot gets a script as its initrd: messages, the code that each must be answered with, and what
the variable must hold then. Afterwards the store must hold the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import signing
from tests.e2e.daemon import Daemon
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.machine import ByteOrder, Firmware
from tests.e2e.signed_script import Script
from tests.e2e.soaklog import read_store
from tests.signing import certificates, digests, moment, stored, update

from hcalld.domain.labels import os_label
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Consumer, Policy

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

ENFORCE = "secure_boot = 2\n"


def enrol(script: Script) -> None:
    """PK under the latch, once; then KEK and db, each by whom it may."""
    script.refuse("KEK", update("KEK", certificates("KEK"), "PK", moment(1)), H.AUTHORITY)
    script.refuse("db", update("db", certificates("db"), "PK", moment(1)), H.AUTHORITY)
    two = certificates("PK", "KEK")
    script.refuse("PK", update("PK", two, "stranger", moment(1)), H.P6)
    script.refuse("PK", update("PK", b"", "stranger", moment(1)), H.P6)
    script.refuse(
        "PK", update("PK", certificates("PK"), "PK", moment(1)), H.P4, policy=int(Policy.PWSET)
    )
    # Neither by its own key nor for its own name: the latch asks for no signature at all.
    message = update("PK", certificates("PK"), "stranger", moment(9), signed_name="db")
    script.accept("PK", message, stored(moment(9), certificates("PK")))
    script.refuse("PK", message, H.AUTHORITY)
    script.refuse("PK", update("PK", certificates("stranger"), "stranger", moment(10)), H.AUTHORITY)
    kek = certificates("KEK", "KEK2")
    script.refuse("KEK", update("KEK", kek, "KEK", moment(1)), H.AUTHORITY)
    script.refuse("KEK", update("KEK", digests(1), "PK", moment(1)), H.P6)
    script.accept(
        "KEK", update("KEK", kek, "PK", moment(1)), stored(moment(1), kek), is_altered=True
    )
    for name, by in (("db", "KEK"), ("grubdb", "KEK2"), ("moduledb", "PK")):
        content = certificates("db")
        message = update(name, content, by, moment(1))
        script.accept(name, message, stored(moment(1), content), is_altered=name == "db")
    script.accept("dbx", update("dbx", digests(1), "PK", moment(1)), stored(moment(1), digests(1)))


def replace(script: Script) -> None:
    """What is later replaces; what is not, or is for another name or flag, does not."""
    old = update("db", certificates("db"), "KEK", moment(1))
    new = certificates("db2") + digests(7)
    message = update("db", new, "KEK", moment(5))
    script.refuse("db", old, H.AUTHORITY)
    script.refuse("db", update("db", new, "stranger", moment(5)), H.AUTHORITY)
    script.refuse("dbx", update("db", digests(8), "KEK", moment(5)), H.AUTHORITY)
    script.refuse("db", message, H.AUTHORITY, is_append=True)
    script.refuse("db", message, H.P4, policy=int(Policy.SIGNEDUPDATE))
    script.refuse("db", update("db", new[:-1], "KEK", moment(5)), H.P6)
    script.accept("db", message, stored(moment(5), new))
    script.refuse("db", message, H.AUTHORITY)
    script.refuse("db", old, H.AUTHORITY)
    # A new PK is signed by the old one, which then counts for nothing.
    script.accept(
        "PK",
        update("PK", certificates("PK2"), "PK", moment(20)),
        stored(moment(20), certificates("PK2")),
    )
    script.refuse("db", update("db", new, "PK", moment(21)), H.AUTHORITY)
    script.accept("db", update("db", new, "PK2", moment(21)), stored(moment(21), new))
    back = update("PK", certificates("PK"), "PK2", moment(22))
    script.accept("PK", back, stored(moment(22), certificates("PK")))


def append(script: Script) -> None:
    """Entries that are there are not there twice; the time is the later one."""
    first = stored(moment(1), digests(1))
    assert script.objects["dbx"] == first
    message = update("dbx", digests(2, 3), "KEK", moment(7), is_append=True)
    script.refuse("dbx", message, H.AUTHORITY)
    merged = stored(moment(7), digests(1, 2, 3))
    script.accept("dbx", message, merged, is_append=True, is_altered=True)
    script.accept("dbx", message, merged, is_append=True)
    older = update("dbx", digests(4), "PK", moment(2), is_append=True)
    script.accept("dbx", older, stored(moment(7), digests(1, 2, 3, 4)), is_append=True)
    kek = script.objects["KEK"][8:]
    message = update("KEK", certificates("KEK3"), "PK", moment(3), is_append=True)
    content = stored(moment(3), kek + certificates("KEK3"))
    script.accept("KEK", message, content, is_append=True)
    pk = update("PK", certificates("PK2"), "PK", moment(30), is_append=True)
    script.refuse("PK", pk, H.P5, is_append=True)
    fresh = update("grubdbx", digests(5), "KEK3", moment(4), is_append=True)
    script.accept("grubdbx", fresh, stored(moment(4), digests(5)), is_append=True)
    other = update("anything", b"of any kind", "KEK3", moment(4))
    script.accept("anything", other, stored(moment(4), b"of any kind"))


def empty(script: Script) -> None:
    """By a KEK a variable is emptied and keeps its time; by PK it is deleted."""
    script.accept("grubdb", update("grubdb", b"", "KEK", moment(40)), stored(moment(40), b""))
    old = update("grubdb", certificates("db"), "KEK", moment(39))
    script.refuse("grubdb", old, H.AUTHORITY)
    script.accept("grubdbx", update("grubdbx", b"", "PK", moment(41)), None)
    # Its time is forgotten with it.
    old = update("grubdbx", digests(5), "PK", moment(2))
    script.accept("grubdbx", old, stored(moment(2), digests(5)))
    script.refuse("PK", update("PK", b"", "PK", moment(42)), H.P6)
    script.refuse("PK", update("PK", signing.WIPE, "PK", moment(42)), H.P6)


def wipe(script: Script) -> None:
    """Under the latch, and then there is no variable left; nor a second time."""
    message = update("PK", signing.WIPE, "stranger", moment(1))
    names = list(script.objects)
    script.accept("PK", message, None)
    script.objects.clear()
    for name in names:
        script.look(name)
    script.refuse("PK", message, H.AUTHORITY)
    script.refuse("PK", update("PK", certificates("PK"), "PK", moment(50)), H.AUTHORITY)


def check_store(daemon: Daemon, script: Script) -> None:
    """The store has each variable as the script has it, and no other."""
    assert daemon.terminate() == 0
    variables = {
        label: data
        for (consumer, label), (policy, data) in read_store(
            daemon.state_dir, PARTITION
        ).objects.items()
        if consumer == Consumer.OS and policy & Policy.SIGNEDUPDATE
    }
    expected = {
        os_label(b"", name.encode("utf-16-le")): data for name, data in script.objects.items()
    }
    assert variables == expected


@pytest.mark.parametrize(("byte_order", "firmware"), [("le", "vof"), ("be", "slof")])
def test_signed_updates(byte_order: ByteOrder, firmware: Firmware, lab: Lab) -> None:
    profiles = lab.artifacts / "profiles"
    profiles.mkdir()
    daemon = lab.daemon("--profile-dir", str(profiles), is_started=False)
    objects: dict[str, bytes] = {}
    boots: list[tuple[str, list[object]]] = [
        ("keystore_signed_updates_without_verification = 1\n", [enrol, replace]),
        # A cold boot, with answers that take several issues.
        ("[pks]\nbusy_answers = 2\n", [append, empty]),
        # A latch that is used up is not set again before the profile says so anew.
        ("keystore_signed_updates_without_verification = 0\n", []),
        ("keystore_signed_updates_without_verification = 1\n", [wipe]),
        ("", []),
    ]
    for number, (profile, parts) in enumerate(boots):
        (profiles / "default.toml").write_text(profile, "utf-8")
        script = Script(objects)
        for name in script.objects:
            script.look(name)
        for part in parts:
            part(script)  # type: ignore[operator]
        daemon.start()
        # All that firmware can differ in is how the first boot finds the script.
        path = lab.artifacts / f"script-{number}"
        boot(lab, daemon, script, path, byte_order, "vof" if number else firmware)
        check_store(daemon, script)
        objects = script.objects
    assert objects == {}


def boot(
    lab: Lab,
    daemon: Daemon,
    script: Script,
    path: Path,
    byte_order: ByteOrder,
    firmware: Firmware,
) -> None:
    """Boots the guest stub with a script."""
    path.write_bytes(script.build())
    machine = lab.stub(
        "signed-script require=1", daemon, byte_order=byte_order, firmware=firmware, initrd=path
    )
    machine.report(120).must_pass("signed_script")
