"""Parts of a report that are computed from the rest of results.json; installed packages register theirs.

The entry points of ``substyle.report`` name modules that call `register_part`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from substyle.engine.report.section import Section
from substyle.engine.results.model import ResultsDocument
from substyle.errors import ConfigError
from substyle.pipelines.entry_points import REPORT, Registry


@dataclass(frozen=True)
class ReportPart:
    """A part of a report.

    Attributes:
        name: its entry in results.json.
        results: type of the entry, such as a list of pydantic models.
        entry: computes the entry, as JSON, from the other entries, also those of stages.
        sections: sections of the report, before those of stages; labels are in place of names of backbones.
    """

    name: str
    results: Any
    entry: Callable[[ResultsDocument], Any]
    sections: Callable[[ResultsDocument], Iterable[Section]]


_PARTS: Registry[ReportPart] = Registry("part", REPORT)


def register_part(part: ReportPart) -> None:
    """Register a part. Raises ConfigError if its name is taken."""
    if part.name in {*dir(ResultsDocument), *ResultsDocument.model_fields}:
        raise ConfigError(_PARTS.what, part.name, "an unused name")
    _PARTS.add(part.name, part)


def parts() -> tuple[ReportPart, ...]:
    """All parts by name."""
    return tuple(sorted(_PARTS.all(), key=lambda part: part.name))
