"""Tokens: those of timm's and OpenCLIP's own features, all of them or averaged to a grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from substyle.engine.backbones import registry
from substyle.engine.backbones.families import open_clip, timm
from substyle.engine.backbones.spec import Readout
from substyle.engine.extensions.attentive.family import Tokens
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def network(model: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    made = timm.create(model).eval()
    side = int(timm.data_config(made)["side"])
    return made, torch.randn(2, 3, side, side)


def read(made: nn.Module, grid: int, x: torch.Tensor, count: int = -1) -> torch.Tensor:
    with torch.inference_mode():
        found = torch.as_tensor(Tokens(made, grid)(x))
        return found.unflatten(1, (grid**2 or count, -1))


@pytest.mark.parametrize("model", ["test_vit", "test_vit2", "test_vit_relpos"])
def test_tokens_of_a_vit(model: str) -> None:
    """Class token and patches after the final normalisation; neither registers nor a class token that is none."""
    made, x = network(model)
    with torch.inference_mode():
        features_BPD = made.forward_features(x)  # type: ignore[operator]
    own = features_BPD if model == "test_vit" else features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    torch.testing.assert_close(read(made, 0, x, own.shape[1]), own)
    patches = features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    map_BDHW = patches.transpose(1, 2).unflatten(2, (10, 10))
    grid = adaptive_avg_pool2d(map_BDHW, 7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(read(made, 7, x), grid)


@pytest.mark.slow
def test_tokens_of_open_clip_towers() -> None:
    """Those that OpenCLIP returns beside the embedding, before the projection."""
    torch.manual_seed(0)
    tower = open_clip.tower("ViT-B-32").eval()
    x = torch.randn(1, 3, 224, 224)
    module, _ = open_clip.read_at("x", tower, Readout(), 224)
    tokens = read(module, 0, x, 50)
    with torch.inference_mode():
        tower.output_tokens = True  # type: ignore[assignment]
        _, patches = tower(x)
    torch.testing.assert_close(tokens[:, 1:], patches)


def test_a_grid_needs_a_map_of_its_size() -> None:
    context = registry.LoadContext(160, 1, 0)
    with pytest.raises(ConfigError, match="0 to 5, the side of the map"):
        registry.load("tokens:6:control:random:test_resnet", context)
    for name in ("control:pixels", "control:random:test_vit@layer=1,module=ffn"):
        with pytest.raises(ConfigError, match="a network with a map of features"):
            registry.load(f"tokens:2:{name}", context)
    for name in ("tokens:x:control:pixels", "tokens:2", "tokens:2:tokens:2:control:pixels"):
        with pytest.raises(ConfigError, match="tokens:<side of the grid"):
            registry.check_name(name)
