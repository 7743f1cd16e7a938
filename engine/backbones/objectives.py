"""What a backbone was trained for and on, as its name states it: read from names and tags, never from weights."""

from __future__ import annotations

import re

OBJECTIVES = ("masked", "image_text", "contrastive", "distilled", "supervised", "none")
UNSTATED = ""

# The first that fits a timm or open_clip name, `architecture.tag`. Training that ended on labels is supervised.
_BY_NAME = (
    (r"ft_in\d|lc_in1k", "supervised"),
    (r"[._](fc)?mae|[._]mim_|ijepa", "masked"),
    (r"dino|lvd\d|sat493m|c_radio", "distilled"),
    (r"simclr|moco|swav|[._]seer", "contrastive"),
    (r"clip|siglip|webli|openai|laion|datacomp|dfn\d|tips|coca_", "image_text"),
    (r"[._]in(w?21|1|12|22)k", "supervised"),
)
_DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "inw21k": "ImageNet-21k (winter)",
    "in22k": "ImageNet-22k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "openai": "WIT-400M (OpenAI)",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "laion5b": "LAION-5B",
    "laiona": "LAION-Aesthetic",
    "datacomp1b": "DataComp-1B",
    "datacompxl": "DataComp-1B",
    "datacomp_xl": "DataComp-1B",
    "commonpool_xl": "CommonPool-XL",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "metaclip_400m": "MetaCLIP-400M",
    "metaclip_2pt5b": "MetaCLIP-2.5B",
    "merged2b": "Merged-2B",
    "webli": "WebLI",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "jft": "JFT-300M",
}
_DATA_WORDS = re.compile("(?<![a-z0-9])(" + "|".join(sorted(_DATA, key=len, reverse=True)) + ")(?![0-9])")
# tags that name their method alone
_DATA_OF_METHOD = {"mae": "ImageNet-1k", "fcmae": "ImageNet-1k", "dino": "ImageNet-1k", "fb_dino": "ImageNet-1k"}


def of_tag(architecture: str, tag: str) -> tuple[str, str]:
    """Objective and pretraining data of pretrained weights of timm or open_clip.

    Args:
        architecture: such as ``vit_base_patch16_224``.
        tag: such as ``mae`` or ``augreg_in21k_ft_in1k``.

    Returns:
        one of `OBJECTIVES` and the data in words, in the order of training; "" for what the tag does not state.
    """
    name = f"{architecture}.{tag}".lower()
    objective = next((found for pattern, found in _BY_NAME if re.search(pattern, name)), UNSTATED)
    words = dict.fromkeys(_DATA[word] for word in _DATA_WORDS.findall(tag.lower()))
    return objective, ", ".join(words) or _DATA_OF_METHOD.get(tag, "")
