"""What every part is given: device, sizes, clock, and the ceilings of the card, measured when first asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from benchmarks.harness import Timing
from substyle.engine.backbones.runtimes.torch_compile import Mode
from substyle.engine.estimate.roofline import DEVICES, Device, card_of

FLUSH = 1 << 28  # bytes written between repeats: more than any L2 cache there is
_AHEAD = 1_000_000  # cycles, about half a millisecond: by then the host has queued what is to be timed


@dataclass(frozen=True)
class Sizes:
    """How much is done: the defaults are those of a GPU, `TINY` those of a test."""

    repeats: int = 20
    copied: int = 1 << 30  # bytes
    gemm: int = 8192
    canvas: int = 224
    images: int = 256
    checked: int = 8  # of the images, against the CPU
    rows: int = 1024
    width: int = 1280
    classes: int = 31
    linear_heads: int = 52
    epoch_heads: int = 200
    epoch_batches: tuple[int, ...] = (1024, 2048, 4096)
    table_rows: int = 1 << 21  # of embeddings that an epoch's steps gather from
    mlp_heads: int = 16
    hidden: int = 2048
    networks: tuple[tuple[str, str], ...] = (
        ("ViT-B/16", "vit_base_patch16_224"),
        ("ResNet-50", "resnet50"),
        ("ViT-L/14", "vit_large_patch14_clip_224"),
    )
    mode: Mode = "default"  # of torch.compile
    compared: int = 64  # images whose embeddings are held against float32
    bank: int = 500_000
    queries: int = 4096
    found: int = 50  # neighbours
    dim: int = 768


TINY = Sizes(
    repeats=2, copied=1 << 16, gemm=32, canvas=32, images=3, checked=2, rows=24, width=16, classes=4, linear_heads=3,
    epoch_heads=4, epoch_batches=(24,), table_rows=100, mlp_heads=2, hidden=8, networks=(("test ViT", "test_vit"),),
    mode="off", compared=6, bank=300, queries=20, found=5, dim=16,
)  # fmt: skip


class OutOfTime(Exception):
    """The part's share of the time is spent."""


class Clock:
    """Times work.

    Args:
        device: where the work runs.
        repeats: timed runs of each piece of work.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self._flush: torch.Tensor | None = None

    def seconds(
        self,
        work: Callable[[], object],
        *,
        warm: int = 3,
        limit: float = 20.0,
        flush: bool = True,
        ahead: bool = True,
        calls: int = 1,
        stream: torch.cuda.Stream | None = None,
    ) -> dict[str, float]:
        """Median, 20th and 80th percentile of one call over the repeats, and how many repeats there were.

        Args:
            work: what is timed; on a GPU it queues work on the stream.
            warm: runs before the first that counts.
            limit: seconds after which no further repeat is begun; one is always made.
            flush: whether the L2 cache is emptied before each repeat.
            ahead: whether the host may queue work before the clock starts, so that short work is timed and not the
                host; not for work of many launches, in which the host's time is part of the price.
            calls: calls of one repeat.
            stream: the stream the work goes to, the current one when left out.
        """
        for _ in range(warm):
            work()
        self.synchronize()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < self.repeats and (not times or time.perf_counter() - began < limit):
            on_gpu = self.device.type == "cuda"
            spent = self._on_gpu(work, flush, ahead, calls, stream) if on_gpu else _on_cpu(work, calls)
            times.append(spent / calls)
        return asdict(Timing.of(times))

    def _on_gpu(
        self, work: Callable[[], object], flush: bool, ahead: bool, calls: int, stream: torch.cuda.Stream | None
    ) -> float:
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            if flush:
                if self._flush is None:
                    self._flush = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
                self._flush.zero_()
            if ahead:
                torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _on_cpu(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - began


class Bench:
    """The device of a run and its clock.

    Args:
        device: what is checked.
        sizes: how much is done.
        name: name of the card that a CPU stands for in a rehearsal.
    """

    def __init__(self, device: torch.device, sizes: Sizes, *, name: str = "cpu") -> None:
        self.device, self.sizes, self._stands_for = device, sizes, name
        self.clock = Clock(device, sizes.repeats)
        self.deadline = float("inf")  # of the part that runs, by time.monotonic

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def require(self, seconds: float) -> None:
        if self.left() < seconds:
            raise OutOfTime(f"{max(self.left(), 0.0):.0f} s of this part's time were left, {seconds:.0f} s are needed")

    @cached_property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self._stands_for

    @cached_property
    def card(self) -> str | None:
        return card_of(self.name)

    @property
    def sheet(self) -> Device | None:
        """Its data sheet, None for a card that is not known."""
        return DEVICES[self.card] if self.card else None

    @cached_property
    def copying(self) -> dict[str, float]:
        """Seconds of a copy of ``sizes.copied`` bytes on the device."""
        source = torch.zeros(self.sizes.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.clock.seconds(lambda: target.copy_(source))

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a copy moves: what it reads and what it writes."""
        return 2 * self.sizes.copied / self.copying["median"]

    @cached_property
    def multiplying(self) -> dict[str, float]:
        """Seconds of a bf16 product of two square matrices of side ``sizes.gemm``."""
        side = self.sizes.gemm
        a, b = (torch.randn(side, side, device=self.device).to(torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        return self.clock.seconds(lambda: torch.mm(a, b, out=out), flush=False)

    @property
    def gemm_flops(self) -> float:
        return 2.0 * self.sizes.gemm**3 / self.multiplying["median"]
