"""What a transformation is: a name, parameters with units, a coarse class, a role and a function; and their registry.

Add one by decorating its function in a file of this folder (or in a plug-in file that the user names)::

    @kernel("solarize", coarse="tone", role="train", parameters=[Choice("threshold", (64, 128), unit="level")])
    def solarize(canvas_BSSC, args, keys_B):
        threshold = torch.from_numpy(args["threshold"]).to(canvas_BSSC.device).view(-1, 1, 1, 1)
        return torch.where(canvas_BSSC < threshold, canvas_BSSC, 255 - canvas_BSSC)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.errors import ConfigError
from substyle.pipelines.code import source_digest

CANVAS = 224  # the side S at which strengths in px are stated
COARSE = ("identity", "blur", "noise", "recolor", "tone", "quality", "warp", "overlay", "halftone", "style")
Role = Literal["train", "held_out"]
Arrays = Mapping[str, NDArray[Any]]
Node = Any  # a DALI DataNode; DALI ships no types


@dataclass(frozen=True)
class Choice:
    """One of a few values, all equally likely; a value may be a tuple of numbers that belong together.

    A value in ``px`` scales by S / 224, one in ``S`` by S: both arrive in pixels of the canvas.
    """

    name: str
    values: tuple[Any, ...]
    unit: str = ""

    draws = 1

    def sample(self, u_BP: NDArray[np.float64], side: int) -> NDArray[np.float32]:
        """Values for uniform numbers. Shape: (B,) or, for tuples of k numbers, (B, k) float32."""
        table = np.asarray(self.values, dtype=np.float32)
        index = np.minimum((u_BP[:, 0] * len(table)).astype(np.int64), len(table) - 1)
        return np.asarray(table[index] * np.float32(_unit_scale(self.unit, side)), dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """This parameter in plain JSON."""
        return {"name": self.name, "unit": self.unit, "one_of": list(self.values)}


@dataclass(frozen=True)
class Uniform:
    """A number drawn uniformly from [low, high); with ``signed`` its sign is drawn too. Units as in :class:`Choice`.

    With ``count`` above 1, that many independent numbers.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    signed: bool = False
    count: int = 1

    @property
    def draws(self) -> int:
        """How many uniform numbers :meth:`sample` takes."""
        return 2 * self.count

    def sample(self, u_BP: NDArray[np.float64], side: int) -> NDArray[np.float32]:
        """Values for uniform numbers. Shape: (B,) or, with a count k above 1, (B, k) float32."""
        value = self.low + (self.high - self.low) * u_BP[:, : self.count]
        if self.signed:
            value = np.where(u_BP[:, self.count :] < 0.5, -value, value)
        scaled = np.asarray(value * _unit_scale(self.unit, side), dtype=np.float32)
        return scaled[:, 0] if self.count == 1 else scaled

    def describe(self) -> dict[str, Any]:
        """This parameter in plain JSON."""
        described = {"name": self.name, "unit": self.unit, "uniform": [self.low, self.high], "signed": self.signed}
        return described if self.count == 1 else {**described, "count": self.count}


Parameter = Choice | Uniform
Function = TypeVar("Function", bound=Callable[..., Any])


def _unit_scale(unit: str, side: int) -> float:
    return {"px": side / CANVAS, "S": float(side)}.get(unit, 1.0)


