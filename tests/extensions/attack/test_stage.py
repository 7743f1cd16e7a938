"""Attacks on backbones with class probes: storage, staleness, detection and errors, with a small random network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import jpeg, photograph, the_json
from tests.staged import probe, run_of

from substyle.engine.cli import main
from substyle.engine.config import EmbedConfig
from substyle.engine.extensions.attack.config import AttackConfig
from substyle.engine.extensions.attack.stage import STAGE
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages.execution import computed, kept
from substyle.engine.stages.stamp import StaleError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table, open_tables
from substyle.engine.study import outputs
from substyle.engine.study.api import embed
from substyle.errors import ConfigError, MissingError, SubstyleError

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


def kept_attacks(
    store: EmbeddingStore, out: Path, tables: Sequence[EmbeddingTable], config: AttackConfig | None = None
) -> dict[str, Any]:
    return kept(STAGE, run_of(store, out, tables, **({"attack": config} if config else {})))


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
    assert {"transformation", "detector", "mahalanobis", "knn", "squeezing"} <= set(
        attacked["attacks"]["pgd@48"]["detection"]
    )


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


def test_results_are_kept_until_their_inputs_change(
    probed: tuple[EmbeddingStore, Path], attacked: dict[str, Any]
) -> None:
    store, out = probed
    tables = [open_table(store, VIT)]
    folder = out / "attack" / store.backbone(VIT).slug
    before = (folder / "complete.json").read_bytes()
    assert attack(store, out, CONFIG) == {VIT: attacked}
    assert (folder / "complete.json").read_bytes() == before
    assert kept_attacks(store, out, tables) == {VIT: attacked}
    with pytest.raises(StaleError, match="other settings: steps"):
        kept_attacks(store, out, tables, dataclasses.replace(CONFIG, steps=4))
    probe = out / "probes" / store.backbone(VIT).slug / "class-linear.safetensors"
    content = probe.read_bytes()
    other = out / "probes" / store.backbone(RESNET).slug / "class-linear.safetensors"
    try:
        probe.write_bytes(other.read_bytes())
        with pytest.raises(StaleError, match="other settings: backbone"):
            kept_attacks(store, out, tables)
    finally:
        probe.write_bytes(content)
    content = (folder / "attack.json").read_bytes()
    (folder / "attack.json").write_text("{}")
    with pytest.raises(StaleError, match="modified"):
        kept_attacks(store, out, tables)
    (folder / "attack.json").write_bytes(content)
    assert kept_attacks(store, out, tables) == {VIT: attacked}


def test_modified_results_are_redone_with_the_same_numbers(
    probed: tuple[EmbeddingStore, Path], attacked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = probed
    (out / "attack" / store.backbone(VIT).slug / "attack.json").write_text("{}")
    assert attack(store, out, CONFIG) == {VIT: attacked}
    assert "modified" in capsys.readouterr().err


def test_what_cannot_be_attacked_is_refused_by_name(probed: tuple[EmbeddingStore, Path], tmp_path: Path) -> None:
    store, out = probed
    with pytest.raises(ConfigError, match=r"attack\.attacks.*'transfer'"):  # the other's probe may be outdated
        attack(store, out, AttackConfig(attacks=("transfer",)), [VIT])
    with pytest.raises(MissingError, match="class-linear"):
        attack(store, tmp_path, CONFIG)


def test_a_changed_photograph_is_refused(probed: tuple[EmbeddingStore, Path], photographs: Path) -> None:
    store, out = probed
    table = open_table(store, VIT)
    changed = photographs / table.keys[int(table.rows(0)[0])]
    content = changed.read_bytes()
    try:
        changed.write_bytes(content + b" ")
        with pytest.raises(SubstyleError, match=f"{changed.name}: the photograph has changed"):
            attack(store, out, dataclasses.replace(CONFIG, steps=1))
    finally:
        changed.write_bytes(content)


def test_the_command_and_the_report(
    probed: tuple[EmbeddingStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = probed
    study = tmp_path / "study.toml"
    assert main(["stage", "attack", str(store.path), "--out", str(tmp_path / "none"), "--backbone", VIT, "--json"]) == 2
    assert the_json(capsys)["error"]["field"].endswith("class-linear.safetensors")
    study.write_text(
        f'name = "attacks"\nbackbones = ["{VIT}", "{RESNET}"]\nsuite = "identity,grayscale,jpeg"\ncanvas = 64\n'
        f'gallery = 0\nbootstrap = 100\n[attack]\nattacks = ["fgsm", "transfer"]\nepsilons = [48]\nsteps = 1\n'
        "[probes]\n"
        'tasks = ["transformation", "class"]\nheads = ["linear"]\nresamples = 0\nexpert.equal_width = 0\n'
        "redraws = 0\n"
    )
    given = [str(store.path), "--study", str(study), "--out", str(out), "--json"]
    assert main(["stage", "attack", *given, "--backbone", RESNET, "--set", "bootstrap=200"]) == 1
    assert "outdated" in the_json(capsys)["error"]["message"]  # probes of other settings
    assert main(["stage", "attack", *given, "--backbone", RESNET]) == 0
    found = the_json(capsys)["backbones"][RESNET]["attack"]
    assert list(found["attacks"]) == ["fgsm@48", "transfer@48", "adaptive@48", "noise@48"]  # on the other network
    assert main(["stage", "attack", *given, "--backbone", RESNET]) == 0  # the same command
    assert the_json(capsys)["backbones"] == {RESNET: {"attack": found}}
    assert main(["report", str(store.path), "--out", str(out), "--json"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["backbones"][RESNET]["attack"] == found
    assert f"attack/{store.backbone(RESNET).slug}" in results["stamps"]
    assert "Attacks: can the probes tell?" in (out / "report.html").read_text()
