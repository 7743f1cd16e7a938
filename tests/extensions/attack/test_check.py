"""Studies whose attacks cannot be made are refused before anything is embedded."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.embedding.test_preflight import count

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.extensions.attack.config import AttackConfig
from substyle.engine.extensions.attack.stage import check_attack
from substyle.errors import ConfigError


@pytest.mark.parametrize(
    ("names", "attack", "field", "named"),
    [
        ("timm:a", {}, "attacks", "'transfer'.*no other network to craft an attack on timm:a$"),
        ("timm:a timm:a@layer=2 control:random:b", {}, "attacks", "'transfer'.*on timm:a$"),
        ("timm:a onnx:b.onnx", {}, "attacks", "'transfer'.*on timm:a$"),
        ("onnx:b.onnx", {"attacks": ("fgsm",)}, "backbones", "no network to attack"),
        ("timm:a onnx:b.onnx", {"backbones": ("timm:a", "onnx:b.onnx")}, "backbones", "'onnx:b.onnx'.*torch networks"),
        ("timm:a timm:b", {"photographs": 9}, "attacks", "'9 labelled train photographs'"),
        ("timm:a timm:b", {}, None, ""),
        ("timm:a control:pixels", {"backbones": ("control:pixels",)}, None, ""),
        ("timm:a", {"attacks": ("fgsm", "transfer")}, None, ""),
    ],
)
def test_attacks_that_nothing_can_make(names: str, attack: dict[str, Any], field: str | None, named: str) -> None:
    pytest.importorskip("torchattack")
    config = AttackConfig(**{"attacks": ("transfer",), **attack})
    study = Study("s", tuple(BackboneChoice(name) for name in names.split()))
    counts = count({"a": {"train": 10, "test": 10}, "b": {"train": 10, "test": 10}})
    if field is None:
        check_attack(study, config, counts)
        return
    with pytest.raises(ConfigError, match=named) as caught:
        check_attack(study, config, counts)
    assert caught.value.field == f"attack.{field}"
