"""Attacks on small random networks with a class probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from tests.conftest import photograph
from tests.engine.embedding.test_preflight import count

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.extensions.attack.config import ATTACKS, AttackConfig
from substyle.engine.extensions.attack.craft import Victim, Watched, craft, distances, squeeze
from substyle.engine.extensions.attack.stage import check_attack
from substyle.engine.probes.checkpoint import Probe
from substyle.errors import ConfigError
from substyle.kernels.probe_heads import Heads

pytest.importorskip("torchattack")
SIDE, BATCH = 64, 6
CONFIG = AttackConfig(attacks=ATTACKS, steps=5)
KEYS = [f"{n}.jpg" for n in range(BATCH)]


@pytest.fixture(scope="module", params=["test_vit", "test_resnet"])
def victim(request: pytest.FixtureRequest) -> Victim:
    """A random network and a linear probe of two seeds and three classes."""
    torch.manual_seed(0)
    network = timm.create_model(request.param, num_classes=0, **({"img_size": SIDE} if "vit" in request.param else {}))
    module = Preprocessed(network, canvas=SIDE, side=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    heads = Heads(torch.randn(2, 3, network.num_features), torch.zeros(2, 3))
    labels = [{"name": "class", "labels": ["a", "b", "c"]}]
    return Victim(request.param, module, Probe(heads, {"canvas": SIDE, "dim": network.num_features, "outputs": labels}))


@pytest.fixture(scope="module")
def canvas_BSSC() -> np.ndarray:
    return np.stack([np.asarray(photograph(n, SIDE, SIDE)) for n in range(BATCH)])


def log_probability(victim: Victim, canvas_BSSC: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = victim(torch.from_numpy(canvas_BSSC).permute(0, 3, 1, 2).float() / 255)
    return found


@pytest.mark.parametrize("name", ["fgsm@2", "pgd@2", "pgd@8", "pgd_l2", "transfer@4", "patch"])
def test_an_attack_lowers_the_probability_of_the_class_within_its_radius(
    name: str, victim: Victim, canvas_BSSC: np.ndarray
) -> None:
    before = log_probability(victim, canvas_BSSC)
    label_B = before.argmax(1).numpy()
    made = craft(name, victim, canvas_BSSC, label_B, KEYS, CONFIG)
    assert made.dtype == np.uint8
    assert made.shape == canvas_BSSC.shape
    index = torch.from_numpy(label_B)[:, None]
    change = log_probability(victim, made).gather(1, index) - before.gather(1, index)
    assert float(change.mean()) < 0
    linf, l2 = distances(canvas_BSSC, made)
    if name == "pgd_l2":
        assert 0 < l2.max() <= 255 * CONFIG.l2
    elif name == "patch":
        changed_BSS = (made != canvas_BSSC).any(3)
        size = round(CONFIG.patch * SIDE)
        for changed_SS in changed_BSS:
            for axis in (0, 1):
                where = np.flatnonzero(changed_SS.any(axis))
                assert where[-1] - where[0] < size
    else:
        assert 0 < linf.max() <= int(name.partition("@")[2])
    np.testing.assert_array_equal(made, craft(name, victim, canvas_BSSC, label_B, KEYS, CONFIG))


def test_an_adaptive_attack_lowers_the_detector_too(victim: Victim, canvas_BSSC: np.ndarray) -> None:
    label_B = log_probability(victim, canvas_BSSC).argmax(1).numpy()
    plain = craft("pgd@8", victim, canvas_BSSC, label_B, KEYS, CONFIG)
    weight_D = np.random.default_rng(0).normal(size=victim.weight_SCD.shape[2])
    adaptive = craft("adaptive@8", victim, canvas_BSSC, label_B, KEYS, CONFIG, detector=(weight_D, 0.0))
    watched = Watched(victim, weight_D, 0.0)
    with torch.no_grad():
        logit = [watched(torch.from_numpy(c).permute(0, 3, 1, 2).float() / 255)[:, -1] for c in (plain, adaptive)]
    assert float(logit[1].mean()) < float(logit[0].mean())
    assert distances(canvas_BSSC, adaptive)[0].max() <= 8


def test_squeezing() -> None:
    canvas = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    squeezed = squeeze(canvas)
    assert len(np.unique(squeezed["bits"])) == 32
    assert np.abs(squeezed["bits"].astype(int) - canvas).max() <= 4
    assert squeezed["median"].shape == canvas.shape
    single = np.zeros((1, 8, 8, 3), np.uint8)
    single[0, 4, 4] = 255
    assert squeeze(single)["median"].max() == 0
    assert (squeeze(np.full_like(single, 7))["median"] == 7).all()


def test_what_has_no_gradient_is_refused_by_name() -> None:
    class Rounded(torch.nn.Module):
        def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
            return canvas_BSSC.detach().mean((1, 2))

    probe = Probe(Heads(torch.zeros(1, 2, 3), torch.zeros(1, 2)), {"canvas": 32})
    for module, given in ((None, "a graph"), (Rounded(), "without gradient")):
        with pytest.raises(ConfigError, match=rf"onnx:x\.onnx.*{given}.*torch network"):
            Victim("onnx:x.onnx", module, probe)


@pytest.mark.parametrize(
    ("names", "attack", "field", "named"),
    [
        ("timm:a timm:a@layer=2 control:random:b", {}, "attacks", "'transfer'.*on timm:a$"),
        ("timm:a onnx:b.onnx", {"backbones": ("timm:a", "onnx:b.onnx")}, "backbones", "'onnx:b.onnx'.*torch networks"),
        ("timm:a timm:b", {"photographs": 9}, "attacks", "'9 labelled train photographs'"),
        ("timm:a timm:b", {}, None, ""),
        ("timm:a", {"attacks": ("fgsm", "transfer")}, None, ""),
    ],
)
def test_attacks_that_nothing_can_make(names: str, attack: dict[str, Any], field: str | None, named: str) -> None:
    """They are refused before anything is embedded."""
    config = AttackConfig(**{"attacks": ("transfer",), **attack})
    study = Study("s", tuple(BackboneChoice(name) for name in names.split()))
    counts = count({"a": {"train": 10, "test": 10}, "b": {"train": 10, "test": 10}})
    if field is None:
        check_attack(study, config, counts)
        return
    with pytest.raises(ConfigError, match=named) as caught:
        check_attack(study, config, counts)
    assert caught.value.field == f"attack.{field}"
