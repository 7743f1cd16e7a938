"""How much of a transformation an embedding knows: regression of the parameters that were drawn for each variant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.base_config import BootstrapConfig
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.ridge import Response, cells_of, regressed
from substyle.engine.probes.tasks import images_of
from substyle.engine.stages.parameters import section
from substyle.engine.stages.parameters.section import ByTransformation
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.catalog import Definition
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.names import family
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.validation import validated

FEWEST = 3  # values of a parameter
_CODES = {"page", "photo", "kind"}  # parameters that choose among assets or cases, and are no quantities


@validated("parameters")
class ParametersConfig(BootstrapConfig):
    """Regression of the parameters of transformations: how much blur, which angle, which quality."""


class ParametersStage(JsonStage[ParametersConfig]):
    """Predict the parameters of each transformation by ridge regression on the embeddings of its variants.

    Parameters are drawn again from the seed of the store, as they were for the variants. Severities of a transformation
    (``name@1``, …) are rows of one regression. The penalty is selected on the validation photographs.
    """

    name = "parameters"
    version = 2
    config = ParametersConfig
    alike = True
    backbone_results = ByTransformation
    report = section

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Warn of a table that finds nothing."""
        if self.of(study) is None or families(suite(study.suite)):
            return []
        return [f"[parameters] does nothing: no transformation of {study.suite} has a numeric parameter"]

    def units(self, run: Run, config: ParametersConfig) -> Iterable[Unit]:
        """Backbones of stores whose variants were made here: parameters of imported ones are unknown."""
        if run.store.has_manifest() and any(each.kind == "imported" for each in run.store.manifest().sources):
            return []
        return [unit for unit in super().units(run, config) if families(run.tables[unit.name].transformations)]

    def compute(self, run: Run, config: ParametersConfig, unit: Unit, folder: Path) -> None:
        """Write the scores. Raises DifferentError if the definition of a transformation has changed."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        table = run.tables[unit.name]
        # drawn values depend on definitions alone
        run.store.require_definitions([Definition(base.get(name).describe()) for name in table.transformations])
        with threadpool_limits(1):  # the same numbers on any number of cores
            self.write(folder, parameters(table, run.store.settings.seed, config))

    def lines(self, result: JSON) -> Iterator[str]:
        """R² and error of each parameter."""
        for transformation, own in result["by_transformation"].items():
            for parameter, score in own.items():
                known = "–" if score["r2"] is None else f"{score['r2']['value']:.2f}"
                error = f"{score['error']['value']:.3g} {score['unit']}".rstrip()
                yield f"{transformation}: {parameter}  R² {known}  error {error}"


STAGE = ParametersStage()


def response_of(parameter: base.Parameter) -> Response | None:
    """The target of a parameter; None for several numbers, fewer than three values, and choices of assets."""
    if parameter.name in _CODES:
        return None
    if isinstance(parameter, base.Choice):
        number = all(isinstance(value, int | float) for value in parameter.values)
        few = len(set(parameter.values)) < FEWEST and not parameter.severity
        return None if not number or few else Response(parameter.name, parameter.unit, 0.0)
    if parameter.count > 1:
        return None
    turn = 2 * parameter.high if parameter.signed else parameter.high - parameter.low
    whole = parameter.low == 0 or parameter.signed
    angle = parameter.unit.startswith("degree") and turn in (180.0, 360.0)
    phase = turn == 1.0 and (parameter.name == "phase" or parameter.unit == "cell")
    return Response(parameter.name, parameter.unit, float(turn) if whole and (angle or phase) else 0.0)


def families(names: Sequence[str]) -> dict[str, tuple[list[int], list[Response]]]:
    """Indices of the columns of each transformation, of all its severities, and its parameters.

    Raises ConfigError for a transformation that is not defined here.
    """
    load_all()
    if unknown := [name for name in names if not base.is_known(family(name))]:
        allowed = "one that is defined: pass the suite file or the plug-in that defines it with --plugin"
        raise ConfigError("transformation", unknown[0], allowed)
    columns: dict[str, list[int]] = {}
    for t, name in enumerate(names):
        columns.setdefault(family(name), []).append(t)
    found = {}
    for name, own in columns.items():
        targets = [target for each in base.get(name).parameters if (target := response_of(each)) is not None]
        if targets:
            found[name] = own, targets
    return found


def parameters(table: EmbeddingTable, seed: int, config: ParametersConfig) -> JSON:
    """Scores of all parameters on the test photographs.

    Variants that equal the original, or show motifs of another split, are left out.

    Returns:
        results of `ByTransformation`.
    """
    key_N = image_keys(seed, list(table.keys))
    splits = images_of(table, np.ones(len(table.keys), np.bool_), config.seed)
    found: dict[str, Any] = {}
    for name, (columns, targets) in families(table.transformations).items():
        drawn = [base.get(table.transformations[t]).values(key_N) for t in columns]
        value_TN = {each.name: np.stack([of[each.name] for of in drawn]).astype(np.float64) for each in targets}
        known = [target for target in targets if len(np.unique(value_TN[target.name])) >= FEWEST]
        cells = [list(cells_of(table, columns, rows)) for rows in splits]
        if known and all(cells):
            scores = regressed(
                table,
                known,
                value_TN,
                cells,
                bootstrap=config.bootstrap,
                seed=config.seed,
                resample_by=config.resample_by,
            )
            found[name] = {target.name: score for target, score in scores}
    return {"by_transformation": found, **asdict(config)}
