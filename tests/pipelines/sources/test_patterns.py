"""Patterns: braces as in bash, wildcards confined to the root."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    "text", ["{0..999999999}", "{0..99999}{0..99999}", "{1..400}{1..400}", "{0..99999999999}{a,b}"]
)
def test_endless_patterns_are_refused(text: str) -> None:
    if ".." in text and "99999999999" in text:
        assert len(list(braces(text, text))) == 2  # no range: too many digits
        return
    with pytest.raises(ConfigError, match="100000") as caught:
        list(braces(text, text))
    assert (caught.value.field, caught.value.given) == ("images", text)


@pytest.mark.parametrize("pattern", ["b*.tar", "*.tar.gz", "*/*/*.tar", "nothing.tar", "nothing/a-{0..1}.tar"])
def test_nothing_is_there(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "a-0.tar")
    with pytest.raises(ConfigError):
        found(tmp_path / pattern)


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
