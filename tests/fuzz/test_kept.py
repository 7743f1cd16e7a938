"""What stages keep, spoilt: it is made anew, or refused by name, and never taken for what it was."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from tests.conftest import slow_after
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt, spoilt_json, written
from tests.fuzz.stores import Sound
from tests.fuzz.test_results import results
from tests.staged import probe, run_of

from substyle.engine.config import AnalysisConfig
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.stages import analysis, execution, probes
from substyle.engine.stages.execution import computed
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.shift import STAGE as SHIFT
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import Stamp, finish, seconds
from substyle.engine.stages.tables import reported_tables, tables
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.document import assemble
from substyle.errors import SubstyleError

NET = results()["backbones"]["net"]
PROBED = ("transformation", "kind", "class")
FILES = (
    "probes/*/complete.json",
    "probes/*/probes.json",
    "probes/*/scores.npz",
    "probes/*/transformation-linear.safetensors",
    "analysis/*/complete.json",
    "analysis/*/analysis.json",
)


@dataclasses.dataclass
class Kept:
    """A store, the folder of its results, what lies there, and how often each stage has run."""

    store: EmbeddingStore
    out: Path
    runs: dict[str, int]

    def probe(self) -> dict[str, ProbeOutcome]:
        return probe(self.store, self.out, ProbeConfig())

    def analysis(self) -> dict[str, Any]:
        return computed(analysis.STAGE, run_of(self.store, self.out, analysis=AnalysisConfig()))


def kept_results(store: EmbeddingStore, out: Path) -> tuple[dict[str, ProbeOutcome], dict[str, dict[str, Any]]]:
    run = kept_run(store, out)
    return run.results["probes"], run.results["analysis"]


def kept_run(store: EmbeddingStore, out: Path) -> Run:
    run = run_of(store, out, reported_tables(store, out))
    run.results = {stage.name: execution.kept(stage, run) for stage in (probes.STAGE, analysis.STAGE)}
    return run


def spent(out: Path, stage: str) -> float:
    return seconds((out / stage).iterdir())


@pytest.fixture
def kept(sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Stages that have run once; what they compute is made up."""
    runs = {"probes": 0, "analysis": 0}

    def run_probes(table: Any, *_: object, out_dir: Path, **__: object) -> ProbeOutcome:  # noqa: ANN401
        runs["probes"] += 1
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "transformation-linear.safetensors").write_bytes(b"weights")
        scores = {"transformation/linear": np.ones((2, 6), np.float32)}
        told = {key: NET[key] for key in PROBED}
        return ProbeOutcome(told, scores, table.keys, table.transformations, table.kind, table.roles, 100)

    def analyze(*_: object, **__: object) -> dict[str, Any]:
        runs["analysis"] += 1
        return {key: value for key, value in NET.items() if key in ("knn", "balance", "retrieval", "clusters")}

    monkeypatch.setattr(probes, "run_probes", run_probes)
    monkeypatch.setattr(analysis, "analyze", analyze)
    made = Kept(EmbeddingStore.open(sound.path), tmp_path / "out", runs)
    made.probe()
    made.analysis()
    return made


def same(one: dict[str, ProbeOutcome], other: dict[str, ProbeOutcome]) -> bool:
    return one.keys() == other.keys() and all(
        dataclasses.replace(one[name], scores={}) == dataclasses.replace(other[name], scores={})
        and one[name].scores.keys() == other[name].scores.keys()
        and all(np.array_equal(one[name].scores[key], other[name].scores[key]) for key in one[name].scores)
        for name in one
    )


@pytest.mark.parametrize("pattern", slow_after(2, FILES))
def test_what_is_kept_is_what_was_made(kept: Kept, pattern: str, cases: int, tmp_path: Path) -> None:
    outcomes, analyses = kept_results(kept.store, kept.out)
    shutil.copytree(kept.out, tmp_path / "whole")
    path = min(kept.out.glob(pattern))
    data = path.read_bytes()
    stage = pattern.partition("/")[0]
    contents = spoilt_json(data) if path.suffix == ".json" else spoilt(data)

    def check(content: bytes | None) -> None:
        shutil.rmtree(kept.out)
        shutil.copytree(tmp_path / "whole", kept.out)
        put(path, content)
        read = attempt(kept_results, kept.store, kept.out, names=(path.parent.name,))
        if read is not None:
            assert same(read[0], {name: outcome for name, outcome in outcomes.items() if name in read[0]})
            assert read[1] == {name: analysis for name, analysis in analyses.items() if name in read[1]}
        took = attempt(spent, kept.out, stage, names=(path.parent.name,))
        assert took is None or (isinstance(took, float) and took >= 0)
        if content is None:
            return  # a folder that somebody put there: nothing writes over it
        before = dict(kept.runs)
        assert same(kept.probe(), outcomes)
        assert kept.analysis() == analyses
        anew = kept.runs[stage] - before[stage]
        assert anew in (0, 1)
        if content == data:
            assert anew == 0
        elif anew == 0:  # nothing but the time spent has changed, or the order of what is noted
            assert path.name == "complete.json"
        assert same(kept_results(kept.store, kept.out)[0], outcomes)

    examine(check, st.one_of(contents, st.none()), cases=max(cases // 6, 10))


def test_results_that_stages_never_wrote_are_refused_by_name(kept: Kept, cases: int) -> None:
    """Analyses with a stamp that fits: what passes is what the report can read."""
    analyses = kept_results(kept.store, kept.out)[1]
    folder = min((kept.out / "analysis").iterdir())
    table = next(table for table in tables(kept.store) if kept.store.backbone(table.backbone).slug == folder.name)
    stamp = Stamp.of(kept.store, table, dataclasses.asdict(AnalysisConfig()))

    def check(analysis: bytes) -> None:
        put(folder / "analysis.json", analysis)
        finish(folder, stamp, 1.0)
        run = attempt(kept_run, kept.store, kept.out, names=(folder.name,))
        if run is not None:
            made = attempt(assemble, run, "x", threads=1, labels={}, names=("x",))
            assert made is not None
            attempt(validate_results, made, names=("results",))

    examine(check, changed(next(iter(analyses.values()))).map(written), cases=cases // 4)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"stamp": "x", "seconds": 1}', b"[" * 20_000, b'{"seconds": null}']
)
def test_a_damaged_stamp_is_refused_and_mended(kept: Kept, content: bytes) -> None:
    path = min(kept.out.glob("probes/*/complete.json"))
    path.write_bytes(content)
    for call in (lambda: kept_results(kept.store, kept.out), lambda: spent(kept.out, "probes")):
        with pytest.raises(SubstyleError, match=r"complete\.json: "):
            call()
    kept.probe()
    assert kept.runs["probes"] == 3
    assert len(kept_results(kept.store, kept.out)[0]) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 20_000, b"{"])
def test_a_damaged_shift_is_refused(kept: Kept, content: bytes) -> None:
    folder = kept.out / "shift" / kept.store.backbones()[0].slug
    folder.mkdir(parents=True)
    (folder / "complete.json").write_bytes(content)
    with pytest.raises(SubstyleError, match=folder.name):
        execution.kept(SHIFT, run_of(kept.store, kept.out))
