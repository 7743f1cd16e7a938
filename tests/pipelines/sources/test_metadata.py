"""Labels of photographs from columns, lists and EXIF."""

from __future__ import annotations

import errno
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.sources import FolderSource, Named, SourceConfig, open_source
from substyle.pipelines.sources.metadata import Origin, read_labels, same_group

TAGS = {name: tag for tag, name in ExifTags.TAGS.items()}


def picture(kind: str = "JPEG", **fields: object) -> bytes:
    """A picture with fields of EXIF; those of the exposure are in their own directory, as cameras write them."""
    exif, data = Image.Exif(), io.BytesIO()
    for name, value in fields.items():
        main = name in ("Make", "Model", "Orientation", "DateTime")
        (exif if main else exif.get_ifd(ExifTags.IFD.Exif))[TAGS[name]] = value
    Image.new("RGB", (8, 8)).save(data, kind, exif=exif)
    return data.getvalue()


def origins(**texts: str) -> dict[str, Origin]:
    return {label: Origin.of(text, label) for label, text in texts.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("column:scanner", Origin("column", "scanner")),
        ("column:a:b", Origin("column", "a:b")),
        ("file:sites.csv", Origin("file", "site", "sites.csv")),
        ("file:a/b.tsv:place of work", Origin("file", "place of work", "a/b.tsv")),
        ("exif:Model", Origin("exif", "Model")),
        ("exif:DateTimeOriginal.year", Origin("exif", "DateTimeOriginal", part="year")),
    ],
)
def test_origins(text: str, expected: Origin) -> None:
    assert Origin.of(text, "site") == expected
    again = Origin.of(expected.below(Path()), "another")
    assert again == replace(expected, path=str(Path(expected.path).absolute()) if expected.path else "")


