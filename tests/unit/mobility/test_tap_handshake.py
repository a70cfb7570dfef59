"""The tap's NBD handshake, byte by byte: what QEMU asks, what strangers send."""

from __future__ import annotations

import random
import struct

import pytest

from leeward.mobility.handshake import GREETING, Finished, Handshake, Malformed

DISKS = (("sys", 1 << 30), ("data", 1 << 20))
FLAGS = struct.pack(">I", 3)


def option(number: int, body: bytes = b"") -> bytes:
    return struct.pack(">QII", 0x49484156454F5054, number, len(body)) + body


def go(name: bytes, number: int = 7) -> bytes:
    return option(number, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def begun() -> Handshake:
    handshake = Handshake(DISKS, write_bytes_max=1 << 22)
    assert handshake.feed(FLAGS) == b""
    return handshake


def test_greeting_offers_fixed_newstyle_without_zeroes() -> None:
    assert GREETING == b"NBDMAGICIHAVEOPT\x00\x03"


def test_go_tells_size_flags_and_blocks_of_one_byte() -> None:
    handshake = begun()
    export, blocks, ack = replies(handshake.feed(go(b"data")))
    assert struct.unpack(">HQH", export[2]) == (0, 1 << 20, 1 | 4 | 8 | 64)
    assert struct.unpack(">HIII", blocks[2]) == (3, 1, 4096, 1 << 22)
    assert ack == (7, 1, b"")
    assert handshake.disk == 1


def test_handshake_may_arrive_in_single_bytes_and_with_requests_behind_it() -> None:
    handshake = Handshake(DISKS, write_bytes_max=1 << 22)
    for byte in FLAGS + option(8) + go(b"sys"):
        handshake.feed(bytes([byte]))
    assert handshake.disk == 0
    other = begun()
    other.feed(go(b"sys") + b"first request")
    assert bytes(other.rest) == b"first request"


@pytest.mark.parametrize("number", [5, 8, 9, 10, 11, 4711])
def test_unknown_options_are_declined_politely(number: int) -> None:
    handshake = begun()
    assert replies(handshake.feed(option(number, b"body"))) == [(number, 0x80000001, b"")]
    handshake.feed(go(b"sys"))
    assert handshake.disk == 0


def test_info_list_and_unknown_names_leave_the_choice_open() -> None:
    handshake = begun()
    assert [kind for _, kind, _ in replies(handshake.feed(go(b"sys", 6)))] == [3, 3, 1]
    assert [kind for _, kind, _ in replies(handshake.feed(option(3)))] == [2, 2, 1]
    assert replies(handshake.feed(go(b"other"))) == [(7, 0x80000006, b"")]
    assert replies(handshake.feed(option(7, b"\xff"))) == [(7, 0x80000003, b"")]
    assert handshake.disk is None


def test_old_clients_choose_by_name_alone() -> None:
    handshake = begun()
    assert handshake.feed(option(1, b"sys")) == struct.pack(">QH", 1 << 30, 77)
    padded = Handshake(DISKS, write_bytes_max=1 << 22)
    assert len(padded.feed(struct.pack(">I", 1) + option(1, b"sys"))) == 10 + 124
    with pytest.raises(Malformed):
        begun().feed(option(1, b"other"))


def test_abort_is_acknowledged() -> None:
    with pytest.raises(Finished) as finished:
        begun().feed(option(2))
    assert replies(finished.value.reply) == [(2, 1, b"")]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 4 | 3),
        FLAGS + bytes(16),
        FLAGS + struct.pack(">QII", 0x49484156454F5054, 7, 1 << 30),
    ],
)
def test_strangers_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Handshake(DISKS, write_bytes_max=1 << 22).feed(data)


def test_noise_never_does_more_than_end_the_handshake() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        handshake = begun()
        noise = go(chance.choice([b"sys", b""]))[: chance.randrange(24)] + chance.randbytes(40)
        try:
            handshake.feed(noise)
        except (Malformed, Finished):
            continue
        assert len(handshake.rest) < 9000
