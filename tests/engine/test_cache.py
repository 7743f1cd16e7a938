from __future__ import annotations

from pathlib import Path

import pytest

from substyle.engine import cache


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    return tmp_path


def damages(path: Path) -> list[bytes]:
    """Kinds of damage: truncation, a flipped bit, an empty file, a file of an older version."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    return [whole[:-1], whole[: len(whole) // 2], whole[:9], b"", bytes(flipped), whole[40:], b"x" * len(whole)]


def test_a_damaged_entry_is_made_anew_and_said(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.fetch("a/b", lambda: b"what it is" * 10)
    whole = (own / "a/b").read_bytes()
    for damaged in damages(own / "a/b"):
        (own / "a/b").write_bytes(damaged)
        assert cache.fetch("a/b", lambda: b"what it is" * 10) == b"what it is" * 10
        assert "a/b: checksum mismatch" in capsys.readouterr().err
        assert (own / "a/b").read_bytes() == whole
    assert cache.read("a/b") is not None
    assert capsys.readouterr().err == ""
