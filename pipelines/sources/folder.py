"""Photographs in a folder and the folders below it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import EXTENSIONS, Records, Understood
from substyle.pipelines.sources.config import SPLITS_ARE_CLASSES, SPLITS_ARE_FOLDERS, SourceConfig
from substyle.pipelines.sources.files import files_below, mark_of_file, read_below
from substyle.pipelines.sources.names import read_names, split_word
from substyle.pipelines.sources.text import LeftOut, key_text, shown


class FolderSource:
    """Images in a folder and all folders below it.

    ``root/<class>/…/image.jpg`` labels images by the first folder, ``root/image.jpg`` leaves them without a label. When
    all top-level folders with images are named like a split (see `SPLIT_FOLDERS`; case is ignored) and one of them is a
    train split, they are the splits and the class is the folder inside. When only some are, or train is missing,
    ``config.splits`` has to say what they are. A key is the image's path in the folder. A link that leaves the root is
    not followed; a warning names it. Files without a known image extension are skipped.

    Raises:
        ConfigError: the root is not a folder, holds no image, or it is unclear which of its folders are splits.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("folder")
        self.root, self.options = str(root), config.options()
        self.path = Path(os.path.realpath(root))
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
        self._names = names
        named = [readable.of(label) for label in labels]
        self.records = Records(keys, named, splits, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(str(self.path), self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self.path, self._names[place]))


def _part(key: str, number: int) -> str | None:
    """The folder of a key at some depth, None where the image itself is: one object for all that share it."""
    parts = key.split("/", number + 1)
    return sys.intern(parts[number]) if len(parts) > number + 1 else None


def _split_folders(root: str, tops: Mapping[str | None, int], choice: str) -> dict[str, str]:
    """The split of each top-level folder that is one; empty when the folders are classes.

    Args:
        tops: number of images by top-level folder; None stands for the root itself.
        choice: ``SourceConfig.splits``.

    Raises:
        ConfigError: some folders are named like a split, and neither the others nor ``choice`` settle it.
    """
    split_of = {top: split for top in tops if top is not None and (split := split_word(top))}
    if choice == SPLITS_ARE_CLASSES or not split_of:
        return {}
    if choice == SPLITS_ARE_FOLDERS or (len(split_of) == len(tops) and "train" in split_of.values()):
        return split_of
    others = [f"{top}/" for top in sorted(top for top in tops if top is not None and top not in split_of)]
    if None in tops:
        others.append(f"images in the folder itself ({tops[None]})")
    splits = _some([f"{top}/" for top in sorted(split_of)])
    beside = f"beside {_some(others)}" if others else "without train/"
    left_out = ", and the rest is left out" if others else ""
    raise ConfigError(
        "source.splits",
        f"{splits} {beside} in {root}",
        f"--split-folders {SPLITS_ARE_FOLDERS} ({splits}: splits{left_out}) or --split-folders {SPLITS_ARE_CLASSES} "
        f'(all of them are classes); in a study splits = "{SPLITS_ARE_FOLDERS}" or "{SPLITS_ARE_CLASSES}" in [source]',
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _in_splits(
    names: Sequence[str], split_of: Mapping[str, str], tops: Mapping[str | None, int], left_out: LeftOut
) -> list[str]:
    """The images in split folders; what else is there is left out, a folder as a whole."""
    kept: list[str] = []
    for name in names:
        top = _part(key_text(name), 0)
        if top in split_of:
            kept.append(name)
        elif top is None:
            left_out.add(name, "is in no split folder and was left out")
    for top in sorted(top for top in tops if top is not None and top not in split_of):
        left_out.add(f"{top}/", f"is no split folder and was left out, with its images ({tops[top]})")
    return kept


def images_below(root: str) -> tuple[Sequence[str], LeftOut]:
    """Paths of the images below a folder, and what is no image of it.

    Raises:
        ConfigError: it is no folder, or holds no image.
    """
    left_out = LeftOut(root)
    if not os.path.isdir(root):
        raise ConfigError("images", root, "a folder of images")
    try:
        names = files_below(root, EXTENSIONS, left_out)
    except OSError as error:
        raise ConfigError("images", root, f"a folder that can be listed ({error.strerror})") from error
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(key_text(name), name) != name:
            left_out.add(name, "has the key of another image and was left out")
    if not known:
        left_out.tell()
        kinds = " ".join(sorted(EXTENSIONS))
        raise ConfigError("images", root, f"a folder that holds images ({kinds}); this one holds none")
    return list(known.values()), left_out
