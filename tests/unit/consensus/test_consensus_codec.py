"""RAFT_BATCH frames, memberships and log records: round trips, splitting, corruption, garbage."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_storage.consensus.api import Membership
from curve_storage.consensus.codec import BatchHead, decode, decode_head, encode
from curve_storage.consensus.entry import COMMAND, Entry, pack_membership, unpack_membership
from curve_storage.consensus.log_record import HEADER_SIZE, Record, pack_header, unpack_header
from curve_storage.consensus.raft_messages import APPEND, HEARTBEAT, NAMES, Message
from curve_storage.errors import Corruption, InvalidArgument

HEAD = BatchHead(3, 9, 77)
U64 = st.integers(0, (1 << 64) - 1)


def fields(message: Message) -> tuple[object, ...]:
    entries = [
        (entry.index, entry.term, entry.kind, entry.header, bytes(entry.payload)) for entry in message.entries or ()
    ]
    return (
        message.kind, message.group, message.src, message.dst, message.term, message.index, message.log_term,
        message.commit, message.stamp, message.reject, message.hint, entries,
    )  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> Message:
    index = draw(st.integers(0, 1 << 40))
    datas = draw(st.lists(st.tuples(st.binary(max_size=80), st.binary(max_size=300)), max_size=4))
    entries = [Entry(index + 1 + at, 5, COMMAND, header, payload) for at, (header, payload) in enumerate(datas)]
    return Message(
        draw(st.sampled_from(sorted(NAMES))), draw(U64), 3, 9, draw(U64), index, draw(U64), draw(U64), draw(U64),
        draw(st.booleans()), draw(U64), entries,
    )  # fmt: skip


@given(st.lists(messages(), max_size=6), st.integers(1, 2000))
def test_round_trip_in_any_number_of_frames(sent: list[Message], limit: int) -> None:
    found = []
    for meta, payload in encode(HEAD, sent, limit):
        assert decode_head(meta) == HEAD
        found += decode(meta, memoryview(b"".join(payload)))
    assert [fields(message) for message in found] == [fields(message) for message in sent]


def test_payload_buffers_are_passed_on_not_copied() -> None:
    data = bytearray(4096)
    ((_, payload),) = encode(HEAD, [Message(APPEND, 1, 3, 9, 1, entries=[Entry(1, 1, COMMAND, b"h", data)])], 1 << 20)
    assert payload[0] is data


def test_heartbeats_of_many_groups_are_one_frame() -> None:
    frames = list(encode(HEAD, [Message(HEARTBEAT, group, 3, 9, 1) for group in range(1000)], 1 << 20))
    assert len(frames) == 1
    assert len(frames[0][0]) < 70_000


def test_a_process_heartbeat_is_an_empty_batch() -> None:
    ((meta, payload),) = encode(HEAD, [], 1 << 20)
    assert decode(meta, memoryview(b"")) == [] and payload == []


def test_damaged_data_are_noticed() -> None:
    sent = [Message(APPEND, 1, 3, 9, 1, entries=[Entry(1, 1, COMMAND, b"header", b"p" * 5000)])]
    ((meta, payload),) = encode(HEAD, sent, 1 << 20)
    data = bytearray(b"".join(payload))
    data[1234] ^= 4
    with pytest.raises(Corruption, match="group 1"):
        decode(meta, memoryview(data))


def test_garbage_ends_in_a_named_error() -> None:
    rng = random.Random(1)
    sent = [Message(APPEND, 1, 3, 9, 1, entries=[Entry(1, 1, COMMAND, b"header", b"p" * 100)]), Message(2, 1, 3, 9, 4)]
    ((meta, payload),) = encode(HEAD, sent, 1 << 20)
    data = b"".join(payload)
    for _ in range(3000):
        bad = bytearray(meta)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        cut = bytes(bad[: rng.randrange(len(bad) + 1)]) if rng.random() < 0.5 else bytes(bad)
        try:
            decode_head(cut)
            decode(cut, memoryview(data))
        except (InvalidArgument, Corruption):
            pass


def test_membership_round_trip_and_damage() -> None:
    membership = Membership(voters=(1, 2, 9), outgoing=(1, 2, 3), learners=(4,), epoch=12)
    data = pack_membership(membership)
    assert unpack_membership(data) == membership
    for length in range(len(data)):
        with pytest.raises(Corruption):
            unpack_membership(data[:length])
    with pytest.raises(Corruption, match="version"):
        unpack_membership(b"\xff" + data[1:])


def test_record_header_round_trip_and_every_bit() -> None:
    packed = pack_header(
        3, 7, 0xABCD, kind=1, chain=5, group=1 << 40, term=9, index=1 << 50, header_length=72, payload_length=4096,
        data_crc=0x1234,
    )  # fmt: skip
    assert len(packed) == HEADER_SIZE
    assert unpack_header(packed) == Record(3, 1, 7, 5, 1 << 40, 9, 1 << 50, 72, 4096, 0x1234, 0xABCD)
    for bit in range(HEADER_SIZE * 8):
        bad = bytearray(packed)
        bad[bit // 8] ^= 1 << bit % 8
        assert unpack_header(bad) is None
