"""Transformations: a name, parameters with units, a kind, a role and a function; and their registry.

Add one by decorating its function in a module of this folder or in a plug-in::

    @kernel("solarize", kind="tone", role="train", parameters=[Choice("threshold", (64, 128), unit="level")])
    def solarize(canvas_BSSC, args, keys_B):
        threshold = upload(args["threshold"], canvas_BSSC.device).view(-1, 1, 1, 1)
        return torch.where(canvas_BSSC < threshold, canvas_BSSC, 255 - canvas_BSSC)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.errors import ConfigError, SubstyleError
from substyle.kernels import philox
from substyle.kernels.dispatch import CPU
from substyle.pipelines.entry_points import TRANSFORMATIONS, Registry
from substyle.pipelines.plugins import in_package

CANVAS = 224  # the side S that strengths in px refer to
KINDS = (
    *("identity", "blur", "noise", "recolor", "tone", "quality", "warp", "overlay", "halftone", "style"),
    *("weather", "lighting", "viewpoint", "sensor", "sharpening", "resampling"),
    "other",
)
OTHER = "other"  # the kind of a transformation of which none is given
PHOTOGRAPHS = "photographs"  # `Transformation.made_by` of real variants, which files of the source show
Role = Literal["train", "held_out"]
Node = Any  # a DALI DataNode; DALI ships no types


class GraphArgument(Protocol):
    """An argument of a DALI graph that is fed in another form on a GPU.

    Attributes:
        on_device: whether it is fed on the device of the canvas, not on the host.
    """

    on_device: bool

    def on(self, device: torch.device) -> Any:  # noqa: ANN401
        """Return what a graph on a device is fed: an array on a CPU; on a GPU also a list of arrays, or a tensor."""


Argument = NDArray[Any] | GraphArgument


def feed(argument: Argument, device: torch.device = CPU) -> Any:  # noqa: ANN401
    """Return what a graph on a device is fed for an argument; on a CPU an array."""
    return argument if isinstance(argument, np.ndarray) else argument.on(device)


# what functions get: kernels get arrays alone, so they need not tell them from others
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """A parameter drawn from a few equally likely values, which may be tuples of numbers.

    Values in ``px`` are multiplied by S / 224, values in ``S`` by S: both arrive in pixels of the canvas.

    With ``severity``, the values are those of severity 1, 2, … of the transformation. Suite files may choose other
    values ``within`` bounds, which are whole numbers if only these are possible; None for any.
    """

    name: str
    values: tuple[Any, ...]
    unit: str = ""
    severity: bool = False
    within: tuple[float, float] | None = None

    draws = 1

    def sample(self, u_BP: NDArray[np.float64], side: int) -> NDArray[np.float32]:
        """Map uniform random numbers to values. Shape: (B,) or, for tuples of k numbers, (B, k) float32."""
        table = np.asarray(self.values, dtype=np.float32)
        index = np.minimum((u_BP[:, 0] * len(table)).astype(np.int64), len(table) - 1)
        return np.asarray(table[index] * np.float32(_unit_scale(self.unit, side)), dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """The parameter as JSON data."""
        described = {"name": self.name, "unit": self.unit, "one_of": list(self.values)}
        return {**described, "severity": True} if self.severity else described


@dataclass(frozen=True)
class Uniform:
    """A parameter of ``count`` numbers drawn uniformly from [low, high); ``signed`` also draws their signs.

    Units and ``within`` as in :class:`Choice`.
    """

    name: str
    low: float
    high: float
    unit: str = ""
    signed: bool = False
    count: int = 1
    within: tuple[float, float] | None = None

    @property
    def draws(self) -> int:
        """Number of uniform random numbers that :meth:`sample` uses."""
        return 2 * self.count

    def sample(self, u_BP: NDArray[np.float64], side: int) -> NDArray[np.float32]:
        """Map uniform random numbers to values. Shape: (B,) or, with a count k above 1, (B, k) float32."""
        value = self.low + (self.high - self.low) * u_BP[:, : self.count]
        if self.signed:
            value = np.where(u_BP[:, self.count :] < 0.5, -value, value)
        scaled = np.asarray(value * _unit_scale(self.unit, side), dtype=np.float32)
        return scaled[:, 0] if self.count == 1 else scaled

    def describe(self) -> dict[str, Any]:
        """The parameter as JSON data."""
        described = {"name": self.name, "unit": self.unit, "uniform": [self.low, self.high], "signed": self.signed}
        return described if self.count == 1 else {**described, "count": self.count}


Parameter = Choice | Uniform
Function = TypeVar("Function", bound=Callable[..., Any])


def _unit_scale(unit: str, side: int) -> float:
    return {"px": side / CANVAS, "S": float(side)}.get(unit, 1.0)


class Network(Protocol):
    """An image-to-image network with several outputs, compiled by the engine."""

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute one uint8 (B, S, S, 3) tensor per transformation, on the device of the uint8 (B, S, S, 3) canvas."""


