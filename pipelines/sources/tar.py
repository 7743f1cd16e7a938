"""Source of images in WebDataset tar shards, on disk or in a bucket: indexed by their headers, read by offset."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Any

from substyle import files
from substyle.errors import ConfigError
from substyle.pipelines.image_formats import IMAGE_KINDS
from substyle.pipelines.sources import tar_files
from substyle.pipelines.sources.base import (
    MAX_TEXT,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    key_text,
    label_text,
    register_source,
    words,
)
from substyle.pipelines.sources.files import Shard, shards
from substyle.pipelines.sources.labels import Names, read_names, splits_of_files
from substyle.pipelines.sources.tar_files import LocalShard, RemoteShard, ShardFile, Spans
from substyle.pipelines.storage import each, is_remote

TAR_KINDS = (".tar",)
COMPRESSED_KINDS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
JSON_LABEL = "label"
MAX_CLS, MAX_JSON = 4096, 1 << 20  # bytes of a label member
_CACHE = "listings"  # folder
_CUT = -1  # size of a truncated image


@dataclass(slots=True)
class _Sample:
    """The image and labels of one key."""

    offset: int = 0
    size: int = 0
    rank: tuple[int, int] | None = None
    labels: dict[str, str | None] = field(default_factory=dict)


@register_source(
    "tar",
    options=("json_label", "names"),
    endings=(*TAR_KINDS, *COMPRESSED_KINDS),
    members=TAR_KINDS,
    remote=True,
    position=2,
)
class TarSource:
    """Images in a tar file, a folder of tar files, or the files of a pattern (see `shards`), on disk or in a bucket.

    Members whose names agree up to the first dot of the base name form a sample: ``cat/0001.jpg``, ``cat/0001.cls``,
    ``cat/0001.json``. The image is the member with an image extension (``.jpg`` before ``.png``, a plain extension
    before one like ``.seg.png``). The label is the text or number in ``.cls``, else the field ``label`` of ``.json``;
    a field given as ``config.json_label`` takes precedence. Names of shards define splits if each names one of train,
    val and test, and one is train.

    A key is ``<shard>/<member up to the first dot>``, such as ``train-0000.tar/cat/0001``; with the shard, adding
    shards changes no existing key. The first member of a repeated name in a shard counts.

    Links, devices, sparse files, absolute names and names with ``..`` are skipped with a warning. Images before damage
    in a shard are kept; a truncated image fails when read.

    Raises:
        ConfigError: nothing found, a compressed shard, or no images.
        ObjectError: a request to a bucket failed; also raised when images are read.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("tar")
        self.root, self.options = str(root), config.options()
        if self.root.lower().endswith(COMPRESSED_KINDS):
            raise ConfigError("images", self.root, "uncompressed tar files, which allow random access")
        left_out = LeftOut(self.root)
        self._index = _Index()
        found = shards(self.root, TAR_KINDS, left_out)
        splits = splits_of_files([shard.name for shard in found])
        readable = read_names(config.names)

        def listed(shard: Shard) -> _Listing:
            return _Listing.of(shard, config.json_label, LeftOut(self.root))

        for number, listing in enumerate(each(listed, found) if is_remote(self.root) else map(listed, found)):
            left_out.extend(listing.left_out)
            self._index.add(listing, splits[number] if splits else None, config.json_label, readable)
        self.refused = left_out.tell()
        if not self._index.keys:
            kinds = " ".join(IMAGE_KINDS)
            raise ConfigError("images", self.root, f"tar files with images ({kinds}){left_out.first()}")
        index = self._index
        given = index.splits if splits else None
        self.understood = Understood(left_out, splits_from="the names of the shards" if given else "")
        self.records = Records(index.keys, index.labels, given, index.file, readable.order())
        del index.keys, index.labels, index.splits
        self.class_names = self.records.class_names


@dataclass
class _Listing:
    """Samples of one shard by key, and what was skipped.

    Kept in the user's cache by the mark of the file: the headers of a shard lie between its images, so that a list of
    them takes as long as reading it.
    """

    name: str
    file: ShardFile
    samples: dict[str, _Sample]
    left_out: LeftOut

    @staticmethod
    def of(shard: Shard, json_label: str, left_out: LeftOut) -> _Listing:
        """List a shard; an unreadable one has no samples. Raises ConfigError if it is compressed."""
        file = RemoteShard(shard.path) if is_remote(shard.path) else LocalShard(shard.path)
        samples: dict[str, _Sample] = {}
        try:
            with file.opened() as spans:
                mark = file.mark(0)
                path = shard.path if is_remote(shard.path) else os.path.abspath(shard.path)
                facts = json.dumps([_LISTED, IMAGE_KINDS, path, shard.name, mark, json_label])
                kept = f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
                if mark and (found := _kept(kept, spans.size)):
                    left_out.extend(LeftOut.of(found["left_out"]))
                    return _Listing(shard.name, file, {key: _Sample(*row) for key, *row in found["samples"]}, left_out)
                packed = tar_files.compression(spans)
                if packed:
                    raise ConfigError("images", shard.path, f"uncompressed tar files; this one is {packed}")
                samples = _samples(spans, shard, json_label, left_out)
                if mark:
                    _keep(kept, samples, left_out)
        except OSError as error:
            left_out.add(shard.name, f"cannot be read: {error.strerror}")
        return _Listing(shard.name, file, samples, left_out)


_LISTED = 1  # rises where listings of the same shard change


