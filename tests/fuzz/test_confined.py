"""Files made by others, spoilt and malicious: an answer or an error that names them, and nothing else happens.

Each is read by a process of its own with 1 GiB more than its size explains, beside a watched folder, which must
stay as it is. The number of inputs and of refusals is printed (``pytest -rP``).
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save
from tests.engine.store.test_verify import finished
from tests.fuzz.confined import SPARE
from tests.fuzz.mutations import BYTE_EDITS, edited
from tests.fuzz.test_documents import ROWS, SCHEMA, results, whole

from substyle.engine.stages.stamp import checksum
from substyle.engine.store.files import digest
from substyle.engine.store.manifest import FOLDER as MANIFEST
from substyle.pipelines import limits

FEW, MANY = 2, 75  # spoilt inputs of each kind
CANARY = b"nobody reads, changes or deletes this"


@dataclass(frozen=True)
class Confined:
    """The process of `confined`, and the folder that it must leave alone."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    def run(self, arguments: Sequence[str | Path], inputs: Path) -> tuple[int, str, list[str]]:
        """Exit code, output, and what was done that must not be: with files outside, or with too much memory."""
        output = self.folder / "output.txt"
        explained = limits.decoded(_size(inputs))
        request = {
            "arguments": list(map(str, arguments)),
            "explained": explained,
            "watched": str(self.outside),
            "output": str(output),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())["code"]
        written = Path(f"{output}.report")
        report = json.loads(written.read_text()) if written.is_file() else {"touched": [], "memory": 0}
        written.unlink(missing_ok=True)
        # where memory runs out, the limit is met; what runs into it by steps comes near
        most = explained + SPARE * 3 // 4
        excess = [f"{report['memory']:,} bytes of memory, more than {most:,}"] if report["memory"] > most else []
        return code, output.read_text(errors="replace"), [*report["touched"], *excess]


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(each) for each in path.iterdir())


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    folder = tmp_path_factory.mktemp("confined")
    outside = folder / "outside"
    outside.mkdir()
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("confined.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Confined(process, folder)
        assert process.stdin is not None
        process.stdin.close()


def _fill(outside: Path) -> None:
    shutil.rmtree(outside)
    (outside / "inner").mkdir(parents=True)
    (outside / "canary.txt").write_bytes(CANARY)
    (outside / "inner" / "canary.txt").write_bytes(CANARY)
    (outside / "canary.png").write_bytes(png(9))
    (outside / "canary.json").write_text("{}")


def _state(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (content, status.st_mtime_ns, status.st_mode)
    return found


MEMORY = ("more memory", "of memory", "MemoryError", "nable to allocate", "t allocate", "alloc of size", "bad_alloc")


def spoilt(data: bytes, rng: random.Random) -> bytes:
    edits = []
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(len(data), 1))
        edits.append((rng.choice(BYTE_EDITS), at, rng.randrange(256), rng.randint(1, 40)))
    return edited(data, edits)


def spoil(path: Path, rng: random.Random) -> None:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    file = rng.choice(files)
    data = spoilt(file.read_bytes(), rng)
    name = file.name
    if "-" in file.stem and len(file.stem.rpartition("-")[2]) == 16:  # named by its content: the spoilt one is, too
        name = f"{file.stem.rpartition('-')[0]}-{digest(data)}{file.suffix}"
        file.unlink()
    file.with_name(name).write_bytes(data)


# --- inputs as they should be -----------------------------------------------------------------------------------------


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(keys: Sequence[str] = ("a", "b", "c", "d")) -> pa.Table:
    return pa.table(
        {
            "image": pa.array([png(i) for i in range(len(keys))], pa.binary()),
            "label": ["cat", "dog"] * (len(keys) // 2),
            "id": list(keys),
        }
    )


def make_npz(path: Path) -> None:
    np.savez_compressed(path, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))


def make_arrow(path: Path) -> None:
    with pa.ipc.new_stream(path, table().schema) as file:
        file.write_table(table(), max_chunksize=2)


def make_tar(path: Path, names: Sequence[str] = ("a", "b"), link: tuple[bytes, str] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        if link is not None:
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = link
            tar.addfile(info)


def make_csv(path: Path, names: Sequence[str] = ("p.png",)) -> None:
    path.with_name("p.png").write_bytes(png())
    path.write_text("path,label\n" + "".join(f"{name},cat\n" for name in names))


def make_export(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), path)


def make_run(path: Path) -> None:
    for place, name in ((path, "a"), (path.with_name("other"), "b")):
        place.mkdir()
        made = results(name)
        (place / "results.json").write_text(json.dumps(made | {"checksum": checksum(made)}))


def make_onnx(path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 8, 8), np.zeros(768, np.float32).tobytes(), raw=True)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[8, 8])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 1, 1])
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    path.with_suffix(".json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')


STUDY = 'name = "fuzz"\nimages = "photographs"\nsuite = "suite.toml"\nseed = 1\nbackbones = ["control:pixels"]\n'
SUITE = 'transformations = ["identity", { name = "soft", of = "gaussian_blur", parameters = { sigma = [1.0] } }]\n'


def make_study(path: Path) -> None:
    (path.parent / "photographs").mkdir(exist_ok=True)
    (path.parent / "photographs" / "a.png").write_bytes(png())
    (path.parent / "suite.toml").write_text(SUITE)
    path.write_text(STUDY)


EXPORT = "export {input} --to parquet --out {folder}/exported"
TENSORS = {"w": torch.zeros(8, 4), "b": torch.ones(8)}


# name of a file, how it is made, and the commands that read it
KINDS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "npz": ("x.npz", make_npz, ["photographs {input}"]),
    "parquet": ("x.parquet", lambda path: pq.write_table(table(), path), ["photographs {input}"]),
    "arrow": ("x.arrow", make_arrow, ["photographs {input}"]),
    "tar": ("x.tar", make_tar, ["photographs {input}"]),
    "csv": ("x.csv", make_csv, ["photographs {input}"]),
    "folder": ("x", lambda path: linked(path, path), ["photographs {input}"]),
    "store": ("x.zarr", finished, ["verify {input} --quiet", "info {input}", f"{EXPORT} --quiet", "mend {input}"]),
    "export": ("x.parquet", make_export, ["import {input} --store {folder}/new.zarr --backbone net"]),
    "run": ("x-run", make_run, ["compare {input} {folder}/other --out {folder}/compared", "share card {input}"]),
    "probe": ("x.safetensors", lambda path: path.write_bytes(whole()), ["probe {input}"]),
    "study": ("x.toml", make_study, ["plan {input} --photographs 100"]),
    "suite": ("x.toml", lambda path: path.write_text(SUITE), ["transforms --suite {input}"]),
    "onnx": ("x.onnx", make_onnx, ["onnx {input}"]),
    "pt": ("x.pt", lambda path: torch.save(TENSORS, path), ["checkpoint {input}"]),
    "safetensors": ("x.safetensors", lambda path: path.write_bytes(save(TENSORS)), ["checkpoint {input}"]),
    "weights": ("x.npz", lambda path: np.savez_compressed(path, w=np.zeros((8, 4))), ["checkpoint {input}"]),
}


