"""Probe heads that pool tokens by attention before a linear classifier, K at once.

A head has G groups. Group g weights the P tokens x_p of an image by ``a_gp = softmax_p(u_g · x_p)`` and pools a slice
of D / G values: ``y_g = sum_p a_gp V_g x_p``. The slices, one after another, are classified: ``outputs = W y + b``.
There is no MLP, residual or output projection. The two kinds differ in ``u_g``:

- *attentive*: ``u_g = A_g^T q_g / sqrt(D / G)``: one learned query q in G slices, with keys ``A_g x_p``. This is
  multi-head cross-attention with one query, as in El-Nouby et al., "Scalable pre-training of large autoregressive image
  models" (AIM, ICML 2024); Bardes et al., "Revisiting feature prediction" (V-JEPA, 2024) adds an MLP.
- *efficient*: ``u_g = q_g / sqrt(D)``: G learned queries on the tokens themselves, without keys: efficient probing,
  Psomas et al., "Attention, please! Revisiting attentive probing through the lens of efficiency" (ICLR 2026).

Both follow with a linear classifier. Those papers normalise features by batch statistics; here tokens are standardised
by those of the training set, so that a prediction does not depend on its batch.

Tokens are pooled before they are projected to values, and a key is applied to its query instead of to all tokens:
the results are the same, for O(P D G + D²) instead of O(P D²) operations per image.

Shapes: B batch, P tokens, D width of a token, K heads, G groups, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import HeadBank, Setting, repeated, uniform
from substyle.kernels.probe_heads import Heads

EFFICIENT = "efficient"
_QUERY_STD = 0.02  # of initial queries, as in AIM and efficient probing


@dataclass(frozen=True)
class TokenSetting(Setting):
    """One point of the grid of a head.

    Attributes:
        kind: ``attentive`` or ``efficient``.
        tokens: number of tokens P.
        groups: attention heads or queries G.
    """

    kind: str = ""
    tokens: int = 0
    groups: int = 0

    def describe(self) -> dict[str, Any]:
        """The setting as JSON."""
        groups = "queries" if self.kind == EFFICIENT else "attention_heads"
        return super().describe() | {groups: self.groups}

    def bank(
        self, settings: Sequence[Setting], features: Features, outputs: int, seeds: Sequence[int], dropout: float
    ) -> HeadBank:
        """The heads of all settings, trained together without dropout and captured steps."""
        heads: Heads = initial_of_tokens(self, features.width, outputs, len(settings), seeds, features.device)
        return HeadBank(settings, seeds, [heads])


def token_grid(config: AttentiveConfig, probes: ProbeConfig, head: str, tokens: int, width: int) -> list[Setting]:
    """The grid of a head on P tokens of width D. G is the largest divisor of D up to the configured number."""
    most = config.queries if head == EFFICIENT else config.attention_heads
    groups = max(g for g in range(1, min(most, width) + 1) if width % g == 0)
    each = product(config.learning_rates, probes.expert.mlp_weight_decays)
    return [TokenSetting(lr, decay, 0, kind=head, tokens=tokens, groups=groups) for lr, decay in each]


class AttentionHeads(Heads):
    """K attentive or efficient heads and their Adam state.

    Args:
        parameters: query (K, D), keys (K, D, D), values (K, D, D), weights (K, C, D) and biases (K, C) of attentive
            heads; queries (K, G, D), values, weights and biases of efficient ones.
        tokens: P.
        groups: G, a divisor of D.
    """

    by_autograd = True

    def __init__(self, *parameters: torch.Tensor, tokens: int, groups: int) -> None:
        super().__init__(*parameters)
        self.tokens, self.groups = tokens, groups

    def like(self, parameters: Sequence[torch.Tensor]) -> AttentionHeads:
        """Heads of this kind with other parameters, without moments."""
        return AttentionHeads(*parameters, tokens=self.tokens, groups=self.groups)

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and biases of the classifier."""
        return [(self.parameters[-2], self.parameters[-1])]

    @property
    def scores_KGD(self) -> torch.Tensor:
        """The vectors u, whose products with tokens are the logits of the attention."""
        query, *key = self.parameters[:-3]
        count, width, _ = self.parameters[-3].shape
        if not key:
            return query / math.sqrt(width)
        query_KGE = query.view(count, self.groups, -1)
        key_KGED = key[0].view(count, self.groups, -1, width)
        return torch.einsum("kge,kged->kgd", query_KGE, key_KGED) / math.sqrt(width // self.groups)

    def attention(self, x_BPD: torch.Tensor) -> torch.Tensor:
        """Weights of the tokens, (B, P, K, G) float32, sum 1 over tokens. Products in the dtype of ``x_BPD``."""
        u_KGD = self.scores_KGD
        logits = x_BPD.flatten(0, 1) @ u_KGD.flatten(0, 1).to(x_BPD.dtype).T
        return logits.float().view(*x_BPD.shape[:2], *u_KGD.shape[:2]).softmax(1)

    def logits(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Logits (K, C, B) float32 of rows of P · D numbers. Products in the dtype of ``x_BD``."""
        value, weight, bias = self.parameters[-3:]
        count, width, kind = len(self), value.shape[2], x_BD.dtype
        x_BPD = x_BD.view(-1, self.tokens, width)
        attention = self.attention(x_BPD).flatten(2).to(kind)  # (B, P, K * G)
        pooled = torch.bmm(attention.transpose(1, 2), x_BPD)  # (B, K * G, D)
        of_group = value.view(count * self.groups, width // self.groups, width).to(kind)
        y = torch.bmm(pooled.transpose(0, 1), of_group.transpose(1, 2))  # (K * G, B, D / G)
        y_KBD = y.view(count, self.groups, len(x_BD), -1).transpose(1, 2).flatten(2)
        logits_KBC = torch.bmm(y_KBD, weight.to(kind).transpose(1, 2)).float() + bias[:, None]
        return logits_KBC.transpose(1, 2)


def initial_of_tokens(
    setting: TokenSetting, inputs: int, outputs: int, settings: int, seeds: Sequence[int], device: torch.device
) -> AttentionHeads:
    """Initialise heads in setting-major order; weights depend only on the seed.

    Queries are normal with standard deviation 0.02, so that attention begins almost uniform; keys, values and the
    classifier are uniform in ±1/sqrt(D), as in ``torch.nn.Linear``.

    Args:
        inputs: P · D numbers.
    """
    width = inputs // setting.tokens
    rngs = [np.random.Generator(np.random.PCG64([seed, 0x61747465])) for seed in seeds]
    query, squares = ((setting.groups, width), 1) if setting.kind == EFFICIENT else ((width,), 2)
    others = [*([(width, width)] * squares), (outputs, width), (outputs,)]
    drawn = [[rng.standard_normal(query, dtype=np.float32) * np.float32(_QUERY_STD) for rng in rngs]]
    drawn += [[uniform(rng, shape, width**-0.5) for rng in rngs] for shape in others]
    tensors = [repeated(draws, settings, device) for draws in drawn]
    return AttentionHeads(*tensors, tokens=setting.tokens, groups=setting.groups)
