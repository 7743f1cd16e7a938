"""The stage of docs/contributing.md: one file, and everything shows it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tests.conftest import the_json

from substyle.engine.cli import main
from substyle.engine.config import Study
from substyle.engine.stages import registry
from substyle.engine.stages.stage import JsonStage
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study.compare import compare_results
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.plugins import files_digest
from substyle.pipelines.transforms.registry import load_file

DOCS = Path(__file__).parents[3] / "docs" / "contributing.md"
PIXELS = "control:pixels"
STUDY = """
name = "small"
backbones = ["control:pixels"]
suite = "identity,grayscale,jpeg"
canvas = 64
gallery = 0
plugins = ["dimension.py"]
bootstrap = 100

[probes]
tasks = ["transformation"]
heads = ["linear"]
Cs = [0.01]
resamples = 0
redraws = 0
rotate = "none"
expert = { passes = 20, equal_width = 0 }

[dimension]
images = 8
"""


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Registrations are undone afterwards."""
    registry.stages()
    known = dict(registry.STAGES)
    yield
    registry.STAGES.clear()
    registry.STAGES.update(known)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plug-in and a study."""
    (source,) = re.findall(r"```python\n(# dimension\.py\n.*?)```", DOCS.read_text(), re.S)
    (tmp_path / "dimension.py").write_text(source)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


def run(folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> Any:  # noqa: ANN401
    given = [str(folder / "study.toml"), "--images", str(photographs), "--out", str(folder / "out"), "--quiet"]
    assert main(["run", *given, "--json", "--allow-plugins", *more]) == code
    return the_json(capsys)


def note(folder: Path) -> str:
    (path,) = (folder / "out" / "dimension").glob("*/complete.json")
    return path.read_text()


@pytest.mark.usefixtures("figures")
@pytest.mark.slow
def test_everything_shows_it_and_it_is_kept_until_something_changes(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run(folder, two_classes, capsys)
    results = json.loads(Path(answer["results"]).read_text())
    found = results["backbones"][PIXELS]["dimension"]
    store = EmbeddingStore.open(folder / "out" / "store.zarr")
    table = load_table(store, PIXELS)
    for t, name in enumerate(table.transformations):
        value_D = np.linalg.eigvalsh(np.cov(table.take(t, table.rows(TEST)[:8]).astype(np.float64), rowvar=False))
        expected = value_D.sum() ** 2 / (value_D**2).sum() / table.take(t, table.rows(TEST)).shape[1]
        assert found[name] == pytest.approx(expected, rel=1e-3)
    page = Path(answer["report"]).read_text()
    shown = page.partition('<section id="dimension">')[2].partition("</section>")[0]
    assert f"{PIXELS}</text>" in shown.partition("<svg")[2]
    assert {path.name for path in (folder / "out" / "figures").iterdir()} >= {"dimension.pdf", "dimension.png"}
    assert "control:pixels uses the largest part" in page
    assert '<a href="#dimension">Dimension</a>' in page
    assert (folder / "out" / "tables" / "dimension.csv").read_text().count("\n") == 4
    assert any(name.startswith("dimension/") for name in results["stamps"])

    before = note(folder)
    run(folder, two_classes, capsys)
    assert note(folder) == before  # kept
    given = [str(store.path), "--study", str(folder / "study.toml"), "--allow-plugins", "--json"]
    assert main(["report", *given, "--images", str(two_classes)]) == 0
    assert json.loads(Path(the_json(capsys)["results"]).read_text())["backbones"][PIXELS]["dimension"] == found

    (folder / "study.toml").write_text(STUDY.replace("images = 8", "images = 6"))
    assert main(["report", *given, "--images", str(two_classes)]) == 1
    assert "other settings: images" in the_json(capsys)["error"]["message"]
    run(folder, two_classes, capsys)
    assert note(folder) != before


def test_the_stage_alone(folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads(Path(run(folder, two_classes, capsys)["results"]).read_text())
    store, before = str(folder / "out" / "store.zarr"), note(folder)
    study = ["--study", str(folder / "study.toml"), "--images", str(two_classes), "--allow-plugins"]
    assert main(["stage", "dimension", store, *study, "--json"]) == 0
    assert the_json(capsys)["backbones"][PIXELS] == {"dimension": results["backbones"][PIXELS]["dimension"]}
    assert note(folder) == before  # kept
    for name in ("dimensions", "finetune"):  # the second needs a study
        assert main(["stage", name, store, "--json"]) == 2
        assert "probes, few_shot, parameters, labels" in the_json(capsys)["error"]["message"]
    plugin = ["--plugin", str(folder / "dimension.py"), "--set", "dimension.images=6"]
    assert main(["stage", "dimension", store, *plugin, "--quiet"]) == 0
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in printed] == [[PIXELS, name] for name in ("identity", "grayscale", "jpeg")]
    assert json.loads(note(folder))["stamp"]["settings"]["images"] == 6


def test_its_results_are_typed_and_compared(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads(Path(run(folder, two_classes, capsys)["results"]).read_text())
    for of, where in (("results", ("$defs", "BackboneResults", "properties")), ("study", ("properties",))):
        assert main(["info", "--schema", of]) == 0
        schema = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        for each in where:
            schema = schema[each]
        assert "dimension" in schema

    other = copy.deepcopy(results)
    own = other["backbones"][PIXELS]["dimension"]
    own["jpeg"] += 0.125
    compared = compare_results([("a", results), ("b", other)], folder / "compared")
    changes = {row[1]: row[-1][0] for row in compared.table.rows if row[1].startswith("dimension_")}
    assert changes == {"dimension_identity": 0, "dimension_grayscale": 0, "dimension_jpeg": pytest.approx(0.125)}
    assert "Dimension, jpeg" in (folder / "compared" / "compare.html").read_text()
    own["jpeg"] = "high"
    with pytest.raises(SubstyleError, match=r"\.dimension\.jpeg: expected a number, got 'high'"):
        compare_results([("a", results), ("b", other)], folder / "compared")


@pytest.mark.parametrize("name", ["probes", "canvas", "Mine", "", "sensitivity", "claims", "copy"])
def test_taken_and_invalid_names_are_refused(name: str) -> None:
    class Other(JsonStage[Study]):
        def compute(self, *_: object) -> None: ...

    made = Other()
    made.name = name  # type: ignore[misc]
    with pytest.raises(ConfigError, match="unused name"):
        registry.register_stage(made)
    made.name, made.directory = "unused", name or "../x"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="unused name"):
        registry.register_stage(made)


ADDING = """
from dataclasses import dataclass

