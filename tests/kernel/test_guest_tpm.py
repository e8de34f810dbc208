# SPDX-License-Identifier: Apache-2.0
"""Debian's tpm2-tools in a guest's user space, over H_TPM_COMM to the TPM of its partition.

Between them and the call is our module hcall-tpm.ko, which makes it a TPM of Linux'. The
same programs on the host, and OpenSSL, look at the same TPM from its other side.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.patience import wait_until
from tests.e2e.secure import SVM, SecureLab
from tests.e2e.tpm import Tools, listening_swtpm
from tests.kernel.guestside import LIBRARY, profile, results, succeed
from tests.provision.kernels import TPM_MODULE

if TYPE_CHECKING:
    from tests.e2e.daemon import Daemon
    from tests.e2e.lab import Lab
    from tests.e2e.machine import Machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

SWTPM = '[tpm]\nbackend = "swtpm"\n'
ZEROS = bytes(32)

TPM = f"""\
{LIBRARY}
export TPM2TOOLS_TCTI=device:/dev/tpmrm0 TSS2_LOG=all+ERROR
insmod /{TPM_MODULE} || exit
driver=/sys/bus/platform/drivers/hcall-tpm

# handles KIND: those that the TPM itself has, its resource manager's included.
handles() {{ tpm2_getcap -T device:/dev/tpm0 handles-$1 | tr -d '\\n'; }}
"""


def module(lab: Lab) -> dict[str, bytes]:
    """The driver, built with the kernel."""
    built = lab.require("kernel-own-64k").with_name(TPM_MODULE)
    assert built.is_file(), (
        f"{built} is not there; for a kernel of your own, docs/testing.md says how to build it"
    )
    return {f"/{TPM_MODULE}": built.read_bytes()}


def boot(lab: Lab, script: str, daemon: Daemon, **options: Any) -> Machine:
    """Boots Linux with the driver and tpm2-tools."""
    options = {"files": {}, **options}
    files = module(lab) | options.pop("files")
    return lab.linux(
        "own-64k", TPM + script, daemon, userland="initramfs-tpm", files=files, **options
    )


# -- what programs see -----------------------------------------------------------------------------

BY_HOST = hashlib.sha256(b"by the host").digest()
BY_GUEST = hashlib.sha256(b"by the guest").digest()
MESSAGE = b"signed by the TPM of a guest\n"

BOTH_SIDES = f"""\
set -e
say random $(tpm2_getrandom --hex 32) $(tpm2_getrandom --hex 32)
say before $(tpm2_pcrread sha256:16 | tail -n1)
tpm2_pcrextend 16:sha256={BY_GUEST.hex()}
say after $(tpm2_pcrread sha256:16 | tail -n1)
attributes='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign'
tpm2_createprimary -Q -C o -G rsa2048:rsassa-sha256:null -a "$attributes" -c /key
tpm2_readpublic -Q -c /key -f pem -o /key.pem
tpm2_sign -c /key -g sha256 -f plain -o /signature /message
tpm2_evictcontrol -Q -C o -c /key 0x81000010
say public $(base64 -w0 /key.pem)
say signature $(base64 -w0 /signature)
say transient "$(handles transient)"
"""


def test_programs_of_the_guest_and_of_the_host_see_one_tpm(lab: Lab, tmp_path: Path) -> None:
    openssl = lab.require("openssl")
    lab.require("tpm2_pcrread")
    with listening_swtpm(lab.require("swtpm"), lab.artifacts / "tpm", lab.socket_dir) as path:
        host = Tools("socket", path)
        host.run("tpm2_pcrextend", f"16:sha256={BY_HOST.hex()}")
        options = profile(lab, f'[tpm]\nbackend = "socket"\npath = "{path}"\n')
        daemon = lab.daemon(*options)
        text = succeed(boot(lab, BOTH_SIDES, daemon, files={"/message": MESSAGE}))
        daemon.close()
        seen = results(text)
        extended = hashlib.sha256(ZEROS + BY_HOST).digest()
        assert seen["before"].lower() == f"16: 0x{extended.hex()}"
        extended = hashlib.sha256(extended + BY_GUEST).digest()
        assert seen["after"].lower() == f"16: 0x{extended.hex()}"
        assert host.pcr(16) == extended
        public, signature = tmp_path / "public.pem", tmp_path / "signature"
        public.write_bytes(base64.b64decode(seen["public"]))
        signature.write_bytes(base64.b64decode(seen["signature"]))
        theirs = tmp_path / "theirs.pem"
        host.run("tpm2_readpublic", "-c", "0x81000010", "-f", "pem", "-o", theirs)
        assert theirs.read_bytes() == public.read_bytes()
    one, other = seen["random"].split()
    assert len(one) == 64
    assert one != other
    # The resource manager of Linux has taken out of the TPM what its users had in it.
    assert seen["transient"] == ""
    words: list[str | Path] = [
        openssl,
        "dgst",
        "-sha256",
        "-verify",
        public,
        "-signature",
        signature,
    ]
    done = subprocess.run(words, input=MESSAGE, capture_output=True, check=False)
    assert done.stdout == b"Verified OK\n"
    told = daemon.log_text() + "\n".join(daemon.trace_lines())
    assert one not in told.lower()


def test_two_guests_have_two_tpms(lab: Lab) -> None:
    lab.require("swtpm")
    daemon = lab.daemon(*profile(lab, SWTPM))
    script = """\
