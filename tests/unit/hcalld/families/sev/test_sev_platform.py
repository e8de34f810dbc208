# SPDX-License-Identifier: Apache-2.0
"""What is done with ``/dev/sev``: certificates, owners, resets, and a store that fails."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
from tests.sev_platform import flipped, key, root, verify_chain
from tests.unit.hcalld.families.sev.stages import (
    CALLS,
    ES,
    OK,
    give,
    host,
    initialized,
    refused,
    running,
    succeed,
)

from hcalld.core.effects import ChangePlatform, Flush
from hcalld.crypto.sev.certificates import make_oca, sign
from hcalld.crypto.sev.chains import Chain, links
from hcalld.domain.sev.settings import SevSettings
from hcalld.testing.sev import SevClient, SevHost
from hcallproto.abi.families import sev
from hcallproto.abi.returns import SevCode
from hcallproto.payloads.sev import (
    EMPTY_SLOT,
    Api,
    PlatformState,
    SevCertificate,
    Usage,
)

OWNER = 1
CONFIG_ES = 1 << 8


def export(client: SevClient) -> Chain:
    """PDH_CERT_EXPORT, with the root."""
    pdh, chain = client.room(2084), client.room(6252)
    assert succeed(
        client,
        sev.PDH_CERT_EXPORT,
        pdh_cert_address=pdh,
        pdh_cert_len=2084,
        cert_chain_address=chain,
        cert_chain_len=6252,
    ) == {"pdh_cert_len": 2084, "cert_chain_len": 6252}
    memory = client.memory
    roots = client.host.platform.identity.roots
    return Chain.parse(memory.read(pdh, 2084), memory.read(chain, 6252), roots)


def csr(client: SevClient) -> SevCertificate:
    room = client.room(2084)
    assert succeed(client, sev.PEK_CSR, address=room, length=4096) == {"length": 2084}
    return SevCertificate.parse(client.memory.read(room, 2084))


def take(client: SevClient, pek: bytes, oca: bytes) -> SevCode:
    """PEK_CERT_IMPORT; a refusal must leave everything as it was."""
    fields = {
        "pek_cert_address": client.put(pek),
        "pek_cert_len": len(pek),
        "oca_cert_address": client.put(oca),
        "oca_cert_len": len(oca),
    }
    before = client.snapshot()
    code = client.command(sev.PEK_CERT_IMPORT, **fields).code
    assert code is OK or client.snapshot() == before
    return code


class Import(NamedTuple):
    """What an owner makes of a signing request."""

    pek: bytes
    oca: bytes


def owned_by(client: SevClient, name: str = "owner") -> Import:
    oca = key(name)
    return Import(sign(csr(client), Usage.OCA, oca).build(), make_oca(oca).build())


def test_an_owner_says_nothing_of_the_platforms_version():
    client = host().connect()
    owner = key("owner")
    changed = dataclasses.replace(csr(client), api=Api(9, 9))
    signed = sign(changed, Usage.OCA, owner).build()
    assert take(client, signed, make_oca(owner).build()) is SevCode.INVALID_CERTIFICATE
    assert take(client, *owned_by(client)) is OK


# -- certificates -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 4096])
def test_every_link_of_what_is_exported_holds(bits: int):
    client = host(bits=bits).connect()
    chain = export(client)
    verify_chain(chain)
    assert (chain.ask, chain.ark) == (root(bits).ask, root(bits).ark)
    assert {cert.api for cert in (chain.pdh, chain.pek, chain.oca, chain.cek)} == {Api(1, 55)}
    assert chain.pek.slots[0].usage == Usage.OCA
    assert chain.pek.slots[1].usage == Usage.CEK


def test_a_vm_gets_the_same_certificates():
    client = initialized(host().connect())
    pdh, chain = client.room(2084), client.room(6252)
    fields = {"pdh_addr": pdh, "pdh_len": 3000, "chain_addr": chain, "chain_len": 7000}
    assert succeed(client, sev.CERT_EXPORT, **fields) == {"pdh_len": 2084, "chain_len": 6252}
    exported = export(client)
    assert client.memory.read(pdh, 2084) == exported.pdh.build()
    assert client.memory.read(chain, 6252) == exported.platform


def test_a_signing_request_is_signed_by_nobody():
    client = host().connect()
    request, pek = csr(client), export(client).pek
    assert request.slots == (EMPTY_SLOT, EMPTY_SLOT)
    assert (request.key, request.api, request.usage) == (pek.key, pek.api, Usage.PEK)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("SEV_PDH_GEN", {"pdh"}),
        ("SEV_PEK_GEN", {"pdh", "pek", "oca"}),
        ("SEV_FACTORY_RESET", {"pdh", "pek", "oca"}),
    ],
)
def test_what_new_keys_there_are(name: str, changed: set[str]):
    client = host().connect()
    before = export(client)
    succeed(client, CALLS[name])
    after = export(client)
    verify_chain(after)
    assert {
        field for field in Chain._fields if getattr(before, field).key != getattr(after, field).key
    } == changed
    succeed(client, CALLS[name])
    assert export(client).pdh.key != after.pdh.key


def test_ids_of_sockets():
    client = host().connect()
    room = client.put(b"\xff" * 160)
    assert succeed(client, sev.GET_ID2, address=room, length=128) == {"length": 64}
    first = client.memory.read(room, 160)
    assert first[64:] == b"\xff" * 96
    succeed(client, sev.GET_ID, data=room)
    assert client.memory.read(room, 160) == first[:64] + bytes(64) + b"\xff" * 32
    assert host(name="another").platform.identity.chip_id != first[:64]


# -- status -----------------------------------------------------------------------------


def test_a_platform_s_status():
    settings = SevSettings(api_major=0, api_minor=22, build=13)
    client = host(settings).connect()
    assert succeed(client, sev.PLATFORM_STATUS) == {
        "api_major": 0,
        "api_minor": 22,
        "state": PlatformState.INIT,
        "flags": CONFIG_ES,
        "build": 13,
        "guest_count": 0,
    }


def test_before_init_nobody_is_owner():
    made = host()
    client = made.connect()
    assert take(client, *owned_by(client)) is OK
    assert succeed(client, sev.PLATFORM_STATUS)["flags"] == CONFIG_ES | OWNER
    made.settings = SevSettings(init_on_probe=False)
    made.restart()
    status = succeed(client, sev.PLATFORM_STATUS)
    assert (status["state"], status["flags"]) == (PlatformState.UNINIT, CONFIG_ES)
    succeed(client, sev.INIT)
    status = succeed(client, sev.PLATFORM_STATUS)
    assert (status["state"], status["flags"]) == (PlatformState.INIT, CONFIG_ES | OWNER)


# -- owners -----------------------------------------------------------------------------


def test_a_platform_is_owned_until_it_is_reset():
    client = host().connect()
    before = export(client)
    given = owned_by(client)
    assert take(client, *given) is OK
    after = export(client)
    verify_chain(after)
    assert after.oca.build() == given.oca
    assert (after.pek.key, after.cek) == (before.pek.key, before.cek)
    assert after.pdh.key != before.pdh.key
    assert take(client, *owned_by(client, "another")) is SevCode.ALREADY_OWNED
    succeed(client, sev.FACTORY_RESET)
    assert succeed(client, sev.PLATFORM_STATUS)["flags"] == CONFIG_ES
    verify_chain(export(client))
    assert export(client).oca.key not in (before.oca.key, after.oca.key)
    assert take(client, *owned_by(client, "another")) is OK


def test_an_owner_s_signature_may_be_in_the_second_slot():
    client = host().connect()
    given = owned_by(client)
    pek = SevCertificate.parse(given.pek)
    turned = SevCertificate(
        api=pek.api,
        usage=pek.usage,
        algorithm=pek.algorithm,
        key=pek.key,
        slots=(pek.slots[1], pek.slots[0]),
    )
    assert take(client, turned.build(), given.oca) is OK
    verify_chain(export(client))
    assert export(client).pek.slots[0].usage == Usage.CEK


def test_what_follows_certificates_is_not_looked_at():
    client = host().connect()
    given = owned_by(client)
    assert take(client, given.pek + b"x", given.oca + b"x") is OK
    assert export(client).oca.build() == given.oca


def test_new_keys_of_an_owned_platform_are_not_the_owner_s():
    client = host().connect()
    assert take(client, *owned_by(client)) is OK
    before = export(client)
    succeed(client, sev.PEK_GEN)
    after = export(client)
    assert after.oca == before.oca
    assert after.pek.key != before.pek.key
    bad = [(link.child, link.parent) for link in links(after) if link.error]
    assert bad == [(Usage.PEK, Usage.OCA)]
    assert succeed(client, sev.PLATFORM_STATUS)["flags"] == CONFIG_ES | OWNER


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (0, SevCode.INVALID_CERTIFICATE),
        (4, SevCode.BAD_SIGNATURE),
        (6, SevCode.INVALID_CERTIFICATE),
        (8, SevCode.INVALID_CERTIFICATE),
        (12, SevCode.INVALID_CERTIFICATE),
        (16, SevCode.INVALID_CERTIFICATE),
        (0x14, SevCode.INVALID_CERTIFICATE),
        (0x5C, SevCode.INVALID_CERTIFICATE),
        (0x413, SevCode.INVALID_CERTIFICATE),
        (0x414, SevCode.BAD_SIGNATURE),
        (0x418, SevCode.BAD_SIGNATURE),
        (0x41C, SevCode.BAD_SIGNATURE),
        (0x41C + 72, SevCode.BAD_SIGNATURE),
    ],
)
@pytest.mark.parametrize("which", ["pek", "oca"])
def test_an_import_with_one_byte_altered(which: str, offset: int, code: SevCode):
    client = host().connect()
    given = owned_by(client)
    altered = given._replace(**{which: flipped(getattr(given, which), offset)})
    assert take(client, *altered) is code


def test_an_import_that_is_another_s():
    made = host()
    client, other = made.connect(), host(name="other").connect()
    mine, others = owned_by(client), owned_by(other, "another")
    assert take(client, *others) is SevCode.INVALID_CERTIFICATE
    assert take(client, mine.pek, others.oca) is SevCode.BAD_SIGNATURE
    assert take(client, mine.oca, mine.oca) is SevCode.INVALID_CERTIFICATE
    assert take(client, mine.pek, mine.pek) is SevCode.INVALID_CERTIFICATE
    assert take(client, csr(client).build(), mine.oca) is SevCode.BAD_SIGNATURE
    # The current certificate: both of its slots are in use.
    oca = made.platform.identity.oca
    assert take(client, made.platform.identity.pek, oca) is SevCode.INVALID_CERTIFICATE


def test_a_signing_request_of_a_pek_that_is_gone():
    client = host().connect()
    given = owned_by(client)
    succeed(client, sev.PEK_GEN)
    assert take(client, *given) is SevCode.INVALID_CERTIFICATE


@pytest.mark.parametrize("cut", [0, 1])
def test_an_import_that_is_cut(cut: int):
    client = host().connect()
    given = list(owned_by(client))
    given[cut] = given[cut][:-1]
    assert take(client, *given) is SevCode.INVALID_LEN


def test_no_owner_while_guests_exist():
    made = host()
    client = made.connect()
    given = owned_by(client)
    running(made.connect())
    assert take(client, *given) is SevCode.INVALID_PLATFORM_STATE


# -- what outlives the daemon -----------------------------------------------------------


def test_keys_and_owners_outlive_the_daemon_and_guests_do_not():
    made = host()
    client = made.connect()
    assert take(client, *owned_by(client)) is OK
    succeed(client, sev.PDH_GEN)
    before = export(client)
    running(made.connect())
    made.restart()
    assert export(client) == before
    status = succeed(client, sev.PLATFORM_STATUS)
    assert (status["guest_count"], status["state"]) == (0, PlatformState.INIT)


def broken(made: SevHost) -> SevClient:
    client = made.connect()
    made.is_broken = True
    return client


@pytest.mark.parametrize("name", ["SEV_FACTORY_RESET", "SEV_PEK_GEN", "SEV_PDH_GEN"])
def test_keys_that_cannot_be_kept_are_not_taken(name: str):
    client = broken(host())
    refused(client, CALLS[name], SevCode.HWERROR_PLATFORM)
    refused(client, CALLS[name], SevCode.HWERROR_PLATFORM)
    client.host.is_broken = False
    assert give(client, CALLS[name])[0] is OK


@pytest.mark.parametrize("name", ["SEV_FACTORY_RESET", "SEV_PEK_GEN", "SEV_PDH_GEN"])
def test_new_keys_are_on_stable_storage_before_they_are_told_of(name: str):
    client = host().connect()
    assert give(client, CALLS[name])[0] is OK
    assert [type(effect) for effect in client.trail[-2:]] == [ChangePlatform, Flush]


def test_an_owner_is_on_stable_storage_before_he_is_told_of():
    client = host().connect()
    assert take(client, *owned_by(client)) is OK
    assert [type(effect) for effect in client.trail[-2:]] == [ChangePlatform, Flush]


def test_guests_are_on_no_storage():
    client = running(host().connect())
    assert not any(isinstance(effect, Flush) for effect in client.trail)


def test_guests_do_not_need_the_store():
    made = host()
    client = broken(made)
    succeed(client, sev.ES_INIT)
    assert client.launch_start(ES).code is OK


# -- initializing -----------------------------------------------------------------------


def state_of(made: SevHost) -> PlatformState:
    return made.platform.state


def test_the_first_vm_initializes_the_platform():
    made = host(SevSettings(init_on_probe=False))
    client = made.connect()
    assert state_of(made) is PlatformState.UNINIT
    for name in ("SEV_PEK_GEN", "SEV_PDH_GEN", "SEV_PEK_CSR", "SEV_PDH_CERT_EXPORT"):
        assert give(client, CALLS[name])[0] is OK
        assert state_of(made) is PlatformState.UNINIT
    succeed(client, sev.INIT)
    assert state_of(made) is PlatformState.INIT
    assert client.launch_start(0).code is OK
    client.close()
    assert state_of(made) is PlatformState.INIT


def test_a_reset_shuts_the_platform_down_under_a_vm_without_a_guest():
    made = host()
    client = initialized(made.connect())
    succeed(made.connect(), sev.FACTORY_RESET)
    refused(client, sev.LAUNCH_START, SevCode.INVALID_PLATFORM_STATE)
    initialized(made.connect())
    assert client.launch_start(ES).code is OK
