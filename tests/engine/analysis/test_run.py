import numpy as np
import pytest

from substyle.engine.analysis import run
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST, TRAIN, VAL
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import SubstyleError


def table(
    images: int = 90,
    variants: int = 5,
    width: int = 16,
    *,
    style: float = 1.0,
    substance: float = 1.0,
    noise: float = 0.3,
) -> EmbeddingTable:
    """Embedding = class + photograph + style + noise, each a random direction."""
    rng = np.random.default_rng(0)
    label = np.arange(images) % 3
    photograph = substance * rng.normal(size=(3, width))[label] + 0.5 * rng.normal(size=(images, width))
    styles = style * rng.normal(size=(variants, 1, width))
    styles[0] = 0
    x = photograph + styles + noise * rng.normal(size=(variants, images, width))
    return EmbeddingTable(
        backbone="toy",
        x_TND=x.astype(np.float16),
        transformations=("identity", *(f"t{i}" for i in range(1, variants))),
        kind=("identity",) + ("blur",) * (variants - 1),
        roles=("train",) * variants,
        keys=tuple(f"image {i}" for i in range(images)),
        label_N=label,
        class_names=("a", "b", "c"),
        split_N=np.array([TRAIN, TRAIN, VAL, TEST, TEST])[np.arange(images) % 5].astype(np.int8),
        distinct_TN=np.ones((variants, images), bool),
    )


def analyze(t: EmbeddingTable, **settings: object) -> dict:
    return run.analyze(t, AnalysisConfig(**settings), quiet=True)


@pytest.mark.parametrize("split", [TRAIN, TEST])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(split: int, bad: float) -> None:
    t = table()
    t.x_TND[2, t.rows(split)[3], 5] = bad
    with pytest.raises(SubstyleError, match="toy contain NaN"):
        run.analyze(t, AnalysisConfig(), quiet=True)


def test_samples_are_of_the_stated_size() -> None:
    answer = analyze(table(), max_queries=50, max_bank=70, max_images=12)
    sampled = answer["sampled"]
    assert (sampled["queries"], sampled["query_images"]) == (50, 10)
    assert (sampled["bank"], sampled["bank_images"]) == (36, 36)
    assert (sampled["ridge_train"], sampled["ridge_val"], sampled["test_images"]) == (12, 12, 12)
    assert answer["knn"]["queries"] == answer["balance"]["queries"] == 50
    assert answer["knn"]["transformation"]["50"] is None  # more than the 36 in the bank
