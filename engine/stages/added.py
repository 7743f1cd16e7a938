"""Backbones that stages add to a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from substyle.engine.backbones.registry import is_derived
from substyle.engine.embedding.derived import derive
from substyle.engine.embedding.run import embed
from substyle.engine.stages.registry import AnyStage, discard
from substyle.engine.stages.stage import Run, TrainingStage
from substyle.engine.stages.tables import tables


def embed_added(run: Run, stage: AnyStage, found: Mapping[str, Any]) -> None:
    """Embed backbones that a stage adds, and open their tables for the stages after it.

    Results of backbones that are replaced are deleted.

    Args:
        found: results of the stage.
    """
    if not isinstance(stage, TrainingStage) or not (added := stage.added(run, found)):
        return
    first, *_ = run.tables.values()
    derived = [choice.name for choice in added if is_derived(choice.name)]
    networks = [choice for choice in added if choice.name not in derived]
    if networks:
        assert run.embedding is not None
        plan = run.embedding.plan
        again = replace(plan, match=replace(plan.match, state=None))  # matched with what the store has now
        embed(again, networks, quiet=run.quiet)
    for name in derived:
        derive(run.store, name, quiet=run.quiet)
    for entry in stage.replaced(run, found):  # reports would show their results beside others, or refuse them
        discard(run.out, entry.slug)
    if run.embedding is not None:
        choices, before = [*run.embedding.choices, *networks], run.embedding.derived
        run.embedding = replace(run.embedding, choices=choices, derived=[*before, *derived])
    names = [*run.tables, *(choice.name for choice in added)]
    run.tables = {table.backbone: table for table in tables(run.store, names, first.transformations)}
