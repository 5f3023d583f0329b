"""Groups of risk: curves and tests as statsmodels and scipy have them, restricted means, and what is refused."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from fusion_jax.data.samples import soft_tissue_sarcoma
from fusion_jax.evaluation.survival_groups import (
    kaplan_meier,
    log_rank,
    median_survival,
    number_at_risk,
    restricted_mean,
    risk_groups,
    survival_at,
    survival_by_group,
)
from tests.helpers import assert_close


def make_follow_up(seed, rows=90, censoring=12.0):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, rows)
    until_event, until_end = (
        np.ceil(rng.exponential(size=rows) * (10 - 3 * group)),
        np.ceil(rng.exponential(size=rows) * censoring),
    )
    return np.minimum(until_event, until_end), until_event <= until_end, group


@pytest.mark.parametrize("censoring", [3.0, 12.0, 1e6])
def test_a_curve_equals_statsmodels(censoring):
    time, event, _ = make_follow_up(0, censoring=censoring)
    curve = kaplan_meier(time, event)
    expected = SurvfuncRight(time, event)
    places = np.searchsorted(curve.times, expected.surv_times)
    assert_close(curve.survival[places], expected.surv_prob, 1e-12)
    assert curve.at_risk[places].tolist() == expected.n_risk.tolist()
    assert curve.events[places].tolist() == expected.n_events.tolist()
    assert curve.events.sum() == event.sum()
    assert curve.censored.sum() == (~event).sum()
    # A point of the curve against its interval on the log-log scale, from statsmodels' standard error.
    inside = (expected.surv_prob > 0) & (expected.surv_prob < 1)
    survival, error = (np.asarray(values)[inside] for values in (expected.surv_prob, expected.surv_prob_se))
    reach = stats.norm.ppf(0.975) * error / (survival * np.log(survival))
    assert_close(curve.low[places][inside], survival ** np.exp(-reach), 1e-9)
    assert_close(curve.high[places][inside], survival ** np.exp(reach), 1e-9)
    median, low, high = median_survival(curve)
    assert median == expected.quantile(0.5)
    if censoring > 5:
        with np.errstate(divide="ignore", invalid="ignore"):  # theirs, where the curve is 0
            assert (low, high) == expected.quantile_ci(0.5, method="cloglog")


def test_a_curve_starts_at_one_and_is_unknown_after_its_follow_up():
    curve = kaplan_meier(np.array([2.0, 3.0, 5.0]), np.array([0, 1, 0]))
    assert (curve.times[0], curve.survival[0], curve.low[0], curve.high[0]) == (0.0, 1.0, 1.0, 1.0)
    found = survival_at(curve, [0, 2.5, 3, 5, 5.1])
    np.testing.assert_array_equal(found.survival, [1.0, 1.0, 0.5, 0.5, np.nan])
    assert np.isnan(found.low[-1])
    assert number_at_risk(curve, [0, 2, 2.5, 5, 6]).tolist() == [3, 3, 2, 1, 0]
    over = kaplan_meier(np.array([2.0, 3.0]), np.array([1, 1]))
    assert survival_at(over, [9]).survival.tolist() == [0.0]
    assert np.isnan(survival_at(over, [9]).low[0])
    at_birth = kaplan_meier(np.array([0.0, 3.0]), np.array([1, 1]))
    assert (at_birth.times.tolist(), at_birth.survival.tolist()) == ([0.0, 3.0], [0.5, 0.0])


def test_a_group_without_events_has_a_curve_of_one():
    curve = kaplan_meier(np.array([2.0, 3.0]), np.array([0, 0]))
    assert curve.survival.tolist() == curve.low.tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(median_survival(curve)).all()
    assert restricted_mean(curve, 3)[:4] == (3.0, 0.0, 3.0, 3.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_rank_equals_statsmodels_and_scipy(seed):
    time, event, group = make_follow_up(seed)
    found = log_rank(time, event, group)
    assert found.degrees == 2
    assert_close((found.chi_squared, found.p_value), survdiff(time, event, group), 1e-9)
    assert found.observed.sum() == event.sum()
    assert_close(found.expected.sum(), event.sum())

    two = group < 2
    found = log_rank(time[two], event[two], group[two])
    sides = [
        stats.CensoredData(time[own & event], right=time[own & ~event])
        for own in (two & (group == 0), two & (group == 1))
    ]
    expected = stats.logrank(*sides)
    assert_close((found.chi_squared, found.p_value), (expected.statistic**2, expected.pvalue), 1e-9)


def test_a_log_rank_test_needs_groups_at_risk_together():
    with pytest.raises(ValueError, match="at least two groups"):
        log_rank(np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match="no two groups were at risk at the time of any of 1 event"):
        log_rank(np.array([1.0, 2.0]), np.array([0, 1]), np.array([0, 1]))
    # A group that left before the first event takes no part.
    found = log_rank(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 1, 0]), np.array([2, 0, 1, 1]))
    assert (found.degrees, found.observed.tolist()) == (1, [1, 1, 0])


def test_without_censoring_the_restricted_mean_is_a_mean():
    time, _, _ = make_follow_up(0)
    found = restricted_mean(kaplan_meier(time, np.ones(time.size)), 6)
    cut = np.minimum(time, 6)
    assert_close(found.mean, cut.mean(), 1e-12)
    assert_close(found.standard_error, cut.std() / np.sqrt(time.size), 1e-12)
    assert_close((found.low + found.high) / 2, cut.mean(), 1e-12)


def test_the_standard_error_of_a_restricted_mean_is_its_spread_over_cohorts():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        until_event, until_end = rng.exponential(size=80) * 5, rng.exponential(size=80) * 8 + 4
        found.append(restricted_mean(kaplan_meier(np.minimum(until_event, until_end), until_event <= until_end), 4))
    means, errors = (np.array([getattr(one, name) for one in found]) for name in ("mean", "standard_error"))
    assert abs(errors.mean() / means.std() - 1) < 0.12
    truth = 5 * (1 - np.exp(-4 / 5))
    assert abs(means.mean() - truth) < 4 * means.std() / 20


def test_a_restricted_mean_stays_within_the_follow_up():
    curve = kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]))
    for until in (3.5, 0, np.inf, np.nan):
        with pytest.raises(ValueError, match="follow-up of this group ends at 3"):
            restricted_mean(curve, until)


def test_cutoffs_say_where_they_came_from():
    risk = np.array([0.1, 0.2, 0.5, 0.6, 0.7, 0.9])
    given = risk_groups(risk, cutoffs=[0.2, 0.6])
    assert (given.group.tolist(), given.origin) == ([0, 1, 1, 2, 2, 2], "given")
    assert given.names == ("low risk", "medium risk", "high risk")
    trained = risk_groups(risk, training_risk=np.array([0.0, 0.4, 1.0]))
    assert (trained.group.tolist(), trained.origin) == ([0, 0, 1, 1, 1, 1], "median, of the training risks")
    here = risk_groups(risk, groups=3)
    assert (np.bincount(here.group).tolist(), here.origin) == ([2, 2, 2], "tertiles, read off the test rows")


def test_cutoffs_that_divide_nothing_are_refused():
    risk = np.array([0.1, 0.2, 0.5])
    with pytest.raises(ValueError, match=r"cut-offs 5 \(given\) leave groups of 3, 0 rows; .* Choose fewer groups"):
        risk_groups(risk, cutoffs=[5.0])
    with pytest.raises(ValueError, match="each above the one before"):
        risk_groups(risk, cutoffs=[0.3, 0.3])
    with pytest.raises(ValueError, match="expected one origin"):
        risk_groups(risk, cutoffs=[0.3], training_risk=risk)
    with pytest.raises(ValueError, match="leave groups of"):
        risk_groups(np.zeros(5))
    with pytest.raises(ValueError, match="groups is 1; expected at least 2"):
        risk_groups(risk, groups=1)


def test_a_patient_with_several_rows_has_no_several_lives():
    groups = risk_groups(np.arange(4.0))
    with pytest.raises(ValueError, match=r"1 patient with several rows \(a\): each row would count as a life"):
        survival_by_group(np.arange(1.0, 5.0), np.ones(4), groups, patients=["a", "a", "b", "c"])


def test_tumour_volume_divides_the_sarcoma_patients():
    table = soft_tissue_sarcoma().table
    event = table["distant_metastases"].to_numpy() == 1
    time = np.where(event, table["days_diagnosis_to_outcome"], table["days_diagnosis_to_last_follow_up"])
    groups = risk_groups(table["tumour_volume_ml"].to_numpy(float))
    found = survival_by_group(time, event, groups, patients=list(table.index))
    assert (sum(found.n), sum(found.events)) == (51, 24)
    assert found.at_risk[:, 0].tolist() == list(found.n)
    assert_close((found.log_rank.chi_squared, found.log_rank.p_value), survdiff(time, event, groups.group), 1e-9)
    assert found.at.tolist() == [0, 500, 1000, 1500, 2000]
    for curve, own in zip(found.curves, (0, 1), strict=True):
        expected = SurvfuncRight(time[groups.group == own], event[groups.group == own])
        assert_close(survival_at(curve, expected.surv_times).survival, expected.surv_prob, 1e-12)
