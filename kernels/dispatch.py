"""Choice of a kernel's implementation (Triton on an NVIDIA GPU, else numpy or torch), launches, memory and threads."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import mmap
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from substyle import files
from substyle.errors import ConfigError

_GRID = 65535  # programs along the second axis of a CUDA grid
_OFFSET = 2**31 - 1  # offsets within one image are 32-bit integers


def on_triton(tensor: torch.Tensor) -> bool:
    """Whether to use Triton kernels: the tensor is on a CUDA device and Triton is installed.

    Also for tensors on torch's meta device, where launches run nothing and can be counted, see :func:`watched`.
    """
    return tensor.is_meta or (tensor.is_cuda and installed())


@cache
def installed() -> bool:
    """Whether Triton, an optional dependency, is installed. Its kernels are then compiled in our cache.

    Raises UnsafeFileError if other users can change that folder.
    """
    found = importlib.util.find_spec("triton") is not None
    if found:
        files.require_compiler_caches()
    return found


def expect(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
) -> None:
    """Validate an argument of a Triton kernel, whose address arithmetic is unchecked.

    Args:
        name: name of the argument.
        dtype: required dtype.
        shape: required shape, None for any length.
        device: required device, None for any.

    Raises:
        ConfigError: another dtype, shape or device, or not contiguous.
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
    """The CUDA grid (programs per image, images), None if there is no work.

    Args:
        name: name of the argument, for error messages.
        batch: number of images.
        values: work items per image, also the bound of offsets within one.
        each: work items per program.

    Raises:
        ConfigError: too many images for the grid, or images too large for 32-bit offsets.
    """
    if batch > _GRID:
        raise ConfigError(f"{name} batch", batch, f"at most {_GRID} images per call")
    if values > _OFFSET - each:  # offsets of the last program exceed the end before masking
        raise ConfigError(f"{name} image", values, f"at most {_OFFSET - each} values per image")
    return (-(-values // each), batch) if batch and values else None


Function = TypeVar("Function", bound=Callable[..., Any])


def fused(function: Function) -> Function:
    """Decorate a function, whose first argument is a tensor, of which torch.compile makes few kernels, for all sizes.

    It is compiled on a GPU with Triton, and called as it is elsewhere.
    """

    @wraps(function)
    def call(first: torch.Tensor, *others: Any) -> Any:  # noqa: ANN401
        return (compiled(function) if first.is_cuda and installed() else function)(first, *others)

    return cast("Function", call)


_VARIANTS = 64  # compilations of a function: a training step has one for each depth, number of losses and dtype


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `fused` calls on a GPU. If it cannot be compiled, it runs as it is from then on."""
    made: Callable[..., Any] = torch.compile(function, dynamic=True)

    def call(*given: Any) -> Any:  # noqa: ANN401
        nonlocal made
        try:
            with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
                return made(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"torch.compile failed; running {function.__name__} uncompiled: {reason}", file=sys.stderr)
            made = function
            return made(*given)

    return call


def upload(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device through pinned memory, without waiting for work queued on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it is read


_watching: list[Callable[[tuple[Any, ...]], None]] = []


@contextmanager
def watched(seen: Callable[[tuple[Any, ...]], None]) -> Iterator[None]:
    """Call ``seen`` with the arguments of every launch."""
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.remove(seen)


def launch(kernel: Any, programs: tuple[int, int], *arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - untyped
    """Run a Triton kernel on the device of its first argument, which need not be the current one.

    FMA fusion is always enabled: its default, and so the last bit of results, differs between Triton versions.

    Raises:
        ConfigError: too many programs along the second axis.
    """
    if programs[1] > _GRID:
        raise ConfigError("programs", programs, f"at most {_GRID} along the second axis")
    for seen in _watching:
        seen(arguments)
    if arguments[0].is_meta:
        return
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[programs](*arguments, enable_fp_fusion=True, **constants)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Limit the threads of torch on a CPU; 0 changes nothing."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_SHARED = 1 << 25  # multiply-adds


def threads_for(products: int, device: torch.device) -> int:
    """Argument of :func:`threads` for many passes of ``products`` multiply-adds each on a device.

    One thread where a pass takes less than a millisecond. More are not faster there, take as many times the CPU time,
    and wait for each other at every operation if another process needs a core.
    """
    return 1 if device.type == "cpu" and products < _SHARED else 0


CPU = torch.device("cpu")
_NAME = re.compile(r"cpu|cuda(:\d+)?")


def as_device(name: str, field: str = "device") -> torch.device:
    """Parse a device name: ``cpu``, ``cuda`` (the current CUDA device) or ``cuda:N``. CUDA devices get an index.

    On a CUDA device, float32 is float32 from then on: see `disable_tf32`.

    Args:
        field: field or argument of the name, for error messages.

    Raises:
        ConfigError: invalid name or unavailable device.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(field, name, f"cpu, cuda or cuda:N; available: {available()}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(field, name, f"an available device: {available()}")
    device = torch.device(name)
    number = torch.cuda.current_device() if device.index is None else device.index
    if number >= torch.cuda.device_count():
        raise ConfigError(field, name, f"an available device: {available()}")
    disable_tf32()
    return torch.device("cuda", number)


def disable_tf32() -> None:
    """Disable TF32 for float32 products and convolutions, for the whole process (the setting is not per thread).

    It is torch's default for convolutions, and TORCH_ALLOW_TF32_CUBLAS_OVERRIDE makes it that for products.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def available() -> str:
    """The devices that torch can use, as text."""
    if torch.version.cuda is None:
        return "cpu (this torch is built without CUDA)"
    if not torch.cuda.is_available():
        return "cpu (torch finds no CUDA device)"
    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cards])


_HUGE = 1 << 21  # bytes of a huge page on x86 and most ARM kernels
_WORTH = _HUGE  # smaller arrays gain nothing


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor; large CPU tensors use huge pages, if available, to reduce TLB misses."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size < _WORTH or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # private: few systems give huge pages to shared memory, and a forked process would write to its parent's
    block = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the tensor keeps it alive
    try:
        block.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # kernel without huge pages
        return torch.empty(shape, dtype=dtype, device=device)
    whole = torch.frombuffer(block, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size].view(dtype).view(shape)


def copy(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A contiguous copy, optionally in another dtype."""
    return empty(tuple(tensor.shape), dtype or tensor.dtype, tensor.device).copy_(tensor)


def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros with the shape, dtype and device of a tensor."""
    return empty(tuple(tensor.shape), tensor.dtype, tensor.device).zero_()


_MALLOC_KEEPS = 1 << 30  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@cache
def keep_freed_memory() -> None:
    """Let malloc keep up to 1 GiB of freed memory for the next allocations of this process.

    By default, glibc returns large blocks to the system, and every intermediate tensor of a batch is mapped and zeroed
    again, which takes longer than the arithmetic. Variables that configure malloc take precedence. Other C libraries
    are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the largest that glibc chooses itself
        libc.mallopt(_M_TRIM_THRESHOLD, _MALLOC_KEEPS)


class BorrowedMemory:
    """Keep memory of other libraries alive until torch's streams have read it.

    Torch frees its own tensors in stream order. A tensor imported through DLPack returns its memory to the other
    library as soon as it is dropped, and ``Tensor.record_stream`` has no effect on it.

    Args:
        most: maximum number of groups of objects; beyond it, the oldest group is waited for, so that a host far ahead
            of the device does not exhaust its memory.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._waiting: deque[tuple[torch.cuda.Event, tuple[Any, ...]]] = deque()

    def until(self, stream: torch.cuda.Stream, *objects: Any) -> None:  # noqa: ANN401 - whatever owns memory
        """Hold objects until all work currently queued on the stream has finished."""
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


# Numpy calls release the GIL. These threads synchronise once per batch; torch's would synchronise at the end of every
# call, which costs milliseconds on a busy machine.

_arrays = threading.local()


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # per process: threads do not survive a fork
    return ThreadPoolExecutor(threads, thread_name_prefix="substyle-kernel")


def for_each_image(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(i)`` for the images 0..count-1 on as many threads as torch uses; raises the first error."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    images = iter(range(count))  # shared: its next number is taken under the GIL

    def some() -> None:
        for i in images:
            work(i)

    for share in [_pool(threads, os.getpid()).submit(some) for _ in range(threads)]:
        share.result()


def scratch(use: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """This thread's uninitialised work array for a use: page faults take half of the time of a new array.

    The next call with the same use on this thread overwrites it, so it must not leave the kernel.
    """
    held: NDArray[Any] | None = getattr(_arrays, use, None)
    if held is None or held.shape != shape or held.dtype != dtype:
        held = np.empty(shape, dtype)
        setattr(_arrays, use, held)
    return held
