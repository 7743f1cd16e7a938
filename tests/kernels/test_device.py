"""Device names, with and without a mocked CUDA device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from substyle.engine.devices import Target
from substyle.errors import ConfigError
from substyle.kernels.dispatch import as_device


@pytest.mark.parametrize(("version", "reason"), [(None, "without CUDA"), ("13.0", "no CUDA device")])
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_a_cuda_device(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, reason: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"cpu .*{reason}") as caught:
        as_device(name)
    assert (caught.value.field, caught.value.given) == ("device", name)


@pytest.mark.parametrize("resolved", [lambda: as_device("cuda"), lambda: Target("cuda:0", "torch").torch_device])
def test_float32_is_float32_on_a_cuda_device(monkeypatch: pytest.MonkeyPatch, resolved: Callable[[], object]) -> None:
    """Whatever torch's default and its variables are; also in a process that is given a device that others resolved."""
    for name, answer in (("is_available", True), ("current_device", 0), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        resolved()
        found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    assert found == (False, False)
