"""Saving and loading of trained probes as safetensors, with metadata in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes.calibration import TEMPERATURES, at_temperature, log_probabilities
from substyle.engine.probes.dataset import Standardizer
from substyle.engine.store.files import write_durably
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.words import of_today
from substyle.errors import SubstyleError
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.sources.labels import numbered

FORMAT = "substyle-probe-1"
_REQUIRED = {"task": str, "head": str, "outputs": list, "backbone": str, "dim": int, "setting": dict}
_WHOLE = {  # integers of the header and their ranges
    "dim": (1, 2**31),
    "canvas": (32, 1024),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Probe:
    """A trained probe: maps raw embeddings to probabilities, averaged over S seeds.

    Attributes:
        heads: S heads; standardisation is folded into the first layer.
        metadata: task, head, outputs (name, labels and calibration of each softmax), backbone, dim (numbers that it
            reads), setting, and additional entries (suite, canvas).
    """

    heads: Heads
    metadata: Mapping[str, Any]

    @property
    def labels(self) -> dict[str, list[str]]:
        """Labels of each output, by name: transformation, kind or class."""
        return {output["name"]: list(output["labels"]) for output in self.metadata["outputs"]}

    @property
    def calibration(self) -> dict[str, dict[str, Any] | None]:
        """`calibrate` of each output, by name; None of a file of an earlier version, whose temperature is 1."""
        return {output["name"]: output.get("calibration") for output in self.metadata["outputs"]}

    def predict_all(self, x_BD: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of all outputs, by name; multi-task probes have two. Shape: (B, D) to (B, C) each.

        They are calibrated for photographs transformed as often as in training, with equal shares of all
        transformations (of the kind: of all kinds).

        Raises:
            SubstyleError: the embeddings have another width or are not finite.
        """
        dim = int(self.metadata["dim"])
        if x_BD.ndim != 2 or x_BD.shape[1] != dim:
            raise SubstyleError(f"expected embeddings of shape (B, {dim}), got {x_BD.shape}")
        if bad := np.count_nonzero(~np.isfinite(x_BD).all(axis=1)):  # their labels would be the first of each probe
            raise SubstyleError(f"{bad:,} of {len(x_BD):,} embeddings are not finite (NaN or infinity)")
        logits_SCB = forward(self.heads, torch.from_numpy(np.ascontiguousarray(x_BD, np.float32)))
        answers, start, calibration = {}, 0, self.calibration
        for name, labels in self.labels.items():
            log_p_CB = log_probabilities(logits_SCB[:, start : start + len(labels)])
            p_CB = at_temperature(log_p_CB, (calibration[name] or {}).get("temperature", 1.0))
            answers[name] = np.ascontiguousarray(p_CB.T.numpy(), np.float32)
            start += len(labels)
        return answers

    def predict(self, x_BD: NDArray[np.floating]) -> NDArray[np.float32]:
        """Probabilities of the first output (for multi-task probes the transformation). Shape: (B, D) to (B, C)."""
        return next(iter(self.predict_all(x_BD).values()))

    def truth(self, table: EmbeddingTable, n_N: NDArray[np.int64], *, own: bool = True) -> NDArray[np.int64]:
        """Indices of the labels that are right, of a probe of one task; -1 where it knows none. Shape: (T, N).

        Args:
            n_N: the images.
            own: whether the probe was trained on photographs of this source. Others have the same classes by name, not
                by number: class 0 of one data set is not class 0 of another.
        """
        (labels,) = self.labels.values()
        place, shape = {label: index for index, label in enumerate(labels)}, (len(table.transformations), len(n_N))
        if self.metadata["task"] == "class":
            known = [place.get(name, -1) if own or not numbered(name) else -1 for name in table.class_names]
            return np.broadcast_to(np.array([*known, -1], np.int64)[table.label_N[n_N]], shape)  # -1: no class
        names = table.families if self.metadata["task"] == "transformation" else table.kind
        return np.broadcast_to(np.array([[place.get(name, -1)] for name in names], np.int64), shape)

    def judge(
        self, table: EmbeddingTable, t_R: NDArray[np.int64], n_R: NDArray[np.int64]
    ) -> tuple[NDArray[np.object_], NDArray[np.object_], NDArray[np.float32]]:
        """Predict rows (transformation t of image n) of a table with a probe of one task.

        Returns:
            the truth, None for rows that are not scored; the most probable label; and its probability. Shapes: (R,).
        """
        (labels,) = self.labels.values()
        if self.metadata["task"] == "class":
            truth_R = np.array([*table.class_names, None], object)[table.label_N[n_R]]
        else:
            names_T = table.families if self.metadata["task"] == "transformation" else table.kind
            truth_R = np.array([name if name in labels else None for name in names_T], object)[t_R]
        truth_R[~table.distinct_TN[t_R, n_R]] = None
        p_RC = self.predict(table.take(t_R, n_R))
        best_R = p_RC.argmax(axis=1)
        return truth_R, np.array(labels, object)[best_R], p_RC[np.arange(len(best_R)), best_R]

    @classmethod
    def load(cls, path: Path | str) -> Probe:
        """Load a probe. Raises SubstyleError if the file is invalid or damaged."""
        from safetensors import SafetensorError, safe_open

        if Path(path).is_dir():
            raise SubstyleError(f"{path}: is a folder; give a .safetensors file in it")
        try:
            with safe_open(str(path), framework="pt") as file:
                entries = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SubstyleError(f"{path}: cannot read probe file: {error}") from error
        header = entries.get("substyle", "")
        metadata = _metadata(path, header)
        heads = _heads(path, tensors, metadata)
        if entries.get("digest", digest := _digest(header, tensors)) != digest:
            raise SubstyleError(f"{path}: checksum mismatch")
        return cls(heads, metadata)


