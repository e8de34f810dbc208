# SPDX-License-Identifier: Apache-2.0
"""Both transition tables, applied: every entry, and every pair that is not one."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from tests.unit.hcallproto.conn.talk import (
    CALL as CALL_SAMPLE,
)
from tests.unit.hcallproto.conn.talk import (
    CALL_ROADS,
    SAMPLES,
    SEQ,
    VCPU,
    in_state,
    ready,
    say,
    say_samples,
)
from tests.unit.hcallproto.conn.talk import (
    REPLY as REPLY_SAMPLE,
)

from hcallproto.conn.connection import Connection
from hcallproto.conn.states import (
    CALL,
    CALL_FRAMES,
    CONNECTION,
    FRAME_FEATURES,
    MACHINE_FRAMES,
    CallState,
    Role,
    State,
)
from hcallproto.errors import Breach, LocalProtocolError, RemoteProtocolError
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s
from hcallproto.wire.encode import encode
from hcallproto.wire.schema import FrameType

_T = FrameType
_ENDED = (State.CLOSED, State.ERROR)


def name(value: object) -> str:
    return getattr(value, "name", str(value))


# -- the tables themselves ------------------------------------------------------------------


def test_role_sends_when_every_type_is_asked_for_then_exactly_one_side_sends_it():
    for frame_type in FrameType:
        assert Role.SHIM.sends(frame_type) is not Role.DAEMON.sends(frame_type)
        assert Role.SHIM.sends(frame_type) is bool(frame_type % 2)


def test_connection_table_when_it_ended_then_nothing_follows():
    assert not [entry for entry in CONNECTION if entry[0] in _ENDED]


def test_connection_table_when_walked_from_connected_then_every_state_and_type_is_met():
    reached = {State.CONNECTED}
    while True:
        more = {after for (before, _), after in CONNECTION.items() if before in reached} - reached
        if not more:
            break
        reached |= more
    # ERROR is entered by what is not in the table.
    assert reached == set(State) - {State.ERROR}
    assert {frame_type for _, frame_type in CONNECTION} == set(FrameType)


def test_call_table_when_walked_from_none_then_every_state_is_met_and_can_be_left():
    after_of: dict[CallState, set[CallState]] = defaultdict(set)
    for (before, _), after in CALL.items():
        after_of[before].add(after)
    for state in CallState:
        reached = {state}
        while more := set().union(*(after_of[known] for known in reached)) - reached:
            reached |= more
        assert reached == set(CallState)


def test_call_frames_when_compared_with_the_frames_then_they_are_those_that_name_a_call():
    named = {number for kind, number in f.FRAME_TYPES.items() if "seq" in kind._fields}
    assert named == CALL_FRAMES
    assert set(f.FRAME_TYPES.values()) == set(FrameType)


def test_frame_features_when_listed_then_only_page_states_need_one():
    assert dict(FRAME_FEATURES) == {
        _T.PAGES: s.Feature.PAGE_STATES,
        _T.PAGES_REPLY: s.Feature.PAGE_STATES,
    }


def test_call_roads_when_walked_by_the_table_then_they_lead_to_their_states():
    for state, road in CALL_ROADS.items():
        at = CallState.NONE
        for frame_type in road:
            at = CALL[at, frame_type]
        assert at is state


# -- the connection's -----------------------------------------------------------------------

_CALL_FIRST: dict[FrameType, tuple[FrameType, ...]] = {
    _T.REPLY: CALL_ROADS[CallState.LIVE],
    _T.CANCELLED: CALL_ROADS[CallState.CANCELLING],
    _T.READ: CALL_ROADS[CallState.LIVE],
    _T.WRITE: CALL_ROADS[CallState.LIVE],
    _T.READ_REPLY: CALL_ROADS[CallState.ACCESSING],
    _T.WRITE_REPLY: (_T.CALL, _T.WRITE),
    _T.PAGES: CALL_ROADS[CallState.LIVE],
    _T.PAGES_REPLY: (_T.CALL, _T.PAGES),
    _T.EVENT_ACK: (_T.EVENT,),
}
"""What must have been said in READY before a frame may come."""


def prepared(role: Role, state: State, frame_type: FrameType) -> Connection:
    connection = in_state(role, state)
    if state is State.READY:
        say_samples(connection, _CALL_FIRST.get(frame_type, ()))
    return connection


@pytest.mark.parametrize(
    ("state", "frame_type", "role"),
    list(itertools.product(State, FrameType, Role)),
    ids=name,
)
def test_pair_when_said_then_the_table_decides(state: State, frame_type: FrameType, role: Role):
    connection = prepared(role, state, frame_type)
    frame = SAMPLES[frame_type]
    after = CONNECTION.get((state, frame_type))
    if after is not None:
        seen = say(connection, frame)
        assert connection.state is after
        assert seen == (None if role.sends(frame_type) else frame)
    elif role.sends(frame_type):
        with pytest.raises(LocalProtocolError, match=f"^{frame_type.name} while {state.value}$"):
            connection.send(frame)
        assert connection.state is state
    elif state is State.ERROR:
        connection.receive_data(encode(frame))
        with pytest.raises(LocalProtocolError, match="in error"):
            connection.next_frame()
    elif state is State.CLOSED:
        # It was told that no more would come.
        with pytest.raises(LocalProtocolError, match="end of file"):
            connection.receive_data(encode(frame))
    else:
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match=f"{frame_type.name} while") as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.STATE
        assert connection.state is State.ERROR


@pytest.mark.parametrize(
    ("state", "frame_type", "role"),
    [
        (state, frame_type, role)
        for state, frame_type, role in itertools.product(State, FrameType, Role)
        if state not in _ENDED
    ],
    ids=name,
)
def test_frame_when_it_comes_from_the_wrong_side_then_it_is_a_breach_of_type(
    state: State, frame_type: FrameType, role: Role
):
    connection = in_state(role, state)
    frame = SAMPLES[frame_type]
    if role.sends(frame_type):
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match=frame_type.name) as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.TYPE
        assert connection.state is State.ERROR
    else:
        with pytest.raises(LocalProtocolError, match=f"sends {frame_type.name}"):
            connection.send(frame)
        assert connection.state is state


@pytest.mark.parametrize("role", Role, ids=name)
@pytest.mark.parametrize("features", [s.Feature.SHARED_RAM | s.Feature.SC2, s.Feature.COMMANDS])
@pytest.mark.parametrize(
    ("frame_type", "feature"),
    [(_T.PAGES, "PAGE_STATES"), (_T.PAGES_REPLY, "PAGE_STATES")],
    ids=name,
)
def test_frame_when_its_feature_is_not_in_force_then_it_is_refused(
    frame_type: FrameType, feature: str, features: s.Feature, role: Role
):
    connection = ready(role, features=features)
    frame = SAMPLES[frame_type]
    if role.sends(frame_type):
        with pytest.raises(LocalProtocolError, match=f"without feature {feature}"):
            connection.send(frame)
    else:
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match=f"without feature {feature}") as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.FEATURE


@pytest.mark.parametrize("role", Role, ids=name)
@pytest.mark.parametrize("frame_type", sorted(MACHINE_FRAMES), ids=name)
def test_frame_when_it_is_a_machines_and_the_client_is_none_then_it_is_refused(
    frame_type: FrameType, role: Role
):
    connection = ready(role, features=s.Feature.COMMANDS)
    frame = SAMPLES[frame_type]
    if role.sends(frame_type):
        with pytest.raises(LocalProtocolError, match="with feature COMMANDS"):
            connection.send(frame)
    else:
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match="with feature COMMANDS") as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.FEATURE


@pytest.mark.parametrize("role", Role, ids=name)
@pytest.mark.parametrize(
    "frame",
    [
        REPLY_SAMPLE._replace(pages=(f.PageRange(0, 4096, s.PageState.UNSHARED),)),
        f.Control(s.ControlAction.ATTEND, "", 2),
    ],
    ids=["REPLY", "CONTROL"],
)
@pytest.mark.parametrize(
    ("features", "level"),
    [(s.Feature.SC2, 2), (s.Feature.COMMANDS, s.LEVEL_COMMAND)],
    ids=["SC2", "COMMANDS"],
)
def test_page_states_when_the_feature_is_not_in_force_then_they_are_refused(
    features: s.Feature, level: int, frame: f.Frame, role: Role
):
    connection = ready(role, features=features)
    say(connection, CALL_SAMPLE._replace(level=level))
    if role is Role.DAEMON:
        with pytest.raises(LocalProtocolError, match="without PAGE_STATES"):
            connection.send(frame)
    else:
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match="without PAGE_STATES") as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.FEATURE


# -- a call's -------------------------------------------------------------------------------

# In a state where something is outstanding, answers must fit it: READ is what was asked.
_ASKED = {
    answer: {
        CallState.ACCESSING: (_T.CALL, request),
        CallState.CANCELLING_ACCESSING: (_T.CALL, request, _T.CANCEL),
    }
    for answer, request in ((_T.WRITE_REPLY, _T.WRITE), (_T.PAGES_REPLY, _T.PAGES))
}


def call_in(role: Role, state: CallState, frame_type: FrameType) -> Connection:
    """A connection whose sample call is in a state where the frame is the right kind."""
    connection = ready(role)
    road = CALL_ROADS[state]
    if frame_type in _ASKED:
        road = _ASKED[frame_type].get(state, road)
    say_samples(connection, road)
    assert connection.calls.state(VCPU, SEQ) is state
    return connection


@pytest.mark.parametrize(
    ("state", "frame_type", "role"),
    list(itertools.product(CallState, sorted(CALL_FRAMES), Role)),
    ids=name,
)
def test_frame_of_a_call_when_said_then_the_table_decides(
    state: CallState, frame_type: FrameType, role: Role
):
    connection = call_in(role, state, frame_type)
    frame = SAMPLES[frame_type]
    after = CALL.get((state, frame_type))
    if after is not None:
        seen = say(connection, frame)
        assert connection.calls.state(VCPU, SEQ) is after
        assert connection.state is State.READY
        is_crossed = state is after is CallState.CANCELLING
        assert seen == (None if role.sends(frame_type) or is_crossed else frame)
    elif role.sends(frame_type):
        with pytest.raises(LocalProtocolError, match=f"whose state is {state.value}"):
            connection.send(frame)
        assert connection.calls.state(VCPU, SEQ) is state
        assert connection.state is State.READY
    else:
        connection.receive_data(encode(frame))
        with pytest.raises(RemoteProtocolError, match=f"whose state is {state.value}") as caught:
            connection.next_frame()
        assert caught.value.breach is Breach.CALL
        assert connection.state is State.ERROR
