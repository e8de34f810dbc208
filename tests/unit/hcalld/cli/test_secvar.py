# SPDX-License-Identifier: Apache-2.0
"""``hcalld secvar``, as a user types it; OpenSSL is the other side."""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import re
import stat

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from tests.vectors.authvar_tools import Pair, attempt, cms_sign, cms_verifies, make_pair, run

from hcalld.cli import cli
from hcalld.domain.labels import os_label
from hcalld.domain.secvar.answers import Accepted, Store, UpdateRefused, Wipe
from hcalld.domain.secvar.authoring import (
    certificates_lists,
    digests_list,
    parse_update_file,
    sbat_list,
    stored_object,
)
from hcalld.domain.secvar.authvar import evaluate, signed_bytes
from hcalld.domain.secvar.variables import VARIABLES, encode_name
from hcalld.stores.directory import StateDirectory
from hcalld.stores.keys import passphrase
from hcalld.testing.pks import PksMachine
from hcalld.testing.secvars import Variables, identity
from hcallproto.abi.returns import H
from hcallproto.payloads import efi
from hcallproto.payloads.efi import EfiTime, guid, parse_stored, parse_update
from hcallproto.payloads.pks import Policy

OWNER = "01020304-0506-0708-090a-0b0c0d0e0f10"
TIME = "2026-01-02T03:04:05Z"
EFI_TIME = EfiTime(2026, 1, 2, 3, 4, 5)


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The current directory, with two signers' files."""
    monkeypatch.setenv("HCALLD_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("PK", "KEK"):
        pair = identity(name)
        (work / f"{name}.crt").write_bytes(pair.certificate_pem)
        (work / f"{name}.der").write_bytes(pair.der)
        (work / f"{name}.key").write_bytes(pair.key_pem)
    return work


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["secvar", *arguments])


