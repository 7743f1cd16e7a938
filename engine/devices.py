"""Devices, runtimes and precisions: what was asked for, resolved on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from substyle.engine import cache
from substyle.kernels.dispatch import as_device, there
from substyle.kernels.errors import ConfigError

# Arithmetic inside compiled networks.

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
AUTO = "auto"  # of backbones: left to the gate
INT8: Final = "int8"  # of backbones: 8-bit products, what is between them in 16 bits
FP8: Final = "fp8"  # of backbones: the same with products of E4M3 numbers
EightBits = Literal["int8", "fp8"]
EIGHT_BITS: tuple[EightBits, ...] = (INT8, FP8)


def as_precision(name: str, field: str = "precision") -> Precision:
    """A precision by name. Raises ConfigError naming those there are."""
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(field, name, ", ".join(PRECISIONS))


def check_precision(field: str, name: str) -> None:
    """Raise ConfigError unless it is a precision that a backbone can be asked for."""
    allowed = (AUTO, *PRECISIONS, *EIGHT_BITS)
    if name not in allowed:
        raise ConfigError(field, name, ", ".join(allowed))


def as_eight_bits(name: str) -> EightBits | None:
    """A precision of 8 bits by name, None for another."""
    return next((known for known in EIGHT_BITS if name == known), None)


RUNTIMES = ("openvino", "tensorrt", "torch")
ON_CPU, ON_GPU = ("openvino", "torch"), ("tensorrt", "torch")  # what there is on each, the first taken where it can be
_IN_EIGHT_BITS = {"openvino": (INT8,), "tensorrt": EIGHT_BITS}
_FP8_FROM = (8, 9)  # compute capability of the first cards that multiply numbers of 8 bits with a point
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")


@dataclass(frozen=True)
class Target:
    """A device and a runtime that are there.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        runtime: of compiled backbones: ``openvino``, ``tensorrt`` or ``torch``.
    """

    device: str = "cpu"
    runtime: str = "openvino"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    @property
    def torch_device(self) -> torch.device:
        """The device as torch has it."""
        return torch.device(self.device)

    @property
    def identity(self) -> str:
        """What artefacts, gates and variants are tied to: the CPU's model and instruction sets, or the GPU."""
        if not self.on_gpu:
            return cache.device()
        card = torch.cuda.get_device_properties(self.torch_device)
        return f"{card.name}|{card.major}.{card.minor}|{card.multi_processor_count}|CUDA {torch.version.cuda}"

    def describe(self) -> dict[str, Any]:
        """What a store notes of the device. The kind is what counts when a run goes on; the card is for people."""
        if not self.on_gpu:
            return {"device": "cpu"}
        return {"device": "cuda", "gpu": torch.cuda.get_device_name(self.torch_device)}

    def require_precision(self, field: str, precision: str) -> None:
        """Raise ConfigError where the runtime or the card has no such arithmetic."""
        require_precision(self.runtime, field, precision)
        if precision == FP8 and self.on_gpu:
            card = torch.cuda.get_device_properties(self.torch_device)
            if (card.major, card.minor) < _FP8_FROM:
                major, minor = _FP8_FROM
                why = (
                    f"{card.name} has compute capability {card.major}.{card.minor}, and fp8 begins with {major}.{minor}"
                )
                raise ConfigError(field, precision, f"{', '.join((AUTO, *PRECISIONS, INT8))} ({why})")


OPENVINO_ON_CPU = Target()


def require_precision(runtime: str, field: str, precision: str) -> None:
    """Raise ConfigError where a runtime has no such arithmetic."""
    known = _IN_EIGHT_BITS.get(runtime, EIGHT_BITS if runtime == AUTO else ())
    if precision in EIGHT_BITS and precision not in known:
        allowed = ", ".join((AUTO, *PRECISIONS, *known))
        places = ['runtime = "tensorrt" on a GPU', *(['"openvino" on a CPU'] if precision == INT8 else [])]
        raise ConfigError(
            field, precision, f"{allowed} with the runtime {runtime}; {precision} is there with {' or '.join(places)}"
        )


