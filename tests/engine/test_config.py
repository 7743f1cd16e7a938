from __future__ import annotations

import dataclasses
import datetime
import json
import math
from pathlib import Path

import pytest

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.study.file import load_study, study_schema
from substyle.errors import ConfigError

STUDIES = Path(__file__).parents[2] / "studies"
SMALL = 'name = "x"\nbackbones = ["control:pixels"]\n'


def study(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    loaded = load_study(path)
    assert loaded.name == path.stem
    assert loaded.settings().transformations[0] == "identity"


@pytest.mark.parametrize(
    ("text", "field", "given"),
    [
        ("", "name", None),
        ('name = "x"\nbackbones = []', "backbones", []),
        (SMALL + "seed = '1'", "seed", "1"),
        (SMALL + "seed = -1", "seed", -1),
        (SMALL + "suite = 2026-01-01", "suite", datetime.date(2026, 1, 1)),
        (SMALL + "[embed]\nshard_rows = 3", "embed.shard_rows", 3),
        (SMALL + "[probes]\nCs = [1, 0.0]", "probes.Cs[1]", 0.0),
        (SMALL + "[probes.expert]\ndropout = inf", "probes.expert.dropout", math.inf),
        (SMALL + "[analysis]\nks = [5, 1]", "analysis.ks", [5, 1]),
        (SMALL + "[splits]\ntrain = 0.9", "splits", [0.9, 0.15, 0.2]),
        (SMALL + '[source]\nkind = "zip"', "source.kind", "zip"),
        (SMALL + "shift.a = 1", "shift.a", 1),
        (SMALL + "plugins = ['p.py', 1]", "plugins[1]", 1),
        ('name = "x"\nbackbones = [{ name = "a", precision = "fp4" }]', "backbones[0].precision", "fp4"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, text: str, field: str, given: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study(tmp_path, text))
    assert (caught.value.field, caught.value.given) == (field, given)
    assert type(caught.value.given) is type(given)
    assert caught.value.exit_code == 2


def test_the_schema_that_editors_read_is_that_of_the_code() -> None:
    file = STUDIES / "study.schema.json"
    assert json.loads(file.read_text()) == study_schema(), f"run: substyle info --schema study > {file}"


def test_the_schema_describes_every_field() -> None:
    schema = study_schema()
    tables = [schema, *schema["$defs"].values()]
    assert all(table["description"] for table in tables)
    fields = [field for table in tables for field in table["properties"].values()]
    assert all("description" in field or "$ref" in field for field in fields)  # a table that describes itself
    assert schema["$defs"]["ExpertConfig"]["properties"]["batch"].items() >= {"minimum": 2, "default": 1024}.items()
    assert "tensorrt" in schema["$defs"]["EmbedConfig"]["properties"]["runtime"]["enum"]


MOVED = {
    "probes.tolerance": "probes.expert.tolerance",
    "probes.seed": "seed of the whole study",
    "attentive.steps": "probes.mlp_steps",
    "probes.token_heads": "attentive",
}


@pytest.mark.parametrize(("field", "place"), MOVED.items(), ids=MOVED)
def test_a_field_that_has_moved_is_refused_with_its_place(tmp_path: Path, field: str, place: str) -> None:
    table, name = field.split(".")
    with pytest.raises(ConfigError, match=place) as caught:
        load_study(study(tmp_path, SMALL + f"[{table}]\n{name} = 3\n"))
    assert (caught.value.field, caught.value.given) == (field, 3)


def test_paths_of_a_study_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    named = 'images = "photos"\nstore = "s.zarr"\nsuite = "identity,more.toml"\n[shift]\nnight = "dark"\n'
    (tmp_path / "own" / "more.toml").write_text('transformations = ["identity", "jpeg"]\n')
    loaded = load_study(study(tmp_path / "own", SMALL + named))
    assert (loaded.images, loaded.store) == (tmp_path / "own/photos", tmp_path / "own/s.zarr")
    assert loaded.shift == {"night": tmp_path / "own/dark"}
    assert loaded.suite == f"identity,{tmp_path / 'own/more.toml'}"


def test_former_words_for_tasks_are_read_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        SMALL + '[probes]\ntasks = ["fine", "coarse", "semantic", "multitask"]\n[finetune]\nobjectives = ["semantic"]\n'
    )
    loaded = load_study(study(tmp_path, text))
    assert loaded.probes.tasks == ("transformation", "kind", "class", "multitask")
    assert loaded.stages["finetune"].objectives == ("class",)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "probes.tasks: fine is called transformation now"
    assert lines[-1] == "finetune.objectives: semantic is called class now"
    with pytest.raises(ConfigError, match="rough"):
        load_study(study(tmp_path, SMALL + '[probes]\ntasks = ["fine", "rough"]\n'))


def test_a_study_shares_seed_bootstrap_and_device_with_its_stages(tmp_path: Path) -> None:
    shared = 'seed = 5\nresample_by = "folder"\nbootstrap = 300\ndevice = "cuda:1"\nthreads = 2\n'
    loaded = load_study(study(tmp_path, SMALL + shared + "[parameters]\n"), changes={"device": "cpu"})
    probes, parameters = loaded.probes, loaded.stages["parameters"]
    assert (probes.seed, probes.resample_by, probes.bootstrap) == (5, "folder", 300)
    assert (parameters.seed, parameters.resample_by, parameters.bootstrap) == (5, "folder", 300)
    assert (loaded.embed.device, probes.device, loaded.analysis.device) == ("cpu", "cpu", "cpu")
    assert (loaded.embed.threads, probes.threads, loaded.analysis.threads) == (2, 2, 2)
    assert [dataclasses.replace(loaded, seed=seed).analysis.seed for seed in (6, 0)] == [6, 0]
    with pytest.raises(ConfigError, match="set for the whole study") as caught:
        Study("x", (BackboneChoice("control:pixels"),), seed=5, probes=ProbeConfig(seed=3))
    assert caught.value.field == "probes.seed"


def test_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study(tmp_path, "name = "))
    assert caught.value.field == "study"
