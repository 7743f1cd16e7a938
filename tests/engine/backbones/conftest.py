"""Exports that tests of backbones share."""

from __future__ import annotations

import itertools

import onnx
import pytest
from torch import nn

from substyle.engine.backbones import export as exporter
from substyle.engine.backbones import lazy
from substyle.engine.backbones.spec import tensors_hash

_exported: dict[tuple[str, str, int, int, str], bytes] = {}


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export equal modules once for all tests that use this: an export takes a second.

    Equal are modules that print the same layers and have the same tensors, as plain layers of torch do.
    """
    real = exporter.export

    def once(module: nn.Module, *, canvas: int, batch: int, output: str = "embedding") -> onnx.ModelProto:
        tensors = tensors_hash(dict(itertools.chain(module.named_parameters(), module.named_buffers())))
        key = (repr(module), tensors, canvas, batch, output)
        if key not in _exported:
            _exported[key] = real(module, canvas=canvas, batch=batch, output=output).SerializeToString()
        return onnx.load_from_string(_exported[key])

    for module in (exporter, lazy):
        monkeypatch.setattr(module, "export", once)
