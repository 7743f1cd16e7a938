"""Stages alone, as their commands run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.stages.execution import computed
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.stage import Run
from substyle.engine.stages.tables import tables as open_tables
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable


def run_of(store: EmbeddingStore, out: Path, tables: Sequence[EmbeddingTable] | None = None, **configs: object) -> Run:
    """What stages compute from: all backbones of a store, unless tables are given."""
    opened = open_tables(store) if tables is None else tables
    return Run(store, out, {table.backbone: table for table in opened}, configs=configs, quiet=True)


def probe(
    store: EmbeddingStore, out: Path, config: ProbeConfig, tables: Sequence[EmbeddingTable] | None = None
) -> dict[str, ProbeOutcome]:
    """Results of probes by backbone."""
    return computed(PROBES, run_of(store, out, tables, probes=config))
