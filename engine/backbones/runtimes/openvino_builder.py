"""Builder of OpenVINO runtimes on a CPU, with int8 quantisation by NNCF and first layers in float32."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import struct
from collections.abc import Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.runtimes.base import FLOAT32, PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.openvino import (
    FixedBatch,
    Model,
    OpenVINOGraph,
    core,
    first_layers,
    layers,
)
from substyle.engine.backbones.spec import EXECUTED, Embed, Runtime
from substyle.engine.devices import INT8, Precision, as_precision
from substyle.errors import ConfigError
from substyle.files import scratch

_LENGTH = struct.Struct("<Q")  # length of the graph's XML, which precedes the weights


def require_nncf() -> Any:  # noqa: ANN401 - a module
    """Import NNCF. Raises ConfigError, naming the extra, if it is not installed."""
    try:
        return importlib.import_module("nncf")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "precision", "int8", "another precision, or install NNCF: pip install 'substyle[int8]'"
        ) from error


def quantised(onnx: bytes, batches_GSSC: Sequence[NDArray[np.uint8]], *, unquantised: int) -> bytes:
    """Quantise the products of a graph to int8 and pack it for `unpacked`.

    Args:
        onnx: the graph with fixed batch b.
        batches_GSSC: calibration batches (b, S, S, 3) uint8.
        unquantised: number of first convolutions and matrix products that keep their precision.
    """
    nncf = require_nncf()
    model = core().read_model(onnx)
    # products of two activations in attention need NNCF's transformer mode
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

    with scratch() as folder:
        xml, weights = folder / "graph.xml", folder / "graph.bin"
        ov.serialize(model, str(xml), str(weights))
        text = xml.read_bytes()
        return _LENGTH.pack(len(text)) + text + weights.read_bytes()


def unpacked(data: bytes) -> Model:
    """Unpack the OpenVINO model of `quantised`."""
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size
    return core().read_model(data[start : start + length], data[start + length :])


BLOBS = "openvino"  # folder in the cache


class OpenVINOBuilder(RuntimeBuilder):
    """Compiles a backbone with OpenVINO."""

    libraries = ("torch", "timm", "open_clip_torch", "onnx", "openvino", "transformers")
    float32_reference = True

    @property
    def ladder(self) -> tuple[Precision, ...]:
        """Empty: ``auto`` keeps first layers of bf16 in float32."""
        return ()

    def facts(self, precision: str) -> dict[str, Any]:
        """Return the key of the quantised graph for int8. Raises ConfigError if NNCF is not installed."""
        if precision != INT8:
            return {}
        require_nncf()
        return {"quantised": self.int8_key(0)}

    @cached_property
    def layers(self) -> int:
        """Number of convolutions and matrix products of the graph."""
        return int(cache.remember("layers", {"graph": self.key}, lambda: layers(self.onnx)))

    @cached_property
    def onnx(self) -> bytes:
        """The serialised ONNX graph."""
        if self.source.is_graph or not self.source.spec.graph:
            return self.source.graph
        return cache.fetch(f"graphs/{self.source.spec.graph}.onnx", lambda: self.source.graph)

    def int8_key(self, unquantised: int) -> str:
        """Return the cache key of a quantised graph."""
        facts = {
            "graph": self.key,
            "unquantised": unquantised,
            "samples": self.samples.extra_fingerprint(),
            "versions": cache.versions("nncf", "openvino"),
        }
        return cache.key(facts)

    def _int8(self, key: str, unquantised: int) -> Model:
        def make() -> bytes:
            batches = self.samples.extra_samples()
            pieces = [batch[i : i + self.batch] for batch in batches for i in range(0, len(batch), self.batch)]
            whole = [piece for piece in pieces if len(piece) == self.batch]
            if not whole:
                raise ConfigError(
                    "precision", INT8, f"another precision; int8 needs {self.batch} photographs outside the gate"
                )
            return quantised(self.onnx, whole, unquantised=unquantised)

        return unpacked(cache.fetch(f"graphs/{key}.int8", make))

    def runtime(self, policy: PrecisionPolicy) -> FixedBatch:
        """Compile the graph, or load its blob from the cache."""
        int8 = policy.precision == INT8
        key = self.int8_key(policy.unquantised_layers) if int8 else self.key
        graph = OpenVINOGraph(
            partial(self._int8, key, policy.unquantised_layers) if int8 else lambda: self.onnx,
            precision="bf16" if int8 else as_precision(policy.precision),
            threads=self.threads,
            streams=self.threads,
            float32_layers=policy.float32_layers,
            cache_dir=BLOBS,
            identity=key,
        )
        return FixedBatch(graph, self.batch)

    def describe(self, runtime: Runtime) -> dict[str, str]:
        """Return name and version of OpenVINO, and the precision that it runs the graph in."""
        assert isinstance(runtime, FixedBatch)
        return {"name": "openvino", "version": version("openvino"), EXECUTED: runtime.graph.executed}

    def graph_reference(self) -> Embed:
        """Return the graph in float32."""
        return self.runtime(FLOAT32)
