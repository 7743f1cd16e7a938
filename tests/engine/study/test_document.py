"""What results.json says of its inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.engine.store.test_store import make, note, rows

from substyle.engine.stages.stamp import photographs_digest
from substyle.engine.store.lock import hold
from substyle.engine.store.table import load_table
from substyle.engine.study.document import _data_digest


def test_photographs_of_unknown_bytes_are_not_recorded(tmp_path: Path) -> None:
    store, _ = make(tmp_path / "s.zarr", images=4)
    with hold(store.path, "r"):
        store.write_shard(store.backbone("timm:x"), 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    table = load_table(store, "timm:x")
    assert table.content_N2 is not None
    table.content_N2[:] = np.arange(1, 9).reshape(4, 2)
    assert _data_digest(store, table) == photographs_digest(table)
    table.content_N2[2] = 0
    assert _data_digest(store, table) is None
    assert _data_digest(store, replace(table, content_N2=None)) is None
