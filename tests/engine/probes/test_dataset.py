"""Embeddings held as float16, int8 and streamed: features and trained probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.engine.probes.conftest import CPU, SUITE, Make, Quick

from substyle.engine.probes import dataset
from substyle.engine.probes import dataset as held_module
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import Memory, MemoryBudget, Streamed, hold
from substyle.engine.probes.loader import Draw, Drawn
from substyle.engine.probes.run import run_probes
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError


def held_as(how: str) -> ProbeConfig:
    return ProbeConfig(expert=ExpertConfig(table=how))  # type: ignore[arg-type]


def draws(table: EmbeddingTable, size: int) -> Draw:
    def draw(first: int, count: int) -> Drawn:
        rngs = [np.random.default_rng(first + i) for i in range(count)]
        t = torch.from_numpy(np.stack([rng.integers(len(SUITE), size=size) for rng in rngs]))
        n = torch.from_numpy(np.stack([rng.integers(len(table.keys), size=size) for rng in rngs]))
        return Drawn(t, n, [t])

    return draw


pytestmark = pytest.mark.usefixtures("one_thread")


def plain(table: EmbeddingTable, config: ProbeConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    outcome = run_probes(table, config, out_dir=None, quiet=True)
    return outcome.results, outcome.scores


def test_streamed_probes_learn_what_probes_in_memory_learn(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks, heads and resamples, the rotation and the projection, bit-identical, with windows of a few steps."""
    table = make_table(style=1.0)
    config = quick(mlp_steps=10, multitask_steps=10, mlp_resamples=1, dropout=0.2)
    expected, expected_scores = plain(table, config)
    monkeypatch.setattr(ProbeConfig, "stream_buffer", 1 << 16)
    results, scores = plain(table, replace(config, expert=replace(config.expert, table="streamed")))
    assert results == expected
    assert scores.keys() == expected_scores.keys()
    for name, score in scores.items():
        np.testing.assert_array_equal(score, expected_scores[name])


class Lazy:
    """Rows of a store."""

    def __init__(self, x_TND: NDArray[Any]) -> None:
        self.x_TND, self.shape, self.dtype = x_TND, x_TND.shape, x_TND.dtype

    def take(self, t_B: Any, n_B: Any, out_RD: Any = None, to_B: Any = None) -> NDArray[Any]:  # noqa: ANN401
        rows_BD: NDArray[Any] = self.x_TND[t_B, n_B]
        if out_RD is None:
            return rows_BD
        out_RD[slice(len(rows_BD)) if to_B is None else to_B] = rows_BD
        return rows_BD


@pytest.mark.parametrize("where", ["host", None])
@pytest.mark.parametrize(("how", "buffer"), [("int8", 24_000), ("float16", 1 << 16)])
def test_rows_elsewhere_give_what_rows_on_the_device_give(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, how: str, buffer: int, where: str | None
) -> None:
    """Bit-identical, where both halves of the buffer are used many times."""
    table = make_table(style=1.0)
    config = quick(mlp_steps=10, multitask_steps=10, mlp_resamples=1, dropout=0.2)
    config = replace(config, expert=replace(config.expert, table=how))
    expected, expected_scores = plain(table, config)
    table = replace(table, x_TND=Lazy(table.x_TND))
    host = None if where is None else Memory(1 << 40, 1 << 40, where)
    monkeypatch.setattr(MemoryBudget, "place", lambda self, requested: (requested, host))
    monkeypatch.setattr(ProbeConfig, "stream_buffer", buffer)
    held = hold(table, config, CPU)
    assert isinstance(held, Streamed)
    assert (held.centre is not None) == (how == "int8")
    results, scores = plain(table, config)
    assert results == expected
    assert scores.keys() == expected_scores.keys()
    for name, score in scores.items():
        np.testing.assert_array_equal(score, expected_scores[name])


def test_probes_on_int8_learn_nearly_the_same(make_table: Make, quick: Quick) -> None:
    table = make_table(images=300, style=1.0)
    config = quick(tasks=("transformation", "class"), heads=("linear",))
    rounded = replace(config, expert=replace(config.expert, table="int8"))
    expected, (results, _) = plain(table, config)[0], plain(table, rounded)
    for task, number in (("transformation", "accuracy"), ("class", "original")):
        ours, theirs = (r[task]["linear"][number]["value"] for r in (results, expected))
        assert abs(ours - theirs) < 0.02
        assert theirs > 0.5


IMAGENET = (31, 1_281_167, 768)  # 61.0 GB in float16


GB = 10**9
ALL_FREE = Memory(85 * GB, 85 * GB, "cuda:0")
HOST = Memory(128 * GB, 100 * GB, "cpu")


def budget(device: Memory = ALL_FREE, host: Memory = HOST, width: int = 768) -> MemoryBudget:
    return MemoryBudget((*IMAGENET[:2], width), 2, 1 << 30, device, host)


