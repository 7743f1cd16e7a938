"""Labels besides the class: scores, also with the class held fixed, and class accuracy across values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.neighbors import KNeighborsClassifier
from tests.engine.report.real import real_results
from tests.tables import table_of

from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.ridge import PENALTIES
from substyle.engine.results.model import entry_of
from substyle.engine.stages import registry
from substyle.engine.stages.labels import STAGE, LabelsConfig, labels
from substyle.engine.stages.results import validate_results
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.report import sections_of
from substyle.errors import ConfigError

WIDTH, CLASSES = 8, 3
QUICK = ProbeConfig(resamples=0, Cs=(0.1,), device="cpu", expert=ExpertConfig(precision="fp32", tolerance=1e-6))
SITES = ("east", "west", "north")


@pytest.fixture(autouse=True)
def one_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes have the one C of their settings, as the references do."""
    monkeypatch.setattr("substyle.engine.probes.linear.C_RANGE", (0.1, 0.1))


def some(
    site: float = 0.5, substance: float = 1.0, noise: float = 0.5, alike: float = 0.0, count: int = 360, seed: int = 0
) -> tuple[EmbeddingTable, np.ndarray]:
    """Embeddings with a direction for each class and each site; ``alike`` of the photographs have the class's site."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, CLASSES, count)
    site_N = np.where(rng.random(count) < alike, label_N, rng.integers(0, CLASSES, count))
    x_ND = rng.normal(size=(count, WIDTH)) * noise
    x_ND[np.arange(count), label_N] += substance
    x_ND[np.arange(count), CLASSES + site_N] += site
    x_TND = np.stack([rng.normal(size=x_ND.shape), x_ND])
    table = table_of(x_TND, ("blur", "identity"), (count // 2, count // 6, count - count // 2 - count // 6))
    return replace(table, label_N=label_N), site_N


def named(table: EmbeddingTable, codes: np.ndarray, names: tuple[str, ...] = SITES) -> dict[str, str]:
    return {key: names[code] for key, code in zip(table.keys, codes.tolist(), strict=True) if code >= 0}


def config_of(*names: str, **changes: Any) -> LabelsConfig:  # noqa: ANN401
    values = {"of": {name: f"column:{name}" for name in names}, "shots": 0, "max_values": 0, "bootstrap": 200}
    return LabelsConfig(**values | changes)


def found_for(table: EmbeddingTable, codes: np.ndarray, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    made = labels(table, {"site": named(table, codes)}, config_of("site", **changes), QUICK)
    return dict(made["by_label"]["site"])


def reference(table: EmbeddingTable, x_ND: np.ndarray, codes: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Predictions for all photographs of scikit-learn's classifier on standardised features."""
    train = table.rows(TRAIN) if rows is None else rows
    mean, sd = x_ND[train].mean(axis=0), x_ND[train].std(axis=0)
    x_ND = (x_ND - mean) / sd
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(x_ND[train], codes[train])
    return np.asarray(model.predict(x_ND))


def identity_of(table: EmbeddingTable) -> np.ndarray:
    return np.asarray(table.x_TND)[1].astype(np.float64)


def test_a_label_agrees_with_scikit_learn() -> None:
    table, site_N = some()
    found = found_for(table, site_N)
    right = reference(table, identity_of(table), site_N) == site_N
    test = table.rows(TEST)
    assert found["accuracy"]["value"] == pytest.approx(right[test].mean(), abs=0.005)
    predicted = reference(table, identity_of(table), site_N)
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(site_N[test], predicted[test]), abs=0.005)
    assert found["chance"] == pytest.approx(np.bincount(site_N[test]).max() / len(test))
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert (found["kind"], found["values"], found["images"], found["missing"]) == ("class", 3, len(test), 0)


def test_holding_the_class_fixed_agrees_with_scikit_learn() -> None:
    table, site_N = some(alike=0.6)
    found = found_for(table, site_N)
    x_ND, train = identity_of(table), table.rows(TRAIN)
    for each in range(CLASSES):
        x_ND[table.label_N == each] -= x_ND[train[table.label_N[train] == each]].mean(axis=0)
    test = table.rows(TEST)
    right = reference(table, x_ND, site_N)[test] == site_N[test]
    assert found["fixed"]["accuracy"]["value"] == pytest.approx(right.mean(), abs=0.015)
    most = np.array([np.bincount(site_N[train[table.label_N[train] == each]]).argmax() for each in range(CLASSES)])
    assert found["class_alone"] == pytest.approx((most[table.label_N[test]] == site_N[test]).mean())


