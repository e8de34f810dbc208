# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of a capture, played to a real guest under QEMU.

The guest is greeted as the captured one was, so it has the same calls and device tree; each
of its calls is answered from the capture, with the bytes where its own buffers are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import trio

from hcalld.core.errors import HcalldError
from hcalld.core.log import Log
from hcalld.replay.differences import Difference, Report, call_name
from hcalld.replay.errors import Stopped
from hcalld.replay.ignoring import Ignored
from hcalld.replay.link import Link, PeerFailed
from hcalld.replay.matching import Matcher
from hcalld.replay.pace import Pace
from hcalld.replay.relocate import relocate
from hcalld.runtime.server import listen_unix
from hcalld.runtime.transport import accept
from hcallproto.abi.spec import Level, level_codes
from hcallproto.capture.exchanges import Exchange, Exchanges
from hcallproto.conn.states import Role
from hcallproto.errors import CaptureError, LocalProtocolError
from hcallproto.render import render_call
from hcallproto.wire import frames as f
from hcallproto.wire import schema as s

_Greeting = TypeVar("_Greeting", f.Hello, f.Accept, f.Ram)

NOT_PLAYED: Final = s.Feature.SHARED_RAM | s.Feature.SC2 | s.Feature.PAGE_STATES
"""Features that answers from a capture have no use for."""
_PLAYABLE: Final = (Level.SC1, Level.COMMAND)
HANDSHAKE_SECONDS: Final = 10.0
"""A QEMU that has not said all that it must by then is none."""


@dataclasses.dataclass
class Figures:
    """How it went.

    Attributes:
        answered: calls that the capture has an answer for.
        unknown: calls that it has none for.
    """

    answered: int = 0
    unknown: int = 0


class MachinePlayer:
    """Answers one guest, connection after connection.

    Args:
        matcher: finds the answers.
        report: told of calls that have none.
        ignored: of these calls nothing is told.
        pace: how long an answer takes.
        unknown: what such calls are answered; None: as those that there are not.
    """

    def __init__(
        self,
        matcher: Matcher,
        report: Report,
        *,
        ignored: Ignored | None = None,
        pace: Pace | None = None,
        unknown: int | None = None,
    ) -> None:
        self.figures = Figures()
        self._matcher = matcher
        self._report = report
        self._ignored = ignored or Ignored()
        self._pace = pace or Pace()
        self._unknown = unknown
        self._welcome: f.Welcome | None = None
        self._matching = trio.Lock()

    async def begin(self) -> None:
        """Read how the guest is greeted; to be done before anybody connects.

        Raises:
            ReplayError: the capture cannot be played.
            CaptureError: it is none.
        """
        self._welcome = await self._matcher.begin()

    @property
    def is_for_clients(self) -> bool:
        """Programs that use SEV are played to, and no machine."""
        assert self._welcome is not None, "begin comes first"
        return s.Feature.COMMANDS in self._welcome.features

    async def serve(self, link: Link) -> str:
        """Serve one connection; gives why it ended, "" if the guest ended it.

        Raises:
            ReplayError, CaptureError: the capture cannot be played on.
            Stopped: the report wants to hear no more.
        """
        if self._matcher.welcomes:
            self._welcome = self._matcher.welcomes.popleft()
        assert self._welcome is not None, "begin comes first"
        return await _Connection(self, link, self._welcome).serve()

    async def answer(self, live: f.Call, asked: Exchange) -> f.Reply:
        """The answer to a call, after as long as it took.

        Args:
            live: the call.
            asked: the same as a capture has it.

        Raises:
            ReplayError, CaptureError: the capture cannot be played on.
            Stopped: there is none, and the report wants to hear no more.
        """
        async with self._matching:  # one call after another takes its answer
            found = await self._matcher.find(asked)
            following = self._matcher.following()
        if found is None:
            self.figures.unknown += 1
            what = "an answer" if following is None else call_name(following.call)
            self._tell(live, "call", what, f"the capture has none for {_text(asked)}")
            unknown = level_codes(live.level).function if self._unknown is None else self._unknown
            return f.Reply(live.vcpu, live.reset, live.seq, unknown)
        await self._pace.between(found.start_ns, found.end_ns)
        self.figures.answered += 1
        moved = relocate(found, live)
        if moved.lost:
            self._tell(live, "memory", "room", f"no room for {moved.lost} bytes")
        return moved.reply

    def _tell(self, call: f.Call, field: str, expected: str, got: str) -> None:
        name = call_name(call)
        if not self._ignored.covers(name, field):
            where = f"cpu{call.vcpu} #{call.seq}"
            self._report.difference(where, Difference(name, field, expected, got))


def _text(live: Exchange) -> str:
    return render_call(
        live.hcall, live.call.registers(), level=live.call.level, buffers=live.buffers
    )


