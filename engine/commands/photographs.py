"""The options that say how photographs are opened, for every command that takes some."""

from __future__ import annotations

import argparse
import dataclasses

from substyle.pipelines.sources import SourceConfig


def source_config(options: argparse.Namespace, base: SourceConfig | None = None) -> SourceConfig:
    """How photographs are opened: as a study or a store says, but for what the command line says."""
    given = {
        "kind": options.source_kind,
        "image_column": options.image_column,
        "label_column": options.label_column,
        "path_column": options.path_column,
        "split_column": options.split_column,
        "splits": options.split_folders,
        "synsets": options.synsets,
        "names": options.class_names,
    }
    return dataclasses.replace(base or SourceConfig(), **{name: value for name, value in given.items() if value})
