"""Residual networks: published sizes, two and three dimensions, rematerialisation, precision, many devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.encoders import resnet
from fusion_jax.encoders.linen import count_parameters
from fusion_jax.encoders.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


def shapes(encoder, shape):
    """Shapes of the features and of the variables; nothing is computed."""
    initial = partial(encoder.init_with_output, jax.random.key(0), train=True)
    return jax.eval_shape(initial, jax.ShapeDtypeStruct(shape, jnp.float32))


def resolutions(encoder, shape):
    """Shape of what every module gives."""
    recorded = {}

    def record(call, args, keywords, context):
        y = call(*args, **keywords)
        if isinstance(y, jax.Array):
            recorded["/".join(context.module.path)] = y.shape
        return y

    with nn.intercept_methods(record):
        shapes(encoder, shape)
    return recorded


@pytest.mark.parametrize(
    ("network", "channels", "features", "parameters"),
    [
        (ResNet18, 3, 512, 11_176_512),
        (ResNet34, 3, 512, 21_284_672),
        (ResNet50, 1, 2048, 23_501_760),
        (ResNet50, 3, 2048, 23_508_032),
        (ResNet101, 3, 2048, 42_500_160),
        (ResNet152, 3, 2048, 58_143_808),
    ],
)
def test_networks_have_their_published_size(network, channels, features, parameters):
    out, variables = shapes(network(), (2, 64, 64, channels))
    assert out.shape == (2, features)
    assert count_parameters(variables) == parameters


def test_projection_adds_a_dense_layer():
    out, variables = shapes(ResNet50(projection=512), (2, 64, 64, 1))
    assert out.shape == (2, 512)
    assert count_parameters(variables) == 23_501_760 + 2048 * 512 + 512


def test_modules_are_named_after_torchvision_and_the_third_convolution_of_a_bottleneck_strides():
    _, variables = shapes(ResNet50(), (2, 64, 64, 3))
    params = variables["params"]
    assert {"conv1", "bn1", "layer1_0", "layer4_2"} < params.keys()
    block = params["layer2_0"]
    assert sorted(block) == ["bn1", "bn2", "bn3", "conv1", "conv2", "conv3", "downsample_bn", "downsample_conv"]
    assert "downsample_conv" not in params["layer2_1"]
    assert block["conv2"]["kernel"].shape == (3, 3, 128, 128)
    assert sorted(block["bn1"]) == ["bias", "scale"]
    assert list(block["conv1"]) == ["kernel"]
    found = resolutions(ResNet50(), (2, 64, 64, 3))
    assert found["conv1"] == (2, 32, 32, 64)
    assert found["layer2_0/conv1"] == (2, 16, 16, 128)
    assert found["layer2_0/conv2"] == (2, 8, 8, 128)


def test_three_dimensions_and_odd_sizes():
    out, variables = shapes(ResNet18(width=8), (2, 33, 31, 17, 2))
    assert out.shape == (2, 64)
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 7, 2, 8)


def test_small_images_keep_their_resolution_in_the_stem():
    _, variables = shapes(ResNet18(small_images=True), (2, 32, 32, 1))
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 1, 64)
    assert resolutions(ResNet18(small_images=True), (2, 32, 32, 1))["layer1_0/conv1"] == (2, 32, 32, 64)


def test_the_stem_of_a_ct_may_keep_its_slices():
    encoder = ResNet18(stem_window=(3, 7, 7), stem_strides=(1, 2, 2))
    found = resolutions(encoder, (1, 9, 32, 32, 1))
    assert found["conv1"] == (1, 9, 16, 16, 64)
    assert found["layer1_0/conv1"] == (1, 5, 8, 8, 64)
    assert shapes(encoder, (1, 9, 32, 32, 1))[1]["params"]["conv1"]["kernel"].shape == (3, 7, 7, 1, 64)


TINY = {"depth": 8, "width": 4}
X = RNG.normal(size=(4, 16, 16, 2)).astype(np.float32)
MASK = np.array([True, True, True, False])


@pytest.fixture(scope="module", autouse=True)
def _a_tiny_design():
    """Two bottlenecks; what is true of them is true of 50, which take minutes to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DESIGNS, 8, resnet._Design((1, 1), bottleneck=True))
        yield


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda key: ResNet(**TINY).init(key, X, train=False))(jax.random.key(0))


def trained(encoder, variables, x, mask):
    """Features, running statistics and gradients of one training pass."""

    def loss(params):
        y, changed = encoder.apply({**variables, "params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
        return jnp.sum(jnp.square(y) * mask[:, None].astype(y.dtype)), (y, changed)

    gradients, (y, changed) = jax.grad(loss, has_aux=True)(variables["params"])
    return y, changed, gradients


@pytest.fixture(scope="module")
def step():
    return jax.jit(partial(trained, ResNet(**TINY)))


@pytest.fixture(scope="module")
def expected(step, variables):
    return step(variables, X, jnp.asarray(MASK))


def test_gradients_are_finite_and_reach_every_parameter(expected):
    y, _, gradients = expected
    assert y.dtype == jnp.float32
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_the_same_with_blocks_computed_again(variables, expected):
    encoder = ResNet(**TINY, remat=True)
    assert shapes(encoder, X.shape)[1] == shapes(ResNet(**TINY), X.shape)[1]
    text = str(jax.make_jaxpr(partial(trained, encoder))(variables, X, jnp.asarray(MASK)))
    assert "remat" in text or "checkpoint" in text
    assert_close(jax.jit(partial(trained, encoder))(variables, X, jnp.asarray(MASK)), expected, 1e-4)


def test_the_same_on_two_devices(step, variables, expected):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    found = step(
        jax.device_put(variables, everywhere), jax.device_put(X, rows), jax.device_put(jnp.asarray(MASK), rows)
    )
    assert_close(found, expected, 1e-4)


def test_masked_rows_do_not_change_the_others(step, variables, expected):
    other = np.where(MASK[:, None, None, None], X, 100.0).astype(np.float32)
    y, changed, gradients = step(variables, other, jnp.asarray(MASK))
    assert_close((y[MASK], changed, gradients), (expected[0][MASK], *expected[1:]), 1e-5)


def test_half_precision_is_close_and_features_are_single(variables):
    in_use = partial(ResNet(**TINY).apply, train=False)
    half = jax.jit(partial(ResNet(**TINY, dtype=jnp.bfloat16).apply, train=False))(variables, X)
    assert half.dtype == jnp.float32
    assert_close(half, jax.jit(in_use)(variables, X), 0.05)


def test_one_case_of_three_dimensions_runs():
    encoder = ResNet(**TINY, norm="group", projection=3)
    x = RNG.normal(size=(1, 9, 8, 7, 1)).astype(np.float32)
    y, variables = jax.jit(lambda key: encoder.init_with_output(key, x, train=False))(jax.random.key(0))
    assert y.shape == (1, 3)
    assert np.isfinite(y).all()
    assert "batch_stats" not in variables


def test_what_is_no_image_is_refused_before_anything_is_compiled(unchecked):
    with pytest.raises(ValueError, match=r"ResNet-18: x has shape \(2, 5\); expected images .* goes through an MLP"):
        shapes(ResNet18(), (2, 5))
    with pytest.raises(ValueError, match=r"x has shape \(2, 0, 4, 1\)"):
        shapes(ResNet18(), (2, 0, 4, 1))
    with pytest.raises(ValueError, match="depth is 20; expected one of 18, 34, 50, 101, 152"):
        shapes(ResNet(depth=20), (2, 8, 8, 1))
