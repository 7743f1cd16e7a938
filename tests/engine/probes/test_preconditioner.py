"""Coordinates of linear heads against autograd, and what they save."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.test_solver import features_of, fine, make

from substyle.engine.probes import preconditioner, solver
from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric, CurvatureMetric, Metric
from substyle.engine.probes.solver import Fit, fit
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads

HEADS, CLASSES, WIDTH = 3, 4, 12
STRENGTH = torch.tensor([1e-3, 1e-2, 0.1])


def problem(images: int = 60) -> TrainingRows:
    """Rows whose weights differ by transformation, photograph and head."""
    table = make(images)
    task = fine(table)
    weight_KT = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0], [0.5, 1.0, 1.0, 3.0]])
    times_KN = np.random.default_rng(0).integers(0, 3, (HEADS, images)).astype(float)
    return TrainingRows(features_of(table, task), task, weight_KT, times_KN)


def weights() -> Heads:
    generator = torch.Generator().manual_seed(0)
    return Heads(
        torch.randn(HEADS, CLASSES, WIDTH, generator=generator), torch.randn(HEADS, CLASSES, generator=generator)
    )


def metric(rows: TrainingRows, kind: str) -> Metric:
    if kind == "covariance":
        return CovarianceMetric.of(CovarianceBasis.of(rows), CLASSES, STRENGTH.double().numpy())
    return CurvatureMetric.at(rows, weights(), STRENGTH, torch.arange(HEADS))


def own_loss(rows: TrainingRows, k: int, w_CP: torch.Tensor) -> torch.Tensor:
    """The objective of a head, in float64, as a function of weights and intercepts (C, P)."""
    x_RD = rows.features.full()(rows.t_R, rows.n_R).double()
    answer_R = torch.from_numpy(rows.task.answers(rows.t_R, rows.n_R)).long()
    share_R = torch.from_numpy(rows.share(np.array([k]), np.arange(len(rows.t_R)))[0])
    z_RC = x_RD @ w_CP[:, :-1].T + w_CP[:, -1]
    losses_R = torch.nn.functional.cross_entropy(z_RC, answer_R, reduction="none")
    return (share_R * losses_R).sum() + 0.5 * STRENGTH[k].double() * w_CP[:, :-1].square().sum()


@pytest.mark.parametrize("kind", ["covariance", "curvature"])
def test_there_and_back(kind: str) -> None:
    own, heads = metric(problem(), kind), weights()
    weight_KCD, bias_KC = own.out(own.into(heads.w1, heads.b1))
    torch.testing.assert_close(weight_KCD, heads.w1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias_KC, heads.b1, atol=1e-4, rtol=1e-4)
    some = own.only(torch.tensor([True, False, True]))
    torch.testing.assert_close(some.into(heads.w1[::2], heads.b1[::2]), own.into(heads.w1, heads.b1)[::2])


@pytest.mark.parametrize("kind", ["covariance", "curvature"])
def test_gradients_are_those_of_the_coordinates(kind: str) -> None:
    rows, heads = problem(), weights()
    own = metric(rows, kind)
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


@pytest.mark.parametrize("sampled", [1 << 16, 100])
def test_curvature_is_that_of_each_class(sampled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where all rows are used, and close where they are a sample."""
    monkeypatch.setattr(preconditioner, "SAMPLED_ROWS", sampled)
    monkeypatch.setattr(preconditioner, "_ROWS_PER_PARAMETER", 1000)
    rows, heads = problem(), weights()
    made = CurvatureMetric.at(rows, heads, STRENGTH, torch.arange(HEADS))
    size = WIDTH + 1
    for k in range(HEADS):
        w_CP = torch.cat([heads.w1[k], heads.b1[k, :, None]], 1).double()
        whole = torch.autograd.functional.hessian(lambda w, k=k: own_loss(rows, k, w), w_CP)
        for c in range(CLASSES):
            block, found = whole[c, :, c], (made.factor_KCPP[k, c] @ made.factor_KCPP[k, c].T).double()
            apart = float((found - block).norm() / block.norm())
            assert apart < (1e-5 if sampled > len(rows.t_R) else 0.6)
            assert torch.allclose(made.factor_KCPP[k, c] @ made.inverse_KCPP[k, c], torch.eye(size), atol=1e-3)


