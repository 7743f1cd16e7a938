"""Embeddings that are ready at once, where a runtime would compute in the background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.spec import Pending, Runtime
from substyle.engine.cuda import Canvas


@dataclass(frozen=True)
class AtOnce(Runtime):
    function: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    def start(self, canvas_BSSC: Canvas) -> Pending:
        pixels_BSSC = canvas_BSSC.numpy(force=True) if isinstance(canvas_BSSC, torch.Tensor) else canvas_BSSC
        embedded_BD = self.function(pixels_BSSC)
        return lambda: embedded_BD
