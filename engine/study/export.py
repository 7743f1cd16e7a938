"""Export of a store's embeddings to files of other libraries, resumable."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from substyle import files
from substyle.engine.observability import stage
from substyle.engine.stages.stamp import embeddings_digest, file_digest
from substyle.engine.store.files import clear_temporary, has_text, write_durably
from substyle.engine.store.journal import hex_of
from substyle.engine.store.layout import EXPORT_NOTE, PIXELS, SPLITS, BackboneEntry
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, StoredRows, definitions, open_table
from substyle.errors import ConfigError, optional
from substyle.pipelines.storage import place

FORMATS = ("parquet", "numpy", "faiss", "huggingface", "lance")
_FRAGMENTS = "_substyle"  # folder of a Lance dataset with the fragments of each shard
_CARD, _TITLE = "README.md", "# Embeddings of transformed photographs"  # of a Hugging Face dataset
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # as `datasets` names them

Table = dict[str, Any]  # columns of a `pyarrow.Table` by name


_LAYOUT = 2  # of the files; rises where their columns change, so that no folder has both


@dataclass(frozen=True)
class _Part:
    """Files that are written together.

    Attributes:
        name: path without suffix, relative to the folder.
        digest: changes with anything in the files.
        write: writes the files into a folder.
    """

    name: str
    digest: str
    write: Callable[[Path], None]


def export(
    store: EmbeddingStore,
    out: Path,
    *,
    to: str,
    backbones: Sequence[str] = (),
    transformations: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Write embeddings with key, class and split of their images to a folder, one subfolder per backbone.

    Complete files whose embeddings, classes and splits have not changed are kept; others are written again. Backbones
    that the folder already has are brought up to date as well. Padding and quarantined images are left out.

    Args:
        store: the store; only finished shards are exported.
        out: a new folder, or one of an earlier export of the same store in the same format.
        to: ``parquet`` (a file per shard), ``numpy`` (an array (N, D) per transformation), ``faiss`` (an index per
            transformation, of unit vectors), ``huggingface`` (a dataset for `datasets.load_dataset`, a configuration
            per backbone, files by split), or ``lance`` (a dataset per backbone).
        backbones: names; default: all.
        transformations: names; default: all of each backbone.

    Returns:
        ``{"out", "format", "backbones", "written", "kept", "removed"}``; the last three count parts.

    Raises:
        ConfigError: an unknown format, or the folder holds other files, is in the store or contains it.
        UnsafeFileError: somebody else's file has the name of a new one.
        MissingError: `datasets` or `lance` is not installed.
        StoreError: a backbone or transformation does not exist, or nothing is finished.
    """
    if to not in FORMATS:
        raise ConfigError("--to", to, ", ".join(FORMATS))
    note = _note(out, store, to)
    asked = {name: list(transformations) for name in backbones or [entry.name for entry in store.backbones()]}
    asked = {**note["backbones"], **asked}
    entries = {name: store.backbone(name) for name in asked}
    for entry in entries.values():
        for folder in (entry.slug, f"{entry.slug}.lance"):
            files.inside(out, folder)  # the folder may be somebody else's
    every = {name: [str(each["name"]) for each in definitions(store, entry)] for name, entry in entries.items()}
    tables = {name: open_table(store, name, those or every[name]) for name, those in asked.items()}
    make = {"parquet": _parquet, "numpy": _numpy, "faiss": _faiss, "huggingface": _huggingface, "lance": _lance}[to]
    parts = [part for name, table in tables.items() for part in make(store, entries[name], table)]
    if isinstance(store.path, Path):
        files.require_apart(out, store.path)
    out.mkdir(parents=True, exist_ok=True)
    clear_temporary(place(out), "new")
    earlier, done = note["parts"], dict[str, dict[str, Any]]()
    count = {"written": 0, "kept": 0, "removed": 0}

    def settle(part: _Part, new: Path) -> None:
        """Write a part, and put its files in place of earlier ones of the part."""
        own = earlier.get(part.name, {"files": {}})["files"]
        part.write(new)

        def keep(made: Mapping[str, str]) -> None:
            # files of parts that have not been reached yet are still those of the earlier export; this one is noted
            # when it is complete
            _write_note(out, store, to, asked, {**earlier, **done, part.name: {"digest": "", "files": made}})

        made = files.move_in(new, out, own, keep)
        files.remove_own(out, {name: own[name] for name in own.keys() - made.keys()})
        done[part.name] = {"digest": part.digest, "files": made}

    with files.new_files(out) as new:
        with stage("export", len(parts), "files", quiet=quiet) as bar:
            for part in parts:
                found = earlier.get(part.name)
                if found and found["digest"] == part.digest and _intact(out, found["files"]):
                    done[part.name] = found
                    count["kept"] += 1
                else:
                    settle(part, new)
                    count["written"] += 1
                bar.advance()
        if to == "huggingface":
            text = _card(entries, tables, done)
            settle(_Part(_CARD, "", lambda folder: write_durably(folder / _CARD, text.encode())), new)
    for name in earlier.keys() - done.keys():
        files.remove_own(out, earlier[name]["files"])
        count["removed"] += 1
    _write_note(out, store, to, asked, done)
    if to == "lance":
        for name, table in tables.items():
            _commit(store, out / f"{entries[name].slug}.lance", table)
    return {"out": str(out), "format": to, "backbones": list(tables), **count}


