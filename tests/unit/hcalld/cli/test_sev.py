# SPDX-License-Identifier: Apache-2.0
"""``hcalld sev`` on files, as a user types it; ``test_sev_platform.py`` has a daemon."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import shlex
import stat

import click
import pytest
from click.testing import CliRunner, Result
from tests.conftest import Require
from tests.sev_platform import API, KEYS, VECTORS, VERSION, chain, flipped, key, root
from tests.unit.hcalld.guestowner.images import HASHES, firmware
from tests.unit.hcalld.guestowner.oracles import LOOKS_GOOD, MISMATCH, snp_measure, validate

from hcalld.cli import cli
from hcalld.cli.sev import preloading
from hcalld.control.messages import SevRoot
from hcalld.crypto.sev.certificates import make_csr, parse_owner_dh, public_point
from hcalld.crypto.sev.chains import check_import
from hcalld.crypto.sev.packets import Packet, open_secret
from hcalld.crypto.sev.reports import make_report
from hcalld.crypto.sev.session import unwrap_session
from hcalld.guest import sevhost
from hcallproto.payloads.sev.blobs import MeasurementBlob, PacketHeader, Session
from hcallproto.payloads.sev.certificates import SevCertificate
from hcallproto.payloads.sev.constants import Policy
from hcallproto.payloads.sev.tables import LUKS_KEY_GUID, parse_secrets

FIRMWARE = firmware()
MNONCE = bytes(range(16))
CHAIN, ROOT = "platform.cert", "root.pem"
VERSION_WORDS = ("--api-major", "1", "--api-minor", "55", "--build-id", "21")
BOOT = ("--kernel", "kernel", "--initrd", "initrd", "--append", "quiet")
SECRETS = ("luks-key:passphrase",)


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The current directory, with a platform's certificates, and a guest's files."""
    for name in ("HCALLD_SEV_SOCKET", "HCALLD_SEV_PLATFORM", "HCALLD_SEV_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, data in {
        CHAIN: chain().export,
        ROOT: root().to_pem().reveal(),
        "fw": FIRMWARE,
        "kernel": b"a kernel",
        "initrd": b"an initrd",
        "tk": KEYS.build(),
        "tik": KEYS.tik.reveal(),
        "tek": KEYS.tek.reveal(),
        "passphrase": b"open sesame",
    }.items():
        (work / name).write_bytes(data)
    return work


def sev(*words: str, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["sev", *words])
    assert done.exit_code == status, f"{words}: {done.output} {done.exception!r}"
    return done


def refused(*words: str) -> str:
    """What a command says that cannot do what it is told."""
    done = sev(*words, status=1)
    assert done.output.startswith("hcalld: "), done.output
    assert done.output.count("\n") == 1, done.output
    return done.output.removeprefix("hcalld: ").rstrip()


def misused(*words: str) -> str:
    """What a command says whose options make no sense."""
    return sev(*words, status=2).stderr.rpartition("Error: ")[2].strip()


def mode(name: str) -> int:
    return stat.S_IMODE(os.stat(name).st_mode)


def parameters() -> list[tuple[str, click.Parameter]]:
    group = cli.get_command(click.Context(cli), "sev")
    found: list[tuple[str, click.Parameter]] = []

    def walk(command: click.Command | None, name: str) -> None:
        assert command is not None, name
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                walk(command.get_command(context, child), f"{name} {child}")
        else:
            assert command.help, name
            found.extend((name, parameter) for parameter in command.params)

    walk(group, "sev")
    return found


@pytest.mark.parametrize(("name", "parameter"), parameters(), ids=lambda p: getattr(p, "name", p))
def test_help_when_a_command_has_an_option_then_it_is_explained(
    name: str, parameter: click.Parameter
):
    assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), name


# -- root -----------------------------------------------------------------------------------------


def test_root_make_when_it_is_made_then_it_is_named_a_test_root_and_only_its_owner_reads_it():
    said = sev("root", "make", "new.pem").output
    assert mode("new.pem") == 0o600
    text = pathlib.Path("new.pem").read_text()
    assert text.startswith("A test root of hcalld, not AMD's.")
    assert said.startswith("ARK  RSA-2048 SHA-256  key ")
    assert sev("root", "show", "new.pem").output == said
    assert "is there already" in refused("root", "make", "new.pem")


def test_root_export_when_it_is_written_then_it_has_no_private_keys():
    said = sev("root", "export", ROOT, "public").output
    assert pathlib.Path("public").read_bytes() == root().certificates
    assert sev("root", "show", "public").output == said
    shown = json.loads(sev("root", "show", "public", "--json").output)
    assert [one["usage"] for one in shown] == ["ARK", "ASK"]
    assert shown[0]["fingerprint"] == hashlib.sha256(root().ark.build()).hexdigest()
    sev("verify", "--sev", CHAIN, "--root", "public")


