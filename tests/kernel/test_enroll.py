# SPDX-License-Identifier: Apache-2.0
"""What ``hcalld secvar`` makes, a kernel takes; what it puts into a store, a kernel finds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.e2e.authvar import DYNAMIC
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import PARTITION
from tests.kernel.guestside import (
    LIBRARY,
    WRAPPING_KEY_SPACE,
    profile,
    results,
    succeed,
    wait_until_off,
)
from tests.kernel.secvars import EPERM, Sequence
from tests.kernel.test_secvar import (
    DYNAMIC_MODE,
    DYNAMIC_SPACE,
    LATCH,
    MODE,
    Author,
    arm_latch,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Lab
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


def secvar(*words: str | Path) -> str:
    """Runs a command of ``hcalld secvar`` that must succeed; gives what it prints."""
    done = run_hcalld("secvar", *map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(update: bytes, data: bytes) -> bytes:
    """What a variable holds after a replacing update: its date and its data."""
    return b"\0" + update[8:15] + data


def test_default_set_is_enrolled_reset_and_wiped(lab: Lab) -> None:
    """The set is made for tests of kernels: nothing of it is signed by this test."""
    folder = lab.artifacts / "keys"
    secvar("defaults", folder)
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    steps = Sequence(base=DYNAMIC_SPACE)
    for name in DYNAMIC:
        update = (folder / f"{name}.update").read_bytes()
        data = (folder / f"{name}.esl").read_bytes()
        steps.works("from the set", name, update, stored(update, data))
    # As the set's README.txt says.
    run(lab, daemon, steps, before="update() { cat $2 > $vars/$1/update; }\n")

    text = succeed(lab.linux("own", "dmesg -n 3; dmesg", daemon))
    assert len(set(re.findall(r"Loaded X\.509 cert '([^']+)'", text))) >= 2
    assert "Couldn't get" not in text
    assert "Problem loading" not in text

    arm_latch(daemon)
    resets = Sequence(steps.objects, base=DYNAMIC_SPACE)
    for name in DYNAMIC[1:]:
        file = (folder / f"{name}.reset").read_bytes()
        resets.works("reset", name, file, None)
    resets.wipes("wipe", (folder / "PK.wipe").read_bytes())
    run(lab, daemon, resets)
    assert results(succeed(lab.linux("own", LIBRARY + MODE, daemon)))["format"].endswith("v0")


def test_certificates_of_openssl_are_signed_for_and_enrolled(keys: Keys, lab: Lab) -> None:
    """Five commands and a guest."""
    folder = lab.artifacts
    by_pk = ("--key", keys.pk.key, "--cert", keys.pk.certificate)
    by_kek = ("--key", keys.kek.key, "--cert", keys.kek.certificate)
    hashes = folder / "dbx.esl"
    secvar("esl", "--file", keys.db.key, "--cert-hash", keys.revoked.certificate, "-o", hashes)
    secvar("sign", "PK", keys.pk.certificate, *by_pk, "-o", folder / "PK")
    secvar("sign", "KEK", keys.kek.certificate, *by_pk, "-o", folder / "KEK")
    secvar("sign", "db", keys.db.certificate, *by_kek, "-o", folder / "db")
    secvar("sign", "dbx", hashes, *by_kek, "--append", "-o", folder / "dbx")
    contents = {
        "PK": keys.pk.esl,
        "KEK": keys.kek.esl,
        "db": keys.db.esl,
        "dbx": hashes.read_bytes(),
    }
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    steps = Sequence(base=DYNAMIC_SPACE)
    for name, data in contents.items():
        update = (folder / name).read_bytes()
        steps.works("signed by hcalld", name, update, stored(update, data))
    run(lab, daemon, steps)


def test_verify_says_what_the_guest_will_see(keys: Keys, lab: Lab) -> None:
    """Each update is judged on the host before, and then in the guest."""
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, first = Author(), Sequence(base=DYNAMIC_SPACE)
    old = author("db", keys.db.esl, keys.kek)
    for name, data in (("PK", keys.pk.esl), ("KEK", keys.kek.esl), ("db", keys.db.esl)):
        file = author(name, data, keys.pk)
        first.works("enrol", name, file, author.stored(data))
    run(lab, daemon, first)
    wait_until_off(daemon)

    steps = Sequence(first.objects, base=DYNAMIC_SPACE)
    good = author("db", keys.module.esl, keys.kek)
    after = author.stored(keys.module.esl)
    refused = {
        "older": ("db", old),
        "a stranger's": ("db", author("db", keys.db.esl, keys.stranger)),
        "KEK by KEK": ("KEK", author("KEK", keys.kek.esl, keys.kek)),
        "another variable's": ("dbx", good),
    }
    place = ("--state-dir", daemon.state_dir, "--partition", PARTITION)
    path = lab.artifacts / "update"
    for what, (name, file) in refused.items():
        path.write_bytes(file)
        done = run_hcalld("secvar", "verify", *map(str, place), name, str(path))
        assert done.returncode != 0, what
        steps.fails(what, name, file, EPERM)
    path.write_bytes(good)
    secvar("verify", *place, "db", path)
    steps.works("good", "db", good, after)
    run(lab, daemon, steps)


def test_store_that_was_filled_while_the_guest_was_off(keys: Keys, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, "linux_dynamic_key_secure_boot = 1\nsecure_boot = 1\n"))
    secvar(
        *("enroll", "--state-dir", daemon.state_dir, "--partition", PARTITION),
        *("--time", "2026-01-01T00:00:00Z"),
        *("--pk", keys.pk.certificate, "--kek", keys.kek.certificate),
        *("--db", keys.db.certificate, "--trustedcadb", keys.ca.certificate),
        *("--moduledb", keys.module.certificate),
    )
    author = Author()
    steps = Sequence(base=DYNAMIC_SPACE)
    for name, data in (
        ("PK", keys.pk.esl),
        ("KEK", keys.kek.esl),
        ("db", keys.db.esl),
        ("trustedcadb", keys.ca.esl),
        ("moduledb", keys.module.esl),
    ):
        steps.objects[name] = author.stored(data)
    steps.fails("not later", "db", author("db", keys.db.esl, keys.kek, when=author.when), EPERM)
    file = author("db", keys.module.esl, keys.kek)
    steps.works("later", "db", file, author.stored(keys.module.esl))
    text = run(lab, daemon, steps, "say space $(used)\n")
    assert int(results(text)["space"]) > WRAPPING_KEY_SPACE
    for name in ("db", "ca", "module"):
        assert re.search(rf"Loaded X\.509 cert '{name}: [0-9a-f]+'", text), name
