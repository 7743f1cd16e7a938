"""Photographs in folders: plain, laid out as ImageNet, or named by a list."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from substyle.kernels.errors import ConfigError, MissingError
from substyle.pipelines.sources.base import (
    EXTENSIONS,
    MAX_TEXT,
    SPLITS_ARE_CLASSES,
    SPLITS_ARE_FOLDERS,
    LeftOut,
    Records,
    SourceConfig,
    Understood,
    key_text,
    label_text,
    shown,
)
from substyle.pipelines.sources.files import files_below, mark_of_file, read_below
from substyle.pipelines.sources.labels import (
    LABEL_COLUMNS,
    MAYBE_SPLIT_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    WNID,
    find,
    no_label,
    read_lines,
    read_names,
    says_splits,
    split_text,
    split_word,
)


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


# ImageNet as it is distributed: class folders for training, one flat folder for validation, a list of its classes.

_NUMBER = re.compile(r"(.*?)(\d{5,9})(\.\w+)")


class ImageNetSource:
    """``train/<synset>/…`` and ``val/``, flat or with synset folders; splits as given, classes are synsets.

    The class of a flat validation image comes from the file of ``config.synsets``: one synset for each line, in the
    order of the images' names (line i is image number i where the names differ in a number alone, so that images may be
    missing), or Kaggle's LOC_val_solution.csv. With ``config.names`` classes have readable names. A key is the image's
    path in the folder. Other folders, such as the unlabelled ``test/``, are not looked at.

    Raises:
        ConfigError: no such folders, a flat ``val/`` without a list of synsets, or a list that does not fit it.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("imagenet")
        self.root, self.options = str(root), config.options()
        self.path = Path(os.path.realpath(root))
        for folder in ("train", "val"):
            if not (self.path / folder).is_dir():
                raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/; no {folder}/ is there")
        names, left_out = images_below(self.root)
        readable = read_names(config.names)
        flat = [name for name in names if is_flat(name)]
        synset_of = _validation(flat, config.synsets) if flat else {}
        self._names: list[str] = []
        labels: list[str | None] = []
        elsewhere = 0
        for name in names:
            if not name.startswith(("train/", "val/")):
                elsewhere += 1
                continue
            parts = name.split("/")
            synset = synset_of.get(name) or (parts[1] if len(parts) > 2 else "")
            if not WNID.fullmatch(synset):
                left_out.add(name, "belongs to no synset (such as n01440764) and was left out")
                continue
            self._names.append(name)
            labels.append(readable.of(synset))
        self.refused = left_out.tell()
        remarks = (f"images outside train/ and val/ not taken: {elsewhere:,}",) if elsewhere else ()
        self.understood = Understood(left_out, splits_from="folders", remarks=remarks)
        if not self._names:
            raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/{left_out.first()}")
        keys = [key_text(name) for name in self._names]
        splits = [key[: key.index("/")] for key in keys]
        self.records = Records(keys, labels, splits, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(str(self.path), self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self.path, self._names[place]))


def is_flat(name: str) -> bool:
    """Whether a path is that of an image that lies in ``val/`` itself."""
    return name.startswith("val/") and name.count("/") == 1


def _validation(flat: Sequence[str], synsets: Path | None) -> Mapping[str, str]:
    """The synset of each image of a flat validation folder; images that Kaggle's list does not name have none."""
    if synsets is None:
        raise MissingError("source.synsets", "name a file with the synsets of the images in val/, which is flat")
    lines = [line.strip() for line in read_lines(synsets, "source.synsets")]
    while lines and not lines[-1]:
        lines.pop()
    if lines and "," in lines[0]:
        return _kaggle(flat, lines, synsets)
    for number, line in enumerate(lines, 1):
        if not WNID.fullmatch(line):
            raise ConfigError(f"line {number} of {synsets}", line[:100], "a synset, such as n01440764")
    numbers = _numbers(flat)
    if numbers and min(numbers.values()) >= 1 and max(numbers.values()) <= len(lines):
        return {name: lines[number - 1] for name, number in numbers.items()}
    if len(lines) != len(flat):
        raise ConfigError(
            "source.synsets", f"{len(lines)} lines in {synsets}", f"one for each of the {len(flat)} images in val/"
        )
    return dict(zip(sorted(flat), lines, strict=True))


def _numbers(flat: Sequence[str]) -> Mapping[str, int]:
    """The number of each image; empty unless all names are one text, five digits or more, and one extension."""
    matches = {name: _NUMBER.fullmatch(name) for name in flat}
    if None in matches.values() or len({(m[1], len(m[2]), m[3]) for m in matches.values() if m}) != 1:
        return {}
    return {name: int(m[2]) for name, m in matches.items() if m}


def _kaggle(flat: Sequence[str], lines: Sequence[str], synsets: Path) -> Mapping[str, str]:
    """LOC_val_solution.csv: ``ImageId,PredictionString``, the latter ``<synset> x y x y`` for every box."""
    known: dict[str, str] = {}
    try:
        for number, row in enumerate(csv.reader(lines, strict=True)):
            words = row[1].split() if len(row) > 1 else []
            if not words or not WNID.fullmatch(words[0]):
                if number == 0:
                    continue  # names of columns
                raise ConfigError(str(synsets), ",".join(row)[:100], "lines <image>,<synset> and boxes")
            known[row[0]] = words[0]
    except csv.Error as error:
        raise ConfigError("source.synsets", str(synsets), f"a CSV file ({error})") from error
    found = {name: known[stem] for name in flat if (stem := os.path.splitext(name)[0].removeprefix("val/")) in known}
    if not found:
        raise ConfigError("source.synsets", str(synsets), f"a list of the images in val/, such as {flat[0]}")
    return found


# Photographs that a CSV or TSV file lists.

