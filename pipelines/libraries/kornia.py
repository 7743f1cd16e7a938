"""`kornia:<Name>`: transformations of ``kornia.augmentation``, on (1, 3, S, S) float32 tensors in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.pipelines.libraries.library import Library, subclasses


class Kornia(Library):
    """Draws from torch's generator."""

    prefix, module, distributions, extra = "kornia", "kornia.augmentation", ("kornia", "torch"), "kornia"

    def names(self) -> Mapping[str, Callable[..., Any]]:
        """Its augmentations of pictures."""
        augmentation = self.imported(self.prefix)
        return subclasses(self.module, (augmentation.AugmentationBase2D,))

    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Apply an augmentation, and round to whole grey levels."""
        del seed
        with torch.inference_mode():
            image_1CSS = torch.from_numpy(image_SSC.transpose(2, 0, 1).astype(np.float32) / np.float32(255))[None]
            result_1CSS = made(image_1CSS)
            return (result_1CSS * 255).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()


LIBRARY = Kornia()
