"""ImageNet as it is distributed: class folders for training, one flat folder for validation, a list of its classes."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources.base import Records, Understood
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.files import mark_of_file, read_below
from substyle.pipelines.sources.folder import images_below
from substyle.pipelines.sources.names import WNID, read_lines, read_names
from substyle.pipelines.sources.text import key_text

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
        raise ConfigError("source.synsets", "nothing", "a file with the synsets of the images in val/, which is flat")
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
