"""Source of photographs with real variants: a folder for each transformation, with the same photographs in each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from substyle.errors import ConfigError
from substyle.pipelines.image_formats import EXTENSIONS
from substyle.pipelines.sources.base import (
    ImageRecord,
    LeftOut,
    SourceConfig,
    Understood,
    key_text,
    register_source,
)
from substyle.pipelines.sources.files import MARKER, FileBelow, files_below, inside
from substyle.pipelines.sources.folder import FolderSource
from substyle.pipelines.sources.wrapped import Changed

IDENTITY = "identity"  # the folder of the original photographs
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a transformation


@register_source("variants", options=("splits", "names"), position=90)
class VariantsSource(Changed):
    """Photographs in ``root/identity/``, and what they look like in reality after other transformations.

    Keys, classes and splits are those of a folder source of ``root/identity/``. Every other folder of the root is a
    real transformation of its name: ``root/phone/cat/a.webp`` shows ``root/identity/cat/a.jpg``, which has the same
    path without suffix. Folders without images, or with a name that is none of a transformation, files that show no
    photograph, and links that leave the root are skipped with a warning.

    Raises:
        ConfigError: the root has no folder ``identity`` or no other, two files of a folder have the same path without
            suffix, no file of a folder shows a photograph, or an error of a folder source.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("variants")
        self._root, self._options = str(root), config.options()
        left_out = LeftOut(self._root)
        folders = _folders(self._root, left_out)
        if IDENTITY not in folders:
            raise ConfigError("images", self._root, f"a folder with {IDENTITY}/, the original photographs")
        own = FolderSource(folders.pop(IDENTITY), config.fitting("folder"))
        photographs = _by_stem([record.key for record in own.records], f"{self._root}/{IDENTITY}")
        found = {name: _files(self._root, name, path, photographs, left_out) for name, path in folders.items()}
        self._files = {name: files for name, files in found.items() if files}
        if not self._files:
            left_out.tell()
            allowed = f"a folder with {IDENTITY}/ and a folder for each other transformation{left_out.first()}"
            raise ConfigError("images", self._root, allowed)
        self._folder = {name: os.path.realpath(folders[name]) for name in self._files}
        self.refused = left_out.tell()
        left_out.extend(own.understood.left_out)
        counts = ", ".join(f"{name} {len(files):,}" for name, files in self._files.items())
        self._understood = replace(
            own.understood,
            left_out=left_out,
            remarks=(*own.understood.remarks, f"real variants: {counts} of {len(own.records):,}"),
            transformations=tuple(self._files),
        )
        super().__init__(own, self._paired)

    @property
    def root(self) -> str:
        """The folder of all transformations."""
        return self._root

    @property
    def options(self) -> Mapping[str, str]:
        """The options that reopen the source."""
        return self._options

    @property
    def understood(self) -> Understood:
        """How the source was interpreted."""
        return self._understood

    def _paired(self, record: ImageRecord) -> ImageRecord:
        stem = _stem(record.key)
        own = {name: FileBelow(self._folder[name], files[stem]) for name, files in self._files.items() if stem in files}
        return replace(record, variant=partial(_variant, own, record.key))


def _variant(files: Mapping[str, FileBelow], key: str, transformation: str) -> ImageRecord | None:
    file = files.get(transformation)
    return None if file is None else ImageRecord(key, None, None, file.read, file.mark)


def _folders(root: str, left_out: LeftOut) -> dict[str, str]:
    """Paths of the folders of transformations, by name."""
    real_root = os.path.realpath(root)
    try:
        with os.scandir(real_root) as listing:
            entries = sorted((entry for entry in listing if os.path.isdir(entry.path)), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError("images", root, f"a readable folder ({error.strerror})") from error
    found = {}
    for entry in entries:
        if entry.is_symlink() and not inside(real_root, os.path.realpath(entry.path)):
            left_out.add(f"{entry.name}/", "is a link that leaves the folder; skipped")
        elif os.path.lexists(os.path.join(entry.path, MARKER)):
            left_out.substyle_folders += 1
        elif not _NAME.fullmatch(entry.name):
            if not entry.name.startswith("."):  # of the system, or of a tool
                left_out.add(f"{entry.name}/", "is no name of a transformation (letters, digits, _, - and .); skipped")
        else:
            found[entry.name] = entry.path
    return found


def _stem(key: str) -> str:
    """A path without its suffix."""
    return os.path.splitext(key)[0]


def _by_stem(names: Sequence[str], folder: str) -> dict[str, str]:
    """Paths by path without suffix. Raises ConfigError if two have the same."""
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(_stem(key_text(name)), name)) != name:
            given = f"{key_text(other)} and {key_text(name)}"
            raise ConfigError("images", f"{given} in {folder}", "one file for each path without suffix")
    return found


def _files(root: str, name: str, folder: str, photographs: Mapping[str, str], left_out: LeftOut) -> dict[str, str]:
    """Files of a transformation that show a photograph, by path without suffix; none if the folder has no images."""
    own = LeftOut(folder)
    try:
        names = files_below(folder, EXTENSIONS, own)
    except OSError as error:
        raise ConfigError("images", f"{root}/{name}", f"a readable folder ({error.strerror})") from error
    own.names, own.reasons = ([f"{name}/{each}" for each in those] for those in (own.names, own.reasons))
    left_out.extend(own)
    if not names:
        left_out.add(f"{name}/", "has no images; skipped")
        return {}
    files = _by_stem(names, f"{root}/{name}")
    found = {stem: file for stem, file in files.items() if stem in photographs}
    if not found:
        allowed = f"files with the paths of photographs in {IDENTITY}/, such as {next(iter(photographs.values()))}"
        raise ConfigError("images", f"{root}/{name}, with {key_text(names[0])}", allowed)
    for file in (file for stem, file in files.items() if stem not in found):
        left_out.add(f"{name}/{file}", f"shows no photograph of {IDENTITY}/; skipped")
    return found
