"""Trunks that give maps: names and features of the encoders, strides, and what brings maps together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.detection.backbones import CNNMaps, Neck, Pyramid, make_neck, make_trunk, read_strides
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.encoders import (
    MobileNetV3Maps,
    MobileNetV3Small,
    ResNet,
    ResNetMaps,
    count_parameters,
    mobilenet,
    resnet,
)
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, *arguments, **keywords):
    initial = partial(module.init_with_output, jax.random.key(0), **keywords)
    return jax.eval_shape(initial, *arguments)


def image(height, width=None, channels=3):
    return jax.ShapeDtypeStruct((1, height, width or height, channels), jnp.float32)


def filled(tree):
    """Values for shapes; variances and scales are positive."""
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.uniform(0.1, 0.5, leaf.shape), jnp.float32), tree)


def test_the_published_backbone_with_its_neck_has_1_258_848_parameters():
    config = DetectorConfig(classes=("nodule",))
    maps, trunk = shapes(make_trunk(config), image(512), train=False)
    assert [one.shape for one in maps] == [(1, 16, 16, 576)]
    neck, of_neck = shapes(make_neck(config), maps)
    assert [one.shape for one in neck] == [(1, 16, 16, 64)]
    assert count_parameters(trunk) + count_parameters(of_neck) == 1_258_848


@pytest.mark.parametrize(
    ("encoder", "trunk"),
    [
        (MobileNetV3Small(width=0.25), MobileNetV3Maps(width=0.25)),
        (ResNet(18, width=4), ResNetMaps(depth=18, width=4, strides=(32,))),
    ],
)
def test_pooled_maps_are_the_features_of_the_encoder(encoder, trunk, monkeypatch):
    # The blocks that halve the image, and the stages of a residual network with one block each: less to compile.
    small, shallow = mobilenet.DESIGNS["small"], resnet.DESIGNS[18]
    halving = tuple(small.blocks[i] for i in (0, 1, 3, 8))
    monkeypatch.setitem(mobilenet.DESIGNS, "small", small._replace(blocks=halving))
    monkeypatch.setitem(resnet.DESIGNS, 18, shallow._replace(blocks=(1, 1, 1, 1)))
    x = jnp.asarray(RNG.normal(size=(1, 32, 32, 3)), jnp.float32)
    variables = filled(shapes(encoder, x, train=False)[1])
    ours = jax.tree.map(jnp.shape, shapes(trunk, x, train=False)[1])
    assert ours == jax.tree.map(jnp.shape, variables)

    @quickly
    def both(variables):
        return encoder.apply(variables, x, train=False), trunk.apply(variables, x, train=False)

    features, (last,) = both(variables)
    assert_close(jnp.mean(last, axis=(1, 2)), features, 1e-6)


@pytest.mark.parametrize("backbone", ["mobilenet-v3-small", "resnet-18", "resnet-50", "cnn"])
def test_maps_have_the_cells_that_anchors_stand_on(backbone):
    config = DetectorConfig(classes=("nodule",), backbone=backbone, width=0.25)
    maps, _ = shapes(make_trunk(config, (4, 8, 16, 32)), image(70, 101), train=False)
    found = [one.shape[1:3] for one in maps]
    assert found == [(-(-70 // stride), -(-101 // stride)) for stride in (4, 8, 16, 32)]


def test_a_trunk_ends_where_its_last_map_is():
    _, whole = shapes(MobileNetV3Maps(strides=(8, 32)), image(64), train=False)
    maps, part = shapes(MobileNetV3Maps(strides=(8,)), image(64), train=False)
    assert sorted(part["params"]) == ["block_0", "block_1", "block_2", "stem_bn", "stem_conv"]
    assert jax.tree.map(jnp.shape, part["params"]["block_2"]) == jax.tree.map(jnp.shape, whole["params"]["block_2"])
    assert [one.shape for one in maps] == [(1, 8, 8, 24)]


@pytest.mark.parametrize("trunk", [MobileNetV3Maps, ResNetMaps, CNNMaps])
@pytest.mark.parametrize("strides", [(), (32, 8), (12,), (8, 8)])
def test_strides_that_a_trunk_lacks_are_refused(trunk, strides):
    with pytest.raises(ValueError, match=r"strides are .*; expected some of .*32\), finest first"):
        shapes(trunk(strides=strides), image(64), train=False)


def test_a_pyramid_hands_down_and_never_up():
    maps = tuple(jnp.asarray(RNG.normal(size=(1, size, size, 3)), jnp.float32) for size in (5, 3))
    pyramid = Pyramid(levels=3, channels=2)
    variables = filled(shapes(pyramid, maps)[1])
    made_of: Any = pyramid.apply(variables, maps)
    fine, coarse, made = made_of
    assert [one.shape for one in (fine, coarse, made)] == [(1, 5, 5, 2), (1, 3, 3, 2), (1, 2, 2, 2)]
    assert_close(made, coarse[:, ::2, ::2], 0)
    of_fine = pyramid.apply(variables, (maps[0] + 1, maps[1]))
    assert_close(of_fine[1], coarse, 0)
    of_coarse = pyramid.apply(variables, (maps[0], maps[1] + 1))
    assert np.abs(np.asarray(of_coarse[0] - fine)).min() > 0


def test_levels_beyond_the_trunk_are_not_read_from_it():
    anchors = {"sizes": [[8], [16], [32]], "ratios": [1], "strides": [16, 32, 64]}
    config = DetectorConfig.from_json({"classes": ["nodule"], "pyramid": True, "anchors": anchors})
    assert read_strides(config) == (16, 32)


def test_a_neck_reads_the_last_map():
    maps = (jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 2, 2, 2)))
    found, variables = Neck(channels=3).init_with_output(jax.random.key(0), maps)
    assert found[0].shape == (1, 2, 2, 3)
    assert variables["params"]["conv"]["bias"].shape == (3,)
