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
from hcalld.crypto import wrap
from hcalld.domain.keystore import Keystore
from hcalld.domain.secvar.answers import Reason, UpdateRefused
from hcalld.families.pks.arguments import (
    check_policy,
    check_wrap_flags,
    read_auth,
    read_label,
    variable_name,
)
from hcalld.families.pks.long_operation import begin_issue
from hcallproto.abi.families import pks
from hcallproto.abi.returns import H
from hcallproto.payloads.pks import WRAP_OVERHEAD, WRAPPING_KEY_SIZE, Policy

_READ_DATA = ReadBuffer("data")
_READ_IN = ReadBuffer("in")
_READ_PASSWORD = ReadBuffer("password")
_FLUSH = Flush()

_FLUSHED = ((4, 1),)

# Plain numbers: each operation on an IntFlag makes an object, and every call pays for it.
_SIGNEDUPDATE = int(Policy.SIGNEDUPDATE)
_WORLDREADABLE = int(Policy.WORLDREADABLE)
_WRAPPINGKEY = int(Policy.WRAPPINGKEY)
_HVPROVISIONED = int(Policy.HVPROVISIONED)

_NOT_BY_WRITE = _SIGNEDUPDATE | _WRAPPINGKEY | _HVPROVISIONED
"""Policy bits that a call cannot give: other calls, or the hypervisor, create these."""
_NOT_BY_GEN_KEY = _SIGNEDUPDATE | _HVPROVISIONED
_NOT_BY_SIGNED_UPDATE = _WRAPPINGKEY | _HVPROVISIONED

_ARGUMENT_OF = {
    Reason.NAME: "label",
    Reason.NAME_SIZE: "label_size",
    Reason.FLAGS: "flags",
    Reason.CONTENT: "in",
    Reason.SIZE: "in_size",
}
"""Which argument a refused update is blamed on."""
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
    policy = check_policy(call, _NOT_BY_WRITE)
    data = await _READ_DATA
    keystore.authorize(auth.consumer, auth.password)
    keystore.check_name(auth.consumer, label)
    keystore.create(auth.consumer, label, policy, data)
    return _SUCCESS


@HANDLERS.handles(pks.GEN_KEY)
async def h_pks_gen_key(call: Call, keystore: Keystore) -> Outcome:
    """Create an object of random bytes; a wrapping key's are told to nobody.

    Linux takes H_RESOURCE for its default wrapping key as success: that is the second
    boot (plpks.c ``plpks_gen_wrapping_key()``).
    """
    size = call["out_size"]
    is_wrapping = bool(call["policy"] & _WRAPPINGKEY)
    if is_wrapping and size != WRAPPING_KEY_SIZE:
        raise call.refuse(
            "out_size", f"a wrapping key has {WRAPPING_KEY_SIZE} bytes, asked for were {size}"
        )
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    policy = check_policy(call, _NOT_BY_GEN_KEY)
    if is_wrapping and policy & _WORLDREADABLE:
        raise call.refuse("policy", "a wrapping key cannot be WORLDREADABLE")
    key = await Entropy(size)
    keystore.authorize(auth.consumer, auth.password)
    keystore.check_name(auth.consumer, label)
    keystore.create(auth.consumer, label, policy, key)
    return _SUCCESS if is_wrapping else Outcome(H.SUCCESS, (), ((call["out"], key),))


