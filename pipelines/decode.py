"""Encoded images to canvases: decode, resize the shorter side to 8/7 S, crop the centre S x S."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.errors import ConfigError, ImageError
from substyle.pipelines import fallback, header

log = logging.getLogger(__name__)

GROUP_PIXELS = 64_000_000  # decoded source pixels that one DALI run may hold, 192 MB


@dataclass(frozen=True)
class Decoded:
    """A batch of B canvases.

    Attributes:
        canvas_BSSC: (B, S, S, 3) uint8; zeros where an image is quarantined.
        ok_B: (B,) bool.
        reasons: for every image why it is quarantined, or None.
        size_B2: (B, 2) int32, height and width of the source image in pixels; zeros where not known.
    """

    canvas_BSSC: torch.Tensor
    ok_B: NDArray[np.bool_]
    reasons: list[str | None]
    size_B2: NDArray[np.int32]


@dataclass(frozen=True)
class _Item:
    index: int
    blob: bytes
    start: tuple[float, float]  # top, left of the part that is kept, in source px
    end: tuple[float, float]  # bottom, right
    pixels: int


class Decoder:
    """Decodes batches of encoded images; a bad image never fails the batch.

    Args:
        side: canvas side S in pixels.
        batch: largest number of images in one call.
        threads: CPU threads.
        device: ``cpu``.
        max_pixels: images with more pixels, as their header says, are quarantined unread.
    """

    def __init__(
        self,
        side: int,
        batch: int,
        threads: int,
        *,
        device: str = "cpu",
        max_pixels: int = header.MAX_PIXELS,
    ) -> None:
        if device != "cpu":
            raise ConfigError("device", device, "cpu")
        self.side, self.batch, self.threads, self.max_pixels = side, batch, threads, max_pixels
        self.pipeline = self._build()

    def __call__(self, blobs: Sequence[bytes]) -> Decoded:
        """Decode B images, 0 ≤ B ≤ batch. An image's canvas depends on its bytes alone."""
        if len(blobs) > self.batch:
            raise ConfigError("blobs", f"{len(blobs)} images", f"at most {self.batch}")
        shape = (len(blobs), self.side, self.side, 3)
        canvas = np.zeros(shape, np.uint8)
        result = Decoded(
            torch.from_numpy(canvas), np.zeros(len(blobs), np.bool_), [None] * len(blobs), _no_sizes(len(blobs))
        )
        for_dali: list[_Item] = []
        for index, blob in enumerate(blobs):
            try:
                head = header.inspect(blob, self.max_pixels)
                result.size_B2[index] = head.height, head.width
                item = _Item(index, blob, *_centre(head.height, head.width, self.side), head.height * head.width)
                if head.for_dali:
                    for_dali.append(item)
                else:
                    self._with_pillow(item, canvas, result)
            except ImageError as error:
                result.reasons[index] = str(error)
        for group in _groups(for_dali):
            self._with_dali(group, canvas, result)
        return result

    def _with_dali(self, items: Sequence[_Item], canvas: NDArray[np.uint8], result: Decoded) -> None:
        try:
            (output,) = self.pipeline.run(
                blob=[np.frombuffer(item.blob, np.uint8) for item in items],
                start=np.array([item.start for item in items], np.float32),
                end=np.array([item.end for item in items], np.float32),
            )
        except RuntimeError as error:
            log.debug("DALI refused a batch of %d: %s", len(items), error)
            self.pipeline = self._build()  # a graph that has failed once cannot run again
            for item in items:
                if len(items) > 1:
                    self._with_dali([item], canvas, result)
                else:
                    self._with_pillow(item, canvas, result)
            return
        index = [item.index for item in items]
        canvas[index] = np.asarray(output.as_tensor())
        result.ok_B[index] = True

    def _with_pillow(self, item: _Item, canvas: NDArray[np.uint8], result: Decoded) -> None:
        try:
            canvas[item.index] = fallback.decode(item.blob, self.side, (*item.start[::-1], *item.end[::-1]))
            result.ok_B[item.index] = True
        except ImageError as error:
            result.reasons[item.index] = str(error)

    def _build(self) -> Any:  # noqa: ANN401 - DALI ships no types
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        pipeline = Pipeline(self.batch, self.threads, device_id=None, prefetch_queue_depth=1)
        with pipeline:
            blob = fn.external_source(name="blob", dtype=types.UINT8, ndim=1)
            start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
            end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
            # With the smooth chroma upsampling DALI gives Pillow's pixels exactly.
            image = fn.decoders.image(
                blob, device="cpu", output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
            )
            image = fn.resize(
                image,
                size=[self.side, self.side],
                roi_start=start,
                roi_end=end,
                interp_type=types.INTERP_CUBIC,
                antialias=True,
                subpixel_scale=False,
            )
            pipeline.set_outputs(image)
        pipeline.build()
        return pipeline


def _no_sizes(count: int) -> NDArray[np.int32]:
    return np.zeros((count, 2), np.int32)


def _centre(height: int, width: int, side: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of the source that becomes the canvas: (top, left), (bottom, right) in source px.

    It is what resizing the shorter side to 8/7 S and cropping the centre keeps, with the rounding of
    ``torchvision.transforms.Resize`` and ``CenterCrop``. Resizing only this part means that a picture 1 px high and
    thousands wide needs no huge intermediate.
    """
    short = round(side * 8 / 7)
    shorter = min(height, width)
    starts, ends = [], []
    for length in (height, width):
        resized = short * length // shorter
        first = round((resized - side) / 2)
        starts.append(first * length / resized)
        ends.append((first + side) * length / resized)
    return (starts[0], starts[1]), (ends[0], ends[1])


def _groups(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Cut a batch so that decoded pixels in memory stay bounded; a larger image goes alone."""
    group: list[_Item] = []
    for item in items:
        if group and sum(i.pixels for i in group) + item.pixels > GROUP_PIXELS:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
