from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine.config import load_study
from substyle.kernels.errors import ConfigError
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
    ("text", "message"),
    [
        ("", "name: got 'nothing'"),
        ('name = "x"\nbackbones = []', "at least one backbone"),
        (SMALL + "sede = 1", r"sede: got 1; allowed: no such field \(did you mean seed\?\)"),
        (SMALL + 'seed = "1"', "seed: got '1'; allowed: a whole number"),
        (SMALL + "seed = true", "seed: got True; allowed: a whole number"),
        (SMALL + "canvas = 225", "canvas: got 225; allowed: a multiple of 4"),
        (SMALL + "[embed]\nbatch = 0", "embed.batch: got 0; allowed: 1 to 4096"),
        (SMALL + "[embed]\nshard_rows = 3", "embed.shard_rows: got 3"),
        (SMALL + '[embed]\nprecision = "fp4"', "embed.precision: got 'fp4'; allowed: auto, fp32, bf16, fp16"),
        (SMALL + '[probes]\nCs = ["a"]', r"probes\.Cs\[0\]: got 'a'; allowed: a number"),
        (SMALL + "[probes]\nredraw = 1", r"probes\.redraw: .*did you mean redraws"),
        (SMALL + "[splits]\ntrain = 0.9", "splits: got .*; allowed: shares that add up to 1"),
        (SMALL + '[source]\nkind = "zip"', r"source\.kind: got 'zip'; allowed: auto, folder, list, tar"),
        (
            SMALL + '[source]\nkind = "tar"\nsynsets = "x"',
            r"source\.synsets: got .*only with kind imagenet; this is tar",
        ),
        (SMALL + '[source]\nlabel_colum = "x"', r"source\.label_colum: .*did you mean label_column"),
        (SMALL + "embed = 3", "embed: got 3; allowed: a table"),
        ('name = "x"\nbackbones = "timm:x"', "backbones: got 'timm:x'; allowed: a list"),
        ('name = "x"\nbackbones = [{ nme = "a" }]', r"backbones\[0\]\.nme: .*did you mean name"),
        ("name = ", "a TOML file"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(study(tmp_path, text))
    assert caught.value.exit_code == 2


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a study file that can be read"):
        load_study(tmp_path / "none.toml")


def test_unknown_suite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="substance31"):
        load_study(study(tmp_path, SMALL + 'suite = "substance32"')).settings()


def test_a_device_of_probes_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from substyle.engine.study.runner import run_study

    path = tmp_path / "study.toml"
    path.write_text('name = "n"\nbackbones = ["control:pixels"]\n[probes]\ndevice = "cuda:99"\n')
    with pytest.raises(ConfigError, match=r"probes\.device"):
        run_study(load_study(path), tmp_path / "out", images=tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("table", '"int4"'), ("device", '"gpu"'), ("stream_buffer", "1")])
def test_fields_of_the_table_of_probes(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'name = "n"\nbackbones = ["control:pixels"]\n[probes]\n{field} = {value}\n')
    with pytest.raises(ConfigError, match=rf"probes\.{field}"):
        load_study(path)


@pytest.mark.parametrize(
    ("tables", "embedding", "probing"),
    [
        ("", "cuda:1", "cuda:1"),
        ('[embed]\ndevice = "cpu"\n[probes]\nresamples = 1\n', "cuda:1", "cuda:1"),
        ('[probes]\ndevice = "cpu"\n', "cuda:1", "cpu"),
        ('[probes]\ndevice = "auto"\n', "cuda:1", "auto"),
    ],
)
def test_a_device_that_is_asked_for_is_that_of_probes_too(
    tmp_path: Path, tables: str, embedding: str, probing: str
) -> None:
    path = study(tmp_path, SMALL + tables)
    asked = load_study(path, device="cuda:1")
    assert (asked.embed.device, asked.probes.device) == (embedding, probing)
    assert load_study(path).embed.device == ("cpu" if "[embed]" in tables else "auto")


def test_a_device_and_a_runtime_are_asked_for_together(tmp_path: Path) -> None:
    path = study(tmp_path, SMALL + '[embed]\ndevice = "cuda"\nruntime = "tensorrt"\n')
    asked = load_study(path, device="cpu", runtime="openvino")
    assert (asked.embed.device, asked.embed.runtime, asked.probes.device) == ("cpu", "openvino", "cpu")
    with pytest.raises(ConfigError, match=r"embed\.runtime"):
        load_study(path, device="cpu")
    with pytest.raises(ConfigError, match=r"embed: got 3; allowed: a table"):
        load_study(study(tmp_path, SMALL + "embed = 3\n"), device="cpu")
