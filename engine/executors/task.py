"""What an executor is given, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from substyle.engine.loop import EmbedSummary
from substyle.engine.plan import EmbedPlan
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.todo import Todo


@dataclass(frozen=True)
class Task:
    """A store that is prepared and owned, and what it lacks.

    Attributes:
        store: open for writing; plan: what it is filled with; entries: its groups of the plan's backbones, in order.
        run: id of the run that owns it.
        todo: the shards to fill.
        summary: to which the executor adds what it does.
    """

    store: EmbeddingStore
    plan: EmbedPlan
    entries: Sequence[BackboneEntry]
    run: str
    todo: Todo
    summary: EmbedSummary


class Executor(Protocol):
    """Fills the shards of a task."""

    def run(self, task: Task, *, quiet: bool) -> None:
        """Fill them all; what is finished is kept whatever happens. Raises what went wrong."""
        ...
