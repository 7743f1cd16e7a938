"""How a source is to be opened: what kind it is, and what its columns and lists are called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from substyle.kernels.errors import ConfigError

AUTO = "auto"
# kind: the fields that mean something for it
KINDS: dict[str, frozenset[str]] = {
    "folder": frozenset({"splits", "names"}),
    "list": frozenset({"path_column", "label_column", "split_column", "names"}),
    "tar": frozenset({"json_label", "names"}),
    "parquet": frozenset({"image_column", "path_column", "label_column", "split_column", "names"}),
    "imagenet": frozenset({"synsets", "names"}),
}
SPLITS_ARE_FOLDERS, SPLITS_ARE_CLASSES = "folders", "none"


@dataclass(frozen=True)
class SourceConfig:
    """How to open a source. Every field but ``kind`` may stay empty: then the usual names are looked for.

    Attributes:
        kind: ``folder``, ``list`` (CSV, TSV), ``tar``, ``parquet`` (Hugging Face data sets too), ``imagenet``, or
            ``auto``, which looks what is there.
        image_column: of Parquet: the column of encoded images. Left empty: one with a usual name such as ``image`` or
            ``img`` (see `column_names`), else the only one that fits.
        label_column: of a list or Parquet: the column of labels. Left empty: ``label``, ``class`` and the like.
        path_column: of a list: the column of paths. Left empty: ``path``, ``file_name`` and the like. Of Parquet: a
            column of unique ids that become the keys; without it a key is the file's name and the row in it.
        split_column: of a list or Parquet: the column that says train, val or test. Left empty: ``split``, or
            ``subset`` or ``partition`` if it holds nothing but splits.
        splits: of a folder whose top-level folders are only partly splits, such as ``train/`` beside ``cats/``:
            ``folders`` takes those named like a split as splits and leaves out the rest, ``none`` takes all of them as
            classes. Left empty, such a folder is an error.
        json_label: of tar: the field of ``.json`` members that is the label, before any ``.cls`` (``label``, after).
        synsets: of ImageNet: the file that names the classes of its flat ``val/`` folder.
        names: a file of readable class names, as ImageNet's LOC_synset_mapping.txt, or a name for each number.

    Raises:
        ConfigError: an unknown kind, an unknown value of ``splits``, or a field that means nothing for the kind.
    """

    kind: str = AUTO
    image_column: str = ""
    label_column: str = ""
    path_column: str = ""
    split_column: str = ""
    splits: str = ""
    json_label: str = ""
    synsets: Path | None = None
    names: Path | None = None

    def __post_init__(self) -> None:
        if self.kind != AUTO and self.kind not in KINDS:
            raise ConfigError("source.kind", self.kind, f"{AUTO}, {', '.join(KINDS)}")
        if self.splits not in ("", SPLITS_ARE_FOLDERS, SPLITS_ARE_CLASSES):
            raise ConfigError("source.splits", self.splits, f"{SPLITS_ARE_FOLDERS} or {SPLITS_ARE_CLASSES}")
        if self.kind == AUTO:
            return
        for name in self.given():
            if name not in KINDS[self.kind]:
                kinds = " or ".join(kind for kind, known in KINDS.items() if name in known)
                raise ConfigError(f"source.{name}", getattr(self, name), f"only with kind {kinds}; this is {self.kind}")

    def given(self) -> list[str]:
        """The fields, besides the kind, that do not stay empty."""
        return [field.name for field in fields(self) if field.name != "kind" and getattr(self, field.name)]

    def of_kind(self, kind: str) -> SourceConfig:
        """The same for a kind. Raises ConfigError when a field means nothing for it."""
        return replace(self, kind=kind)

    def fitting(self, kind: str) -> SourceConfig:
        """The fields that mean something for a kind; the others stay empty."""
        return SourceConfig(kind, **{name: getattr(self, name) for name in self.given() if name in KINDS[kind]})

    def options(self) -> dict[str, str]:
        """The fields that differ from their defaults, as text; paths are absolute: they are used from elsewhere."""
        given = {name: getattr(self, name) for name in self.given()}
        kind = {} if self.kind == AUTO else {"kind": self.kind}
        return kind | {name: os.path.abspath(v) if isinstance(v, Path) else v for name, v in given.items()}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> SourceConfig:
        """The inverse of `options`. Raises ConfigError for an unknown field."""
        known = {field.name for field in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise ConfigError(f"source.{name}", value, f"no such field; fields here: {', '.join(sorted(known))}")
        paths = {name: Path(options[name]) for name in ("synsets", "names") if name in options}
        return cls(**{**options, **paths})  # type: ignore[arg-type]
