"""Normalisation: the moments of the rows that count, PyTorch's running variance, and no NaN."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.encoders.norm import Norm
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (5, 4, 3, 6)).astype(np.float32)
MASK = np.array([True, False, True, True, False])
TRAINED = {
    "params": {
        "scale": jnp.asarray(RNG.uniform(0.5, 2.0, 6), jnp.float32),
        "bias": jnp.asarray(RNG.normal(size=6), jnp.float32),
    },
    "batch_stats": {
        "mean": jnp.asarray(RNG.normal(size=6), jnp.float32),
        "var": jnp.asarray(RNG.uniform(0.5, 2.0, 6), jnp.float32),
    },
}


def normalised(x, mask=None, variables=TRAINED, **settings):
    """Output and running statistics of batch norm in training."""
    y, changed = _training(tuple(settings.items()))(variables, x, mask=mask)
    return y, changed["batch_stats"]


@lru_cache
def _training(settings):
    # One program for each shape: eagerly, every operation would be one.
    return jax.jit(partial(Norm(**dict(settings)).apply, train=True, mutable=["batch_stats"]))


def by_hand(x, momentum=0.9, epsilon=1e-5):
    """Batch norm in float64, written from its definition with the unbiased running variance."""
    x = np.asarray(x, np.float64)
    scale, bias, mean, var = (
        np.asarray(TRAINED[c][n], np.float64)
        for c, n in [("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")]
    )
    values = x.reshape(-1, x.shape[-1])
    y = (x - values.mean(0)) / np.sqrt(values.var(0) + epsilon) * scale + bias
    running = {
        "mean": momentum * mean + (1 - momentum) * values.mean(0),
        "var": momentum * var + (1 - momentum) * values.var(0, ddof=1),
    }
    return y, running


@pytest.mark.parametrize("shape", [(5, 6), (5, 4, 3, 6), (5, 2, 2, 3, 6)])
def test_batch_norm_in_training_is_its_definition_with_the_unbiased_running_variance(shape):
    x = RNG.normal(3.0, 2.0, shape).astype(np.float32)
    assert_close(normalised(x), by_hand(x), 1e-5)
    assert_close(normalised(x, momentum=0.99, epsilon=0.1), by_hand(x, momentum=0.99, epsilon=0.1), 1e-5)


def test_names_and_values_in_use_are_those_of_flax():
    theirs = nn.BatchNorm(use_running_average=True)
    ours = Norm()
    started = ours.init(jax.random.key(0), X, train=True)
    assert_close(started, theirs.init(jax.random.key(0), X), 1e-7)
    assert_close(ours.apply(TRAINED, X, train=False), theirs.apply(TRAINED, X), 1e-6)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_without_scale_and_bias_it_is_what_these_are_applied_to(kind):
    plain = Norm(kind, 2, affine=False)
    y, variables = plain.init_with_output(jax.random.key(0), X, train=False)
    assert "params" not in variables
    affine = {"params": TRAINED["params"], **variables}
    expected = y * TRAINED["params"]["scale"].reshape(1, 1, 1, -1) + TRAINED["params"]["bias"].reshape(1, 1, 1, -1)
    assert_close(Norm(kind, 2).apply(affine, X, train=False), expected, 1e-6)


def test_masked_rows_change_neither_the_others_nor_the_running_statistics():
    y, running = normalised(X, MASK)
    assert_close((y[MASK], running), normalised(X[MASK]), 1e-6)
    poisoned = np.where(MASK[:, None, None, None], X, np.nan).astype(np.float32)
    again, same = normalised(poisoned, MASK)
    assert_close((again[MASK], same), (y[MASK], running), 0.0)


def test_masked_rows_do_not_change_the_gradient():
    def loss(params, x, mask):
        y, _ = normalised(x, mask, {**TRAINED, "params": params})
        weight = 1.0 if mask is None else jnp.asarray(mask, jnp.float32)[:, None, None, None]
        return jnp.sum(jnp.sin(y) * weight)

    gradient = jax.grad(loss, argnums=(0, 1))
    with jax.numpy_rank_promotion("allow"):
        masked, of_x = gradient(TRAINED["params"], X, MASK)
        alone, of_rows = gradient(TRAINED["params"], X[MASK], None)
    assert_close((masked, of_x[MASK]), (alone, of_rows), 2e-5)
    assert not np.any(of_x[~MASK])


def test_derivatives_of_two_orders_are_those_of_the_formula(x64):
    x, direction = jnp.asarray(RNG.normal(2.0, 1.5, (2, 5, 3, 2)))
    params = {"scale": jnp.asarray([0.5, 2.0]), "bias": jnp.asarray([1.0, -1.0])}
    statistics = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    rows = np.array([True, True, False, True, True])

    def ours(params, x):
        variables = {"params": params, "batch_stats": statistics}
        return jnp.sum(jnp.sin(normalised(x, rows, variables)[0][rows]))

    def formula(params, x):
        mean, var = jnp.mean(x[rows], (0, 1)), jnp.var(x[rows], (0, 1))
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(jnp.sin((x[rows] - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]))

    def derivatives(function):
        def slope(x):
            return jax.grad(function, argnums=(0, 1))(params, x)

        return jax.jit(lambda x: jax.jvp(slope, (x,), (direction,)))(x)

    assert_close(derivatives(ours), derivatives(formula), 1e-5)


@pytest.mark.parametrize("x", [X, np.zeros_like(X), np.full_like(X, np.nan)])
def test_a_fully_masked_batch_leaves_the_running_statistics_alone(x):
    y, running = normalised(x, np.zeros(5, bool))
    assert_close(running, TRAINED["batch_stats"], 0.0)
    assert_close(y, Norm().apply(TRAINED, x, train=False), 1e-6)


def test_the_gradient_through_a_fully_masked_batch_is_finite():
    def loss(x):
        return jnp.sum(normalised(x, np.zeros(5, bool))[0])

    assert np.isfinite(jax.grad(loss)(jnp.zeros_like(X))).all()


def test_a_single_value_has_no_variance_and_counts_as_none():
    x = X[:2, 0, 0]
    y, running = normalised(x, np.array([True, False]))
    assert_close(running, TRAINED["batch_stats"], 0.0)
    assert_close(y, Norm().apply(TRAINED, x, train=False), 1e-6)


def test_the_variance_keeps_its_digits_far_from_zero():
    # Squares of 10,000 have eight digits before the point; float32 has seven.
    x = (1e4 + RNG.normal(size=(64, 6))).astype(np.float32)
    y, _ = normalised(x)
    assert_close(y, by_hand(x)[0], 1e-3)


def test_group_norm_is_that_of_flax_and_knows_no_batch():
    x, params = X[..., :6], TRAINED["params"]
    theirs = nn.GroupNorm(num_groups=3, epsilon=1e-5)
    for train in (True, False):
        y = Norm("group", groups=3).apply({"params": params}, x, train=train, mask=MASK)
        with jax.numpy_rank_promotion("allow"):
            assert_close(y, theirs.apply({"params": params}, x), 1e-5)
    alone = Norm("group", groups=3).apply({"params": params}, x[1:2], train=True)
    assert_close(y[1:2], alone, 1e-6)


def test_groups_divide_the_channels():
    y = Norm("group", groups=4).apply({"params": TRAINED["params"]}, X, train=True)
    assert_close(y, Norm("group", groups=2).apply({"params": TRAINED["params"]}, X, train=True), 0.0)


def test_none_has_no_parameters_and_changes_nothing():
    y, variables = Norm("none").init_with_output(jax.random.key(0), X, train=True)
    assert variables == {}
    assert_close(y, X, 0.0)


def test_an_unknown_kind_is_refused(unchecked):
    with pytest.raises(ValueError, match="kind is 'layer'; expected one of batch, group, none"):
        Norm("layer").init(jax.random.key(0), X, train=True)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_half_precision_is_normalised_in_single(kind):
    x = X.astype(jnp.bfloat16)
    variables = TRAINED if kind == "batch" else {"params": TRAINED["params"]}
    y, _ = Norm(kind, dtype=jnp.bfloat16).apply(variables, x, train=True, mutable=["batch_stats"])
    exact, _ = Norm(kind).apply(variables, x.astype(np.float32), train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(np.float32), exact, 2**-8)


def test_jit_vmap_and_a_sharded_batch_give_the_same():
    x = RNG.normal(size=(4, 3, 6)).astype(np.float32)
    mask = np.array([True, True, True, False])
    expected = normalised(x, mask)
    compiled = jax.jit(normalised)
    assert_close(compiled(x, mask), expected, 1e-6)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    assert_close(compiled(jax.device_put(x, rows), jax.device_put(mask, rows)), expected, 1e-6)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), (x, mask))
    several = jax.vmap(normalised)(*stacked)
    assert_close(jax.tree.map(lambda a: a[1], several), expected, 1e-6)
