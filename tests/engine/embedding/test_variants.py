"""Variants that a model elsewhere sees are those that substyle embeds."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import substyle
from substyle.engine.backbones import registry
from substyle.engine.config import Settings
from substyle.engine.embedding.variants import COLUMNS, INDEX, write_variants
from substyle.engine.store.importer import import_store
from substyle.engine.store.layout import DifferentError
from substyle.engine.store.verify import verify
from substyle.errors import ConfigError

SUITE = "identity,gaussian_blur,icon_overlay,gaussian_noise"
NAMES = SUITE.split(",")
SIDE = 64
SETTINGS, IDENTITY = (Settings(0, SIDE, tuple(names)) for names in (NAMES, ["identity"]))


def embedded_elsewhere(pixels_BSSC: np.ndarray) -> np.ndarray:
    """Colour statistics, as a stand-in for a model of another framework."""
    backbone = registry.load("control:pixels", registry.LoadContext(SIDE, len(pixels_BSSC), 0, None))
    assert backbone.module is not None
    import torch

    return backbone.module(torch.from_numpy(pixels_BSSC)).numpy()


@pytest.fixture(scope="module")
def store(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> substyle.EmbeddingStore:
    path = tmp_path_factory.mktemp("embedded") / "s.zarr"
    return substyle.embed(two_classes, path, ["control:pixels"], transformations=NAMES, canvas=SIDE)


@pytest.fixture(scope="module")
def written(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "folder"
    answer = write_variants(two_classes, out, SETTINGS, quiet=True)
    assert (answer["images"], answer["variants"], answer["quarantined"]) == (40, 160, {})
    return out


def test_variants_embedded_elsewhere_are_imported_beside_ours(
    store: substyle.EmbeddingStore, written: Path, tmp_path: Path
) -> None:
    with (written / INDEX).open() as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([np.asarray(Image.open(written / row["file"])) for row in rows])
    np.save(tmp_path / "x.npy", embedded_elsewhere(pixels))
    for name in ("import:one", "import:two"):
        import_store(tmp_path / "x.npy", store.path, name, rows=written / INDEX)
        ours, theirs = substyle.load_table(store, "control:pixels"), substyle.load_table(store, name)
        assert theirs.keys == ours.keys
        assert theirs.transformations == ours.transformations
        np.testing.assert_array_equal(theirs.x_TND, ours.x_TND)
        np.testing.assert_array_equal(theirs.distinct_TN, ours.distinct_TN)
    import_store(tmp_path / "x.npy", store.path, "import:one", rows=written / INDEX)  # nothing to do
    assert verify(store.path, quiet=True).damage == []
    np.testing.assert_array_equal(
        substyle.load_table(store, "import:two").groups("photograph"), ours.groups("photograph")
    )
    assert substyle.load_table(store, "import:two").seen_N.all()  # thumbnails are kept
    np.save(tmp_path / "x.npy", 2 * embedded_elsewhere(pixels))
    with pytest.raises(DifferentError, match="import:one"):
        import_store(tmp_path / "x.npy", store.path, "import:one", rows=written / INDEX)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda rows: [{**row, "key": row["key"].replace("even/00", "even/99")} for row in rows], "key"),
        (lambda rows: [row for row in rows if row["key"] != "even/00.jpg"], "embeddings"),
        (
            lambda rows: [{**row, "label": "odd" if row["key"] == "even/00.jpg" else row["label"]} for row in rows],
            "label",
        ),
        (lambda rows: [{**row, "split": "test"} for row in rows], "split"),
        (lambda rows: [{**row, "content_hash": "0" * 32} for row in rows], "content_hash"),
        (lambda rows: [{**row, "canvas": 96} for row in rows], "canvas"),
        (lambda rows: [{**row, "seed": 5} for row in rows], "seed"),
        (lambda rows: [{**row, "distinct": "perhaps"} for row in rows], "distinct"),
        (lambda rows: [{**row, "distinct": row["transformation"] == "identity"} for row in rows], "distinct"),
    ],
)
def test_other_photographs_are_refused(
    store: substyle.EmbeddingStore, written: Path, tmp_path: Path, change, field: str
) -> None:  # fmt: skip
    with (written / INDEX).open() as file:
        rows = change(list(csv.DictReader(file)))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    np.save(tmp_path / "x.npy", np.ones((len(rows), 3), np.float32))
    with pytest.raises(ConfigError) as caught:
        import_store(tmp_path / "x.npy", store.path, "import:other", rows=tmp_path / "rows.csv")
    assert str(caught.value.field).split()[0] == field
    assert "import:other" not in [entry.name for entry in store.backbones()]


def test_content_hashes_are_kept_in_a_store_of_imports(written: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((160, 3), np.float32))
    text = (written / INDEX).read_text()
    first = next(csv.DictReader(text.splitlines()))["content_hash"]
    import_store(tmp_path / "x.npy", tmp_path / "s.zarr", "import:x", rows=written / INDEX)
    for other, named in (("0" * 32, f"{first}, the photograph in"), ("other", "32 hexadecimal digits")):
        (tmp_path / "rows.csv").write_text(text.replace(first, other))
        with pytest.raises(ConfigError, match=f"content_hash of .*{named}"):
            import_store(tmp_path / "x.npy", tmp_path / "s.zarr", "import:y", rows=tmp_path / "rows.csv")


def test_tar_shards(two_classes: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substyle.engine.embedding.variants.TAR_SAMPLES", 100)
    answer = write_variants(two_classes, tmp_path, SETTINGS, to="webdataset", quiet=True)
    assert answer["variants"] == 160
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(tmp_path.glob("variants-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, _, end = member.name.partition(".")
                samples.setdefault(name, {})[end] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert len(list(tmp_path.iterdir())) == 2
    assert len(samples) == 160
    for sample in samples.values():
        facts = json.loads(sample["json"])
        assert set(facts) == {*COLUMNS, "kind"} - {"file"}
        assert sample["png"] == (written / facts["transformation"] / f"{facts['key']}.png").read_bytes()


def test_the_iterator_yields_the_pixels(two_classes: Path, written: Path) -> None:
    seen = []
    for keys, transformation, pixels_BSSC in substyle.iter_variants(two_classes, suite=NAMES, canvas=SIDE, batch=16):
        assert len(keys) <= 16
        assert pixels_BSSC.shape == (len(keys), SIDE, SIDE, 3)
        seen.append((transformation, tuple(keys)))
        expected = np.asarray(Image.open(written / transformation / f"{keys[0]}.png"))
        np.testing.assert_array_equal(pixels_BSSC[0], expected)
    assert [name for name, _ in seen] == NAMES * 3
    assert len({key for _, keys in seen for key in keys}) == 40


def test_jpeg_and_a_file_that_is_no_image(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (80, 80), "red").save(images / "a.png")
    (images / "b.jpg").write_bytes(b"no image")
    answer = write_variants(images, tmp_path / "out", IDENTITY, image_format="jpeg", quiet=True)
    assert list(answer["quarantined"]) == ["b.jpg"]
    assert Image.open(tmp_path / "out" / "identity" / "a.png.jpeg").format == "JPEG"
    with pytest.warns(UserWarning, match=r"b\.jpg is left out"):
        (only,) = substyle.iter_variants(images, suite="identity", canvas=SIDE)
    assert only[0] == ["a.png"]
    for field, changes in {
        "--to": {"to": "zip"},
        "--format": {"image_format": "gif"},
        "--quality": {"quality": 0},
    }.items():
        with pytest.raises(ConfigError) as caught:
            write_variants(images, tmp_path / "new", IDENTITY, **changes)
        assert caught.value.field == field
    with pytest.raises(ConfigError) as caught:  # a folder of variants would be a class of photographs
        write_variants(images, images / "variants", IDENTITY)
    assert caught.value.field == "--out"
    assert not (images / "variants").exists()
    with pytest.raises(ConfigError, match="a new or empty folder"):
        write_variants(images, tmp_path / "out", IDENTITY)
