"""The results of a real run, from which tests of reports start, and changes of them.

results.json is what the run of results.toml wrote. Make it again when its schema changes:

    .venv/bin/python -m substyle.pipelines.packaged_photographs photographs
    .venv/bin/substyle run tests/engine/report/results.toml --images photographs --out recorded
    .venv/bin/python -m tests.engine.report.real recorded/results.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.json")
_OF_PROBES = "dim control spec runtime gate cost transformation kind kind_rotation kind_redrawn equal_width class "
_OF_PROBES += "multitask"
_TEXT = FILE.read_text()
NAMES = tuple(json.loads(_TEXT)["backbones"])  # two networks, then two controls
BACKBONE = NAMES[1]


def real_results(*names: str) -> dict[str, Any]:
    """The results; with names, those of as many networks and controls, under these names."""
    results: dict[str, Any] = json.loads(_TEXT)
    return with_backbones(results, *names) if names else results


def with_backbones(results: dict[str, Any], *names: str) -> dict[str, Any]:
    """Rename networks and controls in turn, and leave out the others."""
    own: dict[str, str] = {}
    for control in (False, True):
        old, new = ([n for n in each if n.startswith("control:") == control] for each in (results["backbones"], names))
        own |= {name: old[at % len(old)] for at, name in enumerate(new)}
    texts = {name: json.dumps(results["backbones"][own[name]]) for name in names}
    changed = dict.fromkeys(results["backbones"]) | {old: new for new, old in reversed(own.items())}
    found: dict[str, Any] = renamed(results, changed)
    return found | {"backbones": {name: json.loads(text) for name, text in texts.items()}}


def renamed(value: Any, names: Mapping[str, str | None]) -> Any:  # noqa: ANN401 - JSON
    """JSON with other names of backbones or transformations, and without what is of those without a name."""
    if isinstance(value, dict) and {"labels", "counts"} <= value.keys():
        kept = [at for at, label in enumerate(value["labels"]) if names.get(label, label) is not None]
        counts = [[value["counts"][a][b] for b in kept] for a in kept]
        return {"labels": renamed(value["labels"], names), "counts": counts}
    if isinstance(value, dict):
        if any(isinstance(each, str) and names.get(each, each) is None for each in value.values()):
            return None
        inner = {names.get(key, key): renamed(each, names) for key, each in value.items()}
        return {key: each for key, each in inner.items() if key is not None}
    if isinstance(value, list):
        return [each for each in (renamed(each, names) for each in value) if each is not None or None in value]
    return names.get(value, value) if isinstance(value, str) else value


def shortened(results: dict[str, Any], count: int) -> dict[str, Any]:
    """Leave the first transformations alone."""
    gone = {row[key] for row in results["transformations"][count:] for key in ("name", "kind")}
    gone -= {row["kind"] for row in results["transformations"][:count]}
    found: dict[str, Any] = drop(renamed(results, dict.fromkeys(gone)), "map", "mistakes")
    absent = ["transformed"] if count < 2 else []
    if "held_out" not in {row["role"] for row in found["transformations"]}:
        drop(found, "kind_rotation", "kind_redrawn", "equal_width")
        absent += ["held_out", "gap"]
    for backbone in found["backbones"].values():
        for scores in (each for task in ("kind", "class") for each in (backbone.get(task) or {}).values()):
            scores |= {key: None for key in scores if key.startswith(tuple(absent))}
    return found


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """An `Estimate` of results.json, with its interval if it has one."""
    return {"value": value} | ({} if low is None else {"low": low, "high": high})


def drop(results: dict[str, Any], *parts: str) -> dict[str, Any]:
    """Leave out parts of the results and of their backbones."""
    for place in (results, *results["backbones"].values()):
        for part in parts:
            place.pop(part, None)
    return results


def all_converged(results: dict[str, Any]) -> dict[str, Any]:
    """As if all probes had converged."""
    found: dict[str, Any] = json.loads(json.dumps(results).replace('converged": false', 'converged": true'))
    return found


def of_probes(results: dict[str, Any]) -> dict[str, Any]:
    """Leave the results of probes alone, without those of other stages."""
    others = set().union(*results["backbones"].values()).difference(_OF_PROBES.split())
    return drop(results, "similarity", "robustness", "generators", *others)


def _short(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the results with a few points of each plot."""
    return {key: value[:8] if key == "points" and isinstance(value, list) else value for key, value in part.items()}


if __name__ == "__main__":
    made = json.loads(Path(sys.argv[1]).read_text(), object_hook=_short, parse_float=lambda x: round(float(x), 6))
    drop(made, "stamps", "checksum")["environment"]["cpu"] = "a CPU"
    FILE.write_text(json.dumps(made, separators=(",", ":")) + "\n")
