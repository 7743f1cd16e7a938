"""Generate the result tables of README.md and docs/attacks.md from the summaries in benchmarks/results/.

``python benchmarks/study_table.py`` prints them and ``--write`` updates both files;
``--keep NAME RESULTS.json`` first saves the summary of a run as ``benchmarks/results/study-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- study table: benchmarks/study_table.py -->", "<!-- end of study table -->"
_KEPT = ("schema", "version", "created", "name", "seed", "canvas", "suite", "images", "variants", "splits", "chance",
         "throughput", "environment")  # fmt: skip
_CLAIM = ("id", "statement", "status", "estimate", "ci", "margin", "n_transformations", "reasons")
_WANTED = {
    "fine": ("accuracy", "ci95", "two_way_ci95"),
    "coarse": ("seen", "seen_ci95", "held_out", "held_out_ci95", "held_out_two_way_ci95", "gap", "gap_ci95",
               "by_transformation"),
    "coarse_rotation": ("accuracy", "ci95", "two_way_ci95", "styles", "styles_two_way_ci95"),
    "semantic": ("clean", "clean_ci95", "obfuscated", "obfuscated_ci95"),
}  # fmt: skip
_COLUMNS = (  # heading, task, head, score, interval
    ("style, linear", "fine", "linear", "accuracy", "ci95"),
    ("style, MLP", "fine", "mlp", "accuracy", "ci95"),
    ("coarse, seen", "coarse", "linear", "seen", "seen_ci95"),
    ("coarse, held out", "coarse", "linear", "held_out", "held_out_two_way_ci95"),
    ("coarse, each held out in turn", "coarse_rotation", "linear", "accuracy", "two_way_ci95"),
    ("styles, each held out in turn", "coarse_rotation", "linear", "styles", "styles_two_way_ci95"),
    ("class", "semantic", "linear", "clean", "clean_ci95"),
    ("class, transformed", "semantic", "linear", "obfuscated", "obfuscated_ci95"),
)
_MARK = "†"
STUDIES = ("families", "imagenette")  # in the order of the README


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Reduce a results.json to every score with its interval, without keys of images."""
    kept = {key: results[key] for key in _KEPT}
    kept["backbones"] = {}
    for name, backbone in results["backbones"].items():
        row: dict[str, Any] = {key: backbone[key] for key in ("dim", "control", "runtime", "gate", "knn", "balance")}
        for task, wanted in _WANTED.items():
            heads = backbone.get(task) or {}
            row[task] = {h: {k: one[k] for k in (*wanted, "converged", "certificate")} for h, one in heads.items()}
        multitask = backbone.get("multitask") or {}
        row["multitask"] = {
            k: multitask[k] for k in ("fine", "semantic", "task_weight", "difference", "converged") if k in multitask
        }
        if "attack" in backbone:
            row["attack"] = backbone["attack"]
        kept["backbones"][name] = row
    kept["claims"] = [{key: claim[key] for key in _CLAIM} for claim in results.get("claims", [])]
    kept["comparisons"] = [c for c in results["comparisons"] if c["task"] == "fine"]
    return kept


