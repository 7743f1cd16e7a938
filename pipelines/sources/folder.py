"""Source of image files in a folder."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from substyle.errors import ConfigError, abbreviated
from substyle.pipelines.image_formats import EXTENSIONS
from substyle.pipelines.sources.base import (
    SPLITS_ARE_CLASSES,
    SPLITS_ARE_FOLDERS,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    key_text,
    register_source,
    shown,
)
from substyle.pipelines.sources.files import FileBelow, files_below
from substyle.pipelines.sources.labels import read_names, split_word


@register_source("folder", options=("splits", "names"), members=EXTENSIONS, position=0)
class FolderSource:
    """Images in a folder and its subfolders.

    The first folder of ``root/<class>/…/image.jpg`` is the class; ``root/image.jpg`` has no label. If all top-level
    folders with images have names of splits (see `SPLIT_FOLDERS`; case is ignored) and one of them is train, they are
    the splits and the next folder is the class. If only some do, or train is missing, ``config.splits`` decides. A key
    is the path relative to the root. Links that leave the root are skipped with a warning, files without a known image
    extension silently.

    Raises:
        ConfigError: the root is not a folder, holds no images, or its splits are ambiguous.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("folder")
        self.root, self.options = str(root), config.options()
        names, left_out = images_below(self.root)
        tops = Counter(_part(key_text(name), 0) for name in names)
        split_of = _split_folders(self.root, tops, config.splits)
        if split_of:
            names = _in_splits(names, split_of, tops, left_out)
        self.refused = left_out.tell()
        self.understood = Understood(left_out, splits_from="folders" if split_of else "")
        keys = [key_text(name) for name in names]
        readable = read_names(config.names)
        labels = [_part(key, int(bool(split_of))) for key in keys]
        splits = [split_of[_part(key, 0) or ""] for key in keys] if split_of else None
        files = FileBelow.each(os.path.realpath(root), names)
        named = [readable.of(label) for label in labels]
        self.records = Records(keys, named, splits, files, readable.order())
        self.class_names = self.records.class_names


def _part(key: str, number: int) -> str | None:
    """The folder of a key at some depth, interned; None if the key is not that deep."""
    parts = key.split("/", number + 1)
    return sys.intern(parts[number]) if len(parts) > number + 1 else None


def _split_folders(root: str, tops: Mapping[str | None, int], choice: str) -> dict[str, str]:
    """The split of each top-level folder; empty if the folders are classes.

    Args:
        tops: number of images by top-level folder; None is the root itself.
        choice: ``SourceConfig.splits``.

    Raises:
        ConfigError: some folders have names of splits, and ``choice`` does not decide.
    """
    split_of = {top: split for top in tops if top is not None and (split := split_word(top))}
    if choice == SPLITS_ARE_CLASSES or not split_of:
        return {}
    if choice == SPLITS_ARE_FOLDERS or (len(split_of) == len(tops) and "train" in split_of.values()):
        return split_of
    others = [f"{top}/" for top in sorted(top for top in tops if top is not None and top not in split_of)]
    if None in tops:
        others.append(f"images in the root folder ({tops[None]})")
    splits = abbreviated([f"{shown(top)}/" for top in sorted(split_of)], 8)
    beside = f"beside {abbreviated([shown(name) for name in others], 8)}" if others else "without train/"
    left_out = "; the rest is skipped" if others else ""
    raise ConfigError(
        "source.splits",
        f"{splits} {beside} in {root}",
        f"source.splits = {SPLITS_ARE_FOLDERS} ({splits} are splits{left_out}) or source.splits = {SPLITS_ARE_CLASSES} "
        f'(all folders are classes); in a study file, splits = "{SPLITS_ARE_FOLDERS}" or "{SPLITS_ARE_CLASSES}" '
        "in [source]",
    )


def _in_splits(
    names: Sequence[str], split_of: Mapping[str, str], tops: Mapping[str | None, int], left_out: LeftOut
) -> list[str]:
    """Keep the images in split folders; report the others, a folder at a time."""
    kept: list[str] = []
    for name in names:
        top = _part(key_text(name), 0)
        if top in split_of:
            kept.append(name)
        elif top is None:
            left_out.add(name, "is not in a split folder; skipped")
    for top in sorted(top for top in tops if top is not None and top not in split_of):
        left_out.add(f"{top}/", f"is not a split folder; skipped with its images ({tops[top]})")
    return kept


def images_below(root: str) -> tuple[Sequence[str], LeftOut]:
    """List the images below a folder, and what was skipped.

    Raises:
        ConfigError: not a folder, or no images in it.
    """
    left_out = LeftOut(root)
    if not os.path.isdir(root):
        raise ConfigError("images", root, "a folder of images")
    try:
        names = files_below(root, EXTENSIONS, left_out)
    except OSError as error:
        raise ConfigError("images", root, f"a readable folder ({error.strerror})") from error
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(key_text(name), name) != name:
            left_out.add(name, "has the same key as another image; skipped")
    if not known:
        left_out.tell()
        kinds = " ".join(sorted(EXTENSIONS))
        raise ConfigError("images", root, f"a folder of images ({kinds}); this one has none")
    return list(known.values()), left_out
