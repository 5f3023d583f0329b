import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fusion_jax.quality import (
    ENCODINGS,
    fourier,
    linear,
    masked_positional_encoding,
    mean_positional_encoding,
    pca,
    positional,
    positional_encoding,
    positional_encoding_vector,
    repetition,
)
from fusion_jax.quality.encoding import chebyshev_nodes
from tests.helpers import assert_close

encoded = partial(jax.jit, static_argnames="size")(positional_encoding)
encoded_vector = partial(jax.jit, static_argnames=("size", "remainder"))(positional_encoding_vector)
masked = partial(jax.jit, static_argnums=2)(masked_positional_encoding)
mean_encoded = partial(jax.jit, static_argnames=("padded_size", "nodes"))(mean_positional_encoding)


def transformer_formula(position: float, size: int, base: float = 10_000.0) -> list[float]:
    """Sinusoidal encoding as in "Attention is all you need", one coordinate at a time, in double precision."""
    coordinates = []
    for pair in range((size + 1) // 2):
        angle = position / math.pow(base, 2 * pair / size)
        coordinates += [math.sin(angle), math.cos(angle)]
    return coordinates[:size]


# Positional encoding.


@pytest.mark.parametrize("position", [4.0, 789.0])
def test_positional_encoding_equals_the_transformer_formula(position):
    reference = transformer_formula(position, 128)
    assert_close(encoded(position, 128), np.array(reference), 1e-4)  # 789 radians in single precision
    with jax.enable_x64(True):
        assert_close(encoded(position, 128), np.array(reference), 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("size", "base"), [(1, 1e4), (5, 1e4), (6, 50.0)])
def test_odd_sizes_leave_out_the_last_cosine_and_the_base_sets_the_wavelengths(size, base):
    values = np.array([[0.3, -2.0], [15.0, 0.0]])
    found = encoded(values, size, base=base)
    assert found.shape == (2, 2, size)
    assert_close(found[1, 0], np.array(transformer_formula(15.0, size, base)), 1e-12)
    assert_close(found[0, 1], np.array(transformer_formula(-2.0, size, base)), 1e-12)


def test_the_encoding_of_zero_is_zeros_and_ones_in_turn():
    assert encoded(0.0, 128).tolist() == [0.0, 1.0] * 64


@pytest.mark.usefixtures("x64")
def test_norms_are_constant_and_inner_products_depend_on_differences_alone():
    """Spec I8."""
    values = np.array([-3.0, 0.2, 4.0, 789.0])
    found = np.asarray(encoded(values, 128))
    frequencies = 10_000.0 ** (-2 * np.arange(64) / 128)
    expected = np.cos((values[:, None, None] - values[None, :, None]) * frequencies).sum(axis=-1)
    assert_close(found @ found.T, expected, 1e-12)
    assert_close(np.sum(found**2, axis=-1), np.full(4, 64.0), 1e-12)


def test_the_mean_encoding_of_normal_values_is_zeros_and_decaying_cosines(key):
    """Spec I9: with 20,000 draws the standard error is at most 0.007, so 0.03 is beyond four of them."""
    mean, weights = mean_encoded(jax.random.normal(key, (20_000,)), 128.0, 128, nodes=48)
    frequencies = 10_000.0 ** (-2 * np.arange(64) / 128)
    assert np.abs(mean[0::2]).max() < 0.03
    assert np.abs(np.asarray(mean[1::2]) - np.exp(-(frequencies**2) / 2)).max() < 0.03
    assert (np.asarray(weights) == 1.0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("largest", "size"), [(0.0, 6.0), (3.0, 7.0), (40.0, 100.5), (700.0, 128.0)])
def test_the_mean_encoding_equals_the_direct_mean(largest, size):
    values = np.random.default_rng(0).uniform(-largest, largest, 50)
    found, weights = mean_encoded(values, size, 128, nodes=chebyshev_nodes(largest))
    direct, direct_weights = jax.vmap(lambda v: masked(v, size, 128))(values[:, None])
    inside = np.asarray(weights) > 0
    assert_close(found[inside], direct.mean(axis=0)[inside], 1e-10)
    assert_close(weights, direct_weights[0], 1e-12)


def test_the_number_of_chebyshev_points_is_read_off_the_values_unless_traced():
    values = np.array([3.0, -20.0])
    found, _ = mean_positional_encoding(values, 8.0, 8)
    assert_close(found, mean_encoded(values, 8.0, 8, nodes=chebyshev_nodes(20.0))[0], 1e-5)
    with pytest.raises(ValueError, match="give `nodes`"):
        mean_encoded(np.ones(3), 4.0, 4)


@pytest.mark.usefixtures("x64")
def test_markers_are_encoded_one_after_the_other():
    values = np.array([[1.0, 250.0, 3.5], [2.0, 90.0, 4.1]])
    found = encoded_vector(values, 12)
    rows = [np.concatenate([transformer_formula(v, 4) for v in case]) for case in values]
    assert_close(found, np.stack(rows), 1e-12)
    assert_close(encoded_vector(values[0], 12), rows[0], 1e-12)


@pytest.mark.usefixtures("unchecked")
def test_a_size_that_the_markers_do_not_divide_is_refused_or_padded():
    values = np.array([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"the nearest sizes that do are 9 and 12"):
        positional_encoding_vector(values, 11)
    padded = encoded_vector(values, 11, remainder="pad")
    assert_close(padded[:9], encoded_vector(values, 9))
    assert padded[9:].tolist() == [0.0, 0.0]
    for remainder in ("error", "pad"):
        with pytest.raises(ValueError, match="2 coordinates do not divide among 3 markers"):
            positional_encoding_vector(values, 2, remainder=remainder)
    with pytest.raises(ValueError, match="at least one coordinate; found size=0"):
        positional_encoding(1.0, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [3, 6, 15, 24])
def test_a_masked_encoding_of_whole_size_is_the_encoding(size):
    values = np.array([0.5, 20.0, -3.0])
    coordinates, weights = masked(values, float(size), 24)
    assert_close(coordinates[np.asarray(weights) == 1.0], encoded_vector(values, size), 1e-12)
    assert float(weights.sum()) == size
    assert ((weights == 0.0) | (weights == 1.0)).all()


@pytest.mark.usefixtures("x64")
def test_the_last_coordinate_of_a_fractional_size_has_the_fractional_weight():
    values = np.array([0.5, 20.0])
    coordinates, weights = masked(values, 7.0, 12)
    assert_close(weights.reshape(2, 6), np.tile([1.0, 1.0, 1.0, 0.5, 0.0, 0.0], (2, 1)), 1e-12)
    slow = 10_000.0 ** (-2 / 3.5)
    expected = [f(v * w) for v in (0.5, 20.0) for w in (1.0, slow) for f in (np.sin, np.cos)]
    assert_close(coordinates.reshape(2, 6)[:, :4], np.reshape(expected, (2, 4)), 1e-12)


@pytest.mark.usefixtures("x64")
def test_sizes_of_a_masked_encoding_can_be_mapped():
    sizes = np.array([2.0, 5.5, 12.0])
    found = jax.vmap(lambda size: masked(np.array([0.5, 20.0]), size, 12))(sizes)
    for row, size in enumerate(sizes):
        assert_close(jax.tree.map(lambda a, r=row: a[r], found), masked(np.array([0.5, 20.0]), size, 12), 1e-12)
    with pytest.raises(ValueError, match="padded_size=11 is not a multiple of the 2 markers"):
        masked(np.array([0.5, 20.0]), 4.0, 11)


@pytest.mark.usefixtures("x64")
def test_gradients_of_positional_encodings_equal_finite_differences():
    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(value, size, base):
        coordinates, weights = masked_positional_encoding(jnp.stack([value, value * 2]), size, 12, base=base)
        mean, mean_weights = mean_positional_encoding(jnp.stack([value, value * 3]), size, 12, base=base, nodes=40)
        shape = jnp.cos(jnp.arange(12))
        return jnp.sum(shape * coordinates * weights) + jnp.sum(shape * mean * mean_weights)

    at = (0.7, 7.3, 100.0)
    _, slopes = total(*at)
    for i, slope in enumerate(slopes):
        above, below = ([a + sign * 1e-5 * (i == j) for j, a in enumerate(at)] for sign in (1, -1))
        expected = float(total(*above)[0] - total(*below)[0]) / 2e-5
        assert abs(expected) > 1e-5
        assert_close(slope, expected, 1e-4)


def test_jit_equals_eager_for_positional_encodings():
    values = np.array([0.5, 20.0])
    assert_close(encoded_vector(values, 8), positional_encoding_vector(values, 8))
    assert_close(masked(values, 6.5, 12), masked_positional_encoding(values, 6.5, 12))


# Every encoding.

COHORT = np.random.default_rng(3).normal(size=(30, 3)) * [1.0, 40.0, 5.0] + [0.0, 200.0, 1.0]
DRAWN_BY_COORDINATE = ("linear", "fourier", "repetition")


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_keeps_the_contract(name, key):
    encoding = ENCODINGS[name]()
    params = encoding.fit(COHORT, key)

    @jax.jit
    def encode(params, values):
        encode = encoding.encode
        nested, prefix = encode(params, values.reshape(5, 6, 3), 12), encode(params, values, 6)
        return encode(params, values, 12), encode(params, values[4], 12), nested, prefix

    found, case, nested, prefix = encode(params, COHORT)
    assert found.shape == (30, 12)
    assert found.dtype == jnp.float32
    assert np.isfinite(found).all()
    assert np.ptp(np.asarray(found), axis=0).max() > 0.1
    assert prefix.shape == (30, 6)
    assert_close(case, found[4])
    assert_close(nested, np.asarray(found).reshape(5, 6, 12))
    assert_close(encoding.encode(params, COHORT, 12), found)
    assert_close(encode(encoding.fit(COHORT, key), COHORT)[0], found, 0.0)
    with_nan = np.where(np.arange(90).reshape(30, 3) == 13, np.nan, COHORT)
    assert np.isnan(encode(params, with_nan)[0]).any(axis=1).tolist() == [row == 4 for row in range(30)]
    if name in DRAWN_BY_COORDINATE:
        assert_close(prefix, np.asarray(found)[:, :6])
    with pytest.raises(ValueError, match="columns do not fit an encoding of 3 columns"):
        encoding.encode(params, COHORT[:, :2], 12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_differentiable_in_its_values(name, key):
    encoding = ENCODINGS[name]()
    params = encoding.fit(COHORT, key)
    shape, direction = np.cos(np.arange(12)), np.array([1.0, 0.5, -2.0])
    run = jax.jit(jax.value_and_grad(lambda v: jnp.sum(shape * encoding.encode(params, v, 12))))
    above, below = (float(run(COHORT[0] + sign * 1e-5 * direction)[0]) for sign in (1, -1))
    expected = (above - below) / 2e-5
    assert abs(expected) > 1e-3
    assert_close(np.sum(run(COHORT[0])[1] * direction), expected, 1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_accepts_a_constant_column(name, key):
    encoding = ENCODINGS[name]()
    with_constant = np.column_stack([COHORT[:, 0], np.full(30, 7.0)])
    assert np.isfinite(encoding.encode(encoding.fit(with_constant, key), with_constant, 8)).all()


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(np.arange(90).reshape(30, 3) == 13, np.nan, COHORT), "column 1 holds nan in row 4"),
        (COHORT[0], r"shape \(cases, columns\); found \(3,\)"),
        (COHORT[:0], r"found \(0, 3\)"),
    ],
)
def test_every_encoding_refuses_a_cohort_it_cannot_be_fitted_to(name, values, message, key):
    with pytest.raises(ValueError, match=message):
        ENCODINGS[name]().fit(values, key)


@pytest.mark.parametrize("name", ["linear", "pca", "fourier"])
def test_a_random_encoding_follows_its_key(name, key):
    encoding = ENCODINGS[name]()
    one, other = (encoding.encode(encoding.fit(COHORT, k), COHORT, 12) for k in jax.random.split(key))
    assert np.abs(np.asarray(one - other)).max() > 0.1


@pytest.mark.parametrize("name", ["linear", "fourier"])
def test_a_random_encoding_is_the_same_in_single_and_double_precision(name, key):
    encoding = ENCODINGS[name]()
    single = np.asarray(encoding.encode(encoding.fit(COHORT, key), COHORT, 12))
    with jax.enable_x64(True):
        assert_close(single, encoding.encode(encoding.fit(COHORT, key), COHORT, 12), 1e-5)


def test_robust_scaling_is_by_median_and_interquartile_range_or_what_replaces_it(key):
    yes_no = (np.arange(30) < 6).astype(float)
    values = np.column_stack([COHORT[:, 1], yes_no, np.full(30, 7.0)])
    params = positional(scaling="robust").fit(values, key)
    low, middle, high = np.quantile(COHORT[:, 1], (0.25, 0.5, 0.75))
    assert_close(params.centre, np.array([middle, 0.0, 7.0]), 1e-6)
    assert_close(params.scale, np.array([high - low, 0.4, 1.0]), 1e-6)
    native = positional().fit(values, key)
    assert (native.centre.tolist(), native.scale.tolist()) == ([0.0] * 3, [1.0] * 3)


def test_a_constant_column_keeps_its_unit_even_where_its_mean_is_rounded(key):
    assert positional(scaling="robust").fit(np.full((30, 2), [0.1, 2.3]), key).scale.tolist() == [1.0, 1.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masked_positional_encoding(np.zeros(1), 10.0, 4), "padded_size=4"),
        (lambda: positional_encoding_vector(np.ones(3), 10, remainder=cast(Any, "zeros")), "remainder is 'zeros'"),
        (lambda: positional_encoding_vector(np.ones(0), 10), "at least one marker"),
    ],
)
def test_positional_encodings_refuse_what_they_cannot_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scaling_is_refused(key):
    with pytest.raises(ValueError, match="scaling is 'log'; expected 'native' or 'robust'"):
        positional(scaling=cast(Any, "log")).fit(COHORT, key)


