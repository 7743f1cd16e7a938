"""Kind *style*: ten published stylisations without a network, four styles each.

Each generator is one function of one picture, made of calls of NumPy, SciPy, scikit-image and Pillow, and no two share
the algorithm that gives the look. Its four styles are four sets of parameters. Random numbers inside, such as the
places of dots, come from the image's key.

Pictures are drawn on the host, on as many threads as torch uses. A canvas on a GPU is copied to the host and the styles
back, which waits for the work queued on the GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy  # imports its modules when they are used
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from substyle.kernels import philox
from substyle.kernels.dispatch import for_each_image, upload
from substyle.pipelines.transforms.base import SUITES, Arrays, Choice, Parameter, Uniform, kernel
from substyle.pipelines.transforms.suites.fields import LUMA, Keys

# twelve independent generators of styles, four styles each
SUITES["styles48"] = (
    "identity",
    *("style_starry", "style_expressionist", "style_wave", "style_fauvist"),
    *("style_arbitrary", "style_bricks", "style_gravel", "style_retina"),
    *(
        f"style_{generator}_{style}"
        for generator, styles in (
            ("leaded", ("window", "cathedral", "tesserae", "agate")),
            ("lowpoly", ("coarse", "fine", "wire", "crystal")),
            ("kuwahara", ("gouache", "palette", "noir", "poster")),
            ("ink", ("pen", "brush", "blueprint", "tinted")),
            ("flow", ("short", "long", "rays", "fur")),
            ("stipple", ("pointillist", "engraver", "night", "beads")),
            ("strokes", ("impressionist", "expressionist", "dabs", "bold")),
            ("pencil", ("graphite", "hatching", "crayon", "sanguine")),
            ("watercolor", ("wash", "wet", "dry", "indigo")),
            ("glyphs", ("typewriter", "terminal", "confetti", "stitches")),
        )
        for style in styles
    ),
)

F32 = NDArray[np.float32]
Picture = NDArray[Any]  # (S, S, 3) of any floating type
Places = NDArray[Any]  # complex: x + iy in pixels
Random = Callable[..., F32]  # random(*shape): uniform numbers in (0, 1), others with each call
Style = Callable[[F32, Random, SimpleNamespace], Picture]  # of a picture in [0, 1], with the drawn parameters


def _random(key: np.uint64, name: str) -> Random:
    streams = itertools.count(philox.NOISE)

    def numbers(*shape: int) -> F32:
        drawn = np.empty(math.prod(shape), np.uint16)
        philox.bits16(key, name, drawn, stream=next(streams))
        return ((drawn.reshape(shape) + np.float32(0.5)) / np.float32(65536)).astype(np.float32)

    return numbers


def each_picture(style: Style, canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Draw every picture of a batch in a style, on the host. Shape: (B, S, S, 3) uint8, on the canvas's device."""
    if canvas_BSSC.is_meta:
        return torch.empty_like(canvas_BSSC)
    source = canvas_BSSC.cpu().numpy()
    made = np.empty_like(source)

    def one(i: int) -> None:
        x_SSC = source[i].astype(np.float32) / np.float32(255)
        parameters = SimpleNamespace(**{name: values[i] for name, values in args.items()})
        made[i] = np.clip(style(x_SSC, _random(keys_B[i], style.__name__), parameters), 0, 1) * 255 + 0.5

    for_each_image(len(source), one)
    return upload(made, canvas_BSSC.device)


def generator(columns: str, **styles: tuple[Any, ...]) -> Callable[[Style], Style]:
    """Register the styles of a generator, the decorated function, as ``style_<generator>_<style>``.

    ``columns`` are its parameters with their units; of a style's values, pairs are bounds to draw from.
    """
    named = [each.partition(" ")[::2] for each in columns.split(", ")]

    def parameter(name: str, unit: str, value: Any) -> Parameter:  # noqa: ANN401 - a number or a tuple of numbers
        if isinstance(value, tuple) and len(value) == 2:
            return Uniform(name, value[0], value[1], unit)
        return Choice(name, (value,), unit)

    def decorate(style: Style) -> Style:
        of, drawn = style.__name__, partial(each_picture, style)
        for name, values in styles.items():
            made = [parameter(*each, value) for each, value in zip(named, values, strict=True)]
            kernel(f"style_{of}_{name}", kind="style", role="held_out", parameters=made, generator=of)(drawn)
        return style

    return decorate


