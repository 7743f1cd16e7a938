"""Devices, runtimes and precisions: validation, without torch, and resolution on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from substyle.engine import hardware
from substyle.errors import ConfigError
from substyle.kernels import cpu

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
AUTO = "auto"  # backbones: selected by the gate
INT8: Final = "int8"  # backbones: 8-bit matrix products, 16-bit arithmetic between them
FP8: Final = "fp8"  # backbones: the same with E4M3 products
EightBits = Literal["int8", "fp8"]
EIGHT_BITS: tuple[EightBits, ...] = (INT8, FP8)


def as_precision(name: str, field: str = "precision") -> Precision:
    """Validate the name of a 16- or 32-bit precision. Raises ConfigError."""
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(field, name, ", ".join(PRECISIONS))


def check_precision(field: str, name: str) -> None:
    """Raise ConfigError unless ``name`` is a precision of backbones."""
    allowed = (AUTO, *PRECISIONS, *EIGHT_BITS)
    if name not in allowed:
        raise ConfigError(field, name, ", ".join(allowed))


def as_eight_bits(name: str) -> EightBits | None:
    """Return ``name`` if it is an 8-bit precision, else None."""
    return next((known for known in EIGHT_BITS if name == known), None)


RUNTIMES = ("openvino", "tensorrt", "torch")
ON_CPU, ON_GPU = ("openvino", "torch"), ("tensorrt", "torch")  # in order of preference
_IN_EIGHT_BITS = {"openvino": (INT8,), "tensorrt": EIGHT_BITS}
_FP8_FROM = (8, 9)  # lowest compute capability with fp8 products
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")


@dataclass(frozen=True)
class Target:
    """An available device and runtime.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        runtime: runtime of compiled backbones: ``openvino``, ``tensorrt`` or ``torch``.
    """

    device: str = "cpu"
    runtime: str = "openvino"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    @property
    def torch_device(self) -> torch.device:
        """The device as a torch device; see `kernels.dispatch.as_device`."""
        import torch

        from substyle.kernels.dispatch import disable_tf32

        if self.on_gpu:  # other processes receive what one has resolved
            disable_tf32()
        return torch.device(self.device)

    @property
    def _card(self) -> Any:  # noqa: ANN401 - the type is private to torch
        import torch

        return torch.cuda.get_device_properties(self.device)

    @property
    def identity(self) -> str:
        """Hardware that artefacts and gate results are valid for: CPU model and instruction sets, or the GPU."""
        if not self.on_gpu:
            return cpu.identity()
        from torch.version import cuda

        card = self._card
        return f"{card.name}|{card.major}.{card.minor}|{card.multi_processor_count}|CUDA {cuda}"

    def describe(self) -> dict[str, Any]:
        """Device as recorded in a store. Resuming requires the same ``device``; ``gpu`` is informative."""
        if not self.on_gpu:
            return {"device": "cpu"}
        return {"device": "cuda", "gpu": self._card.name}

    def made(self, runtime: Mapping[str, Any]) -> bool:
        """Whether embeddings with this ``runtime``, as recorded in a store, are of this kind of device and runtime."""
        here = (self.describe()["device"], self.runtime)
        return (runtime.get("device", "cpu"), str(runtime["name"]).partition(".")[0]) == here

    def require_precision(self, field: str, precision: str) -> None:
        """Raise ConfigError if the runtime or the GPU does not support the precision."""
        require_precision(self.runtime, field, precision)
        if precision == FP8 and self.on_gpu:
            card = self._card
            if (card.major, card.minor) < _FP8_FROM:
                major, minor = _FP8_FROM
                why = f"fp8 requires compute capability {major}.{minor}; {card.name} has {card.major}.{card.minor}"
                raise ConfigError(field, precision, f"{', '.join((AUTO, *PRECISIONS, INT8))} ({why})")


OPENVINO_ON_CPU = Target()


def require_precision(runtime: str, field: str, precision: str) -> None:
    """Raise ConfigError if a runtime does not support the precision."""
    known = _IN_EIGHT_BITS.get(runtime, EIGHT_BITS if runtime == AUTO else ())
    if precision in EIGHT_BITS and precision not in known:
        allowed = ", ".join((AUTO, *PRECISIONS, *known))
        places = ['runtime = "tensorrt" on a GPU', *(['"openvino" on a CPU'] if precision == INT8 else [])]
        raise ConfigError(
            field, precision, f"{allowed} with the runtime {runtime}; {precision} requires {' or '.join(places)}"
        )


def check_device(name: str) -> None:
    """Raise ConfigError unless ``name`` is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if _DEVICE.fullmatch(name) is None:
        raise ConfigError("device", name, "auto, cpu, cuda or cuda:N")