tpm2_pcrextend 16:sha256=$(sha256sum < /name | cut -d' ' -f1)
say pcr $(tpm2_pcrread sha256:16 | tail -n1)
"""
    machines = {
        name: boot(lab, script, daemon, name=name, files={"/name": name.encode()})
        for name in ("one", "two")
    }
    for name, machine in machines.items():
        own = hashlib.sha256(name.encode()).digest()
        expected = hashlib.sha256(ZEROS + own).hexdigest()
        assert results(succeed(machine))["pcr"].lower() == f"16: 0x{expected}"


def test_a_partition_without_a_tpm(lab: Lab) -> None:
    script = """\
say devices $(ls -d /dev/tpm*)
dmesg | grep -q 'H_TPM_COMM: -2$' && say told yes
rmmod hcall_tpm && say removed yes
"""
    seen = results(succeed(boot(lab, script, lab.daemon())))
    assert seen == {"devices": "", "told": "yes", "removed": "yes"}


# -- what is left open -----------------------------------------------------------------------------

START_AUTH_SESSION = bytes.fromhex(
    # TPM_ST_NO_SESSIONS, size, TPM2_StartAuthSession, tpmKey and bind TPM_RH_NULL
    "8001 0000002b 00000176 40000007 40000007"
    # nonceCaller of 16 bytes, no salt, policy session, TPM_ALG_NULL, SHA-256
    "0010 00112233445566778899aabbccddeeff 0000 01 0010 000b"
)

HOLDER = """\
# hold DEVICE: a program that has a session of the TPM open, until it is killed.
hold() {
    rm -f /held
    (
        exec 3<>$1
        dd if=/session bs=4096 >&3 2>/dev/null
        dd bs=4096 count=1 <&3 >/reply 2>/dev/null
        touch /held
        exec sleep 1000
    ) &
    holder=$!
    while [ ! -e /held ]; do sleep 0.1; done
    say "$2"_code $(od -An -tx1 -j6 -N4 /reply)
}
end() { kill -9 $holder; wait $holder 2>/dev/null; }
"""

LEFT_OPEN = f"""\
{HOLDER}
hold /dev/tpmrm0 managed
end
say managed_left "$(handles loaded-session)$(handles saved-session)"