def test_root_show_when_the_file_is_none_then_it_says_what_is_expected():
    assert refused("root", "show", "kernel").startswith("kernel: 8 bytes and no PEM; expected a ")
    assert refused("root", "show", "nowhere").startswith("nowhere: cannot be read")


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ("no base64!", "is no base64"),
        ("", "ASK certificate: usage is ARK"),
        (base64.b64encode(root().ark.build()).decode(), "ASK certificate: usage is ARK"),
        (base64.b64encode(root().ask.build()[:-1]).decode(), "ARK certificate: "),
    ],
)
def test_root_when_a_daemon_tells_of_none_then_it_is_said_and_no_file_is_made(
    monkeypatch: pytest.MonkeyPatch, ask: str, why: str
):
    told = SevRoot("p", ask=ask, ark=base64.b64encode(root().ark.build()).decode())
    monkeypatch.setattr("hcalld.control.client.ask", lambda *_: told)
    for words in (("root", "fetch", "fetched"), ("export", "--full", "fetched")):
        said = refused(*words)
        assert "what the daemon says: " in said
        assert why in said
        assert not pathlib.Path("fetched").exists()


# -- verify ---------------------------------------------------------------------------------------


TREE = """\
ARK  RSA-2048 SHA-256  key {ark}  signed by itself: ok  (the trusted root)
└── ASK  RSA-2048 SHA-256  key {ask}  signed by ARK: ok
    └── CEK  ECDSA P-384 SHA-256  API 1.55  signed by ASK: ok
        └── PEK  ECDSA P-384 SHA-256  API 1.55  signed by CEK: ok  signed by OCA: ok
            └── PDH  ECDH P-384 SHA-256  API 1.55  signed by PEK: ok
OCA  ECDSA P-384 SHA-256  API 1.55  signed by itself: ok
"""


def test_verify_when_all_links_hold_then_they_are_shown_as_a_tree():
    done = sev("verify", "--sev", CHAIN, "--root", ROOT)
    ids = {"ark": root().ark.key_id.hex()[:8], "ask": root().ask.key_id.hex()[:8]}
    assert done.stdout == TREE.format(**ids)
    assert not done.stderr


def test_verify_when_the_root_is_of_the_other_size_then_it_is_shown():
    path = str(VECTORS / "platform-4096.cert")
    done = sev("verify", "--sev", path, "--root", str(VECTORS / "root-4096.pem"))
    assert "ARK  RSA-4096 SHA-384" in done.stdout
    assert "(NOT the trusted root)" in sev("verify", "--sev", path, "--root", ROOT, status=1).stdout


def test_verify_when_no_root_is_given_then_links_are_shown_and_nothing_is_trusted():
    done = sev("verify", "--sev", CHAIN, status=1)
    assert "(trusted by nobody's word)" in done.stdout
    assert "FAILED" not in done.stdout
    assert "give the root that you trust by --root" in done.stderr


def test_verify_when_a_link_is_broken_then_it_is_named():
    data = flipped(chain().export, 0x414 + 20)
    pathlib.Path(CHAIN).write_bytes(data)
    done = sev("verify", "--sev", CHAIN, "--root", ROOT, status=1)
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert failed[0].endswith("PDH  ECDH P-384 SHA-256  API 1.55  signed by PEK: FAILED")
    assert done.stderr.startswith(
        f"hcalld: {CHAIN}: PDH certificate: signature of the PEK is wrong"
    )
    shown = json.loads(sev("verify", "--sev", CHAIN, "--root", ROOT, "--json", status=1).stdout)
    assert (shown["ok"], shown["root_is_trusted"]) == (False, True)
    assert [one["certificate"] for one in shown["links"] if not one["ok"]] == ["PDH"]


def test_verify_when_the_platform_has_no_root_of_its_own_then_the_given_one_is_taken():
    pathlib.Path(CHAIN).write_bytes(chain().export[:8336])
    sev("verify", "--sev", CHAIN, "--root", ROOT)
    assert "has no ASK and ARK" in refused("verify", "--sev", CHAIN)


def test_verify_when_the_file_is_none_then_it_says_what_is_expected():
    assert refused("verify", "--sev", "fw").startswith("fw: ")
    assert refused("verify", "--sev", "kernel").startswith("kernel: 8 bytes; expected 8336")


# -- session --------------------------------------------------------------------------------------

FILES = ("godh.b64", "session.b64", "tek.bin", "tik.bin", "tk.bin")


def decoded(name: str) -> bytes:
    return base64.b64decode(pathlib.Path(name).read_bytes())


