"""Online codelength and learning curves, compared with scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.conftest import slow_after
from tests.engine.probes.conftest import Make, Quick, features_of
from tests.engine.report.real import real_results

from substyle.engine.extensions.extractability.codelength import (
    Growing,
    _Curve,
    code_sizes,
    curve_sizes,
    grow,
    mixed_bits,
    photographs_needed,
)
from substyle.engine.extensions.extractability.config import ExtractabilityConfig
from substyle.engine.extensions.extractability.control_tasks import shuffled_task
from substyle.engine.extensions.extractability.section import extractability as extractability_table
from substyle.engine.extensions.extractability.stage import extractability
from substyle.engine.probes.batches import Features
from substyle.engine.probes.linear import fit_linear, training_rows_of
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult
from substyle.engine.probes.tasks import Task
from substyle.engine.stages.results import validate_results

pytestmark = pytest.mark.usefixtures("one_thread")


def basis_of(features: Features, task: Task) -> CovarianceBasis:
    return CovarianceBasis.of(training_rows_of(features, task))


@pytest.mark.parametrize("name", slow_after(1, ["transformation", "class"]))
def test_codelength_and_curve_against_scikit_learn(make_table: Make, quick: Quick, name: str) -> None:
    """The same blocks, orders and values of C, fitted block by block; some variants are indistinct."""
    table = make_table(images=100, style=1.0)
    distinct = table.distinct_TN.copy()
    distinct[2, ::3] = False
    features, task = features_of(replace(table, distinct_TN=distinct), name)
    config = quick(tolerance=1e-6)
    made = fit_linear(features, task, config)
    test_N = np.flatnonzero(table.split_N == 2)
    found = grow(features, task, made, config, test_N, None, basis_of(features, task), 2)
    blocks, points = found["codelength"]["blocks"], found["curve"]["points"]
    assert list(blocks) == [str(size) for size in code_sizes(60)]
    classes, rows = len(task.labels), len(task.rows(task.train_T, task.train_N)[0])

    def fitted(images: np.ndarray, C: float) -> LogisticRegression:
        t, n = task.rows(task.train_T, images)
        y = task.answers(t, n)
        C *= 1 + (len(np.unique(y)) == 2)  # of two classes scikit-learn penalises the difference of their weights
        return LogisticRegression(C=C, tol=1e-7, max_iter=20_000).fit(features(t, n).numpy(), y)

    total = 0.0
    for order_N in Growing(features, task, made, config, basis_of(features, task), 2).order_ON:
        sizes = code_sizes(60)
        total += math.log2(classes) * len(task.rows(task.train_T, order_N[: sizes[0]])[0])
        for size, end in pairwise(sizes):
            seen = len(task.rows(task.train_T, order_N[:size])[0])
            t, n = task.rows(task.train_T, order_N[size:end])
            q = np.zeros((len(t), classes))
            known = np.unique(task.answers(*task.rows(task.train_T, order_N[:size])))
            if len(known) == 1:
                q[:, known] = 1.0
            else:
                head = fitted(order_N[:size], blocks[str(size)]["C"])
                q[:, head.classes_] = head.predict_proba(features(t, n).numpy())
            own = (seen * q[np.arange(len(t)), task.answers(t, n)] + 1 / classes) / (seen + 1)
            total -= np.log2(own).sum()
    assert found["codelength"]["labels"] == rows
    bits = found["codelength"]["bits"]["value"]
    assert bits == pytest.approx(total / 2 / rows, rel=2e-3)
    assert found["codelength"]["compression"]["value"] == pytest.approx(math.log2(classes) / bits)
    assert found["codelength"]["converged"]
    score_T = task.train_T if name == "class" else task.score_T
    for size in (16, 32):
        accuracies = []
        for order_N in Growing(features, task, made, config, basis_of(features, task), 2).order_ON:
            head = fitted(order_N[:size], points[str(size)]["C"])
            for each in score_T:
                t, n = task.rows(np.array([each]), test_N)
                accuracies.append((head.predict(features(t, n).numpy()) == task.answers(t, n)).mean())
        assert points[str(size)]["accuracy"]["value"] == pytest.approx(np.mean(accuracies), abs=0.011)


def test_few_orders_are_uncertain(quick: Quick) -> None:
    """Photographs agree, and three orders do not: nearly the interval of Student's t with two degrees of freedom."""
    curve = object.__new__(_Curve)
    curve.growing = SimpleNamespace(config=quick())  # type: ignore[assignment]
    curve.task = SimpleNamespace(chance=0.1)  # type: ignore[assignment]
    curve.sizes, curve.Cs = [1, 100], [1.0, 1.0]
    alike = partial(BootstrapResult, units=10_000, bounds=ACCURACY)
    curve.found = [[alike(v, np.full(4000, v)) for v in (0.45, 0.5, 0.55)], [alike(0.9, np.full(4000, 0.9))] * 3]
    found = curve.describe()
    one, hundred = (found["points"][size]["accuracy"] for size in ("1", "100"))
    exact = 4.303 * 0.05 / np.sqrt(3)
    assert 0.8 * exact < 0.5 - one["low"] < 1.1 * exact
    assert 0.8 * exact < one["high"] - 0.5 < 1.1 * exact
    assert hundred["high"] - hundred["low"] < 0.002
    assert found["needed"]["high"] / found["needed"]["low"] > 1.5


