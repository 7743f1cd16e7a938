"""Coordinates of linear heads against autograd."""

from __future__ import annotations

import numpy as np
import torch
from tests.engine.probes.test_solver import features_of, make, transformation

from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads

HEADS, CLASSES, WIDTH = 3, 4, 12
STRENGTH = torch.tensor([1e-3, 1e-2, 0.1])


def problem(images: int = 60) -> TrainingRows:
    """Rows whose weights differ by transformation, photograph and head."""
    table = make(images)
    task = transformation(table)
    weight_KT = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0], [0.5, 1.0, 1.0, 3.0]])
    times_KN = np.random.default_rng(0).integers(0, 3, (HEADS, images)).astype(float)
    return TrainingRows(features_of(table, task), task, weight_KT, times_KN)


def weights() -> Heads:
    generator = torch.Generator().manual_seed(0)
    return Heads(
        torch.randn(HEADS, CLASSES, WIDTH, generator=generator), torch.randn(HEADS, CLASSES, generator=generator)
    )


def metric(rows: TrainingRows) -> CovarianceMetric:
    return CovarianceMetric.of(CovarianceBasis.of(rows), CLASSES, STRENGTH.double().numpy())


def own_loss(rows: TrainingRows, k: int, w_CP: torch.Tensor) -> torch.Tensor:
    """The objective of a head, in float64, as a function of weights and intercepts (C, P)."""
    x_RD = rows.features.full()(rows.t_R, rows.n_R).double()
    answer_R = torch.from_numpy(rows.task.answers(rows.t_R, rows.n_R)).long()
    variant_KT, image_KN = rows.shares()
    assert image_KN is not None
    share_R = torch.from_numpy(variant_KT[k, rows.t_R] * image_KN[k, rows.n_R])
    z_RC = x_RD @ w_CP[:, :-1].T + w_CP[:, -1]
    losses_R = torch.nn.functional.cross_entropy(z_RC, answer_R, reduction="none")
    return (share_R * losses_R).sum() + 0.5 * STRENGTH[k].double() * w_CP[:, :-1].square().sum()


def test_there_and_back() -> None:
    own, heads = metric(problem()), weights()
    weight_KCD, bias_KC = own.out(own.into(heads.w1, heads.b1))
    torch.testing.assert_close(weight_KCD, heads.w1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias_KC, heads.b1, atol=1e-4, rtol=1e-4)
    some = own.only(torch.tensor([True, False, True]))
    torch.testing.assert_close(some.into(heads.w1[::2], heads.b1[::2]), own.into(heads.w1, heads.b1)[::2])


def test_gradients_are_those_of_the_coordinates() -> None:
    rows, heads = problem(), weights()
    own = metric(rows)
    u_KP = own.into(heads.w1, heads.b1).requires_grad_()
    for k in range(HEADS):
        weight_KCD, bias_KC = own.out(u_KP)
        w_CP = torch.cat([weight_KCD[k], bias_KC[k, :, None]], 1).double().detach().requires_grad_()
        own_loss(rows, k, w_CP).backward()
        assert w_CP.grad is not None
        dw_KCD, db_KC = torch.zeros_like(heads.w1), torch.zeros_like(heads.b1)
        dw_KCD[k], db_KC[k] = w_CP.grad[:, :-1].float(), w_CP.grad[:, -1].float()
        found = own.gradient(dw_KCD, db_KC)[k]
        weight, bias = own.out(u_KP)
        (expected,) = torch.autograd.grad((weight * dw_KCD).sum() + (bias * db_KC).sum(), u_KP)
        torch.testing.assert_close(found, expected[k], atol=1e-5, rtol=1e-4)