def good(*arguments: str) -> str:
    result = typed(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout


def bad(*arguments: str) -> str:
    """One line on stderr, exit status 1."""
    result = typed(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("hcalld: ")
    return line


def misused(*arguments: str) -> str:
    result = typed(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    return " ".join(result.stderr.split())


def content(name: str) -> bytes:
    return pathlib.Path(name).read_bytes()


def sign(*arguments: str, key: str = "PK") -> str:
    return good("sign", *arguments, "--key", f"{key}.key", "--cert", f"{key}.crt", "-o", "update")


def judged(name: str, update: bytes, *, latch: bool = False) -> Accepted:
    variables = Variables()
    for each in ("PK", "KEK"):
        variables.put(each, identity(each).stored)
    variables.pop(encode_name(name), None)
    file = parse_update_file(update)
    return evaluate(
        encode_name(name),
        file.message,
        is_append=file.is_append,
        lookup=variables.get,
        without_verification=latch,
    )


# -- esl ------------------------------------------------------------------------------------


def test_esl_when_of_certificates_then_a_list_for_each():
    good("esl", "--cert", "PK.crt", "--cert", "KEK.der", "-o", "out")
    assert content("out") == certificates_lists([identity("PK").der, identity("KEK").der])


def test_esl_when_the_pem_has_several_then_all_are_in_it():
    pathlib.Path("both.crt").write_bytes(content("PK.crt") + b"\n" + content("KEK.crt"))
    good("esl", "--cert", "both.crt", "-o", "out", "--owner", OWNER)
    ders = [identity("PK").der, identity("KEK").der]
    assert content("out") == certificates_lists(ders, guid(OWNER))


@pytest.mark.parametrize("algorithm", ["sha1", "sha224", "sha256", "sha384", "sha512"])
def test_esl_when_of_files_then_their_hashes_are_openssls(algorithm: str):
    pathlib.Path("image").write_bytes(b"image" * 1000)
    digest = bytes.fromhex(
        run("openssl", "dgst", "-r", f"-{algorithm}", "image").split()[0].decode()
    )
    other = bytes(len(digest))
    arguments = ["--file", "image", "--hash", other.hex(), "--file", "image"]
    good("esl", *arguments, "--algorithm", algorithm, "-o", "out")
    kind = getattr(efi, f"CERT_{algorithm.upper()}")
    assert content("out") == digests_list(kind, [other, digest])


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_esl_when_certificates_are_revoked_then_their_signed_part_is_hashed(algorithm: str):
    good("esl", "--cert-hash", "PK.crt", "--algorithm", algorithm, "-o", "out")
    # The signed part is the first element inside the outer sequence.
    der = identity("PK").der
    size = 4 + int.from_bytes(der[6:8], "big")
    digest = hashlib.new(algorithm, der[4 : 4 + size]).digest()
    kind = getattr(efi, f"CERT_X509_{algorithm.upper()}")
    assert content("out") == digests_list(kind, [digest])


def test_esl_when_of_sbat_then_the_lines_are_in_it():
    pathlib.Path("sbat.csv").write_bytes(b"sbat,1\ngrub,2\n")
    good("esl", "--sbat", "sbat.csv", "-o", "out")
    assert content("out") == sbat_list(b"sbat,1\ngrub,2\n")


def test_esl_when_the_input_is_wrong_then_it_says_what():
    pathlib.Path("text").write_bytes(b"text")
    pathlib.Path("broken.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n")
    pathlib.Path("other.der").write_bytes(b"\x30\x82\x00\x00")
    pathlib.Path("long").write_bytes(bytes(65537))
    assert "text: not a certificate, expected X.509" in bad("esl", "--cert", "text", "-o", "out")
    assert "broken.crt: not X.509" in bad("esl", "--cert", "broken.crt", "-o", "out")
    assert "other.der: not an X.509" in bad("esl", "--cert", "other.der", "-o", "out")
    assert "long: too long" in bad("esl", "--cert", "long", "-o", "out")
    assert "none: cannot be read" in bad("esl", "--cert", "none", "-o", "out")
    assert "none: cannot be read" in bad("esl", "--file", "none", "-o", "out")
    assert "expected 64 hexadecimal" in bad("esl", "--hash", "00", "-o", "out")
    assert "expected 64 hexadecimal" in bad("esl", "--hash", "zz", "-o", "out")
    assert "sbat line 1" in bad("esl", "--sbat", "text", "-o", "out")
    assert not pathlib.Path("out").exists()


def test_esl_when_misused_then_it_says_how_to_use_it():
    assert "give --cert, --file, --hash" in misused("esl", "-o", "out")
    arguments = ("esl", "--cert-hash", "PK.crt", "--algorithm", "sha1", "-o", "out")
    assert "--cert-hash goes with sha256" in misused(*arguments)
    assert "expected a GUID" in misused("esl", "--cert", "PK.crt", "--owner", "me", "-o", "out")


def test_output_when_it_is_there_then_it_is_replaced_only_with_force():
    good("esl", "--cert", "PK.crt", "-o", "out")
    assert "use --force" in bad("esl", "--cert", "KEK.crt", "-o", "out")
    good("esl", "--cert", "KEK.crt", "-o", "out", "--force")
    assert content("out") == identity("KEK").lists


# -- sign -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["KEK.crt", "KEK.der", "KEK.esl"])
def test_sign_when_given_a_certificate_or_lists_then_the_update_is_taken(form: str):
    pathlib.Path("KEK.esl").write_bytes(identity("KEK").lists)
    assert sign("db", form, "--time", TIME) == ""
    update = content("update")
    assert update[:8] == bytes(8)
    assert judged("db", update).change == Store(stored_object(identity("KEK").lists, EFI_TIME))


def test_sign_when_no_time_is_given_then_it_is_now_in_utc():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    sign("db", "KEK.crt")
    after = datetime.datetime.now(datetime.UTC)
    time = parse_update(content("update")[8:]).time
    assert before <= datetime.datetime(*time, tzinfo=datetime.UTC) <= after


@pytest.mark.parametrize("time", ["2026-01-02 03:04:05", "2026-01-02T03:04:05", TIME])
def test_sign_when_the_time_is_written_otherwise_then_it_is_the_same(time: str):
    sign("db", "KEK.crt", "--time", time)
    assert parse_update(content("update")[8:]).time == EFI_TIME


def test_sign_when_appending_then_the_flag_is_set_and_signed():
    sign("db", "KEK.crt", "--append", "--time", TIME)
    update = content("update")
    assert update[:8] == bytes(7) + b"\1"
    assert judged("db", update).change == Store(stored_object(identity("KEK").lists, EFI_TIME))
    with pytest.raises(UpdateRefused):
        judged("db", bytes(8) + update[8:])


def test_sign_when_resetting_then_the_data_are_empty():
    sign("db", "--reset", "--time", TIME, key="KEK")
    assert judged("db", content("update")).change == Store(stored_object(b"", EFI_TIME))


def test_sign_when_wiping_then_the_message_counts_under_the_latch():
    sign("PK", "--wipe", "--time", TIME)
    assert judged("PK", content("update"), latch=True).change == Wipe()


def test_sign_when_for_sbat_then_the_csv_is_enough():
    pathlib.Path("sbat.csv").write_bytes(b"sbat,1\n")
    sign("sbat", "sbat.csv", "--time", TIME)
    assert judged("sbat", content("update")).change == Store(
        stored_object(sbat_list(b"sbat,1\n"), EFI_TIME)
    )


def test_sign_when_for_another_name_then_the_bytes_are_as_they_are():
    pathlib.Path("anything").write_bytes(b"-anything-")
    sign("mine", "anything", "--time", TIME)
    assert judged("mine", content("update")).change == Store(stored_object(b"-anything-", EFI_TIME))


def test_sign_when_openssl_verifies_it_then_it_agrees(folder: pathlib.Path):
    sign("db", "KEK.crt", "--time", TIME)
    update = parse_update(content("update")[8:])
    covered = signed_bytes(encode_name("db"), EFI_TIME, update.data, is_append=False)
    pk = Pair(folder, "PK")
    assert cms_verifies(update.pkcs7, covered, pk)
    assert not cms_verifies(update.pkcs7, covered[1:], pk)


def test_sign_when_signed_by_openssl_then_the_update_is_taken(folder: pathlib.Path):
    good("sign", "db", "KEK.crt", "--time", TIME, "--to-be-signed", "-o", "covered")
    pkcs7 = cms_sign(content("covered"), Pair(folder, "KEK"), "-noattr", "-md", "sha256")
    pathlib.Path("p7").write_bytes(pkcs7)
    good("sign", "db", "KEK.crt", "--time", TIME, "--signature", "p7", "-o", "update")
    assert judged("db", content("update")).change == Store(
        stored_object(identity("KEK").lists, EFI_TIME)
    )
    sign("db", "KEK.crt", "--time", TIME, "--force", key="KEK")
    assert parse_update(content("update")[8:]).data == identity("KEK").lists


def test_sign_when_a_signature_cannot_be_used_then_it_says_why(folder: pathlib.Path):
    pathlib.Path("p7").write_bytes(cms_sign(b"x", Pair(folder, "PK"), "-md", "sha256"))
    arguments = ("sign", "db", "KEK.crt", "--time", TIME, "--signature", "p7", "-o", "update")
    assert "signed attributes" in bad(*arguments)
    pathlib.Path("p7").write_bytes(b"-----BEGIN PKCS7-----")
    assert "not SignedData in DER" in bad(*arguments)


def encrypted_key(secret: bytes) -> None:
    form = BestAvailableEncryption(secret)
    pathlib.Path("PK.key").write_bytes(
        identity("PK").key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form)
    )


def passphrase_file(secret: bytes) -> str:
    path = pathlib.Path("passphrase")
    path.write_bytes(secret)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return "passphrase"


def test_sign_when_the_key_is_encrypted_then_the_passphrase_opens_it(
    monkeypatch: pytest.MonkeyPatch,
):
    encrypted_key(b"open sesame")
    sign("db", "KEK.crt", "--passphrase-file", passphrase_file(b"open sesame\n"))
    asked = []

    def prompt(what: str) -> passphrase.PassphraseFrom:
        asked.append(what)
        return passphrase.PassphraseFrom(lambda _is_new: b"open sesame\n", what)

    monkeypatch.setattr(passphrase, "from_prompt", prompt)
    sign("db", "KEK.crt", "--force")
    assert asked == ["passphrase of PK.key"]
    arguments = ("--key", "PK.key", "--cert", "PK.crt", "-o", "other")
    wrong = passphrase_file(b"close sesame\n")
    line = bad("sign", "db", "KEK.crt", *arguments, "--passphrase-file", wrong)
    assert "PK.key: no private key in PEM, or a wrong passphrase" in line


def test_sign_when_the_keys_are_wrong_then_it_says_why():
    pathlib.Path("none.key").write_bytes(b"none")
    signer = ("--key", "PK.key", "--cert", "KEK.crt", "-o", "update")
    assert "not the private key of KEK.crt" in bad("sign", "db", "KEK.crt", *signer)
    signer = ("--key", "none.key", "--cert", "PK.crt", "-o", "update")
    assert "none.key: no private key in PEM" in bad("sign", "db", "KEK.crt", *signer)


@pytest.mark.parametrize(
    ("variable", "file", "why"),
    [
        ("sbat", "PK.crt", "not for sbat: sbat has a list of type X509, expected SBAT"),
        ("db", "sbat.csv", "not for db: signature list at byte 0"),
        ("db", "empty", "empty; use --reset"),
        ("PK", "both.crt", "2 lists with 2 certificates"),
        ("trustedcadb", "leaf.crt", "not a CA's"),
    ],
)
def test_sign_when_the_variable_may_not_hold_it_then_it_is_refused(
    variable: str, file: str, why: str
):
    pathlib.Path("sbat.csv").write_bytes(b"sbat,1\n")
    pathlib.Path("empty").write_bytes(b"")
    pathlib.Path("both.crt").write_bytes(content("PK.crt") + content("KEK.crt"))
    pathlib.Path("leaf.crt").write_bytes(identity("leaf", is_ca=False).certificate_pem)
    signer = ("--key", "PK.key", "--cert", "PK.crt", "-o", "update")
    assert why in bad("sign", variable, file, *signer)
    assert not pathlib.Path("update").exists()


def test_sign_when_the_update_is_long_then_there_is_a_warning():
    pathlib.Path("long").write_bytes(bytes(4096))
    signer = ("--key", "PK.key", "--cert", "PK.crt", "-o", "update")
    result = typed("sign", "mine", "long", *signer)
    assert result.exit_code == 0
    size = pathlib.Path("update").stat().st_size
    assert f"update has {size} bytes; a kernel with 4 KiB pages" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["db", "PK.crt"], "sign with --key and --cert, or use"),
        (["db", "PK.crt", "--key", "PK.key"], "sign with --key and --cert"),
        (["db", "PK.crt", "--to-be-signed", "--signature", "x"], "sign with --key"),
        (["db", "PK.crt", "--to-be-signed"], "need --time"),
        (["db", "PK.crt", "--signature", "x"], "need --time"),
        (
            ["db", "PK.crt", "--to-be-signed", "--time", TIME, "--passphrase-file", "x"],
            "--passphrase-file goes with --key",
        ),
        (["db", "--to-be-signed", "--time", TIME], "give FILE, or --reset, or --wipe"),
        (["db", "x", "--reset", "--to-be-signed", "--time", TIME], "give FILE, or"),
        (["db", "--reset", "--append", "--to-be-signed", "--time", TIME], "--append goes with"),
        (["db", "--wipe", "--to-be-signed", "--time", TIME], "--wipe is an update of PK"),
        (["PK", "PK.crt", "--append", "--to-be-signed", "--time", TIME], "cannot be appended"),
        (["PK", "--reset", "--to-be-signed", "--time", TIME], "PK cannot be emptied"),
        (["db", "PK.crt", "--time", "today"], "expected a time in UTC"),
        (["db", "PK.crt", "--time", "2026-02-30T00:00:00Z"], "expected a time in UTC"),
        (["", "PK.crt"], "expected a variable's name"),
        (["d\udcffb", "PK.crt"], "expected a name in the terminal's encoding"),
    ],
)
def test_sign_when_misused_then_it_says_how_to_use_it(arguments: list[str], why: str):
    assert why in misused("sign", *arguments, "-o", "out")


