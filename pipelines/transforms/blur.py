"""Kind *blur*: detail lost to defocus, motion or zoom. Borders reflect, as DALI's filters do (reflect 101)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import warp
from substyle.kernels.tables import ZOOM_STAGES
from substyle.pipelines.transforms.base import CANVAS, Arrays, Choice, Node, Uniform, beside, dali, kernel

Keys = NDArray[np.uint64]

# (radius, sigma) of the line in px: the severities 2 to 5 of ImageNet-C's motion blur.
MOTION = ((15, 5), (15, 8), (15, 12), (20, 15))
DISK_RADII = (4, 6, 8, 10)
DISK_EDGE = 0.5  # px, standard deviation of the disk's soft edge
# DALI filters with OpenCV on a CPU, which applies kernels of fewer than 130 values directly, skipping zeros, and larger
# ones by Fourier transform. For a canvas of 224, kernel sizes of 29 to 33 take half as long as 15 to 27.
FAST_KERNEL = 29
SIGMAS = (2, 3, 4, 6)


_SHARED = 48 << 10  # bytes of shared memory that a block has on every GPU
_BLOCK = (128, 16)  # values of a row, and rows, that a block of DALI's filter computes
_LEAST = 1e-7  # smaller weights change no level


class Windows:
    """Kernels of fn.filter, trimmed on a GPU for each image: it multiplies by every weight, zeros included.

    Where one window does not fit into shared memory, DALI computes the whole batch in another way. Windows are not
    trimmed then, so that an image's pixels do not depend on its neighbours.

    Args:
        kernel_BKL: (B, K, L) float32; K and L are odd.
        itemsize: bytes of a value of the filtered image.
        largest: K and L that no trimmed kernel exceeds, if not those of the arrays.
    """

    on_device = False

    def __init__(self, kernel_BKL: NDArray[np.float32], itemsize: int, largest: tuple[int, int] | None = None) -> None:
        self.kernel_BKL = kernel_BKL
        across, down = _BLOCK
        height, width = largest or kernel_BKL.shape[1:]
        rows, columns = height - 1 + down, 3 * (width - 1) + across
        self.fits = rows * columns * itemsize + 4 * rows <= _SHARED

    def on(self, device: torch.device) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """The kernels: (B, K, L), or a list of smaller ones with the same centre."""
        if device.type == "cpu" or not self.fits:
            return self.kernel_BKL
        return [self._trimmed(kernel_KL) for kernel_KL in self.kernel_BKL]

    @staticmethod
    def _trimmed(kernel_KL: NDArray[np.float32]) -> NDArray[np.float32]:
        used = [np.flatnonzero((kernel_KL > _LEAST).any(axis=axis)) for axis in (1, 0)]
        ends = [min(at[0], size - 1 - at[-1]) for at, size in zip(used, kernel_KL.shape, strict=True)]
        rows, columns = (slice(end, size - end) for end, size in zip(ends, kernel_KL.shape, strict=True))
        return np.ascontiguousarray(kernel_KL[rows, columns])


def gaussian_lines(args: Arrays, side: int) -> Arrays:
    """``across`` (B, 1, K), ``down`` (B, K, 1) float32: Gaussian weights cut at three sigma; K depends on the side."""
    longest = math.ceil(3 * max(SIGMAS) * side / CANVAS)
    t_K = np.arange(-longest, longest + 1)
    sigma_B1 = args["sigma"].astype(np.float64)[:, None]
    weight_BK = np.exp(-0.5 * (t_K / sigma_B1) ** 2) * (np.abs(t_K) <= np.ceil(3 * sigma_B1))
    weight_BK = (weight_BK / weight_BK.sum(1, keepdims=True)).astype(np.float32)
    return {"across": Windows(weight_BK[:, None, :], 4), "down": Windows(weight_BK[:, :, None], 4)}


@dali(
    "gaussian_blur",
    kind="blur",
    role="train",
    parameters=[Choice("sigma", SIGMAS, unit="px", within=(0.1, max(SIGMAS)))],
    prepare=gaussian_lines,
    version=2,
)
def gaussian_blur(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Gaussian blur, cut at three sigma."""
    from nvidia.dali import fn, types

    del side
    # a quarter of the time of fn.gaussian_blur
    across = fn.filter(fn.cast(canvas, dtype=types.FLOAT), beside(canvas, args["across"]))
    return fn.cast(fn.filter(across, beside(canvas, args["down"])), dtype=types.UINT8)


