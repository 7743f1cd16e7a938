"""Embeddings held as float16, int8 and streamed: features and trained probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, SUITE, Make, Quick

from substyle.engine.probes import dataset, loader
from substyle.engine.probes import dataset as held_module
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import Dataset, MemoryBudget, Resident, Standardizer, Streamed, hold, standard_of
from substyle.engine.probes.loader import Draw, Drawn, Placed
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.tasks import transformation_task
from substyle.engine.store.table import EmbeddingTable
from substyle.errors import ConfigError, SubstyleError

BYTES = 20 * 2  # of a row of the made-up tables

pytestmark = pytest.mark.usefixtures("one_thread")


def cells(table: EmbeddingTable) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All rows in a random order."""
    t, n = np.divmod(np.random.default_rng(5).permutation(table.x_TND.shape[0] * table.x_TND.shape[1]), len(table.keys))
    return t, n


def held_as(how: str) -> ProbeConfig:
    return ProbeConfig(expert=ExpertConfig(table=how))  # type: ignore[arg-type]


def of(how: str, table: EmbeddingTable) -> Dataset:
    return hold(table, held_as(how), CPU)


def standardised(held: Dataset, t: Any, n: Any) -> torch.Tensor:  # noqa: ANN401
    task = transformation_task(held.table, 0)
    assert task is not None
    return Features(held, standard_of(held.table, task, 0), CPU, torch.float32)(t, n)


def test_float16_in_memory_is_not_copied(make_table: Make) -> None:
    table = make_table()
    for how in ("auto", "float16"):
        held = of(how, table)
        assert isinstance(held, Resident)
        assert (held.how, held.device, held.centre) == ("float16", CPU, None)
        assert held.x_RD.data_ptr() == table.x_TND.ctypes.data  # type: ignore[union-attr]


