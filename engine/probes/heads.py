"""Banks of heads: a grid of settings trained on the same batches, on a GPU with captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda
from substyle.engine.probes.batches import BatchPart, Features, StepBlock, StepSchedule
from substyle.engine.probes.config import ProbeConfig
from substyle.kernels import dispatch
from substyle.kernels.dispatch import upload
from substyle.kernels.probe_data import LEVELS, draw_masks, gather
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import step


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        width: hidden units H, 0 for a linear head.
        group: group of settings from which validation selects one.
        loss: weight of each part of the loss.
        score: weight of each part in the validation accuracy.
        depth: hidden layers of an MLP.
    """

    lr: float
    weight_decay: float
    width: int
    group: str = ""
    loss: tuple[float, ...] = (1.0,)
    score: tuple[float, ...] = (1.0,)
    depth: int = 1

    def describe(self) -> dict[str, Any]:
        """The setting as JSON; the width of a head without hidden units is null."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "width": self.width or None}

    def bank(
        self, settings: Sequence[Setting], features: Features, outputs: int, seeds: Sequence[int], dropout: float
    ) -> HeadBank:
        """The heads of settings of this kind, of one width and depth, with initial weights."""
        return HeadBank.of(settings, features.width, outputs, seeds, dropout, features.device)


def grid(config: ProbeConfig) -> list[Setting]:
    """The settings of a single-task MLP."""
    mlp = product(config.mlp_learning_rates, config.expert.mlp_weight_decays, config.widths)
    return [Setting(lr, wd, width) for lr, wd, width in mlp]


def initial(
    width: int,
    inputs: int,
    outputs: int,
    settings: int,
    seeds: Sequence[int],
    device: torch.device,
    depth: int = 1,
) -> Heads:
    """Initialise heads in setting-major order (head k has seed k % S); weights depend only on the seed.

    Weights and biases are uniform in ±1/sqrt(fan-in), as in ``torch.nn.Linear``.

    Args:
        width: hidden units H of each layer, 0 for linear heads.
        depth: hidden layers.
    """
    between = [(width, width)] * (depth - 1)
    sizes = [(outputs, inputs)] if width == 0 else [(width, inputs), *between, (outputs, width)]
    shapes = [(shape, size[1] ** -0.5) for size in sizes for shape in (size, size[:1])]
    rngs = [np.random.Generator(np.random.PCG64([seed, 0x696E6974])) for seed in seeds]
    return Heads(*(repeated([uniform(rng, *one) for rng in rngs], settings, device) for one in shapes))


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
    """Uniform numbers within ±``bound``."""
    return rng.random(shape, dtype=np.float32) * np.float32(2 * bound) - np.float32(bound)


def repeated(draws: Sequence[NDArray[np.float32]], settings: int, device: torch.device) -> torch.Tensor:
    """Values of each seed for each setting, setting-major."""
    of_seeds = torch.from_numpy(np.stack(draws)).to(device)
    whole = dispatch.empty((settings, *of_seeds.shape), torch.float32, device)
    return whole.copy_(of_seeds).flatten(0, 1)


def takes_turns(width: int, device: torch.device) -> bool:
    """Whether heads are trained one after another in each block of steps.

    So MLPs on a CPU keep weights and moments (14 bytes per parameter) in the cache. Linear heads, and all heads on a
    GPU, share their matrix products.
    """
    return width > 0 and device.type == "cpu"


def replays(device: torch.device) -> bool:
    """Whether training steps and validations are captured in CUDA graphs."""
    return device.type == "cuda"


class HeadBank:
    """The heads of settings of one width and depth with all seeds, setting-major.

    Args:
        seeds: seeds of initial weights and dropout; all settings share the masks of a seed.
        pieces: the heads, all together or each alone.
        threshold: dropout threshold, see `probe_data.draw_masks`; 0 for none.
        in_blocks: whether steps are taken in blocks.
        replayed: whether steps and validations are captured in CUDA graphs, and replayed.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        pieces: list[Heads],
        *,
        threshold: int = 0,
        in_blocks: bool = True,
        replayed: bool = False,
    ) -> None:
        self.settings, self.seeds, self.pieces = list(settings), list(seeds), pieces
        self.threshold, self.in_blocks, self.replayed = threshold, in_blocks, replayed
        self.hidden = settings[0].width * settings[0].depth  # units of all hidden layers
        self.lessons: list[StepSpec] = []
        self._kept_nSHB: torch.Tensor | None = None
        self._steps: Steps | None = None
        self._judged: dict[int, cuda.Captured[torch.Tensor]] = {}

    @classmethod
    def of(
        cls,
        settings: Sequence[Setting],
        inputs: int,
        outputs: int,
        seeds: Sequence[int],
        dropout: float,
        device: torch.device,
    ) -> HeadBank:
        """Linear heads or MLPs with initial weights.

        Args:
            dropout: probability that a hidden unit is dropped, rounded to 1/256.
        """
        width, depth, replayed = settings[0].width, settings[0].depth, replays(device)
        in_turn = takes_turns(width, device)
        if in_turn:
            every = initial(width, inputs, outputs, 1, seeds, device, depth).parameters
            pieces = [Heads(*(dispatch.copy(p[s : s + 1]) for p in every)) for _ in settings for s in range(len(seeds))]
        else:
            pieces = [initial(width, inputs, outputs, len(settings), seeds, device, depth)]
        threshold = round(dropout * LEVELS) if width else 0
        return cls(settings, seeds, pieces, threshold=threshold, in_blocks=in_turn or replayed, replayed=replayed)

    def parameters(self, g: int) -> list[torch.Tensor]:
        """A copy of the weights of setting g, first axis S seeds."""
        own = slice(g * len(self.seeds), (g + 1) * len(self.seeds))
        if len(self.pieces) == 1:
            return [dispatch.copy(p[own]) for p in self.pieces[0].parameters]
        return [torch.cat(seeds) for seeds in zip(*(piece.parameters for piece in self.pieces[own]), strict=True)]

    def learn(self, block: StepBlock, parts: Sequence[BatchPart]) -> None:
        """Train every head on every step of a block."""
        count = len(self.seeds)
        if not self.lessons:
            of_heads = [s for s in self.settings for _ in range(count)]
            per_piece = [of_heads] if len(self.pieces) == 1 else [[s] for s in of_heads]
            self.lessons = [StepSpec(own, block.script.rows, parts, block.features.device) for own in per_piece]
        kept = self._masks(block)
        if self.replayed:
            self._steps = self._steps or Steps(self.pieces[0], self.lessons[0], block, kept)
            self._steps.take(len(block))
            return
        for place, (piece, lesson) in enumerate(zip(self.pieces, self.lessons, strict=True)):
            seed = slice(None) if len(self.pieces) == 1 else slice(place % count, place % count + 1)
            lesson.take(piece, block, None if kept is None else replace(kept, mask_nSHB=kept.mask_nSHB[:, seed]))

    def _masks(self, block: StepBlock) -> Kept | None:
        """Dropout masks of the steps of a block, which overwrite those of the previous one."""
        if self.threshold == 0:
            return None
        most, size = len(block.script.word_nP), block.script.rows[-1].stop
        if self._kept_nSHB is None:
            shape = most, len(self.seeds), self.hidden, size
            self._kept_nSHB = dispatch.empty(shape, torch.bool, block.features.device)
        draw_masks(self._kept_nSHB[: len(block)], self.seeds, self.pieces[0].steps, self.threshold)
        return Kept(self._kept_nSHB, 1.0 - self.threshold / LEVELS)

    def judged(self, number: int, judge: Callable[[Heads], torch.Tensor]) -> NDArray[np.float64]:
        """Result of a validation, whose last axis are the heads.

        Args:
            number: index of the validation within the training.
            judge: queues the validation; must be the same function for each ``number``.
        """
        if not self.replayed:
            return torch.cat([judge(piece) for piece in self.pieces], -1).cpu().numpy()
        (heads,) = self.pieces
        if number not in self._judged:
            self._judged[number] = cuda.Captured(lambda stream: judge(heads), heads.w1.device)
        result: NDArray[np.float64] = self._judged[number].replay().cpu().numpy()
        return result


