"""Sources of photographs: a source lists its images once and reads their bytes on demand.

Other packages import `base`, `files`, `labels`, `metadata`, `tar_files`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from substyle.errors import ConfigError, MissingError, abbreviated
from substyle.pipelines import limits
from substyle.pipelines.image_formats import EXTENSIONS
from substyle.pipelines.sources.base import (
    AUTO,
    KINDS,
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
from substyle.pipelines.sources.files import files_below, is_pattern, mark_of
from substyle.pipelines.sources.folder import FolderSource
from substyle.pipelines.sources.image_list import LIST_KINDS, ListSource
from substyle.pipelines.sources.imagenet import ImageNetSource, is_flat
from substyle.pipelines.sources.labels import WNID
from substyle.pipelines.sources.metadata import Grouped
from substyle.pipelines.sources.table import TableSource
from substyle.pipelines.sources.tar import TarSource
from substyle.pipelines.sources.wrapped import Changed, Named
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
        names = [shown(name) for name in sorted(left_out.names)]
        parts.append(f"left out {left_out.total:,}: {abbreviated(names, _NAMES, left_out.total)}")
    if left_out.skipped:
        most_first = sorted(left_out.skipped.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{shown(suffix)[:20] or 'no suffix'} {count:,}" for suffix, count in most_first]
        number = _number(left_out.skipped.total(), "file")
        parts.append(f"skipped {number}: {abbreviated(kinds, _KINDS)}")
    if left_out.substyle_folders:
        parts.append(f"{_number(left_out.substyle_folders, 'substyle folder')} skipped")
    return parts


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _marked(code: str, record: ImageRecord) -> ImageRecord:
    """A record whose mark changes with the code that reads it, and so do those of its variants."""
    return replace(record, mark=partial(_mark, record.mark, code), variant=partial(_variant, record.variant, code))


def _variant(variant: Callable[[str], ImageRecord | None], code: str, transformation: str) -> ImageRecord | None:
    found = variant(transformation)
    return found and _marked(code, found)


def _mark(mark: Callable[[], int], code: str) -> int:
    found = mark()
    return mark_of(found, code) if found else 0


def absolute_root(root: str) -> str:
    """Make the root of a source absolute; URLs and empty roots are unchanged."""
    return root if is_remote(root) or not root else os.path.abspath(root)


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
    if is_remote(path) and not KINDS[kind].remote:
        raise ConfigError("images", str(path), f"tar shards (.tar) in a bucket, not {kind}")
    with limits.named(path):
        source = KINDS[kind].opener(str(path), replace(config, kind=kind, group=""))
    if source.options.get("kind") != kind:  # a store would reopen it as another
        raise ConfigError(f"options of source kind {kind}", dict(source.options), f"kind = {kind}")
    code = KINDS[kind].code
    if code and any(one.key >= other.key for one, other in pairwise(source.records)):
        raise ConfigError(
            f"source kind {kind}", "records in another order", "records sorted by key, without repetition"
        )
    source = Changed(source, partial(_marked, code)) if code else source
    return Grouped(source, config.group) if config.group else source


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
    found = next((kind.name for kind in KINDS.values() if name.lower().endswith(kind.endings)), None)
    if found is None and not name.lower().endswith(tuple(EXTENSIONS)) and _more_kinds():
        return kind_of_name(name)
    return found


def _more_kinds() -> bool:
    """Whether installed packages bring kinds of sources that were not asked for before."""
    before = len(KINDS)
    KINDS.load()
    return len(KINDS) > before


def _kind_of_folder(root: str, config: SourceConfig) -> str:
    KINDS.load()  # first: which kind a folder is must not depend on what was asked for before
    for kind in reversed(KINDS.values()):
        if kind.claims is not None and kind.claims(root, config):
            return kind.name
    left_out = LeftOut(root)  # logged by the source when it is opened
    kinds = {ending: kind.name for kind in KINDS.values() for ending in kind.members}
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
    "SPLITS",
    "SPLIT_FOLDERS",
    "FolderSource",
    "ImageNetSource",
    "ImageRecord",
    "ListSource",
    "Named",
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

for _module in pkgutil.iter_modules(__path__):  # each registers its kind; those above are imported for their names
    importlib.import_module(f"{__name__}.{_module.name}")
