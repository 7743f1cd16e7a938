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


def test_a_missing_image_moves_no_other(tmp_path: Path) -> None:
    root = fill(tmp_path / "i", NUMBERED[1:])
    source = ImageNetSource(root, listed(tmp_path, "n00000003", "n00000001", "n00000002"))
    assert validation(source) == {NUMBERED[1]: "n00000001", NUMBERED[2]: "n00000002"}


@pytest.mark.parametrize(
    "names",
    [
        ["b.JPEG", "a.JPEG", "c.JPEG"],
        ["x_3.JPEG", "x_1.JPEG", "x_11.JPEG"],
        ["a_00001.JPEG", "b_00003.JPEG", "c_00002.JPEG"],
    ],
)
def test_other_names_are_taken_in_their_order(tmp_path: Path, names: list[str]) -> None:
    config = listed(tmp_path, *SYNSETS)
    source = ImageNetSource(fill(tmp_path / "i", names), config)
    assert validation(source) == dict(zip(sorted(names), SYNSETS, strict=True))
    with pytest.raises(ConfigError, match=r"3 lines in .*; allowed: 2") as caught:
        ImageNetSource(fill(tmp_path / "j", names[:2]), config)
    assert caught.value.field == "source.synsets"


def test_kaggles_list(tmp_path: Path) -> None:
    root = fill(tmp_path / "i", [*NUMBERED, "ILSVRC2012_val_00000009.JPEG"])
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{n:08d},n0000000{n} 1 2 3 4 " for n in (3, 2, 1))]
    source = ImageNetSource(root, listed(tmp_path, *lines))
    assert validation(source) == dict(zip(NUMBERED, SYNSETS, strict=True))
    assert source.refused == ("val/ILSVRC2012_val_00000009.JPEG",)
    assert validation(ImageNetSource(root, listed(tmp_path, *lines[1:]))) == validation(source)


def test_class_folders_in_val_need_no_list(tmp_path: Path) -> None:
    source = ImageNetSource(fill(tmp_path, [f"{synset}/x.JPEG" for synset in SYNSETS]))
    assert validation(source) == {f"{synset}/x.JPEG": synset for synset in SYNSETS}


def test_readable_names(tmp_path: Path) -> None:
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("n00000001 tench, Tinca tinca\nn00000002 crane\nn00000003 crane, bird\n")
    config = listed(tmp_path, "n00000002", "n00000002", "n00000001")
    source = ImageNetSource(fill(tmp_path / "i", NUMBERED), SourceConfig(synsets=config.synsets, names=names))
    assert source.class_names == ("crane (n00000002)", "crane (n00000003)", "tench")
    assert list(validation(source).values()) == ["crane (n00000002)", "crane (n00000002)", "tench"]


def test_what_belongs_to_no_synset_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "i", [f"{synset}/x.JPEG" for synset in SYNSETS])
    for name in ("train/cats/a.jpg", "train/b.jpg", "val/n1/c.jpg", "loose.jpg", "test/d.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    source = ImageNetSource(root)
    assert len(source.records) == 6
    assert source.refused == ("train/b.jpg", "train/cats/a.jpg", "val/n1/c.jpg")
    assert "test/d.jpg" not in caplog.text


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
