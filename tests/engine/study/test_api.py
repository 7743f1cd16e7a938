"""`import substyle`: cost, and agreement of functions with commands."""

from __future__ import annotations

import pytest

import substyle
from substyle.errors import ConfigError


def test_lists() -> None:
    assert [d["name"] for d in substyle.transformations("identity,jpeg")] == ["identity", "jpeg"]
    assert len(substyle.transformations()) == 31
    assert {"mae:base", "package:clip_vit_b16"} <= set(substyle.backbones())
    with pytest.raises(ConfigError) as caught:
        substyle.transformations("jpg")
    assert caught.value.field == "suite"
