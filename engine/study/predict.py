"""Apply saved probes to photographs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.backbones import registry
from substyle.engine.backbones.lazy import LazyBackbone, sketch, sketched
from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.runtimes.openvino import FixedBatch, OpenVINOGraph
from substyle.engine.backbones.runtimes.openvino_builder import OpenVINOBuilder
from substyle.engine.backbones.spec import Embed, own_name
from substyle.engine.backbones.weights import WeightsError, cached_only
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import missing
from substyle.engine.embedding.prepare import PackagedSamples, PixelPipeline
from substyle.engine.observability import stage
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.stamp import note_of, require_own_file
from substyle.engine.store.layout import DifferentError, network_changes, network_facts
from substyle.errors import ConfigError, MissingError, SubstyleError
from substyle.files import replacing
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.packaged_photographs import fixed_canvases
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
    config = EmbedConfig(device="cpu").here()
    canvas, seed = int(facts.get("canvas", 224)), int(facts.get("seed", 0))
    orientation, crop_pct = facts.get("orientation", "ignore"), facts.get("crop_pct", CROP_PCT)
    settings = Settings(seed, canvas, ("identity",), orientation, crop_pct=crop_pct)
    pipeline = PixelPipeline(settings, config)
    if not isinstance(facts.get("network"), dict):
        raise SubstyleError(f"{probe_path}: does not record its network, as of an older version; train it again")
    context = registry.LoadContext(canvas, config.graph_images, seed, checkpoint).of_a_file
    try:
        with nullcontext() if download else cached_only():
            embed = _network(registry.lazy(str(facts["backbone"]), context), pipeline, facts["network"])
    except WeightsError as error:
        if download or checkpoint is not None:
            raise
        raise WeightsError(f"{error} (predict downloads only with --download)") from error
    except DifferentError as error:
        raise SubstyleError(f"{probe_path}: {facts['backbone']} has changed: {error}") from None

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
        "calibration": probe.calibration,
        "predictions": predictions,
        "quarantined": quarantined,
        "summary": _summary(list(probe.labels), predictions, len(quarantined)),
    }


def _network(source: LazyBackbone, pipeline: PixelPipeline, trained: Mapping[str, Any]) -> Embed:
    """The network in float32, as it was in training.

    Its compiled graph, which is cached, if its embeddings of fixed pictures are those of training: torch takes longer,
    and imports more. Else, and where only loading shows what a name means, the network itself decides.

    Raises:
        DifferentError: it has changed.
    """
    config, canvas = pipeline.config, pipeline.settings.canvas
    known = source.identity is not None and source.compiled and bool(source.is_graph or source.spec.graph)
    if known and not missing("openvino", chosen=True):
        builder = OpenVINOBuilder(
            *(source, PackagedSamples(pipeline)), batch=config.graph_images, canvas=canvas, threads=config.cores
        )
        compiled = builder.graph_reference()
        now = replace(source.spec, graph="", sketch=sketch(compiled(fixed_canvases(canvas))))
        if not network_changes(trained, network_facts(now.describe()), "in training"):
            return compiled
    backbone = source.backbone
    now = sketched(backbone, canvas, config.graph_images)
    if changed := network_changes(trained, network_facts(now.describe()), "in training"):
        raise DifferentError("; ".join(changed))
    if backbone.module is not None:
        return TorchModule(backbone.module)
    graph = OpenVINOGraph(backbone.graph or b"", precision="fp32", threads=config.cores)
    return FixedBatch(graph, config.graph_images)


_SHOWN = 5  # labels of a summary


def _summary(names: Sequence[str], predictions: Sequence[Mapping[str, Any]], quarantined: int) -> dict[str, Any]:
    """Numbers of photographs, and by output the most frequent first labels and their median probability."""
    outputs = {}
    for name in names if predictions else ():
        first = [row["outputs"][name][0] for row in predictions]
        counts = Counter(each["label"] for each in first).most_common(_SHOWN)
        outputs[name] = {
            "labels": [{"label": label, "photographs": n, "share": n / len(first)} for label, n in counts],
            "median_probability": float(np.median([each["probability"] for each in first])),
        }
    return {"photographs": len(predictions), "quarantined": quarantined, "outputs": outputs}


def summary_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The summary of an answer of `predict`, and how well the probe is calibrated."""
    summary = answer["summary"]
    yield f"{summary['photographs']:,} photographs predicted, {summary['quarantined']:,} quarantined"
    for name, found in summary["outputs"].items():
        shares = ", ".join(f"{each['label']} {each['share']:.1%}" for each in found["labels"])
        yield f"{name}: {shares}; median probability of the first label {found['median_probability']:.3f}"
    for name, entry in answer["calibration"].items():
        if entry is None:
            yield f"{name}: not calibrated, the probe is of an earlier version"
        elif entry.get("ece") is None or entry.get("ece_before") is None:
            yield f"{name}: calibrated"
        else:
            errors = f"{entry['ece']:.1%}, {entry['ece_before']:.1%} before"
            yield f"{name}: calibrated: expected calibration error {errors}"


def probe_of(out: Path, backbone: str | None = None, task: str | None = None) -> Path:
    """The probe of a backbone in the output folder of a run: linear, or an MLP where there is no linear one.

    Args:
        backbone: its name; default: the only one that is not a control.
        task: default: transformation.

    Raises:
        ConfigError: there is none of that backbone or task; the message names those that there are.
        MissingError: there are several backbones, and none is given.
        SubstyleError: there are no probes.
    """
    saved: dict[str, dict[str, Path]] = {}
    for folder in sorted((out / PROBES.name).glob("*/")):
        note = note_of(folder)
        files = sorted(name for name in note.files if name.endswith(".safetensors")) if note else []
        if files:
            tasks = saved.setdefault(Probe.load(folder / files[0]).metadata["backbone"], {})
            for name in files:  # linear before mlp
                tasks.setdefault(name.rpartition("-")[0], folder / name)
    if not saved:
        raise SubstyleError(f"{out}: a folder without results of probes; give the output folder of a run, or a probe")
    networks = [name for name in saved if not name.startswith("control:")] or list(saved)
    if backbone is None and len(networks) > 1:
        raise MissingError("--backbone", f"{out} has probes of {', '.join(saved)}")
    name, task = backbone or networks[0], task or "transformation"
    name = next((each for each in saved if own_name(each) == name), name)
    if name not in saved:
        raise ConfigError("--backbone", name, f"one with probes in {out}: {', '.join(saved)}")
    if task not in saved[name]:
        raise ConfigError("--task", task, f"one with a probe of {name} in {out}: {', '.join(saved[name])}")
    return saved[name][task]


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
