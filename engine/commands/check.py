"""`verify`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

from substyle.engine.store.verify import Verdict
from substyle.engine.store.verify import verify as verify_store


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle verify STORE`."""
    threads = len(os.sched_getaffinity(0))
    verdict = verify_store(options.store, mark=not options.no_mark, threads=threads, quiet=options.quiet)
    for finding in verdict.findings:
        print(f"{finding.kind}: {finding.path}: {finding.problem}; {finding.remedy}")
    print(f"{options.store}: {_summary(verdict)}")
    return {
        "ok": verdict.ok,
        "store": str(options.store),
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "images": verdict.images,
        "records": verdict.records,
        "chunks": verdict.chunks,
        "bytes": verdict.chunk_bytes,
        "unfinished": verdict.unfinished,
        "marked": verdict.marked,
    }


def _summary(verdict: Verdict) -> str:
    checked = f"{verdict.chunks} chunks, {verdict.chunk_bytes / 1e6:.1f} MB, {verdict.images} images"
    text = f"{checked}: " + ("all as written" if verdict.ok else f"{len(verdict.findings)} findings")
    if verdict.unfinished:
        text += f"; {verdict.unfinished} unfinished files, which embed replaces"
    if verdict.marked:
        text += "; what is broken was taken out of the journal: run embed again to redo it"
    elif verdict.unmarked_because:
        text += f"; could not be marked for embed: {verdict.unmarked_because}"
    return text
