from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import reference_linear, reference_probes, reference_store, study_table
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tests.conftest import jpeg, photograph

from substyle.engine.cli import main
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.run import run_probes
from substyle.engine.results.model import entry_of
from substyle.engine.stages import probes
from substyle.engine.store.layout import SPLITS
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

STUDY = """
name = "reference"
suite = "identity,gaussian_blur,defocus_blur,grayscale,channel_permute,jpeg,low_resolution"
canvas = 64
bootstrap = 200
backbones = ["control:statistics"]
[splits]
train = 0.5
val = 0.2
test = 0.3
[probes]
heads = ["linear"]
multitask_steps = 40
widths = [64]
expert = { tolerance = 1e-5, doublings = 1 }
resamples = 2
redraws = 2
[analysis]
ks = [1, 5]
"""
NAME = "control:statistics"
TURNED = ("gaussian_blur", "grayscale", "jpeg")


def with_multitask(*given: Any, multitask: bool, **options: Any) -> ProbeOutcome:  # noqa: ANN401 - passed on
    return run_probes(*given, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a near-duplicate, photographs that are grey already, and one that is broken."""
    root = tmp_path_factory.mktemp("reference")
    for i in range(60):
        folder = root / "photographs" / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        picture = photograph(i)
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(picture.convert("L").convert("RGB") if i % 9 == 0 else picture))
    for i in range(8):
        (root / "photographs" / "even" / f"again-{i}.jpg").write_bytes(jpeg(photograph(2 * i + 10), quality=80))
    (root / "photographs" / "odd" / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (root / "study.toml").write_text(STUDY)
    arguments = ["run", str(root / "study.toml"), "--images", str(root / "photographs"), "--out", str(root / "out")]
    with pytest.MonkeyPatch.context() as patch:  # a control has no multi-task probe
        patch.setattr(probes, "run_probes", with_multitask)
        assert main([*arguments, "--quiet"]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def rows(finished: Path) -> dict[str, reference_probes.Row]:
    return {row.quantity: row for row in reference_probes.compare(finished)}


@pytest.mark.slow
def test_the_store_is_read_as_our_own_reader_reads_it(finished: Path) -> None:
    suite = json.loads((finished / "results.json").read_text())["transformations"]
    found = reference_store.read_table(finished / "store.zarr", NAME, suite)
    ours = load_table(EmbeddingStore.open(finished / "store.zarr"), NAME, found.names)
    np.testing.assert_array_equal(found.x_TND, ours.x_TND.astype(np.float32))
    np.testing.assert_array_equal(found.distinct_TN, ours.distinct_TN)
    assert not found.distinct_TN.all()
    np.testing.assert_array_equal(found.label_N, ours.label_N)
    assert found.split_N.tolist() == [SPLITS[code] for code in ours.split_N]
    moved = json.loads((finished / "results.json").read_text())["duplicates_moved"]
    assert len(found.label_N) == 68
    assert moved > 0


@pytest.mark.slow
def test_every_quantity_is_there(finished: Path, rows: dict[str, reference_probes.Row]) -> None:
    assert {
        *("transformation", "transformation, interval, low", "transformation, interval, high"),
        *("kind, seen", "kind, held_out"),
        *(f"{what}, at our C" for what in ("transformation", "kind, seen", "kind, held_out")),
        *("class, original, at our C", "class, transformed, at our C"),
        *(f"held out alone: {name}" for name in TURNED),
        *(f"kind, held out, two-way interval, {end}" for end in ("low", "high")),
        *("class, original", "class, transformed", "multi-task, transformation", "multi-task, class"),
        *(f"{k}-NN, {task}" for k in (1, 5) for task in ("style", "class")),
        *("nearest: same image", "nearest: same transformation", "nearest: neither"),
        *("AMI, transformation", "AMI, class"),
        *(f"{what}, {of}" for what in ("sensitivity", "equivariance", "steerability")
          for of in ("mean", "where it differs most")),
    } == set(rows)  # fmt: skip
    assert all(row.theirs is not None for row in rows.values())
    written = json.loads(json.dumps(reference_probes.document(list(rows.values()), finished), allow_nan=False))
    assert written["run"]["name"] == "reference"
    assert [row["quantity"] for row in written["rows"]] == list(rows)


@pytest.mark.slow
def test_what_is_arithmetic_agrees(rows: dict[str, reference_probes.Row]) -> None:
    exact = [row for name, row in rows.items() if name.startswith(("1-NN", "5-NN", "nearest", "sens", "equi", "steer"))]
    assert len(exact) == 4 + 3 + 6
    assert [row for row in exact if row.difference is None or abs(row.difference) > 1e-3] == []
    for name in ("AMI, transformation", "AMI, class"):
        assert rows[name].holds


@pytest.mark.slow
def test_linear_probes_at_our_penalty_are_scikit_learn_s(finished: Path, rows: dict[str, reference_probes.Row]) -> None:
    """Wherever validation leads: at one penalty there is one optimum. Few photographs are worth several points each."""
    found = [row for name, row in rows.items() if name.endswith("at our C")]
    assert len(found) == 5
    assert [reference_probes.line(row) for row in found if abs(row.difference or 0.0) > max(row.tolerance, 0.016)] == []
    turned = [rows[f"held out alone: {name}"] for name in TURNED]
    results = json.loads((finished / "results.json").read_text())
    # few photographs ask for penalties so weak that float32 does not converge; the run must say so then
    assert all(r.holds for r in turned) or not results["backbones"][NAME]["kind_rotation"]["linear"]["converged"]
    assert sum(row.holds for row in turned) >= 2


@pytest.mark.slow
def test_a_number_that_does_not_hold_is_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object, **__: object) -> Iterator[object]:
        return iter(())

    for part in ("probes", "multitask", "geometry"):
        monkeypatch.setattr(reference_probes, part, none)
    results = json.loads((finished / "results.json").read_text())
    run = tmp_path / "run"
    run.mkdir()
    (run / "store.zarr").symlink_to(finished / "store.zarr")
    out = tmp_path / "table.json"
    (run / "results.json").write_text(json.dumps(results))
    assert reference_probes.main([str(run), "--out", str(out)]) == 0
    results["backbones"][NAME]["knn"]["transformation"]["5"]["value"] += 0.02
    (run / "results.json").write_text(json.dumps(results))
    assert reference_probes.main([str(run), "--out", str(out)]) == 1
    assert [row["quantity"] for row in json.loads(out.read_text())["rows"] if not row["holds"]] == ["5-NN, style"]
    assert "DIFFERS" in capsys.readouterr().out


def test_linear_probes_are_scikit_learn_s_best() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = (np.eye(3)[y] @ rng.normal(size=(3, 6)) + rng.normal(size=(600, 6))).astype(np.float32)
    train, val = reference_linear.Rows(x[:300], y[:300]), reference_linear.Rows(x[300:400], y[300:400])
    picked, at = reference_linear.linear(train, val, 1e-6)
    assert (picked(x[400:]) == y[400:]).mean() > 0.55
    scaler = StandardScaler().fit(x[:300])
    model = LogisticRegression(C=1e-6).fit(scaler.transform(x[:300]), y[:300])
    np.testing.assert_array_equal(at(x[400:]), model.predict(scaler.transform(x[400:])))
    two, _ = reference_linear.linear(replace(train, y_R=train.y_R > 0), replace(val, y_R=val.y_R > 0))
    assert (two(x[400:]) == (y[400:] > 0)).mean() > 0.7


def test_intervals_have_the_width_of_their_formulas() -> None:
    rng = np.random.default_rng(0)
    right_TN = (rng.random((10, 200)) < np.linspace(0.2, 0.9, 10)[:, None]).astype(float)
    weight_T = np.ones(10)
    low, high = reference_linear.interval(right_TN, weight_T, np.arange(200), two_way=False)
    assert high - low == pytest.approx(2 * 1.96 * right_TN.mean(axis=0).std() / 200**0.5, rel=0.1)
    low, high = reference_linear.interval(right_TN, weight_T, np.arange(200), two_way=True)
    assert high - low == pytest.approx(2 * 1.96 * right_TN.mean(axis=1).std() / 10**0.5, rel=0.15)
    ten = np.repeat(right_TN, 10, axis=1)  # of each image ten copies in a folder
    low, high = reference_linear.interval(ten, weight_T, np.repeat(np.arange(200), 10), two_way=False)
    assert high - low == pytest.approx(2 * 1.96 * right_TN.mean(axis=0).std() / 200**0.5, rel=0.1)


@pytest.mark.slow
def test_the_result_table_shows_a_run_and_marks_what_has_not_converged(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    own = results["backbones"][NAME]
    own["transformation"]["linear"]["converged"], own["kind_rotation"]["linear"]["converged"] = False, True
    kept = study_table.summary(results)
    assert all(key not in json.dumps(kept) for key in ("photographs/", ".jpg"))
    shown = study_table.table(kept)
    head, _, line, _ = (text.split(" | ") for text in shown.splitlines()[:4])
    cells = dict(zip(head, line, strict=True))
    transformation, turned = own["transformation"]["linear"], own["kind_rotation"]["linear"]
    value, low, high = (f"{100 * turned['accuracy'][end]:.1f}" for end in ("value", "low", "high"))
    assert cells["kind, each held out in turn"] == f"{value} ({low}–{high})"
    assert cells["transformation, linear"].startswith(f"{100 * transformation['accuracy']['value']:.1f} (")
    assert cells["transformation, linear"].endswith(" †")
    assert cells["transformation, MLP"] == "–"
    assert "has not converged" in shown


@pytest.mark.slow
def test_the_probing_table_shows_extractability_and_names_adapters_by_their_backbone(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    own = results["backbones"][NAME]
    parts = {
        "selectivity": {"selectivity": entry_of(-0.125, (-0.25, 0.0)), "converged": True},
        "codelength": {"bits": entry_of(2.345, (2.0, 3.0)), "blocks": {"1": {"C": 1.0}}, "converged": False},
        "curve": {"needed": None, "points": {}, "converged": True},
    }
    both = {"transformation_converged": True, "class_converged": False}
    linear = {"transformation": {"value": 0.5}, "class": {"value": 0.25}}
    sizes = {"linear": linear | both, "2x64": {"transformation_difference": {"value": 0.031}} | both}
    own |= {"extractability": {task: {"linear": parts} for task in ("transformation", "class")}, "complexity": sizes}
    results["backbones"]["adapt:out/1a2b.safetensors"] = own | {"adapter": {"backbone": NAME, "method": "pisco"}}
    kept = study_table.summary(results)
    assert list(kept["backbones"])[-1] == f"{NAME} + pisco"
    assert "out/" not in json.dumps(kept)
    assert "blocks" not in json.dumps(kept)
    first, second = study_table.probing_table(kept).split("\n\n")
    cells = first.splitlines()[-1].split(" | ")
    assert cells[1::2] == ["-12.5 (-25.0 to +0.0)", "2.35 (2.00 to 3.00) †", "–"]
    assert second.splitlines()[-2:] == [
        f"| `{NAME} + pisco` | transformation | 50.0 | +3.1 |",
        f"| `{NAME} + pisco` | class | 25.0 † | – |",
    ]
    adapters = study_table.adapter_table(kept)
    assert [line.split(" | ")[0] for line in adapters.splitlines()[2:]] == [f"| `{NAME}`", f"| `{NAME} + pisco`"]
