"""Typed graphs on a CPU: onnxruntime has no products of bfloat16, so what has 16 bits is widened to float32 there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.export import FLOAT, NARROW, array
from substyle.engine.backbones.spec import Pending


def widened(graph: bytes) -> onnx.ModelProto:
    """The graph with float32 in place of 16 bits: the same weights and the same pairs of Q and DQ."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type in NARROW:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array(tensor), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i in NARROW:
                attribute.i = FLOAT
    del model.graph.value_info[:]  # which has the types of before
    return model


class OnCPU:
    """A typed graph of fixed batch in onnxruntime."""

    def __init__(self, graph: bytes) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # beyond these it takes a ReLU in front of fp8 for superfluous, as it is in front of unsigned numbers
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.session = onnxruntime.InferenceSession(widened(graph).SerializeToString(), options)

    def __call__(self, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A whole batch."""
        return np.asarray(self.session.run(None, {"canvas": canvas_BSSC})[0])

    def start(self, canvas_BSSC: torch.Tensor | NDArray[np.uint8]) -> Pending:
        """A batch, padded as engines pad theirs."""
        size = self.session.get_inputs()[0].shape[0]
        whole = np.asarray(canvas_BSSC)[np.arange(size) % len(canvas_BSSC)]
        embedded_BD = self(whole)[: len(canvas_BSSC)]
        return lambda: embedded_BD
