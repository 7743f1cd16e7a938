from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from substyle.engine.config import AnalysisConfig, BackboneChoice, EmbedConfig, SplitConfig, Study
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.layout import StoreSettings
from substyle.engine.study.file import load_study, study_schema
from substyle.errors import ConfigError
from substyle.pipelines.sources import SourceConfig

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


def test_every_field(tmp_path: Path) -> None:
    text = """
name = "all"
images = "photographs"
suite = "mini5"
seed = 7
canvas = 64
limit = 9
gallery = 0
backbones = ["control:pixels", { name = "timm:test_vit", checkpoint = "w.pth", precision = "fp32" }]
[splits]
train = 0.5
val = 0.25
test = 0.25
[embed]
batch = 8
dtype = "float32"
[probes]
heads = ["linear"]
Cs = [1e-2, 1]
[analysis]
ks = [1, 5]
[source]
kind = "parquet"
label_column = "fine_label"
names = "names.txt"
[shift]
sketches = "sketches"
shards = "more/{000..010}.tar"
"""
    loaded = load_study(study(tmp_path, text))
    assert loaded.images == tmp_path / "photographs"
    assert loaded.backbones[1].checkpoint == tmp_path / "w.pth"
    assert loaded.backbones[1].precision == "fp32"
    assert loaded.probes.Cs == (1e-2, 1.0)
    assert (loaded.probes.seed, loaded.analysis.seed) == (7, 7)
    assert loaded.analysis.ks == (1, 5)
    assert loaded.shift == {"sketches": tmp_path / "sketches", "shards": tmp_path / "more" / "{000..010}.tar"}
    assert loaded.source == SourceConfig("parquet", label_column="fine_label", names=tmp_path / "names.txt")
    assert loaded.splits.fractions == (0.5, 0.25, 0.25)


@pytest.mark.parametrize(
    ("text", "field", "given"),
    [
        ("", "name", None),
        ('name = "x"\nbackbones = []', "backbones", []),
        (SMALL + "seed = '1'", "seed", "1"),
        (SMALL + "seed = true", "seed", True),
        (SMALL + "seed = 1.0", "seed", 1.0),
        (SMALL + "seed = -1", "seed", -1),
        (SMALL + "suite = 2026-01-01", "suite", datetime.date(2026, 1, 1)),
        (SMALL + "canvas = 225", "canvas", 225),
        (SMALL + "gallery = 5", "gallery", 5),
        (SMALL + 'orientation = "up"', "orientation", "up"),
        (SMALL + 'style_precision = "int8"', "style_precision", "int8"),
        (SMALL + "[embed]\nbatch = 0", "embed.batch", 0),
        (SMALL + "[embed]\nshard_rows = 3", "embed.shard_rows", 3),
        (SMALL + '[embed]\nprecision = "fp4"', "embed.precision", "fp4"),
        (SMALL + '[probes]\nCs = ["a"]', "probes.Cs[0]", "a"),
        (SMALL + "[probes]\nCs = [1, 0.0]", "probes.Cs[1]", 0.0),
        (SMALL + "[probes.expert]\ndropout = inf", "probes.expert.dropout", math.inf),
        (SMALL + "[probes]\nrotate = 1", "probes.rotate", 1),
        (SMALL + "[analysis]\nks = [5, 1]", "analysis.ks", [5, 1]),
        (SMALL + "[splits]\ntrain = 0.9", "splits", [0.9, 0.15, 0.2]),
        (SMALL + '[source]\nkind = "zip"', "source.kind", "zip"),
        (SMALL + '[source]\nkind = "tar"\nsynsets = "x"', "source.synsets", Path("x")),
        (SMALL + "embed = 3", "embed", 3),
        (SMALL + "shift = [1]", "shift", [1]),
        (SMALL + "shift.a = 1", "shift.a", 1),
        (SMALL + "plugins = ['p.py', 1]", "plugins[1]", 1),
        ('name = "x"\nbackbones = "timm:x"', "backbones", "timm:x"),
        ('name = "x"\nbackbones = [{ name = "a", precision = "fp4" }]', "backbones[0].precision", "fp4"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, text: str, field: str, given: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study(tmp_path, text))
    assert (caught.value.field, caught.value.given) == (field, given)
    assert type(caught.value.given) is type(given)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "field", "near"),
    [
        (SMALL + "sede = 1", "sede", "seed"),
        ('name = "x"\nbackbone = ["control:pixels"]', "backbone", "backbones"),
        (SMALL + "[probes]\nredraw = 1", "probes.redraw", "redraws"),
        (SMALL + '[source]\nlabel_colum = "x"', "source.label_colum", "label_column"),
        ('name = "x"\nbackbones = ["a", { nme = "a" }]', "backbones[1].nme", "name"),
    ],
)
def test_a_field_of_a_similar_name_is_offered(tmp_path: Path, text: str, field: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean {near}\?") as caught:
        load_study(study(tmp_path, text))
    assert caught.value.field == field


def test_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study(tmp_path, "name = "))
    assert caught.value.field == "study"


