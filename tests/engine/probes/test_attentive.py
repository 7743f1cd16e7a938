"""Probes of tokens: what only attention reads, beside linear heads on means; streamed, rounded, saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.probes.conftest import Make, Quick

from substyle.engine.probes import heads, trainer
from substyle.engine.probes.batches import Features
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import over, standard_of
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.run import run_probes
from substyle.engine.probes.tasks import semantic_task
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.errors import SubstyleError

P, D = 6, 12

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens(make_table: Make, images: int = 150) -> EmbeddingTable:
    """Each token is a noisy view of the synthetic embedding."""
    table = make_table(images=images, width=D)
    noise = np.random.default_rng(1).normal(size=(*table.x_TND.shape[:2], P, D))
    assert isinstance(table.x_TND, np.ndarray)
    x_TNPD = table.x_TND[:, :, None] + noise
    return replace(table, x_TND=x_TNPD.reshape(*table.x_TND.shape[:2], P * D).astype(np.float16), tokens=P)


def hidden(make_table: Make, classes: int = 3) -> EmbeddingTable:
    """The class is that of one token of each image, which a marker tells from tokens of random classes."""
    table = make_table(images=900, width=P * D, classes=classes)
    rng = np.random.default_rng(2)
    shape = table.x_TND.shape[:2]
    x_TNPD = 0.3 * rng.normal(size=(*shape, P, D))
    own = rng.integers(P, size=shape)
    of_token = rng.integers(classes, size=(*shape, P))
    np.put_along_axis(of_token, own[..., None], table.label_N[None, :, None], axis=2)
    np.put_along_axis(x_TNPD[..., -1], own[..., None], 3.0, axis=2)
    x_TNPD[..., :classes] += 2.0 * np.eye(classes)[of_token]
    return replace(table, x_TND=x_TNPD.reshape(*shape, P * D).astype(np.float16), tokens=P)


def quick_tokens(quick: Quick, **changes: object) -> ProbeConfig:
    defaults = {"attention_heads": 4, "queries": 4, "attentive_steps": 40, "attentive_learning_rates": (1e-2, 3e-3)}
    return quick(**(defaults | changes))


def test_only_attention_finds_one_token(make_table: Make, quick: Quick) -> None:
    config = quick_tokens(quick, tasks=("semantic",), attentive_steps=150, mlp_steps=150)
    outcome = run_probes(hidden(make_table), config, out_dir=None, quiet=True)
    clean = {head: scores["clean"] for head, scores in outcome.results["semantic"].items()}
    assert list(clean) == ["linear", "mlp", "attentive", "efficient"]
    assert max(clean["linear"], clean["mlp"]) < 0.75
    assert min(clean["attentive"], clean["efficient"]) > 0.9
    for head in ("attentive", "efficient"):
        low, high = outcome.results["semantic"][head]["clean_ci95"]
        assert low <= clean[head] <= high
        assert {"converged", "certificate", "setting", "confusion"} <= outcome.results["semantic"][head].keys()


@pytest.mark.slow
def test_streamed_probes_are_bit_identical(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    table = tokens(make_table)
    outcomes = {}
    for how in ("float16", "streamed", "int8"):
        config = quick_tokens(
            quick, table=how, tasks=("fine", "coarse"), stream_buffer=1 << 18, redraws=0, equal_width=0
        )
        outcomes[how] = run_probes(table, config, out_dir=tmp_path / how, quiet=True)
    for name, expected in outcomes["float16"].scores.items():
        np.testing.assert_array_equal(outcomes["streamed"].scores[name], expected, err_msg=name)
    files = sorted(path.name for path in (tmp_path / "float16").iterdir())
    assert {"fine-attentive.safetensors", "coarse-efficient.safetensors"} <= set(files)
    for name in files:
        ours, streamed, rounded = (load_file(tmp_path / how / name) for how in ("float16", "streamed", "int8"))
        assert all(torch.equal(ours[key], streamed[key]) for key in ours)
        assert not all(torch.equal(ours[key], rounded[key]) for key in ours)
    fine = [outcomes[how].results["fine"]["attentive"]["accuracy"] for how in ("float16", "int8")]
    assert fine[0] == pytest.approx(fine[1], abs=0.03)


def test_saved_probes_read_raw_tokens(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    """What `predict` applies has the accuracy that was reported, of tokens and of means over them."""
    table = tokens(make_table)
    outcome = run_probes(table, quick_tokens(quick, tasks=("semantic", "multitask")), out_dir=tmp_path, quiet=True)
    test_N = table.rows(TEST)
    x_BD = table.take(0, test_N).astype(np.float32)
    for head in ("linear", "mlp", "attentive", "efficient"):
        probe = Probe.load(tmp_path / f"semantic-{head}.safetensors")
        right = probe.predict(x_BD).argmax(1) == table.label_N[test_N]
        assert right.mean() == pytest.approx(outcome.results["semantic"][head]["clean"], abs=0.02)
        with pytest.raises(SubstyleError, match=rf"\(B, {P * D}\)"):
            probe.predict(x_BD[:, :D])
    both = Probe.load(tmp_path / "multitask-mlp.safetensors").predict_all(x_BD)
    assert list(both) == ["transformation", "class"]


def test_damaged_probes_are_refused(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    run_probes(tokens(make_table), quick_tokens(quick, tasks=("semantic",)), out_dir=tmp_path, quiet=True)
    path = tmp_path / "semantic-attentive.safetensors"
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()["substyle"]
    tensors = load_file(path)
    Probe.load(path)
    cut = tensors | {"query": tensors["query"][:, :-1].contiguous()}
    for changed, about in (
        (tensors, header.replace('"tokens": ', '"tokens": 1')),
        (tensors, header.replace('"groups": ', '"groups": 1')),
        (cut, header),
    ):
        save_file(changed, path, {"substyle": about})
        with pytest.raises(SubstyleError, match=r"match the weights|invalid shapes"):
            Probe.load(path)


def test_all_tokens_share_a_standardisation(make_table: Make) -> None:
    table = tokens(make_table)
    t_B, n_B = np.repeat(np.arange(3), 50), np.tile(np.arange(50), 3)
    x_BD = table.take(t_B, n_B).astype(np.float64).reshape(-1, D)
    made = over(table, t_B, n_B)
    np.testing.assert_allclose(made.mean_D, np.tile(x_BD.mean(0), P), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.scale_D, np.tile(1 / x_BD.std(0), P), rtol=1e-4)


def test_wide_validation_rows_are_gathered_again(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tokens(make_table)
    task = semantic_task(table, 0)
    assert task is not None
    features = Features(table, standard_of(table, task, 0), torch.device("cpu"), torch.float32)
    config = quick_tokens(quick)
    made = train_mlp(features, task, config, head="efficient")
    held = trainer.Validation(features, task, config)
    monkeypatch.setattr(trainer, "_HELD", 0)
    monkeypatch.setattr(trainer, "_WIDE", 7 * P * D)
    again = trainer.Validation(features, task, config)
    assert (held.x_BD is None, again.x_BD is None) == (False, True)
    for one, other in zip(held.judge(made.trained.heads), again.judge(made.trained.heads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert again.difference(made.trained.heads, made.trained.heads) == (0.0, True)


def test_resampled_heads(make_table: Make, quick: Quick) -> None:
    """Resamples of the training photographs give a standard error, as of MLPs."""
    config = quick_tokens(quick, tasks=("semantic",), mlp_resamples=2, heads=("linear",), token_heads=("efficient",))
    outcome = run_probes(tokens(make_table), config, out_dir=None, quiet=True)
    assert list(outcome.results["semantic"]) == ["linear", "efficient"]
    assert outcome.by_resample["semantic/efficient"].shape == (2, 8)
    assert outcome.results["semantic"]["efficient"]["clean_se_training"] is not None


@pytest.mark.parametrize(
    ("width", "most", "groups"), [(384, 32, 32), (768, 12, 12), (10, 12, 10), (7, 4, 1), (9, 4, 3)]
)
def test_groups_divide_the_width(width: int, most: int, groups: int) -> None:
    config = ProbeConfig(attention_heads=most, queries=most)
    for head in ("attentive", "efficient"):
        settings = heads.token_grid(config, head, width)
        assert {s.groups for s in settings} == {groups}
        assert [s.lr for s in settings] == list(config.attentive_learning_rates)


def test_initial_weights_depend_on_the_seed_only() -> None:
    config = ProbeConfig(queries=4)
    (setting, *_) = heads.token_grid(config, "efficient", D)
    one = heads.initial_of_tokens(setting, P * D, P, 3, 2, [5], torch.device("cpu"))
    two = heads.initial_of_tokens(setting, P * D, P, 3, 1, [4, 5], torch.device("cpu"))
    for a, b in zip(one.parameters, two.parameters, strict=True):
        assert torch.equal(a[0], b[1])
        assert torch.equal(a[0], a[1])


def test_tables_without_tokens_have_no_such_heads(make_table: Make, quick: Quick) -> None:
    outcome = run_probes(make_table(), quick_tokens(quick, tasks=("semantic",)), out_dir=None, quiet=True)
    assert list(outcome.results["semantic"]) == ["linear", "mlp"]
