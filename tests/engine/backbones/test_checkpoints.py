"""Checkpoints as training loops save them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from substyle.engine.backbones.weights import WeightsError, read_checkpoint


def test_other_dictionaries_are_refused(tmp_path: Path) -> None:
    torch.save({"weights_of_mine": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"not a dictionary of tensors.*weights_of_mine \(dict\)"):
        read_checkpoint("b", tmp_path / "x.pt")
