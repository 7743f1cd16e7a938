"""The check of GPU claims about pixels, in a tiny form on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.gpu_check import (
    pixels,
    rows,
)
from benchmarks.gpu_check.bench import TINY, Bench
from benchmarks.gpu_check.rows import FAILED, PASSED, SKIPPED
from tests.benchmarks.conftest import Run

from substyle.pipelines.decode import Decoder
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_wrong_pixels_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transformation that moves by two levels, and a decoder that accepts everything, on the second device."""
    right_maker = pixels._maker

    def maker(bench: Bench, names: tuple[str, ...], batch: int, device: str, made: Any = None) -> Any:  # noqa: ANN401
        return right_maker(bench, names, batch, device, made) if device == "cpu" else wrong(names)

    def wrong(names: tuple[str, ...]) -> Any:  # noqa: ANN401
        def variants(canvas: torch.Tensor, keys: list[str], test_B: Any = None) -> Iterator[Any]:  # noqa: ANN401
            for variant in right_maker(Bench(CPU, TINY), names, len(keys), "cpu")(canvas, keys, test_B):
                yield replace(variant, pixels_BSSC=variant.pixels_BSSC ^ (2 if variant.name == "swirl" else 0))

        return variants

    def decoders(bench: Bench, batch: int) -> Any:  # noqa: ANN401
        right = Decoder(TINY.canvas, batch, 1)
        return [right, lambda blobs: replace(right(blobs), reasons=[None] * len(blobs))]

    monkeypatch.setattr(pixels, "_device", lambda bench: "another")
    monkeypatch.setattr(pixels, "_maker", maker)
    monkeypatch.setattr(pixels, "_decoders", decoders)
    monkeypatch.setattr(pixels, "_decoding", lambda bench: rows.skipped("pixels", "decoding", "not here"))
    monkeypatch.setattr(pixels, "_rate", lambda *given: rows.skipped("pixels", "rate", "not here"))
    code, data = run("--only", "pixels")
    assert code == 1
    failed = [row["name"] for row in data["rows"] if row["status"] == FAILED]
    assert failed == ["quarantine of damaged files", "swirl"]


def test_without_dali_what_needs_it_is_skipped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(
        pixels, "_rate", lambda bench, title, names: rows.correctness("pixels", f"rate of {title}", True)
    )
    code, data = run("--only", "pixels")
    assert code == 0
    reasons = {row["name"]: row["text"] for row in data["rows"] if row["status"] == SKIPPED}
    assert {"canvas", "decoding", "gaussian_blur", "pixelate", "low_resolution"} <= set(reasons)
    assert all("not installed" in text and "nvidia.dali" in text for text in reasons.values())
    passed = {row["name"]: row["facts"].get("reference") for row in data["rows"] if row["status"] == PASSED}
    by_dali = {name for name in suite("substance31") if base.get(name).by_dali(gpu=True)}
    assert len(by_dali) == 16
    assert by_dali <= set(reasons)
    assert passed["jpeg"] == "the GPU's definition in torch on a CPU"
