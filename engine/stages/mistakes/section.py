"""The most confident mistakes of probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from substyle.engine.report.data import head_name, show
from substyle.engine.report.section import Block, Details, Heading, Pictures, Section, Text
from substyle.engine.results.model import Model, ResultsDocument, Share

_OPEN = 2  # probes whose mistakes are shown at once


class Mistake(Model):
    """A confident wrong prediction; ``picture`` is a file in the folder ``mistakes``."""

    key: str
    transformation: str
    truth: str
    predicted: str
    confidence: Share
    picture: str | None = None


class Mistakes(Model):
    """Mistakes of a probe, and the numbers of scored and wrong variants."""

    head: str
    scored: int
    wrong: int
    rows: list[Mistake]


ByTask = dict[str, Mistakes | None]


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without mistakes."""
    by_backbone: Mapping[str, ByTask] = results.entries("mistakes")
    found = [(name, task, part) for name, own in by_backbone.items() for task, part in own.items() if part]
    if not found:
        return
    text = "Test variants to which a probe of transformation, or a probe of class on original photographs, gives the "
    text += "highest probability of a wrong label: truth → prediction, probability. Pictures are drawn again from the "
    text += "photographs; without a picture, the photograph is gone or has changed."
    blocks: list[Block] = [Text(text)]
    for each in found[:_OPEN]:
        blocks += _blocks(*each)
    if rest := found[_OPEN:]:
        blocks.append(Details(f"{len(rest)} more probes", tuple(block for each in rest for block in _blocks(*each))))
    yield Section("mistakes", "Mistakes", "Mistakes: which are the most confident?", tuple(blocks), front=True)


def _blocks(name: str, task: str, part: Mistakes) -> list[Block]:
    style = task == "transformation"
    text = f"{show(part.wrong, 'count')} of {show(part.scored, 'count')} "
    text += f"{'variants' if style else 'photographs'} are wrong"
    text += f"; the {len(part.rows)} most confident:" if part.rows else "."
    pictures = []
    for row in part.rows:
        caption = f"{row.truth} → {row.predicted}, {show(row.confidence)}%"
        whose = "" if row.picture else f"{row.key}, {row.transformation}: "
        file = f"mistakes/{row.picture}" if row.picture else ""
        pictures.append((file, f"{row.key} after {row.transformation}", whose + caption))
    heading = f"{'Transformations' if style else 'Classes'}: {name}, {head_name(part.head)}"
    return [Heading(heading), Text(text, note=True), Pictures(tuple(pictures))]
