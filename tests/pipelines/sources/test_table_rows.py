"""Reading rows of Parquet and Arrow files, and invalid files."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pipelines.sources.tables import BLOBS, arrow, parquet, structs

from substyle.errors import ConfigError
from substyle.pipelines.sources import TableSource
from substyle.pipelines.sources import table as rows_module


def test_rows_are_decoded_in_small_blocks_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [bytes([i]) * 50_000 for i in range(100)]
    file = parquet(tmp_path / "x.parquet", {"image": structs(blobs)}, row_group_size=60, compression="none")
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 500_000)
    decoded: list[int] = []
    batches = rows_module._row_group

    def counted(*what: Any) -> Any:  # noqa: ANN401
        for batch in batches(*what):
            decoded.append(len(batch))
            yield batch

    monkeypatch.setattr(rows_module, "_row_group", counted)
    source = TableSource(file)
    assert [record.read() for record in source.records] == blobs
    assert sum(decoded) == 100
    assert max(decoded) <= 10
    assert len(source._blocks._kept) == rows_module.BLOCKS
    decoded.clear()
    assert source.records[99].read() == blobs[99]
    assert not decoded
    assert source.records[3].read() == blobs[3]  # back to the first group
    assert source.records[25].read() == blobs[25]  # continues from there
    assert sum(decoded) <= 30
    assert source.records[12].read() == blobs[12]  # back inside the group: decodes from its start
    assert sum(decoded) <= 50


def test_a_large_image_that_a_dictionary_repeats_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = bytes(8 << 20)
    file = parquet(tmp_path / "x.parquet", {"image": [large] * 60}, store_schema=False)
    decoded: list[int] = []
    batches = rows_module._row_group

    def counted(*what: Any) -> Any:  # noqa: ANN401
        for batch in batches(*what):
            decoded.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(rows_module, "_row_group", counted)
    source = TableSource(file)
    assert source.records[59].read() == source.records[1].read() == large
    assert sum(decoded) < 3 * len(large)


@pytest.mark.parametrize("back", [20, -1000], ids=["header", "content"])
def test_a_broken_page_spoils_only_what_follows_in_its_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: int
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 100_000)
    blobs = [bytes([i]) * 50_000 for i in range(40)]
    more = {"row_group_size": 20, "use_dictionary": False, "data_page_size": 50_000, "write_batch_size": 1}
    file = parquet(
        tmp_path / "x.parquet", {"image": blobs}, compression="none", write_page_checksum=True, **more
    )  # one page per row
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


@pytest.mark.parametrize("end", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"ARROW1", b"garbage" * 100, b"PAR1" + bytes(100) + b"PAR1", bytes(1000)]
)
def test_garbage_is_left_out_and_named(
    tmp_path: Path, end: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"bad.{end}").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.{end}") as caught:
        TableSource(tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path))
    parquet(tmp_path / "good.parquet", {"image": structs(BLOBS)})
    source = TableSource(tmp_path)
    assert [record.read() for record in source.records] == BLOBS
    assert source.refused == (f"bad.{end}",)
    assert f"bad.{end}" in caplog.text


def test_a_cut_arrow_file_keeps_its_first_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = arrow(tmp_path / "x.arrow", {"image": structs(BLOBS), "label": list(range(10))})
    file.write_bytes(file.read_bytes()[:-600])
    source = TableSource(file)
    assert [record.read() for record in source.records] == BLOBS[: len(source.records)]
    assert 3 <= len(source.records) <= 9
    assert len(source.records) % 3 == 0
    assert f"after row {len(source.records)}" in caplog.text


def test_offsets_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    file = arrow(tmp_path / "x.arrow", {"image": BLOBS[:3]})
    data = bytearray(file.read_bytes())
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 100, 201, 303))
    at = data.index(offsets)
    for value in (1 << 30, -1, 50):
        data[at + 8 : at + 12] = value.to_bytes(4, "little", signed=True)
        file.write_bytes(data)
        with pytest.raises(ConfigError, match="after row 0") as caught:
            TableSource(file)
        assert (caught.value.field, caught.value.given) == ("images", str(file))


def test_images_that_are_only_named_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bytes") as caught:
        TableSource(arrow(tmp_path / "x.arrow", {"image": structs([None, None])}))
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "x.arrow"))


def test_a_footer_that_claims_endless_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array([None], pa.binary())
    file = parquet(tmp_path / "x.parquet", {"image": pa.chunked_array([column] * 1).combine_chunks()})
    table = pa.table({"image": pa.nulls(200_000, pa.binary())})
    pq.write_table(table, file)
    with pytest.raises(ConfigError, match="200,000 rows") as caught:
        TableSource(file)
    assert (caught.value.field, caught.value.given) == ("images", str(file))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_dict.json", "{"),
        ("dataset_dict.json", "[" * 100_000),
        ("dataset_dict.json", '{"splits": 3}'),
        ("dataset_dict.json", '{"splits": ["train"]}'),
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


def test_parts_outside_a_saved_data_set_are_not_looked_at(tmp_path: Path) -> None:
    for folder in ("root/train", "outside"):
        arrow(tmp_path / folder / "x.arrow", {"image": structs(BLOBS)})
        (tmp_path / folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    parts = ["train", "../outside", str(tmp_path / "outside"), "..", 7]
    (tmp_path / "root" / "dataset_dict.json").write_text(json.dumps({"splits": parts}))
    source = TableSource(tmp_path / "root")
    assert [record.key for record in source.records] == [f"train/x.arrow/{row:09d}" for row in range(10)]
    assert source.refused == ("..", "../outside", str(tmp_path / "outside"))


def test_a_saved_data_set_is_the_files_that_it_names(tmp_path: Path) -> None:
    for name in ("data-0", "cache-0"):
        arrow(tmp_path / f"{name}.arrow", {"image": structs(BLOBS[:2])})
    (tmp_path / "state.json").write_text(
        '{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}'
    )
    source = TableSource(tmp_path)
    assert [record.key for record in source.records] == ["data-0.arrow/000000000", "data-0.arrow/000000001"]
    assert source.refused == ("data-1.arrow",)
