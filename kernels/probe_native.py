"""A probe step on a CPU: GEMMs by torch, everything between them one pass each in C (``probe_native.c``).

The same arithmetic in plain torch stands in ``probe_step``, which calls this where :func:`usable` says so. Heads with
a hidden layer go one by one: what lies between two of a head's GEMMs is then still in the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import native
from substyle.kernels.probe_heads import BETA1, BETA2, EPS, Heads, Numbers, Term

# The functions of ``probe_native.c`` and when they can be called.

_DTYPES = (torch.float32, torch.bfloat16)
_P, _N, _I, _F, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double


class CTerm(ctypes.Structure):
    """``term`` in C: rows [first, last) and outputs [low_output, high_output) of a cross-entropy."""

    _fields_ = [
        ("target", _P), ("share", _P), ("scale", _P),
        ("first", _N), ("last", _N), ("low_output", _N), ("high_output", _N),
    ]  # fmt: skip


_ARGUMENTS = {
    "probe_gather": (_P, _P, _N, _N, _P, _P, _P, _I, _I, _I),
    "probe_cross_entropy": (_P, _N, _N, _N, _P, _P, _N, _P, _P, _I, _I),
    "probe_judge": (_P, _N, _N, _N, _N, _P, _N, _P, _P, _P, _P, _I, _I),
    "probe_hidden": (_P, _N, _N, _P, _P, _N, _F, _I, _I),
    "probe_hidden_back": (_P, _P, _N, _N, _F, _P, _I, _I),
    "probe_adamw": (_P, _P, _P, _P, _P, _N, _N, _P, _P, _D, _D, _F, _F, _I, _I),
}


@cache
def library() -> Any:  # noqa: ANN401 - ctypes finds functions at run time
    """The compiled kernels, None where there are none."""
    found = native.load("probe_native")
    if found is not None:
        for name, arguments in _ARGUMENTS.items():
            getattr(found, name).argtypes = arguments
    return found


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels work on tensors of a device, with GEMMs in a dtype."""
    return device.type == "cpu" and dtype in _DTYPES and library() is not None


def check(code: int) -> None:
    """Raise what a kernel's return value stands for."""
    if code == 1:
        raise MemoryError("no memory for the work arrays of a probe kernel")
    if code == 2:
        raise IndexError("a target is not one of its term's outputs")