@dataclass(frozen=True)
class Kept:
    """Dropout masks of n steps, (n, S, L*H, B) bool, and the probability of keeping a unit."""

    mask_nSHB: torch.Tensor
    keep: float


class StepSpec:
    """Constants of the training steps of a piece: rows of the batch, loss terms, learning rates.

    Rows of parts that none of its heads learn are skipped.
    """

    def __init__(
        self, settings: Sequence[Setting], rows: Sequence[slice], parts: Sequence[BatchPart], device: torch.device
    ) -> None:
        self.parts = [i for i in range(len(parts)) if any(s.loss[i] > 0 for s in settings)]
        self.rows = slice(rows[self.parts[0]].start, rows[self.parts[-1]].stop)
        self.scales = [_scale([s.loss[i] for s in settings], device) for i in self.parts]
        self.outputs = [parts[i].task.outputs for i in self.parts]
        start = self.rows.start
        self.spans = [slice(rows[i].start - start, rows[i].stop - start) for i in self.parts]
        rates = [s.lr for s in settings], [s.weight_decay for s in settings]
        self.lr_K, self.decay_K = (upload(np.array(each, np.float64), device) for each in rates)

    def take(self, heads: Heads, block: StepBlock, kept: Kept | None) -> None:
        """Perform the steps of a block whose features are gathered."""
        assert block.x_nBD is not None
        for i, x_BD in enumerate(block.x_nBD):
            self.step(heads, x_BD, block.script, i, kept)

    def step(self, heads: Heads, x_BD: torch.Tensor, script: StepSchedule, i: int, kept: Kept | None) -> torch.Tensor:
        """Perform step i of a schedule on these features. Returns the loss of each head before it."""
        terms = [
            Term(script.targets[part][i], span, outputs, scale)
            for part, span, outputs, scale in zip(self.parts, self.spans, self.outputs, self.scales, strict=True)
        ]
        mask_SHB, keep = (None, 1.0) if kept is None else (kept.mask_nSHB[i, :, :, self.rows], kept.keep)
        rates = self.lr_K, self.decay_K
        return step(heads, x_BD[self.rows], terms, *rates, now_3=script.now_n3[i], kept_SHB=mask_SHB, keep=keep)


