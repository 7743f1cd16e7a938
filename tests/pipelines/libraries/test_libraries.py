"""Transformations of other libraries: seeded by photograph, defined by library, version and parameters."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import photograph
from tests.pipelines.libraries.suites import PIPELINE, forgotten, row, write

from substyle.engine.cli import main
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.behaviour import definitions_of
from substyle.engine.store.catalog import Definition
from substyle.errors import ConfigError, SubstyleError
from substyle.kernels import philox
from substyle.pipelines import libraries
from substyle.pipelines.libraries import gmic, processes
from substyle.pipelines.libraries.processes import pool
from substyle.pipelines.plugins import ALLOW
from substyle.pipelines.processes import Block, memory
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_file, load_suite, suite
from substyle.pipelines.variants import VariantMaker

SIDE = 64


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten."""
    monkeypatch.setenv(ALLOW, "1")
    with forgotten():
        yield
    load_file.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, for a suite file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh(here: Path) -> Path:
    """The current folder, from which new processes import functions."""
    processes._pool.cache_clear()
    return here


def canvases(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([photograph(i, SIDE, SIDE) for i in range(count)]))


def made(names: tuple[str, ...], keys: str, canvas_BSSC: torch.Tensor, threads: int = 2) -> dict[str, torch.Tensor]:
    maker = VariantMaker(names, side=SIDE, seed=3, batch=16, threads=threads)
    return {variant.name: variant.pixels_BSSC for variant in maker(canvas_BSSC, list(keys))}


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_suite(write(folder, row(text)))
    return str(caught.value)


RANDOM = {"a_rain", "a_noise", "a_dropout", "a_pipeline", "t_jitter", "t_erasing", "t_blur", "k_noise", "k_elastic"}
RANDOM |= {"g_noise", "g_spread", "p_grain", "p_hidden", "p_shuffled", "p_cut"}


@pytest.mark.slow
def test_batch_order_and_processes_change_nothing(fresh: Path) -> None:
    names = load_suite(write(fresh))
    assert len(names) == 25
    canvas_BSSC = canvases(5)
    whole = made(names, "abcde", canvas_BSSC)
    twice = made(names, "xy", canvas_BSSC[[0, 0]])
    random = {name for name, (first, second) in twice.items() if not torch.equal(first, second)}
    assert RANDOM & set(names) <= random
    other = made(tuple(reversed(names)), "edcba", canvas_BSSC.flip(0), threads=1)
    for name in names:
        assert torch.equal(whole[name], other[name].flip(0)), name
        alone = made((name,), "c", canvas_BSSC[2:3])
        assert torch.equal(alone[name][0], whole[name][2]), name


@pytest.mark.slow
def test_a_library_alone_makes_the_same_pixels(here: Path) -> None:
    """The plain reference: no processes, generators seeded by hand."""
    from albumentations import Compose, GaussNoise
    from torchvision.transforms import v2

    write(here, row('name = "n", of = "albumentations:GaussNoise"'))
    names = suite("mine.toml+torchvision:RandomPerspective")
    canvas_BSSC = canvases(3)
    found = made(names, "abc", canvas_BSSC)
    keys_B = philox.image_keys(3, list("abc"))
    for i in range(3):
        pipeline = Compose([GaussNoise(p=1.0)])
        pipeline.set_random_seed(int(base.get("n").seeds(keys_B)[i]))
        np.testing.assert_array_equal(found["n"][i].numpy(), pipeline(image=canvas_BSSC[i].numpy())["image"])
        with torch.random.fork_rng():
            torch.manual_seed(int(base.get("torchvision.RandomPerspective").seeds(keys_B)[i]))
            expected = v2.RandomPerspective(p=1.0)(canvas_BSSC[i].permute(2, 0, 1))
        assert torch.equal(found["torchvision.RandomPerspective"][i], expected.permute(1, 2, 0))


@pytest.mark.slow
def test_drawn_values_are_recorded_and_exact(here: Path) -> None:
    load_suite(write(here))
    keys_B = philox.image_keys(3, list("abcdefgh"))
    drawn = base.get("g_kuwahara").values(keys_B)["radius"]
    assert set(drawn.tolist()) == {2, 5}
    arguments = processes._arguments(base.get("g_kuwahara"), base.get("g_kuwahara").draw(keys_B, SIDE), 8)
    assert all(isinstance(each["radius"], int) for each in arguments)  # not 2.0, which some libraries refuse
    strengths = processes._arguments(base.get("p_sepia"), base.get("p_sepia").draw(keys_B, SIDE), 8)
    assert {each["strength"] for each in strengths} <= {0.2, 0.5, 0.8}  # and not as float32 rounds them
    angles = base.get("g_cubism").values(keys_B)["angle"]
    assert 0 <= angles.min() < angles.max() < 90


def definition(folder: Path, text: str) -> str:
    """The definition of the transformation of a suite file of one row, in a process that has loaded no other."""
    for other in [each.name for each in base.REGISTRY.values() if each.library is not None]:
        del base.REGISTRY[other]
    folder.mkdir(exist_ok=True)
    file = folder / "mine.toml"
    file.write_text(row(text))
    (name,) = load_suite(file)
    return Definition(base.get(name).describe()).declared