# -- show -----------------------------------------------------------------------------------


def test_show_when_an_update_then_all_its_parts():
    sign("db", "KEK.crt", "--append", "--time", TIME, "--owner", OWNER)
    shown = good("show", "update")
    assert re.search(r"^kind +signed update$", shown, re.MULTILINE)
    assert re.search(r"^mode +append$", shown, re.MULTILINE)
    assert re.search(r"^time +2026-01-02 03:04:05 UTC$", shown, re.MULTILINE)
    assert re.search(r"^signature +PKCS#7 of \d+ bytes, signers: 1$", shown, re.MULTILINE)
    fingerprint = hashlib.sha256(identity("KEK").der).hexdigest()
    entry = f"X509 CN=KEK, CA, RSA 2048, SHA-256 {fingerprint}, owner {OWNER}"
    assert shown.splitlines()[-1] == f"entry      {entry}"
    data = json.loads(good("show", "update", "--json"))
    assert data["entries"] == [entry]
    assert data["mode"] == "append"


def test_show_when_other_kinds_then_they_are_told_apart():
    sign("db", "KEK.crt", "--time", TIME)
    pathlib.Path("message").write_bytes(content("update")[8:])
    pathlib.Path("stored").write_bytes(identity("KEK").stored)
    pathlib.Path("lists").write_bytes(identity("KEK").lists)
    kinds = {
        "update": "signed update",
        "message": "signed update without flags",
        "stored": "stored variable",
        "lists": "signature lists",
        "KEK.crt": "certificate",
        "KEK.der": "certificate",
    }
    for name, kind in kinds.items():
        data = json.loads(good("show", name, "--json"))
        assert data["kind"] == kind
        assert len(data["entries"]) == 1


