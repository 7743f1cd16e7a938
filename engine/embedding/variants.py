"""Pixels of variants, for models that run elsewhere."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle import files
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import Precision
from substyle.engine.embedding.blobs import RealVariants, read, require_shown
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.observability import stage
from substyle.engine.store.layout import PIXELS, SPLITS, TEST, UNLABELLED
from substyle.engine.store.manifest import assign
from substyle.errors import ConfigError
from substyle.pipelines.image_header import CROP_PCT, Orientation
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, describe, open_source
from substyle.pipelines.storage import is_remote
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite as names_of_suite

Layout = Literal["folder", "webdataset"]
LAYOUTS: tuple[Layout, ...] = ("folder", "webdataset")
IMAGE_FORMATS = ("png", "jpeg")
INDEX = "variants.csv"  # of a folder: the `--rows` of `substyle import`, in the order of the files
COLUMNS = ("key", "transformation", "label", "split", "content_hash", "definition", *PIXELS, "distinct", "file")
TAR_SAMPLES = 10_000  # variants in a tar shard


@dataclass(frozen=True)
class VariantBatch:
    """One transformation of a batch of B photographs.

    Attributes:
        records: B photographs.
        contents: content hash of each.
        splits: ``train``, ``val`` or ``test`` of each, as `embed` assigns them.
        transformation: its name.
        pixels_BSSC: (B, S, S, 3) uint8.
        distinct_B: (B,) bool, False where the variant hardly differs from its photograph.
    """

    records: Sequence[ImageRecord]
    contents: Sequence[str]
    splits: Sequence[str]
    transformation: str
    pixels_BSSC: NDArray[np.uint8]
    distinct_B: NDArray[np.bool_]


def iter_variants(
    images: str | Path,
    *,
    suite: str | Sequence[str] = "substance31",
    canvas: int = 224,
    seed: int = 0,
    orientation: Orientation = "ignore",
    style_precision: Precision = "bf16",
    crop_pct: float = CROP_PCT,
    batch: int | None = None,
    source: SourceConfig | None = None,
    limit: int = 0,
    device: str = "auto",
) -> Iterator[tuple[list[str], str, NDArray[np.uint8]]]:
    """Iterate over the variants that `embed` embeds: batch by batch, one transformation at a time.

    A photograph that cannot be decoded is left out, with a warning.

    Args:
        images: photographs, as for `embed`; ``source``, ``limit`` and the settings of a store (``seed``, ``canvas``,
            ``orientation``, ``style_precision``, ``crop_pct``) as well.
        suite: name of a suite, or names of transformations.
        batch: maximum number of photographs in a batch; default: 32 on a CPU, 256 on a GPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        keys of the B photographs, the transformation, and pixels (B, S, S, 3) uint8.

    Raises:
        ConfigError: an invalid argument.
    """
    names = suite if isinstance(suite, str) else ",".join(suite)
    opened = open_source(images, source or SourceConfig())
    settings = Settings(seed, canvas, names_of_suite(names), orientation, style_precision, crop_pct)
    require_shown(opened, settings.transformations)
    pipeline = PixelPipeline(settings, EmbedConfig(batch=batch, device=device))
    records = limited(opened.records, seed, limit)

    def warn(key: str, reason: str) -> None:
        warnings.warn(f"{key} is left out: {reason}", stacklevel=2)

    for each in batches(records, _splits(opened, records, seed), pipeline, warn):
        yield [record.key for record in each.records], each.transformation, each.pixels_BSSC


def _splits(source: Source, records: Sequence[ImageRecord], seed: int) -> NDArray[np.int8]:
    """Splits (N,) that a store of these photographs of a source has."""
    return assign(
        [record.key for record in records],
        [UNLABELLED if record.label is None else record.label for record in records],
        [record.split for record in records],
        seed=seed,
        source={record.split for record in source.records},
        groups=[record.group for record in records],
    )


def batches(
    records: Sequence[ImageRecord],
    split_N: NDArray[np.int8],
    pipeline: PixelPipeline,
    left_out: Callable[[str, str], None],
) -> Iterator[VariantBatch]:
    """Iterate over the variants of N photographs.

    Args:
        split_N: their splits, which decide about the motifs of overlays.
        left_out: called with the key of a photograph that cannot be decoded, or the name of a real transformation and a
            key, and the reason.
    """
    settings, size = pipeline.settings, pipeline.config.images
    for start in range(0, len(records), size):
        blobs = [read(record) for record in records[start : start + size]]
        decoded = pipeline.decoder([blob.data for blob in blobs])
        reasons = [blob.reason or reason for blob, reason in zip(blobs, decoded.reasons, strict=True)]
        for b, why in enumerate(reasons):
            if why:
                left_out(records[start + b].key, why)
        good_B = [b for b, why in enumerate(reasons) if not why]
        if not good_B:
            continue
        mine, own_N = [records[start + b] for b in good_B], split_N[start : start + size][good_B]
        make, canvas_BSSC = pipeline.maker(settings.transformations), decoded.canvas_BSSC[good_B]
        real = RealVariants(mine, canvas_BSSC, pipeline.decoder)
        for variant in make(canvas_BSSC, [record.key for record in mine], own_N == TEST, real):
            pixels_BSSC, distinct_B = variant.pixels_BSSC.numpy(force=True), variant.distinct_B.numpy(force=True)
            for b, reason in real.left_out(variant.name):
                left_out(f"{variant.name} of {mine[b].key}", reason)
            shown_B = np.flatnonzero(real.ok_B(variant.name))
            if len(shown_B):
                yield VariantBatch(
                    [mine[b] for b in shown_B],
                    [blobs[good_B[b]].content for b in shown_B],
                    [SPLITS[own_N[b]] for b in shown_B],
                    variant.name,
                    pixels_BSSC[shown_B],
                    distinct_B[shown_B],
                )


def write_variants(
    images: str | Path,
    out: Path,
    settings: Settings,
    *,
    to: str = "folder",
    image_format: str = "png",
    quality: int = 95,
    source: SourceConfig | None = None,
    limit: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the variants that `embed` embeds to image files.

    A folder has ``<transformation>/<key>.png``, and `INDEX` with `COLUMNS` in the order of writing. Tar shards
    ``variants-<number>.tar`` have the layout of WebDataset: a ``.png`` and a ``.json`` with the same facts and the
    kind for each variant. Splits, and therefore motifs of overlays, are those of a store of these photographs
    with default shares of splits.

    Args:
        images: as for `iter_variants`, and so are source, limit and device.
        out: a new or empty folder.
        settings: those of a store, with its transformations.
        to: ``folder`` or ``webdataset``.
        image_format: ``png``, which is exact, or ``jpeg``.
        quality: of JPEG files, 1 to 100.

    Returns:
        ``{"out", "images", "variants", "quarantined"}``; the last holds a reason by key.

    Raises:
        ConfigError: an invalid argument, or the folder holds files.
    """
    for field, given, allowed in (("--to", to, LAYOUTS), ("--format", image_format, IMAGE_FORMATS)):
        if given not in allowed:
            raise ConfigError(field, given, ", ".join(allowed))
    if not 1 <= quality <= 100:
        raise ConfigError("--quality", quality, "1 to 100")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", str(out), "a new or empty folder")
    if not is_remote(images) and out.resolve().is_relative_to(Path(images).resolve()):
        outside = "a folder outside the photographs; variants in it would be read as photographs"
        raise ConfigError("--out", str(out), outside)
    opened = open_source(images, source or SourceConfig())
    print(describe(opened), file=sys.stderr)
    records = limited(opened.records, settings.seed, limit)
    if to == "folder":
        _require_names(opened, records)
    require_shown(opened, settings.transformations)
    pipeline = PixelPipeline(settings, EmbedConfig(device=device))
    pixels_of = {name: getattr(settings, name) for name in PIXELS}
    definition = {made.name: made.hash for made in pipeline.definitions}
    quarantined: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    write = _Folder(out) if to == "folder" else _Tars(out)
    options: dict[str, Any] = {"quality": quality, "subsampling": 0} if image_format == "jpeg" else {}
    count = 0
    total = len(records) * len(pipeline.settings.transformations)
    with stage("variants", total, "variants", quiet=quiet) as bar:
        for batch in batches(records, _splits(opened, records, settings.seed), pipeline, quarantined.__setitem__):
            for record, content, split, pixels, distinct in zip(
                batch.records, batch.contents, batch.splits, batch.pixels_BSSC, batch.distinct_B.tolist(), strict=True
            ):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, image_format, **options)
                label = None if record.label is None else opened.class_names[record.label]
                named = {"key": record.key, "transformation": batch.transformation, "label": label, "split": split}
                made = {"content_hash": content, "definition": definition[batch.transformation], **pixels_of}
                facts = {**named, **made, "distinct": distinct}
                write(facts, file.getvalue(), image_format)
                count += 1
            bar.advance(len(batch.records))
    write.close()
    return {"out": str(out), "images": len(records), "variants": count, "quarantined": quarantined}


