"""The heads of one width, in the pieces in which they train.

Linear heads, and all heads on a GPU, are one piece: each of their GEMMs is one for all. On a CPU a head with a hidden
layer is a piece of its own, which takes several steps before the next one's turn: its weights and moments (14 bytes
for each parameter) then stay in the cache, where all heads' together would come from memory at each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from substyle.engine.probes.batches import Block, Part
from substyle.engine.probes.heads import Dropout, Setting, initial
from substyle.engine.probes.script import Queue
from substyle.kernels import memory
from substyle.kernels.probe_heads import Heads, Scratch, Term
from substyle.kernels.probe_step import step


def takes_turns(width: int, device: torch.device) -> bool:
    """Whether heads of a width are pieces of their own there."""
    return width > 0 and device.type == "cpu"


class Bank:
    """The heads of some settings of one width with all seeds, setting-major."""

    def __init__(
        self,
        settings: Sequence[Setting],
        inputs: int,
        outputs: int,
        seeds: Sequence[int],
        dropout: float,
        device: torch.device,
    ) -> None:
        self.settings, self.seeds, self.width = list(settings), len(seeds), settings[0].width
        self.dropout = Dropout(dropout, seeds)
        self.scratch = Scratch()
        self.in_turn = takes_turns(self.width, device)
        if self.in_turn:
            every = initial(self.width, inputs, outputs, 1, seeds, device).parameters
            self.pieces = [
                Heads(*(memory.copy(p[s : s + 1]) for p in every), scratch=self.scratch)
                for _ in settings
                for s in range(len(seeds))
            ]
        else:
            self.pieces = [initial(self.width, inputs, outputs, len(settings), seeds, device)]
        self.lessons: list[Lesson] = []

    def parameters(self, g: int) -> list[torch.Tensor]:
        """A copy of the weights of setting g, first axis S seeds."""
        own = slice(g * self.seeds, (g + 1) * self.seeds)
        if not self.in_turn:
            return [memory.copy(p[own]) for p in self.pieces[0].parameters]
        return [torch.cat(seeds) for seeds in zip(*(piece.parameters for piece in self.pieces[own]), strict=True)]

    def learn(self, block: Block | Queue, parts: Sequence[Part]) -> None:
        """Take every step of a block with every head."""
        assert isinstance(block, Block)
        kept = self._masks(block)
        if not self.lessons:
            per_piece = [[s] for s in self.settings for _ in range(self.seeds)]
            if not self.in_turn:
                per_piece = [[s for own in per_piece for s in own]]
            self.lessons = [Lesson(own, block.rows, parts, block.x_nBD.device) for own in per_piece]
        for place, (piece, lesson) in enumerate(zip(self.pieces, self.lessons, strict=True)):
            seed = slice(place % self.seeds, place % self.seeds + 1) if self.in_turn else slice(None)
            masks = [None if mask is None else mask[seed] for mask in kept]
            lesson.take(piece, block, masks, self.dropout.keep)

    def _masks(self, block: Block) -> list[torch.Tensor | None]:
        """Dropout masks of every step, (S, H, B), in memory that the next block's overwrite."""
        if self.width == 0 or self.dropout.threshold == 0:
            return [None] * len(block)
        shape = len(block), self.seeds, self.width, block.x_nBD.shape[1]
        kept = self.scratch.array("kept", shape, torch.bool, block.x_nBD.device)
        for mask in kept:
            self.dropout.masks(mask)
        return list(kept)


class Lesson:
    """What is the same at every step of a piece: its rows of the batch, its terms, its rates.

    Rows of a part that none of its heads learns are left out.
    """

    def __init__(
        self, settings: Sequence[Setting], rows: Sequence[slice], parts: Sequence[Part], device: torch.device
    ) -> None:
        self.parts = [i for i in range(len(parts)) if any(s.loss[i] > 0 for s in settings)]
        self.rows = slice(rows[self.parts[0]].start, rows[self.parts[-1]].stop)
        self.scales = [_scale([s.loss[i] for s in settings], device) for i in self.parts]
        self.outputs = [parts[i].outputs for i in self.parts]
        start = self.rows.start
        self.spans = [slice(rows[i].start - start, rows[i].stop - start) for i in self.parts]
        self.lr = np.array([s.lr for s in settings])
        self.decay = np.array([s.weight_decay for s in settings])

    def take(self, heads: Heads, block: Block, masks: Sequence[torch.Tensor | None], keep: float) -> None:
        """The steps of a block."""
        for x_BD, targets, rate, mask in zip(block.x_nBD, block.targets, block.rates, masks, strict=True):
            terms = [
                Term(targets[i], span, outputs, scale)
                for i, span, outputs, scale in zip(self.parts, self.spans, self.outputs, self.scales, strict=True)
            ]
            kept = None if mask is None else mask[:, :, self.rows]
            step(heads, x_BD[self.rows], terms, self.lr * rate, self.decay, kept_SHB=kept, keep=keep)


def _scale(loss_K: Sequence[float], device: torch.device) -> torch.Tensor | None:
    return None if all(v == 1.0 for v in loss_K) else torch.tensor(loss_K, dtype=torch.float32, device=device)
