"""Labels replace the names of backbones wherever the report shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.report.real import of_probes, real_results

from substyle.engine.report.data import labelled, labels_of
from substyle.engine.stages.results import validate_results
from substyle.engine.study.file import study_of
from substyle.engine.study.report import write_report
from substyle.errors import ConfigError

LITE, VIT = "efficientnet_lite0", "dinov2_vit_small"


def test_labels_stand_everywhere_and_names_nowhere(tmp_path: Path) -> None:
    results = of_probes(real_results(LITE, VIT, f"control:random:{LITE}"))
    results["backbones"][LITE]["label"] = "EfficientNet"
    shown = labelled(validate_results(results))
    renamed = {LITE: "EfficientNet"}
    assert list(shown.backbones) == [renamed.get(name, name) for name in results["backbones"]]
    assert LITE not in {name for row in shown.comparisons or [] for name in (row.a, row.b)}
    assert f"control:random:{LITE}" in shown.backbones  # a longer name is another backbone
    files = write_report(validate_results(results), tmp_path)
    page = files.html.read_text()
    assert "EfficientNet" in page
    assert page.count(LITE) == page.count(f"random:{LITE}")
    results["backbones"][LITE] |= {"base": {"a": 1}, "copy": LITE}  # of other versions
    extra = labelled(validate_results(results)).backbones["EfficientNet"]
    assert extra.model_extra == {"base": {"a": 1}, "copy": "EfficientNet"}
    unlabelled = validate_results(real_results(LITE, VIT))
    assert labelled(unlabelled) is unlabelled


def test_two_backbones_cannot_have_one_label() -> None:
    results = real_results(LITE, VIT)
    for name in (LITE, VIT):
        results["backbones"][name]["label"] = "A"
    with pytest.raises(ConfigError) as error:
        labels_of(validate_results(results))
    assert error.value.field == "label"
    row = {"name": "control:pixels", "label": "A"}
    with pytest.raises(ConfigError):
        study_of({"name": "s", "backbones": [row, {"name": "control:statistics", "label": "A"}]})
