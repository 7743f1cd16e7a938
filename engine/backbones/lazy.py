"""Backbones that are loaded on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones.spec import Backbone, BackboneSpec


class LazyBackbone:
    """A backbone that is loaded on first use. Its facts are cached by identity.

    Args:
        load: loads the backbone.
        identity: plain facts that determine the result of `load`, such as the hash of a file of weights; None if
            unknown without loading.
    """

    def __init__(self, load: Callable[[], Backbone], identity: dict[str, Any] | None) -> None:
        self._load, self.identity = load, identity

    @staticmethod
    def of(backbone: Backbone) -> LazyBackbone:
        """Wrap a loaded backbone."""
        return LazyBackbone(lambda: backbone, None)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first access."""
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
            "members": [member.describe() for member in self.backbone.members],
        }

    @cached_property
    def spec(self) -> BackboneSpec:
        """Facts of the backbone, from the cache if available."""
        return _spec(self._facts["spec"])

    @cached_property
    def members(self) -> tuple[BackboneSpec, ...]:
        """Facts of the backbones whose embeddings it concatenates; itself if it is a single one."""
        return tuple(map(_spec, self._facts["members"])) or (self.spec,)

    @property
    def graph_hash(self) -> str | None:
        """SHA-256 of the graph of a graph backbone; None for modules."""
        found: str | None = self._facts["graph"]
        return found

    @property
    def compiled(self) -> bool:
        """Whether it is compiled, unlike plain arithmetic, which runs in torch."""
        return bool(self._facts["compiled"])


def _spec(described: dict[str, Any]) -> BackboneSpec:
    """The inverse of `BackboneSpec.describe`, through JSON."""
    levels = {name: tuple(described[name]) for name in ("mean", "std")}
    return BackboneSpec(**{**described, **levels})