from substyle.engine.config import BackboneChoice
from substyle.engine.stages.registry import register_stage
from substyle.engine.stages.stage import JsonStage, TrainingStage, Unit


@dataclass(frozen=True)
class AddingConfig:
    backbone: str


class Adding(JsonStage, TrainingStage):
    name = "adding"
    config = AddingConfig
    file = "number.json"
    directory = "trained"
    lines = JsonStage.lines

    def units(self, run, config):
        assert list(run.tables) == ["control:pixels"]
        return [Unit("control:pixels", f"number-{i}", (i,)) for i in range(2)]

    def compute(self, run, config, unit, folder):
        self.write(folder, {"backbone": config.backbone, "number": unit.variant[0]})

    def added(self, run, found):
        assert [each["number"] for each in found.values()] == [0, 1]
        return [BackboneChoice(found["control:pixels 1"]["backbone"])]

    def replaced(self, run, found):
        return ()


register_stage(Adding())
"""


def test_added_backbones_are_embedded_before_later_stages_and_trained_once(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "adding.py").write_text(ADDING)
    text = STUDY.partition("[dimension]")[0].replace("dimension.py", "adding.py")
    (folder / "study.toml").write_text(f'{text}[adding]\nbackbone = "control:statistics"\n')
    results = json.loads(Path(run(folder, two_classes, capsys)["results"]).read_text())
    assert list(results["backbones"]) == [PIXELS, "control:statistics"]
    assert all({"transformation", "knn"} <= set(found) for found in results["backbones"].values())
    notes = {path: path.stat().st_mtime_ns for path in (folder / "out" / "trained").glob("number-*/complete.json")}
    assert len(notes) == 2
    run(folder, two_classes, capsys)
    given = [str(folder / "out" / "store.zarr"), "--study", str(folder / "study.toml"), "--allow-plugins", "--json"]
    assert main(["report", *given, "--images", str(two_classes)]) == 0
    again = json.loads(Path(the_json(capsys)["results"]).read_text())
    assert list(again["backbones"]) == list(results["backbones"])
    assert {path: path.stat().st_mtime_ns for path in notes} == notes


def test_a_plugin_replaces_no_numbers_of_other_stages(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (folder / "dimension.py").read_text()
    method = "    def of_backbone(self, result):\n        return {'sensitivity': result}\n\n    def sections("
    (folder / "dimension.py").write_text(source.replace("    def sections(", method))
    message = run(folder, two_classes, capsys, code=1)["error"]["message"]
    assert message == "stage dimension: got entries sensitivity of results.json; allowed: dimension"


@pytest.mark.slow
def test_results_of_an_edited_helper_are_outdated(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plug-in that is a package, every file counts."""
    package = folder / "dimension"
    package.mkdir()
    source = (folder / "dimension.py").read_text().replace("variance_D.sum() **", "SCALE * variance_D.sum() **")
    source = source.replace("import numpy as np\n", "import numpy as np\nfrom .helper import SCALE\n")
    (package / "__init__.py").write_text(source)
    (package / "helper.py").write_text("SCALE = 1.0\n")
    (folder / "study.toml").write_text(STUDY.replace("dimension.py", "dimension"))
    before = run_again(folder, two_classes, capsys)
    (package / "helper.py").write_text("SCALE = 0.5\n")
    after = run_again(folder, two_classes, capsys)
    assert after == {name: pytest.approx(value / 2) for name, value in before.items()}


def run_again(folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Results of a run in another process, which has not imported the plug-in."""
    registry.STAGES.pop("dimension", None)
    load_file.cache_clear()
    files_digest.cache_clear()
    results = json.loads(Path(run(folder, photographs, capsys)["results"]).read_text())
    found: dict[str, float] = results["backbones"][PIXELS]["dimension"]
    return found


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("[dimension]\nimage = 8", "dimension"),
        ("dimension = 8", "dimension"),
        ("[dimensions]\nimages = 8", "dimensions"),
        ("[mistakes]\nshown = 8", "mistakes"),  # a stage of the package without settings
        ("[stages.dimension]\nimages = 8", "stages"),
    ],
)
def test_wrong_tables_are_refused_by_name(
    folder: Path, two_classes: Path, capsys: pytest.CaptureFixture[str], table: str, field: str
) -> None:
    text = STUDY.partition("[probes]")[0]
    text = text + table if table.startswith("[") else f"{table}\n{text}"
    (folder / "study.toml").write_text(text)
    assert run(folder, two_classes, capsys, code=2)["error"]["field"].startswith(field)