def test_positional_encoding_scales_before_it_encodes(key):
    encoding = positional(scaling="robust", base=100.0)
    params = encoding.fit(COHORT, key)
    scaled = (COHORT - np.asarray(params.centre)) / np.asarray(params.scale)
    assert_close(encoding.encode(params, COHORT, 12), encoded_vector(scaled, 12, base=100.0), 1e-5)


@pytest.mark.usefixtures("x64")
def test_distances_between_pca_encodings_are_mahalanobis_distances_whatever_the_size(key):
    params = pca().fit(COHORT, key)
    expected = cdist(COHORT, COHORT, "mahalanobis", VI=np.linalg.inv(np.cov(COHORT.T)))
    for size in (3, 4, 40):
        found = np.asarray(pca().encode(params, COHORT, size))
        assert_close(cdist(found, found), expected, 1e-9)
    assert_close(pca().encode(params, COHORT, 2), pca().encode(params, COHORT, 3)[:, :2], 1e-12)


@pytest.mark.usefixtures("x64")
def test_pca_leaves_out_columns_without_spread_and_keeps_those_of_small_units(key):
    constant = np.column_stack([COHORT, np.full(30, 7.0)])
    params = pca().fit(constant, key)
    assert_close(pca().encode(params, constant[0] + [0, 0, 0, 5.0], 8), pca().encode(params, constant[0], 8), 1e-12)
    units = np.array([1e6, 1.0, 1e-3])  # mm³ beside mL, say
    found = np.asarray(pca().encode(pca().fit(COHORT * units, key), COHORT * units, 8))
    expected = cdist(COHORT, COHORT, "mahalanobis", VI=np.linalg.inv(np.cov(COHORT.T)))
    assert_close(cdist(found, found), expected, 1e-6)


