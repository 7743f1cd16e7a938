"""Fixtures of other tests."""

from __future__ import annotations

from tests.engine.conftest import figures
from tests.engine.report.conftest import fake

__all__ = ["fake", "figures"]
