from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from substyle.engine.backbones import gate
from substyle.engine.backbones.gate import Extent, GateError, PrecisionSearch, check, pictures
from substyle.engine.backbones.runtimes.base import GivenSamples, PrecisionPolicy

RNG = np.random.default_rng(0)
REFERENCE = (RNG.normal(size=(40, 16)) + 5).astype(np.float32)


def run(got: np.ndarray, precision: str = "bf16") -> float:  # type: ignore[type-arg]
    return check("x", got, REFERENCE, precision=precision, images=32, reference="float32").cosine_min


def test_equal_embeddings_pass() -> None:
    assert run(REFERENCE) == pytest.approx(1.0)
    assert run(REFERENCE.astype(np.float16)) > 0.999


def test_the_common_part_does_not_hide_a_difference() -> None:
    shuffled = REFERENCE[::-1].copy()
    plain = (shuffled * REFERENCE).sum(1) / np.linalg.norm(shuffled, axis=1) / np.linalg.norm(REFERENCE, axis=1)
    assert plain.min() > 0.9
    with pytest.raises(GateError, match=r"cosine min -?\d\.\d+, mean"):
        run(shuffled)


def test_a_wrong_scale_is_found() -> None:
    mean = REFERENCE.mean(0)
    with pytest.raises(GateError, match=r" 0\.5\d* \(.*≤ 0\.1\)"):
        run(mean + 1.5 * (REFERENCE - mean))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_found(bad: float) -> None:
    got = REFERENCE.copy()
    got[3, 4] = bad
    with pytest.raises(GateError, match=r"^x: 1 of 40 rows"):
        run(got)


def test_one_bad_row_is_enough_and_precisions_differ() -> None:
    got = REFERENCE.copy()
    mean = REFERENCE.mean(0)
    across = RNG.normal(size=16)
    row = REFERENCE[7] - mean
    across -= row * (across @ row) / (row @ row)
    got[7] += (0.08 * np.linalg.norm(row) / np.linalg.norm(across) * across).astype(np.float32)  # cosine about 0.9968
    assert run(got, "int8") == pytest.approx(0.9968, abs=2e-4)
    with pytest.raises(GateError, match=r"^x: bf16 .* float32 on 40 pictures: .*≥ 0\.999\)"):
        run(got, "bf16")


NAMES = ("identity", "gaussian_blur", "grayscale", "jpeg", "gaussian_noise")


@dataclass(frozen=True)
class Named(GivenSamples):
    """Pictures that hold their transformation, photograph and position."""

    given: tuple[str, ...] = NAMES

    def names(self) -> tuple[str, ...]:
        return self.given


def samples(count: int, size: int = 3, names: tuple[str, ...] = NAMES) -> Named:
    batches = []
    for start in range(0, count, size):
        for t in range(len(names)):
            batch = np.zeros((min(size, count - start), 8, 8, 3), np.uint8)
            batch[..., 0] = t
            batch[..., 1] = np.arange(start, start + len(batch))[:, None, None]
            batches.append(batch)
    return Named(batches, count, given=names)


@pytest.mark.parametrize("count", [1, 3, 4, 10, 32])
def test_each_round_has_every_variant_and_all_photographs_take_their_turn(count: int) -> None:
    found = pictures(samples(count), "each")[:, 0, 0]
    each = min(count, gate.GATE_EACH)
    assert len(found) == each * len(NAMES)
    for i in range(each):
        own = found[i * len(NAMES) : (i + 1) * len(NAMES), 0].tolist()
        assert [NAMES[t] for t in own[:2]] == ["grayscale", "gaussian_noise"]
        assert sorted(own) == list(range(len(NAMES)))
    pairs = Counter(map(tuple, found.tolist()))
    assert max(pairs.values()) == 1
    assert len({n for _, n, _ in pairs}) >= min(count, each * len(NAMES) - 1)


@pytest.mark.parametrize("count", [1, 3, 10, 32])
@pytest.mark.parametrize("variants", [1, 2, 3, 5])
def test_the_first_rounds_begin_those_of_the_gate(count: int, variants: int) -> None:
    once = pictures(samples(count, names=NAMES[:variants]), "once")
    each = pictures(samples(count, names=NAMES[:variants]), "each")
    np.testing.assert_array_equal(once, each[: len(once)])
    assert min(variants * count, gate.GATE_FEWEST) <= len(once) < gate.GATE_FEWEST + variants


def test_of_a_long_suite_the_first_round_is_every_variant_once() -> None:
    names = tuple(f"t{i}" for i in range(31))
    once = pictures(samples(10, names=names), "once")[:, 0, 0]
    assert sorted(once[:, 0].tolist()) == list(range(31))


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_full_gate_has_every_picture(count: int) -> None:
    found = pictures(samples(count), "full")[:, 0, 0]
    assert sorted(map(tuple, found[:, :2].tolist())) == [(t, n) for t in range(len(NAMES)) for n in range(count)]


@pytest.mark.parametrize("count", [1, 3, 5, 16])
def test_a_spot_check_has_one_picture_of_each_photograph(count: int) -> None:
    found = pictures(samples(count), "spot")[:, 0, 0]
    assert found[:, 1].tolist() == list(range(count))
    assert [NAMES[t] for t in found[:2, 0]] == ["grayscale", "gaussian_noise"][:count]
    assert len(set(found[: len(NAMES), 0].tolist())) == min(count, len(NAMES))


