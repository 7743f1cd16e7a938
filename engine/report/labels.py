"""Labels of backbones, shown in place of their names in reports, tables and figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from substyle.engine.report.data import Results, dig
from substyle.kernels.errors import ConfigError


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

    changed: dict[str, Any] = {}
    for key, value in results.items():
        changed[key] = renamed(value)
    for name, backbone in changed["backbones"].items():
        spec = backbone.get("spec") if isinstance(backbone, dict) else None
        original = next((old for old, label in labels.items() if label == name), name)
        if isinstance(spec, dict) and "name" in spec:
            spec["name"] = original  # the page of methods states it
    return changed