def _note(out: Path, store: EmbeddingStore, to: str) -> dict[str, Any]:
    """What an earlier export has written. Raises ConfigError if the folder holds anything else."""
    nothing: dict[str, Any] = {"backbones": {}, "parts": {}}
    if not out.exists():
        return nothing
    file = out / EXPORT_NOTE
    if not out.is_dir() or (not file.is_file() and not all(files.is_litter(path.name) for path in out.iterdir())):
        raise ConfigError("--out", f"{out}, which holds other files", "a new or empty folder")
    if not file.is_file():
        return nothing
    try:
        note = json.loads(file.read_text())
        made = {"store": note["store"], "format": note["format"]}
        found = {"backbones": dict(note["backbones"]), "parts": dict(note["parts"])}
        for name in (name for part in found["parts"].values() for name in dict[str, str](part["files"])):
            if (path := files.inside(out, name)).exists() and not files.is_regular(path):
                raise ValueError(f"{name} is not a file")
        if not all(isinstance(part["digest"], str) for part in found["parts"].values()):
            raise ValueError("a part without its digest")
    except (ValueError, KeyError, TypeError, AttributeError, files.UnsafeFileError) as error:
        raise ConfigError("--out", f"{out} with a damaged {EXPORT_NOTE}", "a new or empty folder") from error
    if made != {"store": store.uuid, "format": to}:
        given = f"{out}, a {made['format']} export of store {made['store']}"
        raise ConfigError("--out", given, f"a folder of {to} exports of store {store.uuid}, or a new one")
    if _CARD not in found["parts"] and has_text(out / _CARD, _TITLE):  # of a version that did not note it
        found["parts"][_CARD] = {"digest": "", "files": {_CARD: ""}}
    return found


def _write_note(
    out: Path, store: EmbeddingStore, to: str, backbones: Mapping[str, Sequence[str]], parts: Mapping[str, Any]
) -> None:
    note = {"store": store.uuid, "format": to, "backbones": backbones, "parts": parts}
    write_durably(out / EXPORT_NOTE, json.dumps(note).encode())  # for each part; indented takes four times as long


def _intact(out: Path, digests: Mapping[str, str]) -> bool:
    """Whether files are as they were written."""
    return all(file_digest(files.inside(out, name)) == digest for name, digest in digests.items())


