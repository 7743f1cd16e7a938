"""Detection of GPUs and of torch's CUDA version in milliseconds, without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LOADED = Path("/proc/driver/nvidia/version")
_NAME_BYTES = 128


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        gpus: names of the GPUs visible to this process.
        no_gpu: reason if there are none, else "".
        cuda: newest CUDA version that it supports, such as (13, 0).
    """

    gpus: tuple[str, ...]
    no_gpu: str
    cuda: tuple[int, int] = (0, 0)

    def too_old(self, wanted: str) -> str:
        """Return why GPUs cannot be used with a CUDA version, or "" if they can."""
        if not self.gpus or self.cuda[0] >= int(wanted.partition(".")[0]):
            return ""
        supported = ".".join(map(str, self.cuda))
        newer = " (580 or newer)" if wanted.startswith("13") else ""
        return f"the NVIDIA driver supports CUDA {supported}, torch needs {wanted}: update the driver{newer}"


@cache
def driver() -> Driver:
    """Ask the driver for its GPUs."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        why = "the driver is loaded, but libcuda.so.1 was not found" if _LOADED.is_file() else "no NVIDIA driver"
        return Driver((), f"no GPU: {why}")
    if code := library.cuInit(0):
        return Driver((), f"no GPU: the NVIDIA driver failed to initialise (cuInit {code})")
    count, version = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    library.cuDriverGetVersion(ctypes.byref(version))
    names = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        library.cuDeviceGet(ctypes.byref(device), i)
        library.cuDeviceGetName(name, _NAME_BYTES, device)
        names.append(name.value.decode(errors="replace"))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Driver(tuple(names), "" if names else "no GPU: the NVIDIA driver reports none", cuda)


def torch_cuda() -> str | None:
    """Return the CUDA version of torch from its version file; None for a CPU build or if torch is not installed."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations)), "version.py")
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", path.read_text(), re.M) if path.is_file() else None
    return cuda[1] if cuda else None
