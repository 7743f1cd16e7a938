"""The DALI graph that decodes, crops and resizes a group of images in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError


class RefusedError(SubstyleError):
    """DALI could not decode one of the images it was given; it does not say which."""


@dataclass(frozen=True)
class DaliDecoded:
    """What comes out of one run, for B images.

    Attributes:
        canvas_BSSC: (B, S, S, 3) uint8, as stored, valid until the next run.
        size_B2: (B, 2) int64, height and width of the decoded pictures in px.
        last_BC: (B, 3) uint8, the last pixel of each decoded picture.
    """

    canvas_BSSC: NDArray[np.uint8]
    size_B2: NDArray[np.int64]
    last_BC: NDArray[np.uint8]


class DaliDecoder:
    """Decodes parts of images to S x S.

    Args:
        side: S in pixels.
        batch: largest number of images in one run.
        threads: CPU threads.
    """

    def __init__(self, side: int, batch: int, threads: int) -> None:
        self.side, self.batch, self.threads = side, batch, threads
        self.pipeline = self._build()

    def __call__(
        self, blobs: Sequence[bytes], start: Sequence[tuple[float, float]], end: Sequence[tuple[float, float]]
    ) -> DaliDecoded:
        """Decode and resize the part of every image from ``start`` (top, left) to ``end`` (bottom, right), stored px.

        Raises:
            RefusedError: one of the images cannot be decoded.
        """
        try:
            canvas, shape, last = self.pipeline.run(
                blob=[np.frombuffer(blob, np.uint8) for blob in blobs],
                start=np.array(start, np.float32),
                end=np.array(end, np.float32),
            )
        except RuntimeError as error:
            self.pipeline = self._build()  # a graph that has failed once cannot run again; this takes 2 ms
            raise RefusedError(str(error)) from error
        return DaliDecoded(
            np.asarray(canvas.as_tensor()), np.asarray(shape.as_tensor())[:, :2], np.asarray(last.as_tensor())
        )

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
            canvas = fn.resize(
                image,
                size=[self.side, self.side],
                roi_start=start,
                roi_end=end,
                interp_type=types.INTERP_CUBIC,
                antialias=True,
                subpixel_scale=False,
            )
            pipeline.set_outputs(canvas, image.shape(), image[-1, -1])
        pipeline.build()
        return pipeline
