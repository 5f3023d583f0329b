from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import KDEpy
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KernelDensity

from fusion_jax.arrays import as_floats, map_in_batches
from fusion_jax.quality import (
    binning_error_bound,
    fwhm_to_bandwidth,
    information_potential,
    interpolate,
    kernel_density,
    log_density,
    mean_square_density,
    multivariate_density,
    scott_bandwidth,
    silverman_bandwidth,
    uniform_grid,
)
from tests.helpers import assert_close, relative_error

METHODS = ("exact", "binned")
BANDWIDTH = 0.4
GRID = np.linspace(-7.0, 7.0, 701)  # a step of 0.05 bandwidths, 6 bandwidths beyond the samples
RNG = np.random.default_rng(0)
VALUES = np.clip(RNG.normal(size=40), -4.0, 4.0)
WEIGHTS = RNG.uniform(0.1, 2.0, size=40)


@partial(jax.jit, static_argnames=("method", "normalise"))
def jitted_density(values, weights, bandwidth, grid, method, normalise):
    return kernel_density(values, bandwidth, weights=weights, grid=grid, method=method, normalise=normalise)


@partial(jax.jit, static_argnames=("method", "normalise"))
def jitted_logarithm(values, weights, bandwidth, grid, method, normalise):
    return log_density(values, bandwidth, weights=weights, grid=grid, method=method, normalise=normalise)


def density(values, weights=None, bandwidth=BANDWIDTH, grid=GRID, *, method="exact", normalise=True):
    weights = np.ones_like(values) if weights is None else weights
    return jitted_density(values, weights, bandwidth, grid, method, normalise)


def logarithm(values, weights=None, bandwidth=BANDWIDTH, grid=GRID, *, method="exact", normalise=True):
    weights = np.ones_like(values) if weights is None else weights
    return jitted_logarithm(values, weights, bandwidth, grid, method, normalise)


@partial(jax.jit, static_argnames=("method", "normalise", "grid_size"))
def jitted_potential(values, weights, bandwidth, method, normalise, grid_size):
    return information_potential(
        values, bandwidth, weights=weights, method=method, normalise=normalise, grid_size=grid_size
    )


def potential(values, bandwidth=BANDWIDTH, weights=None, *, method="pairwise", normalise=True, grid_size=None):
    weights = np.ones_like(values) if weights is None else weights
    return jitted_potential(values, weights, bandwidth, method, normalise, grid_size)


mean_square = partial(jax.jit, static_argnames="normalise")(mean_square_density)


def log_direct(values, weights=None, bandwidth=BANDWIDTH, grid=GRID):
    """Log of the normalised density in float64, by NumPy and SciPy alone."""
    weights = np.ones_like(values) if weights is None else weights
    exponents = -0.5 * ((np.asarray(grid)[:, None] - values[None, :]) / bandwidth) ** 2
    total = scipy.special.logsumexp(exponents, axis=1, b=weights[None, :])
    return total - np.log(weights.sum() * bandwidth * np.sqrt(2 * np.pi))


def direct(*arguments, **settings):
    return np.exp(log_direct(*arguments, **settings))


# Parity with reference packages.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "rtol"), [("exact", 1e-12), ("binned", 1e-7)])
def test_density_equals_scipy_scikit_learn_and_kdepy(method, rtol):
    scale = np.sqrt(np.cov(VALUES, aweights=WEIGHTS))
    scipys = scipy.stats.gaussian_kde(VALUES, bw_method=BANDWIDTH / scale, weights=WEIGHTS)(GRID)
    sklearns = KernelDensity(bandwidth=BANDWIDTH).fit(VALUES[:, None], sample_weight=WEIGHTS)
    kdepys = KDEpy.NaiveKDE(bw=BANDWIDTH).fit(VALUES, WEIGHTS).evaluate(GRID)
    ours = density(VALUES, WEIGHTS, method=method).values
    for reference in (scipys, np.exp(sklearns.score_samples(GRID[:, None])), kdepys, direct(VALUES, WEIGHTS)):
        assert_close(ours, reference, rtol)


@pytest.mark.usefixtures("x64")
def test_density_is_nearer_to_the_direct_sum_than_kdepys_fft():
    grid = np.linspace(-7.0, 7.0, 141)
    fft = KDEpy.FFTKDE(bw=BANDWIDTH).fit(VALUES, WEIGHTS).evaluate(grid)
    ours = density(VALUES, WEIGHTS, grid=grid, method="binned").values
    fft_error = relative_error(fft, direct(VALUES, WEIGHTS, grid=grid))
    assert fft_error < 0.25**2 / 8 * 1.5  # linear binning at steps of a quarter bandwidth
    assert_close(ours, fft, 1.1 * fft_error)
    assert relative_error(ours, direct(VALUES, WEIGHTS, grid=grid)) < 0.02 * fft_error


