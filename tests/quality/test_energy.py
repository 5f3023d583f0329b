from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fusion_jax.quality import (
    balanced_masses,
    energy_gap,
    energy_gap_from_energies,
    energy_gap_penalty,
    energy_shares,
    fused_density,
    gamma,
    gamma_star,
    gibbs_potential,
    information_potential,
    jensen_shannon,
    kernel_density,
    log_density,
    mean_square_density,
    overlap,
    pairwise_energy_gaps,
    partition_function,
    sample_energy_gap,
    total_variation,
)
from tests.helpers import assert_close

GAMMAS = np.array([0.01, 0.1, 0.5, 1.0, 10.0, 100.0])
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=60), RNG.uniform(-1.0, 1.0, size=12)
BANDWIDTH, GRID = 0.5, np.linspace(-7.0, 7.0, 561)
STEP = GRID[1] - GRID[0]


@jax.jit
def jitted_density(values, weights, bandwidth, grid):
    return kernel_density(values, bandwidth, weights=weights, grid=grid, method="exact").values


def density(values, weights=None, bandwidth=BANDWIDTH):
    return jitted_density(values, np.ones(values.shape) if weights is None else weights, bandwidth, GRID)


logarithm = jax.jit(partial(log_density, method="exact"), static_argnames="normalise")
potential = jax.jit(information_potential)
mean_square = jax.jit(mean_square_density)


@pytest.fixture(scope="module")
def densities() -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        return np.asarray(density(X)), np.asarray(density(Y))


# Mixtures.


