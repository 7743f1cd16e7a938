"""The `[probes]` table of a study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from substyle.engine import devices
from substyle.engine.devices import AUTO
from substyle.engine.store.layout import ResampleBy
from substyle.pipelines.validation import Distinct, validated

C_RANGE = (1e-8, 1e6)
Task = Literal["fine", "coarse", "semantic", "multitask"]
Head = Literal["linear", "mlp"]
LearningRate = Annotated[StrictFloat, Field(gt=0, le=10)]
WeightDecay = Annotated[StrictFloat, Field(ge=0, le=100)]
InversePenalty = Annotated[StrictFloat, Field(ge=C_RANGE[0], le=C_RANGE[1])]
Width = Annotated[StrictInt, Field(ge=1, le=65536)]
Steps = Annotated[StrictInt, Field(ge=1, le=10**8)]
Resamples = Annotated[StrictInt, Field(ge=0, le=64)]


@validated("probes")
class ProbeConfig:
    """What probes are trained and how. Raises ConfigError naming the field ``probes.<field>``."""

    tasks: Distinct[Task] = ("fine", "coarse", "semantic", "multitask")
    """What is learned: the transformation, its coarse class, the class of the photograph, or both at once."""
    heads: Distinct[Head] = ("linear", "mlp")
    """Kinds of heads; multitask is always an MLP."""
    Cs: Distinct[InversePenalty] = (1e-3, 1e-2, 1e-1)
    """Grid of inverse penalties of linear heads, as in scikit-learn's LogisticRegression. It is extended tenfold beyond
    an end as long as the best lies there."""
    tolerance: Annotated[StrictFloat, Field(ge=1e-7, le=1e-2)] = 3e-4
    """Largest absolute value of the gradient at which linear heads of the grid are converged, as scikit-learn's
    ``tol``. The picked one is fitted on until a third of it changes the accuracy by half a point at most."""
    passes: Annotated[StrictInt, Field(ge=1, le=10**6)] = 1000
    """Most passes over the training rows of a fit."""
    mlp_learning_rates: Distinct[LearningRate] = (1e-2, 3e-3, 1e-3)
    """The MLP's grid of peak learning rates."""
    mlp_weight_decays: Distinct[WeightDecay] = (1e-1,)
    """The MLP's grid of weight decays, those of AdamW."""
    widths: Distinct[Width] = (2048,)
    """The MLP's grid of hidden units."""
    multitask_learning_rates: Distinct[LearningRate] = (1e-2, 3e-3, 1e-3)
    """Grid of peak learning rates of the multi-task MLP and its single-task twins."""
    task_weight: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.5
    """Weight of the transformation loss of the multi-task MLP; the semantic loss has the rest."""
    resamples: Resamples = 5
    """Linear heads that are also trained on resampled training photographs: their spread is the part of the standard
    error that comes from training."""
    mlp_resamples: Resamples = 0
    """Likewise for MLPs; each takes a training of its own."""
    resample_by: ResampleBy = "photograph"
    """What bootstraps draw; left out, it is the study's."""
    batch: Annotated[StrictInt, Field(ge=2, le=1 << 20)] = 1024
    """Rows of an MLP's step; small tables use less, so that an epoch has at least 16 steps."""
    mlp_steps: Steps = 150
    """Optimiser steps of the first training, which picks the setting. It is then trained again at twice the steps,
    until two trainings in a row agree within half a point."""
    multitask_steps: Steps = 150
    """The same for the multi-task MLP."""
    doublings: Annotated[StrictInt, Field(ge=1, le=20)] = 5
    """Most times that steps are doubled, or the tolerance of a linear head is tightened."""
    validation_rows: Annotated[StrictInt, Field(ge=1, le=10**8)] = 8192
    """Most validation rows scored, a fixed sample."""
    dropout: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.2
    """Probability that a hidden unit is dropped."""
    sampling: Literal["variant", "cross"] = "variant"
    """``variant`` draws a random variant of each drawn image, ``cross`` goes through all (image, variant) pairs."""
    rotate: StrictBool = True
    """Also hold out each transformation in turn (linear heads)."""
    redraws: Annotated[StrictInt, Field(ge=0, le=1000)] = 20
    """Random choices of which transformations are held out that are also tried (linear heads)."""
    equal_width: Annotated[StrictInt, Field(ge=0, le=65536)] = 256
    """Width of a random projection that linear heads are also fitted on, so that backbones of different width can be
    compared at the same one; 0 for none. Narrower embeddings are left out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the GEMMs; ``auto`` is bf16 where the device has it."""
    device: str = AUTO
    """Where probes train: cpu, cuda or cuda:N; ``auto``, which is the first GPU that torch sees, else the CPU."""
    table: Literal["auto", "float16", "int8", "streamed"] = "auto"
    """How the embeddings of a backbone are held there. float16: all of them, as they are stored; int8: all of them,
    standardised and rounded to 8 bits with a float32 factor for each row; streamed: in the store, from which the rows
    of the next steps are read while earlier ones are learned. ``auto`` is the first of these that takes at most 0.8 of
    the memory that is free. The rows drawn are the same: streamed learns what float16 learns, bit for bit; int8 learns
    from rounded rows. Standardisation is that of the stored embeddings."""
    stream_buffer: Annotated[StrictInt, Field(ge=1 << 16, le=1 << 40)] = 1 << 30
    """Bytes of the host's memory (pinned for a GPU, which takes as many of its own) through which embeddings come to a
    device or, streamed, to training; half of it is filled while the other half is read."""
    threads: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    """CPU threads, 0 for torch's own choice."""
    bootstrap: Annotated[StrictInt, Field(ge=100, le=10**6)] = 2000
    """Resamples of every interval."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of sampling, initial weights, dropout and bootstrap; left out, it is the study's."""
    save: StrictBool = True
    """Whether trained probes are written."""

    def __post_init__(self) -> None:
        devices.check(self.device, AUTO, "probes.")
