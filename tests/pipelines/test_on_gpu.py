"""Makers of variants and decoders on devices that are not there, or not where the canvas is."""

from __future__ import annotations

import pytest
import torch
from tests.pipelines.conftest import scene

from substyle.errors import ConfigError
from substyle.pipelines import variants
from substyle.pipelines.decode import Decoder
from substyle.pipelines.variants import VariantMaker


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


def test_nobody_looks_at_what_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinctness stays on the device: the kernel's result is passed on unread."""
    answer = torch.ones(1, dtype=torch.bool)
    monkeypatch.setattr(variants, "distinct", lambda a, b, subtle: answer)
    maker = VariantMaker(("brightness",), side=64, seed=1, batch=4, threads=1)
    (variant,) = maker(torch.from_numpy(scene(64, 64, 0))[None], ["a"])
    assert variant.distinct_B is answer
