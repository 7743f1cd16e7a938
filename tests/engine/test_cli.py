from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from tests.conftest import jpeg, photograph, setting, the_json

from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.cli import main
from substyle.engine.commands import study as pipeline
from substyle.engine.config import Study
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study import outputs, predict

STUDY = """
name = "small"
suite = "identity,gaussian_blur,defocus_blur,grayscale,channel_permute,jpeg,low_resolution"
canvas = 64
backbones = ["control:pixels", { name = "control:random:test_efficientnet", precision = "fp32" }]
gallery = 1
bootstrap = 100
[splits]
train = 0.5
val = 0.2
test = 0.3
[embed]
batch = 8
shard_rows = 16
[probes]
mlp_steps = 10
multitask_steps = 10
widths = [32]
mlp_learning_rates = [1e-2]
multitask_learning_rates = [1e-2]
resamples = 2
redraws = 2
[probes.expert]
doublings = 1
[analysis]
ks = [1, 5]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, two_classes: Path) -> Path:
    """Output folder of a small study with a shift; one photograph is broken."""
    root = tmp_path_factory.mktemp("run")
    photographs = root / "photographs"
    for path in two_classes.rglob("*.jpg"):
        target = photographs / path.relative_to(two_classes)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (photographs / "odd" / "broken.jpg").write_text("no")
    shifted = root / "shifted"
    for i in range(50, 58):
        folder = shifted / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    study = root / "small.toml"
    study.write_text(STUDY + '[shift]\nothers = "shifted"\n')
    out = root / "out"
    assert main(["run", str(study), "--images", str(photographs), "--out", str(out), "--quiet"]) == 0
    return out


def test_results_have_all_that_was_promised(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 40
    assert results["variants"] == 280
    assert [row["key"] for row in results["quarantined"]] == ["odd/broken.jpg"]
    assert set(results["backbones"]) == {"control:pixels", "control:random:test_efficientnet"}
    for backbone in results["backbones"].values():
        for head in ("linear", "mlp"):
            assert {"value", "low", "high"} <= set(backbone["transformation"][head]["accuracy"])
            assert {"seen", "held_out", "gap", "by_transformation"} <= set(backbone["kind"][head])
            assert {"original", "transformed"} <= set(backbone["class"][head])
        assert "multitask" not in backbone  # of controls
        assert set(backbone["knn"]["transformation"]) == {"1", "5"}
        assert backbone["knn"]["class"] is not None
        assert {"balance", "sensitivity", "equivariance", "steerability", "clusters", "retrieval"} <= set(backbone)
        assert set(backbone["sensitivity"]) == {t["name"] for t in results["transformations"]} - {"identity"}
        assert backbone["shift"]["others"]["images"] == 8
        variants, cost = results["images"] * len(results["transformations"]), backbone["cost"]
        assert cost["store_bytes"] >= variants * backbone["dim"] * 2
    hours = sum(backbone["cost"]["device_hours"] for backbone in results["backbones"].values())
    assert hours * 3600 == pytest.approx(results["throughput"]["embed_seconds"], abs=0.01)
    assert results["backbones"]["control:random:test_efficientnet"]["gate"]["cosine_min"] > 0.999
    assert results["throughput"]["variants_per_s"] > 0
    assert results["comparisons"]
    assert "odd/broken.jpg" in (finished / "report.html").read_text().replace("<wbr>", "")
    for kind in ("csv", "tex"):
        assert list((finished / "tables").glob(f"*.{kind}"))
    assert len(list((finished / "gallery" / "0").glob("*.png"))) == 7


def test_run_takes_photographs_without_a_study_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is named after the folder, and options act like fields of a study file."""
    ran: list[Study] = []

    def run_study(study: Study, out: Path, **more: object) -> dict[str, Any]:
        ran.append(study)
        quick = ProbeConfig(heads=("linear",), tasks=("transformation",), resamples=0, redraws=0, rotate="none")
        study = dataclasses.replace(study, probes=quick, bootstrap=100)
        return run_whole(study, out, **more)  # type: ignore[arg-type]

    run_whole = pipeline.run_study
    monkeypatch.setattr(pipeline, "run_study", run_study)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.pictures").symlink_to(finished.parent / "photographs")
    backbones = ["--backbone", "control:pixels", "--backbone", "control:statistics"]
    asked = ["--suite", "identity,grayscale,jpeg", *setting("seed=3", "canvas=64", "limit=24"), "--device", "cpu"]
    command = ["my.pictures/", *backbones, *asked, "--quiet", "--json"]
    assert main(["run", *command]) == 0
    answer = the_json(capsys)
    assert (answer["out"], answer["store"]) == ("runs/my.pictures", "runs/my.pictures/store.zarr")
    assert (answer["images"], answer["variants"]) == (23, 69)  # one of the 24 is broken
    results = json.loads((tmp_path / answer["results"]).read_text())
    assert (results["name"], results["seed"]) == ("my.pictures", 3)
    assert set(results["backbones"]) == {"control:pixels", "control:statistics"}
    (study,) = ran
    assert study.images == Path("my.pictures")
    assert (study.seed, study.probes.seed, study.analysis.seed, study.canvas) == (3, 3, 3, 64)
    assert (study.embed.device, study.probes.device) == ("cpu", "cpu")
    monkeypatch.setattr("substyle.engine.stages.probes.run_probes", None)
    assert main(["run", *command, "--out", "runs/my.pictures", "--profile"]) == 0  # all is complete
    assert the_json(capsys)["trace"] == "runs/my.pictures/trace.json"