class _Connection:
    """One connection of a shim."""

    def __init__(self, player: MachinePlayer, link: Link, welcome: f.Welcome) -> None:
        self._player = player
        self._link = link
        self._welcome = welcome
        self._exchanges = Exchanges()
        self._under_way: dict[tuple[int, int], trio.CancelScope] = {}
        self._failed: Exception | None = None
        """Ends the replay, not only the connection."""

    async def serve(self) -> str:
        """Serve it until it ends; see MachinePlayer.serve."""
        why = ""
        async with trio.open_nursery() as nursery:
            try:
                with trio.move_on_after(HANDSHAKE_SECONDS) as patience:
                    await self._greet()
                if patience.cancelled_caught:
                    why = f"no negotiation within {HANDSHAKE_SECONDS:.0f} s"
                else:
                    while (frame := await self._link.receive()) is not None:
                        await self._take(frame, nursery)
            except (PeerFailed, LocalProtocolError) as error:
                why = str(error)
            nursery.cancel_scope.cancel()
        await self._link.aclose()
        if self._failed is not None:
            raise self._failed
        return why

    async def _greet(self) -> None:
        """HELLO, WELCOME, ACCEPT, RAM."""
        hello = await self._expect(f.Hello)
        captured = self._welcome
        welcome = captured._replace(
            max_frame_size=min(captured.max_frame_size, hello.max_frame_size),
            features=captured.features & hello.features & ~NOT_PLAYED,
            announcement=_playable(captured.announcement),
            reset=hello.reset,
        )
        if not hello.version_min <= welcome.version <= hello.version_max:
            text = (
                f"the capture is of protocol version {welcome.version}, this QEMU speaks "
                f"{hello.version_min} to {hello.version_max}"
            )
            await self._link.send(f.Goodbye(s.GoodbyeReason.VERSION, text, hello.reset))
            raise PeerFailed(text)
        for _ in self._exchanges.take(welcome, 0):
            pass
        await self._link.send(welcome)
        await self._expect(f.Accept)
        await self._expect(f.Ram)

    async def _expect(self, kind: type[_Greeting]) -> _Greeting:
        frame = await self._link.receive()
        if not isinstance(frame, kind):
            what = "the connection's end" if frame is None else f.FRAME_TYPES[type(frame)].name
            raise PeerFailed(f"{what} instead of {f.FRAME_TYPES[kind].name}")
        return frame

    async def _take(self, frame: f.Frame, nursery: trio.Nursery) -> None:
        match frame:
            case f.Call():
                nursery.start_soon(self._answer, frame, nursery)
            case f.Cancel():
                scope = self._under_way.pop((frame.vcpu, frame.seq), None)
                if scope is not None:
                    scope.cancel()
                name = frame.vcpu, frame.reset, frame.seq
                await self._link.send(f.Cancelled(*name, s.Effect.NONE))
            case f.Event(kind=s.EventKind.RESET):
                for scope in self._under_way.values():
                    scope.cancel()
                self._under_way.clear()
                await self._link.send(f.EventAck(frame.kind, frame.request, frame.reset))
            case f.Ram():
                self._link.take_descriptors(frame.descriptor_count)
            case _:
                pass  # other events, and ACCEPT or SHIM_GOODBYE, want no answer

    async def _answer(self, call: f.Call, nursery: trio.Nursery) -> None:
        name = call.vcpu, call.seq
        try:
            with trio.CancelScope() as scope:
                self._under_way[name] = scope
                reply = await self._player.answer(call, self._as_captured(call))
                scope.shield = True
                if self._under_way.pop(name, None) is not None:
                    # From here on a CANCEL finds the call answered.
                    await self._link.send(reply)
        except (PeerFailed, LocalProtocolError):
            pass  # the connection has ended, and whoever receives says why
        except (CaptureError, HcalldError, Stopped) as error:
            self._failed = self._failed or error
            nursery.cancel_scope.cancel()

    def _as_captured(self, call: f.Call) -> Exchange:
        """A call as a capture has it."""
        begun = [*self._exchanges.take(call, 0), *self._exchanges.end(0)]
        return begun[-1]


def _playable(announcement: f.Announcement) -> f.Announcement:
    """Without what only a secure VM calls."""
    calls = tuple(
        spec
        for spec in announcement.calls
        if spec.level in _PLAYABLE and not spec.flags & s.CALL_FLAG_SECURE
    )
    return announcement._replace(calls=calls)


async def serve(
    player: MachinePlayer, path: pathlib.Path, say: Callable[[str], None], *, stay: bool = False
) -> None:
    """Listen where QEMU connects, and serve it until it is gone.

    Args:
        player: answers.
        path: of the unix socket.
        say: told what happens.
        stay: go on with the next connection.

    Raises:
        ReplayError, CaptureError: the capture cannot be played.
        ConfigError: nobody can listen there.
        Stopped: the report wants to hear no more.
    """
    await player.begin()
    with _listening(path) as listener:
        say(f"waiting for a guest at {path}")
        try:
            if player.is_for_clients:
                await _serve_clients(player, listener, say, stay=stay)
            else:
                while await _serve_next(player, listener, say) and stay:
                    pass
        except BaseExceptionGroup as group:
            # Ctrl-C while a guest is there, in a connection's nursery.
            if group.split(KeyboardInterrupt)[1] is None:
                raise KeyboardInterrupt from None
            first = group.exceptions[0]
            if isinstance(first, CaptureError | HcalldError | Stopped):
                raise first from None
            raise


async def _serve_next(
    player: MachinePlayer, listener: socket.socket, say: Callable[[str], None]
) -> bool:
    await _serve_one(player, await _accepted(listener), say)
    return True


async def _serve_clients(
    player: MachinePlayer, listener: socket.socket, say: Callable[[str], None], *, stay: bool
) -> None:
    """Serve connections of a program, which has several at once, until none is left."""
    count = 0

    async def one(sock: socket.socket) -> None:
        nonlocal count
        await _serve_one(player, sock, say)
        count -= 1
        if not count and not stay:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        while True:
            sock = await _accepted(listener)
            count += 1
            nursery.start_soon(one, sock)


async def _accepted(listener: socket.socket) -> socket.socket:
    sock = await accept(listener, Log(), "cannot accept")
    sock.setblocking(False)
    return sock


async def _serve_one(
    player: MachinePlayer, sock: socket.socket, say: Callable[[str], None]
) -> None:
    why = await player.serve(Link(sock, Role.DAEMON))
    say(f"the connection has ended{f': {why}' if why else ''}")


@contextlib.contextmanager
def _listening(path: pathlib.Path) -> Iterator[socket.socket]:
    with listen_unix(path, 0o600) as listener:
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
