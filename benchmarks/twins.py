"""Is a Triton kernel worth its lines? Launches and bytes of Inductor's code for the plain reference, over the kernel's.

``make gpu-paper`` installs the CUDA build of torch that this needs, and no GPU::

    CUDA_VISIBLE_DEVICES= PYTHONPATH=build/torch-2.15.0:src python -m benchmarks.twins

References are traced on the CPU without values and for one size, moved to an H100 that is not there, and lowered and
fused by Inductor; no kernel is compiled. A twin stays where either ratio is at least 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from benchmarks import harness
from benchmarks.fake_gpu import CUDA, META, Counter
from benchmarks.gpu_check import kernel_cases
from substyle.kernels import dispatch, displacement, probe_data, probe_step, warp
from substyle.kernels.probe_heads import Term

NAME = "twins"
QUESTION = "where does a Triton kernel launch or move less than Inductor's code for its plain reference?"
STAYS = 1.3
BATCH, SIDE = 32, 224
HEADS, ROWS, WIDTH, HIDDEN, CLASSES = 36, 1024, 768, 256, 31  # of a training step
KEEP = 0.8  # probability of keeping a hidden unit
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_multiprocessor=233472, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip

Work = Callable[..., Any]


# as one function of tensors, where the reference on a CPU is several in NumPy
_BETWEEN = torch.from_numpy(displacement._between_nodes(6, SIDE).matrix_OI)
REFERENCES: dict[str, Work] = {
    "swirl": lambda c, *drawn: warp.remap_reference(c, displacement.swirl_reference(SIDE, *drawn)),
    "grid": lambda c, nodes: warp.remap_reference(c, _BETWEEN @ nodes @ _BETWEEN.mT),
    "elastic": lambda c, keys, amplitude: warp.remap_reference(
        c, displacement.elastic_reference(keys, "elastic", SIDE, amplitude, kernel_cases.ELASTIC_SIGMA)
    ),
}


def cases() -> dict[str, tuple[tuple[torch.Tensor, ...], Work | None, Work]]:
    """Tensors, the function that launches a twin (None without one), and its plain reference."""
    found: dict[str, tuple[tuple[torch.Tensor, ...], Work | None, Work]] = {}
    for _, make in kernel_cases.all_cases(kernel_cases.made(BATCH, SIDE, SIDE, 1, torch.device("cpu"))):
        case = make()
        if case.of:
            kernel, reference, given = case.of
            tensors = tuple(each for each in given if isinstance(each, torch.Tensor))
            twin = None if case.name in ("dots", "lines", "difference") else _of_tensors(kernel, given)
            found[case.name] = tensors, twin, _of_tensors(REFERENCES.get(case.name, reference), given)
    rows, row = torch.empty(4096, 768, dtype=torch.float16), torch.zeros(1024, dtype=torch.int64)
    gathered = (rows, row, torch.empty(768)), None, lambda x, r, m: probe_data.reference(x, r, m, m).bfloat16()
    return found | {"rows of a table": gathered}


def _of_tensors(work: Work, given: Sequence[Any]) -> Work:
    """A function of the tensors among its inputs alone."""

    def call(*tensors: torch.Tensor) -> object:
        there = iter(tensors)
        return work(*(next(there) if isinstance(each, torch.Tensor) else each for each in given))

    return call


def probe_cases() -> dict[str, tuple[tuple[torch.Tensor, ...], Work | None, Work]]:
    """`cases` of probes: cross-entropy of linear heads, and training steps in bfloat16."""
    target, share = torch.zeros(ROWS, dtype=torch.int64), torch.empty(HEADS, ROWS)
    features = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16)
    kept = torch.empty(1, HIDDEN, ROWS, dtype=torch.bool)
    words = torch.empty(1, 1, HIDDEN * ROWS // 16, 4, dtype=torch.int32)

    def cross_entropy(*given: torch.Tensor) -> object:
        from substyle.kernels import probe_step_triton

        return probe_step_triton.cross_entropy(*given)

    def step(*given: torch.Tensor) -> torch.Tensor:
        x, y, kept, lr, decay, now, *state = given
        count = len(state) // 3
        own = state[:count], state[count : 2 * count], state[2 * count :]
        return probe_step.train_(x, [Term(y)], kept if count > 2 else None, KEEP, lr, decay, now, *own)

    def steps(heads: int, *sizes: tuple[int, ...]) -> tuple[tuple[torch.Tensor, ...], None, Work]:
        state = (torch.empty(heads, *size) for _ in ("parameters", "first", "second moments") for size in sizes)
        rates = (torch.empty(count, dtype=torch.float64) for count in (heads, heads, 3))
        return (features, target, kept, *rates, *state), None, functionalize(step, remove="mutations")

    return {
        **{
            f"cross-entropy of {classes} classes": (
                (torch.empty(HEADS, classes, ROWS), target, share),
                cross_entropy,
                functionalize(probe_step.cross_entropy_reference, remove="mutations"),
            )
            for classes in (CLASSES, 1000)
        },
        "dropout masks": (
            (words, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)),
            None,
            functionalize(probe_data.draw_words, remove="mutations"),
        ),
        "training step of linear heads": steps(200, (CLASSES, WIDTH), (CLASSES,)),
        "training step of MLPs": steps(HEADS, (HIDDEN, WIDTH), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,)),
    }


def launched(work: Work, tensors: Sequence[torch.Tensor]) -> tuple[int, float]:
    """Launches and bytes of what a GPU runs, counted on the meta device."""
    there = [tensor.to(META) for tensor in tensors]
    work(*there)  # tables that later calls share
    with Counter() as counter, dispatch.watched(counter.triton):
        work(*there)
    return len(counter.launches), sum(launch.moved for launch in counter.launches)


def fused(work: Work, tensors: Sequence[torch.Tensor]) -> tuple[int, float]:
    """Launches and bytes of Inductor's code for a function."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        traced = make_fx(work, select_decomp_table(), "fake")(*(torch.empty_like(tensor) for tensor in tensors))
        there = [torch.empty_like(tensor, device=CUDA) for tensor in tensors]
        for node in traced.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": CUDA}
            if node.op == "get_attr":
                held = getattr(traced, node.target)
                setattr(traced, node.target, torch.empty(held.shape, dtype=held.dtype, device=CUDA))
            node.meta.pop("val", None)
    traced.recompile()
    FakeTensorProp(traced, mode=mode).propagate_dont_convert_inputs(*there)
    with V.set_fake_mode(mode):
        post_grad_passes(traced, is_inference=True)
        graph = GraphLowering(traced, example_inputs=there, is_inference=True)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*there)
            graph.init_wrapper_code()
            graph._update_scheduler()
            moved, _, _ = graph.count_bytes()
            kernels = [node for node in graph.scheduler.nodes if type(node).__name__ != "NopKernelSchedulerNode"]
    return len(kernels), float(moved)