@pytest.mark.slow
def test_copies_of_photographs_do_not_shorten_the_code(make_table: Make, quick: Quick) -> None:
    """With each photograph four times, nothing is learned from a copy about another."""
    table = make_table(images=60, style=0.3)
    copies = replace(
        table,
        x_TND=np.repeat(table.x_TND, 4, axis=1),
        keys=tuple(f"{key} {copy}" for key in table.keys for copy in range(4)),
        first_N=np.arange(240) // 4 * 4,
        **{name: np.repeat(getattr(table, name), 4, axis=-1) for name in ("label_N", "split_N", "distinct_TN")},
    )
    bits = []
    for each in (table, copies):
        features, task = features_of(each, "transformation")
        config = quick()
        made = fit_linear(features, task, config)
        found = grow(features, task, made, config, each.rows(2), each.groups("photograph"), basis_of(features, task), 2)
        assert list(found["codelength"]["blocks"]) == [str(size) for size in code_sizes(len(table.rows(0)))]
        bits.append(found["codelength"]["bits"]["value"])
    assert bits[0] > 0.5
    assert bits[1] == pytest.approx(bits[0], rel=0.1)


@pytest.mark.slow
def test_intervals_hold_their_numbers_and_easy_labels_are_short(make_table: Make, quick: Quick) -> None:
    """The last point of the curve is the probe itself; shuffled labels cannot be compressed."""
    features, task = features_of(make_table(images=200, style=4.0), "transformation")
    config, test_N = quick(), np.flatnonzero(make_table(images=200).split_N == 2)
    made = fit_linear(features, task, config)
    found = grow(features, task, made, config, test_N, None, basis_of(features, task), 3)
    code, curve = found["codelength"], found["curve"]
    for each in (code["bits"], code["compression"]):
        assert each["low"] < each["value"] < each["high"]
    assert code["compression"]["value"] > 5
    assert [int(size) for size in curve["points"]] == [1, 2, 4, 8, 16, 32, 64, 120]
    needed = curve["needed"]
    assert needed["low"] <= needed["value"] <= needed["high"]
    assert 1 <= needed["value"] < 64
    assert curve["points"]["120"]["C"] == made.C
    random = grow(features, shuffled_task(task, 0), made, config, test_N, None, basis_of(features, task), 3)
    assert 0.9 < random["codelength"]["compression"]["value"] < 1.05
    assert random["curve"]["points"]["120"]["accuracy"]["value"] < 0.3


@pytest.mark.slow
def test_a_run_reports_extractability_in_the_schema_and_by_groups(make_table: Make, quick: Quick) -> None:
    """Of both tasks and heads; without classes of one task."""
    probes, config = quick(tasks=("transformation", "class"), resample_by="folder"), ExtractabilityConfig(orders=1)
    found = json.loads(json.dumps(extractability(make_table(), probes, config)))
    assert [(task, head) for task in found for head in found[task]] == [
        ("transformation", "linear"), ("transformation", "mlp"), ("class", "linear"), ("class", "mlp"),
    ]  # fmt: skip
    assert set(found["transformation"]["linear"]) == {"selectivity", "codelength", "curve", "shuffled"}
    assert set(found["transformation"]["mlp"]) == {"selectivity"}
    whole = real_results("alpha")
    whole["backbones"]["alpha"]["extractability"] = found
    assert [row[:3] for row in extractability_table(validate_results(whole)).rows[:2]] == [
        ("alpha", "transformation", h) for h in ("linear", "mlp")
    ]
    assert list(extractability(make_table(classes=0), probes, config)) == ["transformation"]


def test_an_unseen_class_has_a_finite_code() -> None:
    """After R labels without it, a class of probability 0 costs log2(C (R + 1)) bits."""
    logits = torch.tensor([[[0.0], [0.0], [-1e30]], [[5.0], [5.0], [5.0]]])
    bits = mixed_bits(logits, torch.tensor([2]), torch.tensor([7.0, 7.0]))
    assert bits[0, 0] == pytest.approx(math.log2(3 * 8))
    assert bits[1, 0] == pytest.approx(math.log2(3))


@pytest.mark.parametrize(("count", "code", "curve"), [
    (1, [1], [1]), (2, [1, 2], [1, 2]), (5, [1, 2, 5], [1, 2, 4, 5]),
    (1000, [1, 2, 4, 8, 16, 32, 62, 125, 250, 500, 1000], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]),
])  # fmt: skip
def test_sizes(count: int, code: list[int], curve: list[int]) -> None:
    assert (code_sizes(count), curve_sizes(count)) == (code, curve)


def test_number_needed_is_interpolated_in_the_logarithm() -> None:
    """90 % of the way from chance 0.1 to 0.6 is 0.55, half-way between 0.5 at 4 and 0.6 at 16: 8 photographs."""
    sizes = [1, 4, 16, 20]
    assert photographs_needed(sizes, np.array([0.1, 0.5, 0.6, 0.6]), 0.1) == pytest.approx(8.0)
    assert photographs_needed(sizes, np.array([0.6, 0.5, 0.6, 0.6]), 0.1) == 1.0
    assert photographs_needed(sizes, np.array([0.1, 0.1, 0.1, 0.6]), 0.1) == pytest.approx(16 * 1.25**0.9)
    assert math.isnan(photographs_needed(sizes, np.array([0.1, 0.1, 0.1, 0.1]), 0.1))
