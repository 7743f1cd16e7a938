"""Training rows of linear heads, their features and weights, and the blocks in which they are read.

Shapes: R rows, K heads, T transformations, N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.probes import batches
from substyle.engine.probes.batches import Features
from substyle.engine.probes.loader import Drawn
from substyle.engine.probes.tasks import F64, I64, Task
from substyle.kernels import dispatch, split_products
from substyle.kernels.dispatch import upload

# Maximum bytes of float32 features, and maximum number of logits, of a block. On a GPU operations must take longer than
# their launches: by count, a pass over 37.5 million rows of width 768 has 15,000 launches, 60,000 with blocks of a CPU.
_ON_CPU, _ON_GPU = (64 << 20, 1 << 24), (256 << 20, 1 << 25)
# Fewest and most rows of a block: kernels have a program for every 32, and at most 65,535. Slices have whole pieces of
# a sum.
_LEAST_ROWS, _MOST_ROWS, _PIECES = 256, 1 << 20, (split_products.PIECE, 128)

Block = tuple[torch.Tensor, ...]  # features, targets, transformations, images, and 0 for rows that do not count


@dataclass(frozen=True)
class TrainingRows:
    """Training rows and their weights for K heads.

    Attributes:
        variant_KT: weight of each transformation for each head, or (1, T) for all; 0 excludes it.
        image_KN: weight of each image for each head; None for 1.
    """

    features: Features
    task: Task
    variant_KT: F64
    image_KN: F64 | None = None
    t_R: I64 = field(init=False)
    n_R: I64 = field(init=False)

    def __post_init__(self) -> None:
        seen_T = self.task.train_T[self.variant_KT[:, self.task.train_T].any(axis=0)]
        t_R, n_R = self.task.rows(seen_T, self.task.train_N)
        object.__setattr__(self, "t_R", t_R)
        object.__setattr__(self, "n_R", n_R)

    def with_image_weights(self, image_KN: F64) -> TrainingRows:
        """The same rows with other weights of images; rows of weight 0 are not left out. They are gathered once."""
        self.x_RD  # noqa: B018 - copied with the rest
        other = copy(self)
        vars(other).update(image_KN=image_KN)
        return other

    @cached_property
    def x_RD(self) -> torch.Tensor | None:
        """Features (R, D) in float32; None if they are larger than `batches.KEPT`.

        A gather takes as long as several products with a single head.
        """
        full, count = self.features.full(), len(self.t_R)
        if count * full.width * full.dtype.itemsize > batches.KEPT:
            return None
        x_RD = dispatch.empty((count, full.width), full.dtype, full.device)
        size = min(count, rows_of_width(self.gathered_width, full.device))
        for own_BD, (x_BD, *_) in zip(torch.split(x_RD, size), self.gathered(full, size), strict=True):
            own_BD.copy_(x_BD[: len(own_BD)])
        return x_RD

    @property
    def gathered_width(self) -> int:
        """Width of gathered rows: that of the embeddings, if they are projected to a smaller one."""
        return max(self.features.width, self.features.held.table.width)

    def at(self, pick: I64) -> torch.Tensor:
        """Features of picked rows, in float32."""
        if self.x_RD is None:
            return self.features.full()(self.t_R[pick], self.n_R[pick])
        return self.x_RD[upload(pick, self.x_RD.device)]

    def gathered(self, features: Features, size: int) -> Iterator[Block]:
        """Gather blocks of rows; each is overwritten by the next. The last one is padded.

        Args:
            features: the features in the dtype of the blocks.
            size: rows of a block.
        """
        held, count = features.held, len(self.t_R)
        x_BD = dispatch.empty((size, features.width), features.dtype, features.device)
        t_R, n_R, answer = self.where_drawn

        def draw(first: int, steps: int) -> Drawn:
            place = torch.arange(first * size, (first + steps) * size, device=held.drawn_on)
            place = place.clamp_(max=count - 1).view(steps, size)
            t_nB, n_nB = t_R[place], n_R[place]
            return Drawn(t_nB, n_nB, [self.task.targets(answer, t_nB, n_nB)])

        real = torch.ones(size, device=x_BD.device)
        steps = -(-count // size)
        with closing(held.feed(draw, size, steps)) as feed:
            for step in range(steps):
                drawn, placed = feed.take(1)
                if (step + 1) * size > count:
                    real[count - step * size :] = 0.0
                features.of(placed, placed.row_nB[0], x_BD)
                yield x_BD, drawn.targets[0][0], drawn.t_nB[0], drawn.n_nB[0], real

    @cached_property
    def where_drawn(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``t_R``, ``n_R`` and ``task.answer`` on the device on which steps are drawn."""
        device = self.features.held.drawn_on
        return upload(self.t_R, device), upload(self.n_R, device), upload(self.task.answer, device)

    @cached_property
    def count_TN(self) -> NDArray[np.bool_]:
        """Whether each row of the table is a training row."""
        count_TN = np.zeros(self.task.distinct_TN.shape, np.bool_)
        count_TN[self.t_R, self.n_R] = True
        return count_TN

    @cached_property
    def span(self) -> slice:
        """Rows of the table (T * N, D) from the first training row to the last."""
        count_R = self.count_TN.ravel()
        return slice(int(count_R.argmax()), len(count_R) - int(count_R[::-1].argmax()))

    def shares(self) -> tuple[F64, F64 | None]:
        """``variant_KT`` normalised so that each head's row weights sum to 1, and ``image_KN``."""
        if self.image_KN is None:
            rows_KT = np.broadcast_to(self.count_TN.sum(axis=1), self.variant_KT.shape)
        else:
            rows_KT = self.image_KN @ self.count_TN.T
        return self.variant_KT / (self.variant_KT * rows_KT).sum(axis=1, keepdims=True), self.image_KN


def block_rows(width: int, outputs: int, device: torch.device) -> int:
    """Rows of a block of features of a width, before a projection, for heads with so many outputs in all."""
    return max(_LEAST_ROWS, min(rows_of_width(width, device), _most(device)[1] // outputs))


def stored_rows(outputs: int, device: torch.device) -> int:
    """Rows of a slice of the table, for heads with so many outputs in all."""
    most = min(_MOST_ROWS, _most(device)[1] // outputs)
    return next((most // piece * piece for piece in _PIECES if most >= piece), _PIECES[-1])


def rows_of_width(width: int, device: torch.device) -> int:
    return max(_LEAST_ROWS, min(_MOST_ROWS, _most(device)[0] // (4 * width)))


def _most(device: torch.device) -> tuple[int, int]:
    return _ON_CPU if device.type == "cpu" else _ON_GPU
