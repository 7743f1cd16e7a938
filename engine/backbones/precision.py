"""The precision of a backbone: the first of a short list that passes the gate.

The list follows from the backbone, the runtime and the processor, never from a measured time: the same machine chooses
the same precision under any load.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from substyle.engine import cache
from substyle.engine.backbones.gate import GateResult, PrecisionGate, RejectedError
from substyle.engine.backbones.runtimes.base import FLOAT32, PrecisionPolicy
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.devices import AUTO, Precision, as_eight_bits, as_precision
from substyle.kernels import cpu

log = logging.getLogger(__name__)

_FLOAT32_LAYERS = (0, 2, 8)  # and half of all
_UNQUANTISED = (0, 1, 2, 4, 8)  # sixteenths of a network's layers


def policies(gate: PrecisionGate, precision: str, first: PrecisionPolicy | None = None) -> list[PrecisionPolicy]:
    """Return the policies to try, the fastest first.

    Args:
        precision: as configured.
        first: with ``auto``, a policy to try before all others: that of a store to continue.

    Raises:
        ConfigError: 8 bits need a package or photographs that there are not.
        GateError: for 8 bits, no 16-bit precision passes, which is used between products.
    """
    builder = gate.builder
    if kind := as_eight_bits(precision):
        builder.facts(kind)  # raises ConfigError before anything is built
        between: Precision = "bf16"
        if narrow := [PrecisionPolicy(each) for each in builder.ladder if each != "fp32"]:
            between = as_precision(choose(gate, narrow)[0].precision)
        counts = sorted({builder.layers * part // 16 for part in _UNQUANTISED})
        return [PrecisionPolicy(kind, 0, count, between) for count in counts]
    if precision != AUTO:
        return [PrecisionPolicy(as_precision(precision))]
    if builder.ladder:
        candidates = [PrecisionPolicy(each) for each in builder.ladder]
    elif cpu.has("avx512_bf16", "amx_bf16", "bf16") and builder.layers:
        counts = sorted({count for count in (*_FLOAT32_LAYERS, builder.layers // 2) if 2 * count <= builder.layers})
        candidates = [*(PrecisionPolicy("bf16", count) for count in counts), FLOAT32]
    else:
        candidates = [FLOAT32]
    return candidates if first is None else [first, *(policy for policy in candidates if policy != first)]


def choose(gate: PrecisionGate, candidates: Sequence[PrecisionPolicy]) -> tuple[PrecisionPolicy, list[GateResult]]:
    """Return the first policy that passes the gate, which is cached, and its results.

    Raises:
        GateError: none passes, or compiled float32, the reference, is wrong.
    """
    facts = {**gate.facts(candidates[0].precision), "policies": [policy.describe() for policy in candidates]}
    found = cache.remember("policies", facts, lambda: _first_that_passes(gate, candidates).describe())
    policy = PrecisionPolicy.of(found)
    return policy, gate.compare(policy)


def _first_that_passes(gate: PrecisionGate, candidates: Sequence[PrecisionPolicy]) -> PrecisionPolicy:
    name, label = gate.builder.source.spec.name, gate.builder.label
    for policy in candidates:
        try:
            gate.compare(policy)
        except (RejectedError, EngineError) as error:  # a card may not support the precision
            if policy in (FLOAT32, candidates[-1]):  # float32 that is wrong says nothing about others
                raise
            log.info("%s: %s failed: %s", name, label(policy), error)
        else:
            break
    if policy != candidates[0]:
        print(f"{name}: using {label(policy)}", file=sys.stderr)
    return policy
