"""One DALI graph that makes several transformations of a canvas batch, on a CPU or on a GPU.

On a GPU the canvas goes in and variants come out without the host: it is read, and they are returned, in the order of
torch's current stream, and nobody waits. DALI's memory is no memory of torch's: what comes out is copied into some that
is (bytes read and written once, a hundredth of what making it takes), and DALI's is held until that copy has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.device import CPU
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.lifetime import Held
from substyle.pipelines.transforms import base


class Graph:
    """A graph of transformations; their parameters come as per-sample arguments.

    Args:
        transformations: those that DALI makes.
        side: canvas side S in pixels.
        batch: largest number of images in one run.
        threads: CPU threads.
        device: where it runs.
    """

    def __init__(
        self,
        transformations: Sequence[base.Transformation],
        *,
        side: int,
        batch: int,
        threads: int,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.pipeline = new_pipeline(batch, threads, device)
        self.inputs = define(self.pipeline, transformations, side, device)
        self.pipeline.build()
        self._held = Held()

    def __call__(
        self, canvas_BSSC: torch.Tensor, drawn: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> dict[str, torch.Tensor]:
        """Variants by name, each a (B, S, S, 3) uint8 tensor with memory of its own, on the canvas's device."""
        feed: dict[str, Any] = {}
        for name, inputs in self.inputs.items():
            feed |= {f"{name}.{argument}": drawn[name][argument] for argument in inputs}
        if self.device.type == "cpu":
            outputs = self.pipeline.run(canvas=canvas_BSSC.numpy(), **feed)
            return dict(zip(self.inputs, map(_tensor, outputs), strict=True))
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            self.pipeline.feed_input("canvas", canvas_BSSC, cuda_stream=stream)
            for name, array in feed.items():
                self.pipeline.feed_input(name, array)
            outputs = self.pipeline.run(stream)
            made = dict(zip(self.inputs, (_tensor(output).clone() for output in outputs), strict=True))
            self._held.until(stream, outputs)
        return made


def new_pipeline(batch: int, threads: int, device: torch.device) -> Any:  # noqa: ANN401 - DALI ships no types
    """An empty pipeline for a device.

    Only the dynamic executor gives every run new output memory, which tensors may then keep, and returns outputs in the
    order of a stream.
    """
    from nvidia.dali.pipeline import Pipeline

    number = device.index if device.type == "cuda" else None
    return Pipeline(batch_size=batch, num_threads=threads, device_id=number, prefetch_queue_depth=1, exec_dynamic=True)


def define(
    pipeline: Any,  # noqa: ANN401 - DALI ships no types
    transformations: Sequence[base.Transformation],
    side: int,
    device: torch.device,
) -> dict[str, Inputs]:
    """Fill a pipeline: its input ``canvas``, an output for each transformation; gives their inputs by name."""
    from nvidia.dali import fn, types

    backend = "gpu" if device.type == "cuda" else "cpu"
    example = philox.image_keys(0, ["example"])
    made: dict[str, Inputs] = {}
    with pipeline:
        canvas = fn.external_source(name="canvas", device=backend, dtype=types.UINT8, ndim=3, layout="HWC")
        outputs = []
        for transformation in transformations:
            inputs = Inputs(transformation.name, transformation.draw(example, side))
            if transformation.function is None:
                raise SubstyleError(f"{transformation.name} is made by {transformation.made_by} but has no function")
            outputs.append(transformation.function(canvas, inputs, side))
            made[transformation.name] = inputs
        pipeline.set_outputs(*outputs)
    return made


class Inputs(dict[str, Any]):
    """Nodes of a transformation's arguments, made when its function asks for them: DALI drops unused ones.

    All are on the CPU; :func:`.transforms.base.beside` moves those that are an operator's positional inputs.
    """

    def __init__(self, name: str, example: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self.name, self.example = name, example

    def __missing__(self, argument: str) -> Any:  # noqa: ANN401 - DALI ships no types
        from nvidia.dali import fn

        if argument not in self.example:
            raise ConfigError(f"{self.name}: argument", argument, ", ".join(self.example) or "none")
        array = self.example[argument]
        name = f"{self.name}.{argument}"
        self[argument] = fn.external_source(name=name, dtype=dali_type(array), ndim=array.ndim - 1)
        return self[argument]


def dali_type(array: NDArray[Any]) -> Any:  # noqa: ANN401 - DALI ships no types
    """DALI's name of an array's type. Raises ConfigError naming those that arguments may have."""
    from nvidia.dali import types

    known = {np.dtype(types.to_numpy_type(t)): t for t in (types.FLOAT, types.INT32, types.INT16, types.UINT8)}
    if array.dtype not in known:
        raise ConfigError("argument of a DALI transformation", array.dtype.name, ", ".join(str(d) for d in known))
    return known[array.dtype]


def _tensor(output: Any) -> torch.Tensor:  # noqa: ANN401 - DALI ships no types
    return torch.utils.dlpack.from_dlpack(output.as_tensor())
