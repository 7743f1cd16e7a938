"""Tasks: their labels, chance and rows; severities and their curves; the data set for users' own training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import Make, Quick
from torch.utils.data import DataLoader

import substyle
from substyle.engine.analysis.geometry import query_rows
from substyle.engine.probes.resampling import resample
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.single_task import by_severity, halfway
from substyle.engine.probes.tasks import class_task, identity, kind_task, stream_of, transformation_task
from substyle.errors import SubstyleError


def test_chance_is_what_the_most_frequent_label_gets(make_table: Make) -> None:
    """Severities are one label of several transformations, and classes have unequally many photographs."""
    table = make_table()
    names = ("identity", *(f"blur@{severity}" for severity in range(1, len(table.transformations))))
    transformation = transformation_task(replace(table, transformations=names), 0)
    assert transformation is not None
    assert transformation.labels == ("identity", "blur")
    assert transformation.chance == 1 - 1 / len(names)
    class_ = class_task(replace(table, label_N=np.where(np.arange(120) % 10 == 0, table.label_N, 0)), 0)
    assert class_ is not None
    always = class_.answer[class_.test_N] == class_.labels.index(table.class_names[0])
    assert class_.chance == always.mean() > 0.8
    # a label for each variant of each photograph
    rows = np.arange(len(names))[:, None] % 2 * np.ones(120, np.int64)
    assert replace(transformation, answer=rows).chance == np.ceil(len(names) / 2) / len(names)


def test_held_out_never_comes(make_table: Make) -> None:
    """Held-out transformations are in neither training nor validation rows of the kind task."""
    table = make_table()
    task = kind_task(table, 0)
    assert task is not None
    t, n = (each.numpy() for each in stream_of(task, 0).rows(0, 8000))
    assert set(t) == {i for i, role in enumerate(table.roles) if role == "train"}
    assert set(n) == set(table.rows(0))
    val_t, val_n = task.rows(task.train_T, task.val_N)
    assert set(val_t) == set(t)
    assert set(val_n) == set(table.rows(1))


SEVERITIES = (
    ("identity", "identity", "train"),
    *((f"blur_a@{severity}", "blur", "train") for severity in (1, 2, 3)),
    ("noise_a", "noise", "train"),
)


def test_halfway_against_a_dense_search() -> None:
    rng = np.random.default_rng(0)
    level_L = np.array([1.0, 2.0, 4.0, 5.0])
    accuracy_RL = rng.random((200, 4))
    found = halfway(level_L, accuracy_RL, 0.1)
    x = np.linspace(0, 5, 500_001)
    for row, value in zip(accuracy_RL, found, strict=True):
        curve = np.interp(x, [0, *level_L], [0.1, *row])
        expected = x[np.argmax(curve >= 0.1 + (row.max() - 0.1) / 2)] if row.max() > 0.1 else 5.0
        np.testing.assert_allclose(value, expected, atol=2e-5)


def test_accuracies_at_chance_have_no_halfway() -> None:
    """Noise has a maximum too, and a severity at which it is halfway to it."""
    rng, names, found = np.random.default_rng(3), tuple(f"fog@{severity}" for severity in range(1, 6)), 0
    for i in range(200):
        score_TN = (rng.random((5, 100)) < 0.05).astype(np.float32)
        curve = by_severity(names, resample(score_TN, 200, i), 0.05)["fog"]
        assert curve["halfway"] is None or {"low", "high"} <= curve["halfway"].keys()
        found += curve["halfway"] is not None
    assert found <= 15
    clear = by_severity(names, resample((rng.random((5, 100)) < 0.9).astype(np.float32), 200, 0), 0.05)["fog"]
    assert clear["halfway"]["value"] == pytest.approx(0.5, abs=0.1)


def test_severities_are_one_class(make_table: Make, quick: Quick) -> None:
    table = make_table(suite=SEVERITIES)
    task = transformation_task(table, 0)
    assert task is not None
    assert task.labels == ("identity", "blur_a", "noise_a")
    assert task.answer.tolist() == [0, 1, 1, 1, 2]
    assert len(np.unique(query_rows(table, 1000, 0).transformation_R)) == 3
    config = quick(tasks=("transformation", "class"), heads=("linear",))
    results = run_probes(table, config, out_dir=None, quiet=True).results
    transformation = results["transformation"]["linear"]
    assert transformation["chance"] == pytest.approx(3 / 5)  # three of five rows are blur_a
    assert set(transformation["by_transformation"]) == set(table.transformations)
    by_severity = [one["value"] for one in transformation["by_severity"]["blur_a"]["accuracy"]]
    assert by_severity == [transformation["by_transformation"][f"blur_a@{s}"] for s in (1, 2, 3)]
    assert set(results["class"]["linear"]["by_severity"]) == {"blur_a"}
    assert len(transformation["confusion"]["labels"]) == 3
    assert "confusion" not in results["class"]["linear"]  # of a thousand classes it would be a million numbers


def test_batches_hold_rows_of_the_table(two_classes: Path, tmp_path: Path) -> None:
    names = ["identity", "gaussian_blur", "defocus_blur", "grayscale"]  # defocus_blur is held out
    store = substyle.embed(two_classes, tmp_path / "s.zarr", ["control:pixels"], transformations=names, canvas=64)
    table = substyle.load_table(store, "control:pixels")
    data = substyle.torch_dataset(store.path, "control:pixels", split="train", task="transformation")
    assert data.classes == tuple(names)
    assert len(data) == table.distinct_TN[:, table.split_N == 0].sum()
    x, y = next(iter(DataLoader(data, batch_size=len(data))))
    assert x.dtype == torch.float32
    for i, (name, key) in enumerate(zip(data.transformations, data.keys, strict=True)):
        assert data.classes[y[i]] == name
        np.testing.assert_array_equal(x[i], table.x_TND[names.index(name), table.keys.index(key)])
    assert torch.equal(data[3][0], x[3])


def test_no_identity_is_refused(make_table: Make) -> None:
    with pytest.raises(SubstyleError, match="no identity"):
        identity(make_table(suite=(("blur_a", "blur", "train"), ("noise_a", "noise", "train"))))


def test_no_class_task_without_two_classes(make_table: Make) -> None:
    assert class_task(make_table(classes=0), 0) is None
    assert class_task(make_table(classes=1), 0) is None
    table = make_table(classes=2)
    only_one_in_training = np.where(table.split_N == 0, 0, table.label_N)
    assert class_task(replace(table, label_N=only_one_in_training), 0) is None
    unlabelled_test = np.where(table.split_N == 2, -1, table.label_N)
    assert class_task(replace(table, label_N=unlabelled_test), 0) is None


@pytest.mark.parametrize("most", [1, 17, 200, 10_000])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_a_sample_of_rows(make_table: Make, most: int, share: float) -> None:
    """Distinct valid rows, as many as requested or all."""
    distinct = np.random.default_rng(0).random((8, 120)) < share
    task = transformation_task(make_table(distinct_TN=distinct), 0)
    assert task is not None
    t, n = task.sample(task.train_N, most, np.random.default_rng(1))
    every = set(zip(*(v.tolist() for v in task.rows(task.train_T, task.train_N)), strict=True))
    rows = set(zip(t.tolist(), n.tolist(), strict=True))
    assert rows <= every
    assert len(rows) == len(t) == min(most, len(every))
