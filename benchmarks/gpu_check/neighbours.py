"""Part: exact nearest neighbours on the device, by torch: products in pieces, and the best of each."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row, correctness, skipped

PART = "neighbours"
PIECE = 1024  # queries whose products with the bank are in memory at once
HELD = 64  # queries that are held against float64 on the CPU


def run(bench: Bench) -> Iterator[Job]:
    """Correctness against float64, the rate beside that of the products alone, and what FAISS could do here."""
    yield "torch, exact", lambda: _rows(bench)
    yield "FAISS on the GPU", lambda: [skipped(PART, "FAISS on the GPU", _faiss())]


def _rows(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        torch.nn.functional.normalize(torch.randn(count, sizes.dim, generator=generator), dim=1)
        for count in (sizes.bank, sizes.queries)
    )
    name = f"{sizes.found} of {sizes.bank:,} × {sizes.dim}, float32"
    there, asked = bank.to(bench.device), queries.to(bench.device)
    _, found = search(there, asked[:HELD], sizes.found)
    exact = queries[:HELD].double() @ bank.double().T
    best = exact.topk(sizes.found).values
    # equal but for rounding: another neighbour is right where it is as near
    worst = float((best - exact.gather(1, found.cpu())).abs().max())
    yield correctness(PART, name, worst <= 1e-5, f"worst cosine lost {worst:.1e} (allowed 1e-05)")
    bench.require(5.0)
    seconds = bench.clock.seconds(lambda: search(there, asked, sizes.found), limit=bench.left() / 2)
    alone = bench.clock.seconds(lambda: products(there, asked), limit=bench.left() / 2)
    yield Row(
        PART, name, MEASURED, unit="queries", per_s=sizes.queries / seconds["median"], seconds=seconds,
        ceiling_per_s=sizes.queries / alone["median"], ceiling="the products alone",
    )  # fmt: skip


def search(bank_ND: torch.Tensor, query_QD: torch.Tensor, found: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest products of each query and where in the bank they are. Shapes: (Q, k), (Q, k)."""
    parts = [(piece @ bank_ND.T).topk(found) for piece in torch.split(query_QD, PIECE)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def products(bank_ND: torch.Tensor, query_QD: torch.Tensor) -> None:
    """The products of a search, forgotten at once."""
    for piece in torch.split(query_QD, PIECE):
        piece @ bank_ND.T


def _faiss() -> str:
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed"
    return "the engine's neighbours run on the CPU; there is no GPU path to check yet"