def test_show_when_the_signature_is_of_no_use_then_it_says_so(folder: pathlib.Path):
    good("sign", "db", "KEK.crt", "--time", TIME, "--to-be-signed", "-o", "covered")
    attributes = cms_sign(content("covered"), Pair(folder, "PK"), "-md", "sha256")
    update = efi.SignedUpdate(EFI_TIME, attributes, b"").build()
    pathlib.Path("attributes").write_bytes(update)
    assert "with signed attributes: of no use" in good("show", "attributes")
    pathlib.Path("broken").write_bytes(efi.SignedUpdate(EFI_TIME, b"x", b"").build())
    assert "cannot be used: the PKCS#7 is not SignedData" in good("show", "broken")


def test_show_when_nothing_known_then_it_says_so():
    pathlib.Path("text").write_bytes(b"text")
    assert "text: neither a signed update, with or without flags" in bad("show", "text")


# -- verify ---------------------------------------------------------------------------------


def test_verify_when_against_files_then_the_rules_are_the_daemons():
    sign("db", "KEK.crt", "--time", TIME, key="KEK")
    keys = ("--pk", "PK.crt", "--kek", "KEK.der")
    assert good("verify", *keys, "db", "update") == (
        f"db: would be stored with {8 + len(identity('KEK').lists)} bytes (signed by KEK)\n"
    )
    assert "no signature by PK or KEK" in bad("verify", *keys, "dbx", "update")
    assert "no signature by PK or KEK" in bad("verify", "--pk", "PK.crt", "db", "update")
    assert "there is no PK" in bad("verify", "db", "update")
    pathlib.Path("current").write_bytes(stored_object(b"", EFI_TIME))
    assert "expected a time after" in bad("verify", *keys, "--current", "current", "db", "update")
    pathlib.Path("current").write_bytes(identity("PK").lists)
    assert good("verify", *keys, "--current", "current", "db", "update")


