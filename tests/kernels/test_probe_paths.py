"""Which path a probe step takes, and that the compiled and the torch path learn the same from the same inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from substyle.kernels import native, probe_native, probe_step
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.probe_step import judge, step

CPU, FLOAT, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
INPUTS, OUTPUTS, BATCH = 12, 7, 45
TOLERANCE = {FLOAT: {"atol": 2e-6, "rtol": 1e-4}, BF16: {"atol": 2e-2, "rtol": 2e-2}}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call from which on there are no compiled kernels."""
    return lambda: monkeypatch.setattr(probe_native, "library", lambda: None)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def compiled() -> None:
    if probe_native.library() is None:
        pytest.skip(native.state("probe_native"))


def make_heads(hidden: int, count: int = 4) -> Heads:
    generator = torch.Generator().manual_seed(0)
    sizes = [(OUTPUTS, INPUTS)] if hidden == 0 else [(hidden, INPUTS), (OUTPUTS, hidden)]
    shapes = [shape for size in sizes for shape in ((count, *size), (count, size[0]))]
    return Heads(*(torch.randn(shape, generator=generator) * 0.3 for shape in shapes))


def draw(seed: int, dtype: torch.dtype = FLOAT) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, INPUTS, generator=generator).to(dtype)
    return x, torch.randint(3, (BATCH,), generator=generator)


def some_terms(kind: str, y: torch.Tensor) -> list[Term]:
    generator = torch.Generator().manual_seed(9)
    weight = (torch.rand(4, BATCH, generator=generator) - 0.3).clamp_min(0.0)
    scale = torch.tensor([0.3, 1.0, 0.0, 2.0])
    return {
        "one": [Term(y)],
        "weights": [Term(y, weight_KB=weight)],
        "two": [Term(y[:20], slice(0, 20), slice(0, 3), scale), Term(y[20:], slice(20, None), slice(3, 6), 1 - scale)],
        "gaps": [Term(y[5:9], slice(5, 9)), Term(y[30:], slice(30, None)), Term(y[:0], slice(30, 30))],
    }[kind]


def learn(heads: Heads, kind: str, masks: torch.Tensor | None, dtype: torch.dtype, seeds: range) -> list[torch.Tensor]:
    rates, decays = [1e-2, 3e-3, 1e-2, 1e-3], [0.1, 0.0, 0.1, 1.0]
    losses = []
    for seed in seeds:
        x, y = draw(seed, dtype)
        losses.append(step(heads, x, some_terms(kind, y), rates, decays, kept_SHB=masks, keep=0.75))
    return losses


