import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from fusion_jax.quality import (
    bandwidth_stability,
    dominant_source,
    energy_gap_from_energies,
    fusion_quality,
    outcome_null,
    pairing_null,
)

GRID = np.linspace(-8.0, 8.0, 641)
PAIR = ("a", "b")


def cohort(seed, related, cases=12):
    """Two sources whose centre and spread differ between cases, together or not."""
    random = np.random.default_rng(seed)
    centre_a, spread_a, centre_b, spread_b = random.uniform(0.5, 1.5, (4, cases))
    if related:
        centre_b, spread_b = centre_a, spread_a
    a = centre_a[:, None] + spread_a[:, None] * random.normal(size=(cases, 20))
    b = centre_b[:, None] + spread_b[:, None] * random.normal(size=(cases, 20))
    return fusion_quality({"a": a.clip(-5, 5), "b": b.clip(-5, 5)}, bandwidth=0.5, grid=GRID)


# Pairing of sources.


@pytest.mark.parametrize("statistic", ["total_variation", "energy_gap"])
def test_the_pairing_null_detects_sources_that_resemble_each_other_within_cases(key, statistic):
    quality = cohort(0, related=True)
    found = pairing_null(quality, PAIR, key, statistic=statistic, permutations=199)
    assert found.p_value == 1 / 200
    assert found.statistic < found.null.min()
    assert found.null.shape == (199,)
    assert found.cases == 12
    assert "a and b are paired at random" in found.hypothesis


@pytest.mark.parametrize("statistic", ["total_variation", "energy_gap"])
def test_the_pairing_null_is_the_statistic_over_random_pairings(key, statistic):
    quality = cohort(1, related=False, cases=4)
    found = pairing_null(quality, PAIR, key, statistic=statistic, permutations=64)
    a, b = (np.asarray(quality.densities[name]) for name in PAIR)
    energy_a, energy_b = (np.sum(p**2, axis=1) * 0.025 for p in (a, b))
    pairings = [list(order) for order in itertools.permutations(range(4))]
    if statistic == "total_variation":
        possible = [0.5 * np.abs(a - b[order]).sum(axis=1).mean() * 0.025 for order in pairings]
    else:
        possible = [np.mean(np.abs(energy_a - energy_b[order]) / 4) for order in pairings]
    assert np.isclose(found.statistic, possible[0], rtol=1e-5)
    nearest = np.abs(found.null[:, None] - np.array(possible)[None, :])
    assert nearest.min(axis=1).max() < 1e-6
    assert np.unique(nearest.argmin(axis=1)).size > 5
    extreme = np.abs(found.null - found.null.mean()) >= abs(found.statistic - found.null.mean()) * (1 - 1e-6)
    assert abs(found.p_value - (1 + extreme.sum()) / 65) <= 1 / 65
    assert found.p_value > 0.05


def test_the_mean_signed_gap_does_not_depend_on_the_pairing_but_its_magnitude_does():
    quality = cohort(2, related=True)
    energies = [np.asarray(quality.energies[name], float) for name in PAIR]
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(20)]
    signed, absolute = (
        [
            np.mean(energy_gap_from_energies(energies[0], energies[1][order], np.ones(12), absolute=size))
            for order in orders
        ]
        for size in (False, True)
    )
    assert np.ptp(signed) < 1e-6
    assert np.ptp(absolute) > 1e-3


def test_one_permutation_can_prove_nothing(key):
    """Exact: data and one re-pairing lie equally far from the mean of both, whatever they are."""
    found = pairing_null(cohort(0, related=True), PAIR, key, permutations=1)
    assert found.p_value == 1.0


