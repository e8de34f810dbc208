# SPDX-License-Identifier: Apache-2.0
"""What Linux does when a call fails: every code that its keystore code knows, and some others.

One guest goes through the codes of a call one after the other. What is found is in
docs/faults.md, table by table; the code is ``arch/powerpc/platforms/pseries/plpks.c``,
``plpks-secvar.c`` and ``security/keys/trusted-keys/trusted_pkwm.c`` of Linux 7.2.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
from tests.e2e.daemon import run_hcalld
from tests.e2e.patience import wait_until
from tests.e2e.secure import SAID_UNDER_VOF, SVM, SecureLab, said_early
from tests.kernel.faultsteps import STEPS, Conductor, label_size, steps_of
from tests.kernel.guestside import (
    BOOT_S,
    INITIALIZED,
    LIBRARY,
    OFF,
    WARNING,
    calls,
    profile,
    results,
    succeed,
)
from tests.kernel.test_busy import codes
from tests.kernel.test_guest_tpm import SWTPM
from tests.kernel.test_guest_tpm import boot as boot_with_tpm

from hcalld.control.client import ControlClient
from hcalld.control.endpoint import NAME
from hcalld.control.messages import AddFault, ClearFaults
from hcalld.faults.rules import Corrupt, Rule
from hcallproto.abi.returns import U, code_name

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

LONG_BUSY: Final = tuple(
    f"H_LONG_BUSY_ORDER_{order}"
    for order in ("1_MSEC", "10_MSEC", "100_MSEC", "1_SEC", "10_SEC", "100_SEC")
)
BUSY: Final = ("H_BUSY", *LONG_BUSY)

ERRORS: Final[dict[str | int, int]] = {
    "H_FUNCTION": errno.ENXIO,
    **dict.fromkeys(("H_PARAMETER", "H_P2", "H_P3", "H_P4", "H_P5", "H_P6"), errno.EINVAL),
    "H_NOT_FOUND": errno.ENOENT,
    "H_AUTHORITY": errno.EPERM,
    "H_NO_MEM": errno.ENOMEM,
    "H_RESOURCE": errno.EEXIST,
    "H_TOO_BIG": errno.EFBIG,
    **dict.fromkeys(("H_STATE", "H_R_STATE", "H_ABORTED"), errno.EIO),
    "H_IN_USE": errno.EEXIST,
    # Those that pseries_status_to_err() does not know.
    **dict.fromkeys(
        (
            *("H_HARDWARE", "H_PRIVILEGE", "H_PERMISSION", "H_DROPPED", "H_P7", "H_P8", "H_P9"),
            *("H_UNSUPPORTED", "H_BAD_DATA", "H_CLOSED", "H_NOT_AVAILABLE", -9999, 4711),
        ),
        errno.EINVAL,
    ),
}
"""A code, and the errno that Linux makes of it once."""


def text_of(number: int) -> str:
    """How programs print an errno."""
    return "ok" if number == 0 else os.strerror(number)


def each(call: str, codes: tuple[str | int, ...], **more: object) -> list[Rule]:
    """A rule for each code, each for one call."""
    return [Rule(call=call, returns=code, times=1, **more) for code in codes]  # type: ignore[arg-type]


def test_codes_become_errnos(lab: Lab) -> None:
    """Each call is answered with each code, once."""
    every = tuple(ERRORS)
    reading = (*every, *BUSY)
    count = len(every)
    daemon = lab.daemon()
    script = f"""{STEPS}