@pytest.mark.parametrize(
    "text",
    ["", "scanner", "column:", "file:", "file:sites.txt", "exif:", "exif:Colour", "exif:GPSInfo", "exif:DateTime.day"],
)
def test_bad_origins(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^labels\.of\.site"):
        Origin.of(text, "site", "labels.of.site")


def test_paths_of_lists_are_relative_to_a_folder() -> None:
    assert Origin.of("file:sites.csv", "site").below(Path("/x")) == "file:/x/sites.csv:site"
    assert Origin.of("file:/y/sites.csv:s", "site").below(Path("/x")) == "file:/y/sites.csv:s"


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("path,site,year\na/1.jpg,east,1999\n./a//2.jpg,,2001\nb/3.jpg,west,\n")
    made = origins(site=f"file:{tmp_path}/sites.csv", when=f"file:{tmp_path}/sites.csv:year")
    found = read_labels(made, [], ["a/1.jpg", "a/2.jpg", "c/4.jpg"])
    assert found == {"site": {"a/1.jpg": "east"}, "when": {"a/1.jpg": "1999", "a/2.jpg": "2001"}}


def test_paths_of_a_list_that_are_no_photographs_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sites.csv").write_text("path,site\na/1.jpg,east\na/2.JPG,NA\na/3.JPG,west\n")
    made = origins(site=f"file:{tmp_path}/sites.csv")
    assert read_labels(made, [], ["a/1.jpg", "a/2.jpg"], "labels.of") == {"site": {"a/1.jpg": "east"}}
    assert "labels.of.site: 2 of 3 paths" in caplog.text
    assert "a/2.JPG" in caplog.text


def test_a_list_of_other_photographs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("path,site\nphotos/1.jpg,east\n")
    made = origins(site=f"file:{tmp_path}/sites.csv")
    with pytest.raises(ConfigError, match=r"site.*photos/1\.jpg is none, 1\.jpg is one"):
        read_labels(made, [], ["1.jpg"], "labels.of")
    with pytest.raises(ConfigError, match=r"labels\.of\.site.*an existing list"):
        read_labels(origins(site=f"file:{tmp_path}/other.csv"), [], ["1.jpg"], "labels.of")
    with pytest.raises(ConfigError, match=r"label_column.*path, site"):
        read_labels(origins(x=f"file:{tmp_path}/sites.csv"), [], ["photos/1.jpg"])


def test_columns_of_a_list_of_photographs(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "list.csv").write_text("path,label,scanner\n1.jpg,cat,A\n2.jpg,dog,B\n")
    source = open_source(tmp_path / "list.csv")
    assert source.class_names == ("cat", "dog")
    found = read_labels(origins(scanner="column:scanner"), [source], [r.key for r in source.records])
    assert found == {"scanner": {"1.jpg": "A", "2.jpg": "B"}}
    named = Named(source, "ward")
    assert read_labels(origins(s="column:scanner"), [named], ["ward/1.jpg"]) == {"s": {"ward/1.jpg": "A"}}
    with pytest.raises(ConfigError, match="label_column"):
        read_labels(origins(scanner="column:nothing"), [source], ["1.jpg"])


def test_columns_of_parquet_keep_the_keys(tmp_path: Path) -> None:
    columns = {"image": [picture()] * 3, "label": ["a", "b", "a"], "scanner": [7, 9, None], "id": ["x", "y", "z"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    by_row, by_id = (open_source(tmp_path / "p.parquet", SourceConfig(path_column=name)) for name in ("", "id"))
    for source, expected in (
        (by_row, {"p.parquet/000000000": "7", "p.parquet/000000001": "9"}),
        (by_id, {"x": "7", "y": "9"}),
    ):
        keys = [record.key for record in source.records]
        assert read_labels(origins(scanner="column:scanner"), [source], keys) == {"scanner": expected}


def test_fields_of_json_members_of_tar_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("1.jpg", picture()), ("1.json", json.dumps({"label": "a", "site": "east"}).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path / "s.tar")
    (key,) = (record.key for record in source.records)
    assert read_labels(origins(site="column:site"), [source], [key]) == {"site": {key: "east"}}


def test_a_folder_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(picture())
    with pytest.raises(ConfigError, match="photographs of kind folder have no columns"):
        read_labels(origins(scanner="column:scanner"), [open_source(tmp_path)], ["1.jpg"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_fields_of_exif(tmp_path: Path, kind: str) -> None:
    photograph = picture(
        kind,
        Model="EOS 5D\0",
        DateTimeOriginal="2019:07:04 13:45:00",
        ISOSpeedRatings=400,
        FNumber=2.8,
        ExposureTime=IFDRational(0, 0),
        SubjectDistance=IFDRational(1, 0),
    )
    (tmp_path / f"1.{kind.lower()}").write_bytes(photograph)
    (tmp_path / f"2.{kind.lower()}").write_bytes(picture(kind))
    source = open_source(tmp_path)
    texts = {"model": "exif:Model", "iso": "exif:ISOSpeedRatings", "aperture": "exif:FNumber"}
    texts |= {"year": "exif:DateTimeOriginal.year", "hour": "exif:DateTimeOriginal.hour", "lens": "exif:LensModel"}
    texts |= {"exposure": "exif:ExposureTime", "distance": "exif:SubjectDistance", "none": "exif:ISOSpeedRatings.year"}
    found = read_labels(origins(**texts), [source], [record.key for record in source.records])
    expected = {"model": "EOS 5D", "iso": "400", "aperture": "2.8", "year": "2019", "hour": "13"}
    key = f"1.{kind.lower()}"
    assert found == {label: {key: value} for label, value in expected.items()} | {
        name: {} for name in ("lens", "exposure", "distance", "none")
    }


def test_fields_of_tiff(tmp_path: Path) -> None:
    (tmp_path / "1.tif").write_bytes(picture("TIFF", Model="EOS 5D"))
    assert read_labels(origins(model="exif:Model"), [open_source(tmp_path)], ["1.tif"]) == {
        "model": {"1.tif": "EOS 5D"}
    }


def test_photographs_are_read_once_and_bad_ones_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture(Model="A", DateTimeOriginal="no date", ISOSpeedRatings=100)
    place = whole.index(b"Exif") + 20
    broken = whole[:place] + b"\xff" * 40 + whole[place + 40 :]
    for name, data in (("1.jpg", whole), ("2.jpg", b"no picture"), ("3.jpg", broken), ("4.jpg", whole[:30])):
        (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path)
    read: list[str] = []
    for record in source.records:
        assert record.read() is not None
    (tmp_path / "2.jpg").unlink()
    texts = {"model": "exif:Model", "year": "exif:DateTimeOriginal.year", "iso": "exif:ISOSpeedRatings"}
    from substyle.pipelines.sources import metadata

    plain = metadata._exif
    monkeypatch.setattr(metadata, "_exif", lambda data: read.append("") or plain(data))
    found = read_labels(origins(**texts), [source], [record.key for record in source.records])
    assert found["model"]["1.jpg"] == "A"
    assert found["iso"]["1.jpg"] == "100"
    assert found["year"] == {}
    assert not {"2.jpg", "4.jpg"} & {key for own in found.values() for key in own}
    assert len(read) == 3


def test_groups_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "patients.csv").write_text("path,patient\n1.jpg,P1\n3.jpg,P1\n")
    text = f"file:{tmp_path}/patients.csv:patient"
    source = open_source(tmp_path, SourceConfig(kind="folder", group=text))
    assert [(r.key, r.group) for r in source.records] == [("1.jpg", "P1"), ("2.jpg", None), ("3.jpg", "P1")]
    assert source.options["group"] == text
    again = open_source(tmp_path, SourceConfig.from_options(source.options))
    assert list(again.records) == list(source.records)
    assert open_source(tmp_path).records[0].group is None
    assert [record.group for record in pickle.loads(pickle.dumps(source)).records] == ["P1", None, "P1"]
    monkeypatch.chdir(tmp_path)
    relative = open_source(tmp_path, SourceConfig(kind="folder", group="file:patients.csv:patient"))
    assert relative.options["group"] == text  # which another folder reopens
    with pytest.raises(ConfigError, match=r"source\.group.*column:NAME"):
        open_source(tmp_path, SourceConfig(group="patients.csv"))
    with pytest.raises(ConfigError, match=r"source\.group.*existing list"):
        open_source(tmp_path, SourceConfig(group="file:none.csv"))


def test_a_group_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it can be read, the photograph could be tested on while others of its camera are trained on."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(picture(Model="A"))
    config = SourceConfig(kind="folder", group="exif:Model")
    assert [record.group for record in open_source(tmp_path, config).records] == ["A", "A"]
    read = FolderSource._read

    def fail(self: FolderSource, place: int) -> bytes:
        if place == 1:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, place)

    monkeypatch.setattr(FolderSource, "_read", fail)
    with pytest.raises(SubstyleError, match=r"source\.group: 2\.jpg cannot be read: Input/output error") as caught:
        open_source(tmp_path, config)
    assert not isinstance(caught.value, ConfigError)  # a store would take the source for one that has moved


def test_groups_by_column_of_a_source_with_groups(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(picture())
    (tmp_path / "list.csv").write_text("path,label,patient,scanner\n1.jpg,cat,P1,A\n")
    source = open_source(tmp_path / "list.csv", SourceConfig(group="column:patient"))
    assert source.records[0].group == "P1"
    assert source.class_names == ("cat",)
    assert read_labels(origins(s="column:scanner"), [source], ["1.jpg"]) == {"s": {"1.jpg": "A"}}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("", "", True),
        ("", "column:patient", False),
        ("column:patient", "column:patient", True),
        ("column:patient", "column:site", False),
        ("file:/a/p.csv:patient", "file:/b/p.csv:patient", True),
        ("file:/a/p.csv:patient", "file:/a/p.csv:site", False),
        ("exif:Model", "column:Model", False),
    ],
)
def test_groups_are_the_same_by_name(first: str, second: str, same: bool) -> None:
    assert same_group(first, second) == same
