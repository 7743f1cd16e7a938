"""What decides the weights of a backbone, found without loading them: hashes of files, versions, seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from substyle.engine.backbones import cache
from substyle.engine.backbones.packages import SHIPPED
from substyle.engine.backbones.tensor_bundle import files_of, prefix_of

Facts = dict[str, Any]


def checkpoint(path: Path | None) -> Facts | None:
    """Of weights in a local file, or in the files of a folder or a TensorFlow checkpoint.

    None without any: only its client knows what a hub gives now.
    """
    if path is None:
        return None
    if path.is_file() and path.suffix != ".index":
        return {"weights": cache.file_hash(path)}
    prefix = prefix_of(path)
    if prefix is not None:
        files = files_of(prefix)
    else:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    return {"weights": {each.name: cache.file_hash(each) for each in files}} if files else None


def onnx_file(path_text: str) -> Facts | None:
    """Of an ONNX file and the JSON file beside it. None where tensors may lie in further files."""
    path = Path(path_text).expanduser()
    beside = path.with_suffix(".json")
    if not path.is_file() or not beside.is_file():
        return None
    if b"location" in path.read_bytes():  # the key by which a tensor names the file it lies in
        return None
    return {"weights": cache.file_hash(path), "preprocessing": cache.file_hash(beside)}


def package(model: str) -> Facts | None:
    """Of weights that a Python package ships: its version, and its file of weights or, where its code says, all."""
    row = SHIPPED.get(model)
    folder = row.folder() if row is not None else None
    if row is None or folder is None:
        return None
    files = sorted(folder.rglob("*")) if row.file is None else [folder / row.file]
    files = [path for path in files if path.is_file() and path.suffix != ".pyc"]
    hashes = {str(path.relative_to(folder)): cache.file_hash(path) for path in files}
    return {"weights": hashes, "package": cache.versions(row.distribution)} if files else None


def control(kind: str, seed: int, calibration: Callable[[], Facts] | None) -> Facts | None:
    """Of an untrained network: its seed, the photographs it is recalibrated on, and what computes that."""
    if not kind.startswith("random:"):
        return {"arithmetic": kind}
    if calibration is None:
        return None
    return {"seed": seed, "calibration": calibration(), "device": cache.device()}
