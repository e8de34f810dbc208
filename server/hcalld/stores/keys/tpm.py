# SPDX-License-Identifier: Apache-2.0
"""The master key sealed in a TPM 2.0, by the programs of tpm2-tools.

The parent is a storage primary of the owner hierarchy, made anew from the hierarchy's
seed each time, so that nothing is kept in the TPM; the sealed object (a public and a
private blob, which only this TPM opens) is in the state directory's note. With a list of
PCRs the object opens only while they are as they were when it was sealed
(TPM 2.0 Library Part 3, TPM2_PolicyPCR). Without one, whoever may talk to this TPM can
open it: the key is then bound to the machine and to nothing else.

The key goes to and from the programs by pipes. Between the program and the TPM it is not
encrypted: a probe on the bus of a discrete TPM sees it.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import tempfile
from typing import Annotated, Final

import msgspec

from hcalld.core.errors import BackendUnavailable, ConfigError, StoreError
from hcalld.core.secret import Secret
from hcalld.crypto.seal import KEY_SIZE
from hcalld.stores.keys.source import Kept

TIMEOUT_S: Final = 60
MAX_BLOB_SIZE: Final = 4096
_MAX_ERROR: Final = 200

PCR_LIST: Final = re.compile(r"[a-z0-9_]{1,16}:[0-9]{1,2}(,[0-9]{1,2})*")
"""One bank and its registers, as tpm2-tools write it."""

_ATTRIBUTES: Final = "fixedtpm|fixedparent|noda|"

_EXPLAINED: Final = (
    (r"0x0*99d|policy check failed", "the PCRs are not as they were when the key was sealed"),
    (r"0x0*1df|integrity check failed", "another TPM sealed it, or this one was cleared"),
    (r"0x0*9a2|0x0*98e|authorization", "the TPM's owner hierarchy has a password; remove it"),
    (r"0x0*921|lockout", "the TPM is locked out; wait, or clear the lockout"),
)
"""What TPM codes (TPM 2.0 Library Part 2, TPM_RC) mean here."""

_Blob = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_BLOB_SIZE)]


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    public: _Blob
    private: _Blob
    pcrs: str = ""


class TpmKeySource:
    """A master key that a TPM opens."""

    kind = "tpm"

    def __init__(self, tcti: str = "", pcrs: str = "") -> None:
        """The TPM is not touched yet.

        Args:
            tcti: how to reach it, as tpm2-tools' --tcti; "" for their default.
            pcrs: registers that a key is sealed to when it is put there; "" for none.

        Raises:
            ConfigError: that is no list of registers.
        """
        if pcrs and not PCR_LIST.fullmatch(pcrs):
            raise ConfigError(f"PCRs {pcrs!r}: expected BANK:N,N..., such as sha256:0,7")
        self._tcti = tcti
        self._pcrs = pcrs

    @property
    def description(self) -> str:
        """See KeySource."""
        return f"TPM {self._tcti}" if self._tcti else "TPM"

    def load(self, kept: Kept) -> Secret | None:
        """See KeySource."""
        if not kept:
            return None
        try:
            record = msgspec.convert(kept, _Kept)
            if record.pcrs and not PCR_LIST.fullmatch(record.pcrs):
                raise ValueError("bad list of PCRs")
        except ValueError as error:
            raise StoreError(
                f"what the state directory keeps for its TPM is damaged ({error}); restore the "
                "file key-source from a backup"
            ) from None
        with tempfile.TemporaryDirectory(prefix="hcalld-tpm-") as name:
            folder = pathlib.Path(name)
            public, private = folder / "public", folder / "private"
            public.write_bytes(record.public)
            private.write_bytes(record.private)
            parent, sealed = str(folder / "parent"), str(folder / "sealed")
            self._make_parent(parent)
            files = ("-u", str(public), "-r", str(private))
            self._run("tpm2_load", "-Q", "-C", parent, *files, "-c", sealed)
            policy = ("-p", f"pcr:{record.pcrs}") if record.pcrs else ()
            key = self._run("tpm2_unseal", "-c", sealed, *policy)
        if len(key) != KEY_SIZE:
            raise StoreError(f"{self.description}: opened no key of {KEY_SIZE} bytes")
        return Secret(key)

    def keep(self, master: Secret) -> Kept:
        """See KeySource."""
        with tempfile.TemporaryDirectory(prefix="hcalld-tpm-") as name:
            folder = pathlib.Path(name)
            public, private = folder / "public", folder / "private"
            parent, policy = str(folder / "parent"), str(folder / "policy")
            self._make_parent(parent)
            options = ["-a", _ATTRIBUTES + ("adminwithpolicy" if self._pcrs else "userwithauth")]
            if self._pcrs:
                self._run("tpm2_createpolicy", "-Q", "--policy-pcr", "-l", self._pcrs, "-L", policy)
                options += ["-L", policy]
            files = ("-u", str(public), "-r", str(private))
            words = ("-Q", "-C", parent, "-g", "sha256", *options, *files, "-i", "-")
            self._run("tpm2_create", *words, stdin=master.reveal())
            record = _Kept(
                public=public.read_bytes(), private=private.read_bytes(), pcrs=self._pcrs
            )
        kept = msgspec.to_builtins(record)
        assert isinstance(kept, dict)
        return kept

    def forget(self) -> str:
        """See KeySource: nothing is kept in the TPM."""
        return ""

    def _make_parent(self, path: str) -> None:
        self._run("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", path)

    def _run(self, program: str, *words: str, stdin: bytes = b"") -> bytes:
        """Run one program; gives its output. Its transient objects are flushed."""
        tcti = ("-T", self._tcti) if self._tcti else ()
        try:
            done = self._start([program, *tcti, *words], stdin)
            # A TPM without a resource manager keeps what a program loaded, and has room for
            # three objects. With one, these are nobody else's.
            self._start(["tpm2_flushcontext", *tcti, "-Q", "-t"], b"")
        except FileNotFoundError as error:
            raise BackendUnavailable(
                f"the program {error.filename} is not installed; install tpm2-tools"
            ) from None
        except subprocess.TimeoutExpired:
            raise BackendUnavailable(
                f"{self.description}: {program} did not end within {TIMEOUT_S} s"
            ) from None
        if done.returncode:
            raise StoreError(f"{self.description}: {program}: {_explain(done.stderr)}")
        return done.stdout

    @staticmethod
    def _start(words: list[str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C", "TSS2_LOG": "all+ERROR"},
        )


def _explain(stderr: bytes) -> str:
    text = stderr.decode("utf-8", "replace")
    for pattern, meaning in _EXPLAINED:
        if re.search(pattern, text, re.IGNORECASE):
            return meaning
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()
    first = "".join(filter(str.isprintable, lines[0]))[:_MAX_ERROR] if lines else "no reason given"
    return f"{first}; check the TPM and its TCTI"
