"""Source of images in a NumPy archive, such as those of MedMNIST."""

from __future__ import annotations

import errno
import io
import math
import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from typing import IO

import numpy as np
from PIL import Image

from substyle.kernels.errors import ConfigError
from substyle.pipelines import limits
from substyle.pipelines.image_header import MAX_PIXELS
from substyle.pipelines.sources.base import (
    IMAGE_BYTES,
    SPLITS,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    label_text,
    register_source,
)
from substyle.pipelines.sources.files import FileState, mark_of_file
from substyle.pipelines.sources.labels import read_names

NPZ_KINDS = (".npz",)
_BLOCK_BYTES = 32 << 20  # of pixels decompressed at once
_BLOCKS = 4  # cached: readers request neighbouring rows, and going back decompresses an array from its start
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class _Pixels:
    """An array of images (N, H, W) or (N, H, W, 3) uint8 in an archive, decompressed in blocks of rows."""

    def __init__(self, path: str, stamp: FileState, archive: zipfile.ZipFile, member: str) -> None:
        self.path, self.member, self._stamp = path, member, stamp
        with archive.open(member) as file:
            shape, fortran, dtype = limits.array_header(file)
            self._start, size = file.tell(), archive.getinfo(member).file_size
        if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise ValueError(
                f"{member}: {dtype} of shape {shape}; allowed: uint8, (N, H, W) or (N, H, W, 3), in C order"
            )
        self.count, self.shape = shape[0], shape[1:]
        self._size = math.prod(self.shape)
        if not self._size or self.count * self._size != size - self._start or math.prod(self.shape[:2]) > MAX_PIXELS:
            raise ValueError(f"{member}: {size:,} bytes for an array of shape {shape}")
        limits.require_rows(member, self.count, stamp.size, IMAGE_BYTES)
        self._rows = max(1, _BLOCK_BYTES // self._size)
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, row: int) -> bytes:
        """Encode an image as BMP, whose bytes do not depend on a library's compression. Raises OSError."""
        with self._lock:
            block = self._blocks.get(row // self._rows) or self._decompress(row // self._rows)
            self._blocks.move_to_end(row // self._rows)
        start = row % self._rows * self._size
        pixels = np.frombuffer(block, np.uint8, self._size, start).reshape(self.shape)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if self.shape[2:] == (1,) else pixels).convert("RGB").save(file, "BMP")
        return file.getvalue()

    def _decompress(self, number: int) -> bytes:
        if FileState.of_path(self.path) != self._stamp:
            raise OSError(errno.ESTALE, "file changed since it was listed", self.path)
        try:
            if self._file is None:
                self._file = zipfile.ZipFile(self.path).open(self.member)  # noqa: SIM115 (stays open for the next block)
            self._file.seek(self._start + number * self._rows * self._size)
            rows = min(self._rows, self.count - number * self._rows)
            block = self._file.read(rows * self._size)
            if len(block) < rows * self._size:
                raise ValueError("array ends early")
        except _DAMAGE as error:
            self._file = None
            raise OSError(errno.EIO, f"{self.member} cannot be read: {error}", self.path) from error
        self._blocks[number] = block
        while len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return block


@register_source("npz", options=("names",), endings=NPZ_KINDS, position=4)
class NpzSource:
    """Images in arrays of a NumPy archive.

    The archive has arrays ``train_images``, ``val_images`` and ``test_images``, or any of them, as MedMNIST does, or
    one array ``images``: uint8, (N, H, W) or (N, H, W, 3). Labels are integers in ``train_labels``, …, of shape (N,) or
    (N, 1); a negative one means none. Several labels per image make no classes. A key is ``<split>/<row>``, such as
    ``train/000000017``.

    Raises:
        ConfigError: not an archive, no such arrays, or arrays of other types and shapes.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("npz")
        self.root, self.options = str(root), config.options()
        readable = read_names(config.names)
        keys: list[str] = []
        labels: list[str | None] = []
        splits: list[str | None] = []
        self._arrays: list[tuple[int, _Pixels]] = []  # index of the first image
        remarks: dict[str, None] = {}
        try:
            stamp = FileState.of_path(self.root)
            with zipfile.ZipFile(self.root) as archive:
                members = set(archive.namelist())
                for split in (*SPLITS, None):
                    prefix = f"{split}_" if split else ""
                    if f"{prefix}images.npy" not in members:
                        continue
                    array = _Pixels(self.root, stamp, archive, f"{prefix}images.npy")
                    self._arrays.append((len(keys), array))
                    keys += [f"{split or 'images'}/{row:09d}" for row in range(array.count)]
                    splits += [split] * array.count
                    labels += map(readable.of, _labels(archive, array, remarks))
        except _DAMAGE as error:
            raise ConfigError("images", self.root, f"a NumPy archive of images ({error})") from error
        if not keys:
            raise ConfigError("images", self.root, "an archive with images in an array images, or train_images, …")
        given = splits if any(splits) else None
        self.understood = Understood(
            LeftOut(self.root), splits_from="the names of the arrays" if given else "", remarks=tuple(remarks)
        )
        self.records = Records(keys, labels, given, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _place(self, place: int) -> tuple[_Pixels, int]:
        first, array = next((first, array) for first, array in reversed(self._arrays) if first <= place)
        return array, place - first

    def _read(self, place: int) -> bytes:
        array, row = self._place(place)
        return array.read(row)

    def _mark(self, place: int) -> int:
        return mark_of_file(self.root, place)


def _labels(archive: zipfile.ZipFile, array: _Pixels, remarks: dict[str, None]) -> list[str | None]:
    """The labels beside an array of images; nothing is read before shape and type fit."""
    name = array.member.removesuffix(".npy").replace("images", "labels")
    nothing: list[str | None] = [None] * array.count
    if f"{name}.npy" not in archive.namelist():
        remarks[f"no array {name}: no classes"] = None
        return nothing
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = limits.array_header(file)
        if shape[:1] != (array.count,) or len(shape) > 2 or dtype.kind not in "iu":
            raise ValueError(f"{name}: {dtype} of shape {shape}; allowed: {array.count} integers")
        if shape[1:] not in ((), (1,)):
            remarks[f"several labels per image in {name}: no classes"] = None
            return nothing
        label_N = np.frombuffer(file.read(array.count * dtype.itemsize), dtype, array.count)
    return [label_text(value) if value >= 0 else None for value in label_N.tolist()]
