import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.geometry import SampledRows, unit


def test_unrelated_labelings_have_no_ami_however_many_clusters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, 300), rng.integers(0, 60, 300)
    assert normalized_mutual_info_score(a, b) > 0.5
    assert abs(neighbors.adjusted_mutual_information(a, b)) < 0.05


def blobs(style: float, substance: float) -> SampledRows:
    rng = np.random.default_rng(0)
    t, label = np.divmod(np.arange(400), 100)
    label = label % 5
    x = style * np.eye(16)[t] + substance * np.eye(16)[label + 8] + 0.02 * rng.normal(size=(400, 16))
    return SampledRows(unit(x), np.arange(400) % 100, t, label, np.arange(400) % 100)
