"""`torchvision:<Name>`: transformations of ``torchvision.transforms.v2``, on (3, S, S) uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.pipelines.libraries.library import Applied, Library, subclasses


class Torchvision(Library):
    """Draws from torch's generator."""

    prefix, module, distributions = "torchvision", "torchvision.transforms.v2", ("torchvision", "torch")

    def names(self) -> Mapping[str, Callable[..., Any]]:
        """Its transforms."""
        v2 = self.imported(self.prefix)
        return subclasses(self.module, (v2.Transform,))

    def make(self, name: str, arguments: Mapping[str, Any]) -> Applied:
        """Make one; ``interpolation`` is a name, such as ``"bilinear"``."""
        mode = arguments.get("interpolation")
        if isinstance(mode, str):
            arguments = {**arguments, "interpolation": self.imported(self.prefix).InterpolationMode(mode)}
        return super().make(name, arguments)

    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Apply a transform."""
        del seed
        result = made(torch.from_numpy(np.ascontiguousarray(image_SSC.transpose(2, 0, 1))))
        return result.permute(1, 2, 0).numpy() if isinstance(result, torch.Tensor) and result.ndim == 3 else result


LIBRARY = Torchvision()
