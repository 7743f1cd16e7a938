"""Pictures of the variants, small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from substyle.kernels.errors import SubstyleError

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_SIDE = 160  # pixels of a thumbnail
_MOST = 4  # photographs


@dataclass(frozen=True)
class Picture:
    """One picture as a data URI, and the transformation that it shows (empty for a contact sheet)."""

    transformation: str
    uri: str


def read_gallery(path: Path | None, transformations: Sequence[str]) -> list[list[Picture]]:
    """Pictures of the variants of a few photographs, in suite order.

    Args:
        path: one image file (a contact sheet); or a folder of ``<transformation>.png`` (jpg, webp) of one photograph;
            or a folder of such folders, one for each photograph. None, or a path that does not exist: no gallery.
        transformations: names in the order in which they are shown.

    Returns:
        one list for each photograph, at most four.

    Raises:
        SubstyleError: a file that is no picture.
    """
    if path is None or not path.exists():
        return []
    if path.is_file():
        return [[Picture("", _encode(path, 1200))]]
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    photographs = [_photograph(folder, transformations) for folder in folders]
    return [photograph for photograph in photographs if photograph][:_MOST]


def _photograph(folder: Path, transformations: Sequence[str]) -> list[Picture]:
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in _ENDINGS}
    return [Picture(name, _encode(files[name], _SIDE)) for name in transformations if name in files]


def _encode(file: Path, side: int) -> str:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise SubstyleError(f"{file}: not a picture ({error})") from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
