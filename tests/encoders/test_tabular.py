import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.encoders.tabular import MLP, BitConv, PassThrough
from tests.helpers import assert_close

X = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)


def count(module, columns):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), jnp.zeros((1, columns)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("module", "columns", "parameters"),
    [
        (MLP((1024, 512)), 33, 560_129 - 513),  # the clinical network of Holste et al. without its last layer
        (MLP((1024, 512)), 2081, 26_159_041 - 23_501_760 - 513),  # head of [L,S]
        (MLP((16,)), 9, 160),  # fusion D
        (BitConv(), 9, 64),  # fusion C: 3 taps of 16 filters and their biases
        (BitConv(layout="map"), 9, 160),
        (BitConv(out=16), 9, 64 + 144 * 16 + 16),
        (PassThrough(), 9, 0),
        (MLP(()), 9, 0),
    ],
)
def test_parameters_are_as_many_as_published(module, columns, parameters):
    assert count(module, columns) == parameters


def test_mlp_is_the_formula():
    module = MLP((7, 4))
    y, variables = module.init_with_output(jax.random.key(1), X, train=False)
    h = X.astype(np.float64)
    for layer in ("Dense_0", "Dense_1"):
        weights = jax.tree.map(np.float64, variables["params"][layer])
        h = np.maximum(h @ weights["kernel"] + weights["bias"], 0)
    assert_close(y, h)


def test_activations_are_those_of_their_names():
    variables = MLP((4,)).init(jax.random.key(1), X, train=False)
    weights = jax.tree.map(np.float64, variables["params"]["Dense_0"])
    linear = X @ weights["kernel"] + weights["bias"]
    expected = {"relu": np.maximum(linear, 0), "tanh": np.tanh(linear), "silu": linear / (1 + np.exp(-linear))}
    for name, values in expected.items():
        assert_close(MLP((4,), activation=name).apply(variables, X, train=False), values)


def dropped(module, x=None):
    """Fraction of zeros, and of outputs that are the plain one times 1 / (1 − rate), in training."""
    x = np.ones((400, 9), np.float32) if x is None else x
    variables = module.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), variables)
    rngs = {"dropout": jax.random.key(2)}
    return np.asarray(module.apply(variables, x, train=True, rngs=rngs))


def test_dropout_falls_after_the_layers_that_were_asked_for():
    last = dropped(MLP((50, 20), dropout=0.25, dropout_after="last"))
    assert len(np.unique(last)) == 2  # everything before the last layer is whole
    assert abs((last == 0).mean() - 0.25) < 0.02
    assert_close(last.max(), 4 / 3 * (0.5 * 50 * 5.0 + 0.5))
    every = dropped(MLP((50, 20), dropout=0.25, dropout_after="all"))
    assert len(np.unique(every)) > 10
    inputs = dropped(MLP((20,), input_dropout=0.25))
    assert abs((inputs[:, 0] - 0.5).mean() - 4.5) < 0.1
    assert (inputs == inputs[:, :1]).all()
    survivors = (inputs - 0.5) * 1.5
    assert_close(survivors, survivors.round(), 1e-6)
    assert np.unique(dropped(MLP((20,)))).tolist() == [5.0]


def test_nothing_is_dropped_outside_training_and_no_key_is_needed():
    module = MLP((6,), dropout=0.5, input_dropout=0.5)
    variables = module.init(jax.random.key(0), X, train=False)
    assert_close(module.apply(variables, X, train=False), MLP((6,)).apply(variables, X, train=False), 0)


def test_bit_conv_is_the_correlation_with_zeros_beyond_the_ends():
    bits = (X > 0).astype(np.float32)
    module = BitConv(filters=4)
    y, variables = module.init_with_output(jax.random.key(1), bits, train=False)
    kernel, bias = (np.asarray(variables["params"]["conv"][name], float) for name in ("kernel", "bias"))
    padded = np.pad(bits, [(0, 0), (1, 1)])
    windows = np.stack([padded[:, i : i + 9] for i in range(3)], axis=-1)
    expected = np.maximum(windows @ kernel[:, 0] + bias, 0)
    assert_close(y, expected.reshape(5, 36))


def test_the_map_lays_the_bits_out_row_by_row():
    module = BitConv(filters=1, layout="map")
    variables = module.init(jax.random.key(1), X, train=False)
    below = np.zeros((3, 3, 1, 1), np.float32)
    below[2, 1] = 1  # each position takes the value below it
    variables = {"params": {"conv": {"kernel": below, "bias": np.zeros(1, np.float32)}}}
    y = module.apply(variables, np.arange(9, dtype=np.float32)[None], train=False)
    assert y.tolist() == [[3, 4, 5, 6, 7, 8, 0, 0, 0]]


def test_pass_through_gives_the_values_in_single_precision():
    y = PassThrough().apply({}, X.astype(np.float16), train=True)
    assert y.dtype == jnp.float32
    assert_close(y, X.astype(np.float16), 0)


@pytest.mark.parametrize("module", [MLP((6, 4)), BitConv(filters=4, out=3), BitConv(filters=2, layout="map")])
def test_half_precision_computes_and_single_precision_comes_out(module):
    full, variables = module.init_with_output(jax.random.key(0), X, train=False)
    half = jax.jit(lambda v, x: module.clone(dtype=jnp.bfloat16).apply(v, x, train=False))(variables, X)
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert_close(half, full, 3e-2)
    assert np.abs(np.asarray(half - full)).max() > 0


@pytest.mark.parametrize("module", [MLP((6, 4)), BitConv(filters=4), PassThrough()])
def test_a_row_depends_on_itself_alone_and_the_mask_changes_nothing(module):
    y, variables = module.init_with_output(jax.random.key(0), X, train=False)
    other = X.copy()
    other[3:] = 7.0
    mask = np.array([True, True, True, False, False])
    assert_close(module.apply(variables, other, train=False, mask=mask)[:3], y[:3], 0)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (PassThrough(), (2, 4, 4, 1), r"PassThrough: x has shape \(2, 4, 4, 1\).*an image encoder"),
        (MLP((4,)), (2, 0), r"MLP: x has shape \(2, 0\)"),
        (MLP((4, 0)), (2, 3), r"widths are \(4, 0\)"),
        (MLP((4,), dropout=1.0), (2, 3), "dropout is 1.0; expected a fraction"),
        (MLP((4,), input_dropout=-0.1), (2, 3), "input_dropout is -0.1"),
        (BitConv(layout="map"), (2, 8), "8 bits fill no square; layout='map' needs 4 or 9"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), train=False))


@pytest.mark.usefixtures("unchecked")
def test_choices_are_refused_by_name():
    for name, value in (("activation", "swish"), ("dropout_after", "first")):
        module = MLP((4,), **{name: value})
        with pytest.raises(ValueError, match=f"{name} is '{value}'; expected"):
            module.init(jax.random.key(0), X, train=False)