@pytest.mark.usefixtures("x64")
def test_the_fused_density_is_the_density_of_the_concatenated_features(densities):
    """Spec I1, for values and for weighted values."""
    fused = fused_density(np.stack(densities), np.array([60.0, 12.0]))
    assert_close(fused, density(np.concatenate([X, Y])), 1e-14)
    weights_x, weights_y = RNG.uniform(size=60), RNG.uniform(size=12)
    both = jnp.stack([density(X, weights_x), density(Y, weights_y)])
    together = density(np.concatenate([X, Y]), np.concatenate([weights_x, weights_y]))
    assert_close(fused_density(both, np.array([weights_x.sum(), weights_y.sum()])), together, 1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", GAMMAS)
def test_total_variations_share_one_distance_by_mass_and_are_equal_at_gamma_one(densities, ratio):
    """Spec I2 and I3: exact for any data and bandwidth."""
    x, y = densities
    fused = fused_density(np.stack([x, y]), np.array([1.0, ratio]))
    apart = float(total_variation(x, y, grid_step=STEP))
    assert apart > 0.05
    to_x, to_y = (float(total_variation(fused, p, grid_step=STEP)) for p in (x, y))
    assert np.isclose(to_x, ratio / (1 + ratio) * apart, rtol=1e-12)
    assert np.isclose(to_y, 1 / (1 + ratio) * apart, rtol=1e-12)
    assert (abs(to_x - to_y) < 1e-12) == (ratio == 1.0)
    assert np.isclose(overlap(fused, x, grid_step=STEP), 1 - to_x, atol=1e-12)
    assert float(overlap(fused, x, grid_step=STEP)) >= 1 - ratio / (1 + ratio)


@pytest.mark.usefixtures("x64")
def test_literal_weights_ignore_the_sizes(densities):
    both = np.stack(densities)
    found = [fused_density(both, np.array([1.0, ratio]), weights="literal") for ratio in GAMMAS]
    for one in found:
        assert_close(one, both.mean(axis=0), 1e-14)


# Gaps.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("reading", ["pooled", "literal", "scale_free"])
def test_every_reading_of_the_energy_gap_equals_its_formula(densities, reading, absolute):
    x, y = densities
    energy_x, energy_y = np.sum(x**2) * STEP, np.sum(y**2) * STEP
    expected = {
        "pooled": [(energy_x - g * g * energy_y) / (1 + g) ** 2 for g in GAMMAS],
        "literal": [energy_x - energy_y for g in GAMMAS],
        "scale_free": [(energy_x - g * g * energy_y) / (energy_x + g * g * energy_y) for g in GAMMAS],
    }[reading]
    expected = np.abs(expected) if absolute else np.array(expected)
    assert absolute or (expected < 0).any()
    found = energy_gap(x, y, GAMMAS, grid_step=STEP, reading=reading, absolute=absolute)
    assert_close(found, expected, 1e-12)
    by_energy = energy_gap_from_energies(energy_x, energy_y, GAMMAS, reading=reading, absolute=absolute)
    assert_close(by_energy, expected, 1e-12)


@pytest.mark.usefixtures("x64")
def test_the_sample_gap_is_a_difference_of_sums_over_the_features():
    """Spec I7: sum over x of phi_x², minus gamma d1 times the mean over y of phi_y²; zero at m_x / m_y."""
    mean_x, mean_y = mean_square(X, BANDWIDTH), mean_square(Y, BANDWIDTH)

    def at_own_samples(values):
        kernels = np.exp(-0.5 * ((values[:, None] - values[None, :]) / BANDWIDTH) ** 2)
        return kernels.mean(axis=1) / (BANDWIDTH * np.sqrt(2 * np.pi))

    sums = np.sum(at_own_samples(X) ** 2), np.sum(at_own_samples(Y) ** 2)
    assert_close(sample_energy_gap(mean_x, mean_y, len(Y) / len(X), size_x=60.0), sums[0] - sums[1], 1e-12)
    signed = sample_energy_gap(mean_x, mean_y, GAMMAS, size_x=60.0)
    assert_close(sample_energy_gap(mean_x, mean_y, GAMMAS, size_x=60.0, absolute=True), np.abs(signed), 1e-12)
    assert abs(float(sample_energy_gap(mean_x, mean_y, mean_x / mean_y, size_x=60.0))) < 1e-12


@pytest.mark.usefixtures("x64")
def test_the_pooled_gap_is_zero_at_gamma_star_and_tends_to_each_energy():
    """Spec I6."""
    energy_x, energy_y = potential(X, BANDWIDTH), potential(Y, BANDWIDTH)
    star = gamma_star(energy_x, energy_y)
    assert_close(star, np.sqrt(energy_x / energy_y), 1e-12)
    assert abs(float(energy_gap_from_energies(energy_x, energy_y, star))) < 1e-14
    near = energy_gap_from_energies(energy_x, energy_y, np.array([1e-9, 1e9]))
    assert_close(near, np.array([energy_x, -energy_y]), 1e-8)
    falling = energy_gap_from_energies(energy_x, energy_y, np.geomspace(0.01, 100, 200))
    assert (np.diff(falling) < 0).all()  # hence a V in magnitude


def test_gamma_is_the_size_of_the_second_source_over_that_of_the_first():
    assert_close(gamma(2048, np.array([192.0, 2048.0, 6144.0])), np.array([0.09375, 1.0, 3.0]))


@pytest.mark.usefixtures("x64")
def test_pairwise_gaps_are_antisymmetric_and_hold_the_gap_of_two_sources():
    energies, masses = np.array([0.4, 0.6, 0.1, 2.0]), np.array([60.0, 12.0, 30.0, 5.0])
    gaps = np.asarray(pairwise_energy_gaps(energies, masses))
    assert_close(gaps, -gaps.T, 0.0)
    assert np.isclose(gaps[1, 3], (12**2 * 0.6 - 5**2 * 2.0) / 107**2, rtol=1e-12)
    two = pairwise_energy_gaps(energies[:2], masses[:2])
    assert_close(two[0, 1], energy_gap_from_energies(0.4, 0.6, gamma(60.0, 12.0)), 1e-12)


energies_and_targets = st.lists(st.tuples(st.floats(0.01, 100.0), st.floats(0.05, 1.0)), min_size=4, max_size=4).map(
    lambda pairs: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]) / sum(p[1] for p in pairs))
)


@pytest.mark.usefixtures("x64")
@settings(max_examples=20)
@given(energies_and_targets, st.integers(0, 9))
def test_balanced_masses_reach_their_target_and_beat_other_masses(drawn, seed):
    energies, target = drawn

    def objective(masses):
        return np.sum((np.asarray(energy_shares(energies, masses)) - target) ** 2)

    masses = np.asarray(balanced_masses(energies, target=target))
    assert np.isclose(masses[0], 1.0, rtol=1e-12)
    assert objective(masses) < 1e-24
    assert objective(masses * np.random.default_rng(seed).uniform(0.5, 0.9, 4) ** [0, 1, 0, 2]) > 1e-6
    equal = balanced_masses(energies)
    assert_close(equal, np.sqrt(energies[0] / energies), 1e-12)
    assert_close(energy_shares(energies, equal), np.full(4, 0.25), 1e-12)
    assert_close(equal[1], gamma_star(energies[0], energies[1]), 1e-12)


