"""One way to open every kind of source: by what is there, or as the user says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import is_remote, photographs
from substyle.pipelines.sources.base import EXTENSIONS, Source
from substyle.pipelines.sources.config import AUTO, SourceConfig
from substyle.pipelines.sources.files import files_below
from substyle.pipelines.sources.folder import FolderSource
from substyle.pipelines.sources.hub import TABLE_KINDS, is_saved
from substyle.pipelines.sources.imagenet import ImageNetSource, is_flat
from substyle.pipelines.sources.listing import LIST_KINDS, ListSource
from substyle.pipelines.sources.names import WNID
from substyle.pipelines.sources.patterns import is_pattern
from substyle.pipelines.sources.table import TableSource
from substyle.pipelines.sources.tar import COMPRESSED_KINDS, TAR_KINDS, TarSource
from substyle.pipelines.sources.text import LeftOut

_OPEN: dict[str, Callable[[str, SourceConfig], Source]] = {
    "folder": FolderSource,
    "list": ListSource,
    "tar": TarSource,
    "parquet": TableSource,
    "imagenet": ImageNetSource,
}
ALLOWED = (
    "a folder of images, a list of them (.csv, .tsv), tar shards (.tar), Parquet files, a Hugging Face data set, or a "
    "pattern such as shards/train-{0000..0146}.tar, which may lie in a bucket: s3://, gs://, az://"
)


def open_source(path: str | Path, config: SourceConfig | None = None) -> Source:
    """Open photographs wherever they are.

    Args:
        path: a file, a folder, or a pattern with braces and wildcards.
        config: its kind and its columns; with kind ``auto`` the kind is the one that is there.

    Raises:
        ConfigError: nothing is there, several kinds are, or it is not what the configuration says.
        ObjectError: it lies in a bucket that cannot be asked.
    """
    path = photographs(path)
    config = config or SourceConfig()
    kind = kind_of(path, config) if config.kind == AUTO else config.kind
    if is_remote(path) and kind != "tar":
        raise ConfigError("images", str(path), f"tar shards (.tar) where they lie in a bucket, not {kind}")
    return _OPEN[kind](str(path), config.of_kind(kind))


def kind_of(path: str | Path, config: SourceConfig | None = None) -> str:
    """Which kind of source is there. Raises ConfigError when there is none, or several."""
    text = str(path)
    if is_remote(text):
        return kind_of_name(text) or "tar"
    if os.path.isdir(text):
        return _kind_of_folder(text, config or SourceConfig())
    if not (os.path.isfile(text) or is_pattern(text)):
        raise ConfigError("images", text, f"{ALLOWED}; nothing is there")
    kind = kind_of_name(text)
    if kind is None:
        raise ConfigError("images", text, f"{ALLOWED}; for a file of another name say source.kind")
    return kind


def kind_of_name(name: str) -> str | None:
    """Which kind of source a file or a pattern of that name is; None for no kind, such as that of one image."""
    by_end = {"tar": (*TAR_KINDS, *COMPRESSED_KINDS), "parquet": TABLE_KINDS, "list": LIST_KINDS}
    return next((kind for kind, ends in by_end.items() if name.lower().endswith(ends)), None)


def _kind_of_folder(root: str, config: SourceConfig) -> str:
    if config.synsets is not None:
        return "imagenet"
    if is_saved(root):
        return "parquet"
    left_out = LeftOut(root)  # its log is written by the source that is opened
    kinds = {
        **dict.fromkeys(EXTENSIONS, "folder"),
        **dict.fromkeys(TAR_KINDS, "tar"),
        **dict.fromkeys(TABLE_KINDS, "parquet"),
    }
    try:
        names = files_below(root, {*kinds, *LIST_KINDS}, left_out)
    except OSError as error:
        raise ConfigError("images", root, f"a folder that can be listed ({error.strerror})") from error
    ends = [os.path.splitext(name)[1].lower() for name in names]
    count = Counter(kinds[end] for end in ends if end in kinds)
    if len(count) > 1:
        there = ", ".join(f"{number} of kind {kind}" for kind, number in sorted(count.items()))
        raise ConfigError("images", root, f"files of one kind; there are {there}: say source.kind which")
    if not names and left_out.count:
        hint = "links that leave a folder are not followed; name the files themselves, with braces where there are many"
        raise ConfigError("images", root, f"files inside the folder{left_out.first()}; {hint}")
    lists = [name for name in names if name.lower().endswith(LIST_KINDS)]
    if not count and lists:
        raise ConfigError(
            "images", root, f"a folder that holds images; this one has a list: name it, {root}/{lists[0]}"
        )
    if "folder" in count and any(map(_is_flat_image, names)) and any(map(_is_synset, names)):
        raise ConfigError(
            "source.synsets", "nothing", f"a file with the synsets of the images in {root}/val, which is flat"
        )
    return next(iter(count), "folder")


def _is_flat_image(name: str) -> bool:
    return is_flat(name) and name.lower().endswith(tuple(EXTENSIONS))


def _is_synset(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 2 and parts[0] == "train" and WNID.fullmatch(parts[1]) is not None