# --- malicious inputs -------------------------------------------------------------------------------------------------


def zeros_npz(size: int | None = None, **arrays: tuple[tuple[int, ...], str]) -> Callable[[Path, Path], None]:
    """An archive of arrays of zeros, with all of their bytes or so many."""

    def make(path: Path, _: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (shape, dtype) in arrays.items():
                count = size or math.prod(shape)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": dtype, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for first in range(0, count, 1 << 24):
                        file.write(bytes(min(1 << 24, count - first)))

    return make


def repeated(text: str | bytes, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def wide_column(name: str) -> Callable[[Path, Path], None]:
    """A column of 30 GB, if written out."""

    def make(path: Path, _: Path) -> None:
        rng = np.random.default_rng(0)
        columns = {"image": [rng.bytes(60) for _ in range(60_000)], "label": ["a"] * 60_000}
        pq.write_table(pa.table({**columns, name: repeated("x" * 500_000, 60_000)}), path, store_schema=False)

    return make


def parquet_images(path: Path, _: Path) -> None:
    large = np.random.default_rng(0).bytes(4 << 20)
    made = pa.table({"image": repeated(large, 1024), "label": ["a"] * 1024})
    pq.write_table(made, path, dictionary_pagesize_limit=1 << 30, store_schema=False)


def parquet_zeros(path: Path, _: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([bytes(1 << 29)] * 3), "label": ["a"] * 3}), path, compression="zstd",
        use_dictionary=False,
    )  # fmt: skip


def parquet_outside(path: Path, outside: Path) -> None:
    pq.write_table(table(("../outside/canary.txt", str(outside / "canary.png"), "..", "/")), path)


def arrow_labels(path: Path, _: Path) -> None:
    made = pa.table({"image": pa.array([png()] * 2500), "label": repeated("x" * 3_000_000, 2500)})
    with pa.ipc.new_stream(path, made.schema) as file:
        file.write_table(made)


