"""Commands that list transformations, backbones and fields, and names and weights of backbones on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import setting, the_json

from substyle.engine.cli import main
from substyle.engine.stages.results import results_schema
from substyle.pipelines.libraries.library import as_toml, shown
from substyle.pipelines.transforms import base


def test_transforms_and_backbones_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transforms", "--json"]) == 0
    rows = the_json(capsys)["transformations"]
    assert len(rows) == 31
    assert rows[0]["name"] == "identity"
    assert {"name", "kind", "role", "parameters"} <= set(rows[5])
    assert sum(row["role"] == "held_out" for row in rows) == 11
    assert main(["backbones", "--json"]) == 0
    assert len(the_json(capsys)["families"]) >= 5
    assert main(["info", "--json"]) == 0
    assert the_json(capsys)["packages"]["torch"]


def test_plugin_transformation(tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "solarize.py"
    plugin.write_text(
        "import torch\n"
        "from substyle.pipelines.transforms.base import Choice, kernel\n\n\n"
        "@kernel('solarize_test', kind='tone', role='train', parameters=[Choice('threshold', (64, 128))])\n"
        "def solarize(canvas_BSSC, args, keys_B):\n"
        "    threshold = torch.from_numpy(args['threshold']).view(-1, 1, 1, 1)\n"
        "    return torch.where(canvas_BSSC < threshold, canvas_BSSC, 255 - canvas_BSSC)\n"
    )
    arguments = ["--plugin", str(plugin), "--suite", "identity,solarize_test", "--json"]
    assert main(["transforms", *arguments]) == 0
    assert the_json(capsys)["transformations"][1]["kind"] == "tone"
    out = tmp_path / "s.zarr"
    made = [
        "embed",
        str(two_classes),
        "--store",
        str(out),
        "--backbone",
        "control:pixels",
        "--set",
        "limit=4",
        "--quiet",
    ]
    assert main([*made, *arguments]) == 0
    assert the_json(capsys)["variants"] == 8


FAILS = """from substyle.pipelines.transforms.base import kernel
@kernel('fails_test', kind='tone', role='train', parameters=[])
def fails(canvas_BSSC, args, keys_B):
    return canvas_BSSC.nothing
