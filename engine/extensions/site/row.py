"""A row: the results of one backbone in one run, with all that is needed to cite them and to compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from substyle.engine.backbones.presets import stated
from substyle.engine.report.data import Column, Kind, Table, Unconverged, labelled, labels_of
from substyle.engine.report.section import Data, blocks_of
from substyle.engine.results.model import BackboneResults, Finite, Interval, ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.stamp import checksum
from substyle.engine.store.layout import PIXELS, network_identity, slug
from substyle.engine.study.report import sections_of
from substyle.errors import SubstyleError
from substyle.pipelines.validation import brief

FOLDER = "results"
UNRECORDED = "unrecorded"
_TEXT, _MANY = 4_096, 10_000  # characters of a text, entries of a list
_LEFT_OUT = ("confusion", "training", "overview")  # tables: too long, of training, and the same numbers as the scores
_LATE: Final = "unconverged"

Text = Annotated[str, Field(max_length=_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=_TEXT)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Whole = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Counts = Annotated[dict[Text, Count], Field(max_length=_MANY)]
Facts = Annotated[dict[Text, Text | Whole | Finite | bool | None], Field(max_length=100)]
Scored = Annotated[list[Finite | Literal["unconverged"] | None], Field(min_length=3, max_length=4)]
Cell = Text | Whole | Finite | Scored | None


class _Part(BaseModel):
    """An object of a row: fields that are null were not recorded, and unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class RowScore(_Part):
    """A score: a fraction, with its 95 % interval and the number of photographs that it is over."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    heading: Text
    stage: Name
    value: Finite
    ci95: Interval | None
    n: Count | None
    converged: bool


class RowColumn(_Part):
    """A column of a table: ``share`` is a fraction, ``points`` a difference of fractions."""

    name: Name
    heading: Text
    kind: Kind
    interval: bool


class RowTable(_Part):
    """Rows of a table of the report that are about the backbone, without its name.

    A cell of a column with intervals is ``[value, low, high]``, and a fourth entry ``"unconverged"`` marks a probe that
    has not converged.
    """

    section: Text
    name: Name
    caption: Text
    columns: Annotated[list[RowColumn], Field(min_length=1, max_length=200)]
    rows: Annotated[list[list[Cell]], Field(max_length=_MANY)]

    @model_validator(mode="after")
    def _of_its_columns(self) -> RowTable:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows of {len(self.columns)} cells")
            for cell, column in zip(row, self.columns, strict=True):
                wanted: type | tuple[type, ...] = list if column.interval else str if column.kind == "text" else float
                if cell is not None and not isinstance(cell, (int, float) if wanted is float else wanted):
                    raise ValueError(f"cells of {column.name} of kind {column.kind}, or null")
                if isinstance(cell, list) and (cell[0] is None or _LATE in cell[:3] or cell[3:] not in ([], [_LATE])):
                    raise ValueError(f"cells of {column.name}: [value, low, high]")
        return self

    def table(self) -> Table:
        """The table as the report shows it."""
        columns = tuple(Column(**each.model_dump()) for each in self.columns)
        return Table(self.name, self.caption, columns, tuple(tuple(map(_of_report, row)) for row in self.rows))


class RowBackbone(_Part):
    """What was measured. ``digest`` identifies its weights, code and preprocessing; ``base`` is the backbone that an
    adapted or fine-tuned one was trained from."""

    name: Name
    label: Text | None
    base: Text | None
    digest: Digest | None
    control: bool
    dim: Count | None
    architecture: Text | None
    pooling: Text | None
    objective: Text | None
    data: Text | None
    parameters: Count | Finite | None
    licence: Text | None
    runtime: Facts | None


class RowTransformation(_Part):
    """A transformation; ``digest`` is that of its definition."""

    name: Name
    kind: Text
    role: Text
    digest: Digest | None


class RowSuite(_Part):
    """Transformations in order; ``digest`` is that of all definitions."""

    name: Text | None
    digest: Digest | None
    transformations: Annotated[list[RowTransformation], Field(max_length=_MANY)]


class RowData(_Part):
    """Photographs. ``digest`` is that of keys, classes, splits and bytes, also of real variants; null if the bytes of
    some are unknown. ``groups`` is the number of units by which the bootstrap ``resamples``."""

    name: Text | None
    digest: Digest | None
    photographs: Count
    classes: Count | None
    splits: Counts | None
    chance: Annotated[dict[Text, Finite | None], Field(max_length=100)] | None
    resampled_by: Text | None
    groups: Count | None


class RowStudy(_Part):
    """The study, as far as results.json has it: settings by stage, and fractions of ``splits``."""

    name: Text
    note: Text | None
    limit: Count | None
    splits: Annotated[dict[Text, Finite], Field(max_length=3)] | None
    seed: int | None
    canvas: Count | None
    orientation: Text | None
    style_precision: Text | None
    crop_pct: Finite | None
    settings: Annotated[dict[Name, dict[str, JsonValue]], Field(max_length=100)] | None


class Row(_Part):
    """Results of one backbone in one run: ``results/<backbone>/<suite>/<data>/<stamp>.json``.

    ``stamps`` are digests of the inputs of each stage. ``checksum`` is the SHA-256, 16 hex digits, of the other fields
    as JSON with sorted names and Python's default separators.
    """

    schema_number: Literal[2] = Field(alias="schema")
    substyle: Text
    created: Text
    libraries: Facts | None
    backbone: RowBackbone
    suite: RowSuite
    data: RowData
    study: RowStudy
    scores: Annotated[list[RowScore], Field(max_length=_MANY)]
    tables: Annotated[list[RowTable], Field(max_length=1_000)]
    stamps: Annotated[dict[Name, Digest], Field(max_length=1_000)]
    checksum: Digest

    @model_validator(mode="after")
    def _readable(self) -> Row:
        if len({score.key for score in self.scores}) < len(self.scores):
            raise ValueError("a key for each score")
        try:
            self.text()
        except PydanticSerializationError as error:  # settings may have halves of characters
            raise ValueError("text in Unicode") from error
        return self

    @property
    def recorded(self) -> bool:
        """Whether photographs and transformations are known, without which rows of two runs are not compared."""
        return self.data.digest is not None and self.suite.digest is not None

    @property
    def stamp(self) -> str:
        """Digest of what the row was computed from; of its content where that is not recorded."""
        if not (self.stamps and self.recorded and self.backbone.digest):
            return self.content()
        study = self.study.model_dump(include=set(PIXELS))
        parts = {"backbone": [self.backbone.name, self.backbone.digest], "suite": self.suite.digest}
        return checksum({**parts, "data": self.data.digest, "study": study, "stamps": self.stamps})

    @property
    def path(self) -> str:
        """Path in a directory of results."""
        parts = (each_name(each.name, each.digest) for each in (self.backbone, self.suite, self.data))
        return "/".join((FOLDER, *parts, f"{self.stamp}.json"))

    def numbers(self) -> str:
        """Digest of scores, cells of tables and stamps, 16 hex digits: names, notes and versions may differ."""
        scores = {each.key: [each.value, each.ci95, each.n, each.converged] for each in self.scores}
        tables = [[each.name, [column.name for column in each.columns], each.rows] for each in self.tables]
        return checksum({"scores": scores, "tables": tables, "stamps": self.stamps})

    def content(self) -> str:
        """Digest of the row without the time at which it was written, 16 hex digits."""
        return checksum(self.model_dump(by_alias=True, exclude={"created", "checksum"}))

    def sum(self) -> str:
        """The checksum that the row should have."""
        return checksum(self.model_dump(by_alias=True))

    def text(self) -> str:
        """The file."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def each_name(name: str | None, digest: str | None) -> str:
    """Part of a path: letters, digits, dot, dash and underscore of a name, and the start of a digest."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", name or UNRECORDED)[:60].strip("._-")
    return f"{text or 'unnamed'}-{digest[:8] if digest else UNRECORDED}"


def row_schema() -> dict[str, Any]:
    """JSON Schema of a row, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Row.model_json_schema()}