def save_probe(
    path: Path,
    heads: Heads,
    standard: Standardizer,
    *,
    task: str,
    head: str,
    outputs: Mapping[str, tuple[str, ...]],
    backbone: str,
    setting: Mapping[str, Any],
    calibration: Mapping[str, Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a probe atomically.

    Args:
        path: the file, ``.safetensors``.
        heads: S heads trained on standardised features.
        standard: standardisation, folded into the first layer.
        task: transformation, kind, class or multitask.
        head: linear or mlp.
        outputs: labels of each softmax by name, in the order of the head's outputs.
        backbone: name of the backbone.
        setting: learning rate, weight decay, width.
        calibration: `calibrate` of each output by name.
        extra: additional JSON entries of the header (suite, canvas).
    """
    from safetensors.torch import save

    mean_D, scale_D = (torch.from_numpy(v).double() for v in (standard.mean_D, standard.scale_D))
    w1 = heads.w1.detach().cpu().double() * scale_D
    b1 = heads.b1.detach().cpu().double() - w1 @ mean_D
    tensors = {"w1": w1.float(), "b1": b1.float()}
    for w2, b2 in heads.layers[1:]:
        tensors |= {"w2": w2.detach().cpu(), "b2": b2.detach().cpu()}
    metadata = dict(extra or {}) | {
        "format": FORMAT,
        "task": task,
        "head": head,
        "outputs": [
            {"name": name, "labels": list(labels), "calibration": dict(calibration[name])}
            for name, labels in outputs.items()
        ],
        "backbone": backbone,
        "dim": len(mean_D),
        "setting": dict(setting),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header = json.dumps(metadata)
    write_durably(path, save(tensors, {"substyle": header, "digest": _digest(header, tensors)}))


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of header and weights."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].numpy().tobytes())
    return sha.hexdigest()


def _heads(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> Heads:
    names = set(tensors)
    if names not in ({"w1", "b1"}, {"w1", "b1", "w2", "b2"}):
        raise SubstyleError(f"{path}: not a probe, unexpected tensors {sorted(names)}")
    w1, b1 = tensors["w1"], tensors["b1"]
    good = w1.ndim == 3 and b1.shape == w1.shape[:2] and len(w1) > 0
    if good and "w2" in tensors:
        w2, b2 = tensors["w2"], tensors["b2"]
        good = w2.ndim == 3 and b2.shape == w2.shape[:2] and (w2.shape[0], w2.shape[2]) == tuple(w1.shape[:2])
    if not good:
        raise SubstyleError(f"{path}: not a probe, invalid shapes { {k: tuple(v.shape) for k, v in tensors.items()} }")
    if any(v.dtype != torch.float32 or not bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise SubstyleError(f"{path}: weights must be finite float32 numbers")
    found = Heads(w1, b1, tensors.get("w2"), tensors.get("b2"))
    count = sum(len(output["labels"]) for output in metadata["outputs"])
    if count != found.outputs or metadata["dim"] != w1.shape[2]:
        raise SubstyleError(f"{path}: header does not match the weights")
    return found


def _metadata(path: Path | str, header: str) -> dict[str, Any]:
    try:
        metadata = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise SubstyleError(f"{path}: not a substyle probe, the header has no valid 'substyle' entry") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise SubstyleError(f"{path}: not a {FORMAT} file")
    if isinstance(metadata.get("task"), str):
        metadata["task"] = of_today(metadata["task"])
    for name, kind in _REQUIRED.items():
        if not isinstance(metadata.get(name), kind):
            raise SubstyleError(f"{path}: missing or invalid {name!r} in the header")
    for name, (low, high) in _WHOLE.items():
        value = metadata.get(name, low)
        if type(value) is not int or not low <= value <= high:
            raise SubstyleError(f"{path}: missing or invalid {name!r} in the header")
    crop_pct = metadata.get("crop_pct", CROP_PCT)
    if type(crop_pct) not in (int, float) or not 0.1 <= crop_pct <= 1:
        raise SubstyleError(f"{path}: missing or invalid 'crop_pct' in the header")
    names = set()
    for output in metadata["outputs"]:
        labels = output.get("labels") if isinstance(output, dict) else None
        texts = [output["name"], *labels] if isinstance(labels, list) and "name" in output else []
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts) or texts[0] in names:
            raise SubstyleError(f"{path}: missing or invalid 'outputs' in the header")
        if "calibration" in output and not _is_calibration(output["calibration"]):
            raise SubstyleError(f"{path}: invalid 'calibration' in the header")
        output["name"] = of_today(texts[0])
        names.add(texts[0])
    if not names:
        raise SubstyleError(f"{path}: header does not match the weights")
    return metadata


def _is_calibration(entry: object) -> bool:
    """Whether an entry of a header is one of `calibrate`."""
    if not isinstance(entry, dict):
        return False
    errors = [value for name in ("ece", "ece_before") if (value := entry.get(name)) is not None]
    numbers = [(entry.get("temperature"), *TEMPERATURES), *((value, 0.0, 1.0) for value in errors)]
    return all(type(value) in (int, float) and low <= value <= high for value, low, high in numbers)
