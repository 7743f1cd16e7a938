"""How much of a card's peaks work reaches, as gpu-check has measured it there."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from substyle.engine.estimate.devices import Efficiency
from substyle.kernels.errors import SubstyleError

FIELDS = ("backbones", "styles", "variants", "decode_bytes")  # of `Efficiency`, that gpu-check measures
GIVEN, MEASURED, ASSUMED = "given", "measured", "assumed"


def fact(field: str) -> str:
    """The name under which a row of gpu-check says a field of `Efficiency`."""
    return f"plan: {field}"


@dataclass(frozen=True)
class Basis:
    """What a plan stands on.

    Attributes:
        efficiency: the numbers.
        sources: whether each was given, measured or assumed, of those that the plan uses.
        measurement: card, time and file of what was measured; "" where nothing was.
    """

    efficiency: Efficiency
    sources: dict[str, str]
    measurement: str

    def describe(self) -> dict[str, Any]:
        """In plain JSON."""
        values = {name: {"value": getattr(self.efficiency, name), "from": s} for name, s in self.sources.items()}
        return {"efficiency": values, "measurement": self.measurement or None}


def basis(card: str, folder: Path, given: Mapping[str, float]) -> Basis:
    """The efficiencies of a card: those that are given, else those measured on it, else those assumed.

    Args:
        card: its short name.
        folder: where gpu-check keeps its results; it need not be there.
        given: ``compute`` and ``bandwidth``, or none; they stand in the place of what was measured of the same work.
    """
    found, measurement = newest(card, folder)
    if given:  # of products and of traffic: all that networks and variants do
        found = {name: value for name, value in found.items() if name == "decode_bytes"}
    efficiency = replace(Efficiency(**found), **given)
    networks = efficiency.backbones is None or efficiency.styles is None
    used = [*(["compute"] if networks else []), *(["bandwidth"] if networks or efficiency.variants is None else [])]
    sources = {name: GIVEN if name in given else ASSUMED for name in used}
    for name in FIELDS:
        if getattr(efficiency, name) is not None:
            sources[name] = MEASURED if name in found else ASSUMED
    return Basis(efficiency, sources, measurement if found else "")


def newest(card: str, folder: Path) -> tuple[dict[str, float], str]:
    """Fields of `Efficiency` from the newest results of a card, and which these are; nothing where there are none.

    Raises:
        SubstyleError: a file of results that is none.
    """
    kept = [(path, _document(path)) for path in sorted(folder.glob("gpu-*.json"))]
    of_card = [(data["environment"], data["rows"], path) for path, data in kept if data["environment"]["card"] == card]
    if not of_card:
        return {}, ""
    about, rows, path = max(of_card, key=lambda one: str(one[0].get("created", "")))
    return fields(rows), f"{about.get('device', card)}, {about.get('created', 'at an unknown time')}, {path.name}"


def fields(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What the rows of a gpu-check say of them.

    Of a network in several runtimes the one counts that ``runtime = "auto"`` takes, TensorRT; of several networks the
    median.
    """
    networks: dict[str, tuple[bool, float]] = {}
    found: dict[str, float] = {}
    for row in rows:
        for name in FIELDS:
            value = row.get("facts", {}).get(fact(name))
            if not isinstance(value, int | float) or not 0.0 < value < math.inf:
                continue
            if name == "backbones":
                network, by_tensorrt = str(row["name"]).partition(",")[0], "TensorRT" in str(row["name"])
                networks[network] = max(networks.get(network, (False, 0.0)), (by_tensorrt, float(value)))
            else:
                found[name] = float(value)
    if networks:
        found["backbones"] = statistics.median(value for _, value in networks.values())
    shares = ("backbones", "styles")
    return {name: min(value, 1.0) if name in shares else value for name, value in found.items()}


def _document(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        good = data["benchmark"] == "gpu_check" and "card" in data["environment"] and isinstance(data["rows"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubstyleError(f"{path}: no results of gpu-check ({type(error).__name__}: {error})") from error
    if not good:
        raise SubstyleError(f"{path}: no results of gpu-check")
    return dict(data)
