"""By workers on the machines of a Ray cluster, each with a GPU or some cores to itself.

Ray places the workers and carries messages. Nothing of size goes through its object store: workers read photographs and
write chunks and journal records themselves, so all machines must see the source and the store under the same paths.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from substyle.engine import identity
from substyle.engine.backbones import cache
from substyle.engine.embed_config import BackboneChoice, EmbedConfig
from substyle.engine.executors.cluster import Cluster, joined
from substyle.engine.executors.config import ExecutorConfig
from substyle.engine.executors.crew import Crew
from substyle.engine.executors.task import Task
from substyle.engine.executors.worker import Order
from substyle.engine.progress import stage
from substyle.engine.store import lock
from substyle.pipelines.plugins import loaded


@contextmanager
def ray_executor(
    config: ExecutorConfig, embed: EmbedConfig, backbones: Sequence[BackboneChoice]
) -> Iterator[RayExecutor]:
    """An executor whose cluster is joined for the block.

    Args:
        embed: as `ExecutorConfig.here` gives it.
        backbones: that workers load.

    Raises:
        ClusterError: it cannot be.
    """
    need = {"CPU": float(embed.cores), **({"GPU": 1.0} if embed.on_gpu else {})}
    with joined(config, need) as cluster:
        cluster.workers(config, most=1)  # better refused now than after minutes of preparation
        if not embed.on_gpu and (gpus := cluster.gpus()):
            print(
                f"{gpus} GPUs of the cluster are not used: this machine, which prepares, computes on cpu",
                file=sys.stderr,
            )
        yield RayExecutor(config, cluster, backbones)


@dataclass(frozen=True)
class RayExecutor:
    """Embeds by workers of a cluster; see `ray_executor`."""

    config: ExecutorConfig
    cluster: Cluster
    backbones: Sequence[BackboneChoice]

    def run(self, task: Task, *, quiet: bool) -> None:
        """Fill all shards of a task.

        Raises:
            ShardsError: shards that failed on `retries` further workers as well; all others are filled.
            SubstyleError: no worker could begin, or too much failed for the rest to be tried.
        """
        if not task.todo.lacking:
            return
        title, todo = task.plan.title, task.todo
        with stage(title, todo.total, "embeddings", done=todo.done, quiet=quiet) as bar:
            crew = Crew(self.config, self.cluster, task, self._order(task), bar)
            try:
                crew.work()
            finally:
                crew.stop()
                with lock.mutex(task.store.path):
                    task.store.tidy()  # what a worker that was killed has left
        crew.require_all()

    def _order(self, task: Task) -> Order:
        plan = task.plan
        store = plan.store_path
        return Order(
            folder=os.getcwd(),
            cache=str(cache.root().absolute()),
            plugins=loaded(),
            sources=tuple(identity.entry_of(source, plan.splits()) for source in (plan.source, *plan.others)),
            store=Path(os.path.abspath(store)) if isinstance(store, Path) else store,
            part=plan.part,
            run=task.run,
            backbones=tuple(self.backbones),
            settings=plan.workshop.settings,
            config=plan.workshop.config,
        )
