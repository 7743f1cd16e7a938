"""Suites after published code: geometry against SciPy, filters against scikit-image and Pillow, light by formulas."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import map_coordinates
from skimage.filters import gaussian
from tests.pipelines.conftest import parameters, photographs, variants

from substyle.kernels import philox
from substyle.pipelines.packaged_photographs import paths
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.transforms.suites import obfuscation, traces
from substyle.pipelines.transforms.suites.imagenet_c import fog
from substyle.pipelines.variants import VariantMaker

NATURAL = suite("naturalistic30")[1:]
F64 = NDArray[np.float64]


def centred(side: int) -> tuple[F64, F64]:
    """Places of pixels, of which the middle is 0 and the sides are 1 long."""
    line = (np.arange(side) + 0.5) / side - 0.5
    return line[None, :], line[:, None]


def distance(found_SSC: torch.Tensor, image_SSC: torch.Tensor, x: F64, y: F64) -> F64:
    """Difference in levels from the pixels of an image at other places, as SciPy interpolates them."""
    side = len(image_SSC)
    at = np.stack(np.broadcast_arrays((y + 0.5) * side - 0.5, (x + 0.5) * side - 0.5))
    planes = image_SSC.double().permute(2, 0, 1).numpy()
    expected = np.stack([map_coordinates(plane, at, order=1, mode="mirror") for plane in planes], -1)
    return np.abs(found_SSC.numpy() - expected)


# --- imagenet_c -------------------------------------------------------------------------------------------------------


def flat(level: int, side: int = 224) -> torch.Tensor:
    return torch.full((1, side, side, 3), level, dtype=torch.uint8)


def test_imagenet_c() -> None:
    known = [base.get(name) for name in suite("imagenet_c")]
    assert [t.severities for t in known] == [0] + [5] * 19
    assert sum(t.role == "held_out" for t in known) == 4
    assert len(suite("imagenet_c@1..5")) == 96


def test_gaussian_blur() -> None:
    x = photographs(224)
    made = variants([f"imagenet_c_gaussian_blur@{severity}" for severity in range(1, 6)], x)
    for found, sigma in zip(made.values(), (1, 2, 3, 4, 6), strict=True):
        expected = np.stack([gaussian(each / 255, sigma, channel_axis=-1, mode="mirror") for each in x.numpy()])
        assert np.abs(found.numpy() - expected * 255).max() < 2  # ours is cut at three sigma, theirs at four


def test_speckle_noise_is_in_proportion_to_the_value() -> None:
    x = torch.cat([flat(50), flat(100)])
    (made,) = variants(["imagenet_c_speckle_noise@1"], x).values()
    deviation = (made.double() - x).std((1, 2, 3))
    torch.testing.assert_close(deviation, torch.tensor([7.5, 15.0], dtype=torch.float64), rtol=0.02, atol=0)


def test_mud_is_brown_and_water_is_light() -> None:
    made = variants(["imagenet_c_spatter@1", "imagenet_c_spatter@4"], flat(128))
    water, mud = (each[0].double() for each in made.values())
    assert (water >= 128).all()
    spots = mud[(mud != 128).any(-1)].mean(0)
    assert spots[2] < spots[1] < spots[0] < 128


def test_fog_is_as_smooth_as_published() -> None:
    """Mean difference of neighbours in clouds of 224 pixels, as parts of their range: of 24 by the published code."""
    published = {1: 0.00292, 5: 0.00763}
    black = torch.zeros(6, 224, 224, 3, dtype=torch.uint8)
    black[:, 0, 0] = 255  # in a black photograph fog shows its clouds
    keys_B = philox.image_keys(0, [f"{n}" for n in range(6)])
    for severity, rough in published.items():
        foggy = fog(black, {"severity": np.full(6, severity, np.int64)}, keys_B)
        clouds = foggy[:, 1:, 1:, 0].float()
        spread = clouds.amax((1, 2)) - clouds.amin((1, 2))
        found = ((clouds[:, 1:] - clouds[:, :-1]).abs().mean((1, 2)) / spread).mean()
        assert float(found) == pytest.approx(rough, rel=0.25)


# --- naturalistic30 ---------------------------------------------------------------------------------------------------


def test_naturalistic30() -> None:
    known = [base.get(name) for name in NATURAL]
    assert len(known) == 30
    assert {t.severities for t in known} == {5}
    for kind in ("lighting", "weather", "viewpoint", "sensor"):
        assert {t.role for t in known if t.kind == kind} == {"train", "held_out"}
    assert len(suite("naturalistic30@1..5")) == 151


def test_more_severe_is_further_from_the_photograph() -> None:
    names = [name for name in NATURAL if name not in ("flip", "crop", "mirror_tiling", "fog")]
    x = photographs(224)[:1]
    made = variants([f"{name}@{severity}" for name in names for severity in (1, 3, 5)], x)
    error = {name: float((pixels.double() - x.double()).abs().mean()) for name, pixels in made.items()}
    for name in names:
        assert 1.0 < error[f"{name}@1"] < error[f"{name}@3"] < error[f"{name}@5"], name


def _rotation(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    turn = np.radians(a["angle"] * a["sign"])
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _perspective(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    tilt, turn = a["tilt"], np.radians(a["angle"])
    depth = (1 + 0.2 * tilt) * (1 - tilt * (np.cos(turn) * x + np.sin(turn) * y))
    return x / depth, y / depth


def _crop(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    room = 1 - a["share"]
    return x * a["share"] + a["place_x"] * room, y * a["share"] + a["place_y"] * room


def _barrel(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    ratio = (1 + a["strength"] * 4 * (x**2 + y**2)) / (1 + a["strength"])
    return x * ratio, y * ratio


def _pincushion(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    ratio = (1 + 2 * a["strength"]) / (1 + a["strength"] * 4 * (x**2 + y**2))
    return x * ratio, y * ratio


def _rolling_shutter(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    wave = 0.1 * np.sin(3 * np.pi * y + np.radians(a["phase"]))
    return x + a["skew"] * a["sign"] * (y + wave), y


def _mirror_tiling(a: dict[str, F64], x: F64, y: F64) -> tuple[F64, F64]:
    return x * a["tiles"], y * a["tiles"]


@pytest.mark.parametrize("side", [64, 97])
@pytest.mark.parametrize(
    "places", [_rotation, _perspective, _crop, _barrel, _pincushion, _rolling_shutter, _mirror_tiling]
)
def test_geometry(places: Callable[[dict[str, F64], F64, F64], tuple[F64, F64]], side: int) -> None:
    x = photographs(side)[:1]
    for name, found in variants([f"{places.__name__[1:]}@{severity}" for severity in (1, 5)], x).items():
        drawn = {each: np.float64(values[0]) for each, values in parameters(name, side, 1).items()}
        assert distance(found[0], x[0], *places(drawn, *centred(side))).max() < 0.6  # rounded, places in float32


def test_a_bayer_cell_keeps_one_channel() -> None:
    (made,) = variants(["bayer@5"], flat(90)).values()
    assert ((made > 0).sum(-1) == 1).all()
    share = (made > 0).double().mean((0, 1, 2))
    torch.testing.assert_close(share, torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))


# --- obfuscation22 ----------------------------------------------------------------------------------------------------


def test_all_obfuscations_are_visible() -> None:
    x = photographs(64)
    own = [name for name in suite("obfuscation22")[1:] if base.get(name).made_by != "network"]
    for name, made in variants(own, x).items():
        assert ((made.double() - x).abs().mean((1, 2, 3)) > 4).all(), name


def test_photographs_of_test_images_are_others() -> None:
    keys = philox.image_keys(0, [str(i) for i in range(400)])
    for name in ("photo_composition", "perspective_composition", "image_overlay", "interleave"):
        known = base.get(obfuscation.PREFIX + name)
        train, test = (set(known.draw(keys, 64, np.full(400, t))["photo"].tolist()) for t in (False, True))
        assert not train & test
        assert train | test == set(range(len(paths())))


def test_waves_move_each_channel() -> None:
    name, x = "obfuscation_wavy_color_warp", photographs(96)[:1]
    drawn = parameters(name, 96, 1)
    depth, waves, phase, apart = (drawn[each][0].astype(np.float64) for each in ("depth", "waves", "phase", "apart"))
    (found,) = variants([name], x).values()
    across, down = centred(96)
    for channel in range(3):
        turn = np.radians(phase + channel * apart)
        moved_x = across + depth * np.sin(2 * np.pi * waves[0] * (down + 0.5) + turn[0])
        moved_y = down + depth * np.sin(2 * np.pi * waves[1] * (across + 0.5) + turn[1])
        assert distance(found[0], x[0], moved_x, moved_y)[..., channel].max() < 0.6


def test_compositions_show_the_whole_picture() -> None:
    for name in ("obfuscation_background_blur_composition", "obfuscation_photo_composition"):
        drawn = parameters(name, 224)
        reach = torch.stack(obfuscation._placed(drawn, 224, torch.device("cpu"))).abs().amax(0)
        area, factor = (reach <= 0.5).double().mean((1, 2, 3)), torch.from_numpy(drawn["factor"]).double()
        torch.testing.assert_close(area, factor**2, rtol=0, atol=0.01)
    (made,) = variants(["obfuscation_photo_composition"], flat(0).expand(8, -1, -1, -1)).values()
    assert (made[((reach - 0.53).abs() < 0.01)[..., 0]] == 255).all()  # its frame
    assert (made[(reach < 0.48)[..., 0]] == 0).all()


def test_the_picture_at_a_slant() -> None:
    name, x = "obfuscation_perspective_composition", photographs(128)[:1]
    drawn = parameters(name, 128, 1)
    tilt, turn = np.float64(drawn["tilt"][0]), np.radians(np.float64(drawn["angle"][0]))
    across, down = centred(128)
    depth = 0.75 * (1 - tilt * (np.cos(turn) * across + np.sin(turn) * down))
    u, v = across / depth, down / depth
    inside = np.maximum(np.abs(u), np.abs(v)) < 0.47
    assert 0.2 < inside.mean() < 0.8
    (found,) = variants([name], x).values()
    assert distance(found[0], x[0], u, v)[inside].max() < 0.7


# --- traces16 ---------------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, quality: int = 95, chroma: str = "4:4:4") -> torch.Tensor:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=chroma)
    return torch.from_numpy(np.asarray(Image.open(file)).copy())


def resized(picture: Image.Image, scale: float, filter: str) -> Image.Image:
    """Resized, and brought back."""
    length = max(int(picture.width * scale), 1)
    there = picture.resize((length, length), traces.FILTERS[filter])
    return there.resize(picture.size, Image.Resampling.BICUBIC)


def traced(name: str, picture: Image.Image, scale: float) -> torch.Tensor:
    """A trace by Pillow."""
    what, _, how = name.removeprefix("traces_").partition("_")
    if what.startswith("jpeg"):
        return encoded(picture, int(what[4:]), ":".join(how))
    if what.startswith("sharpen"):
        return encoded(ImageEnhance.Sharpness(picture).enhance(int(what[7:])))
    return encoded(resized(picture, round(scale, 6), how if what == "interpolate" else "bilinear"))


@pytest.mark.parametrize("side", [64, 97])
def test_traces_are_those_of_pillow(side: int) -> None:
    x = photographs(side)
    for name, made in variants(suite("traces16")[1:], x).items():
        scales = parameters(name, side, len(x)).get("scale", np.ones(len(x)))
        for found, picture, scale in zip(made, x.numpy(), scales, strict=True):
            assert torch.equal(found, traced(name, Image.fromarray(picture), float(scale))), name


def test_a_trace_is_distinct_unless_it_changes_nothing() -> None:
    """Also below one grey level on average, where other transformations count as identity."""
    smooth = photographs(64)[:1].float().lerp(torch.tensor(128.0), 0.7).to(torch.uint8)
    x = torch.cat([smooth, torch.full_like(smooth, 128)])
    maker = VariantMaker(("identity", "traces_jpeg95_444"), side=64, seed=0, batch=2, threads=1)
    _, variant = maker(x, ["a", "b"])
    assert 0 < (variant.pixels_BSSC[0].float() - x[0]).abs().mean() < 1
    assert variant.distinct_B.tolist() == [True, False]


@pytest.mark.parametrize("inputs", [1, 2, 64])
@pytest.mark.parametrize("scale", [0.5, 0.87, 2.0])
@pytest.mark.parametrize("interpolation", sorted(traces.FILTERS))
def test_torch_resizes_as_pillow(inputs: int, scale: float, interpolation: str) -> None:
    x, scale_B = photographs(inputs), np.array([scale, 0.9, scale])
    found = traces.resized(x, scale_B, interpolation)
    for each, picture, own in zip(found.numpy(), x.numpy(), scale_B.tolist(), strict=True):
        np.testing.assert_array_equal(each, resized(Image.fromarray(picture), own, interpolation))


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_torch_sharpens_as_pillow(factor: float) -> None:
    x = photographs(64)
    for each, picture in zip(traces.sharpened(x, np.full(len(x), factor, np.float32)).numpy(), x.numpy(), strict=True):
        np.testing.assert_array_equal(each, ImageEnhance.Sharpness(Image.fromarray(picture)).enhance(factor))