def rows() -> list[dict[str, Any]]:
    stand_ins: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "get_device_properties": lambda *_: H100,
        "current_device": lambda: 0,
        "get_compute_capability": lambda *_: 90,
    }
    made = []
    with ExitStack() as stack:
        for owner in (CudaInterface, CudaInterface.Worker):
            for name, stand_in in stand_ins.items():
                stack.enter_context(patch.object(owner, name, staticmethod(stand_in), create=True))
        stack.enter_context(patch.object(torch.cuda, "is_available", lambda: True))
        stack.enter_context(patch.object(probe_step, "scatters", lambda gradient: False))  # as on a GPU
        for name, (tensors, twin, reference) in (cases() | probe_cases()).items():
            launches, moved = fused(reference, tensors)
            row: dict[str, Any] = {"name": name, "inductor": {"launches": launches, "bytes": moved}}
            if twin is not None:
                own, read = launched(twin, tensors)
                ratios = {"launches": launches / own, "bytes": moved / read}
                row |= {
                    "twin": {"launches": own, "bytes": read},
                    "ratios": ratios,
                    "stays": max(ratios.values()) >= STAYS,
                }
            made.append(row)
            print(row, flush=True)
    return made


def main() -> None:
    out = harness.parser(NAME, __doc__).parse_args().out
    harness.write(out, harness.document(NAME, QUESTION, cuda=torch.version.cuda, rows=rows()))


if __name__ == "__main__":
    main()
