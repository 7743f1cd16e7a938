"""What a study embeds, and whether its stores still have that."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from substyle.engine.backbones.weights import WeightsError
from substyle.engine.config import HERE, Study
from substyle.engine.devices import AUTO
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline, require_asked
from substyle.engine.embedding.run import require_embedded, require_same
from substyle.engine.stages.elsewhere import plan_elsewhere
from substyle.engine.stages.shift import STAGE as SHIFT
from substyle.engine.store import catalog, identity
from substyle.engine.store.identity import RUN, PhotographsError, Remedies
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.outputs import STORE
from substyle.errors import ConfigError, MissingError
from substyle.files import inside
from substyle.pipelines.sources import absolute_root, open_source
from substyle.pipelines.storage import Place, is_remote, place


def store_of(study: Study, out: Path) -> Place:
    """Store of a study's embeddings. Raises UnsafeFileError if the one in the output folder is a link."""
    return place(study.store, "store") if study.store else place(inside(out, STORE))


def plan_of(study: Study, images: Path | str | None, store_path: Place) -> EmbedPlan:
    """Embedding plan of a study: photographs given by the caller or the study, else those of its store.

    Raises:
        MissingError: no photographs are given and there is no store.
    """
    photographs = images or study.images
    existing = EmbeddingStore.open(store_path) if catalog.exists(store_path) else None
    if photographs is not None:
        source = open_source(photographs, study.source)
    elif existing is not None and existing.has_manifest():
        source = identity.open_own(existing)
    else:
        raise MissingError("images", "set it in the study file or pass --images PATH")
    config = study.executor.here(study.embed, existing.settings.shard_rows if existing else 0)
    return EmbedPlan(
        source,
        store_path,
        PixelPipeline(study.settings(), config),
        study.limit,
        study.splits.fractions,
        executor=study.executor,
        only=True,
        remedies=RUN,
        asked=(study.device, study.embed.runtime),
    )


STUDY = Remedies(*3 * ("run substyle run with the study, into another --out if the store is to be kept",))


def require_stated(study: Study, store: EmbeddingStore) -> None:
    """Check what a study says of photographs that are not read.

    Raises:
        PhotographsError: the store has more photographs than the limit, or other shares of the splits.
    """
    manifest = store.manifest()
    count, shares = len(manifest.keys), next((entry.fractions for entry in manifest.sources if entry.fractions), ())
    if 0 < study.limit < count:
        raise PhotographsError(f"{store.path}: has {count} photographs, and limit is {study.limit}", "limit")
    if shares and tuple(shares) != study.splits.fractions:
        given = list(study.splits.fractions)
        raise PhotographsError(f"{store.path}: has shares {list(shares)} of the splits, not {given}", "splits")


def stated_limit(study: Study, store: EmbeddingStore, images: Path | str | None = None) -> int:
    """The limit of a study; of photographs that cannot be compared, the number that the store has."""
    named = images or study.images
    return len(store.manifest().keys) if named is None or _gone(named) else study.limit


def require_study(
    study: Study, store: EmbeddingStore, images: Path | str | None = None, *, quiet: bool = False
) -> None:
    """Check that a store has the embeddings that a study asks for now.

    Photographs are compared if the study or ``images`` names them. Of photographs that are gone, the path is compared.

    Raises:
        PhotographsError: the store has other photographs, labels, splits or settings, or more or fewer photographs.
        DifferentError: a transformation or a backbone has changed.
    """
    # nothing is computed here, so the study's devices are not needed
    own = replace(study, device="cpu", embed=replace(study.embed, device="cpu", runtime="auto"), executor=HERE)
    named = images or study.images
    entry = store.manifest().sources[0]
    if named is not None and _gone(named):
        if absolute_root(str(named)) != entry.root:
            raise PhotographsError(f"{store.path}: embedded from {entry.root}, not {named}; {STUDY.other}")
        print(f"{named}: not found, so its photographs are not compared with {store.path}", file=sys.stderr)
        named = None
    if named is None:
        pipeline = PixelPipeline(own.settings(), own.embed)
        store.require_definitions(pipeline.definitions)
        require_stated(study, store)
    else:
        plan = replace(plan_of(own, named, store.path), remedies=STUDY)
        require_same(store, plan)
        require_embedded(plan, store, quiet=quiet)
        pipeline = plan.pipeline
    stored = {entry.name for entry in store.backbones()}
    for choice in (each for each in own.backbones if stored.issuperset(each.names)):
        try:
            require_asked(store, [choice], pipeline, AUTO, AUTO)
        except (ConfigError, WeightsError) as error:  # its files are gone, or its library
            print(f"{choice.name}: not compared with {store.path}: {error}", file=sys.stderr)


def _gone(photographs: Path | str) -> bool:
    """Whether photographs are no longer where they were; patterns of file names are not looked up."""
    return not is_remote(photographs) and not re.search(r"[*?\[{]", str(photographs)) and not Path(photographs).exists()


def require_elsewhere(study: Study, out: Path, *, quiet: bool = False) -> None:
    """Check that stages' stores of other photographs have these photographs as they are now.

    Raises as `require_study`.
    """
    embed = replace(study.embed, device="cpu", runtime="auto")
    for each in SHIFT.elsewhere(study, out):
        photographs, path = each.photographs, each.path
        if not catalog.exists(path):
            continue
        store = EmbeddingStore.open(path)
        if photographs is None:  # the study's own, which are compared with the study's store
            store.require_definitions(PixelPipeline(each.settings, embed).definitions)
        elif _gone(photographs):
            print(
                f"{each.title}: {photographs} not found, so its photographs are not compared with {path}",
                file=sys.stderr,
            )
        else:
            require_embedded(replace(plan_elsewhere(each, study, embed), remedies=STUDY), store, quiet=quiet)
