"""The functions of the package; exports hold the numbers of the store, are resumed, and notice when it changes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import jpeg, photograph, slow_after
from tests.engine.store.test_store import FOUND, make, note, rows

import substyle
from substyle import files
from substyle.engine.store.importer import import_store
from substyle.engine.store.lock import hold
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study import export as export_module
from substyle.engine.study.export import FORMATS, export
from substyle.errors import ConfigError


def write(store: EmbeddingStore, shards: range, *, seed: int = 0) -> None:
    """Shards of four rows of ten images; images 2 and 7 are quarantined, and a JPEG of image 4 is as image 4."""
    entry = store.backbone("timm:x")
    with hold(store.path, "r"):
        for shard in shards:
            own = range(4 * shard, min(4 * shard + 4, 10))
            notes = [note(i, "broken" if i in (2, 7) else "", indistinct=("jpeg",) * (i == 4)) for i in own]
            store.write_shard(entry, shard, rows(shard + seed, len(own)), notes, seconds=1.0, run="r")


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    made, _ = make(tmp_path / "s.zarr", images=10)
    write(made, range(2))
    return made


def counts(answer: dict[str, object]) -> tuple[object, ...]:
    return tuple(answer[name] for name in ("written", "kept", "removed"))


def test_parquet_is_imported_again(store: EmbeddingStore, tmp_path: Path) -> None:
    assert counts(export(store, tmp_path / "out", to="parquet", quiet=True)) == (2, 0, 0)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    frame = pq.read_table(folder).to_pylist()
    assert len(frame) == 2 * 6
    assert {row["kind"] for row in frame} == {"identity", "quality"}
    assert {row["label"] for row in frame} == {"cat", "dog"}
    with pytest.raises(
        ConfigError, match=r"definition of identity: got '[0-9a-f]{16}-0{16}'"
    ):  # no hash that substyle computes
        import_store(folder, tmp_path / "again.zarr", "import:x")
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["definition"]), path)
    import_store(folder, tmp_path / "again.zarr", "import:x")
    before, after = load_table(store, "timm:x"), load_table(EmbeddingStore.open(tmp_path / "again.zarr"), "import:x")
    np.testing.assert_array_equal(before.x_TND, after.x_TND)
    assert (before.keys, before.transformations) == (after.keys, after.transformations)
    np.testing.assert_array_equal(before.label_N, after.label_N)
    assert np.count_nonzero(~before.distinct_TN) == 1
    np.testing.assert_array_equal(before.distinct_TN, after.distinct_TN)
    assert (before.roles, before.kind) == (after.roles, after.kind)
    (file,) = list(folder.glob("*.parquet"))[:1]
    table = pq.read_table(file)
    other = pa.array(["held_out"] * len(table))
    pq.write_table(table.set_column(table.column_names.index("role"), "role", other), file)
    with pytest.raises(ConfigError, match=r"role of .*--plugin"):
        import_store(file, tmp_path / "other.zarr", "import:x")


def test_numpy_arrays_are_those_of_the_table(store: EmbeddingStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", to="numpy", quiet=True)
    table = load_table(store, "timm:x")
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    for t, name in enumerate(table.transformations):
        array = np.load(folder / f"{name}.npy")
        assert array.dtype == np.float16
        np.testing.assert_array_equal(array, table.x_TND[t])
    lines = (folder / "images.csv").read_text().splitlines()
    assert lines[0] == "key,label,split,content_hash"
    assert lines[1].startswith("0.jpg,cat,train,")
    first = (folder / "transformations.csv").read_text().splitlines()[:2]
    assert first[0] == "transformation,kind,role,definition,seed,canvas,orientation,style_precision,crop_pct"
    settings = store.settings
    assert first[1] == f"identity,identity,train,{FOUND[0].hash},{settings.seed},{settings.canvas},ignore,bf16,0.875"
    assert [line.split(",")[0] for line in lines[1:]] == list(table.keys)
    np.testing.assert_array_equal(np.load(folder / "distinct.npy"), table.distinct_TN)


def test_huggingface_loads_it(store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    export(store, tmp_path / "out", to="huggingface", quiet=True)
    entry, table = store.backbone("timm:x"), load_table(store, "timm:x")
    loaded = datasets.load_dataset(str(tmp_path / "out"), entry.slug, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].features["label"].names == ["cat", "dog"]
    for row in loaded["train"]:
        n, t = table.keys.index(row["key"]), table.transformations.index(row["transformation"])
        assert row["embedding"] == table.x_TND[t, n].tolist()
        assert row["label"] == table.label_N[n]
    assert len(loaded["train"]) == 12
    with pytest.raises(ConfigError, match=r"label of .*--to parquet"):  # its classes are numbers, its splits file names
        import_store(tmp_path / "out" / entry.slug, tmp_path / "again.zarr", "import:x")


def test_an_index_of_faiss_finds_neighbours_by_cosine(store: EmbeddingStore, tmp_path: Path) -> None:
    faiss: Any = pytest.importorskip("faiss")
    export(store, tmp_path / "out", to="faiss", quiet=True)
    folder, table = tmp_path / "out" / store.backbone("timm:x").slug, load_table(store, "timm:x")
    keys = [row["key"] for row in csv.DictReader((folder / "images.csv").read_text().splitlines())]
    assert keys == list(table.keys)
    for t, name in enumerate(table.transformations):
        index = faiss.read_index(str(folder / f"{name}.faiss"))
        unit_ND = np.asarray(table.x_TND, np.float64)[t]
        unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
        cosine_Nk, n_Nk = index.search(unit_ND.astype(np.float32), len(keys))
        np.testing.assert_array_equal(n_Nk, np.argsort(-(unit_ND @ unit_ND.T), axis=1))
        np.testing.assert_allclose(cosine_Nk, -np.sort(-(unit_ND @ unit_ND.T), axis=1), atol=1e-6)


@pytest.mark.parametrize("to", slow_after(1, FORMATS))
def test_it_is_resumed_and_notices_changes(to: str, store: EmbeddingStore, tmp_path: Path) -> None:
    pytest.importorskip({"huggingface": "datasets", "lance": "lance"}.get(to, "numpy"))
    out = tmp_path / "out"
    by_transformation = to in ("numpy", "faiss")
    first = 3 if by_transformation else 2  # images and two arrays, or two shards
    assert counts(export(store, out, to=to, quiet=True)) == (first, 0, 0)
    assert counts(export(store, out, to=to, quiet=True)) == (0, first, 0)
    lost = min(
        path for path in out.rglob("*") if path.suffix in (".parquet", ".npy", ".faiss", ".lance") and path.is_file()
    )
    lost.write_bytes(b"truncated")
    assert counts(export(store, out, to=to, quiet=True)) == (1, first - 1, 0)
    write(store, range(2, 3))  # the store grows
    assert counts(export(store, out, to=to, quiet=True)) == ((3, 0, 0) if by_transformation else (1, 2, 0))
    from substyle.engine.store import compaction

    entry = store.backbone("timm:x")
    with hold(store.path, "r"):  # embedded again with other numbers
        compaction.withdraw(store.path, {(0, entry.slug): {"identity", "jpeg"}})
    write(store, range(1), seed=9)
    answer = export(store, out, to=to, transformations=["identity"], quiet=True)
    assert counts(answer) == ((2, 0, 1) if by_transformation else (3, 0, 0))


def test_lance_has_all_rows_and_no_files_of_earlier_exports(store: EmbeddingStore, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    out, folder = tmp_path / "out", tmp_path / "out" / f"{store.backbone('timm:x').slug}.lance"
    for shards in (range(2), range(2, 3)):
        if shards.start:
            write(store, shards)
        export(store, out, to="lance", quiet=True)
        (folder / "data" / "orphan.lance").touch()  # of an interrupted export
        table, data = load_table(store, "timm:x"), lance.dataset(str(folder))
        rows = data.to_table().to_pylist()
        assert len(rows) == table.x_TND.shape[0] * len(table.keys)
        for row in rows:
            n, t = table.keys.index(row["key"]), table.transformations.index(row["transformation"])
            assert row["embedding"] == table.x_TND[t, n].tolist()  # in float16, as in the store
            assert (row["label"], row["kind"]) == (table.class_names[table.label_N[n]], table.kind[t])
    assert len(list((folder / "data").iterdir())) == 3 + 1
    export(store, out, to="lance", quiet=True)
    assert lance.dataset(str(folder)).version == data.version  # with indices that users have added
    found = data.to_table(nearest={"column": "embedding", "q": table.x_TND[1, 4].astype(np.float32), "k": 1})
    assert (found["key"][0].as_py(), found["transformation"][0].as_py()) == (table.keys[4], "jpeg")


def test_an_interrupted_export_is_resumed(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an interrupt while files are written, and one after they were moved."""
    out, remove_own = tmp_path / "out", files.remove_own

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(store, out, to="parquet", quiet=True)
    monkeypatch.undo()
    assert not list(out.iterdir())
    monkeypatch.setattr(files, "remove_own", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(store, out, to="parquet", quiet=True)
    monkeypatch.setattr(files, "remove_own", remove_own)
    assert list(out.rglob("*.parquet"))
    assert counts(export(store, out, to="parquet", quiet=True)) == (2, 0, 0)


def test_folders_of_others_are_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(store, out, to="parquet", quiet=True)
    with pytest.raises(ConfigError, match="a parquet export"):
        export(store, out, to="numpy", quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="other files"):
        export(store, tmp_path / "mine", to="parquet", quiet=True)


def test_pandas(store: EmbeddingStore) -> None:
    pytest.importorskip("pandas")
    table = load_table(store, "timm:x")
    frame = table.to_pandas()
    np.testing.assert_array_equal(frame.xs("jpeg", level="transformation").to_numpy(), table.x_TND[1])
    assert frame.index.get_level_values("class").tolist() == ["cat", "dog", "dog", "cat", "dog", "cat"] * 2
    images = store.to_pandas()
    assert images["key"].tolist() == [f"{i}.jpg" for i in range(10)]
    assert images["class"].tolist() == ["cat", "dog"] * 5


def test_every_public_name_is_importable_and_documented() -> None:
    for name in substyle.__all__:
        assert getattr(substyle, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        substyle.nothing  # noqa: B018


def test_embed_open_and_load(tmp_path: Path) -> None:
    for n in range(4):
        folder = tmp_path / "photographs" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.jpg").write_bytes(jpeg(photograph(n)))
    names = ["identity", "grayscale"]
    given = (tmp_path / "photographs", tmp_path / "s.zarr", ["control:pixels"])
    store = substyle.embed(*given, transformations=names, canvas=64)
    assert [entry.name for entry in store.backbones()] == ["control:pixels"]
    table = substyle.load_table(substyle.open_store(tmp_path / "s.zarr"), "control:pixels")
    assert table.transformations == ("identity", "grayscale")
    assert np.asarray(table.x_TND).shape == (2, 4, 768)
    again = substyle.embed(*given, transformations=names, canvas=64)
    np.testing.assert_array_equal(substyle.load_table(again, "control:pixels").x_TND, table.x_TND)


def test_a_folder_of_several_backbones_is_not_imported_as_one(store: EmbeddingStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", to="parquet")
    names = [store.backbones()[0].slug, "other"]
    shutil.copytree(tmp_path / "out" / names[0], tmp_path / "out" / "other")
    with pytest.raises(ConfigError, match="the folder of one backbone in it") as caught:
        import_store(tmp_path / "out", tmp_path / "again.zarr", "import:x")
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "again.zarr").exists()
