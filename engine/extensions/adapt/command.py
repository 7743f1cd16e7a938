"""The command `adapt`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from substyle.engine.commands.study import of_store
from substyle.engine.extensions.adapt.config import AdaptConfig
from substyle.engine.extensions.adapt.family import PREFIX, path_of
from substyle.engine.extensions.adapt.stage import STAGE
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.stages.added import derive, discard_replaced
from substyle.engine.stages.stage import Run
from substyle.engine.stages.tables import tables
from substyle.engine.study import outputs


def adapt(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle adapt STORE --backbone NAME`, or `substyle adapt STORE --adapter FILE`."""
    store, out, study = of_store(options)
    if options.adapter is not None:
        name = f"{PREFIX}{os.path.relpath(options.adapter)}"
        derive(store, name, quiet=options.quiet)
    else:
        probes = study.probes if study else ProbeConfig(seed=store.settings.seed)
        config = replace(STAGE.table(study) if study else AdaptConfig(), methods=(options.method,))
        with outputs.locked(out, store.path, store.uuid):
            names = study.settings().transformations if study else ()
            opened = {table.backbone: table for table in tables(store, [options.backbone], names)}
            run = Run(store, out, opened, configs={"adapt": config, "probes": probes}, quiet=options.quiet)
            (name,) = (found := STAGE.computed(run)).values()
            derive(store, name, quiet=options.quiet)
            discard_replaced(run, STAGE, found)
    entry = store.backbone(name)
    print(f"{name}: embeddings of width {entry.dim} in {store.path}")
    return {
        "backbone": name,
        "dim": entry.dim,
        "file": str(path_of(name)),
        "onnx": str(path_of(name).with_suffix(".onnx")),
    }
