"""Loss and gradient of linear heads, over all training rows.

Head k minimises ``sum_r weight_kr * cross_entropy(w x_r + b, target_r) + strength_k / 2 * |w|²``, with weights that sum
to 1 and an unpenalised intercept. All heads share the matrix products of each pass over the rows.

Shapes: R rows, B rows of a block, K heads, C classes, D embedding width, T transformations, N images, P = C * (D + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch

from substyle.engine.probes.batches import Features
from substyle.engine.probes.preconditioner import CovarianceMetric
from substyle.engine.probes.training_rows import Block, TrainingRows, block_rows, stored_rows
from substyle.kernels import split_products
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import linear_gradients

# Smallest fraction of training rows, between the first and the last one, for which whole slices of the table are read;
# other rows have weight 0. By count, gathering a row takes as long as two products with it.
DENSE = 0.5
_NO_LOSS = 1e-8  # nats, which leave nothing to gain; the loss of rows of a single class goes to 0 for ever

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss (K,), gradients of weights and of intercepts


class Objective:
    """Loss and gradient of selected heads, in one pass over the rows."""

    def __init__(self, rows: TrainingRows, features: Features, metric: CovarianceMetric) -> None:
        self.rows, self.features, self.metric = rows, features, metric
        variant_KT, image_KN = rows.shares()
        device, dtype, count = features.device, metric.strength_K.dtype, len(metric.strength_K)
        self.variant_KT = torch.from_numpy(variant_KT).to(device, dtype).expand(count, -1)
        self.image_KN = None if image_KN is None else torch.from_numpy(image_KN).to(device, dtype)
        outputs = count * len(rows.task.labels)
        self.size = min(len(rows.t_R), block_rows(rows.gathered_width, outputs, device))

    def __call__(self, u_KP: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss (K,) float64, gradient of coordinates (K, P), and largest gradient of weights relative to the loss (K,).

        Where rows can be separated, gradients shrink with the loss, however far the optimum is.
        """
        weight_KCD, bias_KC = self.metric.out(u_KP)
        strength_K11 = self.metric.strength_K[:, None, None]
        loss_K = 0.5 * (strength_K11 * weight_KCD.square()).sum((1, 2), dtype=torch.float64)
        part_K, dw_KCD, db_KC = self._cross_entropy(Heads(weight_KCD, bias_KC.contiguous()), heads)
        loss_K += part_K
        dw_KCD.addcmul_(strength_K11, weight_KCD)
        largest_K = torch.maximum(dw_KCD.abs().amax((1, 2)), db_KC.abs().amax(1))
        relative_K = torch.where(loss_K <= _NO_LOSS, 0.0, largest_K / loss_K)
        return loss_K, self.metric.gradient(dw_KCD, db_KC), relative_K

    def _cross_entropy(self, own: Heads, heads: torch.Tensor) -> Gradients:
        """Cross-entropy (K,) float64 of selected heads, which are ``own``, and its gradients."""

        def gradients(x_BD: torch.Tensor, target_B: torch.Tensor, share_KB: torch.Tensor) -> Gradients:
            return linear_gradients(own, x_BD, Term(target_B, weight_KB=share_KB))

        return self._sum(own, heads, gradients)

    def _sum(
        self,
        own: Heads,
        heads: torch.Tensor,
        gradients: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Gradients],
    ) -> Gradients:
        """Sum losses and gradients over all blocks."""
        loss_K = torch.zeros(len(own), dtype=torch.float64, device=own.w1.device)
        dw_KCD, db_KC = torch.zeros_like(own.w1), torch.zeros_like(own.b1)
        for x_BD, target_B, t_B, n_B, real_B in self._blocks():
            share_KB = self.variant_KT[heads[:, None], t_B] * real_B
            if self.image_KN is not None:
                share_KB *= self.image_KN[heads[:, None], n_B]
            total_K = share_KB.sum(1)  # weight of the block: `gradients` normalises weights to a sum of 1
            part_K, dw, db = gradients(x_BD, target_B, share_KB)
            loss_K += (part_K * total_K).double()
            dw_KCD.addcmul_(dw, total_K[:, None, None])
            db_KC.addcmul_(db, total_K[:, None])
        return loss_K, dw_KCD, db_KC

    @cached_property
    def kept(self) -> Block | None:
        """All rows as one block; None if they are not kept."""
        x_RD = self.rows.x_RD
        if x_RD is None:
            return None
        t_R, n_R, answer = (part.to(x_RD.device) for part in self.rows.where_drawn)
        return x_RD, self.rows.task.targets(answer, t_R, n_R), t_R, n_R, torch.ones(len(x_RD), device=x_RD.device)

    def _blocks(self) -> Iterator[Block]:
        """Yield all blocks."""
        if self.kept is None:
            yield from self.rows.gathered(self.features, self.size)
            return
        for x_BD, *others in zip(*(torch.split(part, self.size) for part in self.kept), strict=True):
            yield x_BD.to(self.features.dtype), *others


class StoredObjective(Objective):
    """The objective by products with rows as they are stored, in slices of the table.

    Standardisation is applied to the weights. Rows that do not count have weight 0.
    """

    @staticmethod
    def serves(rows: TrainingRows) -> bool:
        """Whether products need not be in float32, the table is in float16 on a GPU, and most of it counts."""
        features = rows.features
        if features.dtype == torch.float32 or features.stored is None or not split_products.available(features.device):
            return False
        return bool(len(rows.t_R) >= DENSE * (rows.span.stop - rows.span.start))

    def __init__(self, rows: TrainingRows, features: Features, metric: CovarianceMetric) -> None:
        super().__init__(rows, features, metric)
        self.size = stored_rows(len(self.variant_KT) * len(rows.task.labels), features.device)
        self.counts_R = upload(rows.count_TN.ravel()[rows.span], features.device)
        self.answer = rows.where_drawn[2]

    def _cross_entropy(self, own: Heads, heads: torch.Tensor) -> Gradients:
        own = self.features.for_stored(own)
        gradients = partial(split_products.linear_gradients, own, split_products.split_weights(own))
        loss_K, dw_KCD, db_KC = self._sum(own, heads, gradients)
        return loss_K, self.features.from_stored(dw_KCD, db_KC), db_KC

    def _blocks(self) -> Iterator[Block]:
        """Yield slices of the table."""
        x_RD, span, images = self.features.stored, self.rows.span, self.rows.count_TN.shape[1]
        assert x_RD is not None
        for first in range(span.start, span.stop, self.size):
            row_B = torch.arange(first, min(first + self.size, span.stop), device=x_RD.device)
            t_B = row_B // images
            n_B = row_B - t_B * images
            own = slice(first - span.start, first - span.start + len(row_B))
            # rows that do not count may have no answer
            target_B = self.rows.task.targets(self.answer, t_B, n_B).clamp_(min=0)
            yield x_RD[first : first + len(row_B)], target_B, t_B, n_B, self.counts_R[own]
