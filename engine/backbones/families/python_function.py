"""`python:<module>:<function>`: a torch module that a function of an importable module returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.families import timm
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone, split
from substyle.errors import ConfigError
from substyle.pipelines.plugins import current_folder, imported_function

PREFIX = "python"
_ALLOWED = 'a torch module and {"side": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}'


def function_of(name: str, rest: str) -> Callable[[], Any]:
    """Import the function that a name refers to, also from the current folder.

    Raises:
        ConfigError: the module cannot be imported or has no such function.
    """
    allowed = "python:<module>:<function>, such as python:my_package.encoders:tower"
    return imported_function("backbone", name, rest, allowed)


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    """Call the function, and wrap the network that it returns with its preprocessing.

    The network maps (B, 3, side, side) float32, normalised, to (B, D).

    Raises:
        ConfigError: the function fails, or returns something else.
    """
    path, readout = split(name, rest)
    function = function_of(name, path)
    try:
        with current_folder():
            made = function()
    except Exception as error:  # whatever the function raises
        raise ConfigError(f"backbone {name}", f"{type(error).__name__}: {error}", _ALLOWED) from error
    try:
        network, facts = made
        side, mean, std = int(facts["side"]), timm.rgb(facts["mean"]), timm.rgb(facts["std"])
        if not isinstance(network, nn.Module) or min(std) <= 0 or not 0 < side <= 4096:
            raise ValueError(f"{type(network).__name__}, {facts}")
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"backbone {name}", f"{type(made).__name__} ({error})", _ALLOWED) from error
    try:
        return timm.wrap(
            *(name, path, network.to(torch.float32)),
            canvas=context.canvas,
            weights=f"function {path}",
            config={"side": side, "mean": mean, "std": std},
            readout=readout,
        )
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(f"backbone {name}", f"{type(error).__name__}: {error}", _ALLOWED) from error


register_family(
    Family(
        *(PREFIX, "<module>:<function>", "a torch module and its preprocessing that a function returns"),
        loader=_load,
        check=split,
        function=function_of,
        position=3,
    )
)
