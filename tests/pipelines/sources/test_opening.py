"""Detection of kinds of sources; patterns with braces as in bash and wildcards confined to the root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conformance.kinds import write_tar
from tests.pipelines.sources.conftest import described, fill

from substyle.errors import ConfigError
from substyle.pipelines.sources import ImageRecord, open_source
from substyle.pipelines.sources.base import LeftOut, Records
from substyle.pipelines.sources.files import braces, shards


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ((), "nothing", r"images: got .*nothing'.*s3://"),
        ((), "nothing-{0..1}", r"images: .*source\.kind"),
        ((), "nothing-{0..1}.tar", "images: .*2 .*: nothing-0.tar, nothing-1.tar"),
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
    if (tmp_path / "x.tar").exists():
        write_tar(tmp_path / "x.tar", [("1.jpg", b"1")])
    with pytest.raises(ConfigError, match=message):
        open_source(tmp_path / path)


def test_a_folder_of_links_to_elsewhere_says_so(tmp_path: Path) -> None:
    """The layout of the Hugging Face hub cache."""
    root = fill(tmp_path, "snapshot/data/README.md") / "snapshot"
    for number in (0, 1):
        pq.write_table(pa.table({"image": [b"1"]}), tmp_path / f"{number}.parquet")
        (root / "data" / f"train-{number}.parquet").symlink_to(tmp_path / f"{number}.parquet")
    with pytest.raises(ConfigError, match=r"data/train-0.parquet .*link.*braces") as caught:
        open_source(root)
    assert (caught.value.field, caught.value.given) == ("images", str(root))
    source = open_source(root / "data" / "train-{0..1}.parquet")
    assert list(described(source)) == ["train-0.parquet/000000000", "train-1.parquet/000000000"]


# --- patterns ---------------------------------------------------------------------------------------------------------


def found(root: str | Path) -> list[str]:
    return [shard.name for shard in shards(str(root), (".tar",), LeftOut(str(root)))]


@pytest.mark.parametrize("text", ["{0..999999999}", "{0..99999}{0..99999}"])
def test_endless_patterns_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="100000") as caught:
        list(braces(text, text))
    assert (caught.value.field, caught.value.given) == ("images", text)
    assert len(list(braces("{0..99999999999}{a,b}", text))) == 2  # no range: too many digits


@pytest.mark.parametrize("pattern", ["b*.tar", "*.tar.gz", "nothing.tar", "nothing/a-{0..1}.tar"])
def test_nothing_is_there(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "a-0.tar")
    with pytest.raises(ConfigError):
        found(tmp_path / pattern)


def test_a_wildcard_without_the_ending_takes_files_of_the_kind(tmp_path: Path) -> None:
    assert found(f"{fill(tmp_path, 'a.tar', 'a.json', 'b.TAR')}/*") == ["a.tar", "b.TAR"]


def test_wildcards_find_nothing_in_stores(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.tar", "a/s.zarr/m/2.tar", "a/s.zarr/substyle.json", "substyle.json")
    assert found(f"{root}/**/*.tar") == ["a/1.tar"]
    assert found(f"{root}/a/s.zarr/m/{{2,2}}.tar") == ["2.tar"]  # named explicitly
    left_out = LeftOut(str(root))
    shards(f"{root}/**/*.tar", (".tar",), left_out)
    assert left_out.substyle_folders == 1


def test_records_are_made_when_asked_for() -> None:
    asked: list[int] = []

    @dataclass
    class File:
        place: int

        def read(self) -> bytes:
            asked.append(self.place)
            return b"%d" % self.place

        def mark(self) -> int:
            return self.place + 5

    records = Records(["b", "c", "a"], ["x", None, "y"], ["train", "val", "test"], File)
    assert [(r.key, r.label, r.split) for r in records] == [("a", 1, "test"), ("b", 0, "train"), ("c", None, "val")]
    assert records.class_names == ("x", "y")
    assert (records[-1].key, [r.key for r in records[::-2]]) == ("c", ["c", "a"])
    assert not asked
    assert [r.read() for r in records] == [b"2", b"0", b"1"]
    assert [r.mark() for r in records] == [7, 5, 6]
    assert ImageRecord("a", None, None, lambda: b"").mark() == 0
    assert records == Records(["a", "b", "c"], ["y", "x", None], ["test", "train", "val"], File)
    assert records != Records(["a", "b", "c"], ["y", "z", None], ["test", "train", "val"], File)
    ordered = Records(["b", "c", "a"], ["x", "w", "y"], None, File, order=("y", "none", "x", "y"))
    assert ordered.class_names == ("y", "x", "w")
    assert [r.label for r in ordered] == [0, 1, 2]
    assert records != Records(["a", "b", "c"], ["y", "x", "x"], ["test", "train", "val"], File)
    assert records != Records(["a", "b", "c"], ["y", "x", None], None, File)
    assert records != [1]
