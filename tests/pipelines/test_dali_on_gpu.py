"""The DALI graph for a GPU, tested without one: devices are checked at definition, but building it needs a driver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks import operators
from benchmarks.gpu_check import tolerances
from tests.pipelines.conftest import scene

from substyle.pipelines.transforms import base, color
from substyle.pipelines.variants import VariantMaker, load_all

load_all()


def test_the_table_of_operators_is_that_of_the_page() -> None:
    text = operators.PAGE.read_text()
    assert operators.page(text) == text


@pytest.mark.parametrize("side", [64, 97])
def test_a_graph_for_a_gpu_has_the_pixels_of_the_cpu(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's definitions give on the CPU, within the bounds of the table."""
    names = ("hue_shift", "saturate", "low_contrast", "zoom_blur", "jpeg")
    canvas_BSSC = torch.from_numpy(np.stack([scene(side, side, seed) for seed in range(4)]))

    def made() -> dict[str, torch.Tensor]:
        maker = VariantMaker(names, side=side, seed=1, batch=4, threads=1)
        return {variant.name: variant.pixels_BSSC.clone() for variant in maker(canvas_BSSC, list("abcd"))}

    on_cpu, plain = made(), base.Transformation.implementation
    monkeypatch.setattr(VariantMaker, "on_gpu", property(lambda maker: True))
    monkeypatch.setattr(base.Transformation, "implementation", lambda own, gpu: plain(own, gpu=True))
    monkeypatch.setattr(color, "is_on_gpu", lambda canvas: True)
    on_gpu = made()
    for name in names:
        good, text = tolerances.within(on_gpu[name], on_cpu[name], tolerances.VARIANTS[name])
        assert good, f"{name}: {text}"
    assert torch.equal(on_gpu["jpeg"], on_cpu["jpeg"])
    assert torch.equal(on_gpu["low_contrast"], on_cpu["low_contrast"])
    assert not torch.equal(on_gpu["zoom_blur"], on_cpu["zoom_blur"])  # another implementation