def test_session_when_the_platform_opens_it_then_it_has_the_keys_in_the_files():
    done = sev("session", "--root", ROOT, CHAIN, "nodbg,noks,1.51")
    assert done.stdout.startswith("policy 0x33010003 (nodbg, noks, API 1.51 at least)\n")
    assert not done.stderr
    assert [mode(f"vm_{name}") for name in FILES] == [0o600] * 5
    owner = parse_owner_dh(decoded("vm_godh.b64"))
    session = Session.parse(decoded("vm_session.b64"))
    keys = unwrap_session(key("pdh"), public_point(owner), session, 0x33010003)
    assert pathlib.Path("vm_tk.bin").read_bytes() == keys.build()
    both = pathlib.Path("vm_tek.bin").read_bytes() + pathlib.Path("vm_tik.bin").read_bytes()
    assert both == keys.build()
    for secret in (keys.tek, keys.tik):
        assert secret.reveal().hex() not in done.output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((CHAIN,), "nothing says that the platform's ARK"),
        (("--root", str(VECTORS / "root-4096.pem"), CHAIN), "is not the one that --root has"),
    ],
)
def test_session_when_the_platform_is_not_verified_then_it_is_made_only_if_told_so(
    words: tuple[str, ...], why: str
):
    said = refused("session", *words, "1")
    assert why in said
    assert said.endswith("--unverified makes a session for it in spite of that")
    assert not pathlib.Path("vm_tk.bin").exists()
    done = sev("session", "--unverified", CHAIN, "1")
    assert "nothing says that this is a platform to be trusted" in done.stderr
    assert pathlib.Path("vm_tk.bin").exists()


def test_session_when_a_byte_of_the_chain_is_altered_then_it_is_refused():
    pathlib.Path(CHAIN).write_bytes(flipped(chain().export, 0x414 + 20))
    assert "PDH certificate: signature of the PEK is wrong" in refused(
        "session", "--root", ROOT, CHAIN, "1"
    )


def test_session_when_a_file_is_there_then_none_is_written():
    pathlib.Path("guest_tik.bin").write_bytes(b"precious")
    said = refused("session", "--name", "guest", "--root", ROOT, CHAIN, "1")
    assert said.startswith("guest_tik.bin: is there already")
    assert sorted(path.name for path in pathlib.Path().glob("guest*")) == ["guest_tik.bin"]
    sev("session", "--name", "guest", "--root", ROOT, CHAIN, "1", "--force")
    assert len(pathlib.Path("guest_tik.bin").read_bytes()) == 16


def test_session_when_a_directory_is_given_then_the_files_are_there():
    pathlib.Path("out").mkdir()
    sev("session", "-d", "out", "--root", ROOT, CHAIN, "1")
    assert sorted(path.name for path in pathlib.Path("out").iterdir()) == sorted(
        f"vm_{name}" for name in FILES
    )
    assert "the directory nowhere is not there" in refused(
        "session", "-d", "nowhere", "--root", ROOT, CHAIN, "1"
    )


def test_session_when_the_policy_wants_a_newer_platform_then_it_warns():
    done = sev("session", "--root", ROOT, CHAIN, "1.56")
    assert "asks for API 1.56 at least, and the platform's certificate says 1.55" in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((CHAIN, "nodebug"), "no part of a policy"),
        ((CHAIN, "0x100000000"), "does not fit"),
        (("--unverified", "--root", ROOT, CHAIN, "1"), "leave out --root"),
        (("--name", "a/b", "--root", ROOT, CHAIN, "1"), "--directory says where"),
        (("--name", "", "--root", ROOT, CHAIN, "1"), "--directory says where"),
    ],
)
def test_session_when_it_is_misused_then_it_says_how(words: tuple[str, ...], why: str):
    assert why in misused("session", *words)


# -- measure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), BOOT, BOOT[:2], (*BOOT[:4],)])
@pytest.mark.parametrize("output", ["hex", "base64"])
def test_measure_when_sev_snp_measure_measures_it_then_the_same(
    folder: pathlib.Path, words: tuple[str, ...], output: str
):
    more = ("--output-format", output)
    theirs = snp_measure(folder, "--mode", "sev", "--ovmf", "fw", *words, *more)
    assert sev("measure", "--firmware", "fw", *words, *more).output.strip() == theirs
    assert sev("measure", "--ovmf", "fw", *words, *more).output.strip() == theirs


@pytest.mark.parametrize(
    "processor",
    [
        ("--vcpu-type", "EPYC-Milan-v1"),
        ("--vcpu-family", "25", "--vcpu-model", "1", "--vcpu-stepping", "1"),
        ("--vcpu-sig", "0xa00f11"),
    ],
)
def test_measure_when_the_guest_is_of_sev_es_then_the_same(
    folder: pathlib.Path, processor: tuple[str, ...]
):
    words = ("--vcpus", "3", *processor)
    theirs = snp_measure(folder, "--mode", "seves", "--ovmf", "fw", *words, "--dump-vmsa")
    assert sev("measure", "-f", "fw", *words, "--init", "init2").output.strip() == theirs
    assert sev("measure", "-f", "fw", *words).output.strip() != theirs
    dumps = ("--vmsa-cpu0", "vmsa0.bin", "--vmsa-cpu1", "vmsa1.bin")
    assert sev("measure", "-f", "fw", "--num-cpus", "3", *dumps).output.strip() == theirs


