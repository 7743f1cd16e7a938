"""Compiled backbones for the tests of this folder; weights, graph and artefact are created once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tests.determinism.canvases import KINDS, Picture

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import export
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.spec import Backbone
from substyle.engine.devices import Precision

SIDE = 64
SMALL, REAL = "control:random:test_efficientnet", "package:efficientnet_lite0"
SOME = [Picture(kind, seed) for seed in range(2) for kind in KINDS]


@dataclass(frozen=True)
class Artefact:
    name: str
    precision: Precision
    float32_layers: int = 0
    batch: int = 8
    threads: int = 2


@lru_cache(maxsize=2)
def loaded(name: str) -> Backbone:
    return registry.load(name, registry.LoadContext(SIDE, 8, 0, None))


@lru_cache(maxsize=6)
def graph(name: str, batch: int) -> bytes:
    module = loaded(name).module
    assert module is not None
    return bytes(export(module, canvas=SIDE, batch=batch).SerializeToString())


def compiled(artefact: Artefact, cache_dir: str | None = None) -> FixedBatch:
    made = OpenVINOGraph(
        graph(artefact.name, artefact.batch),
        precision=artefact.precision,
        threads=artefact.threads,
        streams=artefact.threads,
        float32_layers=artefact.float32_layers,
        cache_dir=cache_dir,
    )
    return FixedBatch(made, artefact.batch)


@lru_cache(maxsize=8)
def kept(artefact: Artefact) -> FixedBatch:
    return compiled(artefact)
