"""Intervals of proportions equal scipy and statsmodels, and know whose rows they are of."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from fusion_jax.evaluation.proportions import clopper_pearson_interval, clustered_proportion, wilson_interval


@pytest.mark.parametrize(("successes", "rows"), [(0, 7), (43, 48), (48, 48), (956, 1006)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_equal_statsmodels(successes, rows, level):
    for ours, method in ((wilson_interval, "wilson"), (clopper_pearson_interval, "beta")):
        found = ours(successes, rows, level)
        low, high = proportion_confint(successes, rows, alpha=1 - level, method=method)
        assert (found.low, found.high) == pytest.approx((np.clip(low, 0, 1), np.clip(high, 0, 1)), rel=1e-9, abs=1e-12)
        assert found.low_error is None


def test_the_published_accuracy_of_48_patients_has_the_interval_the_spec_names():
    found = clopper_pearson_interval(43, 48)
    assert (round(found.low, 2), round(found.high, 2)) == (0.77, 0.97)


@given(st.integers(0, 40), st.integers(1, 40))
def test_one_row_a_patient_is_wilson(successes, more):
    rows = successes + more
    outcomes = (np.arange(rows) < successes).astype(int)
    expected = binomtest(successes, rows).proportion_ci(0.95, "wilson")
    for patients in (None, [f"p{row}" for row in range(rows)]):
        found = clustered_proportion(outcomes, patients)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
        assert (found.design_effect, found.effective_rows, found.patients) == (1.0, rows, rows)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20), st.integers(2, 5))
def test_copies_of_rows_are_worth_the_single_rows(outcomes, copies):
    outcomes = np.array(outcomes)
    single = clustered_proportion(outcomes)
    copied = clustered_proportion(np.tile(outcomes, copies), np.tile(np.arange(len(outcomes)), copies))
    assert copied.effective_rows == pytest.approx(len(outcomes))
    assert copied.design_effect == pytest.approx(copies)
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high), abs=1e-12)


def test_the_design_effect_is_the_ratio_of_the_two_variances():
    outcomes, patients = np.array([1, 1, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 2, 2, 3])
    found = clustered_proportion(outcomes, patients)
    share = 5 / 8
    residuals = [2 - 3 * share, 0 - 2 * share, 2 - 2 * share, 1 - share]
    assert found.estimate == share
    assert found.design_effect == pytest.approx(sum(np.square(residuals)) / (8 * share * (1 - share)))


def test_rows_of_a_patient_never_add_to_n():
    # Half of every patient's rows are right: rows of a patient differ more than rows of different patients.
    found = clustered_proportion(np.tile([0, 1], 30), np.repeat(np.arange(30), 2))
    assert (found.design_effect, found.effective_rows) == (1.0, 60.0)


def test_equal_outcomes_count_patients_and_not_rows():
    found = clustered_proportion(np.ones(60, int), np.repeat(np.arange(6), 10))
    expected = wilson_interval(6, 6)
    assert found.effective_rows == 6
    assert (found.low, found.high) == pytest.approx((expected.low, 1.0))
    lopsided = clustered_proportion(np.ones(60, int), np.repeat([0, 1], [59, 1]))
    assert lopsided.effective_rows == pytest.approx(3600 / 3482)


def test_what_cannot_be_known_is_nan():
    for found in (wilson_interval(0, 0), clopper_pearson_interval(0, 0), clustered_proportion(np.zeros(0, int))):
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    alone = clustered_proportion(np.array([0, 1, 1]), ["a", "a", "a"])
    assert alone.estimate == pytest.approx(2 / 3)
    assert math.isnan(alone.low)
    assert math.isnan(alone.effective_rows)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(5, 4), "5 of 4 rows; expected a count from 0"),
        (lambda: clopper_pearson_interval(1, 4, 95), "level: 95; expected a fraction"),
        (lambda: clustered_proportion(np.array([0, 1]), None, 0.0), "level: 0.0; expected a fraction"),
        (lambda: clustered_proportion(np.array([0, 3])), "outcomes: found 3"),
        (lambda: clustered_proportion(np.array([0, 1]), ["a"]), "patients: 1 ids for 2 rows"),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def coverage(rounds, patients):
    """How often the clustered interval, and Wilson's of the rows as if independent, hold the true share of 0.8."""
    rng = np.random.default_rng(0)
    clustered = independent = 0
    for _ in range(rounds):
        rows = rng.integers(1, 9, patients)
        own = rng.beta(8, 2, patients)
        outcomes = (rng.random(rows.sum()) < np.repeat(own, rows)).astype(int)
        found = clustered_proportion(outcomes, np.repeat(np.arange(patients), rows))
        plain = wilson_interval(int(outcomes.sum()), len(outcomes))
        clustered += found.low <= 0.8 <= found.high
        independent += plain.low <= 0.8 <= plain.high
    return clustered / rounds, independent / rounds


@pytest.mark.slow
@pytest.mark.parametrize("patients", [30, 100])
def test_the_clustered_interval_covers_as_often_as_it_says(patients):
    clustered, independent = coverage(2000, patients)
    assert clustered == pytest.approx(0.95, abs=0.02)
    assert independent < clustered - 0.02
