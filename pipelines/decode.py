"""Decode images to canvases: resize the shorter side to S / crop_pct (8/7 S), crop the centre S x S.

The result depends only on the image's bytes. Intact 8-bit JPEG and PNG files are decoded by DALI in groups. An image
that DALI rejects goes to Pillow, which decodes all other formats, and its group is retried in halves. Damaged images
are quarantined; :mod:`.image_header` and :mod:`.image_formats` document which damage is detected. On a GPU, canvases
stay on the device; images decoded by Pillow are uploaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from substyle.errors import ConfigError, ImageError
from substyle.kernels.dispatch import as_device, upload
from substyle.pipelines import image_formats, image_header
from substyle.pipelines.dali import DaliDecoder, RefusedError
from substyle.pipelines.image_header import (
    CROP_PCT,
    ORIENTATIONS,
    PILLOW_ERRORS,
    ImageHeader,
    Interval,
    open_image,
    short,
)

Box = tuple[float, float, float, float]

_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


def decode(blob: bytes, head: ImageHeader, side: int, box: Box) -> NDArray[np.uint8]:
    """Decode the first frame of an image with Pillow and resize a box of it (antialiased cubic).

    Args:
        box: left, top, right, bottom in px of the stored image.

    Returns:
        (S, S, 3) uint8, EXIF orientation not applied.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason for quarantine.
    """
    with _loaded(blob) as image:
        if (image.height, image.width) != head.stored:
            raise ImageError(f"{image.width} x {image.height} pixels, which contradicts its header")
        if head.markers is not None and grey(np.asarray(image.getpixel((image.width - 1, image.height - 1)))):
            require_tail(blob, head.markers)
        if head.chunks is not None and (head.chunks.interlaced or not _last_row(image).any()):
            image_formats.require_rows(blob, head.chunks)
        try:
            rgb = _rgb(image)
            return np.asarray(rgb.resize((side, side), Image.Resampling.BICUBIC, box=box))
        except PILLOW_ERRORS as error:
            raise _refused(error) from error


def grey(pixel_C: NDArray[np.integer]) -> bool:
    """Whether the last pixel of a JPEG is the grey that decoders fill missing blocks with: 128 in every channel."""
    return bool(np.abs(pixel_C.astype(np.int64) - 128).max() <= 1)


def require_tail(blob: bytes, markers: image_formats.Jpeg) -> None:
    """Raise if the data of a JPEG end before the image is complete: appended data then change the pixels.

    Decoders fill missing blocks with grey and at most print a warning. This decodes the image twice, so call it only
    for images that end in that grey. Arithmetic coding may omit trailing zeros and is not checked.

    Raises:
        ImageError: the data end early.
    """
    if not markers.huffman:
        return
    digests = set()
    for data in (blob, image_formats.with_more_data(blob, markers)):
        with _loaded(data) as image:
            digests.add(hashlib.blake2b(image.tobytes()).digest())
    if len(digests) > 1:
        raise ImageError("truncated JPEG (data end before the image is complete)")


def _loaded(blob: bytes) -> Image.Image:
    image = open_image(blob)
    try:
        image.load()
    except PILLOW_ERRORS as error:
        raise _refused(error) from error
    return image


def _last_row(image: Image.Image) -> NDArray[np.generic]:
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))


def _refused(error: BaseException) -> ImageError:
    return ImageError(f"decoding failed ({short(error)})")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Transparency is dropped, as in timm and open_clip."""
    if image.mode.startswith("I;16"):  # Pillow's conversion clips at 255
        tags = getattr(image, "tag_v2", {})
        bits, zero = tags.get(_BITS, (16,)), tags.get(_PHOTOMETRIC, 1)
        if bits != (16,) or zero == _WHITE_IS_ZERO:
            raise ImageError(f"unsupported {bits[0]}-bit grey{', white is zero' if zero == _WHITE_IS_ZERO else ''}")
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixel mode {image.mode} has no defined range")
    return image.convert("RGB")


log = logging.getLogger(__name__)

GROUP_PIXELS = 64_000_000  # decoded source pixels per DALI run, 192 MB