def at(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie."""
    return tensor.data_ptr()


def low(tensor: torch.Tensor) -> bool:
    """What the kernels call ``low``."""
    return tensor.dtype == torch.bfloat16


def threads() -> int:
    """Threads for a kernel: as many as torch uses."""
    return torch.get_num_threads()


_EVERY = slice(None)
_SMALL = 1 << 15  # elements that one thread updates sooner than several are woken


def usable(heads: Heads, x_BD: torch.Tensor, terms: Sequence[Term]) -> bool:
    """Whether :func:`step` can take this step.

    It can on a CPU, of contiguous arrays that are not empty, with terms of successive rows and outputs, no row of the
    batch in two of them.
    """
    if not available(x_BD.device, x_BD.dtype) or not x_BD.is_contiguous():
        return False
    if x_BD.numel() == 0 or not all(p.is_contiguous() and p.numel() for p in heads.parameters):
        return False
    outputs = [term.outputs.indices(heads.outputs) for term in terms]
    if not all(first < last and step == 1 for first, last, step in outputs):
        return False
    rows = [term.rows.indices(len(x_BD)) for term in terms]
    spans = sorted((first, last) for first, last, _ in rows if first < last)
    return all(step == 1 for _, _, step in rows) and all(b[0] >= a[1] for a, b in pairwise(spans))


def step(
    heads: Heads,
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    lr_K: Numbers,
    decay_K: Numbers,
    kept_SHB: torch.Tensor | None,
    keep: float,
) -> torch.Tensor:
    """One step of all heads, in place; arguments and result as in ``probe_step.step``."""
    if not len(lr_K) == len(decay_K) == len(heads):
        raise ValueError(f"{len(lr_K)} learning rates and {len(decay_K)} decays for {len(heads)} heads")
    heads.start()
    rates = _Rates(lr_K, decay_K, heads.steps + 1)
    if heads.w2 is None or heads.b2 is None:
        losses = _linear(heads, x_BD, terms, rates)
        heads.steps += 1
        return losses
    if kept_SHB is None:
        keep = 1.0
    else:
        if kept_SHB.shape[1:] != (heads.w1.shape[1], len(x_BD)):
            raise ValueError(f"masks of shape {tuple(kept_SHB.shape)}")
        if kept_SHB.dtype not in (torch.bool, torch.uint8) or kept_SHB.stride(2) != 1:
            kept_SHB = (kept_SHB != 0).contiguous()
    losses = torch.empty(len(heads))
    for k in range(len(heads)):
        kept = None if kept_SHB is None else kept_SHB[k % len(kept_SHB)]
        _hidden(heads, k, x_BD, terms, rates, kept, 1.0 / keep, losses)
    heads.steps += 1
    return losses


def judge(
    heads: Heads, x_BD: torch.Tensor, target_B: torch.Tensor, weight_B: torch.Tensor, outputs: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of right rows and of cross-entropies of each head; as in ``probe_step.judge``."""
    count, batch = len(heads), len(x_BD)
    first, last, _ = outputs.indices(heads.outputs)
    if target_B.shape != (batch,) or weight_B.shape != (batch,):
        raise ValueError(f"{len(target_B)} targets and {len(weight_B)} weights of {batch} rows")
    right_K, loss_K = torch.empty(count, dtype=torch.float64), torch.empty(count, dtype=torch.float64)
    target_B, weight_B = target_B.long().contiguous(), weight_B.double().contiguous()
    if heads.w2 is None:
        z = _first_layer(heads, slice(0, count), x_BD)
        _judge(z, count, heads.outputs, first, last, heads.b1, target_B, weight_B, right_K, loss_K)
        return right_K, loss_K
    assert heads.b2 is not None
    w2 = heads.lowered(2, x_BD.dtype)
    for k in range(count):
        h = _first_layer(heads, slice(k, k + 1), x_BD)
        library().probe_hidden(at(h), len(h), batch, at(heads.b1[k]), None, 0, 1.0, low(h), threads())
        y = _mm(heads, "logits", w2[k], h)
        own = slice(k, k + 1)
        _judge(y, 1, heads.outputs, first, last, heads.b2[own], target_B, weight_B, right_K[own], loss_K[own])
    return right_K, loss_K


def gather(
    x_RD: NDArray[np.floating], row_B: NDArray[np.int64], mean_D: torch.Tensor, scale_D: torch.Tensor, out: torch.Tensor
) -> None:
    """``out = (x[row] - mean) * scale``. Shapes: (R, D) float16 or float32, contiguous; (B,); (D,); (B, D)."""
    width = x_RD.shape[1]
    if not x_RD.flags.c_contiguous or not x_RD.dtype.isnative or x_RD.dtype not in (np.float16, np.float32):
        raise ValueError(f"rows of {x_RD.dtype} that do not lie one after the other")
    if out.shape != (len(row_B), width) or not out.is_contiguous() or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{tuple(out.shape)} {out.dtype} for {len(row_B)} rows of {width}")
    mean_D, scale_D = (v.float().expand(width).contiguous() for v in (mean_D, scale_D))
    row_B = np.ascontiguousarray(row_B, np.int64)
    if len(row_B) and not 0 <= row_B.min() <= row_B.max() < len(x_RD):
        raise IndexError(f"rows {row_B.min()} to {row_B.max()} of {len(x_RD)}")
    library().probe_gather(
        x_RD.ctypes.data, row_B.ctypes.data, len(row_B), width,
        at(mean_D), at(scale_D), at(out), x_RD.dtype == np.float16, low(out), threads(),
    )  # fmt: skip


def cross_entropy(
    z_KCB: torch.Tensor, bias_KC: torch.Tensor, terms: Sequence[Term], own: slice = _EVERY
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn logits that still lack their bias into gradients, in place.

    Args:
        z_KCB: logits of K heads.
        bias_KC: their bias.
        terms: of the loss; no row is in two of them.
        own: these heads among those that the terms' scales and weights are for.

    Returns:
        loss (K,) and gradient of the bias (K, C), float32.

    Raises IndexError where a target is not one of its term's outputs; nothing is learned then.
    """
    heads, outputs, batch = z_KCB.shape
    spans = [(*term.rows.indices(batch)[:2], term) for term in terms]
    spans = sorted(((first, last, term) for first, last, term in spans if first < last), key=lambda span: span[0])
    made = (CTerm * len(spans))()
    alive: list[torch.Tensor] = []  # what the terms point to
    end = 0
    for one, (start, stop, term) in zip(made, spans, strict=True):
        if start > end:  # rows that no term has
            z_KCB[:, :, end:start] = 0.0
        end = stop
        one.first, one.last = start, stop
        one.low_output, one.high_output, _ = term.outputs.indices(outputs)
        alive.append(_shaped(term.target_B.long(), "targets", (stop - start,)))
        one.target = at(alive[-1])
        if term.scale_K is not None:
            alive.append(_shaped(term.scale_K[own].float(), "scales", (heads,)))
            one.scale = at(alive[-1])
        if term.weight_KB is not None:
            alive.append(_shaped(shares(term.weight_KB[own].float()), "weights", (heads, stop - start)))
            one.share = at(alive[-1])
    if end < batch:
        z_KCB[:, :, end:] = 0.0
    loss_K, dbias_KC = torch.empty(heads), torch.empty(heads, outputs)
    check(
        library().probe_cross_entropy(
            at(z_KCB), heads, outputs, batch, at(bias_KC), made, len(spans),
            at(loss_K), at(dbias_KC), low(z_KCB), threads(),
        )
    )  # fmt: skip
    return loss_K, dbias_KC


def _shaped(tensor: torch.Tensor, what: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor, contiguous; one of another shape would have the kernel read beyond its end."""
    if tensor.shape != shape:
        raise ValueError(f"{what} of shape {tuple(tensor.shape)} where {shape} is needed")
    return tensor.contiguous()


def shares(weight_KB: torch.Tensor) -> torch.Tensor:
    """Weights of each head scaled to a sum of 1; all 0 stay 0."""
    return weight_KB / weight_KB.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


class _Rates:
    """What an Adam step multiplies with, for each head."""

    def __init__(self, lr_K: Numbers, decay_K: Numbers, steps: int) -> None:
        lr = np.asarray(lr_K, np.float64)
        self.rate_K = (lr / (1.0 - BETA1**steps)).astype(np.float32)
        self.keep_K = (1.0 - lr * np.asarray(decay_K, np.float64)).astype(np.float32)
        self.unbias = 1.0 / (1.0 - BETA2**steps)


def _linear(heads: Heads, x_BD: torch.Tensor, terms: Sequence[Term], rates: _Rates) -> torch.Tensor:
    loss_K, dw, db = linear_gradients(heads, x_BD, terms)
    every = slice(0, len(heads))
    _adamw(heads, 0, every, dw, rates)
    _adamw(heads, 1, every, db, rates)
    return loss_K


def linear_gradients(
    heads: Heads, x_BD: torch.Tensor, terms: Sequence[Term]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss (K,) of linear heads and its gradient by weights, (K * C, D) in the dtype of x, and by intercepts, (K, C).

    The gradient by weights is a work array that the next call overwrites.
    """
    count, outputs, _ = heads.w1.shape
    z = _first_layer(heads, slice(0, count), x_BD)
    loss_K, db = cross_entropy(z.view(count, outputs, len(x_BD)), heads.b1, terms)
    return loss_K, _mm(heads, "dw1", z, x_BD), db


def _hidden(
    heads: Heads,
    k: int,
    x_BD: torch.Tensor,
    terms: Sequence[Term],
    rates: _Rates,
    kept_HB: torch.Tensor | None,
    factor: float,
    losses: torch.Tensor,
) -> None:
    """The step of head k, whose loss goes into ``losses[k]``."""
    assert heads.b2 is not None
    own, batch = slice(k, k + 1), len(x_BD)
    h = _first_layer(heads, own, x_BD)
    mask, stride = (None, 0) if kept_HB is None else (at(kept_HB), kept_HB.stride(0))
    library().probe_hidden(at(h), len(h), batch, at(heads.b1[k]), mask, stride, factor, low(h), threads())
    w2 = heads.lowered(2, x_BD.dtype)[k]
    y = _mm(heads, "logits", w2, h)
    losses[own], db2 = cross_entropy(y[None], heads.b2[own], terms, own)
    dw2 = _mm(heads, "dw2", y, h.T)
    dh = _mm(heads, "dh", w2.T, y)
    db1 = torch.empty(len(h))
    library().probe_hidden_back(at(dh), at(h), len(h), batch, factor, at(db1), low(h), threads())
    dw1 = _mm(heads, "dw1", dh, x_BD)
    for place, gradient in enumerate((dw1, db1, dw2, db2)):
        _adamw(heads, place, own, gradient, rates)


def _first_layer(heads: Heads, own: slice, x_BD: torch.Tensor) -> torch.Tensor:
    """First layer of some heads without bias. Shape: (k*H, B), a work array."""
    return _mm(heads, "z", heads.lowered(0, x_BD.dtype)[own].flatten(0, 1), x_BD.T)


def _mm(heads: Heads, use: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = heads.scratch.array(use, (a.shape[0], b.shape[1]), a.dtype, a.device)
    return torch.mm(a, b, out=out)


def _adamw(heads: Heads, place: int, own: slice, gradient: torch.Tensor, rates: _Rates) -> None:
    """Adam's step of ``parameters[place][own]`` and of its low-precision copy."""
    parameter, copy = heads.parameters[place][own], heads.low_copy(place)
    size = parameter[0].numel()
    library().probe_adamw(
        at(parameter), at(gradient), at(heads.first[place][own]), at(heads.second[place][own]),
        None if copy is None else at(copy[own]), len(parameter), size,
        rates.rate_K[own].ctypes.data, rates.keep_K[own].ctypes.data, BETA1, BETA2, rates.unbias, EPS,
        low(gradient), threads() if parameter.numel() > _SMALL else 1,
    )  # fmt: skip


def _judge(
    z: torch.Tensor,
    heads: int,
    outputs: int,
    first: int,
    last: int,
    bias_KC: torch.Tensor,
    target_B: torch.Tensor,
    weight_B: torch.Tensor,
    right_K: torch.Tensor,
    loss_K: torch.Tensor,
) -> None:
    batch = z.shape[1]
    check(
        library().probe_judge(
            at(z) + first * batch * z.element_size(), heads, outputs * batch, last - first, batch,
            at(bias_KC) + 4 * first, outputs, at(target_B), at(weight_B), at(right_K), at(loss_K), low(z), threads(),
        )
    )  # fmt: skip
