"""Parquet files, saved data sets and NumPy archives: columns, labels, splits, keys, and what damage leaves."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.conformance.kinds import IMAGE
from tests.pipelines.sources.conftest import described

from substyle.errors import ConfigError
from substyle.pipelines.sources import SourceConfig, TableSource, describe, kind_of, open_source
from substyle.pipelines.sources import table as table_module

BLOBS = [bytes([65 + i]) * (100 + i) for i in range(10)]


def structs(blobs: Sequence[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": blob, "path": f"{i}.jpg"} for i, blob in enumerate(blobs)], IMAGE)


def parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **more: Any) -> Path:  # noqa: ANN401
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **more)
    return path


def arrow(path: Path, columns: dict[str, Any], rows: int = 3, **more: Any) -> Path:  # noqa: ANN401
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema, **more) as stream:
        stream.write_table(table, max_chunksize=rows)
    return path


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


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 2, 0, 2], ("0", "2", "10")),
        (["10", "2", "0", "-1"], ("-1", "0", "2", "10")),
        (["10", "2", "0", "x"], ("0", "10", "2", "x")),
    ],
)
def test_numbers_sort_as_numbers_where_all_labels_are_some(
    tmp_path: Path, values: list[Any], names: tuple[str, ...]
) -> None:
    source = TableSource(parquet(tmp_path / "x.parquet", {"image": structs(BLOBS[:4]), "label": values}))
    assert source.class_names == names
    assert [source.class_names[record.label or 0] for record in source.records] == [str(value) for value in values]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split of x.parquet/000000001: got 'all'"):
        TableSource(parquet(tmp_path / "x.parquet", {"image": structs(BLOBS[:2]), "split": ["train", "all"]}))


def test_ids_as_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["b", "a", None, "b", "", "x" * 2000, "../c", "d"]
    source = TableSource(
        parquet(tmp_path / "x.parquet", {"id": ids, "image": structs(BLOBS[:8])}), SourceConfig(path_column="id")
    )
    found = {key: data for key, (_, _, data) in described(source).items()}
    assert found == {"../c": BLOBS[6], "a": BLOBS[1], "b": BLOBS[0], "d": BLOBS[7]}
    assert len(source.refused) == 4
    assert "x.parquet/000000003 " in caplog.text
    assert "'b'" in caplog.text


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [20, -1000], ids=["header", "content"])
def test_a_broken_page_spoils_only_what_follows_in_its_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: int
) -> None:
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 100_000)
    blobs = [bytes([i]) * 50_000 for i in range(40)]
    more: dict[str, Any] = {
        "row_group_size": 20,
        "use_dictionary": False,
        "data_page_size": 50_000,
        "write_batch_size": 1,
    }
    more |= {"compression": "none", "write_page_checksum": True}
    file = parquet(tmp_path / "x.parquet", {"image": blobs}, **more)  # one page per row
    data = bytearray(file.read_bytes())
    at = data.index(blobs[10]) - back
    data[at : at + 16] = b"\xff" * 16
    file.write_bytes(data)
    outcomes = []
    for record, blob in zip(TableSource(file).records, blobs, strict=True):
        try:
            outcomes.append(record.read() == blob)
        except OSError as error:
            outcomes.append(error.errno == errno.EIO)
            assert 8 <= int(record.key[-3:]) < 20
    assert all(outcomes)
    assert outcomes.count(True) == 40


def test_a_cut_arrow_file_keeps_its_first_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = arrow(tmp_path / "x.arrow", {"image": structs(BLOBS), "label": list(range(10))})
    file.write_bytes(file.read_bytes()[:-600])
    source = TableSource(file)
    assert [record.read() for record in source.records] == BLOBS[: len(source.records)]
    assert 3 <= len(source.records) <= 9
    assert len(source.records) % 3 == 0
    assert f"after row {len(source.records)}" in caplog.text


def test_images_that_are_only_named_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bytes") as caught:
        TableSource(arrow(tmp_path / "x.arrow", {"image": structs([None, None])}))
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "x.arrow"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_dict.json", "{"),
        ("dataset_dict.json", "[" * 100_000),
        ("dataset_dict.json", '{"splits": 3}'),
        ("dataset_dict.json", '{"splits": ["a\\u0000b", "..", "/tmp"]}'),
        ("state.json", '{"_data_files": [{"filename": "a\\u0000b"}, {"filename": ""}, {"filename": "sub/x.arrow"}]}'),
        ("state.json", "[]"),
        ("state.json", '{"_data_files": [{"filename": "nothing.arrow"}]}'),
    ],
)
def test_descriptions_that_are_none(tmp_path: Path, name: str, content: str) -> None:
    arrow(tmp_path / "sub" / "x.arrow", {"image": structs(BLOBS)})
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError):
        TableSource(tmp_path)


def test_a_saved_data_set_is_the_files_that_it_names(tmp_path: Path) -> None:
    for name in ("data-0", "cache-0"):
        arrow(tmp_path / f"{name}.arrow", {"image": structs(BLOBS[:2])})
    (tmp_path / "state.json").write_text(
        '{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}'
    )
    source = TableSource(tmp_path)
    assert [record.key for record in source.records] == ["data-0.arrow/000000000", "data-0.arrow/000000001"]
    assert source.refused == ("data-1.arrow",)


# --- NumPy archives ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
TRAIN, VAL = RNG.integers(0, 256, (7, 28, 28, 3), np.uint8), RNG.integers(0, 256, (3, 28, 28), np.uint8)


def archive(path: Path, *, compressed: bool = True, **arrays: Any) -> Path:  # noqa: ANN401
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_labels_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 2 * 28 * 28 * 3)
    monkeypatch.setattr(table_module, "BLOCKS", 1)  # so that readers go back in the array
    labels = np.array([[10], [2], [0], [2], [10], [0], [0]], np.uint8)
    train, val = {"train_images": TRAIN, "train_labels": labels}, {"val_images": VAL, "val_labels": [2, 0, 10]}
    path = archive(tmp_path / "bloodmnist.npz", compressed=compressed, **train, **val)
    source = open_source(path)
    assert isinstance(source, TableSource)
    assert kind_of(path) == "npz"
    assert source.class_names == ("0", "2", "10")
    assert [record.key for record in source.records][6:8] == ["train/000000006", "val/000000000"]
    assert [record.split for record in source.records] == ["train"] * 7 + ["val"] * 3
    assert [record.label for record in source.records] == [2, 1, 0, 1, 2, 0, 0, 1, 0, 2]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda record: pixels(record.read()), [*source.records] * 3))
    for shown, expected in zip(found, [*TRAIN, *np.repeat(VAL[..., None], 3, axis=3)] * 3, strict=True):
        np.testing.assert_array_equal(shown, expected)
    assert describe(source) == (
        f"npz {path}: 10 images, 3 classes, splits train 7, val 3 (from the names of the arrays)"
    )


def test_several_labels_make_no_classes(tmp_path: Path) -> None:
    source = open_source(archive(tmp_path / "x.npz", test_images=VAL, test_labels=np.zeros((3, 14), np.uint8)))
    assert [record.label for record in source.records] == [None] * 3
    assert source.understood.remarks == ("several labels per image in test_labels: no classes",)


@pytest.mark.parametrize(
    "arrays",
    [
        *({"other": TRAIN}, {"images": TRAIN.astype(np.float32)}, {"images": TRAIN[..., :2]}, {"images": TRAIN[0, 0]}),
        *({"images": TRAIN[:0]}, {"images": np.asfortranarray(TRAIN)}, {"images": np.array([None])}),
        *({"images": TRAIN, "labels": np.zeros(6, np.int64)}, {"images": TRAIN, "labels": np.zeros(7)}),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="images"):
        open_source(archive(tmp_path / "x.npz", **arrays))


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=TRAIN)
    record = open_source(path).records[0]
    archive(path, images=np.concatenate([TRAIN, TRAIN]))
    with pytest.raises(OSError, match="changed"):
        record.read()
