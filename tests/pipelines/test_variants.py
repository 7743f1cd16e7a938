"""The variant maker: independence of the batch, outputs, and rejected arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines import dali
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import VariantMaker, distinct, load_all, load_plugin

load_all()
SIDE = 64
OWN = tuple(name for name in suite("substance31") if base.get(name).made_by != "network")


def images(count: int, side: int = SIDE) -> torch.Tensor:
    """Smooth colours with grain."""
    rng = np.random.default_rng(count)
    y, x = np.mgrid[0:side, 0:side] / side
    phase = rng.uniform(0, 6, (count, 1, 1, 3))
    waves = 127 + 60 * np.sin(9 * x[..., None] + phase) + 50 * np.cos(8 * y[..., None] - phase)
    return torch.from_numpy(np.clip(waves + rng.normal(0, 5, waves.shape), 0, 255).astype(np.uint8))


def maker(names: tuple[str, ...] = OWN, *, batch: int = 16, threads: int = 2, seed: int = 3) -> VariantMaker:
    return VariantMaker(names, side=SIDE, seed=seed, batch=batch, threads=threads)


def stacked(m: VariantMaker, canvas: torch.Tensor, keys: list[str], test_B: np.ndarray | None = None) -> torch.Tensor:
    return torch.stack([v.pixels_BSSC for v in m(canvas, keys, test_B)])


def test_variants_do_not_depend_on_the_batch() -> None:
    canvas, keys = images(13), [f"k/{i}.jpg" for i in range(13)]
    test_B = np.arange(13) % 3 == 0
    whole = stacked(maker(), canvas, keys, test_B)
    order = np.random.default_rng(0).permutation(13)
    shuffled = stacked(maker(batch=13, threads=1), canvas[order], [keys[i] for i in order], test_B[order])
    assert torch.equal(shuffled, whole[:, order])
    small = maker(batch=5)
    parts = [stacked(small, canvas[i : i + 5], keys[i : i + 5], test_B[i : i + 5]) for i in range(0, 13, 5)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    alone = maker(batch=1)
    assert torch.equal(stacked(alone, canvas[7:8], keys[7:8], test_B[7:8]), whole[:, 7:8])


def test_a_smaller_suite_makes_the_same_pixels() -> None:
    canvas, keys = images(4), list("abcd")
    whole = dict(zip(OWN, stacked(maker(), canvas, keys), strict=True))
    for name in ("motion_blur", "text_overlay", "swirl", "gaussian_noise"):
        (variant,) = maker((name,))(canvas, keys)
        assert torch.equal(variant.pixels_BSSC, whole[name])


def test_seed_and_key_matter() -> None:
    canvas = images(1).expand(4, -1, -1, -1)
    drawn = tuple(n for n in OWN if base.get(n).parameters)
    made = stacked(maker(drawn), canvas, list("abcd"))
    other = stacked(maker(drawn, seed=4), canvas, list("abcd"))
    for name, a_BSSC, b_BSSC in zip(drawn, made, other, strict=True):
        assert len({x.numpy().tobytes() for x in torch.cat([a_BSSC, b_BSSC])}) > 1, name


def test_order_names_shapes_and_identity() -> None:
    canvas = images(3)
    made = list(maker()(canvas, list("abc")))
    assert tuple(v.name for v in made) == OWN
    assert torch.equal(made[0].pixels_BSSC, canvas)
    for variant in made:
        assert variant.pixels_BSSC.shape == canvas.shape
        assert variant.pixels_BSSC.dtype == torch.uint8
        assert variant.pixels_BSSC.is_contiguous()
        assert variant.distinct_B.tolist() == [True] * 3, variant.name


def test_identity_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m, ran = maker(("identity", "gaussian_blur")), []
    assert m.graph is not None
    run = m.graph.__call__
    monkeypatch.setattr(m, "graph", lambda canvas, drawn: ran.append(1) or run(canvas, drawn))
    variants = m(images(2), ["a", "b"])
    assert next(variants).name == "identity"
    assert not ran
    assert [v.name for v in variants] == ["gaussian_blur"]
    assert ran


def test_identity_need_not_be_first() -> None:
    canvas = images(2)
    made = list(maker(("grayscale", "identity", "gaussian_blur"))(canvas, ["a", "b"]))
    assert [v.name for v in made] == ["grayscale", "identity", "gaussian_blur"]
    assert torch.equal(made[1].pixels_BSSC, canvas)


def test_the_canvas_is_left_alone_and_variants_are_kept() -> None:
    """Yielded variants stay unchanged: DALI must not reuse their memory."""
    canvas, m = images(4), maker()
    before = canvas.clone()
    kept = list(m(canvas, list("abcd")))
    copies = [v.pixels_BSSC.clone() for v in kept]
    for _ in range(3):
        for _ in m(torch.zeros_like(canvas), list("efgh")):
            pass
    assert torch.equal(canvas, before)
    assert all(torch.equal(v.pixels_BSSC, copy) for v, copy in zip(kept, copies, strict=True))


def test_indistinct_images() -> None:
    grey = torch.full((1, SIDE, SIDE, 3), 90, dtype=torch.uint8)
    coloured = images(1)
    made = {
        v.name: v for v in maker(("identity", "grayscale", "gaussian_blur"))(torch.cat([grey, coloured]), ["a", "b"])
    }
    assert made["identity"].distinct_B.tolist() == [True, True]
    assert made["grayscale"].distinct_B.tolist() == [False, True]
    assert made["gaussian_blur"].distinct_B.tolist() == [False, True]


def test_distinct_is_one_grey_level_on_average() -> None:
    a = torch.full((4, 5, 5, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 1
    b[2] -= 1
    b[2, 0, 0, 0] = 100
    b[3, :2] = 0
    assert distinct(a, b).tolist() == [False, True, False, True]


@pytest.mark.parametrize("side", [1, 5, 16, 17, 50])
def test_distinct_is_exact_wherever_images_differ(side: int) -> None:
    """Near one level on average, with differences spread, in the first or last rows, or in one pixel."""
    rng = np.random.default_rng(side)
    size = side * side * 3
    a = rng.integers(60, 190, (40, size), dtype=np.uint8)
    b = a.copy()
    for i in range(40):
        total = size + int(rng.integers(-2, 3))
        places = rng.permutation(size) if i % 4 == 0 else np.arange(size) if i % 4 == 1 else np.arange(size)[::-1]
        each = 1 if i % 4 == 0 else 50
        for place in places:
            change = min(each, total)
            b[i, place] = int(b[i, place]) + (change if i % 8 < 4 else -change)
            total -= change
    expected = np.abs(a.astype(int) - b).mean(axis=1) >= 1
    pictures = (torch.from_numpy(x.reshape(40, side, side, 3)) for x in (a, b))
    assert distinct(*pictures).tolist() == expected.tolist()
    assert len(set(expected.tolist())) == 2


def test_distinct_of_no_images() -> None:
    assert distinct(images(2)[:0], images(2)[:0]).tolist() == []


def test_distinct_of_large_and_opposite_images() -> None:
    black, white = (
        torch.zeros((1, 300, 300, 3), dtype=torch.uint8),
        torch.full((1, 300, 300, 3), 255, dtype=torch.uint8),
    )
    assert distinct(black, white).tolist() == [True]
    assert distinct(white, white).tolist() == [False]


class Twice:
    """A network with two styles that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        made = {f"style_{name}": canvas_BSSC + i for i, name in enumerate(("starry", "glass", "expressionist", "wave"))}
        return made | {"style_fauvist": canvas_BSSC.flip(1)}


