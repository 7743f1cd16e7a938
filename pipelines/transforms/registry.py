"""Load transformations of the package and of plug-ins; define suites."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines import transforms
from substyle.pipelines.code import SOURCE, file_source
from substyle.pipelines.transforms import base

_loaded: list[Path] = []


@cache
def load_all() -> None:
    """Register every transformation of the package."""
    for module in pkgutil.iter_modules(transforms.__path__):
        importlib.import_module(f"{transforms.__name__}.{module.name}")


@cache
def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers transformations, once per path.

    Raises:
        ConfigError: not a Python file, a syntax error, or a duplicate name.
    """
    load_all()
    file = Path(path).absolute()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError("plugin", str(path), "an existing Python file (.py)")
    _run(file)
    _loaded.append(file)


def _run(file: Path) -> None:
    """Run a file as a module from its source, never from stale bytecode; the digest covers the source that ran."""
    name = f"substyle_plugin_{file.stem}"
    while name in sys.modules:  # plug-ins of the same name in different folders
        name += "_"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    source = file.read_bytes()
    vars(module)[SOURCE] = file_source(file, source)
    known = set(base.REGISTRY)
    sys.modules[name] = module  # for dataclasses and pickle
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    for added in base.REGISTRY.keys() - known:
        _ = base.REGISTRY[added].code


def loaded() -> tuple[Path, ...]:
    """The plug-ins loaded in this process, in order."""
    return tuple(_loaded)


# identity first; the order is that of every axis T
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
    # for the smallest runs: two coarse classes with a train and a held-out member each, all made by DALI
    "mini5": ("identity", "grayscale", "channel_permute", "jpeg", "low_resolution"),
}


def suite(name: str) -> tuple[str, ...]:
    """Transformation names of a suite, identity first.

    Args:
        name: name of a suite, or comma-separated names of transformations (identity is optional).

    Raises:
        ConfigError: unknown name, or a transformation named twice.
    """
    if name in SUITES:
        return SUITES[name]
    load_all()
    if "," not in name and name not in base.REGISTRY:
        raise ConfigError("suite", name, f"{', '.join(sorted(SUITES))}, or comma-separated transformation names")
    names = [part.strip() for part in name.split(",") if part.strip()]
    names = ["identity", *(part for part in names if part != "identity")]
    for i, part in enumerate(names):
        base.get(part)
        if part in names[:i]:
            raise ConfigError("suite", part, "each transformation once")
    return tuple(names)


def suite_name(transformations: tuple[str, ...]) -> str:
    """The name of the suite with exactly these transformations, else their comma-separated names."""
    for name, members in SUITES.items():
        if set(members) == set(transformations):
            return name
    return ",".join(transformations)