until_told config
for n in $(seq 0 {len(reading) - 1}); do step config$n is_zero; done
until_told read
for n in $(seq 0 {len(reading) - 1}); do step read$n get PK; done
until_told update
for n in $(seq 0 {count - 1}); do step update$n update PK /tmp/junk; done
until_told flushed
for n in $(seq 0 {len(reading) - 1}); do step flushed$n update PK /tmp/junk; done
until_told wrap
for n in $(seq 0 {count - 1}); do step wrap$n add wrap$n; done
add kmk > /dev/null; keyctl print %trusted:kmk > /tmp/wrapped
until_told unwrap
for n in $(seq 0 {count - 1}); do step unwrap$n load unwrap$n; done
step again load again
"""
    machine = lab.linux("own", script, daemon, userland="initramfs-tools")
    of_pk = {"label_size": label_size("PK")}
    with Conductor(daemon, machine) as conductor:
        conductor.at("config", each("H_PKS_GET_CONFIG", reading))
        conductor.at("read", each("H_PKS_READ_OBJECT", reading, arguments=of_pk))
        conductor.at("update", each("H_PKS_SIGNED_UPDATE", every))
        told = Rule(call="H_PKS_SIGNED_UPDATE", returns="H_SUCCESS")
        conductor.at("flushed", [told, *each("H_PKS_CONFIRM_OBJECT_FLUSHED", reading)])
        conductor.at("wrap", each("H_PKS_WRAP_OBJECT", every))
        conductor.at("unwrap", each("H_PKS_UNWRAP_OBJECT", every))
        text = succeed(machine)
    got = steps_of(text)
    for n, code in enumerate(reading):
        number = ERRORS.get(code, errno.EBUSY)
        # What failed is told as no space in use, with no error.
        assert got[f"config{n}"] == "ok", code
        assert f"plpks: Couldn't get config, rc: -{number}|" in got[f"config{n}_log"], code
        # Of reading, user space is told only whether the variable is absent.
        absent = code == "H_NOT_FOUND"
        assert got[f"read{n}"] == text_of(errno.ENOENT if absent else errno.EIO), code
        failed = f"secvar: Failed to read variable 'PK': -{number}|"
        assert (failed in got[f"read{n}_log"]) is not absent, code
        # Of a flush that fails after a signed update it is told all.
        assert got[f"flushed{n}"] == text_of(number), code
        said = f"secvar-sysfs: Error setting the PK variable -{number}|"
        assert said in got[f"flushed{n}_log"], code
    for n, code in enumerate(every):
        number = ERRORS[code]
        assert got[f"update{n}"] == text_of(number), code
        said = f"secvar-sysfs: Error setting the PK variable -{number}|"
        assert said in got[f"update{n}_log"], code
        for call in ("wrap", "unwrap"):
            assert got[f"{call}{n}"] == text_of(number), (call, code)
            said = f"plpks: H_PKS_{call.upper()}_OBJECT failed. pseries_status="
            assert said in got[f"{call}{n}_log"], (call, code)
            assert f", rc=-{number}" in got[f"{call}{n}_log"], (call, code)
    assert got["again"] == "ok"
    # Reading, and asking whether something is flushed, is not tried again while busy.
    for call in ("H_PKS_CONFIRM_OBJECT_FLUSHED", "H_PKS_READ_OBJECT"):
        answered = codes(daemon, call)
        assert [answered.count(code) for code in BUSY] == [1] * len(BUSY), call


ENDLESS: Final = {LONG_BUSY[2]: 50, LONG_BUSY[3]: 5, LONG_BUSY[4]: 1}
"""How often Linux takes a code before it gives up, after 5 s of hints or one that is longer."""


@pytest.mark.parametrize(
    "endless", [ENDLESS, pytest.param({"H_BUSY": 5000, **ENDLESS}, marks=pytest.mark.soak)], ids=len
)
def test_signed_updates_wait_as_they_are_told(endless: dict[str, int], lab: Lab) -> None:
    """Tried again after the hint, for 5 s of hints in all, which one long hint outlasts."""
    finite = {"H_BUSY": 20, **dict(zip(LONG_BUSY[:3], (20, 10, 3), strict=True))}
    # All wait at once, each for a variable whose name is of another length.
    variables = dict(zip(endless, ("sbat", "grubdb", "grubdbx", "KEK"), strict=False))
    last = "trustedcadb"
    daemon = lab.daemon(*profile(lab, "linux_dynamic_key_secure_boot = 1\n"))
    waits = "".join(f"waits {variable} &\n" for variable in (*variables.values(), last))
    script = f"""{STEPS}
