"""Presets: backbones by short names, such as `mae:base`.

An entry repeats the facts of its library, to list them without loading; a test keeps both in agreement.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from substyle.engine.backbones.packages import SHIPPED
from substyle.engine.backbones.spec import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    UNSTATED,
    WHOLE,
    Readout,
    of_tag,
)
from substyle.kernels.errors import ConfigError

# loaders
TIMM, OPEN_CLIP, ALIGN, SIMCLR, CAN = "timm", "open_clip", "align", "simclr", "can"
_HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preset:
    """A preset backbone.

    Attributes:
        name: ``<family>:<size>``.
        loader: one of the loaders above.
        model: the loader's name of the model.
        architecture: the architecture's name in its library.
        dim: embedding width D.
        pooling: description of the pooling.
        side: input side of the network in pixels.
        mean, std: normalisation of RGB in [0, 1].
        weights: source of the weights.
        licence: licence of the weights, if stated by their source.
        side_given: whether ``side`` differs from the library's default.
        readout: where to read the embedding, if not at the model's output.
        needs_checkpoint: whether the weights are not on a hub.
    """

    name: str
    loader: str
    model: str
    architecture: str
    dim: int
    pooling: str
    side: int
    mean: RGB
    std: RGB
    weights: str
    licence: str
    side_given: bool = False
    readout: Readout = WHOLE
    needs_checkpoint: bool = False

    @property
    def family(self) -> str:
        """The part of the name before the colon."""
        return self.name.partition(":")[0]

    @property
    def size(self) -> str:
        """The part of the name after the colon."""
        return self.name.partition(":")[2]

    @property
    def objective(self) -> str:
        """Training objective, as in `BackboneSpec`."""
        return self._trained[0]

    @property
    def data(self) -> str:
        """Training data, if known."""
        return self._trained[1]

    @property
    def _trained(self) -> tuple[str, str]:
        if self.family in _TRAINED:
            return _TRAINED[self.family]
        architecture, _, tag = self.model.partition("." if self.loader == TIMM else "/")
        return of_tag(architecture, tag) if self.loader == TIMM else ("image_text", of_tag(architecture, tag)[1])

    def describe(self) -> dict[str, Any]:
        """Return the preset as plain JSON."""
        return asdict(self) | {"objective": self.objective, "data": self.data}


# families whose model names do not state it; CAN also has a contrastive term
_TRAINED = {"align": ("image_text", "COYO-700M"), "simclr": ("contrastive", "ImageNet-1k"), "can": ("masked", "")}
ABOUT = {
    "mae": "masked autoencoders (He et al., 2022)",
    "clip": "OpenAI's CLIP before its projection; @head=projection is the joint space",
    "supervised": "trained on ImageNet labels",
    "align": "ALIGN trained on COYO-700M, EfficientNet-B7 (extra align)",
    "simclr": "SimCLR ResNet-50; weights from a local file",
    "can": "contrastive masked autoencoders with noise prediction, objective masked; weights from a local file",
    "dinov2": "DINOv2 at 224 pixels",
    "dinov3": "DINOv3",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2",
    "convnext": "ConvNeXt, ImageNet-22k then 1k",
}


def _timm(
    name: str,
    model: str,
    dim: int,
    pooling: str,
    licence: str,
    side: int = 224,
    norm: tuple[RGB, RGB] = (IMAGENET_MEAN, IMAGENET_STD),
    *,
    side_given: bool = False,
) -> Preset:
    return Preset(
        *(name, TIMM, model, model, dim, pooling, side, *norm, f"timm hub: timm/{model}", licence),
        side_given=side_given,
    )


def _clip(name: str, model: str, repository: str, dim: int) -> Preset:
    # the weights were trained with quick GELU
    architecture = f"{model}-quickgelu"
    return Preset(
        *(name, OPEN_CLIP, f"{architecture}/openai", architecture, dim, "tok", 224, CLIP_MEAN, CLIP_STD),
        *(f"open_clip: timm/{repository}", "MIT"),
        readout=Readout(head="none"),
    )


def _can(name: str, model: str, dim: int) -> Preset:
    return Preset(
        *(name, CAN, model, model, dim, "avg", 224, IMAGENET_MEAN, IMAGENET_STD),
        *("checkpoint = path: PyTorch, or Flax parameters as .npz", "see the source of the weights"),
        readout=Readout(pool="avg"),
        needs_checkpoint=True,
    )


def _simclr(name: str, model: str, dim: int) -> Preset:
    return Preset(
        *(name, SIMCLR, model, model, dim, "avg", 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        *("checkpoint = path: TensorFlow (google-research/simclr) or PyTorch", "Apache-2.0"),
        needs_checkpoint=True,
    )


_MAE, _APACHE = "cc-by-nc-4.0", "apache-2.0"
_UNIT = (_HALF, _HALF)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _timm("mae:base", "vit_base_patch16_224.mae", 768, "token", _MAE),
        _timm("mae:large", "vit_large_patch16_224.mae", 1024, "token", _MAE),
        _timm("mae:huge", "vit_huge_patch14_224.mae", 1280, "token", _MAE),
        _clip("clip:base", "ViT-B-16", "vit_base_patch16_clip_224.openai", 768),
        _clip("clip:large", "ViT-L-14", "vit_large_patch14_clip_224.openai", 1024),
        _timm("supervised:base", "vit_base_patch16_224.augreg_in21k_ft_in1k", 768, "token", _APACHE, norm=_UNIT),
        _timm("supervised:large", "vit_large_patch16_224.augreg_in21k_ft_in1k", 1024, "token", _APACHE, norm=_UNIT),
        _timm("supervised:resnet50", "resnet50.a1_in1k", 2048, "avg", _APACHE),
        Preset(
            *("align:base", ALIGN, "kakaobrain/align-base", "AlignVisionModel", 640, "avg", 289, _HALF, _HALF),
            *("transformers: kakaobrain/align-base", "Apache-2.0 (COYO-ALIGN)"),
        ),
        _simclr("simclr:resnet50", "resnet50", 2048),
        _simclr("simclr:resnet50x2", "resnet50x2", 4096),
        _can("can:base", "vit_base_patch16_224", 768),
        _can("can:large", "vit_large_patch16_224", 1024),
        _timm("dinov2:small", "vit_small_patch14_dinov2.lvd142m", 384, "token", _APACHE, side_given=True),
        _timm("dinov2:base", "vit_base_patch14_dinov2.lvd142m", 768, "token", _APACHE, side_given=True),
        _timm("dinov2:large", "vit_large_patch14_dinov2.lvd142m", 1024, "token", _APACHE, side_given=True),
        _timm("dinov3:small", "vit_small_patch16_dinov3.lvd1689m", 384, "avg", "dinov3-license", 256),
        _timm("dinov3:base", "vit_base_patch16_dinov3.lvd1689m", 768, "avg", "dinov3-license", 256),
        _timm("dinov3:large", "vit_large_patch16_dinov3.lvd1689m", 1024, "avg", "dinov3-license", 256),
        _timm("siglip:base", "vit_base_patch16_siglip_224.webli", 768, "map", _APACHE, norm=_UNIT),
        _timm("siglip:large", "vit_large_patch16_siglip_256.webli", 1024, "map", _APACHE, 256, _UNIT),
        _timm("siglip:so400m", "vit_so400m_patch14_siglip_224.webli", 1152, "map", _APACHE, norm=_UNIT),
        _timm("siglip2:base", "vit_base_patch16_siglip_224.v2_webli", 768, "map", _APACHE, norm=_UNIT),
        _timm("siglip2:large", "vit_large_patch16_siglip_256.v2_webli", 1024, "map", _APACHE, 256, _UNIT),
        _timm("siglip2:so400m", "vit_so400m_patch14_siglip_224.v2_webli", 1152, "map", _APACHE, norm=_UNIT),
        _timm("convnext:tiny", "convnext_tiny.fb_in22k_ft_in1k", 768, "avg", _APACHE),
        _timm("convnext:base", "convnext_base.fb_in22k_ft_in1k", 1024, "avg", _APACHE),
        _timm("convnext:large", "convnext_large.fb_in22k_ft_in1k", 1536, "avg", _APACHE),
    )
}


def sizes(family: str) -> tuple[str, ...]:
    """Return the sizes of a family's presets."""
    return tuple(preset.size for preset in PRESETS.values() if preset.family == family)


