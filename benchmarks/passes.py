"""How many passes over the training rows do linear probes take, and in which arithmetic?

    python -m benchmarks.passes STORE [--out benchmarks/results/passes.json]

The linear probes of each backbone of a store are fitted as `run` fits them on a GPU, twice: with rows that are
gathered, and with rows as stored in float16. Passes do not depend on the hardware:
`engine/estimate/probes.py` has their means over backbones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import harness
from substyle.engine.probes import leave_one_out, linear, objective
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.run import run_probes
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.kernels import split_products
from substyle.pipelines.storage import place

NAME = "passes"
QUESTION = "how many passes over the training rows do linear probes take, and in which arithmetic?"
ARITHMETIC = {torch.float32: "fp32", torch.float64: "fp64"}
Counts = dict[str, float]
STATISTICS = "control:statistics"  # takes several times as many passes as others, over narrow rows
Totals = dict[tuple[str, str], Counts]


def counted(table: EmbeddingTable, config: ProbeConfig, *, stored: bool = False) -> Totals:
    """Counts of one backbone by task and kind of fit: ``fits``, passes by arithmetic, and the mean of ``heads`` in a
    pass, as a fraction of those that the fit began with.

    Args:
        stored: read rows as stored, however few of the photographs are for training; these passes are ``stored``.
    """
    found: Totals = defaultdict(lambda: defaultdict(float))
    with (
        _watched(found),
        patch.object(split_products, "available", return_value=stored),
        patch.object(objective, "DENSE", 0.0),
    ):
        run_probes(table, replace(config, expert=replace(config.expert, precision="bf16")), out_dir=None, quiet=True)
    for counts in found.values():
        counts["heads"] /= counts["stored"] + _passes(counts)
    return {key: dict(counts) for key, counts in found.items()}


def _passes(counts: Counts) -> float:
    return sum(counts[name] for name in ARITHMETIC.values())


def both(table: EmbeddingTable, config: ProbeConfig) -> Totals:
    """Counts with gathered rows; of the same fits to rows as stored, ``stored`` passes and those ``after`` them."""
    found, as_stored = (counted(table, config, stored=stored) for stored in (False, True))
    more = {key: {"stored": own["stored"], "after": _passes(own)} for key, own in as_stored.items()}
    return {key: counts | more[key] for key, counts in found.items()}


@contextmanager
def _watched(found: Totals) -> Iterator[None]:
    fit, search, now = linear.fit_heads, objective.Objective.__call__, [("", "", 1)]

    def watched_fit(rows: Any, config: Any, Cs: Any, start: Any = None, *tolerance: Any, **kw: Any) -> Any:  # noqa: ANN401
        grid = "grid" if len(Cs) > 1 else "single"  # an extension of the grid, or a smaller tolerance
        kind = "resamples" if rows.image_KN is not None else grid if start is None or len(Cs) == 1 else "tightened"
        if (rows.variant_KT != rows.variant_KT[0]).any():
            kind = "rotation"
        narrow = "equal_" if rows.features.projection is not None else ""
        now[0] = narrow + rows.task.name, kind, len(Cs)
        found[now[0][:2]]["fits"] += 1
        return fit(rows, config, Cs, start, *tolerance, **kw)

    def watched_pass(own: Any, u_KP: Any, heads: Any) -> Any:  # noqa: ANN401
        counts = found[now[0][:2]]
        stored = isinstance(own, objective.StoredObjective)
        counts["stored" if stored else ARITHMETIC[own.features.dtype]] += 1
        counts["heads"] += len(heads) / now[0][2]
        return search(own, u_KP, heads)

    with (
        patch.object(linear, "fit_heads", watched_fit),
        patch.object(leave_one_out, "fit_heads", watched_fit),
        patch.object(objective.Objective, "__call__", watched_pass),
    ):
        yield


def rows_of(store: EmbeddingStore) -> list[dict[str, Any]]:
    config = ProbeConfig(tasks=("transformation", "kind", "class"), heads=("linear",), device="cpu", threads=1)
    rows = []
    for entry in store.backbones():
        table = load_table(store, entry.name)
        for (task, kind), counts in both(table, config).items():
            rows.append({"backbone": entry.name, "task": task, "kind": kind, **counts})
            print(rows[-1], flush=True)
    return rows


def means(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean passes over rows as stored and fraction of heads in one, as `engine.estimate.probes.PASSES`.

    Without those of `STATISTICS`.
    """
    own = [row for row in rows if row["backbone"] != STATISTICS]
    every = len({row["backbone"] for row in own})
    found = {}
    for key in dict.fromkeys((row["task"], row["kind"]) for row in own):
        these = [row for row in own if (row["task"], row["kind"]) == key]
        narrow = len(these) if key[0].startswith("equal_") and key[1] != "single" else every  # a backbone may be narrow
        passes = [row.get("fp32", 0.0) + row.get("fp64", 0.0) for row in these]
        heads = sum(row["heads"] * each for row, each in zip(these, passes, strict=True)) / sum(passes)
        found[key] = sum(row["stored"] for row in these) / narrow, heads
    return found


def main() -> None:
    command = harness.parser(NAME, __doc__)
    command.add_argument("store", help="a store of embeddings")
    options = command.parse_args()
    rows = rows_of(EmbeddingStore.open(place(options.store)))
    harness.write(options.out, harness.document(NAME, QUESTION, rows=rows))
    for key, mean in means(rows).items():
        print(f"    {key}: ({', '.join(f'{each:.4g}' for each in mean)}),")


if __name__ == "__main__":
    main()
