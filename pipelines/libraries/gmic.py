"""`gmic:<filter>`: filters of G'MIC (https://gmic.eu) that are listed here, and numbers for their parameters.

G'MIC's language can read files and run programs. What is run is made of a name of ``gmic_filters.json`` and of numbers
only; with their defaults, those filters open no file and no connection, and compute the same from the same seed. Names,
parameters, defaults and ranges are those of G'MIC's standard library (``#@gui`` entries of version 3.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.pipelines.libraries.library import Applied, Library

_LIST = Path(__file__).with_name("gmic_filters.json")


class Gmic(Library):
    """Seeded by its command ``srand``."""

    prefix, module, distributions, extra = "gmic", "gmic", ("gmic",), "gmic"

    def names(self) -> Mapping[str, Any]:
        """The listed filters, each with name, default and range of its parameters."""
        return _listed()

    def parameters(self, name: str) -> dict[str, str]:
        """Parameters and their defaults."""
        return {each: str(default) for each, default, *_ in _listed()[name]}

    def arguments(self, place: str, name: str, given: Mapping[str, Any], folder: Path, file: object) -> dict[str, Any]:
        """With all defaults, so that a definition says what is run."""
        own = super().arguments(place, name, given, folder, file)
        return {each: default for each, default, *_ in _listed()[name]} | own

    def make(self, name: str, arguments: Mapping[str, Any]) -> Applied:
        """Write the command. Raises ValueError for an argument that is no number in the filter's range."""
        numbers = []
        for each, _, low, high in _listed()[name]:
            value = arguments[each]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{each} = {value}, not a number from {low:g} to {high:g}")
            numbers.append(f"{float(value):.9g}")
        command = f"{name} {','.join(numbers)}"
        return lambda image_SSC, seed: self.apply(command, image_SSC, seed)

    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Run a filter. Grey results become RGB; what it makes transparent shows its colour."""
        gmic = self.imported(self.prefix)
        given = gmic.ImageList([gmic.Image.from_yxc(image_SSC.astype(np.float32))])
        result = np.asarray(gmic.run(f"srand {seed} {made}", given)[0].yxc)
        if result.ndim != 3 or not 1 <= result.shape[2] <= 4:
            return result
        rgb = np.repeat(result[..., :1], 3, axis=2) if result.shape[2] < 3 else result[..., :3]
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


@cache
def _listed() -> dict[str, list[tuple[str, float, float, float]]]:
    found: dict[str, list[tuple[str, float, float, float]]] = json.loads(_LIST.read_text())
    return found


LIBRARY = Gmic()