hold /dev/tpm0 direct
try second dd if=/dev/tpm0 count=0
end
say direct_left "$(handles loaded-session)"
echo hcall-tpm > $driver/unbind
say unbound $(ls -d /dev/tpm*)
echo hcall-tpm > $driver/bind
say direct_freed "$(handles loaded-session)"
say random $(tpm2_getrandom --hex 8)
"""


def test_what_a_killed_program_left_is_freed(lab: Lab) -> None:
    lab.require("swtpm")
    daemon = lab.daemon(*profile(lab, SWTPM))
    files = {"/session": START_AUTH_SESSION}
    seen = results(succeed(boot(lab, LEFT_OPEN, daemon, files=files)))
    assert seen["managed_code"] == seen["direct_code"] == "00 00 00 00"
    # Linux' resource manager frees what its user leaves.
    assert seen["managed_left"] == ""
    # /dev/tpm0 is one program's at a time, and nobody frees what it leaves but CLOSE_SESSION.
    assert seen["second"] == "Device or resource busy"
    assert re.fullmatch(r"- 0x3\w{6}", seen["direct_left"])
    assert seen["unbound"] == ""
    assert seen["direct_freed"] == ""
    assert len(seen["random"]) == 16
    lines = [line for line in daemon.trace_lines() if "(operation=CLOSE_SESSION" in line]
    assert len(lines) == 1
    assert " = H_SUCCESS " in lines[0]


# -- what goes wrong -------------------------------------------------------------------------------

UNTIL_IT_FAILS = """\
tpm2_pcrextend 16:sha256=$(echo | sha256sum | cut -d' ' -f1)
echo READY
for n in $(seq 1000); do
    if ! tpm2_getrandom 4 >/dev/null 2>/error; then say failed $n; break; fi
done
cat /error
say again $(tpm2_getrandom --hex 8)
say pcr $(tpm2_pcrread sha256:16 | tail -n1)
"""


def test_a_tpm_that_is_killed_is_an_error_and_the_next_command_has_a_new_one(lab: Lab) -> None:
    lab.require("swtpm")
    daemon = lab.daemon(*profile(lab, SWTPM))
    machine = boot(lab, UNTIL_IT_FAILS, daemon)
    machine.console.expect("READY", 180)
    (process_id,) = re.findall(r"swtpm started .*process=(\d+)", daemon.log_text())
    os.kill(int(process_id), signal.SIGKILL)
    text = succeed(machine)
    seen = results(text)
    assert int(seen["failed"]) >= 1
    assert "Input/output error" in text
    assert "H_TPM_COMM: -16" in text
    assert len(seen["again"]) == 16
    # It has lost its power.
    assert seen["pcr"] == f"16: 0x{ZEROS.hex()}"
    wait_until(lambda: daemon.log_text().count("swtpm started") == 2, "the second swtpm")


# -- a secure VM -----------------------------------------------------------------------------------

SECURE = f"""\
say random $(tpm2_getrandom --hex 8)
tpm2_pcrextend 16:sha256={BY_GUEST.hex()}
say pcr $(tpm2_pcrread sha256:16 | tail -n1)
rmmod hcall_tpm
say svm $(cat {SVM})
"""


def test_a_secure_guest_shares_the_page_that_the_hypervisor_reads(
    lab: Lab, require: Callable[[str], Path]
) -> None:
    require("swtpm")
    secure = SecureLab(lab, "page_shift = 16\n")
    machine = secure.linux(
        TPM + SECURE, kernel="own-64k", userland="initramfs-tpm", files=module(lab), smp=1
    )
    seen = results(succeed(machine))
    assert len(seen["random"]) == 16
    expected = hashlib.sha256(ZEROS + BY_GUEST).hexdigest()
    assert seen["pcr"].lower() == f"16: 0x{expected}"
    assert seen["svm"] == "1"
    lines = secure.daemon.trace_lines()
    (taken_back,) = [line for line in lines if " UV_UNSHARE_PAGE(" in line]
    found = re.search(r"gfn=(\w+), count=1\)", taken_back)
    assert found
    (given,) = [line for line in lines if f" UV_SHARE_PAGE(gfn={found[1]}, count=1)" in line]
    request = f"request=@{int(found[1], 0) << 16:#x} "
    at = lines.index(given)
    calls = [line for line in lines if "H_TPM_COMM(operation=EXECUTE" in line]
    assert calls
    assert all(request in line and lines.index(line) > at for line in calls)
