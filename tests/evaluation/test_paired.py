"""McNemar and the adjustments equal statsmodels; per-fold tests take per-fold values and nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from fusion_jax.evaluation.paired import benjamini_hochberg, clustered_mcnemar, corrected_t_test, holm, mcnemar


def decisions(both, first_only, second_only, neither):
    kinds = np.repeat(np.arange(4), [both, first_only, second_only, neither])
    return np.isin(kinds, [0, 1]).astype(int), np.isin(kinds, [0, 2]).astype(int)


@pytest.mark.parametrize("table", [(10, 9, 2, 3), (0, 6, 5, 1), (4, 1, 0, 0), (30, 0, 40, 30), (1, 5, 5, 0)])
def test_mcnemar_equals_statsmodels(table):
    both, first_only, second_only, neither = table
    found = mcnemar(*decisions(*table))
    assert (found.both, found.first_only, found.second_only, found.neither) == table
    square = [[both, first_only], [second_only, neither]]
    assert found.exact_p == pytest.approx(statsmodels_mcnemar(square, exact=True).pvalue, rel=1e-9)
    asymptotic = statsmodels_mcnemar(square, exact=False, correction=False)
    assert (found.chi_squared, found.chi_squared_p) == pytest.approx((asymptotic.statistic, asymptotic.pvalue))
    assert found.difference == pytest.approx((first_only - second_only) / sum(table))


def test_mid_p_is_the_exact_p_less_the_probability_of_the_table():
    # Fagerland 2013, Eq. 5: of 1 and 7 discordant pairs, exact 0.0703 and mid-p 0.0391.
    found = mcnemar(*decisions(3, 1, 7, 5))
    assert found.exact_p == pytest.approx(18 / 256)
    assert found.mid_p == pytest.approx(10 / 256)
    balanced = mcnemar(*decisions(3, 2, 2, 5))
    assert (balanced.exact_p, balanced.mid_p) == (1.0, 1 - 6 / 32)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=20))
def test_the_order_of_models_changes_only_the_sign(rows):
    first, second = np.array(rows, int).reshape(-1, 2).T
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert (one.exact_p, one.mid_p, one.chi_squared) == (other.exact_p, other.mid_p, other.chi_squared)
    assert 0 < one.mid_p <= one.exact_p <= 1
    if rows:
        assert one.difference == -other.difference


def test_models_that_agree_everywhere_have_p_1():
    same = np.array([0, 1, 1])
    found, over_patients = mcnemar(same, same), clustered_mcnemar(same, same, ["a", "a", "b"])
    assert (found.exact_p, found.mid_p, found.chi_squared, found.chi_squared_p) == (1, 1, 0, 1)
    assert (over_patients.chi_squared, over_patients.p_value, over_patients.standard_error) == (0, 1, 0)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=20), st.integers(1, 4))
def test_over_patients_copies_are_worth_the_single_rows(rows, copies):
    first, second = np.array(rows).T
    single = mcnemar(first, second)
    patients = np.tile(np.arange(len(rows)), copies)
    found = clustered_mcnemar(np.tile(first, copies), np.tile(second, copies), patients)
    assert found.chi_squared == pytest.approx(single.chi_squared)
    assert found.p_value == pytest.approx(single.chi_squared_p)
    assert found.difference == pytest.approx(single.difference)
    assert found.first_only == copies * single.first_only


def test_over_patients_the_statistic_is_obuchowskis_but_for_her_factor():
    # Five patients; rows that only the first, and only the second, calls positive.
    first_only, second_only = np.array([3, 0, 1, 2, 0]), np.array([0, 1, 1, 0, 1])
    first = np.concatenate([[1] * a + [0] * b for a, b in zip(first_only, second_only, strict=True)])
    patients = np.repeat(np.arange(5), first_only + second_only)
    found = clustered_mcnemar(first.astype(int), 1 - first.astype(int), patients)
    published = (4 / 5) * (first_only - second_only).sum() ** 2 / ((first_only - second_only) ** 2).sum()
    assert found.chi_squared == pytest.approx(published * 5 / 4)
    assert (found.discordant_patients, found.patients) == (4, 5)


def test_rows_of_few_patients_cannot_make_a_difference_significant():
    first, second = decisions(20, 30, 0, 10)
    patients = np.array([0] * 20 + [1] * 15 + [2] * 15 + [3] * 10)
    assert mcnemar(first, second).mid_p < 1e-8
    assert clustered_mcnemar(first, second, patients).p_value > 0.1


@pytest.mark.slow
def test_the_test_over_patients_keeps_its_level():
    rng = np.random.default_rng(0)
    clustered = independent = 0
    for _ in range(3000):
        rows = rng.integers(1, 9, 60)
        patients = np.repeat(np.arange(60), rows)
        chance = rng.beta(2, 1, (2, 60))[:, patients]
        first, second = (rng.random((2, len(patients))) < chance).astype(int)
        clustered += clustered_mcnemar(first, second, patients).p_value < 0.05
        independent += mcnemar(first, second).chi_squared_p < 0.05
    assert clustered / 3000 == pytest.approx(0.05, abs=0.015)
    assert independent / 3000 > 0.1


FIRST = np.array([0.80, 0.75, 0.85, 0.78, 0.80])
SECOND = np.array([0.76, 0.74, 0.78, 0.77, 0.77])


def test_the_corrected_t_is_the_paired_t_with_a_larger_variance():
    found = corrected_t_test(FIRST, SECOND, n_test=[20] * 5, n_train=[80] * 5)
    plain = ttest_1samp(FIRST - SECOND, 0)
    assert found.t == pytest.approx(plain.statistic * math.sqrt((1 / 5) / (1 / 5 + 0.25)))
    assert (found.folds, found.degrees, found.ratio, found.n_test, found.n_train) == (5, 4, 0.25, 20, 80)
    assert found.sd == pytest.approx(np.std(FIRST - SECOND, ddof=1))
    assert found.p_value > plain.pvalue
    assert found.low < 0 < found.difference < found.high
    without = corrected_t_test(FIRST, SECOND, n_test=[1] * 5, n_train=[10**9] * 5)
    assert (without.t, without.p_value) == pytest.approx((plain.statistic, plain.pvalue))
    low, high = plain.confidence_interval()
    assert (without.low, without.high) == pytest.approx((low, high))


def test_differences_without_spread_are_none_or_unknown():
    same = corrected_t_test(FIRST, FIRST, n_test=[20] * 5, n_train=[80] * 5)
    assert (same.t, same.p_value, same.low, same.high) == (0, 1, 0, 0)
    shifted = corrected_t_test(FIRST + 0.1, FIRST, n_test=[20] * 5, n_train=[80] * 5)
    assert shifted.difference == pytest.approx(0.1)
    assert math.isnan(shifted.p_value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"first": np.linspace(0, 1, 100), "second": np.linspace(0, 1, 100)},
            "100 and 100 values for 5 test .* one value",
        ),
        ({"second": SECOND[:4]}, "5 and 4 values"),
        ({"first": FIRST[:1], "second": SECOND[:1], "n_test": [20], "n_train": [80]}, "1 fold; .* at least 2"),
        ({"first": np.array([0.8, np.nan, 0.7, np.nan, 0.8])}, "no value in fold 1, 3: a class is missing there"),
        ({"n_test": [0] * 5}, "test sets of 0 .* at least 1 patient"),
        ({"n_train": 80}, "expected one value a fold each"),
        ({"level": 95}, "level: 95"),
    ],
)
def test_anything_but_one_value_a_fold_is_refused(changed, message):
    arguments = {"first": FIRST, "second": SECOND, "n_test": [20] * 5, "n_train": [80] * 5} | changed
    with pytest.raises(ValueError, match=message):
        corrected_t_test(arguments.pop("first"), arguments.pop("second"), **arguments)


@pytest.mark.slow
def test_the_correction_keeps_the_level_that_the_paired_t_test_loses():
    """Two learners, each with one of two equally good columns; a tenth held out, 15 times."""
    rng = np.random.default_rng(0)
    corrected = plain = 0
    for _ in range(400):
        x = rng.normal(size=(100, 6))
        y = x[:, 0] + x[:, 1] + 2 * rng.normal(size=100) > 0
        values = np.empty((15, 2))
        for repeat in range(15):
            order = rng.permutation(100)
            train, test = order[10:], order[:10]
            for learner, columns in enumerate(([0, 2, 3], [1, 4, 5])):
                weights = np.linalg.lstsq(x[np.ix_(train, columns)], y[train] - 0.5, rcond=None)[0]
                values[repeat, learner] = np.mean((x[np.ix_(test, columns)] @ weights > 0) == y[test])
        first, second = values.T
        p_value = corrected_t_test(first, second, n_test=[10] * 15, n_train=[90] * 15).p_value
        corrected += p_value < 0.05
        plain += ttest_1samp(first - second, 0).pvalue < 0.05
    assert plain / 400 > 0.2
    assert corrected / 400 < plain / 400 / 2


p_values = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12)


@settings(max_examples=15)  # Holm takes statsmodels 0.05 s
@given(p_values)
def test_adjusted_p_values_equal_statsmodels(values):
    values = np.array(values, float)
    known = ~np.isnan(values)
    for ours, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        found = ours(values)
        assert np.isnan(found[~known]).all()
        if known.any():
            np.testing.assert_allclose(found[known], multipletests(values[known], method=method)[1], rtol=1e-12)
        else:
            assert found.shape == values.shape


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: holm([0.1, 1.2]), "p-values: found 1.2; expected numbers from 0 to 1, or NaN"),
        (lambda: benjamini_hochberg([-0.1]), "p-values: found -0.1"),
        (lambda: mcnemar(np.array([0, 1]), np.array([0])), "2 decisions of the first and 1 of the second"),
        (lambda: mcnemar(np.array([0.5, 1]), np.array([0, 1])), "first: found 0.5; expected 0 and 1"),
        (lambda: clustered_mcnemar(np.array([0, 1]), np.array([0, 1]), ["a"]), "patients: 1 ids for 2 rows"),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