@pytest.mark.parametrize(
    ("make", "field", "given"),
    [
        (lambda: EmbedConfig(batch=0), "embed.batch", 0),
        (lambda: EmbedConfig(0), "embed.batch", 0),
        (lambda: dataclasses.replace(EmbedConfig(), threads=-1), "embed.threads", -1),
        (lambda: SplitConfig(train=math.nan), "splits.train", math.nan),
        (lambda: AnalysisConfig(max_images=1), "analysis.max_images", 1),
        (lambda: Study("x", ()), "backbones", ()),
        (lambda: BackboneChoice("x", precision="fp4"), "backbone.precision", "fp4"),  # type: ignore[arg-type]
        (lambda: StoreSettings(0, 64, 3, "float16"), "shard_rows", 3),
        (lambda: StoreSettings(0, 64, 4, "float64"), "dtype", "float64"),  # type: ignore[arg-type]
    ],
)
def test_what_is_made_in_python_is_checked_too(make: Callable[[], object], field: str, given: object) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert (caught.value.field, caught.value.given) == (field, given)


def test_configurations_are_values(tmp_path: Path) -> None:
    """Errors and settings are compared, hashed, copied and pickled."""
    config = EmbedConfig(8, device="cpu")
    assert pickle.loads(pickle.dumps(config)) == config == dataclasses.replace(EmbedConfig(), batch=8, device="cpu")
    assert hash(config) == hash(EmbedConfig(batch=8, device="cpu"))
    assert pickle.loads(pickle.dumps(load_study(study(tmp_path, SMALL)))) == load_study(study(tmp_path, SMALL))
    assert set(vars(config)) == {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch = 9  # type: ignore[misc]


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


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_studies_fit_the_schema_that_they_name(path: Path) -> None:
    directive, name = path.read_text().splitlines()[0].split()
    assert directive == "#:schema"
    schema = json.loads((path.parent / name).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    study = tomllib.loads(path.read_text())
    jsonschema.validate(study, schema)
    for bad in ({"canvas": 225}, {"sede": 1}, {"backbones": [1]}, {"embed": {"runtime": "jax"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**study, **bad}, schema)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study: got .*No such file"):
        load_study(tmp_path / "none.toml")


def test_unknown_suite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="substance31"):
        load_study(study(tmp_path, SMALL + 'suite = "substance32"')).settings()


def test_a_device_of_probes_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from substyle.engine.study.runner import run_study

    path = tmp_path / "study.toml"
    path.write_text('name = "n"\nbackbones = ["control:pixels"]\ndevice = "cuda:99"\n')
    with pytest.raises(ConfigError, match=r"device"):
        run_study(load_study(path), tmp_path / "out", images=tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


MOVED = {
    "probes.tolerance": "probes.expert.tolerance",
    "probes.rotate_controls": "probes.rotate",
    "probes.seed": "seed of the whole study",
    "analysis.device": "device of the whole study",
    "embed.threads": "threads of the whole study",
    "parameters.bootstrap": "bootstrap of the whole study",
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


def test_a_device_that_does_not_fit_the_runtime_is_refused(tmp_path: Path) -> None:
    path = study(tmp_path, SMALL + 'device = "cuda"\n[embed]\nruntime = "tensorrt"\n')
    asked = load_study(path, changes={"device": "cpu", "embed.runtime": "openvino"})
    assert (asked.embed.device, asked.embed.runtime, asked.probes.device) == ("cpu", "openvino", "cpu")
    with pytest.raises(ConfigError, match=r"embed\.runtime"):
        load_study(path, changes={"device": "cpu"})
