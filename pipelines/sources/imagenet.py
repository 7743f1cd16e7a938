"""ImageNet as distributed."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from substyle.errors import ConfigError, MissingError
from substyle.pipelines.sources.base import Records, SourceConfig, Understood, key_text, register_source
from substyle.pipelines.sources.files import FileBelow
from substyle.pipelines.sources.folder import images_below
from substyle.pipelines.sources.labels import WNID, read_lines, read_names

_NUMBER = re.compile(r"(.*?)(\d{5,9})(\.\w+)")


@register_source(
    "imagenet", options=("synsets", "names"), claims=lambda _, config: config.synsets is not None, position=5
)
class ImageNetSource:
    """ImageNet as distributed: ``train/<synset>/…`` and ``val/``, flat or with synset folders.

    Labels of a flat ``val/`` come from ``config.synsets``: Kaggle's LOC_val_solution.csv, or a file with one synset per
    line in the order of image names. If the names differ only in a number, line i is image i, and images may be
    missing. ``config.names`` gives readable class names. A key is the path relative to the root. Other folders, such as
    the unlabelled ``test/``, are ignored.

    Raises:
        ConfigError: a folder is missing, or a flat ``val/`` has no synset list or one that does not match.
    """

    def __init__(self, root: str | os.PathLike[str], config: SourceConfig | None = None) -> None:
        config = (config or SourceConfig()).of_kind("imagenet")
        self.root, self.options = str(root), config.options()
        real_root = os.path.realpath(root)
        for folder in ("train", "val"):
            if not Path(real_root, folder).is_dir():
                raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/; {folder}/ is missing")
        names, left_out = images_below(self.root)
        readable = read_names(config.names)
        flat = [name for name in names if is_flat(name)]
        synset_of = _validation(flat, config.synsets) if flat else {}
        kept: list[str] = []
        labels: list[str | None] = []
        elsewhere = 0
        for name in names:
            if not name.startswith(("train/", "val/")):
                elsewhere += 1
                continue
            parts = name.split("/")
            synset = synset_of.get(name) or (parts[1] if len(parts) > 2 else "")
            if not WNID.fullmatch(synset):
                left_out.add(name, "has no synset (such as n01440764); skipped")
                continue
            kept.append(name)
            labels.append(readable.of(synset))
        self.refused = left_out.tell()
        remarks = (f"images outside train/ and val/ ignored: {elsewhere:,}",) if elsewhere else ()
        self.understood = Understood(left_out, splits_from="folders", remarks=remarks)
        if not kept:
            raise ConfigError("images", self.root, f"a folder with train/<synset>/ and val/{left_out.first()}")
        keys = [key_text(name) for name in kept]
        splits = [key[: key.index("/")] for key in keys]
        files = FileBelow.each(real_root, kept)
        self.records = Records(keys, labels, splits, files, readable.order())
        self.class_names = self.records.class_names


def is_flat(name: str) -> bool:
    """Whether a path is directly inside ``val/``."""
    return name.startswith("val/") and name.count("/") == 1


def _validation(flat: Sequence[str], synsets: Path | None) -> Mapping[str, str]:
    """The synset of each image of a flat ``val/``; images that Kaggle's list omits have none."""
    if synsets is None:
        raise MissingError("source.synsets", "val/ is flat; name the file with the synsets of its images")
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
            "source.synsets", f"{len(lines)} lines in {synsets}", f"{len(flat)}, one for each image in val/"
        )
    return dict(zip(sorted(flat), lines, strict=True))


def _numbers(flat: Sequence[str]) -> Mapping[str, int]:
    """The number in each name; empty unless the names differ only in a number of five or more digits."""
    matches = {name: _NUMBER.fullmatch(name) for name in flat}
    if None in matches.values() or len({(m[1], len(m[2]), m[3]) for m in matches.values() if m}) != 1:
        return {}
    return {name: int(m[2]) for name, m in matches.items() if m}


def _kaggle(flat: Sequence[str], lines: Sequence[str], synsets: Path) -> Mapping[str, str]:
    """Parse LOC_val_solution.csv: ``ImageId,PredictionString``, the latter ``<synset> x y x y`` per box."""
    known: dict[str, str] = {}
    try:
        for number, row in enumerate(csv.reader(lines, strict=True)):
            words = row[1].split() if len(row) > 1 else []
            if not words or not WNID.fullmatch(words[0]):
                if number == 0:
                    continue  # header
                raise ConfigError(str(synsets), ",".join(row)[:100], "lines of <image>,<synset> and boxes")
            known[row[0]] = words[0]
    except csv.Error as error:
        raise ConfigError("source.synsets", str(synsets), f"a CSV file ({error})") from error
    found = {name: known[stem] for name in flat if (stem := os.path.splitext(name)[0].removeprefix("val/")) in known}
    if not found:
        raise ConfigError("source.synsets", str(synsets), f"a list of the images in val/, such as {flat[0]}")
    return found
