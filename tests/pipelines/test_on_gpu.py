"""GPU implementations of DALI transformations, run on the CPU against DALI, and the choice between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.pipelines.conftest import scene

from substyle.kernels import color, philox
from substyle.kernels.errors import ConfigError
from substyle.pipelines import variants
from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, load_all

load_all()
OWN = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")
FORMS = tuple(name for name in OWN if base.get(name).on_gpu is not None)
TEST_B = np.array([True, False, True, False])


def canvas(side: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([scene(side, side, seed) for seed in range(4)]))


def made(names: tuple[str, ...], side: int) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=side, seed=1, batch=4, threads=2)
    return {v.name: v.pixels_BSSC for v in maker(canvas(side), list("abcd"), TEST_B)}


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makers use GPU implementations on the CPU."""
    monkeypatch.setattr(VariantMaker, "on_gpu", property(lambda maker: True))


@pytest.mark.parametrize("side", [64, 97])
def test_the_same_pixels_within_rounding(side: int, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernels = made(OWN, side)
    monkeypatch.undo()
    by_dali = made(OWN, side)
    assert list(by_kernels) == list(OWN)
    for name in OWN:
        difference = (by_kernels[name].int() - by_dali[name].int()).abs()
        if name not in FORMS:
            assert not difference.any(), name
        else:
            # one level of coverage may be two levels of the blend
            assert difference.max() <= (2 if base.get(name).coarse == "overlay" else 1), name
            assert (difference > 0).float().mean() < (0.02 if base.get(name).coarse == "overlay" else 0.002), name


def test_dali_makes_what_has_no_other_form(as_on_gpu: None) -> None:
    maker = VariantMaker(OWN, side=64, seed=1, batch=4, threads=2)
    assert maker.graph is not None
    made_by_dali = {name for name in OWN if base.get(name).made_by == "dali"}
    assert set(maker.graph.inputs) == made_by_dali - set(FORMS)
    assert VariantMaker(("identity", *FORMS), side=64, seed=1, batch=4, threads=2).graph is None


def test_all_maps_of_colours_are_made_from_one_read(as_on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    right = color.colours

    def counting(pixels: torch.Tensor, maps: torch.Tensor, *bands: Any) -> torch.Tensor:  # noqa: ANN401
        asked.append(len(maps))
        return right(pixels, maps, *bands)

    monkeypatch.setattr(color, "colours", counting)
    wanted = ("hue_shift", "grayscale", "channel_permute", "brightness", "low_contrast", "saturate", "inverted_lines")
    made(wanted, 64)
    assert asked == [6, 0]  # the last draws bands only


def test_the_forms_take_the_parameters_that_dali_takes() -> None:
    keys_B = philox.image_keys(0, list("abcd"))
    for name in FORMS:
        on_cpu, on_gpu = (base.get(name).draw(keys_B, 224, TEST_B, gpu=gpu) for gpu in (False, True))
        assert set(on_cpu) == set(on_gpu)
        for argument, values in on_cpu.items():
            if argument != "page":  # the index instead of the pixels
                np.testing.assert_array_equal(values, on_gpu[argument])
    pages: NDArray[Any] = base.get("icon_overlay").draw(keys_B, 224, TEST_B, gpu=True)["page"]
    assert (pages % 3 == 2).tolist() == TEST_B.tolist()


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for make in (
        lambda: VariantMaker(("identity",), side=64, seed=0, batch=4, threads=1, device=name),
        lambda: Decoder(64, 4, 1, device=name),
    ):
        with pytest.raises(ConfigError, match="cpu") as caught:
            make()
        assert (caught.value.field, caught.value.given) == ("device", name)


def test_a_canvas_elsewhere_is_refused() -> None:
    maker = VariantMaker(("identity",), side=64, seed=0, batch=4, threads=1)
    with pytest.raises(ConfigError, match=r"meta.* cpu") as caught:
        list(maker(torch.empty(1, 64, 64, 3, dtype=torch.uint8, device="meta"), ["a"]))
    assert caught.value.field == "canvas"


def test_nobody_looks_at_what_is_on_the_device(as_on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinctness stays on the device: the kernel's result is passed on unread."""
    answer = torch.ones(4, dtype=torch.bool)
    monkeypatch.setattr(variants, "distinct", lambda a, b, subtle: answer)
    maker = VariantMaker(("brightness",), side=64, seed=1, batch=4, threads=1)
    (variant,) = maker(canvas(64), list("abcd"))
    assert variant.distinct_B is answer
