"""Writes TensorFlow checkpoints: a table of one block and one data file, every checksum in its place."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_TYPES = {"float32": 1, "int64": 9}


def write(prefix: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Write tensors under names as `<prefix>.index` and `<prefix>.data-00000-of-00001`."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    data, entries = bytearray(), [(b"", b"\x08\x01\x1a\x02\x08\x01")]  # one shard, version 1
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        raw = value.tobytes()
        dims = b"".join(_bytes(2, _number(1, side)) for side in value.shape)
        entry = _number(1, _TYPES[str(value.dtype)]) + _bytes(2, dims) + _number(4, len(data)) + _number(5, len(raw))
        entries.append((name.encode(), entry + b"\x35" + struct.pack("<I", _masked(raw))))
        data += raw
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    block = _block(entries)
    handle = _varint(0) + _varint(len(block) - 5)
    index = _block([(b"\xff", handle)])
    footer = _varint(0) * 2 + _varint(len(block)) + _varint(len(index) - 5)
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    Path(f"{prefix}.index").write_bytes(block + index + footer.ljust(40, b"\0") + magic)


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
    body += struct.pack("<II", 0, 1) + b"\0"  # one restart, no compression
    return body + struct.pack("<I", _masked(body))


def _masked(data: bytes) -> int:
    checksum = google_crc32c.value(bytes(data))
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
