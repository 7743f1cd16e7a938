"""What an H100 has to reach, and whether the rows of a call say that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.gpu_check.rows import Row
from benchmarks.harness import markdown
from substyle.pipelines.transforms.registry import suite

Pick = Callable[[Iterable[float]], float]
CARD = "h100"
MEAN_VARIANT = "us a variant"  # a fact of rows of several variants


@dataclass(frozen=True)
class Goal:
    """A number that has to be reached: at least, or else at most; ``of`` is None of rows about something else."""

    name: str
    wanted: float
    at_least: bool
    pick: Pick  # which one counts where several rows have it
    of: Callable[[Row], float | None]

    def verdict(self, rows: Sequence[Row], *, fake: bool = False, card: str = CARD) -> str:
        """``met``, ``missed by`` a share of the goal, or ``not measured``, as in a rehearsal and on other cards."""
        values = [value for row in rows if (value := self.of(row)) is not None]
        if not values:
            return "not measured"
        value = self.pick(values)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        if fake or card != CARD:
            return f"not measured: {shown} {'in a rehearsal on a CPU' if fake else f'on {card}'}"
        lacks = (self.wanted - value if self.at_least else value - self.wanted) / self.wanted
        return f"met: {shown}" if lacks <= 0 else f"missed by {lacks:.1%}: {shown}"


def _fact(row: Row, name: str) -> float | None:
    value = row.facts.get(name)
    return float(value) if isinstance(value, int | float) else None


def _mean_variant(row: Row) -> float | None:
    whole = row.name.startswith(f"{len(suite('substance31'))} variants in one pass")
    return _fact(row, MEAN_VARIANT) if whole and row.part == "pixels" else None


GOALS = (
    Goal(
        "end to end, steady, of the rate of the backbone alone", 0.95, True, max,
        lambda row: row.of_ceiling if row.part == "end_to_end" else None,
    ),
    Goal(  # ImageNet in all variants, 41.3 million embeddings, within an hour, and margin
        "ViT-B/16 end to end, steady, embeddings/s", 12_100.0, True, max,
        lambda row: row.per_s if row.part == "end_to_end" and row.name.startswith("ViT-B/16") else None,
    ),
    Goal("mean variant, styles included, us", 3.0, False, min, _mean_variant),
    Goal(
        "epoch of 200 linear heads on 39.7 million embeddings, s, fastest batch", 5.0, False, min,
        lambda row: _fact(row, "s an epoch"),
    ),
    Goal(
        "TensorRT, of the rate of torch.compile, every network measured", 1.0, True, min,
        lambda row: row.times_faster.get("torch.compile") if "TensorRT, bf16" in row.name else None,
    ),
)  # fmt: skip


def table(rows: Sequence[Row], *, fake: bool, card: str = CARD) -> str:
    return markdown(
        ("goal on an H100", "", "verdict"),
        (
            (g.name, f"at {'least' if g.at_least else 'most'} {g.wanted:,g}", g.verdict(rows, fake=fake, card=card))
            for g in GOALS
        ),
    )
