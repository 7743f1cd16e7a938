"""Models that `transformers` has saved give the numbers that `transformers` computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import slow_after

from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.engine.backbones.weights import WeightsError
from substyle.errors import ConfigError

library = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 100}


def vit() -> Any:  # noqa: ANN401 - a module of transformers
    return library.ViTModel(library.ViTConfig(**VISION))


def classifier() -> Any:  # noqa: ANN401
    return library.ViTForImageClassification(library.ViTConfig(**VISION))


def dinov2() -> Any:  # noqa: ANN401
    few = {key: VISION[key] for key in VISION if key != "intermediate_size"}
    return library.Dinov2Model(library.Dinov2Config(**few))


def clip() -> Any:  # noqa: ANN401
    return library.CLIPModel(library.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))


def clip_tower() -> Any:  # noqa: ANN401
    return library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**VISION, projection_dim=24))


def siglip() -> Any:  # noqa: ANN401
    return library.SiglipModel(library.SiglipConfig(text_config=TEXT, vision_config=VISION))


def resnet() -> Any:  # noqa: ANN401
    few = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return library.ResNetModel(library.ResNetConfig(**few))


def swin() -> Any:  # noqa: ANN401
    few = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    return library.SwinModel(library.SwinConfig(**few))


# what the library computes from pixel values, in its own words
OWN: dict[Callable[[], Any], Callable[[Any, torch.Tensor], torch.Tensor]] = {
    vit: lambda model, x: model(x).pooler_output,
    classifier: lambda model, x: model.vit(x).last_hidden_state[:, 0],  # no pooler was trained
    dinov2: lambda model, x: model(x).pooler_output,
    clip: lambda model, x: model.visual_projection(model.vision_model(x).pooler_output),
    clip_tower: lambda model, x: model(x).image_embeds,
    siglip: lambda model, x: model.vision_model(x).pooler_output,
    resnet: lambda model, x: model(x).pooler_output.flatten(1),
    swin: lambda model, x: model(x).pooler_output,
}


def saved(make: Callable[[], Any], folder: Path, **changes: object) -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(folder)
    facts = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}, **changes}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return model


def load(folder: Path, options: str = "") -> Backbone:
    return registry.load(f"transformers:{folder}{options}", LoadContext(32, 2, 0))


def canvas() -> tuple[torch.Tensor, torch.Tensor]:
    """Two canvases, and the pixel values that an image processor makes of them."""
    x_BSSC = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return x_BSSC, (x_BSSC.permute(0, 3, 1, 2).float() / 255 - mean) / std


def run(backbone: Backbone, x_BSSC: torch.Tensor) -> torch.Tensor:
    assert backbone.module is not None
    with torch.inference_mode():
        found: torch.Tensor = backbone.module(x_BSSC)
    assert found.shape == (2, backbone.spec.dim)
    return found


@pytest.mark.parametrize("make", slow_after(4, OWN), ids=lambda make: make.__name__)
def test_embeddings_are_those_of_the_library(make: Callable[[], Any], tmp_path: Path) -> None:
    model = saved(make, tmp_path)
    x_BSSC, x = canvas()
    backbone = load(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(run(backbone, x_BSSC), OWN[make](model, x), rtol=1e-4, atol=1e-5)
        tower = getattr(model, "vision_model", getattr(model, "vit", model))
        out = tower(x, output_hidden_states=True)
        states = out.get("reshaped_hidden_states") or out.hidden_states
        first = states[1]
        if first.ndim == 4:
            expected = first.mean((2, 3))
        else:
            prefix = first.shape[1] - 16
            expected = first[:, prefix:].mean(1)
        torch.testing.assert_close(run(load(tmp_path, "@layer=0,pool=avg"), x_BSSC), expected, rtol=1e-4, atol=1e-5)


def test_pooling_and_projection(tmp_path: Path) -> None:
    model = saved(clip, tmp_path)
    x_BSSC, x = canvas()
    with torch.inference_mode():
        out = model.vision_model(x)
        expected = {
            "@head=none": out.pooler_output,
            "@pool=cls": out.last_hidden_state[:, 0],
            "@pool=avg": out.last_hidden_state[:, 1:].mean(1),
            "@pool=max": out.last_hidden_state[:, 1:].amax(1),
        }
    for options, vector in expected.items():
        torch.testing.assert_close(run(load(tmp_path, options), x_BSSC), vector, rtol=1e-4, atol=1e-5)
    assert load(tmp_path).spec.pooling == "the model's own, projected"
    parameters = load(tmp_path).spec.parameters
    assert parameters is not None
    assert parameters < sum(each.numel() for each in model.parameters())  # without the text tower


def test_identity_covers_weights_and_preprocessing(tmp_path: Path) -> None:
    saved(vit, tmp_path)
    name, context = f"transformers:{tmp_path}", LoadContext(32, 2, 0)
    first, spec = registry.identity(name, context), load(tmp_path).spec
    assert first == registry.identity(name, context)
    assert (spec.mean, spec.std, spec.input_side, spec.architecture) == (MEAN, STD, 32, "ViTModel")
    saved(vit, tmp_path, image_mean=[0.1, 0.1, 0.1])
    assert registry.identity(name, context) != first
    assert load(tmp_path).spec.mean == (0.1, 0.1, 0.1)
    assert load(tmp_path, "@mean=0.2,std=0.3").spec.mean == (0.2, 0.2, 0.2)
    saved(vit, tmp_path, do_normalize=False)
    assert (load(tmp_path).spec.mean, load(tmp_path).spec.std) == ((0.0,) * 3, (1.0,) * 3)


def test_preprocessing_is_that_of_the_processor(tmp_path: Path) -> None:
    """EfficientNet's normalises twice; the side is what it makes, not what the model was made for."""
    saved(dinov2, tmp_path, size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16})
    assert load(tmp_path).spec.input_side == 16
    saved(dinov2, tmp_path, size={"longest_edge": 64})
    assert load(tmp_path).spec.input_side == 32
    twice = {"image_processor_type": "EfficientNetImageProcessor"}
    saved(vit, tmp_path, **twice)
    assert load(tmp_path).spec.std == pytest.approx([level**2 for level in STD])
    x = torch.rand(1, 3, 8, 8)
    processor = library.EfficientNetImageProcessor(
        do_resize=False, do_rescale=False, image_mean=MEAN, image_std=STD, input_data_format="channels_first"
    )
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, [level**2 for level in STD]))
    found = torch.as_tensor(processor(x, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(found, (x - mean) / std, rtol=1e-4, atol=1e-4)
    saved(vit, tmp_path, **twice, include_top=False)
    assert load(tmp_path).spec.std == STD


def masked() -> Any:  # noqa: ANN401
    return library.ViTMAEModel(library.ViTMAEConfig(**VISION))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def rewritten(name: str, **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(facts | changes))

    return change


@pytest.mark.parametrize(
    ("make", "change", "kind", "words"),
    [
        (masked, lambda folder: None, ConfigError, "without random masks"),
        (vit, without("config.json"), ConfigError, r"a folder with config\.json"),
        (vit, without("model.safetensors"), WeightsError, "cannot load"),
        (vit, without("preprocessor_config.json"), ConfigError, r"no preprocessor_config\.json"),
        (vit, rewritten("preprocessor_config.json", rescale_factor=1.0), ConfigError, "rescale_factor"),
        (vit, rewritten("preprocessor_config.json", image_std=[0.1]), ConfigError, "preprocessing of"),
        (vit, rewritten("preprocessor_config.json", do_flip_channel_order=True), ConfigError, "do_flip_channel_order"),
        (vit, rewritten("config.json", num_hidden_layers=3), WeightsError, r"has no weights for .*layers?\.2"),
        (vit, rewritten("config.json", model_type="mine", auto_map={"AutoModel": "m.M"}), ConfigError, "mine"),
        (vit, rewritten("config.json", model_type="timm_wrapper", architecture="hf-hub:a/b"), ConfigError, "timm_w"),
        (vit, rewritten("config.json", attn_implementation="a/b"), ConfigError, "attn_implementation"),
        (clip, rewritten("config.json", vision_config={"_attn_implementation": "a/b"}), ConfigError, "_attn_impl"),
        (vit, rewritten("config.json", hidden_size="many"), WeightsError, "cannot load"),
        (vit, rewritten("config.json", hidden_size=0), WeightsError, "cannot load"),
        (vit, rewritten("config.json", architectures=3), WeightsError, "cannot load"),
        (vit, rewritten("config.json", quantization_config={"quant_method": "gptq"}), WeightsError, "cannot load"),
        (vit, lambda folder: (folder / "config.json").write_text("[]"), ConfigError, "model_type"),
        (vit, lambda folder: (folder / "model.safetensors").write_bytes(b"x"), WeightsError, "cannot load"),
    ],
)
def test_other_folders_are_refused(
    make: Callable[[], Any], change: Callable[[Path], object], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    saved(make, tmp_path)
    change(tmp_path)
    with pytest.raises(kind, match=words):
        load(tmp_path)


@pytest.mark.parametrize("options", ["@pool=map", "@head=projection", "@layer=2", "@tokens=5"])
def test_readouts_that_a_model_does_not_have(options: str, tmp_path: Path) -> None:
    saved(vit, tmp_path)
    with pytest.raises(ConfigError):
        load(tmp_path, options)
