"""Every Triton kernel, compiled for A100 and H100 as for a launch with a full batch; needs no GPU.

A budget is the current usage rounded up to the next step. Registers limit the threads per multiprocessor (32 registers:
all 2048; 40: 1536; 48: 1280; 64: 1024), spilled ones go through memory, and bytes should be stored as words.
"""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from tests.kernels.conftest import Load

from substyle.kernels import dispatch, philox

FOLDER = Path(dispatch.__file__).parent
ROOT = Path(__file__).parents[2]
# Triton that each torch of CUDA 13 requires
PINNED = {"2.11": "3.6.0", "2.12": "3.7.0", "2.13": "3.7.1", "2.14": "3.8.0", "2.15": "3.9.0"}
TYPES = {
    torch.bool: "i1", torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16", torch.uint16: "u16", torch.int32: "i32",
    torch.int64: "i64", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32",
}  # fmt: skip

CANVAS = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
KEYS = philox.image_keys(0, ["a", "b"])
HALF = np.full(2, 0.5, np.float32)
LOGITS, TARGET, SHARE = torch.zeros(4, 31, 1024), torch.zeros(1024, dtype=torch.int64), torch.zeros(4, 1024)
TABLES = np.ones((2, 2, 8, 8), np.int32)
MAPS = (
    torch.zeros(1, 2, 224, 224, 32, dtype=torch.bfloat16), *torch.zeros(2, 5, 2, 32),
    torch.zeros(9, 32, 32, dtype=torch.bfloat16),
)  # fmt: skip


class Budget(NamedTuple):
    """How a kernel is launched, and its budget.

    Attributes:
    launch: calls the launch wrapper of a module.
    registers: per thread.
    shared: bytes per program.
    store: minimum width of the widest store, in bits per thread.
    """

    launch: Callable[[ModuleType], object]
    registers: int
    shared: int
    store: int


def both(compressed: Callable[..., object]) -> None:
    """4:2:0 and 4:4:4."""
    for whole in (False, True):
        compressed(CANVAS, TABLES, whole_chroma=whole)


BUDGETS = {
    "philox_triton._bits16": Budget(lambda f: f.bits16(KEYS, "n", 100352, CANVAS.device), 32, 1024, 128),
    "noise_triton._gaussian": Budget(lambda f: f.gaussian_noise(CANVAS, HALF, KEYS, "n"), 32, 0, 64),
    "noise_triton._impulse": Budget(lambda f: f.impulse_noise(CANVAS, HALF, KEYS, "n"), 32, 0, 64),
    "noise_triton._shot": Budget(lambda f: f.shot_noise(CANVAS, HALF * 50, KEYS, "n"), 40, 0, 64),
    "warp_triton._remap": Budget(lambda f: f.remap(CANVAS, torch.zeros(2, 2, 224, 224)), 40, 256, 8),
    "warp_triton._swirl": Budget(lambda f: f.swirl(CANVAS, np.ones((2, 2), np.float32), HALF, HALF), 40, 0, 8),
    "warp_triton._grid": Budget(lambda f: f.grid(CANVAS, torch.zeros(2, 2, 6, 6)), 40, 0, 8),
    "warp_triton._blur_rows": Budget(lambda f: f.elastic(CANVAS, KEYS, "e", HALF, 2.24), 40, 0, 64),
    "warp_triton._elastic": Budget(lambda f: f.elastic(CANVAS, KEYS, "e", HALF, 2.24), 40, 0, 8),
    "jpeg_codec_triton._code": Budget(lambda f: both(f.compressed), 32, 4096, 64),
    "jpeg_codec_triton._upsample": Budget(lambda f: both(f.compressed), 40, 0, 8),
    "contraction_triton._contract": Budget(lambda f: f.contract(*MAPS), 200, 8192, 128),
    "probe_step_triton._cross_entropy": Budget(lambda f: f.cross_entropy(LOGITS, TARGET, SHARE), 48, 512, 128),
}


def test_every_kernel_has_a_budget() -> None:
    """Triton functions of a module: kernels start with _, the others are inlined into them."""
    found = set()
    for path in FOLDER.glob("*_triton.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                used = [call for call in ast.walk(ast.parse(path.read_text())) if isinstance(call, ast.Name)]
                if node.name.startswith("_"):
                    found.add(f"{path.stem}.{node.name}")
                    assert any(name.id == node.name for name in used), f"{path.name}: {node.name} is never launched"
    assert found == set(BUDGETS)


def launches(monkeypatch: pytest.MonkeyPatch, file: ModuleType, budget: Budget) -> list[tuple[Any, list[Any], Any]]:
    """Kernel, arguments and constants of every launch of a wrapper."""
    seen: list[tuple[Any, list[Any], Any]] = []
    monkeypatch.setattr(
        dispatch, "launch", lambda kernel, grid, *given, **constants: seen.append((kernel, list(given), constants))
    )
    budget.launch(file)
    return seen


def compiled(kernel: Any, given: list[Any], constants: dict[str, Any], arch: int, **options: int) -> Any:  # noqa: ANN401
    """The binary for these arguments; as in a launch, integers and addresses divisible by 16 are specialised."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, fixed = {}, {}, dict(constants)
    for i, (parameter, value) in enumerate(zip(kernel.params, given, strict=False)):
        special = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[parameter.name], divisible = "fp32", False
        elif value == 1 and special:
            signature[parameter.name], divisible = "constexpr", False
            fixed[parameter.name] = 1
        else:
            assert -(2**31) <= value < 2**31, f"{parameter.name} takes 64 bits"
            signature[parameter.name], divisible = "i32", special and value % 16 == 0
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= {name: "constexpr" for name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True, **options})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and local memory of a binary."""
    import triton

    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if "REG:" in line]
    return {k: int(v) for k, _, v in (word.partition(":") for word in line.split()) if k in ("REG", "STACK", "LOCAL")}


def widest_store(ptx: str) -> int:
    """Width of a thread's stores in bits."""
    widest = 0
    for word in ptx.split():
        if word.startswith("st.global"):
            *_, last = parts = word.split(".")
            widest = max(widest, int(last[1:]) * int(next((p[1:] for p in parts if p in ("v2", "v4")), 1)))
    return widest


@pytest.mark.slow
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])  # budgets are the same
@pytest.mark.parametrize("name", BUDGETS)
def test_fits_its_budget(
    name: str, arch: int, to_compile: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, _, kernel_name = name.partition(".")
    budget, module = BUDGETS[name], to_compile(file)
    ours = [seen for seen in launches(monkeypatch, module, budget) if seen[0] is getattr(module, kernel_name)]
    assert ours
    different = {(*(v.dtype for v in seen[1] if isinstance(v, torch.Tensor)), *seen[2].values()): seen for seen in ours}
    stores = 0
    for seen in different.values():
        binary = compiled(*seen, arch)
        used = resources(binary.asm["cubin"], tmp_path)
        assert used["REG"] <= budget.registers
        assert used["STACK"] == used["LOCAL"] == 0  # no spills
        assert binary.metadata.shared <= budget.shared
        stores = max(stores, widest_store(binary.asm["ptx"]))
    assert stores >= budget.store


def test_the_extra_gpu_admits_what_torch_pins() -> None:
    """Otherwise an installation of the extra replaces torch."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (needed,) = [Requirement(each) for each in extras["gpu"] if each.startswith("triton")]
    assert [version for version in PINNED.values() if version not in needed.specifier] == []
    page = (ROOT / "docs" / "gpus.md").read_text()
    assert [pair for pair in PINNED.items() if "| {} | {} |".format(*pair) not in page] == []
