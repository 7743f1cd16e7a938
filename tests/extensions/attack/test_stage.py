"""Attacks on backbones with class probes: storage, staleness, detection and errors, with a small random network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import jpeg, photograph
from tests.staged import probe, run_of

from substyle.engine.config import EmbedConfig
from substyle.engine.extensions.attack.config import AttackConfig
from substyle.engine.extensions.attack.stage import STAGE
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages.execution import computed
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_table, open_tables
from substyle.engine.study import outputs
from substyle.engine.study.api import embed

pytest.importorskip("torchattack")
pytestmark = pytest.mark.slow  # compiles two networks and attacks them
VIT, RESNET = BOTH = "control:random:test_vit", "control:random:test_resnet"
CONFIG = AttackConfig(attacks=("fgsm", "pgd", "pgd_l2", "transfer", "patch"), epsilons=(1, 48), steps=2)


@pytest.fixture(scope="module", autouse=True)
def trained() -> Iterator[None]:
    """The random networks count as trained ones, through which others are attacked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("substyle.engine.extensions.attack.stage.attackable", lambda store, names: names)
        yield


def attack(store: EmbeddingStore, out: Path, config: AttackConfig, probed: Sequence[str] = BOTH) -> dict[str, Any]:
    run = run_of(store, out, attack=dataclasses.replace(config, backbones=(VIT,)))
    run.results["probes"] = dict.fromkeys(probed)
    return computed(STAGE, run)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 photographs of two classes with splits."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(28):
        split = "train" if i < 12 else "val" if i < 16 else "test"
        folder = root / split / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(photograph(i)))
    return root


@pytest.fixture(scope="module")
def probed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingStore, Path]:
    """A store of two random networks, and the folder of their probes."""
    out = tmp_path_factory.mktemp("out")
    given: dict[str, Any] = {"transformations": "identity,jpeg,grayscale", "canvas": 64}
    store = embed(photographs, out / "store.zarr", [VIT, RESNET], config=EmbedConfig(precision="fp32"), **given)
    outputs.claim(out, store.path, store.uuid)
    config = ProbeConfig(
        tasks=("transformation", "class"),
        heads=("linear",),
        bootstrap=100,
        resamples=0,
        redraws=0,
        expert=ExpertConfig(equal_width=0),
    )
    probe(store, out, config)
    return store, out


@pytest.fixture(scope="module")
def attacked(probed: tuple[EmbeddingStore, Path]) -> dict[str, Any]:
    store, out = probed
    return attack(store, out, CONFIG)[VIT]


def test_attacks_lower_accuracy_within_their_radius(attacked: dict[str, Any]) -> None:
    attacks = attacked["attacks"]
    assert list(attacks) == [
        *("fgsm@1", "fgsm@48", "pgd@1", "pgd@48", "pgd_l2", "transfer@48", "patch", "adaptive@48", "noise@48")
    ]
    for name, found in attacks.items():
        level = name.partition("@")[2]
        assert found["linf"] <= int(level or 255), name
        assert found["accuracy"] == pytest.approx(attacked["accuracy"] * (1 - found["success"]["value"]))
        assert found["succeeded"] == round(found["success"]["value"] * attacked["photographs"]["attacked"])
    assert attacks["pgd_l2"]["l2"] <= 3.0 * 255
    success = {name: found["success"]["value"] for name, found in attacks.items()}
    assert success["pgd@48"] > success["noise@48"]
    assert success["pgd@48"] >= success["pgd@1"]
    assert attacked["surrogate"] == RESNET
    assert sum(attacked["named"].values()) == pytest.approx(1.0)


def test_detectors_are_scored_on_attacks_that_succeed(attacked: dict[str, Any]) -> None:
    for name, found in attacked["attacks"].items():
        scores = found["detection"]
        assert ("other_radii" in scores) == name.startswith(("fgsm", "pgd@")), name
        assert ("other_attacks" in scores) == (not name.startswith(("adaptive", "noise"))), name
        few = found["succeeded"] < 5 and not name.startswith("noise")
        assert all((score is None) == few for score in scores.values()), name
        for score in filter(None, scores.values()):
            auroc = score["auroc"]
            assert 0 <= auroc["low"] <= auroc["value"] <= auroc["high"] <= 1
    found = attacked["attacks"]["pgd@48"]["detection"]
    assert {"transformation", "detector", "mahalanobis", "knn", "squeezing"} <= found.keys()


def test_variants_are_a_store(probed: tuple[EmbeddingStore, Path], attacked: dict[str, Any]) -> None:
    store, out = probed
    folder = out / "attack" / store.backbone(VIT).slug
    variants = EmbeddingStore.open(folder / "variants.zarr")
    original, adversarial = (open_table(variants, VIT, [name]) for name in ("identity", "pgd@48"))
    whole = open_table(store, VIT, ["identity"])
    assert set(original.keys) <= set(whole.keys)
    assert len(original.rows(2)) == attacked["photographs"]["attacked"]
    where = [whole.keys.index(key) for key in original.keys]
    np.testing.assert_array_equal(original.split_N, whole.split_N[where])
    assert [original.class_names[n] for n in original.label_N] == [whole.class_names[n] for n in whole.label_N[where]]
    everything = np.arange(len(original.keys))
    own, stored = original.take(0, everything), whole.take(0, np.array(where))
    np.testing.assert_allclose(own.astype(np.float32), stored.astype(np.float32), atol=0.02)
    assert not np.array_equal(adversarial.take(0, everything), own)
    (only,) = open_tables(variants, [VIT], ["identity", "adaptive@48"])
    assert set(only.split_N.tolist()) == {2}  # only test photographs are attacked adaptively