class Facts(NamedTuple):
    """Facts by name."""

    on_gpu: bool = False
    identity: str = "cpu"
    spec: Any = None
    backbone: Any = None
    name: str = "x"
    module: object = ""
    dim: int = 9
    members: tuple[Any, ...] = ()


TARGET, SOURCE = Facts(), Facts(spec=Facts(), backbone=Facts(), members=(Facts(),))


@dataclass
class Artefact:
    """A backbone whose arithmetic is as bad as ``error`` says of a policy and a picture's number."""

    error: Callable[[PrecisionPolicy, int], float]
    total: int = 48
    batch: int = 4
    threads: int = 1
    ladder: tuple[str, ...] = ()
    float32_reference: bool = False
    key: str = "k"
    target: Any = TARGET
    source: Any = SOURCE
    seen: dict[PrecisionPolicy, int] = field(default_factory=dict)
    references: int = 0

    def facts(self, precision: str) -> dict[str, Any]:
        return {}

    def layers(self) -> int:
        return self.total

    def runtime(self, policy: PrecisionPolicy, *, keep: bool = False) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[type-arg]
        def embed(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            first = self.seen.get(policy, 0)
            self.seen[policy] = first + len(block)
            return true(block) + np.array([[self.error(policy, first + i)] for i in range(len(block))]) * np.eye(9)[:1]

        return embed

    def reference(self) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[type-arg]
        def embed(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            self.references += len(block)
            return true(block)

        return embed


def true(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([np.random.default_rng(picture[0, 0].astype(int)).normal(size=9) for picture in block])


def search(
    artefact: Artefact, notes: list[str], *, extent: Extent = "each", names: tuple[str, ...] = NAMES
) -> dict[str, Any]:
    given = samples(8, names=names)
    made = PrecisionSearch(artefact, given, "auto", "float32", extent=extent, note=notes.append)  # type: ignore[arg-type]
    return made.result()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    monkeypatch.setattr(PrecisionSearch, "_speedup", lambda self, mixture: 2.0)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("needed", [0, 1, 2, 3, 7, 30, 47, 48])
def test_few_layers_are_found_and_bad_policies_cost_one_block(needed: int) -> None:
    """The first block holds the hardest variants; a policy outside the limits there is seen no further."""
    artefact = Artefact(lambda policy, i: 0.0 if policy.precision == "fp32" or policy.float32_layers >= needed else 5.0)
    notes: list[str] = []
    found = search(artefact, notes)
    if needed < 45:
        assert found["precision"] == "bf16"
        assert needed <= found["float32_layers"] < needed + 4
    else:
        assert found["precision"] == "fp32"
    assert found["gate"]["rows"] == gate.GATE_EACH * len(NAMES) == artefact.references
    for policy, seen in artefact.seen.items():
        rejected = policy.precision == "bf16" and policy.float32_layers < needed
        assert seen == (artefact.batch if rejected else gate.GATE_EACH * len(NAMES))
    assert sum("rejected at 4 pictures" in note for note in notes) == sum(s == 4 for s in artefact.seen.values())


@pytest.mark.usefixtures("own_cache")
def test_one_bad_picture_at_the_end_is_enough() -> None:
    last = gate.GATE_EACH * len(NAMES) - 1
    artefact = Artefact(lambda policy, i: 5.0 if i == last and policy.precision == "bf16" else 0.0, total=1)
    assert search(artefact, [])["precision"] == "fp32"
    assert artefact.seen[PrecisionPolicy("bf16")] == last + 1


@pytest.mark.usefixtures("own_cache")
def test_compiled_float32_is_the_reference_after_the_first_round() -> None:
    artefact = Artefact(lambda policy, i: 0.0, float32_reference=True)
    names = tuple(f"t{i}" for i in range(16))
    assert search(artefact, [], names=names)["gate"]["rows"] == gate.GATE_EACH * len(names)
    assert artefact.references == len(names)
    # compared once, then the reference of the other rounds
    assert artefact.seen[PrecisionPolicy("fp32")] == gate.GATE_EACH * len(names)
    wrong = Artefact(lambda policy, i: float(policy.precision == "fp32"), key="wrong", float32_reference=True)
    with pytest.raises(GateError):
        search(wrong, [])
    full = Artefact(lambda policy, i: 0.0, key="full", float32_reference=True)
    assert search(full, [], extent="full")["gate"]["rows"] == full.references == 8 * len(NAMES)


@pytest.mark.usefixtures("own_cache")
def test_a_full_gate_sees_all_and_references_are_kept() -> None:
    artefact = Artefact(lambda policy, i: 0.0)
    assert search(artefact, [], extent="full")["gate"]["rows"] == 8 * len(NAMES)
    assert artefact.references == 8 * len(NAMES)
    other = Artefact(lambda policy, i: 0.0)
    made = PrecisionSearch(other, samples(8), "fp32", "float32", extent="full")  # type: ignore[arg-type]
    assert made.result()["gate"]["rows"] == 8 * len(NAMES)
    assert other.references == 0


@pytest.mark.usefixtures("own_cache")
def test_a_mixture_that_is_hardly_faster_gives_way_to_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PrecisionSearch, "_speedup", lambda self, mixture: 1.19)
    assert search(Artefact(lambda policy, i: 0.0), [])["precision"] == "fp32"
    assert "1.19" in capsys.readouterr().err
