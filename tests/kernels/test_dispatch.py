"""Choice between implementations on both sides of every branch; threads over images; memory of arrays."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import substyle.kernels
from substyle.errors import ConfigError
from substyle.kernels import difference, dispatch, halftone, philox, probe_data, warp

ONE, PAIR = np.ones(2, np.float32), np.ones((2, 2), np.float32)
KEYS = philox.image_keys(0, ["a", "b"])
SHIFT, NODES = torch.zeros(2, 2, 9, 9), torch.zeros(2, 2, 6, 6)

# function, which its Triton module has too; fallback off the CPU; arguments after the canvas
Fork = tuple[str, str, tuple[Any, ...]]
FORKS: list[Fork] = [
    ("warp.remap", "warp.remap_reference", (SHIFT,)),
    ("warp.elastic", "displacement.elastic", (KEYS, "e", ONE, 1.0)),
    ("warp.grid", "displacement.grid", (NODES,)),
    ("warp.swirl", "displacement.swirl", (PAIR, ONE, ONE)),
    ("noise.gaussian_noise", "noise.gaussian_noise_reference", (ONE, KEYS, "n")),
    ("noise.impulse_noise", "noise.impulse_noise_reference", (ONE, KEYS, "n")),
    ("noise.shot_noise", "noise.shot_noise_reference", (ONE, KEYS, "n")),
    ("jpeg_codec.compressed", "jpeg_codec.compressed_reference", (np.full(2, 10, np.int32),)),
]


def module_of(function: str) -> ModuleType:
    return importlib.import_module(f"substyle.kernels.{function.partition('.')[0]}")


def fake(monkeypatch: pytest.MonkeyPatch, name: str) -> Mock:
    """A fake module of Triton kernels, so that Triton is not needed."""
    stand_in = Mock()
    monkeypatch.setitem(sys.modules, f"substyle.kernels.{name}", stand_in)
    monkeypatch.setattr(substyle.kernels, name, stand_in, raising=False)
    return stand_in


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork[0])
def test_both_sides_of_a_fork(monkeypatch: pytest.MonkeyPatch, fork: Fork) -> None:
    function, reference, arguments = fork
    module, name = module_of(function), function.partition(".")[2]
    stand_in, plain = fake(monkeypatch, f"{function.partition('.')[0]}_triton"), Mock()
    call = getattr(module, name)
    elsewhere = torch.empty(2, 10, 10, 3, dtype=torch.uint8, device="meta")
    monkeypatch.setattr(module, "on_triton", lambda tensor: True)
    assert call(elsewhere.transpose(1, 2), *arguments) is getattr(stand_in, name).return_value
    given = getattr(stand_in, name).call_args.args[0]
    assert given.is_contiguous()
    monkeypatch.setattr(module, "on_triton", lambda tensor: False)
    monkeypatch.setattr(module_of(reference), reference.partition(".")[2], plain)
    if name != "remap":
        monkeypatch.setattr(warp, "remap", lambda canvas, field: field)
    getattr(stand_in, name).reset_mock()
    assert call(elsewhere, *arguments) is plain.return_value
    assert not getattr(stand_in, name).called


def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def test_a_fused_function_is_compiled_once_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = Mock(side_effect=lambda function, **options: Mock(return_value="compiled"))
    monkeypatch.setattr(torch, "compile", compile_)
    dispatch.compiled.cache_clear()
    call, one = dispatch.fused(plain), torch.ones(1)
    assert torch.equal(call(one, one), one + one)
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    assert torch.equal(call(one, one), one + one)
    there = Mock(is_cuda=True)
    assert [call(there, one), call(there, one)] == ["compiled"] * 2
    compile_.assert_called_once_with(plain, dynamic=True)
    dispatch.compiled.cache_clear()


def test_a_function_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = Mock(side_effect=torch._dynamo.exc.Unsupported("no room"))
    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    call, one = dispatch.compiled.__wrapped__(plain), torch.ones(1)
    for _ in range(2):
        assert torch.equal(call(one, one), one + one)
    assert capsys.readouterr().err.count("running plain uncompiled") == 1


def fused_functions() -> dict[str, tuple[Callable[..., Any], Callable[[int], tuple[torch.Tensor, ...]]]]:
    def canvas(batch: int) -> torch.Tensor:
        return torch.randint(0, 256, (batch, 8 + batch, 8 + batch, 3), dtype=torch.uint8)

    def inks(batch: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(batch, 1, 1, channels) + 1, torch.rand(batch, 1, 1, channels)

    def words(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.empty(batch + 10, 3, 7, 4, dtype=torch.int32), torch.arange(3), torch.arange(batch + 10)

    def rows(batch: int) -> tuple[torch.Tensor, ...]:
        return torch.empty(batch, 13), torch.rand(30, 13).half(), torch.arange(batch), *torch.rand(2, 13)

    return {
        "rows of a table": (probe_data._gather, rows),
        "dropout": (probe_data.draw_words, words),
        "difference": (difference.total, lambda batch: (canvas(batch), canvas(batch))),
        "dots": (halftone._dots, lambda batch: (canvas(batch), *inks(batch, 3), torch.rand(256))),
        "lines": (halftone._lines, lambda batch: (canvas(batch), *inks(batch, 1))),
    }


def result(function: Callable[..., Any], arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a function returns, or else writes to its first argument."""
    found = function(*arguments)
    return arguments[0].clone() if found is None else found


@pytest.mark.parametrize("name", fused_functions())
def test_fused_functions_are_one_graph_for_all_batches(name: str) -> None:
    function, given = fused_functions()[name]
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function.__wrapped__, dynamic=True, fullgraph=True, backend=backend)  # type: ignore[attr-defined]
    for batch in (4, 5, 9):
        arguments = given(batch)
        found, expected = result(compiled, arguments), result(function, arguments)
        assert torch.equal(found, expected)
    assert len(graphs) == 1


def test_a_blur_wider_than_the_picture_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = fake(monkeypatch, "warp_triton")
    monkeypatch.setattr(warp, "on_triton", lambda tensor: True)
    for side, used in ((7, False), (8, True)):  # its radius is 7
        warp.elastic(torch.zeros(2, side, side, 3, dtype=torch.uint8), KEYS, "e", ONE, 2.24)
        assert stand_in.elastic.called == used


@pytest.mark.parametrize(("cuda", "there"), [(True, True), (True, False), (False, True)])
def test_triton_wants_a_gpu_and_to_be_installed(monkeypatch: pytest.MonkeyPatch, cuda: bool, there: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    dispatch.installed.cache_clear()
    try:
        assert dispatch.on_triton(SimpleNamespace(is_cuda=cuda, is_meta=False)) == (cuda and there)  # type: ignore[arg-type]
    finally:
        dispatch.installed.cache_clear()


def test_grid() -> None:
    assert dispatch.grid("x", 3, 1000, 256) == (4, 3)
    assert dispatch.grid("x", 3, 1024, 256) == (4, 3)
    assert dispatch.grid("x", 0, 10, 256) is dispatch.grid("x", 3, 0, 256) is None
    assert dispatch.grid("x", 65535, 2**31 - 257, 256) == (8388607, 65535)
    with pytest.raises(ConfigError, match="x batch"):
        dispatch.grid("x", 65536, 10, 256)
    with pytest.raises(ConfigError, match="x image"):
        dispatch.grid("x", 1, 2**31 - 256, 256)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_errors_come_out(threads: int) -> None:
    def work(i: int) -> None:
        if i == 2:
            raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        dispatch.for_each_image(4, work)


def test_each_image_is_worked_on_once(threads: int) -> None:
    seen: list[int] = []
    dispatch.for_each_image(100, seen.append)
    assert sorted(seen) == list(range(100))


def test_a_forked_process_has_its_own_threads(threads: int) -> None:
    dispatch.for_each_image(4, lambda _: None)  # the parent's threads exist
    child = multiprocessing.get_context("fork").Process(target=dispatch.for_each_image, args=(4, lambda _: None))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive
    assert child.exitcode == 0


# --- memory -----------------------------------------------------------------------------------------------------------

CPU, EDGE = torch.device("cpu"), dispatch._HUGE


@pytest.mark.parametrize("size", [0, EDGE - 1, EDGE, 3 * EDGE + 5])
def test_an_array_of_any_size_can_be_written(size: int) -> None:
    tensor = dispatch.empty((size,), torch.uint8, CPU)
    assert tensor.shape == (size,)
    assert tensor.is_contiguous()
    tensor.fill_(7)
    assert int(tensor.sum(dtype=torch.int64)) == 7 * size
    if size >= EDGE and hasattr(mmap, "MADV_HUGEPAGE"):
        assert tensor.data_ptr() % EDGE == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_memory_outlives_its_maker_and_is_of_its_own() -> None:
    """Views keep the memory; neither two arrays nor two processes share any."""
    first = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(1)[EDGE // 2 :]
    second = dispatch.empty((EDGE,), torch.uint8, CPU).fill_(2).numpy()
    child = os.fork()
    if child == 0:
        second[0] = 9
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (second == 2).all()
    assert bool((first == 1).all())


def test_upload_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(6, dtype=np.int64).reshape(2, 3).T
    assert torch.equal(dispatch.upload(values, torch.device("cpu")), torch.tensor([[0, 3], [1, 4], [2, 5]]))
    tensor, device = Mock(), torch.device("cuda", 1)
    monkeypatch.setattr(torch, "from_numpy", lambda array: tensor)
    assert dispatch.upload(values, device) is tensor.pin_memory.return_value.to.return_value
    tensor.pin_memory.return_value.to.assert_called_once_with(device, non_blocking=True)