def _require_names(source: Source, records: Sequence[ImageRecord]) -> None:
    """Raise ConfigError for a key that is no path below a folder: ids of Parquet files may be any text."""
    for record in records:
        try:
            files.relative(record.key)
        except files.UnsafeFileError as error:
            allowed = "keys that are relative paths without .. for files; --to webdataset numbers them"
            raise ConfigError("IMAGES", f"{source.root} with the key {record.key[:200]!a}", allowed) from error


class _Folder:
    """Writes files by transformation; the index is written last."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: list[dict[str, Any]] = []

    def __call__(self, facts: dict[str, Any], data: bytes, suffix: str) -> None:
        name = f"{facts['transformation']}/{facts['key']}.{suffix}"
        path = files.inside(self.out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, data)
        self.rows.append({**facts, "file": name})

    def close(self) -> None:
        """Write the index."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write(self.out / INDEX, text.getvalue())


class _Tars:
    """Writes tar shards; names in them are numbers, since WebDataset ends a sample's name at its first dot."""

    def __init__(self, out: Path) -> None:
        self.out, self.count = out, 0
        self.opened = ExitStack()
        self.tar: tarfile.TarFile | None = None

    def __call__(self, facts: dict[str, Any], data: bytes, suffix: str) -> None:
        if self.count % TAR_SAMPLES == 0:
            self.close()
            path = self.out / f"variants-{self.count // TAR_SAMPLES:05d}.tar"
            self.tar = self.opened.enter_context(_tar(path))
        assert self.tar is not None
        described = {**facts, "kind": base.get(facts["transformation"]).kind}
        for end, content in ((suffix, data), ("json", json.dumps(described).encode())):
            member = tarfile.TarInfo(f"{self.count:09d}.{end}")
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))
        self.count += 1

    def close(self) -> None:
        """Finish the last tar file."""
        self.opened.close()


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    with files.replacing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        yield tar