def test_streamed_rows_are_those_of_float16(make_table: Make) -> None:
    table = make_table()
    held = of("streamed", table)
    assert isinstance(held, Streamed)
    assert torch.equal(standardised(held, *cells(table)), standardised(of("float16", table), *cells(table)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_int8_rows_are_near(make_table: Make, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers are within half a step of their row; large features do not affect small ones."""
    monkeypatch.setattr(held_module, "SAMPLE", 500)
    table = make_table()
    x_TND = np.asarray(table.x_TND, dtype)
    x_TND[..., 3] = x_TND[..., 3] * 50 + 1000
    x_TND[..., 4] = 7.0
    table = replace(table, x_TND=x_TND)
    monkeypatch.setattr(ProbeConfig, "stream_buffer", 1 << 16)
    held = of("int8", table)
    assert isinstance(held, Resident)
    assert held.how == "int8"
    assert held.x_RD.dtype == torch.int8
    assert held.scale_R is not None
    t, n = cells(table)
    exact, near = standardised(of("float16", table), t, n), standardised(held, t, n)
    step = held.scale_R[torch.from_numpy(t * len(table.keys) + n)]
    assert ((near - exact).abs() <= 0.5 * step[:, None] * 1.1 + 1e-4).all()
    assert float((near - exact).abs().max()) > 1e-3
    assert step.max() < 0.06
    assert not near[:, 4].any()


def test_int8_says_where_numbers_are_none(make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the sample for the statistics does not include them."""
    monkeypatch.setattr(held_module, "SAMPLE", 1)
    table = make_table()
    for value in (np.nan, np.inf):
        x_TND = np.array(table.x_TND)
        x_TND[2, table.rows(2)[0], 7] = value
        with pytest.raises(SubstyleError, match="NaN or infinite"):
            of("int8", replace(table, x_TND=x_TND))


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


def test_probes_on_int8_learn_nearly_the_same(make_table: Make, quick: Quick) -> None:
    table = make_table(images=300, style=1.0)
    config = quick(tasks=("transformation", "class"), heads=("linear",))
    rounded = replace(config, expert=replace(config.expert, table="int8"))
    expected, (results, _) = plain(table, config)[0], plain(table, rounded)
    for task, number in (("transformation", "accuracy"), ("class", "original")):
        ours, theirs = (r[task]["linear"][number]["value"] for r in (results, expected))
        assert abs(ours - theirs) < 0.02
        assert theirs > 0.5


def draws(table: EmbeddingTable, size: int) -> Draw:
    def draw(first: int, count: int) -> Drawn:
        rngs = [np.random.default_rng(first + i) for i in range(count)]
        t = torch.from_numpy(np.stack([rng.integers(len(SUITE), size=size) for rng in rngs]))
        n = torch.from_numpy(np.stack([rng.integers(len(table.keys), size=size) for rng in rngs]))
        return Drawn(t, n, [t])

    return draw


def check_steps(table: EmbeddingTable, drawn: Drawn, placed: Placed, expected: Drawn) -> None:
    for given, wanted in ((drawn.t_nB, expected.t_nB), (drawn.n_nB, expected.n_nB), (drawn.targets[0], expected.t_nB)):
        assert torch.equal(given, wanted)
    rows = placed.x_RD[placed.row_nB].numpy()
    np.testing.assert_array_equal(rows, table.take(expected.t_nB.numpy(), expected.n_nB.numpy()))
    assert placed.scale_R is None


@pytest.mark.parametrize(("steps", "at_once"), [(7, 3), (6, 3), (3, 3), (2, 3), (1, 1), (5, 1)])
@pytest.mark.parametrize("most", [1, 2, 10])
def test_a_feed_gives_every_step_in_turn(make_table: Make, steps: int, at_once: int, most: int) -> None:
    """Windows of the given number of steps, whose rows stay valid until the next window."""
    table, size = make_table(), 10
    held = Streamed(table, CPU, 2 * at_once * size * BYTES)
    feed, draw, taken = held.feed(draws(table, size), size, steps), draws(table, size), 0
    while taken < steps:
        drawn, placed = feed.take(most)
        assert len(placed.row_nB) == min(most, at_once - taken % at_once, steps - taken)
        check_steps(table, drawn, placed, draw(taken, len(placed.row_nB)))
        taken += len(placed.row_nB)
    feed.close()


def test_rows_in_memory_are_given_as_they_are_asked_for(make_table: Make) -> None:
    table = make_table()
    feed = of("float16", table).feed(draws(table, 4), 4, 7)
    for first, count in ((0, 5), (5, 2)):
        check_steps(table, *feed.take(count), draws(table, 4)(first, count))
    feed.close()


def test_a_feed_that_ends_early_leaves_no_thread(make_table: Make) -> None:
    import threading

    table = make_table()
    before = threading.active_count()
    feed = Streamed(table, CPU, 2 * 10 * BYTES).feed(draws(table, 10), 10, 50)
    feed.take(1)
    assert threading.active_count() > before
    feed.close()
    assert threading.active_count() == before


def test_what_a_reader_dies_of_is_seen(make_table: Make) -> None:
    table = make_table()

    def draw(first: int, count: int) -> Drawn:
        return Drawn(torch.zeros(count, 1, dtype=torch.int64), torch.full((count, 1), 10_000), [])

    feed = Streamed(table, CPU, 1 << 16).feed(draw, 1, 3)
    with pytest.raises(IndexError):
        feed.take(1)


def test_a_buffer_for_less_than_two_steps_is_refused(make_table: Make) -> None:
    table = make_table()
    assert Streamed(table, CPU, 800).feed(draws(table, 10), 10, 5)
    with pytest.raises(ConfigError, match="two fit into 799 bytes") as caught:
        Streamed(table, CPU, 799).feed(draws(table, 10), 10, 5)
    assert (caught.value.field, caught.value.given) == ("probes.expert.batch", 10)


IMAGENET = (31, 1_281_167, 768)  # 61.0 GB in float16


@pytest.mark.parametrize(
    ("free", "chosen"), [(77e9, "float16"), (76e9, "int8"), (39e9, "int8"), (38e9, "streamed"), (1.4e9, "streamed")]
)
def test_the_first_way_that_fits_is_chosen(free: float, chosen: str) -> None:
    here = MemoryBudget(IMAGENET, 2, int(free), 1 << 30, "cuda:0")
    assert here.choose("auto") == here.choose(chosen) == chosen


class Lazy:
    """Embeddings that are read when asked for."""

    def __init__(self, x_TND: np.ndarray) -> None:
        self.x_TND, self.shape, self.dtype, self.read = x_TND, x_TND.shape, x_TND.dtype, 0

    def take(self, t_B: np.ndarray, n_B: np.ndarray, out_RD: np.ndarray, to_B: np.ndarray) -> np.ndarray:
        self.read += 1
        out_RD[to_B] = self.x_TND[t_B, n_B]
        return out_RD


@pytest.mark.parametrize(
    ("asked", "host", "read"), [("auto", 1_300_000, True), ("auto", 1_100_000, False), ("streamed", 10**9, False)]
)
def test_a_table_larger_than_a_gpu_is_streamed_from_host_memory(
    make_table: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: Literal["auto", "streamed"],
    host: int,
    read: bool,
) -> None:
    gpu = torch.device("meta")
    monkeypatch.setattr(held_module, "free_bytes", lambda device: 100_000 if device == gpu else host)
    lazy = Lazy(np.asarray(make_table(images=3_000).x_TND))
    assert lazy.x_TND.nbytes == 960_000
    table = replace(make_table(images=3_000), x_TND=lazy)  # type: ignore[arg-type]
    monkeypatch.setattr(ProbeConfig, "stream_buffer", 1 << 16)
    held = hold(table, held_as(asked), gpu, quiet=False)
    assert isinstance(held, Streamed)
    assert isinstance(held.table.x_TND, np.ndarray) == read
    assert lazy.read == read
    assert ("from host memory" in capsys.readouterr().err) == read


def test_bytes_of_imagenet() -> None:
    here = MemoryBudget(IMAGENET, 2, 1 << 37, 1 << 30, "cuda:0")
    assert here.needs("float16") == 31 * 1_281_167 * 768 * 2
    assert here.needs("int8") == 31 * 1_281_167 * 772
    assert here.needs("streamed") == 1 << 30
    assert here.words("float16") == (
        "float16: 1,281,167 images × 31 variants × 768 × 2 bytes = 61.00 GB; 80% of 137.44 GB free on cuda:0"
    )
    assert "1,281,167 images × 31 variants × (768 + 4) bytes = 30.66 GB" in here.words("int8")
    assert "= 61.00 GB, through a buffer of 1.07 GB" in here.words("streamed")


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    here = MemoryBudget(IMAGENET, 2, int(39e9), 1 << 30, "cuda:0")
    with pytest.raises(ConfigError, match=r"allowed: int8, streamed \(.*61.00") as caught:
        here.choose("float16")
    assert (caught.value.field, caught.value.given) == ("probes.expert.table", "float16")
    for asked in ("auto", "streamed"):
        with pytest.raises(ConfigError, match=rf"probes.expert.table: got '{asked}'; .*through a buffer of 1.07 GB"):
            replace(here, free=10**9).choose(asked)
    with pytest.raises(ConfigError, match="nothing fits") as caught:
        replace(here, free=10**9).choose("int8")
    assert (caught.value.field, caught.value.given) == ("probes.expert.table", "int8")


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


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory cached by torch counts as free."""
    for name, answer in (("memory_reserved", 50), ("memory_allocated", 20), ("mem_get_info", (1000, 5000))):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert dataset.free_bytes(torch.device("cuda", 0)) == 1030


def test_a_centre_is_undone() -> None:
    """Features of centred rows equal those of other rows, for any standardisation."""
    from substyle.engine.probes.batches import _over_centre

    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)) * [1, 2, 3, 100, 1e-3, 5] + [0, 5, 0, 1000, 1, 3]
    centre = Standardizer(*(rng.normal(size=6).astype(np.float32) for _ in range(2)))
    centre.scale_D[:] = np.abs(centre.scale_D) + 0.1
    centre.scale_D[5] = 0.0
    standard = Standardizer(rng.normal(size=6).astype(np.float32), rng.normal(size=6).astype(np.float32))
    mean_D, scale_D = _over_centre(standard, centre)
    z = (x - centre.mean_D) * centre.scale_D
    ours, theirs = (z - mean_D) * scale_D, (x - standard.mean_D) * standard.scale_D
    np.testing.assert_allclose(ours[:, :5], theirs[:, :5], rtol=1e-3, atol=1e-4)
    assert not ours[:, 5].any()


def test_halves_are_of_the_whole_buffer() -> None:
    assert loader.rows_of_half(1000, 100) == 5
    assert loader.rows_of_half(99, 50) == 0
    assert loader.as_torch(np.dtype("float16")) == torch.float16
