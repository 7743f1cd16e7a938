"""substyle: what does an image embedding know?

The names below are imported on first use: `import substyle` alone loads neither torch nor DALI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from substyle.files import name_compiler_caches

if TYPE_CHECKING:
    from substyle.engine.config import BackboneChoice as BackboneChoice
    from substyle.engine.config import EmbedConfig as EmbedConfig
    from substyle.engine.config import Study as Study
    from substyle.engine.embedding.variants import iter_variants as iter_variants
    from substyle.engine.probes.checkpoint import Probe as Probe
    from substyle.engine.probes.config import ProbeConfig as ProbeConfig
    from substyle.engine.probes.torch_dataset import torch_dataset as torch_dataset
    from substyle.engine.store.store import EmbeddingStore as EmbeddingStore
    from substyle.engine.store.table import EmbeddingTable as EmbeddingTable
    from substyle.engine.store.table import load_table as load_table
    from substyle.engine.study.api import backbones as backbones
    from substyle.engine.study.api import embed as embed
    from substyle.engine.study.api import open_store as open_store
    from substyle.engine.study.api import probe as probe
    from substyle.engine.study.api import run as run
    from substyle.engine.study.api import transformations as transformations
    from substyle.engine.study.runner import run_study as run_study
    from substyle.engine.study.file import load_study as load_study
    from substyle.pipelines.sources import SourceConfig as SourceConfig
    from substyle.pipelines.sources import open_source as open_source

__version__ = "0.1.0"
name_compiler_caches()  # here, because every module is imported after this one, and torch after it
_MODULES = {
    "engine.config": ("BackboneChoice", "EmbedConfig", "Study"),
    "engine.study.file": ("load_study",),
    "engine.embedding.variants": ("iter_variants",),
    "engine.probes.checkpoint": ("Probe",),
    "engine.probes.config": ("ProbeConfig",),
    "engine.probes.torch_dataset": ("torch_dataset",),
    "engine.store.store": ("EmbeddingStore",),
    "engine.store.table": ("EmbeddingTable", "load_table"),
    "engine.study.api": ("backbones", "embed", "open_store", "probe", "run", "transformations"),
    "engine.study.runner": ("run_study",),
    "pipelines.sources": ("SourceConfig", "open_source"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)  # noqa: PLE0605 - it names what `__getattr__` finds


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
