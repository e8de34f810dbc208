# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev`` with a daemon: certificates, owners, keys, and a guest's owner from the start."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from tests.e2e.daemon import Daemon
from tests.sev_platform import root, verify_chain
from tests.vectors.sev.test_openssl import (
    Exported,
    Run,
    amd_is_good,
    cek_is_good,
    ec_is_good,
    openssl,
)

from hcalld.cli import cli
from hcalld.crypto.sev.chains import Chain

__all__ = ["openssl"]

PLATFORMS = 14
"""More than there are tests: each has a platform of its own."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "root.pem").write_bytes(root().to_pem().reveal())
    profiles = folder / "profiles"
    profiles.mkdir()
    for number in range(PLATFORMS):
        (profiles / f"p{number}.toml").write_text(f'[sev]\nroot = "{folder / "root.pem"}"\n')
    options = ("--memory", "--profile-dir", str(profiles))
    with tempfile.TemporaryDirectory(prefix="hcalld-", dir="/tmp") as name:
        control = pathlib.Path(name) / "control"
        with Daemon(folder, pathlib.Path(name), (*options, "--control", str(control))) as started:
            yield started


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    """Platforms that nobody has used."""
    return (f"p{number}" for number in range(PLATFORMS))


@pytest.fixture(autouse=True)
def folder(
    daemon: Daemon, names: Iterator[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """The current directory; the daemon and a new platform are in the environment."""
    monkeypatch.setenv("HCALLD_SEV_SOCKET", str(daemon.socket))
    monkeypatch.setenv("HCALLD_SEV_PLATFORM", next(names))
    monkeypatch.chdir(tmp_path)
    pathlib.Path("root.pem").write_bytes(root().to_pem().reveal())
    return tmp_path


@pytest.fixture
def control(daemon: Daemon) -> tuple[str, str]:
    """Where the operator is asked."""
    return ("--control", str(daemon.socket.parent / "control"))


def sev(*words: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["sev", *words])
    assert done.exit_code == status, f"{words}: {done.output} {done.exception!r}"
    return done


def refused(*words: str) -> str:
    done = sev(*words, status=1)
    assert done.output.startswith("hcalld: "), done.output
    assert done.output.count("\n") == 1
    return done.output.removeprefix("hcalld: ")


def read(name: str) -> bytes:
    return pathlib.Path(name).read_bytes()


# -- certificates ---------------------------------------------------------------------------------


def test_export_when_the_operator_is_asked_then_one_command_gives_all(control: tuple[str, str]):
    said = sev("export", "--full", *control, "full.cert").output
    assert said == "full.cert: PDH, PEK, OCA, CEK, ASK, ARK: 10000 bytes\n"
    found = Chain.parse_export(read("full.cert"))
    verify_chain(found)
    assert found.ark == root().ark
    sev("root", "fetch", *control, "fetched")
    assert read("fetched") == root().certificates
    sev("export", "--full", "--root", "root.pem", "again.cert")
    assert read("again.cert") == read("full.cert")
    assert sev("export", "bare.cert").output == "bare.cert: PDH, PEK, OCA, CEK: 8336 bytes\n"
    assert read("bare.cert") == read("full.cert")[:8336]
    assert "is there already" in refused("export", "bare.cert")


def test_export_when_the_root_is_not_the_platforms_then_no_file_is_made():
    sev("root", "make", "other.pem")
    said = refused("export", "--full", "--root", "other.pem", "full.cert")
    assert said.startswith("other.pem: not the root of this platform: CEK certificate: signature")
    assert not pathlib.Path("full.cert").exists()
    assert "--root goes with --full" in sev("export", "--root", "root.pem", "x", status=2).output


def test_export_when_no_operator_answers_then_it_says_so(folder: pathlib.Path):
    said = refused("export", "--full", "--control", str(folder / "nobody"), "full.cert")
    assert said.startswith("no daemon answers at")


def test_verify_when_no_file_is_given_then_the_daemon_is_asked():
    done = sev("verify", "--root", "root.pem")
    assert "(the trusted root)" in done.stdout
    sev("root", "make", "other.pem")
    failed = sev("verify", "--root", "other.pem", status=1)
    assert "CEK  ECDSA P-384 SHA-256  API 1.55  signed by ASK: FAILED" in failed.stdout
    assert failed.stderr.startswith("hcalld: the platform: CEK certificate: signature of the ASK")


def is_good(openssl: Run, has: Exported) -> bool:
    """Whether openssl finds every link good."""
    return (
        amd_is_good(openssl, has.ark, has.ark)
        and amd_is_good(openssl, has.ask, has.ark)
        and cek_is_good(openssl, has.cek, has.ask)
        and ec_is_good(openssl, has.oca, 0, has.oca)
        and ec_is_good(openssl, has.pek, 0, has.oca)
        and ec_is_good(openssl, has.pek, 1, has.cek)
        and ec_is_good(openssl, has.pdh, 0, has.pek)
    )


def test_export_when_openssl_looks_at_each_link_then_good(openssl: Run, control: tuple[str, str]):
    sev("export", "--full", *control, "own.cert")
    assert is_good(openssl, Exported(read("own.cert")))
    sev("csr", "csr")
    sev("oca", "make", "oca.cert", "oca.key")
    sev("oca", "sign", "--oca", "oca.cert", "--key", "oca.key", "csr", "pek.cert")
    sev("import", "pek.cert", "oca.cert")
    sev("export", "--full", *control, "owned.cert")
    has = Exported(read("owned.cert"))
    assert has.oca == read("oca.cert")
    assert is_good(openssl, has)
    # The platform's own OCA has not signed what the owner's has.
    has.oca = Exported(read("own.cert")).oca
    assert not is_good(openssl, has)


# -- the platform ---------------------------------------------------------------------------------


def test_status_when_a_platform_is_new_then_it_owns_itself():
    assert sev("status").output == (
        "api major  1\n"
        "api minor  55\n"
        "build id   21\n"
        "state      INIT\n"
        "owner      self\n"
        "sev es     yes\n"
        "guests     0\n"
    )


def test_id_when_it_is_asked_then_it_is_of_one_socket():
    (line,) = sev("id").output.splitlines()
    assert len(bytes.fromhex(line)) == 64


def test_owner_when_he_signs_then_the_platform_is_his_until_it_is_reset():
    sev("csr", "csr")
    sev("oca", "make", "oca.cert", "oca.key")
    sev("oca", "sign", "--oca", "oca.cert", "--key", "oca.key", "csr", "pek.cert")
    sev("import", "pek.cert", "oca.cert")
    assert json.loads(sev("status", "--json").output)["owner"] == "external"
    done = sev("verify", "--root", "root.pem")
    assert "OCA  ECDSA P-384 SHA-256  API 0.0  signed by itself: ok" in done.stdout
    said = refused("import", "pek.cert", "oca.cert")
    assert said == (
        "SEV_PEK_CERT_IMPORT: the platform refuses: SEV_RET_ALREADY_OWNED, the platform has an "
        "owner; the reason is in the daemon's --trace, and in its log with --log-level debug\n"
    )
    # He cannot sign a new PEK before a reset, as its command's help says.
    sev("pek-gen")
    sev("csr", "again")
    sev("oca", "sign", "--oca", "oca.cert", "--key", "oca.key", "again", "again.cert")
    assert "SEV_RET_ALREADY_OWNED" in refused("import", "again.cert", "oca.cert")
    said = " ".join(sev("pek-gen", "--help").output.split())
    assert "takes his signature after hcalld sev reset" in said
    sev("reset", "--yes")
    assert json.loads(sev("status", "--json").output)["owner"] == "self"
    sev("csr", "--force", "again")
    sev("oca", "sign", *("--oca", "oca.cert", "--key", "oca.key", "--force"), "again", "again.cert")
    sev("import", "again.cert", "oca.cert")


def test_import_when_somebody_else_signed_then_it_is_refused():
    sev("csr", "csr")
    for name in ("one", "two"):
        sev("oca", "make", f"{name}.cert", f"{name}.key")
    sev("oca", "sign", "--oca", "one.cert", "--key", "one.key", "csr", "pek.cert")
    assert "SEV_RET_BAD_SIGNATURE" in refused("import", "pek.cert", "two.cert")
    assert refused("import", "one.key", "one.cert").startswith("one.key: PEK certificate: length")


def test_reset_when_it_is_not_confirmed_then_nothing_happens():
    sev("export", "before.cert")
    done = CliRunner().invoke(cli, ["sev", "reset"], input="n\n")
    assert done.exit_code == 1
    sev("export", "after.cert")
    assert read("after.cert") == read("before.cert")


def test_keys_when_they_are_made_anew_then_certificates_change():
    sev("export", "first.cert")
    sev("pdh-gen")
    sev("export", "second.cert")
    sev("pek-gen")
    sev("export", "third.cert")
    first, second, third = (read(f"{name}.cert") for name in ("first", "second", "third"))
    assert first[:2084] != second[:2084]
    assert first[2084:] == second[2084:] != third[2084:]


def test_platform_when_no_daemon_is_there_then_it_says_what_is_expected(folder: pathlib.Path):
    said = refused("status", "--socket", str(folder / "nobody"))
    assert "cannot connect" in said
    assert "expected the socket of a running 'hcalld serve', which --socket names" in said
