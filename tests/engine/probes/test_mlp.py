"""Convergence of MLPs: which training is doubled, and which is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.engine.probes.conftest import Quick

from substyle.engine.probes import mlp as module
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.mlp import Mlp, by_accuracy, until_settled
from substyle.engine.probes.trainer import Trained
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = [Setting(lr, 0.1, 4) for lr in (0.25, 0.75, 0.5)]
BEST = SETTINGS[1]
Made = list[tuple[list[Setting], int]]
Settled = Callable[..., tuple[Mlp, Made]]


class Gains:
    """Gains of a training of twice the steps, by the steps of the shorter one, and whether they are none."""

    def __init__(self, gain: Callable[[int], tuple[float, bool]]) -> None:
        self.gain = gain

    def difference(self, now: Heads, before: Heads) -> tuple[float, bool]:
        (lr, after), (other, steps) = now.w1[0, 0].tolist(), before.w1[0, 0].tolist()
        assert (lr, after) == (other, 2 * steps)
        return self.gain(int(steps))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, quick: Quick) -> Settled:
    """(gain, accuracy by steps, doublings) -> the MLP of fake trainings, and their settings and steps."""

    def run(
        gain: Callable[[int], tuple[float, bool]],
        accuracy: Callable[[Setting, int], float] = lambda setting, steps: setting.lr,
        doublings: int = 3,
    ) -> tuple[Mlp, Made]:
        made: Made = []

        def train(features: object, parts: object, settings: list[Setting], config: object, steps: int, **_: object):  # type: ignore[no-untyped-def]
            made.append((list(settings), steps))
            heads = {s: Heads(torch.tensor([[[s.lr, steps]]]), torch.zeros(1, 1)) for s in settings}
            return {s: Trained(s, heads[s], accuracy(s, steps), 1 / steps, steps, 9.0) for s in settings}

        monkeypatch.setattr(module, "train", train)
        asked, config = [Gains(gain)], quick(doublings=doublings)
        found = until_settled(None, [], SETTINGS, config, 10, by_accuracy, asked, lambda _: None)  # type: ignore[arg-type]
        return found[""], made

    return run


@pytest.mark.parametrize(("enough", "steps"), [(10, [20]), (40, [20, 40, 80])])
def test_the_best_is_trained_again_until_that_gains_nothing(settled: Settled, enough: int, steps: list[int]) -> None:
    mlp, made = settled(lambda shorter: (1 / shorter, shorter >= enough))
    assert made == [(SETTINGS, 10), *(([BEST], count) for count in steps)]
    assert (mlp.trained.setting, mlp.trained.steps) == (BEST, steps[-1])
    assert mlp.describe() == {
        "setting": BEST.describe(), "validation": 0.75, "steps": steps[-1], "converged": True,
        "certificate": {"steps": steps[-1], "gain": 2 / steps[-1]},
    }  # fmt: skip


def test_while_trainings_gain_doublings_run_out(settled: Settled) -> None:
    mlp, made = settled(lambda shorter: (0.1, False), doublings=2)
    assert [steps for _, steps in made] == [10, 20, 40]
    assert mlp.describe()["converged"] is False
    assert mlp.trained.steps == 40


@pytest.mark.parametrize(("accuracy", "kept"), [(0.8, 20), (0.7, 40)])  # of 20 steps; it is 0.7 of the others
def test_a_longer_training_that_overfits_is_not_used(settled: Settled, accuracy: float, kept: int) -> None:
    """It settles the matter; of equal accuracies, the lower loss decides."""
    gains = {10: (0.04, False), 20: (-0.04, False)}
    mlp, made = settled(gains.__getitem__, lambda setting, steps: accuracy if steps == 20 else 0.7)
    assert [steps for _, steps in made] == [10, 20, 40]
    assert (mlp.gain, mlp.converged, mlp.steps, mlp.trained.steps) == (-0.04, True, 40, kept)
