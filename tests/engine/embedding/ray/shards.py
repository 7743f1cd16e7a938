"""Photographs, runs and stores that the tests of executors share."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tests.conftest import jpeg, photograph, setting

SUITE = "identity,grayscale,gaussian_noise"
ROWS = 4  # of a shard
WHITE = 2  # the shard that the white photograph is in

# a transformation that meets trouble where a photograph is white, as the file `how` beside it says: it fails each time,
# or kills its process the first time
TROUBLE = """
import os, signal
from pathlib import Path
from substyle.pipelines.transforms.base import kernel

HOW = Path(__file__).with_name("how")

@kernel("trouble", kind="tone", role="train")
def trouble(canvas_BSSC, args, keys_B):
    how = HOW.read_text() if HOW.exists() else ""
    if how and bool((canvas_BSSC == 255).flatten(1).all(1).any()):
        if how == "fail":
            raise ValueError("a white photograph")
        HOW.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return 255 - canvas_BSSC
"""


def photographs(folder: Path, count: int) -> Path:
    """A folder of so many small photographs, one of them white."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.jpg").write_bytes(jpeg(photograph(i)))
    Image.new("RGB", (64, 64), "white").save(folder / f"{WHITE * ROWS + 1:03d}.jpg", quality=100)
    return folder


def embed(images: Path, store: Path, *more: str, suite: str = SUITE) -> list[str]:
    """Arguments of a run that fills a store."""
    return [
        "embed", str(images), "--store", str(store), "--suite", suite,
        *setting("canvas=32", "embed.batch=2", "threads=1", f"embed.shard_rows={ROWS}"),
        "--backbone", "control:pixels", "--json", *more,
    ]  # fmt: skip


def left(store: Path) -> list[str]:
    """What a run should not have left: locks, temporary files, loose records."""
    names = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    parts = (".tmp", ".partial", "journal/0")
    return [name for name in names if Path(name).name.startswith("lock") or any(part in name for part in parts)]
