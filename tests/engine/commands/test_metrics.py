"""Metrics of a run, as the library of Prometheus reads them."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import setting

from substyle import errors
from substyle.engine import cli, observability
from substyle.engine.commands import metrics

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None, reason="needs the extra metrics"
)


def parsed(path: Path) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(path.read_text())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


@needs_library
def test_embed_writes_what_is_done(two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 photographs, one of which is no image, in two variants by two backbones."""
    images = tmp_path / "images"
    images.mkdir()
    for photograph in sorted(two_classes.rglob("*.jpg"))[:9]:
        (images / photograph.name).write_bytes(photograph.read_bytes())
    (images / "bad.jpg").write_bytes(b"no image")
    path, seen = tmp_path / "substyle.prom", list[dict[tuple[str, ...], float]]()
    monkeypatch.setattr(observability, "_REPORT_EVERY_S", 0.0)
    advance = observability.ProgressBar.advance

    def advanced(bar: observability.ProgressBar, count: int = 1) -> None:
        advance(bar, count)
        seen.append(parsed(path))

    monkeypatch.setattr(observability.ProgressBar, "advance", advanced)
    began = time.time()
    words = ["embed", str(images), "--store", str(tmp_path / "s.zarr"), "--quiet", "--metrics", str(path)]
    words += ["--backbone", "control:pixels", "--backbone", "control:statistics", "--suite", "identity,grayscale"]
    assert cli.main([*words, *setting("canvas=64")]) == 0
    found = parsed(path)
    assert began - 1 < found["substyle_start_time_seconds",] < time.time()
    assert found["substyle_running",] == 0
    assert [each["substyle_running",] for each in seen] == [1] * len(seen)
    for name in ("done", "total"):
        assert found[f"substyle_{name}", "embed", "embeddings"] == 10 * 2 * 2
        assert found[f"substyle_{name}", "embed", "photographs"] == 10
    rate = found["substyle_per_second", "embed", "photographs"]
    assert found["substyle_per_second", "embed", "embeddings"] == pytest.approx(4 * rate)
    assert rate > 0
    assert found["substyle_left_seconds", "embed"] == 0
    assert found["substyle_quarantined", "embed"] == 1
    during = [each for each in seen if 0 < each.get(("substyle_done", "embed", "embeddings"), 0) < 40]
    for each in during:
        done, per_second = (each[f"substyle_{name}", "embed", "embeddings"] for name in ("done", "per_second"))
        assert each["substyle_done", "embed", "photographs"] == pytest.approx(done / 4)
        assert each["substyle_left_seconds", "embed"] == pytest.approx((40 - done) / per_second)
    assert during
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert not list(tmp_path.glob("*.tmp"))


@needs_library
def test_a_run_that_fails_is_not_running(tmp_path: Path) -> None:
    path = tmp_path / "substyle.prom"
    with pytest.raises(KeyError), metrics.exported(path):
        raise KeyError(parsed(path)["substyle_running",])
    assert parsed(path)["substyle_running",] == 0


@needs_library
def test_a_file_that_cannot_be_written_is_refused_first_and_later_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError), metrics.exported(tmp_path / "none" / "a.prom"):
        pytest.fail("begins nothing")
    folder = tmp_path / "folder"
    folder.mkdir()
    with metrics.exported(folder / "a.prom"):
        (folder / "a.prom").unlink()
        folder.rmdir()
        with observability.stage("embed", 2, "embeddings", quiet=True) as bar:
            bar.advance()
    assert "No such file or directory; the run goes on" in capsys.readouterr().err


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:  # noqa: ANN401
        raise ImportError

    monkeypatch.setattr(errors, "importlib", SimpleNamespace(import_module=absent))
    said = pytest.raises(errors.MissingError, match=r"pip install 'substyle\[metrics\]'")
    with said, metrics.exported(tmp_path / "a.prom"):
        pytest.fail("begins nothing")
