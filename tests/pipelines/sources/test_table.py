"""Parquet files and saved datasets: columns, labels, splits, keys."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conformance.kinds import IMAGE
from tests.pipelines.sources.tables import BLOBS, arrow, parquet, structs

from substyle.errors import ConfigError
from substyle.pipelines.sources import SourceConfig, TableSource


def labels(source: TableSource) -> list[str | None]:
    return [None if r.label is None else source.class_names[r.label] for r in source.records]


def test_the_key_is_the_file_and_the_row(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", {"image": structs(BLOBS[:2])})
    arrow(tmp_path / "more.arrow", {"image": structs(BLOBS[2:4])})
    assert {record.key: record.read() for record in TableSource(tmp_path).records} == {
        "data/train-00000-of-00001.parquet/000000000": BLOBS[0],
        "data/train-00000-of-00001.parquet/000000001": BLOBS[1],
        "more.arrow/000000000": BLOBS[2],
        "more.arrow/000000001": BLOBS[3],
    }


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("write", [parquet, arrow])
def test_every_form_of_bytes(tmp_path: Path, kind: pa.DataType, nested: bool, write: Any) -> None:  # noqa: ANN401
    blobs = [*BLOBS[:4], None, b"", *BLOBS[4:]]
    column = pa.array(blobs, kind)
    if nested:
        column = pa.StructArray.from_arrays([pa.array(range(12)), column], ["other", "bytes"])
    file = write(tmp_path / f"x.{write.__name__}", {"picture": column, "label": pa.array(range(12))})
    source = TableSource(file)
    for blob, record in zip(blobs, source.records, strict=True):
        if blob is None:
            with pytest.raises(OSError, match=file.name) as caught:
                record.read()
            assert caught.value.errno == errno.ENODATA
        else:
            assert record.read() == blob


@pytest.mark.parametrize("write", [parquet, arrow])
def test_a_missing_struct_holds_no_bytes(tmp_path: Path, write: Any) -> None:  # noqa: ANN401
    file = write(tmp_path / f"x.{write.__name__}", {"image": pa.array([{"bytes": b"x", "path": "a"}, None], IMAGE)})
    first, second = TableSource(file).records
    assert first.read() == b"x"
    with pytest.raises(OSError, match=file.name) as caught:
        second.read()
    assert caught.value.errno == errno.ENODATA


def test_the_file_format_of_arrow(tmp_path: Path) -> None:
    table = pa.table({"image": structs(BLOBS)})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=4)
    assert [record.read() for record in TableSource(tmp_path / "x.arrow").records] == BLOBS


def test_compressed_arrow_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    blobs = [b"x" * 10_000] * 3
    with pytest.raises(ConfigError, match=r"x\.arrow .*compressed") as caught:
        TableSource(arrow(tmp_path / "x.arrow", {"image": structs(blobs)}, options=options))
    assert caught.value.field == "images"


@pytest.mark.parametrize(
    ("columns", "asked", "found"),
    [
        (("image", "thumbnail"), "", "image"),
        (("thumbnail", "img"), "", "img"),
        (("picture",), "", "picture"),
        (("thumbnail", "Picture", "IMG"), "", "IMG"),
        (("a", "image_bytes"), "", "image_bytes"),
        (("a", "b"), "b", "b"),
        (("a", "b"), "", None),
        (("image",), "b", None),
        ((), "", None),
    ],
)
def test_which_column_holds_images(tmp_path: Path, columns: tuple[str, ...], asked: str, found: str | None) -> None:
    content: dict[str, Any] = {name: [f"{name} {i}".encode() for i in range(3)] for name in columns}
    file = parquet(tmp_path / "x.parquet", {**content, "caption": ["x"] * 3})
    config = SourceConfig(image_column=asked)
    if found is None:
        with pytest.raises(ConfigError) as caught:
            TableSource(file, config)
        assert caught.value.field == "source.image_column"
    else:
        assert TableSource(file, config).records[0].read() == f"{found} 0".encode()


def test_the_features_say_which_column_holds_images(tmp_path: Path) -> None:
    columns = {"a": [b"a"], "b": [b"b"], "c": [b"c"]}
    file = parquet(tmp_path / "x.parquet", columns, {"b": {"_type": "Image"}, "a": {"_type": "Value"}, "c": 3})
    assert TableSource(file).records[0].read() == b"b"


@pytest.mark.parametrize("write", [parquet, arrow])
@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("label", "class"), "label"),
        (("coarse_label", "fine_label"), "fine_label"),
        (("class", "CATEGORY"), "class"),
        (("caption", "Target"), "Target"),
        (("caption", "text"), None),
    ],
)
def test_which_column_holds_labels(
    tmp_path: Path,
    write: Any,  # noqa: ANN401
    columns: tuple[str, ...],
    found: str | None,
) -> None:
    content = {"image": structs(BLOBS[:2]), **{name: [f"{name} 0", f"{name} 1"] for name in columns}}
    source = TableSource(write(tmp_path / f"x.{write.__name__}", content))
    assert labels(source) == ([None, None] if found is None else [f"{found} 0", f"{found} 1"])


@pytest.mark.parametrize(
    ("name", "values", "splits"),
    [
        ("Split", ["train", "dev"], ["train", "val"]),
        ("subset", ["train", "Testing"], ["train", "test"]),
        ("partition", ["train", None], ["train", None]),
        ("subset", ["train", "coco"], [None, None]),
        ("partition", [0, 1], [None, None]),
        ("subset", ["", None], [None, None]),
    ],
)
def test_which_column_holds_splits(
    tmp_path: Path,
    name: str,
    values: Any,  # noqa: ANN401
    splits: list[str | None],
) -> None:
    source = TableSource(parquet(tmp_path / "x.parquet", {"image": structs(BLOBS[:2]), name: values}))
    assert [record.split for record in source.records] == splits


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


def test_readable_names(tmp_path: Path) -> None:
    content = {"image": structs(BLOBS[:3]), "label": [1, 0, 2]}
    file = parquet(tmp_path / "x.parquet", content, {"label": {"names": ["n01440764", "n03000000", "n01443537"]}})
    config = SourceConfig(names=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nsaw\n")
    assert labels(TableSource(file, config)) == ["goldfish", "tench", "saw"]
    assert TableSource(file, config).class_names == ("tench", "goldfish", "saw")
    # a dataset of a few synsets has its own numbers: the synset counts, not the line
    (tmp_path / "names.txt").write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench\n")
    assert labels(TableSource(file, config)) == ["n03000000", "tench", "goldfish"]


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


def test_files_that_number_their_classes_in_two_ways(tmp_path: Path) -> None:
    for name, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat", "ape"])):
        content = {"image": structs(BLOBS[:3]), "label": [0, 1, len(names) - 1]}
        parquet(tmp_path / f"{name}.parquet", content, {"label": {"names": names}})
    source = TableSource(tmp_path)
    assert labels(source) == ["cat", "dog", "dog", "dog", "cat", "ape"]
    assert source.class_names == ("cat", "dog", "ape")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", None, "a"], ["b", None, "a"]),
        (pa.array(["b", None, "a"]).dictionary_encode(), ["b", None, "a"]),
        (pa.array(["b", "", "a" * 2000], pa.large_string()), ["b", None, None]),
        (pa.array([3, 10, None], pa.uint64()), ["3", "10", None]),
        ([3, -1, 10], ["3", None, "10"]),
        ([0.5, 1.0, 2.0], [None, None, None]),
        ([b"a", b"b", b"c"], [None, None, None]),
    ],
    ids=["text", "dictionary", "odd", "number", "negative", "fraction", "bytes"],
)
def test_labels_of_other_types(tmp_path: Path, values: Any, expected: list[str | None]) -> None:  # noqa: ANN401
    columns = {"image": structs(BLOBS[:3]), "label": values}
    assert labels(TableSource(parquet(tmp_path / "x.parquet", columns))) == expected
    assert labels(TableSource(arrow(tmp_path / "x.arrow", columns))) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": [1, {}]}}}}', "{" * 9999]
)
def test_features_that_are_none(tmp_path: Path, text: str) -> None:
    table = pa.table({"image": structs(BLOBS[:2]), "label": [1, 0]}).replace_schema_metadata({b"huggingface": text})
    pq.write_table(table, tmp_path / "x.parquet")
    assert labels(TableSource(tmp_path / "x.parquet")) == ["1", "0"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("data/train-0.parquet", "data/validation-0.parquet", "data/test-0.parquet"), ["test", "train", "val"]),
        (("default/train/0000.parquet", "default/test/0000.parquet"), ["test", "train"]),
        (("training_data/train-0.parquet", "training_data/val-0.parquet"), ["train", "val"]),
        (("train-val-0.parquet", "train-0.parquet"), [None, None]),
        (("val-0.parquet", "test-0.parquet"), [None, None]),
        (("Training_0.parquet", "dev_0.parquet", "TESTING_0.parquet"), ["test", "train", "val"]),
        (("train-0.parquet", "extra-0.parquet"), [None, None]),
    ],
)
def test_splits_from_the_names_of_files(tmp_path: Path, names: tuple[str, ...], splits: list[str | None]) -> None:
    for name in names:
        parquet(tmp_path / name, {"image": structs(BLOBS[:1])})
    assert [record.split for record in TableSource(tmp_path).records] == splits


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
