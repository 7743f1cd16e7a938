"""Fixtures of other tests."""

from __future__ import annotations

from tests.engine.conftest import figures
from tests.engine.probes.conftest import make_table, quick
from tests.scenarios.conftest import empty, pages, processes, scene

__all__ = ["empty", "figures", "make_table", "pages", "processes", "quick", "scene"]