def measurement(*words: str, policy: str = "1", keys: tuple[str, ...] = ("--tk", "tk")) -> str:
    fixed = ("--mnonce", MNONCE.hex(), "--output-format", "base64", *VERSION_WORDS)
    done = sev("measure", *words, "--policy", policy, *keys, *fixed)
    return done.output.strip()


@pytest.mark.parametrize(
    "keys", [("--tk", "tk"), ("--tik", "tik"), ("--tik", "tik", "--tek", "tek")]
)
@pytest.mark.parametrize("boot", [(), BOOT])
def test_measure_when_keys_are_given_then_libvirts_validator_accepts_it(
    require: Require, folder: pathlib.Path, boot: tuple[str, ...], keys: tuple[str, ...]
):
    text = measurement("-f", "fw", *boot, keys=keys)
    theirs = tuple("--cmdline" if word == "--append" else word for word in boot)
    words = ("--measurement", text, *VERSION_WORDS, "--firmware", "fw", "--tk", "tk", *theirs)
    assert validate(require, folder, *words, "--policy", "1").stdout == LOOKS_GOOD
    assert validate(require, folder, *words, "--policy", "3").returncode == MISMATCH


def test_measure_when_processors_are_measured_then_libvirts_validator_accepts_it(
    require: Require, folder: pathlib.Path
):
    processor = ("--cpu-family", "23", "--cpu-model", "49", "--cpu-stepping", "0")
    text = measurement("-f", "fw", *BOOT, "--num-cpus", "4", *processor, policy="nodbg,es")
    theirs = tuple("--cmdline" if word == "--append" else word for word in BOOT)
    words = (*VERSION_WORDS, "--firmware", "fw", "--tk", "tk", *theirs, "--policy", "5")
    built = ("--measurement", text, "--num-cpus", "4", *processor)
    assert validate(require, folder, *words, *built).stdout == LOOKS_GOOD


def test_measure_when_processors_were_dumped_then_both_validators_accept_it(
    require: Require, folder: pathlib.Path
):
    words = ("--vcpus", "2", "--vcpu-type", "EPYC", "--ovmf", "fw")
    snp_measure(folder, "--mode", "seves", *words, "--dump-vmsa")
    text = measurement(*words, "--init", "init2", policy="5")
    dumps = ("--num-cpus", "2", "--vmsa-cpu0", "vmsa0.bin", "--vmsa-cpu1", "vmsa1.bin")
    wanted = (*VERSION_WORDS, "--firmware", "fw", "--tk", "tk", "--policy", "5", *dumps)
    assert validate(require, folder, "--measurement", text, *wanted).stdout == LOOKS_GOOD
    sev("validate", text, *wanted)
    exchanged = (*wanted[:-4], "--vmsa-cpu0", "vmsa1.bin", "--vmsa-cpu1", "vmsa0.bin")
    assert validate(require, folder, "--measurement", text, *exchanged).returncode == MISMATCH
    sev("validate", text, *exchanged, status=1)


