"""ImageNet: labels of a flat validation folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from substyle.errors import ConfigError, MissingError
from substyle.pipelines.sources import ImageNetSource, SourceConfig

SYNSETS = ["n00000001", "n00000002", "n00000003"]


def fill(root: Path, val: list[str]) -> Path:
    for synset in SYNSETS:
        (root / "train" / synset).mkdir(parents=True)
        (root / "train" / synset / f"{synset}_7.JPEG").write_bytes(synset.encode())
    for name in val:
        (root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "val" / name).write_bytes(name.encode())
    return root


def validation(source: ImageNetSource) -> dict[str, str]:
    return {
        record.key.removeprefix("val/"): source.class_names[record.label or 0]
        for record in source.records
        if record.split == "val"
    }


def listed(root: Path, *lines: str) -> SourceConfig:
    path = root / "synsets.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return SourceConfig(synsets=path)


NUMBERED = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]


def test_the_line_of_the_number(tmp_path: Path) -> None:
    root = fill(tmp_path / "i", NUMBERED)
    source = ImageNetSource(root, listed(tmp_path, "n00000003", "n00000001", "n00000003"))
    assert validation(source) == dict(zip(NUMBERED, ["n00000003", "n00000001", "n00000003"], strict=True))
    assert {record.split for record in source.records} == {"train", "val"}
    assert source.class_names == tuple(SYNSETS)


def test_kaggles_list(tmp_path: Path) -> None:
    root = fill(tmp_path / "i", [*NUMBERED, "ILSVRC2012_val_00000009.JPEG"])
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{n:08d},n0000000{n} 1 2 3 4 " for n in (3, 2, 1))]
    source = ImageNetSource(root, listed(tmp_path, *lines))
    assert validation(source) == dict(zip(NUMBERED, SYNSETS, strict=True))
    assert source.refused == ("val/ILSVRC2012_val_00000009.JPEG",)
    assert validation(ImageNetSource(root, listed(tmp_path, *lines[1:]))) == validation(source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"source\.synsets: got '0 lines"),
        (("n00000001", "tench", "n00000002"), "line 2 of .*got 'tench'"),
        (("1", "2", "3"), "line 1 of .*got '1'"),
        (("n00000001",), "1 lines in"),
        (
            ("ImageId,PredictionString", "x,n00000001 1 2 3 4"),
            r"source\.synsets.*val/ILSVRC2012_val",
        ),
        (("ImageId,PredictionString", "x,", "y,z"), "got 'x,'"),
        (('a,"b', "c"), r"source\.synsets"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageNetSource(fill(tmp_path / "i", NUMBERED), listed(tmp_path, *lines))


def test_what_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train/") as caught:
        ImageNetSource(tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path))
    with pytest.raises(MissingError) as caught:
        ImageNetSource(fill(tmp_path, NUMBERED))
    assert caught.value.field == "source.synsets"
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / "bad.txt"):
        with pytest.raises(ConfigError) as caught:
            ImageNetSource(tmp_path, SourceConfig(synsets=path))
        assert (caught.value.field, caught.value.given) == ("source.synsets", str(path))
