"""Eager float32 torch: the reference of the gate, and the runtime of controls that are plain arithmetic."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from substyle.engine.arriving import Arriving, Canvas
from substyle.engine.backbones.runtimes.exact import exact
from substyle.engine.backbones.started import Joined


class TorchModule:
    """A module with the canvas interface, run eagerly in float32.

    Args:
        module: takes uint8 (B, S, S, 3), returns (B, D) float32.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, module: nn.Module) -> None:
        # channels_last is the layout the canvas has; convolutions on a CPU are about twice as fast in it
        self.module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B to (B, D) float32."""
        with torch.inference_mode():
            return np.asarray(self.module(torch.as_tensor(canvas_BSSC)).float().numpy())


class TorchOnDevice:
    """A module run eagerly in float32 on a device; it works in the background where that is a GPU.

    Args:
        module: as of `TorchModule`; it is copied.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        exact()
        self.module, self.device = copy.deepcopy(module).eval().to(device), device

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B, on the device or the host, to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Arriving:
        """The same, queued on the current stream. Nobody may write to the canvas until it has ended."""
        canvas = torch.as_tensor(canvas_BSSC)
        # constants that a forward pass makes for itself are to lie where its canvas does
        with torch.inference_mode(), self.device:
            return Arriving.of(self.module(canvas.to(self.device)).float(), held=canvas)


class TorchThreads:
    """A module in the background: a batch is cut among threads of which each computes alone.

    Threads of torch's own meet after every operation, which takes long while others use the cores; these never meet.

    Args:
        module: as of `TorchModule`; an image's embedding does not depend on its neighbours.
        threads: how many work side by side.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        self.module, self.threads = TorchModule(module), threads
        self._pool = _single_threads(threads)

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Joined:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        size = -(-len(canvas_BSSC) // self.threads)
        parts = [canvas_BSSC[start : start + size] for start in range(0, len(canvas_BSSC), size)]
        return Joined([self._pool.submit(self.module, part) for part in parts])


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads on which torch uses no others."""
    before = torch.get_num_threads()
    all_there = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)  # holds for the thread that says it, and for threads that torch has not seen yet
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="substyle-torch")
    for started in [pool.submit(alone) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)
    return pool
