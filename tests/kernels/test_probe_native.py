"""The compiled probe kernels, function by function, against float64 arithmetic, and on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from substyle.kernels import native, probe_library, probe_native
from substyle.kernels.probe_heads import BETA1, BETA2, EPS, Heads, Term

FLOAT, BF16 = torch.float32, torch.bfloat16
T = TypeVar("T")
BOTH = pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
TOLERANCE = {FLOAT: {"atol": 1e-6, "rtol": 2e-5}, BF16: {"atol": 1e-6, "rtol": 2**-8}}
THREADS = (1, 2, 5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def compiled() -> None:
    if probe_library.library() is None:
        pytest.skip(native.state("probe_native"))


def on_threads(work: Callable[[], T]) -> list[T]:
    """The result on each number of threads."""
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(work())
    return results


def drawn(seed: int, *shape: int, dtype: torch.dtype = FLOAT, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def classes(seed: int, count: int, most: int) -> torch.Tensor:
    return torch.randint(most, (count,), generator=torch.Generator().manual_seed(seed))


# ---- gather


def gathered(
    x_RD: np.ndarray, row_B: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray, dtype: torch.dtype
) -> torch.Tensor:
    out = torch.full((len(row_B) + 1, x_RD.shape[1]), 7.0, dtype=dtype)
    probe_native.gather(x_RD, row_B, torch.from_numpy(mean_D), torch.from_numpy(scale_D), out[:-1])
    assert (out[-1] == 7.0).all()  # nothing is written beyond the end
    return out[:-1]


@BOTH
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("width", [1, 33, 256])
def test_gather(dtype: torch.dtype, kind: type, width: int) -> None:
    rng = np.random.default_rng(width)
    x_RD = (rng.normal(size=(19, width)) * 3).astype(kind)
    row_B = rng.integers(0, 19, 37)
    mean_D, scale_D = rng.normal(size=(2, width)).astype(np.float32)
    expected = torch.from_numpy((x_RD[row_B].astype(np.float32) - mean_D) * scale_D).to(dtype)
    results = on_threads(lambda: gathered(x_RD, row_B, mean_D, scale_D, dtype))
    assert all(torch.equal(result, expected) for result in results)


@BOTH
@pytest.mark.parametrize("flush", [False, True])
def test_every_float16_is_read_as_numpy_reads_it(dtype: torch.dtype, flush: bool) -> None:
    """All 65,536: subnormal numbers, infinities and every NaN, also where the thread takes subnormals for 0."""
    x_RD = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    one, zero = np.ones(256, np.float32), np.zeros(256, np.float32)
    expected = torch.from_numpy(x_RD.astype(np.float32)).to(dtype)
    torch.set_num_threads(1)
    torch.set_flush_denormal(flush)
    try:
        result = gathered(x_RD, np.arange(256), zero, one, dtype)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)


def test_every_nan_of_float32_stays_one() -> None:
    x_RD = np.array([[0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000]], np.uint32).view(np.float32)
    assert gathered(x_RD, np.zeros(2, np.int64), np.zeros(4, np.float32), np.ones(4, np.float32), BF16).isnan().all()


@pytest.mark.parametrize("row", [-1, 3])
def test_gather_refuses_rows_that_are_not_there(row: int) -> None:
    x_RD = np.zeros((3, 4), np.float32)
    with pytest.raises(IndexError):
        gathered(x_RD, np.array([0, row]), np.zeros(4, np.float32), np.ones(4, np.float32), FLOAT)


@pytest.mark.parametrize(
    ("x_RD", "out"),
    [
        (np.zeros((3, 4), np.float32), torch.zeros(1, 4)),
        (np.zeros((3, 4), np.float32), torch.zeros(2, 3)),
        (np.zeros((3, 4), np.float32), torch.zeros(4, 2).T),
        (np.zeros((3, 4), np.float32), torch.zeros(2, 4, dtype=torch.float16)),
        (np.zeros((4, 3), np.float32).T, torch.zeros(2, 4)),
        (np.zeros((3, 4), np.float64), torch.zeros(2, 4)),
        (np.zeros((3, 4), ">f2"), torch.zeros(2, 4)),
    ],
    ids=["rows", "width", "out strides", "out dtype", "strides", "float64", "byte order"],
)
def test_gather_refuses_arrays_of_another_shape(x_RD: np.ndarray, out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"rows|for"):
        probe_native.gather(x_RD, np.zeros(2, np.int64), torch.zeros(4), torch.ones(4), out)


def test_gather_of_no_row() -> None:
    probe_native.gather(
        np.zeros((0, 4), np.float16), np.empty(0, np.int64), torch.zeros(4), torch.ones(4), torch.empty(0, 4)
    )


def test_gather_beyond_four_gigabytes(tmp_path: Path) -> None:
    """The last row of a sparse file of 5.0e9 bytes, which 32 bits cannot count."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2 * 768 * 3_300_000)
    x_RD = np.memmap(path, np.float16, "r+", shape=(3_300_000, 768))
    x_RD[-1] = 3.0
    last = gathered(x_RD, np.array([3_299_999, 0]), np.ones(768, np.float32), np.ones(768, np.float32), FLOAT)
    assert (last[0] == 2.0).all()
    assert (last[1] == -1.0).all()


