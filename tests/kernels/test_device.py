"""Device names, with and without a mocked CUDA device."""

from __future__ import annotations

import pytest
import torch

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
