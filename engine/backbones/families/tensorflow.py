"""Reader of TensorFlow checkpoints without TensorFlow: `<prefix>.index` and `<prefix>.data-?????-of-?????`.

The index is a table in LevelDB's format (sorted keys in blocks, each with a CRC-32C) that maps a tensor's name to its
location in the data files. All checksums are verified. Sources of the formats: TensorFlow's ``tensor_bundle.proto`` and
``tensor_bundle.h``, LevelDB's ``table_format.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # bytes after a block: compression type and checksum
# numbers of DataType in types.proto
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
_STRING, _BFLOAT16 = 7, 14
_MAX_INDEX = 1 << 28  # bytes; an index of thousands of tensors has a few hundred thousand


class BundleError(SubstyleError):
    """A TensorFlow checkpoint that cannot be read."""


# fields that are read, by message: number, and type, or message (repeated ones end in *)
_MESSAGES = {
    "Header": {"num_shards": (1, "INT32"), "endianness": (2, "INT32")},
    "Dim": {"size": (1, "INT64")},
    "Shape": {"dim": (2, "Dim*")},
    "Entry": {
        **{"dtype": (1, "INT32"), "shape": (2, "Shape"), "shard_id": (3, "INT32"), "offset": (4, "INT64")},
        **{"size": (5, "INT64"), "crc32c": (6, "FIXED32"), "slices": (7, "Shape*")},
    },
    "Reference": {"node_id": (1, "INT32"), "local_name": (2, "BYTES")},
    "Attribute": {"name": (1, "BYTES"), "checkpoint_key": (3, "BYTES")},
    "Node": {"children": (1, "Reference*"), "attributes": (2, "Attribute*")},
    "Graph": {"nodes": (1, "Node*")},
}
_Message = Any  # made at run time


@cache
def _messages() -> dict[str, Any]:
    """Classes of the messages by name."""
    from google.protobuf import descriptor_pb2, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="substyle_tensorflow.proto", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = f"LABEL_{'REPEATED' if kind.endswith('*') else 'OPTIONAL'}"
            own = {"type": f"TYPE_{kind}"} if kind.isupper() else {"type_name": kind.strip("*")}
            message.field.add(name=field, number=number, label=label, **own)
    return dict(message_factory.GetMessages([file]))


def parsed(name: str, data: bytes) -> _Message:
    """Parse a message. Raises ValueError if it is malformed."""
    from google.protobuf.message import DecodeError

    try:
        return _messages()[name].FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def prefix_of(path: Path) -> Path | None:
    """Return the prefix of the checkpoint at a path; None if there is none.

    Args:
        path: a prefix such as ``model.ckpt-225206``, its ``.index`` file, or the folder of a SavedModel or hub module.
    """
    if path.is_dir():
        found = sorted([*path.glob("variables/variables.index"), *path.glob("*.index")])
        return found[0].with_suffix("") if len(found) == 1 else None
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    return path if Path(f"{path}.index").is_file() else None


def files_of(prefix: Path) -> list[Path]:
    """Return all files of a checkpoint, the index first."""
    return [Path(f"{prefix}.index"), *sorted(prefix.parent.glob(f"{prefix.name}.data-*"))]


class TensorBundle:
    """The tensors of a checkpoint by name.

    Args:
        prefix: common prefix of its files' names.

    Raises:
        BundleError: a file is missing, truncated or has a wrong checksum.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = Path(f"{prefix}.index")
        try:
            if index.stat().st_size > _MAX_INDEX:
                raise BundleError(f"{index}: too long for an index of tensors")
            table = dict(_table(index.read_bytes(), str(index)))
            header = parsed("Header", table.pop(b"", b""))
            self._entries = {key.decode(): parsed("Entry", value) for key, value in table.items()}
        except OSError as error:
            raise BundleError(f"{index}: {error.strerror}") from error
        except (IndexError, UnicodeDecodeError, ValueError, struct.error) as error:
            raise BundleError(f"{index}: not the index of a TensorFlow checkpoint ({error})") from error
        self._shards = header.num_shards or 1
        if header.endianness:
            raise BundleError(f"{index}: big-endian tensors are not supported")

    def names(self) -> list[str]:
        """Return the sorted names of all tensors."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(dim.size for dim in self._entries[name].shape.dim)

    def is_numeric(self, name: str) -> bool:
        """Return whether a tensor has a supported numeric type."""
        entry = self._entries[name]
        return (entry.dtype in _DTYPES or entry.dtype == _BFLOAT16) and not entry.slices

    def read(self, name: str) -> NDArray[np.generic]:
        """Read a numeric tensor; bfloat16 as float32. Raises BundleError on a checksum mismatch."""
        entry, where = self._entries[name], f"{self.prefix}: {name}"
        if not self.is_numeric(name):
            raise BundleError(f"{where}: type {entry.dtype} or a sliced tensor is not supported")
        data = self._bytes(entry, where)
        if _masked(google_crc32c.value(data)) != entry.crc32c:
            raise BundleError(f"{where}: checksum mismatch")
        if entry.dtype == _BFLOAT16:
            flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            flat = np.frombuffer(data, _DTYPES[entry.dtype])
        shape = self.shape(name)
        if flat.size != np.prod(shape, dtype=np.int64):
            raise BundleError(f"{where}: {flat.size} numbers for shape {list(shape)}")
        return flat.reshape(shape)

    def text(self, name: str) -> bytes:
        """Read a scalar string, such as the object graph of a TensorFlow 2 checkpoint."""
        entry, where = self._entries[name], f"{self.prefix}: {name}"
        if entry.dtype != _STRING or self.shape(name):
            raise BundleError(f"{where}: not a scalar string")
        data = self._bytes(entry, where)
        length, start = _varint(data, 0)
        if start + 4 + length != len(data):  # length, its checksum, string
            raise BundleError(f"{where}: a string of {length} bytes in {len(data)}")
        return data[start + 4 :]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def _bytes(self, entry: _Message, where: str) -> bytes:
        path = Path(f"{self.prefix}.data-{entry.shard_id:05d}-of-{self._shards:05d}")
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise BundleError(f"{where}: {path.name}: {error.strerror}") from error
        if len(data) != entry.size:
            raise BundleError(f"{where}: {path.name} is truncated")
        return data


def _table(data: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise BundleError(f"{where}: not the index of a TensorFlow checkpoint")
    _, at = _handle(footer, 0)  # the table's properties, which are empty
    (offset, size), _ = _handle(footer, at)
    for _key, handle in _block(data, offset, size, where):
        start, length = _handle(handle, 0)[0]
        yield from _block(data, start, length, where)


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int, where: str) -> Iterator[tuple[bytes, bytes]]:
    block = data[offset : offset + size]
    trailer = data[offset + size : offset + size + _TRAILER]
    if len(block) != size or len(trailer) != _TRAILER:
        raise BundleError(f"{where}: truncated")
    if trailer[0] != 0:
        raise BundleError(f"{where}: compressed blocks are not supported; TensorFlow writes none")
    if _masked(google_crc32c.value(block + trailer[:1])) != int.from_bytes(trailer[1:], "little"):
        raise BundleError(f"{where}: checksum mismatch")
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end = size - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint of more than 64 bits")


def _masked(checksum: int) -> int:
    # stored checksums are masked, because the CRC of data with embedded CRCs is problematic
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# In SimCLR's TensorFlow 2 checkpoints, a variable's key follows its shortest path, such as
# ``trainable_weights/17/.ATTRIBUTES/VARIABLE_VALUE``, so variables are identified by the object graph, which has all
# paths (``TrackableObjectGraph`` in TensorFlow's ``trackable_object_graph.proto``). Source of the attributes' names:
# ``tf2/resnet.py`` of google-research/simclr.

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_STEM, _GROUPS = "initial_conv_relu_max_pool", "block_groups"
_VALUE = b"VARIABLE_VALUE"


@dataclass(frozen=True)
class _Node:
    children: dict[str, int]
    key: str | None  # key of its value in the checkpoint


def base_names(bundle: TensorBundle) -> dict[str, str]:
    """Map checkpoint keys to TensorFlow 1 names, such as ``base_model/conv2d_3/kernel``.

    Includes all keys of the ResNet; those of unknown layers map to themselves. Heads and optimiser are excluded.

    Raises:
        BundleError: the graph does not contain exactly one ResNet.
    """
    try:
        nodes = [
            _Node(
                {child.local_name.decode(): child.node_id for child in node.children},
                next((each.checkpoint_key.decode() for each in node.attributes if each.name == _VALUE), None),
            )
            for node in parsed("Graph", bundle.text(KEY)).nodes
        ]
    except (ValueError, IndexError) as error:
        raise BundleError(f"{bundle.prefix}: {KEY} is not an object graph ({error})") from error
    if any(not 0 <= child < len(nodes) for node in nodes for child in node.children.values()):
        raise BundleError(f"{bundle.prefix}: {KEY} refers to missing objects")
    roots = [node for node in nodes if _STEM in node.children and _GROUPS in node.children]
    if len(roots) != 1:
        raise BundleError(f"{bundle.prefix}: {len(roots)} networks with {_STEM} and {_GROUPS}, expected one")
    out = {key: key for node in _inside(nodes, roots[0]) if (key := node.key) is not None}
    counts = {"conv2d": 0, "batch_normalization": 0}
    for layer in _layers(nodes, roots[0]):
        for attribute, kind in (("conv2d", "conv2d"), ("bn", "batch_normalization")):
            if attribute not in layer.children:
                continue
            number = counts[kind]
            counts[kind] += 1
            name = f"base_model/{kind}_{number}" if number else f"base_model/{kind}"
            for part, child in nodes[layer.children[attribute]].children.items():
                key = nodes[child].key
                if key is not None:
                    out[key] = f"{name}/{part}"
    return out


def _inside(nodes: list[_Node], root: _Node) -> list[_Node]:
    seen: set[int] = set()
    waiting = list(root.children.values())
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            waiting += nodes[number].children.values()
    return [nodes[number] for number in seen]


def _layers(nodes: list[_Node], resnet: _Node) -> Iterator[_Node]:
    """Layers in the order in which TensorFlow 1 creates their variables."""
    yield from _items(nodes, resnet, _STEM)
    for group in _items(nodes, resnet, _GROUPS):
        for block in _items(nodes, group, "layers"):
            yield from _items(nodes, block, "projection_layers")
            yield from _items(nodes, block, "conv_relu_dropblock_layers")


def _items(nodes: list[_Node], node: _Node, name: str) -> list[_Node]:
    """The items of a list attribute in order; empty if the attribute does not exist."""
    if name not in node.children:
        return []
    members = nodes[node.children[name]].children
    return [nodes[members[number]] for number in sorted((key for key in members if key.isdigit()), key=int)]
