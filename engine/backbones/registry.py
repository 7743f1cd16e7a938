"""Registry of backbone families by name: `timm:…`, `open_clip:…/…`, `onnx:…`, `package:…`, `control:…`, presets such as
`mae:base`, and families of plug-ins."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones import families
from substyle.engine.backbones.families import blocks
from substyle.engine.backbones.family import FAMILIES, Family, LoadContext, checkpoint_identity, register_family
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.presets import ABOUT, meant, stated
from substyle.engine.backbones.spec import Backbone, BackboneSpec, expand, fused, has_options, split, without_own_name
from substyle.engine.backbones.weights import HUB
from substyle.errors import ConfigError
from substyle.kernels import cpu
from substyle.pipelines.plugins import ALLOW

__all__ = [
    "FAMILIES",
    "Family",
    "LoadContext",
    "check_checkpoint",
    "check_name",
    "checkpoint_identity",
    "identity",
    "load",
    "load_all",
    "register_family",
]


def check_name(name: str) -> Family:
    """Return the family of a backbone name. Raises ConfigError, listing valid names, if it is invalid."""
    prefix, colon, rest = name.partition(":")
    family = FAMILIES.find(prefix)
    if not colon or not rest or family is None:
        allowed = ", ".join(f"{each.prefix}:{each.names}" for each in FAMILIES.all())
        raise ConfigError("backbone", name, meant(name) + allowed)
    if family.check is not None:
        for each in fused(name) or [name]:
            family.check(each, without_own_name(each).partition(":")[2])
    elif has_options(without_own_name(rest)):  # they would be stored as another backbone with the same embeddings
        raise ConfigError(f"backbone {name}", rest, f"no options: family {prefix} has no check that reads them")
    return family


def is_derived(name: str) -> bool:
    """Whether embeddings of a backbone are derived from those of another one. False for unknown families."""
    family = FAMILIES.find(name.partition(":")[0])
    return family is not None and family.derive is not None


def check_checkpoint(name: str, checkpoint: Path | None) -> Family:
    """`check_name` and raise ConfigError for a checkpoint that is missing or that the family does not support."""
    family = check_name(name)
    if checkpoint is not None and (not family.checkpoint or f":{HUB}" in name):
        allowed = f"a timm: or open_clip: backbone without {HUB}, or a preset of {', '.join(ABOUT)}"
        raise ConfigError(f"{name}: checkpoint", str(checkpoint), allowed)
    if checkpoint is not None and not checkpoint.is_file():
        raise ConfigError(f"{name}: checkpoint", str(checkpoint), "an existing file")
    return family


def _require_allowed(name: str, context: LoadContext) -> Family:
    """`check_checkpoint`, and raise ConfigError for a name that would run code that the user has not asked for."""
    family = check_checkpoint(name, context.checkpoint)
    if family.function is not None and not context.run_code:
        allowed = f"code that you trust, since only a file names it: pass --allow-plugins, or set {ALLOW}=1"
        raise ConfigError("backbone", name, allowed)
    return family


def load(name: str, context: LoadContext) -> Backbone:
    """Load a backbone by name. Raises ConfigError for an invalid name, WeightsError for unavailable weights."""
    family = _require_allowed(name, context)
    if layers := fused(name):
        whole = _several(name, layers, context)
        pooling = " + ".join(member.pooling for member in whole.members)
        return replace(whole, spec=replace(whole.spec, pooling=pooling), members=())
    backbone = family.loader(name, without_own_name(name).partition(":")[2], context)
    return replace(backbone, spec=_trained(backbone, context.checkpoint))


def load_all(name: str, context: LoadContext) -> Backbone:
    """`load`, also for the name of several layers, whose embeddings are concatenated.

    Raises ConfigError for an invalid name, WeightsError for unavailable weights.
    """
    names = expand(name)
    return load(name, context) if names == [name] else _several(name, names, context)


def _several(name: str, names: list[str], context: LoadContext) -> Backbone:
    """Layers of one network, whose embeddings are concatenated."""
    readouts = {each: split(each, each.partition(":")[2])[1] for each in names}
    return blocks.several(name, load(names[0], context), readouts)


def _trained(backbone: Backbone, checkpoint: Path | None) -> BackboneSpec:
    """The spec with parameter count, objective and data, unless stated by the loader."""
    spec, module = backbone.spec, backbone.module
    if spec.parameters is None and module is not None:
        spec = replace(spec, parameters=sum(parameter.numel() for parameter in module.parameters()))
    if spec.objective:
        return spec
    objective, data = stated(spec.name)
    if checkpoint is not None:  # its weights may differ from those of the name's default tag
        data = ""
        if spec.name.startswith("timm:") and "." not in spec.name.partition("@")[0]:
            objective = ""
    return replace(spec, objective=objective, data=spec.data or data)


_LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "onnx", "onnxscript", "openvino", "transformers")


def identity(name: str, context: LoadContext) -> dict[str, Any] | None:
    """Return plain facts that determine the result of `load_all`, without loading; None if unknown.

    Raises ConfigError for an invalid name.
    """
    first = expand(name)[0]
    first = (fused(first) or [first])[0]
    family = _require_allowed(first, context)
    identify = family.identify if family.packaged else None
    found = identify(first, without_own_name(first).partition(":")[2], context) if identify else None
    if found is None:
        return None
    return {
        "name": name,
        "canvas": context.canvas,
        "batch": context.batch,
        "checkpoint": str(context.checkpoint.name) if context.checkpoint else None,
        "code": cache.code_hash(),
        "versions": cache.versions(*_LIBRARIES),
        "device": cpu.identity(),  # which folds constants of a graph
        **found,
    }


def lazy(name: str, context: LoadContext) -> LazyBackbone:
    """Return a backbone that is loaded on first use. Raises ConfigError for an invalid name."""
    packaged = check_name(expand(name)[0]).packaged
    load = partial(load_all, name, context)
    return LazyBackbone(load, identity(name, context), canvas=context.canvas, batch=context.batch, packaged=packaged)


for _module in pkgutil.iter_modules(families.__path__):
    importlib.import_module(f"{families.__name__}.{_module.name}")
