"""Memory that others own, held until the device has read it.

A tensor of torch's own may be dropped as soon as its last reader is queued: torch gives its memory to nobody before the
stream has come that far. Memory of another library, seen through DLPack, goes back to that library when its tensor is
dropped, whatever torch's streams still have to read, and ``Tensor.record_stream`` does nothing for it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch


class Held:
    """Objects whose memory streams have yet to read.

    Args:
        most: how many groups of objects wait at most; for one more, the oldest group's readers are waited for, so that
            a host that runs far ahead of the device cannot fill its memory.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._waiting: deque[tuple[torch.cuda.Event, tuple[Any, ...]]] = deque()

    def until(self, stream: torch.cuda.Stream, *objects: Any) -> None:  # noqa: ANN401 - whatever owns memory
        """Hold objects until all that is queued on the stream by now has ended."""
        read = torch.cuda.Event()  # type: ignore[no-untyped-call]
        read.record(stream)
        self._waiting.append((read, objects))
        while self._waiting and self._waiting[0][0].query():  # type: ignore[no-untyped-call]
            self._waiting.popleft()
        while len(self._waiting) > self.most:
            self._waiting[0][0].synchronize()
            self._waiting.popleft()

    def __len__(self) -> int:
        return len(self._waiting)
