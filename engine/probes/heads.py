"""Banks of heads: a grid of settings trained on the same batches, on a GPU with captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cuda
from substyle.engine.probes.batches import BatchPart, Queue, StepBlock, StepSchedule
from substyle.engine.probes.config import ProbeConfig
from substyle.kernels import dispatch, probe_data
from substyle.kernels.dispatch import installed, upload
from substyle.kernels.probe_data import gather
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import step
from substyle.kernels.probe_step_gpu import Dropped, Loss, Rates, shares, step_on_gpu


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
        self, settings: Sequence[Setting], inputs: int, outputs: int, seeds: Sequence[int], device: torch.device
    ) -> HeadBank | None:
        """A bank of heads of another kind; None for linear heads and MLPs."""
        return None


def grid(config: ProbeConfig) -> list[Setting]:
    """The settings of a single-task MLP."""
    mlp = product(config.mlp_learning_rates, config.mlp_weight_decays, config.widths)
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


class Dropout:
    """Dropout masks of the hidden layers per seed and step, shared by all settings.

    Masks compare one random byte per unit with a threshold, so the probability is rounded to 1/256. The bytes differ
    between CPU and GPU. Replayed GPU steps use counter-based bytes instead (``kernels.dropout``), with this threshold.
    """

    def __init__(self, probability: float, seeds: Sequence[int]) -> None:
        self.threshold = round(probability * 256)
        self.keep = 1.0 - self.threshold / 256
        self.seeds = seeds
        self.bits = [np.random.SFC64([seed, 0x64726F70]) for seed in seeds]
        self.generators: list[torch.Generator] = []

    def masks(self, out_SHB: torch.Tensor) -> None:
        """Draw the masks of a step into ``out``: True for kept units. Shape: (S, H, B) bool."""
        count = out_SHB[0].numel()
        if out_SHB.device.type == "cpu":
            for bits, own in zip(self.bits, out_SHB.view(len(self.seeds), count).numpy(), strict=True):
                np.greater_equal(host_bytes(bits, count), self.threshold, out=own)
        else:
            out_SHB.copy_((self.device_bytes(count, out_SHB.device) >= self.threshold).view(out_SHB.shape))

    def device_bytes(self, count: int, device: torch.device) -> torch.Tensor:
        """Random bytes of every seed, generated by torch on the device. Shape: (S, count)."""
        if not self.generators:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        made = [torch.randint(256, (count,), generator=g, device=device, dtype=torch.uint8) for g in self.generators]
        return torch.stack(made)


def host_bytes(bits: np.random.SFC64, count: int) -> NDArray[np.uint8]:
    """Random bytes, several times faster than torch on a CPU. Shape: (count,)."""
    return bits.random_raw(-(-count // 8)).view(np.uint8)[:count]


def takes_turns(width: int, device: torch.device) -> bool:
    """Whether heads are trained one after another in each block of steps.

    So MLPs on a CPU keep weights and moments (14 bytes per parameter) in the cache. Linear heads, and all heads on a
    GPU, share their matrix products.
    """
    return width > 0 and device.type == "cpu"


class HeadBank:
    """The heads of settings of one width and depth with all seeds, setting-major."""

    def __init__(
        self,
        settings: Sequence[Setting],
        inputs: int,
        outputs: int,
        seeds: Sequence[int],
        dropout: float,
        device: torch.device,
    ) -> None:
        self.settings, self.seeds = list(settings), len(seeds)
        self.width, self.depth = settings[0].width, settings[0].depth
        self.dropout = Dropout(dropout, seeds)
        self.in_turn = takes_turns(self.width, device)
        self.in_blocks = self.in_turn  # whether steps are taken in blocks
        self.pieces: list[Heads]
        if self.in_turn:
            every = initial(self.width, inputs, outputs, 1, seeds, device, self.depth).parameters
            self.pieces = [
                Heads(*(dispatch.copy(p[s : s + 1]) for p in every)) for _ in settings for s in range(len(seeds))
            ]
        else:
            self.pieces = [initial(self.width, inputs, outputs, len(settings), seeds, device, self.depth)]
        self.lessons: list[StepSpec] = []

    def parameters(self, g: int) -> list[torch.Tensor]:
        """A copy of the weights of setting g, first axis S seeds."""
        own = slice(g * self.seeds, (g + 1) * self.seeds)
        if not self.in_turn:
            return [dispatch.copy(p[own]) for p in self.pieces[0].parameters]
        return [torch.cat(seeds) for seeds in zip(*(piece.parameters for piece in self.pieces[own]), strict=True)]

    def learn(self, block: StepBlock | Queue, parts: Sequence[BatchPart]) -> None:
        """Train every head on every step of a block."""
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
        """Dropout masks of every step, (S, L*H, B)."""
        if self.width == 0 or self.dropout.threshold == 0:
            return [None] * len(block)
        shape = len(block), self.seeds, self.depth * self.width, block.x_nBD.shape[1]
        kept = dispatch.empty(shape, torch.bool, block.x_nBD.device)
        for mask in kept:
            self.dropout.masks(mask)
        return list(kept)


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
        self.lr = np.array([s.lr for s in settings])
        self.decay = np.array([s.weight_decay for s in settings])

    def take(self, heads: Heads, block: StepBlock, masks: Sequence[torch.Tensor | None], keep: float) -> None:
        """Perform the steps of a block."""
        of_steps = zip(*block.targets, strict=True)
        for x_BD, targets, rate, mask in zip(block.x_nBD, of_steps, block.rates, masks, strict=True):
            terms = [
                Term(targets[i], span, outputs, scale)
                for i, span, outputs, scale in zip(self.parts, self.spans, self.outputs, self.scales, strict=True)
            ]
            kept = None if mask is None else mask[:, :, self.rows]
            step(heads, x_BD[self.rows], terms, self.lr * rate, self.decay, kept_SHB=kept, keep=keep)


def _scale(loss_K: Sequence[float], device: torch.device) -> torch.Tensor | None:
    return None if all(v == 1.0 for v in loss_K) else torch.tensor(loss_K, dtype=torch.float32, device=device)


# Training on a GPU: a step of all heads of one shape is captured in a CUDA graph and replayed. A step reads rows,
# targets, learning rate and dropout key from a schedule on the device at a counter, which it increments. The first
# steps are warm-up. Validations are captured too.


def replays(device: torch.device) -> bool:
    """Whether training steps are captured: on a GPU with Triton."""
    return device.type == "cuda" and installed()


class DeviceHeadBank(HeadBank):
    """The heads of one shape on a GPU, with captured steps and validations."""

    _steps: Steps | None = None

    @cached_property
    def _judged(self) -> dict[int, cuda.Captured[torch.Tensor]]:
        return {}

    def learn(self, block: StepBlock | Queue, parts: Sequence[BatchPart]) -> None:
        """Train every head on every scheduled step."""
        assert isinstance(block, Queue)
        (heads,) = self.pieces
        if self._steps is None:
            settings = [setting for setting in self.settings for _ in range(self.seeds)]
            threshold = self.dropout.threshold if self.width else 0
            lesson = StepSpec(settings, block.script.rows, parts, heads.w1.device)
            self._steps = Steps(heads, lesson, block, self.dropout.seeds, threshold)
        self._steps.take(len(block))

    def judged(self, number: int, judge: Callable[[Heads], torch.Tensor]) -> NDArray[np.float64]:
        """Run a validation of the heads and return its result.

        Args:
            number: index of the validation within the training.
            judge: queues the validation; must be the same function for each ``number``.
        """
        (heads,) = self.pieces
        if number not in self._judged:
            self._judged[number] = cuda.Captured(lambda stream: judge(heads), heads.w1.device)
        result: NDArray[np.float64] = self._judged[number].replay().cpu().numpy()
        return result


class Steps:
    """Captured training steps of heads.

    Args:
        queue: first scheduled steps; later ones use the same memory.
        seeds: dropout seeds; head k has the masks of seed k % S, different in each layer.
        threshold: dropout threshold, 0 for none.
    """

    def __init__(self, heads: Heads, lesson: StepSpec, queue: Queue, seeds: Sequence[int], threshold: int) -> None:
        self._step = _Step(heads, lesson, queue, seeds, threshold)
        self._loss_KB = torch.empty(len(heads), 0, device=heads.w1.device)
        self._captured: cuda.Captured[torch.Tensor] | None = None

    @property
    def loss_K(self) -> torch.Tensor:
        """Losses before the last step."""
        return self._loss_KB.sum(1)

    def take(self, count: int) -> None:
        """Queue the first ``count`` scheduled steps.

        The step is captured once ``count`` exceeds the warm-up runs, which are training steps too.
        """
        work = self._step
        work.at.zero_()
        work.heads.steps += count
        if self._captured is None and count > cuda.WARM:
            self._captured = cuda.Captured(lambda stream: work(), work.at.device)
            count -= cuda.WARM
        for _ in range(count):
            self._loss_KB = work() if self._captured is None else self._captured.replay()


class _Step:
    """The scheduled step at a counter on the device; arguments as in :class:`Steps`."""

    def __init__(self, heads: Heads, lesson: StepSpec, queue: Queue, seeds: Sequence[int], threshold: int) -> None:
        self.heads, self.lesson, self.queue, self.threshold = heads, lesson, queue, threshold
        features, device = queue.features, heads.w1.device
        self.now = StepSchedule.of(1, queue.script.rows, device)
        self.x_BD = torch.empty(queue.script.rows[-1].stop, features.width, dtype=features.dtype, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.lr_K, self.decay_K = (upload(v.astype(np.float32), device) for v in (lesson.lr, lesson.decay))
        per_layer = [[seed + (layer << 48) for seed in seeds] for layer in range(len(heads.layers) - 1)]
        self.key_LS = torch.stack([probe_data.device_keys(own, device) for own in per_layer or [list(seeds)]])
        self.shares = [
            shares(Term(self.now.targets[i][0], scale_K=scale), len(heads), span.stop - span.start, device)
            for i, span, scale in zip(lesson.parts, lesson.spans, lesson.scales, strict=True)
        ]
        heads.start()  # allocate persistent buffers outside of the capture
        heads.lowered(0, features.dtype)

    def __call__(self) -> torch.Tensor:
        """Perform the step. Returns the losses before it."""
        now, lesson, features = self.now, self.lesson, self.queue.features
        self.queue.script.step(self.at, now)
        gather(self.queue.x_RD, now.row_nB[0], features.mean, features.scale, self.x_BD, self.queue.scale_R)
        losses = [
            Loss(now.targets[i][0], span, outputs, share)
            for i, span, outputs, share in zip(lesson.parts, lesson.spans, lesson.outputs, self.shares, strict=True)
        ]
        dropped = Dropped(self.key_LS, now.number_n, self.threshold) if self.threshold else None
        rates = Rates(self.lr_K, self.decay_K, now.now_n3[0])
        loss_KB = step_on_gpu(self.heads, self.x_BD[lesson.rows], losses, rates, dropped)
        self.at.add_(1)
        return loss_KB
