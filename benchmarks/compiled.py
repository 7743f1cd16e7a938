"""Compile every Triton kernel without a GPU: registers, spills, shared memory and tensor-core instructions.

    python -m benchmarks.compiled [FOLDER ...] [--out benchmarks/results/compiled.json]

Launches have a full batch, for A100 (sm_80), H100 (sm_90) and B200 (sm_100), under the installed Triton and that of
each FOLDER, such as ``build/triton-3.6.0``, which ``make build/triton-3.6.0`` installs. A kernel that is launched with
several types has a row of each.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import ROOT, document, parser, write

NAME = "compiled"
QUESTION = "what does each Triton kernel use of a multiprocessor, by compute capability and Triton?"
ARCHITECTURES = (80, 90, 100)
_OPCODE = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_PRODUCTS = re.compile(r"MMA")  # HMMA, HGMMA, UTCHMMA ...


def rows() -> Iterator[dict[str, Any]]:
    import triton

    ahead = importlib.import_module("tests.kernels.test_ahead_of_time")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kernel, budget in ahead.BUDGETS.items():
            file, _, function = kernel.partition(".")
            module = importlib.import_module(f"substyle.kernels.{file}")
            with pytest.MonkeyPatch.context() as patch:
                ours = [seen for seen in ahead.launches(patch, module, budget) if seen[0] is getattr(module, function)]
            by_types = {tuple(str(v.dtype)[6:] for v in s[1] if isinstance(v, torch.Tensor)): s for s in ours}
            for types, seen in by_types.items():
                for architecture in ARCHITECTURES:
                    binary = ahead.compiled(*seen, architecture)
                    used = ahead.resources(binary.asm["cubin"], folder)
                    (folder / "kernel.cubin").write_bytes(binary.asm["cubin"])
                    command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(folder / "kernel.cubin")]
                    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    found = Counter(_OPCODE.findall(said))
                    yield {
                        **{"kernel": kernel, "types": " ".join(types), "triton": triton.__version__},
                        **{"architecture": architecture, "registers": used["REG"]},
                        **{"spilled_bytes": used["STACK"] + used["LOCAL"], "shared_bytes": binary.metadata.shared},
                        "instructions": found.total(),
                        "tensor_core": {name: found[name] for name in sorted(found) if _PRODUCTS.search(name)},
                    }


def rows_of(folder: Path | None) -> list[dict[str, Any]]:
    """Compile with the Triton in a folder, or with the installed one, in a process and a cache of its own."""
    with tempfile.TemporaryDirectory() as kept:
        own = os.environ | {"TRITON_CACHE_DIR": kept} | ({} if folder is None else {"PYTHONPATH": str(folder)})
        own.pop("TRITON_INTERPRET", None)
        code = "import json, benchmarks.compiled as c; print(json.dumps(list(c.rows()))))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=own, stdout=subprocess.PIPE, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main() -> None:
    command = parser(NAME, __doc__)
    command.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="with a Triton each")
    options = command.parse_args()
    found = [row for folder in (None, *map(Path.absolute, options.folders)) for row in rows_of(folder)]
    write(options.out, document(NAME, QUESTION, rows=found))
    spilling = sorted({row["kernel"] for row in found if row["spilled_bytes"]})
    print(f"{len(found)} binaries; spilling: {', '.join(spilling) or 'none'}")


if __name__ == "__main__":
    main()
