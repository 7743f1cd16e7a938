import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.geometry import SampledRows, unit


def labelings(seed: int, images: int, shared: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six clusters and six classes, eight rows per image; rows of an image tend to share a cluster."""
    rng = np.random.default_rng(seed)
    truth = np.tile(np.arange(8) % 6, images)
    own = np.repeat(rng.integers(0, 6, images), 8)
    u = rng.random(8 * images)
    cluster = np.where(u < shared, truth, np.where(u < shared + 0.3, own, rng.integers(0, 6, 8 * images)))
    return cluster, truth, np.repeat(np.arange(images), 8)


def formula(a: np.ndarray, b: np.ndarray, draws: int = 400) -> float:
    """Adjusted mutual information with the expectation over shuffled labels."""
    rng = np.random.default_rng(0)
    entropy = (mutual_info_score(a, a) + mutual_info_score(b, b)) / 2
    expected = np.mean([mutual_info_score(a, rng.permutation(b)) for _ in range(draws)])
    return (mutual_info_score(a, b) - expected) / (entropy - expected)


def test_ami_is_what_shuffled_labels_say() -> None:
    a, b, _ = labelings(0, 25, 0.3)
    assert neighbors.adjusted_mutual_information(a, b) == pytest.approx(formula(a, b), abs=5e-3)


def test_unrelated_labelings_have_no_ami_however_many_clusters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, 300), rng.integers(0, 60, 300)
    assert normalized_mutual_info_score(a, b) > 0.5
    assert abs(neighbors.adjusted_mutual_information(a, b)) < 0.05


@pytest.mark.slow
def test_intervals_are_as_wide_as_new_photographs_make_them() -> None:
    drawn = [neighbors.adjusted_mutual_information(*labelings(seed, 60, 0.4)[:2]) for seed in range(200)]
    found = [(neighbors.adjusted_mutual_information(a, b), neighbors.interval(a, b, image, seed))
             for seed in range(200, 240) for a, b, image in [labelings(seed, 60, 0.4)]]  # fmt: skip
    assert all(low < value < high for value, (low, high) in found)
    # wider by one photograph more, and below by what few rows raise the value
    halves = np.mean([(value - low, high - value) for value, (low, high) in found], axis=0)
    assert (1.96 * np.std(drawn) < halves).all()
    assert (halves < 1.5 * 1.96 * np.std(drawn)).all()
    assert np.mean([low <= np.mean(drawn) <= high for _, (low, high) in found]) >= 0.85


@pytest.mark.slow
def test_intervals_of_few_photographs_are_not_too_narrow() -> None:
    """Half the interval is the quantile of Student's t times the deviation of new samples, not 1.96 times."""
    drawn = [neighbors.adjusted_mutual_information(*labelings(seed, 6, 0.5)[:2]) for seed in range(400)]
    ends = [neighbors.interval(*labelings(seed, 6, 0.5), seed) or [0.0, 0.0] for seed in range(60)]
    assert np.mean([high - low for low, high in ends]) / 2 > 1.96 * np.std(drawn)


def test_intervals_that_are_not_there() -> None:
    a, b, image = labelings(0, 10, 0.4)
    assert neighbors.interval(a[:8], b[:8], image[:8], 0) is None
    assert neighbors.interval(np.zeros(80, int), np.zeros(80, int), image, 0) is None
    low, high = neighbors.interval(b, b, image, 0)
    assert (0.5 < low < 0.9, high) == (True, 1.0)  # ten photographs do not show that all others are alike


def blobs(style: float, substance: float) -> SampledRows:
    rng = np.random.default_rng(0)
    t, label = np.divmod(np.arange(400), 100)
    label = label % 5
    x = style * np.eye(16)[t] + substance * np.eye(16)[label + 8] + 0.02 * rng.normal(size=(400, 16))
    return SampledRows(unit(x), np.arange(400) % 100, t, label, np.arange(400) % 100)


def test_kmeans_finds_blobs() -> None:
    rows = blobs(style=1.0, substance=0.0)
    assert neighbors.adjusted_mutual_information(neighbors.kmeans(rows.x_RD, 4, 0), rows.transformation_R) > 0.85


def test_clusters_tell_style_from_substance() -> None:
    by_style, by_class = neighbors.clusters(blobs(1.0, 0.1), 4, 5, 0), neighbors.clusters(blobs(0.1, 1.0), 4, 5, 0)
    assert by_style["ami_transformation"]["value"] > by_class["ami_transformation"]["value"] + 0.3
    assert by_class["ami_class"]["value"] > by_style["ami_class"]["value"] + 0.3
    assert by_style["k"] == {"transformation": 4, "class": 5}


def test_clusters_are_the_same_for_the_same_seed() -> None:
    x = unit(np.random.default_rng(1).normal(size=(300, 8)))
    assert np.array_equal(neighbors.kmeans(x, 7, 3), neighbors.kmeans(x, 7, 3))


def test_too_few_rows_or_classes_give_nothing() -> None:
    rows = blobs(1.0, 1.0)
    few = rows.take(np.arange(400) < 3)
    assert neighbors.clusters(few, 4, 5, 0)["ami_transformation"] is None
    assert neighbors.clusters(rows, 4, 0, 0)["ami_class"] is None
    assert neighbors.clusters(rows, 4, 1, 0)["k"]["class"] is None


def test_unlabelled_rows_stay_out_of_class_clusters() -> None:
    rows = blobs(0.0, 1.0)
    hidden = SampledRows(
        rows.x_RD, rows.image_R, rows.transformation_R, np.where(np.arange(400) % 2, rows.label_R, -1), rows.group_R
    )
    kept = rows.take(np.arange(400) % 2 == 1)
    assert neighbors.clusters(hidden, 4, 5, 0)["ami_class"] == neighbors.clusters(kept, 4, 5, 0)["ami_class"]
