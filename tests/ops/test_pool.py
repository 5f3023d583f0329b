from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.ops.pool import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from fusion_jax.ops.windows import output_sizes, padding_pairs, per_axis
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
CASES = [
    ((2, 7, 3), 3, 1, "SAME"),
    ((2, 9, 1), 2, 3, "VALID"),
    ((1, 8, 7, 3), 3, 2, "SAME"),
    ((2, 7, 9, 2), (3, 2), None, "VALID"),
    ((1, 6, 7, 4), (1, 5), (3, 2), [(0, 0), (1, 4)]),
    ((1, 5, 6, 7, 2), 3, 1, 1),
    ((2, 6, 5, 7, 2), 3, 2, 1),
    ((1, 7, 6, 8, 1), (2, 3, 4), (3, 1, 2), [(1, 0), (0, 2), (1, 1)]),
    ((1, 25, 23, 1), (9, 10), (11, 10), [(3, 2), (0, 4)]),
]


def distinct(shape):
    """Values with no two equal, negative throughout, so that no zero of a padding may win."""
    return RNG.permutation(np.arange(np.prod(shape), dtype=float)).reshape(shape) / np.prod(shape) - 2.0


def windows_of(shape, window, strides, padding):
    """Index of every window of every output position, padding left out; and the number of positions with it."""
    sizes = shape[1:-1]
    width = per_axis(window, len(sizes), "window")
    step = width if strides is None else per_axis(strides, len(sizes), "strides")
    dense = (1,) * len(sizes)
    pairs = padding_pairs(padding, sizes, width, step, dense)
    for out in np.ndindex(*output_sizes(sizes, width, step, dense, pairs)):
        starts = [o * s - before for o, s, (before, _) in zip(out, step, pairs, strict=True)]
        inside = tuple(slice(max(a, 0), min(a + w, n)) for a, w, n in zip(starts, width, sizes, strict=True))
        yield out, inside, np.prod(width)


def brute_force(x, reduce, window, strides, padding):
    found = {
        out: reduce(x[(slice(None), *inside)].reshape(len(x), -1, x.shape[-1]), full)
        for out, inside, full in windows_of(x.shape, window, strides, padding)
    }
    shape = tuple(n + 1 for n in max(found))
    return np.stack([found[out] for out in np.ndindex(*shape)], axis=1).reshape(len(x), *shape, x.shape[-1])