def test_measure_when_a_digest_is_given_then_no_file_is_needed():
    digest = hashlib.sha256(FIRMWARE).hexdigest()
    assert measurement("--launch-digest", digest) == measurement("-f", "fw")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "give --firmware"),
        (("-f", "fw", "--launch-digest", "00" * 32), "give one of them"),
        (("--launch-digest", "00" * 31), "expected 64 hexadecimal digits: 32 bytes"),
        (("-f", "fw", "--initrd", "initrd"), "--initrd and --append go with --kernel"),
        (("-f", "fw", "--append", "quiet"), "--initrd and --append go with --kernel"),
        (("-f", "fw", "--tk", "tk"), "needs --policy, --api-major, --mnonce too"),
        (("-f", "fw", "--mnonce", "00" * 16), "needs --tik or --tk too"),
        (("-f", "fw", "--api-major", "1"), "--api-minor and --build-id go together"),
        (("-f", "fw", "--tk", "tk", "--tik", "tik"), "leave out --tik and --tek"),
        (("-f", "fw", "--vcpus", "2"), "describe the processors in one way"),
        (("-f", "fw", "--vcpu-type", "EPYC"), "give --vcpus"),
        (("-f", "fw", "--vcpus", "0", "--vcpu-type", "EPYC"), "0 is not in the range"),
        (
            ("-f", "fw", "--vcpus", "1", "--vcpu-type", "EPYC", "--vcpu-sig", "1"),
            "give --vcpu-type, or",
        ),
        (("-f", "fw", "--vcpus", "1", "--vcpu-family", "25"), "give --vcpu-type, or"),
        (
            ("-f", "fw", "--vcpus", "1", "--vcpu-type", "EPYC", "--vmsa-cpu0", "fw"),
            "describe the processors in one way",
        ),
        (
            ("-f", "fw", "--vcpus", "1", "--vcpu-type", "EPYC", "--vmsa-cpu1", "fw"),
            "--vmsa-cpu1 goes with",
        ),
        (("-f", "fw", "--vcpus", "1", "--vcpu-sig", "0x1ffffffff"), "is no signature"),
        (("-f", "fw", "--policy", "5"), "measures the processors; give --vcpus"),
        (("-f", "fw", "--policy", "1", "--vcpus", "1"), "measures no processors; leave out"),
    ],
)
def test_measure_when_it_is_misused_then_it_says_how(words: tuple[str, ...], why: str):
    assert why in misused("measure", *words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-f", "nowhere"), "nowhere: cannot be read"),
        (("-f", "fw", "--vcpus", "1", "--vcpu-type", "Opteron_G5"), "Opteron_G5 is not known"),
        (("-f", "fw", "--vcpus", "2", "--vmsa-cpu0", "tk"), "has 32 bytes, expected 4096"),
        (("-f", "fw", "--tk", "tik"), "tik: 16 bytes, expected a key of 32 bytes"),
        (("-f", "fw", "--tik", "tk"), "tk: too long, expected at most 16 bytes"),
        (("-f", "bare", "--vcpus", "2", "--vcpu-type", "EPYC"), "no SEV-ES reset block"),
        (("-f", "cut"), "cut or damaged"),
    ],
)
def test_measure_when_a_file_is_wrong_then_it_says_how(words: tuple[str, ...], why: str):
    pathlib.Path("bare").write_bytes(firmware(footer=b""))
    image = bytearray(FIRMWARE)
    image[-32 - 18] += 1
    pathlib.Path("cut").write_bytes(bytes(image))
    more = ("--kernel", "kernel") if "cut" in words else ()
    assert why in refused("measure", *words, *more)


def test_measure_when_the_firmware_takes_no_hashes_then_it_warns():
    pathlib.Path("bare").write_bytes(firmware(footer=b""))
    done = sev("measure", "-f", "bare", "--kernel", "kernel")
    assert "QEMU refuses kernel-hashes=on" in done.stderr
    assert len(done.stdout.strip()) == 64


# -- validate -------------------------------------------------------------------------------------

WANTED = ("--policy", "1", *VERSION_WORDS, "--tk", "tk", "-f", "fw")


def test_validate_when_it_is_what_was_wanted_then_status_0():
    done = sev("validate", measurement("-f", "fw"), *WANTED)
    assert done.output == "the measurement is that of the wanted launch\n"


@pytest.mark.parametrize(
    ("made", "wanted", "what"),
    [
        (("-f", "fw"), BOOT, "the kernel was not measured (kernel-hashes=on is missing"),
        (("-f", "fw", *BOOT[:5], "loud"), BOOT, "no usual mistake explains it"),
        (("-f", "fw", *BOOT[:4]), BOOT, "the command line was empty"),
        (("-f", "other"), (), "no usual mistake explains it"),
    ],
)
def test_validate_when_it_is_another_launch_then_status_1_and_why(
    made: tuple[str, ...], wanted: tuple[str, ...], what: str
):
    pathlib.Path("other").write_bytes(flipped(FIRMWARE, 77))
    done = sev("validate", measurement(*made), *WANTED, *wanted, status=1)
    assert done.stderr.startswith("hcalld: the measurement is not that of the wanted launch\n")
    assert what in done.stderr
    assert not done.stdout
    short = sev("validate", measurement(*made), *WANTED, *wanted, "--no-diagnose", status=1)
    assert what not in short.stderr


def test_validate_when_the_policy_was_another_then_it_is_named():
    done = sev("validate", measurement("-f", "fw", policy="noks"), *WANTED, status=1)
    assert "it would be if: the guest's policy is 0x2 (noks), not 0x1 (nodbg)\n" in done.stderr


def test_validate_when_a_digest_is_given_then_it_is_compared():
    digest = hashlib.sha256(FIRMWARE).hexdigest()
    words = ("--policy", "1", *VERSION_WORDS, "--tk", "tk", "--launch-digest")
    sev("validate", measurement("-f", "fw"), *words, digest)
    sev("validate", measurement("-f", "fw"), *words, digest[::-1], status=1)
    assert "give one of them" in misused("validate", "x" * 64, *WANTED, "--launch-digest", digest)