def assert_same_course(ours: Heads, theirs: Heads, start: Heads, dtype: torch.dtype) -> None:
    """Equal weights; of bfloat16, whose rounding turns the sign of tiny gradients and so of Adam's steps, the distance
    is a small part of the way."""
    for a, b, begin in zip(ours.parameters, theirs.parameters, start.parameters, strict=True):
        if dtype == FLOAT:
            torch.testing.assert_close(a, b, **TOLERANCE[FLOAT])
        else:
            assert (a - b).norm() < 0.1 * (b - begin).norm()


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["one", "weights", "two", "gaps"])
@pytest.mark.parametrize(("hidden", "dropout"), [(0, ""), (40, ""), (40, "bool"), (40, "float"), (40, "slice")])
def test_both_paths_learn_the_same(
    without: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    kind: str,
    hidden: int,
    dropout: str,
) -> None:
    masks = None
    if dropout:
        wide = torch.rand(2, 40, BATCH + 6, generator=torch.Generator().manual_seed(4)) < 0.75
        masks = {"bool": wide[:, :, 6:].contiguous(), "float": wide[:, :, 6:].float(), "slice": wide[:, :, 6:]}[dropout]
    spy = Mock(wraps=probe_native.step)
    monkeypatch.setattr(probe_native, "step", spy)
    ours, theirs = make_heads(hidden), make_heads(hidden)
    losses = learn(ours, kind, masks, dtype, range(6))
    assert spy.call_count == 6
    without()
    expected = learn(theirs, kind, masks, dtype, range(6))
    assert spy.call_count == 6
    for a, b in zip(losses, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    assert_same_course(ours, theirs, make_heads(hidden), dtype)
    assert ours.steps == theirs.steps == 6


@pytest.mark.parametrize("hidden", [0, 40])
def test_paths_may_take_turns(without: Callable[[], None], monkeypatch: pytest.MonkeyPatch, hidden: int) -> None:
    """The copies of the weights in bfloat16 follow whichever path changed the weights; so do Adam's moments."""
    heads, expected = make_heads(hidden), make_heads(hidden)
    for start in range(0, 9, 3):
        with monkeypatch.context() as patch:
            if start == 3:
                patch.setattr(probe_native, "library", lambda: None)
            learn(heads, "one", None, BF16, range(start, start + 3))
        for place in (0, 2)[: 1 + bool(hidden)]:
            assert torch.equal(heads.lowered(place, BF16), heads.parameters[place].to(BF16))
    without()
    learn(expected, "one", None, BF16, range(9))
    assert_same_course(heads, expected, make_heads(hidden), BF16)


def test_a_copy_in_another_dtype_is_made_anew() -> None:
    """The compiled kernel keeps a bfloat16 copy up to date and no other."""
    heads = make_heads(0)
    assert heads.lowered(0, torch.float16).dtype == torch.float16
    learn(heads, "one", None, FLOAT, range(2))
    assert torch.equal(heads.lowered(0, torch.float16), heads.w1.half())
    assert torch.equal(heads.lowered(0, BF16), heads.w1.to(BF16))
    kept = heads.lowered(0, BF16)
    heads.w1.mul_(2.0)
    assert torch.equal(heads.lowered(0, BF16), heads.w1.to(BF16))
    assert heads.lowered(0, BF16) is kept


X, Y = draw(0)
CASES: dict[str, tuple[bool, torch.Tensor, list[Term]]] = {
    "plain": (True, X, [Term(Y)]),
    "bf16": (True, X.to(BF16), [Term(Y)]),
    "no term": (True, X, []),
    "touching rows": (True, X, [Term(Y[:9], slice(0, 9)), Term(Y[9:], slice(9, None))]),
    "an empty term inside another": (True, X, [Term(Y), Term(Y[:0], slice(4, 4))]),
    "one row twice": (False, X, [Term(Y[:9], slice(0, 9)), Term(Y[8:], slice(8, None))]),
    "every second row": (False, X, [Term(Y[::2], slice(None, None, 2))]),
    "every second output": (False, X, [Term(Y, outputs=slice(None, None, 2))]),
    "strides": (False, X.T.contiguous().T, [Term(Y)]),
}


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("name", CASES)
def test_dispatch(without: Callable[[], None], name: str, hidden: int) -> None:
    """The compiled path takes what it can take, and either way the step is the torch path's."""
    usable, x_BD, terms = CASES[name]
    ours, theirs = make_heads(hidden), make_heads(hidden)
    assert probe_native.usable(ours, x_BD, terms) is usable
    losses = step(ours, x_BD, terms, [1e-2] * 4, [0.1] * 4)
    without()
    assert not probe_native.usable(ours, x_BD, terms)
    torch.testing.assert_close(losses, step(theirs, x_BD, terms, [1e-2] * 4, [0.1] * 4), **TOLERANCE[x_BD.dtype])
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[x_BD.dtype])