def _shards(store: EmbeddingStore, table: EmbeddingTable) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Shards, each with its images in the table."""
    rows = table.x_TND
    assert isinstance(rows, StoredRows)
    shard_N = rows.row_N // store.settings.shard_rows  # ascending
    for n_B in np.split(np.arange(len(shard_N)), np.flatnonzero(np.diff(shard_N, prepend=-1)))[1:]:
        yield int(shard_N[n_B[0]]), n_B


def _digest(table: EmbeddingTable, n_B: NDArray[np.int64], embeddings: str = "") -> str:
    """Digest of images, their classes and splits, the transformations, and a digest of embeddings."""
    described = [table.transformations, table.kind, table.roles, table.class_names, [table.keys[n] for n in n_B]]
    digest = hashlib.sha256(json.dumps([_LAYOUT, *described, embeddings]).encode())
    digest.update(table.label_N[n_B].tobytes() + table.split_N[n_B].tobytes() + table.distinct_TN[:, n_B].tobytes())
    if table.content_N2 is not None:
        digest.update(table.content_N2[n_B].tobytes())
    return digest.hexdigest()[:16]


def _by_shard(
    store: EmbeddingStore,
    entry: BackboneEntry,
    table: EmbeddingTable,
    write: Callable[[int, NDArray[np.int64], Path], None],
) -> Iterator[_Part]:
    """A part for each shard, whose files ``write`` makes of its number and its images in the table."""
    for shard, n_B in _shards(store, table):
        embeddings = embeddings_digest(store, entry.slug, table.transformations, np.array([shard]))
        yield _Part(f"{entry.slug}/{shard:05d}", _digest(table, n_B, embeddings), partial(write, shard, n_B))


def _pixels(store: EmbeddingStore, table: EmbeddingTable, t: int) -> dict[str, Any]:
    """What decides about the pixels of a transformation, for `substyle import`."""
    made = store.catalog.transformations[store.backbone(table.backbone).slug][table.transformations[t]]
    return {"definition": made.hash, **{name: getattr(store.settings, name) for name in PIXELS}}


def _contents(table: EmbeddingTable, n_B: NDArray[np.int64]) -> list[str | None]:
    """Content hashes of images, None if unknown."""
    return [None] * len(n_B) if table.content_N2 is None else [text or None for text in hex_of(table.content_N2[n_B])]


def _columns(
    store: EmbeddingStore, table: EmbeddingTable, t: int, n_B: NDArray[np.int64], dtype: DTypeLike = np.float32
) -> Table:
    """Columns of one transformation of some images; embeddings in float32, which every reader of Parquet has.

    Images without a real variant have no row.
    """
    n_B = table.present(t, n_B)
    label_B = table.label_N[n_B].tolist()
    x_BD = table.take(t, n_B).astype(dtype)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x_BD.ravel()), x_BD.shape[1])
    same = {"transformation": table.transformations[t], "kind": table.kind[t], "role": table.roles[t]}
    same |= _pixels(store, table, t)
    return {
        "key": [table.keys[n] for n in n_B],
        "label": pa.array([table.class_names[label] if label >= 0 else None for label in label_B], pa.string()),
        "split": [SPLITS[code] for code in table.split_N[n_B]],
        "content_hash": pa.array(_contents(table, n_B), pa.string()),
        **{name: [value] * len(n_B) for name, value in same.items()},
        "distinct": pa.array(table.distinct_TN[t, n_B]),
        "embedding": embedding,
    }


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write a Parquet file with one row group per table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(tables)
    # the low bytes of numbers that were float16 are zero: split by byte they take no space
    options = {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": _floats(first.schema)}
    with files.replacing(path) as file, pq.ParquetWriter(file, first.schema, **options) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _floats(schema: pa.Schema) -> list[str]:
    """Path of the numbers in the column ``embedding``, as Parquet names it."""
    kind, path = schema.field("embedding").type, "embedding"
    while not pa.types.is_floating(kind):
        kind, path = kind.value_type, f"{path}.list.element"
    return [path]


def _parquet(store: EmbeddingStore, entry: BackboneEntry, table: EmbeddingTable) -> Iterator[_Part]:
    def write(shard: int, n_B: NDArray[np.int64], out: Path) -> None:
        made = (pa.table(_columns(store, table, t, n_B)) for t in range(len(table.transformations)))
        _write(out / entry.slug / f"{shard:05d}.parquet", made)

    return _by_shard(store, entry, table, write)


def _huggingface(store: EmbeddingStore, entry: BackboneEntry, table: EmbeddingTable) -> Iterator[_Part]:
    schema = _features(table).arrow_schema

    def write(shard: int, n_B: NDArray[np.int64], out: Path) -> None:
        for code, split in enumerate(SPLITS):
            if len(own_B := n_B[table.split_N[n_B] == code]):
                made = (_hub_rows(store, table, t, own_B, schema) for t in range(len(table.transformations)))
                _write(out / entry.slug / f"{_HUB_SPLITS[split]}-{shard:05d}.parquet", made)

    return _by_shard(store, entry, table, write)


def _hub_rows(
    store: EmbeddingStore, table: EmbeddingTable, t: int, n_B: NDArray[np.int64], schema: pa.Schema
) -> pa.Table:
    columns = _columns(store, table, t, n_B)
    if table.class_names:
        label_B = table.label_N[n_B]
        columns["label"] = pa.array(label_B, mask=label_B < 0)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


_KINDS = {int: "int64", float: "float64", str: "string"}


def _features(table: EmbeddingTable) -> Any:  # noqa: ANN401 - `datasets` is optional
    """Types of the columns for `datasets`. Raises MissingError if it is not installed."""
    datasets = optional("datasets", "huggingface")
    text = datasets.Value("string")
    return datasets.Features(
        {
            "key": text,
            "label": datasets.ClassLabel(names=list(table.class_names)) if table.class_names else text,
            "transformation": text,
            "kind": text,
            "role": text,
            "distinct": datasets.Value("bool"),
            "content_hash": text,
            "definition": text,
            **{name: datasets.Value(_KINDS[kind]) for name, kind in PIXELS.items()},
            "embedding": datasets.List(datasets.Value("float32"), length=table.width),
        }
    )


def _lance(store: EmbeddingStore, entry: BackboneEntry, table: EmbeddingTable) -> Iterator[_Part]:
    """Fragments of a Lance dataset. Raises MissingError if Lance is not installed."""
    write_fragments = optional("lance.fragment", "lance").write_fragments
    schema = _schema(store, table)

    def write(shard: int, n_B: NDArray[np.int64], out: Path) -> None:
        folder = out / f"{entry.slug}.lance"
        made = (_stored(store, table, t, n_B).to_batches() for t in range(len(table.transformations)))
        rows = pa.RecordBatchReader.from_batches(schema, itertools.chain.from_iterable(made))
        fragments = [fragment.to_json() for fragment in write_fragments(rows, str(folder), schema=schema)]
        note = folder / _FRAGMENTS / f"{shard:05d}.json"
        note.parent.mkdir(exist_ok=True)
        write_durably(note, json.dumps(fragments).encode())

    return _by_shard(store, entry, table, write)


def _stored(store: EmbeddingStore, table: EmbeddingTable, t: int, n_B: NDArray[np.int64]) -> pa.Table:
    return pa.table(_columns(store, table, t, n_B, table.x_TND.dtype))


def _schema(store: EmbeddingStore, table: EmbeddingTable) -> pa.Schema:
    return _stored(store, table, 0, np.array([0])).schema


def _commit(store: EmbeddingStore, folder: Path, table: EmbeddingTable) -> None:
    """Make the fragments of all shards the latest version of a Lance dataset, unless they are already."""
    import lance

    notes = [path.read_text() for path in sorted((folder / _FRAGMENTS).glob("*.json"))]
    digest, committed = hashlib.sha256("".join(notes).encode()).hexdigest(), folder / _FRAGMENTS / "committed"
    if committed.is_file() and committed.read_text() == digest:
        return
    fragments = [lance.FragmentMetadata.from_json(json.dumps(each)) for note in notes for each in json.loads(note)]
    data = lance.LanceDataset.commit(str(folder), lance.LanceOperation.Overwrite(_schema(store, table), fragments))
    # earlier versions refer to files that are gone, and an interrupted export leaves files without a version
    data.cleanup_old_versions(timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
    write_durably(committed, digest.encode())


def _card(
    entries: Mapping[str, BackboneEntry], tables: Mapping[str, EmbeddingTable], parts: Mapping[str, Mapping[str, Any]]
) -> str:
    """README of a Hugging Face dataset: a configuration per backbone."""
    lines = ["---", "configs:"]
    for entry in entries.values():
        made = [file for part in parts.values() for file in part["files"] if file.startswith(f"{entry.slug}/")]
        lines += [f"- config_name: {json.dumps(entry.slug)}", "  data_files:"]
        for split in _HUB_SPLITS.values():
            if any(Path(file).name.startswith(f"{split}-") for file in made):
                lines += [f"  - split: {split}", f"    path: {json.dumps(f'{entry.slug}/{split}-*.parquet')}"]
    lines += ["---", "", _TITLE, ""]
    lines += ["| configuration | backbone | images | transformations | width |", "|---|---|---|---|---|"]
    for name, table in tables.items():
        shape = (len(table.keys), len(table.transformations), entries[name].dim)
        lines.append(f"| `{entries[name].slug}` | `{name}` | {' | '.join(map(str, shape))} |")
    return "\n".join(lines) + "\n"


def _numpy(store: EmbeddingStore, entry: BackboneEntry, table: EmbeddingTable) -> Iterator[_Part]:
    def write(file: IO[bytes], t: int) -> None:
        dtype = table.x_TND.dtype
        header = {"shape": (len(table.keys), entry.dim), "fortran_order": False, "descr": dtype.str}
        np.lib.format.write_array_header_1_0(file, header)
        for _, n_B in _shards(store, table):  # consecutive images
            x_BD = table.take(t, n_B)
            x_BD[~np.isin(n_B, table.present(t, n_B))] = np.nan  # no real variant
            file.write(np.ascontiguousarray(x_BD, dtype).data.cast("B"))

    return _by_transformation(store, entry, table, ".npy", write)


def _faiss(store: EmbeddingStore, entry: BackboneEntry, table: EmbeddingTable) -> Iterator[_Part]:
    faiss: Any = importlib.import_module("faiss")  # its stubs lack names

    def write(file: IO[bytes], t: int) -> None:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(entry.dim))
        for _, every_B in _shards(store, table):
            n_B = table.present(t, every_B)
            x_BD = table.take(t, n_B).astype(np.float32)
            faiss.normalize_L2(x_BD)
            index.add_with_ids(x_BD, n_B)
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))

    return _by_transformation(store, entry, table, ".faiss", write)


def _by_transformation(
    store: EmbeddingStore,
    entry: BackboneEntry,
    table: EmbeddingTable,
    suffix: str,
    write_one: Callable[[IO[bytes], int], None],
) -> Iterator[_Part]:
    """A part for each transformation, whose file ``write_one`` makes, and one that describes images and them."""
    number_S, every_N = np.array([shard for shard, _ in _shards(store, table)]), np.arange(len(table.keys))

    def describe(out: Path) -> None:
        folder = out / entry.slug
        folder.mkdir(parents=True, exist_ok=True)
        images = [
            (key, table.class_names[label] if label >= 0 else "", SPLITS[split], content or "")
            for key, label, split, content in zip(
                *(table.keys, table.label_N.tolist(), table.split_N.tolist(), _contents(table, every_N)), strict=True
            )
        ]
        _csv(folder / "images.csv", [("key", "label", "split", "content_hash"), *images])
        pixels = [_pixels(store, table, t) for t in range(len(table.transformations))]
        made = [
            (name, kind, role, *map(str, each.values()))
            for name, kind, role, each in zip(table.transformations, table.kind, table.roles, pixels, strict=True)
        ]
        _csv(folder / "transformations.csv", [("transformation", "kind", "role", *pixels[0]), *made])
        with files.replacing(folder / "distinct.npy") as file:
            np.save(file, table.distinct_TN)

    yield _Part(f"{entry.slug}/images", _digest(table, every_N), describe)
    hash_of_rows = hashlib.sha256(json.dumps(table.keys).encode()).hexdigest()[:16]
    for t, name in enumerate(table.transformations):

        def write(out: Path, t: int = t, name: str = name) -> None:
            folder = out / entry.slug
            folder.mkdir(parents=True, exist_ok=True)
            with files.replacing(folder / f"{name}{suffix}") as file:
                write_one(file, t)

        embeddings = embeddings_digest(store, entry.slug, [name], number_S)
        yield _Part(f"{entry.slug}/{name}", f"{embeddings}-{hash_of_rows}", write)


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_durably(path, text.getvalue().encode())
