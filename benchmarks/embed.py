"""Throughput of a backbone alone, by runtime.

``ours`` is what an embedding run with ``precision = "auto"`` compiles: bf16, with as many leading layers in float32 as
the gate requires. The ceiling of ViT-B/16 is the rate of a bf16 matrix product the size of its largest, at its number
of operations. Convolutional networks have no ceiling: they reuse data more or, if depthwise, much less.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks import networks
from benchmarks.harness import OURS, Row, interleave
from benchmarks.networks import BATCH, CANVAS, CORES, GFLOP, LITE0, RESNET50, SHOWN, VIT_B16
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.devices import graph_batch

NAME = "embed"
QUESTION = "how many images a second does a backbone alone embed, in which runtime?"
TOKENS, WIDTH, HIDDEN = 197 * 8, 768, 3072  # ViT-B/16 at the batch size of a graph


def run(quick: bool) -> list[Row]:
    """Measure each backbone; if ``quick``, only the smallest, since gates and eager peers take minutes."""
    torch.set_num_threads(CORES)
    flops = matrix_product_flops()
    return [_row(name, flops, quick=quick) for name in ((LITE0,) if quick else (LITE0, RESNET50, VIT_B16))]


def _row(name: str, flops: float, *, quick: bool) -> Row:
    images = BATCH // 2 if name == VIT_B16 else BATCH
    gated = _auto(name)
    canvas_BSSC, x = networks.canvases(images), networks.plain_input(name, images)
    plain = copy.deepcopy(networks.module(name).get_submodule("network")).to(memory_format=torch.contiguous_format)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    contenders: dict[str, Callable[[], object]] = {OURS: lambda: gated.embed(canvas_BSSC)}
    fp32, bf16 = (networks.openvino(name, precision) for precision in ("fp32", "bf16"))  # type: ignore[arg-type]
    contenders["OpenVINO, float32"] = lambda: fp32(canvas_BSSC)
    contenders["OpenVINO, bf16 without a gate"] = lambda: bf16(canvas_BSSC)
    contenders["torch eager, float32"] = lambda: _torch(plain, x)
    contenders["torch eager, float32, channels_last"] = lambda: _torch(last, x_last)
    session = _onnxruntime(name)
    if session is not None:
        pieces = [canvas_BSSC[i : i + graph_batch(BATCH)] for i in range(0, images, graph_batch(BATCH))]
        contenders["onnxruntime, float32"] = lambda: [session.run(None, {"canvas": piece}) for piece in pieces]
    timings = interleave(contenders, repeats=(2 if quick else 4) if name == VIT_B16 else (3 if quick else 9))
    facts = {"precision": gated.runtime["precision"], "float32_layers": gated.runtime["float32_layers"],
             "cosine_min": gated.gates[0]["cosine_min"] if gated.gates else None}  # fmt: skip
    ceiling = flops / (GFLOP[name] * 1e9) if name == VIT_B16 else None
    return Row(SHOWN[name], "images", images, timings, ceiling_per_s=ceiling, facts=facts)


def _auto(name: str) -> CompiledBackbone:
    options = CompileOptions(batch=BATCH, canvas=CANVAS, threads=CORES)
    source = LazyBackbone.of(networks.load(name), canvas=CANVAS, batch=graph_batch(BATCH))
    return compile_source(source, networks.samples(), options)


def _torch(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(x)  # type: ignore[no-any-return]


def _onnxruntime(name: str) -> Any:  # noqa: ANN401 - ships no types
    """Return a session of the engine's own graph, or None if onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    return onnxruntime.InferenceSession(networks.graph(name), options, providers=["CPUExecutionProvider"])


def matrix_product_flops(seconds: float = 1.0) -> float:
    """Measure the rate of bf16 matrix products on all streams, in operations per second."""
    weights = np.random.default_rng(0).normal(0, 0.02, (WIDTH, HIDDEN)).astype(np.float32)
    nodes, x = [], "x"
    for i in range(8):  # alternate up and down, so that the graph holds only products
        weight, out = ("up", f"h{i}") if i % 2 == 0 else ("down", f"x{i}")
        nodes.append(helper.make_node("MatMul", [x, weight], [out]))
        x = out
    ports = [helper.make_tensor_value_info(p, TensorProto.FLOAT, [TOKENS, WIDTH]) for p in ("x", x)]
    tensors = [numpy_helper.from_array(weights, "up"), numpy_helper.from_array(weights.T.copy(), "down")]
    made = helper.make_model(
        helper.make_graph(nodes, "products", ports[:1], ports[1:], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    compiled = OpenVINOGraph(made.SerializeToString(), precision="bf16", threads=CORES, streams=CORES)
    batches = [[np.ones((TOKENS, WIDTH), np.float32)]] * (4 * CORES)
    compiled.run(batches)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        compiled.run(batches)
        done += len(batches)
    return done * len(nodes) * 2.0 * TOKENS * WIDTH * HIDDEN / (time.perf_counter() - began)
