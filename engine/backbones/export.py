"""From a torch module to an ONNX graph, the form in which every compiled runtime takes a network."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    import onnx  # a fifth of a second, and most runs export nothing


def export(module: nn.Module, *, canvas: int, batch: int, output: str = "embedding") -> onnx.ModelProto:
    """A torch module with the canvas interface as an ONNX model of fixed shapes."""
    example = torch.zeros(batch, canvas, canvas, 3, dtype=torch.uint8)
    # the exporter prints its steps and repeats notes on operators that no graph here has
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (example,), dynamo=True, verbose=False, input_names=["canvas"], output_names=[output], optimize=True
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto
