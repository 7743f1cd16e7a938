"""Fake GPUs: what they catch, by planted errors, and the whole check with a torch that is built for CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import fake_gpu, gpu_paper
from benchmarks.fake_gpu import CUDA
from benchmarks.gpu_paper import FAILED, NOT_RUN, OK, Case, row
from torch.utils._python_dispatch import TorchDispatchMode

from substyle.engine.cuda import copy_to_host

ROOT = Path(__file__).parents[2]
WITH_CUDA = ROOT / "build" / "gpu-paper"


def found(work: Callable[[torch.Tensor], object]) -> gpu_paper.Row:
    """The row of work on four numbers of the fake GPU."""

    def ready() -> Callable[[], object]:
        x = torch.zeros(4, device=CUDA)
        return lambda: work(x)

    return row(Case("planted", ready))


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (lambda x: x.sum().item(), "the host waits: aten._local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "the host waits: aten._local_scalar_dense"),
        (lambda x: torch.bincount(x.long()), "the host waits: aten.bincount"),
        (lambda x: x.cpu(), "the host waits: aten._to_copy from cuda:0 to cpu blocks"),
        (lambda x: torch.ops.aten.copy_(x, torch.ones(4)), "the host waits: aten.copy_ from cpu to cuda:0 blocks"),
        (lambda x: torch.tensor([1.0, 2.0], device=CUDA), "the host waits: aten._to_copy from cpu to cuda:0 blocks"),
        (lambda x: torch.ones(4).to(CUDA, non_blocking=True), "is not pinned"),
        (lambda x: torch.ops.aten.copy_(x, torch.ones(4), True), "is not pinned"),
        (lambda x: torch.cuda.current_stream().synchronize(), "the host waits: synchronize"),
        (lambda x: x + torch.ones(4), "mixed devices: aten.add has a tensor (4,) of the host"),
        (lambda x: torch.empty(4, device=CUDA, pin_memory=True), "only memory of the host can be pinned"),
        (lambda x: x.view(5), "RuntimeError"),
    ],
)
def test_planted_errors(work: Callable[[torch.Tensor], object], text: str) -> None:
    planted = found(work)
    assert planted.status == FAILED
    assert text in planted.text


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * 2.0 + torch.tensor(3.0),  # a number of the host is an argument
        lambda x: torch.ones(4).pin_memory().to(CUDA, non_blocking=True),
        lambda x: float(torch.ones(4).sum()) * x,  # the host's own
        copy_to_host,
        lambda x: x.to("cpu", non_blocking=True),
    ],
)
def test_what_does_not_wait(work: Callable[[torch.Tensor], object]) -> None:
    assert found(work).status == OK


class Indexed(TorchDispatchMode):
    """The check of `Watch` alone: a torch without CUDA has no index of the fake GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        given = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        fake_gpu.Watch()._check(func._overloadpacket, given, args, kwargs or {})
        return torch.empty(0, device="meta")


def test_masks_and_indices_of_the_host() -> None:
    x, host, ones = torch.zeros(4, device="meta"), torch.tensor([1, 2]), torch.ones(2, device="meta")
    one, mask = torch.tensor(1.0), torch.zeros(4, dtype=torch.bool, device="meta")
    with Indexed():
        with pytest.raises(fake_gpu.MixedDevicesError, match="index"):
            x[host]
        with pytest.raises(fake_gpu.HostWaitError, match="mask"):
            x[mask]
        with pytest.raises(fake_gpu.HostWaitError, match="mask"):
            torch.ops.aten.index_put_(x, [mask], ones)
        torch.ops.aten.index_put_(x, [mask], one)  # a number of the host fills where the mask is


def test_launches_and_bytes() -> None:
    """4 numbers of 4 bytes, read and written; views cost nothing."""
    counted = found(lambda x: (x * 2).view(2, 2))
    assert (counted.status, counted.launches, counted.bytes) == (OK, 1, 32.0)


def test_the_host_s_memory_is_pinned_whatever_the_default_device() -> None:
    def work(x: torch.Tensor) -> None:
        with CUDA:
            assert copy_to_host(x).args[0].device.type == "cpu"

    assert found(work).status == OK


def test_nothing_is_claimed_of_what_needs_a_driver() -> None:
    assert found(lambda x: torch.cuda.FloatTensor(1)).status != OK
    assert row(Case("x", missing="needs a driver")).status == NOT_RUN


def test_a_torch_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit) as caught:
        gpu_paper.main([])
    assert caught.value.code == 2
    assert "make gpu-paper" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (WITH_CUDA / ".installed").exists(), reason="`make gpu-paper` has not installed a CUDA build")
def test_the_path_of_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    path = os.pathsep.join(map(str, (WITH_CUDA, ROOT / "src", ROOT)))
    command = [sys.executable, "-m", "benchmarks.gpu_paper", "--out", str(out)]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    rows = json.loads(out.read_text())["rows"]
    assert sum(each["status"] == OK for each in rows) > 100
