"""Settings of the stage of other photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from substyle.engine.config import Study
from substyle.engine.store.layout import ResampleBy
from substyle.pipelines.sources import absolute_root
from substyle.pipelines.validation import validated

TASKS = ("transformation", "kind", "class")  # whose probes are scored on domains


@validated("shift")
class ShiftConfig:
    """Settings of the stage.

    Attributes:
        folders: photographs of ``[shift]`` by name; classes unknown to a probe are ignored.
        corruptions: suite in which the study's test photographs are embedded; empty for none.
        domains: photographs of ``[domains]`` by name.
        own: name of the study, whose photographs are a domain too.
        tasks: tasks of the probes that are scored on domains.
        max_images: maximum number of photographs for the sensitivity, as in the analysis.
        bootstrap, resample_by, seed: of the intervals.
    """

    folders: dict[str, Path | str]
    corruptions: str
    domains: dict[str, Path | str]
    own: str
    tasks: tuple[str, ...]
    max_images: int
    bootstrap: int
    resample_by: ResampleBy
    seed: int

    @classmethod
    def of(cls, study: Study) -> ShiftConfig | None:
        """The settings of a study; None without other photographs."""
        if not (study.shift or study.corruptions or study.domains):
            return None
        probes = study.probes
        return cls(
            folders=_absolute(study.shift),
            corruptions=study.corruptions,
            domains=_absolute(study.domains),
            own=study.name,
            tasks=tuple(task for task in probes.tasks if task in TASKS),
            max_images=study.analysis.max_images,
            bootstrap=probes.bootstrap,
            resample_by=probes.resample_by,
            seed=probes.seed,
        )

    @property
    def shifts(self) -> tuple[str, ...]:
        """Names of all shifts: other photographs, and the corruptions."""
        return (*self.folders, *([self.corruptions] if self.corruptions else []))


def _absolute(folders: Mapping[str, Path | str]) -> dict[str, Path | str]:
    return {name: absolute_root(str(folder)) for name, folder in folders.items()}
