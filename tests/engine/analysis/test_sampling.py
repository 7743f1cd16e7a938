from dataclasses import replace

import numpy as np

from substyle.engine.analysis import geometry
from substyle.engine.store.table import EmbeddingTable


def table(images: int = 60, variants: int = 5, width: int = 4) -> EmbeddingTable:
    rng = np.random.default_rng(0)
    distinct = np.ones((variants, images), bool)
    distinct[2, ::7] = False
    return EmbeddingTable(
        backbone="toy",
        x_TND=rng.normal(size=(variants, images, width)).astype(np.float16),
        transformations=("identity", *(f"t{i}" for i in range(1, variants))),
        kind=("identity",) + ("blur",) * (variants - 1),
        roles=("train",) * variants,
        keys=tuple(f"image {i}" for i in range(images)),
        label_N=np.arange(images) % 3,
        class_names=("a", "b", "c"),
        split_N=(np.arange(images) % 3).astype(np.int8),
        distinct_TN=distinct,
    )


def test_of_near_duplicates_one_is_drawn() -> None:
    t = replace(table(), first_N=np.arange(60) // 3 * 3, label_N=np.zeros(60, np.int64))
    assert geometry.draw_images(t, np.arange(60)[::-1], 60, 0).tolist() == list(range(0, 60, 3))
    assert geometry.draw_images(t, np.array([4, 5, 8]), 60, 0).tolist() == [4, 8]
    drawn = geometry.draw_images(t, np.arange(60), 7, 0)
    assert len(drawn) == len(set((drawn // 3).tolist())) == 7
    labelled = replace(t, label_N=np.arange(60) % 3 // 2)  # the third of each group has another label
    assert geometry.draw_images(labelled, np.arange(60), 60, 0).tolist() == [n for n in range(60) if n % 3 != 1]
