"""`finetuned:<file>`: a backbone with weights fine-tuned by a study's `[finetune]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones import registry
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone, tensors_hash
from substyle.engine.backbones.weights import WeightsError, read_described, require_canvas, write_described
from substyle.engine.words import of_today
from substyle.errors import ConfigError
from substyle.files import file_hash

PREFIX = "finetuned:"
FORMAT = "substyle-finetuned-1"
_FACTS = {"backbone": str, "objective": str, "seed": int, "transformations": list, "settings": dict}
_REQUIRED = {"weights_hash": str, **_FACTS}


@dataclass(frozen=True)
class Finetuned:
    """Weights of a fine-tuned backbone.

    Attributes:
        state: the tensors of its module.
        metadata: JSON: ``backbone`` and ``weights_hash`` of the network before, ``objective``, ``seed``,
            ``transformations``, ``settings``, and further facts about the training.
    """

    state: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        write_described(path, self.state, self.metadata, FORMAT)

    @classmethod
    def load(cls, path: Path, *, tensors: bool = True) -> Finetuned:
        """Read a file, without ``tensors`` only its metadata.

        Raises:
            WeightsError: the file does not exist or is not a fine-tuned backbone.
        """
        title = "weights fine-tuned by [finetune] of a study"
        state, metadata = read_described(path, FORMAT, _REQUIRED, title=title, tensors=tensors)
        return cls(state, metadata | {"objective": of_today(metadata["objective"])})


def wrap(name: str, tuned: Finetuned, base: Backbone, canvas: int) -> Backbone:
    """Return a backbone with fine-tuned weights in place of its own, which are overwritten.

    The objective of the spec is unstated: claims compare objectives of pretraining.

    Raises:
        ConfigError: the backbone is a graph.
        WeightsError: the weights are of another network, or were trained from other weights or on another canvas.
    """
    require_canvas(name, tuned.metadata, canvas)
    if base.module is None:
        raise ConfigError(f"backbone {name}", f"weights of {base.spec.name}", "weights of a torch network")
    before = tuned.metadata["weights_hash"]
    if base.spec.weights_hash != before:
        message = f"{name}: trained from {base.spec.name} with weights {before}, got {base.spec.weights_hash}"
        raise WeightsError(message)
    try:
        base.module.load_state_dict(dict(tuned.state))
    except RuntimeError as error:
        raise WeightsError(f"{name}: {str(error).splitlines()[0]}") from error
    module: nn.Module = base.module.eval()
    facts = {key: tuned.metadata[key] for key in _FACTS}
    spec = replace(
        base.spec,
        name=name,
        weights=f"{base.spec.weights}; fine-tuned ({facts['objective']}, seed {facts['seed']})",
        weights_hash=tensors_hash(dict(tuned.state)),
        objective="",
        control=False,
        finetuned=facts,
    )
    return replace(base, spec=spec, module=module)


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    tuned = Finetuned.load(Path(rest))
    return wrap(name, tuned, registry.load(tuned.metadata["backbone"], context.of_a_file), context.canvas)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    before = Finetuned.load(Path(rest), tensors=False).metadata["backbone"]
    base = registry.identity(before, context.of_a_file)
    return None if base is None else {"finetuned": file_hash(Path(rest)), "base": base}


register_family(
    Family(
        *("finetuned", "<file.safetensors>", "a backbone with weights trained by [finetune] of a study"),
        *(_load, _identify),
        checkpoint=True,
        trained=True,
        position=7,
    )
)
