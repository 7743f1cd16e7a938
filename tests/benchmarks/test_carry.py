"""Wheels that are brought to a GPU machine in pieces."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from benchmarks import carry


def wheels(folder: Path) -> list[Path]:
    """Two wheels of a module each, and a folder that both share."""
    made = []
    for i, name in enumerate(("small", "large")):
        made.append(folder / f"{name}-1.0-py3-none-any.whl")
        with zipfile.ZipFile(made[-1], "w") as wheel:
            wheel.writestr(f"{name}.py", f"VALUE = {i}\n")
            wheel.writestr(f"shared/{name}.bin", random.Random(i).randbytes(1 + 3000 * i))
    return made


def test_what_is_brought_is_unpacked(tmp_path: Path) -> None:
    pieces = carry.pack(wheels(tmp_path), tmp_path, size=1000)
    assert max((tmp_path / name).stat().st_size for name in pieces) == 1000
    assert list(carry.unpack(tmp_path)) == [
        "unpacked: small-1.0-py3-none-any.whl",
        "unpacked: large-1.0-py3-none-any.whl",
    ]
    assert (tmp_path / "packages" / "large.py").read_text() == "VALUE = 1\n"
    assert (tmp_path / "packages" / "shared" / "large.bin").read_bytes() == random.Random(1).randbytes(3001)


def test_the_first_pieces_are_enough_for_the_first_wheels(tmp_path: Path) -> None:
    pieces = carry.pack(wheels(tmp_path), tmp_path, size=1000)
    (tmp_path / pieces[2]).unlink()
    assert list(carry.unpack(tmp_path)) == [
        "unpacked: small-1.0-py3-none-any.whl",
        "not brought yet: large-1.0-py3-none-any.whl",
    ]
    assert sorted(path.name for path in (tmp_path / "packages").iterdir()) == ["shared", "small.py"]


def test_a_damaged_piece_is_refused(tmp_path: Path) -> None:
    pieces = carry.pack(wheels(tmp_path), tmp_path, size=1000)
    last = tmp_path / pieces[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{pieces[-1]} is damaged"):
        list(carry.unpack(tmp_path))
    assert not (tmp_path / "packages").exists()
