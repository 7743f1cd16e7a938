"""The door to files: names, temporary files, deletion and private folders."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from substyle import files
from substyle.files import UnsafeFileError

AWAY = ("", ".", "..", "/", "/x", "../x", "x/..", "x/../y", "./x", "x/", "x//y", "x\\y", "x\0", "\\..\\x", "x/./y")


def test_links_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "root" / "file").symlink_to(tmp_path / "real" / "file")
    (tmp_path / "root" / "broken").symlink_to("nowhere")
    for name in ("link", "link/file", "link/new", "file", "broken"):
        with pytest.raises(UnsafeFileError, match="symbolic link"):
            files.inside(tmp_path / "root", name)
    (tmp_path / "other").symlink_to(tmp_path / "real")
    assert files.inside(tmp_path / "other", "file").read_bytes() == b"1"  # the root is the user's choice


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with files.open_inside(tmp_path, "file") as file:
        assert file.read() == b"1"
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        files.open_inside(tmp_path, "pipe")
    with pytest.raises(IsADirectoryError):
        files.open_inside(tmp_path, "folder")
    assert [files.is_regular(tmp_path / name) for name in ("file", "pipe", "folder", "none", "a\0")] == [
        True, False, False, False, False,
    ]  # fmt: skip


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "x"
    assert files.write(path, b"before") == path
    with files.replacing(path, durable=durable) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"after"
    with pytest.raises(ZeroDivisionError), files.replacing(path, durable=durable) as file:
        file.write(b"half" + bytes(1 // len(b"")))
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    files.write(tmp_path / "x", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine"
    assert not (tmp_path / "x").is_symlink()


def test_names_of_temporary_files_cannot_be_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {files.temporary_name(tmp_path / "x") for _ in range(100)}
    assert len(names) == 100
    taken = files.temporary_name(tmp_path / "x")
    monkeypatch.setattr(files, "temporary_name", lambda path: taken)
    (tmp_path / "target").write_bytes(b"mine")
    taken.symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "x", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine"
    assert not (tmp_path / "x").exists()


# --- deletion ---------------------------------------------------------------------------------------------------------


def test_removal_stays_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "folder" / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "mine").touch()
    (root / "link").symlink_to(outside)
    (root / "folder" / "link").symlink_to(outside)
    for path in (
        root,
        tmp_path,
        outside,
        outside / "mine",
        root / "..",
        root / ".." / "outside",
        root / "link" / "mine",
    ):
        with pytest.raises(UnsafeFileError):
            files.remove(path, root=root)
    files.remove(root / "none", root=root)
    files.remove(root / "folder", root=root)
    files.remove(root / "link", root=root)
    assert list(root.iterdir()) == []
    assert (outside / "mine").exists()


# --- private folders --------------------------------------------------------------------------------------------------


def test_private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "b"
    assert files.private_folder(path) == files.private_folder(path) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for mode in (0o755, 0o500, 0o711):
        path.chmod(mode)
        files.private_folder(path)
    for mode in (0o777, 0o775, 0o757, 0o1777):
        path.chmod(mode)
        with pytest.raises(UnsafeFileError, match="writable by other users"):
            files.private_folder(path)
    path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if path.stat().st_uid == 0:  # what root has put there is trusted
        files.private_folder(path)
        return
    with pytest.raises(UnsafeFileError, match="belongs to another user"):
        files.private_folder(path)


@pytest.mark.parametrize("name", AWAY)
def test_names_that_are_not_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeFileError, match="not a name inside a folder"):
        files.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "x/y.png", ".hidden", "..x", "x..", "...", "a b/ü", "x:y", "~", "$HOME", "-rf"])
def test_names_that_are_inside(tmp_path: Path, name: str) -> None:
    assert files.inside(tmp_path, name) == tmp_path / name


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert stat.S_IMODE(files.write(tmp_path / "x", b"").stat().st_mode) == 0o640
        assert stat.S_IMODE(files.write(tmp_path / "y", b"", mode=0o600).stat().st_mode) == 0o600
    finally:
        os.umask(before)
