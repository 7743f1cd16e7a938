"""Labels of photographs besides their class: columns of their source, lists and EXIF."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from substyle.errors import ConfigError, SubstyleError, abbreviated
from substyle.pipelines.sources.base import KINDS, ImageRecord, Source, SourceConfig, label_text, log, shown
from substyle.pipelines.sources.wrapped import Changed, Named

ORIGINS = ("file", "column", "exif")
ALLOWED = "column:NAME, file:LIST.csv, file:LIST.csv:COLUMN, exif:FIELD or exif:FIELD.year (.month, .hour)"
Values = Mapping[str, str]  # by key of the photograph
_LIST = re.compile(r"(.+?\.(?:csv|tsv|tab))(?::(.+))?", re.IGNORECASE | re.DOTALL)
_DATE = re.compile(r"(?P<year>\d{4})[:\-/](?P<month>\d\d)[:\-/]\d\d(?:[ T](?P<hour>\d\d):\d\d)?")
_COLUMNS = ("label_column", "json_label")  # options of sources that name the column of the class
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # MPO is opened as JPEG
_TAGS = {name: tag for tag, name in ExifTags.TAGS.items()}


@dataclass(frozen=True)
class Origin:
    """Where a label comes from.

    Attributes:
        kind: column, file or exif.
        name: the column, or the field of EXIF.
        path: the list.
        part: of a date: year, month or hour.
    """

    kind: str
    name: str
    path: str = ""
    part: str = ""

    @staticmethod
    def of(text: str, label: str, field: str = "label") -> Origin:
        """Parse ``column:NAME``, ``file:LIST.csv[:COLUMN]`` or ``exif:FIELD[.year]``.

        Args:
            label: name of the label, and default column of a list.
            field: name of the setting, for the error.

        Raises:
            ConfigError: none of these, or an unknown field of EXIF.
        """
        kind, _, rest = text.partition(":")
        if kind == "column" and rest:
            return Origin("column", rest)
        if kind == "file" and (found := _LIST.fullmatch(rest)):
            return Origin("file", found[2] or label, found[1])
        if kind == "exif" and rest:
            name, dot, part = rest.partition(".")
            if name not in _TAGS or name == "GPSInfo":
                raise ConfigError(field, text, "a field of EXIF, such as Model, ISOSpeedRatings or DateTimeOriginal")
            if not dot or part in _DATE.groupindex:
                return Origin("exif", name, part=part)
        raise ConfigError(field, text, ALLOWED)

    def below(self, folder: Path) -> str:
        """The text of this origin, with an absolute path of a list, which is relative to ``folder``."""
        if self.kind == "file":
            return f"file:{os.path.abspath(folder / self.path)}:{self.name}"
        return f"{self.kind}:{self.name}{'.' * bool(self.part)}{self.part}"


def read_labels(
    origins: Mapping[str, Origin],
    sources: Sequence[Source],
    keys: Collection[str],
    field: str = "label",
    *,
    complete: bool = False,
) -> dict[str, dict[str, str]]:
    """Read labels of photographs.

    Each photograph is read once for all fields of EXIF. Empty and unreadable values are left out.

    Args:
        origins: by name of the label.
        sources: the photographs, for columns and EXIF.
        keys: keys of the photographs.
        field: name of the setting, for errors.
        complete: whether EXIF of each photograph must be read; by default those of files that cannot be are left out.

    Returns:
        values by label and key.

    Raises:
        ConfigError: a column or a list is missing, or the photographs have no columns.
        SubstyleError: a file cannot be read.
    """
    wanted = set(keys)
    found: dict[str, dict[str, str]] = {}
    for label, origin in origins.items():
        if origin.kind == "file":
            found[label] = _of_list(origin, wanted, f"{field}.{label}")
        elif origin.kind == "column":
            found[label] = {}
            for source in sources:
                found[label] |= _of_column(origin, source, wanted, f"{field}.{label}")
    fields = {label: origin for label, origin in origins.items() if origin.kind == "exif"}
    return found | _of_photographs(fields, sources, wanted, field if complete else None)


class Grouped(Changed):
    """A source whose records state their group, so that photographs of one group are in one split.

    Args:
        text: origin of the groups, see `Origin.of`. Photographs without a value are groups of their own.

    Raises:
        ConfigError: an invalid origin, or a missing list or column.
        SubstyleError: EXIF of a file cannot be read.
    """

    def __init__(self, source: Source, text: str) -> None:
        origin = Origin.of(text, "group", "source.group")
        keys = [record.key for record in source.records]
        # a file that can be read later would be in another split than its group
        values = read_labels({"group": origin}, [source], keys, "source", complete=True)["group"]
        super().__init__(source, partial(_grouped, values))
        self._text = origin.below(Path())

    @property
    def options(self) -> Mapping[str, str]:
        """The options that reopen this source."""
        return {**self.source.options, "group": self._text}


def _grouped(values: Values, record: ImageRecord) -> ImageRecord:
    return replace(record, group=values.get(record.key))


def same_group(a: str, b: str) -> bool:
    """Whether two texts of groups, empty for none, name one column or field, in lists of any path."""
    first, second = (replace(Origin.of(text, "group"), path="") if text else None for text in (a, b))
    return first == second


def _of_list(origin: Origin, keys: AbstractSet[str], field: str) -> dict[str, str]:
    if not os.path.isfile(origin.path):
        raise ConfigError(field, origin.path, "an existing list (.csv, .tsv)")
    listed = KINDS["list"].opener(origin.path, SourceConfig(kind="list", label_column=origin.name))
    if keys and keys.isdisjoint(record.key for record in listed.records):
        example = f"{shown(listed.records[0].key)} is none, {shown(min(keys))} is one"
        raise ConfigError(field, origin.path, f"a list with paths of the photographs, below their folder; {example}")
    other = [shown(record.key) for record in listed.records if keys and record.key not in keys]
    if other:
        of = f"{len(other)} of {len(listed.records)} paths of {origin.path}"
        log.warning("%s: %s are no photographs here: %s", field, of, abbreviated(other))
    return _classes(listed, keys)


def _of_column(origin: Origin, source: Source, keys: Collection[str], field: str) -> dict[str, str]:
    """Values of a column: the classes of the same source if that column is its class."""
    config = SourceConfig.from_options(source.options)
    option = next((name for name in _COLUMNS if name in KINDS[config.kind].options), None)
    if option is None:
        allowed = f"file: or exif:, because photographs of kind {config.kind} have no columns"
        raise ConfigError(field, f"column:{origin.name}", allowed)
    changes: Any = {option: origin.name, "names": None, "group": ""}
    again = KINDS[config.kind].opener(source.root, replace(config, **changes))
    return _classes(Named(again, source.name) if isinstance(source, Named) else again, keys)


def _classes(source: Source, keys: Collection[str]) -> dict[str, str]:
    names = source.class_names
    return {each.key: names[each.label] for each in source.records if each.label is not None and each.key in keys}


def _of_photographs(
    origins: Mapping[str, Origin], sources: Sequence[Source], keys: Collection[str], complete: str | None
) -> dict[str, dict[str, str]]:
    """Fields of EXIF by label and key.

    Args:
        complete: name of the setting, to raise SubstyleError for a file that cannot be read; None leaves it out.
    """
    found: dict[str, dict[str, str]] = {label: {} for label in origins}
    for record in (record for source in sources if origins for record in source.records if record.key in keys):
        try:
            exif = _exif(record.read())
        except OSError as error:
            if complete is not None:
                where = f"{complete}.{', '.join(origins)}"
                raise SubstyleError(f"{where}: {record.key} cannot be read: {error.strerror or error}") from error
            continue
        for label, origin in origins.items():
            if value := _text(exif.get(_TAGS[origin.name]), origin.part):
                found[label][record.key] = value
    return found


def _exif(data: bytes) -> dict[int, Any]:
    """Fields of the main image and of the exposure; empty if there are none, or none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged fields
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                exif = image.getexif()
                return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception:  # noqa: BLE001 (Pillow raises many kinds for damaged files)
        return {}


def _text(value: object, part: str) -> str | None:
    """A field as text; of a date its part, of several numbers all. None for what is no text or number."""
    if isinstance(value, tuple):
        each = [_text(one, "") for one in value]
        value = ", ".join(one for one in each if one is not None)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        value = value.split("\0", 1)[0]
    if part:
        date = _DATE.match(value.strip()) if isinstance(value, str) else None
        value = date[part] if date is not None else None
    elif value is not None and not isinstance(value, str | int):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        value = f"{number:.6g}" if math.isfinite(number) else None
    try:
        return label_text(value)
    except ValueError:
        return None
