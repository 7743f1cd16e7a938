"""The stages `extractability` and `complexity`, which train further probes with the settings of the probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from substyle.engine import devices
from substyle.engine.extensions.extractability import complexity_section, section
from substyle.engine.extensions.extractability.codelength import grow
from substyle.engine.extensions.extractability.complexity import architectures, report, train_sizes
from substyle.engine.extensions.extractability.config import ComplexityConfig, ExtractabilityConfig
from substyle.engine.extensions.extractability.control_tasks import control, shuffled
from substyle.engine.observability import stage
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import hold
from substyle.engine.probes.linear import Linear, fit_linear, training_rows_of
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.tasks import Advance, class_task, transformation_task
from substyle.engine.stages.probes import probe_config, probe_settings
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.dispatch import threads

C = TypeVar("C")
TASKS = {"transformation": transformation_task, "class": class_task}
_PASSES = 1200  # estimated passes of control tasks and growing training sets, for the progress bar


class _MoreProbes(JsonStage[C]):
    """Probes with the settings of the probes of the same run."""

    alike = True

    def inputs(self, run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The settings of probes; those of loaded results if the run has none."""
        return {"probes": probe_settings(run, unit, before)}


class ExtractabilityStage(_MoreProbes[ExtractabilityConfig]):
    """Measure how easily the labels of transformations and classes are extracted, by the heads of the probes."""

    name = "extractability"
    version = 4
    config = ExtractabilityConfig
    backbone_results = section.Results
    report = section

    def compute(self, run: Run, config: ExtractabilityConfig, unit: Unit, folder: Path) -> None:
        """Write the measures of each task and head."""
        probes = probe_config(run)
        with (
            threads(probes.threads),
            stage(f"extractability {unit.name}", len(TASKS) * _PASSES, "steps", quiet=run.quiet) as bar,
        ):
            self.write(folder, extractability(run.tables[unit.name], probes, config, bar.advance))

    def lines(self, result: JSON) -> Iterator[str]:
        """Bits per label of each task."""
        for task, heads in result.items():
            if "linear" in heads:
                yield f"{task}  {heads['linear']['codelength']['bits']['value']:.3f} bits per label"


class ComplexityStage(_MoreProbes[ComplexityConfig]):
    """Train probes of every depth and width on transformations and classes."""

    name = "complexity"
    version = 4
    config = ComplexityConfig
    backbone_results = complexity_section.Results
    report = complexity_section

    def compute(self, run: Run, config: ComplexityConfig, unit: Unit, folder: Path) -> None:
        """Write the scores of each architecture."""
        probes, count = probe_config(run), len(architectures(config))
        steps = 3 * len(TASKS) * probes.mlp_steps
        with (
            threads(probes.threads),
            stage(f"complexity {unit.name}, {count} sizes", steps, "steps", quiet=run.quiet) as bar,
        ):
            self.write(folder, complexity(run.tables[unit.name], probes, config, bar.advance))

    def lines(self, result: JSON) -> Iterator[str]:
        """Accuracies of each architecture."""
        for name, row in result.items():
            yield f"{name}  transformation {row['transformation']['value']:.3f}  class {row['class']['value']:.3f}"


def extractability(
    table: EmbeddingTable, probes: ProbeConfig, config: ExtractabilityConfig, advance: Advance = lambda count: None
) -> JSON:
    """Measure tasks and heads of the probes.

    Returns:
        results by task and head; tasks with fewer than two classes are left out.
    """
    device = devices.resolve(probes.device).torch_device
    held, found = hold(table, probes, device), JSON()
    groups = table.groups(probes.resample_by)  # training photographs may be alike where test photographs are not
    for name, make in TASKS.items():
        task = make(table, probes.seed) if name in probes.tasks else None
        if task is None:
            continue
        features, found[name] = Features.of_task(held, task, probes), JSON()
        for head in probes.heads:
            if head == "mlp":
                mlp = train_mlp(features, task, probes, advance=advance)
                found[name][head] = {"selectivity": control(features, task, mlp, probes, groups, None, advance)}
                continue
            made = fit_linear(features, task, probes, advance=advance)
            basis = CovarianceBasis.of(training_rows_of(features, task))
            found[name][head] = {
                "selectivity": control(features, task, made, probes, groups, basis, advance),
                **grow(features, task, made, probes, table.rows(TEST), groups, basis, config.orders, advance),
                "shuffled": shuffled(features, task, made, probes, basis, advance),
            }
    return found


def complexity(
    table: EmbeddingTable, probes: ProbeConfig, config: ComplexityConfig, advance: Advance = lambda count: None
) -> JSON:
    """Train probes of every size on both tasks.

    Returns:
        results by architecture; empty if a task has fewer than two classes.
    """
    device = devices.resolve(probes.device).torch_device
    held, images, sizes = hold(table, probes, device), table.rows(TEST), {}
    for name, make in TASKS.items():
        task = make(table, probes.seed)
        if task is None:
            return {}
        features = Features.of_task(held, task, probes)
        linear: Linear | None = fit_linear(features, task, probes, advance=advance) if 0 in config.depths else None
        groups = table.groups(probes.resample_by)[images]
        sizes[name] = train_sizes(features, task, linear, config, probes, images, groups, advance)
    return report(table, sizes["transformation"], sizes["class"], config)


EXTRACTABILITY = register_stage(ExtractabilityStage())
COMPLEXITY = register_stage(ComplexityStage())
