"""Survival metrics: parity with scikit-survival, the counted pairs, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sksurv import metrics as reference

from fusion_jax.data.samples import soft_tissue_sarcoma
from fusion_jax.evaluation.survival import (
    brier_scores,
    harrell_c,
    integrated_brier_score,
    survival_metrics,
    time_dependent_auc,
    uno_c,
)
from fusion_jax.evaluation.survival_follow_up import (
    FollowUp,
    censoring_survival,
    check_follow_up,
    default_horizons,
    event_survival,
)
from tests.helpers import assert_close


def make_cohort(seed, rows=120, censoring=20.0, decimals=1):
    """Rounded risks and times, so that both tie; a smaller `censoring` censors more."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=rows), decimals)
    until_event = np.ceil(rng.exponential(size=rows) * np.exp(-0.7 * risk) * 10)
    until_end = np.ceil(rng.exponential(size=rows) * censoring)
    return risk, np.minimum(until_event, until_end), until_event <= until_end


def make_training(seed):
    rng = np.random.default_rng(seed)
    time = np.append(np.ceil(rng.exponential(size=200) * 15), 500.0)
    return FollowUp(time, np.append(rng.random(200) < 0.5, False))


def structured(time, event):
    return np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])


cohorts = pytest.mark.parametrize(
    ("seed", "censoring", "decimals"),
    [(0, 20.0, 1), (1, 20.0, 0), (2, 4.0, 0), (3, 2.0, 1)],
    ids=["light censoring", "tied risks", "heavy censoring", "four in five censored"],
)


@cohorts
@pytest.mark.parametrize("trained", [False, True])
def test_metrics_equal_scikit_survival(seed, censoring, decimals, trained):
    risk, time, event = make_cohort(seed, censoring=censoring, decimals=decimals)
    training = make_training(seed) if trained else None
    judged = structured(time, event)
    known = structured(*training) if training is not None else judged
    horizons = default_horizons(time, event)

    pairs = harrell_c(risk, time, event)
    c, concordant, discordant, tied_risk, _ = reference.concordance_index_censored(event, time, risk)
    assert pairs[1:4] == (concordant, discordant, tied_risk)
    assert_close(pairs.c, c, 1e-12)
    for tau in (horizons[-1], np.inf):
        expected = reference.concordance_index_ipcw(known, judged, risk, tau if np.isfinite(tau) else None)[0]
        assert_close(uno_c(risk, time, event, tau=tau, training=training), expected, 1e-12)

    found = time_dependent_auc(risk, time, event, horizons, training=training)
    assert_close(found[1:], reference.cumulative_dynamic_auc(known, judged, risk, horizons), 1e-12)

    # Scores that depend on the risk, so that a weight on the wrong row shows.
    survival_at = np.exp(-np.outer(np.exp(risk), horizons / 20))
    scores = brier_scores(survival_at, time, event, horizons, training=training)
    assert_close(scores, reference.brier_score(known, judged, survival_at, horizons)[1], 1e-12)
    integrated = reference.integrated_brier_score(known, judged, survival_at, horizons)
    assert_close(integrated_brier_score(scores, horizons), integrated, 1e-12)


def test_one_call_gives_what_the_single_functions_give():
    risk, time, event = make_cohort(0)
    survival_at = np.exp(-np.outer(np.exp(risk), [0.2, 0.4]))
    found = survival_metrics(risk, time, event, [4, 8], survival_at=survival_at)
    assert (found.n, found.events, found.tau) == (120, int(event.sum()), 8.0)
    assert found.harrell == harrell_c(risk, time, event)
    assert found.uno == uno_c(risk, time, event, tau=8)
    assert_close(found.auc, time_dependent_auc(risk, time, event, [4, 8]))
    assert_close(found.brier, brier_scores(survival_at, time, event, [4, 8]))
    assert found.integrated_brier == integrated_brier_score(found.brier, [4, 8])
    assert found.censoring == "estimated from the rows that are judged"
    alone = survival_metrics(risk, time, event, [4], survival_at=survival_at[:, :1], training=make_training(0))
    assert alone.integrated_brier is None
    assert alone.censoring == "estimated from 201 training rows"


small = st.integers(2, 12).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(0, 4), min_size=rows, max_size=rows),
        st.lists(st.integers(0, 6), min_size=rows, max_size=rows),
        st.lists(st.booleans(), min_size=rows, max_size=rows),
    )
)


