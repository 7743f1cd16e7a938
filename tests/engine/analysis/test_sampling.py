import numpy as np
import pytest

from substyle.engine.analysis import geometry


def test_interval_is_over_images_not_rows() -> None:
    # ten images of 100 rows each, all rows of an image alike: as uncertain as ten rows
    value, image = np.array([1.0, 0.0] * 5), np.arange(10)
    repeated = geometry.bootstrap_mean(np.repeat(value, 100), np.repeat(image, 100), 0)
    assert repeated == pytest.approx(geometry.bootstrap_mean(value, image, 0))
