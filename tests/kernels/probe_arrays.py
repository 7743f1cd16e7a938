"""What the tests of a probe step share."""

from __future__ import annotations

import torch

from substyle.kernels.probe_heads import Heads, Term

FLOAT, BF16 = torch.float32, torch.bfloat16
INPUTS, OUTPUTS, BATCH = 12, 7, 45
TOLERANCE = {FLOAT: {"atol": 2e-6, "rtol": 1e-4}, BF16: {"atol": 2e-2, "rtol": 2e-2}}


def drawn(seed: int, *shape: int, dtype: torch.dtype = FLOAT, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def classes(seed: int, count: int, most: int) -> torch.Tensor:
    return torch.randint(most, (count,), generator=torch.Generator().manual_seed(seed))


def make_heads(hidden: int, count: int = 4, depth: int = 1) -> Heads:
    generator = torch.Generator().manual_seed(0)
    between = [(hidden, hidden)] * (depth - 1)
    sizes = [(OUTPUTS, INPUTS)] if hidden == 0 else [(hidden, INPUTS), *between, (OUTPUTS, hidden)]
    shapes = [shape for size in sizes for shape in ((count, *size), (count, size[0]))]
    return Heads(*(torch.randn(shape, generator=generator) * 0.3 for shape in shapes))


def draw(seed: int, dtype: torch.dtype = FLOAT) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, INPUTS, generator=generator).to(dtype)
    return x, torch.randint(3, (BATCH,), generator=generator)


def some_terms(kind: str, y: torch.Tensor) -> list[Term]:
    generator = torch.Generator().manual_seed(9)
    weight = (torch.rand(4, BATCH, generator=generator) - 0.3).clamp_min(0.0)
    scale = torch.tensor([0.3, 1.0, 0.0, 2.0])
    return {
        "one": [Term(y)],
        "weights": [Term(y, weight_KB=weight)],
        "two": [Term(y[:20], slice(0, 20), slice(0, 3), scale), Term(y[20:], slice(20, None), slice(3, 6), 1 - scale)],
        "gaps": [Term(y[5:9], slice(5, 9)), Term(y[30:], slice(30, None)), Term(y[:0], slice(30, 30))],
    }[kind]


def assert_same_course(ours: Heads, theirs: Heads, start: Heads, dtype: torch.dtype) -> None:
    """Equal weights; of bfloat16, whose rounding turns the sign of tiny gradients and so of Adam's steps, the distance
    is a small part of the way."""
    for a, b, begin in zip(ours.parameters, theirs.parameters, start.parameters, strict=True):
        if dtype == FLOAT:
            torch.testing.assert_close(a, b, **TOLERANCE[FLOAT])
        else:
            assert (a - b).norm() < 0.1 * (b - begin).norm()