# ---- cross-entropy


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


# ---- judge


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


# ---- hidden layer


def hidden(z: torch.Tensor, bias: torch.Tensor, kept: torch.Tensor | None, factor: float) -> torch.Tensor:
    z = z.clone()
    mask, stride = (None, 0) if kept is None else (kept.data_ptr(), kept.stride(0))
    probe_library.library().probe_hidden(
        z.data_ptr(), *z.shape, bias.data_ptr(), mask, stride, factor, z.dtype == BF16, torch.get_num_threads()
    )
    return z


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (7, 96), (33, 70)])
def test_hidden_layer_and_its_gradient(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Masks may be a slice of wider rows; where a value is NaN it goes on, and so does its gradient."""
    z, bias = drawn(0, *shape, dtype=dtype), drawn(1, shape[0])
    z[-1, -1] = float("nan")
    kept = (drawn(2, shape[0], shape[1] + 9) > -0.5)[:, 4:-5]
    kept[-1, -1] = True
    for mask, factor in ((None, 1.0), (kept, 1.25)):
        live = torch.ones(shape, dtype=torch.bool) if mask is None else mask
        expected = torch.where(live, (z.float() + bias[:, None]).relu() * factor, 0.0).to(dtype)
        forward = on_threads(lambda mask=mask, factor=factor: hidden(z, bias, mask, factor))
        for result in forward:
            torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)
        g = drawn(3, *shape, dtype=dtype)
        expected_g = torch.where(expected <= 0, 0.0, g.float() * factor)

        def back(h: torch.Tensor = expected, g: torch.Tensor = g, f: float = factor) -> SimpleNamespace:
            made, dbias = g.clone(), torch.empty(len(g))
            probe_library.library().probe_hidden_back(
                made.data_ptr(), h.data_ptr(), *g.shape, f, dbias.data_ptr(), g.dtype == BF16, torch.get_num_threads()
            )
            return SimpleNamespace(g=made, dbias=dbias)

        results = on_threads(back)
        for result in results:
            assert torch.equal(result.g, expected_g.to(dtype))
            torch.testing.assert_close(result.dbias.double(), expected_g.double().sum(1), atol=1e-5, rtol=1e-5)
            assert torch.equal(result.dbias, results[0].dbias)


# ---- AdamW


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (2, 4096), (3, 9001)])
@pytest.mark.parametrize("copied", [False, True])
def test_adamw(dtype: torch.dtype, shape: tuple[int, int], copied: bool) -> None:
    """Against float64 over a wide range of gradients; both sides of the blocks of 4,096."""
    heads, size = shape
    g = (drawn(0, *shape) * 10 ** drawn(1, *shape, scale=3.0)).to(dtype)
    w, m, v = drawn(2, *shape), drawn(3, *shape), drawn(4, *shape).abs()
    rate, keep = drawn(5, heads).abs() * 1e-2, 1 - drawn(6, heads).abs() * 1e-3
    unbias = 1.0 / (1.0 - BETA2**5)
    mean = BETA1 * m.double() + (1 - BETA1) * g.double()
    square = BETA2 * v.double() + (1 - BETA2) * g.double() ** 2
    weight = w * keep[:, None].double() - rate[:, None] * mean / ((square * unbias).sqrt() + EPS)

    def work() -> list[torch.Tensor]:
        own = [t.clone() for t in (w, m, v)]
        copy = torch.zeros(heads, size, dtype=BF16)
        at = [t.data_ptr() for t in own]
        probe_library.library().probe_adamw(
            at[0], g.data_ptr(), at[1], at[2], copy.data_ptr() if copied else None, heads, size,
            rate.data_ptr(), keep.data_ptr(), BETA1, BETA2, unbias, EPS, dtype == BF16, torch.get_num_threads(),
        )  # fmt: skip
        assert torch.equal(copy, own[0].to(BF16) if copied else torch.zeros_like(copy))
        return own

    results = on_threads(work)
    for result, expected in zip(results[0], (weight, mean, square), strict=True):
        torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-5)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_subnormal_gradients_count_as_nothing_and_the_thread_is_left_as_it_was() -> None:
    g, w = torch.full((1, 64), 1e-40), torch.ones(1, 64)
    m, v = torch.zeros(1, 64), torch.zeros(1, 64)
    rate, keep = torch.ones(1), torch.ones(1)
    probe_library.library().probe_adamw(
        w.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), None, 1, 64,
        rate.data_ptr(), keep.data_ptr(), BETA1, BETA2, 1.0, EPS, 0, 1,
    )  # fmt: skip
    assert (w - 1.0).abs().max() < 1e-30
    assert np.float32(1e-40) * np.float32(0.5) > 0
    assert (torch.full((64,), 1e-40) * 0.5 > 0).all()


def test_reasons_of_kernels() -> None:
    probe_library.check(0)
    with pytest.raises(MemoryError):
        probe_library.check(1)
    with pytest.raises(IndexError):
        probe_library.check(2)
