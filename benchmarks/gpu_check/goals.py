"""What an H100 has to reach, and whether the rows of a call say that it does; and counts that must be exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu_check.rows import Row, correctness, skipped

Pick = Callable[[Iterable[float]], float]
CARD = "h100"
MEAN_VARIANT = "us a variant"  # a fact of the row of the whole suite in one pass


@dataclass(frozen=True)
class Goal:
    """A number that has to be reached: at least, or else at most; ``of`` is None of rows about something else."""

    name: str
    wanted: float
    at_least: bool
    pick: Pick  # which one counts where several rows have it
    of: Callable[[Row], float | None]

    def gate(self, rows: Sequence[Row], *, fake: bool, card: str) -> Row:
        """A row that passed or failed on an H100, else one that says that the goal was not measured."""
        name = f"{self.name}, at {'least' if self.at_least else 'most'} {self.wanted:,g}"
        values = [value for row in rows if (value := self.of(row)) is not None]
        if not values:
            return skipped("goals", name, "not measured")
        value = self.pick(values)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        if fake or card != CARD:
            return skipped(
                "goals", name, f"not measured: {shown} {'in a rehearsal on a CPU' if fake else f'on {card}'}"
            )
        lacks = (self.wanted - value if self.at_least else value - self.wanted) / self.wanted
        # written so that what is no number is missed
        return correctness("goals", name, lacks <= 0, shown if lacks <= 0 else f"missed by {lacks:.1%}: {shown}")


def _fact(row: Row, name: str) -> float | None:
    value = row.facts.get(name)
    return float(value) if isinstance(value, int | float) else None


GOALS = (
    Goal(
        "end to end, steady, of the rate of the backbone alone", 0.95, True, max,
        lambda row: row.of_ceiling if row.part == "end_to_end" else None,
    ),
    Goal(  # ImageNet in all variants, 41.3 million embeddings, within an hour, and margin
        "ViT-B/16 end to end, steady, embeddings/s", 12_100.0, True, max,
        lambda row: row.per_s if row.part == "end_to_end" and row.name.startswith("ViT-B/16") else None,
    ),
    Goal("mean variant, styles included, us", 3.0, False, min, lambda row: _fact(row, MEAN_VARIANT)),
    Goal(
        "epoch of 200 linear heads on 39.7 million embeddings, s, fastest batch", 5.0, False, min,
        lambda row: _fact(row, "s an epoch"),
    ),
    Goal(
        "TensorRT, of the rate of torch.compile, every network measured", 1.0, True, min,
        lambda row: row.times_faster.get("torch.compile") if "TensorRT, bf16" in row.name else None,
    ),
)  # fmt: skip


def gates(rows: Sequence[Row], *, fake: bool, card: str) -> list[Row]:
    return [goal.gate(rows, fake=fake, card=card) for goal in GOALS]


def counted(part: str, name: str, found: Mapping[str, int], expected: Mapping[str, int]) -> Row:
    """A row of counts that are known beforehand: it fails where one is not exact."""
    wrong = [f"{found.get(what, 0):,} {what}, expected {n:,}" for what, n in expected.items() if found.get(what) != n]
    return correctness(part, name, not wrong, "; ".join(wrong), **found)
