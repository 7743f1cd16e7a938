"""Families of backbones register here. Built-in ones are modules of `substyle.engine.backbones.families`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.spec import Backbone
from substyle.files import file_hash
from substyle.pipelines.entry_points import BACKBONES, Registry
from substyle.pipelines.plugins import code_allowed, in_package


@dataclass(frozen=True)
class LoadContext:
    """Context for loading a backbone.

    Attributes:
        canvas: canvas side S in pixels.
        batch: batch that graphs are compiled for.
        seed: the study's seed.
        checkpoint: a local file with the weights, or None.
        run_code: whether the name may be that of a function: not if only a file names it, unless plug-ins are allowed.
    """

    canvas: int
    batch: int
    seed: int
    checkpoint: Path | None = None
    run_code: bool = True

    @property
    def of_a_file(self) -> LoadContext:
        """The context for a name that a file contains."""
        return replace(self, run_code=self.run_code and code_allowed())


Loader = Callable[[str, str, LoadContext], Backbone]
# with the same arguments; returns plain facts that determine the loader's result, None if unknown without loading
Identify = Callable[[str, str, LoadContext], dict[str, Any] | None]


@dataclass(frozen=True)
class Derivation:
    """How embeddings of a backbone are computed from those of another one.

    Attributes:
        backbone: name of the other backbone.
        function: embeddings (B, D) to embeddings (B, E).
        changed: ``changed(spec, dim, canvas)`` returns the facts that differ from those of the other backbone
            (`BackboneSpec.describe`), and raises WeightsError if it is not the one of the training.
        transformations: names of those that it was trained on.
        facts: entry ``adapter`` of the backbone's facts: ``backbone`` and ``method``.
    """

    backbone: str
    function: Callable[[NDArray[np.floating]], NDArray[np.float32]]
    changed: Callable[[Mapping[str, Any], int, int], dict[str, Any]]
    transformations: Sequence[str]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A family of backbones.

    Attributes:
        prefix: the part of a name before the colon.
        names: description of the part after it.
        about: short description of the family.
        loader: ``loader(name, rest, context)`` loads a backbone; ``rest`` is the part after the colon.
        identify: identifies a loader's result without loading, so that later runs need not read the weights. Without
            it, and for families of plug-ins, every run loads its backbones.
        checkpoint: whether weights may come from a local file.
        check: ``check(name, rest)`` raises ConfigError for an invalid name before loading, such as `spec.split` for
            families that support its options; without it, names with options are refused.
        function: ``function(name, rest)`` returns the function that a name refers to.
        derive: ``derive(name)`` tells how embeddings are computed from those of another backbone, which a study then
            does in place of running the network again.
        trained: whether names are paths of files with weights that a study has trained.
        position: place in lists; families of one position are in the order of their registration.
    """

    prefix: str
    names: str
    about: str
    loader: Loader
    identify: Identify | None = None
    checkpoint: bool = False
    check: Callable[[str, str], object] | None = None
    function: Callable[[str, str], Callable[..., Any]] | None = None
    derive: Callable[[str], Derivation] | None = None
    trained: bool = False
    position: int = 100

    @property
    def packaged(self) -> bool:
        """Whether code of this package alone decides what is loaded, and not a plug-in or a function."""
        return self.function is None and in_package(self.loader)


FAMILIES: Registry[Family] = Registry("backbone family", BACKBONES)


def register_family(family: Family) -> None:
    """Register a family of backbones by its prefix. Raises ConfigError if the prefix is taken."""
    FAMILIES.add(family.prefix, family, family.position)


def checkpoint_identity(path: Path | None) -> dict[str, Any] | None:
    """Return the file hashes of a checkpoint: a file or a folder.

    None without a checkpoint, because the weights of a hub may change.
    """
    if path is None:
        return None
    if path.is_file():
        return {"weights": file_hash(path)}
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    return {"weights": {each.relative_to(path).as_posix(): file_hash(each) for each in files}} if files else None


def identify_checkpoint(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    """`Family.identify` of families whose backbones depend on nothing but a checkpoint."""
    del name, rest
    return checkpoint_identity(context.checkpoint)