def test_stage_by_stage(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, study = str(finished / "store.zarr"), str(finished.parent / "small.toml")
    common = ["--out", str(tmp_path), "--study", study, "--quiet", "--json"]
    assert main(["stage", "probes", store, "--backbone", "control:pixels", *common]) == 0
    assert set(the_json(capsys)["backbones"]) == {"control:pixels"}
    assert main(["stage", "analysis,similarity", store, "--backbone", "control:pixels", *common]) == 0
    assert "knn" in the_json(capsys)["backbones"]["control:pixels"]
    assert main(["report", store, *common]) == 0
    capsys.readouterr()
    staged = json.loads((tmp_path / "results.json").read_text())["backbones"]["control:pixels"]
    whole = json.loads((finished / "results.json").read_text())["backbones"]["control:pixels"]
    assert staged["transformation"] == whole["transformation"]
    assert staged["knn"] == whole["knn"]
    for options, field in (
        (["stage", "shift"], "stage"),  # which embeds other photographs by the backbones of a study
        (["stage", "probes", "--set", "splits={train=0.5,val=0.25,test=0.25}"], "--set"),  # those of the store are used
        (["stage", "mistakes", "--set", "probes.expert.passes=1"], "--set"),  # the probes are there
        (["stage", "analysis", "--images", "photographs"], "--images"),  # which it does not read
    ):
        assert main([*options, store, "--out", str(tmp_path), "--json"]) == 2
        assert the_json(capsys)["error"]["field"] == field
    assert main(["stage", "mistakes", store, *common, "--set", "probes.expert.passes=1"]) == 1  # of other probes
    assert "outdated" in the_json(capsys)["error"]["message"]


def test_results_of_a_store_go_to_a_folder_of_its_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = shutil.copytree(finished / "store.zarr", tmp_path / "folder" / "store.zarr")
    study = ["--study", str(finished.parent / "small.toml")]
    command = ["stage", "analysis,similarity", str(store), "--backbone", "control:pixels", *study]
    assert main([*command, "--quiet", "--json"]) == 0
    assert the_json(capsys)["out"] == "runs/store"
    assert main(["report", str(store), "--quiet", "--json"]) == 0
    assert the_json(capsys)["results"] == "runs/store/results.json"
    outputs.claim(tmp_path / "folder", store, EmbeddingStore.open(store).uuid)  # as a run does
    assert main([*command, "--quiet", "--json"]) == 0
    assert the_json(capsys)["out"] == str(tmp_path / "folder")


def test_predict(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in (60, 61):
        (images / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    (images / "bad.jpg").write_text("no")
    (probe,) = (finished / "probes").glob("control_pixels-*/class-linear.safetensors")
    assert main(["predict", str(probe), str(images), "--json", "--quiet", "--top", "1"]) == 0
    answer = the_json(capsys)
    assert {row["key"]: row["outputs"]["class"][0]["label"] for row in answer["predictions"]} == {
        "60.jpg": "even",
        "61.jpg": "odd",
    }
    assert [row["key"] for row in answer["quarantined"]] == ["bad.jpg"]
    assert main(["predict", str(probe), str(images / "60.jpg"), "--quiet"]) == 0
    assert "60.jpg  class: even" in capsys.readouterr().out
    assert main(["predict", str(probe), str(images), "--quiet", "--strict"]) == 3
    assert main(["predict", str(probe), str(images / "bad.jpg"), "--quiet"]) == 1
    assert "quarantined bad.jpg" in capsys.readouterr().out
    assert main(["predict", str(probe.parent), str(images), "--quiet"]) == 1
    assert "a folder" in capsys.readouterr().err


def test_predict_by_name(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as with the file of the probe; errors name what there is. A summary ends the output."""
    images = tmp_path / "images"
    images.mkdir()
    for i in (60, 61, 62):
        (images / f"{i}.jpg").write_bytes(jpeg(photograph(i)))
    (images / "bad.jpg").write_text("no")
    (file,) = (finished / "probes").glob("control_pixels-*/class-linear.safetensors")
    given = ["--backbone", "control:pixels", "--task", "class"]
    answers = []
    for probe in ([str(file)], [str(finished), *given]):
        assert main(["predict", *probe, str(images), "--json", "--quiet"]) == 0
        answers.append(the_json(capsys))
    assert answers[0] == answers[1]
    summary = answers[0]["summary"]
    assert (summary["photographs"], summary["quarantined"]) == (3, 1)
    labels = [row["outputs"]["class"][0]["label"] for row in answers[0]["predictions"]]
    assert {each["label"]: each["photographs"] for each in summary["outputs"]["class"]["labels"]} == Counter(labels)
    first = [row["outputs"]["class"][0]["probability"] for row in answers[0]["predictions"]]
    assert summary["outputs"]["class"]["median_probability"] == sorted(first)[1]
    assert main(["predict", str(finished), *given[:2], str(images), "--quiet"]) == 0
    shown = capsys.readouterr().out.strip().splitlines()[-3:]
    assert shown[0] == "3 photographs predicted, 1 quarantined"
    assert shown[1].startswith("transformation: ")
    assert "median probability" in shown[1]
    assert "transformation: calibrated: expected calibration error" in shown[2]
    for probe, named in (
        ([str(finished)], "control:pixels, control:random:test_efficientnet"),
        ([str(finished), "--backbone", "nothing"], "control:pixels, control:random:test_efficientnet"),
        ([str(finished), *given[:2], "--task", "nothing"], "class, kind, transformation"),
        ([str(file), *given[:2]], "--backbone"),
    ):
        assert main(["predict", *probe, str(images), "--quiet"]) == 2
        assert named in capsys.readouterr().err


def test_predict_compiles_only_the_network_of_the_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compiled graph agrees with torch, and one that differs from the training is not used."""
    (probe,) = (finished / "probes").glob("control_random_*/transformation-linear.safetensors")
    image = tmp_path / "60.jpg"
    image.write_bytes(jpeg(photograph(60)))
    loaded: list[str] = []

    def eager(module: torch.nn.Module) -> TorchModule:
        loaded.append(type(module).__name__)
        return TorchModule(module)

    def probabilities() -> dict[str, float]:
        (row,) = predict.predict(probe, image, top=100, quiet=True)["predictions"]
        return {each["label"]: each["probability"] for each in row["outputs"]["transformation"]}

    monkeypatch.setattr(predict, "TorchModule", eager)
    compiled = probabilities()
    assert loaded == []
    monkeypatch.setattr(OpenVINOBuilder, "graph_reference", lambda self: lambda canvas: np.ones((len(canvas), 8)))
    assert probabilities() == pytest.approx(compiled, abs=1e-3)
    assert len(loaded) == 1


def test_embed_remembers_its_source(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "s.zarr"
    images = str(finished.parent / "photographs")
    first = ["embed", images, "--store", str(store), "--backbone", "control:pixels", "--suite", "mini5"]
    assert main([*first, *setting("canvas=64", "limit=8"), "--quiet", "--json"]) == 0
    assert the_json(capsys)["images"] == 8
    again = ["embed", "--store", str(store), "--backbone", "control:statistics", *setting("limit=8")]
    assert main([*again, "--quiet", "--json"]) == 0
    assert the_json(capsys)["variants"] == 40
    assert main(["backbones", "--store", str(store), "--json"]) == 0
    assert [row["name"] for row in the_json(capsys)["backbones"]] == ["control:pixels", "control:statistics"]


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{n}", t) for n in range(30) for t in ("identity", "jpeg", "grayscale")]
    x = rng.normal(size=(len(rows), 6)).astype(np.float32)
    columns = {
        "key": [key for key, _ in rows],
        "transformation": [name for _, name in rows],
        "label": ["a" if int(key) % 2 else "b" for key, _ in rows],
    }
    pq.write_table(pa.table({**columns, "embedding": list(x)}), tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", x)
    pa.csv.write_csv(pa.table(columns), tmp_path / "rows.csv")
    for i, source in enumerate(([tmp_path / "x.parquet"], [tmp_path / "x.npy", "--rows", tmp_path / "rows.csv"])):
        store = tmp_path / f"{i}.zarr"
        arguments = ["import", *map(str, source), "--store", str(store), "--backbone", "import:mine", "--json"]
        assert main(arguments) == 0
        assert the_json(capsys) == {
            "store": str(store), "backbone": "import:mine", "images": 30, "transformations": 3, "dim": 6,
        }  # fmt: skip
        table = load_table(EmbeddingStore.open(store), "import:mine")
        at = [rows.index((key, "jpeg")) for key in table.keys]
        np.testing.assert_array_equal(table.x_TND[table.transformations.index("jpeg")], x[at].astype(np.float16))
    pq.write_table(pa.table({**columns, "embedding": list(x)}).slice(1), tmp_path / "short.parquet")
    assert main(["import", str(tmp_path / "short.parquet"), "--store", str(tmp_path / "z"), "--backbone", "b"]) == 2
    assert "no identity of 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nothing.toml"], 2, "study: got 'nothing.toml'"),
        (["embed", "--store", "s.zarr", "--backbone", "control:pixels"], 2, "a folder of photographs"),
        (["stage", "probes", "nowhere.zarr"], 1, "nowhere.zarr"),
        (["transforms", "--suite", "nothing"], 2, "substance31"),
        (["run", "demoo"], 2, "did you mean demo"),
        (["predict", "nothing.safetensors", "."], 1, "nothing.safetensors"),
    ],
)
def test_errors_are_one_line_and_have_their_code(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("substyle: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "shown"), [(["--help"], "predict"), (["nothing"], "invalid choice"), (["embed", "--help"], "--set FIELD")]
)
def test_help_and_usage_errors_import_nothing_heavy(words: list[str], shown: str) -> None:
    code = (
        f"import sys\nfrom substyle.engine.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nvidia', 'numpy', 'timm', 'zarr', 'openvino', 'faiss', 'pydantic'}\n"
        "print(sorted(set(sys.modules) & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert shown in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        (["photographs"], "--backbone", "is required"),
        (["photographs", "--backbone", "b", "--images", "x"], "--images", "only with a study file"),
        (["photographs", "--backbone", "b", "--checkpoint", "c=w.pth"], "--checkpoint", "NAME=PATH"),
        (["photographs", "--backbone", "b", "--suite", "nothing"], "suite", "substance31"),
        (["s.toml", "--backbone", "b"], "--backbone", "set backbones in s.toml instead"),
        (["s.toml", "--suite", "mini5"], "--suite", "set suite in s.toml instead"),
        (["s.toml", "--checkpoint", "b=w.pth"], "--checkpoint", "set checkpoint of a backbone in s.toml instead"),
        (["nothing.toml"], "study", "No such file"),
    ],
)
def test_what_does_not_go_with_a_study_or_with_photographs_is_refused(
    arguments: list[str], field: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "0.jpg").write_bytes(jpeg(photograph(0)))
    (tmp_path / "s.toml").write_text('name = "s"\nbackbones = ["control:pixels"]\nimages = "photographs"\n')
    assert main(["run", *arguments, "--json"]) == 2
    error = the_json(capsys)["error"]
    assert error["type"] in ("ConfigError", "MissingError")
    assert error["field"] == field
    assert message in error["message"]
    assert not (tmp_path / "runs").exists()


def test_another_log_level_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SUBSTYLE_LOG", "loud")
    assert main(["transforms"]) == 2
    assert "$SUBSTYLE_LOG: got loud; allowed: debug, info, warning or error" in capsys.readouterr().err.replace("'", "")


def test_dashes_that_end_the_options_are_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stage", "a", "--", "--"])
    assert stop.value.code == 2
    assert "argument --: expected at most once" in capsys.readouterr().err
