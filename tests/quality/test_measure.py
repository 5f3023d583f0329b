from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import jensenshannon

from fusion_jax.quality import (
    cohort_bandwidth,
    fusion_quality,
    masked_positional_encoding,
    measure,
    plan_encoding,
    positional_encoding_vector,
    rescale,
    summarise,
    sweep_gamma,
)
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
CASES = 20  # more than are measured at once
SOURCES = {
    "image": RNG.normal(size=(CASES, 30)),
    "clinical": RNG.uniform(-1.0, 1.0, size=(CASES, 6)),
    "pet": RNG.gamma(2.0, size=(CASES, 12)).clip(0.0, 6.0),
}
WEIGHTS = {"image": RNG.uniform(0.1, 2.0, size=(CASES, 30)), "pet": RNG.integers(0, 2, size=(CASES, 12)) + 0.0}
BANDWIDTH, GRID = 0.5, np.linspace(-8.0, 10.0, 721)
STEP = GRID[1] - GRID[0]

measured = partial(fusion_quality, bandwidth=BANDWIDTH, grid=GRID)


def direct_density(values, weights=None, *, bandwidth=BANDWIDTH, grid=GRID):
    weights = np.ones_like(values) if weights is None else weights
    kernels = np.exp(-0.5 * ((np.asarray(grid)[:, None] - values[None, :]) / bandwidth) ** 2)
    return kernels @ weights / weights.sum() / (bandwidth * np.sqrt(2 * np.pi))


def case_of(result, row):
    rows = jax.tree.map(lambda a: a[row], result._replace(grid=None, bandwidth=None))
    return rows._replace(grid=result.grid, bandwidth=result.bandwidth)


@pytest.fixture(scope="module")
def weighted():
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, measured(SOURCES, weights=WEIGHTS))


# Fusion quality.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", [0, 19])
def test_every_measure_of_a_case_equals_its_formula(weighted, row):
    case = case_of(weighted, row)
    weights = {name: WEIGHTS[name][row] if name in WEIGHTS else np.ones(6) for name in SOURCES}
    density = {name: direct_density(SOURCES[name][row], weights[name]) for name in SOURCES}
    sizes = {name: weights[name].sum() for name in SOURCES}
    total = sum(sizes.values())
    fused = direct_density(
        np.concatenate([SOURCES[name][row] for name in SOURCES]), np.concatenate([weights[name] for name in SOURCES])
    )
    assert_close(case.fused_density, fused, 1e-12)
    energy = {name: np.sum(p**2) * STEP for name, p in density.items()}
    held = {name: sizes[name] ** 2 * energy[name] for name in SOURCES}
    for name, p in density.items():
        assert_close(case.densities[name], p, 1e-12)
        assert_close(case.sizes[name], sizes[name], 1e-12)
        assert_close(case.energies[name], energy[name], 1e-12)
        assert_close(case.energy_shares[name], held[name] / sum(held.values()), 1e-12)
        assert_close(case.overlap[name], np.minimum(p, fused).sum() * STEP, 1e-12)
        assert_close(case.total_variation[name], 0.5 * np.abs(p - fused).sum() * STEP, 1e-12)
        assert_close(case.jensen_shannon[name], jensenshannon(p * STEP, fused * STEP) ** 2, 1e-8)
        balanced = total * energy[name] ** -0.5 / sum(e**-0.5 for e in energy.values())
        assert_close(case.balanced_sizes[name], balanced, 1e-12)
    assert len(case.energy_gap) == 6
    for a, b in case.energy_gap:
        assert_close(case.gamma[a, b], sizes[b] / sizes[a], 1e-12)
        assert_close(case.gamma_star[a, b], np.sqrt(energy[a] / energy[b]), 1e-12)
        assert_close(case.energy_gap[a, b], (held[a] - held[b]) / total**2, 1e-12)
        assert_close(case.scale_free_gap[a, b], (held[a] - held[b]) / (held[a] + held[b]), 1e-12)
    assert float(case.error_bound) == 0.0
    assert_close(case.grid, GRID, 0.0)


