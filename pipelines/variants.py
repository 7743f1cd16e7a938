"""Canvas batch to variant batches, in suite order: one DALI graph, the kernels and the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.plugins import load_all, load_plugin
from substyle.pipelines.transforms import base

__all__ = ["Graph", "Variant", "VariantMaker", "distinct", "load_all", "load_plugin"]

_EVERY = 16  # rows; how finely `distinct` divides a picture


@dataclass(frozen=True)
class Variant:
    """One transformation of a batch of B images.

    Attributes:
        name: the transformation.
        pixels_BSSC: (B, S, S, 3) uint8, contiguous; nobody writes to it later.
        distinct_B: (B,) bool, False where it differs from identity by less than one grey level on average; True for
            identity itself.
    """

    name: str
    pixels_BSSC: torch.Tensor
    distinct_B: torch.Tensor


class VariantMaker:
    """Makes the variants of canvas batches.

    Args:
        transformations: names in suite order.
        side: canvas side S in pixels.
        seed: study seed.
        batch: largest number of images in one call.
        threads: CPU threads of the DALI graph.
        networks: the network for each ``Transformation.network`` of the suite.
        device: ``cpu``.

    Raises:
        ConfigError: an unknown transformation, a network that was not given, a device that is not supported.
    """

    def __init__(
        self,
        transformations: Sequence[str],
        *,
        side: int,
        seed: int,
        batch: int,
        threads: int,
        networks: Mapping[str, base.Network] | None = None,
        device: str = "cpu",
    ) -> None:
        if device != "cpu":
            raise ConfigError("device", device, "cpu")
        load_all()
        self.transformations = tuple(base.get(name) for name in transformations)
        self.side, self.seed, self.batch = side, seed, batch
        self.networks = dict(networks or {})
        for transformation in self.transformations:
            if transformation.made_by == "network" and transformation.network not in self.networks:
                given = ", ".join(sorted(self.networks)) or "none"
                raise ConfigError("networks", given, f"{transformation.network}, which makes {transformation.name}")
        made_by_dali = [t for t in self.transformations if t.made_by == "dali"]
        self.graph = Graph(made_by_dali, side=side, batch=batch, threads=threads) if made_by_dali else None

    def __call__(
        self, canvas_BSSC: torch.Tensor, keys: Sequence[str], test_B: NDArray[np.bool_] | None = None
    ) -> Iterator[Variant]:
        """The variants of B images, 0 ≤ B ≤ batch, one transformation after the other.

        What an image becomes depends on the seed, its key, its pixels and whether it is a test image, on nothing else.

        Args:
            canvas_BSSC: (B, S, S, 3) uint8.
            keys: B image keys.
            test_B: (B,) bool, images that may be given the overlays kept for testing; none when left out.
        """
        shape = (len(keys), self.side, self.side, 3)
        if tuple(canvas_BSSC.shape) != shape or canvas_BSSC.dtype != torch.uint8 or len(keys) > self.batch:
            given = f"{canvas_BSSC.dtype} {tuple(canvas_BSSC.shape)} for {len(keys)} keys"
            raise ConfigError("canvas", given, f"uint8 (B, {self.side}, {self.side}, 3), B keys, B <= {self.batch}")
        if not len(keys):
            return
        canvas_BSSC = canvas_BSSC.contiguous()
        keys_B = philox.image_keys(self.seed, keys)
        drawn = {t.name: t.draw(keys_B, self.side, test_B) for t in self.transformations}
        made: dict[str, torch.Tensor] = self.graph(canvas_BSSC, drawn) if self.graph else {}
        for transformation in self.transformations:
            name = transformation.name
            if transformation.made_by == "identity":
                made[name] = canvas_BSSC
            elif transformation.made_by == "kernel":
                made[name] = _function(transformation)(canvas_BSSC, drawn[name], keys_B)
            elif transformation.made_by == "network" and name not in made:
                made.update(self.networks[transformation.network](canvas_BSSC))
            pixels = made.pop(name).contiguous()
            if tuple(pixels.shape) != shape or pixels.dtype != torch.uint8:
                raise SubstyleError(f"{name} made {pixels.dtype} {tuple(pixels.shape)}, not uint8 {shape}")
            is_identity = transformation.made_by == "identity"
            distinct_B = torch.ones(len(keys), dtype=torch.bool) if is_identity else distinct(canvas_BSSC, pixels)
            yield Variant(name, pixels, distinct_B)


def distinct(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Whether two images differ by at least one grey level on average. Shape: (B,) bool.

    Differences are added up over every 16th row, then over every 16th of the next, and so on; an image whose sum is
    already that of one level everywhere is left out of what follows, which most are at once.
    """
    a, b = a_BSSC.numpy(), b_BSSC.numpy()  # numpy on one thread: waking torch's would cost more
    enough = a[0].size if len(a) else 0
    total_B = np.zeros(len(a), np.uint64)
    open_N = np.arange(len(a))
    for first in range(_EVERY):
        if not len(open_N):
            break
        some = slice(None) if len(open_N) == len(a) else open_N  # indexing by numbers copies
        x, y = a[some, first::_EVERY], b[some, first::_EVERY]
        difference = np.maximum(x, y)
        difference -= np.minimum(x, y)
        total_B[open_N] += difference.reshape(len(open_N), -1).sum(1, dtype=np.uint32)
        open_N = open_N[total_B[open_N] < enough]
    return torch.from_numpy(total_B >= enough)


