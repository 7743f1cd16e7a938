"""Commands that list transformations, backbones and fields, and names and weights of backbones on the command line."""

from __future__ import annotations

import json

import pytest
from tests.conftest import the_json

from substyle.engine.cli import main
from substyle.pipelines.libraries.library import as_toml, shown


def test_parameters_of_libraries_are_shown_as_in_suite_files() -> None:
    values = as_toml(True), as_toml((0.8, [1, "a"])), as_toml({"a": False})
    assert values == ("true", '[0.8, [1, "a"]]', "{a = false}")
    parameters = {"p": as_toml(0.5), "hue": "", "flip": as_toml(False), "**": ""}
    assert shown(parameters) == "p = 0.5, hue, flip = false"


def test_presets_are_shown_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--json"]) == 0
    out, shown = capsys.readouterr()
    listed = json.loads(out)
    rows = {row["name"]: row for row in listed["presets"]}
    assert {"mae:base", "clip:base", "supervised:base", "can:base"} <= set(rows)
    assert {key: rows["mae:base"][key] for key in ("architecture", "dim", "side", "licence")} == {
        "architecture": "vit_base_patch16_224.mae",
        "dim": 768,
        "side": 224,
        "licence": "cc-by-nc-4.0",
    }
    assert all({"pooling", "mean", "std", "weights", "about"} <= set(row) for row in rows.values())
    line = next(line for line in shown.splitlines() if line.startswith("siglip:large ") and " 256 px " in line)
    assert all(word in line for word in ("1024", "0.5/0.5", "siglip_256.webli", "apache-2.0"))
    assert main(["backbones", "--search", "dinov3", "--json"]) == 0
    assert {"dinov3:base", "timm:vit_base_patch16_dinov3.lvd1689m"} <= set(the_json(capsys)["names"])
