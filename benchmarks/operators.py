"""Generate the table of operators in benchmarks/TABLES.md: what computes each variant, on a CPU and on a GPU.

``python -m benchmarks.operators`` prints it; ``--write`` updates the page. Graphs for a GPU are defined without one,
and run on the CPU to see the sizes of what is between their operators.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.gpu_check import tolerances
from benchmarks.harness import ROOT
from substyle.kernels import displacement, philox
from substyle.kernels.dispatch import CPU
from substyle.pipelines import dali
from substyle.pipelines.transforms import base, color, overlay_assets, warp
from substyle.pipelines.transforms.registry import load_all, suite

PAGE = ROOT / "benchmarks" / "TABLES.md"
START, END = "<!-- table of operators: benchmarks/operators.py -->", "<!-- end of the table of operators -->"
GPU = torch.device("cuda", 0)
SIDE, BATCH, DRAWN = base.CANVAS, 256, 64
SHAPE = (1, SIDE, SIDE, 3)
BANDWIDTH = 3.0e12  # bytes a second, of an H100
PRODUCTS = 7.2e12  # a second, of DALI's filter on one: 132 multiprocessors × 32 reads of shared memory × 1.7 GHz
BLOCK = (16, 128)  # rows, and values of a row, that a block of the filter computes, also beyond the image
KERNELS = {
    "gaussian_noise": ("Triton", roofline.noise(*SHAPE, 6)),
    "impulse_noise": ("Triton", roofline.noise(*SHAPE, 4)),
    "shot_noise": ("Triton", roofline.noise(*SHAPE, 24)),
    "jpeg": ("Triton", roofline.jpeg(*SHAPE[:3])),
    "elastic": ("Triton", roofline.elastic(*SHAPE, displacement.blur_weights(warp.SMOOTHING * SIDE).size)),
    "grid_distortion": ("Triton", roofline.grid(*SHAPE)),
    "swirl": ("Triton", roofline.swirl(*SHAPE)),
    "dot_halftone": ("torch.compile", roofline.dots(*SHAPE)),
    "line_halftone": ("torch.compile", roofline.lines(*SHAPE)),
}


@dataclass(frozen=True)
class Count:
    """A variant on a GPU.

    Attributes:
        on_cpu, on_gpu: operators of DALI, or a kernel.
        by_dali: whether DALI computes it on a GPU.
        passes: bytes that its operators or kernels read and write, over those of a picture.
        ms: of a batch of 256 on an H100, by count.
    """

    name: str
    on_cpu: str
    on_gpu: str
    by_dali: bool
    passes: float
    ms: float


def counts() -> Iterator[Count]:
    """Count the variants of `substance31`; not identity, and not the styles, which a network makes."""
    load_all()
    for transformation in map(base.get, suite("substance31")):
        if transformation.made_by not in ("dali", "kernel"):
            continue
        name, by_dali = transformation.name, transformation.by_dali(gpu=True)
        on_cpu = operators(nodes(transformation, CPU)) if transformation.by_dali(gpu=False) else "kernel"
        if by_dali:
            on_gpu, (moved, seconds) = operators(nodes(transformation, GPU)), _work(transformation)
        else:
            kind, (moved, _) = KERNELS[name]
            on_gpu, seconds = f"kernel ({kind})", moved / BANDWIDTH
        yield Count(name, on_cpu, on_gpu, by_dali, moved / np.prod(SHAPE), 1e3 * BATCH * seconds)


def around(found: Sequence[Count]) -> float:
    """Milliseconds of what is around the operators: copies, the gathering of pages, and comparisons with identity."""
    picture = float(np.prod(SHAPE))
    moved = 2 * picture * (1 + sum(count.by_dali for count in found))  # the canvas into DALI, variants out of it
    moved += 2 * picture * len(found)
    for build in (overlay_assets.icons, overlay_assets.words, overlay_assets.lattices):
        moved += 4 * build(SIDE).pages_NPP[0].nbytes  # gathered, then fed
    return 1e3 * BATCH * moved / BANDWIDTH


def nodes(transformation: base.Transformation, device: torch.device) -> list[Any]:
    """DALI's nodes that a variant needs on a device, inputs included, in the order of computation."""
    pipeline = dali.new_pipeline(DRAWN, 1, device)
    dali.define_variants(pipeline, [transformation], SIDE, device)
    return _reached(pipeline)


