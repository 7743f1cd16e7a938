"""Probes trained jointly in a ModuleDict, losses summed, one AdamW, as DINOv2 trains its grid of linear heads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.probes_data import Outcome, Problem, accuracy, head


def train(problem: Problem, hidden: int, settings: Sequence[tuple[float, float]], *, bf16: bool = False) -> Outcome:
    """Train one head per setting; with ``bf16``, the GEMMs of the forward and backward pass run in bfloat16."""
    began = time.perf_counter()
    torch.manual_seed(0)
    heads = torch.nn.ModuleDict({f"head{i}": head(hidden) for i in range(len(settings))})
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
    modules = list(heads.values())
    validation = [accuracy(module, problem, problem.val_R) for module in modules]
    spent = time.perf_counter() - began
    return Outcome(validation, spent, lambda i: accuracy(modules[i], problem, problem.test_R))