@pytest.mark.usefixtures("unchecked")
def test_the_pairing_null_refuses_one_case_lost_densities_and_unknown_names(key):
    quality = cohort(0, related=True)
    with pytest.raises(ValueError, match="at least two cases; found one"):
        pairing_null(quality._replace(densities={n: d[0] for n, d in quality.densities.items()}), PAIR, key)
    with pytest.raises(ValueError, match=r"no densities of \['a', 'b'\]; measure with keep_densities=True"):
        pairing_null(quality._replace(densities={}), PAIR, key)
    with pytest.raises(ValueError, match=r"no densities of \['c'\]"):
        pairing_null(quality, ("a", "c"), key)
    with pytest.raises(ValueError, match="statistic is 'overlap'; expected 'total_variation' or 'energy_gap'"):
        pairing_null(quality, PAIR, key, statistic=cast(Any, "overlap"))


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["total_variation", "energy_gap"])
def test_p_values_of_the_pairing_null_are_uniform_without_a_relation(key, statistic):
    """120 cohorts: the share below 0.05 lies within [0.01, 0.10], and a Kolmogorov-Smirnov test does not object."""
    found = np.array(
        [
            pairing_null(
                cohort(seed, related=False), PAIR, jax.random.fold_in(key, seed), statistic=statistic, permutations=99
            ).p_value
            for seed in range(120)
        ]
    )
    assert 0.01 <= np.mean(found <= 0.05) <= 0.10
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


# Outcome.


def test_the_outcome_null_is_the_area_under_the_roc_curve_over_permuted_cases():
    random = np.random.default_rng(0)
    outcome = np.arange(30) < 11
    values = np.round(outcome + random.normal(size=30), 0)  # with ties
    found = outcome_null(values, outcome, permutations=499)
    assert np.isclose(found.statistic, roc_auc_score(outcome, values), rtol=1e-12)
    assert np.isclose(found.null.mean(), 0.5, atol=0.02)
    assert np.unique(found.null).size > 20
    exact = scipy.stats.mannwhitneyu(values[outcome], values[~outcome], method="asymptotic").pvalue
    assert np.isclose(found.p_value, exact, atol=0.03)
    assert found.cases == 30
    assert found.hypothesis.startswith("the outcome is exchangeable across cases (")


def test_the_outcome_null_is_two_sided_and_follows_its_seed():
    outcome, values = np.arange(30) < 11, np.arange(30.0)
    assert outcome_null(values, outcome).p_value == outcome_null(-values, outcome).p_value == 1 / 1000
    assert outcome_null(values, outcome).statistic == 0.0
    noise = np.random.default_rng(3).normal(size=30)
    one, other = (outcome_null(noise, outcome, seed=seed) for seed in (0, 1))
    assert (one.null == outcome_null(noise, outcome, seed=0).null).all()
    assert (one.null != other.null).any()


def confounded(seed, cases=60):
    """A covariate that moves both the value and the chance of the outcome; nothing else relates the two."""
    random = np.random.default_rng(seed)
    covariate = random.normal(size=cases)
    values = 2 * covariate + random.normal(size=cases)
    return values, random.uniform(size=cases) < 1 / (1 + np.exp(-2 * covariate)), covariate[:, None]


def test_adjusting_removes_a_confounded_relation_and_keeps_a_direct_one():
    values, outcome, covariate = confounded(0)
    assert outcome_null(values, outcome).p_value < 0.01
    adjusted = outcome_null(values, outcome, covariates=covariate)
    assert adjusted.p_value > 0.1
    assert "given 1 covariates" in adjusted.hypothesis
    assert outcome_null(values + 2 * outcome, outcome, covariates=covariate).p_value < 0.01


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_value_that_the_covariates_explain_wholly_has_no_relation_left(scale):
    covariate = np.random.default_rng(0).normal(size=(40, 1))
    found = outcome_null(scale * covariate[:, 0] + 100, covariate[:, 0] > 0, covariates=covariate)
    assert found.statistic == 0.5
    assert found.p_value == 1.0