class Network(Protocol):
    """A compiled image-to-image network with several outputs; the engine compiles it and passes it in."""

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 canvas (B, S, S, 3) to one uint8 (B, S, S, 3) tensor on its device for each transformation it makes."""
        ...


@dataclass(frozen=True)
class OnGPU:
    """How a GPU makes a transformation that DALI makes on a CPU, where DALI's own GPU operators do not make it.

    They do not where one of them is missing, takes its arguments from the host alone, or makes other pixels; nor where
    a kernel moves less memory. Parameters are drawn alike. One of the two functions is given:

    Attributes:
        function: like a kernel's, ``(canvas_BSSC, args, keys_B)`` to pixels.
        colours: ``(canvas_BSSC, args)`` to a map of colours (B, 3, 4) of :mod:`substyle.kernels.color`; all of a
            suite are made from one read of the canvas.
        prepare: in place of the transformation's own, where the function takes other arguments.
    """

    function: Callable[[torch.Tensor, Arrays, NDArray[np.uint64]], torch.Tensor] | None = None
    colours: Callable[[torch.Tensor, Arrays], torch.Tensor] | None = None
    prepare: Callable[[Arrays, int], Arrays] | None = None


@dataclass(frozen=True)
class Transformation:
    """One transformation; see the decorators below for what its function is given."""

    name: str
    coarse: str
    role: Role
    made_by: Literal["identity", "dali", "kernel", "network"]
    parameters: tuple[Parameter, ...] = ()
    version: int = 1  # raise it when something changes what it makes that `code` does not cover
    function: Callable[..., Any] | None = field(default=None, compare=False)
    prepare: Callable[[Arrays, int], Arrays] | None = field(default=None, compare=False)
    network: str = ""  # for made_by="network": the name of the network that makes it
    split_assets: bool = False  # prepare is also given "test_B" and picks from assets that the other images never see
    on_gpu: OnGPU | None = field(default=None, compare=False)  # for made_by="dali": what makes it there instead

    def describe(self) -> dict[str, Any]:
        """Its definition in plain JSON: what `substyle transforms --json` prints and the store's hash covers."""
        definition = {
            "name": self.name,
            "coarse": self.coarse,
            "role": self.role,
            "made_by": self.made_by,
            "version": self.version,
            "parameters": [parameter.describe() for parameter in self.parameters],
            "code": self.code,
        }
        return definition | ({"split_assets": True} if self.split_assets else {})

    @cached_property
    def code(self) -> str:
        """Digest of the source of its functions: :func:`substyle.pipelines.code.source_digest`."""
        gpu = self.on_gpu or OnGPU()
        return source_digest(self.function, self.prepare, gpu.function, gpu.colours, gpu.prepare)

    def definition_hash(self) -> str:
        """16 hex digits that change when the pixels it makes may change (so neither role nor coarse class count).

        Of a plug-in, any edit of code counts.
        """
        definition = {k: v for k, v in self.describe().items() if k not in ("role", "coarse")}
        definition |= {"network": self.network, "split_assets": self.split_assets}
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]

    def draw(
        self, keys_B: NDArray[np.uint64], side: int, test_B: NDArray[np.bool_] | None = None, *, gpu: bool = False
    ) -> dict[str, NDArray[Any]]:
        """The function's arguments for a batch of images.

        Args:
            keys_B: Philox keys of the images, from :func:`substyle.kernels.philox.image_keys`.
            side: canvas side S in pixels; parameters in px or S are scaled to it.
            test_B: (B,) bool, which images are test images (none when left out); it matters with ``split_assets``.
            gpu: whether they are the arguments of the function that makes it on a GPU.

        Returns:
            arrays whose first axis is B, by argument name.
        """
        u_BP = philox.uniforms(keys_B, self.name, sum(p.draws for p in self.parameters))
        arguments: dict[str, NDArray[Any]] = {}
        start = 0
        for parameter in self.parameters:
            arguments[parameter.name] = parameter.sample(u_BP[:, start : start + parameter.draws], side)
            start += parameter.draws
        if self.split_assets:
            arguments["test_B"] = np.zeros(len(keys_B), np.bool_) if test_B is None else test_B
        prepare = self.on_gpu.prepare if gpu and self.on_gpu and self.on_gpu.prepare else self.prepare
        return dict(prepare(arguments, side)) if prepare else arguments


REGISTRY: dict[str, Transformation] = {}


def register(transformation: Transformation) -> None:
    """Make a transformation known by its name. Raises ConfigError for a taken name or an unknown coarse class."""
    if transformation.name in REGISTRY:
        raise ConfigError("transformation", transformation.name, "a name that is not taken")
    if transformation.coarse not in COARSE:
        raise ConfigError(f"{transformation.name}.coarse", transformation.coarse, ", ".join(COARSE))
    REGISTRY[transformation.name] = transformation


def get(name: str) -> Transformation:
    """The transformation of that name. Raises ConfigError naming those that exist."""
    if name not in REGISTRY:
        raise ConfigError("transformation", name, ", ".join(sorted(REGISTRY)))
    return REGISTRY[name]


def dali(
    name: str,
    *,
    coarse: str,
    role: Role,
    parameters: Sequence[Parameter] = (),
    prepare: Callable[[Arrays, int], Arrays] | None = None,
    version: int = 1,
    split_assets: bool = False,
    on_gpu: OnGPU | None = None,
) -> Callable[[Function], Function]:
    """Register ``function(canvas, args, side) -> DataNode``, a piece of a DALI graph over one uint8 HWC sample.

    What it returns is a uint8 sample of the same size; arithmetic with a Python number makes int32, to be cast back.

    ``args`` holds a DataNode for every array that ``prepare(parameters, side)`` returns (by default the drawn
    parameters as they are). It is on the CPU, where DALI takes the named arguments of an operator from, whatever the
    operator runs on; what is an operator's positional input is moved to the canvas by :func:`beside`. Then the
    function is good for a CPU and for a GPU, unless ``on_gpu`` says what else makes it there.

    With ``split_assets`` prepare is also given ``test_B``, (B,) bool: it must choose pictures for test images that
    training images never show.
    """

    def decorate(function: Function) -> Function:
        made = Transformation(name, coarse, role, "dali", tuple(parameters), version, function, prepare)
        register(replace(made, split_assets=split_assets, on_gpu=on_gpu))
        return function

    return decorate


def beside(canvas: Node, node: Node) -> Node:
    """A tensor input of an operator, on the device of the canvas it is used with."""
    return node.gpu() if canvas.device == "gpu" else node


def kernel(
    name: str,
    *,
    coarse: str,
    role: Role,
    parameters: Sequence[Parameter] = (),
    prepare: Callable[[Arrays, int], Arrays] | None = None,
    version: int = 1,
) -> Callable[[Function], Function]:
    """Register ``function(canvas_BSSC, args, keys_B) -> (B, S, S, 3) uint8`` over torch tensors on any one device.

    ``args`` holds numpy arrays whose first axis is B; ``keys_B`` are the images' Philox keys, for per-pixel noise.
    """

    def decorate(function: Function) -> Function:
        register(Transformation(name, coarse, role, "kernel", tuple(parameters), version, function, prepare))
        return function

    return decorate


# The photograph itself, as decoded.

register(Transformation("identity", "identity", "train", "identity"))
