"""Fixtures of other tests."""

from __future__ import annotations

from tests.engine.conftest import figures

__all__ = ["figures"]
