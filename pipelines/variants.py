"""Variants of canvas batches, in suite order, from one DALI graph, the kernels and the networks.

On a GPU, all work is queued on torch's current stream. The host waits for it only where pictures are made on the host:
by other libraries, and by styles that are drawn. Variants are in torch's memory; to read one on another stream, wait
for the current stream and call ``Tensor.record_stream``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from substyle.errors import ConfigError, ImageError, SubstyleError
from substyle.files import replacing
from substyle.kernels import philox
from substyle.kernels.difference import distinct
from substyle.kernels.dispatch import as_device, keep_freed_memory, upload
from substyle.pipelines.dali import Graph
from substyle.pipelines.decode import Decoder
from substyle.pipelines.image_header import CROP_PCT
from substyle.pipelines.libraries.processes import Rendering, pool
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, load_plugin

__all__ = ["Graph", "Variant", "VariantMaker", "distinct", "load_all", "load_plugin"]


@dataclass(frozen=True)
class Variant:
    """One transformation of a batch of B images.

    Attributes:
        name: the transformation.
        pixels_BSSC: (B, S, S, 3) uint8, contiguous; never modified later.
        distinct_B: (B,) bool, False where the variant differs from identity by less than one grey level on average, for
            subtle transformations where it is equal; True for identity itself. On the pixels' device: reading it
            synchronises, so on a GPU read it once for all variants of a batch.
    """

    name: str
    pixels_BSSC: torch.Tensor
    distinct_B: torch.Tensor


class VariantMaker:
    """Compute the variants of canvas batches.

    Args:
        transformations: names in suite order.
        side: canvas side S in pixels.
        seed: study seed.
        batch: maximum number of images per call.
        threads: CPU threads of the DALI graph.
        networks: network for each ``Transformation.network`` of the suite, on the same device.
        device: device of canvases and variants: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: unknown transformation, missing network, or unavailable device.
    """

    def __init__(
        self,
        transformations: Sequence[str],
        *,
        side: int,
        seed: int,
        batch: int,
        threads: int,
        networks: Mapping[str, base.Network] | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = as_device(device)
        if not self.on_gpu:
            keep_freed_memory()  # of intermediate results
        load_all()
        self.transformations = tuple(base.get(name) for name in transformations)
        self.side, self.seed, self.batch = side, seed, batch
        self.networks = dict(networks or {})
        for transformation in self.transformations:
            if transformation.made_by == "network" and transformation.network not in self.networks:
                given = ", ".join(sorted(self.networks)) or "none"
                raise ConfigError("networks", given, f"{transformation.network}, required by {transformation.name}")
        self.threads = threads
        if elsewhere := [t for t in self.transformations if t.made_by == "library"]:
            pool(threads).begin(elsewhere)
        self.graph: Graph | None = None
        if made_by_dali := [t for t in self.transformations if t.by_dali(gpu=self.on_gpu)]:
            self.graph = Graph(made_by_dali, side=side, batch=batch, threads=threads, device=self.device)

    def __call__(
        self,
        canvas_BSSC: torch.Tensor,
        keys: Sequence[str],
        test_B: NDArray[np.bool_] | None = None,
        real: Callable[[str], torch.Tensor] | None = None,
    ) -> Iterator[Variant]:
        """Yield the variants of B images, 0 ≤ B ≤ batch, one transformation at a time.

        Pixels depend only on the seed, the image's key, its canvas and whether it is a test image.

        Args:
            canvas_BSSC: (B, S, S, 3) uint8, on the maker's device.
            keys: B image keys.
            test_B: (B,) bool, images that get the overlays reserved for testing; by default none.
            real: returns the pixels (B, S, S, 3) of a transformation that photographs show; called once for each.
        """
        shape = (len(keys), self.side, self.side, 3)
        if tuple(canvas_BSSC.shape) != shape or canvas_BSSC.dtype != torch.uint8 or len(keys) > self.batch:
            given = f"{canvas_BSSC.dtype} {tuple(canvas_BSSC.shape)} for {len(keys)} keys"
            raise ConfigError("canvas", given, f"uint8 (B, {self.side}, {self.side}, 3), B keys, B <= {self.batch}")
        if canvas_BSSC.device != self.device:
            raise ConfigError("canvas", f"on {canvas_BSSC.device}", f"on {self.device}, the device of the maker")
        if not len(keys):
            return
        canvas_BSSC = canvas_BSSC.contiguous()
        for name, pixels in self._made(canvas_BSSC, keys, test_B, real):
            if tuple(pixels.shape) != shape or pixels.dtype != torch.uint8:
                raise SubstyleError(f"{name} returned {pixels.dtype} {tuple(pixels.shape)}, expected uint8 {shape}")
            if base.get(name).made_by == "identity":
                distinct_B = torch.ones(len(keys), dtype=torch.bool, device=self.device)
            else:
                distinct_B = distinct(canvas_BSSC, pixels, subtle=base.get(name).subtle)
            yield Variant(name, pixels, distinct_B)

    def _made(
        self,
        canvas_BSSC: torch.Tensor,
        keys: Sequence[str],
        test_B: NDArray[np.bool_] | None,
        real: Callable[[str], torch.Tensor] | None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and contiguous pixels in suite order.

        Identity is yielded before the work shared by several transformations, so that a backbone can start.
        """
        transformations = list(self.transformations)
        while transformations and transformations[0].made_by == "identity":
            yield transformations.pop(0).name, canvas_BSSC
        keys_B = philox.image_keys(self.seed, keys)
        drawn = base.draw(transformations, keys_B, self.side, test_B)
        elsewhere = [t for t in transformations if t.made_by == "library"]
        if not elsewhere:
            yield from self._here(canvas_BSSC, transformations, drawn, keys_B, None, real)
            return
        with Rendering(pool(self.threads), canvas_BSSC.cpu().numpy(), elsewhere, drawn, keys_B) as rendering:
            yield from self._here(canvas_BSSC, transformations, drawn, keys_B, rendering, real)

    def _here(
        self,
        canvas_BSSC: torch.Tensor,
        transformations: Sequence[base.Transformation],
        drawn: Mapping[str, base.Arrays],
        keys_B: NDArray[np.uint64],
        rendering: Rendering | None,
        real: Callable[[str], torch.Tensor] | None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        made: dict[str, torch.Tensor] = self.graph(canvas_BSSC, drawn) if self.graph else {}
        for transformation in transformations:
            name = transformation.name
            if transformation.made_by == "identity":
                made[name] = canvas_BSSC
            elif transformation.made_by == "library":
                assert rendering is not None
                made[name] = upload(rendering.take(name), self.device)
            elif transformation.made_by == base.PHOTOGRAPHS:
                if real is None:
                    raise ConfigError("transformation", name, "photographs of a source that shows it")
                made[name] = real(name)
            elif name not in made and transformation.made_by == "network":
                made.update(self.networks[transformation.network](canvas_BSSC))
            elif name not in made:
                made[name] = transformation.implementation(gpu=self.on_gpu)(canvas_BSSC, drawn[name], keys_B)
            yield name, made.pop(name).contiguous()

    @property
    def on_gpu(self) -> bool:
        """Whether transformations use their implementation on a GPU."""
        return self.device.type != "cpu"


GAP, CAPTION, LABEL = 8, 18, 84  # px: between cells, height of a caption, width of the column of class names


def variants_of(
    blob: bytes,
    transformations: Sequence[str],
    *,
    key: str = "gallery",
    side: int = base.CANVAS,
    seed: int = 0,
    threads: int = 1,
    networks: Mapping[str, base.Network] | None = None,
    orientation: str = "ignore",
    crop_pct: float = CROP_PCT,
    test: bool = False,
    real: Mapping[str, bytes] | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Compute all variants of one encoded photograph, each (S, S, 3) uint8, by name.

    Args:
        blob: the encoded photograph.
        transformations: names, such as ``suite("substance31")``.
        key: image key that seeds the parameters.
        side: canvas side S in pixels.
        seed: study seed.
        threads: CPU threads.
        networks: as for :class:`~substyle.pipelines.variants.VariantMaker`.
        orientation: as for :class:`~substyle.pipelines.decode.Decoder`.
        crop_pct: as for :class:`~substyle.pipelines.decode.Decoder`.
        test: whether the photograph gets the overlays reserved for testing.
        real: encoded files that show it in real transformations; those without a file that can be decoded are left out.

    Raises:
        ImageError: the photograph cannot be decoded.
    """
    decode = Decoder(side, 1, threads, orientation=orientation, crop_pct=crop_pct)
    decoded = decode([blob])
    if decoded.reasons[0] is not None:
        raise ImageError(f"{key}: {decoded.reasons[0]}")
    files = {name: decode([file]) for name, file in (real or {}).items()}
    shown = {name: found.canvas_BSSC for name, found in files.items() if found.ok_B[0]}
    names = [name for name in transformations if base.get(name).made_by != base.PHOTOGRAPHS or name in shown]
    maker = VariantMaker(names, side=side, seed=seed, batch=1, threads=threads, networks=networks)
    made = maker(decoded.canvas_BSSC, [key], np.array([test]), shown.__getitem__)
    return {variant.name: variant.pixels_BSSC[0].numpy() for variant in made}


def draw(
    variants: Mapping[str, NDArray[Any]],
    titles: Mapping[str, str] | None,
    out: Path,
    *,
    columns: int = 5,
) -> None:
    """Write a PNG of variants: rows by kind in the order of ``transforms.base.KINDS``, captions below.

    Args:
        variants: (S, S, 3) uint8 images by transformation name.
        titles: captions by transformation name, where they differ from it.
        out: path of the file.
        columns: variants per row; a class with more continues on the next row.
    """
    side = max((len(image) for image in variants.values()), default=base.CANVAS)
    rows: list[tuple[str, list[str]]] = []
    for kind in base.KINDS:
        names = [name for name in variants if base.get(name).kind == kind]
        rows += [("" if i else kind, names[i : i + columns]) for i in range(0, len(names), columns)]
    width, height = side + GAP, side + GAP + CAPTION
    sheet = Image.new("RGB", (LABEL + columns * width + GAP, max(1, len(rows)) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (kind, names) in enumerate(rows):
        top = GAP + row * height
        pen.text((GAP, top + side / 2), kind, fill="black", font=font, anchor="lm")
        for column, name in enumerate(names):
            left = LABEL + column * width
            sheet.paste(Image.fromarray(np.ascontiguousarray(variants[name])), (left, top))
            caption = (titles or {}).get(name, name)
            pen.text((left, top + side + 2), caption, fill="black", font=font, anchor="la")
    with replacing(out) as file:
        sheet.save(file, format="PNG")
