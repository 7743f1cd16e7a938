"""Part: backbones in bf16 by torch.compile and by TensorRT, there in 8 bits too: against float32, images a second."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu_check import networks
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row, correctness, skipped
from substyle.engine.backbones.export import Preprocessed, Typed
from substyle.engine.backbones.gate import THRESHOLDS
from substyle.engine.backbones.quantization import calibrate, in_batches, products, quantise
from substyle.engine.devices import EIGHT_BITS, EightBits, Precision, Target
from substyle.errors import ConfigError, SubstyleError

PART = "runtimes"
PRECISION: Precision = "bf16"
BUILT = 90.0  # seconds that building a TensorRT engine may take
_CALIBRATED_ON, _BATCH, _THREADS = 32, 8, 8  # canvases, none of which a row is measured with; of 8-bit graphs
_EAGER = "eager torch, bf16, channels_last"
_COMPILED, _ENGINE = "torch.compile", "TensorRT"


def run(bench: Bench) -> Iterator[Job]:
    """Each network by torch.compile, then by TensorRT, which has to beat it; then the first in 8 bits."""
    networks_of = bench.sizes.networks
    rates: dict[str, dict[str, float]] = {label: {} for label, _ in networks_of}  # images a second by way
    for label, model in networks_of:
        yield f"{label}, {_COMPILED}", partial(_compiled, bench, label, model, rates[label])
    for label, model in networks_of:
        yield f"{label}, {_ENGINE}", partial(_tensorrt, bench, label, model, None, rates[label])
    label, model = networks_of[0]
    for precision in EIGHT_BITS:
        job = partial(_tensorrt, bench, label, model, precision, rates[label])
        yield f"{label}, {_ENGINE}, {precision}", job


def _compiled(bench: Bench, label: str, model: str, rates: dict[str, float]) -> Iterator[Row]:
    """``rates`` gets what this way reaches, and eager torch."""
    from substyle.engine.backbones.runtimes.torch_compile import TorchCompiled

    bench.require(20.0)
    sizes = bench.sizes
    front = networks.backbone(model, sizes.canvas)
    runtime = TorchCompiled(front, PRECISION, sizes.images, bench.device, canvas=sizes.canvas, mode=sizes.mode)
    name = f"{label}, {_COMPILED} ({sizes.mode}) in a CUDA graph, {PRECISION}"
    fallback = "" if runtime.fallback is None else f"not compiled: {runtime.fallback}"
    yield _against_float32(bench, name, front, runtime, fallback)
    canvas = networks.canvases(sizes.images, sizes.canvas).to(bench.device)
    rates[_EAGER] = _eager(bench, front, canvas)
    row = _rate(bench, name, model, partial(runtime.start, canvas), runtime.stream, dict(rates))
    row.text = fallback
    if row.per_s and runtime.fallback is None:
        rates[_COMPILED] = row.per_s
    yield row


def _eager(bench: Bench, front: Preprocessed, canvas: torch.Tensor) -> float:
    """Images a second of the same module without compilation and without a graph."""
    typed = Typed(copy.deepcopy(front), PRECISION).eval().requires_grad_(False)
    typed.to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        return len(canvas) / bench.clock.seconds(lambda: typed(canvas), limit=bench.left() / 8, flush=False)["median"]


def _tensorrt(bench: Bench, label: str, model: str, eight: EightBits | None, rates: dict[str, float]) -> Iterator[Row]:
    """In bf16, or in 8 bits. Agreement is reported, not judged: weights are random, and a gate sees trained ones."""
    from substyle.engine.backbones import export
    from substyle.engine.backbones.runtimes import tensorrt

    name = f"{label}, {_ENGINE}, {eight or PRECISION}"
    there = tensorrt.installed()
    if there != "tensorrt":
        other = f"; {there}, which is, makes no engines for data-centre cards" if there else ""
        yield skipped(PART, name, f"tensorrt is not installed{other}: nothing is set beside {_COMPILED}")
        return
    if eight and (why := _lacking(bench.device, eight)):
        yield skipped(PART, name, why)
        return
    bench.require(BUILT)
    sizes = bench.sizes
    front = networks.backbone(model, sizes.canvas)
    if eight:
        graph = _quantised(front, eight, canvas=sizes.canvas, batch=sizes.images)
    else:
        graph = export.typed_graph(front, PRECISION, canvas=sizes.canvas, batch=sizes.images).SerializeToString()
    runtime = tensorrt.TensorRTGraph(tensorrt.build(graph, canvas=sizes.canvas, batch=sizes.images), bench.device)
    if not eight:
        yield _against_float32(bench, name, front, runtime, "")
    canvas = networks.canvases(sizes.images, sizes.canvas).to(bench.device)
    row = _rate(bench, name, model, partial(runtime.start, canvas), runtime.stream, dict(rates))
    if eight:
        found = _compared(bench, front, runtime)
        row.text = f"least cosine to float32 {found.least:.5f}, mean {found.mean:.5f}, with random weights"
    elif row.per_s:
        rates[_ENGINE] = row.per_s
    yield row


def _lacking(device: torch.device, precision: EightBits) -> str:
    """Why there can be no engine in a precision here, "" where there can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino, which measures what is quantised, is not installed"
    try:
        Target(str(device), "tensorrt").require_precision("precision", precision)
    except ConfigError as error:
        return str(error)
    return ""


def _quantised(front: Preprocessed, precision: EightBits, *, canvas: int, batch: int) -> bytes:
    """The serialised graph of a backbone with its products in 8 bits and the rest in bf16."""
    from substyle.engine.backbones import export

    model = export.typed_graph(front, "bf16", canvas=canvas, batch=batch)
    small = export.typed_graph(front, "bf16", canvas=canvas, batch=_BATCH)
    if products(small) != products(model):
        raise SubstyleError("the exporter names the network's tensors otherwise in another batch")
    seen = networks.canvases(2 * _CALIBRATED_ON, canvas)[_CALIBRATED_ON:].numpy()
    ranges = calibrate(small, in_batches([seen], _BATCH), precision, threads=_THREADS)
    return bytes(quantise(model, ranges, precision).SerializeToString())


def _against_float32(
    bench: Bench, name: str, front: Preprocessed, runtime: Callable[[torch.Tensor], object], text: str
) -> Row:
    found = _compared(bench, front, runtime)
    allowed = THRESHOLDS[PRECISION]
    words = f"least cosine to float32 {found.least:.5f}, mean {found.mean:.5f} (needed {allowed})"
    return correctness(
        PART, name, found.least >= allowed, "; ".join(filter(None, (words, text))), images=bench.sizes.compared
    )


def _compared(bench: Bench, front: Preprocessed, runtime: Callable[[torch.Tensor], object]) -> networks.Comparison:
    sizes = bench.sizes
    canvas = networks.canvases(sizes.compared, sizes.canvas)
    pieces = [torch.as_tensor(runtime(piece)) for piece in torch.split(canvas, sizes.images)]
    reference = front.to(bench.device)
    with torch.no_grad():
        expected = torch.cat([reference(piece.to(bench.device)).cpu() for piece in torch.split(canvas, 32)])
    front.to("cpu")
    return networks.compared(torch.cat(pieces), expected)


def _rate(
    bench: Bench,
    name: str,
    model: str,
    start: Callable[[], object],
    stream: torch.cuda.Stream | None,
    peers: dict[str, float],
) -> Row:
    """Images a second from a canvas on the device to embeddings on the host."""
    sizes, sheet = bench.sizes, bench.sheet
    seconds = bench.clock.seconds(start, limit=bench.left() / 8, flush=False, stream=stream)
    per_s = sizes.images / seconds["median"]
    flop = networks.work(model, sizes.images)
    by_gemm = bench.gemm_flops / flop.flop
    top = 1.0 / flop.seconds(replace(sheet, reached=1.0, moving=1.0)) if sheet else by_gemm
    facts = {"GFLOP an image": flop.flop / 1e9, "of the measured bf16 product": per_s / by_gemm}
    return Row(
        PART, f"{name}, batch {sizes.images}", MEASURED, unit="images", per_s=per_s, seconds=seconds, ceiling_per_s=top,
        ceiling=f"the roofline of {sheet.name}" if sheet else "the measured bf16 product", peers=peers, facts=facts,
    )  # fmt: skip
