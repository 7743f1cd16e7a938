"""Probes trained in turn, each a module with its own AdamW, as in most evaluation scripts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.probes_data import Outcome, Problem, accuracy, head


def train(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]]) -> Outcome:
    """Train one head per setting."""
    began = time.perf_counter()
    modules, validation = [], []
    for lr, decay in settings:
        torch.manual_seed(0)
        module = head(hidden)
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay, fused=True)
        for done, rows in enumerate(problem.batches):
            optimizer.param_groups[0]["lr"] = lr * problem.rate(done)
            loss = cross_entropy(module(problem.x_RD[rows]), problem.y_R[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        modules.append(module)
        validation.append(accuracy(module, problem, problem.val_R))
    spent = time.perf_counter() - began
    return Outcome(validation, spent, lambda i: accuracy(modules[i], problem, problem.test_R))
