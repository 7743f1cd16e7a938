"""Probes on growing numbers of training photographs: online codelength and learning curves.

The online (prequential) code of Voita & Titov ("Information-theoretic probing with minimum description length", EMNLP
2020) sends labels block by block, each with the probabilities of a probe trained on the blocks before; the first block
with uniform ones. Probabilities are mixed with uniform ones as if one label more had been seen, so that the codelength
of a class that the first photographs lack is finite: ``p = (R q + 1 / C) / (R + 1)`` after R labels.

Shapes: A sizes, O orders of the training photographs, R bootstrap replicates, P vectors that span
the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from substyle.engine.probes import solver
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import C_RANGE, ProbeConfig
from substyle.engine.probes.evaluate import score
from substyle.engine.probes.linear import Linear, variant_weights
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.resampling import ACCURACY, BootstrapResult, resample, uniform_over
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import F64, I64, Advance, Task
from substyle.engine.probes.trainer import Validation
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import forward

# of the training photographs, as in the paper
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
NEEDED = 0.9  # of the way from chance to the accuracy with all training photographs
_FURTHER = 2  # values of C beyond each end of the configured grid
_AGREEMENT = 0.01, 0.001  # maximum difference in codelength of two fits that agree: relative, and in bits
_ROWS = 4096


@dataclass(frozen=True)
class Grown:
    """Heads trained on the first photographs of each order.

    Attributes:
        by_loss, by_accuracy: O heads with the C of the lowest loss or the highest accuracy on validation rows.
        loss_C, accuracy_C: these values of C.
        loss_converged: whether the former have converged, and a third of their gradients changes their loss by at most
            1 % or 0.001 bits; None if that was not asked.
        accuracy_converged: whether the latter have converged.
    """

    by_loss: Heads
    by_accuracy: Heads
    loss_C: float
    accuracy_C: float
    loss_converged: bool | None
    accuracy_converged: bool


@dataclass(frozen=True)
class _Space:
    """Training rows, and the space in which weights are fitted: that of P orthonormal vectors, or all of it."""

    rows: TrainingRows
    basis: CovarianceBasis
    vector_DP: torch.Tensor | None = None

    def into(self, heads: Heads) -> Heads:
        """Project the weights."""
        return heads if self.vector_DP is None else Heads(heads.w1 @ self.vector_DP, heads.b1)

    def out(self, heads: Heads) -> Heads:
        """Weights for whole embeddings."""
        return heads if self.vector_DP is None else Heads(heads.w1 @ self.vector_DP.T, heads.b1)


@dataclass
class Growing:
    """Fits linear heads to growing prefixes of random orders of a task's training photographs.

    Of near-duplicates only the first is used.

    Attributes:
        made: its linear probe.
        orders: number of orders.
    """

    features: Features
    task: Task
    made: Linear
    config: ProbeConfig
    basis: CovarianceBasis
    orders: int
    advance: Advance = lambda count: None
    order_ON: I64 = field(init=False)

    def __post_init__(self) -> None:
        task, rng = self.task, np.random.default_rng([self.config.seed, 0x6F726472])
        self.weight_T = variant_weights(task, task.train_T)
        some_N = task.train_N[task.distinct_TN[np.ix_(task.train_T, task.train_N)].any(axis=0)]
        some_N = some_N[np.sort(np.unique(task.first_N[some_N], return_index=True)[1])]
        self.order_ON = np.stack([rng.permutation(some_N) for _ in range(self.orders)])
        self.validation = Validation(self.features.full(), task, self.config)

    @property
    def count(self) -> int:
        """Number of training photographs."""
        return int(self.order_ON.shape[1])

    def rows(self, images: I64) -> int:
        """Training rows of photographs."""
        return int(self.task.distinct_TN[np.ix_(self.task.train_T, images)].sum())

    def rows_O(self, size: int) -> F64:
        """Training rows of the first photographs of each order."""
        return np.array([self.rows(order_N[:size]) for order_N in self.order_ON], np.float64)

    def fitted(self, size: int, *, code: bool) -> Grown:
        """Fit to the first ``size`` photographs of each order; C is the same for all orders.

        Args:
            code: whether ``by_loss`` is needed: it is selected among converged fits, since an early stop regularises.
        """
        space = self._space(size)
        fits: dict[float, Fit] = {}
        losses: dict[float, float] = {}
        ranks: dict[float, tuple[float, float]] = {}
        agreed: dict[float, bool] = {}
        todo = sorted({*self.config.Cs, self.made.C})
        low = max(min(self.config.Cs) / 10**_FURTHER, C_RANGE[0]) * 0.99
        high = min(max(self.config.Cs) * 10**_FURTHER, C_RANGE[1]) * 1.01
        while True:
            if todo:
                for C, fit in zip(todo, self._fit(space, size, todo), strict=True):
                    fits[C], losses[C] = fit, self._loss(size, fit.heads)
                    ranks[C] = float(self.validation.judge(fit.heads)[0].mean()), -losses[C]
            by_loss, by_accuracy = min(losses, key=losses.__getitem__), max(ranks, key=ranks.__getitem__)
            if code and by_loss not in agreed:
                fits[by_loss], losses[by_loss], agreed[by_loss] = self._continued(
                    space, size, by_loss, fits[by_loss], losses[by_loss]
                )
                todo = []
                continue
            best = {by_accuracy} | ({by_loss} if code else set())
            further = [min(fits) / 10] * (min(fits) in best) + [max(fits) * 10] * (max(fits) in best)
            todo = [float(f"{C:.6g}") for C in further if low <= C <= high]
            if not todo:
                break
        solved = bool((fits[by_accuracy].gradient_K <= self.config.expert.tolerance).all())
        return Grown(fits[by_loss].heads, fits[by_accuracy].heads, by_loss, by_accuracy, agreed.get(by_loss), solved)

    def _loss(self, size: int, heads: Heads) -> float:
        """Bits per validation label, mean over orders."""
        rows_O = torch.from_numpy(self.rows_O(size)).to(self.features.device)
        x_BD = self.features.full()(self.validation.t_B, self.validation.n_B)
        bits_OB = self.bits(heads, x_BD, self.validation.answers, rows_O)
        return float((bits_OB * self.validation.weight).sum(1).mean())

    def _continued(self, space: _Space, size: int, C: float, fit: Fit, loss: float) -> tuple[Fit, float, bool]:
        """Continue a fit to a third of its gradients until the loss agrees. Returns fit, loss and whether it does."""
        for _ in range(self.config.expert.doublings):
            (fit,) = self._fit(space, size, [C], fit)
            before, loss = loss, self._loss(size, fit.heads)
            same, reached = abs(loss - before) <= max(_AGREEMENT[0] * before, _AGREEMENT[1]), fit.converged_K.all()
            if same or not reached:
                return fit, loss, bool(same and reached)
        return fit, loss, False

    def _space(self, size: int) -> _Space:
        """Training rows of all orders. Few are projected to their span, which contains the weights of the solution."""
        own_N = np.unique(self.order_ON[:, :size])
        task = replace(self.task, train_N=own_N)
        t_R, n_R = task.rows(task.train_T, own_N)
        if 2 * len(t_R) > self.features.width:
            return _Space(TrainingRows(self.features, task, self.weight_T[None]), self.basis)
        _, value_P, vector_PD = torch.linalg.svd(self.features.full(torch.float64)(t_R, n_R), full_matrices=False)
        kept = value_P > 1e-6 * value_P[0]
        vector_DP = vector_PD[kept].T.float().contiguous()
        projected = copy(self.features)
        projected.projection = vector_DP
        unit_PP = torch.eye(vector_DP.shape[1], device=vector_DP.device)
        basis = CovarianceBasis(unit_PP, (value_P[kept] ** 2 / len(t_R)).float())
        return _Space(TrainingRows(projected, task, self.weight_T[None]), basis, vector_DP)

    def _fit(self, space: _Space, size: int, Cs: Sequence[float], start: Fit | None = None) -> list[Fit]:
        """Fit O heads for each C, or continue their fit."""
        orders = len(self.order_ON)
        first_ON = np.zeros((orders, self.task.distinct_TN.shape[1]))
        for order_N, used_N in zip(self.order_ON, first_ON, strict=True):
            used_N[order_N[:size]] = 1.0
        found = solver.fit(
            space.rows.with_image_weights(np.tile(first_ON, (len(Cs), 1))),
            1.0 / (np.repeat(Cs, orders) * np.tile(self.rows_O(size), len(Cs))),
            tolerance=self.config.expert.tolerance if start is None else start.tighter_K,
            most=self.config.expert.passes,
            start=None if start is None else space.into(start.heads),
            basis=space.basis,
            advance=self.advance,
        )
        heads, parts = space.out(found.heads), [slice(k * orders, (k + 1) * orders) for k in range(len(Cs))]
        return [
            Fit(
                heads.select(range(own.start, own.stop)),
                found.gradient_K[own],
                found.passes_K[own],
                found.tolerance_K[own],
            )
            for own in parts
        ]

    def bits(self, heads: Heads, x_BD: torch.Tensor, target_B: torch.Tensor, seen_K: torch.Tensor) -> torch.Tensor:
        """Codelengths of labels after ``seen_K`` labels, float64 (K, B)."""
        pieces = zip(torch.split(x_BD, _ROWS), torch.split(target_B, _ROWS), strict=True)
        return torch.cat([mixed_bits(forward(heads, x)[:, self.task.outputs], y, seen_K) for x, y in pieces], 1)


def mixed_bits(logits_KCB: torch.Tensor, target_B: torch.Tensor, seen_K: torch.Tensor) -> torch.Tensor:
    """Codelengths in bits with probabilities mixed with uniform ones, float64 (K, B)."""
    index = target_B.expand(len(logits_KCB), 1, -1)
    own_KB = logits_KCB.double().log_softmax(1).gather(1, index)[:, 0].exp()
    seen_K1 = seen_K.double()[:, None]
    return -((seen_K1 * own_KB + 1.0 / logits_KCB.shape[1]) / (seen_K1 + 1.0)).log2()


def code_sizes(count: int) -> list[int]:
    """Ends of the blocks of the online code, in photographs."""
    return sorted({max(1, round(fraction * count)) for fraction in FRACTIONS})


def curve_sizes(count: int) -> list[int]:
    """Powers of two below the number of photographs, and that number."""
    return [2**k for k in range(count.bit_length()) if 2**k < count] + [count]


def grow(
    features: Features,
    task: Task,
    made: Linear,
    config: ProbeConfig,
    images: I64,
    group_N: I64 | None,
    basis: CovarianceBasis,
    orders: int,
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """Measure codelength and learning curve of a task. Returns ``codelength`` and ``curve`` of results.json.

    Args:
        made: linear probe trained on all photographs.
        group_N: bootstrap groups of all images, None for images.
        orders: number of random orders of the training photographs.
    """
    growing = Growing(features, task, made, config, basis, orders, advance)
    blocks, sizes = code_sizes(growing.count), curve_sizes(growing.count)
    code = _Code(growing, blocks)
    curve = _Curve(growing, images, None if group_N is None else group_N[images])
    code_converged, curve_converged = True, bool(made.describe()["converged"])
    for size in sorted({*blocks, *sizes} - {growing.count}):
        grown = growing.fitted(size, code=size in blocks)
        if size in blocks:
            code.add(size, grown)
            code_converged &= bool(grown.loss_converged)
        if size in sizes:
            curve.add(size, grown.by_accuracy, grown.accuracy_C)
            curve_converged &= grown.accuracy_converged
    curve.add(growing.count, made.heads, made.C)
    return {
        "codelength": code.describe(group_N) | {"converged": code_converged},
        "curve": curve.describe() | {"converged": curve_converged},
    }


class _Code:
    """Codelengths of each training photograph, by order."""

    def __init__(self, growing: Growing, ends: Sequence[int]) -> None:
        self.growing, self.ends = growing, list(ends)
        self.bits_ON = np.zeros((len(growing.order_ON), growing.task.distinct_TN.shape[1]))
        self.Cs: dict[int, float] = {}
        uniform = math.log2(len(growing.task.labels))
        for order_N, bits_N in zip(growing.order_ON, self.bits_ON, strict=True):
            first_N = order_N[: self.ends[0]]
            bits_N[first_N] = uniform * growing.task.distinct_TN[np.ix_(growing.task.train_T, first_N)].sum(axis=0)

    def add(self, size: int, grown: Grown) -> None:
        """Code the photographs of the block after ``size``."""
        growing, task = self.growing, self.growing.task
        self.Cs[size] = grown.loss_C
        end = self.ends[self.ends.index(size) + 1]
        full, device = growing.features.full(), growing.features.device
        for o, order_N in enumerate(growing.order_ON):
            t_R, n_R = task.rows(task.train_T, order_N[size:end])
            seen_1 = torch.tensor([float(growing.rows(order_N[:size]))], device=device)
            head = grown.by_loss.select([o])
            for start in range(0, len(t_R), _ROWS):
                t, n = t_R[start : start + _ROWS], n_R[start : start + _ROWS]
                target = torch.from_numpy(task.answers(t, n)).to(device)
                bits_B = growing.bits(head, full(t, n), target, seen_1)[0].cpu().numpy()
                np.add.at(self.bits_ON[o], n, bits_B)

    def describe(self, group_N: I64 | None) -> dict[str, Any]:
        """Bits per label and compression, with intervals over training photographs for given probes."""
        growing, config = self.growing, self.growing.config
        own_N = np.sort(growing.order_ON[0])
        rows_N = growing.task.distinct_TN[np.ix_(growing.task.train_T, own_N)].sum(axis=0)
        groups = None if group_N is None else group_N[own_N]
        uniform = math.log2(len(growing.task.labels))
        both = resample(
            *(np.stack([self.bits_ON[:, own_N].mean(axis=0), rows_N]), config.bootstrap, config.seed, groups),
            bounds=None,
            unit=config.resample_by,
        )
        total, labels = both.one(0), both.one(1)
        bits = replace(total, value=total.value / labels.value, replicates_R=total.replicates_R / labels.replicates_R)
        compression = replace(total, value=uniform / bits.value, replicates_R=uniform / bits.replicates_R)
        return {
            "bits": bits.entry(low=0.0),
            "compression": compression.entry(low=0.0),
            "uniform": uniform,
            "labels": int(rows_N.sum()),
            "blocks": {str(end): {"C": self.Cs.get(end)} for end in self.ends},
        }


class _Curve:
    """Test accuracy by number of training photographs; classes are scored on original photographs."""

    def __init__(self, growing: Growing, images: I64, group_N: I64 | None) -> None:
        self.growing, self.images, self.group_N = growing, images, group_N
        self.task = replace(growing.task, score_T=growing.task.train_T) if growing.task.by_image else growing.task
        self.sizes: list[int] = []
        self.Cs: list[float] = []
        self.found: list[list[BootstrapResult]] = []  # by size and order

    def add(self, size: int, heads: Heads, C: float) -> None:
        """Score the heads of each order, or one head for all orders."""
        growing, config = self.growing, self.growing.config
        right_STN = score(growing.features, self.task, heads, self.images).right_STN
        weight_T = uniform_over(self.task.score_T, len(growing.task.distinct_TN))
        every = [
            resample(s, config.bootstrap, config.seed, self.group_N, unit=config.resample_by).mean(weight_T)
            for s in right_STN
        ]
        self.sizes.append(size)
        self.Cs.append(C)
        self.found.append(every if len(every) > 1 else every * len(growing.order_ON))

    def describe(self) -> dict[str, Any]:
        """The curve and the number of photographs needed, with intervals over test photographs and orders."""
        value_AO = np.array([[one.value for one in every] for every in self.found])
        replicate_AOR = np.array([[one.replicates_R for one in every] for every in self.found])
        orders, count = replicate_AOR.shape[1:]
        rng = np.random.default_rng([self.growing.config.seed, 0x63757276])
        # one order less is drawn than there are, which gives the variance of their mean; for few orders deviations are
        # those of Student's distribution
        drawn = max(orders - 1, 1)
        times_RO = rng.multinomial(drawn, np.full(orders, 1 / orders), size=count) / drawn
        wider = float(stdtrit(drawn, 0.975)) / NormalDist().inv_cdf(0.975)
        mean_AR = replicate_AOR.mean(axis=1)
        replicate_AR = mean_AR + wider * (np.einsum("aor,ro->ar", replicate_AOR, times_RO) - mean_AR)
        replicate_AR = replicate_AR.clip(*ACCURACY)
        value_A, chance = value_AO.mean(axis=1), self.task.chance
        first = BootstrapResult(0.0, np.empty(0), self.found[0][0].units, unit=self.found[0][0].unit)
        points = [
            replace(first, value=float(v), replicates_R=r, bounds=ACCURACY)
            for v, r in zip(value_A, replicate_AR, strict=True)
        ]
        top = points[-1].ci95
        number = None
        if top is not None and top[0] > chance:
            each_R = [photographs_needed(self.sizes, own_A, chance) for own_A in replicate_AR.T]
            needed = photographs_needed(self.sizes, value_A, chance)
            number = replace(first, value=needed, replicates_R=np.array(each_R))
        return {
            "needed": number and number.entry(self.sizes[0], self.sizes[-1]),
            "chance": chance,
            "points": {
                str(size): {"accuracy": one.entry(), "C": C}
                for size, one, C in zip(self.sizes, points, self.Cs, strict=True)
            },
        }


def photographs_needed(sizes: Sequence[int], accuracy_A: F64, chance: float) -> float:
    """Photographs for `NEEDED` of the way from chance to the last accuracy.

    The first crossing of the curve, which is linear in the logarithm of the number between the sizes; at least the
    first size. NaN if the last accuracy is not above chance.
    """
    if not accuracy_A[-1] > chance:
        return math.nan
    goal = chance + NEEDED * (accuracy_A[-1] - chance)
    i = int(np.argmax(accuracy_A >= goal))
    if i == 0:
        return float(sizes[0])
    below, above = accuracy_A[i - 1 : i + 1]
    low, high = math.log2(sizes[i - 1]), math.log2(sizes[i])
    return float(2.0 ** (low + (high - low) * (goal - below) / (above - below)))
