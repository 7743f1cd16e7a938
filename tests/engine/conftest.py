"""What tests of several packages of the engine share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from substyle.engine.estimate import networks
from substyle.engine.report import page
from substyle.engine.report.figures import draw_plots

_COUNTED = functools.cache(networks.backbone)


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the work of a backbone once for all tests that use this: it takes most of a plan's time."""
    monkeypatch.setattr(networks, "backbone", _COUNTED)


@pytest.fixture(scope="module", autouse=True)
def page_alone() -> Iterator[None]:
    """Reports are written without plots, which take longer than everything else; see `figures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_plots", lambda blocks, folder: ({}, []))
        yield


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written with plots."""
    monkeypatch.setattr(page, "draw_plots", draw_plots)
