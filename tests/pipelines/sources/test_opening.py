"""Detection of kinds of sources, and their configuration."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conformance.kinds import write_tar

from substyle.errors import ConfigError
from substyle.pipelines.sources import open_source


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