@pytest.mark.usefixtures("x64")
def test_one_case_is_a_row_of_a_batch(weighted):
    for row in (3, 17):
        one = measured(
            {name: values[row] for name, values in SOURCES.items()},
            weights={name: values[row] for name, values in WEIGHTS.items()},
        )
        assert_close(one, case_of(weighted, row), 1e-12)


@pytest.mark.usefixtures("x64")
def test_the_order_of_the_mapping_changes_nothing_eager_or_jitted(weighted):
    sources = {name: SOURCES[name] for name in reversed(SOURCES)}
    weights = {name: WEIGHTS[name] for name in reversed(WEIGHTS)}
    assert_close(measured(sources, weights=weights), weighted, 0.0)
    jitted = jax.jit(lambda s, w: measured(s, weights=w))
    assert_close(jitted(sources, weights), weighted, 1e-12)
    assert_close(jitted(SOURCES, WEIGHTS), jitted(sources, weights), 0.0)


@pytest.mark.usefixtures("x64")
def test_gradients_reach_the_features_through_jit():
    image, clinical = SOURCES["image"][0], SOURCES["clinical"][0]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def gap(image, bandwidth):
        case = fusion_quality({"image": image, "clinical": clinical}, bandwidth=bandwidth, grid=GRID)
        return case.energy_gap["image", "clinical"] + case.jensen_shannon["image"] + case.overlap["clinical"]

    slope, slope_of_bandwidth = gap(image, BANDWIDTH)[1]
    direction = np.cos(np.arange(30))
    above, below = (float(gap(image + sign * 1e-5 * direction, BANDWIDTH)[0]) for sign in (1, -1))
    assert_close(slope @ direction, (above - below) / 2e-5, 1e-4)
    above, below = (float(gap(image, BANDWIDTH + sign * 1e-5)[0]) for sign in (1, -1))
    assert_close(slope_of_bandwidth, (above - below) / 2e-5, 1e-4)


@jax.jit
def monitored(image, pet, grid):
    """Quality of live features, and its summary, as a training step would log them.

    All arrays are arguments: JAX 0.10.2 hands a NumPy array that a living jitted function holds as a constant to later
    calls in the precision of that function, whatever the precision then.
    """
    result = fusion_quality({"image": image, "pet": pet}, bandwidth=BANDWIDTH, grid=grid, keep_densities=False)
    return result, summarise(result)


def test_a_nan_that_only_a_trace_hides_poisons_its_case_alone():
    image = np.where((np.arange(CASES) == 7)[:, None], np.nan, SOURCES["image"])
    result, _ = monitored(image, SOURCES["pet"], GRID)
    for name in ("overlap", "total_variation", "jensen_shannon", "energies", "energy_shares"):
        bad = ~np.isfinite(getattr(result, name)["image"])
        assert bad.tolist() == [row == 7 for row in range(CASES)]


@pytest.mark.usefixtures("x64")
def test_a_missing_value_of_weight_zero_is_absent_whatever_stands_there():
    two = {"image": SOURCES["image"][:4], "clinical": SOURCES["clinical"][:4]}
    present = np.ones((4, 7))
    present[:, 6] = 0.0
    for placeholder in (0.0, -999.0):
        filled = two | {"clinical": np.column_stack([two["clinical"], np.full(4, placeholder)])}
        with_missing = fusion_quality(filled, bandwidth="scott", weights={"clinical": present})
        without = fusion_quality(two, bandwidth="scott")
        assert_close(with_missing, without, 1e-9)


