"""Rows of results from the summaries of studies in benchmarks/results/.

``python -m benchmarks.kept_rows --to DIR`` adds them to a directory of results. What a summary does not have, such as
digests of photographs and of definitions, is not recorded in its rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_table import kept_study
from substyle.engine.extensions.site.directory import add_rows
from substyle.engine.extensions.site.row import Row, rows_of
from substyle.engine.report.data import show

RESULTS = Path(__file__).parent / "results"
_STATED = ("schema", "version", "created", "name", "seed", "canvas", "suite", "images", "splits", "chance",
           "environment")  # fmt: skip
_UNKNOWN = "not recorded"


def rows() -> Iterator[Row]:
    for path in sorted(RESULTS.glob("study-*.json")):
        yield from rows_of(document(kept_study(path.stem.removeprefix("study-"))))


def document(kept: dict[str, Any]) -> dict[str, Any]:
    """A results.json with what a summary has: no definitions of transformations, and no identity."""
    seen: dict[str, dict[str, Any]] = {}
    for name, entry in _by_transformation(kept):
        known = seen.setdefault(name, {"name": name, "kind": _UNKNOWN, "role": _UNKNOWN})
        known |= {key: entry[key] for key in ("kind", "role") if isinstance(entry, dict) and key in entry}
    listed = [name for name in kept["suite"].split(",") if name in seen]  # suites with a name state no order
    note = f"summary, {kept['intervals']}" if "intervals" in kept else "summary"
    return {
        **{key: kept[key] for key in _STATED},
        "note": f"{note}; {show(kept['variants'], 'count')} variants",
        "backbones": kept["backbones"],
        "transformations": [seen[name] for name in dict.fromkeys([*listed, *seen])],
    }


def _by_transformation(kept: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every result by transformation."""
    for backbone in kept["backbones"].values():
        for task in ("kind", "transformation", "class"):
            for probe in (backbone.get(task) or {}).values():
                yield from (probe.get("by_transformation") or {}).items()
        yield from (backbone.get("sensitivity") or {}).items()
        for key in ("parameters", "shortcut", "movement"):
            yield from ((backbone.get(key) or {}).get("by_transformation") or {}).items()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    done = add_rows(rows(), parser.parse_args(arguments).to)
    for name, reason in done.refused.items():
        print(f"{name}: {reason}")
    print(f"{len(done.added)} rows added, {len(done.unchanged)} unchanged, {len(done.refused)} refused")
    return 1 if done.refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