def check(device: str, runtime: str) -> None:
    """Validate device and runtime independently of this machine.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``auto`` or one of `RUNTIMES`.

    Raises:
        ConfigError: an unknown name, or an incompatible combination.
    """
    check_device(device)
    if runtime not in (AUTO, *RUNTIMES):
        raise ConfigError("embed.runtime", runtime, ", ".join((AUTO, *RUNTIMES)))
    if device == "cpu" and runtime not in (AUTO, *ON_CPU):
        why = "TensorRT requires an NVIDIA GPU, and device is cpu"
        raise ConfigError("embed.runtime", runtime, f"{', '.join((AUTO, *ON_CPU))} ({why})")
    if device.startswith("cuda") and runtime not in (AUTO, *ON_GPU):
        why = f"OpenVINO runs on the CPU, and device is {device}"
        raise ConfigError("embed.runtime", runtime, f"{', '.join((AUTO, *ON_GPU))} ({why})")


def resolve(device: str = AUTO, runtime: str = AUTO) -> Target:
    """Resolve device and runtime on this machine.

    Device ``auto`` is the first GPU visible to torch, else the CPU; runtime ``auto`` is the first of `ON_GPU` or
    `ON_CPU` that is installed. An explicit runtime determines the device if that is ``auto``.

    Raises:
        ConfigError: the device or runtime is not available.
    """
    import torch

    from substyle.kernels.dispatch import as_device, available

    check(device, runtime)
    if device == AUTO:
        gpu = torch.cuda.is_available() and runtime != "openvino"
        if not gpu and runtime != "openvino":
            _require_no_gpu(torch.version.cuda)
        device = "cuda:0" if gpu else "cpu"
    if device != "cpu":
        device = str(as_device(device))
    on_gpu = device != "cpu"
    known = ON_GPU if on_gpu else ON_CPU
    if runtime != AUTO and runtime not in known:  # TensorRT without a GPU; `check` rejects the other cases
        raise ConfigError("embed.runtime", runtime, f"{', '.join((AUTO, *known))} (available: {available()})")
    if runtime == AUTO:
        return Target(device, next(name for name in known if missing(name, chosen=False) is None))
    if why := missing(runtime, chosen=True):
        others = ", ".join((AUTO, *(name for name in known if name != runtime)))
        raise ConfigError("embed.runtime", runtime, f"{others} ({why})")
    return Target(device, runtime)


def _require_no_gpu(cuda: str | None) -> None:
    """Raise ConfigError if a CUDA build of torch cannot use a GPU of this machine; warn if torch is a CPU build."""
    driver = hardware.driver()
    if not driver.gpus:
        return
    if cuda is None:
        print(
            f"{driver.gpus[0]} is not used: torch is built without CUDA; install a CUDA build and the extra gpu",
            file=sys.stderr,
        )
        return
    why = driver.too_old(cuda) or "torch cannot initialise CUDA"
    raise ConfigError("device", AUTO, f"cpu; {driver.gpus[0]} cannot be used: {why}")


def missing(runtime: str, *, chosen: bool) -> str | None:
    """Reason why a runtime is not available, or None if it is.

    Args:
        chosen: whether it was requested by name. Only then is ``tensorrt_rtx`` considered, which does not support
            data-centre GPUs.
    """
    if runtime == "torch":
        return None
    if runtime == "openvino":
        return (
            None if importlib.util.find_spec("openvino") else "openvino is not installed; install the extra cpu or gpu"
        )
    names = ("tensorrt", "tensorrt_rtx") if chosen else ("tensorrt",)
    reasons = [reason for name in names if (reason := _import_error(name))]
    return None if len(reasons) < len(names) else f"{'; '.join(reasons)}; install the extra gpu"


def _import_error(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # shared libraries may be missing although the package is installed
        return f"{name} cannot be imported: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None


def graph_batch(batch: int, *, on_gpu: bool = False) -> int:
    """Batch size of a compiled graph: B on a GPU; on a CPU at most 8, in parallel streams.

    On two cores, two single-threaded streams with batches of 8 are 5 to 14 % faster than one batch of 32 on both.
    """
    return batch if on_gpu else min(batch, 8)
