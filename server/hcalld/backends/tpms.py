# SPDX-License-Identifier: Apache-2.0
"""Which TPM a partition gets, from its profile's ``[tpm]``."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from typing import Final

from hcalld.backends.base import TpmBackend
from hcalld.backends.external import TpmDevice, TpmSocket
from hcalld.backends.swtpm import Swtpm
from hcalld.config import TpmChoice
from hcalld.core.errors import ConfigError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.directory import StateDirectory, folder_name

FOLDER_NAME: Final = "swtpm"
"""In the partition's folder."""
PROGRAM: Final = "swtpm"


def swtpm_key(directory: StateDirectory, partition: str) -> Secret:
    """The key that a partition's swtpm encrypts its state under.

    Raises:
        StoreError, ConfigError: the master key cannot be had.
    """
    return directory.key_for(f"swtpm state: {partition}")


class Tpms:
    """All partitions' TPMs.

    Args:
        directory: where state is kept; None: in memory, and a swtpm's in a temporary
            directory until ``close``.
        wait_us: how long to wait for a response outside the event loop.
    """

    def __init__(self, directory: StateDirectory | None, *, wait_us: int = 0) -> None:
        self._directory = directory
        self._wait_us = wait_us
        self._stack = contextlib.ExitStack()
        self._temporary: dict[str, tuple[pathlib.Path, Secret]] = {}

    def open(self, choice: TpmChoice, partition: str, source: str) -> TpmBackend | None:
        """A partition's TPM, not yet reached; None if it has none.

        Raises:
            ConfigError: its program is not there.
            StoreError: its key cannot be had.
        """
        timeout_s = choice.timeout_ms / 1000
        if choice.backend == "none":
            return None
        if choice.backend == "swtpm":
            name = choice.program or PROGRAM
            program = shutil.which(name)
            if program is None:
                raise ConfigError(
                    f"{source}: [tpm]: the program {name} is not there; install swtpm, or name "
                    "it with program"
                )
            folder, key = self._place(partition)
            return Swtpm(program, folder, key, timeout_s=timeout_s, wait_us=self._wait_us)
        assert choice.path is not None
        kind = TpmSocket if choice.backend == "socket" else TpmDevice
        return kind(pathlib.Path(choice.path), timeout_s=timeout_s, wait_us=self._wait_us)

    def close(self) -> None:
        """Remove what was in temporary directories."""
        self._stack.close()
        self._temporary.clear()

    def _place(self, partition: str) -> tuple[pathlib.Path, Secret]:
        if self._directory is not None:
            folder = self._directory.folder(partition) / FOLDER_NAME
            return folder, swtpm_key(self._directory, partition)
        if partition not in self._temporary:
            made = tempfile.TemporaryDirectory(prefix="hcalld-", ignore_cleanup_errors=True)
            folder = pathlib.Path(self._stack.enter_context(made)) / folder_name(partition)
            self._temporary[partition] = folder, Secret(os.urandom(KEY_SIZE))
        return self._temporary[partition]
