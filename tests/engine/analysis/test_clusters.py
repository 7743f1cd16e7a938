import numpy as np

from substyle.engine.analysis import neighbors


def labelings(seed: int, images: int, shared: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six clusters and six classes, eight rows per image; rows of an image tend to share a cluster."""
    rng = np.random.default_rng(seed)
    truth = np.tile(np.arange(8) % 6, images)
    own = np.repeat(rng.integers(0, 6, images), 8)
    u = rng.random(8 * images)
    cluster = np.where(u < shared, truth, np.where(u < shared + 0.3, own, rng.integers(0, 6, 8 * images)))
    return cluster, truth, np.repeat(np.arange(images), 8)


def test_intervals_that_are_not_there() -> None:
    a, b, image = labelings(0, 10, 0.4)
    assert neighbors.interval(a[:8], b[:8], image[:8], 0) is None
    assert neighbors.interval(np.zeros(80, int), np.zeros(80, int), image, 0) is None
    low, high = neighbors.interval(b, b, image, 0)
    assert (0.5 < low < 0.9, high) == (True, 1.0)  # ten photographs do not show that all others are alike
