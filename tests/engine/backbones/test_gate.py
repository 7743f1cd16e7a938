from __future__ import annotations

import numpy as np
import pytest

from substyle.engine.backbones.gate import GateError, check

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
    with pytest.raises(GateError, match=r"^x: bf16 .* float32 on 32 photographs: .*≥ 0\.999\)"):
        run(got, "bf16")
