"""Everything after pixels: backbones, store, probes, analysis, report.

The names below are imported when they are first used: `import substyle.engine` alone loads neither torch nor DALI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from substyle.engine.plan import EmbedPlan
    from substyle.engine.preparation import BackboneChoice, EmbedConfig, Settings, Workshop
    from substyle.engine.probes.saved import Probe
    from substyle.engine.runner import run_study
    from substyle.engine.store.embeddings import EmbeddingStore
    from substyle.engine.store.load import load_table
    from substyle.engine.study import Study, load_study

_WHERE = {
    "BackboneChoice": "preparation",
    "EmbedConfig": "preparation",
    "EmbedPlan": "plan",
    "EmbeddingStore": "store.embeddings",
    "Probe": "probes.saved",
    "Settings": "preparation",
    "Study": "study",
    "Workshop": "preparation",
    "load_study": "study",
    "load_table": "store.load",
    "run_study": "runner",
}

__all__ = [
    "BackboneChoice",
    "EmbedConfig",
    "EmbedPlan",
    "EmbeddingStore",
    "Probe",
    "Settings",
    "Study",
    "Workshop",
    "load_study",
    "load_table",
    "run_study",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
