"""The harness itself."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from tests.crash.processes import Warm


class Numbered(Warm):
    """Starts nothing: every process has the same number and has ended as it is told."""

    def __init__(self, codes: Sequence[int]) -> None:
        super().__init__(socket.socket())
        self.codes = list(codes)

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        return {"code": self.codes.pop(0)} if "poll" in request else {"pid": 7}


def test_a_process_number_that_comes_again() -> None:
    warm = Numbered([-9, 0])
    assert [warm(["embed"]).wait().code for _ in range(2)] == [-9, 0]
