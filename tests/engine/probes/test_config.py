from __future__ import annotations

from typing import Any

import pytest

from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tasks", ("transformation", "rough")), ("tasks", ()), ("tasks", "transformation"),
        ("tasks", ("kind", "kind")), ("tasks", ([],)),
        ("heads", ("tree",)), ("Cs", (0.0,)), ("Cs", (1e-9,)), ("Cs", (1e7,)), ("Cs", ()), ("Cs", ("1e-3",)),
        ("Cs", (1e-3, 1e-3)), ("Cs", (float("nan"),)), ("Cs", 1e-3), ("tolerance", 0.0), ("tolerance", "1e-4"),
        ("tolerance", True), ("mlp_learning_rates", (11.0,)), ("multitask_learning_rates", (0.0,)),
        ("mlp_weight_decays", (-1.0,)), ("widths", (0,)), ("widths", (64.0,)),
        ("resamples", -1), ("resamples", 65), ("mlp_resamples", True), ("resample_by", "class"),
        ("redraws", -1), ("equal_width", 1.0), ("passes", 0), ("doublings", 0), ("batch", 1), ("mlp_steps", 0),
        ("multitask_steps", 0.5), ("dropout", 1.0), ("dropout", "0.2"), ("precision", "fp64"),
        ("rotate", 1), ("threads", -1), ("bootstrap", 10), ("seed", -1), ("seed", 2**63),
        ("tolerance", float("inf")), ("Cs", (True,)), ("device", "gpu"), ("device", None),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(field: str, value: object) -> None:
    changes: dict[str, Any] = {field: value}
    kind, table = (ExpertConfig, "probes.expert.") if hasattr(ExpertConfig, field) else (ProbeConfig, "probes.")
    with pytest.raises(ConfigError) as caught:
        kind(**changes)
    name, _, index = caught.value.field.removesuffix("]").partition("[")
    assert name == (field if caught.value.field == "device" else f"{table}{field}")
    given = value[int(index)] if index and isinstance(value, tuple) else value  # one of a list is named by its place
    assert caught.value.given is given
    assert caught.value.allowed


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        ProbeConfig(redraw=1)  # type: ignore[call-arg]
    assert (caught.value.field, caught.value.given) == ("probes.redraw", 1)
    assert "redraws" in caught.value.allowed


def test_defaults_are_valid_and_lists_become_tuples() -> None:
    lists: dict[str, Any] = {"tasks": ["transformation"], "widths": [8, 16], "Cs": [1, 0.5]}
    config = ProbeConfig(**lists)
    assert config.tasks == ("transformation",)
    assert config.widths == (8, 16)
    assert config.Cs == (1, 0.5)
    assert hash(config) == hash(ProbeConfig(tasks=("transformation",), widths=(8, 16), Cs=(1, 0.5)))
