"""Attentive and efficient heads against plain modules of torch, head by head: logits and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from substyle.engine.extensions.attentive.heads import AttentionHeads
from substyle.kernels.probe_heads import Term
from substyle.kernels.probe_step import forward, step

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
