"""The table `[probes]` of a study file."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictFloat, StrictInt

from substyle.engine.base_config import BootstrapConfig, ResourceConfig
from substyle.pipelines.validation import Distinct, validated

C_RANGE = (1e-8, 1e6)
Task = Literal["transformation", "kind", "class", "multitask"]
Head = Literal["linear", "mlp"]
LearningRate = Annotated[StrictFloat, Field(gt=0, le=10)]
WeightDecay = Annotated[StrictFloat, Field(ge=0, le=100)]
InversePenalty = Annotated[StrictFloat, Field(ge=C_RANGE[0], le=C_RANGE[1])]
Width = Annotated[StrictInt, Field(ge=1, le=65536)]
Steps = Annotated[StrictInt, Field(ge=1, le=10**8)]
Resamples = Annotated[StrictInt, Field(ge=0, le=64)]


@validated("probes.expert")
class ExpertConfig:
    """Settings of probes that hardly any study changes."""

    tolerance: Annotated[StrictFloat, Field(ge=1e-7, le=1e-2)] = 3e-4
    """Largest gradient of a converged linear head relative to its objective. The selected C is fitted to a third of the
    gradient reached until this changes the accuracy by at most a fifth of a point."""
    passes: Annotated[StrictInt, Field(ge=1, le=10**6)] = 1000
    """Maximum passes over the training rows per fit."""
    mlp_weight_decays: Distinct[WeightDecay] = (1e-1,)
    """Grid of AdamW weight decays of MLPs."""
    batch: Annotated[StrictInt, Field(ge=2, le=1 << 20)] = 1024
    """Maximum batch size of MLPs; reduced on small tables, so that an epoch has at least 16 steps."""
    doublings: Annotated[StrictInt, Field(ge=1, le=20)] = 5
    """Maximum number of doublings of the steps, and of reductions of a linear head's tolerance."""
    dropout: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.2
    """Dropout probability of hidden units."""
    equal_width: Annotated[StrictInt, Field(ge=0, le=65536)] = 256
    """Width of a random projection on which linear heads are also fitted, to compare backbones of different width; 0
    disables it. Narrower embeddings are skipped."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products of MLPs; ``auto`` is bf16 if the device supports it. Linear heads are solved in
    float32, on a GPU first over rows as stored, in float16 products as precise as float32, unless this is ``fp32``."""
    table: Literal["auto", "float16", "int8", "streamed"] = "auto"
    """What probes read. float16: all rows, as stored; int8: all rows, standardised and rounded to 8 bits with a float32
    scale each; streamed: rows of the next steps are read from the store during training. ``auto``: float16 if it takes
    at most 0.8 of the size of the device's memory, else int8 if it takes at most 0.8 of that or of the host's memory,
    else streamed. Rows are held in host memory, or read from the store, if too little is free on a GPU. All draw the
    same rows; where they are held changes nothing on a CPU and with ``precision`` fp32, elsewhere steps of linear fits
    within their tolerance. Standardisation always uses the stored embeddings."""


@validated("probes")
class ProbeConfig(BootstrapConfig, ResourceConfig):
    """Settings of probes. Raises ConfigError with the field ``probes.<field>``."""

    task_weight: ClassVar[float] = 0.5
    """Weight of the transformation loss of the multi-task MLP; the class loss has the rest."""
    validation_rows: ClassVar[int] = 8192
    """Maximum number of validation rows, a fixed sample."""
    stream_buffer: ClassVar[int] = 1 << 30
    """Bytes of the double buffer in host memory (pinned for a GPU, which uses as many again) for loading or streaming
    embeddings. Linear heads stream blocks, two of which take 64 MiB of float16, and 256 MiB for a GPU."""

    tasks: Distinct[Task] = ("transformation", "kind", "class", "multitask")
    """Tasks: the transformation, its kind, the class of the photograph, or transformation and class jointly."""
    heads: Distinct[Head] = ("linear", "mlp")
    """Kinds of heads; multitask is always an MLP."""
    Cs: Distinct[InversePenalty] = (1e-3, 1e-2, 1e-1)
    """Grid of inverse regularisation strengths of linear heads, as in scikit-learn's LogisticRegression. The grid is
    extended tenfold while the best C is at an end."""
    mlp_learning_rates: Distinct[LearningRate] = (1e-2, 3e-3, 1e-3)
    """Grid of peak learning rates of MLPs."""
    widths: Distinct[Width] = (2048,)
    """Grid of numbers of hidden units of MLPs."""
    multitask_learning_rates: Distinct[LearningRate] = (1e-2, 3e-3, 1e-3)
    """Grid of peak learning rates of the multi-task MLP and its single-task twins."""
    resamples: Resamples = 5
    """Number of linear heads refitted on resampled training photographs; their spread is the training part of the
    standard error."""
    mlp_resamples: Resamples = 0
    """The same for MLPs; each needs a separate training."""
    mlp_steps: Steps = 150
    """Optimiser steps of the first training, which selects the setting. The setting is retrained with twice the steps
    until that gains at most half a point of validation accuracy; the training of the highest one is used."""
    multitask_steps: Steps = 150
    """The same for the multi-task MLP."""
    rotate: Literal["all", "networks", "none"] = "all"
    """Backbones of which each transformation is also held out in turn, and random sets of them (linear heads):
    networks and controls, networks alone, or none."""
    redraws: Annotated[StrictInt, Field(ge=0, le=1000)] = 20
    """Number of random sets of held-out transformations of these backbones."""
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    """Further settings, the table `[probes.expert]`."""
