from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import preprocessing
from tests.conftest import jpeg, photograph
from torchvision.transforms import v2

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "preprocessing.json").read_text())
    return data


def test_the_kept_result_is_as_its_schema_says_and_the_page_says_it(kept: dict[str, Any]) -> None:
    preprocessing.check(kept)
    page = " ".join((ROOT / "docs" / "backbones.md").read_text().split())
    assert preprocessing.sentence(kept) in page


@pytest.mark.parametrize("change", ["schema", "rows", "cosine", "name"])
def test_the_schema_refuses(kept: dict[str, Any], change: str) -> None:
    bad = copy.deepcopy(kept)
    if change == "schema":
        bad["schema"] = 2
    elif change == "rows":
        bad["rows"].pop()
    elif change == "cosine":
        bad["rows"][0]["both"]["centred_median"] = 1.5
    else:
        del bad["photographs"]
    with pytest.raises(ValueError, match=r"schema|rows|document"):
        preprocessing.check(bad)


def test_what_is_compared() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20, 8)).astype(np.float32) + 5
    same = preprocessing.compared(a, a)
    assert same["nearest"] == 1.0
    assert same["centred_median"] == pytest.approx(1.0, abs=1e-5)
    other = preprocessing.compared(a, rng.standard_normal((20, 8)).astype(np.float32) + 5)
    assert other["centred_median"] < 0.5 < other["cosine_median"]


def test_pillow_s_canvas_and_a_folder_s_photographs(tmp_path: Path) -> None:
    for i, (width, height) in enumerate(((300, 500), (40, 30), (224, 224))):
        picture = photograph(i, width, height)
        assert preprocessing.by_pillow(picture).size == (224, 224)
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(picture))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    assert len(preprocessing.photographs(tmp_path, 10)) == 3
    assert len(preprocessing.photographs(None, 2)) == 2


@pytest.mark.parametrize(("width", "height"), [(301, 500), (333, 251), (256, 257), (224, 640)])
def test_pillow_s_canvas_shows_the_same_part_as_torchvision_s(width: int, height: int) -> None:
    picture = photograph(1, width, height)
    bicubic = v2.InterpolationMode.BICUBIC
    transform = v2.Compose([v2.Resize(256, bicubic), v2.CenterCrop(224)])
    assert np.array_equal(preprocessing.by_pillow(picture), np.asarray(transform(picture)))