def both_ways(pool):
    """Output and gradient of one pool, in one program."""

    def run(x, cotangent):
        y, back = jax.vjp(pool, x)
        return y, back(cotangent)[0]

    return jax.jit(run)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_maxima_and_their_gradients_equal_brute_force(shape, window, strides, padding):
    x = distinct(shape)
    expected = brute_force(x, lambda values, full: values.max(axis=1), window, strides, padding)
    cotangent = RNG.normal(size=expected.shape)
    slope = np.zeros_like(x)
    for (out, inside, _), index in zip(
        windows_of(shape, window, strides, padding), np.ndindex(*expected.shape[1:-1]), strict=True
    ):
        assert out == index
        here = (slice(None), *inside)
        peak = np.expand_dims(expected[(slice(None), *out)], tuple(range(1, len(shape) - 1)))
        weight = np.expand_dims(cotangent[(slice(None), *out)], tuple(range(1, len(shape) - 1)))
        slope[here] += (x[here] == peak) * weight
    y, gradient = both_ways(partial(max_pool, window=window, strides=strides, padding=padding))(x, cotangent)
    assert_close(y, expected, 0.0)
    assert_close(gradient, slope, 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_means_and_their_gradients_equal_brute_force(shape, window, strides, padding, count_padding):
    x = RNG.normal(size=shape)

    def mean(values, full):
        return values.sum(axis=1) / (full if count_padding else values.shape[1])

    expected = brute_force(x, mean, window, strides, padding)
    cotangent = RNG.normal(size=expected.shape)
    slope = np.zeros_like(x)
    for out, inside, full in windows_of(shape, window, strides, padding):
        here = (slice(None), *inside)
        count = full if count_padding else np.prod(slope[here].shape[1:-1])
        slope[here] += np.expand_dims(cotangent[(slice(None), *out)], tuple(range(1, len(shape) - 1))) / count
    pool = partial(average_pool, window=window, strides=strides, padding=padding, count_padding=count_padding)
    y, gradient = both_ways(pool)(x, cotangent)
    assert_close(y, expected, 1e-14)
    assert_close(gradient, slope, 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pool", [max_pool, average_pool])
@pytest.mark.parametrize(
    ("shape", "window", "strides"), [((2, 7, 2), 3, 2), ((1, 5, 6, 2), 3, 1), ((1, 4, 5, 6, 1), 2, 3)]
)
def test_second_derivatives_agree_in_every_order_of_modes_and_with_finite_differences(pool, shape, window, strides):
    x, direction = distinct(shape), RNG.normal(size=shape)

    def objective(x):
        return jnp.sum(jnp.sin(3.0 * pool(x * x * x, window, strides=strides, padding="SAME")) ** 2)

    gradient = jax.grad(objective)

    @jax.jit
    def products(x, v):
        return (
            jax.jvp(gradient, (x,), (v,))[1],
            jax.grad(lambda x: jnp.vdot(gradient(x), v))(x),
            jax.grad(lambda x: jax.jvp(objective, (x,), (v,))[1])(x),
            jax.jvp(jax.grad(jax.checkpoint(objective)), (x,), (v,))[1],
        )

    found = products(x, direction)
    slope = jax.jit(gradient)
    # Small enough a step that no winner changes: distinct values differ by one over their number.
    expected = (np.asarray(slope(x + 1e-6 * direction)) - np.asarray(slope(x - 1e-6 * direction))) / 2e-6
    assert np.abs(expected).max() > 0.1
    for product in found:
        assert_close(product, found[0], 1e-12)
    assert_close(found[0], expected, 1e-6)


@pytest.mark.usefixtures("x64")
def test_third_derivatives_of_a_maximum_are_those_of_its_winner():
    x = distinct((1, 6, 5, 1))

    def along(t, pool):
        return jnp.sum(jnp.sin(pool(x + t)))

    def third(pool):
        return jax.jit(jax.grad(jax.jacfwd(jax.grad(partial(along, pool=pool)))))(0.3)

    winners = [x[(0, *inside, 0)].max() for _, inside, _ in windows_of(x.shape, 3, 2, 1)]
    expected = -np.cos(np.asarray(winners) + 0.3).sum()
    assert_close(third(partial(max_pool, window=3, strides=2, padding=1)), expected, 1e-12)


def test_forward_mode_equals_reverse_mode_under_vmap():
    x = jnp.asarray(distinct((2, 5, 4, 2)), jnp.float32)
    pool = partial(max_pool, window=3, strides=2, padding="SAME")
    forward, reverse = jax.jit(lambda x: (jax.jacfwd(pool)(x), jax.jacrev(pool)(x)))(x)
    assert_close(forward, reverse, 0.0)
    assert float(forward.sum()) == pool(x).size
    stack = jnp.stack([x, -x])
    slopes = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jnp.square(pool(x))))))(stack)
    alone = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(pool(x)))))
    assert_close(slopes, jnp.stack([alone(x), alone(-x)]), 1e-6)


def test_among_equals_the_first_along_the_last_axis_wins():
    slope = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 2))))
    assert slope(jnp.ones((1, 2, 2, 1))).ravel().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert slope(jnp.array([0.0, 1.0, 1.0, 0.0]).reshape(1, 2, 2, 1)).ravel().tolist() == [0.0, 0.0, 1.0, 0.0]
    three = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3))))(jnp.ones((1, 3, 3, 1)))
    assert np.flatnonzero(three).tolist() == [0]
    whole = jax.jit(jax.grad(lambda x: jnp.sum(global_max_pool(x))))(jnp.ones((1, 12, 10, 1)))
    assert np.flatnonzero(whole).tolist() == [0]


