"""Probes one after the other, each a module with its own AdamW: what most evaluation scripts do."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.probes_data import Best, Outcome, Problem, head


def train(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]]) -> Outcome:
    """Train a head for each setting."""
    began = time.perf_counter()
    trained: list[tuple[torch.nn.Module, Best]] = []
    for lr, decay in settings:
        torch.manual_seed(0)
        module, best = head(hidden), Best()
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay, fused=True)
        for done, rows in enumerate(problem.batches):
            optimizer.param_groups[0]["lr"] = lr * problem.rate(done)
            loss = cross_entropy(module(problem.x_RD[rows]), problem.y_R[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if done + 1 in problem.evaluate_at:
                module.eval()
                with torch.no_grad():
                    best.offer(module, module(problem.x_RD[problem.val_R]), problem.y_R[problem.val_R])
                module.train()
        trained.append((module, best))
    spent = time.perf_counter() - began

    def score(i: int) -> float:
        module, best = trained[i]
        return best.test(module, problem)

    return Outcome([best.accuracy for _, best in trained], spent, score)
