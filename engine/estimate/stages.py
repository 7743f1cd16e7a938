"""Work of the stages of embedding, counted from the definitions that run."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle import kernels
from substyle.engine.backbones.families import open_clip as open_clip_family
from substyle.engine.backbones.families import packaged, preset, timm
from substyle.engine.backbones.packages import require_model
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.registry import check_name
from substyle.engine.backbones.spec import expand, split
from substyle.engine.estimate.counting import META, Counter, of_network
from substyle.engine.estimate.roofline import Launch, Work
from substyle.engine.style_transfer import networks
from substyle.kernels import dispatch
from substyle.kernels.color import distinct
from substyle.kernels.errors import ConfigError
from substyle.pipelines import dali
from substyle.pipelines.transforms import base, style
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.variants import VariantMaker

BATCH = 256  # images per batch of a GPU engine
_SIDE = 224  # of the canvas that a control computes on
PHOTOGRAPH = 3 * 500 * 375  # bytes of a decoded photograph, as most of ImageNet's
_TAP = 8  # operations of a tap: 32 values are loaded on a multiprocessor in the time of 128 multiply-adds
_STYLE_VECTOR = 100  # length of a style vector; its values do not affect the work


def decode(side: int) -> Work:
    """Writing the decoded photograph, cubic resizing, copying the canvas; JPEG engines decode, see `Efficiency`."""
    canvas = 3.0 * side * side
    return Work([Launch(0.0, BATCH * moved) for moved in (PHOTOGRAPH, PHOTOGRAPH + canvas, 2 * canvas)], BATCH)


def variants(names: Sequence[str], side: int) -> Work:
    """Every operation of a `VariantMaker` on a GPU: Triton kernels, torch without fusion, DALI's operators.

    Left out are styles, and transformations of other libraries, which are computed on the host at a rate of their own.
    """
    load_all()
    import_kernels()
    counter = Counter()
    counted = [name for name in names if base.get(name).made_by not in ("network", "library", base.PHOTOGRAPHS)]
    maker = _Maker(counted, side, counter)
    canvas = torch.empty(BATCH, side, side, 3, dtype=torch.uint8, device=META)
    with counter, dispatch.watched(counter.triton):
        for _ in maker(canvas, [str(i) for i in range(BATCH)]):
            pass
    return Work(counter.launches, BATCH)


@cache
def import_kernels() -> None:
    """Import the Triton kernels, also where Triton is not installed: on the meta device none runs."""
    absent = [] if dispatch.installed() else ["triton", "triton.language"]
    sys.modules.update({name: _Absent(name) for name in absent})
    for module in pkgutil.iter_modules(kernels.__path__):
        if module.name.endswith("_triton"):
            importlib.import_module(f"{kernels.__name__}.{module.name}")
    for name in absent:
        del sys.modules[name]


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **options: given[0] if given else lambda function: function


class _Maker(VariantMaker):
    """A `VariantMaker` on the meta device."""

    def __init__(self, names: Sequence[str], side: int, counter: Counter) -> None:
        self.device, self.side, self.seed, self.batch, self.networks = META, side, 0, BATCH, {}
        self.transformations = tuple(map(base.get, names))
        by_dali = [t for t in self.transformations if t.made_by == "dali" and not t.on_gpu]
        self.graph = _Graph(by_dali, side, counter) if by_dali else None


class _Graph(dali.Graph):
    """A graph of DALI that is only counted: each operator reads and writes whole canvases, inside a graph in float32.

    A filter also loads and multiplies by every tap.
    """

    def __init__(self, transformations: Sequence[base.Transformation], side: int, counter: Counter) -> None:
        from nvidia.dali import fn, types

        self.transformations, self.counter = transformations, counter
        values, self.launches = BATCH * 3 * side * side, list[Launch]()
        with dali.new_pipeline(BATCH, 1, torch.device("cuda", 0)):
            canvas = fn.external_source(name="canvas", device="gpu", dtype=types.UINT8, ndim=3, layout="HWC")
            for transformation in transformations:
                inputs = dali.Inputs(transformation.name, transformation.draw(np.zeros(1, np.uint64), side))
                assert transformation.function is not None
                last = transformation.function(canvas, inputs, side)
                taps = {f"{transformation.name}.{name}": array.size for name, array in inputs.example.items()}
                for node in _nodes(last, set()):
                    images = [each for each in node.source.inputs if each.name not in taps]
                    moved = sum(1 if each.name == "canvas" else 4 for each in images) + (1 if node is last else 4)
                    tapped = sum(taps.get(each.name, 0) for each in node.source.inputs if each.device == "gpu")
                    self.launches.append(Launch(_TAP * float(tapped) * values, float(moved * values)))

    def __call__(
        self, canvas_BSSC: torch.Tensor, drawn: Mapping[str, Mapping[str, NDArray[Any]]]
    ) -> dict[str, torch.Tensor]:
        """Copy the canvas in, compute, copy the variants out."""
        self.counter.launches += self.launches
        canvas_BSSC.clone()
        return {transformation.name: canvas_BSSC.clone() for transformation in self.transformations}


def _nodes(node: base.Node, seen: set[int]) -> Iterator[base.Node]:
    """The operators that a node is computed by, without inputs of the graph."""
    if node.source.inputs and node.source.id not in seen:
        seen.add(node.source.id)
        yield node
        for each in node.source.inputs:
            yield from _nodes(each, seen)


def styles(names: Sequence[str], side: int) -> Work:
    """The style networks as torch.compile fuses them, copies of canvas and pictures, and distinctness.

    Layers before the first normalisation are shared by all styles of a network.
    """
    load_all()
    import_kernels()
    of_network: dict[str, list[str]] = {}
    for name in names:
        if base.get(name).made_by == "network":
            of_network.setdefault(base.get(name).network, []).append(name)
    counter = Counter(fused=True)
    canvas = torch.empty(networks.PIECE, side, side, 3, dtype=torch.uint8, device=META)
    for network, its in of_network.items():
        generator = (
            networks.multistyle_generator([networks.MULTISTYLE[name] for name in its])
            if network == style.MULTISTYLE
            else networks.arbitrary_generator(np.zeros((len(its), _STYLE_VECTOR), np.float32))
        )
        made = networks.DeviceStyles(generator, its, side=side, precision="bf16", device=META, mode="off")
        with counter, dispatch.watched(counter.triton):
            for picture in made(canvas).values():
                distinct(canvas, picture)
    return Work(counter.launches, networks.PIECE)


@dataclass(frozen=True)
class NetworkFacts:
    """Embedding width D, number of parameters and work of a backbone."""

    dim: int
    parameters: int
    work: Work


def backbones(name: str, batch: int) -> dict[str, NetworkFacts]:
    """:func:`backbone` for each layer in a name; they are computed in one pass, which is counted for the deepest."""
    found = {each: backbone(each, batch) for each in expand(name)}
    deepest = max(found.values(), key=lambda facts: facts.work.flop)
    alone = {each: NetworkFacts(facts.dim, 0, Work()) for each, facts in found.items()}
    return {each: facts if facts is deepest else alone[each] for each, facts in found.items()}


def backbone(name: str, batch: int) -> NetworkFacts:
    """Count the products of a backbone at its own input side, without loading weights.

    Raises:
        ConfigError: an invalid name, or a network that cannot be built or run without weights.
    """
    family, rest = check_name(name).prefix, name.partition(":")[2]
    if rest in ("pixels", "statistics") and family == "control":
        from substyle.engine.backbones.families import controls

        found = controls.load(name, rest, canvas=_SIDE)
        assert found.module is not None
        with torch.no_grad(), META, Counter() as counter:
            found.module.to(META)(torch.empty(batch, _SIDE, _SIDE, 3, dtype=torch.uint8))
        return NetworkFacts(found.spec.dim, 0, Work(counter.launches, batch))
    try:
        with torch.device("meta"):
            network, side = network_of(name)
            x = torch.empty(batch, 3, side, side)
        network = network.eval()
        with torch.no_grad():
            dim = timm.require_vector(name, network(x[:1]))
    except (RuntimeError, KeyError, OSError) as error:  # meta tensors have no values; a repository lacks its files
        allowed = f"a backbone whose cost can be estimated without its weights ({error})"
        raise ConfigError(f"backbone {name}", rest, allowed) from error
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkFacts(dim, parameters, of_network(network, x))


def network_of(name: str) -> tuple[nn.Module, int]:
    """Build the network of a backbone without its weights; returns it and its input side."""
    family, rest = check_name(name).prefix, name.partition(":")[2]
    model, readout = split(name, rest)
    known = PRESETS.get(f"{family}:{model}")
    if known is not None:
        return preset.read_at(name, known, preset.network(known).eval(), readout), known.side
    if family == "open_clip":
        architecture, _ = open_clip_family.require_model(name, model)
        tower = open_clip_family.tower(architecture).eval()
        size: Any = tower.image_size
        side = int(size if isinstance(size, int) else size[0])
        return open_clip_family.read_at(name, tower, readout, side)[0], side
    if family == "package":
        row = require_model(name, model)
        network, side = packaged.network(row), row.side
    elif family in ("control", "timm"):
        architecture = model.partition(":")[2] if family == "control" else model
        timm.require_model(name, architecture)
        network = timm.create(architecture)
        side = int(timm.data_config(network)["side"])
    else:
        raise ConfigError(f"backbone {name}", family, "timm, open_clip, package, control or a preset")
    return timm.read_at(name, network.eval(), readout, side)[0], side
