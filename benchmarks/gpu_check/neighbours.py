"""Part: exact nearest neighbours on the device: by torch, products in pieces and the best of each, and by FAISS."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import Job, Row, correctness, measured, skipped

PART = "neighbours"
PIECE = 1024  # queries whose products with the bank are in memory at once
HELD = 64  # queries that are held against float64 on the CPU
ALLOWED = 1e-5  # by which a neighbour may be less near than the right one


def run(bench: Bench) -> Iterator[Job]:
    """Correctness against float64, and rates: vectors on the device by torch, vectors on the host by the engine."""
    bank, queries = vectors(bench)
    yield "torch", lambda: _torch(bench, bank, queries)
    yield "FAISS on the GPU", lambda: _faiss(bench, bank, queries)
    yield "FAISS on the GPU, tensors", lambda: _tensors(bench, bank, queries)


def vectors(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """Bank and queries of length 1, float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        torch.nn.functional.normalize(torch.randn(count, bench.sizes.dim, generator=generator), dim=1)
        for count in (bench.sizes.bank, bench.sizes.queries)
    )
    return bank, queries


def _name(bench: Bench) -> str:
    return f"{bench.sizes.found} of {bench.sizes.bank:,} × {bench.sizes.dim}, float32"


def _torch(bench: Bench, bank: torch.Tensor, queries: torch.Tensor) -> Iterator[Row]:
    sizes, name = bench.sizes, f"torch, {_name(bench)}"
    there, asked = bank.to(bench.device), queries.to(bench.device)
    yield _correct(name, bank, queries[:HELD], search(there, asked[:HELD], sizes.found)[1].cpu())
    bench.require(5.0)
    timed = partial(bench.clock.seconds, limit=bench.left() / 4, warm=1)
    seconds = timed(lambda: search(there, asked, sizes.found))
    alone = timed(lambda: products(there, asked))
    yield _beside_products(bench, name, seconds, alone)


def _faiss(bench: Bench, bank: torch.Tensor, queries: torch.Tensor) -> Iterator[Row]:
    """The engine's own search, from the host's memory to the host's."""
    sizes, name = bench.sizes, f"the engine's search by FAISS on the GPU, {_name(bench)}, copies included"
    if reason := _no_faiss():
        yield skipped(PART, name, reason)
        return
    from substyle.engine.analysis import neighbors

    base, asked = bank.numpy(), queries.numpy()
    found = torch.from_numpy(neighbors.search(asked[:HELD], base, sizes.found))
    yield _correct(name, bank, queries[:HELD], found)
    bench.require(5.0)

    def by_torch_with_copies() -> torch.Tensor:
        return search(bank.to(bench.device), queries.to(bench.device), sizes.found)[1].cpu()

    # it waits for its end, so that the host's time is that of the device and nothing may be queued ahead of it
    timed = partial(bench.clock.seconds, limit=bench.left() / 4, warm=1, ahead=False, flush=False)
    seconds = timed(lambda: neighbors.search(asked, base, sizes.found))
    by_torch = timed(by_torch_with_copies)
    peers = {"torch, copies included": sizes.queries / by_torch["median"]}
    yield measured(PART, name, "queries", sizes.queries, seconds, peers=peers)


def _tensors(bench: Bench, bank: torch.Tensor, queries: torch.Tensor) -> Iterator[Row]:
    """The engine's search of tensors that lie on the GPU, of float16 cast block by block."""
    sizes = bench.sizes
    if reason := _no_faiss():
        yield skipped(PART, f"the engine's search of tensors, {_name(bench)}", reason)
        return
    from substyle.engine.analysis import neighbors

    asked = queries.to(bench.device)
    whole = bank.to(bench.device)
    alone = bench.clock.seconds(lambda: products(whole, asked), limit=bench.left() / 8, warm=1)
    for kind in (torch.float32, torch.float16):
        there = bank.to(bench.device, kind)
        name = f"the engine's search of tensors, {sizes.found} of {sizes.bank:,} × {sizes.dim}, {str(kind)[6:]}"
        found = neighbors.search_on_gpu(asked[:HELD], there, sizes.found).cpu()
        yield _correct(name, there.float().cpu(), queries[:HELD], found)
        bench.require(5.0)
        work = partial(neighbors.search_on_gpu, asked, there, sizes.found)
        seconds = bench.clock.seconds(work, limit=bench.left() / 4, warm=1, ahead=False, flush=False)
        yield _beside_products(bench, name, seconds, alone)


def _beside_products(bench: Bench, name: str, seconds: dict[str, float], alone: dict[str, float]) -> Row:
    queries = bench.sizes.queries
    top = queries / alone["median"]
    return measured(PART, name, "queries", queries, seconds, ceiling_per_s=top, ceiling="the products alone")


def _no_faiss() -> str:
    """Why FAISS cannot search on a GPU here, "" where it can."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed"
    from substyle.engine.analysis import neighbors

    return "" if neighbors.gpu_resources() is not None else "faiss is built for the CPU here, or sees no GPU"


def _correct(name: str, bank_ND: torch.Tensor, query_QD: torch.Tensor, found_Qk: torch.Tensor) -> Row:
    exact = query_QD.double() @ bank_ND.double().T
    # another neighbour is right where it is as near but for rounding
    best = exact.topk(found_Qk.shape[1]).values
    worst = float((best - exact.gather(1, found_Qk)).abs().max())
    repeated = found_Qk.sort(1).values.diff(dim=1).eq(0).any()
    text = f"worst cosine lost {worst:.1e} (allowed {ALLOWED:g})"
    return correctness(PART, name, worst <= ALLOWED and not repeated, text)


def search(bank_ND: torch.Tensor, query_QD: torch.Tensor, found: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest products of each query and where in the bank they are. Shapes: (Q, k), (Q, k)."""
    parts = [(piece @ bank_ND.T).topk(found) for piece in torch.split(query_QD, PIECE)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def products(bank_ND: torch.Tensor, query_QD: torch.Tensor) -> None:
    """The products of a search, forgotten at once."""
    for piece in torch.split(query_QD, PIECE):
        piece @ bank_ND.T