@pytest.mark.parametrize(
    ("device", "host", "width", "chosen"),
    [
        (77, 1, 768, "float16"), (76, 1, 768, "int8"), (39, 1, 768, "int8"), (38, 1, 768, "streamed"),
        (38, 39, 768, "int8"), (85, 128, 2048, "int8"), (85, 100, 2048, "streamed"), (24, 16, 2048, "streamed"),
    ],
)  # fmt: skip
def test_sizes_alone_decide_what_probes_read(device: int, host: int, width: int, chosen: str) -> None:
    """Not what is free: a study has the same results each time."""
    for free in (device * GB, 2 * GB):
        here = budget(Memory(device * GB, free, "cuda:0"), Memory(host * GB, free, "cpu"), width)
        assert here.choose("auto") == chosen
    for asked in ("float16", "int8", "streamed"):
        assert here.choose(asked) == asked


def test_rows_are_held_where_memory_is_free() -> None:
    assert budget().place("auto") == ("float16", ALL_FREE)
    little = replace(ALL_FREE, free=20 * GB)
    assert budget(little).place("auto") == ("float16", HOST)
    assert budget(little).place("int8") == ("int8", HOST)
    assert budget(little, replace(HOST, free=70 * GB)).place("auto") == ("float16", None), (
        "read from the store as it is"
    )
    assert budget(width=2048, host=replace(HOST, free=110 * GB)).place("auto") == ("int8", replace(HOST, free=110 * GB))
    assert budget(width=2048).place("auto") == ("int8", None), "rounded as it is read"


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    here = budget(replace(ALL_FREE, free=39 * GB), replace(HOST, free=GB))
    with pytest.raises(ConfigError, match=r"allowed: int8, streamed \(.*61.00") as caught:
        here.place("float16")
    assert (caught.value.field, caught.value.given) == ("probes.expert.table", "float16")
    none = budget(replace(ALL_FREE, free=GB), replace(HOST, free=GB))
    for asked in ("auto", "streamed"):
        with pytest.raises(ConfigError, match=rf"probes.expert.table: got '{asked}'; .*through a buffer of 1.07 GB"):
            none.place(asked)
    with pytest.raises(ConfigError, match="nothing fits") as caught:
        none.place("int8")
    assert (caught.value.field, caught.value.given) == ("probes.expert.table", "int8")


def test_the_table_is_held_as_memory_allows(make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    table, int8 = make_table(), ProbeConfig(expert=ExpertConfig(table="int8"))
    monkeypatch.setattr(dataset, "free_bytes", lambda device: 40_000)
    assert [hold(table, config, CPU).how for config in (ProbeConfig(), int8)] == ["float16", "int8"]
    monkeypatch.setattr(dataset, "free_bytes", lambda device: 20_000)
    with pytest.raises(ConfigError, match=r"probes.expert.table: got 'int8'"):
        hold(table, int8, CPU)


def test_free_memory_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 0 < dataset.free_bytes(CPU) < 1 << 50
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 900 kB\nMemAvailable: 700 kB\n")
    monkeypatch.setattr(dataset, "_MEMINFO", told)
    monkeypatch.setattr(dataset, "_CGROUP", tmp_path)
    assert dataset.free_bytes(CPU) == 700 << 10
    (tmp_path / "memory.max").write_text("max\n")
    assert dataset.free_bytes(CPU) == 700 << 10
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 300000\nshmem 50000\n")
    assert dataset.free_bytes(CPU) == 350000
    assert dataset.total_bytes(CPU) == 500000


def test_a_buffer_for_less_than_two_steps_is_refused(make_table: Make) -> None:
    table = make_table()
    assert Streamed(table, CPU, 800).feed(draws(table, 10), 10, 5)
    with pytest.raises(ConfigError, match="two fit into 799 bytes") as caught:
        Streamed(table, CPU, 799).feed(draws(table, 10), 10, 5)
    assert (caught.value.field, caught.value.given) == ("probes.expert.batch", 10)


def test_hold_says_the_arithmetic(make_table: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # noqa: ANN401
    table = make_table()
    monkeypatch.setattr(held_module, "free_bytes", lambda device: 40_000)
    assert hold(table, ProbeConfig(), CPU, quiet=False).how == "float16"
    assert capsys.readouterr().err == "", "what is in memory already is not loaded"
    held = hold(table, held_as("int8"), CPU, quiet=False)
    assert held.how == "int8"
    words = "probes synthetic: embeddings int8: 120 images × 8 variants × (20 + 4) bytes = 0.00 GB; 80% of 0.00 GB free"
    assert words in capsys.readouterr().err
    monkeypatch.setattr(held_module, "free_bytes", lambda device: 20_000)
    with pytest.raises(ConfigError, match=r"probes.expert.table: got 'int8'"):
        hold(table, held_as("int8"), CPU)


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory cached by torch counts as free."""
    for name, answer in (("memory_reserved", 50), ("memory_allocated", 20), ("mem_get_info", (1000, 5000))):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert dataset.free_bytes(torch.device("cuda", 0)) == 1030
