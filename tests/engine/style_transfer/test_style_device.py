"""The style generator in torch compared with OpenVINO, in float32 on the CPU, and the choice between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine.style_transfer.test_networks import SIDE, photographs

from substyle.engine.style_transfer.networks import DeviceStyles, generator_for, networks_for
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def in_torch(names: tuple[str, ...], precision: Any = "fp32", piece: int = 2) -> DeviceStyles:  # noqa: ANN401
    return DeviceStyles(
        generator_for(names), names, side=SIDE, precision=precision, device=CPU, piece=piece, mode="off"
    )


def test_results_outlive_the_next_call() -> None:
    net = in_torch(("style_wave",))
    first = net(photographs(2))["style_wave"]
    copy = first.clone()
    net(photographs(2).flip(0))
    assert torch.equal(first, copy)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        in_torch(("style_wave",))(photographs(1, 32))
    assert (caught.value.field, caught.value.given) == ("canvas", (1, 32, 32, 3))
    with pytest.raises(ConfigError) as caught:
        DeviceStyles(generator_for(("style_wave",)), ("style_wave",), side=30, precision="fp32", device=CPU)
    assert (caught.value.field, caught.value.given) == ("canvas", 30)
    with pytest.raises(ConfigError) as caught:
        networks_for(("style_wave",), side=SIDE, device="cuda:9")
    assert (caught.value.field, caught.value.given) == ("device", "cuda:9")
