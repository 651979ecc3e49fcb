"""The NBD handshake byte by byte, without sockets."""

from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curve_storage.attach import nbd_protocol as nbd
from curve_storage.attach.nbd_server import error_number
from curve_storage.errors import CurveError, Fenced, InvalidArgument, NoSpace, OutOfRange, PermissionDenied

EXPORT = nbd.Export("demo", "Curve volume 7", 1 << 30)
FLAGS = (3).to_bytes(4, "big")


def option(number: int, body: bytes = b"") -> bytes:
    return nbd.OPTION.pack(nbd.OPTION_MAGIC, number, len(body)) + body


def info(name: bytes, *wanted: int) -> bytes:
    return (
        len(name).to_bytes(4, "big") + name + len(wanted).to_bytes(2, "big")
        + b"".join(number.to_bytes(2, "big") for number in wanted)
    )  # fmt: skip


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, type, body) of each."""
    found = []
    while data:
        magic, number, kind, length = nbd.OPTION_REPLY.unpack_from(data)
        assert magic == nbd.OPTION_REPLY_MAGIC
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def negotiation() -> nbd.Negotiation:
    machine = nbd.Negotiation([EXPORT])
    assert machine.feed(memoryview(FLAGS)) == (4, b"")
    return machine


def test_go_with_information() -> None:
    machine = negotiation()
    request = option(nbd.Option.GO, info(b"demo", nbd.Info.NAME, nbd.Info.DESCRIPTION, nbd.Info.BLOCK_SIZE))
    used, out = machine.feed(memoryview(request))
    assert used == len(request) and machine.transmission is EXPORT
    found = replies(out)
    assert [kind for _, kind, _ in found] == [nbd.OptionReply.INFO] * 4 + [nbd.OptionReply.ACK]
    assert found[0][2] == Struct(">HQH").pack(nbd.Info.EXPORT, 1 << 30, EXPORT.flags)
    assert found[1][2][2:] == b"demo" and found[2][2][2:] == b"Curve volume 7"
    assert Struct(">HIII").unpack(found[3][2]) == (nbd.Info.BLOCK_SIZE, 1, 4096, 32 << 20)


def test_transmission_begins_where_negotiation_ends() -> None:
    machine = negotiation()
    request = option(nbd.Option.GO, info(b""))
    used, _ = machine.feed(memoryview(request + b"a request follows"))
    assert used == len(request)


def test_export_name_of_old_clients() -> None:
    machine = nbd.Negotiation([EXPORT])
    machine.feed(memoryview((1).to_bytes(4, "big")))  # without NO_ZEROES
    _, out = machine.feed(memoryview(option(nbd.Option.EXPORT_NAME, b"demo")))
    assert out == EXPORT.size.to_bytes(8, "big") + EXPORT.flags.to_bytes(2, "big") + bytes(124)
    assert machine.transmission is EXPORT
    with pytest.raises(InvalidArgument):
        negotiation().feed(memoryview(option(nbd.Option.EXPORT_NAME, b"other")))


def test_list_abort_structured_and_unknown_options() -> None:
    machine = negotiation()
    _, out = machine.feed(memoryview(option(nbd.Option.LIST) + option(nbd.Option.STRUCTURED_REPLY) + option(99)))
    assert [kind for _, kind, _ in replies(out)] == [
        nbd.OptionReply.SERVER, nbd.OptionReply.ACK, nbd.OptionReply.ACK, nbd.OptionReply.ERR_UNSUP,
    ]  # fmt: skip
    assert replies(out)[0][2] == b"\0\0\0\4demoCurve volume 7"
    assert machine.structured
    _, out = machine.feed(memoryview(option(nbd.Option.INFO, info(b"other")) + option(nbd.Option.GO, b"\0\0\0\1")))
    assert [kind for _, kind, _ in replies(out)] == [nbd.OptionReply.ERR_UNKNOWN, nbd.OptionReply.ERR_INVALID]
    _, out = machine.feed(memoryview(option(nbd.Option.ABORT)))
    assert machine.closed and machine.transmission is None


def test_read_only_export_offers_no_changes() -> None:
    flags = nbd.Export("", "", 1, read_only=True).flags
    assert flags & nbd.Transmission.READ_ONLY
    assert not flags & (nbd.Transmission.SEND_TRIM | nbd.Transmission.SEND_WRITE_ZEROES | nbd.Transmission.SEND_FUA)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(1, 40))
def test_garbage_never_crashes_and_is_refused_or_waited_for(data: bytes, step: int) -> None:
    machine = negotiation()
    pending = b""
    try:
        for at in range(0, len(data), step):
            pending += data[at : at + step]
            used, _ = machine.feed(memoryview(pending))
            pending = pending[used:]
    except InvalidArgument:
        return
    assert machine.transmission is None or data[:8] == nbd.OPTION_MAGIC


@given(st.integers(1, 60))
def test_any_fragmentation_gives_the_same_answer(step: int) -> None:
    request = FLAGS + option(nbd.Option.LIST) + option(nbd.Option.GO, info(b"demo", nbd.Info.BLOCK_SIZE))
    whole = nbd.Negotiation([EXPORT]).feed(memoryview(request))[1]
    machine, pending, out = nbd.Negotiation([EXPORT]), b"", b""
    for at in range(0, len(request), step):
        pending += request[at : at + step]
        used, answer = machine.feed(memoryview(pending))
        pending, out = pending[used:], out + answer
    assert out == whole and machine.transmission is EXPORT


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NoSpace("x"), 28), (OSError(28, "x"), 28), (PermissionDenied("x"), 1), (OutOfRange("x"), 22), (Fenced("x"), 5),
        (OSError(5, "x"), 5), (ValueError("x"), 5),
    ],
)  # fmt: skip
def test_error_numbers_are_the_protocols(error: CurveError, number: int) -> None:
    assert error_number(error) == number
