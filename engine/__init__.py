"""Everything after pixels: backbones, store, probes, analysis, report.

The names below are imported when they are first used: `import substyle.engine` alone loads neither torch nor DALI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from substyle.engine.config import BackboneChoice, EmbedConfig, Settings, Study, load_study
    from substyle.engine.embedding.plan import EmbedPlan
    from substyle.engine.embedding.prepare import Workshop
    from substyle.engine.probes.checkpoint import Probe
    from substyle.engine.store.store import EmbeddingStore
    from substyle.engine.store.table import load_table
    from substyle.engine.study.runner import run_study
    from substyle.pipelines.sources import SourceConfig, open_source

_SOURCES = "substyle.pipelines.sources"
_WHERE = {
    "BackboneChoice": "preparation",
    "EmbedConfig": "workshop",
    "EmbedPlan": "plan",
    "EmbeddingStore": "store.embeddings",
    "Probe": "probes.saved",
    "Settings": "workshop",
    "SourceConfig": _SOURCES,
    "Study": "study",
    "Workshop": "workshop",
    "load_study": "study",
    "load_table": "store.load",
    "open_source": _SOURCES,
    "run_study": "runner",
}

__all__ = [
    "BackboneChoice",
    "EmbedConfig",
    "EmbedPlan",
    "EmbeddingStore",
    "Probe",
    "Settings",
    "SourceConfig",
    "Study",
    "Workshop",
    "load_study",
    "load_table",
    "open_source",
    "run_study",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _WHERE[name]
    return getattr(import_module(where if where == _SOURCES else f"{__name__}.{where}"), name)