def table(kept: dict[str, Any]) -> str:
    """Format one Markdown row per backbone: per cent, 95 % intervals in brackets, unconverged probes marked.

    Values missing from the summary are dashes.
    """
    headings = ["backbone", *(column[0] for column in _COLUMNS), "10-NN style"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, row in kept["backbones"].items():
        cells = [_cell(row.get(task, {}).get(head, {}), score, interval) for _, task, head, score, interval in _COLUMNS]
        lines.append(f"| `{name}` | {' | '.join([*cells, _per_cent(row['knn']['transformation'].get('10'))])} |")
    tasks = [task.removesuffix("_rotation") for _, task, *_ in _COLUMNS]
    lines.append(f"| chance | {' | '.join(_per_cent(kept['chance'].get(task)) for task in [*tasks, 'fine'])} |")
    if any(_MARK in line for line in lines):
        lines += ["", f"{_MARK} The probe has not converged: more training would change this number."]
    if verdicts := _verdicts(kept.get("claims", [])):
        lines += ["", verdicts]
    spent = kept["throughput"]
    lines += [
        "",
        f"{kept['images']:,} photographs × 31 variants × {len(kept['backbones'])} embeddings; "
        f"{spent['variants_per_s']:.0f} variants/s in one pass, embedding {spent['embed_seconds'] / 60:.1f} min, "
        f"probes {spent['probe_seconds'] / 60:.1f} min, analysis {spent['analysis_seconds'] / 60:.1f} min on "
        f"{kept['environment']['threads']} cores ({kept['environment']['cpu']}).",
    ]
    return "\n".join(lines)


_DETECTORS = {"fine": "style probe", "coarse": "coarse probe", "detector": "detector", "other_radii": "other radii",
              "other_attacks": "other attacks", "mahalanobis": "Mahalanobis", "knn": "k-NN", "squeezing": "squeezing",
              "layers": "layers"}  # fmt: skip


def attack_table(kept: dict[str, Any]) -> str:
    """Format success, AUROC and true-positive rate at 5 % false positives of each attack, in per cent."""
    parts = []
    for name, backbone in kept["backbones"].items():
        if "attack" not in backbone:
            continue
        found = backbone["attack"]
        lines = [f"| attack | success | {' | '.join(_DETECTORS.values())} |", "|---" * (len(_DETECTORS) + 2) + "|"]
        for attack, row in found["attacks"].items():
            scores = [row["detection"].get(how) for how in _DETECTORS]
            cells = [f"{_per_cent(s['auroc'])} / {_per_cent(s['tpr'])}" if s else "–" for s in scores]
            lines.append(f"| `{attack}` | {_cell(row, 'success', 'success_ci95')} | {' | '.join(cells)} |")
        count = found["photographs"]
        parts.append(
            "\n".join(lines)
            + f"\n\n`{name}`, class accuracy {_per_cent(found['accuracy'])}; {count['train']} training and "
            f"{count['attacked']} test photographs, {found['library']}, transfer from `{found['surrogate']}`."
        )
    return "\n\n".join(parts)


def _verdicts(claims: list[dict[str, Any]]) -> str:
    """Format the testable claims, with the difference in points and its interval."""
    said = []
    for claim in claims:
        if claim["status"] != "not testable":
            points = "" if claim["estimate"] is None else f": {100 * claim['estimate']:+.1f}"
            between = f" ({100 * claim['ci'][0]:+.1f} to {100 * claim['ci'][1]:+.1f})" if claim["ci"] else ""
            said.append(f"{claim['id']} {claim['status']}{points}{between}")
    return f"Verdicts (points, 95 %): {'; '.join(said)}." if said else ""


def _cell(scores: dict[str, Any], score: str, interval: str) -> str:
    value, ends = scores.get(score), scores.get(interval)
    between = f" ({_per_cent(ends[0])}–{_per_cent(ends[1])})" if ends else ""
    mark = f" {_MARK}" if value is not None and scores.get("converged") is False else ""
    return _per_cent(value) + between + mark


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def tables() -> str:
    """Format the tables of all studies in the README."""
    return "\n\n".join(table(json.loads((RESULTS / f"study-{name}.json").read_text())) for name in STUDIES)


def written(readme: str, text: str) -> str:
    """Replace the text between the two markers of a page."""
    before, rest = readme.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "RESULTS.json"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.keep:
        name, source = options.keep
        RESULTS.mkdir(exist_ok=True)
        kept = summary(json.loads(Path(source).read_text()))
        (RESULTS / f"study-{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = tables()
    attacks = attack_table(json.loads((RESULTS / "study-attack.json").read_text()))
    if options.write:
        for path, own in ((ROOT / "README.md", text), (ROOT / "docs" / "attacks.md", attacks)):
            path.write_text(written(path.read_text(), own))
    print(f"{text}\n\n{attacks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
