"""TFRecord files of `tf.train.Example`, written and read without TensorFlow.

A record is its length (uint64), the masked crc32c of these bytes, the data, and theirs. The data
is a protocol buffer: a map from names to lists of bytes or of integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

Feature = bytes | int


class Span(NamedTuple):
    """Where a record lies in its file: first byte, and bytes with its frame."""

    start: int
    length: int


class BadRecord(ValueError):
    """The file is no TFRecord, or damaged."""


def write_record(out: BinaryIO, features: Mapping[str, Feature]) -> Span:
    """Append one example."""
    return write_frame(out, encode_example(features))


def write_frame(out: BinaryIO, data: bytes) -> Span:
    """Append one record, whatever its data are."""
    start, head = out.tell(), struct.pack("<Q", len(data))
    out.write(head + _masked(head) + data + _masked(data))
    return Span(start, len(data) + 16)


def read_records(path: Path) -> Iterator[tuple[Span, dict[str, Feature]]]:
    """Every example of a file, checksums proved. Raises BadRecord."""
    start = 0
    for data in read_frames(path):
        span = Span(start, len(data) + 16)
        yield span, decode_example(data)
        start += span.length


def read_frames(path: Path) -> Iterator[bytes]:
    """The data of every record of a file, whatever they are. Raises BadRecord."""
    with path.open("rb") as file:
        while True:
            start = file.tell()
            head = file.read(12)
            if not head:
                return
            if len(head) < 12 or _masked(head[:8]) != head[8:]:
                raise BadRecord(f"no record at byte {start}")
            length = struct.unpack("<Q", head[:8])[0]
            data = file.read(length)
            if len(data) < length or _masked(data) != file.read(4):
                raise BadRecord(f"the record at byte {start} does not match its checksum")
            yield data


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """One `tf.train.Example`; names are sorted, so that equal content gives equal bytes."""
    entries = b"".join(
        field(1, field(1, name.encode()) + field(2, _value(features[name])))
        for name in sorted(features)
    )
    return field(1, entries)


def decode_example(data: bytes) -> dict[str, Feature]:
    """The first value of each feature. Raises BadRecord."""
    found: dict[str, Feature] = {}
    for _, whole in _fields(data):
        for _, entry in _fields(_bytes(whole)):
            parts = dict(_fields(_bytes(entry)))
            (kind, values), *_ = _fields(_bytes(parts[2]))
            (_, first), *_ = _fields(_bytes(values))
            if kind == 3 and isinstance(first, bytes):  # packed
                first = _varint(first, 0)[0]
            found[_bytes(parts[1]).decode()] = _signed(first) if isinstance(first, int) else first
    return found


def _value(value: Feature) -> bytes:
    """A `tf.train.Feature`: bytes_list is field 1, int64_list field 3."""
    if isinstance(value, bytes):
        return field(1, field(1, value))
    return field(3, field(1, varint(value)))


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, or of a message, of a protocol buffer."""
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A varint; negative numbers as 64 bits in two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise BadRecord("a field runs past its record")
            yield number, data[at : at + length]
            at += length
        else:
            raise BadRecord(f"a field of type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BadRecord("a number runs past its record")
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at


def _bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise BadRecord("a number where a message was due")
    return value


def _masked(data: bytes) -> bytes:
    """The crc32c as TensorFlow stores it: rotated and shifted, so that nesting is harmless."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