"""


def test_a_plug_in_that_fails_in_use_is_an_error_of_one_line(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    made = ["embed", str(two_classes), "--store", str(tmp_path / "s.zarr"), "--backbone", "control:pixels", "--quiet"]
    assert main([*made, "--set", "limit=4", "--plugin", str(plugin), "--suite", "identity,fails_test"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    failed = (
        f"substyle: embed: a plug-in failed: {plugin}:4: AttributeError: 'Tensor' object has no attribute 'nothing'"
    )
    assert last == failed
    del base.REGISTRY["fails_test"]
    works = tmp_path / "works.py"
    works.write_text(FAILS.replace("canvas_BSSC.nothing", "255 - canvas_BSSC"))
    assert main([*made, "--set", "limit=4", "--plugin", str(works), "--suite", "identity,fails_test"]) == 0
    del base.REGISTRY["fails_test"]  # as in a later process, without --plugin
    assert main(["embed", "--store", str(tmp_path / "s.zarr"), "--backbone", "control:statistics"]) == 2
    needed = f"--plugin is required: the file that registers fails_test, a transformation of {tmp_path / 's.zarr'}"
    assert needed in capsys.readouterr().err


def test_parameters_of_libraries_are_shown_as_in_suite_files() -> None:
    values = as_toml(True), as_toml((0.8, [1, "a"])), as_toml({"a": False})
    assert values == ("true", '[0.8, [1, "a"]]', "{a = false}")
    parameters = {"p": as_toml(0.5), "hue": "", "flip": as_toml(False), "**": ""}
    assert shown(parameters) == "p = 0.5, hue, flip = false"


def test_an_option_is_named_by_an_error_and_a_field_of_a_study_file_by_its_file(
    tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "s.toml"
    study.write_text('name = "n"\nbackbones = ["control:pixels"]\nsuite = "mini5"\n')
    run = ["run", str(study), "--images", str(two_classes), "--out", str(tmp_path / "out")]
    for words, message in (
        ([*run, "--device", "cuda:7"], "substyle: --device: got 'cuda:7'; allowed: "),
        ([*run, "--set", "device=cuda:7"], "substyle: device: got 'cuda:7'; allowed: "),
        ([*run, "--set", "probes.expert.batch=x"], "substyle: probes.expert.batch: got 'x'; allowed: "),
        (["embed", run[3], "--store", "x", "--backbone", "control:pixels", "--device", "cuda:7"], "--device: got"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    text = study.read_text()
    for wrong, message in (
        (text + "[probes.expert]\nbatch = -1\n", "probes.expert.batch: got -1; allowed: "),
        (text + "device = 'cuda:7'\n", "device: got 'cuda:7'; allowed: "),
        (text.replace("mini5", "nothing"), "suite: got 'nothing'; allowed: "),
    ):
        study.write_text(wrong)
        assert main(run) == 2
        assert f"substyle: {study}: {message}" in capsys.readouterr().err


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


def test_a_search_that_finds_nothing_says_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "--search", "dinvo2", "--json"]) == 0
    answer, said = capsys.readouterr()
    assert "'dinvo2'" in said
    assert "dinov2" in said
    assert json.loads(answer) == {"search": "dinvo2", "names": []}


def test_the_schema_of_a_study_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--schema", "study"]) == 0
    printed = capsys.readouterr().out
    assert {"name", "backbones", "probes"} <= set(json.loads(printed)["properties"])
    assert main(["info", "--schema", "study", "--json"]) == 0
    assert the_json(capsys) == json.loads(printed)


def test_the_schema_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--schema", "results"]) == 0
    assert json.loads(capsys.readouterr().out) == results_schema()


@pytest.mark.slow
def test_layers_of_one_network_are_backbones_of_one_store(
    two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--checkpoint for a backbone with = in its name; names are kept in the store."""
    import timm
    import torch

    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w.pth")
    names = ["timm:test_vit@layer=1,pool=avg", "timm:test_vit@layer=-1"]
    command = ["embed", str(two_classes), "--store", str(tmp_path / "s.zarr"), *setting("canvas=64", "limit=8")]
    command += ["--suite", "identity,grayscale", *setting("embed.precision=fp32", "embed.batch=8")]
    for name in names:
        command += ["--backbone", name, "--checkpoint", f"{name}={tmp_path / 'w.pth'}"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["backbones", "--store", str(tmp_path / "s.zarr"), "--json"]) == 0
    stored = {row["name"]: row for row in the_json(capsys)["backbones"]}
    assert set(stored) == set(names)
    assert len({row["spec"]["weights_hash"] for row in stored.values()}) == 1
    assert stored[names[0]]["spec"]["pooling"].startswith("avg, block 1")
    assert main(["verify", str(tmp_path / "s.zarr")]) == 0
    assert main([*command, "--quiet"]) == 0  # all is there already
    assert main([*command[:-1], f"{names[1]}@x={tmp_path / 'w.pth'}"]) == 2


def test_weights_of_a_backbone_whose_name_holds_an_equals_sign() -> None:
    from substyle.engine.commands.embed import backbone_choices
    from substyle.errors import ConfigError

    names = ["timm:x", "timm:x@layer=1", "timm:x@layer=1,pool=avg"]
    found = backbone_choices(names, ["timm:x@layer=1,pool=avg=a=b.pth", "timm:x@layer=1=c.pth"])
    assert [(choice.name, choice.checkpoint) for choice in found] == [
        ("timm:x", None),
        ("timm:x@layer=1", Path("c.pth")),
        ("timm:x@layer=1,pool=avg", Path("a=b.pth")),
    ]
    for bad in ("timm:y=c.pth", "timm:x", "timm:x@layer=2=c.pth"):
        with pytest.raises(ConfigError, match="--checkpoint"):
            backbone_choices(names, [bad])
