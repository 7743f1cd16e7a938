"""The table `[adapt]` of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictFloat

from substyle.pipelines.validation import Distinct, validated


@validated("adapt")
class AdaptConfig:
    """Adapters: one layer on top of each embedding that keeps both style and class."""

    methods: Distinct[Literal["multitask", "pisco"]] = ()
    """``multitask``: hidden layer of an MLP trained on transformation and class together; ``pisco``: linear split into
    style and content, after Ngweta et al. (ICML 2023)."""
    content: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.95
    """pisco: rank of the new embedding as a fraction of the width of the old one."""
    penalty: Annotated[StrictFloat, Field(ge=0, le=1e6)] = 1.0
    """pisco: weight of the differences between variants and originals, which content coordinates avoid."""
