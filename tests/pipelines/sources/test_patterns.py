"""Patterns: braces as in bash, wildcards confined to the root."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substyle.errors import ConfigError
from substyle.pipelines.sources.base import LeftOut
from substyle.pipelines.sources.files import braces, shards


def found(root: str | Path, *extensions: str) -> list[str]:
    left_out = LeftOut(str(root))
    names = [shard.name for shard in shards(str(root), extensions or (".tar",), left_out)]
    left_out.tell()
    return names


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("a", ["a"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a,{b,c}}", ["a", "b", "c"]),
        ("{a}{}{0...2}{-1..2}", ["{a}{}{0...2}{-1..2}"]),
        ("{,x}", ["", "x"]),
    ],
)
def test_braces(text: str, expanded: list[str]) -> None:
    assert sorted(set(braces(text, text))) == sorted(expanded)  # nested braces are expanded twice


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["a", "-", ".tar", "{0..3}", "{07..11}", "{x,y}", "{3..1}", "{p,q,}"]), max_size=4))
def test_braces_are_those_of_bash(parts: list[str]) -> None:
    text = "s" + "".join(parts)
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert sorted(braces(text, text)) == sorted(said.stdout.split("\n")[:-1])


@pytest.mark.parametrize(
    "text", ["{0..999999999}", "{0..99999}{0..99999}", "{1..400}{1..400}", "{0..99999999999}{a,b}"]
)
def test_endless_patterns_are_refused(text: str) -> None:
    if ".." in text and "99999999999" in text:
        assert len(list(braces(text, text))) == 2  # no range: too many digits
        return
    with pytest.raises(ConfigError, match="100000") as caught:
        list(braces(text, text))
    assert (caught.value.field, caught.value.given) == ("images", text)


def test_files_folders_and_patterns_agree_on_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "s", "train-0.tar", "train-1.tar", "sub/x.tar", "readme.txt", "train-0.json")
    assert found(root) == ["sub/x.tar", "train-0.tar", "train-1.tar"]
    assert found(root / "train-0.tar") == ["train-0.tar"]
    assert found(root / "train-{0..1}.tar") == ["train-0.tar", "train-1.tar"]
    assert found(f"{root}/*.tar") == ["train-0.tar", "train-1.tar"]
    assert found(f"{root}/**/*.tar") == ["sub/x.tar", "train-0.tar", "train-1.tar"]
    assert found(f"{root}/train-[01]*") == ["train-0.tar", "train-1.tar"]
    assert found(f"{root}/{{sub/x,train-1,train-1}}.tar") == ["sub/x.tar", "train-1.tar"]


def test_relative_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a-0.tar", "a-1.tar", "d/b.tar")
    monkeypatch.chdir(tmp_path)
    assert found("a-{0..1}.tar") == ["a-0.tar", "a-1.tar"]
    assert found("*.tar") == ["a-0.tar", "a-1.tar"]
    assert found("d/*.tar") == ["b.tar"]
    assert found("*/b.tar") == ["d/b.tar"]


def test_folders_whose_names_look_like_patterns(tmp_path: Path) -> None:
    root = fill(tmp_path / "[a]{0..1}*", "x-0.tar", "x-{0..1}.tar")
    assert found(root) == ["x-0.tar", "x-{0..1}.tar"]
    assert found(root / "x-{0..1}.tar") == ["x-{0..1}.tar"]
    assert found(root / "x-{0..0}.tar") == ["x-0.tar"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a-0.tar")
    with pytest.raises(ConfigError, match=r"9 .*: a-1.tar, a-2.tar, a-3.tar, a-4.tar, a-5.tar and 4 more") as caught:
        found(tmp_path / "a-{0..9}.tar")
    assert caught.value.field == "images"


@pytest.mark.parametrize("pattern", ["b*.tar", "*.tar.gz", "*/*/*.tar", "nothing.tar", "nothing/a-{0..1}.tar"])
def test_nothing_is_there(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "a-0.tar")
    with pytest.raises(ConfigError):
        found(tmp_path / pattern)


def test_wildcards_stay_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = fill(tmp_path / "outside", "secret.tar")
    root = fill(tmp_path / "root", "a.tar")
    (root / "link.tar").symlink_to(outside / "secret.tar")
    (root / "folder").symlink_to(outside)
    (root / "broken.tar").symlink_to(root / "nothing.tar")
    assert found(f"{root}/*.tar") == ["a.tar"]
    assert found(f"{root}/**/*.tar") == ["a.tar"]
    assert found(root) == ["a.tar"]
    assert "link.tar is a link" in caplog.text
    with pytest.raises(ConfigError, match=r"\.\.") as caught:
        found(f"{root}/*/../../outside/*.tar")
    assert caught.value.field == "images"
    # a file named explicitly may be anywhere
    assert found(root / "link.tar") == ["link.tar"]
    assert found(f"{root}/{{a,link}}.tar") == ["a.tar", "link.tar"]


def test_a_wildcard_without_the_ending_takes_files_of_the_kind(tmp_path: Path) -> None:
    fill(tmp_path, "a.tar", "a.json", "b.TAR")
    assert found(f"{tmp_path}/*") == ["a.tar", "b.TAR"]


def test_wildcards_find_nothing_in_stores(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.tar", "a/s.zarr/m/2.tar", "a/s.zarr/substyle.json", "substyle.json")
    assert found(f"{root}/**/*.tar") == ["a/1.tar"]
    assert found(f"{root}/a/s.zarr/m/{{2,2}}.tar") == ["2.tar"]  # named explicitly
    left_out = LeftOut(str(root))
    shards(f"{root}/**/*.tar", (".tar",), left_out)
    assert left_out.substyle_folders == 1
