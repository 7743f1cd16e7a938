"""A static site of rows: a leaderboard, and pages of rows, backbones, transformations and photographs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import FileSystemLoader
from markupsafe import Markup

from substyle import __version__, files
from substyle.engine.extensions.site.directory import read_directory
from substyle.engine.extensions.site.row import FOLDER, Row, RowScore, RowTable, RowTransformation, each_name, rows_of
from substyle.engine.extensions.site.study_file import study_file
from substyle.engine.report import page
from substyle.engine.report.data import Column, Table, Unconverged, labelled, words
from substyle.engine.report.section import Heading, Pictures, blocks_of
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.pictures import GALLERY
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.stages.stamp import StaleError, note_of
from substyle.engine.store.files import replacing_own
from substyle.engine.store.layout import PIXELS, slug
from substyle.engine.study.outputs import RESULTS, require_current
from substyle.engine.study.report import sections_of
from substyle.errors import ConfigError, SubstyleError, abbreviated
from substyle.pipelines.transforms.names import family

MAX_PAGE = 2_000_000  # bytes
_LIST, _FORMER = "site.json", ("site.json", '"kind": "site"')
_ROWS, _COLUMNS = 250, 40  # of the leaderboard, rows of a page and columns
_SCORES = 200  # of a row on its page
_TEXT = 300_000  # characters of a row without scores, tables and settings, in HTML; of a study file on a page
_PROBE_BYTES = 2_000_000  # of a probe's file that the site has a copy of
_NAMED = 20  # stages with differing settings, and settings of a stage
_PHOTOGRAPHS = 4  # of a gallery; a study has no more
_TEMPLATES = Path(__file__).with_name("templates")
_SCRIPT = (_TEMPLATES / "leaderboard.js").read_text(encoding="utf-8")
_OTHER = {"photographs": "other photographs", "suite": "another suite or other definitions"}


_Fingerprint = list[tuple[str, float, bool]]  # transformation, accuracy, whether probes of kind hold it out


@dataclass(frozen=True)
class Site:
    """A written site.

    Attributes:
        rows, tables, pages: numbers of rows, of tables of comparable rows, and of pages.
        bad: files of directories that are no rows or are left out, with the reason.
    """

    index: Path
    rows: int
    tables: int
    pages: int
    bad: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    row: Row
    run: Path | None = None  # None: anybody may have written the row
    probes: tuple[str, ...] = ()  # files of probes in the run

    @property
    def scores(self) -> dict[str, RowScore]:
        return {score.key: score for score in self.row.scores}


@dataclass(frozen=True)
class _Shown:
    """Photographs of a run: of the gallery by photograph (transformation, file), of its sections by heading."""

    name: str
    gallery: dict[str, list[tuple[str, str]]]
    sections: list[tuple[str, list[tuple[str, str, str]]]]  # heading, (file, alternative text, caption)


@dataclass(frozen=True)
class _Group:
    """Rows that may be compared: of the same photographs, suite, seed and canvas.

    Headings and captions are those of the first row, of one's own run if there is any.
    """

    number: int
    setup: dict[str, Any]
    first: Row
    entries: list[_Entry]
    apart: str = ""  # why it is not one with another table
    columns: list[RowScore] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)  # settings by stage

    @property
    def ranked_by(self) -> RowScore | None:
        """The score of which transformation was applied, else the first one."""
        named = (score for score in self.columns if score.key.startswith("transformation_"))
        return next(named, next(iter(self.columns), None))

    def fingerprint(self, row: Row) -> _Fingerprint:
        """Accuracy of which transformation was applied, by transformation, of the head by which rows are ranked."""
        key = self.ranked_by.key if self.ranked_by else ""
        for table, at in _by_transformation(row):
            names = [column.name for column in table.columns]
            if table.name == "per_transformation" and key in names:
                by = {str(cells[at]): _value(cells[names.index(key)]) for cells in table.rows}
                own = [(each.name, by.get(each.name), each.role == "held_out") for each in row.suite.transformations]
                return [(name, value, held) for name, value, held in own if isinstance(value, int | float)]
        return []


def write_site(sources: Sequence[Path], out: Path, *, photographs: bool = True) -> Site:
    """Write a static site; it needs no server and no network, and each page has at most 2 MB.

    Args:
        sources: output folders of runs, or directories of results.
        out: folder of the site. Files in it that are not of an earlier site stay.
        photographs: show photographs of runs: galleries, mistakes.

    Raises:
        ConfigError: no rows, ``out`` is in a source or contains one, or a source is neither a run nor a directory of
            results.
        StaleError: results of a run are outdated.
        SubstyleError: results of a run are invalid, or ``out`` has a file of somebody else with the name of a page.
    """
    entries: dict[str, _Entry] = {}
    bad: dict[str, str] = {}
    shown: list[tuple[Path, ResultsDocument]] = []
    for source in sorted(sources, key=lambda each: not (each / RESULTS).is_file()):  # runs first
        is_run = (source / RESULTS).is_file()
        files.require_apart(out, source if is_run else source / FOLDER)
        if is_run:
            document, found = _run(source)
            shown.append((source, document))
        elif (source / FOLDER).exists():
            contents = read_directory(source, "SOURCE")
            found = [_Entry(row) for row in contents.rows.values()]
            bad |= {str(source / name): reason for name, reason in contents.bad.items()}
        else:
            raise ConfigError("SOURCE", str(source), f"a run with {RESULTS}, or a directory of results with {FOLDER}/")
        for entry in found:
            if problem := _problem(entry.row, entries):
                bad[str(source / entry.row.path)] = problem
            else:
                entries.setdefault(entry.row.stamp, entry)
    if not entries:
        why = abbreviated([f"{name}: {reason}" for name, reason in bad.items()])
        allowed = "runs or directories with valid rows" + (f" (left out: {why})" if bad else "")
        raise ConfigError("SOURCE", ", ".join(map(str, sources)), allowed)
    groups = _groups(list(entries.values()))
    with replacing_own(out, _LIST, _FORMER) as new:
        writer = _Writer(new, groups)
        writer.write([writer.photographs(run, document) for run, document in shown] if photographs else [])
    return Site(out / "index.html", len(entries), len(groups), writer.pages, bad)


def _problem(row: Row, entries: Mapping[str, _Entry]) -> str:
    """Why a row is left out; empty if it is not."""
    text = row.model_copy(update={"scores": [], "tables": [], "study": row.study.model_copy(update={"settings": None})})
    if len(html.escape(text.text())) > _TEXT:
        return "too much text for a page"
    known = entries.get(row.stamp)
    return "" if known is None or known.row.numbers() == row.numbers() else "other numbers for the same stamp"


def _run(run: Path) -> tuple[ResultsDocument, list[_Entry]]:
    """Results of a run, and its rows with files of their probes."""
    results = read_results(run / RESULTS)
    require_current(run, results)
    document = validate_results(results)
    entries = []
    for name, row in zip(document.ordered(), rows_of(results), strict=True):
        folder = f"{registry.REPORTED[0]}/{slug(name)}"
        listed = _listed(run, folder) if folder in (document.stamps or {}) else []
        probes = [file for file in listed if file.endswith(".safetensors")]
        entries.append(_Entry(row, run, tuple(probes)))
    return document, entries


def _listed(run: Path, folder: str) -> list[str]:
    """Unmodified files of a folder of results; none without it."""
    try:
        note = note_of(files.inside(run, folder))
    except StaleError as error:
        print(f"{error}; left out", file=sys.stderr)
        return []
    return [f"{folder}/{name}" for name in note.files] if note else []


def _groups(entries: Iterable[_Entry]) -> list[_Group]:
    """Tables of comparable rows, those with known photographs and of most photographs first."""
    by: dict[str, list[_Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.run is None):
        by.setdefault(json.dumps(_setup(entry.row)), []).append(entry)
    made: list[_Group] = []
    first = {key: own[0].row for key, own in by.items()}
    place = {key: (not row.recorded, -row.data.photographs, -len(by[key]), key) for key, row in first.items()}
    for key, own in sorted(by.items(), key=lambda item: place[item[0]]):
        setup, counts = json.loads(key), Counter(name for entry in own for name in entry.scores)
        scores = {name: score for entry in reversed(own) for name, score in entry.scores.items()}
        most = {name for name, _ in counts.most_common(_COLUMNS)}
        columns = [scores[name] for name in counts if name in most]
        made.append(_Group(len(made) + 1, setup, first[key], own, _apart(setup, made), columns, _differing(own)))
    return made


def _setup(row: Row) -> dict[str, Any]:
    """What must agree between rows that are compared; without digests rows of one study agree."""
    pixels = {name: getattr(row.study, name) for name in PIXELS}
    if row.recorded:
        return {"photographs": row.data.digest, "suite": row.suite.digest, **pixels}
    return {"study": [row.study.name, row.created, row.suite.name, row.data.photographs], **pixels}


def _apart(setup: Mapping[str, Any], others: Sequence[_Group]) -> str:
    if "study" in setup:
        return (
            "Photographs and definitions of transformations are not recorded: these rows of one study are compared "
            "with each other alone."
        )
    differing = {
        other.number: [_OTHER.get(name, f"another {name}") for name in setup if setup[name] != other.setup.get(name)]
        for other in others
    }
    nearest = min(differing, key=lambda number: len(differing[number]), default=None)
    return "" if nearest is None else f"Not compared with table {nearest}: {', '.join(differing[nearest])}."


def _differing(entries: Sequence[_Entry]) -> dict[str, list[str]]:
    """Settings that differ between rows, by stage."""
    known = [entry.row.study.settings for entry in entries if entry.row.study.settings is not None]
    found = {}
    for stage in dict.fromkeys(stage for settings in known for stage in settings):
        own = [settings[stage] for settings in known if stage in settings]
        names = dict.fromkeys(name for settings in own for name in settings)
        if differing := [name for name in names if any(each.get(name) != own[0].get(name) for each in own)]:
            found[_short(stage)] = [_short(name) for name in differing[:_NAMED]]
    return dict([*found.items()][:_NAMED])


class _Writer:
    """Writes the pages of a site into an empty folder."""

    def __init__(self, out: Path, groups: Sequence[_Group]) -> None:
        self.out, self.groups, self.pages = out, groups, 0
        self.environment = page.environment().overlay(loader=FileSystemLoader([_TEMPLATES, page.TEMPLATES]))
        self.environment.filters["short"] = _short
        digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
        self.common = {
            "version": __version__,
            "script": Markup(_SCRIPT),
            "script_hash": f"sha256-{digest}",
            "site_style": Markup((_TEMPLATES / "site.css").read_text(encoding="utf-8")),
            "has_photographs": False,
            "columns": _COLUMNS,
            **dict.fromkeys(("tables", "parts", "left_out"), ()),
        }
        # by transformation: name of the run, file of the original if there is one, file
        self.pictures: dict[str, list[tuple[str, str, str]]] = {}
        self.board_of: dict[int, str] = {}  # page of the first rows of each table

    def write(self, shown: Sequence[_Shown | None]) -> None:
        """Write all pages."""
        photographs = [each for each in shown if each is not None]
        self.common["has_photographs"] = bool(photographs)
        self._index()
        backbones: dict[str, list[tuple[_Group, Row, _Fingerprint]]] = {}
        transformations: dict[str, tuple[RowTransformation, list[tuple[str, Table]]]] = {}
        counts: Counter[str] = Counter()  # tables of the leaderboard with a transformation
        for group in self.groups:
            for entry in group.entries:
                self._row(group, entry)
                part = PurePosixPath(entry.row.path).parts[1]
                backbones.setdefault(part, []).append((group, entry.row, group.fingerprint(entry.row)))
            heading = f"Table {group.number}: {_data(group.first)}, suite {_suite(group.first)}"
            tables = _of_transformations(group)
            names = {family(t.name): t for entry in reversed(group.entries) for t in entry.row.suite.transformations}
            for name, each in names.items():
                known = transformations.setdefault(name, (each, []))[1]
                known += [(heading, table) for table in tables.get(name, ())]
            counts.update([*names])
        for part, own in backbones.items():
            self._page(f"backbones/{part}.html", "backbone.html.j2", parts=own)
        listed = [(own[0][1].backbone, f"{part}.html", len(own)) for part, own in sorted(backbones.items())]
        self._page("backbones/index.html", "list.html.j2", parts=listed, title="Backbones")
        for name, (each, known) in transformations.items():
            pictures = [(of, *each) for of, found in self.pictures.items() if family(of) == name for each in found]
            context = {"tables": known, "parts": pictures, "own": each, "name": name}
            self._page(f"transformations/{_file(name)}", "transformation.html.j2", **context)
        listed_t = [(each, _file(name), counts[name]) for name, (each, _) in transformations.items()]
        self._page("transformations/index.html", "list.html.j2", parts=listed_t, title="Transformations")
        if photographs:
            self._page("photographs.html", "photographs.html.j2", parts=photographs)

    def _index(self) -> None:
        """The leaderboard, on several pages if it is long."""
        limit = 2 * _ROWS
        while True:
            limit //= 2
            boards = self._boards(limit)
            pages = {name: self._board(name, boards) for name in boards}
            if limit == 1 or max(map(len, pages.values())) <= MAX_PAGE:
                break
        self.board_of = {group.number: name for name in reversed(boards) for group in boards[name]}
        for name, data in pages.items():
            self._save(name, data)

    def _boards(self, limit: int) -> dict[str, list[_Group]]:
        """Tables by page, with a limited number of rows on each."""
        boards: dict[str, list[_Group]] = {}
        last: list[_Group] = []
        for group in self.groups:
            entries = sorted(group.entries, key=lambda entry: (_natural(entry.row.backbone.name), entry.row.created))
            if by := group.ranked_by:
                key = by.key
                entries.sort(key=lambda entry: -entry.scores[key].value if key in entry.scores else math.inf)
            entries.sort(key=lambda entry: entry.row.backbone.control)
            for start in range(0, len(entries), limit):
                part = replace(group, entries=entries[start : start + limit])
                if not last or sum(len(each.entries) for each in [*last, part]) > limit:
                    number = len(boards) + 1
                    last = boards["index.html" if number == 1 else f"index-{number}.html"] = []
                last.append(part)
        return boards

    def _board(self, name: str, boards: Mapping[str, list[_Group]]) -> bytes:
        groups = boards[name]
        rows = [entry.row for group in groups for entry in group.entries]
        scores = {score.key: score for group in reversed(groups) for score in group.columns}
        choices = {key: sorted(set(map(of, rows))) for key, of in _CHOICES.items()}
        return self._rendered(
            name, "index.html.j2", groups=groups, scores=scores, choices=choices, names=[*boards], name=name,
            main=registry.REPORTED[0], **_CHOICES,
        )  # fmt: skip

    def _row(self, group: _Group, entry: _Entry) -> None:
        row, stamp, foreign = entry.row, entry.row.stamp, entry.run is None
        self._file(f"rows/{stamp}.json", row.text().encode())
        study = study_file(row)
        if study:
            self._file(f"studies/{stamp}.toml", study.encode())
        probes = []
        for name in entry.probes:
            assert entry.run is not None
            with files.open_inside(entry.run, name) as file:
                data = file.read(_PROBE_BYTES + 1)
            target = f"probes/{stamp}/{PurePosixPath(name).name}"
            probes.append((name, f"../{self._file(target, data)}" if len(data) <= _PROBE_BYTES else ""))
        tables = [(each.section, _headed(each.table(), row.backbone.name)) for each in row.tables]
        self._page(
            f"rows/{stamp}.html", "row.html.j2", tables=tables, row=row, group=group, study=study, probes=probes,
            foreign=foreign, part=PurePosixPath(row.path).parts[1],
            out=each_name(row.study.name, None).rpartition("-")[0], scores=_scores(row.scores),
            shown=len(html.escape(study)) <= _TEXT, board=f"../{self.board_of[group.number]}#table-{group.number}",
            links={family(each.name): f"../transformations/{_file(family(each.name))}"
                   for each in row.suite.transformations},
        )  # fmt: skip

    def photographs(self, run: Path, document: ResultsDocument) -> _Shown | None:
        """Copy the photographs of a run that its results show; None without any."""
        names = [row.name for row in document.transformations]
        gallery: dict[str, list[tuple[str, str]]] = {}
        note = note_of(files.inside(run, GALLERY)) if _listed(run, GALLERY) else None
        if note is not None and note.stamp.store == (document.identity or {}).get("store"):
            found = {(PurePosixPath(name).parent.name, PurePosixPath(name).stem): name for name in note.files}
            for photograph in sorted({photograph for photograph, _ in found})[:_PHOTOGRAPHS]:
                of = [(name, found[photograph, name]) for name in names if (photograph, name) in found]
                gallery[photograph] = [(name, self._picture(run, f"{GALLERY}/{file}")) for name, file in of]
                original = dict(gallery[photograph]).get("identity", "")
                for name, file in gallery[photograph]:
                    self.pictures.setdefault(name, []).append((document.name, original, file))
        sections = []
        for section in sections_of(labelled(document)):
            heading = section.title
            for block in blocks_of(section):
                heading = block.text if isinstance(block, Heading) else heading
                if isinstance(block, Pictures):
                    shown = [
                        (self._picture(run, file), text, caption)
                        for file, text, caption in block.pictures
                        if file and files.inside(run, file).is_file()
                    ]
                    sections += [(heading, shown)] if shown else []
        return _Shown(document.name, gallery, sections) if gallery or sections else None

    def _picture(self, run: Path, name: str) -> str:
        data = page.thumbnail(run, name)
        return self._file(f"pictures/{hashlib.sha256(data).hexdigest()[:16]}.jpg", data)

    def _page(self, path: str, template: str, **context: Any) -> None:  # noqa: ANN401
        """Write a page; if it is too large, without its longest ``tables``, and then with half of its ``parts``."""
        tables, parts, left_out = context.pop("tables", ()), context.pop("parts", ()), list[str]()
        context |= {"total": len(parts), "left_out": left_out}
        while True:
            data = self._rendered(path, template, tables=tables, parts=parts, **context)
            if len(data) <= MAX_PAGE or (not tables and len(parts) < 2):
                return self._save(path, data)
            ordered = sorted(tables, key=lambda each: len(each[1].rows) * len(each[1].columns))
            kept, longest = ordered[: -1 - len(left_out)], ordered[-1 - len(left_out) :]
            tables = [each for each in tables if any(each is other for other in kept)]
            left_out += [_short(table.name) for _, table in longest]
            parts = parts if longest else parts[: len(parts) // 2]

    def _rendered(self, path: str, template: str, **context: Any) -> bytes:  # noqa: ANN401
        made = self.environment.get_template(template)
        return made.render(self.common, root="../" * path.count("/"), **context).encode("utf-8", "replace")

    def _save(self, path: str, data: bytes) -> None:
        if len(data) > MAX_PAGE:
            raise SubstyleError(f"{path}: a page of {len(data):,} bytes; at most {MAX_PAGE:,}")
        self._file(path, data)
        self.pages += 1

    def _file(self, name: str, data: bytes) -> str:
        path = files.inside(self.out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, data)
        return name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers by value."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _short(text: object) -> str:
    """Shorten a name for a cell."""
    return str(text) if len(str(text)) <= 80 else f"{str(text)[:79]}…"


def _suite(row: Row) -> str:
    name = _short(row.suite.name or "–")
    return name if "," not in name else f"{_short(row.study.name)}: {len(row.suite.transformations)} transformations"


def _data(row: Row) -> str:
    return f"{_short(row.data.name or row.study.name)} ({row.data.photographs:,} photographs)"


def _family(row: Row) -> str:
    return _short((row.backbone.base or row.backbone.name).partition(":")[0])


def _objective(row: Row) -> str:
    return _short(row.backbone.objective or "–")


_CHOICES = {"suite": _suite, "data": _data, "objective": _objective, "family": _family}


def _file(transformation: str) -> str:
    return f"{each_name(transformation, hashlib.sha256(transformation.encode()).hexdigest())}.html"


def _scores(scores: Sequence[RowScore]) -> Table:
    columns = (*words("score"), Column("value", "Value", interval=True), Column("n", "Photographs", "count"))
    rows = []
    for score in scores[:_SCORES]:
        low, high = score.ci95 or (None, None)
        value = score.value, low, high
        rows.append((_short(score.heading), value if score.converged else Unconverged(value), score.n))
    return Table("scores", "Scores in per cent.", columns, tuple(rows))


def _known(table: Table) -> Table:
    """The table without columns that have no value."""
    has = [any(row[i] is not None for row in table.rows) for i in range(len(table.columns))]
    rows = tuple(tuple(compress(row, has)) for row in table.rows)
    return replace(table, columns=tuple(compress(table.columns, has)), rows=rows)


def _headed(table: Table, backbone: str) -> Table:
    """The table with a column of words first, which heads its rows."""
    table = _known(table)
    if table.columns and table.columns[0].kind == "text":
        return table
    return replace(
        table, columns=(*words("backbone"), *table.columns), rows=tuple((backbone, *row) for row in table.rows)
    )


def _value(cell: object) -> object:
    """The number of a cell, which may have the ends of its interval beside it."""
    return cell[0] if isinstance(cell, list | tuple) and cell else cell


def _by_transformation(row: Row) -> Iterator[tuple[RowTable, int]]:
    """Tables that have a column of transformations, and its index."""
    for table in row.tables:
        for at, column in enumerate(table.columns):
            if column.name == "transformation" and column.kind == "text":
                yield table, at
                break


def _of_transformations(group: _Group) -> dict[str, list[Table]]:
    """Rows about each transformation in the tables of all backbones, by its name without the severity."""
    found: dict[tuple[str, str, tuple[Column, ...]], list[tuple[Any, ...]]] = {}
    captions: dict[str, str] = {}
    for entry in group.entries:
        backbone = entry.row.backbone.label or entry.row.backbone.name
        for kept, at in _by_transformation(entry.row):
            table = kept.table()
            captions.setdefault(table.name, table.caption)
            by: dict[str, list[tuple[Any, ...]]] = {}
            for row in table.rows:
                by.setdefault(family(str(row[at])), []).append(row)
            for name, rows in by.items():
                drop = {
                    i for i, each in enumerate(table.columns) if each.name in ("kind", "role") and each.kind == "text"
                }
                named = any(row[at] != name for row in rows)  # severities have names of their own
                drop |= set() if named else {at}
                columns = tuple(each for i, each in enumerate(table.columns) if i not in drop)
                cells = [(backbone, *(cell for i, cell in enumerate(row) if i not in drop)) for row in rows]
                found.setdefault((name, table.name, columns), []).extend(cells)
    tables: dict[str, list[Table]] = {}
    for (name, of, columns), cells in found.items():
        table = Table(of, captions[of], (*words("backbone"), *columns), tuple(cells))
        tables.setdefault(name, []).append(_known(table))
    return tables
