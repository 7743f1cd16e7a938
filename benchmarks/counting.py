"""Count operations, bytes and launches of code by running it on torch's meta device, where tensors have no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")


@dataclass(frozen=True)
class Launch:
    """A kernel: operations, and bytes to and from memory; ``product`` of those that run on tensor cores."""

    flop: float
    moved: float
    product: bool = False


_ATEN = torch.ops.aten
_BATCHED = (_ATEN.bmm, _ATEN.baddbmm)  # those of attention; their largest matrix is its scores
_ALSO_POINTWISE = (_ATEN._to_copy, _ATEN.reflection_pad2d, _ATEN.upsample_nearest2d, _ATEN.cat, _ATEN.clone)
_EMPTY = (_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty)
_OVERWRITES = (
    *(_ATEN.copy_, _ATEN.fill_, _ATEN.zero_, _ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like),
    *(_ATEN.full, _ATEN.new_zeros),
)
_PICKS = (_ATEN.index, _ATEN.index_select, _ATEN.gather)
_READS = 4  # torch.compile writes an intermediate result with several users if it is computed from more tensors


class Counter(TorchDispatchMode):
    """Count what runs on a device. Views and allocations cost nothing.

    Args:
        device: device; work on others and copies from them are not counted.
        fused: False: every operation reads its inputs and writes its outputs, as torch does without compilation. True:
            as torch.compile does, pointwise operations (also casts, padding, enlargement) run in the kernel of the next
            reduction, or else write what the next product or caller reads. A reduction over an image and what uses it
            are two passes. Products run in 16 bits, as in compiled networks.

    Attributes:
        launches: what ran.
    """

    def __init__(self, device: torch.device = META, *, fused: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.fused = device, fused
        self.launches: list[Launch] = []
        self._compiling = False
        self._unwritten: dict[int, dict[int, float]] = {}  # results not in memory: bytes of what they are computed from
        self._used: set[int] = set()
        self._kept: list[torch.Tensor] = []  # so that no address of a storage is reused

    def triton(self, arguments: tuple[Any, ...]) -> None:
        """Count a Triton kernel, see `dispatch.watched`: every tensor passes through memory once.

        Operations of Triton kernels are not counted.
        """
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        self.launches.append(Launch(0.0, sum({_key(tensor): _size(tensor) for tensor in tensors}.values())))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `dispatch.compiled`: count a function as torch.compile fuses it."""

        def call(*tensors: torch.Tensor) -> Any:  # noqa: ANN401
            before, self.fused, self._compiling = self.fused, True, True
            out = function(*tensors)
            self._write([leaf for leaf in tree_leaves((tensors, out)) if isinstance(leaf, torch.Tensor)])
            self.fused, self._compiling = before, False
            return out

        return call

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (OpOverload)
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self._kept += made
        mutable = func._schema.is_mutable
        view = not mutable and set(map(_key, made)) <= set(map(_key, read))
        uploaded = read and read[-1].device != self.device and packet in (_ATEN._to_copy, _ATEN.copy_)
        if not made or made[0].device != self.device or view or uploaded or packet in _EMPTY:
            return out
        if packet in flop_registry:
            given = [each for each in args if not isinstance(each, torch.dtype)]  # torch's count takes no dtype
            flop = float(flop_registry[packet](*given, **kwargs, out_val=out))
            sizes = [t.numel() * min(t.itemsize, 2) for t in (*read, *made)]
            on_chip = max(sizes) if packet in _BATCHED else 0
            self._write(read)
            self.launches.append(Launch(flop, float(sum(sizes) - on_chip), product=True))
        elif not self._compiling and (not self.fused or mutable or packet in _OVERWRITES):
            read = read[1:] if packet in _OVERWRITES else read
            self._write(read)
            for tensor in made:
                self._unwritten.pop(_key(tensor), None)
            self.launches.append(Launch(0.0, sum(map(_size, read)) + sum(map(_size, made))))
        elif torch.Tag.pointwise in func.tags or packet in (*_ALSO_POINTWISE, *_PICKS, *_OVERWRITES):
            read = read[1:] if packet in _OVERWRITES else read
            self._write([t for t in read if _key(t) in self._used and len(self._sources([t])) > _READS])
            self._used.update(map(_key, read))
            self._used.difference_update(map(_key, made))
            self._unwritten |= dict.fromkeys(map(_key, made), self._sources(read))
        else:
            self.launches.append(Launch(0.0, sum(self._sources(read).values()) + sum(map(_size, made))))
        return out

    def _sources(self, tensors: Sequence[torch.Tensor]) -> dict[int, float]:
        """Bytes of all that is read to compute tensors, by storage."""
        sources: dict[int, float] = {}
        for tensor in tensors:
            for key, size in self._unwritten.get(_key(tensor), {_key(tensor): _size(tensor)}).items():
                sources[key] = max(size, sources.get(key, 0.0))
        return sources

    def _write(self, tensors: Sequence[torch.Tensor]) -> None:
        """Write results that are needed in memory, by one kernel for those of one size that have a source in common."""
        kernels: list[tuple[int, dict[int, float], float]] = []  # numbers of a result, sources, bytes of results
        for tensor in tensors:
            if _key(tensor) in self._unwritten:
                sources, written = self._sources([tensor]), _size(tensor)
                for other in [k for k in kernels if k[0] == tensor.numel() and k[1].keys() & sources.keys()]:
                    kernels.remove(other)
                    sources, written = sources | other[1], written + other[2]
                kernels.append((tensor.numel(), sources, written))
        for tensor in tensors:
            self._unwritten.pop(_key(tensor), None)
        self.launches += [Launch(0.0, sum(sources.values()) + written) for _, sources, written in kernels]


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: torch.Tensor) -> float:
    """Bytes that a view covers: a value that is broadcast counts once."""
    numbers = math.prod(count for count, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return float(min(numbers * tensor.itemsize, tensor.untyped_storage().nbytes()))
