"""Labels replace the names of backbones wherever the report shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.report.real import estimate, of_probes, real_results

from substyle.engine.extensions.adapt.section import adapters, adapters_summary
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


def test_one_adapter_under_two_paths_stays_two_backbones() -> None:
    results = real_results(LITE, VIT)
    names = ["adapt:a/1a2b3c4d5e.safetensors", "adapt:b/1a2b3c4d5e.safetensors", "adapt:b/0000000000.safetensors"]
    for name in names:
        row = results["backbones"][VIT] | {"adapter": {"backbone": LITE, "method": "pisco"}}
        results["backbones"][name] = row
    shown = labelled(validate_results(results))
    assert len(shown.backbones) == len(results["backbones"])
    assert f"{LITE} + pisco (00000000)" in shown.backbones


def test_layers_add_theirs_to_the_label() -> None:
    from substyle.engine.config import labels_of as of_choices

    study = study_of({"name": "s", "backbones": [{"name": "mae:base@layer=2:5,pool=avg", "label": "MAE"}]})
    assert of_choices(study.backbones) == {
        "mae:base@layer=2,pool=avg": "MAE@layer=2",
        "mae:base@layer=5,pool=avg": "MAE@layer=5",
    }
    study = study_of({"name": "s", "backbones": [{"name": "mae:base@layer=2,module=block:ffn", "label": "MAE"}]})
    assert list(of_choices(study.backbones).values()) == ["MAE@layer=2,module=block", "MAE@layer=2,module=ffn"]


def test_adapters_are_set_beside_their_backbone(tmp_path: Path) -> None:
    results = real_results(LITE, VIT)
    assert adapters(validate_results(results)).rows == ()
    name, base = VIT, LITE
    results["backbones"][name]["adapter"] = {"backbone": base, "method": "pisco"}
    table = adapters(validate_results(results))
    assert {row[:2] for row in table.rows} == {(base, "pisco")}
    by_score = {row[2]: row for row in table.rows}
    for _, _, heading, before, after, gain, _ in table.rows:
        assert gain is None or gain[0] == pytest.approx(after[0] - before[0], abs=1e-5), heading
        assert gain is None or gain[1] <= gain[0] <= gain[2]
    assert (
        by_score["Transformation"][3][0] == results["backbones"][base]["transformation"]["linear"]["accuracy"]["value"]
    )
    for row in results["comparisons"]:
        row["p_holm"] = 0.001 if {row["a"], row["b"]} == {name, base} and row["task"] == "transformation" else 0.9
    text = adapters_summary(validate_results(results))
    assert text.count("points") == 1
    assert "transformation" in text
    page = write_report(validate_results(results), tmp_path).html.read_text()
    assert 'id="adapters"' in page
    assert f"{base} + pisco" in page
    for each in (name, base):
        results["backbones"][each]["shift"] = {"night": {"accuracy": estimate(0.5, 0.4, 0.6), "images": 9}}
    results["backbones"][name]["class"]["linear"]["converged"] = False  # the probe of shifts
    assert [row[-1] for row in adapters(validate_results(results)).rows if row[2] == "Class, night"] == ["no"]
