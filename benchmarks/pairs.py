"""Make real variants of photographs: recompressed as WebP and AVIF, and in a screenshot of a page.

    python -m benchmarks.pairs FOLDER [--photographs NAME ...]

The photographs are those of `substyle.pipelines.packaged_photographs`, in ``FOLDER/identity``. ``FOLDER/webp`` and
``FOLDER/avif`` have them as Pillow encodes them, ``FOLDER/screenshot`` as a browser without a window shows them, a
tenth larger; without ``chromium`` on the PATH there are no screenshots. `studies/pairs.toml` is a study of the folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image

from substyle.pipelines import packaged_photographs

QUALITY = {"webp": 60, "avif": 50}
ZOOM = 1.1  # of photographs on a page
AT_ONCE = 24  # photographs on a page
BROWSER = "chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def encode(paths: Sequence[Path], identity: Path, folder: Path, suffix: str) -> None:
    for path in paths:
        target = (folder / path.relative_to(identity)).with_suffix(f".{suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            photograph.save(target, quality=QUALITY[suffix])


def photograph_screen(paths: Sequence[Path], identity: Path, folder: Path) -> None:
    """Write what a browser shows of photographs on one page, one below the other."""
    sizes = []
    for path in paths:
        with Image.open(path) as photograph:
            sizes.append([round(ZOOM * length) for length in photograph.size])
    tops = [0, *accumulate(height for _, height in sizes)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shown = "".join(
            f'<img src="{path.resolve().as_uri()}" width="{width}" height="{height}" style="top: {top}px">'
            for path, top, (width, height) in zip(paths, tops, sizes, strict=False)
        )
        page, screen = place / "page.html", place / "screen.png"
        page.write_text(f"<!doctype html><style>img {{ position: absolute; left: 0 }}</style>{shown}")
        window = f"--window-size={max(width for width, _ in sizes)},{tops[-1]}"
        command = [BROWSER, *FLAGS, f"--user-data-dir={place / 'profile'}", window, f"--screenshot={screen}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=300)
        with Image.open(screen) as whole:
            for path, top, (width, height) in zip(paths, tops, sizes, strict=False):
                target = (folder / path.relative_to(identity)).with_suffix(".png")
                target.parent.mkdir(parents=True, exist_ok=True)
                whole.convert("RGB").crop((0, top, width, top + height)).save(target)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder, or one that this command has made")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="NAME", help="some of the packaged photographs")
    options = parser.parse_args()
    identity = options.folder / "identity"
    if (
        not (identity / packaged_photographs.STAMP).is_file()
        and options.folder.exists()
        and any(options.folder.iterdir())
    ):
        print(f"{options.folder} holds other files; pass a new folder", file=sys.stderr)
        return 2
    packaged_photographs.ensure(identity, options.photographs)
    paths = sorted(identity.rglob("*.jpg"))
    for suffix in QUALITY:
        shutil.rmtree(options.folder / suffix, ignore_errors=True)
        encode(paths, identity, options.folder / suffix, suffix)
    shutil.rmtree(options.folder / "screenshot", ignore_errors=True)
    if shutil.which(BROWSER) is None:
        print(f"no {BROWSER} on the PATH: no screenshots, which studies/pairs.toml asks for", file=sys.stderr)
        return 1
    for start in range(0, len(paths), AT_ONCE):
        photograph_screen(paths[start : start + AT_ONCE], identity, options.folder / "screenshot")
    print(f"{options.folder}: {len(paths)} photographs, and their real variants")
    return 0


if __name__ == "__main__":
    sys.exit(main())
