"""Rate of forty transformations of other libraries through substyle, and of the library alone.

``ours`` is a `VariantMaker` with one process for the library: draw, hand a batch of 32 canvases of 224 pixels over,
transform, copy the variants, and check that they are distinct. The peer calls the library in this process on one
thread, from and to uint8 (S, S, 3), without seeds. ``of_lite0`` is the time of a variant as a share of an embedding by
EfficientNet-Lite0 (bf16 without a gate) on all cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import networks, photographs
from benchmarks.harness import OURS, Row, Timing, interleave
from benchmarks.networks import CANVAS, LITE0
from substyle.pipelines import libraries
from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import VariantMaker

NAME = "libraries"
QUESTION = "how much slower are transformations of other libraries through substyle than the library alone?"
BATCH = 32
ALONE = "the library alone"
# reference → arguments
TRANSFORMS: dict[str, dict[str, object]] = {
    **{
        f"albumentations:{name}": {}
        for name in (
            *("AdvancedBlur", "Affine", "CLAHE", "CoarseDropout", "ColorJitter", "ElasticTransform", "Emboss"),
            *("GaussNoise", "GaussianBlur", "GridDistortion", "HorizontalFlip", "HueSaturationValue", "ISONoise"),
            *("ImageCompression", "MotionBlur", "Perspective", "Posterize", "RandomBrightnessContrast", "RandomFog"),
            *("RandomGamma", "RandomRain", "RandomShadow", "Rotate", "Sharpen", "Solarize", "ToGray"),
        )
    },
    "torchvision:ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "torchvision:ElasticTransform": {},
    "torchvision:GaussianBlur": {"kernel_size": 9},
    "torchvision:RandomAffine": {"degrees": 30},
    "torchvision:RandomErasing": {},
    "torchvision:RandomPerspective": {},
    "torchvision:RandomResizedCrop": {"size": [CANVAS, CANVAS]},
    "torchvision:TrivialAugmentWide": {},
    "kornia:ColorJiggle": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    "kornia:RandomGaussianBlur": {"kernel_size": [9, 9], "sigma": [0.5, 3.0]},
    "kornia:RandomGaussianNoise": {},
    "kornia:RandomMotionBlur": {"kernel_size": 9, "angle": 35.0, "direction": 0.5},
    "kornia:RandomPerspective": {},
    "kornia:RandomPlasmaShadow": {},
}


def run(quick: bool) -> list[Row]:
    """Measure each transformation, then all of them together."""
    torch.set_num_threads(1)
    records = photographs.records(BATCH)
    canvas_BSSC = Decoder(CANVAS, BATCH, 1)([record.read() for record in records]).canvas_BSSC
    network = networks.openvino(LITE0, "bf16")
    canvases = canvas_BSSC.numpy()
    lite0 = interleave({OURS: lambda: network(canvases)}, repeats=3 if quick else 9)[OURS].median
    names, alone, rows = list[str](), dict[str, Callable[[], None]](), list[Row]()
    for reference, arguments in list(TRANSFORMS.items())[:: 8 if quick else 1]:
        name = reference.replace(":", ".")
        made = libraries.transformation(NAME, {"name": name, "of": reference, "parameters": arguments}, Path())
        base.register(made)
        names.append(name)
        alone[name] = _alone(made, canvases)
        rows.append(_row(reference, [name], alone[name], canvas_BSSC, lite0, repeats=3 if quick else 7))
        rows[-1].headline = False

    def every() -> None:
        for each in alone.values():
            each()

    together = _row(f"all {len(names)}", names, every, canvas_BSSC, lite0, repeats=3 if quick else 7)
    together.facts["median_of_alone"] = float(np.median([row.facts["of_alone"] for row in rows]))
    together.facts["rows_below_0.9"] = sum(row.facts["of_alone"] < 0.9 for row in rows)
    return [*rows, together]


def _row(
    title: str, names: list[str], alone: Callable[[], None], canvas_BSSC: torch.Tensor, lite0: float, repeats: int
) -> Row:
    maker = VariantMaker(names, side=CANVAS, seed=0, batch=BATCH, threads=1)
    keys = [str(i) for i in range(BATCH)]

    def ours() -> None:
        for _ in maker(canvas_BSSC, keys):
            pass

    timings: dict[str, Timing] = interleave({OURS: ours, ALONE: alone}, repeats=repeats)
    facts = {
        "of_alone": timings[ALONE].median / timings[OURS].median,
        "ms_per_variant": 1e3 * timings[OURS].median / BATCH / len(names),
        "of_lite0": timings[OURS].median / len(names) / lite0,
    }
    return Row(title, "variants", BATCH * len(names), timings, facts=facts)


def _alone(made: base.Transformation, canvases_BSSC: NDArray[np.uint8]) -> Callable[[], None]:
    assert made.library is not None
    prefix, _, name = made.library.of.partition(":")
    library, arguments = libraries.library(prefix), json.loads(made.library.arguments)
    if prefix == "albumentations":
        module = library.imported(NAME)
        pipeline = module.Compose([library.names()[name](**arguments)])

        def batch() -> None:
            for canvas_SSC in canvases_BSSC:
                pipeline(image=canvas_SSC)
    else:
        applied = library.make(name, arguments)

        def batch() -> None:
            for canvas_SSC in canvases_BSSC:
                applied(canvas_SSC, 0)

    return batch
