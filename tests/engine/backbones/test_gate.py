from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.engine.backbones.small_networks import GivenSamples

from substyle.engine.backbones import gate
from substyle.engine.backbones.gate import GateError, PrecisionGate, RejectedError, check, photographs
from substyle.engine.backbones.precision import choose, policies
from substyle.engine.backbones.runtimes.base import FLOAT32, PrecisionPolicy, RuntimeBuilder

RNG = np.random.default_rng(0)
REFERENCE = (RNG.normal(size=(40, 16)) + 5).astype(np.float32)


def run(got: np.ndarray, precision: str = "bf16") -> float:  # type: ignore[type-arg]
    return check("x", got, REFERENCE, mean_D=REFERENCE.mean(0), precision=precision, reference="float32").cosine_min


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
def test_a_reference_that_is_not_finite_compares_nothing(bad: float) -> None:
    reference = REFERENCE.copy()
    reference[3, 4] = bad
    how = {"precision": "bf16", "reference": "float32", "transformation": "fog"}
    for got in (REFERENCE, REFERENCE[::-1].copy()):
        with pytest.raises(GateError, match="float32 is not finite on pictures of fog") as caught:
            check("x", got, reference, mean_D=REFERENCE.mean(0), **how)  # type: ignore[arg-type]
        assert not isinstance(caught.value, RejectedError)  # no other precision would help


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
HARD = ("grayscale", "gaussian_noise", "identity")
MORE = ("swirl", "fog", "dust")
EVERY = sorted({*NAMES, *HARD, *MORE})


@dataclass(frozen=True)
class Named(GivenSamples):
    """Pictures that hold their transformation and photograph."""

    given: tuple[str, ...] = NAMES

    def names(self) -> tuple[str, ...]:
        return self.given

    def anchors(self) -> tuple[str, ...]:
        return HARD

    def fingerprint(self, name: str) -> str:
        return f"{name} of {self.count}"

    def pictures(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        made = {}
        for name, chosen in wanted.items():
            made[name] = np.zeros((len(chosen), 8, 8, 3), np.uint8)
            made[name][..., 0] = EVERY.index(name) if name in EVERY else len(EVERY) + self.given.index(name)
            made[name][..., 1] = np.array(chosen)[:, None, None]
        return made


def samples(count: int, names: tuple[str, ...] = NAMES) -> Named:
    return Named([], count, given=names)


class Facts(NamedTuple):
    """Facts by name."""

    on_gpu: bool = False
    identity: str = "cpu"
    spec: Any = None
    is_graph: bool = False
    name: str = "x"
    dim: int = 9
    members: tuple[Any, ...] = ()


TARGET, SOURCE = Facts(), Facts(spec=Facts(), members=(Facts(),))


@dataclass
class Artefact:
    """A backbone whose arithmetic is as bad as ``error`` says of a policy and a picture's number."""

    error: Callable[[PrecisionPolicy, int], float]
    layers: int = 48
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

    label = RuntimeBuilder.label

    def runtime(self, policy: PrecisionPolicy) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[type-arg]
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


@dataclass
class ByName(Artefact):
    """A backbone that needs a number of layers in float32 for pictures of some transformations."""

    need: Mapping[str, int] = field(default_factory=dict)

    def runtime(self, policy: PrecisionPolicy) -> Callable[[np.ndarray], np.ndarray]:  # type: ignore[type-arg]
        right = super().runtime(policy)
        layers = 50 if policy.precision == "fp32" else policy.float32_layers
        names = EVERY

        def embed(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            wrong_B = [layers < self.need.get(names[picture[0, 0, 0]], 0) for picture in block]
            return right(block) + 5.0 * np.array(wrong_B)[:, None] * np.eye(9)[:1]

        return embed


def exact(policy: PrecisionPolicy, i: int) -> float:
    return 0.0


def true(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([np.random.default_rng(picture[0, 0].astype(int)).normal(size=9) for picture in block])


def gate_of(artefact: Artefact, given: Named, **how: Any) -> PrecisionGate:  # noqa: ANN401 - passed on
    return PrecisionGate(artefact, given, "float32", **how)  # type: ignore[arg-type]


def search(
    artefact: Artefact,
    precision: str = "auto",
    *,
    names: tuple[str, ...] = NAMES,
    **how: Any,  # noqa: ANN401 - passed on
) -> tuple[PrecisionPolicy, int]:
    """The policy that is chosen, and the pictures on which it was compared."""
    given = gate_of(artefact, samples(8, names=names), **how)
    policy, (result,) = choose(given, policies(given, precision))
    return policy, result.rows


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path))
    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: True)


