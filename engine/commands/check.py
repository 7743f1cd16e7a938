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
    verdict = verify_store(options.store, note=not options.no_note, threads=threads, quiet=options.quiet)
    for finding in verdict.findings:
        print(f"{finding.kind}: {finding.path}: {finding.problem}; {finding.remedy}")
    print(f"{options.store}: {_summary(verdict)}")
    return {
        "ok": verdict.ok,
        "complete": verdict.ok and not verdict.pending,
        "store": str(options.store),
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "images": verdict.images,
        "records": verdict.records,
        "chunks": verdict.chunks,
        "bytes": verdict.chunk_bytes,
        "pending": verdict.pending,
        "unfinished": verdict.unfinished,
        "noted": verdict.noted,
    }


def _summary(verdict: Verdict) -> str:
    checked = f"{verdict.chunks} chunks, {verdict.chunk_bytes / 1e6:.1f} MB, {verdict.images} images"
    text = f"{checked}: " + ("all as written" if verdict.ok else f"{len(verdict.damage)} damaged")
    if added := len(verdict.findings) - len(verdict.damage):
        text += f"; {added} added by others"
    if verdict.pending:
        text += f"; {verdict.pending} embeddings are not made yet: run embed"
    if verdict.unfinished:
        text += f"; {verdict.unfinished} unfinished files, which embed replaces"
    if verdict.noted:
        text += "; embed makes again what is damaged"
    elif verdict.not_noted_because:
        text += f"; the damage could not be noted for embed: {verdict.not_noted_because}"
    return text
