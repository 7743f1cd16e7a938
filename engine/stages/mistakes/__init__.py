"""The most confident mistakes of probes, with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle.engine.config import Study
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.results.model import HEADS
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.mistakes import section
from substyle.engine.stages.mistakes.section import ByTask
from substyle.engine.stages.pictures import current_variants
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit, each_backbone
from substyle.engine.stages.stamp import Note, note_of
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable

_CHUNK = 4096  # rows predicted at once
_Pictures = Mapping[tuple[str, str], NDArray[np.uint8]]  # pixels by transformation and key


@dataclass(frozen=True)
class MistakesConfig:
    """Settings of the stage.

    Attributes:
        shown: number of mistakes of each probe.
    """

    shown: int = 6


class MistakesStage(JsonStage[MistakesConfig]):
    """Most confident mistakes of the first saved transformation probe, and of the class probe on original photographs.

    Pictures of them are drawn again from the photographs; a row without ``picture`` is of a photograph that is gone or
    has changed. Controls are left out.
    """

    name = "mistakes"
    version = 2
    config = MistakesConfig
    backbone_results = ByTask
    in_reports = True
    reads = ("probes",)
    report = section

    def of(self, study: Study) -> MistakesConfig | None:
        """The default, unless the report shows no photographs."""
        return MistakesConfig() if study.gallery else None

    def units(self, run: Run, config: MistakesConfig) -> Iterable[Unit]:
        """Backbones with probes that are no controls."""
        chosen = [name for name in run.tables if not run.store.backbone(name).facts["spec"]["control"]]
        return [unit for unit in each_backbone(run) if unit.name in chosen and _probes(run, unit) is not None]

    def inputs(self, run: Run, config: MistakesConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The probes."""
        note = _probes(run, unit)
        return {"probes": note and note.files}

    def compute(self, run: Run, config: MistakesConfig, unit: Unit, folder: Path) -> bool:
        """Write mistakes and pictures. Incomplete if pictures are missing: the photographs may come back."""
        by_backbone, pictures = run.once(self.name, partial(self._drawn, run, config))
        found = by_backbone[unit.name]
        for i, row in enumerate(_rows(found)):
            pixels = pictures.get((row["transformation"], row["key"]))
            if pixels is not None:
                Image.fromarray(pixels).save(folder / f"{i}.png")
                row["picture"] = f"{unit.folder}/{i}.png"
        self.write(folder, found)
        return all("picture" in row for row in _rows(found))

    def _drawn(self, run: Run, config: MistakesConfig) -> tuple[Mapping[str, JSON], _Pictures]:
        """Mistakes by backbone, and pictures of all of them, which are drawn in one pass."""
        found = {unit.name: _mistakes(run, unit, config.shown) for unit in run.outdated}
        rows = [row for each in found.values() for row in _rows(each)]
        return found, _pictures(run.store, next(iter(run.tables.values())), rows)


STAGE = MistakesStage()


def _probes(run: Run, unit: Unit) -> Note | None:
    return note_of(folder_of(PROBES, run, unit))


def _mistakes(run: Run, unit: Unit, shown: int) -> JSON:
    """Mistakes of a backbone's probes by task."""
    table, note, found = run.tables[unit.name], _probes(run, unit), {}
    for task, chosen in (
        ("transformation", range(len(table.transformations))),
        ("class", [table.transformations.index("identity")]),
    ):
        paths = [probe_file(run.out, unit.name, task, head) for head in HEADS]
        if path := next((path for path in paths if note is not None and path.name in note.files), None):
            probe = Probe.load(path)
            found[task] = most_confident(probe, table, chosen, shown)
    return found


def most_confident(probe: Probe, table: EmbeddingTable, transformations: Sequence[int], shown: int) -> dict[str, Any]:
    """List test variants that a probe of one task gets most confidently wrong; equal confidences in table order.

    Args:
        transformations: indices of the transformations.
        shown: maximum number of variants.

    Returns:
        ``{"head", "scored", "wrong", "rows"}``: numbers of scored and of wrong test variants, and the list.
    """
    test_N = table.rows(TEST)
    t_R, n_R = np.repeat(np.asarray(transformations), len(test_N)), np.tile(test_N, len(transformations))
    scored = wrong = 0
    rows: list[dict[str, Any]] = []
    for start in range(0, len(t_R), _CHUNK):
        t_B, n_B = t_R[start : start + _CHUNK], n_R[start : start + _CHUNK]
        truth_B, predicted_B, confidence_B = probe.judge(table, t_B, n_B)
        scored_B = np.array([truth is not None for truth in truth_B], np.bool_)
        wrong_W = np.flatnonzero(scored_B & (truth_B != predicted_B))
        scored, wrong = scored + int(scored_B.sum()), wrong + len(wrong_W)
        rows += [
            {
                "key": table.keys[n_B[i]],
                "transformation": table.transformations[t_B[i]],
                "truth": truth_B[i],
                "predicted": predicted_B[i],
                "confidence": float(confidence_B[i]),
            }
            for i in wrong_W[np.argsort(-confidence_B[wrong_W], kind="stable")[:shown]]
        ]
        rows = sorted(rows, key=lambda row: -row["confidence"])[:shown]
    return {"head": probe.metadata["head"], "scored": scored, "wrong": wrong, "rows": rows}


def _rows(of_backbone: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for part in of_backbone.values() for row in part["rows"]]


def _pictures(
    store: EmbeddingStore, table: EmbeddingTable, rows: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """Pixels by transformation and key."""
    wanted = {(row["transformation"], row["key"]) for row in rows}
    if not wanted:
        return {}
    place = {key: n for n, key in enumerate(table.keys)}
    n_M = np.array(sorted({place[key] for _, key in wanted}), np.int64)
    names = [name for name in table.transformations if any(name == chosen for chosen, _ in wanted)]
    drawn = current_variants(store, table, n_M, names)
    return {(name, key): pixels for name, key, pixels in drawn if (name, key) in wanted}