def test_validate_when_something_is_missing_then_it_says_what():
    good = measurement("-f", "fw")
    assert "give --tik or --tk" in misused("validate", good, *VERSION_WORDS, "--policy", "1")
    assert "Missing option '--policy'" in misused("validate", good, *VERSION_WORDS)
    assert "Missing option '--api-major'" in misused("validate", good, "--policy", "1")
    for text in ("", "AAAA", good[:-4], "!" * 64):
        assert "is no measurement; expected 48 bytes in base64" in refused(
            "validate", text, *WANTED
        )


# -- secret ---------------------------------------------------------------------------------------

TO = ("--header", "head", "--payload", "body")


def opened(text: str) -> bytes:
    packet = Packet(PacketHeader.parse(decoded("head")), decoded("body"))
    blob = MeasurementBlob.parse(base64.b64decode(text))
    return open_secret(
        KEYS,
        packet,
        guest_size=len(packet.payload),
        measurement=blob.measurement,
        api=VERSION.api,
    )


def test_secret_when_the_launch_is_the_wanted_one_then_its_platform_opens_it():
    text = measurement("-f", "fw")
    done = sev("secret", text, *SECRETS, *WANTED, *TO)
    (entry,) = parse_secrets(opened(text))
    assert (entry.guid, entry.value) == (LUKS_KEY_GUID, b"open sesame")
    said = json.loads(done.stdout)
    assert said == {
        "execute": "sev-inject-launch-secret",
        "arguments": {
            "packet-header": pathlib.Path("head").read_text().strip(),
            "secret": pathlib.Path("body").read_text().strip(),
        },
    }
    assert (mode("head"), mode("body")) == (0o600, 0o600)
    assert "sesame" not in done.output


def test_secret_when_the_launch_is_another_then_nothing_is_packed():
    done = sev("secret", measurement("-f", "fw", policy="3"), *SECRETS, *WANTED, *TO, status=1)
    assert "so no secret is packed; hcalld sev validate looks for why" in done.stderr
    assert not pathlib.Path("head").exists()
    assert not pathlib.Path("body").exists()


def test_secret_when_the_firmware_has_no_place_for_it_then_one_is_asked_for():
    pathlib.Path("fw").write_bytes(firmware(HASHES))
    text = measurement("-f", "fw")
    done = sev("secret", text, *SECRETS, *WANTED, *TO)
    assert "names no place for secrets: give --gpa" in done.stderr
    done = sev("secret", text, *SECRETS, *WANTED, *TO, "--force", "--gpa", "0x80d000")
    assert not done.stderr
    assert json.loads(done.stdout)["arguments"]["gpa"] == 0x80D000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*SECRETS, *TO, "--gpa", "there"), "is no address"),
        (("luks-key", *TO), "'luks-key' is no secret; expected NAME:FILE"),
        (("luks-key:", *TO), "expected NAME:FILE"),
        ((*SECRETS, "--header", "same", "--payload", "./same"), "are one file; name two"),
        (TO, "Missing argument 'NAME:FILE...'"),
    ],
)
def test_secret_when_it_is_misused_then_it_says_how(words: tuple[str, ...], why: str):
    assert why in misused("secret", measurement("-f", "fw"), *WANTED, *words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("luks:passphrase",), "'luks' names no secret; expected a GUID, or luks-key"),
        (("luks-key:nowhere",), "nowhere: cannot be read"),
        (("luks-key:empty",), "empty: empty, expected a secret"),
        (("luks-key:large",), "large: too long, expected at most 16384 bytes"),
        ((*SECRETS, *SECRETS), "two secrets have one GUID"),
    ],
)
def test_secret_when_one_cannot_be_packed_then_it_says_why(words: tuple[str, ...], why: str):
    pathlib.Path("empty").touch()
    pathlib.Path("large").write_bytes(bytes(16385))
    assert why in refused("secret", measurement("-f", "fw"), *words, *WANTED, *TO)
    assert not pathlib.Path("head").exists()


def test_secret_when_only_the_tik_is_known_then_it_says_what_is_missing():
    words = ("--policy", "1", *VERSION_WORDS, "-f", "fw", "--tik", "tik")
    assert "give --tk, or --tek and --tik" in misused(
        "secret", measurement("-f", "fw"), *SECRETS, *words, *TO
    )


# -- report ---------------------------------------------------------------------------------------


@pytest.fixture
def report() -> str:
    made = make_report(
        key("pek"),
        mnonce=MNONCE,
        launch_digest=hashlib.sha256(FIRMWARE).digest(),
        policy=Policy.NODBG,
    )
    pathlib.Path("report").write_bytes(made.build())
    return "report"


PLATFORM = ("--sev", CHAIN, "--root", ROOT)


