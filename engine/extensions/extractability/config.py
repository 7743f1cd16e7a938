"""The tables `[extractability]` and `[complexity]` of a study file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt

from substyle.engine.probes.config import Width
from substyle.pipelines.validation import Distinct, validated


@validated("extractability")
class ExtractabilityConfig:
    """How easily labels are extracted: control tasks, online codelength, learning curves and shuffled labels."""

    orders: Annotated[StrictInt, Field(ge=1, le=64)] = 3
    """Number of random orders of the training photographs for codelengths and learning curves."""


@validated("complexity")
class ComplexityConfig:
    """MLPs of every depth and width on transformations and classes, to show how much either depends on the probe."""

    depths: Distinct[Annotated[StrictInt, Field(ge=0, le=8)]] = (0, 1, 2, 4)
    """Numbers of hidden layers; 0 is the linear probe."""
    widths: Distinct[Width] = (64, 256)
    """Numbers of units of each hidden layer."""