waits() {{
    local before=$(cut -d. -f1 /proc/uptime)
    try $1 update $1 /tmp/junk
    say seconds_$1 $(($(cut -d. -f1 /proc/uptime) - before))
}}
until_told busy
for n in $(seq 0 {len(finite) - 1}); do step busy$n update PK /tmp/junk; done
until_told endless
{waits}
wait
"""
    machine = lab.linux("own", script, daemon, userland="initramfs-tools")
    call, flushed = "H_PKS_SIGNED_UPDATE", "H_PKS_CONFIRM_OBJECT_FLUSHED"
    with Conductor(daemon, machine) as conductor:
        rules = [
            rule
            for code, times in finite.items()
            for rule in (
                Rule(call=call, returns=code, times=times),
                Rule(call=call, returns="H_AUTHORITY", times=1),
            )
        ]
        conductor.at("busy", rules)
        rules = [
            Rule(call=call, returns=code, arguments={"label_size": label_size(variable)})
            for code, variable in variables.items()
        ]
        # A success that does not say "flushed" is asked for again and again.
        of_last = {"label_size": label_size(last)}
        rules += [
            Rule(call=name, returns="H_SUCCESS", arguments=of_last) for name in (call, flushed)
        ]
        conductor.at("endless", rules)
        text = succeed(machine)
    got = steps_of(text)
    for n in range(len(finite)):
        assert got[f"busy{n}"] == text_of(errno.EPERM)
    for code, variable in variables.items():
        assert got[variable] == text_of(errno.EBUSY), code
    expected = [
        answer for code, times in finite.items() for answer in (*[code] * times, "H_AUTHORITY")
    ]
    answered = codes(daemon, call)
    assert answered[: len(expected)] == expected
    assert Counter(answered[len(expected) :]) == {**endless, "H_SUCCESS": 1}
    # Ten seconds of sleep, though it gives up after five.
    assert int(got[f"seconds_{variables[LONG_BUSY[4]]}"]) >= 10
    assert got[last] == text_of(errno.ETIMEDOUT)
    # One more was asked at boot, of the wrapping key.
    assert codes(daemon, flushed) == ["H_SUCCESS"] * 501


FOR_EVER = """\
until_told busy
step wrap add first
keyctl print %trusted:first > /tmp/wrapped
step unwrap load second
until_told ever
keyctl add trusted third "new 32" @u > /dev/null & pid=$!
read -r told
kill -9 $pid
say killed yes
# Its system time is of both sides of the signal: half a second is after it, by any count.
time_of() { cut -d' ' -f15 /proc/$pid/stat; }
before=$(time_of)
until [ $(($(time_of) - before)) -ge 50 ]; do sleep 0.1; done
say state $(cut -d' ' -f3 /proc/$pid/stat)
until_told over
wait $pid
say ended $?
"""


def test_wrapping_is_tried_again_at_once_and_for_ever(lab: Lab) -> None:
    """Whatever the hint, and no signal ends it."""
    daemon = lab.daemon()
    machine = lab.linux("own", STEPS + FOR_EVER, daemon, userland="initramfs-tools")
    wrap, unwrap = "H_PKS_WRAP_OBJECT", "H_PKS_UNWRAP_OBJECT"
    with Conductor(daemon, machine) as conductor:
        # Of 30 of these the hints are of 50 minutes.
        longest = LONG_BUSY[-1]
        conductor.at(
            "busy", [Rule(call=call, returns=longest, times=30) for call in (wrap, unwrap)]
        )
        conductor.at("ever", [Rule(call=wrap, returns=longest)])
        # Not before it is in the call a signal could end it.
        wait_until(lambda: conductor.met(wrap) > 0, "the call", BOOT_S)
        machine.enter("go on")
        machine.console.expect("^@killed=yes$", BOOT_S)
        before = conductor.met(wrap)
        wait_until(lambda: conductor.met(wrap) > before + 100, "more calls", BOOT_S)
        conductor.at("over", [])
        text = succeed(machine)
    got = steps_of(text)
    assert (got["wrap"], got["unwrap"]) == ("ok", "ok")
    for call in (wrap, unwrap):
        assert codes(daemon, call)[:31] == [longest] * 30 + ["H_SUCCESS"]
    assert got["state"] == "R"
    assert got["ended"] == str(128 + 9)


UNCHECKED = """\
until_told config
step config is_zero
say total $(cat /sys/firmware/plpks/config/total_size)
say used $(used)
say total_again $(cat /sys/firmware/plpks/config/total_size)
until_told size
say size $(cat $vars/PK/size)
until_told wrapped
step wrap add kmk
say digits $(keyctl print %trusted:kmk | wc -c)
until_told unwrapped
add other > /dev/null
keyctl print %trusted:other > /tmp/wrapped
step unwrap load copy
[ "$(keyctl print %trusted:copy)" = "$(cat /tmp/wrapped)" ] && say same yes || say same no
step again load good
[ "$(keyctl print %trusted:good)" = "$(cat /tmp/wrapped)" ] && say well yes
"""


def test_what_the_hypervisor_tells_is_not_checked(lab: Lab) -> None:
    """Of r4 and r5, and of a configuration that is refused."""
    daemon = lab.daemon()
    machine = lab.linux("own", STEPS + UNCHECKED, daemon, userland="initramfs-tools")
    with Conductor(daemon, machine) as conductor:
        # A success with nothing in the buffer: the numbers are refused, and kept.
        conductor.at("config", [Rule(call="H_PKS_GET_CONFIG", returns="H_SUCCESS", times=1)])
        # A success that leaves in r4 what the guest had there, which is an address.
        of_pk = {"label_size": label_size("PK")}
        read = Rule(call="H_PKS_READ_OBJECT", arguments=of_pk, returns="H_SUCCESS", times=1)
        conductor.at("size", [read])
        longer = Corrupt(name="wrapped_size", bits=0x200)
        conductor.at("wrapped", [Rule(call="H_PKS_WRAP_OBJECT", corrupt=longer, times=1)])
        longer = Corrupt(name="unwrapped_size", bits=0x100)
        conductor.at("unwrapped", [Rule(call="H_PKS_UNWRAP_OBJECT", corrupt=longer, times=1)])
        text = succeed(machine)
    got = steps_of(text)
    assert got["config"] == "ok"
    assert "Invalid Max Password Size received from hypervisor (0 < 32)" in got["config_log"]
    assert (got["total"], got["total_again"]) == ("0", "65536")
    # The size of what is not there, cut to the 16 bits of struct plpks_var's.
    assert 0 < int(got["size"]) <= 65535
    # 1056 bytes and 512 more: beyond MAX_BLOB_SIZE, which is 1152.
    assert got["wrap"] == "ok"
    assert int(got["digits"]) in (2 * 1568, 2 * 1568 + 1)
    # 32 bytes and 256 more, for 129: they lie on the wrapped key, which follows.
    assert got["unwrap"] == "ok"
    assert (got["same"], got["again"], got["well"]) == ("no", "ok", "yes")


# -- at boot -----------------------------------------------------------------------------------

GEN_KEY_FAILED = "plpks: H_PKS_GEN_KEY failed. pseries_status={}, rc={}"
NO_KEY = "trusted_key: Failed to generate default wrapping key"
NO_PASSWORD = "plpks: Failed setting POWER LPAR Platform KeyStore Password"
NO_SB_VERSION = "secvar: Error {} reading SB_VERSION from firmware"

BOOTS: Final[dict[str, tuple[tuple[str, str, str], tuple[str, ...], tuple[str, ...]]]] = {
    # Which call, its argument, its code; what is printed, and what is not.
    "config busy": (("H_PKS_GET_CONFIG", "", "H_BUSY"), (OFF,), (INITIALIZED, NO_PASSWORD)),
    "config state": (("H_PKS_GET_CONFIG", "", "H_STATE"), (OFF,), (INITIALIZED, NO_PASSWORD)),
    "password busy": (("H_PKS_GEN_PASSWORD", "", "H_BUSY"), (NO_PASSWORD,), (INITIALIZED,)),
    "password set": (("H_PKS_GEN_PASSWORD", "", "H_IN_USE"), (WARNING, INITIALIZED), ()),
    "key busy": (("H_PKS_GEN_KEY", "", "H_BUSY"), (GEN_KEY_FAILED.format(1, -16), NO_KEY), ()),
    "key there": (("H_PKS_GEN_KEY", "", "H_RESOURCE"), (), (NO_KEY, "H_PKS_GEN_KEY")),
    "key in use": (("H_PKS_GEN_KEY", "", "H_IN_USE"), (), (NO_KEY, "H_PKS_GEN_KEY")),
    "key no room": (
        ("H_PKS_GEN_KEY", "", "H_NO_MEM"),
        (GEN_KEY_FAILED.format(-9, -12), NO_KEY),
        (),
    ),
    # The errno of the flush is taken for a code of the hypervisor's, and made an errno again.
    "flush busy": (("H_PKS_CONFIRM_OBJECT_FLUSHED", "", "H_BUSY"), (), (NO_KEY, "H_PKS_GEN_KEY")),
    "flush absent": (
        ("H_PKS_CONFIRM_OBJECT_FLUSHED", "", "H_NOT_FOUND"),
        (GEN_KEY_FAILED.format(-2, -6), NO_KEY),
        (),
    ),
    "flush failed": (
        ("H_PKS_CONFIRM_OBJECT_FLUSHED", "", "H_ABORTED"),
        (GEN_KEY_FAILED.format(-5, -22), NO_KEY),
        (),
    ),
    "mode busy": (
        ("H_PKS_READ_OBJECT", str(len("SB_VERSION")), "H_BUSY"),
        (NO_SB_VERSION.format(-16),),
        (),
    ),
    "mode denied": (
        ("H_PKS_READ_OBJECT", str(len("SB_VERSION")), "H_AUTHORITY"),
        (),
        ("reading SB_VERSION",),
    ),
}

AT_BOOT = """\
say format $(cat /sys/firmware/secvar/format)
say names $(ls $vars)
try key keyctl add trusted kmk "new 32" @u
"""


@pytest.mark.parametrize("case", BOOTS)
def test_codes_at_boot(case: str, lab: Lab) -> None:
    """One call fails once, and what it was for does not come again until the next boot."""
    (call, size, code), printed, absent = BOOTS[case]
    # Each of these is made once while the keystore's code begins, so the first one is it.
    arguments = f"\narguments = {{ label_size = {size} }}" if size else ""
    file = lab.artifacts / "faults.toml"
    file.write_text(f'[[fault]]\ncall = "{call}"{arguments}\nreturn = "{code}"\ntimes = 1\n')
    dynamic = "linux_dynamic_key_secure_boot = 1\n"
    daemon = lab.daemon("--faults", str(file), *profile(lab, dynamic))
    machine = lab.linux("own", LIBRARY + AT_BOOT, daemon, userland="initramfs-tools")
    text = succeed(machine)
    got = results(text)
    for line in printed:
        assert line in text
    for line in absent:
        assert line not in text
    if call == "H_PKS_READ_OBJECT":
        # For want of one answer the whole boot takes static keys for what is in force.
        assert got["names"] == "PK moduledb trustedcadb"
        assert got["format"] == "ibm,plpks-sb-v1"
    elif call != "H_PKS_GET_CONFIG":
        assert "db" in got["names"].split()
    # Keys that were said to be there, and are not.
    is_absent = call == "H_PKS_GEN_KEY" and not printed
    assert (got["key"] == "ok") is (NO_KEY not in printed and not is_absent), got["key"]
    assert " -- fault 1: return" in "".join(daemon.trace_lines())
    # Without a password Linux goes on all the same, and the store takes keys from who has none.
    is_open = call in ("H_PKS_GET_CONFIG", "H_PKS_GEN_PASSWORD")
    made = calls(daemon, "H_PKS_GEN_KEY")
    assert [("auth=OS+0," in line) for line in made] == [is_open]
    if call == "H_PKS_GET_CONFIG":
        assert calls(daemon, "H_PKS_GEN_PASSWORD") == []


# -- TPM ---------------------------------------------------------------------------------------

TPM_GONE = """\
# ask: sends a command to the TPM; says what became of writing it, and of reading the response.
ask() {
    exec 3<>/dev/tpm0
    dd if=/command bs=4096 2>&1 >&3 | grep -i error
    dd bs=4096 count=1 <&3 2>&1 >/dev/null | grep -i error
    exec 3>&-
}
say at gone
while tpm2_getrandom --hex 8 > /tmp/out 2>&1; do :; done
say error "$(ask | tail -n1)"
say at back
until tpm2_getrandom --hex 8 > /tmp/out 2>&1; do :; done
say length $(tr -d '\\n' < /tmp/out | wc -c)
"""

GET_RANDOM = bytes.fromhex("8001 0000000c 0000017b 0008")


def test_a_tpm_that_goes_and_comes_back(lab: Lab) -> None:
    """Programs are told of an error, and find the TPM as it was."""
    lab.require("swtpm")
    daemon = lab.daemon(*profile(lab, SWTPM))
    machine = boot_with_tpm(lab, TPM_GONE, daemon, files={"/command": GET_RANDOM})
    control = ("--state-dir", str(daemon.state_dir))
    machine.console.expect("^@at=gone$", BOOT_S)
    done = run_hcalld("fault", "add", "H_TPM_COMM", "--gone", "tpm", *control)
    assert done.stdout == "1: H_TPM_COMM: no tpm\n", done.stderr
    machine.console.expect("^@at=back$", BOOT_S)
    done = run_hcalld("fault", "clear", *control)
    assert done.stdout.startswith("removed 1: H_TPM_COMM: no tpm (matched ")
    got = results(succeed(machine))
    assert text_of(errno.EIO) in got["error"]
    assert int(got["length"]) == 16
    lost = [line for line in calls(daemon, "H_TPM_COMM") if "fault 1: no tpm" in line]
    assert lost
    assert all(") = H_RESOURCE " in line for line in lost)


# -- secure VMs --------------------------------------------------------------------------------


def test_codes_of_uv_esm(lab: Lab) -> None:
    """Each ends the guest, those too that ask for another try."""
    secure = SecureLab(lab)
    cmdline = "console=hvc0 svm=1 swiotlb=force"
    vmlinux = lab.require("kernel-own")
    whole = secure.blob(vmlinux, secure.initrd("true", files={}, userland="initramfs"), cmdline)
    given = (U.BUSY, U.RETRY, U.NOT_AVAILABLE, U.FUNCTION, U.PERMISSION)
    for code in given:
        with contextlib.closing(ControlClient(secure.daemon.state_dir / NAME)) as client:
            client.ask(ClearFaults())
            client.ask(AddFault(rule=Rule(call="UV_ESM", returns=code_name(code), times=1)))
        machine = secure.start(vmlinux, whole, cmdline, failures=(), smp=1, extra=SAID_UNDER_VOF)
        machine.console.expect_end(BOOT_S)
        assert f"Returned {int(code)} from switching to secure mode." in said_early(machine)
        machine.close()
    told = [line.partition(": return ")[2] for line in calls(secure.daemon, "UV_ESM(")]
    assert told == [code_name(code) for code in given]


@pytest.mark.parametrize("code", ["U_PARAMETER", "U_BUSY", "U_PERMISSION"])
def test_codes_of_uv_share_page(code: str, lab: Lab) -> None:
    """All are ignored: Linux goes on as if the page were shared, and says nothing."""
    secure = SecureLab(lab)
    with contextlib.closing(ControlClient(secure.daemon.state_dir / NAME)) as client:
        client.ask(AddFault(rule=Rule(call="UV_SHARE_PAGE", returns=code)))
    script = f"""\
{LIBRARY}
say svm $(cat {SVM})
say told $(dmesg | grep -i -c 'ultravisor\\|share')
"""
    machine = secure.linux(script, smp=2)
    got = results(succeed(machine))
    assert (got["svm"], got["told"]) == ("1", "0")
    answered = codes(secure.daemon, "UV_SHARE_PAGE")
    assert len(answered) > 1
    assert set(answered) == {code}