@pytest.mark.usefixtures("x64")
def test_the_penalty_is_the_squared_scale_free_gap_and_vanishes_at_gamma_star():
    energy_x, energy_y = potential(X, BANDWIDTH), potential(Y, BANDWIDTH)
    expected = energy_gap_from_energies(energy_x, energy_y, 12 / 60, reading="scale_free") ** 2
    penalty = jax.jit(jax.value_and_grad(energy_gap_penalty))
    found, slope = penalty(X, Y, BANDWIDTH)
    assert_close(found, expected, 1e-12)
    assert float(penalty(X, Y, BANDWIDTH, gamma=gamma_star(energy_x, energy_y))[0]) < 1e-24
    assert float(penalty(X - slope / np.abs(slope).max(), Y, BANDWIDTH)[0]) < float(expected)


# Gibbs measure and distances.


@pytest.mark.usefixtures("x64")
def test_the_gibbs_potential_gives_back_its_density(densities):
    potential = gibbs_potential(logarithm(X, BANDWIDTH, grid=GRID), inverse_temperature=2.5)
    assert_close(np.exp(-2.5 * np.asarray(potential)), densities[0], 1e-12)
    assert_close(partition_function(np.stack(densities), grid_step=STEP), np.ones(2), 1e-9)


@pytest.mark.usefixtures("x64")
def test_the_gibbs_potential_of_one_kernel_is_a_parabola_far_into_its_tails():
    grid = np.linspace(-40.0, 40.0, 81)
    potential = gibbs_potential(logarithm(np.zeros(1), 0.5, grid=grid, normalise=False))
    assert_close(potential, grid**2 / (2 * 0.5**2), 1e-12)


@pytest.mark.usefixtures("x64")
def test_distances_equal_scipy_and_keep_their_ranges(densities):
    x, y = densities
    assert_close(jensen_shannon(x, y, grid_step=STEP), jensenshannon(x * STEP, y * STEP) ** 2, 1e-9)
    assert_close(total_variation(x, y, grid_step=STEP), 0.5 * np.abs(x - y).sum() * STEP, 1e-12)
    assert_close(overlap(x, y, grid_step=STEP) + total_variation(x, y, grid_step=STEP), np.asarray(1.0), 1e-9)
    assert float(jensen_shannon(x, x, grid_step=STEP)) == float(total_variation(x, x, grid_step=STEP)) == 0.0
    halves = np.where(GRID < 0, 2 * x, 0.0), np.where(GRID < 0, 0.0, 2 * x)
    halves = tuple(h / (h.sum() * STEP) for h in halves)
    assert_close(jensen_shannon(*halves, grid_step=STEP), np.log(2.0), 1e-12)
    assert_close(total_variation(*halves, grid_step=STEP), np.asarray(1.0), 1e-12)
    assert float(overlap(*halves, grid_step=STEP)) == 0.0


@pytest.mark.usefixtures("x64")
def test_distances_of_a_stack_are_those_of_its_rows(densities):
    x, y = densities
    for distance in (total_variation, overlap, jensen_shannon):
        both = distance(np.stack([x, y]), np.stack([y, y]), grid_step=STEP)
        assert_close(both, jnp.stack([distance(x, y, grid_step=STEP), distance(y, y, grid_step=STEP)]), 1e-12)


# Gradients, jit and edges.


def measures(p, q, log_q, ratio):
    """Every energy and distance of two densities, in one vector."""
    both, masses = jnp.stack([p, q]), jnp.stack([jnp.ones_like(ratio), ratio])
    energies = jnp.sum(both**2, axis=-1) * STEP
    fused = fused_density(both, masses)
    terms = [energy_gap(p, q, ratio, grid_step=STEP, reading=r) for r in ("pooled", "literal", "scale_free")]
    terms += [gamma_star(energies[0], energies[1]), pairwise_energy_gaps(energies, masses)[0, 1]]
    terms += [energy_shares(energies, masses)[0], balanced_masses(energies)[1]]
    terms += [distance(fused, p, grid_step=STEP) for distance in (total_variation, overlap, jensen_shannon)]
    terms += [sample_energy_gap(energies[0], energies[1], ratio, size_x=3.0), partition_function(p, grid_step=STEP)]
    return jnp.stack([*terms, jnp.mean(gibbs_potential(log_q, inverse_temperature=ratio))])