def test_a_window_wider_than_a_byte_counts_right():
    x = np.zeros((1, 400, 1), np.float32)
    x[0, [150, 390], 0] = 1.0
    slope = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 200))))(x)
    assert np.flatnonzero(slope).tolist() == [150, 390]


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_a_constant_stays_and_padding_never_counts(pool):
    y = pool(jnp.full((1, 4, 5, 6, 2), -3.0), 3, strides=1, padding="SAME")
    assert y.shape == (1, 4, 5, 6, 2)
    assert_close(y, np.full(y.shape, -3.0), 1e-6)
    if pool is average_pool:
        corner = pool(jnp.full((1, 4, 5, 6, 2), -3.0), 3, strides=1, padding="SAME", count_padding=True)[0, 0, 0, 0]
        assert_close(corner, np.full(2, -3.0 * 8 / 27), 1e-6)


@pytest.mark.parametrize("pool", [max_pool, average_pool, adaptive_max_pool, adaptive_average_pool])
def test_nan_reaches_every_window_that_holds_it_and_no_other(pool):
    x = np.asarray(distinct((1, 7, 1)), np.float32)
    x[0, 3, 0] = np.nan
    if pool in (max_pool, average_pool):
        assert np.isnan(pool(x, 3, strides=1)).ravel().tolist() == [False, True, True, True, False]
    else:  # bins 0-2, 1-3, 2-4, 4-5, 5-6 of torch's rule, ends included
        assert np.isnan(pool(x, 5)).ravel().tolist() == [False, False, True, False, False]
        x[0, 3, 0] = np.inf
        assert np.isinf(pool(x, 5)).ravel().tolist() == [False, False, True, False, False]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("shape", "sizes"), [((2, 7, 2), 3), ((1, 8, 6, 2), (4, 3)), ((1, 5, 7, 3, 1), (2, 7, 5))])
