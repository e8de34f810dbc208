# SPDX-License-Identifier: Apache-2.0
"""dtc, fdtget, cpio, objcopy, OpenSSL and tpm2-tools against ESM blobs and what is in them.

In both directions where there are two. A program that is not installed is a failure.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import random
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.swtpm import Swtpm
from tests.esm import CMDLINE, INITRD, Section, elf, kernel_elf
from tests.vectors.test_esm import BLOBS, located, read

from hcalld.cli.esm.openers import entropy
from hcalld.cli.esm.tpms import TpmSource, tpm_at
from hcalld.core.secret import Secret
from hcalld.crypto import wrapping_key
from hcalld.crypto.lockbox import public_key_pem, seal_key
from hcalld.crypto.signing import load_private_key
from hcalld.crypto.wrapping_key import Provisioned, WrappingKey, provision
from hcalld.domain.esm import blob
from hcalld.domain.esm.authoring import archive
from hcalld.domain.esm.digests import digests_of, open_digests
from hcalld.domain.esm.flat_kernel import flat_kernel
from hcalld.domain.esm.unlock import unlock_with_key
from hcallproto.payloads import fdt
from hcallproto.payloads.fdt import Fdt, FdtError, Node
from hcallproto.payloads.tpm import TpmRefusedError

Require = Callable[[str], pathlib.Path]


def run(*words: str | pathlib.Path, stdin: bytes = b"", cwd: pathlib.Path | None = None) -> bytes:
    done = subprocess.run(
        [os.fspath(word) for word in words], input=stdin, capture_output=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
    return done.stdout


# -- device trees -------------------------------------------------------------------------------

NAMES = st.text("abcdefgh,._+-0123456789", min_size=1, max_size=12)
VALUES = st.binary(max_size=40)


def nodes(children: st.SearchStrategy[list[Node]]) -> st.SearchStrategy[Node]:
    return st.builds(Node, NAMES, st.dictionaries(NAMES, VALUES, max_size=4), children)


def siblings(node: st.SearchStrategy[Node]) -> st.SearchStrategy[list[Node]]:
    return st.lists(node, max_size=3, unique_by=lambda node: node.name)


CHILDREN = siblings(
    st.recursive(nodes(st.just([])), lambda node: nodes(siblings(node)), max_leaves=8)
)
U64 = st.integers(0, (1 << 64) - 1)
TREES = st.builds(
    Fdt,
    st.builds(Node, st.just(""), st.dictionaries(NAMES, VALUES, max_size=4), CHILDREN),
    st.lists(st.tuples(U64, U64.filter(bool)), max_size=3),
    st.integers(0, 0xFFFFFFFF),
)


@pytest.fixture(scope="module")
def dtc(require: Require) -> Callable[[bytes, str, str], bytes | None]:
    program = require("dtc")

    def convert(data: bytes, form: str, to: str) -> bytes | None:
        # -qqq -f: what dtc thinks of names is not at issue here.
        words = [str(program), "-qqq", "-f", "-I", form, "-O", to, "-"]
        done = subprocess.run(words, input=data, capture_output=True, check=False)
        return None if done.returncode else done.stdout

    return convert


Dtc = Callable[[bytes, str, str], bytes | None]


@settings(max_examples=30)
@given(tree=TREES)
def test_tree_when_dtc_writes_what_it_reads_then_to_the_byte_as_we_do(dtc: Dtc, tree: Fdt):
    built = tree.build()
    assert fdt.parse(built) == tree
    assert dtc(built, "dtb", "dtb") == built


@settings(max_examples=20)
@given(tree=TREES)
def test_tree_when_dtc_writes_it_as_text_and_back_then_we_read_the_same(dtc: Dtc, tree: Fdt):
    tree.boot_cpuid = 0  # which the text does not have
    text = dtc(tree.build(), "dtb", "dts")
    assert text is not None
    made = dtc(text, "dts", "dtb")
    assert made is not None
    assert fdt.parse(made) == tree


@settings(max_examples=30)
@given(tree=TREES, data=st.data())
def test_tree_when_it_is_damaged_then_what_we_take_dtc_takes_as_the_same(
    dtc: Dtc, tree: Fdt, data: st.DataObject
):
    altered = bytearray(tree.build())
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = fdt.parse(bytes(altered))
    except FdtError:
        return
    theirs = dtc(bytes(altered), "dtb", "dtb")
    assert theirs is not None
    assert fdt.parse(theirs) == ours


@pytest.mark.parametrize("name", BLOBS)
def test_blob_when_dtc_and_fdtget_read_it_then_as_we_do(
    dtc: Dtc, require: Require, tmp_path: pathlib.Path, name: str
):
    ours = fdt.parse(read(name))
    assert dtc(read(name), "dtb", "dtb") == ours.build()
    path = tmp_path / "blob"
    path.write_bytes(read(name))
    fdtget = require("fdtget")
    listed = run(fdtget, "-l", path, "/lockboxes").decode().split()
    assert listed == [node.name for node in ours.node("/lockboxes").children]
    shown = run(fdtget, "-t", "bx", path, "/digest/digests-fdt", "iv").decode().split()
    assert bytes(int(word, 16) for word in shown) == ours.node("/digest/digests-fdt").raw("iv")


@pytest.mark.parametrize("firmware", ["slof", "vof"])
def test_tree_when_linux_made_it_then_dtc_reads_it_as_we_do(dtc: Dtc, firmware: str):
    theirs = dtc(read(f"{firmware}.dtb"), "dtb", "dtb")
    assert theirs is not None
    assert fdt.parse(theirs) == fdt.parse(read(f"{firmware}.dtb"))


# -- archives -----------------------------------------------------------------------------------


def test_archive_when_cpio_unpacks_it_then_the_blob(require: Require, tmp_path: pathlib.Path):
    made = archive(read("hcalld.blob"))
    run(require("cpio"), "-i", "--quiet", stdin=made, cwd=tmp_path)
    assert (tmp_path / "opt/ibm/pef/esm_blob").read_bytes() == read("hcalld.blob")


def test_archive_when_cpio_makes_it_as_svm_tool_does_then_found(
    require: Require, tmp_path: pathlib.Path
):
    folder = tmp_path / "opt" / "ibm" / "pef"
    folder.mkdir(parents=True)
    (folder / "any name").write_bytes(read("svm-tool.blob"))
    names = run("find", ".", "-print0", cwd=tmp_path)
    words = ("--null", "--create", "--quiet", "--format=newc")
    made = run(require("cpio"), *words, stdin=names, cwd=tmp_path)
    found = located(made + INITRD)
    assert found.blob == read("svm-tool.blob")
    assert (made + INITRD)[found.initrd.start :] == INITRD


# -- kernels ------------------------------------------------------------------------------------


def objcopy(program: pathlib.Path, folder: pathlib.Path, kernel: bytes) -> bytes:
    (folder / "vmlinux").write_bytes(kernel)
    run(program, "-O", "binary", "-S", folder / "vmlinux", folder / "flat")
    return (folder / "flat").read_bytes()


@settings(max_examples=20)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 50), st.binary(min_size=1, max_size=40)), min_size=1, max_size=6
    ),
    bss=st.integers(0, 100),
    endian=st.sampled_from("<>"),
)
def test_kernel_when_objcopy_flattens_it_then_the_same_bytes(
    require: Require,
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, bytes]],
    bss: int,
    endian: str,
):
    program = require("powerpc64le-linux-gnu-objcopy")
    sections: list[Section] = []
    address = 0
    for gap, data in pieces:
        sections.append(Section(address + gap, data))
        address += gap + len(data)
    if bss:
        sections.append(Section(address, b"", bss=bss))
    sections.append(Section(0, b"not loaded", is_loaded=False))
    made = elf(sections, endian)
    assert flat_kernel(made) == objcopy(program, tmp_path_factory.mktemp("elf"), made)


# -- OpenSSL ------------------------------------------------------------------------------------

OAEP = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]


def pkeyutl(openssl: pathlib.Path, *words: str | pathlib.Path, stdin: bytes) -> bytes:
    options = [word for option in OAEP for word in ("-pkeyopt", option)]
    return run(openssl, "pkeyutl", *words, *options, stdin=stdin)


@pytest.mark.parametrize("name", BLOBS)
def test_lockbox_when_openssl_opens_it_then_its_key_opens_the_blob(
    require: Require, tmp_path: pathlib.Path, name: str
):
    openssl = require("openssl")
    (tmp_path / "machine.key").write_bytes(read("machine.key"))
    found = blob.parse(read(name))
    box = found.lockboxes[1]
    words = ("-decrypt", "-inkey", tmp_path / "machine.key")
    key = Secret(pkeyutl(openssl, *words, stdin=box.sealed_key))
    digests = open_digests(found, key)
    flat = objcopy(require("powerpc64le-linux-gnu-objcopy"), tmp_path, read("vmlinux"))
    for digest, data in (
        (digests.kernel, flat),
        (digests.initrd, INITRD),
        (digests.bootargs, CMDLINE.encode()),
    ):
        assert run(openssl, "dgst", "-sha512", "-binary", stdin=data) == digest
    assert run(openssl, "dgst", "-sha256", "-binary", stdin=read("machine.pem")) == box.fingerprint


def test_lockbox_when_openssl_seals_it_then_we_open_it(require: Require, tmp_path: pathlib.Path):
    (tmp_path / "machine.pem").write_bytes(read("machine.pem"))
    words = ("-encrypt", "-pubin", "-inkey", tmp_path / "machine.pem")
    sealed = pkeyutl(require("openssl"), *words, stdin=bytes(range(32)))
    box = blob.Lockbox("lockbox-1", bytes(32), sealed)
    unlocked = unlock_with_key(blob.Blob((box,), None), load_private_key(read("machine.key")))
    assert unlocked.key.reveal() == bytes(range(32))


# -- a TPM --------------------------------------------------------------------------------------


class Tools:
    """tpm2-tools, and our own steps, with one swtpm."""

    def __init__(self, tcti: str, folder: pathlib.Path) -> None:
        self.tcti = tcti
        self.folder = folder
        port = tcti.partition("port=")[2]
        self.ours: TpmSource = tpm_at(f"tcp:127.0.0.1:{port}")

    def run(self, program: str, *words: str, stdin: bytes = b"") -> bytes:
        return run(program, "-T", self.tcti, *words, stdin=stdin, cwd=self.folder)

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return name

    def provision(self) -> Provisioned:
        return self.ours.carry_out(lambda transmit: provision(transmit, entropy))

    def decrypt(self, key: WrappingKey, box: bytes) -> bytes:
        return self.ours.carry_out(
            lambda transmit: wrapping_key.decrypt(transmit, key, box, entropy)
        )

    def policy_session(self) -> None:
        """A session that fulfils branch A but for the password."""
        self.run("tpm2_startauthsession", "--policy-session", "-S", "s.ctx")
        self.run("tpm2_policycommandcode", "-S", "s.ctx", "-L", "a", "TPM2_CC_RSA_Decrypt")
        self.run("tpm2_policyauthvalue", "-S", "s.ctx", "-L", "a")
        assert (self.folder / "a").read_bytes() == wrapping_key.POLICY_USE
        self.write("b", wrapping_key.POLICY_CHANGE)
        self.run("tpm2_policyor", "-S", "s.ctx", "-L", "or", "sha256:a,b")
        assert (self.folder / "or").read_bytes() == wrapping_key.POLICY

    def is_clean(self) -> bool:
        kinds = ("handles-transient", "handles-loaded-session", "handles-saved-session")
        return not any(self.run("tpm2_getcap", kind).strip() for kind in kinds)


@pytest.fixture
def tools(require: Require, tmp_path: pathlib.Path) -> Iterator[Tools]:
    require("tpm2_rsadecrypt")
    with Swtpm(require("swtpm"), tmp_path / "tpm").running() as tcti:
        yield Tools(tcti, tmp_path)


KEY = bytes(range(32))


def test_tpm_when_we_provision_it_then_tpm2_tools_see_and_use_the_key(tools: Tools):
    made = tools.provision()
    assert tools.is_clean()
    shown = tools.run("tpm2_readpublic", "-c", "0x81800001", "-f", "pem", "-o", "p.pem").decode()
    assert (tools.folder / "p.pem").read_bytes() == public_key_pem(made.public)
    assert f"name: {made.key.name.hex()}" in shown
    assert "raw: 0x20c20" in shown
    assert f"authorization policy: {wrapping_key.POLICY.hex()}" in shown.lower()
    handles = tools.run("tpm2_getcap", "handles-persistent").decode().split()
    assert {"0x81800000", "0x81800001"} <= set(handles)

    tools.write("box", seal_key(made.public, Secret(KEY)))
    tools.policy_session()
    password = made.key.password.reveal().hex()
    words = ("-c", "0x81800001", "-s", "null", "-p", f"session:s.ctx+hex:{password}")
    tools.run("tpm2_rsadecrypt", *words, "-o", "key", "box")
    assert (tools.folder / "key").read_bytes() == KEY
    tools.run("tpm2_flushcontext", "s.ctx")


def test_tpm_when_the_policy_is_not_fulfilled_then_it_refuses_the_tools(tools: Tools):
    made = tools.provision()
    tools.write("box", seal_key(made.public, Secret(KEY)))
    password = made.key.password.reveal().hex()
    words = ["tpm2_rsadecrypt", "-T", tools.tcti, "-c", "0x81800001", "-p", f"hex:{password}"]
    done = subprocess.run([*words, "box"], cwd=tools.folder, capture_output=True, check=False)
    assert done.returncode
    assert KEY not in done.stdout


def test_tpm_when_tpm2_tools_provision_it_then_we_use_the_key(tools: Tools):
    """The template of skiboot, by another's hand."""
    parent = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
    words = ("-C", "p", "-g", "sha256", "-G", "rsa2048:null:aes128cfb", "-a", parent)
    tools.run("tpm2_createprimary", *words, "-c", "parent.ctx")
    tools.run("tpm2_evictcontrol", "-C", "p", "-c", "parent.ctx", "0x81800000")
    tools.run("tpm2_flushcontext", "-t")
    tools.write("policy", wrapping_key.POLICY)
    attributes = "sensitivedataorigin|noda|encryptedduplication|decrypt"
    words = ("-C", "0x81800000", "-g", "sha256", "-G", "rsa2048:oaep-sha256:null", "-a", attributes)
    files = ("-L", "policy", "-u", "pub", "-r", "priv", "-p", "hex:" + "a5" * 16)
    tools.run("tpm2_create", *words, *files)
    tools.run("tpm2_load", "-C", "0x81800000", "-u", "pub", "-r", "priv", "-c", "k.ctx", "-n", "n")
    tools.run("tpm2_evictcontrol", "-C", "p", "-c", "k.ctx", "0x81800001")
    tools.run("tpm2_flushcontext", "-t")
    key = WrappingKey(Secret(b"\xa5" * 16), (tools.folder / "n").read_bytes())
    public = tools.ours.carry_out(lambda transmit: wrapping_key.read_public(transmit, key))
    box = seal_key(public, Secret(KEY))
    assert tools.decrypt(key, box) == KEY
    # And it is a key that we can give another password.
    again = tools.provision()
    assert not again.is_new
    assert again.key.name == key.name
    assert tools.decrypt(again.key, box) == KEY
    with pytest.raises(TpmRefusedError, match="wrong password"):
        tools.decrypt(key, box)
    assert tools.is_clean()


