"""Binary frames of the journal: u32 length, u32 crc32 (both little-endian), msgpack payload.

A payload holds a record and its running number in the segment.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from learner.store.journal.records import Open, Outcome, Step

MAGIC = b"SYJRNL01"
MAX_RECORD_BYTES = 32 << 20
_HEADER = struct.Struct("<II")
_TWO_FIELDS = 0x92  # the first byte of every payload: a msgpack array of two


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """A record with its running number in the segment."""

    number: int
    record: Open | Step | Outcome


_decoder = msgspec.msgpack.Decoder(Payload)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def encode(number: int, record: Open | Step | Outcome) -> bytes:
    """Return the frame of a record."""
    payload = _encoder.encode(Payload(number, record))
    assert len(payload) <= MAX_RECORD_BYTES, "a record names slices and holds no events"
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode(data: bytes, at: int) -> tuple[Payload | None, int]:
    """Return the payload of the frame at byte `at` and the byte behind it.

    The payload is None, and the byte `at`, if no whole frame begins there.
    """
    begin = at + _HEADER.size
    if begin > len(data):
        return None, at
    size, crc = _HEADER.unpack_from(data, at)
    if not 0 < size <= min(MAX_RECORD_BYTES, len(data) - begin):
        return None, at
    payload = data[begin : begin + size]
    if zlib.crc32(payload) != crc:
        return None, at
    try:
        return _decoder.decode(payload), begin + size
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None, at


def is_torn(data: bytes, at: int) -> bool:
    """Return whether no whole frame begins at byte `at` or behind it.

    Then the bad frame was the last, and its owner died while it wrote it. Looks at every byte, for
    the length of the bad frame is not to be trusted. Its cost is bounded: past that, it is damage.
    """
    budget = 4 * len(data) + MAX_RECORD_BYTES
    for place in range(at, len(data) - _HEADER.size):
        begin = place + _HEADER.size
        size = int.from_bytes(data[place : place + 4], "little")
        if not 0 < size <= min(MAX_RECORD_BYTES, len(data) - begin) or data[begin] != _TWO_FIELDS:
            continue
        budget -= size
        if budget < 0 or decode(data, place)[0] is not None:
            return False
    return True