def test_adaptive_pools_equal_brute_force_over_their_bins(shape, sizes):
    x = distinct(shape)
    bins = per_axis(sizes, len(shape) - 2, "sizes")
    largest, mean = np.empty((shape[0], *bins, shape[-1])), np.empty((shape[0], *bins, shape[-1]))
    slope = np.zeros(shape)
    for out in np.ndindex(*bins):
        edges = [(i * n // m, -((-(i + 1) * n) // m)) for i, n, m in zip(out, shape[1:-1], bins, strict=True)]
        here = (slice(None), *(slice(a, b) for a, b in edges))
        axes = tuple(range(1, len(shape) - 1))
        largest[(slice(None), *out)] = x[here].max(axis=axes)
        mean[(slice(None), *out)] = x[here].mean(axis=axes)
        slope[here] += x[here] == x[here].max(axis=axes, keepdims=True)
    ones = np.ones_like(largest)
    y, gradient = both_ways(partial(adaptive_max_pool, sizes=sizes))(x, ones)
    assert_close((y, gradient), (largest, slope), 0.0)
    y, gradient = both_ways(partial(adaptive_average_pool, sizes=sizes))(x, ones)
    assert_close(y, mean, 1e-14)
    assert_close(gradient.sum(), np.asarray(float(ones.size)), 1e-12)


@pytest.mark.usefixtures("x64")
def test_global_pools_reduce_every_position_and_one_bin_is_global():
    x = distinct((2, 3, 4, 5, 2))
    assert_close(global_max_pool(x), x.max(axis=(1, 2, 3)), 0.0)
    assert_close(global_average_pool(x), x.mean(axis=(1, 2, 3)), 1e-14)
    assert_close(adaptive_max_pool(x, 1).reshape(2, 2), x.max(axis=(1, 2, 3)), 0.0)
    assert_close(adaptive_average_pool(x, x.shape[1:-1]), x, 0.0)


@pytest.mark.usefixtures("x64")
def test_pooling_commutes_with_flips_and_with_turns():
    x = distinct((1, 6, 6, 4, 2))
    for pool in (max_pool, average_pool):
        run = jax.jit(partial(pool, window=3, strides=1, padding=1))
        y = np.asarray(run(x))
        assert_close(run(x[:, ::-1, :, ::-1]), y[:, ::-1, :, ::-1], 1e-14)
        assert_close(run(np.rot90(x, axes=(1, 2))), np.rot90(y, axes=(1, 2)), 1e-14)


def test_jit_equals_eager_and_compiles_once_a_shape():
    x = np.asarray(distinct((2, 7, 6, 2)), np.float32)
    traces = []

    @jax.jit
    def run(x):
        traces.append(x.shape)
        pooled = max_pool(x, 3, strides=2, padding="SAME")
        return pooled, average_pool(x, 3, strides=2, padding="SAME"), adaptive_average_pool(x, 4)

    found = run(x)
    run(x + 1)
    run(x[:1])
    assert traces == [(2, 7, 6, 2), (1, 7, 6, 2)]
    eager = max_pool(x, 3, strides=2, padding="SAME"), average_pool(x, 3, strides=2, padding="SAME")
    assert_close(found, (*eager, adaptive_average_pool(x, 4)), 1e-6)


def test_half_precision_is_kept_and_summed_in_single():
    x = jnp.asarray(RNG.uniform(1.0, 2.0, size=(1, 600, 2)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    for y, expected in (
        (global_average_pool(x), exact.mean(axis=1)),
        (average_pool(x, 300), exact.reshape(1, 2, 300, 2).mean(axis=2)),
        (adaptive_average_pool(x, 1), exact.mean(axis=1, keepdims=True)),
    ):
        assert y.dtype == jnp.bfloat16
        assert_close(y, expected, 2**-8)
    assert max_pool(x, 300).dtype == jnp.bfloat16
    assert_close(max_pool(x, 300), exact.reshape(1, 2, 300, 2).max(axis=2), 0.0)
    slope = jax.grad(lambda x: jnp.sum(max_pool(x, 300)).astype(jnp.float32))(x)
    assert slope.dtype == jnp.bfloat16
    assert float(slope.astype(jnp.float32).sum()) == 4.0


def test_a_sharded_batch_gives_the_same_values_and_stays_sharded():
    x = np.asarray(distinct((4, 6, 5, 2)), np.float32)
    sharding = NamedSharding(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))

    def run(x):
        return jax.value_and_grad(
            lambda x: jnp.sum(max_pool(x, 3, strides=2, padding=1) ** 2 * average_pool(x, 3, strides=2, padding=1))
        )(x)

    (value, slope), alone = jax.jit(run)(jax.device_put(x, sharding)), jax.jit(run)(x)
    assert slope.sharding.is_equivalent_to(sharding, slope.ndim)
    assert_close((value, slope), alone, 1e-6)


def test_no_cases_and_no_channels_give_none():
    for pool in (max_pool, average_pool):
        assert pool(jnp.zeros((0, 4, 4, 2)), 2).shape == (0, 2, 2, 2)
        assert jax.grad(lambda x, pool=pool: jnp.sum(pool(x, 2)))(jnp.zeros((1, 4, 4, 0))).shape == (1, 4, 4, 0)


def test_a_window_of_one_changes_nothing():
    x = np.asarray(distinct((1, 4, 3, 2)), np.float32)
    assert_close(max_pool(x, 1), x, 0.0)
    assert_close(average_pool(x, 1, strides=2), x[:, ::2, ::2], 0.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_windows_that_cannot_be_are_refused(pool):
    x = jnp.zeros((1, 4, 5, 2))
    with pytest.raises(ValueError, match=r"window 6 does not fit into the 4 \+ 0 padded positions of axis 1"):
        pool(x, 6)
    with pytest.raises(ValueError, match=r"padding \(2, 2\) along axis 1 .* windows of 2 that hold nothing else"):
        pool(x, 2, padding=2)
    with pytest.raises(ValueError, match=r"padding \(2, 0\) along axis 1 .* hold nothing else"):
        pool(x, 2, padding=[(2, 0), (0, 0)])
    with pytest.raises(ValueError, match=r"padding \(0, 3\) along axis 2 .* hold nothing else"):
        pool(x, 3, strides=1, padding=[(0, 0), (0, 3)])
    assert pool(x, 3, strides=3, padding=[(0, 0), (0, 3)]).shape == (1, 1, 2, 2)  # the last window starts inside
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\); expected \(b, \*spatial, c\)"):
        pool(x[0, :, :, 0], 2)
    with pytest.raises(TypeError, match="x is int32; expected a floating dtype"):
        pool(jnp.zeros((1, 4, 5, 2), jnp.int32), 2)
    with pytest.raises(ValueError, match="strides is 0; every value must be at least 1"):
        pool(x, 2, strides=0)
    with pytest.raises(ValueError, match="an axis without positions cannot be divided"):
        adaptive_max_pool(jnp.zeros((1, 0, 5, 2)), 2)
