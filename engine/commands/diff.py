"""Command `diff`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from substyle.engine.commands.options import changes
from substyle.engine.config import BackboneChoice, labels_of
from substyle.engine.report.data import labels_of as shown_labels
from substyle.engine.report.page import write_tables
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.study import outputs
from substyle.engine.study.compare import outcomes_of, require_comparable
from substyle.engine.study.diff import Condition, chosen
from substyle.engine.study.diff import diff as compared
from substyle.engine.study.file import study_of
from substyle.engine.study.outputs import RESULTS, require_current
from substyle.engine.study.runner import run_study
from substyle.errors import ConfigError

# what tells transformations and classes apart, and no more
_PROBES = {"tasks": ["transformation", "class"], "heads": ["linear"], "redraws": 0}


def diff(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle diff A B PHOTOS`."""
    conditions = [Condition.of(text) for text in options.fail_if]
    images, names = options.images, [options.before, options.after]
    if images is None:
        runs, names = [Path(name) for name in names], []
    elif isinstance(images, Path) and (images / RESULTS).is_file():
        runs = [images]
    else:
        with _naming(options):
            runs, names = [_run(options)], [choice.name for choice in _choices(options)]
    found = {path: read_results(path / RESULTS) for path in runs}
    for path, results in found.items():
        require_current(path, results)
    require_comparable([(str(path), results) for path, results in found.items()])
    documents = {path: validate_results(results) for path, results in found.items()}
    pair = []
    for path, name in chosen(documents, names):
        outcomes = outcomes_of(path, found[path])
        if name not in outcomes:
            raise ConfigError(str(path), f"no probes of {name}", "a run whose stage probes is complete")
        label = shown_labels(documents[path]).get(name, name)
        pair.append((label if len(runs) == 1 else f"{path}: {label}", outcomes[name]))
    made = compared(pair[0], pair[1], conditions)
    print(made.text())
    answer = made.describe()
    out = options.out or (runs[0] if len(runs) == 1 else None)
    if out is not None:
        answer["table"], *_ = map(str, write_tables([made.table()], out / "diff"))
        print(f"\nall changes: {answer['table']}")
    return answer | ({"ok": False} if made.failed else {})


def _choices(options: argparse.Namespace) -> list[BackboneChoice]:
    """The two networks: names of backbones, or with ``--model`` files of its weights."""
    given = options.before, options.after
    if options.model is None:
        made = [BackboneChoice(name) for name in given]
    else:
        stems = [re.sub(r"[^\w.-]+", "-", Path(path).stem)[:60] for path in given]
        if stems[0] == stems[1]:
            stems = [f"{stem}-{i}" for i, stem in enumerate(stems, 1)]
        pairs = zip(stems, given, strict=True)
        made = [BackboneChoice(f"{stem}={options.model}", Path(path)) for stem, path in pairs]
    labels_of(made)
    return made


def _run(options: argparse.Namespace) -> Path:
    """Embed photographs by both networks in one pass, and train their probes. Returns the output folder."""
    name = f"{outputs.name_of(options.images)}-diff"
    data = {"name": name, "images": options.images, "backbones": _choices(options), "probes": _PROBES}
    data |= {"suite": options.suite} if options.suite is not None else {}
    study = study_of(data, allow_plugins=options.allow_plugins, changes=changes(options))
    out: Path = options.out or outputs.default_out(name)
    run_study(study, out, quiet=options.quiet)
    return out


@contextmanager
def _naming(options: argparse.Namespace) -> Iterator[None]:
    """Say what A and B may be where one is no backbone."""
    try:
        yield
    except ConfigError as error:
        if options.model is None and error.field == "backbone" and Path(str(error.given)).exists():
            allowed = "names of backbones; for files of weights, --model NAME of their network"
            raise ConfigError("diff", error.given, allowed) from error
        raise