def arrow_compressed(path: Path, _: Path) -> None:
    made = pa.table({"image": pa.array([png()] * 2), "label": ["x" * 700_000_000] * 2})
    with pa.ipc.new_file(path, made.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(made)


def tar_outside(path: Path, outside: Path) -> None:
    make_tar(path, ("../outside/canary", str(outside / "canary"), "a/../../outside/x"))


def tar_link(kind: bytes) -> Callable[[Path, Path], None]:
    return lambda path, outside: make_tar(path, ("a",), (kind, str(outside / "canary.png")))


def csv_outside(path: Path, outside: Path) -> None:
    (path.parent / "link.png").symlink_to(outside / "canary.png")
    make_csv(path, ("p.png", "../outside/canary.png", str(outside / "canary.png"), "link.png", "/etc/passwd"))


def linked(path: Path, outside: Path) -> None:
    """A folder of photographs with links that leave it."""
    path.mkdir()
    (path / "a.png").write_bytes(png())
    (path / "b.png").symlink_to(outside / "canary.png")
    (path / "c").symlink_to(outside, target_is_directory=True)


def manifest_of(rows: int, text: str) -> Callable[[Path, Path], None]:
    """A store whose manifest has so many equal rows."""

    def make(store: Path, _: Path) -> None:
        finished(store)
        for segment in (store / MANIFEST).glob("*.parquet"):
            segment.unlink()
        columns = {
            "row": pa.array(np.arange(rows)),
            "key": repeated(text, rows),
            "label": pa.array(np.zeros(rows, np.int32)),
            "class_name": repeated("cat", rows),
            "split": repeated("train", rows),
            "given": pa.nulls(rows, pa.string()),
        }
        buffer = io.BytesIO()
        options = {"column_encoding": {"row": "DELTA_BINARY_PACKED"}, "use_dictionary": ["key", "class_name", "split"]}
        pq.write_table(pa.table(columns), buffer, compression="zstd", store_schema=False, **options)
        (store / MANIFEST / f"segment-00000-{digest(buffer.getvalue())}.parquet").write_bytes(buffer.getvalue())

    return make


def damage_outside(path: Path, outside: Path) -> None:
    finished(path)
    note = {"chunks": [], "files": ["../outside/canary.txt"], "metadata": ["../outside", str(outside)]}
    (path / "damage.json").write_text(json.dumps(note))


def linked_shard(path: Path, outside: Path) -> None:
    finished(path)
    shard = min(path.glob("embeddings/*/*/c.0.0.0"))
    shard.unlink()
    shard.symlink_to(outside / "canary.txt")


def sparse(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)


def sparse_run(path: Path, outside: Path) -> None:
    path.mkdir()
    sparse(path / "results.json", outside)


def linked_run(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "results.json").symlink_to(outside / "canary.json")


def study_outside(path: Path, outside: Path) -> None:
    make_study(path)
    path.write_text(
        STUDY.replace('"suite.toml"', f'"{outside}/canary.json.toml"').replace('"photographs"', '"../outside"')
    )


def external_onnx(location: str) -> Callable[[Path, Path], None]:
    def make(path: Path, outside: Path) -> None:
        make_onnx(path)
        model = onnx.load(path)
        (tensor,) = model.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location.format(outside=outside)), ("offset", "0"), ("length", "3072")):
            tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())

    return make


def huge_onnx(path: Path, _: Path) -> None:
    make_onnx(path)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())


