"""Banks of heads: a grid of settings trained as one batch, on a GPU as captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda
from substyle.engine.probes.batches import BatchPart, Queue, StepBlock
from substyle.engine.probes.config import ProbeConfig
from substyle.kernels import dispatch, probe_data
from substyle.kernels.dispatch import installed, upload
from substyle.kernels.probe_data import gather
from substyle.kernels.probe_heads import Heads, Scratch, Term
from substyle.kernels.probe_step import step
from substyle.kernels.probe_step_gpu import Dropped, Loss, Rates, shares, step_on_gpu


@dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        width: hidden units H, 0 for a linear head.
        group: settings of one group compete; validation picks one of each.
        loss: weight of each part of the loss.
        score: weight of each part in the validation accuracy.
    """

    lr: float
    weight_decay: float
    width: int
    group: str = ""
    loss: tuple[float, ...] = (1.0,)
    score: tuple[float, ...] = (1.0,)

    def describe(self) -> dict[str, Any]:
        """In plain JSON; the width of a linear head is null."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "width": self.width or None}


def grid(config: ProbeConfig) -> list[Setting]:
    """The settings of a single-task MLP."""
    mlp = product(config.mlp_learning_rates, config.mlp_weight_decays, config.widths)
    return [Setting(lr, wd, width) for lr, wd, width in mlp]


def initial(width: int, inputs: int, outputs: int, settings: int, seeds: Sequence[int], device: torch.device) -> Heads:
    """Heads in setting-major order (head k has seed k % S), all settings of a seed with the same initial weights.

    Weights and biases are uniform in ±1/sqrt(fan-in), as in ``torch.nn.Linear``.
    """
    sizes = [(outputs, inputs)] if width == 0 else [(width, inputs), (outputs, width)]
    tensors: list[torch.Tensor] = []
    rngs = [np.random.Generator(np.random.PCG64([seed, 0x696E6974])) for seed in seeds]
    for size in sizes:
        bound = size[1] ** -0.5
        for shape in (size, size[:1]):
            draws = [rng.random(shape, dtype=np.float32) * np.float32(2 * bound) - np.float32(bound) for rng in rngs]
            of_seeds = torch.from_numpy(np.stack(draws)).to(device)
            whole = dispatch.empty((settings, *of_seeds.shape), torch.float32, device).copy_(of_seeds)
            tensors.append(whole.flatten(0, 1))
    return Heads(*tensors)


class Dropout:
    """Masks of the hidden layer, one for each seed and step; settings of one seed share them.

    A mask is one random byte for each unit, so that the drop probability is rounded to 1/256. The bytes come from the
    device that trains: a GPU's differ from a CPU's. Steps that a GPU replays key them by seed and step instead
    (``kernels.dropout``) and take the threshold from here.
    """

    def __init__(self, probability: float, seeds: Sequence[int]) -> None:
        self.threshold = round(probability * 256)
        self.keep = 1.0 - self.threshold / 256
        self.seeds = seeds
        self.bits = [np.random.SFC64([seed, 0x64726F70]) for seed in seeds]
        self.generators: list[torch.Generator] = []

    def masks(self, out_SHB: torch.Tensor) -> None:
        """Draw the masks of a step: True where kept. Shape: (S, H, B) bool."""
        count = out_SHB[0].numel()
        if out_SHB.device.type == "cpu":
            for bits, own in zip(self.bits, out_SHB.view(len(self.seeds), count).numpy(), strict=True):
                np.greater_equal(host_bytes(bits, count), self.threshold, out=own)
        else:
            out_SHB.copy_((self.device_bytes(count, out_SHB.device) >= self.threshold).view(out_SHB.shape))

    def device_bytes(self, count: int, device: torch.device) -> torch.Tensor:
        """Random bytes of every seed, made by torch where they are used. Shape: (S, count)."""
        if not self.generators:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        made = [torch.randint(256, (count,), generator=g, device=device, dtype=torch.uint8) for g in self.generators]
        return torch.stack(made)


def host_bytes(bits: np.random.SFC64, count: int) -> NDArray[np.uint8]:
    """Random bytes, made several times faster than torch makes them on a CPU. Shape: (count,)."""
    return bits.random_raw(-(-count // 8)).view(np.uint8)[:count]


# The heads of one width, in the pieces in which they train.
#
# Linear heads, and all heads on a GPU, are one piece: each of their GEMMs is one for all. On a CPU a head with a hidden
# layer is a piece of its own, which takes several steps before the next one's turn: its weights and moments (14 bytes
# for each parameter) then stay in the cache, where all heads' together would come from memory at each step.


def takes_turns(width: int, device: torch.device) -> bool:
    """Whether heads of a width are pieces of their own there."""
    return width > 0 and device.type == "cpu"


class HeadBank:
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
                Heads(*(dispatch.copy(p[s : s + 1]) for p in every), scratch=self.scratch)
                for _ in settings
                for s in range(len(seeds))
            ]
        else:
            self.pieces = [initial(self.width, inputs, outputs, len(settings), seeds, device)]
        self.lessons: list[StepSpec] = []

    def parameters(self, g: int) -> list[torch.Tensor]:
        """A copy of the weights of setting g, first axis S seeds."""
        own = slice(g * self.seeds, (g + 1) * self.seeds)
        if not self.in_turn:
            return [dispatch.copy(p[own]) for p in self.pieces[0].parameters]
        return [torch.cat(seeds) for seeds in zip(*(piece.parameters for piece in self.pieces[own]), strict=True)]

    def learn(self, block: StepBlock | Queue, parts: Sequence[BatchPart]) -> None:
        """Take every step of a block with every head."""
        assert isinstance(block, StepBlock)
        kept = self._masks(block)
        if not self.lessons:
            per_piece = [[s] for s in self.settings for _ in range(self.seeds)]
            if not self.in_turn:
                per_piece = [[s for own in per_piece for s in own]]
            self.lessons = [StepSpec(own, block.rows, parts, block.x_nBD.device) for own in per_piece]
        for place, (piece, lesson) in enumerate(zip(self.pieces, self.lessons, strict=True)):
            seed = slice(place % self.seeds, place % self.seeds + 1) if self.in_turn else slice(None)
            masks = [None if mask is None else mask[seed] for mask in kept]
            lesson.take(piece, block, masks, self.dropout.keep)

    def _masks(self, block: StepBlock) -> list[torch.Tensor | None]:
        """Dropout masks of every step, (S, H, B), in memory that the next block's overwrite."""
        if self.width == 0 or self.dropout.threshold == 0:
            return [None] * len(block)
        shape = len(block), self.seeds, self.width, block.x_nBD.shape[1]
        kept = self.scratch.array("kept", shape, torch.bool, block.x_nBD.device)
        for mask in kept:
            self.dropout.masks(mask)
        return list(kept)