def test_verify_when_it_removes_or_wipes_then_it_says_so():
    sign("db", "--reset")
    assert good("verify", "--pk", "PK.crt", "db", "update") == (
        "db: would be removed (signed by PK)\n"
    )
    sign("PK", "--wipe", "--force")
    assert "counts only under" in bad("verify", "--pk", "PK.crt", "PK", "update")
    assert good("verify", "--without-verification", "PK", "update") == (
        "PK: would be deleted, with all secure variables (without verification)\n"
    )


def test_verify_when_against_a_partition_then_its_variables_count():
    good("enroll", "-p", "guest", "--pk", "PK.crt", "--kek", "KEK.crt", "--time", TIME)
    sign("KEK", "KEK.crt")
    assert "signed by PK" in good("verify", "-p", "guest", "KEK", "update")
    sign("KEK", "KEK.crt", "--time", TIME, "--force")
    assert "expected a time after" in bad("verify", "-p", "guest", "KEK", "update")
    why = misused("verify", "-p", "guest", "--pk", "PK.crt", "KEK", "update")
    assert "--partition excludes --pk" in why


def test_verify_when_a_partition_has_the_latch_then_it_counts():
    options = ["keystore_signed_updates=1", "keystore_signed_updates_without_verification=1"]
    done = CliRunner().invoke(cli, ["ctl", "set", "--create", "guest", *options])
    assert done.exit_code == 0, done.output
    sign("PK", "PK.crt")
    assert "without verification" in good("verify", "-p", "guest", "PK", "update")