@given(small)
def test_pairs_are_those_of_the_definition(cohort):
    risk, time, event = (np.array(values) for values in cohort)
    earlier = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    lower, same = risk[:, None] > risk, risk[:, None] == risk
    if not event.any() or not earlier.any():
        with pytest.raises(ValueError, match=r"censored|no comparable pair"):
            harrell_c(risk, time, event)
        return
    found = harrell_c(risk, time, event)
    together = event[:, None] & event & (time[:, None] == time)
    assert found.concordant == (earlier & lower).sum()
    assert found.tied_risk == (earlier & same).sum()
    assert found.discordant == (earlier & ~lower & ~same).sum()
    assert found.tied_time == np.triu(together, 1).sum()


@cohorts
def test_a_reversed_risk_gives_one_minus_and_a_constant_one_half(seed, censoring, decimals):
    risk, time, event = make_cohort(seed, censoring=censoring, decimals=decimals)
    horizons = default_horizons(time, event)

    def discrimination(values):
        found = survival_metrics(values, time, event, horizons)
        return np.array([found.harrell.c, found.uno, found.auc.mean, *found.auc.auc])

    assert_close(discrimination(-risk), 1 - discrimination(risk), 1e-12)
    assert_close(discrimination(np.zeros_like(risk)), np.full(3 + horizons.size, 0.5), 1e-12)
    assert_close(discrimination(np.exp(3 * risk)), discrimination(risk), 1e-12)  # the order alone counts


def test_without_censoring_weights_are_one():
    risk, time, _ = make_cohort(0)
    event = np.ones(time.size, bool)
    assert_close(uno_c(risk, time, event), harrell_c(risk, time, event).c, 1e-12)
    from sklearn.metrics import roc_auc_score

    assert_close(time_dependent_auc(risk, time, event, [5]).auc[0], roc_auc_score(time <= 5, risk), 1e-12)
    survival_at = np.full((time.size, 1), 0.3)
    assert_close(brier_scores(survival_at, time, event, [5])[0], np.mean((0.3 - (time > 5)) ** 2), 1e-12)


def test_uno_recovers_what_censoring_hides():
    """Harrell's C moves with censoring; Uno's, truncated, stays at the value of the uncensored cohort."""
    rng = np.random.default_rng(5)
    # The risk orders early events and says nothing of late ones.
    until_event = rng.exponential(size=20_000)
    risk = np.where(until_event < 0.5, -until_event, -rng.random(20_000) - 0.5)
    until_end = rng.exponential(size=20_000) * 0.5
    time, event = np.minimum(until_event, until_end), until_event <= until_end
    full = uno_c(risk, until_event, np.ones(20_000, bool), tau=1.0)
    assert abs(uno_c(risk, time, event, tau=1.0) - full) < 0.01
    assert abs(harrell_c(risk, time, event).c - full) > 0.03


def test_survival_and_censoring_curves_share_the_rows_between_them():
    _, time, event = make_cohort(2)
    at = np.arange(0.0, time.max() - 1)
    # With events before censorings the two products telescope to the rows that are left.
    left = np.array([np.mean(time > moment) for moment in at])
    assert_close(event_survival(time, event, at) * censoring_survival(time, event, at), left, 1e-12)


# What is refused


@pytest.fixture
def cohort():
    return make_cohort(0, rows=30)


def replaced(values, row, value):
    values = np.array(values, float)
    values[row] = value
    return values


def test_follow_up_that_is_none_is_named(cohort):
    risk, time, event = cohort
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"time of 1 row is negative or not finite \(row 3: .*correct their dates"):
            harrell_c(risk, replaced(time, 3, bad), event)
    for bad in (2, np.nan):
        with pytest.raises(ValueError, match=r"event of 1 row is neither 0 nor 1 \(row 4: .*Map the codes"):
            harrell_c(risk, time, replaced(event, 4, bad))
    with pytest.raises(ValueError, match="event: all 30 rows are censored"):
        harrell_c(risk, time, np.zeros(30))
    with pytest.raises(ValueError, match="risk of 1 row is not finite"):
        harrell_c(replaced(risk, 5, np.nan), time, event)
    with pytest.raises(ValueError, match="event holds values that are no numbers"):
        check_follow_up(time, np.array(["dead"] * 30))
    with pytest.raises(ValueError, match="training event: all 2 rows are censored"):
        uno_c(risk, time, event, training=FollowUp(np.array([1.0, 2.0]), np.zeros(2)))


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_differ_are_named(cohort):
    risk, time, event = cohort
    with pytest.raises(ValueError, match=r"time and event have shapes \(30,\) and \(29,\)"):
        harrell_c(risk, time, event[:-1])
    with pytest.raises(ValueError, match=r"risk has shape \(29,\); expected one number for each of 30 rows"):
        harrell_c(risk[:-1], time, event)
    with pytest.raises(ValueError, match="with at least one row"):
        harrell_c(risk[:0], time[:0], event[:0])