@pytest.mark.usefixtures("x64")
def test_inner_products_of_fourier_features_approach_the_gaussian_kernel(key):
    """With 20,000 features the standard error is at most 0.007."""
    values = np.random.default_rng(0).normal(size=(8, 2))
    encoding = fourier(scaling="native", length_scale=1.5)
    found = np.asarray(jax.jit(encoding.encode, static_argnums=2)(encoding.fit(values, key), values, 20_000))
    expected = np.exp(-(cdist(values, values) ** 2) / (2 * 1.5**2))
    assert np.abs(2 * found @ found.T / 20_000 - expected).max() < 0.03


@pytest.mark.usefixtures("x64")
def test_inner_products_of_linear_projections_approach_those_of_the_values(key):
    """With 20,000 coordinates the standard error is about 1 % of the largest."""
    values = np.random.default_rng(0).normal(size=(8, 2))
    encoding = linear(scaling="native")
    found = np.asarray(jax.jit(encoding.encode, static_argnums=2)(encoding.fit(values, key), values, 20_000))
    assert_close(found @ found.T / 20_000, values @ values.T / 2, 0.05)


def test_repetition_repeats_the_markers(key):
    encoding = repetition(scaling="native")
    found = encoding.encode(encoding.fit(COHORT, key), np.array([1.0, 2.0, 3.0]), 7)
    assert found.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]
