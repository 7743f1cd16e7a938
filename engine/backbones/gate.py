"""The gate: compare compiled backbones with their float32 reference.

It runs on photographs that packages ship, so its result holds for every store; a spot check compares what passed on a
few photographs of each new store.

The reference is float32 in eager torch. In OpenVINO, compiled float32 is several times as fast: it is compared with
eager torch on every transformation, and is then the reference of other policies.

A policy has to pass on each transformation of the suite and on `ANCHORS`. Embeddings are kept by policy and
transformation, and compared anew in each run: another suite costs what is new in it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import FLOAT32, GateSamples, PrecisionPolicy, RuntimeBuilder
from substyle.engine.backbones.spec import Embed, columns
from substyle.errors import SubstyleError

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
        configured: whether the threshold is another than the default.
    """

    cosine_min: float
    cosine_mean: float
    norm_error_max: float
    images: int
    rows: int
    threshold: float
    reference: str
    configured: bool = False


def required(precision: str, configured: float | None) -> float:
    """Return the minimum cosine of a precision: of 16 and 8 bits as configured, if it is."""
    return THRESHOLDS[precision] if configured is None or precision == "fp32" else configured


def check(
    name: str,
    got_ND: NDArray[np.floating],
    reference_ND: NDArray[np.float32],
    *,
    mean_D: NDArray[np.floating],
    precision: str,
    reference: str,
    gate_cosine: float | None = None,
    configured: str = "",
    transformation: str = "",
) -> GateResult:
    """Compare embeddings, cast to the store's dtype, with their float32 reference.

    The reference mean is subtracted first, because embeddings of most networks share a large component that would
    dominate the cosine.

    Args:
        mean_D: mean of the reference.
        reference: description of the reference.
        gate_cosine: configured minimum of 16 and 8 bits; None for the default.
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
    a, b = got - mean_D, reference_ND.astype(np.float64) - mean_D
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(length_a * length_b, 1e-30)
    norm_error = np.abs(length_a - length_b) / np.maximum(length_b, 1e-30)
    threshold = required(precision, gate_cosine)
    result = GateResult(
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        norm_error_max=float(norm_error.max()),
        images=len(got),
        rows=len(got),
        threshold=threshold,
        reference=reference,
        configured=threshold != THRESHOLDS[precision],
    )
    if not (result.cosine_min >= threshold and result.norm_error_max <= MAX_NORM_ERROR):
        advice = f'To set the precision of one backbone: {{ name = "{configured or name}", precision = "fp32" }}'
        if result.norm_error_max <= MAX_NORM_ERROR:
            advice += ". To accept lower cosines, which the report then states: embed.gate_cosine"
        raise RejectedError(
            f"{name}: {precision} disagrees with {reference} on {len(got)} pictures"
            f"{transformation and f' of {transformation}'}: "
            f"cosine min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f} (required: ≥ {threshold}), "
            f"largest norm error {result.norm_error_max:.4f} (required: ≤ {MAX_NORM_ERROR}). "
            f"{advice if precision != 'fp32' else ''}".rstrip()
        )
    return result


def check_members(
    source: LazyBackbone,
    policy: PrecisionPolicy,
    reference: PrecisionPolicy | None,
    got_ND: NDArray[np.floating],
    reference_ND: NDArray[np.float32],
    mean_D: NDArray[np.floating],
    gate_cosine: float | None = None,
    transformation: str = "",
) -> list[GateResult]:
    """Compare, as `check`, the columns of each backbone of a pass.

    Args:
        reference: compiled float32; None for eager torch, or OpenVINO for an ONNX graph.
    """
    eager = "the same graph in float32" if source.is_graph else "float32 torch"
    return [
        check(
            member.name,
            got_ND[:, part],
            reference_ND[:, part],
            mean_D=mean_D[part],
            precision=policy.precision,
            reference=eager if reference is None else "float32",
            gate_cosine=gate_cosine,
            configured=source.spec.name,
            transformation=transformation,
        )
        for member, part in zip(source.members, columns(source.members), strict=True)
    ]


def merge(results: Sequence[GateResult], images: int) -> GateResult:
    """Return the result on the pictures of several results together, of ``images`` photographs."""
    rows = [result.rows for result in results]
    return replace(
        results[0],
        cosine_min=min(result.cosine_min for result in results),
        cosine_mean=float(np.average([result.cosine_mean for result in results], weights=rows)),
        norm_error_max=max(result.norm_error_max for result in results),
        images=images,
        rows=sum(rows),
    )


def photographs(samples: GateSamples, name: str, *, full: bool) -> list[int]:
    """Return the positions of a transformation's photographs, which do not depend on the suite.

    All, or `GATE_EACH` at equal distances: transformations have different ones.
    """
    count = samples.images()
    if full or count <= GATE_EACH:
        return list(range(count))
    step = count // GATE_EACH
    first = zlib.crc32(samples.family(name).encode()) % step
    return [first + i * step for i in range(GATE_EACH)]


def spot_photographs(anchors: Sequence[str], names: Sequence[str], count: int) -> dict[str, list[int]]:
    """Return the positions of a spot check's photographs by transformation, the hardest first.

    Each of `SPOT_PICTURES` photographs is in another transformation. Of fewer photographs there are as many pictures,
    since cosines are relative to their mean.

    Args:
        anchors: the transformations that fail first.
        names: all transformations.
        count: number of photographs.
    """
    hardest = [name for name in anchors if name != "identity"]
    others = [name for name in names if name not in hardest]
    order, images = [*hardest, *others[::2], *others[1::2]], min(count, SPOT_PICTURES)
    chosen: dict[str, list[int]] = {}
    for i in range(min(SPOT_PICTURES, len(order) * images)):
        # both in turn; where that would repeat pairs, photographs move on by one
        photograph = (i + i // math.lcm(len(order), images)) % images
        chosen.setdefault(order[i % len(order)], []).append(photograph)
    return chosen


def in_blocks(
    embed: Embed, pictures: Mapping[str, NDArray[np.uint8]], block: int, note: Callable[[str], None]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield embeddings (R, D) of each transformation's pictures.

    Args:
        pictures: by transformation, (R, S, S, 3) uint8 each.
        block: number of pictures that a runtime computes at once; transformations are embedded together up to it.
    """
    *starts, total = accumulate(map(len, pictures.values()), initial=0)
    blocks: dict[int, list[str]] = {}
    for name, start in zip(pictures, starts, strict=True):
        blocks.setdefault(start // block, []).append(name)
    done = 0
    for names in blocks.values():
        note(f"{done} of {total} pictures")
        x_BD = embed(np.concatenate([pictures[name] for name in names])).astype(np.float32)
        ends = list(accumulate(len(pictures[name]) for name in names))
        yield from zip(names, np.split(x_BD, ends[:-1]), strict=True)
        done += ends[-1]


class PrecisionGate:
    """Compares policies of one backbone with float32.

    Args:
        dtype: dtype of the store's embeddings.
        full: compare all photographs in each transformation, with eager torch alone; so on a GPU.
        gate_cosine: minimum of 16 and 8 bits; None for the default.
    """

    def __init__(
        self,
        builder: RuntimeBuilder,
        samples: GateSamples,
        dtype: str,
        *,
        full: bool = False,
        gate_cosine: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.builder, self.samples, self.dtype, self.note = builder, samples, dtype, note
        self.gate_cosine = gate_cosine
        self.full = full or builder.target.on_gpu
        self.compiled_reference = builder.float32_reference and not self.full
        self.anchors = list(samples.anchors())
        self.names = list(dict.fromkeys([*self.anchors, *samples.names()]))  # the hardest first

    def compare(self, policy: PrecisionPolicy) -> list[GateResult]:
        """Compare a policy on all transformations. Returns the result for each backbone of the pass.

        Raises:
            RejectedError: a transformation is outside the limits; later ones are not embedded.
            GateError: the reference is not finite, or it is compiled float32 and disagrees with eager torch.
        """
        source, reference = self.builder.source, self._reference(policy)
        if reference is not None:
            try:
                self.compare(reference)
            except RejectedError as error:  # says nothing about this policy
                raise GateError(str(error)) from None
        expected = dict(self._embeddings(reference))
        mean_D = np.concatenate([expected[name] for name in self.anchors]).mean(axis=0, dtype=np.float64)
        results = []
        for name, x_RD in self._embeddings(policy):
            got_RD = x_RD[: len(expected[name])].astype(self.dtype)
            found = check_members(source, policy, reference, got_RD, expected[name], mean_D, self.gate_cosine, name)
            results.append(found)
        images = len({i for name in self.names for i in self._photographs(reference, name)})
        return [merge(of_member, images) for of_member in zip(*results, strict=True)]

    def _reference(self, policy: PrecisionPolicy) -> PrecisionPolicy | None:
        """What a policy is compared with: compiled float32, or None: eager torch."""
        return FLOAT32 if self.compiled_reference and policy != FLOAT32 else None

    def _photographs(self, policy: PrecisionPolicy | None, name: str) -> list[int]:
        """Positions of a transformation's photographs.

        Compiled float32 is compared with eager torch on all of anchors, and on the first of other transformations.
        """
        one = policy is None and self.compiled_reference and name not in self.anchors
        return photographs(self.samples, name, full=self.full)[: 1 if one else None]

    def _embeddings(self, policy: PrecisionPolicy | None) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield embeddings (R, D) by transformation, from the cache or as soon as they are computed."""
        facts: dict[str, Any] = {"graph": self.builder.key, "device": self.builder.target.identity, "policy": None}
        if policy is not None:
            facts |= {"policy": policy.describe(), **self.builder.facts(policy.precision)}
        pictures = {name: [self.samples.fingerprint(name), self._photographs(policy, name)] for name in self.names}
        entries = {name: f"gates/{cache.key({**facts, 'pictures': pictures[name]})}.f32" for name in self.names}
        cached = {name: data for name, entry in entries.items() if (data := cache.read(entry)) is not None}
        for name, data in cached.items():
            yield name, np.frombuffer(data, np.float32).reshape(-1, self.builder.source.spec.dim)
        if missing := [name for name in self.names if name not in cached]:
            for name, x_RD in self._embed(policy, missing):
                cache.write(entries[name], x_RD.tobytes())
                yield name, x_RD

    def _embed(self, policy: PrecisionPolicy | None, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield embeddings (R, D) by transformation, as soon as they are computed."""
        self.note(f"gate: pictures of {len(names)} transformations")
        whole = self.samples.pictures({name: photographs(self.samples, name, full=self.full) for name in names})
        pictures = {name: whole[name][: len(self._photographs(policy, name))] for name in names}
        label = "float32 in eager torch" if policy is None else self.builder.label(policy)
        block = self.builder.batch * (1 if self.builder.target.on_gpu else max(self.builder.threads, 1))
        yield from in_blocks(self._runtime(policy), pictures, block, lambda text: self.note(f"gate: {label}, {text}"))

    def _runtime(self, policy: PrecisionPolicy | None) -> Embed:
        return self.builder.reference() if policy is None else self.builder.runtime(policy)

    def spot(self, policy: PrecisionPolicy, embed: Embed) -> list[GateResult]:
        """Compare a compiled policy on the pictures of `spot_photographs`.

        Returns:
            as `compare`; nothing for compiled float32 that is the reference.

        Raises:
            RejectedError: it is outside the limits.
        """
        if self.compiled_reference and policy == FLOAT32:
            return []
        facts = {**self.facts(policy.precision), "policy": policy.describe()}
        found = cache.remember("spots", facts, lambda: [asdict(result) for result in self._spotted(policy, embed)])
        return [GateResult(**result) for result in found]

    def _spotted(self, policy: PrecisionPolicy, embed: Embed) -> list[GateResult]:
        self.note("spot check")
        source, reference = self.builder.source, self._reference(policy)
        chosen = spot_photographs(self.anchors, self.names, self.samples.images())
        pictures = np.concatenate(list(self.samples.pictures(chosen).values()))
        expected_RD = self._runtime(reference)(pictures).astype(np.float32)
        got_RD, mean_D = embed(pictures).astype(self.dtype), expected_RD.mean(axis=0)
        results = check_members(source, policy, reference, got_RD, expected_RD, mean_D, self.gate_cosine)
        images = len({i for positions in chosen.values() for i in positions})
        return [replace(result, images=images) for result in results]

    def facts(self, precision: str) -> dict[str, Any]:
        """Return what results of a precision depend on."""
        return {
            "graph": self.builder.key,
            "device": self.builder.target.identity,
            "full": self.full,
            "dtype": self.dtype,
            "gate_cosine": self.gate_cosine,
            "suite": [(name, self.samples.fingerprint(name)) for name in self.names],
            **self.builder.facts(precision),
        }