class StepSpec:
    """What is the same at every step of a piece: its rows of the batch, its terms, its rates.

    Rows of a part that none of its heads learns are left out.
    """

    def __init__(
        self, settings: Sequence[Setting], rows: Sequence[slice], parts: Sequence[BatchPart], device: torch.device
    ) -> None:
        self.parts = [i for i in range(len(parts)) if any(s.loss[i] > 0 for s in settings)]
        self.rows = slice(rows[self.parts[0]].start, rows[self.parts[-1]].stop)
        self.scales = [_scale([s.loss[i] for s in settings], device) for i in self.parts]
        self.outputs = [parts[i].outputs for i in self.parts]
        start = self.rows.start
        self.spans = [slice(rows[i].start - start, rows[i].stop - start) for i in self.parts]
        self.lr = np.array([s.lr for s in settings])
        self.decay = np.array([s.weight_decay for s in settings])

    def take(self, heads: Heads, block: StepBlock, masks: Sequence[torch.Tensor | None], keep: float) -> None:
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


# Training on a GPU without its host: a step of all heads of a width is captured once and replayed.
#
# A step gathers its rows, learns from them and advances a counter; which rows, which answers, which learning rate and
# which dropout it takes lies on the device for many steps ahead (`script`), and the counter points to it. The first
# steps of a training run as any others while libraries choose their algorithms; the next one is captured. So is a
# validation, whose numbers come to the host in one copy.


def replays(device: torch.device) -> bool:
    """Whether steps are captured there: on a GPU, with kernels that read every number from it."""
    return device.type == "cuda" and installed()


class Replay:
    """Captured work, whose result lies in the same memory each time; `cuda.WARM` times it is done before that."""

    def __init__(self, work: Callable[[], torch.Tensor], device: torch.device) -> None:
        _, self._graph, self._result = cuda.capture(lambda stream: work(), device)

    def __call__(self) -> torch.Tensor:
        """Queue it once more."""
        self._graph.replay()
        return self._result


