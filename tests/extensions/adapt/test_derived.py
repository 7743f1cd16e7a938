"""Embeddings of adapters, derived from those of their backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.engine.embedding.test_run import PIXELS, folder, plan
from tests.extensions.adapt.test_family import adapter

from substyle.engine.backbones import registry
from substyle.engine.backbones.registry import LoadContext
from substyle.engine.embedding.derived import derive
from substyle.engine.embedding.run import embed
from substyle.engine.extensions.adapt.family import PREFIX, Adapter
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts
from substyle.engine.store.verify import verify


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """11 photographs in two shards, one of which is quarantined."""
    images = folder(tmp_path / "images", 11)
    (images / "004.jpg").write_bytes(b"no photograph")
    embed(plan(images, tmp_path / "s.zarr", "identity,grayscale"), [PIXELS], quiet=True)
    return EmbeddingStore.open(tmp_path / "s.zarr")


@pytest.fixture
def file(tmp_path: Path) -> str:
    spec = registry.load(PIXELS.name, LoadContext(canvas=64, batch=4, seed=0)).spec
    adapter(spec, transformations=[]).save(tmp_path / "a.safetensors")
    return f"{PREFIX}{tmp_path / 'a.safetensors'}"


def test_a_store_with_an_adapter_is_intact(store: EmbeddingStore, file: str, tmp_path: Path) -> None:
    before = store_facts(store)
    derive(store, file, quiet=True)
    found = verify(store.path, threads=1, quiet=True)
    assert found.ok
    assert (found.shards, found.pending) == (2 * 2, 0)
    base, own = (load_table(store, name) for name in (PIXELS.name, file))
    assert own.keys == base.keys
    made = Adapter.load(tmp_path / "a.safetensors")
    np.testing.assert_allclose(own.x_TND[1], made(base.x_TND[1]), rtol=2e-3, atol=2e-3)
    after = store_facts(store)
    assert (after.quarantined, after.indistinct) == (before.quarantined, before.indistinct)
    # as when it is added, a photograph is known to be bad
    assert set(after.quarantined) == {"004.jpg"}


@pytest.mark.parametrize("missing", [True, False])
def test_damaged_embeddings_are_not_derived_from(store: EmbeddingStore, file: str, missing: bool) -> None:
    shard = Path(str(store.shard_path(store.backbone(PIXELS.name).slug, "grayscale", 1)))
    if missing:
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[3] ^= 1
        shard.write_bytes(data)
        assert verify(store.path, note=True, threads=1, quiet=True).noted
    with pytest.raises(StoreError, match="missing or truncated" if missing else "unrepaired damage"):
        derive(store, file, quiet=True)
    assert [entry.name for entry in store.backbones()] == [PIXELS.name]