def motion_kernels(args: Arrays, side: int) -> Arrays:
    """``kernel``: (B, K, L) float32, Gaussian weights along a line through the centre, sampled every half px.

    K and L depend only on the side, so results do not depend on the batch.
    """
    longest = max(radius for radius, _ in MOTION) * side / CANVAS
    columns, rows = math.ceil(longest) + 1, math.ceil(longest * math.sin(math.pi / 4)) + 1
    largest = 2 * rows + 1, 2 * columns + 1
    columns, rows = _one_block(columns, side), _one_block(rows, side)
    t_N = np.arange(-2 * columns, 2 * columns + 1) / 2
    radius_B1, sigma_B1 = (args["line"][:, i : i + 1].astype(np.float64) for i in (0, 1))
    weight_BN = np.exp(-0.5 * (t_N / sigma_B1) ** 2) * (np.abs(t_N) <= radius_B1)
    angle_B1 = np.radians(args["angle"].astype(np.float64))[:, None]
    x_BN, y_BN = t_N * np.cos(angle_B1), t_N * np.sin(angle_B1)
    kernel_BKL = np.zeros((len(weight_BN), 2 * rows + 1, 2 * columns + 1))
    image_B1 = np.arange(len(weight_BN))[:, None]
    left_BN, top_BN = np.floor(x_BN), np.floor(y_BN)
    for dy in (0, 1):
        for dx in (0, 1):
            share_BN = (1 - np.abs(x_BN - left_BN - dx)) * (1 - np.abs(y_BN - top_BN - dy)) * weight_BN
            row_BN = np.clip(top_BN + dy + rows, 0, 2 * rows).astype(np.int64)
            column_BN = np.clip(left_BN + dx + columns, 0, 2 * columns).astype(np.int64)
            np.add.at(kernel_BKL, (image_B1, row_BN, column_BN), share_BN)
    kernel_BKL /= kernel_BKL.sum((1, 2), keepdims=True)
    return {"kernel": Windows(kernel_BKL.astype(np.float32), 1, largest)}


def _one_block(radius: int, side: int) -> int:
    """The smallest radius of at least this for which OpenCV transforms the canvas in one block, in half the time.

    The side of a block is 4.5 times the kernel's, and at least 257 px minus the kernel's.
    """
    while max(4.5 * (2 * radius + 1), 257 - (2 * radius + 1)) < side:
        radius += 1
    return radius


@dali(
    "motion_blur",
    kind="blur",
    role="train",
    parameters=[
        Choice("line", MOTION, unit="px", within=(0.5, max(map(max, MOTION)))),
        Uniform("angle", -45, 45, unit="degree", within=(-45.0, 45.0)),
    ],
    prepare=motion_kernels,
    version=2,
)
def motion_blur(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Blur along a line of (radius, sigma) px at an angle to the horizontal."""
    from nvidia.dali import fn

    del side
    return fn.filter(canvas, beside(canvas, args["kernel"]))


@lru_cache(maxsize=64)
def disk_kernel(radius: float, size: int) -> NDArray[np.float32]:
    """A disk whose edge is a normal distribution function. Shape: (size, size) float32, sum 1."""
    offset = np.arange(size) - size // 2
    distance = np.hypot(offset[:, None], offset[None, :])
    soft = [0.5 * math.erfc((d - radius) / (DISK_EDGE * math.sqrt(2))) for d in distance.ravel()]
    kernel = np.reshape(soft, distance.shape)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def disk_kernels(args: Arrays, side: int) -> Arrays:
    """``kernel``: (B, K, K) float32; K depends only on the side."""
    size = max(FAST_KERNEL, 2 * math.ceil(max(DISK_RADII) * side / CANVAS + 4 * DISK_EDGE) + 1)
    kernels = [disk_kernel(float(radius), size) for radius in args["radius"]]
    return {"kernel": Windows(np.stack(kernels) if kernels else np.zeros((0, size, size), np.float32), 1)}


@dali(
    "defocus_blur",
    kind="blur",
    role="held_out",
    parameters=[Choice("radius", DISK_RADII, unit="px", within=(0.5, max(DISK_RADII)))],
    prepare=disk_kernels,
)
def defocus_blur(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Defocus of a lens: convolution with a disk."""
    from nvidia.dali import fn

    del side
    return fn.filter(canvas, beside(canvas, args["kernel"]))


def _enlargements(args: Arrays, side: int) -> Arrays:
    """``stages``: of each stage, the matrix (2, 3) that enlarges by its step about the centre. (B, stages, 2, 3)."""
    steps = 2.0 ** np.arange(ZOOM_STAGES) / (2**ZOOM_STAGES - 1)
    scale_BN = args["zoom"].astype(np.float64)[:, None] ** -steps
    stages_BN23 = np.zeros((*scale_BN.shape, 2, 3), np.float32)
    stages_BN23[..., 0, 0] = stages_BN23[..., 1, 1] = scale_BN
    stages_BN23[..., 2] = (side / 2 * (1 - scale_BN))[..., None]
    return {**args, "stages": stages_BN23}


def _zoomed(canvas: Node, args: dict[str, Node], side: int) -> Node:
    from nvidia.dali import fn, types

    total = fn.cast(canvas, dtype=types.FLOAT)
    for stage in range(ZOOM_STAGES):
        matrix = beside(canvas, args["stages"][stage])
        total += fn.warp_affine(total, matrix, size=[side, side], interp_type=types.INTERP_LINEAR)
    return fn.cast(total * (1.0 / 2**ZOOM_STAGES), dtype=types.UINT8)


@kernel(
    "zoom_blur",
    kind="blur",
    role="held_out",
    parameters=[Choice("zoom", (1.15, 1.20, 1.25, 1.30))],
    prepare=_enlargements,
    version=2,
    on_gpu=_zoomed,
)
def zoom_blur(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Mean of 16 zooms about the centre, from 1 to ``zoom`` in equal ratios."""
    return warp.zoom_blur(canvas_BSSC, args["zoom"])