def test_a_definition_holds_library_version_and_parameters(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rain = 'name = "x", of = "albumentations:RandomRain", parameters = { slant_range = [-%d, 10] }'
    first = definition(here / "1", rain % 10)
    said = base.get("x").describe()["library"]
    assert said["of"] == "albumentations:RandomRain"
    assert said["arguments"] == {"p": 1.0, "slant_range": [-10, 10]}
    assert {"numpy", "scipy", "albucore"} < set(said["versions"])
    assert definition(here / "2", rain % 9) != first == definition(here / "3", rain % 10)
    pipeline = 'name = "x", of = "albumentations:pipeline", file = "augment.json"'
    found = []
    for number, chance in enumerate(("0.5", "0.5", "0.6")):
        content = write(here / f"pipeline{number}").with_name("augment.json")
        content.write_text(PIPELINE.replace('HorizontalFlip", "p": 0.5', f'HorizontalFlip", "p": {chance}'))
        found.append(definition(content.parent, pipeline))
    assert found[0] == found[1] != found[2]
    versions = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "albumentations" else versions(name))
    assert definition(here / "4", rain % 10) != first


@pytest.mark.slow
def test_an_edited_function_makes_other_pixels(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(fresh)

    def pixels() -> tuple[str, ...]:
        load_suite(file)
        (found,) = definitions_of(["p_sepia"], Settings(0, SIDE, ("p_sepia",)), EmbedConfig(threads=1).here())
        pool(1).end()  # whose processes have imported the function
        sys.modules.pop("my_effects", None)
        load_file.cache_clear()
        del base.REGISTRY["p_sepia"]
        return found.pixels

    before = pixels()
    assert pixels() == before
    (fresh / "my_effects.py").write_text((fresh / "my_effects.py").read_text().replace("0.393", "0.394"))
    assert pixels() != before
    monkeypatch.delenv(ALLOW)
    with pytest.raises(ConfigError, match="--allow-plugins"):
        load_suite(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x", of = "albumentations:RandomRan"', r"of: .*such as RandomRain"),
        ('name = "x", of = "albumentations:RandomRain", parameters = { slants = 1 }', "slants.*slant_range ="),
        ('name = "x", of = "albumentations:RandomRain", parameters = { slant_range = "x" }', "valid tuple"),
        ('name = "x", of = "albumentations:TextImage", parameters = { font_path = "/etc/passwd" }', "TextImage"),
        ('name = "x", of = "albumentations:pipeline"', "file: got None"),
        ('name = "x", of = "albumentations:pipeline", file = "../augment.json"', "below the folder"),
        ('name = "x", of = "albumentations:pipeline", file = "/etc/passwd"', "below the folder"),
        ('name = "x", of = "albumentations:pipeline", file = "my_effects.py"', "albumentations.save has written"),
        ('name = "x", of = "kornia:RandomMotionBlur"', "kernel_size, angle, direction"),
        ('name = "x", of = "torchvision:Lambda", parameters = { lambd = "print" }', "Lambda"),
        ('name = "x", of = "torchvision:ColorJitter", parameters = { hue = { uniform = [0, 3] } }', "hue = 3.0"),
        ('name = "x", of = "torchvision:ColorJitter", parameters = { hue = { one_of = ["a"] } }', "list of numbers"),
        ('name = "x", of = "torchvision:ColorJitter", parameters = { hue = 1979-05-27 }', "a finite number"),
        ('name = "x", of = "torchvision:ColorJitter", file = "augment.json"', "takes a file"),
        ('name = "x", of = "torchvision:ColorJitter", picture = "x.png"', "for pictures"),
        ('name = "x", of = "jpeg", file = "augment.json"', "no transformation of a library"),
        ('name = "x", of = "gmic:fx_engrave", parameters = { radius = "1 output x" }', "not a number from 0 to 2"),
        ('name = "x", of = "gmic:exec"', "of: "),
        ('name = "x", of = "opencv:cartoon", parameters = { levels = 1 }', "not a number from 2 to 64"),
        ('name = "x", of = "opencv:cartoon", parameters = { levels = 2.7 }', "not a whole number"),
        ('name = "x", of = "opencv:pencil_sketch", parameters = { color = 5 }', "not true or false"),
        ('name = "x", of = "opencv:stylization", parameters = { sigma_r = { uniform = [0.1, 2] } }', "sigma_r = 2.0"),
        ('name = "x", of = "python:my_effects:sepia"', "strength"),
        ('name = "x", of = "python:my_effects:absent"', "absent"),
        ('name = "x", of = "python:absent_module:f"', "absent_module"),
    ],
)  # fmt: skip
def test_what_is_refused(here: Path, text: str, said: str) -> None:
    assert re.search(said, refusal(here, text)), refusal(here / "again", text)
    assert "x" not in base.REGISTRY


