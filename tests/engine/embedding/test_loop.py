from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.embedding.test_run import PIXELS, plan

from substyle.engine.embedding.loop import Loop
from substyle.engine.embedding.run import embed

_PATIENCE_S = 60.0


def test_the_next_batch_is_decoded_while_variants_are_rendered(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But no further one: canvases take memory. Ten batches of four."""
    decoded, rendered = threading.Semaphore(0), list[int]()
    decode, batch = Loop._decoded, Loop._batch
    calls = list[int]()

    def counted(self: Loop, data: Any) -> Any:  # noqa: ANN401
        found = decode(self, data)
        calls.append(len(rendered))
        decoded.release()
        return found

    def waiting(self: Loop, *given: Any) -> None:  # noqa: ANN401
        if 1 <= len(rendered) < 9:  # the first two may be decoded in turn
            for _ in range(len(rendered) + 2 - waiting_for[0]):
                assert decoded.acquire(timeout=_PATIENCE_S)
            waiting_for[0] = len(rendered) + 2
        batch(self, *given)
        rendered.append(len(calls))

    waiting_for = [0]
    monkeypatch.setattr(Loop, "_decoded", counted)
    monkeypatch.setattr(Loop, "_batch", waiting)
    embed(plan(two_classes, tmp_path / "s.zarr"), [PIXELS], quiet=True)
    assert len(rendered) == len(calls) == 10
    assert all(before + 2 >= i + 1 for i, before in enumerate(calls))
