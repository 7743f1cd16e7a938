"""Backbones named by a repository of a hub, read from a cache that the libraries' own functions have filled."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.registry import LoadContext, check_name, identity, load
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.store.layout import network_changes, network_facts
from substyle.errors import ConfigError

CONTEXT = LoadContext(64, 2, 0)
LEVELS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the repository ``me/tiny`` in the cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder, revision = tmp_path / "models--me--tiny", "0" * 40
    for name in ("refs", f"snapshots/{revision}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text(revision)
    return folder / "snapshots" / revision


@pytest.mark.parametrize("spoilt", ["compiled", "without a block"])
def test_a_repository_whose_weights_do_not_fit_is_no_network(repository: Path, spoilt: str) -> None:
    """timm loads what fits and leaves the rest random."""
    import timm

    network = timm.create_model("test_vit", num_classes=7).eval()
    timm.models.save_for_hf(network, repository)
    state = network.state_dict()
    if spoilt == "compiled":
        state = {f"_orig_mod.{key}": value for key, value in state.items()}
    else:
        state = {key: value for key, value in state.items() if not key.startswith("blocks.1.")}
    save_file({key: value.clone() for key, value in state.items()}, repository / "model.safetensors")
    for file in repository.glob("*.bin"):
        file.unlink()
    with pytest.raises(WeightsError, match=r"me/tiny has no weights for \d+ of \d+ tensors"):
        load("timm:hf-hub:me/tiny", CONTEXT)


@pytest.mark.slow
def test_a_repository_of_open_clip(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    config = {"model_cfg": model, "preprocess_cfg": LEVELS}
    (repository / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="me/tiny"):  # not a network with random weights
        load("open_clip:hf-hub:me/tiny", CONTEXT)
    torch.manual_seed(0)
    whole = open_clip.CLIP(**model).eval()
    save_file(whole.state_dict(), repository / "open_clip_model.safetensors")
    monkeypatch.chdir(repository)
    Path("tiny").touch()  # not what the name states
    backbone = load("open_clip:hf-hub:me/tiny", CONTEXT)
    spec = backbone.spec
    assert (spec.weights, spec.mean, spec.objective) == ("open_clip: me/tiny", (0.1, 0.2, 0.3), "image_text")
    assert identity("open_clip:hf-hub:me/tiny", CONTEXT) is None
    assert backbone.module is not None
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), whole.encode_image(x))
    (repository / "open_clip_config.json").write_text(json.dumps(config | {"model_cfg": model | {"quick_gelu": False}}))
    other = load("open_clip:hf-hub:me/tiny", CONTEXT)  # the same weights in another network
    assert other.spec.weights_hash == spec.weights_hash
    before, after = (
        network_facts(LazyBackbone.of(each, canvas=CONTEXT.canvas, batch=2).spec.describe())
        for each in (backbone, other)
    )
    assert network_changes(before, after, "before")


def test_position_embeddings_of_another_side_are_refused(tmp_path: Path) -> None:
    """open_clip and timm resample them."""
    import open_clip

    from substyle.engine.backbones.families import open_clip as family
    from substyle.engine.backbones.families import timm

    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    vision = {"layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    small, large = (open_clip.CLIP(32, vision | {"image_size": side}, text) for side in (32, 64))
    for whole in (small, large):
        save_file(whole.state_dict(), tmp_path / "w.safetensors")
        refused = pytest.raises(
            WeightsError, match=r"w\.safetensors has another input side: positional_embedding \[5, 64\]"
        )
        with refused if whole is small else nullcontext():
            family._refuse_resampled("clip:x", tmp_path / "w.safetensors", large.visual)
    shapes = {
        "visual.positional_embedding": (5, 64),
        "visual.conv1.weight": (64, 3, 16, 16),
        "positional_embedding": (8, 32),
    }
    state = {"pos_embed": torch.zeros(1, 17, 64), "patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}
    with pytest.raises(WeightsError, match=r"visual\.positional_embedding \[5, 64\], not \[1, 17, 64\]$"):
        timm._refuse_resampled("timm:x", "w", shapes, state, resized=False)
    timm._refuse_resampled("timm:x", "w", shapes, state, resized=True)
    timm._refuse_resampled("timm:x", "w", shapes | {"visual.positional_embedding": (17, 64)}, state, resized=False)


def test_repositories_that_cannot_be_used(repository: Path) -> None:
    (repository / "config.json").write_text('{"architectures": ["ViTModel"]}')
    for library in ("timm", "open_clip"):
        with pytest.raises(WeightsError, match=r"me/other.*cannot be reached.*with network access\.$"):
            load(f"{library}:hf-hub:me/other", CONTEXT)
        with pytest.raises(WeightsError, match=f"{library}:hf-hub:me/tiny: cannot load the weights .*me/tiny"):
            load(f"{library}:hf-hub:me/tiny", CONTEXT)
        with pytest.raises(ConfigError, match="allowed: hf-hub:<owner>/<name>"):
            load(f"{library}:hf-hub:me/tiny@v2", CONTEXT)
        with pytest.raises(ConfigError, match="without hf-hub:"):
            load(f"{library}:hf-hub:me/tiny", LoadContext(64, 2, 0, repository / "config.json"))
    with pytest.raises(ConfigError, match="random:<timm model>"):
        check_name("control:random:hf-hub:me/tiny")
    with pytest.raises(ConfigError, match=r"timm:hf-hub:me/tiny or open_clip:hf-hub:me/tiny \(did you"):
        check_name("hf-hub:me/tiny")


def test_a_repository_of_timm(repository: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=7).eval()
    network.pretrained_cfg |= LEVELS
    timm.models.save_for_hf(network, repository)
    backbone = load("timm:hf-hub:me/tiny", CONTEXT)
    spec = backbone.spec
    assert (spec.architecture, spec.weights, spec.mean) == ("test_vit", "timm hub: me/tiny", (0.1, 0.2, 0.3))
    assert (spec.objective, spec.data) == ("", "")
    assert identity("timm:hf-hub:me/tiny", CONTEXT) is None  # the weights of a hub may change
    assert backbone.module is not None
    x = torch.randn(2, 3, spec.input_side, spec.input_side)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), expected)
    assert load("timm:hf-hub:me/tiny@pool=avg", CONTEXT).spec.pooling == "avg"
