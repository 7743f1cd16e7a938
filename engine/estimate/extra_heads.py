"""Grids of heads that are off by default: probe complexity, and heads on tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from substyle.engine.estimate.networks import NetworkFacts
from substyle.engine.estimate.probes import ProbedTable
from substyle.engine.estimate.roofline import Device
from substyle.engine.probes import complexity
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import token_grid, token_shapes

EXTRA = "token heads, probe complexity"


@dataclass(frozen=True)
class ExtraHeads:
    """Heads of one kind for one task, which train at once on one backbone.

    Attributes:
        kind: ``complexity`` (MLPs of all sizes), ``attentive`` or ``efficient``.
        heads: number of heads K in the grid; parameters: of all of them.
        memory_bytes: weights and optimiser states.
        seconds: on one GPU, of the first training and of the best setting of each architecture with twice the steps;
            later doublings, scoring and launches are left out.
    """

    backbone: str
    task: str
    kind: str
    heads: int
    parameters: int
    memory_bytes: float
    seconds: float


def extra_heads(
    name: str, facts: NetworkFacts, table: ProbedTable, config: ProbeConfig, device: Device
) -> Iterator[ExtraHeads]:
    """The grids on a backbone."""
    for task, (classes, _) in table.tasks().items():
        sizes = complexity.architectures(config).values() if config.complexity and task != "coarse" else ()
        counts = [complexity.mlp_parameters(*size, table.width, classes) for size in sizes]
        settings = len(config.mlp_learning_rates) * len(config.mlp_weight_decays)
        # of an architecture and row: forward, and gradients of weights and of inputs
        grids: list[tuple[str, int, int, list[int], float, float]] = [
            ("complexity", config.mlp_steps, settings, counts, 6.0 * sum(counts), 2.0 * table.width)
        ]
        for head in config.token_heads if facts.tokens else ():
            tokens = token_grid(config, head, table.width)
            counts = [sum(map(math.prod, token_shapes(head, tokens[0].groups, table.width, classes)))]
            flop = 8.0 * tokens[0].groups * facts.dim + 6.0 * table.width * (table.width + classes)
            grids.append((head, config.attentive_steps, len(tokens), counts, flop, 8.0 * facts.dim))
        for kind, steps, settings, counts, flop, row in grids if task in config.tasks else ():
            first, best = (
                device.seconds(n * config.batch * flop, 2 * n * complexity.BYTES * sum(counts) + config.batch * row)
                for n in (settings, 1)
            )
            size, seconds = settings * sum(counts), steps * (first + 2 * best)
            if size:
                heads = settings * len(counts)
                yield ExtraHeads(name, task, kind, heads, size, float(complexity.BYTES * size), seconds)
