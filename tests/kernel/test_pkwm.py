# SPDX-License-Identifier: Apache-2.0
"""Trusted keys wrapped by the keystore, as keyctl and the kernel's trusted_pkwm.c have them.

A wrapped key is what ``keyctl print`` gives, hexadecimal digits; it lives outside the guest, here
between one boot and the next.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.kernel.guestside import (
    LIBRARY,
    WRAPPING_KEY_SPACE,
    calls,
    profile,
    results,
    succeed,
)

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

OVERHEAD_DIGITS = 2 * 1024
"""What wrapping adds."""

EPERM = "Operation not permitted"
EINVAL = "Invalid argument"

KEYS = """\
# new NAME ARGUMENTS: a new trusted key; says its wrapped form.
new() { keyctl add trusted $1 "new $2" @u > /tmp/id && say $1 $(keyctl print $(cat /tmp/id)); }

# load NAME FILE: says whether a wrapped key becomes a trusted one.
load() { try $1 keyctl add trusted $1 "load $(cat $2)" @u; }
"""


def boot(
    lab: Lab,
    daemon: Daemon,
    script: str,
    files: dict[str, str] | None = None,
    *,
    name: str | None = None,
) -> str:
    """Boots from cold with files to load; gives the console of a script that succeeds."""
    machine = lab.linux(
        "own",
        LIBRARY + KEYS + script,
        daemon,
        userland="initramfs-tools",
        files={path: text.encode() for path, text in (files or {}).items()},
        name=name,
    )
    return succeed(machine)


def flip(digits: str, position: int) -> str:
    """Changes one hexadecimal digit."""
    return digits[:position] + f"{int(digits[position], 16) ^ 1:x}" + digits[position + 1 :]


def test_trusted_keys_and_encrypted_keys_across_cold_boots(lab: Lab) -> None:
    daemon = lab.daemon()
    text = boot(
        lab,
        daemon,
        """
new kmk 32
new least 32
new most 128
try below keyctl add trusted below "new 31" @u
try above keyctl add trusted above "new 129" @u
keyctl print %trusted:kmk > /tmp/kmk
load again /tmp/kmk
[ "$(keyctl print %trusted:again)" = "$(cat /tmp/kmk)" ] && say same yes
try update keyctl update %trusted:kmk "load $(cat /tmp/kmk)"
keyctl add encrypted ek "new trusted:kmk 32" @u
say ek "$(keyctl print %encrypted:ek)"
say used $(used)
""",
    )
    first = results(text)
    assert "trusted_key:" not in text
    assert re.fullmatch("[0-9a-f]+", first["kmk"])
    assert len(first["kmk"]) == len(first["least"]) == 2 * 32 + OVERHEAD_DIGITS == 2112
    assert len(first["most"]) == 2 * 128 + OVERHEAD_DIGITS == 2304
    assert (first["below"], first["above"]) == (EINVAL, EINVAL)
    assert (first["again"], first["same"]) == ("ok", "yes")
    assert first["update"] == EPERM
    # Wrapped keys take no space: the store has the key that wraps them, and nothing else.
    assert first["used"] == str(WRAPPING_KEY_SPACE)
    assert len(calls(daemon, "H_PKS_WRAP_OBJECT")) == 3
    assert len(calls(daemon, "H_PKS_UNWRAP_OBJECT")) == 1

    second = boot(
        lab,
        daemon,
        """
try early keyctl add encrypted ek "load $(cat /ek)" @u
load kmk /kmk
load most /most
try late keyctl add encrypted ek "load $(cat /ek)" @u
[ "$(keyctl print %encrypted:ek)" = "$(cat /ek)" ] && say same yes
[ "$(keyctl print %trusted:most)" = "$(cat /most)" ] && say samemost yes
say used $(used)
""",
        {"/kmk": first["kmk"], "/most": first["most"], "/ek": first["ek"]},
    )
    got = results(second)
    assert got["early"] == "Required key not available"
    assert (got["kmk"], got["most"], got["late"]) == ("ok", "ok", "ok")
    assert (got["same"], got["samemost"]) == ("yes", "yes")
    assert got["used"] == str(WRAPPING_KEY_SPACE)
    assert "Failed to generate default wrapping key" not in second
    made = calls(daemon, "H_PKS_GEN_KEY")
    assert ["H_SUCCESS" in made[0], "H_RESOURCE" in made[1]] == [True, True]


WRAP_FLAGS = """\
new plain 32
new audit "32 wrap_flags=0x01"
new enforce "32 wrap_flags=0x02"
try both keyctl add trusted both "new 32 wrap_flags=0x03" @u
dyndbg
for name in plain audit enforce; do
    keyctl print %trusted:$name > /tmp/$name
    load fresh_$name /tmp/$name
    [ ! -e /kept_$name ] || load kept_$name /kept_$name
