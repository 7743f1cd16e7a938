import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from substyle.engine.analysis import neighbors


def test_unrelated_labelings_have_no_ami_however_many_clusters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, 300), rng.integers(0, 60, 300)
    assert normalized_mutual_info_score(a, b) > 0.5
    assert abs(neighbors.adjusted_mutual_information(a, b)) < 0.05
