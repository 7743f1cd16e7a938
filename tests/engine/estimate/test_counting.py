"""Counts of what runs against sums by hand, eager and fused, and of the modules that plans trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from substyle.engine.estimate import stages
from substyle.engine.estimate.counting import META, Counter
from substyle.engine.style_transfer.graphs import StyleModule
from substyle.engine.style_transfer.networks import multistyle_generator
from substyle.kernels import color, dispatch
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker

SUITE = suite("substance31")
CANVAS = 224 * 224 * 3


def moved(work: Callable[[torch.Tensor], torch.Tensor], *, fused: bool, device: torch.device = META) -> list[float]:
    """Bytes of each launch of some work on 1,000 float32 numbers, whose result is written."""
    x = torch.empty(2, 5, 10, 10, device=device)
    with Counter(device, fused=fused) as counter:
        counter._write([work(x)])
    return [launch.moved for launch in counter.launches]


def _chain(x: torch.Tensor) -> torch.Tensor:
    return (torch.relu(x) + 1).to(torch.float16)


def _normalised(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x * 2, dim=(2, 3), correction=0, keepdim=True)
    return (x * 2 - mean) * torch.rsqrt(variance)


def _padded_convolution(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), torch.empty(3, 5, 3, 3, device=x.device))


@pytest.mark.parametrize(
    ("work", "eager", "fused"),
    [
        (_chain, [8000, 8000, 6000], [6000]),
        # statistics of 10 maps; then a second pass over the map
        (_normalised, [8000, 4080, 8000, 8040, 80, 8040], [4080, 8080]),
        # padding is written, since the product reads memory; products in 16 bits per number
        (_padded_convolution, [4000 + 5760, 2 * (1440 + 135 + 600)], [4000 + 5760, 2 * (1440 + 135 + 600)]),
        (lambda x: x.add_(1), [8000], [8000]),
        (lambda x: torch.zeros_like(x).copy_(x), [4000, 8000], [4000, 8000]),
        (lambda x: x.view(10, 100).t()[3], [], []),
        (torch.empty_like, [], []),
        (lambda x: x[:1].expand(4, 5, 10, 10) + x[0, :, :1, :1], [2000 + 20 + 8000], [2000 + 8000]),
    ],
)
def test_bytes_by_hand(work: Callable[[torch.Tensor], torch.Tensor], eager: list[float], fused: list[float]) -> None:
    assert moved(work, fused=False) == eager
    assert moved(work, fused=True) == fused
    assert moved(work, fused=False, device=torch.device("cpu")) == eager


def test_the_host_and_copies_from_it_are_not_counted() -> None:
    with Counter() as counter:
        there = dispatch.upload(np.zeros(7, np.float32) + 1, META)
        torch.ones(5).add(1)
        there + 1
    assert [launch.moved for launch in counter.launches] == [56.0]


def test_triton_kernels_move_each_tensor_once() -> None:
    canvas = torch.empty(4, 8, 8, 3, dtype=torch.uint8, device=META)
    maps = torch.empty(6, 4, 3, 4, device=META)
    with Counter() as counter, dispatch.watched(counter.triton):
        assert color.colours(canvas, maps).shape == (6, 4, 8, 8, 3)
    assert [launch.moved for launch in counter.launches] == [7 * canvas.numel() + maps.nbytes]


@pytest.mark.slow
def test_counts_do_not_depend_on_triton() -> None:
    script = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
from substyle.kernels import dispatch
dispatch.installed = lambda: False
from substyle.engine.estimate import stages
from substyle.pipelines.transforms.registry import suite
print(stages.variants(suite("substance31"), 64).traffic)
assert "triton" not in sys.modules
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(shown) == stages.variants(SUITE, 64).traffic


def test_styles_take_two_passes_over_most_normalised_maps() -> None:
    """Against the network itself: its convolutions, and what must be in memory between them.

    Two contracting convolutions normalise as they load: they read one map and write one.
    """
    module, outputs = StyleModule(multistyle_generator([19]), torch.bfloat16).eval(), dict[str, int]()
    convolutions = [*module.contract[:1], *module.residual, *module.expand]
    for i, convolution in enumerate(convolutions):
        convolution.register_forward_hook(lambda _, given, out, i=i: outputs.update({f"{i}": out.numel()}))
    with torch.no_grad():
        module.to(META)(torch.empty(1, 224, 224, 3, dtype=torch.uint8, device=META))
    work = stages.styles(("style_starry",), 224)
    products = [launch for launch in work.launches if launch.product]
    assert len(products) == len(outputs) == 16
    for side in (224, 112):
        maps = 2 * 32 * (side**2 + side**2 // 4)
        assert sum(maps <= launch.moved / work.images <= 1.01 * maps for launch in work.launches) == 1
    # written by the product, read for statistics, read to normalise
    assert work.traffic > 3 * 2 * sum(outputs.values())
    assert work.traffic < 8 * 2 * sum(outputs.values())


def test_variants_are_what_a_maker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every variant: the canvas is read, the variant written, and both read to compare them."""
    names = [name for name in SUITE if base.get(name).made_by != "network"]
    made: list[str] = []
    whole = VariantMaker._made

    def listed(self: VariantMaker, *given: Any) -> Any:  # noqa: ANN401
        for name, pixels in whole(self, *given):
            made.append(name)
            assert (pixels.device, tuple(pixels.shape)) == (META, (stages.BATCH, 224, 224, 3))
            yield name, pixels

    monkeypatch.setattr(VariantMaker, "_made", listed)
    work = stages.variants(SUITE, 224)
    assert made == names
    assert work.traffic > 3.2 * 25 * CANVAS  # colour maps share one read
    each = {name: stages.variants((name,), 224).traffic / CANVAS for name in names}
    assert each["identity"] < 0.01
    assert all(traffic > 3.99 for name, traffic in each.items() if name != "identity")
    assert each["swirl"] == pytest.approx(4.0, abs=0.01)
    # sums of three stages in float32, between two canvases
    assert each["zoom_blur"] == pytest.approx(4 + 3 * 8, abs=0.01)


