# SPDX-License-Identifier: Apache-2.0
"""A guest on its way: piece by piece, bounded, and told when it is cut off."""

from __future__ import annotations

import io
import os
import socket
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcalld.sevvm.errors import SevVmError
from hcalld.sevvm.streams import StreamHead, StreamReader, StreamWriter, incoming, outgoing
from hcallproto.abi.families.sev import PACKET_MAX_SIZE
from hcallproto.payloads.sev.stream import TransportPacket

HEAD = StreamHead(5, b"certificate", bytes(range(128)))
PACKETS = [TransportPacket(bytes((n,)) * 52, bytes((n,)) * size) for n, size in ((1, 64), (2, 16))]


def written(head: StreamHead = HEAD, packets: Sequence[TransportPacket] = PACKETS) -> bytes:
    file = io.BytesIO()
    writer = StreamWriter(file)
    writer.head(head)
    for packet in packets:
        writer.packet(packet)
    writer.finish()
    return file.getvalue()


def read(data: bytes) -> tuple[StreamHead, list[TransportPacket]]:
    return read_from(io.BytesIO(data))


def read_from(file: BinaryIO) -> tuple[StreamHead, list[TransportPacket]]:
    reader = StreamReader(file)
    head, packets = reader.head(), []
    while (packet := reader.packet()) is not None:
        packets.append(packet)
    reader.confirm()
    return head, packets


@given(
    st.builds(
        StreamHead,
        policy=st.integers(0, 2**32 - 1),
        pdh=st.binary(min_size=1, max_size=100),
        session=st.binary(min_size=128, max_size=128),
    ),
    st.lists(
        st.builds(
            TransportPacket,
            st.binary(min_size=52, max_size=52),
            st.binary(min_size=1, max_size=64),
        ),
        max_size=4,
    ),
)
def test_what_is_written_is_read(head: StreamHead, packets: list[TransportPacket]):
    assert read(written(head, packets)) == (head, packets)


def test_it_is_the_stream_that_others_know():
    assert written() == (
        b"\0\0\0\5\0\0\0\x0bcertificate\0\0\0\x80" + bytes(range(128))
        + b"\0\0\0\x34" + b"\1" * 52 + b"\0\0\0\x40" + b"\1" * 64
        + b"\0\0\0\x34" + b"\2" * 52 + b"\0\0\0\x10" + b"\2" * 16
    )  # fmt: skip


def test_each_cut_is_noticed_but_those_between_packets():
    data = written()
    head_size = 4 + 4 + len(HEAD.pdh) + 4 + 128
    ends = {head_size: 0, head_size + 4 + 52 + 4 + 64: 1, len(data): 2}
    for size in range(len(data) + 1):
        if size in ends:
            assert len(read(data[:size])[1]) == ends[size]
        else:
            with pytest.raises(SevVmError, match="cut off in"):
                read(data[:size])


class OnlySoMuch(io.BytesIO):
    """Notices who reads more than is there to be believed."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size <= PACKET_MAX_SIZE
        return super().read(size)


HEAD_SIZE = 4 + 4 + len(HEAD.pdh) + 4 + 128
LENGTHS = {
    "certificate": (4, 16385, "the source's certificate has 16385 bytes, expected 1 to 16384"),
    "no certificate": (4, 0, "has 0 bytes"),
    "session": (4 + 4 + len(HEAD.pdh), 129, "the session has 129 bytes, expected 128"),
    "header": (HEAD_SIZE, 51, "the header of packet 0 has 51 bytes, expected 52"),
    "no payload": (HEAD_SIZE + 4 + 52, 0, "the payload of packet 0 has 0 bytes"),
    "payload": (HEAD_SIZE + 4 + 52, 65537, "expected 1 to 65536"),
    "huge": (HEAD_SIZE + 4 + 52, 0xFFFFFFFF, "expected 1 to 65536"),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_a_length_that_cannot_be_is_not_read(what: str):
    at, size, why = LENGTHS[what]
    data = written()
    data = data[:at] + size.to_bytes(4, "big") + data[at + 4 :]
    with pytest.raises(SevVmError, match=why):
        read_from(OnlySoMuch(data))


# -- files and sockets --------------------------------------------------------------------------


def test_a_file_is_new_and_its_owners(tmp_path: Path):
    name = str(tmp_path / "guest")
    with outgoing(name) as writer:
        writer.head(HEAD)
    assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
    with incoming(name) as reader:
        assert reader.head() == HEAD
    with pytest.raises(SevVmError, match="guest: File exists"), outgoing(name):
        pass
    with pytest.raises(SevVmError, match="none: No such file"), incoming(str(tmp_path / "none")):
        pass
    with pytest.raises(SevVmError, match="No such file"), outgoing(f"unix:{tmp_path / 'none'}"):
        pass


def test_a_guest_that_is_not_sent_leaves_no_file(tmp_path: Path):
    def fail(writer: StreamWriter) -> None:
        writer.head(HEAD)
        raise SevVmError("refused")

    with pytest.raises(SevVmError, match="refused"), outgoing(str(tmp_path / "guest")) as writer:
        fail(writer)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_when_the_guest_is_told_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with outgoing(str(tmp_path / "guest")) as writer:
        writer.head(HEAD)
        writer.finish()
        assert synced == [HEAD_SIZE]


def wait_at(path: Path, *, takes: bool) -> tuple[threading.Thread, list[object]]:
    """Somebody who waits at a socket, and what comes."""
    found: list[object] = []

    def receive() -> None:
        with incoming(f"unix:{path}") as reader:
            found.append(stat.S_IMODE(path.parent.stat().st_mode) if path.exists() else "gone")
            found.append(reader.head())
            while reader.packet() is not None:
                pass
            if takes:
                reader.confirm()

    thread = threading.Thread(target=receive)
    thread.start()
    while not path.exists():
        assert thread.is_alive()
    return thread, found


def test_a_socket_can_be_connected_to_once_it_is_there(socket_dir: Path):
    path = socket_dir / "guest"
    thread, found = wait_at(path, takes=True)
    with outgoing(f"unix:{path}") as writer:
        writer.head(HEAD)
        writer.packet(PACKETS[0])
        writer.finish()
    thread.join()
    assert found == ["gone", HEAD]
    assert list(socket_dir.iterdir()) == []


def test_a_guest_that_has_not_arrived_is_told_of(socket_dir: Path):
    path = socket_dir / "guest"
    thread, _ = wait_at(path, takes=False)
    with outgoing(f"unix:{path}") as writer:
        writer.head(HEAD)
        with pytest.raises(SevVmError, match="did not take"):
            writer.finish()
    thread.join()


def test_a_socket_takes_nothings_place(socket_dir: Path):
    path = socket_dir / "guest"
    path.write_text("a file")
    with pytest.raises(SevVmError, match="File exists"), incoming(f"unix:{path}"):
        pass
    assert path.read_text() == "a file"
    assert list(socket_dir.iterdir()) == [path]


def test_a_peer_that_goes_away_is_an_error_of_the_socket(socket_dir: Path):
    path = socket_dir / "guest"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with (
            pytest.raises(SevVmError, match=r"guest: .*(pipe|reset)"),
            outgoing(f"unix:{path}") as writer,
        ):
            leave_early(listener, writer)


def leave_early(listener: socket.socket, writer: StreamWriter) -> None:
    listener.accept()[0].close()
    for _ in range(1000):
        writer.packet(TransportPacket(bytes(52), bytes(PACKET_MAX_SIZE)))
