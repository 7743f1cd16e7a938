from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.errors import SubstyleError

SCORES = {"transformation/linear": np.array([[1, 0, np.nan], [0.5, 1, 0]], np.float32)}
OUTCOME = ProbeOutcome(
    {"transformation": None},
    SCORES,
    ("a", "b", "c"),
    ("identity", "blur"),
    ("identity", "blur"),
    ("train", "held_out"),
    by_resample={"transformation/linear": np.array([[0.25, 0.5], [0.75, np.nan], [1, 0]], np.float32)},
    group_N=(4, 4, 9),
    resample_by="folder",
)


def test_resampled_probes_and_groups_survive_the_disk(tmp_path: Path) -> None:
    OUTCOME.save(tmp_path)
    loaded = ProbeOutcome.load(tmp_path)
    assert (loaded.group_N, loaded.resample_by) == ((4, 4, 9), "folder")
    assert loaded.scores.keys() == loaded.by_resample.keys() == {"transformation/linear"}
    np.testing.assert_array_equal(loaded.scores["transformation/linear"], SCORES["transformation/linear"])
    np.testing.assert_array_equal(
        loaded.by_resample["transformation/linear"], OUTCOME.by_resample["transformation/linear"]
    )


def test_former_words_are_read(tmp_path: Path) -> None:
    (score_TN,), (score_ST,) = SCORES.values(), OUTCOME.by_resample.values()
    former = replace(OUTCOME, results={"fine": None}, scores={"fine/linear": score_TN})
    replace(former, by_resample={"fine/linear": score_ST}).save(tmp_path)
    path = tmp_path / "probes.json"
    path.write_text(path.read_text().replace('"kind"', '"coarse"'))
    loaded = ProbeOutcome.load(tmp_path)
    assert loaded.scores.keys() == loaded.by_resample.keys() == {"transformation/linear"}
    assert (loaded.results, loaded.kind) == (OUTCOME.results, OUTCOME.kind)


def test_without_them_there_are_none(tmp_path: Path) -> None:
    replace(OUTCOME, by_resample={}, group_N=None).save(tmp_path)
    loaded = ProbeOutcome.load(tmp_path)
    assert loaded.group_N is None
    assert loaded.by_resample == {}


@pytest.mark.parametrize(
    "change",
    [{"group_N": (1, 2)}, {"by_resample": {"transformation/linear": np.zeros((2, 3), np.float32)}}],
    ids=["groups", "resamples"],
)
def test_of_another_shape_they_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    replace(OUTCOME, **change).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(SubstyleError):
        ProbeOutcome.load(tmp_path)


@pytest.mark.parametrize("document", ["[]", '"text"', '{"group_N": 3}', '{"results": {}, "group_N": [1e400]}'])
def test_a_document_of_another_kind_is_refused(document: str, tmp_path: Path) -> None:
    OUTCOME.save(tmp_path)
    (tmp_path / "probes.json").write_text(document)
    with pytest.raises(SubstyleError):
        ProbeOutcome.load(tmp_path)
