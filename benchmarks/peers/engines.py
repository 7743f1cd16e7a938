"""Photographs to stored embeddings by ours and by other engines.

All call the product's functions for the 26 variants without styles, and run the same graph in OpenVINO in bf16: what
differs is the engine. Each decodes with its own decoder (Pillow in a DataLoader), uses its library's option for files
that cannot be decoded, if it has one, and writes as the library does by default. Networks run in the workers, one
thread each, so that no pixels travel; a DataLoader leaves them to the main process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset

from benchmarks import networks
from benchmarks.networks import BATCH, CANVAS, CORES, LITE0
from benchmarks.peers.plain_script import cropped
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import Precision, graph_batch
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import LocalPlace
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.variants import VariantMaker

load_all()
VARIANTS = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")
WIDTH = 1280


def ours(photographs: Path, out: Path, precision: Precision) -> None:
    pipeline = PixelPipeline(Settings(0, CANVAS, VARIANTS), EmbedConfig(device="cpu"))
    plan = EmbedPlan(FolderSource(photographs), LocalPlace(out / "store.zarr"), pipeline)
    embed_compiled(plan, [networks.ungated(LITE0, precision)], quiet=True)


@cache
def variant_maker() -> VariantMaker:
    torch.set_num_threads(1)
    return VariantMaker(VARIANTS, side=CANVAS, seed=0, batch=BATCH, threads=1)


def variants(pictures: list[Image.Image], paths: list[str]) -> Iterator[NDArray[np.uint8]]:
    """The 26 variants of up to 32 photographs, each (B, 224, 224, 3)."""
    canvas_BSSC = torch.from_numpy(np.stack([cropped(picture) for picture in pictures]))
    return (made.pixels_BSSC.numpy() for made in variant_maker()(canvas_BSSC, paths))


class Worker:
    """Embeds decoded photographs in all variants on one thread."""

    def __init__(self) -> None:
        graph = OpenVINOGraph(networks.graph(LITE0), precision="bf16", threads=1)
        self.network = FixedBatch(graph, graph_batch(BATCH))

    def embedded(self, pictures: list[NDArray[np.uint8]], paths: list[str]) -> NDArray[np.float32]:
        """Shape: (B, 26 · D)."""
        made = variants([Image.fromarray(picture) for picture in pictures], paths)
        return np.concatenate([self.network(pixels_BSSC) for pixels_BSSC in made], axis=1)


class Photographs(Dataset[tuple[list[str], NDArray[np.uint8]]]):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, rows: list[int]) -> tuple[list[str], torch.Tensor]:  # type: ignore[override]
        paths = [self.paths[row] for row in rows]
        made = variants([Image.open(path).convert("RGB") for path in paths], paths)
        return paths, torch.from_numpy(np.stack(list(made)))


def data_loader(photographs: Path, out: Path) -> None:
    paths = sorted(str(path) for path in photographs.iterdir())
    batches = BatchSampler(range(len(paths)), BATCH // 2, drop_last=False)
    loader = DataLoader(Photographs(paths), sampler=batches, batch_size=None, num_workers=CORES)
    network, kept = networks.openvino(LITE0, "bf16"), []
    for names, pixels_TBSSC in loader:
        x_TBD = network(pixels_TBSSC.flatten(0, 1).numpy()).reshape(len(VARIANTS), len(names), -1)
        kept.append(pa.table({"path": names, "embedding": list(np.concatenate(x_TBD, axis=1))}))
    pq.write_table(pa.concat_tables(kept), out / "embeddings.parquet")


def ray_data(photographs: Path, out: Path) -> None:
    import ray

    class Embed(Worker):
        def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
            return {"path": batch["path"], "embedding": self.embedded(list(batch["image"]), batch["path"].tolist())}

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().max_errored_blocks = -1
    read = ray.data.read_images(str(photographs), mode="RGB", include_paths=True)
    # half a core each: with whole ones, no core would be left to read
    read.map_batches(Embed, batch_size=BATCH, concurrency=CORES, num_cpus=0.5).write_parquet(str(out))


def daft_frame(photographs: Path, out: Path) -> None:
    import daft
    from daft import DataType, Series, col

    @daft.cls(max_concurrency=CORES, use_process=True)
    class Embed(Worker):
        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=DataType.fixed_size_list(DataType.float32(), len(VARIANTS) * WIDTH), batch_size=BATCH
        )
        def embed(self, image: Series, path: Series) -> Any:  # noqa: ANN401 - a Series or an array
            return pa.array(list(self.embedded(image.to_pylist(), path.to_pylist())))

    files = daft.from_glob_path(f"{photographs}/*")
    image = col("path").download(on_error="null").decode_image(on_error="null", mode="RGB")
    read = files.select("path", image.alias("image")).where(col("image").not_null())
    read.select("path", Embed().embed(col("image"), col("path")).alias("embedding")).write_parquet(str(out))


PRECISIONS: dict[str, Precision] = {"ours in float32": "fp32", "ours in bf16 without the gate": "bf16"}
ENGINES = {
    **{name: partial(ours, precision=precision) for name, precision in PRECISIONS.items()},
    "DataLoader + OpenVINO": data_loader,
    "Ray Data + OpenVINO": ray_data,
    "Daft + OpenVINO": daft_frame,
}
NEEDS = {"Ray Data + OpenVINO": "ray", "Daft + OpenVINO": "daft"}  # packages
