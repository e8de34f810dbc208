# SPDX-License-Identifier: Apache-2.0
"""Sessions, opened as a platform opens them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from tests.sev_platform import chain, key

from hcalld.crypto.sev.certificates import parse_owner_dh, public_point
from hcalld.crypto.sev.errors import MacError
from hcalld.crypto.sev.session import unwrap_session
from hcalld.guestowner.sessions import make_session
from hcalld.testing.sev import made_up
from hcallproto.payloads.sev.blobs import SESSION_SIZE, Session
from hcallproto.payloads.sev.certificates import CERTIFICATE_SIZE
from hcallproto.payloads.sev.errors import CertificateError


def source(name: str) -> Callable[[int], bytes]:
    """Entropy that is another with each use."""
    count = itertools.count()
    return lambda size: made_up(f"{name} {next(count)}", size)


def test_make_session_when_the_platform_opens_it_then_it_has_the_owners_keys():
    made = make_session(chain().pdh, 0x33010005, source("a"))
    certificate, session = made.certificate.build(), made.session.build()
    assert (len(certificate), len(session)) == (CERTIFICATE_SIZE, SESSION_SIZE)
    owner = public_point(parse_owner_dh(certificate))
    keys = unwrap_session(key("pdh"), owner, Session.parse(session), 0x33010005)
    assert keys.build() == made.keys.build()
    for private, policy in ((key("pek"), 0x33010005), (key("pdh"), 0x33010001)):
        with pytest.raises(MacError):
            unwrap_session(private, owner, Session.parse(session), policy)


def test_make_session_when_two_are_made_then_nothing_of_them_is_the_same():
    one, two = make_session(chain().pdh, 1, source("a")), make_session(chain().pdh, 1, source("b"))
    assert one.keys.tek != two.keys.tek
    assert one.keys.tik != two.keys.tik
    assert one.keys.tek != one.keys.tik
    assert one.certificate.key != two.certificate.key
    assert one.session.nonce != two.session.nonce
    assert one.session.wrap_iv != two.session.wrap_iv


def test_make_session_when_the_certificate_is_no_pdh_then_it_is_refused():
    with pytest.raises(CertificateError, match="usage is PEK, expected PDH"):
        make_session(chain().pek, 1, source("a"))
