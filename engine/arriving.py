"""Tensors on their way from a device to the host, and the order between threads that share a GPU.

On the CPU everything here is there at once. On a GPU work is queued on streams: an event tells when what one thread has
queued is done, and nobody waits for more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Arriving:
    """A tensor on its way to the host.

    Attributes:
        host: where it arrives; pinned memory for one that comes from a GPU.
        done: the event after its copy, None where it is there.
        held: what its computation reads, held until `result` has been asked for: memory of other libraries is not
            torch's to keep.
    """

    host: torch.Tensor
    done: torch.cuda.Event | None = None
    held: object = None

    @staticmethod
    def of(tensor: torch.Tensor, copies: torch.cuda.Stream | None = None, held: object = None) -> Arriving:
        """Begin to copy what the current stream has computed or will have.

        Args:
            tensor: of the CPU, and then nobody may write to it, or of a GPU.
            copies: the stream of the copy, so that the current one need not wait for it; the current one if None.
            held: see above.
        """
        if not tensor.is_cuda:
            return Arriving(tensor)  # it is there, and nothing is read any more
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here = torch.cuda.current_stream(tensor.device)
        stream = here if copies is None else copies
        if copies is not None:
            copies.wait_stream(here)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory is not given to others before the copy has ended
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(stream)
        return Arriving(host, done, held)

    def result(self) -> NDArray[Any]:
        """Wait for it."""
        if self.done is not None:
            self.done.synchronize()
        return self.host.numpy()


def made(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """An event after all that this thread has queued so far where the tensor lies; None on the CPU."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def after(event: torch.cuda.Event | None, device: torch.device) -> None:
    """Let what this thread queues from here on wait for an event; the thread itself goes on."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """The block queues its work on a stream of its own, behind nobody else's; on the CPU there are none."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


# (B, S, S, 3) uint8; a tensor may lie on the device of the runtime that takes it
Canvas = NDArray[np.uint8] | torch.Tensor