@pytest.mark.usefixtures("x64")
def test_a_source_without_any_value_in_a_case_leaves_the_others_finite():
    nothing = {"clinical": np.zeros((CASES, 6))}
    result = measured(SOURCES, weights=nothing)
    for absent in (result.sizes, result.energies, result.energy_shares):
        assert not absent["clinical"].any()
    image, pet = (np.asarray(result.densities[name]) for name in ("image", "pet"))
    fused = (30 * image + 12 * pet) / 42
    assert_close(result.fused_density, fused, 1e-12)
    assert_close(result.overlap["image"], np.minimum(image, fused).sum(axis=1) * STEP, 1e-12)
    held = [(size / 42) ** 2 * np.sum(p**2, axis=1) * STEP for size, p in ((30, image), (12, pet))]
    assert_close(result.energy_gap["image", "pet"], held[0] - held[1], 1e-12)


@pytest.mark.usefixtures("x64")
def test_kernels_of_peak_one_scale_the_energies_and_nothing_else(weighted):
    peak = measured(SOURCES, weights=WEIGHTS, normalise=False)
    factor = 2 * np.pi * BANDWIDTH**2
    scaled = jax.tree.map(lambda a: factor * a, (weighted.energies, weighted.energy_gap))
    assert_close((peak.energies, peak.energy_gap), scaled, 1e-12)
    assert_close(peak._replace(energies={}, energy_gap={}), weighted._replace(energies={}, energy_gap={}), 1e-12)


@pytest.mark.usefixtures("x64")
def test_balanced_sizes_reach_a_target_share(weighted):
    target = {"pet": 0.2, "image": 0.5, "clinical": 0.3}
    result = measured(SOURCES, weights=WEIGHTS, target=target)
    held = {name: result.balanced_sizes[name] ** 2 * result.energies[name] for name in SOURCES}
    for name, share in target.items():
        assert_close(held[name] / sum(held.values()), np.full(CASES, share), 1e-9)
    assert_close(sum(result.balanced_sizes.values()), sum(weighted.sizes.values()), 1e-12)


def test_densities_are_left_out_on_request_and_summaries_are_means():
    result, means = monitored(SOURCES["image"], SOURCES["pet"], GRID)
    assert result.densities == {}
    assert result.fused_density is None
    assert len(means) == 4
    assert_close(means["gamma_star/image/pet"], np.mean(result.gamma_star["image", "pet"]))
    assert_close(means["energy_gap/image/pet"], np.mean(result.energy_gap["image", "pet"]))
    assert_close(means["total_variation/pet"], np.mean(result.total_variation["pet"]))


def test_a_coarse_grid_reports_its_error_under_jit_and_is_refused_before():
    many = {"image": np.tile(SOURCES["image"], 40), "pet": SOURCES["pet"]}
    coarse = np.linspace(-8.0, 10.0, 73)
    with pytest.raises(ValueError, match=r"step of 0\.5 bandwidths"):
        fusion_quality(many, bandwidth=BANDWIDTH, grid=coarse)
    run = jax.jit(lambda s: fusion_quality(s, bandwidth=BANDWIDTH, grid=coarse, method="binned").error_bound)
    assert (np.asarray(run(many)) > 1e-4).all()


def test_a_bandwidth_rule_is_the_median_over_sources_and_cases():
    constant = SOURCES | {"clinical": np.where((np.arange(CASES) == 2)[:, None], 1.0, SOURCES["clinical"])}

    def rule(case):
        reference = scipy.stats.gaussian_kde(case, bw_method="silverman")
        return np.sqrt(reference.covariance[0, 0])

    expected = [rule(case) for values in constant.values() for case in values if np.ptp(case) > 0]
    assert len(expected) == 3 * CASES - 1
    assert np.isclose(cohort_bandwidth(constant, "silverman"), np.median(expected), rtol=1e-12)
    with pytest.raises(ValueError, match="scott needs a source with two different values in a case"):
        cohort_bandwidth({"a": np.ones(3), "b": np.ones(1)}, "scott")


