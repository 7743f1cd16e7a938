"""Photographs, a study and the command line, compared with fresh runs on the same inputs."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import jpeg, photograph, setting
from tests.toml import toml

from substyle.engine.backbones import registry
from substyle.engine.cli import main
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_file

SUITE = "identity,grayscale,jpeg"
STUDY: dict[str, Any] = {
    "name": "small",
    "suite": SUITE,
    "canvas": 64,
    "backbones": ["control:pixels"],
    "gallery": 1,
    "bootstrap": 100,
    "threads": 1,
    "embed": {"batch": 8, "shard_rows": 8},
    "probes": {
        "tasks": ["transformation", "class"],
        "heads": ["linear"],
        "Cs": [1e-2],
        "rotate": "none",
        "redraws": 0,
        "resamples": 2,
        "expert": {"tolerance": 1e-2, "doublings": 1, "passes": 15, "equal_width": 0},
    },
    "analysis": {"ks": [1, 3]},
}
COUNTS = {"train": 8, "val": 4, "test": 6}
CLASSES = ("even", "odd")
STAGES: tuple[tuple[str, ...], ...] = (("stage", "probes"), ("stage", "analysis,similarity"), ("report",))
Row = tuple[str, str]


class Scene:
    """A folder with photographs, a study and results, and `substyle` in it.

    Attributes:
        root: the folder; photos: photographs in it; study: what the study file says, written before each run.
    """

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.photos, self.capsys = root, root / "photos", capsys
        self.study: dict[str, Any] = copy.deepcopy(STUDY)
        self._number = itertools.count()

    @property
    def store(self) -> Path:
        """The store of a run without other folders."""
        return self.root / "out" / "store.zarr"

    # --- commands -----------------------------------------------------------------------------------------------------

    def command(self, *words: object) -> tuple[int, dict[str, Any]]:
        """Run a command with --json. Returns its exit code and JSON object."""
        self.capsys.readouterr()
        try:
            code = main([*map(str, words), "--json", "--quiet"])
        except SystemExit as stop:  # arguments that do not parse
            code = int(str(stop.code))
        out = self.capsys.readouterr().out
        assert out.count("\n") == 1, out
        answer = json.loads(out)
        assert isinstance(answer, dict)
        return code, answer

    def ok(self, *words: object) -> dict[str, Any]:
        code, answer = self.command(*words)
        assert code == 0, answer
        return answer

    def refused(self, *words: object, kind: str, field: str | None = None, code: int | None = None) -> str:
        """Run a command that must fail with an error of a kind and a field. Returns the message."""
        found, answer = self.command(*words)
        assert found != 0, f"shown with exit code 0: {json.dumps(answer)[:400]}"
        error = answer["error"]
        assert (error["type"], error["field"]) == (kind, field), error
        usual = 2 if kind in ("ConfigError", "MissingError", "PhotographsError") else 1
        assert found == (usual if code is None else code)
        message: str = error["message"]
        return message

    def study_file(self) -> Path:
        path = self.root / "study.toml"
        path.write_bytes(toml(self.study))
        return path

    def asked(self, out: Path | str = "out", images: Path | None = None, *more: object) -> list[object]:
        """Arguments of `substyle run` on the study."""
        where = ["--images", images or self.photos, "--out", self.root / out]
        return ["run", self.study_file(), *where, *more]

    def run(self, out: Path | str = "out", images: Path | None = None, *more: object) -> dict[str, Any]:
        """Run the study. Returns results.json."""
        answer = self.ok(*self.asked(out, images, *more))
        return read(answer["results"])

    def run_refused(
        self,
        field: str | None = "images",
        kind: str = "PhotographsError",
        out: Path | str = "out",
        images: Path | None = None,
        more: tuple[object, ...] = (),
    ) -> None:
        """Run the study, which must fail and leave results unchanged."""
        results = self.root / out / "results.json"
        before = results.read_bytes() if results.is_file() else None
        self.refused(*self.asked(out, images, *more), kind=kind, field=field)
        assert not results.is_file() or results.read_bytes() == before

    def fresh(self, images: Path | None = None, *more: object) -> dict[str, Any]:
        return self.run(f"fresh-{next(self._number)}", images, *more)

    def fresh_store(self, images: Path | None = None) -> Path:
        store = f"fresh-{next(self._number)}.zarr"
        limit = ("--set", f"limit={self.study['limit']}") if "limit" in self.study else ()
        self.embed(images or self.photos, *limit, store=store)
        return self.root / store

    def embed(self, images: Path | None, *more: object, store: str = "s.zarr", backbone: str = "control:pixels") -> Any:  # noqa: ANN401
        return self.ok(*self.embedding(images, *more, store=store, backbone=backbone))

    def embedding(
        self, images: Path | None, *more: object, store: str = "s.zarr", backbone: str = "control:pixels"
    ) -> list[object]:
        path = self.root / store
        new = (
            [] if (path / "substyle.json").exists() else ["--suite", SUITE, *setting("canvas=64", "embed.shard_rows=8")]
        )
        new = new[2:] if "--suite" in more else new
        words: list[object] = ["embed", *([images] if images else []), "--store", path, "--backbone", backbone]
        return [*words, *new, *setting("embed.batch=8", "threads=1"), *more]

    def stages(self, store: Path, *more: object) -> dict[str, Any]:
        """probe, analyze and report, with the study's settings. Returns results.json."""
        study = self.study_file()
        answers = [self.ok(*stage, store, "--study", study, *more) for stage in STAGES]
        return read(self.root / answers[-1]["results"])

    def refused_stages(self, store: Path, *, kind: str, field: str | None = None) -> None:
        """probe, analyze and report, with the study's settings, which must fail."""
        for stage in STAGES:
            self.refused(*stage, store, "--study", self.study_file(), kind=kind, field=field)

    # --- photographs --------------------------------------------------------------------------------------------------

    def add(self, number: int, split: str = "train", folder: Path | None = None, seed: int | None = None) -> Path:
        """A photograph whose class depends on its number."""
        path = (folder or self.photos) / split / CLASSES[number % 2] / f"{number:02d}.jpg"
        return write(path, jpeg(photograph(number if seed is None else seed)))

    def add_all(self, folder: Path | None = None, seed: int = 0) -> Path:
        """18 photographs in split and class folders; the seed changes their bytes but not their keys."""
        numbers = itertools.count()
        for split, count in COUNTS.items():
            for number in itertools.islice(numbers, count):
                self.add(number, split, folder, seed=number + seed)
        return folder or self.photos

    def one(self, pattern: str = "train/*/*.jpg", at: int = 0, folder: Path | None = None) -> Path:
        """An existing photograph."""
        return sorted((folder or self.photos).glob(pattern))[at]

    def key(self, path: Path) -> str:
        return path.relative_to(self.photos).as_posix()

    def new_process(self) -> None:
        """Undo registrations of plug-ins, like a new process."""
        load_file.cache_clear()
        for name, made in list(base.REGISTRY.items()):
            if made.name.startswith("mine"):
                del base.REGISTRY[name]
        registry.FAMILIES.pop("mine", None)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def other_bytes(path: Path, seed: int = 900) -> bytes:
    """Another photograph as a JPEG of exactly the same size, padded with a comment."""
    size = path.stat().st_size
    for quality in range(90, 0, -1):
        data = jpeg(photograph(seed), quality)
        room = size - len(data) - 4
        if room >= 0:
            return data[:2] + b"\xff\xfe" + (room + 2).to_bytes(2, "big") + bytes(room) + data[2:]
    raise AssertionError("no such quality")


