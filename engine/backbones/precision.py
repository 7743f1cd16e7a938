"""The precision of a backbone: the first of a short list that passes the gate.

The list follows from the backbone, the runtime and the processor, never from a measured time: the same machine chooses
the same precision under any load.
"""

from __future__ import annotations

import sys
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones.gate import FLOAT32, PrecisionGate, RejectedError
from substyle.engine.backbones.runtimes.base import PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.devices import AUTO, Precision, as_eight_bits, as_precision
from substyle.kernels import cpu

_FLOAT32_LAYERS = (0, 2, 8)  # and half of all
_UNQUANTISED = (0, 1, 2, 4, 8)  # sixteenths of a network's layers


def policies(builder: RuntimeBuilder, precision: str, between: Precision = "bf16") -> list[PrecisionPolicy]:
    """Policies to try, the fastest first.

    Args:
        between: precision between products in 8 bits.
    """
    if kind := as_eight_bits(precision):
        counts = sorted({builder.layers() * part // 16 for part in _UNQUANTISED})
        return [PrecisionPolicy(kind, 0, count, between) for count in counts]
    if precision != AUTO:
        return [PrecisionPolicy(as_precision(precision))]
    if builder.ladder:
        return [PrecisionPolicy(each) for each in builder.ladder]
    if not cpu.has("avx512_bf16", "amx_bf16", "bf16") or not (layers := builder.layers()):
        return [FLOAT32]
    counts = sorted({count for count in (*_FLOAT32_LAYERS, layers // 2) if 2 * count <= layers})
    return [*(PrecisionPolicy("bf16", count) for count in counts), FLOAT32]


def choose(
    gate: PrecisionGate,
    precision: str,
    first: PrecisionPolicy | None = None,
    refused: PrecisionPolicy | None = None,
) -> dict[str, Any]:
    """Return the first policy that passes the gate with its result, see `PrecisionGate.passed`.

    Args:
        precision: as configured.
        first: a policy to try before all others, that of a store to continue.
        refused: a policy that a spot check has refused; only later ones are tried.

    Raises:
        GateError: none passes, or compiled float32, the reference, is wrong.
    """

    def chosen() -> dict[str, Any]:
        narrow = [PrecisionPolicy(each) for each in gate.builder.ladder if each != "fp32"]
        between: Precision = "bf16"
        if as_eight_bits(precision) and narrow:  # passes alone
            between = as_precision(_first_that_passes(gate, narrow).precision)
        found = policies(gate.builder, precision, between)
        if refused in found:
            found = found[found.index(refused) + 1 :]
        if first is not None:
            found = [first, *(each for each in found if each != first)]
        return _first_that_passes(gate, found).describe()

    given = {"first": first and first.describe(), "refused": refused and refused.describe()}
    facts = {**gate.facts(precision, gate.names), "suite": gate.names, "precision": precision, **given}
    return gate.passed(PrecisionPolicy.of(cache.remember("policies", facts, chosen)))


def _first_that_passes(gate: PrecisionGate, found: list[PrecisionPolicy]) -> PrecisionPolicy:
    for policy in found:
        try:
            gate.passed(policy)
        except (RejectedError, EngineError) as error:  # a card may not support the precision
            if policy in (FLOAT32, found[-1]):  # float32 that is wrong says nothing about others
                raise
            print(f"{gate.name}: {gate.words(policy)} failed: {error}", file=sys.stderr)
        else:
            if policy != found[0]:
                print(f"{gate.name}: using {gate.words(policy)}", file=sys.stderr)
            return policy
    raise RejectedError(f"{gate.name}: no other precision is left to try")
