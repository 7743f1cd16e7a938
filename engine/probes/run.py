"""Train, score and save all probes of one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine import devices
from substyle.engine.observability import ProgressBar, stage
from substyle.engine.probes.batches import Features
from substyle.engine.probes.calibration import calibrate
from substyle.engine.probes.checkpoint import save_probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import hold
from substyle.engine.probes.leave_one_out import LeaveOneOut, report_redrawn, report_rotation, rotate, whole_task
from substyle.engine.probes.linear import Linear
from substyle.engine.probes.mlp import JOINT, report_multitask, train_multitask
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.single_task import Single, report, train_single
from substyle.engine.probes.tasks import Task, class_task, identity, kind_task, transformation_task
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.dispatch import threads
from substyle.kernels.probe_heads import Heads

_PASSES = 600  # estimated passes of a linear probe, resamples included, for the progress bar


def run_probes(
    table: EmbeddingTable,
    config: ProbeConfig,
    *,
    out_dir: Path | None,
    quiet: bool = False,
    metadata: Mapping[str, Any] | None = None,
    multitask: bool = True,
) -> ProbeOutcome:
    """Train and score all probes of a backbone.

    Args:
        table: embeddings, in memory or in a store.
        config: settings of probes.
        out_dir: folder for the trained probes, ``<task>-<head>.safetensors``; None writes nothing.
        quiet: hide progress.
        metadata: additional JSON entries of the probes' headers (suite, canvas).
        multitask: whether to train the multi-task probe, if it is one of the tasks.

    Returns:
        the backbone's part of results.json and per-image scores. Tasks with fewer than two classes are None.

    Raises:
        ConfigError: the device is not available, or the embeddings do not fit.
        SubstyleError: an empty split, no identity variant, or embeddings that are not finite.
    """
    identity(table)
    names = [name for name in config.tasks if multitask or name != "multitask"]
    run = _Run(table, config, names, out_dir, dict(metadata or {}), quiet)
    with (
        threads(config.threads),
        stage(f"probes {table.backbone}", run.total, "steps", estimated=True, quiet=quiet) as bar,
    ):
        for name in names:
            if name == "multitask":
                run.multitask(bar)
            else:
                run.single(name, bar)
    return ProbeOutcome(
        run.results,
        run.scores,
        tuple(table.keys[n] for n in run.images),
        table.transformations,
        table.kind,
        table.roles,
        config.bootstrap,
        config.seed,
        run.by_resample,
        None if run.scored_group_N is None else tuple(run.scored_group_N.tolist()),
        config.resample_by,
    )


@dataclass
class _Run:
    table: EmbeddingTable
    config: ProbeConfig
    names: Sequence[str]
    folder: Path | None
    metadata: dict[str, Any]
    quiet: bool
    results: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    by_resample: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self.table.rows(TEST)
        seed = self.config.seed
        self.tasks: dict[str, Task | None] = {
            "transformation": transformation_task(self.table, seed),
            "kind": kind_task(self.table, seed) if "kind" in self.names else None,
            "class": class_task(self.table, seed),
        }
        device = devices.resolve(self.config.device).torch_device
        self.held = hold(self.table, self.config, device, quiet=self.quiet)
        self.metadata["table"] = self.held.how
        self.group_N = self.table.groups(self.config.resample_by)
        scored_group_N = self.group_N[self.images]
        alone = len(np.unique(scored_group_N)) == len(scored_group_N)
        self.scored_group_N = None if alone and self.config.resample_by == "photograph" else scored_group_N

    @property
    def total(self) -> int:
        """Estimated steps of MLPs and passes of linear heads, if MLPs are settled at once."""
        each = {"linear": _PASSES, "mlp": 3 * self.config.mlp_steps}
        total = 0
        for name in self.names:
            if name == "multitask":
                total += 3 * self.config.multitask_steps if self.tasks["transformation"] and self.tasks["class"] else 0
            elif self.tasks[name]:
                total += sum(each[head] for head in self.config.heads)
        return total

    def features(self, task: Task) -> Features:
        """Features standardised for a task."""
        return Features.of_task(self.held, task, self.config)

    def single(self, name: str, bar: ProgressBar) -> None:
        """Train a task with each head, and the rotation and equal-width probes that follow linear ones."""
        task = self.tasks[name]
        if task is None:
            self.results[name] = None
            return
        features = self.features(task)
        self.results[name] = {}
        for head in self.config.heads:
            single = self._head(name, head, task, features, bar)
            if isinstance(single.probe, Linear) and name == "kind":
                self._rotate(single.probe, bar)
            if isinstance(single.probe, Linear) and name == "transformation" and self._has_equal_width:
                narrow = features.projected(self.config.expert.equal_width, self.config.seed)
                single = self._train("equal_transformation/linear", narrow, task, "linear", bar)
                self._equal_width["transformation"] = report(self.table, single, self.config, self.scored_group_N)

    def multitask(self, bar: ProgressBar) -> None:
        """Train the multi-task probe and its twins."""
        transformation, class_ = self.tasks["transformation"], self.tasks["class"]
        if transformation is None or class_ is None:
            self.results["multitask"] = None
            return
        bar.note("multitask")
        features = self.features(transformation)
        joint = train_multitask(features, transformation, class_, self.config, self.images, bar.advance)
        self.results["multitask"] = report_multitask(self.table, joint, self.config, self.scored_group_N)
        self.scores |= {f"multitask/{name}": score_TN for name, score_TN in joint.scores_TN.items()}
        trained = joint.made[JOINT].trained
        setting = trained.setting.describe() | {"task_weight": self.config.task_weight}
        tasks = [transformation, replace(class_, first=len(transformation.labels))]
        self._save("multitask", "mlp", trained.heads, features, tasks, setting)

    def _head(self, name: str, head: str, task: Task, features: Features, bar: ProgressBar) -> Single:
        """Train, score and save a head of a task."""
        bar.note(f"{name} {head}")
        single = self._train(f"{name}/{head}", features, task, head, bar)
        self.results[name][head] = report(self.table, single, self.config, self.scored_group_N)
        self._save(name, head, single.probe.heads, features, [task], single.probe.describe()["setting"])
        return single

    def _train(self, score: str, features: Features, task: Task, head: str, bar: ProgressBar) -> Single:
        single = train_single(
            features, task, head, self.config, images=self.images, group_N=self.group_N, advance=bar.advance
        )
        self.scores[score] = single.scores.mean_TN
        if single.training_ST is not None:
            self.by_resample[score] = single.training_ST
        return single

    def _rotate(self, made: Linear, bar: ProgressBar) -> None:
        task = whole_task(self.table, self.config.seed)
        if task is None or self.config.rotate == "none":
            return
        bar.note("rotation")
        features = self.features(task)

        def rotation_of(rows: Features, redraws: int) -> LeaveOneOut:
            given = (rows, task, made.C, self.config, self.images)
            return rotate(*given, redraws=redraws, tolerance=made.loosest_tolerance, advance=bar.advance)

        rotation = rotation_of(features, self.config.redraws)
        self.scores["rotation/linear"] = rotation.score_TN
        self.results["kind_rotation"] = {
            "linear": report_rotation(self.table, rotation, self.config, self.scored_group_N)
        }
        self.results["kind_redrawn"] = {"linear": report_redrawn(rotation)}
        if self._has_equal_width:
            rotation = rotation_of(features.projected(self.config.expert.equal_width, self.config.seed), 0)
            self.scores["equal_rotation/linear"] = rotation.score_TN
            self._equal_width["rotation"] = report_rotation(self.table, rotation, self.config, self.scored_group_N)

    @property
    def _has_equal_width(self) -> bool:
        return 0 < self.config.expert.equal_width < self.table.width

    @property
    def _equal_width(self) -> dict[str, Any]:
        """Results at equal width."""
        entry: dict[str, Any] = self.results.setdefault("equal_width", {"dim": self.config.expert.equal_width})
        return entry

    def _save(
        self,
        name: str,
        head: str,
        heads: Heads,
        features: Features,
        tasks: Sequence[Task],
        setting: Mapping[str, Any],
    ) -> None:
        """Calibrate a probe and write it to the folder, if there is one."""
        calibration = {task.name: calibrate(features, task, heads, self.config) for task in tasks}
        results = self.results[name] if name == "multitask" else self.results[name][head]
        results["calibration"] = calibration
        if self.folder is not None:
            save_probe(
                self.folder / f"{name}-{head}.safetensors",
                heads,
                features.standard,
                task=name,
                head=head,
                outputs={task.name: task.labels for task in tasks},
                backbone=self.table.backbone,
                setting=setting,
                calibration=calibration,
                extra=self.metadata,
            )
