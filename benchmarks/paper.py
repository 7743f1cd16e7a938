"""The method of arXiv 2307.05610 in plain Python: what does an image embedding know?

Photographs are varied by transformations, a frozen network embeds every variant, and linear probes learn from the
embeddings to name the transformation, its kind (with some transformations held out) and the class of the
photograph. This file needs Pillow, NumPy, timm, torch and scikit-learn, and nothing of substyle:

    python benchmarks/paper.py PHOTOGRAPHS --model tf_efficientnet_lite0 --checkpoint weights.pth

PHOTOGRAPHS has a subfolder for each class, or train, val and test with one for each class. Read it from top to bottom:
`study` is the whole experiment. substyle does the same with more transformations, probes and backbones, for millions of
photographs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.data import resolve_model_data_config

SPLITS = ("train", "val", "test")
KINDS = (".jpg", ".jpeg", ".png")
CANVAS = 224  # side that strengths in pixels refer to
Pixels = np.ndarray  # (S, S, 3) uint8
Draw = np.random.Generator


# --- transformations: functions of pixels and random numbers ------------------------------------------------------


def clipped(values: np.ndarray) -> Pixels:
    """Round and clip to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def gaussian_blur(x: Pixels, draw: Draw) -> Pixels:
    """Gaussian blur, cut at three sigma; borders reflect."""
    sigma = draw.choice([2, 3, 4, 6]) * len(x) / CANVAS
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    y = x.astype(np.float64)
    for axis in (0, 1):
        wide = np.pad(y, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        y = sum(w * np.take(wide, range(i, i + len(x)), axis=axis) for i, w in enumerate(weights))
    return clipped(y)


def gaussian_noise(x: Pixels, draw: Draw) -> Pixels:
    """Independent normal noise for every value."""
    return clipped(x + 255 * draw.choice([0.12, 0.18, 0.26, 0.38]) * draw.standard_normal(x.shape))


def impulse_noise(x: Pixels, draw: Draw) -> Pixels:
    """A share of the values becomes 0 or 255."""
    hit = draw.random(x.shape) < draw.choice([0.06, 0.09, 0.17, 0.27])
    return np.where(hit, np.where(draw.random(x.shape) < 0.5, 0, 255), x).astype(np.uint8)


YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def chroma(x: Pixels, matrix: np.ndarray) -> Pixels:
    """Multiply the chroma (I, Q) of YIQ by a matrix."""
    whole = np.eye(3)
    whole[1:, 1:] = matrix
    return clipped(x @ (np.linalg.inv(YIQ) @ whole @ YIQ).T)


def hue_shift(x: Pixels, draw: Draw) -> Pixels:
    """Rotate the hue."""
    angle = math.radians(draw.uniform(36, 180)) * draw.choice([-1, 1])
    return chroma(x, np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]))


def saturate(x: Pixels, draw: Draw) -> Pixels:
    """Scale the saturation."""
    return chroma(x, draw.choice([3, 5]) * np.eye(2))


def grayscale(x: Pixels, draw: Draw) -> Pixels:
    """Luma in all channels."""
    return np.asarray(Image.fromarray(x).convert("L").convert("RGB"))


def channel_permute(x: Pixels, draw: Draw) -> Pixels:
    """Permute the channels."""
    return x[..., [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][draw.integers(5)]]


def brightness(x: Pixels, draw: Draw) -> Pixels:
    """Add a constant."""
    return clipped(x + 255 * draw.choice([0.2, 0.3, 0.4, 0.5]))


def low_contrast(x: Pixels, draw: Draw) -> Pixels:
    """Shrink the differences from the mean."""
    return clipped(x.mean() + draw.choice([0.3, 0.2, 0.1, 0.05]) * (x - x.mean()))


def jpeg(x: Pixels, draw: Draw) -> Pixels:
    """Compress."""
    file = io.BytesIO()
    Image.fromarray(x).save(file, "jpeg", quality=int(draw.choice([18, 15, 10, 7])))
    return np.asarray(Image.open(file))


def reduced(x: Pixels, scale: float, down: Image.Resampling, up: Image.Resampling) -> Pixels:
    """Reduce to a scale and enlarge again."""
    small = max(round(scale * len(x)), 1)
    return np.asarray(Image.fromarray(x).resize((small, small), down).resize((len(x), len(x)), up))


def pixelate(x: Pixels, draw: Draw) -> Pixels:
    """Enlarge by repeating pixels."""
    scale = float(draw.choice([0.5, 0.4, 0.3, 0.25]))
    return reduced(x, scale, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)


def low_resolution(x: Pixels, draw: Draw) -> Pixels:
    """Enlarge smoothly."""
    return reduced(x, draw.uniform(0.15, 0.35), Image.Resampling.BICUBIC, Image.Resampling.BICUBIC)


def identity(x: Pixels, draw: Draw) -> Pixels:
    """The photograph."""
    return x


# function: kind, and whether probes of the kind are trained on it
SUITE: dict[Callable[[Pixels, Draw], Pixels], tuple[str, bool]] = {
    identity: ("identity", True),
    gaussian_blur: ("blur", True),
    gaussian_noise: ("noise", True),
    impulse_noise: ("noise", True),
    hue_shift: ("recolor", True),
    grayscale: ("recolor", True),
    channel_permute: ("recolor", False),
    brightness: ("tone", True),
    low_contrast: ("tone", True),
    saturate: ("tone", False),
    jpeg: ("quality", True),
    pixelate: ("quality", True),
    low_resolution: ("quality", False),
}


# --- photographs and embeddings -----------------------------------------------------------------------------------