class Graph:
    """One DALI graph that makes several transformations of a canvas batch; parameters come as per-sample arguments."""

    def __init__(self, transformations: Sequence[base.Transformation], *, side: int, batch: int, threads: int) -> None:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        # Only the dynamic executor gives every run new output memory, which tensors may then keep.
        self.pipeline = Pipeline(
            batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
        )
        example = philox.image_keys(0, ["example"])
        self.inputs: dict[str, _Inputs] = {}
        with self.pipeline:
            canvas = fn.external_source(name="canvas", dtype=types.UINT8, ndim=3, layout="HWC")
            outputs = []
            for transformation in transformations:
                inputs = _Inputs(transformation.name, transformation.draw(example, side))
                outputs.append(_function(transformation)(canvas, inputs, side))
                self.inputs[transformation.name] = inputs
            self.pipeline.set_outputs(*outputs)
        self.pipeline.build()

    def __call__(
        self, canvas_BSSC: torch.Tensor, drawn: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> dict[str, torch.Tensor]:
        """Variants by name, each a (B, S, S, 3) uint8 tensor with memory of its own."""
        feed: dict[str, Any] = {"canvas": canvas_BSSC.numpy()}
        for name, inputs in self.inputs.items():
            feed |= {f"{name}.{argument}": drawn[name][argument] for argument in inputs}
        outputs = self.pipeline.run(**feed)
        tensors = (torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in outputs)
        return dict(zip(self.inputs, tensors, strict=True))


class _Inputs(dict[str, Any]):
    """Nodes of a transformation's arguments, made when its function asks for them: DALI drops unused ones."""

    def __init__(self, name: str, example: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self.name, self.example = name, example

    def __missing__(self, argument: str) -> Any:  # noqa: ANN401 - DALI ships no types
        from nvidia.dali import fn

        if argument not in self.example:
            raise ConfigError(f"{self.name}: argument", argument, ", ".join(self.example) or "none")
        array = self.example[argument]
        name = f"{self.name}.{argument}"
        self[argument] = fn.external_source(name=name, dtype=_dali_type(array), ndim=array.ndim - 1)
        return self[argument]


def _function(transformation: base.Transformation) -> Callable[..., Any]:
    if transformation.function is None:
        raise SubstyleError(f"{transformation.name} is made by {transformation.made_by} but has no function")
    return transformation.function


def _dali_type(array: NDArray[Any]) -> Any:  # noqa: ANN401 - DALI ships no types
    from nvidia.dali import types

    known = {np.dtype(types.to_numpy_type(t)): t for t in (types.FLOAT, types.INT32, types.INT16, types.UINT8)}
    if array.dtype not in known:
        raise ConfigError("argument of a DALI transformation", array.dtype.name, ", ".join(str(d) for d in known))
    return known[array.dtype]
