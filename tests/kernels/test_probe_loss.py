"""The compiled cross-entropy and validation, against float64 arithmetic, and on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels.probe_arrays import BOTH, COMPILED, TOLERANCE, classes, drawn, on_threads
from torch import nn

from substyle.kernels import probe_native
from substyle.kernels.probe_heads import Heads, Term

pytestmark = COMPILED


def expected_loss(logits_KCB: torch.Tensor, terms: list[Term]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient by autograd in float64."""
    z = logits_KCB.double().requires_grad_()
    total = torch.zeros(len(z), dtype=torch.float64)
    for term in terms:
        part = z[:, term.outputs, term.rows]
        if part.shape[2] == 0:
            continue
        each = torch.stack([nn.functional.cross_entropy(head.T, term.target_B, reduction="none") for head in part])
        share = 1.0 / part.shape[2] if term.weight_KB is None else probe_native.shares(term.weight_KB).double()
        own = (each * share).sum(1)
        total = total + own * (1.0 if term.scale_K is None else term.scale_K.double())
    if total.requires_grad:
        total.sum().backward()
    return total.detach(), torch.zeros_like(z) if z.grad is None else z.grad


def check_loss(z_KCB: torch.Tensor, bias_KC: torch.Tensor, terms: list[Term]) -> None:
    loss_K, gradient = expected_loss(z_KCB.double() + bias_KC[:, :, None], terms)
    tolerance = TOLERANCE[z_KCB.dtype]

    def work() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        guarded = torch.cat([z_KCB.flatten(), torch.full((64,), 7.0, dtype=z_KCB.dtype)])
        z = guarded[: z_KCB.numel()].view(z_KCB.shape)
        loss, dbias = probe_native.cross_entropy(z, bias_KC, terms)
        assert (guarded[z_KCB.numel() :] == 7.0).all()
        return z, loss, dbias

    results = on_threads(work)
    for z, loss, dbias in results:
        torch.testing.assert_close(loss.double(), loss_K, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(z.double(), gradient, **tolerance)
        torch.testing.assert_close(dbias.double(), gradient.sum(2), atol=2e-6, rtol=2e-5)
        assert torch.equal(z, results[0][0])  # sums alone depend on the number of threads


@BOTH
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 3, 1), (3, 5, 31), (1, 31, 32), (2, 4, 33), (1, 7, 200), (7, 31, 130)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(dtype: torch.dtype, shape: tuple[int, int, int], weighted: bool) -> None:
    heads, outputs, batch = shape
    weight = drawn(1, heads, batch).abs() * (drawn(2, heads, batch) > -0.5) if weighted else None
    scale = drawn(3, heads).abs() if weighted else None
    terms = [Term(classes(4, batch, outputs), scale_K=scale, weight_KB=weight)]
    check_loss(drawn(5, *shape, dtype=dtype, scale=4.0), drawn(6, heads, outputs), terms)


@BOTH
def test_terms_of_some_rows_and_outputs(dtype: torch.dtype) -> None:
    """Rows of no term, an empty term between two others and at the end, in any order; overlapping outputs."""
    terms = [
        Term(classes(0, 40, 3), slice(50, 90), slice(4, 7), torch.tensor([0.5, 2.0])),
        Term(classes(1, 0, 2), slice(5, 5)),
        Term(classes(2, 33, 5), slice(5, 38), slice(0, 5), weight_KB=torch.rand(2, 33)),
        Term(classes(1, 0, 2), slice(38, 38), slice(0, 1)),
        Term(classes(1, 0, 2), slice(50, 5)),
        Term(classes(1, 0, 2), slice(100, 100), slice(-1, None)),
    ]
    for order in (terms, terms[::-1]):
        check_loss(drawn(7, 2, 7, 100, dtype=dtype, scale=3.0), drawn(8, 2, 7), order)


def test_no_term() -> None:
    check_loss(drawn(7, 2, 3, 40), drawn(8, 2, 3), [])