@pytest.mark.usefixtures("x64")
def test_log_density_equals_scikit_learn():
    reference = KernelDensity(bandwidth=BANDWIDTH).fit(VALUES[:, None], sample_weight=WEIGHTS)
    assert_close(logarithm(VALUES, WEIGHTS), reference.score_samples(GRID[:, None]), 1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bandwidth_rules_equal_scipy(weights):
    reference = scipy.stats.gaussian_kde(VALUES, weights=weights)
    deviation = np.sqrt(reference.covariance[0, 0]) / reference.factor
    assert np.isclose(scott_bandwidth(VALUES, weights=weights), deviation * reference.scotts_factor(), rtol=1e-12)
    assert np.isclose(
        silverman_bandwidth(VALUES, weights=weights), deviation * reference.silverman_factor(), rtol=1e-12
    )


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [0.0, np.nan], [0.0, np.inf]])
@pytest.mark.parametrize("rule", [scott_bandwidth, silverman_bandwidth])
def test_a_bandwidth_rule_refuses_values_without_spread(rule, values):
    with pytest.raises(ValueError, match="Give `bandwidth` as a number"):
        rule(np.asarray(values))


def test_values_of_weight_zero_do_not_move_a_bandwidth_rule():
    with_missing, present = np.append(VALUES, -999.0), np.append(np.ones_like(VALUES), 0.0)
    assert scott_bandwidth(with_missing, weights=present) == scott_bandwidth(VALUES)


def test_a_kernel_is_half_its_peak_at_half_its_full_width():
    width = fwhm_to_bandwidth(3.0)
    assert np.isclose(np.exp(-(1.5**2) / (2 * width**2)), 0.5, rtol=1e-12)


# Error of the binned density.