def test_what_the_compiled_path_leaves_to_torch() -> None:
    heads = make_heads(0)
    assert not probe_native.usable(heads, torch.zeros(0, INPUTS), [Term(Y[:0])])
    assert not probe_native.usable(heads, X.double(), [Term(Y)])
    assert not probe_native.usable(heads, X, [Term(Y, outputs=slice(3, 3))])
    assert not probe_native.usable(heads.select([]), X, [Term(Y)])
    assert not probe_native.usable(Heads(heads.w1.mT.contiguous().mT, heads.b1), X, [Term(Y)])
    assert probe_native.available(CPU, BF16)
    assert not probe_native.available(CPU, torch.float64)
    assert not probe_native.available(torch.device("cuda"), FLOAT)
    assert not probe_native.available(torch.device("meta"), FLOAT)


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("hidden", [0, 40])
@pytest.mark.parametrize("outputs", [slice(0, 3), slice(2, 7)])
def test_both_paths_judge_the_same(
    without: Callable[[], None], dtype: torch.dtype, hidden: int, outputs: slice
) -> None:
    x, y = draw(1, dtype)
    weight = torch.rand(BATCH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = judge(make_heads(hidden), x, y, weight / weight.sum(), outputs)
    without()
    expected = judge(make_heads(hidden), x, y, weight / weight.sum(), outputs)
    assert all(v.dtype == torch.float64 for v in (*found, *expected))
    torch.testing.assert_close(found[0], expected[0], atol=1e-12 if dtype == FLOAT else 0.05, rtol=0)
    torch.testing.assert_close(found[1], expected[1], **TOLERANCE[dtype])


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_bad_weight_shows_in_the_loss(hidden: int, without: Callable[[], None]) -> None:
    """NaN is nowhere taken for a number, a hidden unit's zero or an output that nobody chose."""
    for path in ("compiled", "torch"):
        heads = make_heads(hidden)
        heads.w1[1, 2, 3] = float("nan")
        if path == "torch":
            without()
        losses = step(heads, X, [Term(Y)], [1e-2] * 4, [0.0] * 4)
        assert losses.isnan().tolist() == [False, True, False, False], path
        assert heads.parameters[-1][1].isnan().any()
        assert not heads.parameters[-1][[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_refused_step_changes_nothing(hidden: int) -> None:
    heads, before = make_heads(hidden), make_heads(hidden)
    bad = Y.clone()
    bad[7] = OUTPUTS
    with pytest.raises(IndexError):
        step(heads, X, [Term(bad)], [1e-2] * 4, [0.0] * 4)
    for lr, decay in (([1e-2] * 3, [0.0] * 4), ([1e-2] * 4, [0.0] * 5)):
        with pytest.raises(ValueError, match="for 4 heads"):
            step(heads, X, [Term(Y)], lr, decay)
    if hidden:
        with pytest.raises(ValueError, match="masks of shape"):
            step(heads, X, [Term(Y)], [1e-2] * 4, [0.0] * 4, kept_SHB=torch.ones(1, hidden, BATCH - 1), keep=0.5)
    assert heads.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters, before.parameters, strict=True))


@pytest.mark.parametrize("hidden", [0, 40])
def test_a_step_on_any_number_of_threads(hidden: int) -> None:
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        heads = make_heads(hidden)
        learn(heads, "two", None, FLOAT, range(4))
        results.append(heads.parameters)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


_PROGRAM = """
import numpy as np, torch
from substyle.kernels import native, probe_native, probe_step
from substyle.kernels.probe_heads import Heads, Term
assert probe_native.library() is None and "no C compiler" in native.state("probe_native"), native.state("probe_native")
rng = np.random.default_rng(0)
w, b, x = (torch.from_numpy(rng.normal(size=s).astype(np.float32)) for s in ((2, 3, 4), (2, 3), (5, 4)))
heads = Heads(w, b)
y = torch.tensor([0, 1, 2, 1, 0])
first = probe_step.step(heads, x, [Term(y)], [1e-2] * 2, [0.0] * 2)
right, loss = probe_step.judge(heads, x, y, torch.full((5,), 0.2), slice(0, 3))
assert (loss < first).all(), (first, loss)
print(" ".join(f"{v:.6f}" for v in (*first, *loss)))
"""


def test_without_a_compiler(tmp_path: Path) -> None:
    """A process that finds no C compiler trains in torch, and learns what this one learns."""
    environment = os.environ | {"CC": str(tmp_path / "no-such-compiler"), "SUBSTYLE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    w, b, x = (torch.from_numpy(rng.normal(size=s).astype(np.float32)) for s in ((2, 3, 4), (2, 3), (5, 4)))
    heads, y = Heads(w, b), torch.tensor([0, 1, 2, 1, 0])
    first = probe_step.step(heads, x, [Term(y)], [1e-2] * 2, [0.0] * 2)
    _, loss = probe_step.judge(heads, x, y, torch.full((5,), 0.2), slice(0, 3))
    assert [float(v) for v in done.stdout.split()] == pytest.approx([*first.tolist(), *loss.tolist()], abs=1e-5)
