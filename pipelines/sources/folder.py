"""Photographs in a folder and the folders below it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import EXTENSIONS, SPLIT_FOLDERS, Records
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.files import files_below, read_below
from substyle.pipelines.sources.names import read_names
from substyle.pipelines.sources.text import LeftOut, key_text


class FolderSource:
    """Images in a folder and all folders below it.

    ``root/<class>/…/image.jpg`` labels images by the first folder, ``root/image.jpg`` leaves them without a label. When
    the root has a folder ``train`` and no others but ``val`` (``validation``, ``valid``) and ``test``, these are the
    splits and the class is the folder inside. A key is the image's path in the folder. A link that leaves the root is
    not followed; a warning names it. Files without a known image extension are no images.

    Raises:
        ConfigError: the root is no folder, or holds no image.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("folder")
        self.root, self.options = str(root), config.options()
        self.path = Path(os.path.realpath(root))
        names, left_out = images_below(self.root)
        self.refused = left_out.tell()
        keys = [key_text(name) for name in names]
        tops = {_part(key, 0) for key in keys}
        split_given = "train" in tops and tops <= set(SPLIT_FOLDERS)
        readable = read_names(config.names)
        labels = [_part(key, int(split_given)) for key in keys]
        splits = [SPLIT_FOLDERS[_part(key, 0) or ""] for key in keys] if split_given else None
        self._names = names
        self.records = Records(keys, [readable.of(label) for label in labels], splits, self._read)
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(str(self.path), self._names[place])


def _part(key: str, number: int) -> str | None:
    """The folder of a key at some depth, None where the image itself is: one object for all that share it."""
    parts = key.split("/", number + 1)
    return sys.intern(parts[number]) if len(parts) > number + 1 else None


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
