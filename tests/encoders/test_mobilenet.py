"""MobileNetV3: published sizes, the parts of a block, and what leaves it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.encoders import mobilenet
from fusion_jax.encoders.linen import count_parameters
from fusion_jax.encoders.mobilenet import MobileNetV3, MobileNetV3Large, MobileNetV3Small, divisible_by_8
from fusion_jax.encoders.norm import Norm
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


def shapes(encoder, shape):
    initial = partial(encoder.init_with_output, jax.random.key(0), train=True)
    return jax.eval_shape(initial, jax.ShapeDtypeStruct(shape, jnp.float32))


# Published: 2,542,856 and 5,483,032 parameters, with a classifier of 1,000 classes behind the embedding.
@pytest.mark.parametrize(
    ("network", "features", "parameters"),
    [
        (MobileNetV3Small(), 576, 927_008),
        (MobileNetV3Small(embedding=True), 1024, 2_542_856 - 1025 * 1000),
        (MobileNetV3Large(), 960, 2_971_952),
        (MobileNetV3Large(embedding=True), 1280, 5_483_032 - 1281 * 1000),
        (MobileNetV3Large(projection=5), 5, 2_971_952 + 961 * 5),
    ],
)
def test_networks_have_their_published_size(network, features, parameters):
    out, variables = shapes(network, (2, 64, 64, 3))
    assert out.shape == (2, features)
    assert out.dtype == jnp.float32
    assert count_parameters(variables) == parameters


def test_three_dimensions_other_channels_and_narrow_networks():
    out, variables = shapes(MobileNetV3Small(width=0.5), (1, 33, 31, 17, 2))
    assert out.shape == (1, 288)
    assert variables["params"]["stem_conv"]["kernel"].shape == (3, 3, 3, 2, 8)
    assert variables["params"]["block_3"]["depthwise_conv"]["kernel"].shape == (5, 5, 5, 1, 48)


def test_every_resolution_is_the_published_one():
    """Table 1 at 224: resolutions before the blocks, and after the last."""
    recorded = []

    def record(call, args, keywords, context):
        if isinstance(context.module, mobilenet._Block):
            recorded.append(args[0].shape[1])
        return call(*args, **keywords)

    with nn.intercept_methods(record):
        shapes(MobileNetV3Large(), (1, 224, 224, 3))
    assert recorded == [112, 112, 56, 56, 28, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]


def test_norms_have_the_published_constants():
    found = set()

    def record(call, args, keywords, context):
        if isinstance(context.module, Norm):
            found.add((context.module.epsilon, context.module.momentum))
        return call(*args, **keywords)

    with nn.intercept_methods(record):
        shapes(MobileNetV3Small(), (1, 32, 32, 3))
    assert found == {(1e-3, 0.99)}


@pytest.mark.parametrize("swish", [False, True])
def test_a_block_is_what_its_parts_are_by_hand(swish):
    design = mobilenet._BlockDesign(3, 16, 4, excite=True, swish=swish, strides=1)
    block = mobilenet._Block(design, "none", train=False, dtype=jnp.float32)
    x = jnp.asarray(RNG.normal(size=(2, 4, 5, 4)), jnp.float32)
    variables = jax.jit(lambda key: block.init(key, x, None))(jax.random.key(0))
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def act(y):
        return y * np.clip(y + 3, 0, 6) / 6 if swish else np.maximum(y, 0)

    y = act(np.asarray(x) @ params["expand_conv"]["kernel"][0, 0] + params["expand_conv"]["bias"])
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
    y = np.einsum("bhwcij,ijc->bhwc", windows, params["depthwise_conv"]["kernel"][:, :, 0])
    y = act(y + params["depthwise_conv"]["bias"])
    pooled = y.mean((1, 2))
    reduced = np.maximum(pooled @ params["se_reduce"]["kernel"] + params["se_reduce"]["bias"], 0)
    assert reduced.shape == (2, 8)
    weights = np.clip(reduced @ params["se_expand"]["kernel"] + params["se_expand"]["bias"] + 3, 0, 6) / 6
    y = y * weights[:, None, None]
    expected = np.asarray(x) + y @ params["project_conv"]["kernel"][0, 0] + params["project_conv"]["bias"]
    assert_close(jax.jit(block.apply)(variables, x, None), expected, 1e-5)


@pytest.mark.parametrize(("channels", "rounded"), [(1, 8), (11, 16), (12, 16), (18, 24), (20, 24), (100, 104)])
def test_channels_are_rounded_by_less_than_a_tenth(channels, rounded):
    assert divisible_by_8(channels) == rounded


def test_half_precision_masks_and_gradients(monkeypatch):
    blocks = mobilenet._SMALL[:1]
    monkeypatch.setitem(mobilenet.DESIGNS, "small", mobilenet._Design(blocks, 8))
    encoder = MobileNetV3(width=0.25, embedding=True)
    x, mask = RNG.normal(size=(3, 16, 16, 1)).astype(np.float32), jnp.array([True, True, False])
    variables = jax.jit(lambda key: encoder.init(key, x, train=False))(jax.random.key(0))

    def loss(params, x):
        y, changed = encoder.apply({**variables, "params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
        return jnp.sum(y[:2] ** 2), (y[:2], changed)

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradients, (y, changed) = step(variables["params"], x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    other = np.where(np.asarray(mask)[:, None, None, None], x, 50.0).astype(np.float32)
    assert_close(step(variables["params"], other), (gradients, (y, changed)), 1e-5)
    half = jax.jit(partial(encoder.clone(dtype=jnp.bfloat16).apply, train=False))(variables, x)
    assert half.dtype == jnp.float32
    assert_close(half, jax.jit(partial(encoder.apply, train=False))(variables, x), 0.05)


def test_an_unknown_size_is_refused(unchecked):
    with pytest.raises(ValueError, match="size is 'medium'; expected one of small, large"):
        shapes(MobileNetV3("medium"), (1, 32, 32, 1))
