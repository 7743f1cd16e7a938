"""`predict`, `compare`, `import`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from substyle.engine.commands.photographs import source_config
from substyle.engine.importing import import_store
from substyle.engine.outputs import require_current
from substyle.engine.predict import predict as predict_all
from substyle.engine.report.compare import compare_results
from substyle.engine.report.results import read_results
from substyle.pipelines.plugins import load_plugin


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle predict PROBE IMAGES`."""
    for plugin in options.plugin:
        load_plugin(plugin)
    answer = predict_all(
        options.probe, options.images, source=source_config(options), store=options.store,
        checkpoint=options.checkpoint, top=options.top, quiet=options.quiet,
    )  # fmt: skip
    for row in answer["predictions"]:
        for output, labels in row["outputs"].items():
            ranked = "  ".join(f"{label['label']} {label['probability']:.3f}" for label in labels)
            print(f"{row['key']}  {output}: {ranked}")
    for row in answer["quarantined"]:
        print(f"quarantined {row['key']}: {row['reason']}")
    return answer


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle compare RUN RUN …`."""
    paths = [path / "results.json" if path.is_dir() else path for path in options.runs]
    runs = [(_name(path, paths), read_results(path)) for path in paths]
    for path, (_, results) in zip(paths, runs, strict=True):
        require_current(path.parent, results)
    made = compare_results(runs, options.out)
    for difference in made.setup:
        print(f"setups differ in {difference.what}: {', '.join(difference.values)}")
    page = options.out / "compare.html"
    print(f"comparison of {', '.join(name for name, _ in runs)}: {page}")
    return {
        "page": str(page),
        "setup": {d.what: list(d.values) for d in made.setup},
        "files": [str(f) for f in made.files],
    }


def _name(path: Path, paths: list[Path]) -> str:
    """The run's folder, or its whole path where two folders have one name."""
    folders = [p.resolve().parent.name for p in paths]
    return path.resolve().parent.name if folders.count(path.resolve().parent.name) == 1 else str(path)


def import_embeddings(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle import EMBEDDINGS --store STORE --backbone NAME`."""
    answer = import_store(options.embeddings, options.store, options.backbone, rows=options.rows, seed=options.seed)
    print(
        f"{options.store}: {answer['images']} images × {answer['transformations']} transformations, "
        f"{answer['dim']} wide, from {options.embeddings}"
    )
    return answer
