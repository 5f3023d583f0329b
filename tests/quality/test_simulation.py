from typing import Any, cast

import jax
import numpy as np
import pytest

from fusion_jax.quality import fused_density, gaussian_process, overlap, simulate, simulation, sparse_samples
from tests.helpers import assert_close

GAMMAS = (0.01, 0.1, 0.5, 1.0, 10.0, 100.0)
BANDWIDTHS = (0.2, 0.5, 1.0, 2.0)
KEYS = 3


@pytest.fixture(scope="module")
def raw(key):
    """The paper-like setting (spec section 4.1) for three keys; curves have shape (bandwidth, gamma)."""
    runs = [simulate(jax.random.fold_in(key, i), bandwidth=np.array(BANDWIDTHS)) for i in range(KEYS)]
    return [jax.tree.map(np.asarray, run) for run in runs]


@pytest.fixture(scope="module")
def standardised(key):
    sizes = (10.0, 100.0, 500.0, 1000.0, 10_000.0)
    return [
        simulate(jax.random.fold_in(key, i), sizes=sizes, bandwidth=1.0, rescaling="zscore").sweep for i in range(KEYS)
    ]


def gaps(runs, bandwidth, reading="energy_gap"):
    """Absolute gaps, shape (key, gamma)."""
    return np.abs([getattr(run.sweep, reading)[BANDWIDTHS.index(bandwidth)] for run in runs])


# The published behaviour.


