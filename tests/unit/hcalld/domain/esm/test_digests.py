# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib

import pytest
from tests.esm import CMDLINE, INITRD, kernel_elf, private_key
from tests.unit.hcalld.domain.esm.guest import MACHINE, blob, digests

from hcalld.core.secret import Secret
from hcalld.domain.esm.blob import Blob
from hcalld.domain.esm.digests import RTAS_TEXT, open_digests, open_file, parse, sha512
from hcalld.domain.esm.errors import BlobError, EsmError
from hcalld.domain.esm.flat_kernel import flat_kernel
from hcalld.domain.esm.unlock import unlock_with_key
from hcallproto.payloads import fdt


def key() -> Secret:
    return unlock_with_key(blob(), private_key(MACHINE)).key


def test_rtas_when_hashed_then_it_is_the_constant_of_svm_tool():
    # svm_tool/esm_digest/rtas_sha512.py
    assert sha512(RTAS_TEXT).hex() == (
        "189698638580422ea58a0968ecce2436daeb2c91a339c14b0ab2bc623c1649fe"
        "274074a4a92679dc61e5528d68778ba3c82f1b1f7e9a5958238b80497fc37f48"
    )


def test_digests_when_made_then_of_the_bytes_themselves():
    image = flat_kernel(kernel_elf())
    assert digests().kernel == hashlib.sha512(image).digest()
    assert digests().kernel_size == len(image)
    assert digests().initrd == hashlib.sha512(INITRD).digest()
    assert digests().bootargs == hashlib.sha512(CMDLINE.encode()).digest()
    assert parse(digests().build()) == digests()


def test_digests_when_sealed_then_the_key_opens_them():
    assert open_digests(blob(), key()) == digests()
    assert open_file(blob(), "rootd", key()) == b"a passphrase"
    assert open_file(blob(), "empty", key()) == b""


def test_digests_when_there_are_none_or_they_were_altered_then_refused():
    with pytest.raises(BlobError, match="it has no digests"):
        open_digests(Blob(blob().lockboxes, None), key())
    with pytest.raises(BlobError, match="digests: altered"):
        open_digests(blob(), Secret(bytes(32)))
    swapped = dataclasses.replace(blob(), digests=blob().files["rootd"])
    with pytest.raises(BlobError, match="digests: 12 bytes"):
        open_digests(swapped, key())


def test_file_when_it_is_not_there_or_altered_then_refused():
    with pytest.raises(EsmError, match="no file 'x'"):
        open_file(blob(), "x", key())
    sealed = dataclasses.replace(blob().files["rootd"], mac=bytes(16))
    with pytest.raises(BlobError, match="file rootd: altered"):
        open_file(dataclasses.replace(blob(), files={"rootd": sealed}), "rootd", key())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("algorithm", b"SHA256\0", "algorithm 'SHA256', expected SHA512"),
        ("rtas", bytes(63), "rtas .* has 63 bytes"),
        ("kernel", bytes(65), "kernel .* has 65 bytes"),
        ("kernel-size", bytes(8), "kernel-size .* has 8 bytes"),
        ("initrd", None, "no property initrd"),
        ("bootargs", None, "no property bootargs"),
    ],
)
def test_digests_when_something_is_wrong_then_refused(name: str, value: bytes | None, why: str):
    tree = fdt.parse(digests().build())
    node = tree.node("/digests")
    if value is None:
        del node.properties[name]
    else:
        node.properties[name] = value
    with pytest.raises(BlobError, match=why):
        parse(tree.build())
