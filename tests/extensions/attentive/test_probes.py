"""Tokens of networks, heads against plain modules of torch, and what only attention reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import Make, Quick
from tests.engine.store.test_store import FOUND, facts, make, note
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, scaled_dot_product_attention

from substyle.engine.backbones.families import open_clip, timm
from substyle.engine.backbones.spec import Readout
from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.extensions.attentive.family import Tokens
from substyle.engine.extensions.attentive.heads import AttentionHeads
from substyle.engine.extensions.attentive.means import averaged
from substyle.engine.extensions.attentive.stage import attentive
from substyle.engine.probes.dataset import over
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table, open_table
from substyle.kernels.probe_heads import Term
from substyle.kernels.probe_step import forward, step

pytestmark = pytest.mark.usefixtures("one_thread")

P, D = 6, 12


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
        assert {"converged", "certificate", "setting"} <= outcome.results["class"][head].keys()


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


def network(model: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    made = timm.create(model).eval()
    side = int(timm.data_config(made)["side"])
    return made, torch.randn(2, 3, side, side)


def read(made: nn.Module, grid: int, x: torch.Tensor, count: int = -1) -> torch.Tensor:
    with torch.inference_mode():
        found = torch.as_tensor(Tokens(made, grid)(x))
        return found.unflatten(1, (grid**2 or count, -1))


@pytest.mark.parametrize("model", ["test_vit", "test_vit2", "test_vit_relpos"])
def test_tokens_of_a_vit(model: str) -> None:
    """Class token and patches after the final normalisation; neither registers nor a class token that is none."""
    made, x = network(model)
    with torch.inference_mode():
        features_BPD = made.forward_features(x)  # type: ignore[operator]
    own = features_BPD if model == "test_vit" else features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    torch.testing.assert_close(read(made, 0, x, own.shape[1]), own)
    patches = features_BPD[:, int(made.num_prefix_tokens) :]  # type: ignore[arg-type]
    map_BDHW = patches.transpose(1, 2).unflatten(2, (10, 10))
    grid = adaptive_avg_pool2d(map_BDHW, 7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(read(made, 7, x), grid)


@pytest.mark.slow
def test_tokens_of_open_clip_towers() -> None:
    """Those that OpenCLIP returns beside the embedding, before the projection."""
    torch.manual_seed(0)
    tower = open_clip.tower("ViT-B-32").eval()
    x = torch.randn(1, 3, 224, 224)
    module, _ = open_clip.read_at("x", tower, Readout(), 224)
    tokens = read(module, 0, x, 50)
    with torch.inference_mode():
        tower.output_tokens = True  # type: ignore[assignment]
        _, patches = tower(x)
    torch.testing.assert_close(tokens[:, 1:], patches)


class Reference(nn.Module):
    """One head, with keys and values of every token and torch's attention."""

    def __init__(self, parameters: list[torch.Tensor], groups: int) -> None:
        super().__init__()
        self.of = nn.ParameterList([nn.Parameter(p.clone()) for p in parameters])
        self.groups = groups

    def forward(self, x_BPD: torch.Tensor) -> torch.Tensor:
        query, *key, value, weight, bias = self.of
        v_BGPE = (x_BPD @ value.T).unflatten(2, (self.groups, -1)).transpose(1, 2)
        if key:  # one query in G slices, as in multi-head attention
            q_BG1E = query.view(1, self.groups, 1, -1).expand(len(x_BPD), -1, -1, -1)
            k_BGPE = (x_BPD @ key[0].T).unflatten(2, (self.groups, -1)).transpose(1, 2)
            y = scaled_dot_product_attention(q_BG1E, k_BGPE, v_BGPE)
        else:  # G queries of full width, each for its slice of the values
            q_BG1D = query[None, :, None].expand(len(x_BPD), -1, -1, -1)
            y = scaled_dot_product_attention(q_BG1D, x_BPD[:, None].expand(-1, self.groups, -1, -1), v_BGPE)
        return y.flatten(1) @ weight.T + bias


def heads(kind: str, count: int, groups: int, tokens: int, width: int, outputs: int) -> AttentionHeads:
    generator = torch.Generator().manual_seed(0)
    query = (groups, width) if kind == "efficient" else (width,)
    squares = [(width, width)] * (1 if kind == "efficient" else 2)
    shapes = [query, *squares, (outputs, width), (outputs,)]
    return AttentionHeads(
        *(torch.randn(count, *shape, generator=generator) for shape in shapes), tokens=tokens, groups=groups
    )


def references(made: AttentionHeads) -> list[Reference]:
    return [Reference([p[k] for p in made.parameters], made.groups) for k in range(len(made))]


CASES = [(3, 4, 7, 8, 5), (1, 1, 7, 6, 3), (2, 3, 1, 6, 4), (2, 6, 2, 6, 2)]  # K, G, P, D, C


@pytest.mark.parametrize("kind", ["attentive", "efficient"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_torch(kind: str, case: tuple[int, ...]) -> None:
    count, groups, tokens, width, outputs = case
    made = heads(kind, count, groups, tokens, width, outputs)
    x_BD = torch.randn(9, tokens * width)
    target_B = torch.randint(outputs, (9,))
    modules = references(made)
    expected = torch.stack([module(x_BD.unflatten(1, (tokens, width))).T for module in modules])
    torch.testing.assert_close(forward(made, x_BD), expected, rtol=1e-4, atol=1e-4)

    optimisers = [torch.optim.AdamW(m.parameters(), lr=0.01 * (k + 1), weight_decay=0.1) for k, m in enumerate(modules)]
    for _ in range(3):
        losses = []
        for module, optimiser in zip(modules, optimisers, strict=True):
            optimiser.zero_grad()
            loss = cross_entropy(module(x_BD.unflatten(1, (tokens, width))), target_B)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        loss_K = step(made, x_BD, [Term(target_B)], [0.01 * (k + 1) for k in range(count)], [0.1] * count)
        torch.testing.assert_close(loss_K, torch.stack(losses), rtol=1e-3, atol=1e-4)
    for k, module in enumerate(modules):
        for ours, theirs in zip(made.parameters, module.of, strict=True):
            torch.testing.assert_close(ours[k], theirs.detach(), rtol=1e-2, atol=2e-3)