done
"""


def test_wrap_flags(lab: Lab) -> None:
    """A key that wants secure boot is wrapped without it, and stays shut until it is there.

    What counts is the state when a key is loaded, not the one in which it was wrapped.
    """
    daemon = lab.daemon(*profile(lab, "secure_boot = 2\n"))
    kept: dict[str, str] = {}
    for secure_boot, audit, enforce in ((2, "ok", "ok"), (0, EPERM, EPERM), (1, "ok", EPERM)):
        daemon.terminate()
        profile(lab, f"secure_boot = {secure_boot}\n")
        daemon.start()
        text = boot(lab, daemon, WRAP_FLAGS, kept)
        got = results(text)
        expected = {"plain": "ok", "audit": audit, "enforce": enforce}
        assert {name: got[f"fresh_{name}"] for name in expected} == expected
        assert got["both"] == EINVAL
        if kept:
            assert {name: got[f"kept_{name}"] for name in expected} == expected
        refusals = (audit, enforce).count(EPERM) * 2
        assert text.count("H_PKS_UNWRAP_OBJECT failed. pseries_status=-10, rc=-1") == refusals
        kept = kept or {f"/kept_{name}": got[name] for name in expected}
    flags = [re.search(r"flags=([A-Z_|0-9]+)", line) for line in calls(daemon, "H_PKS_WRAP")]
    assert [found and found[1] for found in flags] == 3 * [
        "PASSWORD|AES_GCM_256",
        "OSSECBOOTAUDIT|PASSWORD|AES_GCM_256",
        "OSSECBOOTENFORCE|PASSWORD|AES_GCM_256",
    ]


def test_altered_and_foreign_and_short_keys_are_refused(lab: Lab) -> None:
    """Every refusal is the hypervisor's: with dyndbg the kernel prints its code."""
    daemon = lab.daemon()
    wrapped = results(boot(lab, daemon, "new kmk 32\nnew other 32"))
    kmk, other = wrapped["kmk"], wrapped["other"]
    foreign = results(boot(lab, daemon, "new kmk 32", name="neighbour"))["kmk"]
    bad = {
        "foreign": foreign,
        "first": flip(kmk, 0),
        "format": flip(kmk, 9),
        "middle": flip(kmk, 1000),
        "last": flip(kmk, len(kmk) - 1),
        "longer": kmk + "00",
        "shorter": kmk[:-2],
        "mixed": kmk[:1056] + other[1056:],
        "zeros": "0" * len(kmk),
    }
    text = boot(
        lab,
        daemon,
        "dyndbg\n"
        f"for name in {' '.join(bad)}; do dmesg -c > /dev/null; load $name /$name\n"
        "    say ${name}_code $(dmesg | sed -n 's/.*UNWRAP_OBJECT failed. pseries_status=//p')\n"
        "done\n"
        "load kmk /kmk\nload other /other\nsay used $(used)\n",
        {f"/{name}": digits for name, digits in {**bad, "kmk": kmk, "other": other}.items()},
    )
    got = results(text)
    for name in bad:
        assert got[name] == EINVAL, name
        # H_BAD_DATA, or H_UNSUPPORTED where the format is not ours.
        assert re.fullmatch(r"-(70|67), rc=-22", got[f"{name}_code"]), (name, got)
    assert (got["kmk"], got["other"]) == ("ok", "ok")
    assert got["used"] == str(WRAPPING_KEY_SPACE)


def test_keys_below_1024_bytes_are_refused(lab: Lab) -> None:
    """Of these Linux makes an output of almost 4 GiB at the address 0x10.

    Its length is unsigned and 1024 less than the input's (plpks.c ``plpks_unwrap_object()``); the
    output's buffer of no bytes is ZERO_SIZE_PTR if the input has 1024.
    """
    daemon = lab.daemon()
    wrapped = results(boot(lab, daemon, "new kmk 32"))["kmk"]
    lengths = [0, 1, 15, 16, 17, 100, 511, 512, 1000, 1007, 1008, 1022, 1023, 1024, 1025, 1055]
    text = boot(
        lab,
        daemon,
        "dyndbg\n"
        f"for n in {' '.join(map(str, lengths))}; do\n"
        "    head -c $((2 * n)) /kmk > /tmp/cut; load cut$n /tmp/cut\n"
        "    head -c $((2 * n)) /zeros > /tmp/cut; load zeros$n /tmp/cut\n"
        "done\n"
        "load kmk /kmk\n",
        {"/kmk": wrapped, "/zeros": "0" * 2304},
    )
    got = results(text)
    for length in lengths:
        assert (got[f"cut{length}"], got[f"zeros{length}"]) == (EINVAL, EINVAL), length
    assert got["kmk"] == "ok"
    unwraps = calls(daemon, "H_PKS_UNWRAP_OBJECT")
    short = [line for line in unwraps if "out=@0x10 " in line]
    # "load" with no digits at all goes no further than the kernel's parser, or is of 0 bytes.
    assert len(short) >= 2 * (lengths.index(1024) - 1)
    assert not [line for line in short if "H_SUCCESS" in line]
