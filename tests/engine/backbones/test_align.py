from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.conftest import photograph

from substyle.engine.backbones import registry, weights
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families import align
from substyle.engine.backbones.families.timm import recalibrate
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.kernels.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def load(checkpoint: Path | None, name: str = "align:base") -> Backbone:
    return registry.load(name, LoadContext(224, 2, 0, checkpoint))


@pytest.fixture(scope="module")
def library() -> ModuleType:
    found = pytest.importorskip("transformers")
    assert isinstance(found, ModuleType)
    return found


@pytest.fixture(scope="module")
def tower(library: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A narrow and shallow image tower, and the folder that the library saved it to."""
    torch.manual_seed(0)
    config = library.AlignVisionConfig(width_coefficient=0.25, depth_coefficient=0.3)
    model = library.AlignVisionModel(config)
    # fresh weights let activations fade to nothing
    front = Preprocessed(align.Tower(model), canvas=32, side=289, mean=(0.5,) * 3, std=(0.5,) * 3)
    recalibrate(front, np.stack([np.array(photograph(i, 32, 32)) for i in range(4)]))
    folder = tmp_path_factory.mktemp("align")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.slow
def test_a_folder_of_the_library(tower: tuple[torch.nn.Module, Path]) -> None:
    model, folder = tower
    backbone = load(folder)
    assert (backbone.spec.input_side, backbone.spec.mean, backbone.spec.pooling) == (289, (0.5, 0.5, 0.5), "avg")
    assert backbone.module is not None
    x = torch.randn(2, 3, 289, 289)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), expected.pooler_output)
    assert expected.pooler_output.abs().mean() > 1e-2
    assert backbone.spec.dim == expected.pooler_output.shape[1]


def test_blocks_and_pooling(tower: tuple[torch.nn.Module, Path]) -> None:
    model, folder = tower
    x = torch.randn(1, 3, 289, 289)
    with torch.inference_mode():
        found = model(x, output_hidden_states=True)
        for layer in (0, 3, -1):
            backbone = load(folder, f"align:base@layer={layer}")
            assert backbone.module is not None
            expected = found.hidden_states[1:][layer].mean((2, 3))
            torch.testing.assert_close(backbone.module.get_submodule("network")(x), expected)
        backbone = load(folder, "align:base@pool=max")
        assert backbone.module is not None
        torch.testing.assert_close(backbone.module.get_submodule("network")(x), found.last_hidden_state.amax((2, 3)))
    assert load(folder, "align:base@pool=max,std=0.25").spec.std == (0.25, 0.25, 0.25)
    assert load(folder, "align:base@tokens=1").spec.tokens == 1
    with pytest.raises(ConfigError) as caught:
        load(folder, "align:base@pool=cls")
    assert (caught.value.given, caught.value.allowed) == ("pool=cls", "avg, max, tokens")


def test_weights_of_both_towers(tower: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    model, folder = tower
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = {f"vision_model.{key}": value for key, value in model.state_dict().items()}
    state |= {"text_model.encoder.weight": torch.zeros(1), "text_projection.bias": torch.zeros(1)}
    state |= {"temperature": torch.zeros(())}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert load(tmp_path).spec.weights_hash == load(folder).spec.weights_hash
    del state["vision_model.embeddings.convolution.weight"]
    state["more.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    misfit = r"1 keys missing \[embeddings\.convolution\.weight\], 1 unexpected \[more\.weight\]"
    with pytest.raises(weights.WeightsError, match=misfit):
        load(tmp_path)
    with pytest.raises(weights.WeightsError, match=r"embeddings\.convolution\.weight \[.*\], not \[.*\]"):
        load(folder / "model.safetensors")  # without its configuration it is taken for the published size
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        load(tmp_path / "nothing")
    assert (caught.value.field, caught.value.given) == ("align:base: checkpoint", str(tmp_path / "nothing"))


def test_a_repository_of_both_towers(
    tower: tuple[torch.nn.Module, Path], library: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the hub's client caches one: only the tower's own keys may be there, and all of them, by name."""
    from huggingface_hub import constants

    model, folder = tower
    text = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    whole = library.AlignModel(
        library.AlignConfig(vision_config=model.config.to_dict(), text_config={**text, "vocab_size": 8})
    )
    whole.vision_model.load_state_dict(model.state_dict())
    repository = tmp_path / "models--kakaobrain--align-base"
    snapshot = repository / "snapshots" / "0123"
    whole.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = load(None).spec
    assert (found.weights_hash, found.licence) == (load(folder).spec.weights_hash, "Apache-2.0 (COYO-ALIGN)")

    state = whole.state_dict()
    state["vision_model.more.weight"] = state.pop("vision_model.embeddings.convolution.weight")
    (snapshot / "model.safetensors").unlink()
    torch.save(state, snapshot / "pytorch_model.bin")
    misfit = r"1 keys missing \[embeddings\.convolution\.weight\], 1 unexpected \[more\.weight\]"
    with pytest.raises(weights.WeightsError, match=misfit):
        load(None)
    (snapshot / "pytorch_model.bin").unlink()
    with pytest.raises(weights.WeightsError, match=r"^align:base: .*kakaobrain/align-base"):
        load(None)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> ModuleType:
        if name == "transformers":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(align.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"substyle\[align\]"):
        load(None)


def test_a_hub_out_of_reach(library: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(weights.WeightsError, match=rf"kakaobrain/align-base.*{tmp_path}.*checkpoint = path"):
        load(None)
