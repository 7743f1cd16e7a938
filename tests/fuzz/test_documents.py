"""Documents of others: refused by name, or every field and number is what the file says."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from tests.engine.report.real import real_results, shortened
from tests.engine.results.test_convert import document
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt, spoilt_json, written
from tests.fuzz.parquet import parquet, spoilt_parquet
from tests.toml import toml

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.probes.checkpoint import FORMAT, Probe
from substyle.engine.report import page
from substyle.engine.report.tables import headline_table
from substyle.engine.stages.results import read_results, validate_results
from substyle.engine.store.importer import import_store
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study.file import load_study
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError

KEYS, NAMES = ("a", "b", "c"), ("identity", "jpeg")
TEXTS = ("key", "transformation", "label", "split")
SCHEMA = pa.schema(dict.fromkeys(TEXTS, pa.string()) | {"embedding": pa.list_(pa.float32())})
ROWS: list[dict[str, Any]] = [
    {
        "key": key,
        "transformation": name,
        "label": "even" if n % 2 else "odd",
        "split": ("train", "val", "test")[n],
        "embedding": [n + 0.5, -1.0],
    }
    for n, key in enumerate(KEYS)
    for name in NAMES
]


def npy(array: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def csv(rows: list[dict[str, Any]]) -> bytes:
    names = list(SCHEMA.names[:-1])
    return "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]).encode()


def assert_holds(store: Path, backbone: str, x_RD: Any, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    opened = EmbeddingStore.open(store)
    table = load_table(opened, backbone)
    assert np.isfinite(table.x_TND).all()
    assert len(rows) == len(table.keys) * len(table.transformations)
    for row, x_D in zip(rows, np.asarray(x_RD, np.float32), strict=True):
        t, n = table.transformations.index(row["transformation"]), table.keys.index(row["key"])
        np.testing.assert_array_equal(table.x_TND[t, n], x_D.astype(opened.settings.dtype))
        if row.get("label"):
            assert table.class_names[table.label_N[n]] == str(row["label"])
        else:
            assert table.label_N[n] == -1


def test_any_parquet(tmp_path: Path, cases: int) -> None:
    path, numbers = tmp_path / "made.parquet", itertools.count()
    names = (path.name, "embedding", "column", "split", "transformation", "label", "key")

    def check(content: bytes | None) -> None:
        put(path, content)
        store = tmp_path / f"{next(numbers)}.zarr"
        if attempt(import_store, path, store, "import:x", names=names) is None:
            assert not store.exists(), "what cannot be imported leaves a store"
            return
        rows = pq.read_table(path).to_pylist()
        assert_holds(store, "import:x", [row["embedding"] for row in rows], rows)
        shutil.rmtree(store)

    examine(
        check,
        st.one_of(spoilt_parquet(parquet(pa.Table.from_pylist(ROWS, SCHEMA)), SCHEMA), st.none()),
        cases=cases // 2,
    )


def changed_rows(at: int = 1, **changes: object) -> pa.Table:
    return pa.Table.from_pylist([row | changes if n == at else row for n, row in enumerate(ROWS)], SCHEMA)


def with_column(name: str, column: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    return table.set_column(table.column_names.index(name), name, column)


FOUND = [
    (changed_rows(embedding=[1.0]), "embedding of made.parquet: got 'lists of several lengths'"),
    (changed_rows(embedding=[None, 1.0]), "finite numbers"),
    (changed_rows(key=None), "key of made.parquet: got '.* row 1'"),
    (changed_rows(transformation=None), "transformation of made.parquet: got '.* row 1'"),
    (changed_rows(label="third"), "label of a: got 'odd and third'"),  # the first row's was taken in silence
    (changed_rows(split="test"), "split of a: got 'train and test'"),
    (with_column("embedding", pa.array([["1", "2"]] * 6)), "got 'list<.*string>'; allowed: lists of numbers"),
    (with_column("embedding", pa.array([[]] * 6, pa.list_(pa.float32()))), "got 'lists of no number'"),
    (with_column("embedding", pa.array([[1e300, 0.0]] * 6)), "within float32's range"),
    (with_column("key", pa.array([[1]] * 6)), "made.parquet: "),
    (pa.Table.from_pylist(ROWS, SCHEMA).append_column("key", pa.array(["a"] * 6)), "made.parquet"),
    (pa.table({}), "columns of made.parquet"),
]


@pytest.mark.parametrize(("table", "named"), FOUND)
def test_parquet_that_is_not_embeddings_is_refused(tmp_path: Path, table: pa.Table, named: str) -> None:
    path = tmp_path / "made.parquet"
    path.write_bytes(parquet(table))
    with pytest.raises(SubstyleError, match=named):
        import_store(path, tmp_path / "s.zarr", "import:x")
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", ": "),
        (b"\x93NUMPY\x01\x00\x0a\x00{'a': (((\n" + bytes(48), ": "),
        (npy(np.zeros((6, 2), "S3")), "an array of |S3"),
        (npy(np.zeros((6, 2), "c8")), "an array of complex64"),
        (npy(np.zeros(())), "finite numbers"),
        (npy(np.full((6, 2), 1e300)), "within float32's range"),  # it was stored as infinity
        (npy(np.zeros((6, 2)))[:8] + npy(np.zeros((6, 2)))[8:].replace(b"(6, 2)", b"(6000000000000, 2)"), ": "),
    ],
)
def test_arrays_that_are_not_embeddings_are_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "made.npy").write_bytes(content)
    (tmp_path / "rows.csv").write_bytes(csv(ROWS))
    with pytest.raises(SubstyleError, match=f"made.npy.*{named}"):
        import_store(tmp_path / "made.npy", tmp_path / "s.zarr", "import:x", rows=tmp_path / "rows.csv")
    assert not (tmp_path / "s.zarr").exists()


# --- probes -----------------------------------------------------------------------------------------------------------


TENSORS = {
    "w1": torch.arange(24, dtype=torch.float32).reshape(2, 4, 3),
    "b1": torch.zeros(2, 4),
    "w2": torch.ones(2, 5, 4),
    "b2": torch.arange(10, dtype=torch.float32).reshape(2, 5),
}
HEADER = {
    "format": FORMAT,
    "task": "multitask",
    "head": "mlp",
    "outputs": [{"name": "transformation", "labels": ["a", "b", "c"]}, {"name": "class", "labels": ["x", "ü"]}],
    "backbone": "control:pixels",
    "dim": 3,
    "setting": {"lr": 0.1},
    "canvas": 224,
    "seed": 0,
    "orientation": "ignore",
    "crop_pct": 0.875,
    "weights_hash": "w",
}


def file(header: bytes) -> bytes:
    return bytes(save(TENSORS, {"substyle": header.decode("utf-8", "replace")}))


def spliced(safetensors: Any) -> bytes:  # noqa: ANN401
    text = written(safetensors)
    data = file(json.dumps(HEADER).encode())
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def whole() -> bytes:
    return file(json.dumps(HEADER).encode())


@pytest.mark.parametrize("part", ["header", "tensors", "bytes"])
def test_any_probe_file(tmp_path: Path, part: str, cases: int) -> None:
    path = tmp_path / "probe.safetensors"
    data = whole()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {
        "header": spoilt_json(json.dumps(HEADER).encode()).map(file),
        "tensors": changed(json.loads(data[8 : 8 + length])).map(spliced),
        "bytes": st.one_of(
            spoilt(data), spoilt(data[: 8 + length]).map(lambda head: head + data[8 + length :]), st.none()
        ),
    }

    def check(content: bytes | None) -> None:
        put(path, content)
        probe = attempt(Probe.load, path, names=(path.name,))
        if probe is None:
            return
        labels = probe.labels
        assert all(isinstance(label, str) for names in labels.values() for label in names)
        facts = probe.metadata
        assert isinstance(facts["backbone"], str)
        assert 32 <= int(facts.get("canvas", 224)) <= 1024
        assert 0 <= int(facts.get("seed", 0)) < 2**63
        answers = probe.predict_all(np.ones((2, facts["dim"]), np.float32))
        assert {name: answer.shape for name, answer in answers.items()} == {
            name: (2, len(told)) for name, told in labels.items()
        }
        assert sum(map(len, labels.values())) == probe.heads.outputs
        for answer in answers.values():
            np.testing.assert_allclose(answer.sum(1), 1.0, atol=1e-5)

    examine(check, kinds[part], cases=cases // 3)


LABELS = [{"name": "transformation", "labels": ["a", "b", "c"]}, {"name": "transformation", "labels": ["x", "y"]}]


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": LABELS},  # one name for two outputs: the second was read in place of the first
        {"outputs": [{"name": "transformation", "labels": [True, 1, None, "d", "e"]}]},
        {"outputs": [{"name": "x", "labels": []}, {"name": "y", "labels": list("abcde")}]},
        {"outputs": []},
        {"canvas": "224"},
        {"canvas": 10**9},
        {"seed": -3},
        {"seed": None},
        {"dim": True},
    ],
)
def test_headers_that_no_probe_has_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "probe.safetensors"
    path.write_bytes(file(json.dumps(HEADER | changes).encode()))
    with pytest.raises(SubstyleError, match=r"probe\.safetensors: .*header"):
        Probe.load(path)


# --- study files ------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(inner) for key, inner in vars(value).items()}
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


def whole_study() -> dict[str, Any]:
    choices = (BackboneChoice("control:pixels"), BackboneChoice("timm:test_vit", Path("w.pth"), "fp32"))
    study = Study("all", choices, images=Path("photographs"), plugins=(Path("p.py"),), shift={"others": Path("o")})
    document = plain(study)
    assert isinstance(document, dict)
    return document


def assert_says(value: Any, given: Any, folder: Path, way: str = "study") -> None:  # noqa: ANN401
    """A field of a study holds what its file says."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {"name": given} if isinstance(given, str) else given
        for key, inner in given.items():
            if inner is not None:
                assert_says(getattr(value, key), inner, folder, f"{way}.{key}")
    elif isinstance(value, tuple):
        kept = [inner for inner in given if inner is not None]
        assert len(value) == len(kept), way
        for one, other in zip(value, kept, strict=True):
            assert_says(one, other, folder, way)
    elif isinstance(value, dict):
        assert value.keys() == {key for key, inner in given.items() if inner is not None}, way
        for key, inner in value.items():
            assert_says(inner, given[key], folder, f"{way}.{key}")
    elif isinstance(value, Path):
        assert value in (Path(given), folder / given), way
        assert "\x00" not in str(value), way
    elif isinstance(value, str) and isinstance(given, str) and value != given:
        assert value.endswith(given), way  # a pattern of files, made relative to the study's folder
    else:
        assert value == given, way
        assert isinstance(value, bool) == isinstance(given, bool), way


