"""The comparison of two versions finds what differs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import golden
from benchmarks.golden import compare
from PIL import Image


def recorded(out: Path, digest: str = "0123456789abcdef", **changed: Any) -> Path:  # noqa: ANN401
    """A record with a trained network, whose name has a digest."""
    trained = f"adapt:a/{digest}.safetensors"
    for folder, name in (("variants", "jpeg"), ("embeddings", f"{trained}-{digest[:8]}".replace("/", "_"))):
        (out / folder / name).mkdir(parents=True)
    picture = np.full((4, 4, 3), changed.get("pixel", 7), np.uint8)
    Image.fromarray(picture).save(out / "variants" / "jpeg" / "a.png")
    np.save(next((out / "embeddings").iterdir()) / "jpeg.npy", np.full(3, changed.get("embedding", 0.5)))
    scores = {"accuracy": changed.get("accuracy", 0.5), "seconds": digest, "by": [1, 2, changed.get("last", 3)]}
    scores["by_transformation"] = {"identity": changed.get("original", 0.9)}
    results = {"created": digest, "backbones": {trained: {"fine": scores}}}
    (out / "results.json").write_text(json.dumps(results))
    page = f"<style>p {digest}</style><p>{changed.get('text', 'It knows.')}</p><p>12.5</p><p>{trained}</p><b>3.1 s</b>"
    (out / "report.html").write_text(page)
    return out


def test_equal_records_but_for_times_and_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(recorded(tmp_path / "a"), recorded(tmp_path / "b", digest="fedcba9876543210")) == []
    assert capsys.readouterr().out.count(" equal") == 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"pixel": 8}, "variants: variants/jpeg/a.png"),
        ({"embedding": 0.6}, "embeddings: "),
        ({"accuracy": 0.51}, "/fine/accuracy: 0.5 → 0.51"),
        ({"last": 4}, "/fine/by/2: 3 → 4"),
        ({"original": 0.8}, "/by_transformation/identity: 0.9 → 0.8"),
        ({"text": "It does not."}, "report.html: It does not."),
        ({"text": "It is the network's min."}, "report.html: It is the network's min."),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    found = compare(recorded(tmp_path / "a"), recorded(tmp_path / "b", **changed))
    assert any(named in line for line in found)
    assert len(found) <= 2


def test_fields_that_moved_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = recorded(tmp_path / "a"), recorded(tmp_path / "b")
    text = (new / "results.json").read_text().replace('"fine"', '"transformation"')
    (new / "results.json").write_text(text)
    assert len(compare(old, new)) == 10
    path = "/backbones/adapt:a/.safetensors/"
    monkeypatch.setitem(golden.RENAMED, f"{path}fine", f"{path}transformation")
    assert compare(old, new) == []
