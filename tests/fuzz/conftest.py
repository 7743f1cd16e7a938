"""How many cases of a property are made up."""

from __future__ import annotations

import os

import pytest

FEW, MANY = 40, int(os.environ.get("FUZZ_CASES", "1000"))


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def cases(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number