def check(device: str, runtime: str, prefix: str = "") -> None:
    """Hold the two settings against each other, whatever machine this is.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; runtime: ``auto`` or one of `RUNTIMES`.
        prefix: of the fields' names.

    Raises:
        ConfigError: a name that is none, or two that exclude each other; the message says why.
    """
    if _DEVICE.fullmatch(device) is None:
        raise ConfigError(f"{prefix}device", device, "auto, cpu, cuda or cuda:N")
    if runtime not in (AUTO, *RUNTIMES):
        raise ConfigError(f"{prefix}runtime", runtime, ", ".join((AUTO, *RUNTIMES)))
    if device == "cpu" and runtime not in (AUTO, *ON_CPU):
        why = f"TensorRT runs on NVIDIA GPUs alone, and {prefix}device is cpu"
        raise ConfigError(f"{prefix}runtime", runtime, f"{', '.join((AUTO, *ON_CPU))} ({why})")
    if device.startswith("cuda") and runtime not in (AUTO, *ON_GPU):
        why = f"OpenVINO compiles for the CPU, and {prefix}device is {device}"
        raise ConfigError(f"{prefix}runtime", runtime, f"{', '.join((AUTO, *ON_GPU))} ({why})")


def resolve(device: str = AUTO, runtime: str = AUTO, prefix: str = "") -> Target:
    """The device and runtime of this machine that the settings ask for.

    ``auto`` is the first GPU that torch sees, else the CPU; there it is the first runtime of `ON_GPU` or `ON_CPU` that
    is installed. A runtime that is named decides the device where that is ``auto``.

    Raises:
        ConfigError: what is asked for is not there.
    """
    check(device, runtime, prefix)
    if device == AUTO:
        gpu = torch.cuda.is_available() and runtime != "openvino"
        device = "cuda:0" if gpu else "cpu"
    if device != "cpu":
        device = str(as_device(device, f"{prefix}device"))
    on_gpu = device != "cpu"
    known = ON_GPU if on_gpu else ON_CPU
    if runtime != AUTO and runtime not in known:  # TensorRT where there is no GPU: `check` has seen to the others
        raise ConfigError(f"{prefix}runtime", runtime, f"{', '.join((AUTO, *known))}; there is {there()}")
    if runtime == AUTO:
        return Target(device, next(name for name in known if missing(name, chosen=False) is None))
    if why := missing(runtime, chosen=True):
        others = ", ".join((AUTO, *(name for name in known if name != runtime)))
        raise ConfigError(f"{prefix}runtime", runtime, f"{others} ({why})")
    return Target(device, runtime)


def missing(runtime: str, *, chosen: bool) -> str | None:
    """Why a runtime cannot be used here, None where it can.

    Args:
        chosen: whether it was asked for by name. ``tensorrt_rtx``, which has no engines for data-centre cards, is used
            only then.
    """
    if runtime == "torch":
        return None
    if runtime == "openvino":
        return None if importlib.util.find_spec("openvino") else "openvino is not installed: it comes with each extra"
    names = ("tensorrt", "tensorrt_rtx") if chosen else ("tensorrt",)
    reasons = [reason for name in names if (reason := _import_error(name))]
    return None if len(reasons) < len(names) else f"{'; '.join(reasons)}: it comes with the extra gpu"


def _import_error(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # its libraries may be missing where its Python package is there
        return f"{name} cannot be imported: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None


def graph_batch(batch: int, *, on_gpu: bool = False) -> int:
    """Batch of a compiled graph: on a GPU B, on a CPU runs of B images go through it in pieces of 8, side by side.

    On two cores, pieces of 8 on two streams of one thread are 5 to 14 % faster than 32 at once on both.
    """
    return batch if on_gpu else min(batch, 8)
