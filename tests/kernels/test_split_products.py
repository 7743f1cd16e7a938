"""Split products compared with float64, and gradients with those of the plain step."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.conftest import drawn

from substyle.kernels import probe_step, split_products
from substyle.kernels.probe_heads import Heads, Term
from substyle.kernels.split_products import Split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_split_has_the_precision_of_float32(size: float) -> None:
    x_RL = drawn(0, 5, 300) * drawn(1, 5, 300).exp() * size
    split = Split.of(x_RL, x_RL.abs().amax(1, keepdim=True))
    high, low = split.part_2RL.double()
    found = split.unit_R1.double() * (high + low / 2048)
    assert split.part_2RL.dtype == torch.float16
    # 22 bits of each number that is not tiny beside the largest of its row
    error_RL = (found - x_RL.double()).abs()
    assert (error_RL <= 2.0**-21 * x_RL.abs() + 2.0**-44 * x_RL.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("terms", [1, 500, 8192, 12_345])
def test_products_are_those_of_float32(terms: int) -> None:
    """Of long sums, those in pieces with and without a rest."""
    x_RL, y_LM = drawn(0, 7, terms), (3.0 * drawn(1, terms, 11) + 5.0).half()
    expected = x_RL.double() @ y_LM.double()
    scale = x_RL.abs().double() @ y_LM.abs().double()
    found = Split.of(x_RL, x_RL.abs().amax(1, keepdim=True)).product(y_LM, torch.zeros(7, 1))
    assert found.dtype == torch.float32
    assert ((found - expected).abs() <= 1e-6 * scale).all()
    rounded = x_RL.half().float() @ y_LM.float()
    assert terms == 1 or ((rounded - expected).abs() > 1e-6 * scale).any()


@pytest.mark.parametrize(
    ("heads", "classes", "width", "batch"), [(1, 2, 1, 1), (3, 5, 40, 200), (2, 33, 17, 70), (1, 3, 5, 9000)]
)
def test_gradients_are_those_of_the_plain_step(heads: int, classes: int, width: int, batch: int) -> None:
    own = Heads(drawn(0, heads, classes, width), drawn(1, heads, classes))
    x_BD = (drawn(2, batch, width) + 1.0).half()
    target_B = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(3))
    weight_KB = drawn(4, heads, batch).abs()
    weight_KB[:, ::3] = 0.0
    weight_KB[:, ::5] *= 1e-7  # such residuals are below what float16 has
    weight_KB[0, -1] = 1.0
    exact = Heads(*(p.double() for p in own.parameters))
    expected = probe_step.linear_gradients(exact, x_BD.double(), Term(target_B, weight_KB=weight_KB.double()))
    found = split_products.linear_gradients(own, split_products.split_weights(own), x_BD, target_B, weight_KB)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, atol=2e-6, rtol=2e-6)


def test_where_there_are_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_products.supported()
    assert not split_products.available(torch.device("cpu"))
    assert split_products.available(torch.device("cuda", 0))

    def older(*given: torch.Tensor) -> torch.Tensor:
        raise AssertionError(given)

    split_products.supported.cache_clear()
    monkeypatch.setattr(torch, "mm", older)  # without the argument
    assert not split_products.available(torch.device("cuda", 0))
    split_products.supported.cache_clear()