EACH = gate.GATE_EACH


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("needed", "count"), [(0, 0), (1, 2), (2, 2), (3, 8), (8, 8), (9, 24), (24, 24), (25, None)])
def test_the_first_of_a_few_numbers_of_layers_that_passes(needed: int, count: int | None) -> None:
    """Of 48 layers; those that fail are compared on one block only."""
    artefact = Artefact(lambda policy, i: 0.0 if policy.precision == "fp32" or policy.float32_layers >= needed else 5.0)
    chosen = FLOAT32 if count is None else PrecisionPolicy("bf16", count)
    assert search(artefact) == (chosen, EACH * len(NAMES))
    assert artefact.references == EACH * len(NAMES)
    for policy, seen in artefact.seen.items():
        assert seen == (EACH * len(NAMES) if policy == chosen else artefact.batch)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("layers", "fast", "counts"),
    [(48, True, [0, 2, 8, 24]), (5, True, [0, 2]), (1, True, [0]), (0, True, []), (48, False, [])],
)
def test_the_list_follows_from_network_and_processor(
    layers: int, fast: bool, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("substyle.engine.backbones.precision.cpu.has", lambda *features: fast)
    given = gate_of(Artefact(exact, layers=layers), samples(8))
    assert policies(given, "auto") == [*(PrecisionPolicy("bf16", count) for count in counts), PrecisionPolicy("fp32")]
    assert policies(given, "auto", PrecisionPolicy("bf16", 2))[0] == PrecisionPolicy("bf16", 2)
    assert policies(given, "bf16") == [PrecisionPolicy("bf16")]


@pytest.mark.usefixtures("own_cache")
def test_a_configured_cosine_holds_for_16_bits_alone() -> None:
    """One network after the other, as runs with different settings share a cache."""

    def search(cosine: float | None, error: Callable[[PrecisionPolicy, int], float]) -> tuple[str, bool, float]:
        given = gate_of(Artefact(error), samples(8), gate_cosine=cosine)
        policy, (result,) = choose(given, policies(given, "auto"))
        return policy.precision, result.configured, result.threshold

    def coarse(policy: PrecisionPolicy, i: int) -> float:
        return 0.0 if policy.precision == "fp32" else 0.25

    assert search(None, coarse) == ("fp32", False, 0.9999)
    assert search(0.9, coarse) == ("bf16", True, 0.9)
    assert search(0.9999, coarse) == ("fp32", False, 0.9999)
    assert search(None, coarse) == ("fp32", False, 0.9999)
    with pytest.raises(GateError, match=r"fp32 .*≥ 0\.9999"):
        gate_of(Artefact(lambda policy, i: 0.25, key="all"), samples(8), gate_cosine=0.9).compare(FLOAT32)
    with pytest.raises(RejectedError, match=r"≥ 0\.999\).*embed\.gate_cosine"):
        gate_of(Artefact(coarse), samples(8)).compare(PrecisionPolicy("bf16"))


@pytest.mark.usefixtures("own_cache")
def test_another_suite_costs_what_is_new_in_it() -> None:
    first = Artefact(exact, float32_reference=True)
    search(first, names=("identity", "gaussian_blur"))
    assert first.references == EACH * len(HARD) + 1
    assert first.seen[PrecisionPolicy("bf16")] == first.seen[PrecisionPolicy("fp32")] == EACH * (len(HARD) + 1)
    second = Artefact(exact, float32_reference=True)
    _, rows = search(second, names=("identity", "jpeg", "gaussian_blur"))
    assert rows == EACH * (len(HARD) + 2)
    assert second.references == 1
    assert second.seen == {PrecisionPolicy("bf16"): EACH, PrecisionPolicy("fp32"): EACH}
    third = Artefact(exact, float32_reference=True)
    assert search(third, names=("identity",))[1] == EACH * len(HARD)
    assert third.seen == {}


@pytest.mark.usefixtures("own_cache")
def test_compiled_float32_is_the_reference_once_it_agrees_with_torch() -> None:
    artefact = Artefact(exact, float32_reference=True)
    names = tuple(f"t{i}" for i in range(16))
    assert search(artefact, names=names)[1] == EACH * (len(names) + len(HARD))
    assert artefact.references == len(names) + EACH * len(HARD)
    # compared with torch, and the reference of others, without being computed again
    assert artefact.seen[PrecisionPolicy("fp32")] == EACH * (len(names) + len(HARD))
    wrong = Artefact(lambda policy, i: float(policy.precision == "fp32"), key="wrong", float32_reference=True)
    with pytest.raises(GateError):
        search(wrong)
    full = Artefact(exact, key="full", float32_reference=True)
    assert search(full, full=True)[1] == full.references == 8 * len(NAMES)


@pytest.mark.usefixtures("own_cache")
def test_a_full_gate_sees_all_and_references_are_kept() -> None:
    artefact = Artefact(exact)
    assert search(artefact, full=True)[1] == 8 * len(NAMES)
    assert artefact.references == 8 * len(NAMES)
    other = Artefact(exact)
    assert search(other, "fp32", full=True)[1] == 8 * len(NAMES)
    assert other.references == 0


@pytest.mark.usefixtures("own_cache")
def test_what_has_been_compared_is_of_the_same_photographs() -> None:
    """Two transformations of a plug-in may have equal pixels, and have different photographs."""

    class Alike(Named):
        def fingerprint(self, name: str) -> str:
            return name if name in HARD else "alike"

    first, other = "t0", next(f"t{i}" for i in range(1, 9) if zlib.crc32(f"t{i}".encode()) % 2 != zlib.crc32(b"t0") % 2)
    gate_of(Artefact(exact), Alike([], 8, given=(first,))).compare(PrecisionPolicy("bf16"))
    second, given = Artefact(exact), Alike([], 8, given=(other,))
    assert photographs(given, first, full=False) != photographs(given, other, full=False)
    gate_of(second, given).compare(PrecisionPolicy("bf16"))
    assert second.seen == {PrecisionPolicy("bf16"): EACH}
    assert second.references == EACH


@pytest.mark.usefixtures("own_cache")
def test_the_photographs_of_a_result_are_those_that_were_compared() -> None:
    """Compiled float32 is compared with torch on all photographs of what every suite has, and on one of the rest."""
    given = samples(32)
    positions = [photographs(given, name, full=False)[: EACH if name in HARD else 1] for name in NAMES]
    (found,) = gate_of(Artefact(exact, float32_reference=True), given).compare(FLOAT32)
    assert found.rows == sum(map(len, positions))
    assert found.images == len({i for own in positions for i in own})


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("precision", ["auto", "int8", "bf16", "fp32"])
def test_a_wrong_float32_is_not_taken_for_a_failure_of_others(
    precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ByName(exact, need={"jpeg": 99}, float32_reference=True)
    with pytest.raises(GateError, match=r"^x: fp32 disagrees with float32 torch on 1 pictures of jpeg: ") as caught:
        search(wrong, precision)
    assert "also failed" not in str(caught.value)
    assert "To set the precision" not in str(caught.value)
    assert "no convolution" not in capsys.readouterr().err