def test_a_label_that_is_the_class_is_not_told_with_the_class_held_fixed() -> None:
    table, site_N = some(site=0.0, alike=1.0, noise=0.2)
    found = found_for(table, site_N)
    assert found["accuracy"]["value"] > 0.95
    assert found["class_alone"] == 1.0
    assert abs(found["fixed"]["accuracy"]["value"] - found["fixed"]["chance"]) < 0.15


def test_values_that_are_missing_or_rare_are_left_out_and_counted() -> None:
    table, site_N = some()
    site_N[table.rows(TRAIN)[:20]] = -1
    rare = table.rows(TRAIN)[30:33], table.rows(TEST)[:4]
    for rows in rare:
        site_N[rows] = 2
    others = np.setdiff1d(np.flatnonzero(site_N == 2), np.concatenate(rare))
    site_N[others] = 1
    found = found_for(table, site_N, min_images=5)
    assert (found["missing"], found["rare"], found["values"]) == (20, 7, 2)
    assert found["images"] == len(table.rows(TEST)) - 4


def test_groups_do_not_straddle_training_and_test() -> None:
    table, site_N = some()
    # two photographs of each patient, in order, and some patients with photographs everywhere
    patient = np.arange(len(site_N)) // 2
    patient[[0, 200, 250, 300, 301]] = 0
    known = {"site": named(table, site_N), "patient": {key: str(p) for key, p in zip(table.keys, patient, strict=True)}}
    config = config_of("site", "patient", group="patient")
    found = labels(table, known, config, QUICK)["by_label"]
    assert list(found) == ["site"]
    assert found["site"]["in_training"] == 3
    assert found["site"]["images"] == 117
    alone = labels(table, {"site": known["site"]}, config_of("site"), QUICK)["by_label"]["site"]
    grouped, before = found["site"]["accuracy"], alone["accuracy"]
    assert grouped["high"] - grouped["low"] != before["high"] - before["low"]
    assert (grouped["unit"], before["unit"]) == ("patient", "photograph")


def test_which_labels_are_numbers() -> None:
    table, _ = some()
    few, many = ({key: str(i % k) for i, key in enumerate(table.keys)} for k in (4, 40))
    words = {**many, table.keys[0]: "unknown"}

    def kind(values: dict[str, str], **changes: Any) -> str:  # noqa: ANN401
        return str(labels(table, {"x": values}, config_of("x", **changes), QUICK)["by_label"]["x"]["kind"])

    assert kind(few) == "class"
    assert kind(few, numbers=("x",)) == "number"
    assert kind(many) == "number"
    assert kind(words, min_images=2) == "class"
    assert kind(many, bins={"x": 4}) == "class"
    with pytest.raises(ConfigError, match=r"bins.*numbers, not '"):
        kind(words, bins={"x": 4})
    with pytest.raises(ConfigError, match="numbers, not 'unknown'"):
        kind(words, numbers=("x",))


def test_classes_within_and_across_values_agree_with_scikit_learn() -> None:
    table, site_N = some(noise=0.6)
    found = found_for(table, site_N, max_values=3)["class"]
    test, train = table.rows(TEST), table.rows(TRAIN)
    right = np.zeros(len(table.keys), np.bool_)
    for v in range(CLASSES):
        rows = train[site_N[train] != v]
        own = test[site_N[test] == v]
        right[own] = reference(table, identity_of(table), table.label_N, rows)[own] == table.label_N[own]
        assert found["by_value"][SITES[v]]["across"] == pytest.approx(right[own].mean(), abs=0.03)
        assert found["by_value"][SITES[v]]["images"] == len(own)
    assert found["across"]["value"] == pytest.approx(right[test].mean(), abs=0.015)
    within, drop = found["within"]["value"], found["drop"]
    assert drop["value"] == pytest.approx(within - found["across"]["value"])
    assert drop["low"] <= drop["value"] <= drop["high"]
    assert found["gap"] == pytest.approx(within - min(v["within"] for v in found["by_value"].values()))


