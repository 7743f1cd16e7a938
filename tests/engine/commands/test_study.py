from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine.commands.study import name_of


def test_a_study_of_photographs_is_called_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "holiday v1.2"
    folder.mkdir()
    (folder / "list.csv").touch()
    monkeypatch.chdir(folder)
    assert name_of(folder) == name_of(Path(".")) == "holiday v1.2"
    assert name_of(Path("..")) == tmp_path.name
    assert name_of(Path("list.csv")) == "list"
    assert name_of(Path("/")) == "photographs"


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("shards/train-{0000..0146}.tar", "train-0000..0146"),
        ("shards/{train,val}-*.tar", "train,val"),
        ("s3://bucket/folder/shards.tar", "shards"),
        ("s3://bucket/{0..1}.tar", "0..1"),
        ("*.tar", "photographs"),
        ("\udcff.tar", "udcff"),
    ],
)
def test_what_may_not_stand_in_a_name_is_left_out(images: str, name: str) -> None:
    assert name_of(images) == name