def test_the_outcome_null_keeps_its_level():
    """400 cohorts without a relation: the share of p-values below 0.05 is 0.05 with a standard error of 0.011."""
    outcome = np.arange(30) < 11
    random = np.random.default_rng(0)
    found = [outcome_null(random.normal(size=30), outcome, permutations=199, seed=seed).p_value for seed in range(400)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_the_adjusted_outcome_null_does_not_exceed_its_level():
    found = []
    for seed in range(300):
        values, outcome, covariate = confounded(seed)
        found.append(outcome_null(values, outcome, covariates=covariate, permutations=199, seed=seed).p_value)
    assert np.mean(np.array(found) <= 0.05) <= 0.08


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "outcome", "covariates", "message"),
    [
        (np.ones(4), np.array([True, False]), None, r"shapes \(4,\) and \(2,\); expected \(cases,\) twice"),
        (np.ones((2, 2)), np.ones((2, 2), bool), None, "expected"),
        (np.array([1.0, np.nan, 2.0]), np.array([True, False, True]), None, "values of 1 cases are not finite"),
        (np.arange(3.0), np.array([True, True, True]), None, "all 3 cases have the same outcome"),
        (np.arange(3.0), np.array([False, False, False]), None, "a relation needs both"),
        (np.arange(3.0), np.array([True, False, True]), np.array([[1.0], [np.nan], [2.0]]), "finite"),
        (np.arange(3.0), np.array([True, False, True]), np.ones((2, 1)), r"covariates have shape \(2, 1\)"),
    ],
)
def test_the_outcome_null_refuses_what_it_cannot_test(values, outcome, covariates, message):
    with pytest.raises(ValueError, match=message):
        outcome_null(values, outcome, covariates=covariates)


# Stability over bandwidths.

# Few values in a tight cluster hold more energy under a narrow kernel, many scattered ones under a wide kernel.
TIGHT_AND_WIDE = {"tight": np.linspace(-0.05, 0.05, 7), "wide": np.linspace(-2.0, 2.0, 10)}


def test_a_conclusion_that_flips_within_a_factor_of_two_is_unstable():
    found = bandwidth_stability(TIGHT_AND_WIDE, 0.6)
    assert found.conclusions[0] == "tight"
    assert found.conclusions[-1] == "wide"
    assert not found.stable
    assert np.allclose(found.bandwidths[[0, 3, 6]], [0.3, 0.6, 1.2])
    for bandwidth, conclusion in zip(found.bandwidths, found.conclusions, strict=True):
        assert dominant_source(fusion_quality(TIGHT_AND_WIDE, bandwidth=bandwidth, grid=GRID)) == conclusion


def test_a_conclusion_that_holds_throughout_is_stable_and_weights_count():
    found = bandwidth_stability(TIGHT_AND_WIDE, 0.1, count=3)
    assert found.conclusions == ("tight",) * 3
    assert found.stable
    light = {"tight": np.full(7, 0.05)}
    assert bandwidth_stability(TIGHT_AND_WIDE, 0.1, weights=light, count=3).conclusions == ("wide",) * 3


def test_what_stands_for_a_missing_value_does_not_stretch_the_grid_of_the_check():
    with_missing = TIGHT_AND_WIDE | {"wide": np.append(TIGHT_AND_WIDE["wide"], -1e9)}
    present = {"wide": np.append(np.ones(10), 0.0)}
    assert bandwidth_stability(with_missing, 0.1, weights=present, count=3).conclusions == ("tight",) * 3


def test_any_conclusion_can_be_checked():
    found = bandwidth_stability(
        TIGHT_AND_WIDE, 0.6, conclude=lambda q: bool(q.overlap["wide"] > 0.5), count=3, factor=4.0
    )
    assert np.allclose(found.bandwidths, [0.15, 0.6, 2.4])
    assert set(found.conclusions) <= {True, False}


def test_the_dominant_source_has_the_largest_mean_share():
    quality = cohort(0, related=False)
    shares = {"a": jnp.array([0.9, 0.2, 0.3]), "b": jnp.array([0.1, 0.8, 0.7])}
    assert dominant_source(quality._replace(energy_shares=shares)) == "b"


@pytest.mark.usefixtures("unchecked")
def test_an_outcome_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="expected False and True"):
        outcome_null(np.arange(3.0), np.array([0.0, 1.0, np.nan]))
