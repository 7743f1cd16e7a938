"""On a GPU, as many kernels are launched for a batch of any size: counted on torch's meta device."""

from __future__ import annotations

import pytest
import torch
from benchmarks.fake_gpu import META, Counter
from tests.pipelines.conftest import photographs
from tests.pipelines.conftest import variants as made

from substyle.kernels import dispatch
from substyle.pipelines import variants
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.transforms.suites import fields

OURS = [
    name
    for name, known in load_all().items()
    if known.made_by in ("identity", "dali", "kernel") and not known.by_dali(gpu=True)
]


def launches(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Operations of torch and Triton kernels for a batch; tables that all batches share are made before."""
    monkeypatch.setattr(variants, "as_device", lambda name: META)
    maker = variants.VariantMaker([name], side=64, seed=0, batch=batch, threads=1, device="cuda")
    canvas = torch.empty(batch, 64, 64, 3, dtype=torch.uint8, device=META)
    keys = [str(i) for i in range(batch)]
    list(maker(canvas, keys))
    with Counter() as counter, dispatch.watched(counter.triton):
        list(maker(canvas, keys))
    return len(counter.launches)


@pytest.mark.parametrize("name", OURS)
def test_launches_do_not_grow_with_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert launches(name, 2, monkeypatch) == launches(name, 5, monkeypatch) > 0


def test_a_loop_over_pictures_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    def negative(canvas_BSSC: torch.Tensor, args: base.Arrays, keys_B: object) -> torch.Tensor:
        return torch.stack([255 - x for x in canvas_BSSC])

    looping = base.Transformation("negative", "tone", "train", "kernel", function=negative)
    monkeypatch.setitem(base.REGISTRY, "negative", looping)
    assert launches("negative", 5, monkeypatch) == launches("negative", 2, monkeypatch) + 3


@pytest.mark.parametrize(
    "name",
    [
        *(f"imagenet_c_{name}" for name in ("glass_blur", "pixelate", "snow", "spatter", "speckle_noise")),
        *("dappled_light", "dust", "obfuscation_background_blur_composition", "rain"),
    ],
)
def test_a_batch_makes_the_pixels_that_are_made_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, on a CPU: of the same photographs, and of one alone."""
    x = photographs(97, 5)
    expected = made([name], x)[name].int()
    monkeypatch.setattr(fields, "one_by_one", lambda device: False)
    found = made([name], x)[name]
    difference = (found.int() - expected).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-4  # sums that are rounded otherwise
    assert torch.equal(made([name], x[:1])[name], found[:1])
