"""Reports, tables and cards replace what earlier ones wrote, and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.engine.report.real import real_results

from substyle.engine.study import runner
from substyle.engine.study.hub import write_card
from substyle.files import UnsafeFileError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with a report, and files of the user beside it."""
    for name in ("out/README.md", "out/tables/mine.csv", "out/figures/mine/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    runner.save_report(real_results(), tmp_path / "out", None)
    return tmp_path / "out"


def test_a_report_replaces_its_own_files_alone(out: Path) -> None:
    per_class = out / "tables" / "per_transformation.csv"
    overview, mine = out / "tables" / "overview.csv", [path for path in out.rglob("*") if "mine" in path.name]
    assert per_class.is_file()
    overview.write_text("edited")
    results = real_results("a")
    for backbone in results["backbones"].values():
        backbone.clear()
    runner.save_report(results, out, None)
    assert not per_class.exists()
    assert overview.read_text() == "edited"
    assert (out / "README.md").read_text() == "mine"
    assert all(path.exists() for path in mine)


def test_a_full_disk_leaves_the_old_report(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(out)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("substyle.engine.report.page.write_tables", full)
    with pytest.raises(OSError, match="No space left"):
        runner.save_report(real_results("a"), out, None)
    assert contents(out) == before


def test_files_of_others_are_not_replaced(out: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"README\.md: would be replaced, but substyle has not written it"):
        write_card(out)
    (out / "README.md").unlink()
    write_card(out)
    write_card(out)
    runner.save_report(real_results(), out, None)  # other results than those of the card
    assert not (out / "README.md").exists()
    (out / "results.json").unlink()
    (out / ".substyle-files.json").unlink()
    before = contents(out)
    with pytest.raises(UnsafeFileError, match="would be replaced"):
        runner.save_report(real_results(), out, None)
    assert contents(out) == before


def test_an_edited_card_is_not_replaced(out: Path) -> None:
    (out / "README.md").unlink()
    write_card(out)
    write_card(out)
    (out / "README.md").write_text("my own words about this model")
    with pytest.raises(UnsafeFileError, match=r"README\.md: would be replaced, but has been edited"):
        write_card(out)
    assert (out / "README.md").read_text() == "my own words about this model"