@pytest.mark.slow
def test_other_pixels_and_failures_are_named(fresh: Path) -> None:
    write(fresh, row('name = "x", of = "python:my_effects:small"'))
    names = suite("mine.toml+albumentations:ToFloat")
    with pytest.raises(SubstyleError, match=r"x \(python:my_effects:small\) returned uint8 \(32, 64, 3\), expected"):
        made((names[1],), "a", canvases(1))
    with pytest.raises(SubstyleError, match=r"returned float32 \(64, 64, 3\), expected uint8 \(64, 64, 3\)"):
        made((names[2],), "a", canvases(1))
    write(fresh / "b", row('name = "y", of = "python:my_effects:fails"'))
    load_suite(fresh / "b" / "mine.toml")
    with pytest.raises(SubstyleError, match=r"y \(python:my_effects:fails\) failed: RuntimeError: no"):
        made(("y",), "a", canvases(1))
    assert made(suite("torchvision:ColorJitter"), "a", canvases(1))  # the processes still work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("ends", "x: a process that transforms photographs has ended"),
        ("leaves", r"x \(python:my_effects:leaves\) failed: SystemExit: 0"),
        ("large", r"x \(python:my_effects:large\) failed: MemoryError"),
        ("sleeps", "x: took more than 1 s for a photograph"),
    ],
)
def test_a_transformation_that_does_not_return(
    fresh: Path, function: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_suite(write(fresh, row(f'name = "x", of = "python:my_effects:{function}"')))
    other = suite("torchvision:ColorJitter")
    assert made(other, "a", canvases(1))  # the processes have begun
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_PATIENCE_S", 1.0)
        with pytest.raises(SubstyleError, match=said):
            made(("x",), "a", canvases(1))
    assert made(other, "a", canvases(1))


@pytest.mark.slow
def test_processes_that_are_killed_while_they_wait(fresh: Path) -> None:
    names = suite("torchvision:ColorJitter,kornia:RandomGaussianNoise")
    expected = made(names, "ab", canvases(2))
    executor = pool(2)._executor
    assert executor is not None
    for pid in list(executor._processes):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    with suppress(SubstyleError):  # if it had not been noticed yet
        made(names, "ab", canvases(2))
    found = made(names, "ab", canvases(2))
    assert all(torch.equal(found[name], expected[name]) for name in names)


def test_another_file_of_the_same_descriptor_is_not_touched(tmp_path: Path) -> None:
    block = Block(1000)
    with (tmp_path / "other").open("w+b") as file:
        file.truncate(1000)
        wrong = replace(block.address, path=f"/proc/{os.getpid()}/fd/{file.fileno()}")
        with pytest.raises(OSError, match="another file"):
            memory(wrong)
    memory(block.address)[0] = 7
    assert block.array((1000,))[0] == 7


def test_no_argument_of_an_offered_transformation_is_open() -> None:
    """Those through which a file could be opened, or weights be downloaded, are not offered."""
    for name in ("albumentations", "kornia", "torchvision"):
        library = libraries.library(name)
        assert not {"Lambda", "RandomDissolving", "TextImage", "FDA", "HistogramMatching"} & set(library.names())
        for each in library.names():
            assert "**" not in library.parameters(each), each
            assert not re.search("path|file|url|model|fn$", " ".join(library.parameters(each))), each


def test_names_on_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = suite("torchvision:ColorJitter+kornia:RandomGaussianNoise+mini5")
    assert names[1:3] == ("torchvision.ColorJitter", "kornia.RandomGaussianNoise")
    base.REGISTRY.pop("kornia.RandomGaussianNoise")  # as in a process that has read only the store
    assert base.get("kornia.RandomGaussianNoise").library is not None
    with pytest.raises(ConfigError, match="such as RandomGaussianNoise"):
        base.get("kornia.RandomGausianNoise")
    assert main(["transforms", "--search", "motionblur"]) == 0
    out = capsys.readouterr().out
    assert "kornia:RandomMotionBlur" in out
    assert "albumentations:MotionBlur" in out
    assert "kernel_size, angle, direction" in out


def test_a_library_that_is_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = type(libraries.library("kornia"))()
    absent.module = "substyle_absent"
    monkeypatch.setattr(libraries, "library", lambda prefix: absent)
    assert "pip install 'substyle[kornia]'" in refusal(here, 'name = "x", of = "kornia:RandomMotionBlur"')
    assert not libraries.installed()


def test_listed_filters_of_gmic() -> None:
    listed = gmic._listed()
    assert len(listed) > 100
    assert all(re.fullmatch("fx_[a-z0-9_]+", name) for name in listed)
    for rows in listed.values():
        assert all(low <= default <= high for _, default, low, high in rows)


def test_oil_paintings_need_opencv_contrib(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pytest.importorskip("cv2"), "xphoto", raising=False)
    said = refusal(here, 'name = "x", of = "opencv:oil_painting"')
    assert "pip install opencv-contrib-python-headless" in said


def test_opencv_is_given_its_order_of_channels() -> None:
    pytest.importorskip("cv2")
    red_SSC = np.zeros((32, 32, 3), np.uint8)
    red_SSC[..., 0] = 250
    drawn_SSC = libraries.library("opencv").make("cartoon", {"levels": 4})(red_SSC, 0)
    assert (drawn_SSC == [224, 32, 32]).all()  # the middle of each of four ranges
