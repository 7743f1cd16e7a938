"""Parameters of transformations: what was drawn, what regression predicts, and what intervals cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference
from sklearn.metrics import r2_score
from tests.conftest import slow_after
from tests.tables import table_of

from substyle.engine.probes.ridge import PENALTIES, Response, RidgePath
from substyle.engine.stages.parameters import ParametersConfig, families, parameters, response_of
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
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
    return table_of(x_TND, names, counts, keys=keys)


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


def test_angles_go_full_circle() -> None:
    angle = Response("angle", "degree", 180.0)
    values = np.array([1.0, 90.0, 179.0])
    assert angle.numbers(angle.points(values)) == pytest.approx(values)
    assert angle.errors(values, np.array([179.0, 80.0, 2.0])) == pytest.approx([2.0, 10.0, 3.0])
    assert Response("sigma", "px", 0.0).errors(values, values + 3) == pytest.approx(3.0)


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


def test_the_suite_file_of_a_store_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"my_blur.*suite file .* --plugin"):
        families(("identity", "my_blur@2"))


def test_without_validation_photographs_some_of_the_training_ones_select() -> None:
    assert found_in(some(counts=(100, 0, 60)))["gaussian_blur"]["sigma"]["r2"]["value"] > 0.95


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
