"""The style generator in torch compared with OpenVINO, in float32 on the CPU, and the choice between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine.style_transfer.test_networks import SIDE, photographs

from substyle.engine.style_transfer.networks import DeviceStyles, generator_for

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
