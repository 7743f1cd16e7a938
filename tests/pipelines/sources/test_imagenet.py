"""ImageNet: labels of a flat validation folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from substyle.errors import ConfigError
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