class DeviceHeadBank(HeadBank):
    """The heads of one width, all in one piece, whose steps and validations are replayed."""

    def __init__(
        self,
        settings: Sequence[Setting],
        inputs: int,
        outputs: int,
        seeds: Sequence[int],
        dropout: float,
        device: torch.device,
    ) -> None:
        super().__init__(settings, inputs, outputs, seeds, dropout, device)
        self._steps: Steps | None = None
        self._judged: dict[int, Replay] = {}

    def learn(self, block: StepBlock | Queue, parts: Sequence[BatchPart]) -> None:
        """Take every step of a queue with every head."""
        assert isinstance(block, Queue)
        (heads,) = self.pieces
        if self._steps is None:
            settings = [setting for setting in self.settings for _ in range(self.seeds)]
            threshold = self.dropout.threshold if self.width else 0
            lesson = StepSpec(settings, block.rows, parts, heads.w1.device)
            self._steps = Steps(heads, lesson, block, self.dropout.seeds, threshold)
        self._steps.take(len(block))

    def judged(self, number: int, judge: Callable[[Heads], torch.Tensor]) -> NDArray[np.float64]:
        """What a validation says of the heads.

        Args:
            number: which of the validations of a training it is.
            judge: queues it, and is the same for a number.
        """
        (heads,) = self.pieces
        if number not in self._judged:
            self._judged[number] = Replay(lambda: judge(heads), heads.w1.device)
        result: NDArray[np.float64] = self._judged[number]().cpu().numpy()
        return result


class Steps:
    """The steps of some heads.

    Args:
        heads: that learn.
        lesson: what they learn of a batch, and how fast.
        queue: of the training's first steps; those of its later ones lie in the same memory.
        seeds: of dropout; head k has the mask of seed k % S.
        threshold: of dropout, 0 for none.
    """

    def __init__(self, heads: Heads, lesson: StepSpec, queue: Queue, seeds: Sequence[int], threshold: int) -> None:
        self.heads, self.lesson, self.queue, self.threshold = heads, lesson, queue, threshold
        script, features, device = queue.script, queue.features, heads.w1.device
        self.x_BD = torch.empty(script.row_nB.shape[1], features.width, dtype=features.dtype, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.lr_K, self.decay_K = (upload(v.astype(np.float32), device) for v in (lesson.lr, lesson.decay))
        self.key_S = probe_data.device_keys(seeds, device)
        self.shares = [
            shares(Term(script.targets[i], scale_K=scale), len(heads), span.stop - span.start, device)
            for i, span, scale in zip(lesson.parts, lesson.spans, lesson.scales, strict=True)
        ]
        heads.start()  # what stays is not made while a graph is captured
        heads.lowered(0, features.dtype)
        self.loss_K = torch.empty(len(heads), device=device)
        self._replay: Replay | None = None

    def take(self, count: int) -> None:
        """Queue the first steps of the script as it is now; ``loss_K`` becomes the losses before the last one.

        They are captured where more are asked for than are done before that, which are steps too.
        """
        self.at.zero_()
        self.heads.steps += count
        if self._replay is None and count > cuda.WARM:
            self._replay = Replay(self._one, self.at.device)
            count -= cuda.WARM
        for _ in range(count):
            (self._replay or self._one)()

    def _one(self) -> torch.Tensor:
        """The step of the script that the counter points to."""
        script, lesson, features = self.queue.script, self.lesson, self.queue.features
        row_B, now_3 = (v.index_select(0, self.at)[0] for v in (script.row_nB, script.now_n3))
        gather(self.queue.x_RD, row_B, features.mean, features.scale, self.x_BD, self.queue.scale_R)
        losses = [
            Loss(script.targets[i].index_select(0, self.at)[0], span, outputs, share)
            for i, span, outputs, share in zip(lesson.parts, lesson.spans, lesson.outputs, self.shares, strict=True)
        ]
        dropped = None
        if self.threshold:
            dropped = Dropped(self.key_S, script.number_n.index_select(0, self.at), self.threshold)
        rates = Rates(self.lr_K, self.decay_K, now_3)
        self.loss_K.copy_(step_on_gpu(self.heads, self.x_BD[lesson.rows], losses, rates, dropped))
        self.at.add_(1)
        return self.loss_K
