# SPDX-License-Identifier: Apache-2.0
"""Make the captures of this directory anew, with real guests.

``make captures`` sets everything up that guests need, and runs::

    python -m tests.vectors.captures.make [NAME...]

Each scenario boots its guest against a fresh daemon with an empty state directory, and
leaves NAME.pcapng.gz and the guest's profile, NAME.toml, here. Keys, passwords and secrets
in them are made for it and protect nothing else.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.conftest import find_tool
from tests.e2e.authvar import DYNAMIC
from tests.e2e.daemon import Daemon, run_hcalld
from tests.e2e.lab import PARTITION, Lab
from tests.e2e.patience import wait_until
from tests.e2e.secure import SecureLab
from tests.e2e.sevhosts import Host
from tests.e2e.sevlaunch import launch, migrate, own
from tests.kernel.guestside import LIBRARY, results, succeed
from tests.kernel.test_secvar import DYNAMIC_MODE, LATCH
from tests.provision.kernels import TPM_MODULE

from hcalld.config import UNNAMED_PLATFORM

HERE: Final = Path(__file__).parent
PASSPHRASE: Final = HERE / "passphrase"
"""Opens what is sealed in all of them. Known to everybody: they hold no secret of anybody."""
MAX_SIZES: Final = {"svm": 4 << 20}
MAX_SIZE: Final = 300 << 10
"""Bytes of a capture; they are kept for ever."""

PRIVATE: Final = "private"
"""Guests' memory is not shared: all that the daemon reads is in the capture's frames."""


class Studio(Lab):
    """A lab that captures what it does.

    Args:
        name: of the scenario.
        stack: ends what it starts.
        folder: for logs and state.
    """

    def __init__(self, name: str, stack: contextlib.ExitStack, folder: Path) -> None:
        super().__init__(_require, folder, folder, stack)
        self.capture = folder / f"{name}.pcapng"
        self.profile = ""
        # Nobody else may read one, says hcalld; and git keeps no such modes.
        self._passphrase = folder / "passphrase"
        self._passphrase.touch(0o600)
        self._passphrase.write_bytes(PASSPHRASE.read_bytes())

    def capturing_daemon(self, profile: str = "") -> Daemon:
        """The scenario's daemon.

        Args:
            profile: the guest's attributes.
        """
        self.profile = profile
        directory = self.artifacts / "profiles"
        directory.mkdir()
        (directory / f"{PARTITION}.toml").write_text(profile, "utf-8")
        return self.daemon("--profile-dir", str(directory), *self.options)

    @property
    def options(self) -> Sequence[str]:
        """Of the daemon, to capture."""
        return (
            *("--capture", str(self.capture)),
            *("--capture-secrets", f"passphrase-file:{self._passphrase}"),
        )


def _require(name: str) -> Path:
    path, why = find_tool(name)
    if path is None:
        raise SystemExit(f"no {name}: {why}")
    return path


# -- scenarios ------------------------------------------------------------------------------


def debian(studio: Studio) -> None:
    """A stock Debian kernel finds its keystore, and looks for the PIN of a drive in it."""
    succeed(studio.linux("debian", "true\n", studio.capturing_daemon(), memory=PRIVATE))


def secvar(studio: Studio) -> None:
    """Our kernel enrols keys, and has what is wrong refused."""
    keys = studio.artifacts / "keys"
    _hcalld("secvar", "defaults", keys)
    files = {f"/{path.name}": path.read_bytes() for path in keys.glob("*.update")}
    files |= {f"/{path.name}": path.read_bytes() for path in keys.glob("*.reset")}
    lines = [f"try {name} update {name} /{name}.update" for name in DYNAMIC]
    lines += [
        "try again update db /db.update",
        "try stranger update KEK /db.update",
        "for name in $vars/*; do cat $name/data | sha256sum; done",
        "try reset update db /db.reset",
        "cat $vars/db/data",
        "say used $(used)",
    ]
    daemon = studio.capturing_daemon(DYNAMIC_MODE + LATCH)
    said = results(
        succeed(studio.linux("own", _script(*lines), daemon, files=files, memory=PRIVATE))
    )
    assert all(said[name] == "ok" for name in DYNAMIC), said
    assert said["again"] == said["stranger"] == "Operation not permitted", said
    # What was enrolled, the kernel loads at the next boot.
    text = succeed(studio.linux("own", "dmesg -n 3; dmesg", daemon, memory=PRIVATE))
    assert len(set(re.findall(r"Loaded X\.509 cert '([^']+)'", text))) >= 2


def pkwm(studio: Studio) -> None:
    """Our kernel has trusted keys wrapped, and unwrapped at the next boot."""
    daemon = studio.capturing_daemon()
    said = results(
        succeed(studio.linux("own", NEW_KEYS, daemon, userland="initramfs-tools", memory=PRIVATE))
    )
    broken = said["kmk"][:-1] + f"{int(said['kmk'][-1], 16) ^ 1:x}"
    second = _script(
        'try kmk keyctl add trusted kmk "load $(cat /kmk)" @u',
        'try most keyctl add trusted most "load $(cat /most)" @u',
        'try broken keyctl add trusted broken "load $(cat /broken)" @u',
    )
    files = {"/kmk": said["kmk"], "/most": said["most"], "/broken": broken}
    said = results(
        succeed(
            studio.linux(
                "own",
                second,
                daemon,
                userland="initramfs-tools",
                files={name: text.encode() for name, text in files.items()},
                memory=PRIVATE,
            )
        )
    )
    assert (said["kmk"], said["most"]) == ("ok", "ok"), said
    assert said["broken"] != "ok", said


def tpm(studio: Studio) -> None:
    """tpm2-tools use the partition's TPM through H_TPM_COMM, and make it refuse."""
    studio.require("swtpm")
    module = studio.require("kernel-own-64k").with_name(TPM_MODULE)
    script = _script(
        "export TPM2TOOLS_TCTI=device:/dev/tpmrm0 TSS2_LOG=all+ERROR",
        f"insmod /{TPM_MODULE} || exit",
        "say random $(tpm2_getrandom --hex 16)",
        f"tpm2_pcrextend 16:sha256={'5a' * 32}",
        "say pcr $(tpm2_pcrread sha256:16 | tail -n1)",
        "tpm2_createprimary -Q -C o -g sha256 -G ecc -c /key && say key made",
        "try missing tpm2_readpublic -Q -c 0x81000099",
    )
    daemon = studio.capturing_daemon('[tpm]\nbackend = "swtpm"\n')
    said = results(
        succeed(
            studio.linux(
                "own-64k",
                script,
                daemon,
                userland="initramfs-tpm",
                files={f"/{TPM_MODULE}": module.read_bytes()},
                memory=PRIVATE,
            )
        )
    )
    assert len(said["random"]) == 32, said
    assert said["key"] == "made", said


