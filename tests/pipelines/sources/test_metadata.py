"""Labels of photographs from columns, lists and EXIF."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.sources import SourceConfig, open_source
from substyle.pipelines.sources.files import FileBelow
from substyle.pipelines.sources.metadata import Origin, read_labels

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
    "text",
    ["", "scanner", "column:", "file:", "file:sites.txt", "exif:", "exif:Colour", "exif:GPSInfo", "exif:DateTime.day"],
)
def test_bad_origins(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^labels\.of\.site"):
        Origin.of(text, "site", "labels.of.site")


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("path,site,year\na/1.jpg,east,1999\n./a//2.jpg,,2001\nb/3.jpg,west,\n")
    made = origins(site=f"file:{tmp_path}/sites.csv", when=f"file:{tmp_path}/sites.csv:year")
    found = read_labels(made, [], ["a/1.jpg", "a/2.jpg", "c/4.jpg"])
    assert found == {"site": {"a/1.jpg": "east"}, "when": {"a/1.jpg": "1999", "a/2.jpg": "2001"}}


def test_a_list_of_other_photographs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("path,site\nphotos/1.jpg,east\n")
    made = origins(site=f"file:{tmp_path}/sites.csv")
    with pytest.raises(ConfigError, match=r"site.*photos/1\.jpg is none, 1\.jpg is one"):
        read_labels(made, [], ["1.jpg"], "labels.of")
    with pytest.raises(ConfigError, match=r"labels\.of\.site.*an existing list"):
        read_labels(origins(site=f"file:{tmp_path}/other.csv"), [], ["1.jpg"], "labels.of")
    with pytest.raises(ConfigError, match=r"label_column.*path, site"):
        read_labels(origins(x=f"file:{tmp_path}/sites.csv"), [], ["photos/1.jpg"])


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


def test_a_group_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it can be read, the photograph could be tested on while others of its camera are trained on."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(picture(Model="A"))
    config = SourceConfig(kind="folder", group="exif:Model")
    assert [record.group for record in open_source(tmp_path, config).records] == ["A", "A"]
    read = FileBelow.read

    def fail(self: FileBelow) -> bytes:
        if self.name == "2.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return read(self)

    monkeypatch.setattr(FileBelow, "read", fail)
    with pytest.raises(SubstyleError, match=r"source\.group: 2\.jpg cannot be read: Input/output error") as caught:
        open_source(tmp_path, config)
    assert not isinstance(caught.value, ConfigError)  # a store would take the source for one that has moved


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
