"""In this process, one shard after the other."""

from __future__ import annotations

from collections.abc import Sequence

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.executors.task import Task
from substyle.engine.loop import Loop, Watch
from substyle.engine.progress import Bar, stage


class LocalExecutor:
    """Embeds by backbones that are compiled in this process."""

    def __init__(self, compiled: Sequence[CompiledBackbone]) -> None:
        self.compiled = compiled

    def run(self, task: Task, *, quiet: bool) -> None:
        """Fill all shards of a task in order; the first error ends it."""
        todo = task.todo
        loop = Loop(task.store, task.plan, task.entries, self.compiled, task.summary, task.run)
        with stage(task.plan.title, todo.total, "embeddings", done=todo.done, quiet=quiet) as bar:
            loop.run(todo.lacking.items(), _Shown(bar))


class _Shown(Watch):
    """Shows on a bar what has arrived."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def arrived(self, count: int) -> None:
        self.bar.advance(count)
