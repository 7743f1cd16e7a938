"""Convergence of MLPs, and the multi-task MLP and its twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from tests.engine.probes.conftest import Quick

from substyle.engine.probes import mlp as module
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.mlp import (
    Mlp,
    by_accuracy,
    until_settled,
)
from substyle.engine.probes.trainer import Trained
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Trainings:
    """A fake `train`: heads encode their setting and number of steps.

    Attributes:
        accuracy, loss: of a setting after some steps.
        made: settings and steps of each training.
    """

    accuracy: Callable[[Setting, int], float]
    loss: Callable[[Setting, int], float]
    made: list[tuple[list[Setting], int]] = field(default_factory=list)

    def __call__(
        self, features: object, parts: object, settings: Sequence[Setting], config: object, steps: int, **_: object
    ) -> dict[Setting, Trained]:
        self.made.append((list(settings), steps))
        return {
            s: Trained(s, Heads(torch.tensor([[[s.lr, steps]]]), torch.zeros(1, 1)), self.accuracy(s, steps),
                       self.loss(s, steps), steps, 9.0)
            for s in settings
        }  # fmt: skip


class Asked:
    """Rows on which more than enough steps gain nothing.

    Args:
        enough: steps from which twice as many give the same.
    """

    def __init__(self, enough: int) -> None:
        self.enough = enough

    def difference(self, now: Heads, before: Heads) -> tuple[float, bool]:
        (lr, after), (other, steps) = now.w1[0, 0].tolist(), before.w1[0, 0].tolist()
        assert lr == other
        assert after == 2 * steps
        return 1 / steps, steps >= self.enough


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, quick: Quick) -> Callable[..., tuple[dict[str, Mlp], Trainings]]:
    """(settings, asked, rank, accuracy, loss, doublings) -> what is found, and what was trained for it."""

    def run(
        settings: list[Setting],
        asked: list[Asked],
        rank: module.Rank = by_accuracy,
        accuracy: Callable[[Setting, int], float] = lambda s, steps: s.lr,
        loss: Callable[[Setting, int], float] = lambda s, steps: 1.0,
        doublings: int = 3,
    ) -> tuple[dict[str, Mlp], Trainings]:
        trainings = Trainings(accuracy, loss)
        monkeypatch.setattr(module, "train", trainings)
        config = quick(doublings=doublings)
        found = until_settled(None, [], settings, config, 10, rank, asked, lambda _: None)  # type: ignore[arg-type]
        return found, trainings

    return run


Settled = Callable[..., tuple[dict[str, Mlp], Trainings]]
SETTINGS = [Setting(lr, 0.1, 4) for lr in (0.25, 0.75, 0.5)]


@pytest.mark.parametrize(("enough", "steps"), [(10, 20), (20, 40), (40, 80)])
def test_the_best_is_trained_again_until_that_gains_nothing(settled: Settled, enough: int, steps: int) -> None:
    found, trainings = settled(SETTINGS, [Asked(enough)])
    best = SETTINGS[1]
    doubled = [10 * 2**i for i in range(1, round(math.log2(steps / 10)) + 1)]
    assert trainings.made == [(SETTINGS, 10), *(([best], s) for s in doubled)]
    mlp = found[""]
    assert (mlp.trained.setting, mlp.trained.steps, mlp.converged) == (best, steps, True)
    assert mlp.gain == 2 / steps
    assert mlp.describe() == {
        "setting": best.describe(), "validation": 0.75, "steps": steps, "converged": True,
        "certificate": {"steps": steps, "gain": 2 / steps},
    }  # fmt: skip


@pytest.mark.parametrize("doublings", [1, 2])
def test_while_trainings_gain_doublings_run_out(settled: Settled, doublings: int) -> None:
    found, trainings = settled(SETTINGS, [Asked(10**6)], doublings=doublings)
    assert [steps for _, steps in trainings.made] == [10 * 2**i for i in range(doublings + 1)]
    assert found[""].converged is False
    assert found[""].describe()["converged"] is False
    assert found[""].trained.steps == 10 * 2**doublings


class Gains(Asked):
    """Gains of a longer training, by the steps of the shorter one; those above 0.01 are clear."""

    def __init__(self, gains: dict[int, float]) -> None:
        self.gains = gains

    def difference(self, now: Heads, before: Heads) -> tuple[float, bool]:
        gain = self.gains[int(before.w1[0, 0, 1])]
        return gain, abs(gain) <= 0.01


@pytest.mark.parametrize(
    ("accuracy", "kept"),
    [(0.8, 20), (0.7, 40)],  # of 20 steps; it is 0.7 of the others
)
def test_a_longer_training_that_overfits_is_not_used(settled: Settled, accuracy: float, kept: int) -> None:
    """It settles the matter; of equal accuracies, the lower loss decides."""
    found, trainings = settled(
        SETTINGS, [Gains({10: 0.04, 20: -0.04})], by_accuracy, lambda s, steps: accuracy if steps == 20 else 0.7,
        lambda s, steps: 1 / steps,
    )  # fmt: skip
    assert [steps for _, steps in trainings.made] == [10, 20, 40]
    mlp = found[""]
    assert (mlp.gain, mlp.converged, mlp.steps, mlp.trained.steps) == (-0.04, True, 40, kept)


# --- the multi-task probe ---------------------------------------------------------------------------------------------
