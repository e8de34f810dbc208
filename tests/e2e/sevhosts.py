# SPDX-License-Identifier: Apache-2.0
"""Hosts with SEV: daemons as processes, each with platforms of several kinds, and VMs on them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab
from tests.sev_platform import VECTORS

from hcalld.domain.sev.identity import Identity, unpack_identity
from hcalld.domain.sev.platform import NAMESPACE
from hcalld.guestowner.chain_files import parse_platform
from hcalld.guestowner.client import CommandRefused, SevClient
from hcalld.guestowner.platform import Platform
from hcalld.sevvm.machine import MIB, Machine, Target
from hcalld.sevvm.moving import target_of
from hcalld.stores.directory import PARTITIONS_NAME, StateDirectory
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import PlatformStatus

ROOT: Final = VECTORS / "root-2048.pem"
OTHER_ROOT: Final = VECTORS / "root-4096.pem"

_SHARED: Final = f'[sev]\nasids = 200\nroot = "{ROOT}"\n'
PROFILES: Final[Mapping[str, str]] = {
    "plain": _SHARED,
    "encrypted": _SHARED + 'memory = "encrypted"\n',
    "strict": _SHARED + 'memory = "encrypted"\nstrict_mainline = true\n',
    "elsewhere": f'[sev]\nmemory = "encrypted"\nroot = "{OTHER_ROOT}"\n',
    "old": _SHARED + "api_minor = 51\n",
    "few": f'[sev]\nasids = 3\nroot = "{ROOT}"\n',
    "young": f'[sev]\nroot = "{ROOT}"\nmemory = "encrypted"\ninit_on_probe = false\n',
}
"""Platforms of each host, by name. Those that are changed by a test have a name of its own."""


@dataclasses.dataclass
class Host:
    """A platform of a daemon."""

    daemon: Daemon
    name: str

    def client(self) -> SevClient:
        """A connection of its own."""
        return SevClient(self.daemon.socket, self.name)

    @contextlib.contextmanager
    def platform(self) -> Iterator[Platform]:
        """What an operator has."""
        with self.client() as client:
            yield Platform(client)

    @contextlib.contextmanager
    def machine(self, size: int = MIB) -> Iterator[Machine]:
        """A VM, which ends with the context."""
        with self.client() as client:
            yield Machine(client, size)

    def status(self) -> PlatformStatus:
        """As PLATFORM_STATUS tells it."""
        with self.platform() as platform:
            return platform.status()

    def chain(self) -> bytes:
        """PDH, PEK, OCA, CEK, and ASK and ARK, as a file of sevctl."""
        with self.platform() as platform:
            return platform.export().whole + self.identity().roots

    def target(self) -> Target:
        """This platform as one that a guest is sent to."""
        return target_of(parse_platform(self.chain()))

    def identity(self) -> Identity:
        """Its keys, read out of a copy of its store."""
        # A connection keeps the store open, so that its files stay while they are copied.
        with tempfile.TemporaryDirectory() as folder, self.client():
            copy, state = Path(folder), self.daemon.state_dir
            for name in ("key", "key-source", f"{PARTITIONS_NAME}/{self.name}/keystore.db"):
                for path in (state / name, state / f"{name}-wal"):
                    if path.exists():
                        (copy / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, copy / path.relative_to(state))
            return read_identity(copy, self.name)


def read_identity(state_dir: Path, platform: str) -> Identity:
    """A platform's keys out of a state directory that no daemon has."""
    store = StateDirectory(state_dir).open(platform, create=False)
    try:
        (record,) = [one for one in store.load().records if one.namespace == NAMESPACE]
        return unpack_identity(record.value[1:])
    finally:
        store.close()


class Hosts:
    """Daemons of a test, or of many."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._names = itertools.count()

    def daemon(self, name: str, *options: str, **profiles: str) -> Daemon:
        """Start a daemon with platforms, those of ``PROFILES`` and more."""
        folder = self._lab.artifacts / f"{name}.profiles"
        folder.mkdir()
        for platform, text in {**PROFILES, **profiles}.items():
            (folder / f"{platform}.toml").write_text(text)
        return self._lab.daemon("--profile-dir", str(folder), *options, name=name)

    def fresh(self, daemon: Daemon) -> Host:
        """A platform that no test has had, with the settings that are built in."""
        return Host(daemon, f"fresh-{next(self._names)}")


@dataclasses.dataclass
class Pair:
    """Two hosts that many tests share: nobody may end them, nor change a platform of PROFILES."""

    hosts: Hosts
    left: Daemon
    right: Daemon

    def source(self, name: str = "encrypted") -> Host:
        """A platform of the first."""
        return Host(self.left, name)

    def target(self, name: str = "encrypted") -> Host:
        """A platform of the second."""
        return Host(self.right, name)


@pytest.fixture(scope="session")
def pair(
    require: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two daemons, processes with a state directory each."""
    with (
        tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as sockets,
        contextlib.ExitStack() as stack,
    ):
        lab = Lab(require, tmp_path_factory.mktemp("sev"), Path(sockets), stack)
        hosts = Hosts(lab)
        yield Pair(hosts, hosts.daemon("left"), hosts.daemon("right"))


@pytest.fixture
def hosts(lab: Lab) -> Hosts:
    """Daemons of the test's own."""
    return Hosts(lab)


# -- guests -------------------------------------------------------------------------------------


def start(machine: Machine, policy: int, content: bytes = b"") -> None:
    """Make a guest that runs; memory from 0 on has ``content``."""
    machine.init(sev.ES_INIT if policy & 4 else sev.INIT)
    machine.launch_start(policy)
    if content:
        machine.launch_update_data(0, content)
    machine.launch_measure()
    machine.launch_finish()


@contextlib.contextmanager
def sending(
    source: Host, target: Host, content: bytes, policy: int = 0
) -> Iterator[tuple[Machine, Machine]]:
    """A guest on its way: both sides have begun."""
    with source.machine(len(content)) as here, target.machine(len(content)) as there:
        start(here, policy, content)
        pdh = Platform(here.client).export().pdh
        sent_policy, session = here.send_start(target.target())
        assert sent_policy == policy
        there.init(sev.INIT)
        there.receive_start(policy, pdh, session)
        yield here, there


@contextlib.contextmanager
def refused(code: SevCode) -> Iterator[None]:
    """Exactly this comes of a command."""
    with pytest.raises(CommandRefused) as raised:
        yield
    found = SevCode(raised.value.status)
    assert found is code, f"{raised.value.name}: {found.name}, expected {code.name}"
