"""Fine-tuning against plain torch: budgets, losses and what stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from substyle.engine.extensions.finetune.config import FinetuneConfig, Objective
from substyle.engine.extensions.finetune.training import LabelledVariants, fit
from substyle.engine.probes.tasks import UNKNOWN

D, CLASSES, TRANSFORMATIONS = 6, 2, 3


class Network(nn.Module):
    """Colour means through a batch normalisation and a layer: (B, S, S, 3) uint8 to (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.dropout = nn.BatchNorm1d(3), nn.Linear(3, D), nn.Dropout(0.9)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.dropout(self.layer(self.norm(canvas_BSSC.float().mean((1, 2)) / 255)))
        return x


def batches(seen: list[LabelledVariants]) -> Iterator[LabelledVariants]:
    """Classes are red or green; transformations the level of blue."""
    generator = torch.Generator().manual_seed(1)
    while True:
        t = torch.randint(TRANSFORMATIONS, (16,), generator=generator)
        c = torch.randint(CLASSES, (16,), generator=generator)
        pixels = torch.randint(90, 110, (16, 4, 4, 3), generator=generator)
        pixels[torch.arange(16), :, :, c] += 60
        pixels[..., 2] += 30 * t[:, None, None]
        seen.append(LabelledVariants(pixels.to(torch.uint8), t, c))
        yield seen[-1]


def trained(objective: Objective, steps: int = 60) -> tuple[Network, dict[str, list[float]], int]:
    network, seen = Network(), list[LabelledVariants]()
    config = FinetuneConfig(steps=steps, batch=16, learning_rate=3e-2)
    losses = fit(
        *(network, batches(seen), config, objective),
        dim=D,
        transformations=TRANSFORMATIONS,
        classes=CLASSES,
        seed=3,
        device=torch.device("cpu"),
    )
    return network, losses, len(seen)


@pytest.mark.parametrize(
    ("objective", "tasks"),
    [
        ("class", {"class"}),
        ("transformation", {"transformation"}),
        ("joint", {"class", "transformation"}),
    ],
)
def test_the_losses_of_an_objective_fall(objective: Objective, tasks: set[str]) -> None:
    network, losses, taken = trained(objective)
    assert taken == 60
    assert set(losses) == tasks
    for values in losses.values():
        assert len(values) == 10
        assert values[-1] < 0.6 * values[0]
    fresh = Network()
    assert not torch.equal(network.layer.weight, fresh.layer.weight)
    assert torch.equal(network.norm.running_mean, fresh.norm.running_mean)  # type: ignore[arg-type]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_losses_are_means_of_all_steps() -> None:
    _, losses, _ = trained("class", steps=19)
    _, first, _ = trained("class", steps=1)
    assert len(losses["class"]) == 10
    assert losses["class"][0] != first["class"][0]  # of two steps


def test_a_first_step_is_that_of_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of `joint` moves weights as AdamW does along the clipped gradient of the weighted losses."""
    monkeypatch.setattr(FinetuneConfig, "transformation_weight", 0.25)
    network, _, _ = trained("joint", steps=1)
    plain, batch = Network(), next(batches([]))
    torch.manual_seed(3)
    of_class, of_transformation = nn.Linear(D, CLASSES), nn.Linear(D, TRANSFORMATIONS)
    plain.eval()
    x = plain(batch.pixels_BSSC)
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    loss = nn.functional.cross_entropy
    total = 0.75 * loss(of_class(x), batch.class_B) + 0.25 * loss(of_transformation(x), batch.transformation_B)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-2, weight_decay=0.05)
    total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    for mine, theirs in ((network.layer, plain.layer), (network.norm, plain.norm)):  # standardising removes the biases
        torch.testing.assert_close(mine.weight, theirs.weight, rtol=0, atol=1e-4)  # of steps of 3e-2


def test_rows_without_a_label_change_nothing() -> None:
    network = Network()
    before = copy.deepcopy(network.state_dict())
    (batch,) = (next(batches([])),)
    nothing = torch.full((16,), UNKNOWN)
    losses = fit(
        *(network, iter([LabelledVariants(batch.pixels_BSSC, nothing, nothing)]), FinetuneConfig(steps=1), "joint"),
        dim=D,
        transformations=TRANSFORMATIONS,
        classes=CLASSES,
        seed=0,
        device=torch.device("cpu"),
    )
    assert losses == {"class": [], "transformation": []}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
