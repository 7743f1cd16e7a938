"""Lists of images: columns, rejected paths, broken files."""

from __future__ import annotations

import errno
import os
import re
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


def test_paths_alone(tmp_path: Path) -> None:
    source = ListSource(listed(tmp_path, "path\nsub/b.jpg\na.jpg\n"))
    assert described(source) == [("a.jpg", None, None, b"a.jpg"), ("sub/b.jpg", None, None, b"sub/b.jpg")]
    assert source.class_names == ()


def test_quotes_byte_order_mark_blank_lines_and_short_lines(tmp_path: Path) -> None:
    text = '\ufeffnote, file_name ,label,split\r\n,"c d, e.jpg",dog,VALIDATION\r\n\r\n"two\nlines",a.jpg\r\n'
    assert described(ListSource(listed(tmp_path, text))) == [
        ("a.jpg", None, None, b"a.jpg"),
        ("c d, e.jpg", "dog", "val", b"c d, e.jpg"),
    ]


def test_columns_of_other_names(tmp_path: Path) -> None:
    config = SourceConfig(path_column="where", label_column="what", split_column="part")
    text = "part\twhat\twhere\nTesting\t10\ta.jpg\ntrain\t9\tsub/b.jpg\n"
    source = ListSource(listed(tmp_path, text, "list.tsv"), config)
    assert described(source) == [("a.jpg", "10", "test", b"a.jpg"), ("sub/b.jpg", "9", "train", b"sub/b.jpg")]
    assert source.options == {
        "kind": "list", "path_column": "where", "label_column": "what", "split_column": "part",
    }  # fmt: skip


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


def test_of_several_columns_the_first_usual_name_counts(tmp_path: Path) -> None:
    text = "target,image,LABEL,class,label,path\n1,no.jpg,2,3,4,a.jpg\n"
    assert described(ListSource(listed(tmp_path, text))) == [("a.jpg", "4", None, b"a.jpg")]


def test_a_subset_that_is_no_split_is_left_alone(tmp_path: Path) -> None:
    text = "path,subset\na.jpg,train\nsub/b.jpg,{}\n"
    assert [r.split for r in ListSource(listed(tmp_path, text.format("DEV"))).records] == ["train", "val"]
    assert [r.split for r in ListSource(listed(tmp_path, text.format(""))).records] == ["train", None]
    path = listed(tmp_path, text.format("coco"))
    assert [r.split for r in ListSource(path).records] == [None, None]
    with pytest.raises(ConfigError, match=r"split on line 3 of .*got 'coco'"):
        ListSource(path, SourceConfig(split_column="subset"))


def test_numbers_have_the_names_of_their_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    text = "path,label\na.jpg,1\nsub/b.jpg,0\n"
    source = ListSource(listed(tmp_path, text), SourceConfig(names=tmp_path / "names.txt"))
    assert source.class_names == ("cat", "dog")
    assert source.records[0].label == 1
    # sorted by number, not by name
    (tmp_path / "names.txt").write_text("zebra\nape\n")
    source = ListSource(tmp_path / "list.csv", SourceConfig(names=tmp_path / "names.txt"))
    assert source.class_names == ("zebra", "ape")
    assert [record.label for record in source.records] == [1, 0]


@pytest.mark.parametrize("lines", [("a.jpg,0", "sub/b.jpg,zebra"), ("a.jpg,zebra", "sub/b.jpg,0")])
def test_classes_with_and_without_numbers_sort_by_name(tmp_path: Path, lines: tuple[str, str]) -> None:
    """A class given as 0 on one line and by name on another is not sorted by number."""
    (tmp_path / "names.txt").write_text("zebra\nape\n")
    text = "\n".join(["path,label", *lines, '"c d, e.jpg",1', ""])
    source = ListSource(listed(tmp_path, text), SourceConfig(names=tmp_path / "names.txt"))
    assert source.class_names == ("ape", "zebra")


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


def test_one_image_has_one_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ListSource(listed(tmp_path, "path,label\n./sub//b.jpg,dog\nsub/b.jpg,dog\n"))
    assert [r.key for r in source.records] == ["sub/b.jpg"]
    assert source.refused == ("sub/b.jpg",)
    assert re.search("line 3 .*line 2", caplog.text)


@pytest.mark.parametrize("second", ["a.jpg,dog,train", "a.jpg,cat,test"])
def test_a_contradiction_is_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(ConfigError, match=r"lines 2 and 3 of .*: got 'a.jpg'"):
        ListSource(listed(tmp_path, f"path,label,split\na.jpg,cat,train\n{second}\n"))


def test_what_is_not_there_or_no_file_fails_when_it_is_read(tmp_path: Path) -> None:
    source = ListSource(listed(tmp_path, "path\na.jpg\nnothing.jpg\npipe.jpg\nsub\n"))
    os.mkfifo(tmp_path / "pipe.jpg")
    good, *bad = source.records
    assert good.read() == b"a.jpg"
    for record in bad:
        with pytest.raises(OSError, match="Errno") as caught:
            record.read()
        assert caught.value.errno in (errno.ENOENT, errno.EINVAL, errno.EISDIR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "source.path_column: got 'nothing'; .*list.csv"),
        ("url,label\na.jpg,cat\n", "source.path_column.*: url, label"),
        ("path\n", "^images: got .*list.csv"),
        ("path\n../a.jpg\n", r"^images: got .*list.csv.*\(../a.jpg on line 2 "),
        ("path,label\na.jpg,cat,dog\n", "line 2 of .*got '3 fields'"),
        ('path\n"a.jpg\n', r"after line 0: unexpected end of data"),
        ('path\na.jpg\n"' + "x" * 200_000 + '"\n', "after line 2: field larger"),
        ("path\n" + "x" * 2_000_000, "1048576"),
        (b"path\na.jpg\n\xff.jpg\n", "UTF-8"),
        ("path,split\na.jpg,all\n", "split on line 2 of .*got 'all'; allowed: train, training, val"),
        ("p\x1b[2J" + "q" * 1000, r": p\\x1b\[2Jqqq"),
    ],
)
def test_broken_lists(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ListSource(listed(tmp_path, text))
    assert len(str(caught.value)) < 1000


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
