"""An interactive map of embeddings with thumbnails of the variants, by embedding-atlas."""

from __future__ import annotations

import io
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from substyle.engine.analysis import neighbors
from substyle.engine.analysis.projection import PROJECTIONS, project
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.stages.execution import kept
from substyle.engine.stages.pictures import current_variants
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import StaleError, note_of
from substyle.engine.stages.tables import reported_tables
from substyle.engine.store.layout import SPLITS
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError, MissingError, SubstyleError
from substyle.files import inside, scratch

NEIGHBOURS = 10
THUMBNAIL = 96  # px
_INSTALL = "install it with pip install 'substyle[explore]'"


def explore(
    store: EmbeddingStore,
    backbone: str,
    *,
    export: Path | None = None,
    results: Path | None = None,
    projection: str = "umap",
    photographs: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Serve a map of a backbone's embeddings until interrupted, or write it as a static page.

    Args:
        export: a new or empty folder for the page and its data; it works without a network from any web server.
        results: folder of `probes`; whether each saved probe is right, and how confident it is, become columns.
        projection: ``umap``, ``pacmap`` or ``tsne``, of normalised embeddings.
        photographs: number of photographs, drawn at random; each is shown in all transformations.
        seed: seed of the photographs and of the projection.

    Returns:
        ``{"backbone", "photographs", "points", "thumbnails", "page"}``.

    Raises:
        ConfigError: an unknown projection, or the folder holds files.
        MissingError: embedding-atlas or pacmap is not installed.
        StoreError: the store does not have the backbone.
    """
    if projection not in PROJECTIONS:
        raise ConfigError("--projection", projection, ", ".join(PROJECTIONS))
    for module in ("embedding_atlas", PROJECTIONS[projection]):
        if find_spec(module) is None:
            raise MissingError(module.replace("_", "-"), _INSTALL)
    if export is not None and export.exists() and (not export.is_dir() or any(export.iterdir())):
        raise ConfigError("--export", str(export), "a new or empty folder")
    table = open_table(store, backbone)
    n_M = np.sort(np.random.default_rng(seed).permutation(len(table.keys))[:photographs])
    drawn = current_variants(store, table, n_M, table.transformations)
    images = {(transformation, key): _thumbnail(pixels) for transformation, key, pixels in drawn}
    with scratch() as place:
        file, page = place / "embeddings.parquet", place / "page"
        rows = _rows(table, n_M, images, projection, seed)
        for name, column in _predictions(store, table, n_M, results).items():
            rows = rows.append_column(name, column)
        pq.write_table(rows, file)
        options = ["--x", "x", "--y", "y", "--neighbors", "neighbors"]
        options += ["--image", "variant"] if images else ["--text", "transformation"]
        # its own server answers SQL queries of any page that the browser shows, so only its static page is used;
        # -P: its imports must not be found in the current folder
        command = [sys.executable, "-P", "-m", "embedding_atlas.cli", str(file), *options]
        code = subprocess.run([*command, "--export-application", str(page)], check=False, stdout=sys.stderr).returncode
        if code:
            raise SubstyleError(f"embedding-atlas: ended with exit code {code}")
        if export is not None:
            shutil.copytree(page, export, dirs_exist_ok=True)
        else:
            _serve(page)
    made = {"photographs": len(n_M), "points": len(rows), "thumbnails": bool(images)}
    return {"backbone": backbone, **made, "page": str(export / "index.html") if export is not None else None}


def _serve(page: Path) -> None:
    """Serve until interrupted."""
    with serving(page) as address:
        print(f"{address}  (Ctrl-C ends)", flush=True)
        threading.Event().wait()


class _Page(SimpleHTTPRequestHandler):
    """Files of a folder, at an address with a secret, for requests that name this machine as their host."""

    secret, hosts = "", frozenset[str]()

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Answer 403 to other users of the machine, who do not know the secret, and to pages of other hosts."""
        start = f"/{self.secret}"
        if self.headers.get("Host") not in self.hosts or not self.path.startswith(f"{start}/"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        self.path = self.path.removeprefix(start)
        return super().send_head()

    def end_headers(self) -> None:
        """Keep the address, with the secret, from other sites."""
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback within the block. Yields the address, which holds a secret."""

    class Page(_Page):
        secret = secrets.token_urlsafe(24)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, directory=str(folder))) as server:
        Page.hosts = frozenset(f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{Page.secret}/"
        finally:
            server.shutdown()


def _rows(
    table: EmbeddingTable, n_M: NDArray[np.int64], images: dict[tuple[str, str], bytes], projection: str, seed: int
) -> pa.Table:
    """One row per transformation and photograph, transformation-major: place on the map, neighbours, labels."""
    times = len(table.transformations)
    there = [table.present(t, n_M) for t in range(times)]
    t_R, n_R = np.repeat(np.arange(times), [len(n_B) for n_B in there]), np.concatenate(there)
    x_RD = table.take(t_R, n_R).astype(np.float32)
    x_RD /= np.maximum(np.linalg.norm(x_RD, axis=1, keepdims=True), 1e-12)
    place_R2 = project(x_RD, projection, seed)
    near_Rk = neighbors.others(x_RD, min(NEIGHBOURS, len(x_RD) - 1), neighbors.search_device())
    away_Rk = 1.0 - np.einsum("rd,rkd->rk", x_RD, x_RD[near_Rk])
    label_R = table.label_N[n_R].tolist()
    columns: dict[str, list[Any] | NDArray[np.float32]] = {
        "key": [table.keys[n] for n in n_R],
        "transformation": [table.transformations[t] for t in t_R],
        "kind": [table.kind[t] for t in t_R],
        "role": [table.roles[t] for t in t_R],
        "class": [table.class_names[label] if label >= 0 else None for label in label_R],
        "split": [SPLITS[code] for code in table.split_N[n_R]],
        "x": place_R2[:, 0],
        "y": place_R2[:, 1],
        "neighbors": [{"ids": ids, "distances": d} for ids, d in zip(near_Rk.tolist(), away_Rk.tolist(), strict=True)],
    }
    if images:
        shown = [
            {"bytes": images.get((table.transformations[t], table.keys[n]))} for t, n in zip(t_R, n_R, strict=True)
        ]
        columns = {"variant": shown, **columns}
    return pa.table(columns)


def _predictions(
    store: EmbeddingStore, table: EmbeddingTable, n_M: NDArray[np.int64], results: Path | None
) -> dict[str, pa.Array]:
    """Two columns for each saved probe of one task: whether it is right (null if not scored), and its confidence."""
    try:
        opened = reported_tables(store, results) if results is not None else []
        run = Run(store, results or Path(), {each.backbone: each for each in opened})
        known = table.backbone in kept(PROBES, run)
    except StaleError as error:
        print(f"{error}; omitting predictions", file=sys.stderr)
        return {}
    if results is None or not known:
        return {}
    times = len(table.transformations)
    t_R, n_R = np.repeat(np.arange(times), len(n_M)), np.tile(n_M, times)
    columns: dict[str, pa.Array] = {}
    folder = results / PROBES.name / store.backbone(table.backbone).slug
    note = note_of(folder)
    for name in sorted(note.files if note else ()):  # not what else lies there
        if not name.endswith(".safetensors"):
            continue
        probe = Probe.load(inside(folder, name))
        if len(probe.labels) == 1:
            truth_R, predicted_R, confidence_R = probe.judge(table, t_R, n_R)
            right = [None if t is None else t == p for t, p in zip(truth_R, predicted_R, strict=True)]
            head = f"{probe.metadata['task']}_{probe.metadata['head']}"
            columns |= {f"{head}_correct": pa.array(right, pa.bool_()), f"{head}_confidence": pa.array(confidence_R)}
    return columns


def _thumbnail(pixels_SSC: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_SSC).resize((THUMBNAIL, THUMBNAIL)).save(file, "JPEG", quality=85)
    return file.getvalue()
