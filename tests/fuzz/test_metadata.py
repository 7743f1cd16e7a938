"""Every zarr.json of a store, spoilt: what still opens is what was written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tests.fuzz.harness import examine, put
from tests.fuzz.mutations import spoilt_json
from tests.fuzz.stores import Sound, mend, read

KINDS = {
    "store": "zarr.json",
    "embeddings": "embeddings/zarr.json",
    "backbone": "embeddings/*/zarr.json",
    "array": "embeddings/*/jpeg/zarr.json",
}


def metadata(sound: Sound, kind: str) -> Path:
    """The zarr.json of the store, of all backbones, of the first backbone, of one of its arrays."""
    return min(sound.path.glob(KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_opens_is_what_was_written(sound: Sound, kind: str, cases: int) -> None:
    path = metadata(sound, kind)
    data = path.read_bytes()

    def check(content: bytes | None) -> None:
        put(path, content)
        read(sound)

    examine(check, st.one_of(spoilt_json(data), st.none()), cases=max(cases // 4, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_embed_mend_what_is_spoilt(sound: Sound, kind: str, cases: int, tmp_path: Path) -> None:
    data = metadata(sound, kind).read_bytes()
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes | None) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        put(metadata(copy, kind), content)
        mend(copy)

    examine(check, st.one_of(spoilt_json(data), st.none()), cases=cases // 20)
