"""The table `[adapt]` of a study file."""

from __future__ import annotations

from typing import Literal

from substyle.pipelines.validation import Distinct, validated


@validated("adapt")
class AdaptConfig:
    """Adapters: one layer on top of each embedding that keeps both transformation and class."""

    methods: Distinct[Literal["multitask", "pisco"]] = ()
    """``multitask``: hidden layer of an MLP trained on transformation and class together; ``pisco``: linear split into
    style and content, after Ngweta et al. (ICML 2023)."""