def test_operators_of_dali_are_counted_from_the_graph() -> None:
    """A cast, two filters of 37 taps, a cast; canvas in and variant out are copied."""
    work = stages.variants(("gaussian_blur",), 224)
    filters = [launch for launch in work.launches if launch.flop]
    assert [launch.flop / stages.BATCH for launch in filters] == [8.0 * 37 * CANVAS] * 2
    assert work.traffic / CANVAS == pytest.approx((1 + 4) + 2 * (4 + 4) + (4 + 1) + 2 + 2 + 2, rel=0.01)


def test_a_plug_in_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = dict(base.REGISTRY)
    monkeypatch.setattr(base, "REGISTRY", registry)

    @base.kernel("inverted", coarse="tone", role="train")
    def inverted(canvas_BSSC: torch.Tensor, args: base.Arrays, keys_B: Any) -> torch.Tensor:  # noqa: ANN401
        return 255 - canvas_BSSC

    assert stages.variants(("inverted",), 32).traffic / (32 * 32 * 3) == pytest.approx(4.0, abs=0.02)


def test_typed_products_run_in_the_type_of_their_tensors() -> None:
    x = torch.empty(8, 4, device=META)
    with Counter(typed=True) as counter:
        x @ x.T
        x.bfloat16() @ x.T.bfloat16()
        torch.empty(100, 4, device=META)[torch.arange(3, device=META)]
    (whole, *_, half), picked = [each for each in counter.launches if each.flop], counter.launches[-1]
    assert (whole.product, half.product) == (False, True)
    assert (whole.moved, half.moved) == (4.0 * (32 + 32 + 64), 2.0 * (32 + 32 + 64))
    assert picked.moved == 4.0 * 12 + 4.0 * 12 + 8 * 3  # rows read and written, and their indices
