# SPDX-License-Identifier: Apache-2.0
"""H_PKS_*: the Platform KeyStore calls over ``hcalld.domain.keystore``.

Sources: Linux 7.2 ``arch/powerpc/platforms/pseries/plpks.c`` and
``Documentation/arch/powerpc/papr_hcalls.rst``. What is inferred, because neither says
it, is listed in docs/pks.md.

The order in which a call is judged: the gate (H_STATE), registers in argument order
(``Plan``), memory behind them in argument order, password, existence, policy, room. A
call that fails has changed nothing and written nothing.
"""

from __future__ import annotations

from hcalld.core.call import Call
from hcalld.core.effects import Entropy, Flush, ReadBuffer
from hcalld.core.errors import HcallError, StoreError
from hcalld.core.handlers import HandlerSet
from hcalld.core.outcome import Outcome
from hcalld.domain.keystore import HYPERVISOR_POLICIES, Keystore
from hcalld.families.pks.arguments import read_auth, read_label
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import Policy

_READ_DATA = ReadBuffer("data")
_READ_PASSWORD = ReadBuffer("password")
_FLUSH = Flush()

_FLUSHED = ((4, 1),)
_NOT_FLUSHED = ((4, 0),)
_SUCCESS = Outcome(H.SUCCESS)


def check_enabled(keystore: Keystore) -> None:
    """The family's gate.

    A partition of size 0 still announces ``hcall-pks``, and Linux prints "not supported
    or enabled" (pks.md: which code PowerVM gives is not visible in its log).
    """
    if not keystore.is_enabled:
        raise HcallError(H.STATE, "the partition has no keystore (keystore_kbytes is 0)")


HANDLERS: HandlerSet[Keystore] = HandlerSet(pks.FAMILY, gate=check_enabled)


@HANDLERS.handles(pks.GET_CONFIG)
async def h_pks_get_config(call: Call, keystore: Keystore) -> Outcome:
    """Copy the configuration and zero the rest of the buffer.

    Linux 6.0 passes 32 bytes, later kernels 512, 7.2 passes 520 (plpks.c
    ``_plpks_get_config()``); the structure has 44.
    """
    size = call["buffer_size"]
    data = keystore.config().ljust(size, b"\0")[:size]
    return Outcome(H.SUCCESS, (), ((call["buffer"], data),))


@HANDLERS.handles(pks.SET_PASSWORD)
async def h_pks_set_password(call: Call, keystore: Keystore) -> Outcome:
    """Take the caller's password; only the number of this call is public."""
    password = await _READ_PASSWORD
    keystore.set_password(call["consumer"], password)
    return _SUCCESS


@HANDLERS.handles(pks.GEN_PASSWORD)
async def h_pks_gen_password(call: Call, keystore: Keystore) -> Outcome:
    """Choose a password, set it and tell it this once (plpks.c ``plpks_gen_password()``)."""
    # Entropy first: between set_password's own check and its change is no effect.
    password = await Entropy(call["password_size"])
    keystore.set_password(call["consumer"], password)
    return Outcome(H.SUCCESS, (), ((call["password"], password),))


@HANDLERS.handles(pks.WRITE_OBJECT)
async def h_pks_write_object(call: Call, keystore: Keystore) -> Outcome:
    """Create an object; an existing one is not overwritten (plpks.c ``plpks_write_var()``)."""
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    policy = call["policy"]
    if policy & HYPERVISOR_POLICIES:
        names = Policy(policy & HYPERVISOR_POLICIES).name
        raise call.refuse("policy", f"{names} cannot be given by this call")
    data = await _READ_DATA
    keystore.authorize(auth.consumer, auth.password)
    keystore.create(auth.consumer, label, policy, data)
    return _SUCCESS


@HANDLERS.handles(pks.READ_OBJECT)
async def h_pks_read_object(call: Call, keystore: Keystore) -> Outcome:
    """Copy an object out; r4 is its size and r5 its policy (plpks.c ``plpks_read_var()``)."""
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    stored = keystore.read(auth.consumer, label, auth.password)
    if stored.policy & Policy.WRAPPINGKEY:
        raise HcallError(
            H.AUTHORITY, "a wrapping key's bytes are not for the guest", ((5, stored.policy),)
        )
    size = len(stored.data)
    if size > call["out_size"]:
        raise HcallError(
            H.TOO_BIG, f"the object has {size} bytes, the buffer {call['out_size']}", ((4, size),)
        )
    return Outcome(H.SUCCESS, ((4, size), (5, stored.policy)), ((call["out"], stored.data),))


@HANDLERS.handles(pks.REMOVE_OBJECT)
async def h_pks_remove_object(call: Call, keystore: Keystore) -> Outcome:
    """Remove an object (plpks.c ``plpks_remove_var()``)."""
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    keystore.authorize(auth.consumer, auth.password)
    keystore.remove(auth.consumer, label)
    return _SUCCESS


@HANDLERS.handles(pks.CONFIRM_OBJECT_FLUSHED)
async def h_pks_confirm_object_flushed(call: Call, keystore: Keystore) -> Outcome:
    """Flush, then say so; never "not yet".

    Linux polls until r4 is 1, and after a removal takes H_NOT_FOUND with r4 = 1 for
    success (plpks.c ``plpks_confirm_object_flushed()``). It reads r4 after errors too, so
    r4 is always defined.
    """
    try:
        auth = await read_auth(call, keystore.attributes)
        label = await read_label(call, auth.consumer)
        keystore.authorize(auth.consumer, auth.password)
    except HcallError as error:
        raise HcallError(error.code, error.why, _NOT_FLUSHED) from None
    exists = keystore.exists(auth.consumer, label)
    try:
        await _FLUSH
    except StoreError as error:
        raise HcallError(H.ABORTED, str(error), _NOT_FLUSHED) from error
    if exists:
        return Outcome(H.SUCCESS, _FLUSHED)
    return Outcome(H.NOT_FOUND, _FLUSHED, why="no object has this label; its removal is flushed")