def test_one_call_of_a_network_gives_all_its_styles() -> None:
    network = Twice()
    names = ("identity", "style_glass", "jpeg", "style_fauvist")
    m = VariantMaker(names, side=SIDE, seed=0, batch=4, threads=1, networks={"multistyle": network})
    canvas = images(2)
    made = {v.name: v.pixels_BSSC for v in m(canvas, ["a", "b"])}
    assert network.calls == 1
    assert tuple(made) == names
    assert torch.equal(made["style_fauvist"], canvas.flip(1))
    assert made["style_fauvist"].is_contiguous()


def test_a_missing_network_is_named() -> None:
    with pytest.raises(ConfigError, match=r"multistyle.* style_glass") as caught:
        VariantMaker(("identity", "style_glass"), side=SIDE, seed=0, batch=4, threads=1, networks={})
    assert caught.value.field == "networks"


def test_an_empty_batch() -> None:
    assert list(maker()(images(2)[:0], [])) == []


@pytest.mark.parametrize(
    ("canvas", "keys"),
    [
        (images(2), ["a"]),
        (images(2).float(), ["a", "b"]),
        (images(2)[:, :32], ["a", "b"]),
        (images(17), [str(i) for i in range(17)]),
    ],
)
def test_wrong_input(canvas: torch.Tensor, keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        list(maker(("identity",))(canvas, keys))
    assert caught.value.field == "canvas"


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        VariantMaker(("identity",), side=SIDE, seed=0, batch=4, threads=1, device="abacus")
    assert caught.value.field == "device"
    with pytest.raises(ConfigError, match="gaussian_blur"):
        maker(("identity", "gaussian_blurr"))


def test_a_canvas_that_is_not_contiguous() -> None:
    canvas = images(3)
    turned = canvas.permute(0, 2, 1, 3)
    a = stacked(maker(("identity", "jpeg")), turned, list("abc"))
    b = stacked(maker(("identity", "jpeg")), turned.contiguous(), list("abc"))
    assert torch.equal(a, b)


PLUGIN = """
import torch
from substyle.pipelines.transforms.base import Choice, Uniform, dali, kernel

@kernel("{0}_solarize", kind="tone", role="train", parameters=[Choice("threshold", (64, 128), unit="level")])
def solarize(canvas_BSSC, args, keys_B):
    threshold = torch.from_numpy(args["threshold"]).view(-1, 1, 1, 1)
    return torch.where(canvas_BSSC < threshold, canvas_BSSC, 255 - canvas_BSSC)

@dali("{0}_negative", kind="tone", role="train", parameters=[Uniform("unused", 0, 1)])
def negative(canvas, args, side):
    from nvidia.dali import types

    return canvas ^ types.Constant(255).uint8()

@dali("{0}_wide", kind="tone", role="train")
def wide(canvas, args, side):
    return canvas ^ 255

@dali("{0}_lost", kind="tone", role="train", parameters=[Uniform("amount", 0, 1)])
def lost(canvas, args, side):
    return canvas * args["ammount"]

@kernel("{0}_wrong", kind="tone", role="train")
def wrong(canvas_BSSC, args, keys_B):
    return canvas_BSSC.float()
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "mine.py"
    file.write_text(PLUGIN.format("mine"))
    load_plugin(file)
    load_plugin(file)  # once for each path
    return "mine"


def test_a_plugin_adds_transformations(plugin: str) -> None:
    canvas = images(2)
    names = suite(f"{plugin}_solarize,{plugin}_negative")
    made = {v.name: v.pixels_BSSC for v in maker(names)(canvas, ["a", "b"])}
    assert torch.equal(made[f"{plugin}_negative"], 255 - canvas)
    assert (made[f"{plugin}_solarize"] <= 191).all()


def test_a_plugin_that_asks_for_an_unknown_argument_is_named(plugin: str) -> None:
    with pytest.raises(ConfigError, match=f"{plugin}_lost: argument.*amount"):
        maker((f"{plugin}_lost",))


@pytest.mark.parametrize(("name", "made"), [("wrong", "float32"), ("wide", "int32")])
def test_a_plugin_that_makes_no_pixels_is_named(plugin: str, name: str, made: str) -> None:
    with pytest.raises(SubstyleError, match=rf"{plugin}_{name}.* torch\.{made}"):
        list(maker((f"{plugin}_{name}",))(images(1), ["a"]))


def test_plugins_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    for name in ("missing.py", "text.txt"):
        with pytest.raises(ConfigError) as caught:
            load_plugin(tmp_path / name)
        assert (caught.value.field, caught.value.given) == ("plugin", str(tmp_path / name))
    (tmp_path / "taken.py").write_text(PLUGIN.replace("{0}_solarize", "jpeg"))
    with pytest.raises(ConfigError) as caught:
        load_plugin(tmp_path / "taken.py")
    assert (caught.value.field, caught.value.given) == ("transformation", "jpeg")


def test_arguments_of_types_that_dali_has_not() -> None:
    with pytest.raises(ConfigError, match="complex64"):
        dali.dali_type(np.zeros(1, np.complex64))
