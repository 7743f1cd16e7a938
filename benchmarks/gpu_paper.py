"""Run what a GPU would run without one, on tensors without values: ``python -m benchmarks.gpu_paper``.

``make gpu-paper`` calls it with a CUDA build of torch, whose `FakeTensorMode` needs no driver. Of each piece it tells:

- whether the host waits for the device: an operation whose result the host needs (``item``, ``nonzero``, ``bincount``,
  masks as indices), a copy that blocks, an event or a stream that is waited for;
- whether an operation or a Triton kernel mixes devices, and whether a kernel takes the arguments it is given;
- how many launches and bytes it takes.

Values, kernels, and waits inside of an operation (such as those of ``torch.linalg``) are not checked.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import harness
from benchmarks.counting import Counter
from benchmarks.fake_gpu import CUDA, MIXED, WAITING, fake_gpu
from substyle.kernels import dispatch

NAME = "gpu_paper"
QUESTION = "does the path of a GPU wait for it or mix devices, and what does it launch and move?"
OK, WAITS, FAILED, NOT_RUN = "ok", "waits", "failed", "not run"
KNOWN = {"each_picture": "drawn on the host"}  # functions that are known to wait


@dataclass(frozen=True)
class Case:
    """A piece of the product.

    Attributes:
        ready: prepares it on the fake device, where the host may wait; returns the work, which may not.
        fused: whether to count as torch.compile fuses; products: matrix products alone.
        missing: why it cannot run without a driver.
    """

    name: str
    ready: Callable[[], Callable[[], object]] | None = None
    fused: bool = False
    products: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Row:
    """What a case came to."""

    name: str
    status: str
    text: str = ""
    launches: int | None = None
    bytes: float | None = None


def row(case: Case) -> Row:
    """Run a case."""
    if case.ready is None:
        return Row(case.name, NOT_RUN, case.missing)
    try:
        with fake_gpu() as watch, torch.no_grad():
            watch.strict = False
            work = case.ready()
            watch.strict = True
            with (
                Counter(CUDA, fused=case.fused) as counter,
                dispatch.watched(counter.triton),
                patch.object(dispatch, "compiled", counter.compiled),
            ):
                work()
    except Exception as error:  # noqa: BLE001 - whatever one piece fails of, the others are checked
        return Row(case.name, *verdict(error))
    found = [launch for launch in counter.launches if launch.product or not case.products]
    return Row(case.name, OK, "", len(found), sum(launch.moved for launch in found))


def verdict(error: Exception) -> tuple[str, str]:
    """Status and text of an error."""
    words = (str(error).strip() or "no reason given").splitlines()[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/substyle/" in f.filename]
    frames = [f for f in frames if not f.filename.endswith("/counting.py")]  # it calls what it counts
    known = next((KNOWN[f.name] for f in frames if f.name in KNOWN), None)
    where = f", at {frames[-1].filename.rpartition('/substyle/')[2]}:{frames[-1].lineno}" if frames else ""
    waits = isinstance(error, WAITING) or ".numpy() is not supported" in words
    if waits and known:
        return WAITS, known
    if waits:
        return FAILED, f"the host waits: {words}{where}"
    if isinstance(error, MIXED):
        return FAILED, f"mixed devices: {words}{where}"
    if any(hint in words for hint in ("NVIDIA driver", "hasPrimaryContext")):
        return NOT_RUN, f"needs a driver{where}"
    return FAILED, f"{type(error).__name__}: {words}{where}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the rows; return 1 where one failed, 2 for bad usage, else 0."""
    from benchmarks import gpu_paper_cases

    parser = argparse.ArgumentParser(prog=NAME, description=QUESTION)
    parser.add_argument("--only", metavar="NAME", default="", help="cases whose name begins with NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the JSON result")
    options = parser.parse_args(arguments)
    if torch.version.cuda is None:
        parser.error("this torch is built without CUDA; `make gpu-paper` installs one that is")
    rows = []
    for case in gpu_paper_cases.cases():
        if case.name.startswith(options.only):
            rows.append(row(case))
            print(shown(rows[-1]), flush=True)
    if not rows:
        parser.error(f"no case begins with {options.only!r}")
    print(", ".join(f"{sum(r.status == status for r in rows)} {status}" for status in (OK, WAITS, FAILED, NOT_RUN)))
    if options.out:
        data = harness.document(NAME, QUESTION, cuda=torch.version.cuda, rows=[asdict(r) for r in rows])
        harness.write(options.out, data)
    return int(any(r.status == FAILED for r in rows))


def shown(r: Row) -> str:
    """A row as text."""
    counted = "" if r.launches is None else f": {r.launches} launches, {r.bytes:.4g} bytes"
    return f"{r.name}: {r.status}{f' ({r.text})' if r.text else ''}{counted}"


if __name__ == "__main__":
    sys.exit(main())