def deflated_checkpoint(path: Path, _: Path) -> None:
    """A checkpoint as torch.save writes it, with its storage compressed."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(400_000_000, dtype=torch.int8)}, buffer)
    with zipfile.ZipFile(buffer) as whole_file, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole_file.namelist():
            for part in range(5 if "data/0" in name else 1):
                packed.writestr(name if not part else f"{name}-{part}", whole_file.read(name))


def pickled(path: Path, _: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    path.write_bytes(pickle.dumps({"w": Evil()}))


MALICIOUS: list[tuple[str, str, Callable[[Path, Path], None]]] = [
    ("npz", "pictures of one pixel", zeros_npz(images=((20_000_000, 1, 1), "|u1"))),
    ("npz", "labels", zeros_npz(images=((4, 8, 8), "|u1"), labels=((4, 300_000_000), "|i1"))),
    ("npz", "sparse", sparse),
    ("parquet", "labels", wide_column("label")),
    ("parquet", "splits", wide_column("split")),
    ("parquet", "images", parquet_images),
    ("parquet", "zeros", parquet_zeros),
    ("parquet", "ids outside", parquet_outside),
    ("arrow", "labels", arrow_labels),
    ("arrow", "compressed", arrow_compressed),
    ("tar", "names", tar_outside),
    ("tar", "link", tar_link(tarfile.SYMTYPE)),
    ("tar", "hard link", tar_link(tarfile.LNKTYPE)),
    ("csv", "names", csv_outside),
    ("csv", "sparse", sparse),
    ("folder", "links", linked),
    ("store", "long manifest", manifest_of(8_000_000, "a")),
    ("store", "wide manifest", manifest_of(60_000, "x" * 400_000)),
    ("store", "damage outside", damage_outside),
    ("store", "linked shard", linked_shard),
    ("run", "sparse", sparse_run),
    ("run", "linked results", linked_run),
    ("study", "sparse", sparse),
    ("study", "names", study_outside),
    ("suite", "sparse", sparse),
    ("onnx", "external data above", external_onnx("../outside/canary.txt")),
    ("onnx", "external data elsewhere", external_onnx("{outside}/canary.txt")),
    ("onnx", "shape", huge_onnx),
    ("weights", "shape", zeros_npz(64, w=((1 << 40,), "<f4"))),
    ("weights", "zeros", zeros_npz(w=((1_200_000_000,), "|i1"))),
    ("pt", "zeros", deflated_checkpoint),
    ("pt", "code", pickled),
    ("probe", "sparse", sparse),
]


BACKBONES = ("onnx", "pt", "safetensors", "weights")  # whose libraries take seconds to import
LARGE = (
    "npz: labels",
    "parquet: zeros",
    "parquet: images",
    "arrow: compressed",
    "store: long manifest",
)  # take seconds


# --- what must hold ---------------------------------------------------------------------------------------------------


def ends_well(confined: Confined, command: str, path: Path, *, may_read: bool = False) -> bool:
    """Read an input; returns whether it was refused.

    Args:
        may_read: the input is a study or such, whose author may name files that are read.
    """
    _fill(confined.outside)
    before = _state(confined.outside)
    arguments = [word.format(input=path, folder=path.parent) for word in command.split()]
    code, output, touched = confined.run(arguments, path.parent)
    said = f"{arguments}: exit code {code}\n{output[-3000:]}"
    assert _state(confined.outside) == before, said
    assert touched == [] or may_read, f"{touched}\n{said}"
    assert code in (0, 1, 2, 3), said
    assert "Traceback" not in output, said
    assert not any(word in output for word in MEMORY), f"memory ran out\n{said}"
    errors = [line for line in output.splitlines() if line.startswith("substyle: ")]
    # the exit code of verify says what it found, too
    assert len(errors) == (code in (1, 2)) or (arguments[0] == "verify" and code == 1 and not errors), said
    if errors:
        assert len(errors[0]) < 4000, said
        inside = [each.name for each in path.rglob("*")] if path.is_dir() and not path.is_symlink() else []
        # a value is named by its field
        named = any(name in errors[0] for name in (path.name, *inside))
        assert named or ": got " in errors[0] or arguments[0] == "plan", said
    return bool(errors)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *((kind, FEW) for kind in KINDS if kind not in BACKBONES),
        *(pytest.param(kind, MANY, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_spoilt_inputs(confined: Confined, tmp_path: Path, kind: str, count: int) -> None:
    (name, make, commands), rng = KINDS[kind], random.Random(f"{kind} {os.environ.get('SUBSTYLE_FUZZ_SEED', '0')}")
    sound = tmp_path / "sound"
    sound.mkdir()
    make(sound / name)
    refused = inputs = 0
    for number in range(count + 1):
        folder = confined.folder / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder, symlinks=True)
        if number:
            spoil(folder / name, rng)
        for command in commands:
            was_refused = ends_well(confined, command, folder / name)
            assert number or not was_refused, "a sound input"
            refused += was_refused
            inputs += 1
    print(f"{kind}: {inputs} spoilt inputs, {refused} refused")


@pytest.mark.parametrize(
    ("kind", "what", "make"),
    [
        pytest.param(*row, id=f"{row[0]}: {row[1]}", marks=pytest.mark.slow if slow else [])
        for row in MALICIOUS
        for slow in [row[0] in BACKBONES or f"{row[0]}: {row[1]}" in LARGE]
    ],
)
def test_malicious_inputs(
    confined: Confined, tmp_path: Path, kind: str, what: str, make: Callable[[Path, Path], None]
) -> None:
    name, _, commands = KINDS[kind]
    refused = 0
    folder = confined.folder / "malicious"
    for command in commands:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder / name, confined.outside)
        refused += ends_well(confined, command, folder / name, may_read=kind == "study")
    print(f"{kind}, {what}: {len(commands)} inputs, {refused} refused")
