"""Trains, scores and saves every probe of one backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import target
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.held import hold
from substyle.engine.probes.multitask import JOINT, report_multitask, train_multitask
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.probes.rotation import report_rotation, rotate
from substyle.engine.probes.saved import save_probe
from substyle.engine.probes.single import Single, report, train_single
from substyle.engine.probes.tasks import Task, coarse_task, fine_task, identity, semantic_task
from substyle.engine.progress import Bar, stage
from substyle.engine.table import TEST, EmbeddingTable

OUTPUT = {"fine": "transformation", "coarse": "coarse", "semantic": "class"}  # what a task's softmax is called


def run_probes(
    table: EmbeddingTable,
    config: ProbeConfig,
    *,
    out_dir: Path | None,
    quiet: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> ProbeOutcome:
    """Train and score all probes of a backbone.

    Args:
        table: its embeddings, in memory or in a store.
        config: what to train and how.
        out_dir: folder for the trained probes, ``<task>-<head>.safetensors``; None writes nothing.
        quiet: show no progress.
        metadata: more for the probes' headers, in plain JSON (suite, canvas).

    Returns:
        the backbone's part of results.json and its per-image scores. A task that the table cannot pose (fewer than two
        answers to choose from) is None.

    Raises:
        ConfigError: a device that is not there, or one that has no room for the embeddings.
        SubstyleError: an empty split, no identity variant, embeddings that are not finite.
    """
    identity(table)
    run = _Run(table, config, out_dir if config.save else None, dict(metadata or {}), quiet)
    with _threads(config.threads), stage(f"probes {table.backbone}", run.total, "steps", quiet=quiet) as bar:
        for name in config.tasks:
            if name == "multitask":
                run.multitask(bar)
            else:
                run.single(name, bar)
    return ProbeOutcome(
        run.results,
        run.scores,
        tuple(table.keys[n] for n in run.images),
        table.transformations,
        table.coarse,
        table.roles,
        config.bootstrap,
        config.seed,
    )


@dataclass
class _Run:
    table: EmbeddingTable
    config: ProbeConfig
    folder: Path | None
    metadata: dict[str, Any]
    quiet: bool = True
    results: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self.table.rows(TEST)
        seed = self.config.seed
        self.tasks: dict[str, Task | None] = {
            "fine": fine_task(self.table, seed),
            "coarse": coarse_task(self.table, seed) if "coarse" in self.config.tasks else None,
            "semantic": semantic_task(self.table, seed),
        }
        device = target.resolve(self.config.device, prefix="probes.").torch_device
        self.held = hold(self.table, self.config, device, quiet=self.quiet)
        self.metadata["table"] = self.held.how

    @property
    def total(self) -> int:
        """Steps of all trainings at full length (a rotation counts one training)."""
        each = {"linear": self.config.steps, "mlp": self.config.mlp_steps}
        total = 0
        for name in self.config.tasks:
            if name == "multitask":
                total += self.config.multitask_steps if self.tasks["fine"] and self.tasks["semantic"] else 0
            elif self.tasks[name]:
                total += sum(each[head] for head in self.config.heads)
        return total

    def single(self, name: str, bar: Bar) -> None:
        """Train one task with each head, and the rotation after the coarse one."""
        task = self.tasks[name]
        if task is None:
            self.results[name] = None
            return
        made = {}
        for head in self.config.heads:
            bar.note(f"{name} {head}")
            made[head] = train_single(self.held, task, head, self.config, self.images, bar.advance)
            self.scores[f"{name}/{head}"] = made[head].scores.mean_TN
            self._save(name, head, made[head])
        self.results[name] = {head: report(self.table, one, self.config) for head, one in made.items()}
        if name == "coarse" and self.config.rotate:
            self._rotate(made, bar)

    def multitask(self, bar: Bar) -> None:
        """Train the multi-task probe and its twins."""
        fine, semantic = self.tasks["fine"], self.tasks["semantic"]
        if fine is None or semantic is None:
            self.results["multitask"] = None
            return
        bar.note("multitask")
        joint = train_multitask(self.held, fine, semantic, self.config, self.images, bar.advance)
        self.results["multitask"] = report_multitask(self.table, joint, self.config)
        self.scores |= {f"multitask/{name}": score_TN for name, score_TN in joint.scores_TN.items()}
        if self.folder is not None:
            trained = joint.trained[JOINT]
            save_probe(
                self.folder / "multitask-mlp.safetensors",
                trained.heads,
                joint.standard,
                task="multitask",
                head="mlp",
                outputs={OUTPUT["fine"]: fine.labels, OUTPUT["semantic"]: semantic.labels},
                backbone=self.table.backbone,
                setting=trained.setting.describe() | {"lambda": trained.setting.lam},
                extra=self.metadata,
            )

    def _rotate(self, made: Mapping[str, Single], bar: Bar) -> None:
        rotated = {}
        for head in self.config.rotate_heads:
            if head in made:
                bar.note(f"rotation {head}")
                turned = rotate(self.held, head, made[head].trained, self.config, self.images)
                if turned is not None:
                    rotated[head] = report_rotation(self.table, turned, self.config)
                    self.scores[f"coarse_rotation/{head}"] = turned.score_TN
        self.results["coarse_rotation"] = rotated or None

    def _save(self, name: str, head: str, one: Single) -> None:
        if self.folder is not None:
            save_probe(
                self.folder / f"{name}-{head}.safetensors",
                one.trained.heads,
                one.standard,
                task=name,
                head=head,
                outputs={OUTPUT[name]: one.task.labels},
                backbone=self.table.backbone,
                setting=one.trained.setting.describe(),
                extra=self.metadata,
            )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