def svm(studio: Studio) -> None:
    """The guest stub becomes a secure VM, and makes every call there is as one."""
    secure = SecureLab(studio, "page_shift = 12\n", *studio.options)
    studio.profile = (studio.artifacts / "profiles" / "default.toml").read_text("utf-8")
    machine = secure.stub("secure_calls esm=1 require=1", memory=PRIVATE)
    machine.report().must_pass("secure_calls")


def sev(studio: Studio) -> None:
    """Programs launch and send guests on a SEV platform, and its operator has a turn."""
    studio.profile = '[sev]\nmemory = "encrypted"\n'
    directory = studio.artifacts / "profiles"
    directory.mkdir()
    (directory / "sev.toml").write_text(studio.profile, "utf-8")
    daemon = studio.daemon("--profile-dir", str(directory), *studio.options)
    host = Host(daemon, UNNAMED_PLATFORM)
    launch(daemon.socket)
    migrate(daemon.socket, host.identity().roots)
    # The keys of a platform with guests stay as they are.
    wait_until(lambda: host.status().guest_count == 0, "the guests' end")
    own(daemon.socket)


NEW_KEYS: Final = f"""{LIBRARY}
keyctl add trusted kmk "new 32" @u
say kmk $(keyctl print %trusted:kmk)
keyctl add trusted most "new 128" @u
say most $(keyctl print %trusted:most)
"""
"""The script of the first boot of ``pkwm``."""

SCENARIOS: Final[dict[str, Callable[[Studio], None]]] = {
    one.__name__: one for one in (debian, secvar, pkwm, tpm, svm, sev)
}


def _script(*lines: str) -> str:
    return LIBRARY + "\n".join(lines) + "\n"


def _hcalld(*words: str | Path) -> None:
    done = run_hcalld(*map(str, words))
    if done.returncode:
        raise SystemExit(done.stderr)


# -- making ---------------------------------------------------------------------------------


def make(name: str) -> None:
    """Play a scenario, and keep what was captured."""
    with tempfile.TemporaryDirectory(prefix="capture-") as text:
        folder = Path(text)
        with contextlib.ExitStack() as stack:
            studio = Studio(name, stack, folder)
            SCENARIOS[name](studio)
        data = gzip.compress(studio.capture.read_bytes(), 9, mtime=0)
        (HERE / f"{name}.pcapng.gz").write_bytes(data)
        (HERE / f"{name}.toml").write_text(studio.profile, "utf-8")
    limit = MAX_SIZES.get(name, MAX_SIZE)
    if len(data) > limit:
        raise SystemExit(f"{name}: {len(data)} bytes, at most {limit} are to be kept")
    print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SCENARIOS:
        make(wanted)
