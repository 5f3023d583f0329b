from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.encoders.layers import Conv, ConvTranspose
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Flax itself mixes dtypes; our layers are also run in the strict world, in the last tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


CONVOLUTIONS = [
    ((9,), {"kernel_size": (3,)}),
    ((8, 9), {"kernel_size": (3, 5), "strides": 2, "padding": "VALID"}),
    ((8, 9), {"kernel_size": (1, 1), "use_bias": False}),
    ((8, 9), {"kernel_size": (3, 3), "kernel_dilation": 2, "padding": 1}),
    ((8, 9), {"kernel_size": (3, 3), "padding": ((1, 2), (0, 1)), "feature_group_count": 4}),
    ((6, 7, 5), {"kernel_size": (3, 3, 3), "strides": (2, 1, 2), "feature_group_count": 2}),
]


@pytest.mark.parametrize(("sizes", "keywords"), CONVOLUTIONS)
def test_conv_takes_the_weights_of_flax_and_gives_its_values_and_gradients(sizes, keywords):
    x = RNG.normal(size=(2, *sizes, 4)).astype(np.float32)
    check(Conv(features=8, **keywords), nn.Conv(features=8, **keywords), x)


TRANSPOSED = [
    ((5,), {"kernel_size": (3,), "strides": (2,)}),
    ((5, 4), {"kernel_size": (2, 2), "strides": (2, 2)}),
    ((5, 4), {"kernel_size": (4, 3), "strides": (2, 1), "padding": "VALID", "use_bias": False}),
    ((3, 4, 5), {"kernel_size": (3, 2, 3), "strides": (1, 2, 2), "padding": ((1, 1), (0, 1), (2, 0))}),
]


@pytest.mark.parametrize(("sizes", "keywords"), TRANSPOSED)
def test_conv_transpose_takes_the_weights_of_flax_and_gives_its_values_and_gradients(sizes, keywords):
    x = RNG.normal(size=(2, *sizes, 4)).astype(np.float32)
    check(ConvTranspose(features=8, **keywords), nn.ConvTranspose(features=8, **keywords), x)


def check(ours, theirs, x):
    variables = jax.tree.map(lambda a: a + 0.1, theirs.init(jax.random.key(0), x))
    shapes = jax.tree.map(jnp.shape, variables)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == shapes

    def both(layer, variables, x):
        y, pull = jax.vjp(layer.apply, variables, x)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    assert_close(jax.jit(partial(both, ours))(variables, x), jax.jit(partial(both, theirs))(variables, x), 1e-5)


def test_initial_values_and_names_inside_a_module_are_those_of_flax():
    class Net(nn.Module):
        conv: type[nn.Module]
        conv_transpose: type[nn.Module]

        @nn.compact
        def __call__(self, x):
            return self.conv_transpose(3, (2, 2), strides=(2, 2))(self.conv(4, (3, 3))(x))

    x = RNG.normal(size=(1, 6, 6, 2)).astype(np.float32)
    ours = Net(Conv, ConvTranspose).init(jax.random.key(1), x)
    theirs = Net(nn.Conv, nn.ConvTranspose).init(jax.random.key(1), x)
    assert_close(ours, theirs, 1e-7)


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.usefixtures("strict")
def test_one_kernel_size_holds_for_every_axis_and_dtype_is_that_of_the_computation():
    x = jnp.ones((1, 4, 4, 4, 2))
    y, variables = Conv(features=3, kernel_size=3, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.shape == (1, 4, 4, 4, 3)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.usefixtures("strict")
def test_the_dtype_of_the_input_is_the_default():
    y, _ = Conv(features=3, kernel_size=3).init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 2), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_inputs_that_do_not_fit_are_refused(layer):
    with pytest.raises(ValueError, match=rf"{layer.__name__}: x has shape \(1, 4, 4, 2\), and kernel_size \(3, 3, 3\)"):
        layer(3, (3, 3, 3)).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    with pytest.raises(ValueError, match="2 channels do not divide into feature_group_count=3"):
        layer(3, 3, feature_group_count=3).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_what_is_asked_of_the_layer_reaches_the_kernel(layer):
    x = jnp.ones((1, 4, 4, 4, 1))
    with pytest.raises(ValueError, match="method 'planes' needs 3 spatial axes"):
        layer(2, 3, method="planes").init(jax.random.key(0), x[0])
    ones = layer(2, 3, kernel_init=nn.initializers.ones, bias_init=nn.initializers.ones)
    variables = ones.init(jax.random.key(0), x)
    assert {float(value) for leaf in jax.tree.leaves(variables) for value in leaf.ravel()} == {1.0}
    text = jax.jit(layer(2, 3, precision="highest").apply).lower(variables, x).as_text()
    assert "HIGHEST" in text
