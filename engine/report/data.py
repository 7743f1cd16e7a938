"""Tables, formatting of their numbers, and labels shown in place of the names of backbones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel

from substyle.engine.results.model import BLOCK, Estimate, Model, ResultsDocument
from substyle.errors import ConfigError

_LAYER = re.compile(r"([@,])layer=-?\d+,?")


def layer_of(results: ResultsDocument, name: str) -> tuple[str, int, int] | None:
    """(network, layer, last layer) of a backbone that is a layer of a network; None for a network's own output."""
    placed = BLOCK.findall(results.backbones[name].facts.pooling or "")
    if len(placed) != 1 or _LAYER.search(name) is None:
        return None
    return _LAYER.sub(r"\1", name).rstrip("@,"), int(placed[0][0]), int(placed[0][1])


def head_name(head: str) -> str:
    """Display name of a head."""
    return "MLP" if head == "mlp" else head


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
    """Format a value, or that of an estimate: fractions in per cent, missing values as an en dash."""
    if isinstance(value, Estimate):
        value = value.value
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


def show_interval(low_high: Estimate | Sequence[float] | None, kind: Kind = "share") -> str:
    """Format an interval, or that of an estimate; empty if there is none."""
    if isinstance(low_high, Estimate):
        low_high = low_high.interval
    if low_high is None:
        return ""
    low, high = (show(end, kind) for end in low_high)
    return f"{low} to {high}" if kind == "points" else f"{low}–{high}"


def plural(count: int, noun: str) -> str:
    """Format as ``1 photograph`` or ``1,200 photographs``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


def signs(text: str) -> str:
    """Replace the hyphens by minus signs that are before a number and after a space, as in names they are not."""
    return re.sub(r"(?<!\S)-(?=[\d.])", "−", text)


_TASKS = {
    **dict.fromkeys(("kind_rotation", "rotation"), "kind, each held out in turn"),
    "equal_transformation": "transformation, at equal width",
    "equal_rotation": "kind, each held out in turn, at equal width",
    "multitask": "transformation and class together",
}


def in_words(name: str) -> str:
    """A task, or a score of it, in words."""
    return _TASKS.get(name, name.replace("_", " "))


_PARAMETERS = {"alpha": "opacity", "line": "radius and sigma", "page": "choice of page", "std": "standard deviation"}
_AXES = {"_x": "horizontal", "_y": "vertical"}
_UNITS = {"S": "of the side", "cell": "of a cell", "degree": "degrees", "level": "levels", "rad": "radians"}
_UNITS |= {"full range": "of full range", "stop": "stops"}


def parameter_name(name: str) -> str:
    """A parameter of a transformation in words, such as ``horizontal shift``."""
    if (axis := _AXES.get(name[-2:])) is not None:
        name = f"{axis} {name[:-2]}"
    return _PARAMETERS.get(name, name.replace("_", " "))


def unit_name(unit: str | None) -> str:
    """A unit in words, such as ``of the side``; empty without one."""
    return _UNITS.get(unit or "", unit or "")


class Unconverged(tuple[float, float | None, float | None]):
    """(value, low, high) of a score whose probe has not converged, marked † in tables."""

    __slots__ = ()


def dagger(value: object) -> str:
    """The mark of a value of a table: † if its probe has not converged, else empty."""
    return " †" if isinstance(value, Unconverged) else ""


Scored = tuple[float, float | None, float | None]  # value, low, high


def show_scored(score: Scored, kind: Kind = "share") -> str:
    """Format a score, with its interval in brackets if it has one."""
    value, low, high = score
    return show(value, kind) + ("" if low is None or high is None else f" ({show_interval((low, high), kind)})")


def cell_of(estimate: Estimate | None, *, converged: bool = True) -> Scored | None:
    """(value, low, high); None without an estimate, and `Unconverged` if its probe is."""
    if estimate is None:
        return None
    found = (estimate.value, estimate.low, estimate.high)
    return found if converged else Unconverged(found)


def scored(scores: Model | None, name: str, probe: Model | None = None) -> Scored | None:
    """`cell_of` an estimate by name; None without scores.

    It is `Unconverged` if the scores, or those of the ``probe`` that they depend on, state so.
    """
    late = any(getattr(each, "converged", None) is False for each in (scores, probe))
    return cell_of(scores.entry(name) if scores else None, converged=not late)


@dataclass(frozen=True)
class ComparedScore:
    """A fraction that `substyle compare` compares between runs.

    Attributes:
        key: its name in files, of which a backbone has one.
        heading: its name on the page.
        converged: whether the probe that it depends on has converged.
        images: number of photographs that it is over; None if the stage does not record it.
        outcome: task, metric and head of its outcomes by photograph; empty if the run keeps none.
    """

    key: str
    heading: str
    estimate: Estimate
    converged: bool = True
    images: int | None = None
    outcome: tuple[str, ...] = ()


def labels_of(results: ResultsDocument) -> dict[str, str]:
    """Labels of the backbones that have one; adapted and fine-tuned ones are named by their backbone and training.

    Raises:
        ConfigError: two backbones have the same label.
    """
    backbones = results.backbones
    found = {name: backbone.label or name for name, backbone in backbones.items()}
    for name, backbone in backbones.items():
        if (base := backbone.base) and not backbone.label:
            tuned, training = backbone.facts.finetuned, backbone.adapter and backbone.adapter.method
            training = training or (f"{tuned.objective}, seed {tuned.seed}" if tuned else "adapted")
            found[name] = f"{found.get(base, base)} + {training}"
    times = Counter(found.values())
    for name, label in found.items():
        if times[label] < 2:
            continue
        if not backbones[name].base:
            raise ConfigError("label", label, "a different label for each backbone")
        text = f"{label} ({PurePath(name).stem[:8]})"  # two trainings
        found[name] = name if text in found.values() else text  # or one file under two paths
    return {name: label for name, label in found.items() if label != name}


def labelled(results: ResultsDocument) -> ResultsDocument:
    """Return results in which labels replace the names of backbones."""
    labels = labels_of(results)
    if not labels:
        return results
    longest = sorted(labels, key=len, reverse=True)
    # not within a longer name, such as mae:base in mae:base@layer=6
    names = re.compile(r"(?<![\w:/@=+.-])(" + "|".join(map(re.escape, longest)) + r")(?![\w:/@=+-])")

    def shown(text: str) -> str:
        return names.sub(lambda found: labels[found[1]], text)

    def renamed(value: Any) -> Any:  # noqa: ANN401 (JSON)
        if isinstance(value, BaseModel):
            own = {name: getattr(value, name) for name in value.model_fields_set & type(value).model_fields.keys()}
            own |= value.model_extra or {}  # getattr would give methods of the model for entries of their names
            return value.model_copy(update={name: renamed(each) for name, each in own.items()})
        if isinstance(value, dict):
            return {shown(key): renamed(each) for key, each in value.items()}
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return shown(value) if isinstance(value, str) else value

    changed: ResultsDocument = renamed(results)
    return changed
