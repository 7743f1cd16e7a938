"""Errors survive pickling, as between worker processes, and name the first of many."""

from __future__ import annotations

import pickle

from substyle.errors import ConfigError, SubstyleError, abbreviated


def test_errors_travel() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("probes.batch", 0, "1 or more")))
    assert isinstance(error, ConfigError)
    assert (error.field, error.given, error.allowed) == ("probes.batch", 0, "1 or more")
    assert str(error) == "probes.batch: got 0; allowed: 1 or more"
    assert str(pickle.loads(pickle.dumps(SubstyleError("why")))) == "why"


def test_the_first_of_many_are_named() -> None:
    assert abbreviated(["a", "b"], 2) == "a, b"
    assert abbreviated({"a": 1, "b": 2, "c": 3}, 2) == "a, b and 1 more"
    assert abbreviated(["a"], 2, total=1_234) == "a and 1,233 more"
    assert abbreviated(["a", "b", "c"], 2, total=5) == "a, b and 3 more"
    assert abbreviated([]) == ""
