from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.engine.probes.conftest import CPU, Make

from substyle.engine.probes.checkpoint import FORMAT, Probe, save_probe
from substyle.engine.probes.dataset import Standardizer
from substyle.engine.probes.heads import initial
from substyle.errors import SubstyleError
from substyle.kernels.probe_step import forward


def standard(width: int) -> Standardizer:
    rng = np.random.default_rng(0)
    scale = rng.random(width).astype(np.float32) + 0.5
    scale[0] = 0.0
    return Standardizer(rng.normal(size=width).astype(np.float32), scale)


@pytest.mark.parametrize("hidden", [0, 12], ids=["linear", "mlp"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_predicts_as_the_heads_do_on_standardised_features(
    tmp_path: Path, hidden: int, dtype: type[np.floating]
) -> None:
    """Probabilities are the mean softmax over seeds of raw embeddings; the header is preserved."""
    heads, how = initial(hidden, 9, 4, 1, [0, 1, 2], CPU), standard(9)
    path = tmp_path / "folder" / "probe.safetensors"
    save_probe(
        path,
        heads,
        how,
        task="transformation",
        head="mlp" if hidden else "linear",
        outputs={"transformation": ("a", "b", "ü", "d")},
        backbone="net:x",
        setting={"lr": 0.1},
        extra={"suite": "substance31", "canvas": 224},
    )
    probe = Probe.load(path)
    x = np.random.default_rng(1).normal(size=(7, 9)).astype(dtype)
    standardised = torch.from_numpy((x.astype(np.float32) - how.mean_D) * how.scale_D)
    expected = forward(heads, standardised).softmax(1).mean(0).T
    np.testing.assert_allclose(probe.predict(x), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(probe.predict(x).sum(1), 1.0, atol=1e-5)
    assert probe.labels == {"transformation": ["a", "b", "ü", "d"]}
    assert probe.metadata["suite"] == "substance31"
    assert probe.metadata["backbone"] == "net:x"
    assert probe.predict(x[:0]).shape == (0, 4)
    assert [p.name for p in path.parent.iterdir()] == ["probe.safetensors"]


def test_a_multi_task_probe_has_two_outputs(tmp_path: Path) -> None:
    heads = initial(6, 5, 7, 1, [0], CPU)
    outputs = {"transformation": ("a", "b", "c", "d"), "class": ("x", "y", "z")}
    save_probe(
        tmp_path / "p", heads, standard(5), task="multitask", head="mlp", outputs=outputs, backbone="b", setting={}
    )
    probe = Probe.load(tmp_path / "p")
    x = np.ones((2, 5), np.float32)
    answers = probe.predict_all(x)
    assert {name: a.shape for name, a in answers.items()} == {"transformation": (2, 4), "class": (2, 3)}
    for probabilities in answers.values():
        np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(probe.predict(x), answers["transformation"])


def test_another_width_is_refused(tmp_path: Path) -> None:
    save_probe(
        tmp_path / "p", initial(0, 5, 2, 1, [0], CPU), standard(5), task="transformation", head="linear",
        outputs={"transformation": ("a", "b")}, backbone="b", setting={},
    )  # fmt: skip
    for bad in (np.ones((2, 6)), np.ones(5)):
        with pytest.raises(SubstyleError, match=r"\(B, 5\)"):
            Probe.load(tmp_path / "p").predict(bad)


def test_the_truth_is_known_by_name(make_table: Make) -> None:
    """Class 0 of one source is not class 0 of another; photographs without a class have none."""
    table = make_table(class_names=("cat", "0", "new"))
    table.label_N[:4] = (0, 1, 2, -1)

    def truth(task: str, *labels: str, own: bool = True) -> list[list[int]]:
        probe = Probe(initial(0, 2, 2, 1, [0], CPU), {"task": task, "outputs": [{"name": "x", "labels": labels}]})
        found: list[list[int]] = probe.truth(table, np.arange(4), own=own).tolist()
        return found

    assert truth("class", "0", "cat") == [[1, 0, -1, -1]] * 8
    assert truth("class", "0", "cat", own=False) == [[1, -1, -1, -1]] * 8
    assert truth("transformation", "blur_b", "identity") == [[t] * 4 for t in (1, -1, 0, -1, -1, -1, -1, -1)]
    assert truth("kind", "tone", "blur") == [[t] * 4 for t in (-1, 1, 1, 1, -1, -1, 0, 0)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    save_probe(
        tmp_path / "p", initial(0, 5, 2, 1, [0], CPU), standard(5), task="transformation", head="linear",
        outputs={"transformation": ("a", "b")}, backbone="b", setting={},
    )  # fmt: skip
    x = np.ones((3, 5))
    x[1, 4] = bad
    with pytest.raises(SubstyleError, match="1 of 3"):
        Probe.load(tmp_path / "p").predict(x)


def good() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"w1": torch.zeros(1, 2, 3), "b1": torch.zeros(1, 2)}
    metadata = {
        "format": FORMAT, "task": "transformation", "head": "linear", "outputs": [{"name": "t", "labels": ["a", "b"]}],
        "backbone": "b", "dim": 3, "setting": {},
    }  # fmt: skip
    return tensors, metadata


def test_former_words_are_read(tmp_path: Path) -> None:
    tensors, metadata = good()
    metadata |= {"task": "coarse", "outputs": [{"name": "coarse", "labels": ["a", "b"]}]}
    save_file(tensors, tmp_path / "probe.safetensors", {"substyle": json.dumps(metadata)})
    probe = Probe.load(tmp_path / "probe.safetensors")
    assert (probe.metadata["task"], list(probe.labels)) == ("kind", ["kind"])


Spoil = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t, m: t.pop("b1"),
        lambda t, m: t.update(b1=torch.zeros(1, 3)),
        lambda t, m: t.update(w1=torch.zeros(2, 3)),
        lambda t, m: t.update(w1=torch.full((1, 2, 3), float("nan"))),
        lambda t, m: t.update(w1=torch.zeros(1, 2, 3, dtype=torch.float16)),
        lambda t, m: t.update(w2=torch.zeros(1, 2, 5), b2=torch.zeros(1, 2)),
        lambda t, m: m.pop("task"),
        lambda t, m: m.update(format="other"),
        lambda t, m: m.update(dim=4),
        lambda t, m: m.update(outputs=[{"name": "t", "labels": ["a"]}]),
        lambda t, m: m.update(outputs=["a"]),
        lambda t, m: m.update(outputs=[{"labels": ["a", "b"]}]),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, spoil: Spoil) -> None:
    tensors, metadata = good()
    path = tmp_path / "probe.safetensors"
    save_file(tensors, path, {"substyle": json.dumps(metadata)})
    assert Probe.load(path).predict(np.ones((1, 3))).tolist() == [[0.5, 0.5]]
    spoil(tensors, metadata)
    save_file(tensors, path, {"substyle": json.dumps(metadata)})
    with pytest.raises(SubstyleError, match=r"probe\.safetensors"):
        Probe.load(path)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    with pytest.raises(SubstyleError, match=r"probe\.safetensors: cannot read"):
        Probe.load(path)
    for content in (b"", b"not a probe", (2**62).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(SubstyleError, match=r"probe\.safetensors: cannot read"):
            Probe.load(path)
    tensors, metadata = good()
    save_file(tensors, path)
    with pytest.raises(SubstyleError, match="header"):
        Probe.load(path)
    save_file(tensors, path, {"substyle": json.dumps([metadata])})
    with pytest.raises(SubstyleError, match="file"):
        Probe.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(SubstyleError, match=r"probe\.safetensors: cannot read"):
        Probe.load(path)
