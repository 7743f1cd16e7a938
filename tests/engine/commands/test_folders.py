from __future__ import annotations

from pathlib import Path

from substyle.engine.commands.options import out_of
from substyle.engine.store.layout import StoreSettings
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines.storage import ObjectPlace

SETTINGS = StoreSettings(0, 64, 8, "float16")


def test_results_of_a_store_in_a_bucket(bucket: ObjectPlace) -> None:
    assert out_of(EmbeddingStore.create(bucket / "s.zarr", SETTINGS)) == Path("runs/s")