def test_few_rows_that_matter_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, heads = problem(), weights()
    every = CurvatureMetric.at(rows, heads, STRENGTH, torch.arange(HEADS)).factor_KCPP
    monkeypatch.setattr(preconditioner, "_ROWS_PER_PARAMETER", 2)
    few = CurvatureMetric.at(rows, heads, STRENGTH, torch.arange(HEADS)).factor_KCPP
    whole, part = every @ every.mT, few @ few.mT
    assert not torch.allclose(whole, part)
    # the intercept's curvature is the sum of all rows' p (1 - p)
    torch.testing.assert_close(part[:, :, -1, -1], whole[:, :, -1, -1], atol=1e-5, rtol=1e-4)


def test_directions_in_which_training_rows_do_not_differ_are_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows for which two features differ would get any class."""
    monkeypatch.setattr(solver, "_RENEWED", 3)
    made: list[int] = []
    at = CurvatureMetric.at
    monkeypatch.setattr(CurvatureMetric, "at", lambda *given: made.append(1) or at(*given))
    table = make(400)
    x_TND = np.array(table.x_TND)
    x_TND[..., 1] = x_TND[..., 0]
    task = fine(table)
    rows = TrainingRows(features_of(replace(table, x_TND=x_TND), task), task, np.ones((1, 4)))
    own = CurvatureMetric.at(rows, weights().select([0]), torch.tensor([1e-12]), torch.arange(1))
    block_CPP = (own.factor_KCPP[0] @ own.factor_KCPP[0].mT).double()
    trace_C = block_CPP.diagonal(dim1=1, dim2=2).sum(1)
    assert bool((torch.linalg.eigvalsh(block_CPP)[:, 0] > 0.5e-6 * trace_C).all())
    made.clear()
    weight_CD = fit(rows, [1e-12], tolerance=1e-5, most=200).heads.w1[0]
    assert made
    assert float((weight_CD[:, 0] - weight_CD[:, 1]).abs().max()) < 0.05 * float(weight_CD.norm())


def hard(monkeypatch: pytest.MonkeyPatch, renewed: int) -> Fit:
    """A fit of weak penalty to classes that are nearly apart, of which few rows decide."""
    monkeypatch.setattr(solver, "_RENEWED", renewed)
    table = make(400, seed=3)
    shift_TD = 2.0 * np.random.default_rng(0).normal(size=(4, WIDTH)) * table.x_TND.std(axis=(0, 1))
    table = replace(table, x_TND=(table.x_TND + shift_TD[:, None]).astype(np.float16))
    task = fine(table)
    rows = TrainingRows(features_of(table, task), task, np.ones((2, 4)))
    return fit(rows, [1e-3, 1e-4], tolerance=1e-6, most=5000)


def test_renewals_save_passes_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    never, often = hard(monkeypatch, 10_000), hard(monkeypatch, 20)
    assert never.converged_K.all()
    assert often.converged_K.all()
    assert often.passes_K[1] < 0.6 * never.passes_K[1]
    bias = [each.heads.b1 - each.heads.b1.mean(1, keepdim=True) for each in (never, often)]
    torch.testing.assert_close(never.heads.w1, often.heads.w1, atol=0.02, rtol=0.02)
    torch.testing.assert_close(*bias, atol=0.02, rtol=0.02)


def test_no_renewal_that_takes_longer_than_it_can_save_or_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = problem()
    assert CurvatureMetric.passes(rows, 1) == pytest.approx(18 * 13**2 / (4 * len(rows.t_R)))
    monkeypatch.setattr(preconditioner, "_MOST", 2 * 4 * 13**2)
    assert CurvatureMetric.passes(rows, 2) < np.inf
    assert CurvatureMetric.passes(rows, 3) == np.inf
    monkeypatch.setattr(preconditioner, "_MOST", 0)
    made: list[int] = []
    monkeypatch.setattr(CurvatureMetric, "at", lambda *_: made.append(1))
    hard(monkeypatch, 20)
    assert not made
