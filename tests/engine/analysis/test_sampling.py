from dataclasses import replace

import numpy as np
import pytest

from substyle.engine.analysis import geometry
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError


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


def test_everything_that_fits_is_used_but_indistinct_rows() -> None:
    t = table()
    for rows, split in ((geometry.query_rows(t, 10_000, 0), TEST), (geometry.bank_rows(t, 10_000, 0), TRAIN)):
        images = t.rows(split)
        assert len(rows) == t.distinct_TN[:, images].sum() < 5 * len(images)
        assert set(rows.image_R) == set(images)
        expected = geometry.unit(t.x_TND[rows.transformation_R, rows.image_R])
        assert np.array_equal(rows.x_RD, expected)
        assert np.array_equal(rows.label_R, t.label_N[rows.image_R])
        assert t.distinct_TN[rows.transformation_R, rows.image_R].all()


def test_queries_are_whole_photographs() -> None:
    t = table()
    rows = geometry.query_rows(t, 32, 0)
    images = np.unique(rows.image_R)
    assert len(images) == 6
    assert len(rows) == t.distinct_TN[:, images].sum()


def test_a_small_bank_keeps_photographs_before_variants() -> None:
    t = table()
    t.distinct_TN[:] = True
    rows = geometry.bank_rows(t, 45, 0)
    _, counts = np.unique(rows.image_R, return_counts=True)
    assert counts.tolist() == [2] * 20
    assert len(np.unique(np.c_[rows.image_R, rows.transformation_R], axis=0)) == 40
    assert len(geometry.bank_rows(t, 7, 0)) == 7
    assert len(np.unique(geometry.bank_rows(t, 7, 0).image_R)) == 7


def test_samples_depend_on_seed_and_keys_not_on_position() -> None:
    t = table()
    images = np.arange(60)
    drawn = {t.keys[i] for i in geometry.draw_images(t, images, 10, 1)}
    assert drawn == {t.keys[i] for i in geometry.draw_images(t, images[::-1].copy(), 10, 1)}
    assert drawn != {t.keys[i] for i in geometry.draw_images(t, images, 10, 2)}
    # images that were left out may leave without changing who is in
    kept = np.array([i for i in images if t.keys[i] in drawn or i % 2])
    assert drawn == {t.keys[i] for i in geometry.draw_images(t, kept, 10, 1)}


def test_of_near_duplicates_one_is_drawn() -> None:
    t = replace(table(), first_N=np.arange(60) // 3 * 3, label_N=np.zeros(60, np.int64))
    assert geometry.draw_images(t, np.arange(60)[::-1], 60, 0).tolist() == list(range(0, 60, 3))
    assert geometry.draw_images(t, np.array([4, 5, 8]), 60, 0).tolist() == [4, 8]
    drawn = geometry.draw_images(t, np.arange(60), 7, 0)
    assert len(drawn) == len(set((drawn // 3).tolist())) == 7
    labelled = replace(t, label_N=np.arange(60) % 3 // 2)  # the third of each group has another label
    assert geometry.draw_images(labelled, np.arange(60), 60, 0).tolist() == [n for n in range(60) if n % 3 != 1]


def test_interval_holds_the_mean_and_narrows_with_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for images in (20, 2000):
        value = (rng.random(images) < 0.7).astype(float)
        low, high = geometry.bootstrap_mean(value, np.arange(images), 0) or (1.0, 0.0)
        assert low <= value.mean() <= high
        widths.append(high - low)
        normal = 1.96 * value.std() / images**0.5
        assert high - value.mean() == pytest.approx(normal, rel=0.25)
    assert widths[1] < widths[0] / 5


def test_interval_is_over_images_not_rows() -> None:
    # ten images of 100 rows each, all rows of an image alike: as uncertain as ten rows
    value, image = np.array([1.0, 0.0] * 5), np.arange(10)
    repeated = geometry.bootstrap_mean(np.repeat(value, 100), np.repeat(image, 100), 0)
    assert repeated == pytest.approx(geometry.bootstrap_mean(value, image, 0))


def test_interval_leaves_out_scores_that_are_not_a_number() -> None:
    value, image = np.array([1.0, np.nan, 0.0, 0.5]), np.arange(4)
    assert geometry.bootstrap_mean(value, image, 0) == geometry.bootstrap_mean(value[[0, 2, 3]], image[:3], 0)


def test_groups_are_images_or_folders_of_keys() -> None:
    t = replace(table(), keys=tuple(f"{n % 7}/{n}.jpg" for n in range(len(table().keys))))
    np.testing.assert_array_equal(t.groups("photograph"), np.arange(len(t.keys)))
    np.testing.assert_array_equal(t.groups("folder"), np.arange(len(t.keys)) % 7)
    rows = geometry.query_rows(t, 10**6, 0, "folder")
    np.testing.assert_array_equal(rows.group_R, rows.image_R % 7)
    np.testing.assert_array_equal(geometry.query_rows(t, 10**6, 0).group_R, rows.image_R)


def test_interval_needs_two_images() -> None:
    assert geometry.bootstrap_mean(np.array([0.5, 0.1]), np.array([3, 3]), 0) is None
    assert geometry.bootstrap_mean(np.array([0.5, np.nan]), np.array([0, 1]), 0) is None
    assert geometry.bootstrap_mean(np.empty(0), np.empty(0, int), 0) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_queries", 0),
        ("max_bank", -1),
        ("max_images", 1),
        ("max_images", 2.5),
        ("seed", -1),
        ("seed", True),
        ("threads", "two"),
        ("ks", ()),
        ("ks", (0, 1)),
        ("ks", (5, 1)),
        ("ks", (1, 1)),
        ("ks", (1, 4096)),
    ],
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^analysis\.{field}(\[\d\])?: got") as error:
        AnalysisConfig(**{field: value})
    assert error.value.given == value or error.value.given in value  # type: ignore[operator]
