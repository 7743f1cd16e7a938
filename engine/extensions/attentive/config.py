"""The table `[attentive]` of a study file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from substyle.engine.probes.config import LearningRate
from substyle.pipelines.validation import Distinct, validated

TokenHead = Literal["attentive", "efficient"]


@validated("attentive")
class AttentiveConfig:
    """Probes that attend to the tokens of a network, beside a linear probe of their mean."""

    backbones: tuple[str, ...] = ()
    """Backbones of the study whose tokens are embedded, in a store of their own."""
    grid: Annotated[StrictInt, Field(ge=0, le=999)] = 7
    """Side of the grid that the patches, or positions of the last map, are averaged to; 0: all of them, after the class
    token if there is one. Embeddings take grid² times the space of pooled ones."""
    heads: Distinct[TokenHead] = ("attentive", "efficient")
    """``attentive``: one learned query with keys and values, in several attention heads; ``efficient``: several learned
    queries without keys."""
    learning_rates: Distinct[LearningRate] = (1e-2, 3e-3, 1e-3, 3e-4)
    """Grid of peak learning rates."""
    attention_heads: ClassVar[int] = 12
    """Attention heads of attentive probes; the largest divisor of the width of a token up to this number is used."""
    queries: ClassVar[int] = 32
    """Queries of efficient probes; likewise."""
