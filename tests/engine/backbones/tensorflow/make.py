"""Writes the checkpoints of this folder with TensorFlow itself: `python make.py`. The tests read them without it.

`v1/model.ckpt-7`: variables by name, in several blocks of the index. `v2`: a SavedModel's variables, whose keys say
nothing; the objects have the names of google-research/simclr's `tf2/resnet.py`. Every value follows from its place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent


def values(number: int, *shape: int) -> np.ndarray:
    """Numbers that say which tensor they belong to."""
    return (np.arange(int(np.prod(shape))) % 7 / 8 + number).astype(np.float32).reshape(shape)


def version_1() -> None:
    shapes = [(f"base_model/conv2d_{i}/kernel", (1, 1, i % 3 + 1, 2)) for i in range(1, 120)]
    shapes += [("base_model/conv2d/kernel", (7, 7, 3, 1)), ("empty", (0, 3)), ("scalar", ())]
    graph = tf.compat.v1.Graph()
    with graph.as_default():
        variables = [
            tf.compat.v1.get_variable(name, initializer=tf.constant(values(i, *shape)))
            for i, (name, shape) in enumerate(shapes)
        ]
        variables.append(tf.compat.v1.get_variable("global_step", initializer=tf.constant(7, tf.int64)))
        half = tf.cast(tf.constant([1.5, -2.25]), tf.bfloat16)
        variables.append(tf.compat.v1.get_variable("half", initializer=half))
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(variables)
            saver.save(session, str(HERE / "v1" / "model.ckpt-7"), write_meta_graph=False, write_state=False)


class Thing(tf.Module):
    """An object with attributes."""


class Counter:
    convolutions = 0
    norms = 0


def convolution(*shape: int) -> Thing:
    layer = Thing()
    layer.conv2d = Thing()
    layer.conv2d.kernel = tf.Variable(values(Counter.convolutions, *shape))
    Counter.convolutions += 1
    return layer


def norm() -> Thing:
    layer = Thing()
    layer.bn = Thing()
    for i, part in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
        setattr(layer.bn, part, tf.Variable(values(100 * (i + 1) + Counter.norms, 1)))
    Counter.norms += 1
    return layer


def block(projects: bool) -> Thing:
    made = Thing()
    made.projection_layers = [convolution(1, 1, 1, 1), norm()] if projects else []
    made.shortcut_dropblock = Thing()
    layers = []
    for side in (1, 3, 1):
        layers += [convolution(side, side, 1, 1), norm(), Thing()]
    made.conv_relu_dropblock_layers = layers
    return made


def version_2() -> None:
    resnet = Thing()
    resnet.initial_conv_relu_max_pool = [convolution(7, 7, 3, 1), Thing(), norm(), Thing(), Thing()]
    resnet.block_groups = []
    for blocks in (3, 4, 6, 3):
        group = Thing()
        group.layers = [block(i == 0) for i in range(blocks)]
        resnet.block_groups.append(group)
    top = Thing()
    top.model = Thing()
    top.model.resnet_model = resnet
    top.model._projection_head = convolution(2, 3)
    top.trainable_weights = list(top.model.trainable_variables)
    tf.saved_model.save(top, str(HERE / "made"))
    shutil.rmtree(HERE / "v2", ignore_errors=True)
    shutil.copytree(HERE / "made" / "variables", HERE / "v2" / "variables")
    shutil.rmtree(HERE / "made")


if __name__ == "__main__":
    version_1()
    version_2()
