"""Presets: backbones by short names, such as `mae:base`.

An entry repeats the facts of its library, to list them without loading; a test keeps both in agreement.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
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
from substyle.engine.backbones.weights import HUB
from substyle.errors import ConfigError

# loaders
TIMM, OPEN_CLIP, CAN = "timm", "open_clip", "can"
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
# and AIMv2 predicts patches and text one after another, which no objective here describes
_TRAINED = {
    "aimv2": (UNSTATED, ""),
    "can": ("masked", ""),
}
ABOUT = {
    "mae": "masked autoencoders (He et al., 2022)",
    "clip": "OpenAI's CLIP before its projection; @head=projection is the joint space",
    "supervised": "trained on ImageNet labels",
    "can": "contrastive masked autoencoders with noise prediction, objective masked; weights from a local file",
    "dinov2": "DINOv2 at 224 pixels",
    "dinov3": "DINOv3",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2",
    "convnext": "ConvNeXt, ImageNet-22k then 1k",
    "pe": "Perception Encoder, core",
    "aimv2": "AIMv2, autoregressive in patches and text",
    "metaclip2": "MetaCLIP 2, worldwide, before its projection",
    "radio": "RADIO v3, distilled from several models, at 224 pixels",
    "tips": "TIPS v2 at 224 pixels",
    "eupe": "EUPE, distilled from several models",
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


_MAE, _APACHE = "cc-by-nc-4.0", "apache-2.0"
_NVIDIA, _FAIR = "nvidia-open-model-license", "fair-noncommercial-research-license"
_UNIT, _CLIP, _RAW = (_HALF, _HALF), (CLIP_MEAN, CLIP_STD), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

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
        _timm("pe:base", "vit_pe_core_base_patch16_224.fb", 768, "map", _APACHE, norm=_UNIT),
        _timm("pe:large", "vit_pe_core_large_patch14_336.fb", 1024, "map", _APACHE, 336, _UNIT),
        _timm("aimv2:large", "aimv2_large_patch14_224.apple_pt", 1024, "avg", "apple-ascl", norm=_CLIP),
        replace(
            _timm(
                *("metaclip2:huge", "vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide", 1280, "token", _MAE),
                norm=_CLIP,
            ),
            weights="timm hub: timm/vit_huge_patch14_clip_224.metaclip2_worldwide",  # the same for both activations
        ),
        _timm("radio:base", "vit_base_patch16_radio_v3.c_radio", 768, "token", _NVIDIA, norm=_CLIP, side_given=True),
        _timm("radio:large", "vit_large_patch16_radio_v3.c_radio", 1024, "token", _NVIDIA, norm=_CLIP, side_given=True),
        _timm("tips:base", "vit_base_patch14_reg1_tipsv2.webli", 768, "token", _APACHE, norm=_RAW, side_given=True),
        _timm("tips:large", "vit_large_patch14_reg1_tipsv2.webli", 1024, "token", _APACHE, norm=_RAW, side_given=True),
        _timm("eupe:small", "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m", 384, "avg", _FAIR, 256),
        _timm("eupe:base", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", 768, "avg", _FAIR, 256),
    )
}


# published weights of families without presets, which libraries load by these names
_ON_HUB = {
    "simclr": f"{TIMM}:{HUB}lightly-ai/simclrv1-imagenet1k-resnet50-1x",
    "align": f"transformers:{HUB}kakaobrain/align-base",
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


def meant(name: str) -> str:
    """Suggestion for a name without a family, as timm, open_clip and the hub write it; empty if there is none."""
    import open_clip
    import timm

    if hub := _ON_HUB.get(name.partition(":")[0]):
        return f"{hub} (did you mean that?); "
    bare = re.sub(r"^hf[-_]hub:(timm/)?", "", name)
    model, _, tag = bare.partition("@")[0].partition("/")
    if not tag and timm.is_model(model):
        return f"timm:{bare} (did you mean that?); "
    if model in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(model)
        found = [tag] if tag else tags[:3] or ["<path>"]
        return f"{' or '.join(f'open_clip:{model}/{each}' for each in found)} (did you mean that?); "
    if bare != name:
        near = [f"{library}:{HUB}{name[len(HUB) :]}" for library in (TIMM, OPEN_CLIP)]
    else:
        near = get_close_matches(name, PRESETS, n=3, cutoff=0.75)
    return f"{' or '.join(near)} (did you mean that?); " if near else ""


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
        return "image_text", "" if rest.startswith(HUB) else of_tag(*rest.partition("/")[::2])[1]
    rest = rest.removeprefix(f"{HUB}timm/")
    if family == "timm" and not rest.startswith(HUB):  # names of other owners state nothing
        architecture, _, tag = rest.partition(".")
        return of_tag(architecture, tag or _default_tag(architecture))
    return UNSTATED, ""


def _default_tag(architecture: str) -> str:
    import timm

    config = timm.get_pretrained_cfg(architecture)
    return str(config.tag or "") if config is not None else ""
