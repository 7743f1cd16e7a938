"""Checkpoints as training loops save them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from substyle.engine.backbones.weights import WeightsError, read_checkpoint


@pytest.mark.parametrize(
    "keys",
    [(), ("state_dict",), ("model",), ("model_state_dict",), ("teacher",), ("model", "module"), ("net", "encoder")],
)
def test_weights_are_found_in_the_dictionaries_of_training_loops(tmp_path: Path, keys: tuple[str, ...]) -> None:
    saved: dict[str, object] = {"module.a.weight": torch.ones(2)}
    for key in reversed(keys):
        saved = {key: saved, "epoch": 3}
    torch.save(saved, tmp_path / "x.pt")
    state = read_checkpoint("b", tmp_path / "x.pt")
    assert list(state) == ["a.weight"]


def test_other_dictionaries_are_refused(tmp_path: Path) -> None:
    torch.save({"weights_of_mine": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"not a dictionary of tensors.*weights_of_mine \(dict\)"):
        read_checkpoint("b", tmp_path / "x.pt")