def test_report_when_the_platform_signed_it_then_it_is_shown_and_verified(report: str):
    expected = ("--mnonce", MNONCE.hex(), "--firmware", "fw", "--policy", "nodbg")
    said = sev("report", report, *PLATFORM, *expected).output
    assert said == (
        f"mnonce         {MNONCE.hex()}\n"
        f"launch digest  {hashlib.sha256(FIRMWARE).hexdigest()}\n"
        "policy         0x1 (nodbg)\n"
        "verified       yes\n"
    )
    data = pathlib.Path(report).read_bytes()
    pathlib.Path(report).write_bytes(base64.b64encode(data) + b"\n")
    assert sev("report", report, *PLATFORM).output == said
    shown = json.loads(sev("report", report, *PLATFORM, "--json").output)
    assert (shown["policy"], shown["problems"]) == (1, [])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--mnonce", "00" * 16), f"the mnonce is {MNONCE.hex()}, expected {'00' * 16}"),
        (("--launch-digest", "00" * 32), "the launch digest is "),
        (("--policy", "3"), "the policy is 0x1, expected 0x3"),
    ],
)
def test_report_when_it_is_of_another_guest_then_it_says_so(
    report: str, words: tuple[str, ...], why: str
):
    done = sev("report", report, *PLATFORM, *words, status=1)
    assert "verified       no\n" in done.stdout
    assert why in done.stderr


@pytest.mark.parametrize("offset", [0, 16, 47, 48, 64, 136])
def test_report_when_a_byte_is_altered_then_it_is_not_verified(report: str, offset: int):
    path = pathlib.Path(report)
    path.write_bytes(flipped(path.read_bytes(), offset))
    done = sev("report", report, *PLATFORM, status=1)
    assert "attestation report: signature is wrong" in done.stderr


def test_report_when_the_chain_is_not_trusted_then_only_told_so_it_is_verified(report: str):
    assert "is to be trusted" in sev("report", report, "--sev", CHAIN, status=1).stderr
    assert "verified       yes" in sev("report", report, "--sev", CHAIN, "--unverified").stdout
    assert "leave out --root" in misused("report", report, *PLATFORM, "--unverified")


def test_report_when_it_is_none_then_it_says_what_is_expected():
    assert refused("report", "kernel", *PLATFORM).startswith("kernel: attestation report: length")


# -- owners ---------------------------------------------------------------------------------------


def test_oca_when_it_signs_a_request_then_the_platform_takes_it():
    pathlib.Path("csr").write_bytes(make_csr(key("pek"), API).build())
    sev("oca", "make", "oca.cert", "oca.key")
    assert (mode("oca.cert"), mode("oca.key")) == (0o600, 0o600)
    sev("oca", "sign", "--oca", "oca.cert", "--key", "oca.key", "csr", "pek.cert")
    oca, pek = (
        SevCertificate.parse(pathlib.Path(name).read_bytes()) for name in ("oca.cert", "pek.cert")
    )
    check_import(pek, oca, key("pek").public)
    again = ("--oca", "oca.cert", "--key", "oca.key", "pek.cert", "again")
    assert "signed already" in refused("oca", "sign", *again)
    other = ("--oca", "oca.cert", "--key", "tik", "csr", "again")
    assert "tik: no private key that can be read" in refused("oca", "sign", *other)
    assert "is there already" in refused("oca", "make", "oca.cert", "new.key")
    assert "are one file; name two" in misused("oca", "make", "new", "./new")


# -- QEMU -----------------------------------------------------------------------------------------


def test_qemu_args_when_all_is_given_then_it_is_one_line_for_a_shell(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sevhost, "cbitpos", lambda: 51)
    (folder / "f w").write_bytes(firmware())
    done = sev(
        *("qemu-args", "--policy", "5", "--dh-cert-file", "godh", "--session-file", "a,b"),
        *("--firmware", "f w", "--kernel", "k", "--initrd", "i", "--append", "quiet 'x'"),
        *("--socket", "sock", "--platform", "p", "--library", "lib.so"),
    )
    assert done.output.count("\n") == 1
    assert shlex.split(done.output) == [
        f"LD_PRELOAD={folder}/lib.so",
        f"HCALLD_SEV_SOCKET={folder}/sock",
        "HCALLD_SEV_PLATFORM=p",
        "qemu-system-x86_64",
        "-accel",
        "kvm",
        "-object",
        "sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x5,"
        f"dh-cert-file={folder}/godh,session-file={folder}/a,,b,kernel-hashes=on",
        "-machine",
        "confidential-guest-support=sev0",
        *sevhost.HIDDEN_LEAF,
        "-drive",
        f"if=pflash,format=raw,unit=0,readonly=on,file={folder}/f w",
        "-kernel",
        f"{folder}/k",
        "-initrd",
        f"{folder}/i",
        "-append",
        "quiet 'x'",
    ]


