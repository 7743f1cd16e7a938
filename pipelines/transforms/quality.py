"""Kind *quality*: compression and loss of resolution."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import jpeg_codec as codec
from substyle.pipelines.transforms.base import Arrays, Choice, Node, Uniform, dali


def _small_size(args: Arrays, side: int) -> Arrays:
    """``size``: (B, 2) float32, height and width of the reduced image in whole pixels."""
    length_B = np.maximum(np.rint(args["scale"] * side), 1)
    return {"size": np.stack([length_B, length_B], axis=1).astype(np.float32)}


def _compressed(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: NDArray[np.uint64]) -> torch.Tensor:
    return codec.compressed(canvas_BSSC, args["quality"])


@dali(
    "jpeg",
    kind="quality",
    role="train",
    parameters=[Choice("quality", (18, 15, 10, 7), within=(1, 100))],
    prepare=lambda args, side: {"quality": args["quality"].astype(np.int32)},
    on_gpu=_compressed,  # DALI's GPU operator is up to 60 levels from libjpeg
)
def jpeg(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """JPEG compression at a low quality."""
    from nvidia.dali import fn

    del side
    return fn.jpeg_compression_distortion(canvas, quality=args["quality"])


@dali(
    "pixelate",
    kind="quality",
    role="train",
    parameters=[Choice("scale", (0.5, 0.4, 0.3, 0.25))],
    prepare=_small_size,
)
def pixelate(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Reduce to ``scale`` of the side with a triangular filter, then enlarge by repeating pixels."""
    from nvidia.dali import fn, types

    small = fn.resize(canvas, size=args["size"], interp_type=types.INTERP_TRIANGULAR, antialias=True)
    return fn.resize(small, size=[side, side], interp_type=types.INTERP_NN)


@dali(
    "low_resolution",
    kind="quality",
    role="held_out",
    parameters=[Uniform("scale", 0.15, 0.35)],
    prepare=_small_size,
)
def low_resolution(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Reduce to ``scale`` of the side with antialiased cubic interpolation, then enlarge with cubic interpolation."""
    from nvidia.dali import fn, types

    small = fn.resize(canvas, size=args["size"], interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.resize(small, size=[side, side], interp_type=types.INTERP_CUBIC, antialias=False)
