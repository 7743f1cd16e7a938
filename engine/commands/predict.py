"""Command `predict`, which imports as little as it can."""

from __future__ import annotations

import argparse
from typing import Any

from substyle.engine.commands.options import changes, of_source
from substyle.engine.study.predict import PREDICTIONS, probe_of, summary_lines, write_predictions
from substyle.engine.study.predict import predict as predict_all
from substyle.errors import ConfigError
from substyle.pipelines.sources import SourceConfig


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle predict PROBE IMAGES`, or `substyle predict OUT --backbone NAME IMAGES`."""
    if options.out is not None and options.out.suffix not in PREDICTIONS:
        raise ConfigError("--out", str(options.out), f"a file name that ends in {' or '.join(PREDICTIONS)}")
    probe, given = options.probe, {"--backbone": options.backbone, "--task": options.task}
    if probe.is_dir():
        probe = probe_of(probe, options.backbone, options.task)
    elif named := next((name for name, value in given.items() if value is not None), None):
        raise ConfigError(named, given[named], f"only with the output folder of a run, which {probe} is not")
    source = SourceConfig(**of_source(changes(options, "source.")))
    answer = predict_all(
        probe, options.images, source=source, checkpoint=options.checkpoint,
        download=options.download, top=options.top, quiet=options.quiet,
    )  # fmt: skip
    if options.out is not None:
        write_predictions(answer, options.out)
        print(f"{options.out}: predictions of {len(answer['predictions'])} photographs")
    for row in answer["predictions"] if options.out is None else ():
        for output, labels in row["outputs"].items():
            ranked = "  ".join(f"{label['label']} {label['probability']:.3f}" for label in labels)
            print(f"{row['key']}  {output}: {ranked}")
    for row in answer["quarantined"]:
        print(f"quarantined {row['key']}: {row['reason']}")
    print("\n" + "\n".join(summary_lines(answer)))
    return answer if answer["predictions"] else answer | {"ok": False}
