"""What may be said of executors, and what a machine makes of it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from substyle.engine.config import RAY, EmbedConfig, ExecutorConfig
from substyle.engine.devices import Target
from substyle.engine.embedding import ray_cluster
from substyle.engine.embedding.ray_cluster import Cluster, ClusterError
from substyle.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "slurm"}, "kind"),
        ({"kind": "ray", "workers": -1}, "workers"),
        ({"kind": "ray", "workers": True}, "workers"),
        ({"kind": "ray", "retries": 101}, "retries"),
        ({"kind": "local", "address": "auto"}, "address"),
        ({"kind": "local", "workers": 2}, "workers"),
        ({"kind": "ray", "address": "ray://head:10001"}, "address"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExecutorConfig(**fields)
    assert (caught.value.field, caught.value.given) == (f"executor.{name}", fields[name])


@pytest.mark.parametrize(
    ("fields", "local", "threads"),
    [
        ({}, True, 0),
        ({"kind": "local"}, True, 0),
        ({"kind": "ray"}, False, 12),
        ({"workers": 5}, False, 2),
        ({"workers": 24}, False, 1),
        ({"workers": 5, "address": "head:6379"}, False, 12),  # machines of a cluster may hold one worker each
        ({"address": "auto"}, False, 12),
    ],
)
def test_workers_or_an_address_ask_for_ray_and_share_the_cores(
    fields: dict[str, Any], local: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    executor = ExecutorConfig(**fields)
    assert executor.local == local
    assert executor.here(EmbedConfig(device="cpu")).threads == threads
    assert executor.here(EmbedConfig(device="cpu", threads=7)).threads == 7


def test_a_gpu_worker_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("substyle.engine.devices.resolve", lambda *arguments: Target("cuda:0", "torch"))
    found = ExecutorConfig(RAY).here(EmbedConfig(device="cuda"))
    assert (found.device, found.threads) == ("cuda:0", 3)
    with pytest.raises(ConfigError) as caught:
        ExecutorConfig(RAY).here(EmbedConfig(device="cuda:1"))
    assert caught.value.field == "device"


def machine(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_room_is_counted_machine_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    there = [machine(CPU=7, GPU=4), machine(CPU=16, GPU=2), machine(CPU=64), machine(alive=False, CPU=64, GPU=8)]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    joined = Cluster(False, {"CPU": 2, "GPU": 1})
    assert joined.places() == 3 + 2
    assert Cluster(False, {"CPU": 8}).places() == 0 + 2 + 8
    assert joined.workers(ExecutorConfig(RAY), most=100) == 5
    assert joined.workers(ExecutorConfig(RAY), most=3) == 3
    assert joined.workers(ExecutorConfig(RAY, workers=9), most=100) == 9  # a cluster may grow
    with pytest.raises(ConfigError, match=r"0 to 5 .* 2 CPU and 1 GPU") as caught:
        Cluster(True, {"CPU": 2, "GPU": 1}).workers(ExecutorConfig(RAY, workers=9), most=100)
    assert caught.value.field == "executor.workers"
    with pytest.raises(ClusterError, match="128 CPU"):
        Cluster(False, {"CPU": 128}).workers(ExecutorConfig(RAY), most=100)


def test_the_environment_of_a_ray_of_our_own_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with ray_cluster._environment(own=True):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert dict(os.environ) == before
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_cluster._environment(own=True):
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    with ray_cluster._environment(own=False):
        assert "RAY_USAGE_STATS_ENABLED" not in os.environ
