# SPDX-License-Identifier: Apache-2.0
"""OpenSSL, efitools and sbsigntool as makers and readers of signed updates.

Used by the tests that hold this project's updates against them, and, run as a program,
to make the files of ``tests/vectors/authvar/tools``::

    .venv/bin/python -m tests.vectors.authvar_tools tests/vectors/authvar/tools
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hcallproto.payloads.efi import EfiTime

PACKAGES = {
    "openssl": "openssl",
    "cert-to-efi-sig-list": "efitools",
    "hash-to-efi-sig-list": "efitools",
    "sig-list-to-certs": "efitools",
    "sign-efi-sig-list": "efitools",
    "sbsiglist": "sbsigntool",
    "sbvarsign": "sbsigntool",
}
"""Program to Debian package."""


def attempt(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run one of the programs, which must be there.

    Raises:
        FileNotFoundError: it is not installed.
    """
    if shutil.which(program) is None:
        raise FileNotFoundError(
            f"{program} is not installed: as root, run apt-get install {PACKAGES[program]}"
        )
    # The C locale's time format, and UTC, whatever the machine has.
    return subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TZ": "UTC", "LC_ALL": "C"},
    )


def run(program: str, *arguments: str | Path) -> bytes:
    """Run one of the programs, which must succeed; what it prints."""
    done = attempt(program, *arguments)
    if done.returncode:
        raise AssertionError(f"{program} failed: {done.stderr.decode()} {done.stdout.decode()}")
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Pair:
    """A private key and a certificate, in files."""

    folder: Path
    name: str

    @property
    def key(self) -> Path:
        """The private key, PEM."""
        return self.folder / f"{self.name}.key"

    @property
    def pem(self) -> Path:
        """The certificate, PEM."""
        return self.folder / f"{self.name}.crt"

    @property
    def path(self) -> Path:
        """The certificate, DER."""
        return self.folder / f"{self.name}.der"

    @property
    def der(self) -> bytes:
        """The certificate's bytes in DER."""
        return self.path.read_bytes()


def make_pair(folder: Path, name: str, bits: int = 2048) -> Pair:
    """Have OpenSSL make a key and a self-signed certificate."""
    pair = Pair(folder, name)
    subject = f"/O=hcalld test vectors/CN={name}"
    words = ["req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-sha256", "-days", "36500"]
    run("openssl", *words, "-subj", subject, "-keyout", pair.key, "-out", pair.pem)
    run("openssl", "x509", "-in", pair.pem, "-outform", "DER", "-out", pair.path)
    return pair


def cms_sign(data: bytes, pair: Pair, *options: str, program: str = "cms") -> bytes:
    """``openssl cms -sign``, or ``smime``: a detached PKCS#7 in DER."""
    with tempfile.TemporaryDirectory() as name:
        content = Path(name) / "content"
        content.write_bytes(data)
        return run(
            *("openssl", program, "-sign", "-binary", "-outform", "DER"),
            *("-in", content, "-signer", pair.pem, "-inkey", pair.key),
            *options,
        )


def cms_verifies(pkcs7: bytes, data: bytes, pair: Pair, program: str = "cms") -> bool:
    """``openssl cms -verify``, or ``smime``, with the certificate that is expected."""
    with tempfile.TemporaryDirectory() as name:
        content, signature = Path(name) / "content", Path(name) / "signature"
        content.write_bytes(data)
        signature.write_bytes(_with_content_info(pkcs7))
        # Certificates inside do not count, as they do not for the firmware.
        done = attempt(
            *("openssl", program, "-verify", "-binary", "-inform", "DER", "-in", signature),
            *("-content", content, "-certfile", pair.pem, "-nointern", "-noverify"),
        )
    return done.returncode == 0


_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")


def _with_content_info(pkcs7: bytes) -> bytes:
    """What OpenSSL reads: a ContentInfo, which efitools and sbsigntool leave out."""
    if pkcs7[4:5] == _SIGNED_DATA[:1]:
        return pkcs7
    inner = b"\xa0\x82" + len(pkcs7).to_bytes(2, "big") + pkcs7
    return b"\x30\x82" + (len(_SIGNED_DATA) + len(inner)).to_bytes(2, "big") + _SIGNED_DATA + inner


def sign_efi_sig_list(
    name: str, lists: Path, pair: Pair, time: EfiTime, out: Path, *options: str
) -> bytes:
    """The update of ``sign-efi-sig-list`` (efitools), without flags in front."""
    run(
        *("sign-efi-sig-list", *options, "-t", str(time)),
        *("-c", pair.pem, "-k", pair.key, name, lists, out),
    )
    return out.read_bytes()


def main(folder: Path) -> None:
    """Make the vectors anew; the private keys are thrown away."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pairs = {each: make_pair(work, each) for each in ("PK", "KEK", "db")}
        for each, pair in pairs.items():
            shutil.copy(pair.path, folder)
            run("cert-to-efi-sig-list", pair.pem, folder / f"{each}.esl")
        time = EfiTime(2026, 1, 2, 3, 4, 5)
        security = ["-g", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"]
        for target, signer, lists, options in (
            ("PK", "PK", "PK", []),
            ("KEK", "PK", "KEK", []),
            ("db", "KEK", "db", []),
            ("db", "KEK", "db", ["-a"]),
            ("dbx", "PK", "db", []),
            ("moduledb", "KEK", "db", security),
            ("trustedcadb", "PK", "db", security),
        ):
            file = f"{target}{'_append' * ('-a' in options)}_by_{signer}.efitools.update"
            sign_efi_sig_list(
                target, folder / f"{lists}.esl", pairs[signer], time, folder / file, *options
            )
        shutil.copy(folder / "db.esl", work)
        run(
            *("sbvarsign", "--key", pairs["KEK"].key, "--cert", pairs["KEK"].pem),
            *("--output", folder / "db_by_KEK.sbvarsign.update", "db", work / "db.esl"),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
