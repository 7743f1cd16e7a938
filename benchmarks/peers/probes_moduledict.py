"""Probes side by side in a ModuleDict, losses summed, one AdamW: how DINOv2 trains its grid of linear heads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.probes_data import Best, Outcome, Problem, head


def train(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]], *, bf16: bool = False) -> Outcome:
    """Train a head for each setting; with ``bf16`` the GEMMs of the forward and backward pass run in bfloat16."""
    began = time.perf_counter()
    torch.manual_seed(0)
    heads = torch.nn.ModuleDict({f"head{i}": head(hidden) for i in range(len(settings))})
    best = [Best() for _ in settings]
    groups = [
        {"params": module.parameters(), "lr": lr, "weight_decay": decay}
        for module, (lr, decay) in zip(heads.values(), settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    for done, rows in enumerate(problem.batches):
        for group, (lr, _) in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = lr * problem.rate(done)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x, y = problem.x_RD[rows], problem.y_R[rows]
            loss = torch.stack([cross_entropy(module(x), y) for module in heads.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if done + 1 in problem.evaluate_at:
            heads.eval()
            x, y = problem.x_RD[problem.val_R], problem.y_R[problem.val_R]
            with torch.no_grad():
                for module, own in zip(heads.values(), best, strict=True):
                    own.offer(module, module(x), y)
            heads.train()
    spent = time.perf_counter() - began
    pairs = list(zip(heads.values(), best, strict=True))

    def score(i: int) -> float:
        module, own = pairs[i]
        return own.test(module, problem)

    return Outcome([own.accuracy for own in best], spent, score)
