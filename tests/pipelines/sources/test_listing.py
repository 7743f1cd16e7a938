"""Lists of images: columns, rejected paths, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines.sources import ListSource, SourceConfig


def listed(root: Path, text: str | bytes, name: str = "list.csv") -> Path:
    for image in ("a.jpg", "sub/b.jpg", "c d, e.jpg"):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(image.encode())
    path = root / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def described(source: ListSource) -> list[tuple[str, str | None, str | None, bytes]]:
    names = source.class_names
    return [(r.key, None if r.label is None else names[r.label], r.split, r.read()) for r in source.records]


@pytest.mark.parametrize(
    ("header", "label", "split"),
    [
        ("Path,Label,Split", "9", "train"),
        ("FILENAME,class_name,subset", "9", "train"),
        ("img,Category,partition", "9", "train"),
        ("file,target,part", "9", None),
        ("image_path,fine_label,coarse_label", "9", None),
        ("filepath,note,author", None, None),
    ],
)
def test_columns_under_their_usual_names(tmp_path: Path, header: str, label: str | None, split: str | None) -> None:
    source = ListSource(listed(tmp_path, f"{header}\na.jpg,9,train\n"))
    assert described(source) == [("a.jpg", label, split, b"a.jpg")]


def test_a_label_that_says_that_it_is_missing_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{i}.jpg,{label}" for i, label in enumerate(("cat", "NA", "", "N/A", "NaN", "nan", "Nancy"))]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *lines]))
    source = ListSource(tmp_path / "x.csv")
    assert source.class_names == ("Nancy", "cat")
    assert [record.label for record in source.records] == [1, None, None, None, None, None, 0]
    assert "1.jpg on line 3 has label NA; left unlabelled" in caplog.text


def test_a_column_of_which_there_are_two_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,label,label,note,note\n1.jpg,cat,dog,a,b\n")
    with pytest.raises(ConfigError, match=r"label 2 times.*each column once"):
        ListSource(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "path", ["../a.jpg", "sub/../a.jpg", "/etc/hostname", "", ".", "./", "x\0y.jpg", "x" * 2000, "a.jpg/.."]
)
def test_paths_that_leave_the_folder_are_refused_and_named(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource(listed(tmp_path, f"path,label\n{path},cat\nsub/b.jpg,dog\n"))
    assert [r.key for r in source.records] == ["sub/b.jpg"]
    assert source.class_names == ("dog",)
    assert source.refused == (path,)
    assert "on line 2 " in caplog.text
    assert "\0" not in caplog.text


def test_a_column_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.label_column: got 'klass'"):
        ListSource(listed(tmp_path, "path,class\na.jpg,cat\n"), SourceConfig(label_column="klass"))


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        ListSource(tmp_path / "none.csv")
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path / "none.csv"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), text=st.text(alphabet='path,label\n\r"./\t\0\ud800é', max_size=60))
@example(data=b"", text="a.jpg,l\na.jpg,l")
def test_any_bytes_give_a_list_or_an_error(tmp_path: Path, data: bytes, text: str) -> None:
    for content in (data, b"path,label\n" + data, b"path,label\n" + text.encode("utf-8", "surrogatepass")):
        path = tmp_path / "list.csv"
        path.write_bytes(content)
        try:
            source = ListSource(path)
        except SubstyleError:
            continue
        for record in source.records:
            try:
                record.read()
            except OSError:
                continue
