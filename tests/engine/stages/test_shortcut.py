"""What it costs that processing goes with the class: arrangements, votes and the price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from tests.tables import table_of

from substyle.engine.stages.shortcut import STAGE, ShortcutConfig, shortcut
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError

NAMES, WIDTH, CLASSES = ("identity", "jpeg", "blur"), 8, 3
QUICK = ShortcutConfig(bootstrap=200)


def some(processing: float, substance: float = 1.0, train: int = 90, test: int = 60, seed: int = 0) -> EmbeddingTable:
    """Embeddings with a direction for each class and one for each transformation but ``blur``, and noise."""
    rng, count = np.random.default_rng(seed), train + 6 + test
    label_N = np.arange(count) % CLASSES
    x_TND = np.repeat(rng.normal(size=(1, count, WIDTH)) * 0.6, len(NAMES), axis=0)
    x_TND += rng.normal(size=x_TND.shape) * 0.05
    x_TND[:, np.arange(count), label_N] += substance
    x_TND[0, :, 5] += processing
    x_TND[1, :, 6] += processing
    x_TND[2, :, 5] += processing
    return table_of(x_TND, NAMES, (train, 6, test))


def test_each_arrangement_agrees_with_scikit_learn() -> None:
    table = some(0.8, test=24)
    found = shortcut(table, QUICK)["by_transformation"]["jpeg"]
    train, test = table.rows(TRAIN), table.rows(TEST)
    label_B = table.label_N[train]

    def unit(t: int, rows: np.ndarray) -> np.ndarray:
        x_ND = table.take_finite(t, rows).astype(np.float64)
        return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))

    right: dict[str, list[float]] = {name: [] for name in ("baseline", "all_diff", "pos_same", "neg_same")}
    for state, other in ((0, 1), (1, 0)):
        for n in test:
            own = label_B == table.label_N[n]
            likes = {"baseline": own | True, "all_diff": own & False, "pos_same": own, "neg_same": ~own}
            for name, like in likes.items():
                bank = np.where(like[:, None], unit(state, train), unit(other, train))
                model = KNeighborsClassifier(10, algorithm="brute").fit(bank, label_B)
                right[name].append(float(model.predict(unit(state, np.array([n])))[0] == table.label_N[n]))
    for name, scores in right.items():
        assert found[name] == pytest.approx(np.mean(scores)), name
    assert found["price"]["value"] == pytest.approx(np.mean(right["pos_same"]) - np.mean(right["neg_same"]))


def test_an_embedding_of_classes_alone_pays_nothing() -> None:
    found = shortcut(some(0.0, substance=6.0), QUICK)
    for row in found["by_transformation"].values():
        assert [row[name] for name in ("baseline", "all_diff", "pos_same", "neg_same", "uniform")] == [1.0] * 5
        assert row["price"]["value"] == 0.0
    assert found["price"]["one_way"][0] <= 0 <= found["price"]["one_way"][1]


def test_class_probes_agree_with_least_squares() -> None:
    """At a correlation of 1 nothing is random but the half of the classes, each of which is transformed in turn."""
    table = some(0.8)
    found = shortcut(table, replace(QUICK, correlations=(0.0, 1.0)))["by_transformation"]["jpeg"]["trained"][1]
    train, test = table.rows(TRAIN), table.rows(TEST)

    def unit(t: int, rows: np.ndarray) -> np.ndarray:
        x_ND = table.take_finite(t, rows).astype(np.float64)
        return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))

    plain_ND, target_NC = unit(0, train), np.eye(CLASSES)[table.label_N[train]] * 2 - 1
    alpha = float(RidgeClassifierCV(alphas=np.logspace(-4, 3, 15)).fit(plain_ND, table.label_N[train]).alpha_)
    scores: dict[int, list[float]] = {}
    for half in range(CLASSES):
        for more in (True, False):
            changed = (table.label_N[train] == half) == more
            x_ND = np.where(changed[:, None], unit(1, train), plain_ND)
            mean_D, mean_C = x_ND.mean(axis=0), target_NC.mean(axis=0)
            gram_DD = (x_ND - mean_D).T @ (x_ND - mean_D) + alpha * np.eye(WIDTH)
            weight_DC = np.linalg.solve(gram_DD, (x_ND - mean_D).T @ (target_NC - mean_C))
            for t in (0, 1):
                answer = ((unit(t, test) - mean_D) @ weight_DC + mean_C).argmax(axis=1)
                scores.setdefault(half, []).append((answer == table.label_N[test]).mean())
    assert any(found == pytest.approx(np.mean(own), abs=1e-6) for own in scores.values())


def test_processing_that_is_known_is_paid_for() -> None:
    found = shortcut(some(3.0), QUICK)
    jpeg, blur = (found["by_transformation"][name] for name in ("jpeg", "blur"))
    assert (jpeg["pos_same"], jpeg["neg_same"]) == (1.0, 0.0)  # neighbours are those of the processing
    assert jpeg["price"]["value"] == 1.0
    assert jpeg["baseline"] > 0.6
    assert jpeg["all_diff"] > 0.5
    assert jpeg["neg_same"] < jpeg["uniform"] < jpeg["pos_same"]
    assert next(iter(STAGE.lines(found))) == "jpeg  +100.0 points"
    assert abs(blur["price"]["value"]) < 0.1  # the embedding cannot tell it
    price = found["price"]
    assert price["value"] == pytest.approx((jpeg["price"]["value"] + blur["price"]["value"]) / 2)
    low, high = price["one_way"]
    assert price["low"] < low < price["value"] < high < price["high"]
    # of each transformation over photographs alone
    assert jpeg["price"].keys() == blur["price"].keys() == {"value", "low", "high", "n", "unit"}
    assert (price["unit"], jpeg["price"]["unit"]) == ("photograph and transformation", "photograph")


def test_variants_that_equal_the_original_neither_ask_nor_answer() -> None:
    table = some(3.0)
    distinct = np.ones((len(NAMES), len(table.keys)), np.bool_)
    distinct[1] = np.random.default_rng(5).random(len(table.keys)) < 0.6
    x_TND = np.where(distinct[..., None], table.x_TND, np.asarray(table.x_TND)[:1])
    found = shortcut(replace(table, x_TND=x_TND, distinct_TN=distinct), QUICK)["by_transformation"]
    assert (found["jpeg"]["pos_same"], found["jpeg"]["neg_same"]) == (1.0, 0.0)
    distinct[1] = False
    none = shortcut(replace(table, distinct_TN=distinct), QUICK)
    assert none["by_transformation"]["jpeg"]["price"] is None
    price, blur = none["price"], none["by_transformation"]["blur"]["price"]
    assert (price["value"], price["one_way"]) == (blur["value"], [blur["low"], blur["high"]])
    assert price.keys().isdisjoint(("low", "high"))  # over one transformation


@pytest.mark.parametrize("values", [(0.5, 1.0), (0.0,), (0.0, 1.0, 0.5), (0.0, 1.5)])
def test_correlations_ascend_from_none(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="correlations"):
        ShortcutConfig(correlations=values)
