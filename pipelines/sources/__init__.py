"""Sources of photographs: a source lists its images once and reads their bytes on demand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from substyle.kernels.errors import ConfigError, MissingError
from substyle.pipelines import limits
from substyle.pipelines.sources.base import (
    AUTO,
    EXTENSIONS,
    SPLIT_FOLDERS,
    SPLITS,
    ImageRecord,
    LeftOut,
    Records,
    Source,
    SourceConfig,
    Understood,
    shown,
)
from substyle.pipelines.sources.files import files_below, is_pattern
from substyle.pipelines.sources.folder import LIST_KINDS, FolderSource, ImageNetSource, ListSource, is_flat
from substyle.pipelines.sources.hf_dataset import TABLE_KINDS, is_saved
from substyle.pipelines.sources.labels import WNID
from substyle.pipelines.sources.npz import NPZ_KINDS, NpzSource
from substyle.pipelines.sources.parquet import TableSource
from substyle.pipelines.sources.tar import COMPRESSED_KINDS, TAR_KINDS, TarSource
from substyle.pipelines.storage import is_remote, photographs

_NAMES, _KINDS = 3, 8  # skipped names and suffixes to show


def describe(source: Source) -> str:
    """Summarise a source on one line: images, classes, splits and what was skipped.

    For example ``folder photos/: 1,600 images, 10 classes, splits train 1,000, val 200, test 400 (from folders);
    skipped 3 files: .cr2 2, .txt 1``.
    """
    found = source.understood
    root = source.root if not os.path.isdir(source.root) else source.root.rstrip("/") + "/"
    head = f"{source.options['kind']} {shown(root)}: {_images(source)}, {_classes(source)}, {_splits(source)}"
    columns = ", ".join(f"{what} column {shown(name)}" for what, name in found.columns.items())
    return "; ".join(filter(None, (head, columns, *found.remarks, *_not_taken(found.left_out))))


def _images(source: Source) -> str:
    return _number(len(source.records), "image")


def _classes(source: Source) -> str:
    if not source.class_names:
        return "no classes"
    records = source.records
    without = records.unlabelled if isinstance(records, Records) else sum(r.label is None for r in records)
    some = f" ({_number(without, 'image')} without)" if without else ""
    return _number(len(source.class_names), "class", "classes") + some


def _splits(source: Source) -> str:
    records = source.records
    count = Counter(records.splits() if isinstance(records, Records) else (record.split for record in records))
    parts = [f"{split} {count[split]:,}" for split in SPLITS if count[split]]
    if not parts:
        return "no splits"
    if count[None]:
        parts.append(f"without {count[None]:,}")
    return f"splits {', '.join(parts)} (from {source.understood.splits_from})"


def _not_taken(left_out: LeftOut) -> list[str]:
    parts = []
    if left_out.total:
        parts.append(f"left out {left_out.total:,}: {_first(sorted(left_out.names), _NAMES, left_out.total)}")
    if left_out.skipped:
        most_first = sorted(left_out.skipped.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{shown(suffix)[:20] or 'no suffix'} {count:,}" for suffix, count in most_first]
        number = _number(left_out.skipped.total(), "file")
        parts.append(f"skipped {number}: {_first(kinds, _KINDS, len(kinds))}")
    if left_out.substyle_folders:
        parts.append(f"{_number(left_out.substyle_folders, 'substyle folder')} skipped")
    return parts


def _first(names: Sequence[str], count: int, total: int) -> str:
    more = total - min(count, len(names))
    return ", ".join(map(shown, names[:count])) + (f" and {more:,} more" if more else "")


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


class Named:
    """A source whose keys are ``<name>/<key>``, so that several sources share one store.

    Args:
        source: the wrapped source.
        name: prefix of the keys, without the slash.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.records: Sequence[ImageRecord] = _Renamed(source.records, f"{name}/")

    @property
    def root(self) -> str:
        """The root of the wrapped source."""
        return self.source.root

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names indexed by label."""
        return self.source.class_names

    @property
    def understood(self) -> Understood:
        """How the source was interpreted."""
        return self.source.understood

    @property
    def options(self) -> Mapping[str, str]:
        """The options that reopen the wrapped source."""
        return self.source.options


class _Renamed(Sequence[ImageRecord]):
    def __init__(self, records: Sequence[ImageRecord], prefix: str) -> None:
        self._records, self._prefix = records, prefix

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self._of(record) for record in self._records[index]]
        return self._of(self._records[index])

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._of, self._records)

    def _of(self, record: ImageRecord) -> ImageRecord:
        return replace(record, key=self._prefix + record.key)


def absolute_root(root: str) -> str:
    """Make the root of a source absolute; URLs and empty roots are unchanged."""
    return root if is_remote(root) or not root else os.path.abspath(root)


_OPEN: dict[str, Callable[[str, SourceConfig], Source]] = {
    "folder": FolderSource,
    "list": ListSource,
    "tar": TarSource,
    "parquet": TableSource,
    "npz": NpzSource,
    "imagenet": ImageNetSource,
}
ALLOWED = (
    "a folder of images, a list of them (.csv, .tsv), tar shards (.tar), Parquet files, a Hugging Face dataset, a "
    "NumPy archive (.npz), or a pattern such as shards/train-{0000..0146}.tar; tar shards may be in a bucket (s3://, "
    "gs://, az://)"
)


def open_source(path: str | Path, config: SourceConfig | None = None) -> Source:
    """Open a source of photographs.

    Args:
        path: a file, a folder, a URL, or a pattern with braces and wildcards.
        config: kind and columns; kind ``auto`` detects the kind.

    Raises:
        ConfigError: nothing found, files of several kinds, or a mismatch with the configuration.
        ObjectError: a request to a bucket failed.
    """
    path = photographs(path)
    config = config or SourceConfig()
    kind = kind_of(path, config) if config.kind == AUTO else config.kind
    if is_remote(path) and kind != "tar":
        raise ConfigError("images", str(path), f"tar shards (.tar) in a bucket, not {kind}")
    with limits.named(path):
        return _OPEN[kind](str(path), config.of_kind(kind))


def kind_of(path: str | Path, config: SourceConfig | None = None) -> str:
    """Detect the kind of a source. Raises ConfigError if there is none or more than one."""
    text = str(path)
    if is_remote(text):
        return kind_of_name(text) or "tar"
    if os.path.isdir(text):
        return _kind_of_folder(text, config or SourceConfig())
    if not (os.path.isfile(text) or is_pattern(text)):
        raise ConfigError("images", text, f"{ALLOWED}; this path does not exist")
    kind = kind_of_name(text)
    if kind is None:
        raise ConfigError("images", text, f"{ALLOWED}; for other file names set source.kind")
    return kind


def kind_of_name(name: str) -> str | None:
    """The kind of source by the ending of a file name or pattern; None for other endings, such as an image's."""
    by_end = {"tar": (*TAR_KINDS, *COMPRESSED_KINDS), "parquet": TABLE_KINDS, "list": LIST_KINDS, "npz": NPZ_KINDS}
    return next((kind for kind, ends in by_end.items() if name.lower().endswith(ends)), None)


