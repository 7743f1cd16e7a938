"""Attacks on small random networks with a class probe, and detectors compared with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from tests.conftest import photograph
from tests.engine.embedding.test_preflight import count

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.extensions.attack import detection as detection_module
from substyle.engine.extensions.attack.config import ATTACKS, AttackConfig
from substyle.engine.extensions.attack.craft import Victim, Watched, craft, distances, squeeze
from substyle.engine.extensions.attack.detection import FALSE_POSITIVES, detection, fit_all, fit_detector, mahalanobis
from substyle.engine.extensions.attack.stage import check_attack
from substyle.engine.probes.checkpoint import Probe
from substyle.errors import ConfigError, SubstyleError
from substyle.kernels.probe_heads import Heads

SIDE, BATCH = 64, 6
CONFIG = AttackConfig(attacks=ATTACKS, steps=5)
KEYS = [f"{n}.jpg" for n in range(BATCH)]


@pytest.fixture(scope="module", params=["test_vit", "test_resnet"])
def victim(request: pytest.FixtureRequest) -> Victim:
    """A random network and a linear probe of two seeds and three classes."""
    pytest.importorskip("torchattack")
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


@pytest.mark.parametrize("name", ["fgsm@2", "pgd@8", "pgd_l2", "transfer@4", "patch"])
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
    pytest.importorskip("torchattack")
    config = AttackConfig(**{"attacks": ("transfer",), **attack})
    study = Study("s", tuple(BackboneChoice(name) for name in names.split()))
    counts = count({"a": {"train": 10, "test": 10}, "b": {"train": 10, "test": 10}})
    if field is None:
        check_attack(study, config, counts)
        return
    with pytest.raises(ConfigError, match=named) as caught:
        check_attack(study, config, counts)
    assert caught.value.field == f"attack.{field}"


@pytest.mark.parametrize("levels", [None, 4])
def test_auroc_and_tpr_are_those_of_scikit_learn(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    original_N, attacked_N = rng.normal(size=90), rng.normal(1.0, 1.5, 90)
    if levels:  # ties
        original_N, attacked_N = np.round(original_N * levels) / levels, np.round(attacked_N * levels) / levels
    counted_N = rng.random(90) < 0.6
    found = detection(attacked_N, original_N, counted_N, np.arange(90), seed=0)
    assert found is not None
    truth = np.r_[np.ones(counted_N.sum()), np.zeros(90)]
    score = np.r_[attacked_N[counted_N], original_N]
    assert found["auroc"].value == pytest.approx(roc_auc_score(truth, score))
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert found["tpr"].value == pytest.approx(true[false <= FALSE_POSITIVES].max())
    low, high = found["auroc"].ci95 or [0, 0]
    assert low < found["auroc"].value < high
    assert detection(attacked_N, original_N, np.arange(90) < 4, np.arange(90), seed=0) is None


def test_scores_that_are_nan_are_refused() -> None:
    """They would rank below every photograph, as not attacked."""
    original_N, attacked_N, counted_N = np.zeros(9), np.ones(9), np.arange(9) > 0
    attacked_N[0] = np.nan  # does not count
    found = detection(attacked_N, original_N, counted_N, np.arange(9), seed=0)
    assert found is not None
    assert found["auroc"].value == 1.0
    attacked_N[7] = original_N[2] = np.nan
    with pytest.raises(SubstyleError, match="2 of 9 photographs are NaN: rows 2, 7"):
        detection(attacked_N, original_N, counted_N, np.arange(9), seed=0)


def test_the_detector_of_separable_pictures_is_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_module, "CS", (1.0,))
    rng = np.random.default_rng(0)
    original_ND = rng.normal(size=(40, 300))
    attacked_ND = original_ND + 0.3 * rng.normal(size=300)
    found = fit_detector(original_ND, [attacked_ND], 0)
    x_RD = np.concatenate([original_ND, attacked_ND])
    scaled_RD = (x_RD - x_RD.mean(0)) / x_RD.std(0)
    exact = LogisticRegression(tol=1e-10, max_iter=100_000).fit(scaled_RD, np.arange(80) >= 40)
    assert found.converged
    np.testing.assert_allclose(found(x_RD), exact.decision_function(scaled_RD), atol=0.01)


def test_detectors_leave_out_radii_and_attacks() -> None:
    original_ND = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    moved = {"fgsm@1": original_ND + 1, "fgsm@8": original_ND + 2, "patch": original_ND + 3}
    found = fit_all(original_ND, moved, 0)
    assert set(found) == {"", "fgsm@1", "fgsm@8", "fgsm", "patch"}
    assert all(detector.converged for detector in found.values())
    np.testing.assert_allclose(found["fgsm"].weight_D, fit_detector(original_ND, [moved["patch"]], 0).weight_D)
    assert set(fit_all(original_ND, {"patch": original_ND + 1}, 0)) == {""}


def test_mahalanobis_is_the_smallest_distance_to_a_class() -> None:
    rng = np.random.default_rng(3)
    x_ND, label_N = rng.normal(size=(50, 4)), np.arange(50) % 2
    x_ND[label_N == 1] += 5
    score = mahalanobis(x_ND, label_N)
    centred = np.concatenate([x_ND[label_N == c] - x_ND[label_N == c].mean(0) for c in (0, 1)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    far = x_ND[:3] - x_ND[label_N == 0].mean(0), x_ND[:3] - x_ND[label_N == 1].mean(0)
    expected = np.minimum(*(np.einsum("nd,de,ne->n", d, np.linalg.inv(covariance), d) for d in far))
    np.testing.assert_allclose(score(x_ND[:3]), expected)