@HANDLERS.handles(pks.READ_OBJECT)
async def h_pks_read_object(call: Call, keystore: Keystore) -> Outcome:
    """Copy an object out; r4 is its size and r5 its policy (plpks.c ``plpks_read_var()``)."""
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    stored = keystore.read(auth.consumer, label, auth.password)
    if stored.policy & _WRAPPINGKEY:
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
    success (plpks.c ``plpks_confirm_object_flushed()``).
    """
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    keystore.authorize(auth.consumer, auth.password)
    exists = keystore.exists(auth.consumer, label)
    try:
        await _FLUSH
    except StoreError as error:
        raise HcallError(H.ABORTED, str(error)) from error
    if exists:
        return Outcome(H.SUCCESS, _FLUSHED)
    return Outcome(H.NOT_FOUND, _FLUSHED, why="no object has this label; its removal is flushed")


@HANDLERS.handles(pks.SIGNED_UPDATE)
async def h_pks_signed_update(call: Call, keystore: Keystore) -> Outcome:
    """Create, change or delete a signed variable (plpks.c ``plpks_signed_update_var()``).

    What an update does is ``hcalld.domain.secvar.authvar``'s to say. Which code tells of which
    reason is inferred: Linux lists the codes only.
    """
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    name = variable_name(call, auth.consumer, label)
    policy = check_policy(call, _NOT_BY_SIGNED_UPDATE)
    if not policy & _SIGNEDUPDATE:
        raise call.refuse("policy", "SIGNEDUPDATE is not set, which is what this call is for")
    message = await _READ_IN
    issue = await begin_issue(call, keystore)
    keystore.authorize(auth.consumer, auth.password)
    keystore.check_signed_update(auth.consumer, label, policy)
    busy = issue.busy()
    if busy is not None:
        return busy
    # Here: X.509 and CMS are a tenth of the daemon's start, and few guests update variables. The
    # first that does waits for it once, a few times as long as for the signature.
    from hcalld.domain.secvar import authvar

    try:
        accepted = authvar.evaluate(
            name,
            message,
            is_append=bool(call["flags"]),
            lookup=keystore.variable,
            without_verification=keystore.has_latch,
        )
    except UpdateRefused as refused:
        if refused.reason is Reason.AUTHORITY:
            raise HcallError(H.AUTHORITY, refused.why) from None
        raise call.refuse(_ARGUMENT_OF[refused.reason], refused.why) from None
    keystore.update(auth.consumer, label, policy, accepted)
    issue.done()
    return Outcome(H.SUCCESS, ((4, 0),))


@HANDLERS.handles(pks.WRAP_OBJECT)
async def h_pks_wrap_object(call: Call, keystore: Keystore) -> Outcome:
    """Encrypt under a wrapping key; r5 is the data's size + 1024.

    Linux takes 1024 off again when it unwraps (trusted_pkwm.c), so no other size will do.
    """
    flags = check_wrap_flags(call)
    wanted = call["in_size"] + WRAP_OVERHEAD
    if call["out_size"] < wanted:
        raise call.refuse("out_size", f"{call['out_size']} bytes, the wrapped object has {wanted}")
    auth = await read_auth(call, keystore.attributes)
    label = await read_label(call, auth.consumer)
    data = await _READ_IN
    salt = await Entropy(wrap.SALT_SIZE)
    issue = await begin_issue(call, keystore)
    keystore.authorize(auth.consumer, auth.password)
    key = keystore.wrapping_key(auth.consumer, label)
    busy = issue.busy()
    if busy is not None:
        return busy
    blob = wrap.wrap(key, salt, auth.consumer, label, flags, data)
    issue.done()
    return Outcome(H.SUCCESS, ((4, 0), (5, len(blob))), ((call["out"], blob),))


@HANDLERS.handles(pks.UNWRAP_OBJECT)
async def h_pks_unwrap_object(call: Call, keystore: Keystore) -> Outcome:
    """Decrypt what WRAP_OBJECT made; r5 is the data's size.

    Linux copies r5 bytes into 129 without a look at them (trusted_pkwm.c), and passes on
    whatever its user calls a wrapped key: only what is proven is used, and written.
    """
    size = call["in_size"] - WRAP_OVERHEAD
    if call["out_size"] < size:
        raise call.refuse("out_size", f"{call['out_size']} bytes, the data have {size}")
    auth = await read_auth(call, keystore.attributes)
    blob = await _READ_IN
    issue = await begin_issue(call, keystore)
    keystore.authorize(auth.consumer, auth.password)
    try:
        wrapped = wrap.parse(blob)
        if wrapped.consumer != auth.consumer:
            raise HcallError(H.AUTHORITY, f"it was wrapped for consumer {wrapped.consumer}")
        key = keystore.wrapping_key(auth.consumer, wrapped.label)
        busy = issue.busy()
        if busy is not None:
            return busy
        data = wrap.unwrap(key, wrapped)
    except wrap.WrapFormatError as error:
        raise HcallError(H.UNSUPPORTED, f"wrapped object: {error}") from None
    except wrap.WrapDataError as error:
        raise HcallError(H.BAD_DATA, f"wrapped object: {error}") from None
    keystore.check_unwrap(auth.consumer, wrapped.flags)
    issue.done()
    return Outcome(H.SUCCESS, ((4, 0), (5, len(data))), ((call["out"], data),))
