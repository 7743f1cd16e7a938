"""Who computes a kernel: Triton for tensors on an NVIDIA GPU where it is installed, numpy or torch elsewhere."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