ONE = {"a": np.array([0.0, 1.0]), "b": np.array([0.5, 2.0, 1.0])}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ({"a": ONE["a"]}, {}, r"at least two sources; found \['a'\]"),
        (ONE | {"b": np.zeros((2, 2, 2))}, {}, r"source 'b' has shape \(2, 2, 2\)"),
        (ONE | {"b": np.zeros(0)}, {}, r"source 'b' has shape \(0,\)"),
        (ONE | {"b": np.array(1.0)}, {}, r"source 'b' has shape \(\)"),
        (ONE | {"b": np.ones((2, 3))}, {}, r"number of cases \(a: one case, b: 2\)"),
        ({"a": np.ones((3, 2)), "b": np.ones((2, 3))}, {}, r"number of cases \(a: 3, b: 2\); rows are cases"),
        (ONE | {"a": np.array([0.0, np.nan])}, {}, r"source 'a' holds 1 values that are not finite.*\(1,\)"),
        (ONE | {"a": np.array([0.0, np.inf])}, {}, r"weight 0 for a missing value"),
        (ONE, {"weights": {"c": np.ones(2)}}, r"weights are given for 'c', .* \['a', 'b'\]"),
        (ONE, {"weights": {"a": np.ones(3)}}, r"weights of 'a' have shape \(3,\); its values have \(2,\)"),
        (ONE, {"weights": {"a": np.array([1.0, -1.0])}}, "non-negative"),
        (ONE, {"weights": {"a": np.array([1.0, np.nan])}}, "non-negative"),
        (ONE, {"target": {"a": 1.0}}, r"target .* \['a', 'b'\]"),
        (ONE, {"target": {"a": 1.0, "b": -1.0}}, "positive share"),
        (ONE, {"bandwidth": -1.0}, "expected one positive number"),
        (ONE, {"bandwidth": "thumb"}, "bandwidth rule is 'thumb'; expected a number, 'scott' or 'silverman'"),
        (ONE, {"grid": np.linspace(0.5, 4.0, 500)}, r"grid runs from 0\.5 to 4, feature values from 0 to 2"),
        (ONE, {"grid": np.linspace(-0.5, 2.5, 500)}, "grid runs from"),  # covers the values, not their kernels
        (ONE, {"grid": np.geomspace(0.1, 10.0, 500) - 5.0}, "uniform and increasing"),
        (ONE, {"grid": np.linspace(-5.0, 7.0, 20)}, r"grid of 20 points .* accepted is"),
    ],
)
def test_fusion_quality_refuses_what_it_cannot_measure(sources, settings, message):
    with pytest.raises(ValueError, match=message):
        fusion_quality(sources, **({"bandwidth": 0.5} | settings))


# Rescaling.


@pytest.mark.usefixtures("x64")
def test_rescaling_ignores_values_without_weight():
    values, weights = np.array([1.0, 4.0, 9.0, -50.0]), np.array([1.0, 2.0, 1.0, 0.0])
    mean = np.average(values, weights=weights)
    spread = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    assert_close(rescale(values, "zscore", weights)[:3], (values[:3] - mean) / spread, 1e-12)
    assert_close(rescale(values, "minmax", weights)[:3], (values[:3] - 1.0) / 8.0, 1e-12)
    assert_close(rescale(values, "none", weights), values, 0.0)


def test_a_constant_sample_is_only_centred_and_has_a_finite_gradient():
    for rescaling in ("zscore", "minmax"):
        scaled, pull = jax.vjp(jax.jit(partial(rescale, rescaling=rescaling)), jnp.full(4, 3.0))
        assert scaled.tolist() == [0.0] * 4
        assert np.isfinite(pull(scaled + 1.0)[0]).all()


def test_equal_values_are_only_centred_even_where_their_mean_is_rounded():
    for value in (0.1, -2.3):
        assert np.abs(jax.jit(partial(rescale, rescaling="zscore"))(np.full(1000, value))).max() < 1e-6


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_rescaling_is_refused():
    with pytest.raises(ValueError, match="rescaling is 'log'; expected 'none', 'zscore' or 'minmax'"):
        rescale(np.ones(3), cast(Any, "log"))


