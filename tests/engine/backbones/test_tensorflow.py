from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.backbones import bundle_files

from substyle.engine.backbones.families import simclr, tensorflow
from substyle.engine.backbones.families.tensorflow import BundleError, TensorBundle, files_of, prefix_of

THERE = Path(__file__).parent / "tensorflow"
V1, V2 = THERE / "v1" / "model.ckpt-7", THERE / "v2"


def values(number: int, *shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape))) % 7 / 8 + number).astype(np.float32).reshape(shape)


def test_what_tensorflow_wrote_is_read() -> None:
    bundle = TensorBundle(V1)
    assert len(bundle.names()) == 124
    for i in range(1, 120):
        name = f"base_model/conv2d_{i}/kernel"
        assert bundle.shape(name) == (1, 1, i % 3 + 1, 2)
        np.testing.assert_array_equal(bundle.read(name), values(i - 1, *bundle.shape(name)))
    np.testing.assert_array_equal(bundle.read("base_model/conv2d/kernel"), values(119, 7, 7, 3, 1))
    assert bundle.read("empty").shape == (0, 3)
    assert bundle.read("scalar").shape == ()
    assert bundle.read("global_step") == 7
    assert bundle.read("global_step").dtype == np.int64
    np.testing.assert_array_equal(bundle.read("half"), np.float32([1.5, -2.25]))


def test_variables_are_known_by_the_graph_of_their_objects() -> None:
    prefix = prefix_of(V2)
    assert prefix is not None
    with torch.device("meta"):
        network = simclr.create("resnet50")
    state = simclr.from_tensorflow(prefix, network)
    for number, (convolution, norm) in enumerate(simclr.layers(network)):
        assert state[f"{convolution}.weight"].flatten()[0] == number
        for i, part in enumerate(("weight", "bias", "running_mean", "running_var")):
            assert state[f"{norm}.{part}"] == 100 * (i + 1) + number
    assert len(state) == 53 * 5  # and not the head that lies outside
    assert set(state) <= set(network.state_dict())


def test_a_path_may_be_a_prefix_an_index_or_a_folder(tmp_path: Path) -> None:
    assert prefix_of(V1) == prefix_of(Path(f"{V1}.index")) == prefix_of(V1.parent) == V1
    assert prefix_of(V2) == V2 / "variables" / "variables"
    assert [path.name for path in files_of(V1)] == ["model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"]
    assert prefix_of(tmp_path) is None
    assert prefix_of(tmp_path / "nothing") is None


def test_our_writer_writes_what_we_read(tmp_path: Path) -> None:
    tensors = {"a/b": values(3, 2, 3), "a/c": np.int64(4), "z": values(0, 0, 2)}
    bundle_files.write(tmp_path / "x", tensors)
    bundle = TensorBundle(tmp_path / "x")
    assert bundle.names() == ["a/b", "a/c", "z"]
    for name, value in tensors.items():
        np.testing.assert_array_equal(bundle.read(name), value)
    assert tensorflow.KEY not in bundle


@pytest.mark.parametrize("at", [0, 700, 4000, -45, -1])
def test_a_changed_byte_of_the_index_is_found(tmp_path: Path, at: int) -> None:
    for path in files_of(V1):
        shutil.copy(path, tmp_path)
    index = tmp_path / "model.ckpt-7.index"
    data = bytearray(index.read_bytes())
    data[at] ^= 1
    index.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.ckpt-7\.index"):
        TensorBundle(tmp_path / "model.ckpt-7")


def test_changed_and_cut_tensors_are_found(tmp_path: Path) -> None:
    bundle_files.write(tmp_path / "x", {"a": values(1, 50), "b": values(2, 50)})
    path = tmp_path / "x.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    bundle = TensorBundle(tmp_path / "x")
    bundle.read("b")
    with pytest.raises(BundleError, match=f"{tmp_path / 'x'}: a: "):
        bundle.read("a")
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f": b: {path.name}"):
        bundle.read("b")
    path.unlink()
    with pytest.raises(BundleError, match=f": b: {path.name}: {os.strerror(errno.ENOENT)}"):
        bundle.read("b")


@pytest.mark.parametrize("size", [0, 3, 47, 48, 2000])
def test_a_cut_index_is_named(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.index").write_bytes(Path(f"{V1}.index").read_bytes()[:size])
    with pytest.raises(BundleError, match=r"x\.index"):
        TensorBundle(tmp_path / "x")


def test_a_graph_without_a_resnet_is_named() -> None:
    class Bundle:
        prefix = "x"

        def text(self, name: str) -> bytes:
            return b"\x0a\x00"  # one object without attributes

    with pytest.raises(BundleError, match=r"^x: 0 .*initial_conv_relu_max_pool and block_groups"):
        tensorflow.base_names(Bundle())
