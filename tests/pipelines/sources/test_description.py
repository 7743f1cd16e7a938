"""The summary of a source on one line."""

from __future__ import annotations

from pathlib import Path

from substyle.pipelines.sources import SourceConfig, describe, open_source


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def said(path: Path, config: SourceConfig | None = None) -> str:
    """The summary, without the test's folder."""
    line = describe(open_source(path, config))
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


def test_a_folder_with_splits(tmp_path: Path) -> None:
    names = [f"{split}/{label}/{i}.jpg" for split in ("Train", "dev") for label in ("cat", "dog") for i in range(600)]
    root = fill(tmp_path / "photos", *names, "Train/cat/a.CR2", "dev/b.cr2", "readme.txt", "readme", ".DS_Store")
    assert said(root) == (
        "folder photos/: 2,400 images, 2 classes, splits train 1,200, val 1,200 (from folders); "
        "skipped 4 files: .cr2 2, no suffix 1, .txt 1"
    )


def test_what_is_not_taken(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "photos", "train/cat/a.jpg", "b.jpg", "c.jpg", "run/substyle.json", "run/d.jpg", "more/e.jpg"
    )
    for name in ("x.jpg", "y.jpg"):
        (root / "train" / name).symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    assert said(root, SourceConfig(splits="folders")) == (
        "folder photos/: 1 image, 1 class, splits train 1 (from folders); "
        "left out 5: b.jpg, c.jpg, more/ and 2 more; 1 substyle folder skipped"
    )
    assert said(root, SourceConfig(splits="none")) == (
        "folder photos/: 4 images, 2 classes (2 images without), no splits; "
        "left out 2: train/x.jpg, train/y.jpg; 1 substyle folder skipped"
    )
