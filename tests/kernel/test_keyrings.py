# SPDX-License-Identifier: Apache-2.0
"""Certificates and hashes from the keystore arrive in the kernel's keyrings at boot.

load_powerpc.c takes db to .platform, dbx to .blacklist, trustedcadb to .machine, and moduledb to
.secondary_trusted_keys, the last one only if a certificate of .machine vouches for it.
"""

from __future__ import annotations

import errno
import hashlib
import re
from typing import TYPE_CHECKING

import pytest
from tests.e2e import authvar
from tests.e2e.authvar import SHA256, X509_SHA256
from tests.e2e.daemon import run_hcalld
from tests.e2e.lab import PARTITION
from tests.kernel.guestside import LIBRARY, profile, succeed
from tests.kernel.secvars import Sequence
from tests.kernel.test_secvar import (
    DYNAMIC_MODE,
    DYNAMIC_SPACE,
    LATCH,
    Author,
    enrol,
    run,
)

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab
    from tests.kernel.conftest import Keys

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

RINGS = ("platform", "machine", "secondary_trusted_keys", "blacklist")

SHOW = f"""\
for ring in {" ".join(RINGS)}; do
    echo "RING $ring"
    keyctl show %:.$ring
done
echo "RING end"
"""

IMAGE_HASH = hashlib.sha256(b"an image").hexdigest()


LINKED = {"keyring: .builtin_trusted_keys", "keyring: .machine"}
"""What the secondary keyring has from the beginning."""


def rings(text: str) -> dict[str, set[str]]:
    """What is in each keyring itself, a certificate by its name alone."""
    parts = re.findall(r"^RING (\w+)\n(.*?)(?=^RING )", text, re.MULTILINE | re.DOTALL)
    found = {}
    for name, shown in parts:
        # Deeper ones are in a keyring that is linked into it.
        keys = re.findall(r"^ *\d+ \S+ +\d+ +\d+   \\_ (\w+: .*)$", shown, re.MULTILINE)
        found[name] = {re.sub(r"^(asymmetric: [^:]+): [0-9a-f]+$", r"\1", key) for key in keys}
    return found


def show(lab: Lab, daemon: Daemon) -> str:
    """Boots and lists the keyrings."""
    return succeed(lab.linux("own", LIBRARY + SHOW, daemon, userland="initramfs-tools"))


def test_an_empty_keystore_brings_nothing(lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE))
    text = show(lab, daemon)
    assert rings(text) == {
        "platform": set(),
        "machine": set(),
        "secondary_trusted_keys": LINKED,
        "blacklist": set(),
    }
    for name in ("db", "dbx", "trustedcadb", "moduledb"):
        assert f"Couldn't get {name} list from firmware" in text
    assert "Loaded X.509 cert" not in text


def test_certificates_and_hashes_arrive(keys: Keys, lab: Lab) -> None:
    daemon = lab.daemon(*profile(lab, DYNAMIC_MODE + LATCH))
    author, steps = Author(), Sequence(base=DYNAMIC_SPACE)
    enrol(steps, author, keys)
    signed_part = authvar.openssl(
        "asn1parse", "-in", keys.stranger.certificate, "-strparse", "4", "-noout", "-out", "-"
    )
    tbs_hash = hashlib.sha256(signed_part).hexdigest()
    revoked = (
        authvar.signature_list(SHA256, [bytes.fromhex(IMAGE_HASH)])
        + authvar.signature_list(X509_SHA256, [bytes.fromhex(tbs_hash)])
        + keys.revoked.esl
    )
    for name, data in (
        ("db", keys.db.esl),
        ("dbx", revoked),
        ("trustedcadb", keys.ca.esl),
        # One that the CA has issued, one that dbx revokes, and one that nobody vouches for.
        ("moduledb", keys.module.esl + keys.stranger.esl + keys.kek.esl),
        # GRUB's are not the kernel's.
        ("grubdb", keys.pk.esl),
    ):
        file = author(name, data, keys.kek)
        steps.works("by KEK", name, file, author.stored(data))
    run(lab, daemon, steps)

    text = show(lab, daemon)
    assert rings(text) == {
        "platform": {"asymmetric: db"},
        "machine": {"asymmetric: ca"},
        "secondary_trusted_keys": LINKED | {"asymmetric: module"},
        "blacklist": {
            f"blacklist: bin:{IMAGE_HASH}",
            f"blacklist: tbs:{tbs_hash}",
            "asymmetric: revoked",
        },
    }
    for name in ("db", "ca", "module"):
        assert re.search(rf"Loaded X\.509 cert '{name}: [0-9a-f]+'", text), name
    assert f"X.509: Cert {tbs_hash} is blacklisted" in text
    refused = "Problem loading X.509 certificate from powerpc:moduledb to secondary keyring"
    assert f"{refused} -{errno.EKEYREJECTED}" in text
    assert f"{refused} -{errno.ENOKEY}" in text
    assert "Couldn't get" not in text


def test_static_keys_bring_modules_certificates(keys: Keys, lab: Lab) -> None:
    """Without dynamic keys the kernel has trustedcadb and moduledb all the same."""
    enroll = run_hcalld(
        *("secvar", "enroll", "--state-dir", str(lab.artifacts / "daemon.state")),
        *("--partition", PARTITION, "--pk", str(keys.pk.certificate)),
        *("--trustedcadb", str(keys.ca.certificate), "--moduledb", str(keys.module.certificate)),
    )
    assert enroll.returncode == 0, enroll.stderr
    assert rings(show(lab, lab.daemon())) == {
        "platform": set(),
        "machine": {"asymmetric: ca"},
        "secondary_trusted_keys": LINKED | {"asymmetric: module"},
        "blacklist": set(),
    }