def adversarial_mixtures(step: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples in bandwidths where the fourth derivative is large, on and between grid points, and random ones.

    The pair at 1.25 to 1.4 bandwidths and the triple at 2.8 solve the linear program that maximises the error of a
    binned density at a point over all mixtures of peak 1.
    """
    shapes = [[0.0]]
    shapes += [[-a, a] for a in np.linspace(1.2, 1.45, 6)]
    shapes += [[-a, 0.0, a] for a in np.linspace(2.6, 3.0, 5)]
    shapes += [(np.arange(-3, 4) * period).tolist() for period in np.linspace(2.4, 3.0, 7)]
    mixtures = [
        np.round(np.asarray(shape) / step) * step + offset * step for shape in shapes for offset in (0.0, 0.25, 0.5)
    ]
    mixtures += [np.sort(RNG.uniform(-6.0, 6.0, size)) for size in (2, 4, 8) for _ in range(8)]
    # Pairs whose members lie half a step inside or outside the nearest grid point, towards each other.
    mixtures += [np.array([-a, a]) for a in (np.floor(np.linspace(1.2, 1.5, 4) / step) + 0.5) * step]
    samples, weights = np.zeros((len(mixtures), 8)), np.zeros((len(mixtures), 8))
    for row, mixture in enumerate(mixtures):
        samples[row, : mixture.size], weights[row, : mixture.size] = mixture, 1.0
    return samples, weights


@pytest.fixture(scope="module")
def binning_errors() -> dict[float, np.ndarray]:
    """Error relative to the peak for every adversarial mixture, by step in bandwidths; the grid has a step of 1."""
    with jax.enable_x64(True):
        grid = np.arange(-250.0, 251.0)
        both = [
            jax.jit(
                jax.vmap(
                    lambda v, w, s, m=method: kernel_density(v, s, weights=w, grid=grid, method=m).values, (0, 0, None)
                )
            )
            for method in METHODS
        ]
        errors = {}
        for step in (0.5, 0.25, 0.1, 0.05):
            samples, weights = adversarial_mixtures(step)
            exact, binned = (np.asarray(run(samples / step, weights, 1.0 / step)) for run in both)
            errors[step] = np.abs(binned - exact).max(axis=1) / exact.max(axis=1)
    return errors


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [0.5, 0.25, 0.1, 0.05])
def test_the_binning_error_bound_holds_for_adversarial_mixtures_and_is_nearly_reached(binning_errors, step):
    bound = float(binning_error_bound(step))
    assert binning_errors[step].max() <= bound
    assert binning_errors[step].max() >= 0.5 * bound


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [0.25, 0.1])
def test_the_error_bound_of_a_grid_beside_the_samples_holds_too(step):
    bandwidth = (GRID[1] - GRID[0]) / step
    values = np.full(40, GRID[0] - 3 * bandwidth + 0.5 * step * bandwidth)
    binned = density(values, None, bandwidth, method="binned")
    error = relative_error(binned.values, direct(values, bandwidth=bandwidth))
    assert binning_error_bound(step) < error <= float(binned.error_bound)


@pytest.mark.usefixtures("x64")
def test_the_error_bound_counts_samples_that_the_period_of_the_fft_brings_back():
    bandwidth, few = (GRID[-1] - GRID[0]) / 11.2, np.arange(40) < 20
    values = np.where(few, GRID[-1] - 0.2 * bandwidth, GRID[0] - 5.55 * bandwidth)
    weights = np.where(few, 1e-6, 1.0)
    exact = direct(values, weights, bandwidth=bandwidth)
    binned = density(values, weights, bandwidth, method="binned")
    assert 1e-3 < relative_error(binned.values, exact) <= float(binned.error_bound)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bandwidth", [0.003, 20.0])
def test_the_default_grid_has_a_hundred_steps_a_bandwidth_and_an_error_below_a_millionth(bandwidth):
    grid = np.asarray(uniform_grid(VALUES, bandwidth=bandwidth))
    assert grid[1] - grid[0] <= bandwidth / 100
    result = density(VALUES, None, bandwidth, grid, method="binned")
    assert float(result.error_bound) <= 1e-6
    at = np.linspace(0, grid.size - 1, 400).astype(int)
    exact = direct(VALUES, bandwidth=bandwidth, grid=grid[at])
    assert np.abs(np.asarray(result.values)[at] - exact).max() <= 1e-6 * exact.max()


def test_a_coarse_grid_is_refused_eagerly_and_returns_its_bound_under_jit():
    coarse = 10 * GRID
    with pytest.raises(ValueError, match=r"step of 0\.5 bandwidths .* accepted is 1\.0e-06.*method='exact'"):
        kernel_density(VALUES, BANDWIDTH, grid=coarse, method="binned")
    traced = density(VALUES, grid=coarse, method="binned")
    assert_close(traced.error_bound, binning_error_bound(0.5))
    assert 1e-5 < relative_error(traced.values, direct(VALUES, grid=coarse)) <= float(traced.error_bound)
    accepted = kernel_density(VALUES, BANDWIDTH, grid=coarse, method="binned", tolerance=1e-3)
    assert_close(accepted.values, traced.values, 5e-6)


def test_small_sums_are_exact_and_large_ones_binned_unless_told():
    few, many = density(VALUES, method=None), density(np.tile(VALUES, 50), method=None)
    assert float(few.error_bound) == 0.0
    assert float(many.error_bound) > 0.0
    assert_close(many.values, few.values, 3e-6)


# Grids.


def test_a_default_grid_covers_all_values_and_reaches_six_bandwidths_further():
    grid = np.asarray(uniform_grid(np.array([-1.3]), np.array([[2.0, 0.7]]), bandwidth=0.25))
    step = grid[1] - grid[0]
    assert grid[0] <= -1.3 - 6 * 0.25 < grid[0] + step
    assert grid[-1] >= 2.0 + 6 * 0.25
    assert step == 2.0**-9
    assert (np.diff(grid) == step).all()
    assert (grid / step == np.round(grid / step)).all()


def test_grids_of_similar_data_have_one_size():
    sizes = {uniform_grid(np.array([0.0, 10.0 + extra]), bandwidth=1.0).size for extra in (0.0, 0.05, 0.1, 0.15)}
    assert len(sizes) == 1


def test_a_grid_of_given_size_can_be_made_under_a_trace():
    grid = jax.jit(lambda v, s: uniform_grid(v, bandwidth=s, grid_size=50))(VALUES, BANDWIDTH)
    assert grid.shape == (50,)
    assert np.allclose(grid[jnp.array([0, -1])], [VALUES.min() - 6 * BANDWIDTH, VALUES.max() + 6 * BANDWIDTH])
    with pytest.raises(ValueError, match="give `grid_size` or `grid`"):
        jax.jit(lambda v: uniform_grid(v, bandwidth=BANDWIDTH))(VALUES)


@pytest.mark.parametrize(
    ("values", "bandwidth", "message"),
    [
        ([], 1.0, "found an empty source"),
        ([0.0, np.nan], 1.0, "expected finite numbers"),
        ([0.0, np.inf], 1.0, "expected finite numbers"),
        ([0.0, 1e6], 0.01, "Scale or centre the features"),
        ([1e9], 1.0, "too far from zero"),
        ([0.0], 0.0, "expected one positive number"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(values, bandwidth, message):
    with pytest.raises(ValueError, match=message):
        uniform_grid(np.asarray(values), bandwidth=bandwidth)


# Edges.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros(0)}, r"shape \(f,\) with f > 0; found shape \(0,\)"),
        ({"values": np.zeros((2, 3))}, r"found shape \(2, 3\). Use jax.vmap, or fusion_quality"),
        ({"bandwidth": -1.0}, "bandwidth is -1.0; expected one positive number"),
        ({"bandwidth": 0.0}, "expected one positive number"),
        ({"bandwidth": np.nan}, "expected one positive number"),
        ({"weights": np.ones(3)}, r"weights of shape \(3,\) do not fit"),
        ({"weights": np.array([1.0, -1.0])}, "non-negative"),
        ({"weights": np.array([1.0, np.nan])}, "non-negative"),
        ({"grid": np.array([0.0, 1.0, 3.0])}, "uniform and increasing; found steps from 1 to 2"),
        ({"grid": np.array([2.0, 1.0, 0.0])}, "uniform and increasing"),
        ({"grid": np.array([2.0])}, "n > 1"),
    ],
)
@pytest.mark.parametrize("function", [kernel_density, log_density])
@pytest.mark.usefixtures("unchecked")
def test_a_density_refuses_what_it_cannot_measure(function, changes, message):
    arguments = {"values": np.array([0.0, 1.0]), "bandwidth": 1.0, "grid": np.array([0.0, 1.0, 2.0])} | changes
    with pytest.raises(ValueError, match=message):
        function(arguments.pop("values"), arguments.pop("bandwidth"), **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [kernel_density, log_density, information_potential])
def test_an_unknown_method_is_refused(function):
    with pytest.raises(ValueError, match="method is 'thumb'; expected"):
        function(np.array([0.0, 1.0]), 1.0, method=cast(Any, "thumb"))


@pytest.mark.parametrize("weights", [np.ones(3), np.array([1.0, -1.0]), np.array([1.0, np.nan])])
def test_a_bandwidth_rule_refuses_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="2 non-negative numbers"):
        scott_bandwidth(np.array([0.0, 1.0]), weights=weights)


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_and_equal_samples_give_one_kernel(method):
    kernel = direct(np.array([0.3]))
    assert_close(density(np.array([0.3]), method=method).values, kernel, 2e-6)
    assert_close(density(np.full(40, 0.3), method=method).values, kernel, 2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_source_without_weight_has_no_density_and_no_nan(method):
    nothing = np.zeros_like(WEIGHTS)
    assert not density(VALUES, nothing, method=method).values.any()
    assert (np.asarray(logarithm(VALUES, nothing, method=method)) == -np.inf).all()
    slope = jax.grad(lambda v: density(v, nothing, method=method).values.sum())(jnp.asarray(VALUES))
    assert not slope.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [lambda *a, **k: density(*a, **k).values, logarithm])
def test_a_nan_poisons_the_whole_density_under_jit(function, method):
    bad = np.where(np.arange(40) == 7, np.nan, VALUES)
    assert np.isnan(function(bad, WEIGHTS, method=method)).all()
    assert np.isnan(function(VALUES, np.where(np.arange(40) == 7, np.nan, WEIGHTS), method=method)).all()
    assert np.isnan(function(VALUES, WEIGHTS, np.nan, method=method)).all()


def test_a_nan_poisons_energies_under_jit():
    bad = np.where(np.arange(40) == 7, np.nan, VALUES)
    assert np.isnan(potential(bad))
    assert np.isnan(mean_square(bad, BANDWIDTH))
    assert np.isnan(potential(bad, method="fft", grid_size=701))  # its grid is NaN too


@pytest.mark.parametrize("method", METHODS)
def test_samples_beyond_the_grid_still_reach_into_it(method):
    short = 0.1 * GRID
    assert (np.abs(VALUES) > 0.7).sum() > 10
    eager = kernel_density(VALUES, BANDWIDTH, grid=short, method=method)
    assert_close(eager.values, direct(VALUES, grid=short), 2e-6)
    assert float(eager.error_bound) < 1e-6
    traced = density(VALUES, grid=short, method=method)  # the bandwidth is unknown, and so how far to look
    assert relative_error(traced.values, direct(VALUES, grid=short)) <= float(traced.error_bound) + 2e-6


# Tails: sums of positive terms.


def test_log_density_is_exact_in_single_precision_a_hundred_bandwidths_away():
    grid = np.linspace(-50.0, 50.0, 1001)
    reference = log_direct(VALUES, WEIGHTS, grid=grid)
    assert reference.min() < -6000
    assert_close(logarithm(VALUES, WEIGHTS, grid=grid), reference, 1e-6)
    assert (np.asarray(density(VALUES, WEIGHTS, grid=grid, method="binned").values) == 0.0).any()  # no logarithm there


def test_log_density_is_exact_beside_few_or_many_samples_eager_and_jitted():
    grid = np.linspace(20.0, 24.0, 101)
    for values in (VALUES, np.tile(VALUES, 5)):  # summed over samples, and over grid points
        reference = log_direct(values, bandwidth=1.0, grid=grid)
        assert_close(log_density(values, 1.0, grid=grid), reference, 1e-4)
        assert_close(jax.jit(lambda v, s: log_density(v, s, grid=grid))(values, 1.0), reference, 1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("step", [0.25, 0.1, 0.05])
def test_the_relative_error_of_a_binned_logarithm_keeps_its_bound(step):
    grid = np.arange(-250.0, 251.0)
    both = [jax.jit(lambda v, s, m=m: log_density(v, s, grid=grid, method=m)) for m in METHODS]
    for samples in (np.array([0.5, 0.5]), np.array([-1.0 / step - 0.5, 1.3 / step])):
        exact, binned = (np.asarray(run(samples, 1.0 / step)) for run in both)
        away = np.abs(grid[:, None] - samples[None, :]).min(axis=1) * step
        bound = 0.02 * step**4 * (1 + away) ** 4
        error = np.abs(np.expm1(binned - exact))
        assert (error <= bound)[bound < 0.3].all()
        assert (error / bound)[bound < 0.3].max() > 0.05


# Invariances.


@pytest.mark.usefixtures("x64")
def test_exact_and_binned_agree():
    exact, binned = (density(VALUES, WEIGHTS, method=m).values for m in METHODS)
    assert_close(binned, exact, 1e-7)
    exact, binned = (logarithm(VALUES, WEIGHTS, method=m) for m in METHODS)
    assert_close(binned, exact, 1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_weight_is_a_repeated_sample(method):
    times = np.array([3, 2, 1, 0] * 10)
    repeated = np.resize(np.repeat(VALUES, times), 60)
    assert_close(density(VALUES, times + 0.0, method=method).values, density(repeated, method=method).values, 1e-13)
    assert_close(potential(VALUES, weights=times + 0.0), potential(repeated), 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_a_value_of_weight_zero_is_absent(method):
    weights, few = np.where(np.arange(40) < 8, 1.0, 0.0), VALUES[:8]
    assert_close(density(VALUES, weights, method=method).values, direct(few), 1e-7)
    assert_close(logarithm(VALUES, weights, method=method), log_direct(few), 1e-5)
    at_samples = direct(few, grid=few)
    assert_close(mean_square(VALUES, BANDWIDTH, weights=weights), np.mean(at_samples**2), 1e-12)
    assert_close(
        potential(VALUES, weights=weights), np.mean(direct(few, bandwidth=2**0.5 * BANDWIDTH, grid=few)), 1e-12
    )


samples = st.lists(st.floats(-3.0, 3.0, width=32), min_size=12, max_size=12).map(lambda drawn: np.resize(drawn, 40))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(values=samples, shift=st.floats(-100.0, 100.0), scale=st.floats(0.01, 100.0), seed=st.integers(0, 9))
def test_a_density_moves_scales_and_ignores_order_as_its_samples_do(method, values, shift, scale, seed):
    original = density(values, method=method).values
    moved = density(values + shift, grid=GRID + shift, method=method).values
    assert_close(moved, original, 1e-6 if method == "binned" else 1e-9)
    scaled = density(values * scale, None, BANDWIDTH * scale, GRID * scale, method=method).values
    assert_close(scaled * scale, original, 1e-9)
    assert_close(density(np.random.default_rng(seed).permutation(values), method=method).values, original, 1e-12)


@pytest.mark.usefixtures("x64")
@settings(max_examples=25)
@given(values=samples, shift=st.floats(-100.0, 100.0), scale=st.floats(0.01, 100.0))
def test_a_density_is_positive_with_unit_mass_and_its_energy_scales(values, shift, scale):
    for method in METHODS:
        found = density(values, method=method).values
        assert float(found.min()) >= 0.0
        assert np.isclose(float(found.sum()) * (GRID[1] - GRID[0]), 1.0, rtol=1e-9)
    assert_close(potential(values * scale + shift, BANDWIDTH * scale) * scale, potential(values), 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_jit_equals_eager(method):
    eager = kernel_density(VALUES, BANDWIDTH, weights=WEIGHTS, grid=GRID, method=method)
    assert_close(density(VALUES, WEIGHTS, method=method).values, eager.values, 2e-6)
    eager = log_density(VALUES, BANDWIDTH, weights=WEIGHTS, grid=GRID, method=method)
    assert_close(logarithm(VALUES, WEIGHTS, method=method), eager, 2e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_vmap_equals_a_loop_over_cases_and_bandwidths(method):
    cases = np.stack([VALUES, VALUES[::-1] ** 2 / 4, VALUES - 1.0])
    widths = np.array([0.4, 0.5, 0.7])
    for function in (
        lambda v, s: density(v, WEIGHTS, s, method=method).values,
        lambda v, s: logarithm(v, WEIGHTS, s, method=method),
    ):
        mapped = jax.vmap(function)(cases, widths)
        assert_close(mapped, np.stack([function(v, s) for v, s in zip(cases, widths, strict=True)]), 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_equals_double_to_rounding(method):
    assert density(VALUES, WEIGHTS, method=method).values.dtype == jnp.float32
    assert_close(density(VALUES, WEIGHTS, method=method).values, direct(VALUES, WEIGHTS), 2e-6)
    with jax.enable_x64(True):
        assert density(VALUES, WEIGHTS, method=method).values.dtype == jnp.float64


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_of_peak_one_differs_by_its_integral(method):
    factor = BANDWIDTH * np.sqrt(2 * np.pi)
    normalised = density(VALUES, WEIGHTS, method=method)
    assert_close(density(VALUES, WEIGHTS, method=method, normalise=False).values, factor * normalised.values, 1e-6)
    logs = logarithm(VALUES, WEIGHTS, method=method)
    assert_close(logarithm(VALUES, WEIGHTS, method=method, normalise=False), np.log(factor) + logs, 1e-6)


# Energies.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_information_potential_is_the_integral_of_the_squared_density_without_a_grid(weights):
    mass = np.full(40, 1 / 40) if weights is None else weights / weights.sum()
    pairs = np.exp(-((VALUES[:, None] - VALUES[None, :]) ** 2) / (4 * BANDWIDTH**2))
    reference = BANDWIDTH * np.sqrt(np.pi) * mass @ pairs @ mass  # spec I4, kernels of peak 1
    unnormalised: dict[str, Any] = {"weights": weights, "normalise": False}
    assert_close(potential(VALUES, **unnormalised), reference, 1e-12)
    assert_close(potential(VALUES, method="fft", grid_size=1001, **unnormalised), reference, 1e-9)
    found = BANDWIDTH * np.sqrt(2 * np.pi) * np.asarray(density(VALUES, weights).values)
    assert_close(np.sum(found**2) * (GRID[1] - GRID[0]), reference, 1e-9)
    assert_close(potential(VALUES, weights=weights), reference / (2 * np.pi * BANDWIDTH**2), 1e-12)


@pytest.mark.usefixtures("x64")
def test_mean_square_density_equals_the_direct_sum():
    at_samples = direct(VALUES, WEIGHTS, grid=VALUES)
    reference = np.average(at_samples**2, weights=WEIGHTS)
    assert_close(mean_square(VALUES, BANDWIDTH, weights=WEIGHTS), reference, 1e-12)
    peak = 2 * np.pi * BANDWIDTH**2
    assert_close(mean_square(VALUES, BANDWIDTH, weights=WEIGHTS, normalise=False), peak * reference, 1e-12)


def test_energies_of_normal_features_approach_their_closed_forms(key):
    """Spec I5, at sigma 0.5 with 4,000 features: one draw lies within about 2 %, the mean of 16 within 1 %."""
    sigma, size, draws = 0.5, 4000, 16
    grid = np.linspace(-8.0, 8.0, 641)

    @jax.jit
    @jax.vmap
    def measure(one):
        x = jax.random.normal(one, (size,))
        found = kernel_density(x, sigma, grid=grid, normalise=False, method="binned").values
        return found, jnp.sum(found**2) * (grid[1] - grid[0]), jnp.mean(interpolate(grid, found, x) ** 2)

    shape, potential, mean_square = (np.asarray(a) for a in measure(jax.random.split(key, draws)))
    expected = sigma / np.sqrt(1 + sigma**2) * np.exp(-(grid**2) / (2 * (1 + sigma**2)))
    assert_close(shape.mean(axis=0), expected, 0.01)
    assert np.isclose(potential.mean(), sigma**2 * np.sqrt(np.pi) / np.sqrt(1 + sigma**2), rtol=0.01)
    assert np.isclose(mean_square.mean(), sigma**2 / np.sqrt((1 + sigma**2) * (3 + sigma**2)), rtol=0.01)
    assert np.abs(potential / potential.mean() - 1).max() < 0.05


@pytest.mark.usefixtures("x64")
def test_the_density_of_vectors_equals_scikit_learn_and_scales_with_dimension():
    cases, at = RNG.normal(size=(9, 3)), RNG.normal(size=(4, 3))
    width = 0.8 * np.sqrt(3)
    reference = np.exp(KernelDensity(bandwidth=width).fit(cases).score_samples(at)) * (width * np.sqrt(2 * np.pi)) ** 3
    assert_close(multivariate_density(at, cases, 0.8), reference, 1e-12)
    assert_close(multivariate_density(at, cases, width, scale_with_dimension=False), reference, 1e-12)


def test_the_density_of_vectors_collapses_with_dimension(key):
    """Spec A1b: at a fixed bandwidth of 1 the kernels vanish; scaled by the root of the dimension they do not."""
    far, near = (
        float(multivariate_density(*jax.random.normal(key, (2, 1, 1000)), 1.0, scale_with_dimension=scaled)[0])
        for scaled in (False, True)
    )
    assert far == 0.0
    assert 0.1 < near < 0.9


# Interpolation.


@pytest.mark.usefixtures("x64")
def test_interpolation_is_exact_for_cubics_and_within_its_bound_for_kernels():
    grid, at = np.arange(-8.0, 8.01, 0.1), np.linspace(-7.9, 7.9, 1009)
    between = jax.jit(interpolate)
    assert_close(between(grid, grid**3 - grid, at), at**3 - at, 1e-13)
    error = np.abs(np.asarray(between(grid, np.exp(-0.5 * grid**2), at)) - np.exp(-0.5 * at**2))
    assert 0.05 * 0.1**4 < error.max() < 0.071 * 0.1**4
    assert_close(between(grid, grid**2, grid[1:-1]), grid[1:-1] ** 2, 1e-13)


# Gradients, against central differences.

SIZES = {"grid": np.linspace(-4.0, 4.0, 241)}
EVERY_KERNEL = {
    "exact": lambda v, w, s: kernel_density(v, s, weights=w, method="exact", **SIZES).values,
    "binned": lambda v, w, s: kernel_density(v, s, weights=w, method="binned", **SIZES).values,
    "log exact": lambda v, w, s: log_density(v, s, weights=w, method="exact", **SIZES),
    "log binned": lambda v, w, s: log_density(v, s, weights=w, method="binned", **SIZES),
    "potential": lambda v, w, s: information_potential(v, s, weights=w, method="pairwise"),
    "potential by FFT": lambda v, w, s: information_potential(v, s, weights=w, method="fft", grid_size=241),
    "mean square": lambda v, w, s: mean_square_density(v, s, weights=w),
    "interpolated": lambda v, w, s: interpolate(
        SIZES["grid"], kernel_density(v, s, weights=w, method="exact", **SIZES).values, 0.3 * v
    ),
    "vectors": lambda v, w, s: multivariate_density(v[:3, None], v[:, None], s),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_gradients_equal_finite_differences_in_values_weights_and_bandwidth(name):
    at = (VALUES[:7] / 2, WEIGHTS[:7], np.asarray(0.5))
    direction = RNG.normal(size=7), RNG.normal(size=7), np.asarray(1.0)
    shape = jax.eval_shape(EVERY_KERNEL[name], *at).shape
    cotangent = np.cos(0.1 * np.arange(np.prod(shape, dtype=int))).reshape(shape)
    run = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(cotangent * EVERY_KERNEL[name](*a)), (0, 1, 2)))
    _, slopes = run(*at)
    for argument in range(2 if name == "vectors" else 3):
        argument = 2 * argument if name == "vectors" else argument  # vectors have no weights
        shifted = [
            [a + sign * 1e-5 * d if i == argument else a for i, (a, d) in enumerate(zip(at, direction, strict=True))]
            for sign in (1, -1)
        ]
        expected = float(run(*shifted[0])[0] - run(*shifted[1])[0]) / 2e-5
        assert abs(expected) > 1e-6
        assert_close(np.sum(slopes[argument] * direction[argument]), expected, 1e-4)


@pytest.mark.usefixtures("x64")
def test_gradients_of_a_binned_density_equal_those_of_the_exact_one():
    cotangent = np.cos(GRID)
    slopes = [
        jax.jit(jax.grad(lambda v, w, s, m=m: jnp.sum(cotangent * density(v, w, s, method=m).values), (0, 1, 2)))(
            VALUES, WEIGHTS, BANDWIDTH
        )
        for m in METHODS
    ]
    assert_close(slopes[1], slopes[0], 1e-5)


# Scale.

MEGABYTE = 2**20


@pytest.mark.parametrize("function", [lambda *a, **k: density(*a, **k).values, logarithm])
@pytest.mark.parametrize("method", METHODS)
def test_a_million_samples_need_bounded_memory_also_for_their_gradient(function, method):
    many = jax.ShapeDtypeStruct((10**6,), jnp.float32)
    one = jax.ShapeDtypeStruct((), jnp.float32)

    def energy(values, weights, bandwidth):
        return jnp.sum(function(values, weights, bandwidth, method=method) ** 2)

    compiled = jax.jit(jax.value_and_grad(energy, (0, 1, 2))).lower(many, many, one).compile()
    # Samples, weights and their four grid weights are 24 MB; all pairs would be 2,800 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * MEGABYTE


def test_energies_of_a_million_samples_by_pairs_need_bounded_memory():
    many = jax.ShapeDtypeStruct((10**6,), jnp.float32)
    compiled = jax.jit(partial(information_potential, method="pairwise")).lower(many, 0.5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50 * MEGABYTE


def test_the_density_of_a_million_samples_is_right():
    quantiles = scipy.stats.norm.ppf((np.arange(10**6) + 0.5) / 10**6).astype(np.float32)
    spread = np.sqrt(1 + BANDWIDTH**2)
    assert_close(density(quantiles, method="binned").values, scipy.stats.norm.pdf(GRID, scale=spread), 1e-5)
    coarse = np.linspace(-7.0, 7.0, 57)
    exact = density(quantiles, grid=coarse, method="exact").values
    assert_close(exact, scipy.stats.norm.pdf(coarse, scale=spread), 1e-5)


# Arrays.


def test_mapping_in_batches_equals_mapping_at_once_whatever_the_remainder():
    run = jax.jit(lambda cases: map_in_batches(lambda case: case["a"] + case["b"].sum(), cases, 4))
    for rows in (0, 4, 9):
        cases = {"a": np.arange(float(rows)), "b": np.arange(2.0 * rows).reshape(rows, 2)}
        assert run(cases).tolist() == (cases["a"] + cases["b"].sum(axis=1)).tolist()


def test_common_dtype_is_the_widest_floating_one_and_at_least_single():
    half, single = np.ones(2, np.float16), np.ones(2, np.float32)
    assert {a.dtype.name for a in as_floats(half, 1.0, np.arange(3))} == {"float32"}
    assert as_floats(np.ones(2))[0].dtype == jnp.float32
    with jax.enable_x64(True):
        assert {a.dtype.name for a in as_floats(single, 1.0, 2)} == {"float32"}
        assert {a.dtype.name for a in as_floats(single, np.ones(2))} == {"float64"}
        assert {a.dtype.name for a in as_floats(1, 2)} == {"float64"}


def test_a_million_values_of_which_half_are_equal_keep_their_sum_in_single_precision():
    values = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    values[::2] = 0.0
    grid = np.linspace(-8.0, 8.0, 2049)
    found = kernel_density(values, 0.125, grid=grid, method="binned").values
    at_zero = np.exp(-0.5 * np.square(values.astype(float) / 0.125)).mean() / (0.125 * np.sqrt(2 * np.pi))
    assert abs(float(found[1024]) / at_zero - 1) < 1e-4  # one long sum in single precision is 3e-3 off


def test_an_infinite_value_poisons_an_exact_density_and_short_grids_are_not_interpolated():
    hidden = jax.jit(lambda v: kernel_density(v, 1.0, grid=np.linspace(-5.0, 5.0, 50), method="exact").values)
    assert np.isnan(hidden(np.array([0.0, np.inf]))).all()
    with pytest.raises(ValueError, match="at least four grid points; found 3"):
        interpolate(np.arange(3.0), np.arange(3.0), np.array([0.5]))
