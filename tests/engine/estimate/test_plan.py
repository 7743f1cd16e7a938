"""Plans against sums by hand, published operation counts, and the rules of a roofline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from substyle.engine.estimate import networks
from substyle.errors import ConfigError


def test_an_image_tower_of_open_clip() -> None:
    facts = networks.backbone("open_clip:ViT-B-32/openai", 2)
    assert facts.dim == 512
    assert facts.work.flop / 1e9 == pytest.approx(8.8, rel=0.03)  # 4.4 GMACs, open_clip's model profile


def test_a_network_that_looks_at_its_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.max())

    monkeypatch.setattr(networks.timm, "create", lambda model: Looks(1, 1))
    with pytest.raises(ConfigError) as caught:
        networks.backbone("timm:test_vit", 1)
    assert (caught.value.field, caught.value.given) == ("backbone timm:test_vit", "test_vit")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("name", "given"),
    [("timm:no_such", "no_such"), ("onnx:x.onnx", "onnx"), ("package:x", "x")],
)
def test_backbones_that_cannot_be_planned_for(name: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks.backbone(name, 2)
    assert (caught.value.field, caught.value.given) == (f"backbone {name}", given)
