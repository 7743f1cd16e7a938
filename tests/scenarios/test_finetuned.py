"""Fine-tuned backbones of a study: what they are trained on, and what they may be probed on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.scenarios.scene import Scene, other_bytes, read

from substyle.engine.backbones import registry
from substyle.engine.backbones.weights import WeightsError
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.extensions.finetune.family import PREFIX, Finetuned
from substyle.engine.extensions.finetune.stage import STAGE, labelled_variants
from substyle.engine.probes.tasks import UNKNOWN
from substyle.engine.stages.registry import discard
from substyle.engine.stages.stage import Run
from substyle.engine.store.identity import PhotographsError
from substyle.engine.store.records import content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.study.file import study_of
from substyle.pipelines.sources import open_source

BASE = "control:random:test_efficientnet"


@pytest.fixture
def tuned(scene: Scene) -> Scene:
    scene.study["backbones"] = [{"name": BASE, "precision": "fp32"}]
    scene.study["suite"] = "identity,grayscale,jpeg,saturate"  # saturate is held out
    scene.study["finetune"] = {"backbones": [BASE], "objectives": ["class", "joint"], "seeds": 1, "steps": 2}
    scene.study["finetune"] |= {"batch": 8, "learning_rate": 1e-2}
    return scene


@pytest.mark.slow
def test_a_study_compares_a_network_with_its_fine_tuned_weights(tuned: Scene) -> None:
    results = tuned.run()
    names = [name for name in results["backbones"] if name.startswith(PREFIX)]
    assert [results["backbones"][name]["spec"]["finetuned"]["objective"] for name in names] == ["class", "joint"]
    facts = [Finetuned.load(tuned.root / name.removeprefix(PREFIX)).metadata for name in names]
    assert all(each["transformations"] == ["identity", "grayscale", "jpeg"] for each in facts)
    assert {tuple(each["losses"]) for each in facts} == {("class",), ("class", "transformation")}
    hashes = {results["backbones"][name]["spec"]["weights_hash"] for name in results["backbones"]}
    assert len(hashes) == 3
    store = EmbeddingStore.open(tuned.store)
    context = registry.LoadContext(canvas=64, batch=8, seed=0)
    source = open_source(tuned.photos)
    pipeline = PixelPipeline(Settings(0, 64, ("identity",)), EmbedConfig(device="cpu", batch=8))
    record = source.records[0]
    canvas = pipeline.decoder([record.read()]).canvas_BSSC
    for name in names:
        module = registry.load(name, context).module
        assert module is not None
        table = load_table(store, name)
        with torch.inference_mode():
            expected = module(canvas)[0].numpy()
        np.testing.assert_allclose(
            table.take(0, np.array([table.keys.index(record.key)]))[0], expected, rtol=1e-3, atol=1e-3
        )
    # complete trainings are kept; another budget is another training
    before = {path: path.stat().st_mtime_ns for path in (tuned.root / "out" / "finetuned").rglob("*.safetensors")}
    assert tuned.run()["backbones"].keys() == results["backbones"].keys()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # a store that holds out what they were trained on refuses them
    tuned.study |= {"backbones": [{"name": names[0]}], "suite": "identity,grayscale,jpeg,saturate", "finetune": {}}
    header = Finetuned.load(tuned.root / names[0].removeprefix(PREFIX))
    changed = {**header.metadata, "transformations": ["saturate"]}
    Finetuned(header.state, changed).save(tuned.root / "seen.safetensors")
    tuned.study["backbones"] = [f"{PREFIX}seen.safetensors"]
    tuned.run_refused(out="other", kind="ConfigError", field="backbone")


@pytest.mark.slow  # compiles two networks
def test_reports_show_no_earlier_training(tuned: Scene) -> None:
    tuned.study["finetune"]["objectives"] = ["class"]
    tuned.run()
    tuned.study["finetune"]["steps"] = 3
    tuned.add(50)
    now = tuned.run()["backbones"].keys()
    tuned.ok("report", tuned.store, "--study", tuned.study_file())
    assert read(tuned.root / "out" / "results.json")["backbones"].keys() == now
    tuned.study["embed"]["batch"] = 4  # photographs are shuffled in groups of a batch
    assert tuned.run()["backbones"].keys() != now


def test_results_of_earlier_trainings_are_deleted(tmp_path: Path) -> None:
    bases = {"old": BASE, "now": BASE, "other": "control:random:test_vit", BASE: None}
    for name in bases:
        (tmp_path / "probes" / name).mkdir(parents=True)
    facts = {n: {"spec": {"finetuned": {"backbone": base}} if base else {}} for n, base in bases.items()}
    store = SimpleNamespace(backbones=lambda: [SimpleNamespace(name=n, slug=n, facts=facts[n]) for n in bases])
    study = study_of({"name": "s", "backbones": [BASE], "finetune": {"backbones": [BASE]}})
    run = Run(store, tmp_path, {}, study)  # type: ignore[arg-type]
    for entry in STAGE.replaced(run, {f"{BASE} class 0": "now"}):
        discard(run.out, entry.slug)
    assert {path.name for path in (tmp_path / "probes").iterdir()} == {"now", "other", BASE}


def test_refused_before_anything_is_trained(tuned: Scene) -> None:
    tuned.study["finetune"]["backbones"] = ["control:pixels"]
    tuned.run_refused(kind="ConfigError", field="finetune.backbones")
    tuned.study["backbones"] = ["control:pixels"]
    tuned.run_refused(kind="ConfigError", field="finetune.backbones")
    tuned.study["backbones"] = ["control:random:test_vit@layer=0..1"]  # one network of several backbones
    tuned.study["finetune"]["backbones"] = ["control:random:test_vit@layer=0"]
    tuned.run_refused(kind="ConfigError", field="finetune.backbones")
    tuned.study |= {"backbones": [BASE], "suite": "identity,saturate"}
    tuned.study["finetune"] |= {"backbones": [BASE]}
    tuned.run_refused(kind="ConfigError", field="finetune.backbones", out="new")
    tuned.study["suite"] = "identity,grayscale"
    for path in list(tuned.photos.glob("*/odd/*.jpg")):
        path.rename(path.parent.with_name("even") / f"more-{path.name}")
    tuned.run_refused(kind="ConfigError", field="finetune.objectives", out="new")
    assert not (tuned.root / "new").exists()


def test_files_that_are_not_fine_tuned_weights_are_refused(tuned: Scene) -> None:
    context = registry.LoadContext(canvas=64, batch=8, seed=0)
    path, base = tuned.root / "x.safetensors", registry.load(BASE, context)
    assert base.module is not None
    state = base.module.state_dict()
    fewer = dict(list(state.items())[1:])
    facts = {"backbone": BASE, "objective": "joint", "seed": 0, "transformations": [], "settings": {}}
    for write in (
        lambda: None,
        lambda: path.write_bytes(b"nothing"),
        lambda: Finetuned(state, {**facts, "weights_hash": "0" * 16}).save(path),  # of other weights
        lambda: Finetuned(fewer, {**facts, "weights_hash": base.spec.weights_hash}).save(path),
    ):
        write()
        with pytest.raises(WeightsError):
            registry.load(f"{PREFIX}{path}", context)
    Finetuned(state, {**facts, "weights_hash": base.spec.weights_hash}).save(path)
    assert registry.load(f"{PREFIX}{path}", context).spec.finetuned == facts


def test_batches_hold_every_variant_of_every_photograph_once_an_epoch(scene: Scene) -> None:
    source = open_source(scene.photos)
    records = source.records[:10]
    pipeline = PixelPipeline(Settings(0, 64, ("identity",)), EmbedConfig(device="cpu", batch=4))
    names = ("identity", "hue_shift")
    class_N = np.arange(10, dtype=np.int64)
    asked = pipeline, records, [""] * 10, np.array([0, 1], np.int64), class_N
    made = labelled_variants(*asked, transformations=names, batch=3, seed=5)
    epochs = []
    for _ in range(2):
        rows: list[tuple[int, int, bytes]] = []
        while len(rows) < 20 - 2:  # groups of 4, 4 and 2 photographs: 8, 8 and 4 variants; rests of one are dropped
            batch = next(made)
            assert 2 <= len(batch.class_B) <= 3
            for pixels, t, c in zip(batch.pixels_BSSC, batch.transformation_B, batch.class_B, strict=True):
                rows.append((int(t), int(c), pixels.numpy().tobytes()))
        assert len({(t, c) for t, c, _ in rows if t != UNKNOWN}) == len([row for row in rows if row[0] != UNKNOWN])
        epochs.append(rows)
    first, second = (dict(((t, c), pixels) for t, c, pixels in rows) for rows in epochs)
    both = [key for key in first.keys() & second.keys() if key[0] == 0]
    assert both
    assert all(first[key] == second[key] for key in both)  # photographs
    changed = [first[key] != second[key] for key in first.keys() & second.keys() if key[0] == 1]
    assert any(changed)  # parameters are drawn anew
    assert [row[:2] for row in epochs[0]] != [row[:2] for row in epochs[1]]


@pytest.mark.parametrize("how", ["edited", "gone"])
def test_training_reads_the_photographs_that_were_embedded(scene: Scene, how: str) -> None:
    records = open_source(scene.photos).records[:4]
    contents = [content_hash(record.read()) for record in records]
    path = scene.photos / records[2].key
    path.unlink() if how == "gone" else path.write_bytes(other_bytes(path))
    pipeline = PixelPipeline(Settings(0, 64, ("identity",)), EmbedConfig(device="cpu", batch=4))
    asked = pipeline, records, contents, np.array([0], np.int64), np.zeros(4, np.int64)
    made = labelled_variants(*asked, transformations=("identity",), batch=3, seed=5)
    with pytest.raises(PhotographsError, match=records[2].key):
        next(made)