def _kind_of_folder(root: str, config: SourceConfig) -> str:
    if config.synsets is not None:
        return "imagenet"
    if is_saved(root):
        return "parquet"
    left_out = LeftOut(root)  # logged by the source when it is opened
    kinds = {
        **dict.fromkeys(EXTENSIONS, "folder"),
        **dict.fromkeys(TAR_KINDS, "tar"),
        **dict.fromkeys(TABLE_KINDS, "parquet"),
    }
    try:
        names = files_below(root, {*kinds, *LIST_KINDS}, left_out)
    except OSError as error:
        raise ConfigError("images", root, f"a readable folder ({error.strerror})") from error
    ends = [os.path.splitext(name)[1].lower() for name in names]
    count = Counter(kinds[end] for end in ends if end in kinds)
    if len(count) > 1:
        counts = ", ".join(f"{number} of kind {kind}" for kind, number in sorted(count.items()))
        raise ConfigError("images", root, f"files of one kind; found {counts}: choose one with source.kind")
    if not names and left_out.count:
        hint = "links that leave the folder are not followed: pass the files themselves, with braces for many"
        raise ConfigError("images", root, f"files inside the folder{left_out.first()}; {hint}")
    lists = [name for name in names if name.lower().endswith(LIST_KINDS)]
    if not count and lists:
        raise ConfigError("images", root, f"a folder of images; this one has none, but a list: pass {root}/{lists[0]}")
    if "folder" in count and any(map(_is_flat_image, names)) and any(map(_is_synset, names)):
        raise MissingError("source.synsets", f"{root}/val is flat; name the file with the synsets of its images")
    return next(iter(count), "folder")


def _is_flat_image(name: str) -> bool:
    return is_flat(name) and name.lower().endswith(tuple(EXTENSIONS))


def _is_synset(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 2 and parts[0] == "train" and WNID.fullmatch(parts[1]) is not None


__all__ = [
    "EXTENSIONS",
    "SPLITS",
    "SPLIT_FOLDERS",
    "FolderSource",
    "ImageNetSource",
    "ImageRecord",
    "ListSource",
    "Named",
    "NpzSource",
    "Records",
    "Source",
    "SourceConfig",
    "TableSource",
    "TarSource",
    "Understood",
    "absolute_root",
    "describe",
    "kind_of",
    "kind_of_name",
    "open_source",
]
