"""The options that say where shards are embedded, for every command that fills a store."""

from __future__ import annotations

import argparse
import dataclasses

from substyle.engine.executors.config import ExecutorConfig


def executor_config(options: argparse.Namespace, base: ExecutorConfig) -> ExecutorConfig:
    """As a study says, but for what the command line says."""
    given = {
        "kind": options.executor,
        "address": options.ray_address,
        "workers": options.workers,
        "retries": options.retries,
    }
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