@pytest.mark.parametrize(("bandwidth", "at"), [(0.2, 0.5), (0.5, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_the_gap_is_smallest_at_gamma_one_in_the_paper_like_setting_and_at_one_half_for_a_narrow_kernel(
    raw, bandwidth, at
):
    assert [GAMMAS[i] for i in gaps(raw, bandwidth).argmin(axis=1)] == [at] * KEYS


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_the_gap_is_a_v_in_gamma(raw, bandwidth):
    for run in raw:
        signed = run.sweep.energy_gap[BANDWIDTHS.index(bandwidth)]
        size, lowest = np.abs(signed), np.abs(signed).argmin()
        assert (np.diff(size[: lowest + 1]) <= 0).all()
        assert (np.diff(size[lowest:]) >= 0).all()
        assert signed[0] > 0 > signed[-1]


# Spec 4.1, means over three keys as ours are. Tolerances are three standard errors of a difference between two such
# means, 2.5 standard deviations over keys. Those, measured on 12 keys: pooled gaps 0.8 % (1 and 2 thousandths where
# small), sample gaps 0.9, 4 and 7.5 by bandwidth, overlaps 0.009, energies 1.3 %; standardised 0.3 % and 3.6.
POOLED = {
    0.2: (0.069, 0.057, 0.012, 0.026, 0.143, 0.171),
    0.5: (0.393, 0.326, 0.110, 0.053, 0.502, 0.600),
    1.0: (1.236, 1.029, 0.385, 0.080, 1.297, 1.551),
}
SAMPLE = {
    0.2: (21, 0.74, 93, 211, 2319, 23408),
    0.5: (124, 94.7, 35.5, 198, 3132, 32527),
    1.0: (353, 295, 34, 293, 6167, 65008),
}
OVERLAPS = (
    (0.997, 0.973, 0.903, 0.854, 0.735, 0.710),
    (0.711, 0.734, 0.805, 0.854, 0.973, 0.997),
)
SCALE_FREE = (1.000, 0.970, 0.448, -0.208, -0.987, -1.000)


@pytest.mark.parametrize("bandwidth", POOLED)
def test_gaps_of_raw_sources_equal_the_table(raw, bandwidth):
    assert np.allclose(gaps(raw, bandwidth).mean(axis=0), POOLED[bandwidth], rtol=0.02, atol=0.006)
    slack = {0.2: 2.5, 0.5: 10, 1.0: 18}[bandwidth]
    assert np.allclose(gaps(raw, bandwidth, "sample_gap").mean(axis=0), SAMPLE[bandwidth], rtol=0.01, atol=slack)


def test_energies_literal_gaps_and_overlaps_of_raw_sources_equal_the_table(raw):
    at = BANDWIDTHS.index(0.5)

    def mean(name):
        return np.mean([getattr(run.sweep, name)[at] for run in raw], axis=0)

    assert np.allclose(mean("energy_x"), 0.401, rtol=0.03)
    assert np.allclose(mean("energy_y"), (0.623, 0.612, 0.611, 0.611, 0.611, 0.612), atol=0.004)
    assert np.allclose(np.abs(mean("literal_gap")), (0.222, 0.211, 0.210, 0.210, 0.210, 0.211), atol=0.015)
    assert np.allclose(mean("scale_free_gap"), SCALE_FREE, atol=0.03)
    assert np.allclose([mean("overlap_x"), mean("overlap_y")], OVERLAPS, atol=0.022)


def test_gaps_of_standardised_sources_equal_the_table(standardised):
    pooled = np.mean([np.abs(sweep.energy_gap) for sweep in standardised], axis=0)
    sample = np.mean([np.abs(sweep.sample_gap) for sweep in standardised], axis=0)
    assert np.allclose(pooled, (1.231, 1.028, 0.424, 0.011, 0.992), rtol=0.01, atol=0.002)
    assert np.allclose(sample, (353, 324, 196, 35, 2856), atol=9)
    assert all(np.abs(sweep.energy_gap).argmin() == 3 for sweep in standardised)


def test_the_fused_density_tends_to_the_larger_source_and_is_equally_far_at_gamma_one(raw):
    for run in raw:
        assert (run.sweep.overlap_x[:, 0] >= 0.99).all()
        assert (run.sweep.overlap_y[:, -1] >= 0.99).all()
        one = GAMMAS.index(1.0)
        assert_close(run.sweep.overlap_x[:, one], run.sweep.overlap_y[:, one], 1e-5)
        assert_close(run.sweep.total_variation_x[:, one], run.sweep.total_variation_y[:, one], 1e-4)


def test_literal_weights_cannot_show_the_published_overlaps(raw):
    """Spec A2: under Eq. 10 as printed no size brings the fused density nearer to either source."""
    at = BANDWIDTHS.index(0.5)
    for run in raw:
        x, step = run.sweep.density_x[at], run.sweep.grid[1] - run.sweep.grid[0]
        literal, pooled = (
            np.array(
                [
                    overlap(fused_density(np.stack([x, y]), np.array([1.0, g]), weights=weights), x, grid_step=step)
                    for g, y in zip(GAMMAS, run.sweep.density_y[at], strict=True)
                ]
            )
            for weights in ("literal", "pooled")
        )
        assert np.ptp(literal) < 0.02
        assert np.ptp(pooled) > 0.2
        assert_close(pooled, run.sweep.overlap_x[at], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rescaling", "bandwidths", "smallest", "crossing"),
    [
        ("none", (0.1, 0.2, 0.5, 1.0, 2.0), (0.5, 0.5, 1.0, 1.0, 1.0), (0.46, 0.64, 0.81, 0.89, 0.96)),
        ("zscore", (0.2, 0.5, 1.0, 2.0), (0.5, 1.0, 1.0, 1.0), (0.65, 0.94, 1.02, 1.00)),
        ("minmax", (0.1, 0.2, 0.5, 1.0), (1.0, 1.0, 1.0, 1.0), (1.09, 1.28, 1.17, 1.05)),
    ],
)
def test_the_smallest_gap_moves_with_scaling_and_bandwidth_as_tabulated(key, rescaling, bandwidths, smallest, crossing):
    """Spec 4.2; the crossing of one key scatters by about 0.1 (min-max, which hangs on two extremes: 0.2)."""
    sweep = simulate(key, bandwidth=np.array(bandwidths), rescaling=rescaling).sweep
    assert [GAMMAS[i] for i in np.abs(sweep.energy_gap).argmin(axis=1)] == list(smallest)
    at_one = GAMMAS.index(1.0)
    found = np.sqrt(sweep.energy_x[:, at_one] / sweep.energy_y[:, at_one])
    assert np.allclose(found, crossing, atol=0.25 if rescaling == "minmax" else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("length_scale", "crossing"), [(10.0, 0.85), (50.0, 0.89), (200.0, 0.93)])
def test_smooth_paths_show_the_same_v(key, length_scale, crossing):
    """Spec 4.2; a path of few independent stretches scatters, by about 0.15 over keys at a length scale of 200."""
    runs = [
        simulate(jax.random.fold_in(key, i), covariance="rbf", length_scale=length_scale).sweep for i in range(KEYS)
    ]
    for sweep in runs:
        lowest = int(np.abs(sweep.energy_gap).argmin())
        assert (np.diff(np.abs(sweep.energy_gap)[: lowest + 1]) <= 0).all()
        assert (np.diff(np.abs(sweep.energy_gap)[lowest:]) >= 0).all()
    found = np.mean([np.sqrt(sweep.energy_x[3] / sweep.energy_y[3]) for sweep in runs])
    assert abs(found - crossing) < 0.2


# How draws and iterations are combined.

ITERATIONS, SIZE = 7, 9


def handed_to_the_sweep(monkeypatch, **settings):
    """The simulated case, and what `simulate` hands to its sweep over sizes."""
    handed = {}

    def sweep_gamma(x, y, gammas, **rest):
        handed.update(x=x, y=y, gammas=gammas, **rest)

    monkeypatch.setattr(simulation, "sweep_gamma", sweep_gamma)
    case = simulate(jax.random.key(0), size_x=40, sizes=(SIZE,), iterations=ITERATIONS, **settings)
    return case, handed


def captured(monkeypatch, **settings):
    """The simulated case, and the coordinates and weights of its encoding at the one size asked for."""
    case, handed = handed_to_the_sweep(monkeypatch, **settings)
    encode = jax.jit(lambda y, size: handed["encode"](y, size, 12))
    coordinates, weights = encode(handed["y"], np.asarray(float(SIZE)))
    assert_close(handed["x"], case.x, 0.0)
    assert_close(handed["gammas"], np.array([SIZE / 40]))
    assert handed["vary"] == "size"
    assert 12 % handed["markers"] == 0
    return case, np.asarray(coordinates), np.asarray(weights)


def direct_encodings(draws, size):
    """Positional encodings of all draws, shape (iterations, markers, size), in NumPy."""
    pair = np.arange(size) // 2
    angle = np.asarray(draws)[..., None] * 10_000.0 ** (-2 * pair / size)
    return np.where(np.arange(size) % 2 == 0, np.sin(angle), np.cos(angle))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("combine", ["mean", "sum", "single", "concat"])
def test_encodings_are_averaged_over_iterations_as_asked(monkeypatch, combine):
    case, coordinates, weights = captured(monkeypatch, combine=combine)
    assert case.draws.shape == (1 if combine == "single" else ITERATIONS, 3)
    if combine == "concat":
        expected = direct_encodings(case.draws, SIZE // 3).mean(axis=0).ravel()
    else:
        per_iteration = direct_encodings(case.draws, SIZE).mean(axis=1)
        expected = per_iteration.mean(axis=0) * (3 if combine == "sum" else 1)
    assert weights.sum() == SIZE
    assert_close(coordinates[weights == 1.0], expected, 1e-10)


@pytest.mark.usefixtures("x64")
def test_densities_are_averaged_by_keeping_every_iteration(monkeypatch):
    case, coordinates, weights = captured(monkeypatch, average="density")
    expected = direct_encodings(case.draws, SIZE).mean(axis=1)
    kept = coordinates[weights == 1.0].reshape(ITERATIONS, SIZE)
    assert_close(kept, expected, 1e-10)
    assert np.unique(weights).tolist() == [0.0, 1.0]
    # Spec A10 and I9: the spread over iterations, which averaged encodings lose.
    assert kept.std(axis=0)[0] > 0.2


# Paths and draws.


@pytest.mark.parametrize("covariance", ["white", "rbf"])
def test_paths_have_unit_variance_and_the_stated_covariance(key, covariance):
    """With 20,000 paths the standard error of a covariance is at most 0.01."""
    draw = jax.jit(jax.vmap(lambda k: gaussian_process(k, 8, covariance=covariance, length_scale=3.0)))
    paths = np.asarray(draw(jax.random.split(key, 20_000)))
    distance = np.arange(8)[:, None] - np.arange(8)[None, :]
    expected = np.eye(8) if covariance == "white" else np.exp(-(distance**2) / (2 * 3.0**2))
    assert np.abs(np.cov(paths.T) - expected).max() < 0.045
    assert np.abs(paths.mean(axis=0)).max() < 0.03


def test_a_long_smooth_path_is_finite_and_smooth(key):
    path = np.asarray(gaussian_process(key, 400, covariance="rbf", length_scale=50.0))
    assert np.isfinite(path).all()
    assert np.abs(np.diff(path)).max() < 0.15  # steps of standard deviation 1/50
    assert 0.2 < path.std() < 2.0


def test_samples_of_an_iteration_are_different_values_of_the_path(key):
    draws = np.asarray(sparse_samples(key, np.arange(10.0), 2000, 3))
    assert draws.shape == (2000, 3)
    assert (np.sort(draws, axis=1)[:, 1:] != np.sort(draws, axis=1)[:, :-1]).all()
    counts = np.bincount(draws.astype(int).ravel(), minlength=10)
    assert np.abs(counts / 600 - 1).max() < 0.2  # standard error 4 %


def test_the_same_key_gives_the_same_path_and_draws_in_every_setting(monkeypatch):
    first, _ = handed_to_the_sweep(monkeypatch)
    for settings in ({"combine": "sum"}, {"average": "density"}, {"base": 100.0}):
        other, _ = handed_to_the_sweep(monkeypatch, **settings)
        assert_close((other.x, other.draws), (first.x, first.draws), 0.0)
    single, _ = handed_to_the_sweep(monkeypatch, combine="single")
    assert_close(single.draws, first.draws[:1], 0.0)
    assert np.isin(first.draws, first.x).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_x": 2}, "3 markers cannot be drawn from 2 features"),
        ({"combine": "median"}, "combine is 'median'; expected 'mean', 'concat', 'sum' or 'single'"),
        ({"average": "energy"}, "average is 'energy'; expected 'encoding' or 'density'"),
        ({"average": "density", "combine": "sum"}, "densities are averaged over iterations for combine='mean'"),
        ({"covariance": "linear"}, "covariance is 'linear'; expected 'white' or 'rbf'"),
    ],
)
def test_a_simulation_refuses_what_it_cannot_make(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(jax.random.key(0), **cast(Any, {"size_x": 20, "iterations": 4} | settings))
