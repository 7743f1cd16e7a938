"""Several layers of one network, computed in one pass.

They are compiled and gated as one backbone whose embedding concatenates theirs, and stored as separate backbones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.spec import AsyncResult
from substyle.engine.cuda import Canvas


def members(compiled: CompiledBackbone) -> list[CompiledBackbone]:
    """Return the backbones whose embeddings a compiled backbone concatenates; itself if it is a single one."""
    if len(compiled.members) < 2:
        return [compiled]
    shared, first = MultiOutput(compiled), 0
    runtime = {**compiled.runtime, "computed_with": compiled.spec.name}
    found = []
    for number, spec in enumerate(compiled.members):
        embed = OutputMember(shared, number, slice(first, first + spec.dim))
        first += spec.dim
        rate = compiled.rate * len(compiled.members)  # its share of a pass
        found.append(replace(compiled, spec=spec, embed=embed, runtime=runtime, rate=rate, members=(spec,)))
    return found


class MultiOutput:
    """A compiled backbone with several members.

    Pending results are kept as long as their canvas, so that a canvas passed to each member in turn is computed once.
    """

    def __init__(self, compiled: CompiledBackbone) -> None:
        self.compiled = compiled
        self._begun: Any = WeakIdKeyDictionary()  # _Begun by canvas; untyped in torch

    def start(self, canvas_BSSC: Canvas, number: int) -> _Begun:
        """Start a canvas, or return its pending result. Do not modify it until all members have received it."""
        begun: _Begun | None = self._begun.get(canvas_BSSC)
        if begun is None or number in begun.taken:
            begun = self._begun[canvas_BSSC] = _Begun(self.compiled.start(canvas_BSSC))
        begun.taken.add(number)
        if len(begun.taken) == len(self.compiled.members):
            del self._begun[canvas_BSSC]
        return begun


class OutputMember:
    """One backbone of a `MultiOutput`.

    Args:
        shared: the compiled backbone.
        number: which member it is.
        columns: its part of the concatenated embedding.
    """

    def __init__(self, shared: MultiOutput, number: int, columns: slice) -> None:
        self.shared, self.number, self.columns = shared, number, columns

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """Embed a canvas: (B, S, S, 3) uint8 to (B, D) float32. The canvas may be modified afterwards."""
        return self.shared.compiled.embed(canvas_BSSC)[:, self.columns]

    def start(self, canvas_BSSC: Canvas) -> AsyncResult:
        """Start embedding in the background, for this and the other members."""
        return _Output(self.shared.start(canvas_BSSC, self.number), self.columns)


class _Begun:
    """A batch in flight."""

    def __init__(self, running: AsyncResult) -> None:
        self._running = running
        self._embedded_BD: NDArray[np.float32] | None = None
        self.taken: set[int] = set()

    def result(self) -> NDArray[np.float32]:
        """Wait for the embeddings of all members. Shape: (B, D) float32."""
        if self._embedded_BD is None:
            self._embedded_BD = self._running.result()
        return self._embedded_BD


class _Output:
    def __init__(self, begun: _Begun, columns: slice) -> None:
        self.begun, self.columns = begun, columns

    def result(self) -> NDArray[np.float32]:
        return self.begun.result()[:, self.columns]