@dataclass(frozen=True)
class StylePicture:
    """A picture whose style a network transfers.

    Attributes:
        digest: SHA-256 of its file, in hex.
        pixels_SSC: what the network sees of it, (S, S, 3) uint8.
    """

    digest: str
    pixels_SSC: NDArray[np.uint8] = field(compare=False, repr=False)


@dataclass(frozen=True)
class LibraryCall:
    """A transformation of another library; see :mod:`substyle.pipelines.libraries`.

    Attributes:
        of: its reference, such as ``albumentations:RandomRain``.
        arguments: JSON of the arguments that are not drawn.
        versions: distributions that decide pixels, and their versions.
    """

    of: str
    arguments: str
    versions: tuple[tuple[str, str], ...]

    def describe(self) -> dict[str, Any]:
        """The call as JSON data."""
        return {"of": self.of, "arguments": json.loads(self.arguments), "versions": dict(self.versions)}


@dataclass(frozen=True)
class Transformation:
    """A transformation; see :func:`dali` and :func:`kernel` for the arguments of its function."""

    name: str
    kind: str
    role: Role
    made_by: Literal["identity", "dali", "kernel", "network", "library", "photographs"]
    parameters: tuple[Parameter, ...] = ()
    version: int = 1  # increment when pixels change
    function: Callable[..., Any] | None = field(default=None, compare=False)
    prepare: Callable[[Arrays, int], Arrays] | None = field(default=None, compare=False)
    network: str = ""  # for made_by="network": name of the network
    generator: str = field(
        default="", compare=False
    )  # of a style: the algorithm that makes it; no part of its identity
    operation: str = field(default="", compare=False)  # what it does, also in other suites; by default its name
    split_assets: bool = False  # prepare also gets "test_B" and uses disjoint assets for test and other images
    # in place of ``function`` on a GPU: a kernel for made_by="dali", part of a DALI graph for made_by="kernel"
    on_gpu: Callable[..., Any] | None = field(default=None, compare=False)
    stream: str = ""  # name that its random numbers are drawn by, if not its own
    subtle: bool = False  # distinct from identity if any value differs, instead of by one grey level on average
    picture: StylePicture | None = None  # for a network that takes its style from one: not the package's, but this
    library: LibraryCall | None = None  # for made_by="library"

    @property
    def severities(self) -> int:
        """Number of severities; 0 if it has none."""
        return max((len(p.values) for p in self.parameters if isinstance(p, Choice) and p.severity), default=0)

    def at(self, severity: int) -> Transformation:
        """Return the transformation at one severity, named ``name@severity``, with the same random numbers.

        Raises:
            ConfigError: it has no such severity.
        """
        if not 1 <= severity <= self.severities:
            allowed = f"1 to {self.severities}" if self.severities else f"{self.name}, which has no severities"
            raise ConfigError("severity", f"{self.name}@{severity}", allowed)
        fixed = tuple(
            replace(p, values=(p.values[severity - 1],)) if isinstance(p, Choice) and p.severity else p
            for p in self.parameters
        )
        return replace(self, name=f"{self.name}@{severity}", parameters=fixed, stream=self.stream or self.name)

    def describe(self) -> dict[str, Any]:
        """The definition as JSON data, printed by `substyle transforms --json` and covered by the store's hash."""
        definition = {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            "made_by": self.made_by,
            "version": self.version,
            "parameters": [parameter.describe() for parameter in self.parameters],
        }
        optional: dict[str, Any] = {"split_assets": self.split_assets, "stream": self.stream, "subtle": self.subtle}
        if self.picture is not None:
            # with its generator: a reader of the store may lack the suite file, and so the transformation
            optional |= {"picture": self.picture.digest, "generator": self.generator}
        if self.library is not None:
            optional |= {"library": self.library.describe(), "generator": self.generator}
        return definition | {key: value for key, value in optional.items() if value}

    @property
    def packaged(self) -> bool:
        """Whether code of this package alone decides its pixels, and not a plug-in or another library."""
        return self.made_by != "library" and all(map(in_package, (self.function, self.prepare, self.on_gpu)))

    def by_dali(self, *, gpu: bool) -> bool:
        """Whether a DALI graph computes it on a CPU, or on a GPU."""
        return self.made_by == ("kernel" if gpu and self.on_gpu else "dali")

    def implementation(self, *, gpu: bool) -> Callable[..., Any]:
        """Return its function on a CPU, or on a GPU."""
        function = (gpu and self.on_gpu) or self.function
        if function is None:
            raise SubstyleError(f"{self.name}: made_by is {self.made_by}, but function is None")
        return function

    def draw(
        self, keys_B: NDArray[np.uint64], side: int, test_B: NDArray[np.bool_] | None = None
    ) -> dict[str, Argument]:
        """Draw the function's arguments for a batch of images.

        Args:
            keys_B: Philox keys of the images, from :func:`substyle.kernels.philox.image_keys`.
            side: canvas side S in pixels; scales parameters in px or S.
            test_B: (B,) bool, which images are test images; by default none. Used with ``split_assets``.

        Returns:
            arrays whose first axis is B, and graphs' arguments of other kinds, by name.
        """
        return draw([self], keys_B, side, test_B)[self.name]

    def seeds(self, keys_B: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Seeds of a library's generators for a batch of images. Shape: (B,)."""
        return philox.words(keys_B, self.stream or self.name, 1, stream=philox.NOISE)[:, 0]

    def values(self, keys_B: NDArray[np.uint64]) -> dict[str, NDArray[np.float32]]:
        """The parameters of a batch of images in their units, by name. Shape: (B,) or (B, k); px are of `CANVAS`."""
        units = {parameter.name: parameter.unit for parameter in self.parameters}
        sampled = next(_sampled([self], keys_B, CANVAS))
        return {name: value / np.float32(_unit_scale(units[name], CANVAS)) for name, value in sampled.items()}


def draw(
    transformations: Sequence[Transformation],
    keys_B: NDArray[np.uint64],
    side: int,
    test_B: NDArray[np.bool_] | None = None,
) -> dict[str, dict[str, Argument]]:
    """:meth:`Transformation.draw` of several, by name, from one call of the generator."""
    drawn = {}
    for transformation, sampled in zip(transformations, _sampled(transformations, keys_B, side), strict=True):
        arguments: dict[str, Any] = sampled
        if transformation.split_assets:
            arguments["test_B"] = np.zeros(len(keys_B), np.bool_) if test_B is None else test_B
        prepare = transformation.prepare
        drawn[transformation.name] = dict(prepare(arguments, side)) if prepare else arguments
    return drawn


def _sampled(
    transformations: Sequence[Transformation], keys_B: NDArray[np.uint64], side: int
) -> Iterator[dict[str, Any]]:
    wanted = [(each.stream or each.name, sum(p.draws for p in each.parameters)) for each in transformations]
    for transformation, u_BP in zip(transformations, philox.uniforms_of(keys_B, wanted), strict=True):
        found, start = {}, 0
        for parameter in transformation.parameters:
            found[parameter.name] = parameter.sample(u_BP[:, start : start + parameter.draws], side)
            start += parameter.draws
        yield found


REGISTRY: Registry[Transformation] = Registry("transformation", TRANSFORMATIONS)
# names by suite, identity first: the order is that of every axis T; files of `suites` add theirs
SUITES: dict[str, tuple[str, ...]] = {
    "substance31": (
        "identity",
        *("gaussian_blur", "motion_blur", "defocus_blur", "zoom_blur"),
        *("gaussian_noise", "impulse_noise", "shot_noise"),
        *("hue_shift", "grayscale", "channel_permute"),
        *("brightness", "low_contrast", "saturate"),
        *("jpeg", "pixelate", "low_resolution"),
        *("elastic", "grid_distortion", "swirl"),
        *("icon_overlay", "text_overlay", "color_pattern"),
        *("dot_halftone", "line_halftone", "inverted_lines"),
        *("style_starry", "style_glass", "style_expressionist", "style_wave", "style_fauvist"),
    ),
    # for the smallest runs: two kinds with a train and a held-out member each, all made by DALI
    "mini5": ("identity", "grayscale", "channel_permute", "jpeg", "low_resolution"),
}
# with the styles of a second generator: does a probe trained on those of one know those of the other?
SUITES["substance36"] = (
    *SUITES["substance31"],
    *("style_arbitrary", "style_tissue", "style_bricks", "style_gravel", "style_retina"),
)


def register(transformation: Transformation) -> None:
    """Register a transformation. Raises ConfigError for an invalid or duplicate name, or an unknown role or class."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", transformation.name):
        raise ConfigError("transformation", transformation.name, "letters, digits, _, - and .")
    if (taken := REGISTRY.get(transformation.name)) is not None:
        by = getattr(taken.function, "__module__", None) or "a suite file"
        raise ConfigError("transformation", transformation.name, f"another name: this one is taken by {by}")
    if transformation.kind not in KINDS:
        raise ConfigError(f"{transformation.name}.kind", transformation.kind, ", ".join(KINDS))
    if transformation.on_gpu is not None and transformation.made_by not in ("dali", "kernel"):
        raise ConfigError(f"{transformation.name}.on_gpu", transformation.made_by, "made_by dali or kernel, or None")
    if transformation.role not in get_args(Role):
        raise ConfigError(f"{transformation.name}.role", transformation.role, ", ".join(get_args(Role)))
    REGISTRY[transformation.name] = replace(transformation, operation=transformation.operation or transformation.name)


FINDERS: list[Callable[[str], object]] = [REGISTRY.find]  # register an unknown name


def is_known(name: str) -> bool:
    """Whether a transformation is registered, also by an entry point, or can be found in another library.

    Raises:
        ConfigError: the library is not installed or has no such transformation.
    """
    for find in FINDERS:
        if name not in REGISTRY:
            find(name)
    return name in REGISTRY


def get(name: str) -> Transformation:
    """Return a transformation by name, ``name@severity`` at one severity. Raises ConfigError if it does not exist."""
    whole, at, severity = name.partition("@")
    if not is_known(whole):
        near = get_close_matches(whole, REGISTRY, n=5)
        raise ConfigError("transformation", name, f"such as {', '.join(near)}" if near else ", ".join(sorted(REGISTRY)))
    if not at:
        return REGISTRY[whole]
    if not re.fullmatch("[1-9][0-9]?", severity):
        raise ConfigError("severity", name, "name@severity, such as name@3")
    return REGISTRY[whole].at(int(severity))


def real(names: Iterable[str]) -> list[str]:
    """Return the transformations that are not computed, but shown by files of the source."""
    return [name for name in names if get(name).made_by == PHOTOGRAPHS]


def by_network(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the transformations that networks make, by name of the network."""
    styles: dict[str, list[str]] = {}
    for name in names:
        transformation = get(name)
        if transformation.made_by == "network":
            styles.setdefault(transformation.network, []).append(name)
    return styles


def dali(
    name: str,
    *,
    kind: str,
    role: Role,
    parameters: Sequence[Parameter] = (),
    prepare: Callable[[Arrays, int], Arrays] | None = None,
    version: int = 1,
    split_assets: bool = False,
    on_gpu: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Register ``function(canvas, args, side) -> DataNode``, part of a DALI graph over one uint8 HWC sample.

    It returns a uint8 sample of the same size; arithmetic with a Python number yields int32, which must be cast back.

    ``args`` holds a CPU DataNode for every array returned by ``prepare(parameters, side)``, by default the drawn
    parameters. DALI takes named arguments of operators from the CPU; move positional inputs to the canvas's device with
    :func:`beside`. The function then works on a CPU and on a GPU, with a branch by :func:`is_on_gpu` if need be; or
    a function as of :func:`kernel` replaces it on a GPU, ``on_gpu``.

    With ``split_assets``, ``prepare`` also gets ``test_B``, (B,) bool, and must use assets for test images that
    training images never show.
    """

    def decorate(function: Function) -> Function:
        made = Transformation(name, kind, role, "dali", tuple(parameters), version, function, prepare)
        register(replace(made, split_assets=split_assets, on_gpu=on_gpu))
        return function

    return decorate


def beside(canvas: Node, node: Node) -> Node:
    """Move a positional input of an operator to the device of the canvas."""
    return node.gpu() if canvas.device == "gpu" else node


def is_on_gpu(canvas: Node) -> bool:
    """Whether a function defines part of a graph for a GPU."""
    return bool(canvas.device == "gpu")


def kernel(
    name: str,
    *,
    kind: str,
    role: Role,
    parameters: Sequence[Parameter] = (),
    prepare: Callable[[Arrays, int], Arrays] | None = None,
    version: int = 1,
    split_assets: bool = False,
    subtle: bool = False,
    generator: str = "",
    operation: str = "",
    on_gpu: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Register ``function(canvas_BSSC, args, keys_B) -> (B, S, S, 3) uint8`` on torch tensors of any device.

    ``args`` holds numpy arrays with first axis B; ``keys_B`` are the images' Philox keys, for per-pixel noise.
    ``split_assets`` as in :func:`dali`; ``subtle``, ``generator`` and ``operation`` as in :class:`Transformation`. A
    function as of :func:`dali` replaces it on a GPU, ``on_gpu``.
    """

    def decorate(function: Function) -> Function:
        made = Transformation(name, kind, role, "kernel", tuple(parameters), version, function, prepare)
        found = replace(made, split_assets=split_assets, subtle=subtle, generator=generator, operation=operation)
        register(replace(found, on_gpu=on_gpu))
        return function

    return decorate


register(Transformation("identity", "identity", "train", "identity"))
