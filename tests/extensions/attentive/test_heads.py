"""Attentive and efficient heads against plain modules of torch, head by head: logits and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.extensions.attentive.heads import AttentionHeads, TokenSetting, initial_of_tokens, token_grid
from substyle.engine.probes.config import ProbeConfig
from substyle.kernels.probe_heads import Term
from substyle.kernels.probe_step import forward, judge, step

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("kind", ["attentive", "efficient"])
def test_attention_of_one_token_is_one(kind: str) -> None:
    made = heads(kind, 2, 3, 1, 6, 4)
    attention = made.attention(torch.randn(5, 1, 6))
    torch.testing.assert_close(attention, torch.ones(5, 1, 2, 3))
    many = heads(kind, 2, 3, 7, 6, 4).attention(torch.randn(5, 7, 6))
    torch.testing.assert_close(many.sum(1), torch.ones(5, 2, 3))


def test_bfloat16_products_are_close() -> None:
    made = heads("efficient", 2, 4, 9, 16, 3)
    x_BD = torch.randn(20, 9 * 16)
    low, high = forward(made, x_BD.bfloat16()), forward(made, x_BD)
    assert low.dtype == torch.float32
    assert (low - high).abs().max() < 0.05 * high.abs().max()
    accuracy_K, loss_K = judge(made, x_BD, high[0].argmax(0), torch.full((20,), 0.05), slice(0, 3))
    assert accuracy_K[0] == pytest.approx(1.0)
    assert (loss_K > 0).all()


@pytest.mark.parametrize(
    ("width", "most", "groups"), [(384, 32, 32), (768, 12, 12), (10, 12, 10), (7, 4, 1), (9, 4, 3)]
)
def test_groups_divide_the_width(width: int, most: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("attention_heads", "queries"):
        monkeypatch.setattr(AttentiveConfig, name, most)
    config = AttentiveConfig()
    for head in ("attentive", "efficient"):
        settings = token_grid(config, ProbeConfig(), head, 4, width)
        assert {s.describe()["queries" if head == "efficient" else "attention_heads"] for s in settings} == {groups}
        assert [s.lr for s in settings] == list(config.learning_rates)


def test_initial_weights_depend_on_the_seed_only() -> None:
    (setting, *_) = token_grid(AttentiveConfig(), ProbeConfig(), "efficient", 6, 12)
    assert isinstance(setting, TokenSetting)
    one = initial_of_tokens(setting, 72, 3, 2, [5], torch.device("cpu"))
    two = initial_of_tokens(setting, 72, 3, 1, [4, 5], torch.device("cpu"))
    for a, b in zip(one.parameters, two.parameters, strict=True):
        assert torch.equal(a[0], b[1])
        assert torch.equal(a[0], a[1])
