"""A suite is a list of transformation names, identity first; the order is the order of every axis T."""

from __future__ import annotations

from substyle.kernels.errors import ConfigError
from substyle.pipelines.plugins import load_all
from substyle.pipelines.transforms import base

SUITES: dict[str, tuple[str, ...]] = {
    "substance31": (
        "identity",
        *("gaussian_blur", "motion_blur", "defocus_blur", "zoom_blur"),
        *("gaussian_noise", "impulse_noise", "shot_noise"),
        *("hue_shift", "grayscale", "channel_permute"),
        *("brightness", "low_contrast", "saturate"),
        *("jpeg", "pixelate", "low_resolution"),
        *("elastic", "grid_distortion", "swirl"),
        *("icon_overlay", "text_overlay", "color_pattern"),
        *("dot_halftone", "line_halftone", "inverted_lines"),
        *("style_starry", "style_glass", "style_expressionist", "style_wave", "style_fauvist"),
    ),
    # For the thinnest runs: two coarse classes with a seen and a held-out member, all made by DALI.
    "mini5": ("identity", "grayscale", "channel_permute", "jpeg", "low_resolution"),
}


def suite(name: str) -> tuple[str, ...]:
    """Transformation names of a suite, identity first.

    Args:
        name: a suite's name, or names of transformations separated by commas (identity may be left out).

    Raises:
        ConfigError: no suite and no transformation has that name, or one is named twice.
    """
    if name in SUITES:
        return SUITES[name]
    load_all()
    if "," not in name and name not in base.REGISTRY:
        raise ConfigError("suite", name, f"{', '.join(sorted(SUITES))}, or transformation names separated by commas")
    names = [part.strip() for part in name.split(",") if part.strip()]
    names = ["identity", *(part for part in names if part != "identity")]
    for i, part in enumerate(names):
        base.get(part)
        if part in names[:i]:
            raise ConfigError("suite", part, "each transformation once")
    return tuple(names)


def suite_name(transformations: tuple[str, ...]) -> str:
    """The suite that has exactly these transformations, else their names separated by commas."""
    for name, members in SUITES.items():
        if set(members) == set(transformations):
            return name
    return ",".join(transformations)
