"""Makers of variants and decoders on devices that are not there, or not where the canvas is."""

from __future__ import annotations

import pytest
import torch

from substyle.errors import ConfigError
from substyle.pipelines.variants import VariantMaker


def test_a_canvas_elsewhere_is_refused() -> None:
    maker = VariantMaker(("identity",), side=64, seed=0, batch=4, threads=1)
    with pytest.raises(ConfigError, match=r"meta.* cpu") as caught:
        list(maker(torch.empty(1, 64, 64, 3, dtype=torch.uint8, device="meta"), ["a"]))
    assert caught.value.field == "canvas"
