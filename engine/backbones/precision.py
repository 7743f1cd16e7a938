"""Search for the fastest precision of a backbone that passes the gate.

It begins with a few transformations that fail first, the same for every suite; what is found has then to pass on each
transformation of the suite.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones.gate import FLOAT32, GateError, PrecisionGate, RejectedError
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.backbones.runtimes.tensorrt import EngineError
from substyle.engine.devices import AUTO, EightBits, Precision, as_eight_bits, as_precision
from substyle.engine.observability import fastest

MIN_SPEEDUP = 1.2  # of a mixture over float32; a slower one is not worth its error
_UNQUANTISED = (0, 1, 2, 4, 8)  # sixteenths of a network's layers
_BFLOAT16 = PrecisionPolicy("bf16")
_AIM = 0.9  # excess that the search for a number of layers aims at


def fewest(excess: Callable[[int], float], total: int, low: int = 0, above: float | None = None) -> int:
    """Return the fewest layers of ``total`` at which ``excess``, which falls with their number, is at most 1.

    At ``total`` it is taken to be. The number is exact to a twelfth of ``total``. The next number to try comes from
    interpolation: excess falls about linearly to zero at ``total``, and between two values about exponentially.

    Args:
        above: excess at ``low`` if it is known, and above 1.
    """
    above = excess(low) if above is None else above
    if above <= 1:
        return low
    high, below = total, 0.0
    while high - low > max(total // 12, 1):
        if not math.isfinite(above):
            part = 0.5
        elif high == total:
            part = 1 - _AIM / above
        else:
            part = math.log(above / _AIM) / math.log(above / max(below, 1e-3))
        margin = max((high - low) // 4, 1)  # so that few are tried whatever the excess
        middle = min(max(low + round(part * (high - low)), low + margin), high - margin)
        found = excess(middle)
        if found <= 1:
            high, below = middle, found
        else:
            low, above = middle, found
    return high


class PrecisionSearch:
    """Gates one backbone, searching for its precision if ``auto``.

    Args:
        policy: tried before searching, since a search may find another one on another day: it measures time.
        refused: a policy that a spot check refused, and why; only later ones are tried.
    """

    def __init__(
        self,
        gate: PrecisionGate,
        precision: str,
        policy: PrecisionPolicy | None = None,
        refused: tuple[PrecisionPolicy, RejectedError] | None = None,
    ) -> None:
        self.gate, self.precision, self.policy = gate, precision, policy
        self.name = gate.name
        self._refused: PrecisionPolicy | None = None if refused is None else refused[0]  # the last one
        self._failure: RejectedError | None = None if refused is None else refused[1]

    def result(self) -> dict[str, Any]:
        """Return the policy that passed with its result as `PrecisionGate.passed`. Raises GateError if none does."""
        if self.policy is not None:
            try:
                return self.gate.passed(self.policy)
            except GateError as error:
                print(f"{error}; searching for another precision", file=sys.stderr)
        facts = {**self._facts(self.gate.names), "suite": self.gate.names}
        found = cache.remember("policies", facts, lambda: self._settled().describe())
        return self.gate.passed(PrecisionPolicy.of(found))

    def _facts(self, names: Sequence[str]) -> dict[str, Any]:
        """What the policy that is found on transformations depends on."""
        return {
            **self.gate.facts(self.precision, names),
            "precision": self.precision,
            "threads": self.gate.builder.threads,  # of the comparison of speeds
            "after": self._refused and self._refused.describe(),
        }

    def _settled(self) -> PrecisionPolicy:
        """The policy that passes on all transformations.

        It is searched for on the anchors, and then on those transformations on which it turns out to fail.
        """
        names = list(self.gate.anchors)
        while True:
            found = cache.remember("searches", self._facts(names), partial(self._searched, names, self._refused))
            policy = PrecisionPolicy.of(found)
            try:
                passed = self.gate.passed(policy)
            except RejectedError as error:
                if self._given or policy in (FLOAT32, self._refused):
                    raise
                names = list(dict.fromkeys([*names, *error.names])) if self._eight_bits else list(error.names)
                self._refused, self._failure = policy, error
            else:
                break
        if policy.float32_layers and (speedup := self._speedup(policy)) < MIN_SPEEDUP:
            return self._slow(policy, speedup)
        if policy.float32_layers or policy.unquantised_layers:
            passes = f"passes the gate (cosine min {passed['gate']['cosine_min']:.5f})"
            why = f"; with fewer: {self._failure}" if self._failure else ""
            print(f"{self.name}: {self.gate.words(policy)} {passes}{why}", file=sys.stderr)
        return policy

    @property
    def _given(self) -> bool:
        """Whether the precision leaves nothing to search for."""
        return self.precision != AUTO and self._eight_bits is None

    @property
    def _eight_bits(self) -> EightBits | None:
        return as_eight_bits(self.precision)

    def _searched(self, names: Sequence[str], after: PrecisionPolicy | None) -> dict[str, Any]:
        """The policy to use for some transformations, after one that failed on them."""
        if self._given:
            policy = PrecisionPolicy(as_precision(self.precision))
        elif kind := self._eight_bits:
            policy = self._search_eight_bits(kind, names, after)
        elif ladder := self.gate.builder.ladder:
            start = 0 if after is None else ladder.index(as_precision(after.precision)) + 1
            policy = self._first_that_passes(ladder[start:], names)
        else:
            policy = self._fewest_float32_layers(names, after)
        return policy.describe()

    def _fewest_float32_layers(self, names: Sequence[str], after: PrecisionPolicy | None) -> PrecisionPolicy:
        """bf16 with the fewest first layers in float32 that passes; float32 if none does, or if bf16 is not faster."""
        total = self.gate.layers
        if not total:
            return self._float32("it has no convolution or matrix product")
        if after is None and (speedup := self._speedup(_BFLOAT16)) < MIN_SPEEDUP:
            return self._slow(_BFLOAT16, speedup)

        def excess(count: int) -> float:
            try:
                found = self.gate.measured(PrecisionPolicy("bf16", count), names, whole=True)
            except RejectedError as error:
                self._failure = error
                return error.excess
            return max(result.excess for results in found.values() for result in results)

        if self.gate.compiled:
            self.gate.require_float32(names)
        known = (0, None) if after is None or self._failure is None else (after.float32_layers, self._failure.excess)
        count = fewest(excess, total, *known)
        return PrecisionPolicy("bf16", count) if count < total else self._float32(f"bf16 failed: {self._failure}")

    def _slow(self, policy: PrecisionPolicy, speedup: float) -> PrecisionPolicy:
        return self._float32(f"{self.gate.words(policy)} is only {speedup:.2f} times as fast")

    def _float32(self, why: str) -> PrecisionPolicy:
        print(f"{self.name}: using float32; {why}", file=sys.stderr)
        return FLOAT32

    def _speedup(self, mixture: PrecisionPolicy) -> float:
        """How many times as fast as float32 a policy is."""
        self.gate.note(f"gate: comparing the speed of {self.gate.words(mixture)} and fp32")
        embeds = (self.gate.runtime(mixture), self.gate.runtime(FLOAT32))
        block = self.gate.anchor_block()
        mixed, plain = fastest([partial(embed, block) for embed in embeds])
        return plain / mixed

    def _first_that_passes(self, ladder: Sequence[Precision], names: Sequence[str]) -> PrecisionPolicy:
        """The fastest precision that passes. Raises the last GateError if none does."""
        for precision, slower in pairwise(ladder):
            policy = PrecisionPolicy(precision)
            try:
                self.gate.measured(policy, names)
            except (GateError, EngineError) as error:  # a card may not support the precision
                print(f"{self.name}: trying {slower}; {error}", file=sys.stderr)
            else:
                return policy
        if not ladder:
            assert self._failure is not None
            raise self._failure
        policy = PrecisionPolicy(ladder[-1])
        self.gate.measured(policy, names)
        return policy

    def _search_eight_bits(
        self, precision: EightBits, names: Sequence[str], after: PrecisionPolicy | None
    ) -> PrecisionPolicy:
        """The 8-bit policy with the fewest unquantised first layers that passes.

        Unquantised layers use the fastest 16-bit precision that passes alone. Raises GateError if none passes.
        """
        narrow = [kind for kind in self.gate.builder.ladder if kind != "fp32"]
        between = as_precision(self._first_that_passes(narrow, names).precision) if narrow else "bf16"
        total, failed = self.gate.layers, -1
        if after is not None and after.between == between:
            failed = after.unquantised_layers
        for count in sorted({total * part // 16 for part in _UNQUANTISED} - set(range(failed + 1))):
            mixture = PrecisionPolicy(precision, unquantised_layers=count, between=between)
            try:
                self.gate.measured(mixture, names)
            except RejectedError as error:
                self._failure = error
                continue
            return mixture
        raise GateError(f"{self._failure}. It also failed with up to half of the layers in {between}")
