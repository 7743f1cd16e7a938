"""Obfuscations: geometry against NumPy and SciPy, patterns against their description, disjoint photographs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from tests.conftest import photograph

from substyle.kernels import philox
from substyle.pipelines.packaged_photographs import paths
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.suites import obfuscation
from substyle.pipelines.transforms.suites.obfuscation import PREFIX
from substyle.pipelines.variants import VariantMaker

NAMES = suite("obfuscation22")
MADE = tuple(name for name in NAMES if base.get(name).made_by != "network")
KEYS = [f"photo-{i}" for i in range(8)]


def canvas(side: int, count: int = 8) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = [np.asarray(photograph(i, side, side)) for i in range(count - 1)]
    return torch.from_numpy(np.stack([*smooth, rng.integers(0, 256, (side, side, 3), np.uint8)]))


def made(name: str, x_BSSC: torch.Tensor, test_B: NDArray[np.bool_] | None = None) -> torch.Tensor:
    maker = VariantMaker((PREFIX + name,), side=x_BSSC.shape[1], seed=0, batch=len(x_BSSC), threads=1)
    (variant,) = maker(x_BSSC, KEYS[: len(x_BSSC)], test_B)
    return variant.pixels_BSSC


def drawn(name: str, side: int) -> dict[str, NDArray[np.float64]]:
    arguments = base.get(PREFIX + name).draw(philox.image_keys(0, KEYS), side)
    return {each: np.asarray(values, np.float64) for each, values in arguments.items()}


def flat(side: int, level: int = 100, count: int = 8) -> torch.Tensor:
    return torch.full((count, side, side, 3), level, dtype=torch.uint8)


def test_the_suite() -> None:
    known = [base.get(name) for name in NAMES[1:]]
    assert len(known) == 22
    held_out = {t.name.removeprefix(PREFIX) for t in known if t.role == "held_out"}
    assert held_out == {"color_pattern_overlay", "low_contrast_triangles", "perspective_composition"}
    kind = Counter(t.kind for t in known)
    assert kind == {"overlay": 9, "viewpoint": 5, "warp": 4, "halftone": 2, "style": 2}


@pytest.mark.parametrize("side", [64, 97])
def test_pixels_do_not_depend_on_the_batch(side: int) -> None:
    x = canvas(side)
    test_B = np.arange(8) % 2 == 0
    maker = VariantMaker(MADE, side=side, seed=0, batch=8, threads=1)
    whole = {variant.name: variant.pixels_BSSC.clone() for variant in maker(x, KEYS, test_B)}
    for some in (slice(0, 1), slice(5, 8)):
        for variant in maker(x[some], KEYS[some], test_B[some]):
            assert torch.equal(variant.pixels_BSSC, whole[variant.name][some]), variant.name


def test_all_are_visible() -> None:
    x = canvas(224)
    maker = VariantMaker(MADE, side=224, seed=0, batch=8, threads=1)
    for variant in list(maker(x, KEYS))[1:]:
        error = (variant.pixels_BSSC.double() - x).abs().mean((1, 2, 3))
        assert (error > 4).all(), (variant.name, error)


def test_photographs_of_test_images_are_others() -> None:
    keys = philox.image_keys(0, [str(i) for i in range(400)])
    for name in ("photo_composition", "perspective_composition", "image_overlay", "interleave"):
        known = base.get(PREFIX + name)
        train, test = (set(known.draw(keys, 64, np.full(400, t))["photo"].tolist()) for t in (False, True))
        assert not train & test
        assert train | test == set(range(len(paths())))


def test_backgrounds_are_parts_of_the_photographs() -> None:
    x = canvas(64)
    args = base.get(PREFIX + "image_overlay").draw(philox.image_keys(0, KEYS), 64)
    found = (obfuscation.background(x, args) * 255).round().to(torch.uint8)
    large = obfuscation._photographs(80, torch.device("cpu"))
    for i, photo in enumerate(args["photo"].tolist()):
        windows = large[photo].unfold(0, 64, 1).unfold(1, 64, 1).permute(0, 1, 3, 4, 2)
        assert (windows == found[i]).all(-1).all(-1).all(-1).any()


def test_image_overlay_is_a_blend() -> None:
    x = canvas(64)
    args = base.get(PREFIX + "image_overlay").draw(philox.image_keys(0, KEYS), 64)
    alpha = torch.from_numpy(args["alpha"]).view(-1, 1, 1, 1)
    expected = (1 - alpha) * x + alpha * obfuscation.background(x, args) * 255
    assert (made("image_overlay", x) - expected).abs().max() < 0.51


def test_interleaved_stripes() -> None:
    x = canvas(64)
    args = base.get(PREFIX + "interleave").draw(philox.image_keys(0, KEYS), 64)
    out, other = made("interleave", x), (obfuscation.background(x, args) * 255).round().to(torch.uint8)
    assert {0, 1} == set(args["vertical"].tolist())
    for i in range(8):
        for line in range(64):
            source = other if int((line + 0.5) / args["band"][i]) % 2 else x
            at = (slice(None), line) if args["vertical"][i] else (line,)
            assert torch.equal(out[i][at], source[i][at])


def test_shifted_lines_keep_their_pixels() -> None:
    x = canvas(64)
    args = drawn("line_shift", 64)
    out = made("line_shift", x).numpy()
    for i in range(8):
        found, source = ((a[i].swapaxes(0, 1) if args["vertical"][i] else a[i]) for a in (out, x.numpy()))
        for line in range(64):
            band = int(line / max(args["band"][i], 1))
            shift = (-1) ** band * round(args["reach"][i] * args["shift"][i][band])
            np.testing.assert_array_equal(found[line], np.roll(source[line], -shift, axis=0))


def test_rotated_blocks() -> None:
    side = 120
    x = canvas(side)
    args = drawn("rotate_blocks", side)
    for i, found in enumerate(made("rotate_blocks", x).numpy()):
        blocks = int(args["blocks"][i])
        length = side // blocks
        for row in range(blocks):
            for column in range(blocks):
                part = slice(row * length, (row + 1) * length), slice(column * length, (column + 1) * length)
                turns = 1 + int(args["turn"][i].reshape(6, 6)[row, column] * 3)
                expected = np.rot90(x[i].numpy()[part], -turns)
                assert np.abs(found[part].astype(int) - expected).max() <= 1


def test_waves_move_each_channel() -> None:
    side = 96
    x = canvas(side)[:1]
    args = drawn("wavy_color_warp", side)
    line = (np.arange(side) + 0.5) / side
    found = made("wavy_color_warp", x)[0].numpy()
    for channel in range(3):
        across, down = (
            args["depth"][0]
            * side
            * np.sin(
                2 * np.pi * args["waves"][0, axis] * line
                + np.radians(args["phase"][0, axis] + channel * args["apart"][0])
            )
            for axis in (0, 1)
        )
        y, columns = np.mgrid[0:side, 0:side].astype(np.float64)
        at = np.stack([y + down[None, :], columns + across[:, None]])
        expected = map_coordinates(x[0, ..., channel].numpy().astype(np.float64), at, order=1, mode="mirror")
        assert np.abs(found[..., channel] - expected).max() < 0.6


def test_compositions_show_the_whole_picture() -> None:
    x = flat(224, 0)
    for name in ("background_blur_composition", "photo_composition"):
        args = base.get(PREFIX + name).draw(philox.image_keys(0, KEYS), 224)
        u, v = obfuscation._placed(args, 224, torch.device("cpu"))
        inside = torch.maximum(u.abs(), v.abs()) <= 0.5
        torch.testing.assert_close(
            inside.double().mean((1, 2, 3)), torch.from_numpy(args["factor"].astype(np.float64)) ** 2, rtol=0, atol=0.01
        )
    out = made("photo_composition", x)
    frame = (torch.maximum(u.abs(), v.abs()) - 0.53).abs() < 0.01
    assert (out[frame[..., 0]] == 255).all()
    assert (out[(torch.maximum(u.abs(), v.abs()) < 0.48)[..., 0]] == 0).all()


def test_the_blurred_background_is_the_picture() -> None:
    x = canvas(224)[-1:]  # noise
    grey = flat(224, 77, 1)
    assert torch.equal(made("background_blur_composition", grey), grey)
    out = made("background_blur_composition", x)[0].double()
    border = out[:10]  # the sharp picture does not reach it
    assert (border[:, 1:] - border[:, :-1]).abs().mean() < 2
    assert abs(border.mean() - x.double().mean()) < 10


def test_the_picture_at_a_slant() -> None:
    side = 128
    x = canvas(side)[:1]
    args = drawn("perspective_composition", side)
    line = (np.arange(side) + 0.5) / side - 0.5
    tilt, turn = args["tilt"][0], np.radians(args["angle"][0])
    depth = 0.75 * (1 - tilt * (np.cos(turn) * line[None, :] + np.sin(turn) * line[:, None]))
    u, v = line[None, :] / depth, line[:, None] / depth
    inside = np.maximum(np.abs(u), np.abs(v)) < 0.47
    assert 0.2 < inside.mean() < 0.8
    at = np.stack([(v + 0.5) * side - 0.5, (u + 0.5) * side - 0.5])
    found = made("perspective_composition", x)[0].numpy()
    for channel in range(3):
        expected = map_coordinates(x[0, ..., channel].numpy().astype(np.float64), at, order=1, mode="mirror")
        assert np.abs(found[..., channel] - expected)[inside].max() < 0.7


def test_the_border_is_black_and_white() -> None:
    side = 224
    x = flat(side)
    out, factor_B = made("high_contrast_border", x), drawn("high_contrast_border", side)["factor"]
    for i, width in enumerate(drawn("high_contrast_border", side)["width"].tolist()):
        edge = int(width * side)
        inner = slice(edge + 1, side - edge - 1)
        assert out[i, inner, inner].unique().tolist() == [round(127.5 - 27.5 * factor_B[i])]
        outer = torch.cat([out[i, : edge - 1].flatten(), out[i, :, : edge - 1].flatten()])
        assert set(outer.unique().tolist()) == {0, 255}
        assert 0.4 < float((outer == 255).double().mean()) < 0.6


def test_blocks_have_a_shifted_channel() -> None:
    x = flat(120, 128)
    args = drawn("color_noise_blocks", 120)
    out = made("color_noise_blocks", x).double()
    for i, cells in enumerate(args["cells"].astype(int).tolist()):
        centres = ((np.arange(cells) + 0.5) / cells * 120).astype(int)
        found = out[i][centres][:, centres].numpy()
        shift, channel = (args[name][i].reshape(14, 14)[:cells, :cells] for name in ("shift", "channel"))
        expected = np.full((cells, cells, 3), 128.0)
        np.add.at(expected, (*np.indices((cells, cells)), channel.astype(int)), 255 * shift)
        assert np.abs(found - expected.clip(0, 255)).max() < 0.51


def test_patches_are_round_and_few() -> None:
    x = flat(224)
    out = made("adversarial_patches", x)
    changed = (out != x).any(-1).double().mean((1, 2))
    area = np.pi * (drawn("adversarial_patches", 224)["radius"] ** 2).sum(1)
    assert (changed.numpy() <= area + 0.01).all()  # less where they overlap or leave the canvas
    assert (changed > 0.02).all()


def test_contrast_in_triangles() -> None:
    x = flat(224, 255)
    out = made("low_contrast_triangles", x)
    args = drawn("low_contrast_triangles", 224)
    for i, cells in enumerate(args["cells"].astype(int).tolist()):
        lower, upper = args["factor"][i].reshape(2, 6, 6)
        for row in range(cells):
            for column in range(cells):
                for half, (down, across) in ((lower, (0.8, 0.2)), (upper, (0.2, 0.8))):
                    level = out[i, int((row + down) / cells * 224), int((column + across) / cells * 224), 0]
                    assert abs(float(level) - 127.5 - 127.5 * half[row, column]) < 0.51


def test_threads_darken_periodically() -> None:
    x = flat(224)
    out = made("texturize", x).double()
    assert (out.amax((1, 2, 3)) == 115).all()
    assert (out.amin((1, 2, 3)) < 65).all()