def _scale(loss_K: Sequence[float], device: torch.device) -> torch.Tensor | None:
    return None if all(v == 1.0 for v in loss_K) else torch.tensor(loss_K, dtype=torch.float32, device=device)


class Steps:
    """Captured training steps of heads: a step reads a block at a counter on the device, which it increments.

    Args:
        block: first block of steps; later ones use the same memory, also ``kept``.
    """

    def __init__(self, heads: Heads, lesson: StepSpec, block: StepBlock, kept: Kept | None) -> None:
        self._step = _Step(heads, lesson, block, kept)
        self.loss_K = torch.empty(0, device=heads.w1.device)  # before the last step
        self._captured: cuda.Captured[torch.Tensor] | None = None

    def take(self, count: int) -> None:
        """Queue the first ``count`` scheduled steps.

        The step is captured once ``count`` exceeds the warm-up runs, which are training steps too.
        """
        work = self._step
        work.at.zero_()
        taken, left = work.heads.steps, count
        if self._captured is None and count > cuda.WARM:
            self._captured = cuda.Captured(lambda stream: work(), work.at.device)
            left -= cuda.WARM
        for _ in range(left):
            self.loss_K = work() if self._captured is None else self._captured.replay()
        work.heads.steps = taken + count


class _Step:
    """The scheduled step at a counter on the device; arguments as in :class:`Steps`."""

    def __init__(self, heads: Heads, lesson: StepSpec, block: StepBlock, kept: Kept | None) -> None:
        self.heads, self.lesson, self.block, self.kept = heads, lesson, block, kept
        features, device = block.features, heads.w1.device
        self.now = StepSchedule.of(1, block.script.rows, device)
        self.x_BD = torch.empty(block.script.rows[-1].stop, features.width, dtype=features.dtype, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        heads.start()  # allocate persistent buffers outside of the capture

    def __call__(self) -> torch.Tensor:
        """Perform the step. Returns the losses before it."""
        now, block, features = self.now, self.block, self.block.features
        block.script.step(self.at, now)
        gather(block.x_RD, now.row_nB[0], features.mean, features.scale, self.x_BD, block.scale_R)
        kept = self.kept and replace(self.kept, mask_nSHB=self.kept.mask_nSHB.index_select(0, self.at))
        loss_K = self.lesson.step(self.heads, self.x_BD, now, 0, kept)
        self.at.add_(1)
        return loss_K
