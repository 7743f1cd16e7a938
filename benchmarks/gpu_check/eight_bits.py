"""Graphs in 8 bits for the check of runtimes: calibrated on the CPU, on canvases that no row is measured with."""

from __future__ import annotations

import importlib.util

import torch

from benchmarks.gpu_check import networks
from substyle.engine.backbones import export
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.quantization import calibrate, in_batches, products, quantise
from substyle.engine.devices import EightBits, Target
from substyle.errors import ConfigError, SubstyleError

_CALIBRATED_ON = 32  # canvases
_BATCH = 8
_THREADS = 8


def lacking(device: torch.device, precision: EightBits) -> str:
    """Why there can be no engine in a precision here, "" where there can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino, which measures what is quantised, is not installed"
    try:
        Target(str(device), "tensorrt").require_precision("precision", precision)
    except ConfigError as error:
        return str(error)
    return ""


def graph(front: Preprocessed, precision: EightBits, *, canvas: int, batch: int) -> bytes:
    """The serialised graph of a backbone with its products in 8 bits and the rest in bf16."""
    model = export.typed_graph(front, "bf16", canvas=canvas, batch=batch)
    small = export.typed_graph(front, "bf16", canvas=canvas, batch=_BATCH)
    if products(small) != products(model):
        raise SubstyleError("the exporter names the network's tensors otherwise in another batch")
    seen = networks.canvases(2 * _CALIBRATED_ON, canvas)[_CALIBRATED_ON:].numpy()
    ranges = calibrate(small, in_batches([seen], _BATCH), precision, threads=_THREADS)
    return bytes(quantise(model, ranges, precision).SerializeToString())