def _reached(pipeline: Any) -> list[Any]:  # noqa: ANN401 - DALI ships no types
    found: dict[tuple[str, str], Any] = {}

    def visit(node: Any) -> None:  # noqa: ANN401
        if (node.name, node.device) not in found:
            for given in node.source.inputs:
                visit(given)
            found[node.name, node.device] = node

    for output in pipeline._graph_out:
        visit(output)
    return list(found.values())


def operators(made: list[Any]) -> str:
    """Names of the operators of some nodes, and how often each is used."""
    names = [node.source._op.schema.OperatorName() for node in made if node.source.inputs]
    names = [name.replace("_ArithmeticGenericOp", "arithmetic") for name in names if name != "_TensorSubscript"]
    used = {name: names.count(name) for name in names}
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in used.items())


def _work(transformation: base.Transformation) -> tuple[float, float]:
    """Bytes moved and seconds, for a picture of the graph for a GPU; means of some draws."""
    keys_B = philox.image_keys(0, [str(i) for i in range(DRAWN)])
    drawn, pipeline = transformation.draw(keys_B, SIDE), dali.new_pipeline(DRAWN, 1, CPU)
    on_gpu = transformation.implementation(gpu=True)
    with (
        patch.object(color, "is_on_gpu", lambda canvas: True),
        patch.object(base.Transformation, "implementation", lambda own, gpu: on_gpu),
    ):
        inputs = dali.define_variants(pipeline, [transformation], SIDE, CPU)[transformation.name]
    made = _reached(pipeline)
    with pipeline:
        pipeline.set_outputs(*made)
    pipeline.build()
    feed = {f"{transformation.name}.{argument}": base.feed(drawn[argument]) for argument in inputs}
    canvas_BSSC = np.random.default_rng(0).integers(0, 256, (DRAWN, *SHAPE[1:]), dtype=np.uint8)
    ran = pipeline.run(canvas=canvas_BSSC, **feed)
    outputs = {node.name: [np.asarray(each) for each in output] for node, output in zip(made, ran, strict=True)}
    size = {name: sum(each.nbytes for each in output) / DRAWN for name, output in outputs.items()}
    moved = seconds = 0.0
    for node in made:
        name, given = node.source._op.schema.OperatorName(), node.source.inputs
        if not given or name in ("Reinterpret", "_TensorSubscript"):
            continue
        pictures = sum(size[each.name] for each in (node, *given) if size[each.name] >= SIDE * SIDE // 16)
        products = 0.0
        if name == "Filter":
            windows = base.feed(drawn[given[1].name.partition(".")[2]], GPU)
            height, width, channels = outputs[node.name][0].shape
            blocks = -(-height // BLOCK[0]) * -(-width * channels // BLOCK[1])
            products = float(np.mean([window.size for window in windows])) * blocks * BLOCK[0] * BLOCK[1]
        moved += pictures
        seconds += max(pictures / BANDWIDTH, products / PRODUCTS)
    return moved, seconds


def table() -> str:
    lines = ["| variant | on a CPU | on a GPU | passes | ms | levels |", "|---|---|---|---|---|---|"]
    found = list(counts())
    for count in found:
        bound = tolerances.VARIANTS[count.name]
        apart = f"{bound.levels}" + (f", but for {100 * bound.beyond:g} %" if bound.beyond else "")
        lines.append(
            f"| `{count.name}` | {count.on_cpu} | {count.on_gpu} | {count.passes:.1f} | {count.ms:.2f} | {apart} |"
        )
    by_dali, total = sum(count.by_dali for count in found), around(found) + sum(count.ms for count in found)
    lines.append(f"| copies, pages of overlays, comparisons with identity | | | | {around(found):.2f} | |")
    lines.append(f"| all {len(found)}, {by_dali} of them by DALI on a GPU | | | | {total:.1f} | |")
    return "\n".join(lines)


def page(text: str) -> str:
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update benchmarks/TABLES.md")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
