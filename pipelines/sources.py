"""Where photographs come from. A source lists its images once; their bytes are read when they are needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from substyle.kernels.errors import ConfigError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo"})
SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class ImageRecord:
    """One image of a source.

    Attributes:
        key: what the image is called: its posix path relative to the source's root; unique in the source.
        label: index into the source's class names, or None.
        split: ``train``, ``val`` or ``test`` when the source itself says so, else None.
        read: returns the encoded bytes; raises OSError when they cannot be read.
    """

    key: str
    label: int | None
    split: str | None
    read: Callable[[], bytes] = field(compare=False, repr=False)


class Source(Protocol):
    """A collection of images in a fixed order; every kind of source passes the same conformance tests."""

    @property
    def root(self) -> str:
        """What the user named: a folder, an archive or a file."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, sorted, indexed by label; empty without labels."""
        ...

    @property
    def records(self) -> Sequence[ImageRecord]:
        """All images, sorted by key."""
        ...


class FolderSource:
    """Images in a folder and all folders below it.

    ``root/<class>/…/image.jpg`` labels images by the first folder, ``root/image.jpg`` leaves them without a label. When
    the root has a folder ``train`` and no others but ``val`` (``validation``, ``valid``) and ``test``, these are the
    splits and the class is the folder inside. A link that leaves the root is not followed; a
    warning names it. Files without a known image extension are no images.

    Raises:
        ConfigError: the root is no folder, or holds no image.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.path = Path(root)
        self.root = str(root)
        if not self.path.is_dir():
            raise ConfigError("images", self.root, "a folder of images")
        self.refused: tuple[str, ...]
        keys, self.refused = _walk(self.path)
        for key in self.refused:
            log.warning("%s: %s is a link out of the folder and was left out", self.root, key)
        if not keys:
            kinds = " ".join(sorted(EXTENSIONS))
            raise ConfigError("images", self.root, f"a folder that holds images ({kinds}); this one holds none")
        parts = [key.split("/") for key in keys]
        tops = {folders[0] for *folders, _ in parts if folders}
        split_given = "train" in tops and all(top in SPLIT_FOLDERS for top in tops) and all(len(p) > 1 for p in parts)
        splits = [SPLIT_FOLDERS[p[0]] if split_given else None for p in parts]
        inner = [p[1:] if split_given else p for p in parts]
        names = [p[0] if len(p) > 1 else None for p in inner]
        self.class_names = tuple(sorted({name for name in names if name is not None}))
        label = {name: i for i, name in enumerate(self.class_names)}
        self.records: tuple[ImageRecord, ...] = tuple(
            ImageRecord(key, None if name is None else label[name], split, partial(_read, self.path, key))
            for key, name, split in zip(keys, names, splits, strict=True)
        )


def _walk(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Sorted keys of the images below the root, and of the links that leave it; folders linked twice are read once."""
    real_root = os.path.realpath(root)
    keys: list[str] = []
    refused: list[str] = []
    seen = {real_root}
    pending = [(real_root, "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                key, path = prefix + entry.name, entry.path
                is_folder = entry.is_dir()
                if not is_folder and os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                    continue
                if entry.is_symlink():
                    path = os.path.realpath(entry.path)
                    if os.path.commonpath([real_root, path]) != real_root:
                        refused.append(key)
                        continue
                if is_folder and os.path.realpath(path) not in seen:
                    seen.add(os.path.realpath(path))
                    pending.append((path, key + "/"))
                elif entry.is_file():
                    keys.append(key)
    return sorted(keys), tuple(sorted(refused))


def _read(root: Path, key: str) -> bytes:
    return (root / key).read_bytes()
