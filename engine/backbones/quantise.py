"""Post-training quantisation to 8 bits, by NNCF: products in int8, everything between them as it was."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.openvino import Model
from substyle.engine.backbones.runtimes.openvino_mixed import core, first_layers
from substyle.kernels.errors import ConfigError

_LENGTH = struct.Struct("<Q")  # of the graph's text, before it and the weights


def require_nncf() -> Any:  # noqa: ANN401 - a module
    """The library NNCF. Raises ConfigError naming the extra it comes with."""
    try:
        return importlib.import_module("nncf")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "precision", "int8", "another, or first: pip install 'substyle[int8]' (NNCF is not installed)"
        ) from error


def quantised(onnx: bytes, batches_GSSC: Sequence[NDArray[np.uint8]], *, unquantised: int) -> bytes:
    """A graph with its products in int8, packed for `unpacked`.

    Args:
        onnx: the graph, of fixed batch b.
        batches_GSSC: what activations are measured on: (b, S, S, 3) uint8 each.
        unquantised: how many of the first convolutions and matrix products keep their precision.
    """
    nncf = require_nncf()
    model = core().read_model(onnx)
    # attention's products of two activations need NNCF's own treatment of transformers
    transformer = any(op.get_type_name() == "Softmax" for op in model.get_ordered_ops())
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # the library draws progress bars
        made = nncf.quantize(
            model,
            nncf.Dataset(list(batches_GSSC)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches_GSSC),
            fast_bias_correction=True,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=first_layers(model, unquantised)) if unquantised else None,
        )
    return _packed(made)


def _packed(model: Model) -> bytes:
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.serialize(model, str(xml), str(weights))
        text = xml.read_bytes()
        return _LENGTH.pack(len(text)) + text + weights.read_bytes()


def unpacked(data: bytes) -> Model:
    """The OpenVINO model that `quantised` packed."""
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size
    return core().read_model(data[start : start + length], data[start + length :])