def test_verify_when_the_files_are_wrong_then_it_says_why():
    sign("db", "KEK.crt", "--time", TIME)
    pathlib.Path("message").write_bytes(content("update")[8:])
    assert "put 8 zero bytes in front" in bad("verify", "--pk", "PK.crt", "db", "message")
    assert "a signed update, expected" in bad("verify", "--pk", "update", "db", "update")
    assert "PK.key: neither" in bad("verify", "--pk", "PK.key", "db", "update")


def test_verify_when_several_then_each_sees_what_those_before_it_did():
    sign("PK", "PK.crt", "--time", TIME)
    pathlib.Path("update").rename("PK.update")
    sign("KEK", "KEK.crt", "--time", TIME)
    pathlib.Path("update").rename("KEK.update")
    sign("db", "KEK.crt", "--time", TIME, key="KEK")
    pathlib.Path("update").rename("db.update")
    sign("db", "--reset", "--time", "2026-01-02T03:04:06Z")
    pathlib.Path("update").rename("db.reset")
    pairs = ["PK", "PK.update", "KEK", "KEK.update", "db", "db.update"]
    shown = good("verify", "--without-verification", *pairs, "db", "db.reset", "db", "db.update")
    assert [line.split(" (")[1] for line in shown.splitlines()] == [
        "without verification)",
        "signed by PK)",
        "signed by KEK)",
        "signed by PK)",
        "signed by KEK)",
    ]
    sign("PK", "--wipe", "--force")
    wiped = typed("verify", "--without-verification", "PK", "update", "KEK", "KEK.update")
    assert wiped.exit_code == 1
    assert "there is no PK" in wiped.stderr
    # The latch is for one update.
    twice = typed("verify", "--without-verification", *pairs[:2], "PK", "PK.update")
    assert "PK: the update would be refused" in twice.stderr
    assert "give each update as VARIABLE FILE" in misused("verify", "PK")
    assert "expected a variable's name" in misused("verify", "", "PK.update")


# -- list -----------------------------------------------------------------------------------


