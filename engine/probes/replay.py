"""Training on a GPU without its host: a step of all heads of a width is captured once and replayed.

A step gathers its rows, learns from them and advances a counter; which rows, which answers, which learning rate and
which dropout it takes lies on the device for many steps ahead (`script`), and the counter points to it. The first steps
of a training run as any others while libraries choose their algorithms; the next one is captured. So is a validation,
whose numbers come to the host in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes import captured
from substyle.engine.probes.bank import Bank, Lesson
from substyle.engine.probes.batches import Block, Part
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.script import Queue
from substyle.kernels import dropout
from substyle.kernels.dispatch import installed, upload
from substyle.kernels.gather import gather
from substyle.kernels.probe_device import Dropped, Loss, Rates, shares, step
from substyle.kernels.probe_heads import Heads, Term


def replays(device: torch.device) -> bool:
    """Whether steps are captured there: on a GPU, with kernels that read every number from it."""
    return device.type == "cuda" and installed()


class Replay:
    """Captured work, whose result lies in the same memory each time; `captured.WARM` times it is done before that."""

    def __init__(self, work: Callable[[], torch.Tensor], device: torch.device) -> None:
        _, self._graph, self._result = captured.capture(lambda stream: work(), device)

    def __call__(self) -> torch.Tensor:
        """Queue it once more."""
        self._graph.replay()
        return self._result


class DeviceBank(Bank):
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

    def learn(self, block: Block | Queue, parts: Sequence[Part]) -> None:
        """Take every step of a queue with every head."""
        assert isinstance(block, Queue)
        (heads,) = self.pieces
        if self._steps is None:
            settings = [setting for setting in self.settings for _ in range(self.seeds)]
            threshold = self.dropout.threshold if self.width else 0
            lesson = Lesson(settings, block.rows, parts, heads.w1.device)
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

    def __init__(self, heads: Heads, lesson: Lesson, queue: Queue, seeds: Sequence[int], threshold: int) -> None:
        self.heads, self.lesson, self.queue, self.threshold = heads, lesson, queue, threshold
        script, features, device = queue.script, queue.features, heads.w1.device
        self.x_BD = torch.empty(script.row_nB.shape[1], features.width, dtype=features.dtype, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.lr_K, self.decay_K = (upload(v.astype(np.float32), device) for v in (lesson.lr, lesson.decay))
        self.key_S = dropout.device_keys(seeds, device)
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
        if self._replay is None and count > captured.WARM:
            self._replay = Replay(self._one, self.at.device)
            count -= captured.WARM
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
        self.loss_K.copy_(step(self.heads, self.x_BD[lesson.rows], losses, rates, dropped))
        self.at.add_(1)
        return self.loss_K