def rows_of(results: dict[str, Any]) -> list[Row]:
    """Rows of all backbones of a results.json.

    Raises:
        SubstyleError: invalid results, or larger ones than a row holds.
    """
    document = validate_results(results)
    labels, shown = labels_of(document), labelled(document)
    try:
        tables, suite = _tables(shown), _suite(results)
        return [
            _row(results, document, name, suite, tables.get(labels.get(name, name), []), labels)
            for name in document.ordered()
        ]
    except ValidationError as error:
        raise SubstyleError(f"results: cannot be a row: {brief(error)[:300]}") from error


def _row(
    results: Mapping[str, Any],
    document: ResultsDocument,
    name: str,
    suite: RowSuite,
    tables: list[RowTable],
    labels: Mapping[str, str],
) -> Row:
    own, identity, resampled = document.backbones[name], document.identity or {}, document.resampled
    settings = {stage: _own(each, name, document) for stage, each in (document.settings or {}).items() if each}
    end = f"/{slug(name)}"
    stamps = {stage: digest for stage, digest in (document.stamps or {}).items() if stage.endswith(end)}
    content: dict[str, Any] = {
        "schema": 2,
        "substyle": document.version or "",
        "created": document.created or "",
        "libraries": document.environment,
        "backbone": _backbone(results["backbones"][name], own, name, labels).model_dump(),
        "suite": suite.model_dump(),
        "data": {
            "name": identity.get("sources") or None,
            "digest": identity.get("data", identity.get("photographs")),
            "photographs": document.images,
            "classes": None if document.classes is None else len(document.classes),
            "splits": document.splits,
            "chance": document.chance,
            "resampled_by": resampled and resampled.by,
            "groups": resampled and resampled.groups,
        },
        "study": {
            "name": document.name,
            "note": document.note,
            "limit": document.study and document.study.limit,
            "splits": document.study and document.study.splits,
            "settings": None if document.settings is None else settings,
            **{each: getattr(document, each) for each in PIXELS},
        },
        "scores": [score.model_dump() for score in _scores(own, document)],
        "tables": [table.model_dump() for table in tables],
        "stamps": {stage.removesuffix(end): digest for stage, digest in stamps.items()},
    }
    made = Row.model_validate({**json.loads(json.dumps(content)), "checksum": "0" * 16})
    return made.model_copy(update={"checksum": made.sum()})