def test_the_price_of_a_shortcut_agrees_with_scikit_learn() -> None:
    table, site_N = some(site=0.8, substance=0.8, noise=0.4)
    # as many of each class at each site, so that nothing is drawn at random
    site_N = np.arange(len(site_N)) // CLASSES % 2
    label_N = np.arange(len(site_N)) % CLASSES
    x_TND = np.asarray(table.x_TND).copy()
    x_TND[1] = np.random.default_rng(1).normal(size=x_TND[1].shape) * 0.4
    x_TND[1][np.arange(len(label_N)), label_N] += 0.8
    x_TND[1][np.arange(len(label_N)), CLASSES + site_N] += 0.8
    table = replace(table, x_TND=x_TND, label_N=label_N)
    found = found_for(table, site_N)["shortcut"]
    unit_ND = identity_of(table) / np.linalg.norm(identity_of(table), axis=1, keepdims=True)
    train, test = table.rows(TRAIN), table.rows(TEST)
    right: dict[str, list[bool]] = {name: [] for name in ("baseline", "all_diff", "pos_same", "neg_same")}
    for n in test:
        own, same = label_N[train] == label_N[n], site_N[train] == site_N[n]
        for name, there in zip(right, (same, ~same, own == same, own != same), strict=True):
            model = KNeighborsClassifier(10, algorithm="brute").fit(unit_ND[train[there]], label_N[train[there]])
            right[name].append(bool(model.predict(unit_ND[n][None])[0] == label_N[n]))
    for name, own in right.items():
        assert found[name] == pytest.approx(np.mean(own), abs=1e-6)
    price = found["price"]
    assert price["value"] == pytest.approx(found["pos_same"] - found["neg_same"], abs=1e-6)
    assert found["neg_same"] < found["uniform"] < found["pos_same"]
    assert price["value"] > 0.3
    assert price["low"] < price["value"] < price["high"]


def test_numbers_agree_with_scikit_learn() -> None:
    table, _ = some()
    rng = np.random.default_rng(3)
    year_N = 2000 + 5 * identity_of(table)[:, 7] + 0.5 * rng.normal(size=len(table.keys)) + 2 * table.label_N
    known = {"year": {key: f"{year:.6f}" for key, year in zip(table.keys, year_N, strict=True)}}
    found = labels(table, known, config_of("year"), QUICK)["by_label"]["year"]
    train, test = table.rows(TRAIN), table.rows(TEST)
    x_ND = identity_of(table)
    unit = ((x_ND[train] - x_ND[train].mean(axis=0)) ** 2).sum() / WIDTH
    model = Ridge(alpha=found["penalty"] * unit).fit(x_ND[train], year_N[train])
    assert found["penalty"] in PENALTIES
    assert found["r2"]["value"] == pytest.approx(r2_score(year_N[test], model.predict(x_ND[test])), abs=1e-4)
    assert found["error"]["value"] == pytest.approx(np.abs(year_N[test] - model.predict(x_ND[test])).mean(), abs=1e-3)
    assert found["kind"] == "number"
    for each in range(CLASSES):
        own = table.label_N == each
        x_ND[own] -= x_ND[train[own[train]]].mean(axis=0)
        year_N[own] -= year_N[train[own[train]]].mean()
    fixed = Ridge(alpha=1e-3).fit(x_ND[train], year_N[train])
    assert found["fixed"]["r2"]["value"] == pytest.approx(r2_score(year_N[test], fixed.predict(x_ND[test])), abs=0.01)


def test_classes_that_no_other_value_has_are_not_scored_across() -> None:
    table, site_N = some(noise=0.2)
    site_N = np.where(table.label_N == 2, 0, np.maximum(site_N, 1))  # one class is all of one site, and its only one
    found = found_for(table, site_N, max_values=3)["class"]
    assert list(found["by_value"]) == ["west", "north"]
    alone = found_for(table, table.label_N, max_values=3)
    assert alone["class"] is None


