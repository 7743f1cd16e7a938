"""The most confident mistakes of probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from substyle.engine.report.data import Results, dig, head_name, ordered, show
from substyle.engine.report.section import Block, Details, Heading, Pictures, Section, Text

_OPEN = 2  # probes whose mistakes are shown at once


def sections(results: Results) -> Iterator[Section]:
    """The section; none without mistakes."""
    found = [
        (name, task, part)
        for name in ordered(results)
        for task, part in (dig(results, "backbones", name, "mistakes") or {}).items()
    ]
    if not found:
        return
    text = "Test variants to which a probe of style, or a probe of class on unchanged photographs, gives the highest "
    text += "probability of a wrong label: truth → prediction, probability. Pictures are drawn again from the "
    text += "photographs; without a picture, the photograph is gone or has changed."
    blocks: list[Block] = [Text(text)]
    for each in found[:_OPEN]:
        blocks += _blocks(*each)
    if rest := found[_OPEN:]:
        blocks.append(Details(f"{len(rest)} more probes", tuple(block for each in rest for block in _blocks(*each))))
    yield Section("mistakes", "Mistakes", "Most confident mistakes", tuple(blocks))


def _blocks(name: str, task: str, part: dict[str, Any]) -> list[Block]:
    style, rows = task == "fine", part["rows"]
    text = f"{show(part['wrong'], 'count')} of {show(part['scored'], 'count')} "
    text += f"{'variants' if style else 'photographs'} are wrong"
    text += f"; the {len(rows)} most confident:" if rows else "."
    pictures = []
    for row in rows:
        caption = f"{row['truth']} → {row['predicted']}, {show(row['confidence'])}%"
        file = f"mistakes/{row['picture']}" if row.get("picture") else ""
        whose = "" if file else f"{row['key']}, {row['transformation']}: "
        pictures.append((file, f"{row['key']} after {row['transformation']}", whose + caption))
    heading = f"{'Transformations' if style else 'Classes'}: {name}, {head_name(part['head'])}"
    return [Heading(heading), Text(text, note=True), Pictures(tuple(pictures))]