# Sweeps over gamma.

X, MARKERS = RNG.normal(size=100), np.array([0.3, 2.0, -1.1])


def direct_sweep(x, y, weights, ratio, grid, bandwidth):
    """What a sweep holds at one gamma, for kernels of peak 1, in NumPy."""
    step, peak = grid[1] - grid[0], np.sqrt(2 * np.pi) * bandwidth
    density_x = direct_density(x, bandwidth=bandwidth, grid=grid)
    density_y = direct_density(y, weights, bandwidth=bandwidth, grid=grid)
    energy_x, energy_y = (np.sum((peak * p) ** 2) * step for p in (density_x, density_y))
    square_x = np.mean((peak * direct_density(x, bandwidth=bandwidth, grid=x)) ** 2)
    square_y = np.average((peak * direct_density(y, weights, bandwidth=bandwidth, grid=y)) ** 2, weights=weights)
    fused = (density_x + ratio * density_y) / (1 + ratio)
    return {
        "energy_x": energy_x,
        "energy_y": energy_y,
        "energy_gap": (energy_x - ratio**2 * energy_y) / (1 + ratio) ** 2,
        "literal_gap": energy_x - energy_y,
        "scale_free_gap": (energy_x - ratio**2 * energy_y) / (energy_x + ratio**2 * energy_y),
        "sample_gap": x.size * (square_x - ratio * square_y),
        "overlap_x": np.minimum(density_x, fused).sum() * step,
        "overlap_y": np.minimum(density_y, fused).sum() * step,
        "total_variation_x": 0.5 * np.abs(density_x - fused).sum() * step,
        "total_variation_y": 0.5 * np.abs(density_y - fused).sum() * step,
        "jensen_shannon_x": jensenshannon(density_x * step, fused * step) ** 2,
        "jensen_shannon_y": jensenshannon(density_y * step, fused * step) ** 2,
        "density_y": density_y,
    }


@pytest.mark.usefixtures("x64")
def test_the_mass_curve_equals_mixtures_computed_directly():
    gammas = np.array([0.01, 0.5, 1.0, 30.0])
    y = SOURCES["clinical"][0]
    sweep = sweep_gamma(X, y, gammas, bandwidth=BANDWIDTH, normalise=False)
    assert sweep.density_y.shape == (1, sweep.grid.size)
    assert_close(sweep.gamma, gammas, 0.0)
    for i, ratio in enumerate(gammas):
        expected = direct_sweep(X, y, np.ones(6), ratio, np.asarray(sweep.grid), BANDWIDTH)
        for name, value in expected.items():
            found = getattr(sweep, name)[0 if name == "density_y" else i]
            assert_close(found, value, 1e-6 if "jensen" in name else 1e-8)


# Whole and fractional, on both sides of the first padded shape of 1,024 coordinates, in no order.
SIZES = np.array([1026.0, 3.0, 301.5, 1026.75, 6.0, 1023.0])


