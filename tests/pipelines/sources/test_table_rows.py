"""Reading rows of Parquet and Arrow files, and invalid files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.pipelines.sources.tables import BLOBS, arrow, parquet, structs

from substyle.errors import ConfigError
from substyle.pipelines.sources import TableSource
from substyle.pipelines.sources import table as rows_module


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


def test_a_saved_data_set_is_the_files_that_it_names(tmp_path: Path) -> None:
    for name in ("data-0", "cache-0"):
        arrow(tmp_path / f"{name}.arrow", {"image": structs(BLOBS[:2])})
    (tmp_path / "state.json").write_text(
        '{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}'
    )
    source = TableSource(tmp_path)
    assert [record.key for record in source.records] == ["data-0.arrow/000000000", "data-0.arrow/000000001"]
    assert source.refused == ("data-1.arrow",)