__all__ = ["ORIENTATIONS", "Decoded", "Decoder"]


@dataclass(frozen=True)
class Decoded:
    """A batch of B canvases.

    Attributes:
        canvas_BSSC: (B, S, S, 3) uint8, on the decoder's device; zeros for quarantined images.
        ok_B: (B,) bool, False for quarantined images.
        reasons: reason for quarantine per image, or None.
        size_B2: (B, 2) int32, height and width of the (upright) image in px; zeros if unknown.
    """

    canvas_BSSC: torch.Tensor
    ok_B: NDArray[np.bool_]
    reasons: list[str | None]
    size_B2: NDArray[np.int32]


@dataclass(frozen=True)
class _Item:
    index: int
    blob: bytes
    head: image_header.ImageHeader
    rows: Interval  # first and last row of the crop, in px of the stored image
    columns: Interval

    @property
    def pixels(self) -> int:
        return self.head.height * self.head.width


class Decoder:
    """Decode batches of encoded images; a bad image never fails the batch.

    Args:
        side: canvas side S in pixels.
        batch: maximum number of images per call.
        threads: CPU threads.
        device: device for JPEG decoding and canvases: ``cpu``, ``cuda`` or ``cuda:N``.
        max_pixels: images whose header declares more pixels are quarantined without decoding.
        orientation: ``ignore`` uses images as stored, as timm and open_clip do; ``apply`` applies the EXIF orientation
            before cropping. Pillow always applies it to TIFF files.
        crop_pct: part of the shorter side that the canvas shows, from 0.1 to 1.
    """

    def __init__(
        self,
        side: int,
        batch: int,
        threads: int,
        *,
        device: str = "cpu",
        max_pixels: int = image_header.MAX_PIXELS,
        orientation: str = "ignore",
        crop_pct: float = CROP_PCT,
    ) -> None:
        self.device = as_device(device)
        if not 0.1 <= crop_pct <= 1:
            raise ConfigError("crop_pct", crop_pct, "a number from 0.1 to 1")
        if orientation not in ORIENTATIONS:
            raise ConfigError("orientation", orientation, ", ".join(ORIENTATIONS))
        self.side, self.batch, self.threads, self.max_pixels = side, batch, threads, max_pixels
        self.short = round(side / crop_pct)
        self.upright = orientation == "apply"
        self.dali = DaliDecoder(side, batch, threads, self.device)

    def __call__(self, blobs: Sequence[bytes]) -> Decoded:
        """Decode B images, 0 ≤ B ≤ batch. A canvas depends only on the bytes of its image."""
        if len(blobs) > self.batch:
            raise ConfigError("blobs", f"{len(blobs)} images", f"at most {self.batch}")
        count = len(blobs)
        result = Decoded(
            _zeros((count, self.side, self.side, 3), self.device),
            np.zeros(count, np.bool_),
            [None] * count,
            np.zeros((count, 2), np.int32),
        )
        for_dali: list[_Item] = []
        for index, blob in enumerate(blobs):
            try:
                item = self._item(index, blob)
            except ImageError as error:
                result.reasons[index] = str(error)
                continue
            result.size_B2[index] = item.head.height, item.head.width
            if item.head.for_dali is not None:
                for_dali.append(item)
            else:
                self._with_pillow(item, result)
        for group in _groups(for_dali):
            self._with_dali(group, result)
        return result

    def _item(self, index: int, blob: bytes) -> _Item:
        head = image_header.inspect(blob, self.max_pixels, upright=self.upright)
        rows, columns = _centre(head.height, head.width, self.side, self.short)
        rows, columns = image_header.stored(rows, columns, head.stored, head.orientation)
        return _Item(index, blob, head, rows, columns)

    def _with_dali(self, items: Sequence[_Item], result: Decoded) -> None:
        try:
            decoded = self.dali(
                [item.head.for_dali or item.blob for item in items],
                [(item.rows[0], item.columns[0]) for item in items],
                [(item.rows[1], item.columns[1]) for item in items],
            )
        except RefusedError as error:
            log.debug("DALI rejected a group of %d images: %s", len(items), error)
            if error.exhausted and len(items) == 1:  # Pillow's pixels may differ: only for what DALI never decodes
                raise
            at = 0 if len(items) == 1 else error.index
            if at is not None:
                self._with_pillow(items[at], result)
                items = [*items[:at], *items[at + 1 :]]
            half = len(items) // 2  # further images may be rejected: half a group is less to repeat
            for part in (items[:half], items[half:]):
                if part:
                    self._with_dali(part, result)
            return
        accepted: list[tuple[int, _Item]] = []
        for i, item in enumerate(items):
            if tuple(decoded.size_B2[i]) != item.head.stored:
                self._with_pillow(item, result)
                continue
            try:
                if item.head.markers is not None and grey(decoded.last_BC[i]):
                    require_tail(item.blob, item.head.markers)
            except ImageError as error:
                result.reasons[item.index] = str(error)
                continue
            accepted.append((i, item))
        _take(accepted, decoded.canvas_BSSC, result)

    def _with_pillow(self, item: _Item, result: Decoded) -> None:
        (top, bottom), (left, right) = item.rows, item.columns
        try:
            canvas = decode(item.blob, item.head, self.side, (left, top, right, bottom))
        except ImageError as error:
            result.reasons[item.index] = str(error)
            return
        _take([(0, item)], upload(np.array(canvas)[None], self.device), result)  # Pillow's array is read-only


