from __future__ import annotations

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


@pytest.mark.parametrize("document", ["[]", '"text"', '{"group_N": 3}', '{"results": {}, "group_N": [1e400]}'])
def test_a_document_of_another_kind_is_refused(document: str, tmp_path: Path) -> None:
    OUTCOME.save(tmp_path)
    (tmp_path / "probes.json").write_text(document)
    with pytest.raises(SubstyleError):
        ProbeOutcome.load(tmp_path)
