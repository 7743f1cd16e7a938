from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import substyle

NAMES = ["identity", "gaussian_blur", "defocus_blur", "grayscale"]  # defocus_blur is held out


@pytest.fixture(scope="module")
def store(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> substyle.EmbeddingStore:
    path = tmp_path_factory.mktemp("embedded") / "s.zarr"
    return substyle.embed(two_classes, path, ["control:pixels"], transformations=NAMES, canvas=64)


def test_batches_hold_rows_of_the_table(store: substyle.EmbeddingStore) -> None:
    table = substyle.load_table(store, "control:pixels")
    data = substyle.torch_dataset(store.path, "control:pixels", split="train", task="transformation")
    assert data.classes == tuple(NAMES)
    assert len(data) == table.distinct_TN[:, table.split_N == 0].sum()
    x, y = next(iter(DataLoader(data, batch_size=len(data))))
    assert x.dtype == torch.float32
    for i, (name, key) in enumerate(zip(data.transformations, data.keys, strict=True)):
        assert data.classes[y[i]] == name
        np.testing.assert_array_equal(x[i], table.x_TND[NAMES.index(name), table.keys.index(key)])
    assert torch.equal(data[3][0], x[3])