def test_any_values(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "study.toml"

    def check(document: Any) -> None:  # noqa: ANN401
        if not isinstance(document, dict):
            return
        put(path, toml(document))
        study = attempt(load_study, path, names=(": got ", " is required"))
        if study is not None:
            assert_says(study, document, tmp_path)
            attempt(study.settings, names=(": got ", " is required"))

    examine(check, st.one_of(changed(whole_study(), 1), changed(whole_study())), cases=cases * 2 // 3)


# --- results.json -----------------------------------------------------------------------------------------------------


def results(*names: str) -> dict[str, Any]:
    """A small results.json: of four transformations."""
    return shortened(real_results(*names, "net", "control:pixels"), 4)


def contents(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Spoilt results; one part of a backbone, or the rest of the file, so that every part is met often."""
    name, backbone = next(iter(whole["backbones"].items()))
    rest = {**whole, "backbones": {}}

    def with_part(key: str, part: Any) -> bytes:  # noqa: ANN401
        backbones = {**whole["backbones"], name: {**backbone, key: part}}
        return written({**whole, "backbones": backbones})

    def with_rest(changed_rest: Any) -> bytes:  # noqa: ANN401
        kept = {"backbones": whole["backbones"]} if isinstance(changed_rest, dict) else {}
        return written({**changed_rest, **kept} if kept else changed_rest)

    parts = st.sampled_from(sorted(backbone)).flatmap(
        lambda key: changed(backbone[key], 2).map(lambda part: with_part(key, part))
    )
    return st.one_of(parts, parts, changed(rest, 2).map(with_rest), spoilt_json(json.dumps(whole).encode()))


def test_any_results_that_pass_can_be_shown(tmp_path: Path, cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(page, "draw_plots", lambda *_: ({}, []))  # a second each

    def check(content: bytes) -> None:
        put(path, content)
        read = attempt(read_results, path, names=(path.name,))
        if read is not None:
            write_report(validate_results(read), tmp_path / "out")
            assert headline_table(validate_results(read))

    examine(check, contents(results()), cases=max(cases // 10, 8))


def test_any_results_of_an_earlier_schema_are_converted_or_named(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "results.json"

    def check(content: bytes) -> None:
        put(path, content)
        attempt(read_results, path, names=(path.name,))

    examine(check, contents(document()), cases=cases)
