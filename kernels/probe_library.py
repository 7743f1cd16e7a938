"""The functions of ``probe_native.c`` and when they can be called."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from substyle.kernels import native

_DTYPES = (torch.float32, torch.bfloat16)
_P, _N, _I, _F, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double


class CTerm(ctypes.Structure):
    """``term`` in C: rows [first, last) and outputs [low_output, high_output) of a cross-entropy."""

    _fields_ = [
        ("target", _P), ("share", _P), ("scale", _P),
        ("first", _N), ("last", _N), ("low_output", _N), ("high_output", _N),
    ]  # fmt: skip


_ARGUMENTS = {
    "probe_gather": (_P, _P, _N, _N, _P, _P, _P, _I, _I, _I),
    "probe_cross_entropy": (_P, _N, _N, _N, _P, _P, _N, _P, _P, _I, _I),
    "probe_judge": (_P, _N, _N, _N, _N, _P, _N, _P, _P, _P, _P, _I, _I),
    "probe_hidden": (_P, _N, _N, _P, _P, _N, _F, _I, _I),
    "probe_hidden_back": (_P, _P, _N, _N, _F, _P, _I, _I),
    "probe_adamw": (_P, _P, _P, _P, _P, _N, _N, _P, _P, _D, _D, _F, _F, _I, _I),
}


@cache
def library() -> Any:  # noqa: ANN401 - ctypes finds functions at run time
    """The compiled kernels, None where there are none."""
    found = native.load("probe_native")
    if found is not None:
        for name, arguments in _ARGUMENTS.items():
            getattr(found, name).argtypes = arguments
    return found


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels work on tensors of a device, with GEMMs in a dtype."""
    return device.type == "cpu" and dtype in _DTYPES and library() is not None


def check(code: int) -> None:
    """Raise what a kernel's return value stands for."""
    if code == 1:
        raise MemoryError("no memory for the work arrays of a probe kernel")
    if code == 2:
        raise IndexError("a target is not one of its term's outputs")


def at(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie."""
    return tensor.data_ptr()


def low(tensor: torch.Tensor) -> bool:
    """What the kernels call ``low``."""
    return tensor.dtype == torch.bfloat16


def threads() -> int:
    """Threads for a kernel: as many as torch uses."""
    return torch.get_num_threads()
