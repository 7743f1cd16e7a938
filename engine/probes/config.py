"""The `[probes]` table of a study file: one line per field, checked when made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from substyle.engine import devices
from substyle.engine.devices import AUTO
from substyle.kernels.errors import ConfigError

TASKS = ("fine", "coarse", "semantic", "multitask")
HEADS = ("linear", "mlp")
SAMPLING = ("variant", "cross")
PRECISIONS = ("auto", "fp32", "bf16")
TABLES = ("auto", "float16", "int8", "streamed")
UNITS = ("photograph", "folder")
C_RANGE = (1e-8, 1e6)
_CHOICES = {"sampling": SAMPLING, "precision": PRECISIONS, "table": TABLES, "resample_by": UNITS}
_WHOLE = {  # smallest and largest value of each whole number
    "resamples": (0, 64),
    "mlp_resamples": (0, 64),
    "redraws": (0, 1000),
    "equal_width": (0, 65536),
    "passes": (1, 10**6),
    "batch": (2, 1 << 20),
    "mlp_steps": (1, 10**8),
    "multitask_steps": (1, 10**8),
    "doublings": (1, 20),
    "validation_rows": (1, 10**8),
    "threads": (0, 1024),
    "stream_buffer": (1 << 16, 1 << 40),
    "bootstrap": (100, 10**6),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class ProbeConfig:
    """What probes are trained and how. Raises ConfigError naming the field ``probes.<field>``.

    Attributes:
        tasks: which of fine, coarse, semantic, multitask.
        heads: which of linear, mlp (multitask is always an MLP).
        Cs: grid of inverse penalties of linear heads, as in scikit-learn's LogisticRegression. It is extended tenfold
            beyond an end as long as the best lies there.
        tolerance: largest absolute value of the gradient at which linear heads of the grid are converged, as
            scikit-learn's ``tol``. The picked one is fitted on until a third of it changes the accuracy by half a point
            at most.
        passes: most passes over the training rows of a fit.
        mlp_learning_rates, mlp_weight_decays, widths: the MLP's grid; widths are hidden units, decays those of AdamW.
        multitask_learning_rates: grid of peak learning rates of the multi-task MLP and its single-task twins.
        task_weight: weight of the transformation loss of the multi-task MLP; the semantic loss has the rest.
        resamples: linear heads that are also trained on resampled training photographs: their spread is the part of
            the standard error that comes from training.
        mlp_resamples: likewise for MLPs; each takes a training of its own.
        resample_by: "photograph", or "folder" where photographs of one folder are not independent (crops of one
            picture, frames of one video): then bootstraps draw whole folders.
        batch: rows of an MLP's step; small tables use less, so that an epoch has at least 16 steps.
        mlp_steps, multitask_steps: optimiser steps of the first training, which picks the setting. It is then trained
            again at twice the steps, until two trainings in a row agree within half a point.
        doublings: most times that steps are doubled, or the tolerance of a linear head is tightened.
        validation_rows: most validation rows scored, a fixed sample.
        dropout: probability that a hidden unit is dropped.
        sampling: "variant" draws a random variant of each drawn image, "cross" goes through all (image, variant) pairs.
        rotate: also hold out each transformation in turn (linear heads).
        redraws: random choices of which transformations are held out that are also tried (linear heads).
        equal_width: width of a random projection that linear heads are also fitted on, so that backbones of different
            width can be compared at the same one; 0 for none. Narrower embeddings are left out.
        precision: of the GEMMs; "auto" is bf16 where the device has it.
        device: where probes train: cpu, cuda or cuda:N; auto, which is the first GPU that torch sees, else the CPU.
        table: how the embeddings of a backbone are held there. float16: all of them, as they are stored; int8: all of
            them, standardised and rounded to 8 bits with a float32 factor for each row; streamed: in the store, from
            which the rows of the next steps are read while earlier ones are learned. auto is the first of these that
            takes at most 0.8 of the memory that is free. The rows drawn are the same: streamed learns what float16
            learns, bit for bit; int8 learns from rounded rows. Standardisation is that of the stored embeddings.
        stream_buffer: bytes of the host's memory (pinned for a GPU, which takes as many of its own) through which
            embeddings come to a device or, streamed, to training; half of it is filled while the other half is read.
        threads: CPU threads, 0 for torch's own choice.
        bootstrap: resamples of every interval.
        seed: of sampling, initial weights, dropout and bootstrap.
        save: whether trained probes are written.
    """

    tasks: tuple[str, ...] = TASKS
    heads: tuple[str, ...] = HEADS
    Cs: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    tolerance: float = 3e-4
    passes: int = 1000
    mlp_learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    mlp_weight_decays: tuple[float, ...] = (1e-1,)
    widths: tuple[int, ...] = (2048,)
    multitask_learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    task_weight: float = 0.5
    resamples: int = 5
    mlp_resamples: int = 0
    resample_by: str = "photograph"
    batch: int = 1024
    mlp_steps: int = 150
    multitask_steps: int = 150
    doublings: int = 5
    validation_rows: int = 8192
    dropout: float = 0.2
    sampling: str = "variant"
    rotate: bool = True
    redraws: int = 20
    equal_width: int = 256
    precision: str = "auto"
    device: str = "auto"
    table: str = "auto"
    stream_buffer: int = 1 << 30
    threads: int = 0
    bootstrap: int = 2000
    seed: int = 0
    save: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):  # a study file's arrays arrive as lists
            if isinstance(getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        self._names("tasks", TASKS, at_least=1)
        self._names("heads", HEADS, at_least=1)
        for name in ("mlp_learning_rates", "multitask_learning_rates"):
            self._numbers(name, 0.0, 10.0, "numbers in (0, 10]", open_low=True)
        self._numbers("mlp_weight_decays", 0.0, 100.0, "numbers in [0, 100]")
        self._numbers("Cs", *C_RANGE, f"numbers from {C_RANGE[0]:g} to {C_RANGE[1]:g}")
        self._numbers("widths", 1, 65536, "whole numbers from 1 to 65536", whole=True)
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value) or not low <= value <= high:
                raise ConfigError(f"probes.{name}", value, f"a whole number from {low} to {high}")
        if not _is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ConfigError("probes.dropout", self.dropout, "a number in [0, 1)")
        if not _is_number(self.tolerance) or not 1e-7 <= self.tolerance <= 1e-2:
            raise ConfigError("probes.tolerance", self.tolerance, "a number from 1e-7 to 1e-2")
        if not _is_number(self.task_weight) or not 0.0 < self.task_weight < 1.0:
            raise ConfigError("probes.task_weight", self.task_weight, "a number in (0, 1)")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"probes.{name}", getattr(self, name), ", ".join(allowed))
        for name in ("rotate", "save"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"probes.{name}", getattr(self, name), "true or false")

        devices.check(self.device, AUTO, "probes.")

    def _names(self, name: str, allowed: Sequence[str], *, at_least: int) -> None:
        value = getattr(self, name)
        good = isinstance(value, tuple) and all(v in allowed for v in value) and len(value) >= at_least
        if not good or len(set(value)) < len(value):
            raise ConfigError(f"probes.{name}", value, f"a list of some of {', '.join(allowed)}")

    def _numbers(
        self,
        name: str,
        low: float,
        high: float,
        allowed: str,
        *,
        open_low: bool = False,
        whole: bool = False,
    ) -> None:
        values = getattr(self, name)
        good = isinstance(values, tuple) and len(values) > 0
        good = (
            good and all(_is_whole(v) if whole else _is_number(v) for v in values) and len(set(values)) == len(values)
        )
        good = good and all(low < v if open_low else low <= v for v in values)
        good = good and all(v <= high for v in values)
        if not good:
            raise ConfigError(f"probes.{name}", values, f"a list of different {allowed}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
