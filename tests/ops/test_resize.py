import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.ops.resize import resize
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
CASES = [((2, 5, 3), (9,)), ((1, 8, 7, 2), (4, 13)), ((1, 5, 6, 7, 2), (10, 3, 7))]
jitted = jax.jit(resize, static_argnames=("sizes", "method", "antialias"))


def zoomed(x, sizes, order):
    factors = [1.0, *(m / n for m, n in zip(sizes, x.shape[1:-1], strict=True)), 1.0]
    return scipy.ndimage.zoom(x, factors, order=order, grid_mode=True, mode="nearest")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("shape", "sizes"), CASES)
def test_linear_resizing_equals_scipy(shape, sizes):
    x = RNG.normal(size=shape)
    assert_close(jitted(x, sizes), zoomed(x, sizes, 1), 1e-12)


@pytest.mark.parametrize(("shape", "sizes"), CASES)
def test_nearest_resizing_takes_the_position_whose_cell_holds_the_centre(shape, sizes):
    x = RNG.integers(0, 2**31 - 1, size=shape).astype(np.int32)
    places = [np.floor((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(sizes, shape[1:-1], strict=True)]
    y = jitted(x, sizes, method="nearest")
    assert y.dtype == np.int32
    assert_close(y, x[np.ix_(range(shape[0]), *places, range(shape[-1]))], 0.0)


def test_nearest_resizing_equals_scipy_where_no_centre_is_a_tie():
    x = RNG.integers(0, 9, size=(1, 5, 6, 2)).astype(np.int32)
    assert_close(jitted(x, (15, 7), method="nearest"), zoomed(x, (15, 7), 0), 0.0)


@pytest.mark.usefixtures("x64")
def test_antialiasing_weighs_by_a_triangle_as_wide_as_the_shrinkage():
    x = RNG.normal(size=(1, 12, 1))
    places = (np.arange(4) + 0.5) * 3 - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(12)) / 3)
    weights /= weights.sum(axis=1, keepdims=True)
    y = jitted(x, 4, antialias=True)
    assert_close(y[0, :, 0], weights @ x[0, :, 0], 1e-12)
    assert np.abs(np.asarray(y) - np.asarray(jitted(x, 4))).max() > 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("antialias", [False, True])
def test_a_ramp_stays_a_ramp_inside_and_a_constant_a_constant(antialias):
    n, m = 8, 20
    ramp = jitted(np.arange(float(n)).reshape(1, n, 1), m, antialias=antialias)
    centres = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    assert_close(ramp[0, :, 0], centres, 1e-12)
    assert_close(jitted(np.full((1, n, 6, 1), -7.5), (3, 11), antialias=antialias), np.full((1, 3, 11, 1), -7.5), 1e-12)


@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_the_same_sizes_change_nothing_and_flips_commute(method):
    x = RNG.normal(size=(2, 6, 5, 3)).astype(np.float32)
    assert_close(jitted(x, (6, 5), method=method), x, 0.0)
    y = np.asarray(jitted(x, (9, 12), method=method))
    if method == "linear":
        assert_close(jitted(x[:, ::-1, ::-1], (9, 12), method=method), y[:, ::-1, ::-1], 1e-6)
    assert set(np.unique(y)) <= set(np.unique(x)) or method == "linear"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_gradients_are_the_transpose_and_second_derivatives_follow(method):
    x, v = RNG.normal(size=(2, 1, 5, 6, 1))

    def pull(x):
        return resize(x, (8, 4), method=method)

    y, back = jax.vjp(pull, x)
    g = RNG.normal(size=y.shape)
    assert np.isclose(np.vdot(g, pull(v)), np.vdot(back(g)[0], v), rtol=1e-12)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(pull(x * x))))
    forward, reverse = jax.jit(
        lambda x, v: (jax.jvp(slope, (x,), (v,))[1], jax.grad(lambda x: jnp.vdot(slope(x), v))(x))
    )(x, v)
    assert_close(forward, reverse, 1e-12)


def test_half_precision_is_rounded_once_at_the_end():
    x = jnp.asarray(RNG.normal(size=(1, 7, 9, 2)), jnp.bfloat16)
    y = jitted(x, (17, 20))
    assert y.dtype == jnp.bfloat16
    assert_close(y, jitted(x.astype(jnp.float32), (17, 20)).astype(jnp.bfloat16), 0.0)
    stripes = jnp.asarray(np.arange(700) % 2, jnp.bfloat16).reshape(1, 700, 1)
    assert_close(jitted(stripes, 350), np.full((1, 350, 1), 0.5), 2**-8)


def test_jit_equals_eager_vmap_equals_batch_and_one_shape_compiles_once():
    x = RNG.normal(size=(4, 5, 6, 2)).astype(np.float32)
    traces = []

    @jax.jit
    def run(x):
        traces.append(x.shape)
        return resize(x, (7, 3)), resize(x, (7, 3), method="nearest")

    found = run(x)
    run(x + 1)
    assert len(traces) == 1
    assert_close(found, (resize(x, (7, 3)), resize(x, (7, 3), method="nearest")), 1e-6)
    assert_close(jax.vmap(lambda one: resize(one[None], (7, 3))[0])(x), found[0], 1e-6)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    assert_close(run(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))), found, 1e-6)


def test_nan_stays_within_its_channel_and_case():
    x = np.ones((2, 4, 4, 2), np.float32)
    x[0, 1, 1, 0] = np.nan
    assert np.isfinite(jitted(x, (6, 6))[1]).all()
    assert np.isfinite(jitted(x, (6, 6))[0, ..., 1]).all()
    assert np.isnan(jitted(x, (8, 8), method="nearest")).sum() == 4


def test_no_cases_give_none():
    assert resize(jnp.zeros((0, 4, 5, 2)), (3, 8)).shape == (0, 3, 8, 2)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_resized_is_refused():
    x = jnp.zeros((1, 4, 5, 2))
    with pytest.raises(TypeError, match="x is int32; linear resizing needs a floating dtype, or use method='nearest'"):
        resize(x.astype(jnp.int32), 3)
    with pytest.raises(ValueError, match="method is 'cubic'; expected 'linear' or 'nearest'"):
        resize(x, 3, method="cubic")
    with pytest.raises(ValueError, match="antialias needs method='linear'"):
        resize(x, 3, method="nearest", antialias=True)
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\); expected \(b, \*spatial, c\)"):
        resize(x[0, :, :, 0], 3)
    with pytest.raises(ValueError, match="sizes has 3 values for 2 spatial axes"):
        resize(x, (1, 2, 3))
    with pytest.raises(ValueError, match="an axis without positions cannot be resized"):
        resize(x[:, :0], 3)