@BOTH
def test_weights_of_zero(dtype: torch.dtype) -> None:
    terms = [Term(classes(0, 40, 3), weight_KB=torch.zeros(2, 40), scale_K=torch.tensor([1.0, 0.0]))]
    check_loss(drawn(7, 2, 3, 40, dtype=dtype), drawn(8, 2, 3), terms)


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 100.0, 1e4, 1e30])
def test_extreme_logits(dtype: torch.dtype, scale: float) -> None:
    z = drawn(9, 2, 5, 70, scale=scale).to(dtype)
    loss_K, gradient = expected_loss(z, terms := [Term(classes(3, 70, 5))])
    loss, _ = probe_native.cross_entropy(z, torch.zeros(2, 5), terms)
    torch.testing.assert_close(loss.double(), loss_K, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(z.double(), gradient, **TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("output", [0, 1, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_logit_is_not_passed_over(dtype: torch.dtype, output: int, bad: float) -> None:
    """Its row's gradient and its head's loss are NaN, as torch's are; other rows and heads know nothing of it."""
    z = drawn(9, 2, 5, 70).to(dtype)
    z[0, output, 37] = bad
    target = torch.full((70,), 2)
    terms = [Term(target)]
    _, gradient = expected_loss(z, terms)
    loss, dbias = probe_native.cross_entropy(z, torch.zeros(2, 5), terms)
    assert loss.isnan().tolist() == [True, False]
    assert dbias.isnan().all(1).tolist() == [True, False]
    assert z[0, :, 37].isnan().all()
    assert gradient[0, :, 37].isnan().all()
    z[0, :, 37] = gradient[0, :, 37] = 0.0
    torch.testing.assert_close(z.double(), gradient, **TOLERANCE[dtype])


@pytest.mark.parametrize("bad", [-1, 3, 1 << 40])
def test_a_target_that_is_no_output_is_refused(bad: int) -> None:
    target = classes(0, 40, 3)
    target[39] = bad
    z = drawn(0, 1, 5, 40)
    before = z.clone()
    with pytest.raises(IndexError):
        probe_native.cross_entropy(z, torch.zeros(1, 5), [Term(target, outputs=slice(1, 4))])
    assert torch.equal(z, before)


@pytest.mark.parametrize(
    "term",
    [
        Term(classes(0, 39, 3)),
        Term(classes(0, 40, 3), slice(0, 41)),
        Term(classes(0, 40, 3), weight_KB=torch.ones(2, 39)),
        Term(classes(0, 40, 3), weight_KB=torch.ones(1, 40)),
        Term(classes(0, 40, 3), scale_K=torch.ones(1)),
    ],
    ids=["targets", "rows", "weights", "weights of heads", "scales"],
)
def test_terms_of_another_shape_are_refused(term: Term) -> None:
    z = drawn(0, 2, 5, 41 if term.rows.stop else 40)
    with pytest.raises(ValueError, match="of shape"):
        probe_native.cross_entropy(z, torch.zeros(2, 5), [term])


def test_no_head() -> None:
    loss, dbias = probe_native.cross_entropy(torch.empty(0, 5, 40), torch.empty(0, 5), [Term(classes(0, 40, 5))])
    assert loss.shape == (0,)
    assert dbias.shape == (0, 5)


@BOTH
@pytest.mark.parametrize("hidden", [0, 12])
@pytest.mark.parametrize(("batch", "outputs"), [(1, slice(0, 6)), (33, slice(2, 5)), (100, slice(5, 6))])
def test_judge(dtype: torch.dtype, hidden: int, batch: int, outputs: slice) -> None:
    """Integers make every product and sum exact: right rows are counted exactly, of equal logits the first answers."""
    heads, x_BD = whole_heads(3, 8, 6, hidden), classes(1, batch * 8, 5).view(batch, 8).to(dtype) - 2
    target, weight = classes(2, batch, outputs.stop - outputs.start), drawn(3, batch).abs()
    z = torch.einsum("khd,bd->khb", heads.w1, x_BD.float()) + heads.b1[:, :, None]
    if heads.w2 is not None and heads.b2 is not None:
        z = torch.einsum("kch,khb->kcb", heads.w2, z.relu()) + heads.b2[:, :, None]
    logits = z[:, outputs].double()
    right_K = ((logits.argmax(1) == target).double() * weight.double()).sum(1)
    loss_K = torch.stack([(nn.functional.cross_entropy(h.T, target, reduction="none") * weight).sum() for h in logits])
    results = on_threads(lambda: probe_native.judge(heads, x_BD, target, weight, outputs))
    for right, loss in results:
        torch.testing.assert_close(right, right_K, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(loss, loss_K, atol=1e-5, rtol=1e-5)
        assert torch.equal(right, results[0][0])
        assert torch.equal(loss, results[0][1])


def whole_heads(count: int, inputs: int, outputs: int, hidden: int) -> Heads:
    """Heads of small whole numbers."""
    sizes = [(outputs, inputs)] if hidden == 0 else [(hidden, inputs), (outputs, hidden)]
    shapes = [shape for size in sizes for shape in ((count, *size), (count, size[0]))]
    return Heads(*((classes(i, int(np.prod(s)), 3) - 1.0).view(s) for i, s in enumerate(shapes)))


@pytest.mark.parametrize("output", [0, 3])
def test_a_row_without_an_answer_is_not_right(output: int) -> None:
    heads = whole_heads(2, 4, 5, 0)
    heads.b1[0, output] = float("nan")
    right, loss = probe_native.judge(heads, torch.ones(40, 4), torch.full((40,), output), torch.ones(40), slice(0, 5))
    assert right[0] == 0.0
    assert loss.isnan().tolist() == [True, False]


def test_judge_refuses_what_does_not_fit() -> None:
    heads, x = whole_heads(2, 4, 5, 0), torch.ones(40, 4)
    with pytest.raises(IndexError):
        probe_native.judge(heads, x, torch.full((40,), 3), torch.ones(40), slice(0, 3))
    with pytest.raises(ValueError, match="39 targets"):
        probe_native.judge(heads, x, torch.zeros(39, dtype=torch.int64), torch.ones(40), slice(0, 5))
