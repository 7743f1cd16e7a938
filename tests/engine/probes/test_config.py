from __future__ import annotations

from typing import Any

import pytest

from substyle.engine.probes.config import ProbeConfig
from substyle.kernels.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tasks", ("fine", "rough")), ("tasks", ()), ("tasks", "fine"), ("tasks", ("fine", "fine")), ("tasks", ([],)),
        ("heads", ("tree",)), ("learning_rates", (0.0,)), ("learning_rates", ()), ("learning_rates", ("1e-3",)),
        ("learning_rates", (1e-3, 1e-3)), ("learning_rates", (float("nan"),)), ("learning_rates", 1e-3),
        ("mlp_learning_rates", (11.0,)), ("weight_decays", (-1.0,)), ("widths", (0,)), ("widths", (64.0,)),
        ("lambdas", (1.0,)), ("halving", (0.5, 0.25)), ("halving", (0.5, 0.5)), ("seeds", 0), ("seeds", True),
        ("seeds", 1.0), ("batch", 1), ("steps", 0), ("dropout", 1.0), ("dropout", "0.2"), ("sampling", "grid"),
        ("precision", "fp64"), ("rotate", 1), ("threads", -1), ("bootstrap", 10), ("seed", -1),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(field: str, value: object) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError) as caught:
        ProbeConfig(**changes)
    assert caught.value.field == f"probes.{field}"
    assert caught.value.given == value
    assert caught.value.allowed


def test_defaults_are_valid_and_lists_become_tuples() -> None:
    lists: dict[str, Any] = {"tasks": ["fine"], "widths": [8, 16], "halving": []}
    config = ProbeConfig(**lists)
    assert config.tasks == ("fine",)
    assert config.widths == (8, 16)
    assert config.halving == ()
    assert hash(config) == hash(ProbeConfig(tasks=("fine",), widths=(8, 16), halving=()))


def test_the_rotation_needs_the_coarse_task_and_one_of_the_heads() -> None:
    with pytest.raises(ConfigError, match=r"probes\.rotate"):
        ProbeConfig(tasks=("fine",), rotate=True)
    with pytest.raises(ConfigError, match=r"probes\.rotate_heads"):
        ProbeConfig(heads=("linear",), rotate=True, rotate_heads=("mlp",))
