"""The published 26-style network from its package, run by OpenVINO one style at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.openvino import core
from substyle.engine.style_transfer.networks import MULTISTYLE, model_bytes

NAME = "the published network in OpenVINO, bf16"
_PIECE = 8  # pictures per inference


def published(styles: Sequence[str], side: int, threads: int) -> Callable[[torch.Tensor], list[NDArray[np.uint8]]]:
    """Return a function that applies each style to a batch of canvases. Shape of each style: (B, S, S, 3) uint8."""
    model = core().read_model(model_bytes("multistyle26"))
    model.reshape({"image": [_PIECE, 3, side, side], "style_weights": [26]})
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}
    request = core().compile_model(model, "CPU", options).create_infer_request()

    def run(canvas_BSSC: torch.Tensor) -> list[NDArray[np.uint8]]:
        x_BCSS = (canvas_BSSC.permute(0, 3, 1, 2).contiguous() / 255.0).numpy()
        made = []
        for style in styles:
            weights = np.eye(26, dtype=np.float32)[MULTISTYLE[style]]
            parts = []
            for start in range(0, len(x_BCSS), _PIECE):
                request.infer([x_BCSS[start : start + _PIECE], weights])
                parts.append((request.get_output_tensor(0).data * 255.0 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
            made.append(np.concatenate(parts))
        return made

    return run