def test_list_when_enrolled_then_what_each_holds(folder: pathlib.Path):
    good("enroll", "-p", "guest", "--pk", "PK.crt", "--time", TIME)
    store = StateDirectory(folder.parent / "state").open("guest")
    guest = PksMachine(store=store)
    put = guest.keystore.create
    for name, data in (("KEK", b"\1"), ("mine", stored_object(b"anything", EFI_TIME))):
        put(3, os_label(b"", encode_name(name)), Policy.SIGNEDUPDATE, data)
    # None of these is a secure variable.
    put(3, os_label(b"", encode_name("x")), 0, b"data")
    put(3, os_label(b"prefix", b"x"), Policy.SIGNEDUPDATE, b"data")
    put(1, b"db", Policy.SIGNEDUPDATE, b"data")
    put(3, b"db", Policy.SIGNEDUPDATE, b"data")
    store.commit(guest.keystore.take_changes(), None)
    store.close()
    fingerprint = hashlib.sha256(identity("PK").der).hexdigest()
    size = 8 + len(identity("PK").lists)
    assert sorted(good("list", "-p", "guest").splitlines()) == sorted(
        [
            f"PK: 2026-01-02 03:04:05 UTC, {size} bytes",
            f"  X509 CN=PK, CA, RSA 2048, SHA-256 {fingerprint}",
            "KEK: no time, 1 bytes",
            "  the stored variable has 1 bytes, expected at least 8",
            "mine: 2026-01-02 03:04:05 UTC, 16 bytes",
        ]
    )
    data = json.loads(good("list", "-p", "guest", "--json"))
    assert {each["name"] for each in data} == {"PK", "KEK", "mine"}


# -- enroll ---------------------------------------------------------------------------------


def machine() -> PksMachine:
    return PksMachine(store=StateDirectory(pathlib.Path("../state").resolve()).open("guest"))


def test_enroll_when_done_then_the_guest_reads_what_was_given():
    pathlib.Path("sbat.csv").write_bytes(b"sbat,1\n")
    options = [
        *("--pk", "PK.crt", "--kek", "KEK.der", "--db", "KEK.crt", "--dbx", "KEK.crt"),
        *("--grubdb", "KEK.crt", "--grubdbx", "KEK.crt", "--sbat", "sbat.csv"),
        *("--moduledb", "KEK.crt", "--trustedcadb", "KEK.crt"),
    ]
    shown = good("enroll", "-p", "guest", *options, "--time", TIME)
    assert [line.partition(":")[0] for line in shown.splitlines()] == [v.name for v in VARIABLES]
    guest = machine()
    try:
        found = {item.label: item.stored for item in guest.keystore.objects()}
    finally:
        guest.store.close()
    assert found.keys() == {os_label(b"", variable.label_name) for variable in VARIABLES}
    for variable in VARIABLES:
        stored = found[os_label(b"", variable.label_name)]
        assert stored.policy == variable.policy
        parsed = parse_stored(stored.data)
        assert parsed.time == EFI_TIME
        if variable.name == "sbat":
            assert parsed.data == sbat_list(b"sbat,1\n")
        else:
            name = "PK" if variable.name == "PK" else "KEK"
            assert parsed.data == identity(name).lists


def test_enroll_when_one_is_there_then_nothing_is_put_in_without_replace():
    good("enroll", "-p", "guest", "--kek", "KEK.crt")
    line = bad("enroll", "-p", "guest", "--pk", "PK.crt", "--kek", "KEK.crt")
    assert "KEK is there already; use --replace" in line
    guest = machine()
    assert len(list(guest.keystore.objects())) == 1
    guest.store.close()
    good("enroll", "-p", "guest", "--pk", "PK.crt", "--kek", "KEK.crt", "--replace")


def test_enroll_when_it_does_not_fit_then_it_says_what_to_do():
    for name, values, why in (
        ("small", ["pks.max_object_size=1024"], "pks.max_object_size is 1024; set it with"),
        ("full", ["keystore_kbytes=4"], "enlarge the keystore with 'hcalld ctl set"),
    ):
        done = CliRunner().invoke(cli, ["ctl", "set", "--create", name, *values])
        assert done.exit_code == 0, done.output
        pathlib.Path("big").write_bytes(certificates_lists([identity("KEK").der] * 5))
        assert why in bad("enroll", "-p", name, "--db", "big")


def test_enroll_when_misused_then_it_says_how_to_use_it():
    assert "give a file with --pk, --kek, --db" in misused("enroll", "-p", "guest")
    assert "--wrong" in misused("enroll", "-p", "guest", "--wrong", "x")


