"""Models that are objects of Python, and one network with two checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import substyle
from substyle.engine.backbones import registry
from substyle.engine.backbones.families.given import given
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone, expand, named, own_name, without_own_name
from substyle.engine.commands.embed import backbone_choices
from substyle.engine.config import BackboneChoice, EmbedConfig
from substyle.engine.store.layout import DifferentError
from substyle.errors import ConfigError

CONTEXT = LoadContext(canvas=64, batch=4, seed=0)
pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def loaded(model: Any, context: LoadContext = CONTEXT) -> Backbone:  # noqa: ANN401
    with given({"mine": model}) as ((label, name),):
        assert (label, name) == ("mine", "model:mine")
        return registry.load(name, context)


def embedded(backbone: Backbone, canvas_BSSC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    assert backbone.module is not None
    with torch.inference_mode():
        return backbone.module(torch.from_numpy(canvas_BSSC)).numpy()  # type: ignore[no-any-return]


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(num_classes=10)
    network.fc = nn.Identity()
    return network


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=7)


def test_torchvision_with_the_transform_of_its_weights() -> None:
    network, transform = resnet(), torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    backbone = loaded((network, transform))
    canvas_BSSC = pictures()
    with torch.inference_mode():
        expected = network.eval()(torch.stack([transform(Image.fromarray(each)) for each in canvas_BSSC]))
    np.testing.assert_allclose(embedded(backbone, canvas_BSSC), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (backbone.spec.dim, backbone.spec.input_side, backbone.compiled) == (512, 224, False)
    assert "ImageClassification" in backbone.spec.weights


def test_timm_needs_no_preprocessing_and_is_read_before_its_classifier() -> None:
    network = small()
    backbone = loaded(network)
    bare = copy.deepcopy(network)
    bare.reset_classifier(0)
    side = backbone.spec.input_side
    config = timm.data.resolve_model_data_config(bare) | {"crop_pct": 1.0, "interpolation": "bicubic"}
    transform = timm.data.create_transform(**config)
    assert side != 64
    with torch.inference_mode():
        expected = bare.eval()(torch.stack([transform(Image.fromarray(each)) for each in pictures()])).numpy()
    found = embedded(backbone, pictures())
    assert found.shape == expected.shape
    far = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert far.max() < 0.02  # PIL rounds resized pixels to integers
    given_own = embedded(loaded((network, transform)), pictures())
    np.testing.assert_allclose(given_own, expected, rtol=1e-4, atol=1e-5)
    assert network.num_classes == 7  # the model is the caller's, and is not changed
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_transformers_with_an_image_processor() -> None:
    library = pytest.importorskip("transformers")
    config = library.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    network, processor = library.ViTModel(config).eval(), library.ViTImageProcessor(size={"height": 32, "width": 32})
    with torch.inference_mode():
        x = processor(images=[Image.fromarray(each) for each in pictures()], return_tensors="pt")
        expected = network(**x).pooler_output.numpy()
    np.testing.assert_allclose(embedded(loaded((network, processor)), pictures()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (resnet(), "preprocess turns a PIL image"),
        (3, "got 'int'"),
        ((resnet(), 3), "got 'tuple'"),
        ((nn.Flatten(0), torchvision.transforms.ToTensor()), "one vector per image"),
        ((resnet(), lambda picture: picture), "backbone mine"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, what: str) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=what):
        loaded(model)


def test_models_are_known_within_the_call_alone() -> None:
    loaded(small())
    with pytest.raises(ConfigError, match="not given to this process"):
        registry.load("model:mine", CONTEXT)
    with pytest.raises(ConfigError, match="letters, digits"), given({"a b": small()}):
        pass


def test_a_store_knows_a_model_by_what_it_does(tmp_path: Path, two_classes: Path) -> None:
    config = EmbedConfig(batch=8, threads=1, precision="fp32")

    def embed(model: Any) -> substyle.EmbeddingStore:  # noqa: ANN401
        options: dict[str, Any] = {"transformations": "identity,jpeg", "canvas": 64, "config": config}
        return substyle.embed(two_classes, tmp_path / "s.zarr", {"mine": model, "pixels": "control:pixels"}, **options)

    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(32), torchvision.transforms.ToTensor()])
    store = embed((small(), transform))
    assert {entry.name for entry in store.backbones()} == {"model:mine", "control:pixels@as=pixels"}
    table = substyle.load_table(store, "model:mine")
    assert table.x_TND.shape[:2] == (2, 40)
    assert substyle.load_table(store, "pixels").x_TND.shape[2] == 768
    embed((small(), transform))  # nothing to do
    for other in ((small(1), transform), (small(), torchvision.transforms.ToTensor())):
        with pytest.raises(DifferentError, match="model:mine"):
            embed(other)


def test_names_of_ones_own() -> None:
    assert named("old=timm:resnet18") == ("timm:resnet18@as=old", "old")
    assert named("v1.2=timm:vit@layer=0..3") == ("timm:vit@layer=0..3,as=v1.2", "v1.2")
    assert named("timm:vit@layer=6") == ("timm:vit@layer=6", "")
    assert named("onnx:a=b.onnx") == ("onnx:a=b.onnx", "")
    assert named("old=onnx:runs/a@b.onnx") == ("onnx:runs/a@b.onnx@as=old", "old")
    assert expand("timm:vit@layer=0..1,as=old") == ["timm:vit@layer=0,as=old", "timm:vit@layer=1,as=old"]
    for name in ("timm:vit", "timm:vit@layer=0", "timm:vit@layer=0,pool=avg"):
        assert without_own_name(named(f"x={name}")[0]) == name
        assert own_name(name) == ""
    choice = BackboneChoice("old=timm:resnet18")
    assert (choice.name, choice.label) == ("timm:resnet18@as=old", "old")
    assert BackboneChoice("old=timm:resnet18", label="Old").label == "Old"
    assert BackboneChoice("timm:resnet18").label is None


def test_checkpoints_by_a_name_of_ones_own() -> None:
    old, new = backbone_choices(["old=timm:resnet18", "new=timm:resnet18"], ["new=b=c.pth", "old=a.pth"])
    assert (old.name, old.checkpoint) == ("timm:resnet18@as=old", Path("a.pth"))
    assert (new.name, new.checkpoint) == ("timm:resnet18@as=new", Path("b=c.pth"))
    with pytest.raises(ConfigError, match="one of old"):
        backbone_choices(["old=timm:resnet18"], ["timm:resnet18=a.pth"])


@pytest.mark.parametrize("wrapped", ["model_state_dict", "state_dict", "model", ""])
def test_one_network_with_two_checkpoints(tmp_path: Path, wrapped: str) -> None:
    found = []
    for seed in range(2):
        state, path = small(seed).state_dict(), tmp_path / f"{seed}.pth"
        torch.save({wrapped: state, "epoch": 3} if wrapped else state, path)
        context = LoadContext(canvas=64, batch=4, seed=0, checkpoint=path)
        backbone = registry.load(f"timm:test_resnet@as=n{seed}", context)
        assert backbone.spec.name == f"timm:test_resnet@as=n{seed}"
        assert backbone.spec.architecture == "test_resnet"
        found.append(embedded(backbone, pictures()))
        np.testing.assert_array_equal(found[-1], embedded(registry.load("timm:test_resnet", context), pictures()))
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_probes_of_arrays() -> None:
    rng = np.random.default_rng(0)
    names = [each["name"] for each in substyle.transformations("identity,gaussian_blur,jpeg,grayscale")]
    label_N = rng.integers(0, 3, 200)
    x_TND = rng.normal(size=(4, 200, 8)) + 9 * np.eye(4, 8)[:, None] + 9 * np.eye(8)[4 + label_N]
    config = substyle.ProbeConfig(tasks=("transformation", "class"), heads=("linear",), resamples=0, redraws=0)
    labels = [["a", "b", "c"][label] for label in label_N]
    made = substyle.probe(x_TND, names, labels, config=config)
    assert made["class"]["linear"]["original"]["value"] == pytest.approx(1.0)
    assert made == substyle.probe(x_TND, names, np.array(labels), config=config)
    order = [1, 0, 2, 3]  # identity comes first, wherever it was
    assert made == substyle.probe(x_TND[order], [names[t] for t in order], labels, config=config)
    kinds = ["none", "x", "y", "y"]
    own = substyle.probe(x_TND, ["identity", "a", "b", "c"], kinds=kinds, config=config)
    assert own["class"] is None
    for wrong in (
        {"transformations": ["identity", "a", "b", "c"]},
        {"transformations": names[:3]},
        {"transformations": ["jpeg", *names[:3]]},
        {"labels": labels[1:]},
        {"splits": ["train"] * 199},
        {"kinds": kinds[1:]},
    ):
        with pytest.raises(ConfigError):
            substyle.probe(x_TND, wrong.pop("transformations", names), **wrong)  # type: ignore[arg-type]


def test_only_what_is_public_is_listed() -> None:
    assert {"run", "probe", "embed"} <= set(dir(substyle))
    assert all(hasattr(substyle, name) for name in dir(substyle))
    assert not {"annotations", "import_module", "Any"} & set(dir(substyle))
