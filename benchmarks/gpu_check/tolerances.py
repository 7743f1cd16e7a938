"""How far pixels made on a GPU may lie from those of the CPU, for each transformation, and the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Allowed:
    """How far the pictures of a batch may lie from the CPU's.

    Attributes:
        mean: largest mean difference of a picture in levels.
        levels: difference that at most a share ``beyond`` of a picture's values may exceed.
        beyond: that share.
        why: where the difference is from.
    """

    mean: float
    levels: int
    beyond: float
    why: str


_NONE = Allowed(0.0, 0, 0.0, "nothing is rounded otherwise")
_ROUNDED = Allowed(0.02, 1, 0.0, "sums of float32 in another order, rounded on a half")
_FILTERED = Allowed(0.05, 1, 0.0005, "sums of float32 in another order")
_BLURRED = Allowed(0.02, 1, 0.0, "windows without weights below 1e-7; OpenCV, on a CPU, transforms large kernels")
_RESIZED = Allowed(0.05, 1, 0.002, "two passes in float32; a nearest pixel on the border of two")
_WARPED = Allowed(0.05, 1, 0.002, "places differ in the last digits of float32")
_PRINTED = Allowed(0.1, 1, 0.005, "places differ in the last digits: the other side of a cell's border")
_BLENDED = Allowed(0.05, 2, 0.002, "a level of coverage is up to two of the blend")
_STYLED = Allowed(1.0, 8, 0.02, "float32 convolutions of another library, magnified by instance normalisation")

# nvJPEG's own inverse transform and chroma upsampling, then two levels more or less from resampling
CANVAS = Allowed(1.0, 12, 0.01, "nvJPEG against libjpeg")

_OF = {
    _NONE: ("identity", "gaussian_noise", "impulse_noise", "shot_noise", "channel_permute", "jpeg", "inverted_lines"),
    _FILTERED: ("gaussian_blur",),
    _BLURRED: ("motion_blur", "defocus_blur"),
    _ROUNDED: ("zoom_blur", "hue_shift", "grayscale", "brightness", "low_contrast", "saturate"),
    _RESIZED: ("pixelate", "low_resolution"),
    _WARPED: ("elastic", "grid_distortion", "swirl"),
    _BLENDED: ("icon_overlay", "text_overlay", "color_pattern"),
    _PRINTED: ("dot_halftone", "line_halftone"),
    _STYLED: ("style_starry", "style_glass", "style_expressionist", "style_wave", "style_fauvist"),
}
VARIANTS = {name: allowed for allowed, names in _OF.items() for name in names}


def within(got_BSSC: torch.Tensor, expected_BSSC: torch.Tensor, allowed: Allowed) -> tuple[bool, str]:
    """Whether each picture lies within what is allowed, and the numbers of the worst."""
    if got_BSSC.shape != expected_BSSC.shape or got_BSSC.dtype != expected_BSSC.dtype:
        return False, f"{got_BSSC.dtype} {tuple(got_BSSC.shape)}; expected {expected_BSSC.dtype} {expected_BSSC.shape}"
    if not len(got_BSSC):
        return True, "no pictures"
    difference = (got_BSSC.int() - expected_BSSC.int()).abs().flatten(1).double()
    mean = float(difference.mean(1).max())
    beyond = float((difference > allowed.levels).double().mean(1).max())
    good = mean <= allowed.mean and beyond <= allowed.beyond
    return good, (
        f"mean difference {mean:.3g} levels (allowed {allowed.mean:g}), {beyond:.2e} by more than {allowed.levels} "
        f"(allowed {allowed.beyond:g}), largest {int(difference.max())}; {allowed.why}"
    )