def test_qemu_args_when_the_firmware_has_no_place_for_hashes_then_no_kernel(folder: pathlib.Path):
    (folder / "plain").write_bytes(bytes(4096))
    words = ("qemu-args", "--policy", "1", "--cbitpos", "0", "--firmware", "plain")
    assert "no place for the hashes" in refused(*words, "--kernel", "k")
    assert "plain" in sev(*words).output


def test_qemu_args_when_the_firmware_is_damaged_then_it_is_named(folder: pathlib.Path):
    whole = firmware()
    # The length of its table.
    (folder / "damaged").write_bytes(whole[:-50] + b"\xff\xff" + whole[-48:])
    words = ("qemu-args", "--policy", "1", "--cbitpos", "0", "--firmware", "damaged")
    assert refused(*words, "--kernel", "k").startswith("damaged: the image is cut or damaged")


def test_qemu_args_when_little_is_given_then_defaults_are_the_daemons(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preloading, "_IN_TREE", tmp_path / "nowhere")
    done = sev("qemu-args", "--policy", "1", "--cbitpos", "0")
    assert "libhcalld-sev.so is not built here" in done.stderr
    words = shlex.split(done.stdout)
    assert words[:3] == [
        "LD_PRELOAD=libhcalld-sev.so",
        f"HCALLD_SEV_SOCKET={tmp_path}/run/hcalld.sock",
        "qemu-system-x86_64",
    ]
    built = tmp_path / "libhcalld-sev.so"
    built.touch()
    monkeypatch.setattr(preloading, "_IN_TREE", built)
    words = shlex.split(sev("qemu-args", "--policy", "1", "--cbitpos", "0").output)
    assert words[0] == f"LD_PRELOAD={built}"


def test_qemu_args_when_this_machine_cannot_be_asked_then_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse() -> int:
        raise sevhost.SevHostError("this machine is a toaster")

    monkeypatch.setattr(sevhost, "cbitpos", refuse)
    assert refused("qemu-args", "--policy", "1") == "this machine is a toaster; or give --cbitpos"


@pytest.mark.parametrize(
    "words",
    [("--session-file", "s"), ("--dh-cert-file", "d"), ("--initrd", "i"), ("--append", "a")],
)
def test_qemu_args_when_options_belong_together_then_one_alone_is_refused(words: tuple[str, ...]):
    assert (
        "go together" in (said := misused("qemu-args", "--policy", "1", *words))
        or "go with" in said
    )


# -- libvirt's emulator ---------------------------------------------------------------------------


@pytest.fixture
def two_qemus(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[pathlib.Path]:
    """Those that PATH leads to, in order."""
    found = [tmp_path / name / "qemu-system-x86_64" for name in ("first", "second")]
    for path in found:
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(str(path.parent) for path in found))
    return found


@pytest.mark.parametrize(
    "command", [("qemu-args", "--policy", "1", "--cbitpos", "0"), ("emulator", "qemu")]
)
def test_library_when_the_loader_would_part_its_name_then_it_is_refused(
    folder: pathlib.Path, command: tuple[str, ...]
):
    said = refused(*command, "--socket", "sock", "--library", "my library/lib.so")
    assert "my library/lib.so: LD_PRELOAD parts names at blanks and colons" in said
    assert not (folder / "qemu").exists()


def test_emulator_when_written_then_others_run_it_and_it_runs_qemu(
    folder: pathlib.Path, two_qemus: list[pathlib.Path]
):
    sev("emulator", "--socket", "sock", "--platform", "p", "--library", "lib.so", "qemu")
    assert mode("qemu") == 0o755
    variables = sevhost.sev_environment(folder / "lib.so", folder / "sock", platform_name="p")
    assert (folder / "qemu").read_text() == sevhost.emulator_script(two_qemus[0], variables)


def test_emulator_when_it_is_first_in_the_path_then_it_does_not_start_itself(
    two_qemus: list[pathlib.Path],
):
    first, second = two_qemus
    words = ("emulator", "--socket", "sock", "--library", "lib.so")
    # In the place of another program; over one of an earlier time; and found by one elsewhere.
    for out in (str(first), str(first), "elsewhere"):
        sev(*words, "--force", out)
        assert pathlib.Path(out).read_text().endswith(f'exec {second} "$@"\n'), out
    assert "only what this command has written" in refused(*words, "--qemu", str(first), "x")
    assert not pathlib.Path("x").exists()


def test_emulator_when_something_is_in_its_place_then_it_stays(two_qemus: list[pathlib.Path]):
    words = ("emulator", "--socket", "sock", "--library", "lib.so", str(two_qemus[0]))
    assert "is there already; use --force" in refused(*words)
    assert two_qemus[0].read_text() == "#!/bin/sh\n"


def test_emulator_when_there_is_no_qemu_then_it_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused("emulator", "--socket", "sock", "--library", "lib.so", "x")
    assert said.startswith("qemu-system-x86_64: no such program")
    assert "qemu-system-x86, or give --qemu its path" in said
