"""Study files of any content: refused by the name of a field, or every field is what the file says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed
from tests.toml import toml

from substyle.engine.config import BackboneChoice, Study
from substyle.engine.study.file import load_study


def plain(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(inner) for key, inner in vars(value).items()}
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


def whole() -> dict[str, Any]:
    choices = (BackboneChoice("control:pixels"), BackboneChoice("timm:test_vit", Path("w.pth"), "fp32"))
    study = Study("all", choices, images=Path("photographs"), plugins=(Path("p.py"),), shift={"others": Path("o")})
    document = plain(study)
    assert isinstance(document, dict)
    return document


def assert_says(value: Any, given: Any, folder: Path, way: str = "study") -> None:  # noqa: ANN401
    """A field of a study holds what its file says."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {"name": given} if isinstance(given, str) else given
        for key, inner in given.items():
            if inner is not None:
                assert_says(getattr(value, key), inner, folder, f"{way}.{key}")
    elif isinstance(value, tuple):
        kept = [inner for inner in given if inner is not None]
        assert len(value) == len(kept), way
        for one, other in zip(value, kept, strict=True):
            assert_says(one, other, folder, way)
    elif isinstance(value, dict):
        assert value.keys() == {key for key, inner in given.items() if inner is not None}, way
        for key, inner in value.items():
            assert_says(inner, given[key], folder, f"{way}.{key}")
    elif isinstance(value, Path):
        assert value in (Path(given), folder / given), way
        assert "\x00" not in str(value), way
    elif isinstance(value, str) and isinstance(given, str) and value != given:
        assert value.endswith(given), way  # a pattern of files, made relative to the study's folder
    else:
        assert value == given, way
        assert isinstance(value, bool) == isinstance(given, bool), way


def test_any_values(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "study.toml"

    def check(document: Any) -> None:  # noqa: ANN401
        if not isinstance(document, dict):
            return
        put(path, toml(document))
        study = attempt(load_study, path, names=(": got ", " is required"))
        if study is not None:
            assert_says(study, document, tmp_path)
            attempt(study.settings, names=(": got ", " is required"))

    examine(check, st.one_of(changed(whole(), 1), changed(whole())), cases=cases * 2 // 3)
