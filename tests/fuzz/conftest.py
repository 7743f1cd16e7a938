"""What every target shares: how many cases, and one small store."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from tests.conftest import SLOW_PART
from tests.fuzz.stores import Sound, make

FEW, PART, MANY = 40, 500, int(os.environ.get("FUZZ_CASES", "1000"))


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def cases(request: pytest.FixtureRequest) -> int:
    """How many cases of a property are made up."""
    number: int = request.param
    # where only a part of the slow tests runs, more of them get their turn
    return min(number, PART) if request.config.getoption(SLOW_PART) is not None else number


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """The store that `sound` is a copy of."""
    return make(tmp_path_factory.mktemp("sound") / "s.zarr")


@pytest.fixture
def sound(made: Sound, tmp_path: Path) -> Sound:
    """A store for one test, whose files may be spoilt."""
    shutil.copytree(made.path, tmp_path / "s.zarr")
    return dataclasses.replace(made, path=tmp_path / "s.zarr")
