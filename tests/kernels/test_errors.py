"""Errors survive pickling, as between worker processes."""

from __future__ import annotations

import pickle

from substyle.kernels.errors import ConfigError, SubstyleError


def test_errors_travel() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("probes.batch", 0, "1 or more")))
    assert isinstance(error, ConfigError)
    assert (error.field, error.given, error.allowed) == ("probes.batch", 0, "1 or more")
    assert str(error) == "probes.batch: got 0; allowed: 1 or more"
    assert str(pickle.loads(pickle.dumps(SubstyleError("why")))) == "why"
