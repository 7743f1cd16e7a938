import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from substyle.engine.analysis import clusters
from substyle.engine.analysis.sampling import Rows, unit


@pytest.mark.parametrize("seed", range(5))
def test_nmi_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 200), rng.integers(-1, 4, 200)
    b = np.where(rng.random(200) < 0.5, a, b)
    assert clusters.normalised_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b))


def test_nmi_of_equal_constant_and_unrelated_labelings() -> None:
    a = np.arange(12) % 3
    assert clusters.normalised_mutual_information(a, (a + 1) % 3) == pytest.approx(1.0)
    assert clusters.normalised_mutual_information(np.zeros(5, int), np.ones(5, int)) == 1.0
    assert clusters.normalised_mutual_information(np.zeros(12, int), a) == pytest.approx(0.0)


def blobs(style: float, substance: float) -> Rows:
    rng = np.random.default_rng(0)
    t, label = np.divmod(np.arange(400), 100)
    label = label % 5
    x = style * np.eye(16)[t] + substance * np.eye(16)[label + 8] + 0.02 * rng.normal(size=(400, 16))
    return Rows(unit(x), np.arange(400) % 100, t, label)


def test_kmeans_finds_blobs() -> None:
    rows = blobs(style=1.0, substance=0.0)
    assert clusters.normalised_mutual_information(clusters.kmeans(rows.x_RD, 4, 0), rows.transformation_R) > 0.85


def test_clusters_tell_style_from_substance() -> None:
    by_style, by_class = clusters.clusters(blobs(1.0, 0.1), 4, 5, 0), clusters.clusters(blobs(0.1, 1.0), 4, 5, 0)
    assert by_style["nmi_transformation"] > by_class["nmi_transformation"] + 0.3
    assert by_class["nmi_class"] > by_style["nmi_class"] + 0.3
    assert by_style["k"] == {"transformation": 4, "class": 5}


def test_clusters_are_the_same_for_the_same_seed() -> None:
    x = unit(np.random.default_rng(1).normal(size=(300, 8)))
    assert np.array_equal(clusters.kmeans(x, 7, 3), clusters.kmeans(x, 7, 3))


def test_too_few_rows_or_classes_give_nothing() -> None:
    rows = blobs(1.0, 1.0)
    few = rows.take(np.arange(400) < 3)
    assert clusters.clusters(few, 4, 5, 0)["nmi_transformation"] is None
    assert clusters.clusters(rows, 4, 0, 0)["nmi_class"] is None
    assert clusters.clusters(rows, 4, 1, 0)["k"]["class"] is None


def test_unlabelled_rows_stay_out_of_class_clusters() -> None:
    rows = blobs(0.0, 1.0)
    hidden = Rows(rows.x_RD, rows.image_R, rows.transformation_R, np.where(np.arange(400) % 2, rows.label_R, -1))
    kept = rows.take(np.arange(400) % 2 == 1)
    assert clusters.clusters(hidden, 4, 5, 0)["nmi_class"] == clusters.clusters(kept, 4, 5, 0)["nmi_class"]
