"""Fixtures of tests of probes and of the report."""

from __future__ import annotations

from tests.engine.conftest import figures
from tests.engine.probes.conftest import make_table, quick
from tests.scenarios.conftest import empty, scene

__all__ = ["empty", "figures", "make_table", "quick", "scene"]
