"""Networks that a function of the user returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from onnx.reference import ReferenceEvaluator

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import export
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.backbones.spec import Backbone
from substyle.engine.study.file import load_study
from substyle.errors import ConfigError
from substyle.pipelines.plugins import ALLOW

MODULE = """
import torch
from torch import nn

GAIN = 2.0
FACTS = {"side": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x):
        return GAIN * x.mean((2, 3)) * self.weight


def encoder():
    return Net(), FACTS


def traced():
    return torch.jit.trace(Net(), torch.zeros(2, 3, 16, 16)), FACTS


def nothing():
    return None


def fails():
    raise RuntimeError("no weights")


def flat():
    return nn.Identity(), FACTS


number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_networks_of_a_test.py"
    path.write_text(MODULE)
    before = list(sys.path)
    yield path
    assert sys.path == before
    sys.modules.pop(path.stem, None)


def load(function: str) -> Backbone:
    return registry.load(f"python:my_networks_of_a_test:{function}", LoadContext(16, 2, 0))


@pytest.mark.usefixtures("module")
def test_a_network_and_its_preprocessing() -> None:
    backbone = load("encoder")
    canvas = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    expected = 2.0 * ((canvas.float() / 255 - 0.5) / 0.25).mean((1, 2)) * torch.arange(3.0)
    assert backbone.module is not None
    torch.testing.assert_close(backbone.module(canvas), expected)
    spec = backbone.spec
    assert (spec.dim, spec.input_side, spec.std, spec.parameters) == (3, 16, (0.25,) * 3, 3)


@pytest.mark.usefixtures("module")
def test_a_network_of_torchscript() -> None:
    canvas = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    module, expected = load("traced").module, load("encoder").module
    assert module is not None
    assert expected is not None
    torch.testing.assert_close(module(canvas), expected(canvas))
    graph = ReferenceEvaluator(export(module, canvas=16, batch=2))
    (found,) = graph.run(None, {"canvas": canvas.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(canvas), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:my_networks_of_a_test:nothing", "torch module"),
        ("python:my_networks_of_a_test:fails", "RuntimeError: no weights"),
        ("python:my_networks_of_a_test:flat", "one vector per image"),
        ("python:my_networks_of_a_test:number", "no function"),
        ("python:my_networks_of_a_test:absent", "AttributeError"),
        ("python:my_networks_of_a_test", "<module>:<function>"),
        ("python:not_there_at_all:f", "ModuleNotFoundError"),
    ],
)
def test_other_functions_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        registry.load(name, LoadContext(16, 2, 0))


def test_a_file_s_name_runs_no_code(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.write_text(f"raise SystemExit({str(module)!r})\n")
    name = "python:my_networks_of_a_test:encoder"
    monkeypatch.delenv(ALLOW, raising=False)
    context = LoadContext(16, 2, 0).of_a_file
    for refused in (lambda: registry.load(name, context), lambda: registry.identity(name, context)):
        with pytest.raises(ConfigError, match="--allow-plugins"):
            refused()
    study = module.with_name("study.toml")
    study.write_text(f'name = "s"\nsuite = "identity,jpeg"\nbackbones = ["{name}"]\n')
    with pytest.raises(ConfigError, match="--allow-plugins") as caught:
        load_study(study)
    assert caught.value.field == "backbones"
    assert load_study(study, allow_plugins=True).backbones[0].name == name
    assert module.stem not in sys.modules
    monkeypatch.setenv(ALLOW, "1")
    module.write_text(MODULE)
    assert registry.load(name, LoadContext(16, 2, 0).of_a_file).spec.dim == 3