def test_tpm_when_it_was_off_then_the_key_is_still_there(require: Require, tmp_path: pathlib.Path):
    tpm = Swtpm(require("swtpm"), tmp_path / "tpm")
    with tpm.running() as tcti:
        made = Tools(tcti, tmp_path).provision()
    box = seal_key(made.public, Secret(KEY))
    with tpm.running() as tcti:
        assert Tools(tcti, tmp_path).decrypt(made.key, box) == KEY
    other = Swtpm(require("swtpm"), tmp_path / "other")
    read_public = functools.partial(wrapping_key.read_public, key=made.key)
    with other.running() as tcti:
        source = Tools(tcti, tmp_path).ours
        with pytest.raises(TpmRefusedError, match="no object"):
            source.carry_out(read_public)


def test_tpm_when_pcr_16_was_extended_then_the_password_stays(tools: Tools):
    made = tools.provision()
    tools.run("tpm2_pcrextend", "16:sha256=" + "11" * 32)
    with pytest.raises(TpmRefusedError, match="POLICY_OR"):
        tools.provision()
    assert tools.is_clean()
    box = seal_key(made.public, Secret(KEY))
    assert tools.decrypt(made.key, box) == KEY


def test_tpm_when_lockboxes_are_damaged_then_it_refuses_and_nothing_is_left(tools: Tools):
    made = tools.provision()
    box = seal_key(made.public, Secret(KEY))
    source = random.Random(16)
    for _ in range(8):
        altered = bytearray(box)
        altered[source.randrange(len(box))] ^= 1 << source.randrange(8)
        with pytest.raises(TpmRefusedError):
            tools.decrypt(made.key, bytes(altered))
    for size in (0, 1, 255):
        with pytest.raises(TpmRefusedError):
            tools.decrypt(made.key, box[:size])
    assert tools.is_clean()


def test_flat_kernel_when_hashed_then_what_the_blob_has(require: Require, tmp_path: pathlib.Path):
    flat = objcopy(require("powerpc64le-linux-gnu-objcopy"), tmp_path, kernel_elf())
    assert digests_of(flat, INITRD, CMDLINE).kernel == hashlib.sha512(flat).digest()
    assert flat == flat_kernel(kernel_elf())
