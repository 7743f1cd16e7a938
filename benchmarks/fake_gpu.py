"""A GPU that is not there: tensors with a device and without values, on which whatever waits for values fails.

`Counter` counts operations, bytes and launches of what runs there, or on torch's meta device.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from substyle.engine import cuda
from substyle.kernels import dispatch

CUDA = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_COPIES = (_ATEN._to_copy, _ATEN.copy_)
_INDEXING = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_)


class HostWaitError(RuntimeError):
    """The host waits for the device."""


class MixedDevicesError(RuntimeError):
    """An operation has tensors of the host and of the device."""


WAITING = (HostWaitError, fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)


class Watch(TorchDispatchMode):
    """Raise where the host would wait for the device, or devices are mixed. Every device but the CPU is one.

    Attributes:
        strict: whether it raises; preparation may wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strict = True
        self._pinned: list[torch.UntypedStorage] = []  # pinned memory needs a driver: these are plain

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (OpOverload)
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = dict(kwargs or {})
        packet = func._overloadpacket
        given = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
        pinned = packet == _ATEN._pin_memory or bool(named.pop("pin_memory", False))
        if self.strict and not pinned:
            self._check(packet, given, args, named)
        if packet is _ATEN.copy_ and given[0].device.type == "cpu" != given[-1].device.type:
            return given[0]  # no values come to the host
        made_on_host = torch.device(named.get("device") or "cpu").type == "cpu"
        if pinned and not made_on_host:
            raise MixedDevicesError(f"{packet}: only memory of the host can be pinned")
        # what the host computes has values
        real = made_on_host and not any(isinstance(each, fake_tensor.FakeTensor) for each in given)
        with fake_tensor.unset_fake_temporarily() if real else nullcontext():
            out = args[0].clone() if packet == _ATEN._pin_memory else func(*args, **named)
        if pinned:
            self._pinned.append(out.untyped_storage())
        return out

    def _check(
        self, packet: object, given: Sequence[torch.Tensor], args: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        if packet in _COPIES:
            non_blocking = named.get("non_blocking", len(args) > 2 and args[2])
            self._copy(packet, given, torch.device(named.get("device") or given[0].device), bool(non_blocking))
            return
        on_host = [leaf for leaf in given if leaf.device.type == "cpu"]
        indices = (
            [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)] if packet in _INDEXING else []
        )
        # numbers of the host become arguments of kernels, but not those that index
        mixed = [leaf for leaf in on_host if leaf.ndim or any(leaf is index for index in indices)]
        if mixed and len(on_host) < len(given):
            raise MixedDevicesError(f"{packet} has a tensor {tuple(mixed[0].shape)} of the host")
        masked = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        fills = packet is not _ATEN.index and masked and args[2].numel() == 1 and args[2].device.type == "cpu"
        if masked and len(on_host) < len(given) and not fills:
            raise HostWaitError(f"{packet} counts the values of a mask")

    def _copy(self, packet: object, given: Sequence[torch.Tensor], into: torch.device, non_blocking: bool) -> None:
        source = given[-1].device
        if (into.type == "cpu") == (source.type == "cpu"):
            return
        pinned = {storage._cdata for storage in self._pinned}
        # torch pins what it makes itself for such a copy to the host
        on_host = [each.untyped_storage()._cdata for each in given if each.device.type == "cpu"]
        if not non_blocking or not pinned.issuperset(on_host):
            raise HostWaitError(f"{packet} from {source} to {into} {'is not pinned' if non_blocking else 'blocks'}")


class _Stream:
    """A stream or an event of no device."""

    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _queued(self, *_: object, **__: object) -> None:
        """Work of the device, which is not checked: the order of streams."""

    record = wait = wait_event = wait_stream = _queued

    def synchronize(self) -> None:
        """Raise HostWaitError."""
        raise HostWaitError("synchronize of a stream or an event")


