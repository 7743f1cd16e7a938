"""Where a kernel runs: Triton on an NVIDIA GPU where it is installed, numpy or torch elsewhere; memory and threads."""

from __future__ import annotations

import importlib.util
import math
import mmap
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from substyle.kernels.errors import ConfigError

_GRID = 65535  # programs along the second axis of a CUDA grid
_OFFSET = 2**31 - 1  # offsets within one image are 32-bit numbers


def on_triton(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels are used: the tensor is on a CUDA device and Triton is installed."""
    return tensor.is_cuda and installed()


@cache
def installed() -> bool:
    """Whether Triton is there; it is no dependency of substyle."""
    return importlib.util.find_spec("triton") is not None


def expect(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
) -> None:
    """Check what a Triton kernel is given, before its address arithmetic trusts it.

    Args:
        name: name of the argument.
        dtype: the dtype it must have.
        shape: the shape it must have, None for any length.
        device: the device it must be on, None for any.

    Raises:
        ConfigError: it has another dtype, shape or device, or is not contiguous.
    """
    if tensor.dtype != dtype:
        raise ConfigError(f"{name}.dtype", tensor.dtype, str(dtype))
    given = tuple(tensor.shape)
    if len(given) != len(shape) or any(want not in (None, have) for have, want in zip(given, shape, strict=True)):
        raise ConfigError(f"{name}.shape", given, str(shape).replace("None", "any"))
    if device is not None and tensor.device != device:
        raise ConfigError(f"{name}.device", str(tensor.device), str(device))
    if not tensor.is_contiguous():
        raise ConfigError(f"{name}.stride", tensor.stride(), "a contiguous tensor")


def grid(name: str, batch: int, values: int, each: int) -> tuple[int, int] | None:
    """The CUDA grid (programs for one image, images), None where there is nothing to do.

    Args:
        name: name of the argument, for the message.
        batch: images.
        values: work items of one image, which are also the largest offset within one.
        each: work items of one program.

    Raises:
        ConfigError: more images, or larger ones, than the kernels' grid and 32-bit offsets reach.
    """
    if batch > _GRID:
        raise ConfigError(f"{name} batch", batch, f"at most {_GRID} images in one call")
    if values > _OFFSET - each:  # the last program counts past the end before it masks
        raise ConfigError(f"{name} image", values, f"at most {_OFFSET - each} values in one image")
    return (-(-values // each), batch) if batch and values else None


def upload(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device, without waiting for what the device has yet to do, as a copy from ordinary memory would."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it is read


def launch(kernel: Any, programs: tuple[int, int], *arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - untyped
    """Run a Triton kernel on the device of its first argument, which need not be the current one.

    Products and sums are fused wherever the compiler can: Triton versions differ in whether they do by default, and
    with it the last bit of what they compute.
    """
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[programs](*arguments, enable_fp_fusion=True, **constants)


# Devices by name: what a ``device`` argument may say, and whether it is there.

CPU = torch.device("cpu")
_NAME = re.compile(r"cpu|cuda(:\d+)?")


def as_device(name: str, field: str = "device") -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` (the current CUDA device) or ``cuda:N``; a CUDA device with its number.

    Args:
        field: the field or argument that the name was given in, for the message.

    Raises:
        ConfigError: another name, or a device that is not there.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(field, name, f"cpu, cuda or cuda:N; there is {there()}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(field, name, f"cpu; {there()}")
    device = torch.device(name)
    number = torch.cuda.current_device() if device.index is None else device.index
    if number >= torch.cuda.device_count():
        raise ConfigError(field, name, f"a device that is there: {there()}")
    return torch.device("cuda", number)


def there() -> str:
    """The devices that torch can use, in words."""
    if torch.version.cuda is None:
        return "cpu alone (this torch is built without CUDA)"
    if not torch.cuda.is_available():
        return "cpu alone (torch sees no CUDA device)"
    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cards])


# Memory for large arrays on a CPU: in huge pages where Linux gives them, which take fewer address look-ups.

_HUGE = 1 << 21  # bytes of a huge page on x86 and most ARM kernels
_WORTH = _HUGE  # smaller arrays gain nothing


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor; a large one on a CPU lies in huge pages if it can."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size < _WORTH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # private: shared memory gets huge pages from few systems, and a forked process would write into its parent's
    block = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the tensor keeps it alive
    try:
        block.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without huge pages: ordinary ones then
        return torch.empty(shape, dtype=dtype, device=device)
    whole = torch.frombuffer(block, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size].view(dtype).view(shape)


def copy(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A contiguous copy, in another dtype if one is named."""
    return empty(tuple(tensor.shape), dtype or tensor.dtype, tensor.device).copy_(tensor)


def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros of the tensor's shape and dtype."""
    return empty(tuple(tensor.shape), tensor.dtype, tensor.device).zero_()


# Memory that others own, held until the device has read it.
#
# A tensor of torch's own may be dropped as soon as its last reader is queued: torch gives its memory to nobody before
# the stream has come that far. Memory of another library, seen through DLPack, goes back to that library when its
# tensor is dropped, whatever torch's streams still have to read, and ``Tensor.record_stream`` does nothing for it.


class BorrowedMemory:
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


# Threads over the images of a batch, and their work arrays, for kernels made of numpy calls.
#
# Such calls release the interpreter lock. Threads of torch's own would wait for one another at the end of every call,
# which costs milliseconds on a busy machine; these meet once in a batch.

_arrays = threading.local()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # a forked process has no use for its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="substyle-kernel")


def for_each_image(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(i)`` for the images 0..count-1 on as many threads as torch uses; the first error is raised."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    for _ in _pool(threads, os.getpid()).map(work, range(count)):
        pass


def scratch(use: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """This thread's work array for that use, whatever it holds: half of the time of a fresh one is paging it in.

    It is overwritten by the next caller on this thread that names the same use, so it must not leave the kernel.
    """
    held: NDArray[Any] | None = getattr(_arrays, use, None)
    if held is None or held.shape != shape or held.dtype != dtype:
        held = np.empty(shape, dtype)
        setattr(_arrays, use, held)
    return held