@jax.jit
def measured_on(grid, x, y, bandwidth, ratio):
    def plain_density(values):
        kernels = jnp.exp(-0.5 * jnp.square((grid[None, :] - values[:, None]) / bandwidth))
        return jnp.mean(kernels, axis=0) / (bandwidth * jnp.sqrt(2 * jnp.pi))

    p, q = plain_density(x), plain_density(y)
    return jnp.append(measures(p, q, jnp.log(q[200:360]), ratio), energy_gap_penalty(x, y, bandwidth, gamma=ratio))


# The grid is an argument: JAX 0.10.2 hands a NumPy array that a living jitted function holds as a constant to later
# calls in the precision of that function, whatever the precision then.
measured = partial(measured_on, GRID)


CASE = (X[:8], Y[:4], np.asarray(BANDWIDTH), np.asarray(0.7))
DIRECTIONS = (np.cos(np.arange(8)), np.sin(1 + np.arange(4)), np.asarray(1.0), np.asarray(1.0))


@pytest.mark.usefixtures("x64")
def test_gradients_of_every_energy_equal_finite_differences_in_every_argument():
    slope = jax.jit(lambda *tangents: jax.jvp(measured, CASE, tangents)[1])
    reverse = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.cos(jnp.arange(14)) * measured(*a)), (0, 1, 2, 3)))(*CASE)
    for i, direction in enumerate(DIRECTIONS):
        above, below = (
            np.asarray(measured(*(a + s * 1e-5 * direction if i == j else a for j, a in enumerate(CASE))))
            for s in (1, -1)
        )
        expected = (above - below) / 2e-5
        assert (np.abs(expected) > 1e-3).sum() >= 7
        forward = slope(*(d if i == j else 0 * d for j, d in enumerate(DIRECTIONS)))
        assert np.allclose(forward, expected, rtol=1e-4, atol=1e-8)
        assert_close(np.sum(reverse[i] * direction), np.sum(np.cos(np.arange(14)) * expected), 1e-4)


def test_jit_equals_eager_and_single_precision_equals_double():
    single = np.asarray(measured(*CASE))
    assert single.dtype == np.float32
    with jax.enable_x64(True):
        double = np.asarray(measured(*CASE))
        p, q = density(CASE[0]), density(CASE[1])
        eager = measures(p, q, jnp.log(q[200:360]), jnp.asarray(CASE[3]))
    assert_close(double[:-1], eager, 1e-12)
    assert np.allclose(single, double, rtol=2e-5, atol=2e-6)


def test_gradients_of_distances_stay_finite_where_densities_vanish():
    @jax.jit
    @jax.grad
    def slope(x, y, grid):
        p, q = (jitted_density(v, jnp.ones_like(v), 0.05, grid) for v in (x, y))
        return sum(d(p, 0.5 * (p + q), grid_step=STEP) for d in (total_variation, overlap, jensen_shannon))

    x, y = Y[:4] - 4.0, Y[:4] + 4.0
    assert (density(y, bandwidth=0.05) == 0.0).any()
    assert np.isfinite(slope(x, y, GRID)).all()


@pytest.mark.usefixtures("x64")
def test_a_nan_poisons_every_energy():
    found = np.asarray(measured(np.where(np.arange(8) == 3, np.nan, X[:8]), *CASE[1:]))
    of_y_alone = 12  # its potential is the one number that x does not enter
    assert (np.isfinite(found) == (np.arange(found.size) == of_y_alone)).all()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_reading_or_weighting_is_refused():
    with pytest.raises(ValueError, match="reading is 'squared'; expected 'pooled', 'literal' or 'scale_free'"):
        energy_gap_from_energies(1.0, 1.0, 1.0, reading=cast(Any, "squared"))
    with pytest.raises(ValueError, match="weights is 'equal'; expected 'pooled' or 'literal'"):
        fused_density(np.ones((2, 3)), np.ones(2), weights=cast(Any, "equal"))