@cache
def _mode() -> fake_tensor.FakeTensorMode:
    # one for all pieces: the product keeps tables of a device for later calls, and modes do not mix
    return fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """Make tensors on `CUDA` without values. All that would ask a driver is replaced here."""
    watch = Watch()

    def capture(launch: Callable[[Any], Any], device: torch.device) -> tuple[Any, Any, Any]:
        """In place of `cuda._capture`: nothing may wait during a capture; a replay queues the work again."""
        launch(_Stream())
        before, watch.strict = watch.strict, True
        with torch.no_grad():
            out = launch(_Stream())
        watch.strict = before
        return _Stream(), SimpleNamespace(replay=partial(launch, _Stream())), out

    def context(*_: object) -> Any:  # noqa: ANN401
        return nullcontext()

    stand_ins: list[tuple[Any, str, Any]] = [
        (cuda, "_capture", capture),
        (dispatch, "compiled", lambda function: function),
        (torch.autograd, "_engine_run_backward", run_backward),
        (nn.Module, "_apply", _applied),
        # it would hide the parts of composite operations
        (torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext()),
        (torch.Tensor, "record_stream", _Stream._queued),
        *((torch.cuda, name, _Stream) for name in ("Stream", "Event", "current_stream")),
        *((torch.cuda, name, context) for name in ("device", "device_of", "stream")),
    ]
    if dispatch.installed():
        from triton.runtime.jit import JITFunction

        stand_ins.append((JITFunction, "run", _launched))
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # its alignment alone is read
        for owner, name, stand_in in stand_ins:
            stack.enter_context(patch.object(owner, name, stand_in))
        stack.enter_context(_mode())
        yield stack.enter_context(watch)


def _applied(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """In place of ``Module._apply``, which swaps tensors; those without values cannot be swapped."""
    for child in module.children() if recurse else ():
        _applied(child, function)
    for name, own in module._parameters.items():
        module._parameters[name] = None if own is None else nn.Parameter(function(own), own.requires_grad)
    for name, own in module._buffers.items():
        module._buffers[name] = None if own is None else function(own)
    return module


def run_backward(
    outputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[torch.Tensor],
    *_: object,
    **__: object,
) -> tuple[torch.Tensor | None, ...]:
    """In place of autograd's engine, which asks a driver. Runs no hooks, and all functions, needed or not.

    Returns the gradients of ``inputs``; without these, gradients are added to those of the leaves.
    """
    edges: list[Any] = [tuple(get_gradient_edge(each)[:2]) for each in (*inputs, *outputs)]
    wanted: dict[Any, torch.Tensor | None] = dict.fromkeys(edges[: len(inputs)])
    pending: dict[Any, dict[int, torch.Tensor]] = {}  # gradients of what functions returned, by position

    def add(edge: Any, gradient: torch.Tensor) -> None:  # noqa: ANN401
        function, place = edge
        own, metadata = pending.setdefault(function, {}), function._input_metadata[place]
        gradient = gradient.sum_to_size(metadata.shape).to(metadata.dtype)  # of what was broadcast and promoted
        own[place] = own[place] + gradient if place in own else gradient

    with torch.set_grad_enabled(create_graph):
        for edge, gradient in zip(edges[len(inputs) :], gradients, strict=True):
            add(edge, gradient)
        while pending:
            # the last that was recorded: all that use its result have run; leaves come after all others
            function = max(pending, key=lambda f: (not hasattr(f, "variable"), f._sequence_nr()))
            given = pending.pop(function)
            wanted |= {(function, place): gradient for place, gradient in given.items() if (function, place) in wanted}
            if inputs and hasattr(function, "variable"):
                continue
            call = getattr(function, "apply", function)  # of functions written in Python
            out = call(*(given.get(place) for place in range(len(function._input_metadata))))
            for edge, gradient in zip(function.next_functions, out if isinstance(out, tuple) else (out,), strict=True):
                if edge[0] is not None and gradient is not None:
                    add(edge, gradient)
    return tuple(wanted[edge] for edge in edges[: len(inputs)])


_OPTIONS = ("enable_fp_fusion", "num_warps", "num_stages")


def _launched(kernel: Any, *args: Any, grid: object, warmup: bool, **named: Any) -> None:  # noqa: ANN401
    """In place of a launch of a Triton kernel: its arguments are there, and on the device."""
    del grid, warmup
    inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in named.items() if k not in _OPTIONS})
    if any(isinstance(each, torch.Tensor) and each.device != CUDA for each in args):
        raise MixedDevicesError(f"kernel {kernel.fn.__name__} has a tensor of the host")


# --- counting -----------------------------------------------------------------------------------------------------

META = torch.device("meta")


@dataclass(frozen=True)
class Launch:
    """A kernel: operations, and bytes to and from memory; ``product`` of those that run on tensor cores."""

    flop: float
    moved: float
    product: bool = False


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
