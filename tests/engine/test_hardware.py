"""The NVIDIA driver and torch's CUDA version, found without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
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


def test_torch_s_cuda_is_that_of_torch() -> None:
    import torch

    assert hardware.torch_cuda() == torch.version.cuda


@pytest.mark.parametrize(("text", "found"), [("cuda: Optional[str] = '13.0'\n", "13.0"), ("cuda = None\n", None)])
def test_torch_s_file_of_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, found: str | None
) -> None:
    (tmp_path / "version.py").write_text(f"debug = False\n{text}hip: Optional[str] = '6'\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: spec)
    assert hardware.torch_cuda() == found


@pytest.mark.parametrize(
    ("gpus", "cuda", "wanted", "too_old"),
    [
        (("card",), (13, 0), "13.0", False),
        (("card",), (13, 0), "13.2", False),  # CUDA promises compatibility of minor versions
        (("card",), (14, 0), "13.0", False),
        (("card",), (12, 8), "13.0", True),
        (("card",), (11, 4), "12.6", True),
        ((), (0, 0), "13.0", False),
    ],
)
def test_the_driver_must_support_torch_s_cuda(
    gpus: tuple[str, ...], cuda: tuple[int, int], wanted: str, too_old: bool
) -> None:
    why = hardware.Driver(gpus, "", cuda).too_old(wanted)
    assert bool(why) == too_old
    assert ("580" in why) == (too_old and wanted == "13.0")
