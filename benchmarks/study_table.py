"""The README's result table, generated from the summaries in benchmarks/results/.

``python benchmarks/study_table.py`` prints it and ``--write`` puts it into README.md;
``--keep NAME RESULTS.json`` first keeps the summary of a run as ``benchmarks/results/study-NAME.json``.
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


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a results.json: every score with its interval, no key of an image."""
    kept = {key: results[key] for key in _KEPT}
    kept["backbones"] = {}
    for name, backbone in results["backbones"].items():
        row: dict[str, Any] = {key: backbone[key] for key in ("dim", "control", "runtime", "gate", "knn", "balance")}
        row["fine"] = {h: {k: s[k] for k in ("accuracy", "ci95")} for h, s in backbone["fine"].items()}
        wanted = ("seen", "seen_ci95", "held_out", "held_out_ci95", "gap", "gap_ci95", "by_transformation")
        row["coarse"] = {h: {k: s[k] for k in wanted} for h, s in backbone["coarse"].items()}
        wanted = ("clean", "clean_ci95", "obfuscated", "obfuscated_ci95")
        row["semantic"] = {h: {k: s[k] for k in wanted} for h, s in (backbone["semantic"] or {}).items()}
        multitask = backbone["multitask"] or {}
        row["multitask"] = {k: multitask[k] for k in ("fine", "semantic", "lambda", "difference") if k in multitask}
        kept["backbones"][name] = row
    kept["comparisons"] = [c for c in results["comparisons"] if c["task"] == "fine"]
    return kept


def table(kept: dict[str, Any]) -> str:
    """Markdown: one line for each backbone, per cent, 95 % intervals in brackets."""
    lines = [
        "| backbone | style, linear | style, MLP | coarse, seen | coarse, held out | class | class, transformed | "
        "10-NN style |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in kept["backbones"].items():
        coarse, semantic = row["coarse"]["linear"], row["semantic"]["linear"]
        cells = [
            _cell(row["fine"]["linear"]["accuracy"], row["fine"]["linear"]["ci95"]),
            _cell(row["fine"]["mlp"]["accuracy"], row["fine"]["mlp"]["ci95"]),
            _cell(coarse["seen"], coarse["seen_ci95"]),
            _cell(coarse["held_out"], coarse["held_out_ci95"]),
            _cell(semantic["clean"], semantic["clean_ci95"]),
            _cell(semantic["obfuscated"], semantic["obfuscated_ci95"]),
            _cell(row["knn"]["transformation"]["10"], None),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    chance = kept["chance"]
    shown = [chance[task] for task in ("fine", "coarse", "semantic") for _ in range(2)]
    lines.append(f"| chance | {' | '.join(f'{100 * c:.1f}' for c in shown)} | {100 * chance['fine']:.1f} |")
    spent = kept["throughput"]
    lines += [
        "",
        f"{kept['images']:,} photographs × 31 variants × {len(kept['backbones'])} embeddings; "
        f"{spent['variants_per_s']:.0f} variants/s in one pass, embedding {spent['embed_seconds'] / 60:.1f} min, "
        f"probes {spent['probe_seconds'] / 60:.1f} min, analysis {spent['analysis_seconds'] / 60:.1f} min on "
        f"{kept['environment']['threads']} cores ({kept['environment']['cpu']}).",
    ]
    return "\n".join(lines)


def _cell(value: float, interval: list[float] | None) -> str:
    between = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * value:.1f}{between}"


def written(readme: str, text: str) -> str:
    """The README with the table between its two marks."""
    before, rest = readme.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "RESULTS.json"))
    parser.add_argument("--study", default="imagenette")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.keep:
        name, source = options.keep
        RESULTS.mkdir(exist_ok=True)
        kept = summary(json.loads(Path(source).read_text()))
        (RESULTS / f"study-{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = table(json.loads((RESULTS / f"study-{options.study}.json").read_text()))
    if options.write:
        readme = ROOT / "README.md"
        readme.write_text(written(readme.read_text(), text))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