def luma(x_SSC: F32) -> F32:
    """Brightness; drops the last axis."""
    return np.asarray(np.einsum("...c,c->...", x_SSC, np.array(LUMA, np.float32)))


def blurred(x: F32, sigma: float) -> F32:
    """Gaussian blur of a plane or of all channels."""
    return np.asarray(scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], truncate=2.5))


def saturated(x_SSC: F32, factor: float) -> F32:
    """Scale the difference from grey."""
    grey = luma(x_SSC)[..., None]
    return grey + np.float32(factor) * (x_SSC - grey)


def between(dark: Picture, light: Picture, share_SS: F32) -> F32:
    """Mix two colours, given as levels. Shape: (S, S, 3)."""
    return np.asarray((dark + (light - dark) * share_SS[..., None]) / 255, np.float32)


def stretched(x: F32) -> F32:
    """Darkest and lightest values to 0 and 1, but for 2 % at each end; as it is if there is hardly any contrast."""
    low, high = np.percentile(x[::2, ::2], (2, 98)).astype(np.float32)
    return np.clip((x - low) / (high - low), 0, 1) if high > low + 0.02 else x


def mean_colours(label_SS: NDArray[np.integer], x_SSC: F32) -> F32:
    """Mean colour of each label. Shape: (labels, 3)."""
    label = label_SS.ravel()
    count = np.maximum(np.bincount(label), 1)
    sums = [np.bincount(label, x_SSC[..., c].ravel()) for c in range(3)]
    return (np.stack(sums, 1) / count[:, None]).astype(np.float32)


def seams(label_SS: NDArray[np.integer], width: float) -> F32:
    """Cover of lines of a width in pixels between labels, from 0 to 1. Shape: (S, S)."""
    edge = np.zeros(label_SS.shape, np.bool_)
    edge[:-1] |= label_SS[1:] != label_SS[:-1]
    edge[:, :-1] |= label_SS[:, 1:] != label_SS[:, :-1]
    if not edge.any():
        return np.zeros(label_SS.shape, np.float32)
    return np.asarray(np.clip(width / 2 + 0.5 - scipy.ndimage.distance_transform_edt(~edge), 0, 1), np.float32)


def along_edges(plane_SS: F32, sigma: float) -> Places:
    """Directions x + iy of length 1 along the edges, from the smoothed structure tensor. Shape: (S, S)."""
    across, down = scipy.ndimage.sobel(plane_SS, 1), scipy.ndimage.sobel(plane_SS, 0)
    # eigenvector of the smaller eigenvalue; the last term decides where there is no edge
    difference = blurred(across * across - down * down, sigma) - np.float32(1e-6)
    angle = np.arctan2(2 * blurred(across * down, sigma), difference) / 2
    return np.asarray(-np.sin(angle) + 1j * np.cos(angle), np.complex64)


def onwards(heading: Places, step: Places) -> Places:
    """Directions without a sign, each with that of the step before."""
    return np.asarray(heading * np.copysign(np.float32(1), (heading * step.conj()).real))


