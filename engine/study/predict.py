"""Apply saved probes to photographs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.backbones import registry
from substyle.engine.backbones.lazy import sketched
from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.spec import Backbone, Embed
from substyle.engine.backbones.weights import WeightsError, cached_only
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.observability import stage
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.stages.stamp import require_own_file
from substyle.engine.store.layout import network_changes, network_facts
from substyle.errors import ConfigError, SubstyleError
from substyle.files import replacing
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.sources import ImageRecord, SourceConfig, describe, kind_of_name, open_source


def predict(
    probe_path: Path,
    images: Path | str,
    *,
    source: SourceConfig | None = None,
    checkpoint: Path | None = None,
    download: bool = False,
    top: int = 3,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict labels of original photographs. The backbone runs in float32.

    Args:
        probe_path: a probe saved by the stage `probes`.
        images: any source of photographs, or one image file.
        source: kind and columns of the source, if not detected.
        checkpoint: local weights of the backbone.
        download: fetch the backbone that the probe names from a hub, unless it is cached; the probe may be somebody
            else's, and is not allowed to choose what this machine contacts.
        top: labels per image, most likely first.

    Raises:
        ConfigError: the images do not exist, or ``top`` is below 1.
        SubstyleError: the backbone differs from that of training.
        StaleError: the probe lies among results that it does not belong to, or that were modified.
    """
    if top < 1:
        raise ConfigError("--top", top, "1 or more")
    require_own_file(probe_path)
    probe = Probe.load(probe_path)
    facts = probe.metadata
    config = EmbedConfig(device="cpu")
    canvas, seed = int(facts.get("canvas", 224)), int(facts.get("seed", 0))
    orientation, crop_pct = facts.get("orientation", "ignore"), facts.get("crop_pct", CROP_PCT)
    settings = Settings(seed, canvas, ("identity",), orientation, crop_pct=crop_pct)
    pipeline = PixelPipeline(settings, config)
    if not isinstance(facts.get("network"), dict):
        raise SubstyleError(f"{probe_path}: does not record its network, as of an older version; train it again")
    context = registry.LoadContext(canvas, config.graph_images, seed, checkpoint).of_a_file
    backbone = _backbone(str(facts["backbone"]), context, download)
    now = sketched(backbone, canvas, config.graph_images).describe()
    if changed := network_changes(facts["network"], network_facts(now), "in training"):
        raise SubstyleError(f"{probe_path}: {facts['backbone']} has changed: {'; '.join(changed)}")
    embed: Embed
    if backbone.module is not None:
        embed = TorchModule(backbone.module)
    else:
        graph = OpenVINOGraph(backbone.graph or b"", precision="fp32", threads=config.cores)
        embed = FixedBatch(graph, config.graph_images)

    predictions: list[dict[str, Any]] = []
    quarantined: list[dict[str, str]] = []
    records = _records(images, source or SourceConfig())
    with stage("predict", len(records), "images", quiet=quiet) as bar:
        for start in range(0, len(records), config.images):
            part = records[start : start + config.images]
            blobs, readable = [], []
            for record in part:
                try:
                    blobs.append(record.read())
                    readable.append(record)
                except OSError as error:
                    quarantined.append({"key": record.key, "reason": str(error.strerror or error)})
            decoded = pipeline.decoder(blobs)
            if blobs:
                x_BD = embed(decoded.canvas_BSSC.numpy())
                finite_B = np.logical_and.reduce(np.isfinite(x_BD), axis=1)
                outputs = probe.predict_all(np.where(finite_B[:, None], x_BD, 0))
            for i, record in enumerate(readable):
                reason = decoded.reasons[i] or (None if finite_B[i] else "its embedding is not finite")
                if reason is not None:
                    quarantined.append({"key": record.key, "reason": reason})
                else:
                    ranked = {name: _top(p_BC[i], probe.labels[name], top) for name, p_BC in outputs.items()}
                    predictions.append({"key": record.key, "outputs": ranked})
            bar.advance(len(part))
    return {
        "probe": str(probe_path),
        "task": facts["task"],
        "backbone": facts["backbone"],
        "predictions": predictions,
        "quarantined": quarantined,
    }


def _backbone(name: str, context: registry.LoadContext, download: bool) -> Backbone:
    try:
        with nullcontext() if download else cached_only():
            return registry.load(name, context)
    except WeightsError as error:
        if download or context.checkpoint is not None:
            raise
        raise WeightsError(f"{error} (predict downloads only with --download)") from error


PREDICTIONS = (".csv", ".parquet")


def write_predictions(answer: Mapping[str, Any], path: Path) -> None:
    """Write the answer of `predict` to a CSV or Parquet file.

    One row per label: key, output, rank (1 for the most likely), label, probability.
    """
    rows = [
        {"key": row["key"], "output": output, "rank": rank, **label}
        for row in answer["predictions"]
        for output, labels in row["outputs"].items()
        for rank, label in enumerate(labels, 1)
    ]
    kinds = {"key": pa.string(), "output": pa.string(), "rank": pa.int64(), "label": pa.string()}
    table = pa.Table.from_pylist(rows, pa.schema({**kinds, "probability": pa.float64()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        (pq.write_table if path.suffix == ".parquet" else pa.csv.write_csv)(table, file)


def _records(images: Path | str, source: SourceConfig) -> list[ImageRecord]:
    one = isinstance(images, Path) and images.is_file() and kind_of_name(images.name) is None
    if source == SourceConfig() and isinstance(images, Path) and one:
        return [ImageRecord(images.name, None, None, images.read_bytes)]
    opened = open_source(images, source)
    print(describe(opened), file=sys.stderr)
    return list(opened.records)


def _top(p_C: NDArray[np.float32], labels: list[str], top: int) -> list[dict[str, Any]]:
    order = np.argsort(-p_C, kind="stable")[:top]
    return [{"label": labels[c], "probability": round(float(p_C[c]), 6)} for c in order.tolist()]
