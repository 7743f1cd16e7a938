"""Detection of kinds of sources, and their configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conformance.kinds import write_tar
from tests.conftest import setting

from substyle.engine.commands.arguments import parser
from substyle.engine.commands.options import changes, of_source
from substyle.errors import ConfigError
from substyle.pipelines.sources import ImageRecord, SourceConfig, kind_of, open_source
from substyle.pipelines.sources.base import Records


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            write_tar(path, [("1.jpg", b"1")])
        elif name.endswith(".parquet"):
            pq.write_table(pa.table({"image": [b"1"]}), path)
        else:
            path.write_text("path\na.jpg\n")
    return root


@pytest.mark.parametrize(
    ("names", "path", "kind"),
    [
        (("cat/a.jpg", "notes.csv"), ".", "folder"),
        (("a.jpg", "list.csv"), "list.csv", "list"),
        (("a.jpg", "list.TSV"), "list.TSV", "list"),
        (("x.tar",), "x.tar", "tar"),
        (("s/x.tar", "readme.md"), ".", "tar"),
        (("x-0.tar", "x-1.tar"), "x-{0..1}.tar", "tar"),
        (("x.parquet",), "x.parquet", "parquet"),
        (("data/train-0.parquet", "README.md"), ".", "parquet"),
        (("a.parquet",), "*.parquet", "parquet"),
        (("train/n00000001/a.jpg", "val/n00000001/b.jpg"), ".", "folder"),
        (("state.json",), ".", "parquet"),
        (("dataset_dict.json",), ".", "parquet"),
    ],
)
def test_what_is_there(tmp_path: Path, names: tuple[str, ...], path: str, kind: str) -> None:
    fill(tmp_path, *names)
    assert kind_of(tmp_path / path) == kind
    if not path.endswith(".TSV") and not names[0].endswith(".json"):
        source = open_source(tmp_path / path)
        assert source.options == {"kind": kind}
        assert len(source.records) >= 1
        assert open_source(str(tmp_path / path), SourceConfig(kind=kind)).records == source.records


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ((), "nothing", r"images: got .*nothing'.*s3://"),
        ((), "nothing-{0..1}", r"images: .*source\.kind"),
        ((), "nothing-{0..1}.tar", "images: .*2 .*: nothing-0.tar, nothing-1.tar"),
        ((), ".", r"images: .*\.jpg"),
        (("readme.md",), ".", r"images: .*\.jpg"),
        (("a.jpg",), "a.jpg", r"images: got .*a\.jpg'.*source\.kind"),
        (("x.tar.gz",), "x.tar.gz", r"images: got .*x\.tar\.gz'.*uncompressed"),
        (("a.jpg", "x.tar"), ".", r"images: .*1 of kind folder, 1 of kind tar.*source\.kind"),
        (("list.csv",), ".", "images: .*/list.csv"),
        (("train/n00000001/a.jpg", "val/b.jpg"), ".", r"source\.synsets is required"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, names: tuple[str, ...], path: str, message: str) -> None:
    fill(tmp_path, *names)
    with pytest.raises(ConfigError, match=message):
        open_source(tmp_path / path)


def test_a_folder_of_links_to_elsewhere_says_so(tmp_path: Path) -> None:
    """The layout of the Hugging Face hub cache."""
    fill(tmp_path, "blobs/0.parquet", "blobs/1.parquet", "snapshot/data/README.md")
    for number in (0, 1):
        link = tmp_path / "snapshot" / "data" / f"train-{number}.parquet"
        link.symlink_to(tmp_path / "blobs" / f"{number}.parquet")
    with pytest.raises(ConfigError, match=r"data/train-0.parquet .*link.*braces") as caught:
        open_source(tmp_path / "snapshot")
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "snapshot"))
    source = open_source(tmp_path / "snapshot" / "data" / "train-{0..1}.parquet")
    assert [r.key for r in source.records] == ["train-0.parquet/000000000", "train-1.parquet/000000000"]


def test_the_kind_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "x.tar")
    assert [r.key for r in open_source(tmp_path, SourceConfig("folder")).records] == ["a.jpg"]
    assert [r.key for r in open_source(tmp_path, SourceConfig("tar")).records] == ["x.tar/1"]
    (tmp_path / "x.tar").rename(tmp_path / "shard")
    assert [r.key for r in open_source(tmp_path / "shard", SourceConfig("tar")).records] == ["shard/1"]


def test_fields_belong_to_kinds(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"kind": "zip"}, "kind"),
        ({"splits": "yes"}, "splits"),
        ({"kind": "tar", "splits": "none"}, "splits"),
        ({"kind": "tar", "image_column": "x"}, "image_column"),
        ({"names": "a\0b"}, "names"),
        ({"label_column": 3}, "label_column"),
    ]
    for fields, name in bad:
        with pytest.raises(ConfigError) as caught:
            SourceConfig(**fields)
        assert (caught.value.field, caught.value.given) == (f"source.{name}", fields[name])
    with pytest.raises(ConfigError) as caught:
        open_source(fill(tmp_path, "a.jpg"), SourceConfig(label_column="x"))
    assert (caught.value.field, caught.value.given) == ("source.label_column", "x")


def test_options_are_a_configuration_as_text() -> None:
    config = SourceConfig("parquet", image_column="img", names=Path("/a/n.txt"))
    assert config.options() == {"kind": "parquet", "image_column": "img", "names": "/a/n.txt"}
    assert SourceConfig.from_options(config.options()) == config
    # a store may be opened from another working directory
    assert SourceConfig(names=Path("n.txt")).options() == {"names": str(Path.cwd() / "n.txt")}
    assert SourceConfig.from_options({}) == SourceConfig()
    assert config.fitting("tar") == SourceConfig("tar", names=Path("/a/n.txt"))
    with pytest.raises(ConfigError) as caught:
        SourceConfig.from_options({"colour": "x"})
    assert (caught.value.field, caught.value.given) == ("source.colour", "x")


def test_records_are_made_when_asked_for() -> None:
    asked: list[int] = []

    def read(place: int) -> bytes:
        asked.append(place)
        return b"%d" % place

    records = Records(["b", "c", "a"], ["x", None, "y"], ["train", "val", "test"], read)
    assert [(r.key, r.label, r.split) for r in records] == [("a", 1, "test"), ("b", 0, "train"), ("c", None, "val")]
    assert records.class_names == ("x", "y")
    assert (records[-1].key, [r.key for r in records[::-2]]) == ("c", ["c", "a"])
    assert not asked
    assert [r.read() for r in records] == [b"2", b"0", b"1"]
    assert [r.mark() for r in records] == [0, 0, 0]
    marked = Records(["b", "c", "a"], [None] * 3, None, read, mark=lambda place: place + 5)
    assert [r.mark() for r in marked] == [7, 5, 6]
    assert ImageRecord("a", None, None, lambda: b"").mark() == 0
    assert not hasattr(records[0].mark, "__dict__")  # there may be millions
    assert records == Records(["a", "b", "c"], ["y", "x", None], ["test", "train", "val"], read)
    assert records != Records(["a", "b", "c"], ["y", "z", None], ["test", "train", "val"], read)
    ordered = Records(["b", "c", "a"], ["x", "w", "y"], None, read, order=("y", "none", "x", "y"))
    assert ordered.class_names == ("y", "x", "w")
    assert [r.label for r in ordered] == [0, 1, 2]
    assert records != Records(["a", "b", "c"], ["y", "x", "x"], ["test", "train", "val"], read)
    assert records != Records(["a", "b", "c"], ["y", "x", None], None, read)
    assert records != [1]


def test_fields_of_the_command_line_reach_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = setting("source.kind=parquet", "source.names=n.txt")
    options = parser().parse_args(["embed", "a", "--store", "s", "--backbone", "b", *words])
    assert SourceConfig(**of_source(changes(options))) == SourceConfig("parquet", names=tmp_path / "n.txt")