LIST_KINDS = (".csv", ".tsv", ".tab")
MAX_LINE = 1 << 20  # characters


class ListSource:
    """Images that a list names: a CSV file, or one with tabs (``.tsv``, ``.tab``), in UTF-8, columns in its first line.

    Columns: paths relative to the list's folder; labels and splits if there are any. They are found under their usual
    names (see `column_names`), or as the configuration says. A key is the path, without ``.`` and double slashes.
    Absolute paths and paths with ``..`` are left out and named; a link that leaves the folder fails when it is read, as
    does a file that is not there. A line that repeats an earlier one is left out.

    Raises:
        ConfigError: no such file, not such a list, a column that is asked for and is not there, a path with two labels
            or splits, or no image at all.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("list")
        self.root, self.options = str(root), config.options()
        self._folder = os.path.realpath(os.path.dirname(self.root) or ".")
        readable = read_names(config.names)
        left_out = LeftOut(self.root)
        lines: dict[str, tuple[str | None, str | None, int]] = {}
        columns = _columns(Path(root), config)
        for number, path, label, split in _lines(Path(root), columns):
            key = _key(path)
            if key is None:
                left_out.add(path, f"on line {number} is no path inside the list's folder and was left out")
                continue
            try:
                named = label_text(label)
            except ValueError as error:
                left_out.note(path, f"on line {number} has {error} and stays without one")
                named = None
            said = readable.of(named), split_text(split, f"on line {number} of {self.root}")
            *before, first = lines.setdefault(key, (*said, number))
            if tuple(before) != said:
                raise ConfigError(
                    f"lines {first} and {number} of {self.root}", path, "the same label and split for the same path"
                )
            if first != number:
                left_out.add(path, f"on line {number} stands on line {first} already")
        self.refused = left_out.tell()
        if not lines:
            raise ConfigError("images", self.root, f"a list that names images; this one names none{left_out.first()}")
        self._names = list(lines)
        splits = [split for _, split, _ in lines.values()]
        given = splits if any(splits) else None
        self.understood = Understood(
            left_out,
            splits_from="its column" if given else "",
            columns=columns.chosen(),
            remarks=() if columns.label is not None else no_label(columns.unused),
        )
        labels = [label for label, _, _ in lines.values()]
        self.records = Records(self._names, labels, given, self._read, self._mark, readable.order())
        self.class_names = self.records.class_names

    def _read(self, place: int) -> bytes:
        return read_below(self._folder, self._names[place])

    def _mark(self, place: int) -> int:
        return mark_of_file(os.path.join(self._folder, self._names[place]))


def _key(path: str) -> str | None:
    """The path as a key, None for one that is refused."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts or len(path) > MAX_TEXT:
        return None
    return "/".join(parts)


@dataclass(frozen=True)
class _Columns:
    """What the columns of a list are: their names, and where path, label and split stand in a line."""

    header: tuple[str, ...]
    path: int
    label: int | None
    split: int | None

    def chosen(self) -> dict[str, str]:
        """The name of the column for each purpose."""
        places = {"path": self.path, "label": self.label, "split": self.split}
        return {what: self.header[place] for what, place in places.items() if place is not None}

    @property
    def unused(self) -> list[str]:
        """The names of the columns that are not used."""
        return [name for i, name in enumerate(self.header) if name and i not in (self.path, self.label, self.split)]


def _columns(path: Path, config: SourceConfig) -> _Columns:
    """Find the columns of a list. Raises ConfigError if it has none for paths, or lacks one that is asked for."""
    _, fields = next(_rows(path))
    header = [name.strip() for name in fields]

    def place(field: str, usual: Sequence[str]) -> int | None:
        asked = getattr(config, field)
        name = (asked if asked in header else None) if asked else find(header, usual)
        if name is None and (asked or field == "path_column"):
            raise ConfigError(
                f"source.{field}",
                asked or "nothing",
                f"a column of {path}, whose first line has: {', '.join(map(shown, header[:20])) or 'nothing'}",
            )
        return None if name is None else header.index(name)

    where = place("path_column", PATH_COLUMNS)
    assert where is not None
    found = _Columns(tuple(header), where, place("label_column", LABEL_COLUMNS), place("split_column", SPLIT_COLUMNS))
    maybe = find(header, MAYBE_SPLIT_COLUMNS) if found.split is None else None
    if maybe is not None:
        guess = replace(found, split=header.index(maybe))
        if says_splits(split for _, _, _, split in _lines(path, guess)):
            return guess
    return found


def _lines(path: Path, columns: _Columns) -> Iterator[tuple[int, str, str | None, str | None]]:
    """(line number, path, label, split) of each line after the first."""
    rows = _rows(path)
    next(rows)
    for number, row in rows:
        if not row:
            continue
        if len(row) > len(columns.header):
            raise ConfigError(
                f"line {number} of {path}",
                f"{len(row)} fields",
                f"{len(columns.header)}, as the first line has them",
            )
        values = [
            row[i] if i is not None and i < len(row) else None for i in (columns.path, columns.label, columns.split)
        ]
        yield number, values[0] or "", values[1], values[2]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line; of an empty file one line without fields."""
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_short(file), delimiter=delimiter, strict=True)
            yield 0, next(reader, [])
            for row in reader:
                number = reader.line_num
                yield number, row
    except OSError as error:
        raise ConfigError("images", str(path), f"a list that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("images", str(path), f"a list in UTF-8 (after line {number}: {error.reason})") from error
    except csv.Error as error:
        raise ConfigError("images", str(path), f"a list of {path.suffix} (after line {number}: {error})") from error


def _short(file: TextIO) -> Iterator[str]:
    """The lines of a file, none of them endless."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line of {MAX_LINE} characters or more")
        yield line
