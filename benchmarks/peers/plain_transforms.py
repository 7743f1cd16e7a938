"""The substance31 transformations as a plain script: one picture at a time, parameters from NumPy's generator.

Parameters have the ranges of the suite. Pictures are (S, S, 3) uint8 with S = 224.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from skimage.transform import swirl as skimage_swirl

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Rng = np.random.Generator
SIDE = 224
WORDS = ("apple", "bridge", "candle", "desert", "eagle", "forest", "guitar", "harbor", "island", "jungle")
cv2.setNumThreads(1)  # the parallelism is over workers
MIRRORED = cv2.BORDER_REFLECT_101
Y, X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def _clip(values: NDArray[np.floating]) -> U8:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _gaussian(picture: NDArray[Any], sigma: float) -> NDArray[Any]:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma, borderType=MIRRORED))


def _filtered(picture: U8, kernel: F32) -> U8:
    return np.asarray(cv2.filter2D(picture, -1, kernel, borderType=MIRRORED))


def _sampled(picture: U8, x: F32, y: F32) -> U8:
    return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=MIRRORED))


def _enlarged(field: F32) -> F32:
    """A grid of node values, linear between nodes. Shape: (K, K) to (S, S)."""
    x, y = np.meshgrid(*[np.linspace(0, len(field) - 1, SIDE, dtype=np.float32)] * 2)
    return np.asarray(cv2.remap(field, x, y, cv2.INTER_LINEAR))


def identity(p: U8, rng: Rng) -> U8:
    return p


def gaussian_blur(p: U8, rng: Rng) -> U8:
    return _gaussian(p, float(rng.choice((2, 3, 4, 6))))


def motion_blur(p: U8, rng: Rng) -> U8:
    radius, sigma = ((15, 5), (15, 8), (15, 12), (20, 15))[rng.integers(4)]
    angle = math.radians(rng.uniform(-45, 45))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-0.5 * (along / sigma) ** 2) * np.clip(1 - np.abs(across), 0, 1) * (np.abs(along) <= radius)
    return _filtered(p, (kernel / kernel.sum()).astype(np.float32))


def defocus_blur(p: U8, rng: Rng) -> U8:
    radius = rng.choice((4, 6, 8, 10))
    size = radius + 3
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.float32)
    disk = _gaussian(disk, 0.5)
    return _filtered(p, disk / disk.sum())


def zoom_blur(p: U8, rng: Rng) -> U8:
    total = np.zeros(p.shape, np.float32)
    picture = Image.fromarray(p)
    for zoom in np.geomspace(1, rng.choice((1.15, 1.20, 1.25, 1.30)), 16):
        half = SIDE / 2 / zoom
        box = (SIDE / 2 - half, SIDE / 2 - half, SIDE / 2 + half, SIDE / 2 + half)
        total += np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))
    return _clip(total / 16)


def gaussian_noise(p: U8, rng: Rng) -> U8:
    std = 255 * rng.choice((0.12, 0.18, 0.26, 0.38))
    return _clip(p + rng.standard_normal(p.shape, dtype=np.float32) * np.float32(std))


def impulse_noise(p: U8, rng: Rng) -> U8:
    amount, u, out = rng.choice((0.06, 0.09, 0.17, 0.27)), rng.random(p.shape, dtype=np.float32), p.copy()
    out[u < amount / 2] = 0
    out[u > 1 - amount / 2] = 255
    return out


def shot_noise(p: U8, rng: Rng) -> U8:
    rate = float(rng.choice((25, 12, 5, 3)))
    return _clip(rng.poisson(p * (rate / 255)) * (255 / rate))


def hue_shift(p: U8, rng: Rng) -> U8:
    hsv = np.array(Image.fromarray(p).convert("HSV"))
    turn = rng.uniform(36, 180) * rng.choice((-1, 1))
    hsv[..., 0] += np.uint8(round(turn * 256 / 360) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def grayscale(p: U8, rng: Rng) -> U8:
    return np.asarray(Image.fromarray(p).convert("L").convert("RGB"))


def channel_permute(p: U8, rng: Rng) -> U8:
    order = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[rng.integers(5)]
    return np.ascontiguousarray(p[..., order])


def brightness(p: U8, rng: Rng) -> U8:
    return _clip(p + np.float32(255 * rng.choice((0.2, 0.3, 0.4, 0.5))))


def low_contrast(p: U8, rng: Rng) -> U8:
    mean = p.mean(dtype=np.float32)
    return _clip((p - mean) * np.float32(rng.choice((0.3, 0.2, 0.1, 0.05))) + mean)


def saturate(p: U8, rng: Rng) -> U8:
    return np.asarray(ImageEnhance.Color(Image.fromarray(p)).enhance(float(rng.choice((3, 5)))))


def jpeg(p: U8, rng: Rng) -> U8:
    buffer = io.BytesIO()
    Image.fromarray(p).save(buffer, "JPEG", quality=int(rng.choice((18, 15, 10, 7))))
    return np.asarray(Image.open(buffer))


def pixelate(p: U8, rng: Rng) -> U8:
    small = round(SIDE * rng.choice((0.5, 0.4, 0.3, 0.25)))
    reduced = Image.fromarray(p).resize((small, small), Image.Resampling.BOX)
    return np.asarray(reduced.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def low_resolution(p: U8, rng: Rng) -> U8:
    small = round(SIDE * rng.uniform(0.15, 0.35))
    reduced = Image.fromarray(p).resize((small, small), Image.Resampling.BICUBIC)
    return np.asarray(reduced.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def elastic(p: U8, rng: Rng) -> U8:
    amplitude = np.float32(rng.choice((16, 21, 25, 30)))
    dx, dy = (_gaussian(rng.uniform(-1, 1, (SIDE, SIDE)).astype(np.float32), 0.01 * SIDE) for _ in range(2))
    return _sampled(p, X + amplitude * dx, Y + amplitude * dy)


def grid_distortion(p: U8, rng: Rng) -> U8:
    nodes = rng.uniform(-0.3, 0.3, (2, 6, 6)).astype(np.float32) * np.float32(SIDE / 5)
    dx, dy = (_enlarged(field) for field in nodes)
    return _sampled(p, X + dx, Y + dy)


def swirl(p: U8, rng: Rng) -> U8:
    x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.75)
    turned = skimage_swirl(
        p, (x * SIDE, y * SIDE), rng.uniform(3, 6), radius * SIDE, mode="reflect", preserve_range=True
    )
    return _clip(turned)


def _overlay(p: U8, page: Image.Image, rng: Rng, alpha: float, angle: float) -> U8:
    """Rotate a tiled page of coverage and blend its centre over the picture in a vivid colour."""
    shift = tuple(rng.integers(-16, 17, 2).tolist())
    turned = page.rotate(angle, Image.Resampling.BILINEAR, translate=shift)
    left = (page.width - SIDE) // 2
    cover = np.asarray(turned.crop((left, left, left + SIDE, left + SIDE)), np.float32)[..., None] / 255 * alpha
    colour = np.asarray(Image.new("HSV", (1, 1), (int(rng.integers(256)), 255, 255)).convert("RGB"), np.float32)
    return _clip(p + (colour - p) * cover)


def _tiled(cell: Image.Image, turn_by: int = 0) -> Image.Image:
    side = 2 * SIDE
    page = Image.new("L", (side, side))
    for row, top in enumerate(range(0, side, cell.height)):
        for left in range(-(row * turn_by) % cell.width - cell.width, side, cell.width):
            page.paste(cell, (left, top))
    return page


@lru_cache(maxsize=512)
def _icon(kind: int, pitch: int) -> Image.Image:
    """Draw one of 32 icons: polygons, stars and rings with 3 to 10 corners."""
    cell = Image.new("L", (4 * pitch, 4 * pitch))
    corners, inner = 3 + kind % 8, (1.0, 0.4, 0.6, 1.0)[kind // 8]
    points = []
    for i in range(2 * corners):
        angle, radius = math.pi * i / corners, 1.7 * pitch * (inner if i % 2 else 1.0)
        points.append((2 * pitch + radius * math.sin(angle), 2 * pitch - radius * math.cos(angle)))
    ImageDraw.Draw(cell).polygon(points, fill=255)
    if kind >= 24:
        ImageDraw.Draw(cell).ellipse((pitch, pitch, 3 * pitch, 3 * pitch), fill=0)
    return cell.resize((pitch, pitch), Image.Resampling.BOX)


def icon_overlay(p: U8, rng: Rng) -> U8:
    page = _tiled(_icon(int(rng.integers(32)), round(rng.uniform(20, 32))))
    return _overlay(p, page, rng, rng.uniform(0.4, 0.6), rng.uniform(-20, 20))


@lru_cache(maxsize=512)
def _word(word: str, pitch: int) -> Image.Image:
    font = ImageFont.load_default(size=0.92 * pitch)
    cell = Image.new("L", (math.ceil(font.getlength(word) + 0.6 * pitch), pitch))
    ImageDraw.Draw(cell).text((cell.width / 2, pitch / 2), word, fill=255, font=font, anchor="mm")
    return cell


def text_overlay(p: U8, rng: Rng) -> U8:
    cell = _word(str(rng.choice(WORDS)), round(rng.uniform(14, 24)))
    return _overlay(p, _tiled(cell, round(0.382 * cell.width)), rng, 1.0, rng.uniform(-20, 20))


def color_pattern(p: U8, rng: Rng) -> U8:
    pitch, kind = rng.uniform(6, 12), rng.integers(4)
    x, y = X / pitch, Y / pitch
    page = (
        (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1,
        x % 1 < 0.3,
        (x % 1 < 0.5) ^ (y % 1 < 0.5),
        (x % 1 < 0.2) | (y % 1 < 0.2),
    )[kind]
    tile = np.tile((255 * page).astype(np.uint8), (2, 2))
    return _overlay(p, Image.fromarray(tile), rng, rng.uniform(0.5, 0.8), rng.uniform(0, 90))


def dot_halftone(p: U8, rng: Rng) -> U8:
    out = np.empty_like(p)
    for c in range(3):
        cell, angle = rng.uniform(4, 8), math.radians(rng.uniform(0, 90))
        u = (X * math.cos(angle) + Y * math.sin(angle)) / cell
        v = (Y * math.cos(angle) - X * math.sin(angle)) / cell
        distance = np.hypot(u - np.rint(u), v - np.rint(v)) * cell
        radius = np.sqrt((1 - p[..., c] / np.float32(255)) / math.pi) * cell
        out[..., c] = _clip(255 * np.clip(distance - radius + 0.5, 0, 1))
    return out


def line_halftone(p: U8, rng: Rng) -> U8:
    pitch, angle = rng.uniform(4, 8), math.radians(rng.uniform(0, 180))
    across = (Y * math.cos(angle) - X * math.sin(angle)) / pitch
    distance = np.abs(across - np.rint(across))[..., None] * pitch
    width = 0.5 * (1 - p / np.float32(255)) * pitch
    return _clip(255 * np.clip(distance - width + 0.5, 0, 1))


def inverted_lines(p: U8, rng: Rng) -> U8:
    out = p.copy()
    bands = np.floor(np.arange(SIDE) / rng.uniform(8, 20) + 2 * rng.random()) % 2 == 1
    lines = out if rng.random() < 0.5 else out.transpose(1, 0, 2)
    lines[bands] = 255 - lines[bands]
    return out


ALL: dict[str, Callable[[U8, Rng], U8]] = {
    each.__name__: each
    for each in (
        *(identity, gaussian_blur, motion_blur, defocus_blur, zoom_blur, gaussian_noise, impulse_noise, shot_noise),
        *(hue_shift, grayscale, channel_permute, brightness, low_contrast, saturate, jpeg, pixelate, low_resolution),
        *(elastic, grid_distortion, swirl, icon_overlay, text_overlay, color_pattern, dot_halftone, line_halftone),
        inverted_lines,
    )
}
STYLES = {"style_starry": 19, "style_glass": 15, "style_expressionist": 13, "style_wave": 24, "style_fauvist": 5}