def _kept(name: str, size: int) -> dict[str, Any] | None:
    """A listing in the cache of a shard of ``size`` bytes; None if there is none, or it is not whole."""
    with suppress(OSError, ValueError, KeyError, TypeError, files.UnsafeFileError):
        found: dict[str, Any] = json.loads(files.read_private(files.cache_root() / _CACHE / name))
        # `_CUT` images are not read
        if all(offset >= 0 and offset + max(length, 0) <= size for _, offset, length, *_ in found["samples"]):
            return found
    return None


def _keep(name: str, samples: Mapping[str, _Sample], left_out: LeftOut) -> None:
    rows = [(key, *astuple(sample)) for key, sample in samples.items() if sample.rank is not None]
    with suppress(OSError, files.UnsafeFileError):  # without a cache, it is listed again
        text = json.dumps({"samples": rows, "left_out": vars(left_out)})
        files.write(files.cache_folder(_CACHE) / name, text, mode=0o600)


class _Index:
    """Location of every image, as parallel lists."""

    def __init__(self) -> None:
        self.shards: list[tuple[str, ShardFile]] = []
        self.keys: list[str] = []
        self.labels: list[str | None] = []
        self.splits: list[str | None] = []
        self._shard, self._offset, self._size = array("l"), array("q"), array("q")

    def add(self, listing: _Listing, split: str | None, json_label: str, readable: Names) -> None:
        """Add the images of one shard."""
        number = len(self.shards)
        self.shards.append((listing.name, listing.file))
        for key, sample in listing.samples.items():
            if sample.rank is None:
                continue
            order = ("json", "cls") if json_label else ("cls", "json")
            label = sample.labels.get(order[0]) or sample.labels.get(order[1])
            self.keys.append(f"{listing.name}/{key}")
            self.labels.append(readable.of(label))
            self.splits.append(split)
            self._shard.append(number)
            self._offset.append(sample.offset)
            self._size.append(sample.size)

    def file(self, place: int) -> _Member:
        """The image at an index of the lists."""
        return _Member(*self.shards[self._shard[place]], self._offset[place], self._size[place])


@dataclass(frozen=True, slots=True)
class _Member:
    """An image in a shard."""

    name: str  # of the shard
    shard: ShardFile
    offset: int
    size: int

    def read(self) -> bytes:
        """See `ImageRecord`."""
        if self.size == _CUT:
            raise OSError(errno.EIO, "tar file ends inside this image", self.name)
        return self.shard.read(self.offset, self.size)

    def mark(self) -> int:
        """See `ImageRecord`."""
        return self.shard.mark(self.offset)


def _samples(file: Spans, shard: Shard, json_label: str, left_out: LeftOut) -> dict[str, _Sample]:
    """The samples of a shard by key."""
    samples: dict[str, _Sample] = {}
    try:
        for member in tar_files.members(file):
            where = f"{shard.name}: {member.name}"
            if member.kind == tar_files.FOLDER:
                continue
            if member.kind != tar_files.FILE:
                left_out.add(where, f"is a {member.kind}; skipped")
                continue
            name = _safe(member.name)
            if name is None:
                left_out.add(where, "is not a path inside the tar file; skipped")
                continue
            key, kind = _split(name)
            if not key:
                continue
            sample = samples.setdefault(key, _Sample())
            rank = _rank(kind)
            if rank is not None:
                if sample.rank is not None:
                    left_out.note(where, "is another image of its sample; only one is used")
                if sample.rank is None or rank < sample.rank:
                    sample.rank, sample.offset, sample.size = rank, member.offset, member.size if member.whole else _CUT
            elif kind not in _LABELS:
                left_out.skip(member.name)
            elif member.whole and kind not in sample.labels:
                try:
                    sample.labels[kind] = _label(file, member, kind, json_label)
                except (ValueError, RecursionError) as error:
                    sample.labels[kind] = None
                    left_out.note(where, f"has no valid label: {words(error)}")
    except tar_files.TarDamage as damage:
        left_out.add(shard.name, str(damage))
    return samples


def _safe(name: str) -> str | None:
    """A member's name without ``.`` and double slashes; None if it is absolute, has ``..`` or is invalid."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or not parts or len(name) > MAX_TEXT:
        return None
    return key_text("/".join(parts))


def _split(name: str) -> tuple[str, str]:
    """Split a name into key and extension at the first dot of its base name; both are empty for a leading dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.partition(".")
    return (folder + slash + stem, kind.lower()) if stem and dot else ("", "")


def _rank(kind: str) -> tuple[int, int] | None:
    """The precedence of an image extension in its sample; None for other extensions."""
    inner, _, last = kind.rpartition(".")
    return (bool(inner), IMAGE_KINDS.index(f".{last}")) if f".{last}" in IMAGE_KINDS else None


def _label(file: Spans, member: tar_files.TarMember, kind: str, json_label: str) -> str | None:
    """Parse the label in a member. Raises ValueError or RecursionError if it is invalid."""
    read, limit = _LABELS[kind]
    if member.size > limit:
        raise ValueError(f"{member.size} bytes")
    return read(file.read(member.size, member.offset), json_label)


def _cls(data: bytes, json_label: str) -> str | None:
    del json_label
    return label_text(data.decode("utf-8"))


def _json(data: bytes, json_label: str) -> str | None:
    content = json.loads(data)
    return label_text(content.get(json_label or JSON_LABEL)) if isinstance(content, dict) else None


_LABELS: dict[str, tuple[Callable[[bytes, str], str | None], int]] = {"cls": (_cls, MAX_CLS), "json": (_json, MAX_JSON)}