def edit(scene: Scene) -> None:
    """Change the bytes of a photograph, but neither size nor time."""
    path = scene.one()
    before = path.stat()
    data = other_bytes(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns


_OF_THE_RUN = ("created", "stamps", "throughput", "environment", "identity", "settings", "checksum")


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json without what differs between runs on the same inputs: times, stamps, UUID of the store."""
    kept = {k: v for k, v in results.items() if k not in _OF_THE_RUN}
    kept["photographs"] = results["identity"]["photographs"]
    # where photographs are not read, a limit of all of them is stated as their number
    kept["study"] = {**results["study"], "limit": results["study"]["limit"] or results["images"]}
    kept["backbones"] = {}
    for name, backbone in results["backbones"].items():
        kept["backbones"][name] = {k: v for k, v in backbone.items() if k not in ("cost", "gate")}
    return kept


def read(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def rows(store: Path, backbone: str = "control:pixels") -> dict[Row, tuple[object, ...]]:
    """Class, split and embedding of every photograph in every transformation, independent of order."""
    table = load_table(EmbeddingStore.open(store), backbone)
    x_TND = np.asarray(table.x_TND)
    found: dict[Row, tuple[object, ...]] = {}
    for n, key in enumerate(table.keys):
        label = int(table.label_N[n])
        told = (table.class_names[label] if label >= 0 else None, int(table.split_N[n]))
        for t, name in enumerate(table.transformations):
            found[key, name] = (*told, x_TND[t, n].tobytes())
    return found
