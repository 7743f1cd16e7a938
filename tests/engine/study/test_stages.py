"""Stamps of finished stages."""

from __future__ import annotations

from substyle.engine.probes.config import ProbeConfig
from substyle.engine.study import stages


def test_another_gpu_trains_no_probes_again_and_another_kind_of_device_does() -> None:
    known = [stages.probe_settings(ProbeConfig(device=device)) for device in ("cuda:0", "cuda:1", "cpu", "auto")]
    first, second, cpu, auto = known
    assert first == second
    assert [config["device"] for config in (first, cpu, auto)] == ["cuda", "cpu", "auto"]
