"""Lists of images, and ImageNet's lists of synsets: columns, rejected paths, broken files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.pipelines.sources.conftest import described, fill

from substyle.errors import ConfigError, MissingError, SubstyleError
from substyle.pipelines.sources import ImageNetSource, ListSource, SourceConfig


def listed(root: Path, text: str) -> Path:
    path = fill(root, "a.jpg", "sub/b.jpg") / "list.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("header", "label", "split"),
    [
        ("FILENAME,class_name,subset", "9", "train"),
        ("img,Category,partition", "9", "train"),
        ("image_path,fine_label,coarse_label", "9", None),
        ("filepath,note,author", None, None),
    ],
)
def test_columns_under_their_usual_names(tmp_path: Path, header: str, label: str | None, split: str | None) -> None:
    source = ListSource(listed(tmp_path, f"{header}\na.jpg,9,train\n"))
    assert described(source) == {"a.jpg": (label, split, b"a.jpg")}


def test_a_label_that_says_that_it_is_missing_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{i}.jpg,{label}" for i, label in enumerate(("cat", "NA", "", "N/A", "NaN", "nan", "Nancy"))]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *lines]))
    source = ListSource(tmp_path / "x.csv")
    assert source.class_names == ("Nancy", "cat")
    assert [record.label for record in source.records] == [1, None, None, None, None, None, 0]
    assert "1.jpg on line 3 has label NA; left unlabelled" in caplog.text


@pytest.mark.parametrize("path", ["../a.jpg", "sub/../a.jpg", "/etc/hostname", "", ".", "x\0y.jpg", "x" * 2000])
def test_paths_that_leave_the_folder_are_refused_and_named(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource(listed(tmp_path, f"path,label\n{path},cat\nsub/b.jpg,dog\n"))
    assert list(described(source)) == ["sub/b.jpg"]
    assert source.class_names == ("dog",)
    assert source.refused == (path,)
    assert "on line 2 " in caplog.text
    assert "\0" not in caplog.text


def test_columns_that_are_there_twice_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label 2 times.*each column once"):
        ListSource(listed(tmp_path, "path,label,label,note,note\n1.jpg,cat,dog,a,b\n"))
    with pytest.raises(ConfigError, match=r"source\.label_column: got 'klass'"):
        ListSource(listed(tmp_path, "path,class\na.jpg,cat\n"), SourceConfig(label_column="klass"))
    with pytest.raises(ConfigError, match="No such file") as caught:
        ListSource(tmp_path / "none.csv")
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "none.csv"))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), text=st.text(alphabet='path,label\n\r"./\t\0\ud800é', max_size=60))
@example(data=b"", text="a.jpg,l\na.jpg,l")
def test_any_bytes_give_a_list_or_an_error(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "list.csv"
    for content in (data, b"path,label\n" + data, b"path,label\n" + text.encode("utf-8", "surrogatepass")):
        path.write_bytes(content)
        with suppress(SubstyleError):
            for record in ListSource(path).records:
                with suppress(OSError):
                    record.read()


# --- ImageNet ---------------------------------------------------------------------------------------------------------

SYNSETS = ["n00000001", "n00000002", "n00000003"]
NUMBERED = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]


def imagenet(root: Path, *val: str) -> Path:
    return fill(root, *(f"train/{synset}/{synset}_7.JPEG" for synset in SYNSETS), *(f"val/{name}" for name in val))


def validation(source: ImageNetSource) -> dict[str, str | None]:
    found = described(source).items()
    return {key.removeprefix("val/"): label for key, (label, split, _) in found if split == "val"}


def synsets(root: Path, *lines: str) -> SourceConfig:
    path = root / "synsets.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return SourceConfig(synsets=path)


def test_the_line_of_the_number(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "i", *NUMBERED)
    source = ImageNetSource(root, synsets(tmp_path, "n00000003", "n00000001", "n00000003"))
    assert validation(source) == dict(zip(NUMBERED, ["n00000003", "n00000001", "n00000003"], strict=True))
    assert {record.split for record in source.records} == {"train", "val"}
    assert source.class_names == tuple(SYNSETS)


def test_kaggles_list(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "i", *NUMBERED, "ILSVRC2012_val_00000009.JPEG")
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{n:08d},n0000000{n} 1 2 3 4 " for n in (3, 2, 1))]
    for some in (lines, lines[1:]):  # with its header and without
        source = ImageNetSource(root, synsets(tmp_path, *some))
        assert validation(source) == dict(zip(NUMBERED, SYNSETS, strict=True))
        assert source.refused == ("val/ILSVRC2012_val_00000009.JPEG",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"source\.synsets: got '0 lines"),
        (("n00000001", "tench", "n00000002"), "line 2 of .*got 'tench'"),
        (("n00000001",), "1 lines in"),
        (("ImageId,PredictionString", "x,n00000001 1 2 3 4"), r"source\.synsets.*val/ILSVRC2012_val"),
        (("ImageId,PredictionString", "x,", "y,z"), "got 'x,'"),
        (('a,"b', "c"), r"source\.synsets"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageNetSource(imagenet(tmp_path / "i", *NUMBERED), synsets(tmp_path, *lines))


def test_what_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train/") as caught:
        ImageNetSource(tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path))
    with pytest.raises(MissingError) as missing:
        ImageNetSource(imagenet(tmp_path, *NUMBERED))
    assert missing.value.field == "source.synsets"
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / "bad.txt"):
        with pytest.raises(ConfigError) as caught:
            ImageNetSource(tmp_path, SourceConfig(synsets=path))
        assert (caught.value.field, caught.value.given) == ("source.synsets", str(path))


@pytest.mark.parametrize("second", ["a.jpg,dog,train", "a.jpg,cat,test"])
def test_a_contradiction_is_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(ConfigError, match=r"lines 2 and 3 of .*: got 'a.jpg'"):
        ListSource(listed(tmp_path, f"path,label,split\na.jpg,cat,train\n{second}\n"))
