"""The `[probes]` table of a study file: one line per field, checked when made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from substyle.engine import target
from substyle.engine.precision import AUTO
from substyle.kernels.errors import ConfigError

TASKS = ("fine", "coarse", "semantic", "multitask")
HEADS = ("linear", "mlp")
SAMPLING = ("variant", "cross")
PRECISIONS = ("auto", "fp32", "bf16")
TABLES = ("auto", "float16", "int8", "streamed")
_WHOLE = {  # smallest and largest value of each whole number
    "seeds": (1, 64),
    "batch": (2, 1 << 20),
    "steps": (1, 10**8),
    "mlp_steps": (1, 10**8),
    "multitask_steps": (1, 10**8),
    "evaluations": (1, 1000),
    "patience": (1, 1000),
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
        learning_rates: grid of peak learning rates of linear heads.
        weight_decays: grid of decoupled (AdamW) weight decays of linear heads.
        mlp_learning_rates, mlp_weight_decays, widths: the MLP's grid; widths are hidden units.
        lambdas: multi-task weights of the transformation loss; the semantic loss has 1 - lambda.
        multitask_learning_rates: grid of peak learning rates of the multi-task MLP and its single-task twins.
        seeds: trainings of every setting; they differ in initial weights and dropout, and are averaged.
        batch: rows of a step; small tables use less, so that an epoch has at least 16 steps.
        steps, mlp_steps, multitask_steps: most optimiser steps of a training.
        evaluations: how often the validation images are scored during a full training.
        patience: evaluations without a better one that end a training.
        validation_rows: most validation rows scored during training, a fixed sample.
        halving: shares of the steps after which the worse half of the settings is dropped; () keeps all.
        dropout: probability that a hidden unit is dropped.
        sampling: "variant" draws a random variant of each drawn image, "cross" goes through all (image, variant) pairs.
        rotate: also hold out each transformation in turn.
        rotate_heads: heads of the rotation; its MLP costs one training for each transformation.
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
    learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    weight_decays: tuple[float, ...] = (1e-2, 1.0)
    mlp_learning_rates: tuple[float, ...] = (3e-3, 1e-3)
    mlp_weight_decays: tuple[float, ...] = (1e-1,)
    widths: tuple[int, ...] = (2048,)
    lambdas: tuple[float, ...] = (0.3, 0.7)
    multitask_learning_rates: tuple[float, ...] = (1e-3,)
    seeds: int = 2
    batch: int = 1024
    steps: int = 400
    mlp_steps: int = 150
    multitask_steps: int = 80
    evaluations: int = 10
    patience: int = 4
    validation_rows: int = 2048
    halving: tuple[float, ...] = (0.25, 0.5)
    dropout: float = 0.2
    sampling: str = "variant"
    rotate: bool = False
    rotate_heads: tuple[str, ...] = ("linear",)
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
        self._names("rotate_heads", HEADS, at_least=1 if self.rotate else 0)
        for name in ("learning_rates", "mlp_learning_rates", "multitask_learning_rates"):
            self._numbers(name, 0.0, 10.0, "numbers in (0, 10]", open_low=True)
        for name in ("weight_decays", "mlp_weight_decays"):
            self._numbers(name, 0.0, 100.0, "numbers in [0, 100]")
        self._numbers("lambdas", 0.0, 1.0, "numbers in (0, 1)", open_low=True, open_high=True)
        self._numbers("halving", 0.0, 1.0, "rising numbers in (0, 1)", open_low=True, open_high=True, empty=True)
        if list(self.halving) != sorted(set(self.halving)):
            raise ConfigError("probes.halving", self.halving, "rising numbers in (0, 1)")
        self._numbers("widths", 1, 65536, "whole numbers from 1 to 65536", whole=True)
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value) or not low <= value <= high:
                raise ConfigError(f"probes.{name}", value, f"a whole number from {low} to {high}")
        if not _is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ConfigError("probes.dropout", self.dropout, "a number in [0, 1)")
        for name, allowed in (("sampling", SAMPLING), ("precision", PRECISIONS), ("table", TABLES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"probes.{name}", getattr(self, name), ", ".join(allowed))
        for name in ("rotate", "save"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"probes.{name}", getattr(self, name), "true or false")

        target.check(self.device, AUTO, "probes.")
        self._rotation()

    def _rotation(self) -> None:
        if self.rotate and "coarse" not in self.tasks:
            raise ConfigError(
                "probes.rotate", self.rotate, "false without the coarse task, whose setting it takes over"
            )
        if self.rotate and not set(self.rotate_heads) <= set(self.heads):
            raise ConfigError("probes.rotate_heads", self.rotate_heads, f"some of the heads, {', '.join(self.heads)}")

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
        open_high: bool = False,
        whole: bool = False,
        empty: bool = False,
    ) -> None:
        values = getattr(self, name)
        good = isinstance(values, tuple) and (empty or len(values) > 0)
        good = (
            good and all(_is_whole(v) if whole else _is_number(v) for v in values) and len(set(values)) == len(values)
        )
        good = good and all(low < v if open_low else low <= v for v in values)
        good = good and all(v < high if open_high else v <= high for v in values)
        if not good:
            raise ConfigError(f"probes.{name}", values, f"a list of different {allowed}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