def test_enroll_when_the_guest_is_running_then_it_is_refused():
    good("enroll", "-p", "guest", "--kek", "KEK.crt")
    guest = machine()
    try:
        line = bad("enroll", "-p", "guest", "--pk", "PK.crt")
    finally:
        guest.store.close()
    assert "guest" in line


# -- defaults -------------------------------------------------------------------------------

ORDER = [variable.name for variable in VARIABLES]


def test_defaults_when_made_then_the_updates_are_taken_in_order_and_reset():
    shown = good("defaults", "keys")
    assert shown == "keys: 37 files; begin with keys/README.txt\n"
    for path in pathlib.Path("keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    variables = Variables()

    def apply(name: str, file: str, *, latch: bool = False) -> None:
        update = parse_update_file(content(f"keys/{file}"))
        assert len(content(f"keys/{file}")) <= 4096  # what sysfs passes with 4 KiB pages
        change = evaluate(
            encode_name(name),
            update.message,
            is_append=update.is_append,
            lookup=variables.get,
            without_verification=latch,
        ).change
        if isinstance(change, Store):
            variables.put(name, change.data)
        else:
            variables.pop(encode_name(name), None)

    readme = content("keys/README.txt").decode()
    assert re.findall(r"cat (\w+)\.update", readme) == [*ORDER[:-2], "trustedcadb", "moduledb"]
    for name in ORDER:
        apply(name, f"{name}.update", latch=name == "PK")
        assert parse_stored(variables[encode_name(name)]).data == content(f"keys/{name}.esl")
    for name in ORDER[1:]:
        apply(name, f"{name}.reset")
        apply(name, f"{name}.update")
        assert encode_name(name) in variables
    update = parse_update_file(content("keys/PK.wipe"))
    assert (
        evaluate(
            encode_name("PK"),
            update.message,
            is_append=False,
            lookup=variables.get,
            without_verification=True,
        ).change
        == Wipe()
    )


def test_defaults_when_openssl_looks_at_the_chain_then_it_verifies():
    good("defaults", "keys", "--bits", "3072")
    run("openssl", "verify", "-CAfile", "keys/ca.crt", "keys/db.crt")
    assert attempt("openssl", "verify", "-CAfile", "keys/PK.crt", "keys/db.crt").returncode
    assert b"3072 bit" in run("openssl", "rsa", "-in", "keys/KEK.key", "-noout", "-text")
    digest = run("openssl", "dgst", "-r", "-sha256", "keys/revoked.bin").split()[0].decode()
    assert digest in good("show", "keys/dbx.esl")


def test_defaults_when_enrolled_as_the_readme_says_then_all_are_there():
    good("defaults", "keys")
    readme = content("keys/README.txt").decode()
    command = re.search(r"hcalld secvar (enroll -p GUEST(?: \\\n +--\w+ \w+\.esl)+)", readme)
    assert command is not None
    words = [
        f"keys/{word}" if word.endswith(".esl") else word
        for word in command[1].replace("\\\n", " ").split()
    ]
    assert len(good(*words).splitlines()) == len(VARIABLES)


def test_defaults_when_the_directory_is_not_new_then_nothing_is_written():
    assert "is not empty" in bad("defaults", ".")
    assert "cannot be made" in bad("defaults", "none/keys")
    assert "cannot be made" in bad("defaults", "PK.crt")


# -- from OpenSSL to a guest ----------------------------------------------------------------


def test_openssls_own_keys_when_enrolled_then_the_guest_has_them(folder: pathlib.Path):
    pairs = {name: make_pair(folder, f"own{name}") for name in ("PK", "KEK", "db")}
    options = [
        word for name, pair in pairs.items() for word in (f"--{name.lower()}", str(pair.pem))
    ]
    good("enroll", "-p", "guest", *options, "--time", TIME)
    guest = machine()
    label = os_label(b"", encode_name("db"))
    data = stored_object(certificates_lists([pairs["db"].der]), EFI_TIME)
    assert guest.read(label, 65535).code == H.SUCCESS
    assert guest.keystore.variable(encode_name("db")) == data
    guest.store.close()
