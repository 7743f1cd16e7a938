"""Parameters of transformations: what was drawn, what regression predicts, and what intervals cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference
from sklearn.metrics import r2_score
from tests.conftest import slow_after
from tests.engine.report.real import drop, real_results

from substyle.engine.probes.ridge import PENALTIES, Response, RidgePath
from substyle.engine.stages.parameters import STAGE, ParametersConfig, families, parameters, response_of
from substyle.engine.stages.results import validate_results
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.report import sections_of
from substyle.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

SUITE = ("identity", "gaussian_blur", "hue_shift", "line_halftone", "grayscale")
QUICK = ParametersConfig(bootstrap=200)


def drawn(name: str, keys: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    return base.get(name).values(image_keys(seed, list(keys)))


def some(
    names: tuple[str, ...] = SUITE, counts: tuple[int, int, int] = (80, 20, 60), width: int = 12, noise: float = 0.02
) -> EmbeddingTable:
    """Embeddings that have each parameter, angles as points of their circle, in a direction of its own, and noise."""
    load_all()
    rng, count = np.random.default_rng(0), sum(counts)
    keys = tuple(f"{i % 5}/{i}.jpg" for i in range(count))
    x_TND = rng.normal(size=(len(names), count, width)) * noise
    for t, name in enumerate(names):
        for p, parameter in enumerate(base.get(name.partition("@")[0]).parameters):
            target = response_of(parameter)
            if target is not None:
                points = target.points(drawn(name, keys)[parameter.name].astype(np.float64))
                x_TND[t, :, 2 * p : 2 * p + points.shape[1]] += points if target.period else points / 10
    return EmbeddingTable(
        backbone="b",
        x_TND=x_TND.astype(np.float32),
        transformations=names,
        kind=tuple(base.get(name).kind for name in names),
        roles=tuple(base.get(name).role for name in names),
        keys=keys,
        label_N=np.zeros(count, np.int64),
        class_names=("a",),
        split_N=np.repeat(np.array([TRAIN, VAL, TEST], np.int8), counts),
        distinct_TN=np.ones((len(names), count), np.bool_),
    )


def found_in(table: EmbeddingTable, config: ParametersConfig = QUICK) -> dict[str, Any]:
    answer: dict[str, Any] = parameters(table, 0, config)["by_transformation"]
    return answer


def test_values_are_those_that_make_the_pixels() -> None:
    keys_B = image_keys(3, ["a", "b", "c"])
    radius, part = base.Choice("radius", (2, 4, 8), "px", severity=True), base.Uniform("part", 0.5, 0.75, "S")
    made = base.Transformation("made", "blur", "train", "kernel", (radius, part, base.Uniform("turn", 0, 90, "degree")))
    values = made.values(keys_B)
    for side in (224, 112):
        drawn_at = made.draw(keys_B, side)
        assert np.allclose(values["radius"] * side / 224, drawn_at["radius"])
        assert np.allclose(values["part"] * side, drawn_at["part"])
        assert np.array_equal(values["turn"], drawn_at["turn"])
    assert set(values["radius"].tolist()) <= {2.0, 4.0, 8.0}
    assert ((values["part"] >= 0.5) & (values["part"] < 0.75)).all()
    assert made.at(3).values(keys_B)["radius"].tolist() == [8.0] * 3
    assert np.array_equal(made.at(3).values(keys_B)["turn"], values["turn"])  # the same random numbers


def test_which_parameters_are_predicted() -> None:
    known = families(SUITE)
    assert list(known) == ["gaussian_blur", "hue_shift", "line_halftone"]
    assert [(t.name, t.period) for t in known["line_halftone"][1]] == [("pitch", 0.0), ("angle", 180.0)]
    assert [(t.name, t.period) for t in known["hue_shift"][1]] == [("hue", 360.0)]
    rain, order = (families((name,)) for name in ("rain", "channel_permute"))
    assert [t.name for t in rain["rain"][1]] == ["drops", "angle"]
    assert rain["rain"][1][1].period == 0.0  # from 70 to 110 degrees
    assert order == {}  # no number
    assert families(("flip",)) == {}  # a choice of cases
    icons = {each.name: each.period for each in families(("icon_overlay",))["icon_overlay"][1]}
    assert (icons["shift_x"], icons["hue"], icons["angle"]) == (1.0, 360.0, 0.0)
    assert "page" not in icons
    assert response_of(base.Uniform("angle", -90, 90, "degree")) == Response("angle", "degree", 0.0)
    severities = families(("imagenet_c_fog@1", "imagenet_c_fog@3"))
    assert severities == {"imagenet_c_fog": ([0, 1], [Response("severity", "", 0.0)])}


def test_the_suite_file_of_a_store_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"my_blur.*suite file .* --plugin"):
        families(("identity", "my_blur@2"))


def test_angles_go_full_circle() -> None:
    angle = Response("angle", "degree", 180.0)
    values = np.array([1.0, 90.0, 179.0])
    assert angle.numbers(angle.points(values)) == pytest.approx(values)
    assert angle.errors(values, np.array([179.0, 80.0, 2.0])) == pytest.approx([2.0, 10.0, 3.0])
    assert Response("sigma", "px", 0.0).errors(values, values + 3) == pytest.approx(3.0)


def test_predicted_angles_are_shown_beside_the_true_ones() -> None:
    """Also of angles with a sign, which are read from points of the circle as positive ones."""
    hue = Response("hue", "degree", 360.0)
    values = np.array([-100.0, 170.0, -179.0, 40.0])
    read = hue.numbers(hue.points(values + 4))
    assert read == pytest.approx([264.0, 174.0, 185.0, 44.0])
    assert hue.near(values, read) == pytest.approx(values + 4)
    assert Response("sigma", "px", 0.0).near(values, values + 400) == pytest.approx(values + 400)


def test_what_embeddings_have_is_read_and_what_they_lack_is_not() -> None:
    found = found_in(some())
    assert {t: list(own) for t, own in found.items()} == {
        "gaussian_blur": ["sigma"],
        "hue_shift": ["hue"],
        "line_halftone": ["pitch", "angle"],
    }
    for own in found.values():
        for score in own.values():
            assert score["r2"]["value"] > 0.95
            for each in (score["r2"], score["error"]):
                assert each["low"] < each["value"] < each["high"]
    assert found["gaussian_blur"]["sigma"]["error"]["value"] < 0.3
    assert found["hue_shift"]["hue"]["error"]["value"] < 5
    for (t, parameter), period in {("line_halftone", "angle"): 180, ("hue_shift", "hue"): 360}.items():
        points = np.array(found[t][parameter]["points"])
        assert np.abs(points[:, 1] - points[:, 0]).max() <= period / 2
        assert np.abs(points[:, 1] - points[:, 0]).mean() < 10
    table = some()
    shuffled = np.random.default_rng(1).permuted(table.x_TND, axis=1)
    lost = found_in(EmbeddingTable(**{**vars(table), "x_TND": shuffled}))
    assert all(score["r2"]["value"] < 0.1 for own in lost.values() for score in own.values())


@pytest.mark.parametrize("width", [6, 200])  # more rows than numbers, and fewer
@pytest.mark.parametrize("penalty", slow_after(1, [9, 0, 18]))
def test_each_penalty_agrees_with_scikit_learn(width: int, penalty: int) -> None:
    table = some(width=width, noise=0.3)
    target = Response("pitch", "px", 0.0)
    value_TN = drawn("line_halftone", table.keys)["pitch"].astype(np.float64)[None]
    train, test = table.rows(TRAIN), table.rows(TEST)
    made = RidgePath.of(table, [(0, 3, part) for part in np.array_split(train, 5)], [(target, value_TN)])
    x_ND = table.take_finite(3, train).astype(np.float64)
    unit = ((x_ND - x_ND.mean(axis=0)) ** 2).sum() / width
    model = Reference(alpha=PENALTIES[penalty] * unit, solver="svd").fit(x_ND, value_TN[0, train])
    expected = model.predict(table.take_finite(3, test).astype(np.float64))
    assert made.predictions(table, [(0, 3, test)])[penalty][:, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_scores_agree_with_scikit_learn() -> None:
    table = some(noise=0.4)
    score = found_in(table)["line_halftone"]["pitch"]
    train, test = table.rows(TRAIN), table.rows(TEST)
    value_N = drawn("line_halftone", table.keys)["pitch"].astype(np.float64)
    ridge = RidgePath.of(table, [(0, 3, train)], [(Response("pitch", "px", 0.0), value_N[None])])
    predicted = ridge.predictions(table, [(0, 3, test)])[list(PENALTIES).index(score["penalty"])][:, 0]
    assert score["r2"]["value"] == pytest.approx(r2_score(value_N[test], predicted))
    assert score["error"]["value"] == pytest.approx(np.abs(value_N[test] - predicted).mean())


def test_lines_for_a_terminal() -> None:
    found = parameters(some(), 0, QUICK)
    score = found["by_transformation"]["gaussian_blur"]["sigma"]
    assert f"gaussian_blur: sigma  R² {score['r2']['value']:.2f}  error {score['error']['value']:.3g} px" in list(
        STAGE.lines(found)
    )


def test_severities_are_rows_of_one_regression() -> None:
    names = tuple(f"imagenet_c_defocus_blur@{k}" for k in (1, 3, 5))
    found = found_in(some(names))
    assert list(found) == ["imagenet_c_defocus_blur"]
    radius = found["imagenet_c_defocus_blur"]["radius"]
    assert (radius["low"], radius["high"], radius["images"]) == (3.0, 10.0, 60)
    assert radius["r2"]["value"] > 0.95
    assert found_in(some(names[:2])) == {}  # two values are no regression


def test_variants_that_equal_the_original_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    table = some()
    distinct = np.random.default_rng(4).random(table.distinct_TN.shape) < 0.6
    x_TND = np.where(distinct[..., None], table.x_TND, np.asarray(table.x_TND)[:1])  # those of identity
    found = found_in(EmbeddingTable(**{**vars(table), "x_TND": x_TND, "distinct_TN": distinct}))
    assert all(score["r2"]["value"] > 0.9 for own in found.values() for score in own.values())
    assert found["hue_shift"]["hue"]["images"] == distinct[2, table.rows(TEST)].sum()
    monkeypatch.setattr("substyle.engine.probes.ridge._AT_ONCE", 7)
    again = found_in(EmbeddingTable(**{**vars(table), "x_TND": x_TND, "distinct_TN": distinct}))
    expected = found["hue_shift"]["hue"]["r2"]["value"]
    assert again["hue_shift"]["hue"]["r2"]["value"] == pytest.approx(expected, rel=1e-9)


def test_without_validation_photographs_some_of_the_training_ones_select() -> None:
    assert found_in(some(counts=(100, 0, 60)))["gaussian_blur"]["sigma"]["r2"]["value"] > 0.95


def test_intervals_stay_in_range_with_few_folders() -> None:
    config = ParametersConfig(bootstrap=200, resample_by="folder")
    for own in found_in(some(noise=0.3), config).values():
        for score in own.values():
            assert score["r2"]["high"] <= 1.0
            assert score["error"]["low"] >= 0.0


def test_intervals_cover_the_score_on_all_photographs() -> None:
    """R² of the same predictions on a large population; photographs are resampled with all of their severities."""
    names = tuple(f"imagenet_c_defocus_blur@{k}" for k in (1, 3, 5))
    table = some(names, counts=(60, 20, 4000), noise=0.5)
    whole = found_in(table)["imagenet_c_defocus_blur"]["radius"]["r2"]["value"]
    rng, covered = np.random.default_rng(2), 0
    test = table.rows(TEST)
    for _ in range(60):
        rows = np.concatenate([table.rows(TRAIN), table.rows(VAL), rng.choice(test, 50, replace=False)])
        x_TND = np.asarray(table.x_TND)[:, rows]
        part = {"x_TND": x_TND, "keys": tuple(table.keys[i] for i in rows), "split_N": table.split_N[rows]}
        part |= {"label_N": table.label_N[rows], "distinct_TN": table.distinct_TN[:, rows]}
        r2 = found_in(EmbeddingTable(**{**vars(table), **part}))["imagenet_c_defocus_blur"]["radius"]["r2"]
        covered += r2["low"] <= whole <= r2["high"]
    assert 0.87 <= covered / 60 <= 1.0


def test_the_section_and_what_is_compared() -> None:
    results = drop(real_results(), "parameters")
    score = {
        "r2": {"value": 0.8, "low": 0.7, "high": 0.9},
        "error": {"value": 0.5, "low": 0.4, "high": 0.6},
        "unit": "px",
        "low": 2,
        "high": 6,
    }
    score["points"] = [[2, 2.1], [6, 5.5]]
    bad = {**score, "r2": {"value": -0.5, "low": -0.6, "high": -0.4}}
    names = list(results["backbones"])[:2]
    for name, own in zip(names, (score, bad), strict=True):
        results["backbones"][name]["parameters"] = {"by_transformation": {"gaussian_blur": {"sigma": own}}}
    document = validate_results(results)
    (section,) = [each for each in sections_of(document) if each.key == "parameters"]
    text, heat, plots, data, _ = section.blocks
    assert f"{names[0]} 80.0, {names[1]} 0.0." in text.text  # type: ignore[union-attr]
    (group,) = heat.parts[0][2].groups  # type: ignore[union-attr]
    assert group[0] == "gaussian_blur"
    assert [cell.text for cell in group[1][0][1]] == ["80.0", "−50.0"]
    assert [panel.name for panel in plots.panels] == ["gaussian_blur: sigma"]  # type: ignore[union-attr]
    assert data.table.rows[0][:4] == (names[0], "gaussian_blur", "sigma", "px")  # type: ignore[union-attr]