def test_one_event_is_judged_where_somebody_outlived_it():
    assert harrell_c(np.array([2.0, 1.0]), np.array([1.0, 2.0]), np.array([1, 0])).c == 1.0
    with pytest.raises(
        ValueError, match="no comparable pair among 2 rows with 1 event: nobody was followed for longer"
    ):
        harrell_c(np.array([2.0, 1.0]), np.array([2.0, 1.0]), np.array([1, 0]))
    with pytest.raises(ValueError, match=r"before tau = 1 .*or raise tau"):
        uno_c(np.array([2.0, 1.0]), np.array([1.0, 2.0]), np.array([1, 0]), tau=1)


def test_horizons_outside_the_follow_up_are_refused(cohort):
    risk, time, event = cohort
    last = time.max()
    for horizons in ([last], [2, last + 10]):
        with pytest.raises(ValueError, match=rf"not before the end of follow-up at {last:g} \(last event at"):
            time_dependent_auc(risk, time, event, horizons)
    with pytest.raises(ValueError, match="lies before the first event at"):
        time_dependent_auc(risk, time, event, [0.5, 3])
    for horizons in ([], [3, 3], [4, 2], [np.nan]):
        with pytest.raises(ValueError, match="each later than the one before"):
            time_dependent_auc(risk, time, event, horizons)
    with pytest.raises(ValueError, match="no horizon leaves anybody free"):
        default_horizons(np.array([2.0, 2.0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="tau is 0; expected a time after the origin"):
        uno_c(risk, time, event, tau=0)


def test_a_weight_that_cannot_be_estimated_is_refused(cohort):
    risk, time, event = cohort
    training = FollowUp(np.array([1.0, 2.0]), np.array([1, 0]))
    with pytest.raises(ValueError, match="follow-up that censoring is estimated from ends at 2"):
        uno_c(risk, time, event, training=training)
    with pytest.raises(ValueError, match="still under observation is 0 at 2"):
        uno_c(np.arange(3.0), np.array([2.0, 3.0, 4.0]), np.array([1, 0, 0]), training=training)


def test_a_brier_score_of_risks_is_refused_with_the_reason(cohort):
    risk, time, event = cohort
    with pytest.raises(ValueError, match=r"no probability \(row .* A risk score has no scale"):
        brier_scores(risk[:, None], time, event, [4])
    with pytest.raises(ValueError, match=r"survival_at has shape \(30, 1\); .*\(30, 2\)\. A risk score has no scale"):
        brier_scores(np.full((30, 1), 0.5), time, event, [4, 6])
    with pytest.raises(ValueError, match=r"rises from one horizon to the next .* give 1 minus them"):
        brier_scores(np.tile([0.1, 0.2], (30, 1)), time, event, [4, 6])
    with pytest.raises(ValueError, match="at least two: an integral over time needs a start and an end"):
        integrated_brier_score(np.array([0.1]), [4])


def test_suv_and_volume_rank_the_sarcoma_patients_as_scikit_survival_has_it():
    """Time to distant metastasis of the 51 bundled patients; censored at the last follow-up."""
    table = soft_tissue_sarcoma().table
    event = table["distant_metastases"].to_numpy() == 1
    time = np.where(event, table["days_diagnosis_to_outcome"], table["days_diagnosis_to_last_follow_up"])
    assert (int(event.sum()), time.min() > 0) == (24, True)
    horizons = [365.0, 730.0]
    judged = structured(time, event)
    for column, pairs in (("suv_max", (592, 292, 0, 1)), ("tumour_volume_ml", (550, 334, 0, 1))):
        risk = table[column].to_numpy(float)
        found = survival_metrics(risk, time, event, horizons)
        assert found.harrell[1:] == pairs
        assert_close(found.harrell.c, reference.concordance_index_censored(event, time, risk)[0], 1e-12)
        assert_close(found.auc[1:], reference.cumulative_dynamic_auc(judged, judged, risk, horizons), 1e-12)