def number(*parts: object) -> int:
    """A number that depends on these parts only."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def canvas(path: Path, side: int) -> Pixels:
    """Decode, resize the shorter side to 8/7 of the canvas, and crop the centre."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = side * 8 / 7 / min(rgb.size)
    rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BICUBIC)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)))


def network(model: str, checkpoint: Path | None) -> tuple[torch.nn.Module, dict[str, object]]:
    """A frozen network of timm without its classifier, and its preprocessing."""
    made = timm.create_model(model, pretrained=checkpoint is None, num_classes=0)
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        lacks, _ = made.load_state_dict(state, strict=False)
        assert not lacks, f"{checkpoint} has no weights for {lacks}"
    return made.eval(), resolve_model_data_config(made)


def embed(made: torch.nn.Module, config: dict[str, object], pixels: list[Pixels]) -> np.ndarray:
    """Resize to the network's side, normalise, embed. Shape: (B, D)."""
    side = config["input_size"][-1]
    resized = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in pixels]
    x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        return made((x - mean) / std).numpy()


def split_of(names: list[Path], seed: int) -> np.ndarray:
    """0 training, 1 validation, 2 test: that of the folder, else shares of 65, 15 and 20 per cent of every class."""
    if {name.parts[0] for name in names} <= set(SPLITS):
        return np.array([SPLITS.index(name.parts[0]) for name in names])
    split = np.zeros(len(names), np.int64)
    for folder in {name.parent for name in names}:
        own = [i for i, name in enumerate(names) if name.parent == folder]
        own.sort(key=lambda i: number(seed, str(names[i])))
        for place, i in enumerate(own):
            split[i] = np.searchsorted([0.65, 0.8], (place + 0.5) / len(own))
    return split


# --- probes -------------------------------------------------------------------------------------------------------


def probe(x: np.ndarray, y: np.ndarray, split: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A linear probe on standardised embeddings; validation chooses its penalty. Returns its prediction."""
    scaler = StandardScaler().fit(x[split == 0])
    scaled, best = scaler.transform(x), None
    for c in 10.0 ** np.arange(-4, 1):
        model = LogisticRegression(C=c, max_iter=2000).fit(scaled[split == 0], y[split == 0])
        accuracy = model.score(scaled[split == 1], y[split == 1])
        if best is None or accuracy > best[0]:
            best = accuracy, model
    return lambda some: best[1].predict(scaler.transform(some))


def accuracy(right: np.ndarray, image: np.ndarray, seed: int) -> dict[str, object]:
    """Mean and 95 % interval of a bootstrap over photographs.

    Args:
        right: whether each embedding was classified correctly; image: its photograph.
    """
    _, image = np.unique(image, return_inverse=True)
    hits, count = np.bincount(image, right), np.bincount(image)
    drawn = np.random.default_rng(seed).integers(len(count), size=(2000, len(count)))
    means = hits[drawn].sum(1) / count[drawn].sum(1)
    return {"accuracy": float(right.mean()), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


# --- the experiment -----------------------------------------------------------------------------------------------


def study(
    photographs: Path, model: str, checkpoint: Path | None = None, *, side: int = 224, limit: int = 0, seed: int = 0
) -> dict[str, object]:
    """Vary, embed, probe. Returns accuracies by task, and the seconds spent."""
    names = [path.relative_to(photographs) for path in photographs.glob("**/*") if path.suffix.lower() in KINDS]
    names = sorted(sorted(names, key=lambda name: number(seed, str(name)))[: limit or None])
    made, config = network(model, checkpoint)
    began = time.perf_counter()
    rows = []  # one for each variant: photograph, transformation, embedding
    for i, name in enumerate(names):
        x = canvas(photographs / name, side)
        variants = [make(x, np.random.default_rng(number(seed, str(name), make.__name__))) for make in SUITE]
        # a gray photograph has no hue: variants that barely differ from the photograph are left out
        distinct = [t for t, y in enumerate(variants) if t == 0 or np.abs(y.astype(int) - x).mean() >= 1]
        vectors = embed(made, config, [variants[t] for t in distinct])
        rows += [(i, t, each) for t, each in zip(distinct, vectors, strict=True)]
    spent = time.perf_counter() - began
    image, transformation = (np.array([row[k] for row in rows]) for k in (0, 1))
    x = np.stack([row[2] for row in rows])
    split = split_of(names, seed)[image]
    kind = np.array([group for group, _ in SUITE.values()])[transformation]
    seen = np.array([is_seen for _, is_seen in SUITE.values()])[transformation]
    label = np.array([name.parent.name for name in names])[image]
    test, plain = split == 2, transformation == 0

    def scored(predict: Callable[[np.ndarray], np.ndarray], truth: np.ndarray, chosen: np.ndarray) -> dict[str, object]:
        return accuracy(predict(x[chosen]) == truth[chosen], image[chosen], seed)

    named = probe(x, transformation, split)
    found = {"transformation": scored(named, transformation, test)}
    group = probe(x[seen], kind[seen], split[seen])
    found["kind, seen"] = scored(group, kind, test & seen)
    found["kind, held out"] = scored(group, kind, test & ~seen)
    if len(set(label)) > 1:
        class_ = probe(x[plain], label[plain], split[plain])
        found["class"] = scored(class_, label, test & plain)
        found["class, transformed"] = scored(class_, label, test & ~plain)
    return {"photographs": len(names), "embeddings": len(rows), "embed_seconds": spent, "accuracy": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="a model of timm (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="its weights, instead of those of the hub")
    parser.add_argument("--side", type=int, default=224, help="side of the canvas (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="use only so many photographs")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    json.dump(study(**options), sys.stdout, indent=1)
    print()
