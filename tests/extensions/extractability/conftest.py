"""Fixtures of tests of probes and of the report."""

from __future__ import annotations

from tests.engine.conftest import figures
from tests.engine.probes.conftest import make_table, quick
from tests.engine.report.conftest import fake

__all__ = ["fake", "figures", "make_table", "quick"]
