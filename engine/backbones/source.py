"""A backbone whose weights are read only where something needs them: what is known of it is kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from substyle.engine.backbones import cache
from substyle.engine.backbones.spec import Backbone, BackboneSpec


class Source:
    """A backbone by the way to load it.

    Args:
        load: reads the weights.
        identity: plain facts that decide what `load` gives, such as the hash of a file of weights; None where nothing
            but loading tells.
    """

    def __init__(self, load: Callable[[], Backbone], identity: dict[str, Any] | None) -> None:
        self._load, self.identity = load, identity

    @staticmethod
    def of(backbone: Backbone) -> Source:
        """A backbone that is loaded already."""
        return Source(lambda: backbone, None)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded when it is first asked for."""
        return self._load()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        if self.identity is None:
            return self._look()
        facts: dict[str, Any] = cache.remember("sources", self.identity, self._look)
        return facts

    def _look(self) -> dict[str, Any]:
        graph = self.backbone.graph
        return {
            "spec": self.backbone.spec.describe(),
            "graph": None if graph is None else hashlib.sha256(graph).hexdigest(),
            "compiled": self.backbone.compiled or self.backbone.module is None,
        }

    @cached_property
    def spec(self) -> BackboneSpec:
        """Its facts, without loading it where they are kept."""
        spec = dict(self._facts["spec"])
        for name in ("mean", "std"):
            red, green, blue = spec[name]
            spec[name] = (red, green, blue)
        return BackboneSpec(**spec)

    @property
    def graph_hash(self) -> str | None:
        """SHA-256 of the graph of a backbone that comes as one."""
        found: str | None = self._facts["graph"]
        return found

    @property
    def compiled(self) -> bool:
        """Whether it is compiled, and not plain arithmetic that runs in torch."""
        return bool(self._facts["compiled"])