def test_huge_numbers_are_no_numbers() -> None:
    table, _ = some()
    year = {key: "1e300" if i == 7 else str(i) for i, key in enumerate(table.keys)}
    assert labels(table, {"year": year}, config_of("year"), QUICK)["by_label"]["year"]["kind"] == "class"


def test_photographs_without_classes_are_probed_all_the_same() -> None:
    table, site_N = some()
    table = replace(table, label_N=np.full(len(table.keys), -1), class_names=())
    found = found_for(table, site_N, max_values=3)
    assert found["accuracy"]["value"] > found["chance"]
    assert "fixed" not in found


@pytest.mark.parametrize(("field", "value"), [("group", "patient"), ("numbers", ("age",)), ("bins", {"age": 3})])
def test_settings_name_labels(field: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=rf"labels\.{field}.*labels: site"):
        config_of("site", **{field: value})
    with pytest.raises(ConfigError, match=r"labels\.of.*column:NAME"):
        LabelsConfig(of={"site": "sites.csv"})


def test_the_section_and_what_is_compared() -> None:
    table, site_N = some(noise=0.6, alike=0.4)
    known = {"site": named(table, site_N), "year": {key: str(i) for i, key in enumerate(table.keys)}, "camera": {}}
    made = labels(table, known, config_of("site", "year", "camera", max_values=3), QUICK)
    results = real_results()
    name = next(iter(results["backbones"]))
    results["backbones"][name]["labels"] = made
    document = validate_results(results)
    (section,) = [each for each in sections_of(document) if each.key == "labels"]
    text, heat, leaks, _, substance, by_value, shortcuts, note = section.blocks
    own = made["by_label"]["site"]
    assert f"{name} predicts site best: accuracy {100 * own['accuracy']['value']:.1f}" in text.text  # type: ignore[union-attr]
    assert f"{100 * own['fixed']['accuracy']['value']:.1f}% with the class held fixed" in text.text  # type: ignore[union-attr]
    (classes, numbers) = heat.parts[0][2].groups  # type: ignore[union-attr]
    assert (classes[0], numbers[0]) == ("3 classes", "numbers (R²)")
    assert classes[1][0][1][0].text == f"{100 * own['accuracy']['value']:.1f}"
    assert leaks.table.rows[0][:2] == (name, "site")  # type: ignore[union-attr]
    assert substance.table.rows[0][:2] == (name, "site")  # type: ignore[union-attr]
    assert [row[2] for row in by_value.table.rows] == list(own["class"]["by_value"])  # type: ignore[union-attr]
    (row,) = shortcuts.table.rows  # type: ignore[union-attr]
    assert row[:3] == (name, "site", own["shortcut"]["baseline"])
    left_out = "camera: not predicted, with 0 usable values. camera: left out 360 without a value."
    assert left_out in note.text  # type: ignore[union-attr]
    assert [row[1] for row in leaks.table.rows] == ["site", "year", "camera"]  # type: ignore[union-attr]
    unrelated = np.random.default_rng(9).integers(0, len(SITES), len(site_N))
    chance = labels(table, {"site": named(table, unrelated)}, config_of("site"), QUICK)
    results["backbones"][name]["labels"] = chance
    (section,) = [each for each in sections_of(validate_results(results)) if each.key == "labels"]
    assert f"{name} predicts no label clearly above chance." in section.blocks[0].text  # type: ignore[union-attr]
    few = made["by_label"]["site"] | {"accuracy": entry_of(0.75, (0.3, 0.95)), "chance": 0.34}
    sure = made["by_label"]["site"] | {"accuracy": entry_of(0.62, (0.57, 0.67)), "chance": 0.34}
    results["backbones"][name]["labels"] = made | {"by_label": {"few": few, "sure": sure}}
    (section,) = [each for each in sections_of(validate_results(results)) if each.key == "labels"]
    assert f"{name} predicts sure best" in section.blocks[0].text  # type: ignore[union-attr]
    compared = list(registry.scores_of(STAGE, document.backbones[name]))
    assert [score.key for score in compared] == ["label_site", "label_year"]
    assert next(iter(STAGE.lines(made))) == f"site  {100 * own['accuracy']['value']:.1f}"