def _own(settings: dict[str, Any], name: str, document: ResultsDocument) -> dict[str, Any]:
    """Settings of a stage for a backbone: they are by backbone where those of backbones differ."""
    by_backbone = settings.keys() <= document.backbones.keys() and all(isinstance(v, dict) for v in settings.values())
    return settings.get(name, {}) if by_backbone else settings


def _backbone(raw: Mapping[str, Any], own: BackboneResults, name: str, labels: Mapping[str, str]) -> RowBackbone:
    facts, (objective, data) = own.facts, stated(name)
    return RowBackbone(
        # trained on an embedding or a network of the run: its name is the path of a file
        name=labels.get(name, name) if own.base else name,
        label=own.label,
        base=own.base,
        digest=checksum(network_identity(raw["spec"])) if facts.weights_hash else None,
        control=bool(own.control),
        dim=own.dim,
        architecture=facts.architecture,
        pooling=facts.pooling,
        objective=facts.objective or objective or None,
        data=facts.data or data or None,
        parameters=facts.parameters,
        licence=facts.licence,
        runtime=own.runtime,
    )


def _suite(results: Mapping[str, Any]) -> RowSuite:
    """Transformations; without parameters, their definitions are not known."""
    entries = results["transformations"]
    known = bool(entries) and all(entry.get("parameters") is not None for entry in entries)
    digests = [checksum(entry) if known else None for entry in entries]
    rows = zip(entries, digests, strict=True)
    return RowSuite(
        name=results.get("suite"),
        digest=checksum({"transformations": entries}) if known else None,
        transformations=[
            RowTransformation(name=each["name"], kind=each["kind"], role=each["role"], digest=digest)
            for each, digest in rows
        ],
    )


def _scores(own: BackboneResults, document: ResultsDocument) -> list[RowScore]:
    """What all stages compare; scores of probes are over all test photographs unless they say otherwise."""
    probes, tested = registry.REPORTED[0], (document.splits or {}).get("test")
    return [
        RowScore(
            key=score.key,
            heading=score.heading,
            stage=stage.name,
            value=score.estimate.value,
            ci95=score.estimate.interval,
            n=tested if score.images is None and stage.name == probes else score.images,
            converged=score.converged,
        )
        for stage in registry.stages()
        for score in registry.scores_of(stage, own)
    ]


def _tables(shown: ResultsDocument) -> dict[str, list[RowTable]]:
    """Tables of the report whose rows are about one backbone, by its name there."""
    found: dict[str, list[RowTable]] = {}
    for section in sections_of(shown):
        for block in blocks_of(section):
            table = block.table if isinstance(block, Data) and block.saved else Table("", "", (), ())
            if not table.columns or table.columns[0].name != "backbone" or table.name.startswith(_LEFT_OUT):
                continue
            columns = [RowColumn(**asdict(each)) for each in table.columns[1:]]
            for name in dict.fromkeys(row[0] for row in table.rows):
                rows = [[_plain(cell) for cell in row[1:]] for row in table.rows if row[0] == name]
                made = RowTable(
                    section=section.title, name=table.name, caption=table.caption, columns=columns, rows=rows
                )
                found.setdefault(name, []).append(made)
    return found


def _plain(cell: Any) -> Cell:  # noqa: ANN401 (a cell holds anything plain)
    if not isinstance(cell, tuple):
        plain: Cell = cell
        return plain
    scored: Scored = [*cell]
    return [*scored, _LATE] if isinstance(cell, Unconverged) else scored


def _of_report(cell: Cell) -> Any:  # noqa: ANN401 (see above)
    if not isinstance(cell, list):
        return cell
    score: Any = cell[:3]
    return Unconverged(score) if cell[3:] else tuple(score)