def _take(accepted: Sequence[tuple[int, _Item]], canvas_BSSC: torch.Tensor, result: Decoded) -> None:
    """Copy the accepted canvases to the result, upright; ``accepted`` holds (index of the canvas, item) pairs."""
    copy = _copy_one_by_one if canvas_BSSC.device.type == "cpu" else _copy_at_once
    copy(accepted, canvas_BSSC, result.canvas_BSSC)
    for _, item in accepted:
        result.ok_B[item.index] = True


def _copy_one_by_one(accepted: Sequence[tuple[int, _Item]], from_BSSC: torch.Tensor, to_BSSC: torch.Tensor) -> None:
    source, target = from_BSSC.numpy(), to_BSSC.numpy()  # torch would wake its threads for each image
    for i, item in accepted:
        target[item.index] = image_header.turn(source[i], item.head.orientation)


def _copy_at_once(accepted: Sequence[tuple[int, _Item]], from_BSSC: torch.Tensor, to_BSSC: torch.Tensor) -> None:
    """Copy on a GPU, where a launch takes as long as the copy of one image."""
    upright = [(i, item.index) for i, item in accepted if item.head.orientation == image_header.UPRIGHT]
    if upright:
        numbers, places = (upload(np.array(column), from_BSSC.device) for column in zip(*upright, strict=True))
        to_BSSC.index_copy_(0, places, from_BSSC.index_select(0, numbers))
    for i, item in accepted:
        if item.head.orientation != image_header.UPRIGHT:
            to_BSSC[item.index] = image_header.turn(from_BSSC[i], item.head.orientation)


def _zeros(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.uint8))  # pages are zeroed lazily
    return torch.zeros(shape, dtype=torch.uint8, device=device)


def _centre(height: int, width: int, side: int, short: int) -> tuple[Interval, Interval]:
    """First and last row and column of the part of an image that becomes the canvas, in px.

    The part kept by resizing the shorter side to ``short`` and cropping the centre, with the rounding of
    ``torchvision.transforms.Resize`` and ``CenterCrop``. Resizing only this part avoids huge intermediates for images
    1 px high and thousands wide.
    """
    shorter = min(height, width)
    parts = []
    for length in (height, width):
        resized = short * length // shorter
        first = round((resized - side) / 2)
        parts.append((first * length / resized, (first + side) * length / resized))
    return parts[0], parts[1]


def _groups(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Split a batch into groups of at most GROUP_PIXELS; a larger image forms its own group."""
    group: list[_Item] = []
    for item in items:
        if group and sum(i.pixels for i in group) + item.pixels > GROUP_PIXELS:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
