"""Half widths of the intervals of claims before a study is run.

Differences between networks deviate from their mean by transformation and by photograph. Standard deviations are those
of kept studies, by ``python -m benchmarks.forecast``; widths scale with the roots of both numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from substyle.engine.probes.resampling import StudentsT
from substyle.engine.results.statistics import FEWEST_DECIDED, correlation_interval
from substyle.pipelines.transforms.names import count_families
from substyle.pipelines.transforms.style import by_generator

NORMAL = 1.959964
Range = tuple[float, ...]  # 5 %, 50 % and 95 % of pairs of networks


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of a difference, in accuracy: of one transformation, and of one photograph."""

    transformation: Range
    photograph: Range

    def half(self, transformations: int, photographs: int) -> Range:
        """Half widths of 95 % intervals over both."""
        t = float(stdtrit(transformations - 1, 0.975)) / math.sqrt(transformations)
        z = NORMAL / math.sqrt(photographs)
        return tuple(math.hypot(t * a, z * b) for a, b in zip(self.transformation, self.photograph, strict=True))


@dataclass(frozen=True)
class OverGenerators:
    """Standard deviations of a difference on the styles of unseen generators: of one generator, of one photograph."""

    generator: Range
    photograph: Range

    def half(self, generators: int, photographs: int) -> Range:
        """Half widths of 95 % intervals over generators, as trained on and as tested, and photographs."""
        n, m = math.sqrt(generators), math.sqrt(photographs)
        return tuple(
            StudentsT.of((a / n, generators), (b / m, photographs)).half_width(95.0)
            for a, b in zip(self.generator, self.photograph, strict=True)
        )


_STYLES = 3  # of a generator that trains, by default
# benchmarks/results/forecast.json
STYLE = Deviations((0.059, 0.124, 0.217), (0.040, 0.081, 0.130))
GENERATORS = OverGenerators((0.063, 0.149, 0.202), (0.032, 0.077, 0.124))
HEADS = Deviations((0.023, 0.030, 0.046), (0.035, 0.050, 0.064))


@dataclass(frozen=True)
class Forecast:
    """The half width that the interval of a claim will have.

    Attributes:
        claim: claims that compare this, such as ``C1, C3``.
        what: the score whose differences it compares, or the correlation.
        unit: of the half width: points of accuracy (as a fraction), or a number.
        half: its half width, of 5 %, 50 % and 95 % of pairs in kept studies; None: unknown.
        remark: why it is unknown.
    """

    claim: str
    what: str
    unit: Literal["points", "number"]
    half: Range | None = None
    remark: str = ""


def forecasts(transformations: Sequence[str], photographs: int, networks: int) -> list[Forecast]:
    """Forecast the claims of a study.

    Args:
        transformations: those of the suite; severities of one count as one.
        photographs: number of test photographs.
        networks: number of trained networks.
    """
    count = count_families(transformations)
    if count < 3 or photographs < 2:
        return []
    generators = sum(len(styles) >= _STYLES for styles in by_generator(transformations).values())
    unseen = GENERATORS.half(generators, photographs) if generators > 2 else None
    low, high = correlation_interval(0.0, max(networks, FEWEST_DECIDED))
    rank = ((high - low) / 2,) * 3 if networks >= FEWEST_DECIDED else None
    few = f"undecided with fewer than {FEWEST_DECIDED} networks"
    return [
        Forecast("C1, C3", "transformation accuracy of two networks", "points", STYLE.half(count, photographs)),
        Forecast("C2", "styles of unseen generators", "points", unseen, "" if unseen else "requires three generators"),
        Forecast("C4", "MLP minus linear", "points", HEADS.half(count, photographs)),
        Forecast("C6", "rank correlation", "number", rank, "" if rank else few),
    ]
