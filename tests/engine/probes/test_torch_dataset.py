from __future__ import annotations

from pathlib import Path

import pytest

import substyle
from substyle.errors import ConfigError

NAMES = ["identity", "gaussian_blur", "defocus_blur", "grayscale"]  # defocus_blur is held out


@pytest.fixture(scope="module")
def store(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> substyle.EmbeddingStore:
    path = tmp_path_factory.mktemp("embedded") / "s.zarr"
    return substyle.embed(two_classes, path, ["control:pixels"], transformations=NAMES, canvas=64)


def test_held_out_transformations_are_left_out_unless_named(store: substyle.EmbeddingStore) -> None:
    data = substyle.torch_dataset(store, "control:pixels", task="kind", split="test")
    assert "defocus_blur" not in data.transformations
    held_out = substyle.torch_dataset(
        store, "control:pixels", task="kind", split="test", transformations=["defocus_blur"]
    )
    assert {held_out.classes[target] for target in held_out.targets} == {"blur"}


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("split", {"split": "dev"}),
        ("task", {"task": "style"}),
        ("transformations", {"transformations": ["jpeg"]}),
    ],
)
def test_bad_arguments(field: str, options: dict[str, object], store: substyle.EmbeddingStore) -> None:
    with pytest.raises(ConfigError) as caught:
        substyle.torch_dataset(store, "control:pixels", **options)  # type: ignore[arg-type]
    assert caught.value.field == field
