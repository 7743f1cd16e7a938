from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from substyle.engine.backbones import registry
from substyle.engine.backbones.families import blocks, open_clip
from substyle.engine.backbones.spec import Backbone, Readout
from substyle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str, checkpoint: Path | None = None) -> Backbone:
    return registry.load(name, registry.LoadContext(224, 2, 0, checkpoint))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import timm

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    out = {}
    for model in ("test_vit", "test_resnet"):
        out[model] = folder / f"{model}.pth"
        torch.save(timm.create_model(model, pretrained=False).state_dict(), out[model])
    return out


def reference(model: str, weights: dict[str, Path]) -> torch.nn.Module:
    import timm

    network = timm.create_model(model, pretrained=False, num_classes=0)
    state = torch.load(weights[model])
    network.load_state_dict({key: value for key, value in state.items() if key in network.state_dict()})
    return network.eval()


def read(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    assert backbone.module is not None
    with torch.inference_mode():
        return torch.as_tensor(backbone.module.get_submodule("network")(x))


@pytest.mark.parametrize("pool", ["cls", "avg", "max"])
@pytest.mark.parametrize("layer", [0, 2, -1])
def test_a_block_of_a_vit(weights: dict[str, Path], layer: int, pool: str) -> None:
    network = reference("test_vit", weights)
    backbone = load(f"timm:test_vit@layer={layer},pool={pool}", weights["test_vit"])
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        tokens, prefix = network.get_intermediate_layers(x, n=[layer % len(network.blocks)], return_prefix_tokens=True)[
            0
        ]
    expected = {"cls": prefix[:, 0], "avg": tokens.mean(1), "max": tokens.amax(1)}[pool]
    torch.testing.assert_close(read(backbone, x), expected)
    assert f"block {layer % len(network.blocks)} of" in backbone.spec.pooling
    assert backbone.spec.weights_hash == load("timm:test_vit", weights["test_vit"]).spec.weights_hash


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize(("module", "submodule"), [("attention", "attn"), ("ffn", "mlp")])
def test_a_branch_of_a_block_is_what_a_hook_sees(
    weights: dict[str, Path], module: str, submodule: str, pool: str
) -> None:
    network = reference("test_vit", weights)  # without layer scale
    seen: list[torch.Tensor] = []
    network.blocks[2].get_submodule(submodule).register_forward_hook(lambda _, x, out: seen.append(out))
    backbone = load(f"timm:test_vit@layer=2,module={module},pool={pool}", weights["test_vit"])
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        network(x)
    expected = seen[0][:, 0] if pool == "cls" else seen[0][:, 1:].mean(1)
    torch.testing.assert_close(read(backbone, x), expected)
    assert backbone.spec.pooling == f"{pool}, {module} of block 2 of 0 to {len(network.blocks) - 1}"


def test_stages_of_a_resnet(weights: dict[str, Path]) -> None:
    network = reference("test_resnet", weights)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        maps = network.forward_intermediates(x, intermediates_only=True)
    for layer, expected in enumerate(maps):
        backbone = load(f"timm:test_resnet@layer={layer}", weights["test_resnet"])
        torch.testing.assert_close(read(backbone, x), expected.mean((2, 3)))
        assert backbone.spec.dim == expected.shape[1]


def test_later_blocks_are_not_computed(weights: dict[str, Path]) -> None:
    network = reference("test_vit", weights)

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("computed")

    network.blocks[3] = Broken()
    assert len(blocks.intermediates(network, torch.zeros(1, 3, 160, 160), [2])) == 1


@pytest.mark.parametrize("pool", ["cls", "avg", "max"])
def test_another_pooling_is_that_of_timm(weights: dict[str, Path], pool: str) -> None:
    network = reference("test_vit", weights)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        tokens = network.forward_features(x)
    expected = {"cls": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1)}[pool]
    backbone = load(f"timm:test_vit@pool={pool}", weights["test_vit"])
    torch.testing.assert_close(read(backbone, x), expected)
    assert backbone.spec.pooling == pool
    plain = load("timm:test_vit", weights["test_vit"])
    assert (pool == "cls") == torch.equal(read(plain, x), expected)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("timm:test_vit@layer=99", r"^-\d+ to \d+$"),
        ("timm:test_vit@pool=map", ": avg, max, cls$"),
        ("timm:test_vit@pool=none", "cls, avg or max"),
        ("timm:test_vit@layer=0,pool=map", "^cls, avg, max$"),
        ("timm:test_resnet@pool=cls", ": avg, max($| )"),
        ("timm:test_resnet@layer=0,pool=cls", "^avg, max$"),
        ("timm:test_resnet@layer=0,module=ffn", "^block; only ViTs"),
        ("timm:test_vit@head=projection", "open_clip:, clip: or package:clip_vit_b16"),
        ("timm:test_vit@layer=0,head=projection", "open_clip:, clip: or package:clip_vit_b16"),
    ],
)
def test_what_a_network_has_not_got_is_named(weights: dict[str, Path], name: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name, weights[name.partition(":")[2].partition("@")[0]])
    assert caught.value.field == f"backbone {name}"
    assert re.search(allowed, caught.value.allowed), caught.value.allowed


def tower() -> torch.nn.Module:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(32, 16, 16, 3, 2, 2.0, output_dim=8).eval()


def test_a_clip_tower_before_its_projection() -> None:
    x = torch.randn(2, 3, 32, 32)
    whole = tower()
    with torch.inference_mode():
        joint = whole(x)
        bare, words = open_clip.read_at("x", tower(), Readout(head="none"), 32)
        before = bare(x)
        torch.testing.assert_close(before @ whole.proj, joint)
        assert words == "tok"
        averaged, words = open_clip.read_at("x", tower(), Readout(pool="avg", head="none"), 32)
        tokens = whole.forward_intermediates(x, intermediates_only=True, normalize_intermediates=True, output_fmt="NLC")
        torch.testing.assert_close(averaged(x), tokens["image_intermediates"][-1].mean(1))
        block, words = open_clip.read_at("x", tower(), Readout(layer=0), 32)
        tokens = whole.forward_intermediates(x, intermediates_only=True, output_extra_tokens=True)
        torch.testing.assert_close(block(x), tokens["image_intermediates_prefix"][0][:, 0])
        assert words == "cls, block 0 of 0 to 2"
    with pytest.raises(ConfigError, match="cls, avg"):
        open_clip.read_at("x", tower(), Readout(pool="max"), 32)


def test_projection_of_an_attention_pooled_resnet_cannot_be_taken_off() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    network = ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=64, width=4).eval()
    with pytest.raises(ConfigError, match="layer=-1,pool=avg"):
        open_clip.read_at("x", network, Readout(head="none"), 64)
    with pytest.raises(ConfigError) as caught:
        open_clip.read_at("x", network, Readout(pool="avg"), 64)
    assert (caught.value.field, caught.value.given) == ("backbone x", "pool=avg")
    assert open_clip.read_at("x", network, Readout(layer=-1), 64)[1] == "avg, block 4 of 0 to 4"
