"""A GPU that is not there: tensors with a device and without values, on which whatever waits for values fails."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
MIXED = (MixedDevicesError, fake_tensor.FakeTensorDeviceMismatchError)


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


_OPTIONS = ("enable_fp_fusion", "num_warps", "num_stages")


def _launched(kernel: Any, *args: Any, grid: object, warmup: bool, **named: Any) -> None:  # noqa: ANN401
    """In place of a launch of a Triton kernel: its arguments are there, and on the device."""
    del grid, warmup
    inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in named.items() if k not in _OPTIONS})
    if any(isinstance(each, torch.Tensor) and each.device != CUDA for each in args):
        raise MixedDevicesError(f"kernel {kernel.fn.__name__} has a tensor of the host")
