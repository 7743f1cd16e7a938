"""The gate: compare compiled backbones with their float32 reference.

It runs on photographs that packages ship, so its result holds for every store; a spot check compares what passed on a
few photographs of each new store.

The reference is float32 in eager torch. In OpenVINO, compiled float32 is several times as fast: it is compared with
eager torch on every transformation, and is then the reference of other precisions.

A policy has to pass on each transformation of the suite and on `ANCHORS`. Results are remembered by transformation:
another suite costs what is new in it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.runtimes.base import GateSamples, PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.spec import Embed
from substyle.kernels.errors import SubstyleError

# minimum cosine after subtraction of the reference mean
THRESHOLDS = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99, "fp8": 0.99}
MAX_NORM_ERROR = 0.1  # relative to a centred embedding's norm; cosines do not detect a wrong scale
GATE_IMAGES = 32
GATE_EACH = 4  # photographs of each transformation, unless the gate is full
SPOT_PICTURES = 16  # of a spot check, each of another photograph if there are as many
# identity, and the transformations that fail first in 16 bits; the mean of their pictures is subtracted from all
ANCHORS = ("grayscale", "channel_permute", "gaussian_noise", "impulse_noise", "shot_noise", "identity")


class GateError(SubstyleError):
    """A compiled backbone disagrees with its reference."""


class RejectedError(GateError):
    """A precision is outside the limits."""


@dataclass(frozen=True)
class GateResult:
    """Measurements of the gate.

    Attributes:
        cosine_min, cosine_mean: over all rows, after subtraction of the reference mean.
        norm_error_max: largest relative difference of norms, after subtraction of the reference mean.
        images: number of photographs.
        rows: number of pictures: variants of photographs.
        threshold: required minimum cosine.
        reference: description of the reference.
    """

    cosine_min: float
    cosine_mean: float
    norm_error_max: float
    images: int
    rows: int
    threshold: float
    reference: str


def check(
    name: str,
    got_ND: NDArray[np.floating],
    reference_ND: NDArray[np.float32],
    *,
    precision: str,
    images: int,
    reference: str,
    mean_D: NDArray[np.float64] | None = None,
    configured: str = "",
    transformation: str = "",
) -> GateResult:
    """Compare embeddings, cast to the store's dtype, with their float32 reference.

    The reference mean is subtracted first, because embeddings of most networks share a large component that would
    dominate the cosine.

    Args:
        mean_D: mean of the reference; default that of these rows.
        configured: name in the configuration, if another: that of several layers.
        transformation: that of all rows, for the message.

    Raises:
        RejectedError: an embedding is not finite, or its cosine or norm is outside the limits of the precision.
        GateError: the reference is not finite.
    """
    got = got_ND.astype(np.float64)
    if not np.isfinite(reference_ND).all():
        where = f" of {transformation}" if transformation else ""
        raise GateError(f"{name}: {reference} is not finite on pictures{where}")
    if not np.isfinite(got).all():
        wrong = int((~np.isfinite(got)).any(axis=1).sum())
        raise RejectedError(f"{name}: {wrong} of {len(got)} rows are not finite")
    mean = reference_ND.mean(axis=0, dtype=np.float64) if mean_D is None else mean_D
    a, b = got - mean, reference_ND.astype(np.float64) - mean
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(length_a * length_b, 1e-30)
    norm_error = np.abs(length_a - length_b) / np.maximum(length_b, 1e-30)
    threshold = THRESHOLDS[precision]
    result = GateResult(
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        norm_error_max=float(norm_error.max()),
        images=images,
        rows=len(got),
        threshold=threshold,
        reference=reference,
    )
    if not (result.cosine_min >= threshold and result.norm_error_max <= MAX_NORM_ERROR):
        advice = f'To set the precision of one backbone: {{ name = "{configured or name}", precision = "fp32" }}'
        raise RejectedError(
            f"{name}: {precision} disagrees with {reference} on {len(got)} pictures"
            f"{transformation and f' of {transformation}'}: "
            f"cosine min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f} (required: ≥ {threshold}), "
            f"largest norm error {result.norm_error_max:.4f} (required: ≤ {MAX_NORM_ERROR}). "
            f"{advice if precision != 'fp32' else ''}".rstrip()
        )
    return result


def merged(results: Sequence[GateResult], images: int) -> GateResult:
    """Return the result on the pictures of several results together, of ``images`` photographs."""
    rows = [result.rows for result in results]
    return replace(
        worst(results),
        cosine_mean=float(np.average([result.cosine_mean for result in results], weights=rows)),
        images=images,
        rows=sum(rows),
    )


def worst(results: Sequence[GateResult]) -> GateResult:
    """Return the smallest cosines and the largest norm error of several results on the same pictures."""
    return replace(
        results[0],
        cosine_min=min(result.cosine_min for result in results),
        cosine_mean=min(result.cosine_mean for result in results),
        norm_error_max=max(result.norm_error_max for result in results),
    )


FLOAT32 = PrecisionPolicy("fp32")
Extent = Literal["full", "each"]


class PrecisionGate:
    """Compares policies of one backbone with its float32 reference, and remembers those that pass by transformation.

    Args:
        dtype: dtype of the store's embeddings.
        extent: photographs of each transformation: ``full``: all; ``each``: `GATE_EACH`, on a GPU all.
    """

    def __init__(
        self,
        builder: RuntimeBuilder,
        samples: GateSamples,
        dtype: str,
        *,
        extent: Extent = "each",
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.builder, self.samples, self.dtype, self.note = builder, samples, dtype, note
        self.extent: Extent = "full" if builder.target.on_gpu else extent
        self.name = builder.source.spec.name
        self._runtimes: dict[PrecisionPolicy, Embed] = {}
        self._means: dict[bool, NDArray[np.floating]] = {}  # by whether it is of eager torch

    def passed(self, policy: PrecisionPolicy) -> dict[str, Any]:
        """Compare a policy on all transformations.

        Returns:
            ``{"precision", "float32_layers", "gate", "gates"}``: ``gates`` are the results of each backbone of a pass,
            ``gate`` the worst.

        Raises:
            GateError: one is outside the limits.
        """
        found = self.measured(policy, self.names)
        images = len({i for name in found for i in self._photographs(name)[: self._count(policy, name)]})
        return self._described(policy, [merged(results, images) for results in zip(*found.values(), strict=True)])

    @staticmethod
    def _described(policy: PrecisionPolicy, results: Sequence[GateResult]) -> dict[str, Any]:
        """A policy with its results for each backbone of the pass."""
        gates = [asdict(result) for result in results]
        return {**policy.describe(), "gate": asdict(worst(results)), "gates": gates}

    def measured(self, policy: PrecisionPolicy, names: Sequence[str]) -> dict[str, list[GateResult]]:
        """Return results by transformation, for each backbone of the pass; remember those within the limits.

        Raises:
            RejectedError: a transformation is outside the limits, in the first block with one.
        """
        facts = {name: {**self.facts(policy.precision, [name]), "policy": policy.describe()} for name in names}
        kept = {name: cache.recall("gates", facts[name]) for name in names}
        found = {name: [GateResult(**result) for result in kept[name] or []] for name in names}
        for some in self._compare(policy, [name for name in names if kept[name] is None]):
            for name, (got, reference) in some.items():
                try:
                    found[name] = self._check(
                        policy, got, reference, images=len(reference), mean=self._mean(policy), transformation=name
                    )
                except RejectedError:
                    self.note(f"gate: {self.words(policy)}, rejected")
                    raise
                cache.keep("gates", facts[name], [asdict(result) for result in found[name]])
        return found

    def require_float32(self, names: Sequence[str]) -> None:
        """Raise GateError if compiled float32, the reference of other policies, disagrees with eager torch."""
        try:
            self.measured(FLOAT32, names)
        except RejectedError as error:  # says nothing about another policy
            raise GateError(str(error)) from None

    def _compare(
        self, policy: PrecisionPolicy, names: Sequence[str]
    ) -> Iterator[dict[str, tuple[NDArray[np.floating], NDArray[np.float32]]]]:
        """Yield embeddings and their reference by transformation, as soon as all pictures of one are embedded."""
        if not names:
            return
        if self.compiled:
            if policy == FLOAT32:
                rows, eager = self._reference(names), self._reference(names, eager=True)
                yield {name: (rows[name][: len(eager[name])].astype(self.dtype), eager[name]) for name in names}
                return
            self.require_float32(names)
        reference, pixels = self._reference(names), self._pictures(names)
        ends = dict(zip(names, accumulate(len(pixels[name]) for name in names), strict=True))
        words, embed = f"gate: {self.words(policy)}", self.runtime(policy)
        got = np.empty((sum(map(len, pixels.values())), self.builder.source.spec.dim), self.dtype)
        done = 0
        for block in self._embedded(embed, [pixels[name] for name in names], words):
            before, done = done, done + len(block)
            got[before:done] = block
            complete = [name for name in names if before < ends[name] <= done]
            yield {name: (got[ends[name] - len(pixels[name]) : ends[name]], reference[name]) for name in complete}

    def _check(
        self,
        policy: PrecisionPolicy,
        got_ND: NDArray[np.floating],
        reference_ND: NDArray[np.float32],
        *,
        images: int,
        mean: NDArray[np.floating],
        transformation: str = "",
    ) -> list[GateResult]:
        """Results of each backbone of the pass. Raises RejectedError for the first outside the limits."""
        results: list[GateResult] = []
        first = 0
        for member in self.builder.source.members:
            columns = slice(first, first := first + member.dim)
            results.append(
                check(
                    member.name,
                    got_ND[:, columns],
                    reference_ND[:, columns],
                    precision=policy.precision,
                    images=images,
                    reference=self._reference_name(policy),
                    mean_D=mean[columns].astype(np.float64),
                    configured=self.name,
                    transformation=transformation,
                )
            )
        return results

    @property
    def _block(self) -> int:
        """Pictures of a block: as many as the runtime computes at once."""
        return self.builder.batch * (1 if self.builder.target.on_gpu else max(self.builder.threads, 1))

    @cached_property
    def anchors(self) -> list[str]:
        """Transformations that are compared with every suite."""
        return list(self.samples.anchors())

    @cached_property
    def names(self) -> list[str]:
        """Transformations to compare, the hardest first: anchors, and those of the suite."""
        return list(dict.fromkeys([*self.anchors, *self.samples.names()]))

    def _photographs(self, name: str) -> list[int]:
        """Positions of a transformation's photographs, which do not depend on the suite."""
        count = self.samples.images()
        if self.extent == "full" or count <= GATE_EACH:
            return list(range(count))
        step = count // GATE_EACH
        first = zlib.crc32(self.samples.family(name).encode()) % step
        return [first + i * step for i in range(GATE_EACH)]

    def _count(self, policy: PrecisionPolicy, name: str) -> int | None:
        """How many of a transformation's pictures are compared: one for compiled float32, except of anchors."""
        return 1 if self.compiled and policy == FLOAT32 and name not in self.anchors else None

    def _pictures(self, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Pictures of each transformation. Shape: (R, S, S, 3) uint8."""
        self.note(f"gate: pictures of {len(names)} transformations")
        return self.samples.pictures({name: self._photographs(name) for name in names})

    def _reference(self, names: Sequence[str], *, eager: bool = False) -> dict[str, NDArray[np.float32]]:
        """Float32 embeddings of pictures, (R, D) by transformation, computed once per machine.

        Args:
            eager: by eager torch, where compiled float32 is the reference: of all pictures of anchors, and of the first
                one of other transformations.
        """
        compiled = self.compiled and not eager

        def entry(name: str) -> str:
            return f"references/{cache.key({**self._compared([name]), 'compiled': compiled})}.f32"

        data = {name: cache.read(entry(name)) for name in names}
        if missing := [name for name in names if data[name] is None]:
            pixels = self._pictures(missing)
            if eager:
                pixels = {name: x[: self._count(FLOAT32, name)] for name, x in pixels.items()}
            embed = self.runtime(FLOAT32) if compiled else self._eager
            words = "gate: float32 " + ("reference" if compiled or not self.compiled else "in eager torch")
            rows = np.concatenate(list(self._embedded(embed, [pixels[name] for name in missing], words)))
            ends = list(accumulate(len(pixels[name]) for name in missing))
            for name, start, end in zip(missing, [0, *ends], ends, strict=False):
                data[name] = found = rows[start:end].tobytes()
                cache.write(entry(name), found)
        return {
            name: np.frombuffer(found, np.float32).reshape(-1, self.builder.source.spec.dim)
            for name, found in data.items()
            if found is not None
        }

    def _embedded(self, embed: Embed, pixels: Sequence[NDArray[np.uint8]], words: str) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of pictures by block."""
        whole = [picture for some in pixels for picture in some]
        for start in range(0, len(whole), self._block):
            self.note(f"{words}, {start} of {len(whole)} pictures")
            yield embed(np.stack(whole[start : start + self._block])).astype(np.float32)

    @property
    def compiled(self) -> bool:
        """Whether compiled float32 is the reference."""
        return self.builder.float32_reference and self.extent != "full"

    @cached_property
    def _eager(self) -> Embed:
        return self.builder.reference()

    def runtime(self, policy: PrecisionPolicy) -> Embed:
        """Compile a policy; the last one and the reference stay in memory."""
        if policy not in self._runtimes:
            for other in set(self._runtimes) - {FLOAT32}:
                del self._runtimes[other]
            reference = self.builder.float32_reference and policy == FLOAT32
            self._runtimes[policy] = self.builder.runtime(policy, keep=reference)
        return self._runtimes[policy]

    def _reference_name(self, policy: PrecisionPolicy) -> str:
        if self.compiled and policy != FLOAT32:
            return "float32"
        return "float32 torch" if self.builder.source.backbone.module is not None else "the same graph in float32"

    def _mean(self, policy: PrecisionPolicy) -> NDArray[np.floating]:
        """Mean of the reference over the pictures of anchors. Shape: (D,)."""
        eager = self.compiled and policy == FLOAT32
        if eager not in self._means:
            rows = self._reference(self.anchors, eager=eager)
            self._means[eager] = np.concatenate(list(rows.values())).mean(axis=0, dtype=np.float64)
        return self._means[eager]

    @cached_property
    def layers(self) -> int:
        """Number of layers that a policy can select from."""
        return self.builder.layers()

    def words(self, policy: PrecisionPolicy) -> str:
        """Return a policy in words, for messages."""
        count = policy.float32_layers or policy.unquantised_layers
        kind = "float32" if policy.float32_layers else policy.between
        return policy.precision + (f" with the first {count} of {self.layers} layers in {kind}" if count else "")

    def spot(self, policy: PrecisionPolicy, embed: Embed) -> dict[str, Any] | None:
        """Compare one picture of each of `SPOT_PICTURES` photographs, the hardest transformations first.

        Of fewer photographs there are as many pictures, since cosines are relative to their mean.

        Returns:
            as `passed`; None for the reference itself.

        Raises:
            GateError: it is outside the limits.
        """
        if policy == FLOAT32 and self.compiled:
            return None
        facts = {**self.facts(policy.precision, self.names), "policy": policy.describe()}
        found: dict[str, Any] = cache.remember("spots", facts, lambda: self._spotted(policy, embed))
        return found

    def _spotted(self, policy: PrecisionPolicy, embed: Embed) -> dict[str, Any]:
        self.note("spot check")
        hardest = [name for name in self.anchors if name != "identity"]
        others = [name for name in self.names if name not in hardest]
        order, images = [*hardest, *others[::2], *others[1::2]], min(self.samples.images(), SPOT_PICTURES)
        chosen: dict[str, list[int]] = {}
        for i in range(min(SPOT_PICTURES, len(order) * images)):
            # both in turn; where that would repeat pairs, photographs move on by one
            photograph = (i + i // math.lcm(len(order), images)) % images
            chosen.setdefault(order[i % len(order)], []).append(photograph)
        pixels = list(self.samples.pictures(chosen).values())
        embed_reference = self.runtime(FLOAT32) if self.compiled else self._eager
        reference = np.concatenate(list(self._embedded(embed_reference, pixels, "spot check: float32 reference")))
        got = np.concatenate(list(self._embedded(embed, pixels, "spot check"))).astype(self.dtype)
        return self._described(policy, self._check(policy, got, reference, images=images, mean=reference.mean(axis=0)))

    def facts(self, precision: str, names: Sequence[str]) -> dict[str, Any]:
        """Return what results on transformations depend on, besides the policy."""
        return {
            **self._compared(names),
            "anchors": [self.samples.fingerprint(name) for name in self.anchors],  # of their mean
            "dtype": self.dtype,
            **self.builder.facts(precision),
        }

    def _compared(self, names: Sequence[str]) -> dict[str, Any]:
        """What the references of transformations depend on."""
        return {
            "graph": self.builder.key,
            "samples": [(self.samples.fingerprint(name), self._photographs(name)) for name in names],
            "extent": self.extent,
            "limits": [THRESHOLDS, MAX_NORM_ERROR],
            "device": self.builder.target.identity,
        }
