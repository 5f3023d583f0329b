"""The small network: sizes, pooling, what it is blind to, and inputs that it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.encoders.cnn import SmallCNN
from fusion_jax.encoders.linen import count_parameters
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


def shapes(encoder, shape):
    initial = partial(encoder.init_with_output, jax.random.key(0), train=False)
    return jax.eval_shape(initial, jax.ShapeDtypeStruct(shape, jnp.float32))


def initialised(encoder, x):
    return jax.jit(lambda key: encoder.init(key, x, train=False))(jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "shape", "features", "parameters"),
    [
        ({}, (2, 32, 32, 1), 64, 23_408),
        ({}, (2, 16, 16, 16, 1), 64, 69_776),
        ({"norm": "batch"}, (2, 32, 32, 3), 64, 23_408 + 2 * 9 * 16),
        ({"norm": "none"}, (2, 32, 32, 1), 64, 23_408 - 112),
        ({"maximum": True, "projection": 10}, (2, 32, 32, 1), 10, 23_408 + 128 * 10 + 10),
        ({"widths": (4,)}, (2, 5, 1, 2, 1), 4, 27 * 4 + 8),
    ],
)
def test_sizes(settings, shape, features, parameters):
    out, variables = shapes(SmallCNN(**settings), shape)
    assert out.shape == (2, features)
    assert out.dtype == jnp.float32
    assert count_parameters(variables) == parameters


def test_it_is_convolution_norm_relu_and_the_pools_by_hand():
    encoder = SmallCNN(widths=(2, 3), norm="none", maximum=True)
    x = RNG.normal(size=(1, 5, 4, 1)).astype(np.float32)
    variables = initialised(encoder, x)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def convolved(x, layer):
        kernel, padded = layer["kernel"], np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        return np.maximum(np.einsum("bhwcij,ijck->bhwk", windows, kernel) + layer["bias"], 0)

    y = convolved(x, params["conv1"])
    y = y[:, :4].reshape(1, 2, 2, 2, 2, 2).max((2, 4))
    y = convolved(y, params["conv2"]).reshape(1, -1, 3)
    assert_close(encoder.apply(variables, x, train=False), np.concatenate([y.mean(1), y.max(1)], -1), 1e-5)


def test_group_norm_sees_one_case_at_a_time_and_keeps_the_contrast():
    encoder = SmallCNN(widths=(8,))
    x = np.zeros((2, 8, 8, 1), np.float32)
    x[:, 2:5, 2:5] = RNG.normal(size=(2, 3, 3, 1))
    variables = initialised(encoder, x)
    apply = jax.jit(partial(encoder.apply, variables, train=True))
    both = apply(x)
    assert_close(both[1:], apply(np.stack([x[0] * 7, x[1]]))[1:], 1e-6)
    assert not np.allclose(both[0], both[1], rtol=0.01)


def test_half_precision_is_close():
    encoder, x = SmallCNN(widths=(8,), norm="batch"), RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = initialised(encoder, x)
    half = encoder.clone(dtype=jnp.bfloat16).apply(variables, x, train=False)
    assert half.dtype == jnp.float32
    assert_close(half, encoder.apply(variables, x, train=False), 0.02)


def test_a_table_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"SmallCNN: x has shape \(2, 5\); expected images"):
        shapes(SmallCNN(), (2, 5))
