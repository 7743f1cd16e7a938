"""The NVIDIA driver and torch's CUDA version, found without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from substyle.engine import hardware


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, names: list[bytes], code: int = 0) -> None:
            self.names, self.code = names, code

        def cuInit(self, flags: int) -> int:
            return self.code

        def cuDriverGetVersion(self, version: Any) -> None:  # noqa: ANN401
            version._obj.value = 12080

        def cuDeviceGetCount(self, count: Any) -> None:  # noqa: ANN401
            count._obj.value = len(self.names)

        def cuDeviceGet(self, device: Any, i: int) -> None:  # noqa: ANN401
            device._obj.value = i

        def cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: ANN401
            name.value = self.names[device.value]

    def gpus(driver: Driver | None) -> hardware.Driver:
        def load(name: str) -> Driver:
            if driver is None:
                raise OSError
            return driver

        monkeypatch.setattr(hardware.ctypes, "CDLL", load)
        return hardware.driver.__wrapped__()

    assert gpus(Driver([b"A", b"B"])) == hardware.Driver(("A", "B"), "", (12, 8))
    failed = gpus(Driver([], code=100))
    assert failed.gpus == ()
    why = failed.no_gpu
    assert why.startswith("no GPU: ")
    assert why.endswith("(cuInit 100)")
    assert gpus(Driver([])).no_gpu.startswith("no GPU: the NVIDIA driver")
    assert gpus(None).no_gpu == "no GPU: no NVIDIA driver"
    monkeypatch.setattr(hardware, "_LOADED", Path(__file__))
    assert "libcuda.so.1" in gpus(None).no_gpu
