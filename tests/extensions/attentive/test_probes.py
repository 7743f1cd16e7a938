"""Probes of tokens: what only attention reads, beside linear heads on means; streamed, rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine.probes.conftest import Make, Quick
from tests.engine.store.test_store import FOUND, facts, make, note

from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.extensions.attentive.means import averaged
from substyle.engine.extensions.attentive.stage import attentive
from substyle.engine.probes.dataset import over
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table, open_table

P, D = 6, 12

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens(make_table: Make, images: int = 150) -> EmbeddingTable:
    """Each token is a noisy view of the synthetic embedding."""
    table = make_table(images=images, width=D)
    noise = np.random.default_rng(1).normal(size=(*table.x_TND.shape[:2], P, D))
    assert isinstance(table.x_TND, np.ndarray)
    x_TNPD = table.x_TND[:, :, None] + noise
    return replace(table, x_TND=x_TNPD.reshape(*table.x_TND.shape[:2], P * D).astype(np.float16))


def hidden(make_table: Make, classes: int = 3) -> EmbeddingTable:
    """The class is that of one token of each image, which a marker tells from tokens of random classes."""
    table = make_table(images=900, width=P * D, classes=classes)
    rng = np.random.default_rng(2)
    shape = table.x_TND.shape[:2]
    x_TNPD = 0.3 * rng.normal(size=(*shape, P, D))
    own = rng.integers(P, size=shape)
    of_token = rng.integers(classes, size=(*shape, P))
    np.put_along_axis(of_token, own[..., None], table.label_N[None, :, None], axis=2)
    np.put_along_axis(x_TNPD[..., -1], own[..., None], 3.0, axis=2)
    x_TNPD[..., :classes] += 2.0 * np.eye(classes)[of_token]
    return replace(table, x_TND=x_TNPD.reshape(*shape, P * D).astype(np.float16))


QUICK = AttentiveConfig(learning_rates=(1e-2, 3e-3))


def test_only_attention_finds_one_token(make_table: Make, quick: Quick) -> None:
    outcome = attentive(hidden(make_table), P, quick(tasks=("class",), mlp_steps=150), QUICK)
    original = {head: scores["original"]["value"] for head, scores in outcome.results["class"].items()}
    assert list(original) == ["linear", "attentive", "efficient"]
    assert original["linear"] < 0.75
    assert min(original["attentive"], original["efficient"]) > 0.9
    assert (outcome.results["tokens"], outcome.results["dim"]) == (P, D)
    for head in ("attentive", "efficient"):
        own = outcome.results["class"][head]["original"]
        assert own["low"] <= original[head] <= own["high"]
        assert {"converged", "certificate", "setting", "confusion"} <= outcome.results["class"][head].keys()


def test_all_tokens_share_a_standardisation(make_table: Make) -> None:
    table = tokens(make_table)
    t_B, n_B = np.repeat(np.arange(3), 50), np.tile(np.arange(50), 3)
    x_BD = table.take(t_B, n_B).astype(np.float64).reshape(-1, D)
    made = over(table, t_B, n_B, parts=P)
    np.testing.assert_allclose(made.mean_D, np.tile(x_BD.mean(0), P), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.scale_D, np.tile(1 / x_BD.std(0), P), rtol=1e-4)


def test_means_over_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazily, in pieces, and from memory: the same numbers, rounded once."""
    store, _ = make(tmp_path / "s.zarr")
    entry = store.ensure_backbone(facts("tokens:2:x:y", dim=P * D), FOUND)
    x_TND = np.random.default_rng(0).normal(size=(2, 6, P * D)).astype(np.float32)
    for shard in range(2):
        own = slice(4 * shard, 4 * shard + 4)
        rows = {d.name: x_TND[t, own] for t, d in enumerate(FOUND)}
        store.write_shard(entry, shard, rows, [note(i) for i in range(6)[own]], seconds=1.0, run="r")
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    expected = x_TND.astype(np.float16).reshape(2, 6, P, D).astype(np.float32).mean(2).astype(np.float16)
    lazy, loaded = (averaged(found, P) for found in (open_table(store, entry.name), load_table(store, entry.name)))
    assert (lazy.width, loaded.width) == (D, D)
    np.testing.assert_array_equal(loaded.x_TND, expected)
    t_B, n_B = np.array([1, 0, 1, 1]), np.array([5, 2, 0, 5])
    for piece in (1, 1 << 20):
        monkeypatch.setattr("substyle.engine.extensions.attentive.means._PIECE", piece)
        assert not isinstance(lazy.x_TND, np.ndarray)
        np.testing.assert_array_equal(lazy.in_memory().x_TND, expected)
        np.testing.assert_array_equal(lazy.take(t_B, n_B), expected[t_B, n_B])
        np.testing.assert_array_equal(loaded.take(1, n_B), lazy.take(1, n_B))
        part = np.empty((3, D), np.float16)
        lazy.take(1, np.arange(2, 5), part)
        np.testing.assert_array_equal(part, expected[1, 2:5])