def pixel(place: Places, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the pixels nearest to places x + iy."""
    return tuple(np.rint(part).astype(np.int64).clip(0, side - 1) for part in (place.imag, place.real))


def drawn_places(density_SS: F32, count: int, random: Random) -> Places:
    """Places x + iy of pixels, drawn in proportion to a density."""
    chance = np.cumsum(density_SS, dtype=np.float64)
    at = np.searchsorted(chance, (np.arange(count) + random(count)) / count * chance[-1]).clip(max=density_SS.size - 1)
    return np.asarray(at % len(density_SS) + 1j * (at // len(density_SS)), np.complex64)


def discs(canvas_SSC: F32, centre_N: Places, radius: float, colour_N3: F32) -> F32:
    """Paint discs around x + iy, later ones over earlier ones. Shape: (S, S, 3)."""
    side, reach = len(canvas_SSC), math.ceil(radius)
    wide = side + 2 * reach
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside_K = (y * wide + x)[y * y + x * x <= (radius + 0.2) ** 2]
    row, column = pixel(centre_N, side)
    number = np.zeros((wide, wide), np.int32)  # of the disc on top, from 1
    number.ravel()[((row + reach) * wide + column + reach)[:, None] + inside_K] = np.arange(1, len(row) + 1)[:, None]
    number = number[reach : reach + side, reach : reach + side]
    colours = np.concatenate([np.zeros((1, 3), np.float32), colour_N3], dtype=np.float32)
    return np.where(number[..., None] > 0, np.take(colours, number, 0), canvas_SSC)


@generator(
    "pane px, lead px, compact, vivid, rim",
    window=((17, 23), 2.6, 0.2, 1.9, 20),
    cathedral=((9, 12), 1.5, 0.15, 1.6, 10),
    tesserae=((8, 10), 1.8, 0.35, 1.1, 225),
    agate=((12, 16), 1.2, 0.1, 0.25, 250),
)
def leaded(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Stained glass: superpixels of one colour in cames of lead.

    Achanta, Shaji, Smith, Lucchi, Fua, Süsstrunk, "SLIC superpixels", PAMI 2012.
    """
    from skimage.segmentation import slic  # slow to import

    count = max(int((len(x_SSC) / p.pane) ** 2), 2)
    label = slic(blurred(x_SSC, p.pane / 10), count, float(p.compact), max_num_iter=3, convert2lab=False, start_label=0)
    colour = saturated(mean_colours(label, x_SSC), p.vivid)
    colour *= 0.8 + 0.4 * random(len(colour), 1)
    cover = seams(label, p.lead)[..., None]
    return np.asarray(np.take(colour, label, 0) * (1 - cover) + p.rim / 255 * cover)


@generator(
    "spacing px, edges, line, vivid, facet",
    coarse=((19, 25), 1.0, 0.0, 1.3, 0.1),
    fine=((8, 10), 3.0, 0.0, 1.2, 0.12),
    wire=((12, 15), 2.0, 1.0, 0.8, 0.0),
    crystal=((12, 16), 0.3, 0.0, 0.15, 0.22),
)
def lowpoly(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Triangles of one colour, small where there are edges.

    Points drawn in proportion to the gradient and triangulated after Delaunay, as in Gai and Wang, "Artistic low poly
    rendering for images", The Visual Computer 2016.
    """
    from scipy.spatial import Delaunay  # slow to import

    side = len(x_SSC)
    detail = blurred(scipy.ndimage.gaussian_gradient_magnitude(luma(x_SSC), 1.0), p.spacing / 8)
    density = 1 + p.edges * detail / max(float(detail.mean()), 1e-3)
    drawn = drawn_places(density, max(int((side / p.spacing) ** 2), 4), random)
    line = np.linspace(-1, side, max(int(side / p.spacing / 2), 2) + 1)
    grid = line + 1j * line[:, None]
    points = np.unique(np.concatenate([grid[0], grid[-1], grid[:, 0], grid[:, -1], drawn]))
    y, x = np.mgrid[0.0:side, 0.0:side]
    label = Delaunay(np.stack([points.imag, points.real], 1)).find_simplex(np.stack([y, x], -1))
    colour = saturated(mean_colours(label, x_SSC), p.vivid)
    colour *= 1 - p.facet + 2 * p.facet * random(len(colour), 1)
    return np.asarray(np.take(colour, label, 0) + 0.6 * p.line * seams(label, 0.8 * side / 224)[..., None])


@generator(
    "radius px, sectors, sharpness, vivid, levels",
    gouache=((3, 3.6), 8, 3, 1.7, 0),
    palette=((6, 7), 4, 9, 0.7, 0),
    noir=((3.5, 4.5), 8, 4, 0, 3),
    poster=((3, 4), 8, 4, 1.8, 5),
)
def kuwahara(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Each pixel becomes the mean of the most uniform areas around it.

    Kuwahara et al. 1976, with Gaussian sectors and soft weights: Papari, Petkov, Campisi, "Artistic edge and corner
    enhancing smoothing", Transactions on Image Processing 2007.
    """
    side, reach = len(x_SSC), math.ceil(p.radius)
    grey = luma(x_SSC)
    both = np.concatenate([blurred(x_SSC, p.radius / 2), blurred(grey * grey, p.radius / 2)[..., None]], 2)
    both[..., 3] -= luma(both[..., :3]) ** 2  # variance
    both = np.pad(both, ((reach, reach), (reach, reach), (0, 0)), "edge")
    total, weights = np.zeros_like(x_SSC), np.zeros((side, side, 1), np.float32)
    for turn in (np.arange(int(p.sectors)) + 0.5) * 2 * np.pi / p.sectors:
        top, left = reach + round(p.radius * math.sin(turn)), reach + round(p.radius * math.cos(turn))
        sector = both[top : top + side, left : left + side]
        weight = (np.maximum(sector[..., 3:], 0) + np.float32(1e-4)) ** np.float32(-p.sharpness)
        total += weight * sector[..., :3]
        weights += weight
    smooth = stretched(saturated(total / weights, p.vivid))
    return np.round(smooth * p.levels) / p.levels if p.levels else smooth


@generator(
    "sigma px, sharp, slope, level, colour, ink level, paper level",
    pen=((0.7, 0.9), 20, 25, 1.0, 0, (15, 15, 20), (255, 255, 255)),
    brush=((2.0, 2.6), 7, 6, 0.95, 0, (45, 28, 20), (240, 226, 196)),
    blueprint=((1.0, 1.3), 60, 8, 0.7, 0, (235, 240, 255), (20, 55, 135)),
    tinted=((1.0, 1.4), 18, 20, 0.7, 1, (0, 0, 0), (255, 255, 255)),
)
def ink(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Black ink: a difference of Gaussians added to the picture, then a soft threshold.

    Winnemöller, Kyprianidis, Olsen, "XDoG: An eXtended difference-of-Gaussians compendium", Computers & Graphics 2012.
    """
    grey = stretched(luma(x_SSC))
    narrow, wide = blurred(grey, p.sigma), blurred(grey, 1.6 * p.sigma)
    raised = narrow + np.float32(p.sharp) * (narrow - wide) - np.float32(p.level) * narrow.mean()
    tone = np.where(raised >= 0, np.float32(1), 1 + np.tanh(np.float32(p.slope) * raised))
    drawn = between(p.ink, p.paper, tone)
    return drawn * (0.35 + 0.65 * saturated(blurred(x_SSC, 2 * p.sigma), 1.8)) if p.colour else drawn


@generator(
    "length px, width px, calm px, grain, turn, vivid",
    short=((4, 6), 1.6, 3, 1.1, 0, 1.3),
    long=((9, 11), 2.2, 6, 1.6, 0, 1.6),
    rays=((7, 9), 1.5, 3, 1.1, 90, 1.1),
    fur=((8, 10), 1.5, 4, 1.1, 35, 0.0),
)
def flow(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Strokes along the edges: the picture with noise, averaged along the lines of a direction field.

    Line integral convolution (Cabral and Leedom, "Imaging vector fields using line integral convolution", SIGGRAPH
    1993) along the smoothed structure tensor, turned by so many degrees.
    """
    side, steps = len(x_SSC), max(int(p.length / 1.5), 1)
    heading = along_edges(luma(x_SSC), p.calm) * np.complex64(np.exp(1j * np.radians(p.turn)))
    noise = blurred(random(side, side) - np.float32(0.5), p.width / 2) * np.float32(p.grain * max(p.width, 0.6))
    painted = (saturated(x_SSC, p.vivid) + noise[..., None] * 2).reshape(-1, 3)
    total = painted.copy()
    heading, start = heading.ravel(), np.arange(side * side)
    for sign in (1, -1):
        place = (start % side + 1j * (start // side)).astype(np.complex64)
        step = sign * heading
        for _ in range(steps):
            place += np.float32(1.5) * step
            row, column = pixel(place, side)
            at = row * side + column
            total += np.take(painted, at, 0)  # faster than painted[at]
            step = onwards(heading[at], step)
    return (total / np.float32(2 * steps + 1)).reshape(x_SSC.shape)


def _settled(centre_N: Places, density_SS: F32, rounds: int) -> Places:
    """Move points to the centres of mass of their Voronoi cells, so many times (Lloyd)."""
    side, count = len(density_SS), len(centre_N)
    y, x = np.mgrid[0:side, 0:side]
    moments = [(density_SS * each).ravel() for each in (np.ones_like(x), x, y)]
    for _ in range(rounds):
        number = np.full((side, side), -1)
        number[pixel(centre_N, side)] = np.arange(count)
        nearest = scipy.ndimage.distance_transform_edt(number < 0, return_distances=False, return_indices=True)
        label = number[tuple(nearest)].ravel()
        mass, *sums = (np.bincount(label, each, count) for each in moments)
        middle = (sums[0] + 1j * sums[1]) / np.maximum(mass, 1e-12)
        centre_N = np.where(mass > 0, middle, centre_N).astype(np.complex64)
    return centre_N


@generator(
    "pitch px, dark, dot, vivid, jitter, paper level",
    pointillist=((3.5, 4.1), 0, 0.62, 1.7, 0.16, (244, 236, 214)),
    engraver=((1.8, 2.1), 1, 0.42, -1, 0, (252, 250, 244)),
    night=((2.8, 3.3), -1, 0.45, 2.0, 0.1, (8, 8, 16)),
    beads=((8, 10), 0, 0.47, 1.3, 0.0, (40, 36, 34)),
)
def stipple(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Dots, as dense as the picture is dark (or light, or evenly), in its colours or black.

    Secord, "Weighted Voronoi stippling", NPAR 2002.
    """
    side, grey = len(x_SSC), stretched(luma(x_SSC))
    density = np.float32(0.02) + (1 - grey if p.dark > 0 else grey if p.dark < 0 else np.ones_like(grey)) ** 1.5
    count = max(int(density.mean() * (side / p.pitch) ** 2), 4)
    centre = _settled(drawn_places(density, count, random), density, 2)
    colour = saturated(blurred(x_SSC, p.pitch / 3)[pixel(centre, side)], p.vivid) * (p.vivid >= 0)
    colour += 2 * p.jitter * (random(count, 3) - 0.5)
    large = np.broadcast_to(p.paper / np.float32(255), (2 * side, 2 * side, 3))
    large = discs(large, 2 * centre + (0.5 + 0.5j), max(2 * p.dot * p.pitch, 1.0), colour)
    return (large[::2, ::2] + large[::2, 1::2] + large[1::2, ::2] + large[1::2, 1::2]) / 4


@generator(
    "brush px, steps, error, jitter, vivid",
    impressionist=((9, 5, 3), 5, 0.07, 0.08, 1.2),
    expressionist=((12, 7, 4.2), 5, 0.1, 0.3, 1.7),
    dabs=((7, 4.5, 3), 1, 0.04, 0.2, 1.4),
    bold=((16, 10, 6.5), 4, 0.11, 0.1, 0.7),
)
def strokes(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Curved brush strokes in layers, large ones first, smaller ones where the painting differs from the picture.

    Hertzmann, "Painterly rendering with curved brush strokes of multiple sizes", SIGGRAPH 1998.
    """
    side, painting = len(x_SSC), np.broadcast_to(x_SSC.mean((0, 1)), x_SSC.shape)
    heading, vivid_SSC = along_edges(luma(x_SSC), float(p.brush[-1])), saturated(x_SSC, p.vivid)
    for layer, radius in enumerate(p.brush.tolist()):
        reference = blurred(vivid_SSC, radius / 3)
        differs = luma(np.abs(reference - painting))
        spacing = max(1.2 * radius, 1)
        grid = np.arange(spacing / 2, side, spacing)
        place = (grid + 1j * grid[:, None]).ravel()
        place += spacing * (random(len(place)) - 0.5 + 1j * (random(len(place)) - 0.5))
        place = place[np.argsort(random(len(place)))]
        place = place[differs[pixel(place, side)] > (p.error if layer else -1)]
        colour = reference[pixel(place, side)]
        step, path, goes_on = heading[pixel(place, side)], [place], [np.ones(len(place), np.bool_)]
        for _ in range(int(p.steps) - 1):
            place = place + radius * step
            at = pixel(place, side)
            goes_on.append(goes_on[-1] & (differs[at] >= luma(np.abs(reference[at] - colour))))
            path.append(place)
            step = onwards(heading[at], step)
        painted = np.stack(goes_on, 1)
        colour = colour + 2 * p.jitter * (random(len(colour), 1) - 0.5) * (0.5 + random(len(colour), 3))
        shown = np.broadcast_to(colour[:, None], (*painted.shape, 3))[painted].astype(np.float32)
        painting = discs(painting, np.stack(path, 1)[painted], radius, shown)
    return painting


def _line_mean(plane_SS: F32, angle: float, reach: int) -> F32:
    """Mean along a line of 2 reach + 1 pixels."""
    side = len(plane_SS)
    wide, total = np.pad(plane_SS, reach, "reflect"), np.zeros_like(plane_SS)
    for step in range(-reach, reach + 1):
        top, left = reach + round(step * math.sin(angle)), reach + round(step * math.cos(angle))
        total += wide[top : top + side, left : left + side]
    return total / np.float32(2 * reach + 1)


def _pencil_tones(grey_SS: F32, shares: F32) -> F32:
    """Match the histogram to the mixture of light, middle and dark tones of pencil drawings."""
    level = np.arange(256)
    light, middle = np.exp((level - 255) / 9), ((level >= 105) & (level <= 225)).astype(np.float64)
    dark = np.exp(-((level - 90) ** 2) / (2 * 11**2))
    wanted = sum(share * each / each.sum() for share, each in zip(shares, (light, middle, dark), strict=True))
    index = np.rint(grey_SS * 255).astype(np.int64).clip(0, 255)
    own = np.cumsum(np.bincount(index.ravel(), minlength=256)) / grey_SS.size
    return np.asarray(np.interp(own, np.cumsum(wanted) / np.sum(wanted), level)[index] / 255, np.float32)


@generator(
    "angle degree, line, rough, cross, colour, shares, lead level, paper level",
    graphite=((30, 60), 5, 0.35, 0, 0, (52, 37, 11), (25, 25, 30), (250, 249, 245)),
    hatching=((35, 55), 9, 0.9, 1, 0, (30, 40, 30), (20, 30, 70), (250, 246, 236)),
    crayon=((0, 180), 5, 0.7, 0, 1.6, (42, 44, 14), (0, 0, 0), (255, 255, 255)),
    sanguine=((30, 60), 6, 0.7, 0, 0, (35, 40, 25), (95, 35, 15), (226, 200, 160)),
)
def pencil(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Pencil: outlines of straight strokes, and hatching as dark as the tone.

    Lu, Xu, Jia, "Combining sketch and tone for pencil drawing production", NPAR 2012.
    """
    side, grey = len(x_SSC), luma(x_SSC)
    reach, turns = max(round(p.line * side / 224), 1), np.arange(8) * np.pi / 8
    edge = np.hypot(np.diff(grey, axis=0, append=grey[-1:]), np.diff(grey, axis=1, append=grey[:, -1:]))
    nearest = np.argmax([_line_mean(edge, turn, reach) for turn in turns], 0)
    outline = np.sum([_line_mean(edge * (nearest == k), turn, reach) for k, turn in enumerate(turns)], 0)
    outline = 1 - np.clip(outline / max(float(np.percentile(outline, 99)), 0.02), 0, 1)
    tone = np.clip(_pencil_tones(grey, p.shares), 0.02, 1)
    for k in range(1 + int(p.cross)):
        noise = _line_mean(random(side, side), np.radians(p.angle + 90 * k), 2 * reach)
        # of mean 0.7, drawn so many times over itself that its mean is the tone
        hatch = np.clip(0.7 + p.rough * (noise - 0.5) / max(float(noise.std()), 1e-3) / 3, 0.05, 0.98)
        times = np.log(tone) / np.log(np.float32(0.7)) - 1.2 * k
        outline = outline * hatch ** np.maximum(times, 0)
    drawn = between(p.lead, p.paper, outline)
    return drawn + np.float32(p.colour) * (x_SSC - grey[..., None])


def clouds(random: Random, side: int, coarsest: int, octaves: int) -> F32:
    """Noise of several octaves, as many cells along a side in the coarsest, with mean 0 and about -1 to 1."""
    total = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        grid = Image.fromarray(random(*(coarsest << octave,) * 2) * 2 - 1)
        total += np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)) / np.float32(1 << octave)
    return total


@generator(
    "brush px, wet px, flow, grain, rim, vivid, light, mono, pigment level",
    wash=((3, 4), 2, 0.8, 0.35, 2, 1.5, 0.25, 0, (0, 0, 0)),
    wet=((6, 8), 6, 1.8, 0.1, 4, 2.0, 0.3, 0, (0, 0, 0)),
    dry=((2, 3), 0.6, 0.4, 0.8, 1, 0.6, 0.3, 0, (0, 0, 0)),
    indigo=((4, 6), 4, 0.9, 0.4, 3, 1.0, 0.1, 1, (30, 42, 96)),
)
def watercolor(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Watercolour: flat areas with wavering, dark borders, whose pigment varies with turbulence and paper.

    Bousseau, Kaplan, Thollot, Sillion, "Interactive watercolor rendering with temporal coherence and abstraction", NPAR
    2006: morphological smoothing, and a colour C of density d becomes C - (C - C²)(d - 1).
    """
    side, size = len(x_SSC), (max(int(p.brush), 1) | 1,) * 2 + (1,)
    paper = blurred(random(side, side) - 0.5, 1.1 * side / 224) * 6
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    moved = x + p.wet * clouds(random, side, 12, 2) + 1j * (y + p.wet * clouds(random, side, 12, 2))
    flat = blurred(
        scipy.ndimage.grey_closing(scipy.ndimage.grey_opening(x_SSC, size), size)[pixel(moved, side)], p.brush / 6
    )
    border = np.hypot(scipy.ndimage.sobel(luma(flat), 0), scipy.ndimage.sobel(luma(flat), 1))
    density = 1 + p.flow * clouds(random, side, 4, 4) + p.grain * paper + p.rim * border
    colour = between(p.pigment, np.full(3, 255), stretched(luma(flat))) if p.mono else saturated(flat, p.vivid)
    colour = np.clip(p.light + (1 - p.light) * colour, 0, 1)
    return np.asarray(colour - (colour - colour * colour) * (density[..., None] - 1))


@lru_cache(maxsize=8)
def _glyphs(characters: str, height: int, width: int) -> F32:
    """Cover of each character in a cell, from 0 to 1. Shape: (N, height, width)."""
    font, made = ImageFont.load_default(size=4.0 * height), []
    for character in characters:
        large = Image.new("L", (4 * width, 4 * height))
        pen = ImageDraw.Draw(large)
        if len(characters) == 1:  # a cross-stitch
            for left in (0, 4 * width):
                pen.line((left, 0, 4 * width - left, 4 * height), fill=255, width=height)
        else:
            pen.text((2 * width, 2 * height), character, fill=255, font=font, anchor="mm", stroke_width=height // 8)
        made.append(np.asarray(large.resize((width, height), Image.Resampling.BOX), np.float32) / 255)
    return np.stack(made)


_TEXT = " .,:;'-=+*/\\|_!?ijltfrcsxvznuoaeqpdbkhIJCLTYUXZOQGDPERSAKHNBMW0123456789%&@#$"


@generator(
    "cell px, narrow, stitch, own, fill, ink level, paper level",
    typewriter=((6.5, 8.5), 0.6, 0, 0, 0, (25, 25, 28), (250, 248, 240)),
    terminal=((8, 10), 0.6, 0, 0, 0, (80, 255, 120), (4, 16, 8)),
    confetti=((10, 12), 0.7, 0, 0.6, 0.6, (0, 0, 0), (255, 255, 255)),
    stitches=((7.5, 9), 1.0, 1, 1.15, 0.35, (0, 0, 0), (70, 60, 50)),
)
def glyphs(x_SSC: F32, random: Random, p: SimpleNamespace) -> Picture:
    """Text: in each cell the character that is nearest to the picture, in the squared difference of blurred pixels.

    After Xu, Zhang, Wong, "Structure-based ASCII art", SIGGRAPH 2010, with another distance.
    """
    side, height = len(x_SSC), max(round(p.cell), 3)
    width = max(round(p.narrow * height), 2)
    down, across = -(-side // height) + 1, -(-side // width) + 1
    top, left = (random(2) * (height, width)).astype(int)  # of the first cell, cut off

    def cut(plane: F32) -> F32:
        """Cells of a plane. Shape: (cells, height * width)."""
        whole = np.pad(plane, ((top, down * height - side - top), (left, across * width - side - left)), "edge")
        return whole.reshape(down, height, across, width).swapaxes(1, 2).reshape(down * across, -1)

    cover = _glyphs("X" if p.stitch else _TEXT, height, width)
    near = np.stack([blurred(each, height / 8) for each in cover]).reshape(len(cover), -1)
    near /= max(float(near.mean(1).max()), 1e-6)  # the darkest character is black
    tone = cut(stretched(luma(x_SSC)))
    tone = 1 - tone if p.own or p.ink.sum() < p.paper.sum() else tone
    best = np.argmin((near * near).sum(1) - 2 * np.einsum("ck,gk->cg", tone, near), 1)
    mean = saturated(np.stack([cut(x_SSC[..., c]).mean(1) for c in range(3)], -1)[None], 1.5)[0]
    front = mean * p.own if p.own else np.broadcast_to(p.ink / np.float32(255), mean.shape)
    back = p.paper / np.float32(255) * (1 - p.fill) + p.fill * mean
    shown = back[:, None] + (front - back)[:, None] * cover.reshape(len(cover), -1, 1)[best]
    page = shown.reshape(down, across, height, width, 3).swapaxes(1, 2).reshape(down * height, -1, 3)
    return np.asarray(page[top : top + side, left : left + side])
