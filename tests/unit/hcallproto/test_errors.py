# SPDX-License-Identifier: Apache-2.0
"""Errors say whose fault it is."""

from __future__ import annotations

import pytest

from hcallproto.errors import Breach, LocalProtocolError, ProtocolError, RemoteProtocolError


def test_protocol_error_when_raised_itself_then_it_says_to_choose_a_side():
    with pytest.raises(TypeError, match="raise LocalProtocolError or RemoteProtocolError"):
        ProtocolError("whose?")


def test_errors_when_raised_then_they_have_text_and_the_peers_has_its_kind():
    assert str(LocalProtocolError("ours")) == "ours"
    error = RemoteProtocolError(Breach.SIZE, "theirs")
    assert (str(error), error.breach) == ("theirs", Breach.SIZE)
    assert isinstance(error, ProtocolError)