def preset(family: str, size: str) -> Preset:
    """Return a preset by name. Raises ConfigError, listing the family's presets, if it does not exist."""
    found = PRESETS.get(f"{family}:{size}")
    if found is None:
        allowed = ", ".join(f"{family}:{each}" for each in sizes(family))
        raise ConfigError("backbone", f"{family}:{size}", f"{allowed}; or timm:<model>, open_clip:<arch>/<tag>")
    return found


def stated(name: str) -> tuple[str, str]:
    """Return the objective and pretraining data stated by a backbone's name; "" if unstated.

    Args:
        name: as the user writes it, such as ``timm:vit_base_patch16_224.mae`` or ``clip:base@layer=6``.
    """
    whole = name.partition("@")[0]
    family, _, rest = whole.partition(":")
    if family == "control":
        return "none", ""
    if whole in PRESETS:
        return PRESETS[whole].objective, PRESETS[whole].data
    if family == "package" and rest in SHIPPED:
        return SHIPPED[rest].objective, SHIPPED[rest].data
    if family == "open_clip":
        return "image_text", of_tag(*rest.partition("/")[::2])[1]
    if family == "timm":
        architecture, _, tag = rest.partition(".")
        return of_tag(architecture, tag or _default_tag(architecture))
    return UNSTATED, ""


def _default_tag(architecture: str) -> str:
    import timm

    config = timm.get_pretrained_cfg(architecture)
    return str(config.tag or "") if config is not None else ""
