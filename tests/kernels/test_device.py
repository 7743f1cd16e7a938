"""Device names, with and without a mocked CUDA device."""

from __future__ import annotations

import pytest
import torch

from substyle.errors import ConfigError
from substyle.kernels.dispatch import CPU, as_device, available


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")


def test_the_cpu_is_always_available() -> None:
    assert as_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "CPU", "cuda:0 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cpu, cuda or cuda:N") as caught:
        as_device(name, "device")
    assert (caught.value.field, caught.value.given) == ("device", name)


@pytest.mark.parametrize(("version", "reason"), [(None, "without CUDA"), ("13.0", "no CUDA device")])
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_a_cuda_device(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, reason: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"cpu .*{reason}") as caught:
        as_device(name)
    assert (caught.value.field, caught.value.given) == ("device", name)


@pytest.mark.parametrize(("name", "number"), [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_with_cuda_devices(two_cards: None, name: str, number: int) -> None:
    assert as_device(name) == torch.device("cuda", number)


def test_a_card_that_is_not_there(two_cards: None) -> None:
    with pytest.raises(ConfigError, match=r"cuda:2'; allowed: .* cpu, cuda:0 \(card 0\), cuda:1 \(card 1\)"):
        as_device("cuda:2")
    assert available().startswith("cpu, cuda:0")
