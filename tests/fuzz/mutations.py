"""Ways to spoil files: bytes, plain values, and texts that hold them."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tests.toml import BIG, DEEP

_FOR = {f'"{DEEP}"': "[" * 20_000 + "]" * 20_000, f'"{BIG}"': "9" * 5_000}
_JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, BIG, DEEP),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", " ", "x", "0", "1", "-1", "nan", "true", "\x00", "a\nb", "\ud800", "é", "e\u0301", "🖼", "../x", "/"),
    "x" * 5_000,
    *("identity", "jpeg", "float16", "float32", "int16", "train", "val", "linear", "big", "little", "Infinity"),
    *([], {}, [[]], [None], [0], [1, 2], [0.1, 0.2], ["x"], [{}], {"": 0}, {"name": "x"}, {"x": [0]}, [0.5] * 300),
]
_KEYS = ["", "x", "name", "dim", "schema", "digest", "attributes", "consolidated_metadata"]
_KEYS += ["must_understand", "extra", "0"]

Edit = tuple[str, int, int, int]
BYTE_EDITS = ("flip", "set", "cut", "drop", "insert", "repeat", "zero", "swap", "number")


def spoilt(data: bytes) -> SearchStrategy[bytes]:
    """The bytes after one to four edits: bits flipped, pieces cut, dropped, repeated, moved, zeroed, put in."""
    edit = st.tuples(
        st.sampled_from(BYTE_EDITS), st.integers(0, max(len(data) - 1, 0)), st.integers(0, 255), st.integers(1, 40)
    )
    return st.lists(edit, min_size=1, max_size=4).map(partial(edited, data))


def edited(data: bytes, edits: list[Edit]) -> bytes:
    content = bytearray(data)
    for what, at, value, length in edits:
        match what:
            case "flip" if at < len(content):
                content[at] ^= 1 << (value % 8)
            case "set" if at < len(content):
                content[at] = value
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + length]
            case "insert":
                content[at:at] = bytes([value]) * length
            case "repeat":
                content[at:at] = content[at : at + length]
            case "zero":
                content[at : at + length] = bytes(len(content[at : at + length]))
            case "swap":
                content[at : at + length] = content[at : at + length][::-1]
            case "number" if at + 4 <= len(content):
                content[at : at + 4] = struct.pack("<I", (0, 2**31 - 1, 2**32 - 1, 1 << 28)[value % 4])
    return bytes(content)


def garbage() -> SearchStrategy[bytes]:
    return st.one_of(
        st.binary(max_size=64),
        st.sampled_from(
            [b"", b"\x00" * 4096, b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"\xff\xfe{\x00}\x00", b"{}", b"[]"]
        ),
    )


def junk() -> SearchStrategy[Any]:
    return st.one_of(st.sampled_from(_JUNK), st.integers(), st.floats(), st.text(max_size=8)).map(copy.deepcopy)


_VALUE_EDITS = ("replace", "delete", "add", "rename", "double", "wrap", "nudge", "spell", "move")


def changed(document: Any, most: int = 3) -> SearchStrategy[Any]:  # noqa: ANN401
    """A plain document (dicts, lists, numbers, texts) after one to ``most`` edits at any depth."""
    count = len(list(_places(document)))
    edit = st.tuples(
        st.sampled_from(_VALUE_EDITS), st.integers(0, count), st.sampled_from(_KEYS), junk(), st.integers(0, 1000)
    )
    return st.lists(edit, min_size=1, max_size=most).map(partial(_rewritten, document))


def _places(value: Any, parent: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    if parent is not None:
        yield parent, key
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _places(inner, value, name)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _places(inner, value, i)


def _rewritten(document: Any, edits: list[tuple[str, int, str, Any, int]]) -> Any:  # noqa: ANN401
    root = [copy.deepcopy(document)]
    for what, place, key, value, number in edits:
        places = list(_places(root))
        parent, at = places[place % len(places)]
        there = parent[at]
        if what == "replace":
            parent[at] = value
        elif what == "delete" and parent is not root:
            del parent[at]
        elif what == "add" and isinstance(there, dict):
            there[key] = value
        elif what == "add" and isinstance(there, list):
            there.insert(number % (len(there) + 1), value)
        elif what == "rename" and isinstance(parent, dict):
            parent[key] = parent.pop(at)
        elif what == "double" and isinstance(parent, list) and parent is not root:
            parent.append(copy.deepcopy(there))
        elif what == "wrap":
            parent[at] = [there]
        elif what == "move":
            other, there_at = places[number % len(places)]
            if other is not root and parent is not root:
                parent[at] = copy.deepcopy(other[there_at])
        else:
            parent[at] = _close_to(there, number)
    return root[0]


def _close_to(value: Any, number: int) -> Any:  # noqa: ANN401
    """Another value that looks much the same: a neighbouring number, a text with another letter."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1, -1, 2, -2, 3, -3, 64, -64)[number % 8]
    if isinstance(value, str) and value:
        at = number % len(value)
        return value[:at] + "abz019-_"[number % 8] + value[at + 1 :]
    return value


def written(document: Any) -> bytes:  # noqa: ANN401
    """A document as JSON, with what Python's writer would not write put in afterwards."""
    text = json.dumps(document)
    for mark, instead in _FOR.items():
        text = text.replace(mark, instead)
    return text.encode()


def spoilt_json(data: bytes) -> SearchStrategy[bytes]:
    """A JSON file: other bytes, another document, or no JSON at all."""
    return st.one_of(spoilt(data), changed(json.loads(data)).map(written), junk().map(written), garbage())
