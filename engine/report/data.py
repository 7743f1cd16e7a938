"""Access to results.json, formatting of its numbers, and labels shown in place of the names of backbones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from substyle.engine.results.model import BLOCK
from substyle.kernels.errors import ConfigError

HEADS = ("linear", "mlp")
Results = dict[str, Any]


def dig(value: object, *path: str) -> Any:  # noqa: ANN401 (JSON)
    """Return the value at a path of keys; None if any part is missing or null."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def ordered(results: Results) -> list[str]:
    """Names of the backbones in order, controls last."""
    return sorted(results["backbones"], key=lambda name: bool(dig(results, "backbones", name, "control")))


def real(results: Results) -> list[str]:
    """Names of the backbones that are not controls."""
    return [name for name in ordered(results) if not dig(results, "backbones", name, "control")]


_LAYER = re.compile(r"([@,])layer=-?\d+,?")


def layer_of(results: Results, name: str) -> tuple[str, int, int] | None:
    """(network, layer, last layer) of a backbone that is a layer of a network; None for a network's own output."""
    placed = BLOCK.findall(str(dig(results, "backbones", name, "spec", "pooling")))
    if len(placed) != 1 or _LAYER.search(name) is None:
        return None
    return _LAYER.sub(r"\1", name).rstrip("@,"), int(placed[0][0]), int(placed[0][1])


def heads(results: Results) -> list[str]:
    """Heads of all probes, linear first."""
    found = {
        head
        for backbone in results["backbones"].values()
        for task in ("fine", "coarse", "semantic")
        for head, scores in (backbone.get(task) or {}).items()
        if scores
    }
    return [head for head in HEADS if head in found] + sorted(found.difference(HEADS))


def first_head(results: Results) -> str:
    """The first head of all probes, "" without probes."""
    return (*heads(results), "")[0]


def head_name(head: str) -> str:
    """Display name of a head."""
    return "MLP" if head == "mlp" else head


def transformations(results: Results) -> list[str]:
    """Names of the transformations, in suite order."""
    return [row["name"] for row in results["transformations"]]


Kind = Literal["text", "share", "points", "number", "count"]


@dataclass(frozen=True)
class Column:
    """A column of a table: name, heading and kind of its values.

    ``share`` is a fraction, ``points`` a difference of fractions. With ``interval`` values are (value, low, high) or
    None, and take three columns in files.
    """

    name: str
    heading: str
    kind: Kind = "share"
    interval: bool = False


def words(*names: str) -> tuple[Column, ...]:
    """Columns of text, headed by their names."""
    return tuple(Column(name, name.capitalize(), "text") for name in names)


@dataclass(frozen=True)
class Table:
    """A table of plain values; None if missing."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]


def show(value: object, kind: Kind = "share") -> str:
    """Format a value: fractions in per cent, missing values as an en dash."""
    if value is None:
        return "–"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        hundredths = round(100 * value, 1) + 0.0  # no negative zero
        if kind == "share":
            return minus(f"{hundredths:.1f}")
        if kind == "points":
            return minus(f"{hundredths:+.1f}")
        if kind == "count":
            return f"{value:,.0f}"
        if kind == "number":
            return minus(f"{value:.3f}")
    return str(value)


def show_interval(low_high: Sequence[float] | None, kind: Kind = "share") -> str:
    """Format an interval; empty if there is none."""
    if low_high is None:
        return ""
    low, high = (show(end, kind) for end in low_high)
    return f"{low} to {high}" if kind == "points" else f"{low}–{high}"


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


class Unconverged(tuple[float, float | None, float | None]):
    """(value, low, high) of a score whose probe has not converged, marked † in tables."""

    __slots__ = ()


def dagger(value: object) -> str:
    """The mark of a value of a table: † if its probe has not converged, else empty."""
    return " †" if isinstance(value, Unconverged) else ""


def scored(
    scores: object, name: str, interval: str = "", probe: object = None
) -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of a score and its interval, which has its own key; None without a value.

    The value is `Unconverged` if the scores, or those of the ``probe`` that they depend on, state so.
    """
    value = dig(scores, name)
    low_high = dig(scores, interval or f"{name}_ci95") or (None, None)
    if value is None:
        return None
    found = (value, low_high[0], low_high[1])
    late = any(dig(each, "converged") is False for each in (scores, probe))
    return Unconverged(found) if late else found


def scored_under(scores: object, name: str, key: str) -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of ``key`` in the scores ``name``, whose intervals are in ``name_ci95``."""
    value, low_high = dig(scores, name, key), dig(scores, f"{name}_ci95", key) or (None, None)
    return None if value is None else (value, low_high[0], low_high[1])


def labels_of(results: Results) -> dict[str, str]:
    """Labels of the backbones that have one; adapted and fine-tuned ones are named by their backbone and training.

    Raises:
        ConfigError: two backbones have the same label.
    """
    backbones = results["backbones"]
    found = {name: str(dig(backbone, "label") or name) for name, backbone in backbones.items()}
    for name, backbone in backbones.items():
        if base := _base(backbone):
            training = dig(backbone, "adapter", "method")
            training = training or "{objective}, seed {seed}".format_map(backbone["spec"]["finetuned"])
            if not dig(backbone, "label"):
                found[name] = f"{found.get(base, base)} + {training}"
    times = Counter(found.values())
    for name, label in found.items():
        if times[label] < 2:
            continue
        if not _base(backbones[name]):
            raise ConfigError("label", label, "a different label for each backbone")
        text = f"{label} ({PurePath(name).stem[:8]})"  # two trainings
        found[name] = name if text in found.values() else text  # or one file under two paths
    return {name: label for name, label in found.items() if label != name}


def _base(backbone: object) -> object:
    """Name of the backbone that an adapted or fine-tuned backbone was trained from."""
    return dig(backbone, "adapter", "backbone") or dig(backbone, "spec", "finetuned", "backbone")


def labelled(results: Results) -> Results:
    """Return results in which labels replace the names of backbones."""
    labels = labels_of(results)
    if not labels:
        return results
    longest = sorted(labels, key=len, reverse=True)
    # not within a longer name, such as mae:base in mae:base@layer=6
    names = re.compile(r"(?<![\w:/@=+.-])(" + "|".join(map(re.escape, longest)) + r")(?![\w:/@=+-])")

    def shown(text: str) -> str:
        return names.sub(lambda found: labels[found[1]], text)

    def renamed(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, Mapping):
            return {shown(key) if isinstance(key, str) else key: renamed(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [renamed(each) for each in value]
        return shown(value) if isinstance(value, str) else value

    changed = {key: renamed(value) for key, value in results.items()}
    for name, backbone in changed["backbones"].items():
        spec = backbone.get("spec") if isinstance(backbone, dict) else None
        original = next((old for old, label in labels.items() if label == name), name)
        if isinstance(spec, dict) and "name" in spec:
            spec["name"] = original  # the page of methods states it
    return changed
