"""Parquet files and saved datasets: columns, labels, splits, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.pipelines.sources.tables import BLOBS, arrow, parquet, structs

from substyle.errors import ConfigError
from substyle.pipelines.sources import SourceConfig, TableSource


def labels(source: TableSource) -> list[str | None]:
    return [None if r.label is None else source.class_names[r.label] for r in source.records]


def test_compressed_arrow_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    blobs = [b"x" * 10_000] * 3
    with pytest.raises(ConfigError, match=r"x\.arrow .*compressed") as caught:
        TableSource(arrow(tmp_path / "x.arrow", {"image": structs(blobs)}, options=options))
    assert caught.value.field == "images"


def test_the_features_say_which_column_holds_images(tmp_path: Path) -> None:
    columns = {"a": [b"a"], "b": [b"b"], "c": [b"c"]}
    file = parquet(tmp_path / "x.parquet", columns, {"b": {"_type": "Image"}, "a": {"_type": "Value"}, "c": 3})
    assert TableSource(file).records[0].read() == b"b"


def test_a_subset_without_splits_leaves_those_of_the_files(tmp_path: Path) -> None:
    for name in ("train", "test"):
        parquet(tmp_path / f"{name}.parquet", {"image": structs(BLOBS[:1]), "subset": ["coco"]})
    assert [record.split for record in TableSource(tmp_path).records] == ["test", "train"]


def test_class_labels(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["zebra", "crane", "crane", "", "ape"]}}
    content = {"image": structs(BLOBS[:7]), "label": pa.array([4, 0, -1, None, 1, 2, 99], pa.int8())}
    source = TableSource(parquet(tmp_path / "x.parquet", content, features))
    assert source.class_names == ("zebra", "crane (1)", "crane (2)", "ape")  # in the order of the feature
    assert [record.label for record in source.records] == [3, 0, None, None, 1, 2, None]
    assert labels(source) == ["ape", "zebra", None, None, "crane (1)", "crane (2)", None]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 2, 0, 2], ("0", "2", "10")),
        (["10", "2", "0", "-1"], ("-1", "0", "2", "10")),
        (["10", "2", "0", "x"], ("0", "10", "2", "x")),
        (["1.5", "10", "2", "2"], ("1.5", "10", "2")),
    ],
)
def test_numbers_sort_as_numbers_where_all_labels_are_some(
    tmp_path: Path,
    values: Any,  # noqa: ANN401
    names: tuple[str, ...],
) -> None:
    source = TableSource(parquet(tmp_path / "x.parquet", {"image": structs(BLOBS[:4]), "label": values}))
    assert source.class_names == names
    assert labels(source) == [str(value) for value in values]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split of x.parquet/000000001: got 'all'"):
        TableSource(parquet(tmp_path / "x.parquet", {"image": structs(BLOBS[:2]), "split": ["train", "all"]}))


def test_ids_as_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["b", "a", None, "b", "", "x" * 2000, "../c", "d"]
    source = TableSource(
        parquet(tmp_path / "x.parquet", {"id": ids, "image": structs(BLOBS[:8])}), SourceConfig(path_column="id")
    )
    found = {record.key: record.read() for record in source.records}
    assert found == {"../c": BLOBS[6], "a": BLOBS[1], "b": BLOBS[0], "d": BLOBS[7]}
    assert len(source.refused) == 4
    assert "x.parquet/000000003 " in caplog.text
    assert "'b'" in caplog.text