@pytest.fixture(scope="module")
def size_sweep():
    """A sweep in two padded shapes; few sizes are otherwise computed in the largest alone."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MERGED_COORDINATES", 0)
        sweep = sweep_gamma(X, MARKERS, SIZES / X.size, vary="size", bandwidth=BANDWIDTH, normalise=False)
        return jax.tree.map(np.asarray, sweep)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", range(SIZES.size))
def test_the_size_curve_equals_encodings_of_each_size_computed_directly(size_sweep, row):
    size = SIZES[row]
    if size == int(size):
        coordinates = np.asarray(positional_encoding_vector(MARKERS, int(size)))
        weights = np.ones_like(coordinates)
    else:
        each = size / 3
        index = np.arange(int(np.ceil(each)))
        angle = MARKERS[:, None] * 10_000.0 ** (-2 * (index // 2) / each)
        coordinates = np.where(index % 2 == 0, np.sin(angle), np.cos(angle)).ravel()
        weights = np.tile(np.minimum(each - index, 1.0), 3)
    assert np.isclose(weights.sum(), size)
    expected = direct_sweep(X, coordinates, weights, size / X.size, size_sweep.grid, BANDWIDTH)
    for name, value in expected.items():
        assert_close(getattr(size_sweep, name)[row], value, 1e-6 if "jensen" in name else 1e-7)


@pytest.mark.usefixtures("x64")
def test_neither_the_order_of_gammas_nor_the_padded_shapes_matter(size_sweep):
    order = np.array([4, 0, 3, 5, 1, 2])
    shuffled = sweep_gamma(X, MARKERS, SIZES[order] / X.size, vary="size", bandwidth=BANDWIDTH, normalise=False)
    for name, curve in shuffled._asdict().items():
        expected = getattr(size_sweep, name)
        assert_close(curve, expected if name in ("grid", "density_x") else expected[order], 1e-12)


@pytest.mark.parametrize("vary", ["mass", "size"])
def test_several_bandwidths_at_once_equal_one_after_the_other(vary):
    gammas, widths = np.array([0.1, 1.0, 3.0]), np.array([0.3, 0.5])
    together = sweep_gamma(X, MARKERS, gammas, vary=vary, bandwidth=widths)
    for i, width in enumerate(widths):
        alone = sweep_gamma(X, MARKERS, gammas, vary=vary, bandwidth=width, grid=together.grid)
        for name, curve in alone._asdict().items():
            found = getattr(together, name)
            assert_close(found if name in ("grid", "gamma") else found[i], curve, 1e-5)


def test_two_hundred_sizes_are_computed_in_a_few_shapes():
    before = measure._sweep_size._cache_size()
    sweep = sweep_gamma(X, MARKERS, np.geomspace(0.05, 20.0, 200), vary="size", bandwidth=BANDWIDTH)
    assert sweep.energy_gap.shape == (200,)
    assert measure._sweep_size._cache_size() - before <= 2
    again = sweep_gamma(X + 0.01, MARKERS / 2, np.geomspace(0.06, 19.0, 200), vary="size", bandwidth=BANDWIDTH)
    assert again.grid.size == sweep.grid.size
    assert measure._sweep_size._cache_size() - before <= 3  # the number of sizes in a shape may differ


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rescaling", ["zscore", "minmax"])
def test_sources_are_rescaled_before_their_densities(rescaling):
    y, gammas = 40 * SOURCES["clinical"][0] + 7, np.array([0.1, 1.0])
    sweep = sweep_gamma(X, y, gammas, bandwidth=BANDWIDTH, rescaling=rescaling)
    scaled = [(v - v.mean()) / v.std() if rescaling == "zscore" else (v - v.min()) / np.ptp(v) for v in (X, y)]
    for found, values in zip((sweep.density_x, sweep.density_y[0]), scaled, strict=True):
        assert_close(found, direct_density(values, grid=np.asarray(sweep.grid)), 1e-8)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gammas": np.array([0.0, 1.0])}, "gammas have to be positive numbers"),
        ({"gammas": np.array([np.nan])}, "gammas have to be positive numbers"),
        ({"gammas": np.zeros(0)}, "gammas have to be positive numbers"),
        ({"gammas": np.ones((2, 2))}, r"shape \(g,\)"),
        ({"x": np.ones((2, 3)), "y": np.ones((2, 3))}, r"one case, x and y of shapes \(f,\) and \(t,\)"),
        ({"y": np.array([1.0, np.nan])}, "source 'y' holds 1 values that are not finite"),
        ({"vary": "both"}, "vary is 'both'; expected 'mass' or 'size'"),
        ({"bandwidth": np.array([0.5, -0.5])}, "expected one positive number"),
        ({"rescaling": "log"}, "rescaling is 'log'"),
        ({"grid": np.linspace(-0.5, 0.5, 1001)}, "the grid runs from"),
        ({"grid": np.linspace(-3.0, 3.0, 1001)}, "the grid runs from"),  # covers the values, not their kernels
        ({"grid": np.linspace(-0.5, 0.5, 1001), "vary": "size"}, "the grid runs from"),
    ],
)
def test_a_sweep_refuses_what_it_cannot_measure(changes, message):
    arguments = {"x": X, "y": MARKERS, "gammas": np.array([1.0]), "bandwidth": 0.5} | changes
    with pytest.raises(ValueError, match=message):
        sweep_gamma(arguments.pop("x"), arguments.pop("y"), arguments.pop("gammas"), **arguments)


# Planning.


@pytest.fixture(scope="module")
def plan():
    features, values = SOURCES["image"][:2] * 0.7, MARKERS[None, :2] * np.array([[1.0], [0.5]])
    return features, values, plan_encoding(features, values, bandwidth=BANDWIDTH)


@pytest.mark.usefixtures("x64")
def test_a_planned_encoding_balances_the_features(plan):
    features, values, planned = plan

    def mean_gap(size):
        gaps = []
        for case in range(2):
            encoded = np.asarray(positional_encoding_vector(values[case], size))
            grid = np.linspace(-8.0, 8.0, 1601)
            energies = [np.sum(direct_density(v, grid=grid) ** 2) * 0.01 for v in (features[case], encoded)]
            ratio = size / features.shape[1]
            gaps.append((energies[0] - ratio**2 * energies[1]) / (1 + ratio) ** 2)
        return np.mean(gaps)

    assert planned.balanced
    assert planned.size % 4 == 0
    assert planned.gamma == planned.size / 30
    assert np.isclose(planned.energy_gap, mean_gap(planned.size), atol=1e-6)
    assert abs(planned.energy_gap) < 0.01
    assert abs(planned.energy_gap) <= min(abs(mean_gap(planned.size + change)) for change in (-4, 4))
    assert mean_gap(planned.size - 4) > 0 > mean_gap(planned.size + 4)
    assert (planned.sizes % 4 == 0).all()
    assert (np.diff(planned.sizes) > 0).all()
    assert planned.sizes[-1] == 300
    assert "mean over 2 of 2 cases" in planned.assumptions


def test_a_plan_says_when_no_size_balances(plan):
    features, values, _ = plan
    capped = plan_encoding(features[0], values[0], bandwidth=BANDWIDTH, largest_gamma=0.3)
    assert not capped.balanced
    assert capped.size == capped.sizes[-1] == 8
    assert capped.energy_gap > 0
    with pytest.raises(ValueError, match=r"2 markers need at least 4 coordinates.*Raise `largest_gamma`"):
        plan_encoding(features[0], values[0], bandwidth=BANDWIDTH, largest_gamma=0.1)


def test_a_plan_uses_the_encoding_it_is_given(plan):
    features, values, planned = plan

    def shrunk(y, size, padded_size):
        coordinates, weights = masked_positional_encoding(y, size, padded_size)
        return 0.1 * coordinates, weights  # nearly one value, hence of more energy

    denser = plan_encoding(features, values, bandwidth=BANDWIDTH, encode=shrunk)
    assert denser.balanced
    assert denser.size < planned.size


@pytest.mark.usefixtures("unchecked")
def test_an_exact_density_on_a_grid_too_coarse_to_integrate_over_is_refused():
    sources = {"x": np.array([0.0, 10.0, 20.0]), "y": np.array([0.5, 0.6])}
    with pytest.raises(ValueError, match="too coarse to integrate over"):
        fusion_quality(sources, bandwidth=0.1, grid_size=40, method="exact")
