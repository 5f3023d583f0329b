"""Resampled survival metrics: weights are repeats, patients are drawn, pairs of models share their draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.evaluation.resampling import bootstrap, draw_weights, z_test
from fusion_jax.evaluation.survival import harrell_c, survival_metrics
from fusion_jax.evaluation.survival_follow_up import FollowUp
from fusion_jax.evaluation.survival_pairs import pair_plan
from fusion_jax.evaluation.survival_resampled import (
    SurvivalStatistics,
    compare_survival,
    survival_data,
    survival_design,
    survival_statistics,
)
from tests.helpers import assert_close

ROWS, HORIZONS, RESAMPLES = 60, np.array([3.0, 6.0]), 400


@pytest.fixture(scope="module")
def cohort():
    """A model that knows the hazard and one that hardly does; risks and times tie."""
    rng = np.random.default_rng(3)
    hazard = rng.normal(size=ROWS)
    risk = np.round(np.stack([hazard, hazard + 3 * rng.normal(size=ROWS)], axis=1), 1)
    until_event = np.ceil(rng.exponential(size=ROWS) * np.exp(-hazard) * 8)
    until_end = np.ceil(rng.exponential(size=ROWS) * 12)
    survival_at = np.exp(-np.exp(risk.T[:, :, None]) * HORIZONS / 8)
    return risk, np.minimum(until_event, until_end), until_event <= until_end, survival_at


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(4)
    return FollowUp(np.append(np.ceil(rng.exponential(size=100) * 9), 200.0), np.append(rng.random(100) < 0.5, False))


statistics = jax.jit(survival_statistics)


def on_host(risk, time, event, survival_at, training=None):
    """The same numbers in double precision, one model after the other."""
    found = [
        survival_metrics(risk[:, model], time, event, HORIZONS, survival_at=survival_at[model], training=training)
        for model in range(risk.shape[1])
    ]
    rows = [(one.harrell.c, one.uno, one.auc.auc, one.auc.mean, one.brier, one.integrated_brier) for one in found]
    return SurvivalStatistics(*(np.stack(values) for values in zip(*rows, strict=True)))


@pytest.mark.parametrize("trained", [False, True])
def test_weights_are_repeats(cohort, training, trained):
    risk, time, event, survival_at = cohort
    known = training if trained else None
    data = survival_data(risk, time, event, HORIZONS, survival_at=survival_at, training=known)
    once = statistics(data, jnp.ones(ROWS))
    assert_close(once, on_host(risk, time, event, survival_at, known), 2e-6)
    design = survival_design(event)
    for resample in range(5):
        weights = draw_weights(design, resample)
        rows = np.repeat(np.arange(ROWS), weights.astype(int))
        expected = on_host(risk[rows], time[rows], event[rows], survival_at[:, rows], known)
        assert_close(statistics(data, jnp.asarray(weights)), expected, 2e-6)


@pytest.mark.usefixtures("x64")
def test_double_precision_follows_the_weights(cohort):
    risk, time, event, survival_at = cohort
    data = survival_data(risk, time, event, HORIZONS, survival_at=survival_at)
    found = jax.jit(survival_statistics)(data, jnp.ones(ROWS))
    assert found.uno.dtype == np.float64
    assert_close(found, on_host(risk, time, event, survival_at), 1e-12)


def test_a_draw_without_controls_or_with_nobody_under_observation_is_undefined():
    # Three events, of which the last ties with the only censoring.
    time, event = np.array([1.0, 2.0, 3.0, 3.0]), np.array([1, 1, 1, 0])
    data = survival_data(np.arange(4.0)[:, None], time, event, [2.0], tau=4.0)
    found = statistics(data, jnp.array([1.0, 1.0, 0.0, 0.0]))
    assert np.isnan(found.auc).all()  # nobody is followed beyond 2
    assert found.harrell.tolist() == [0.0]  # one pair, in the wrong order
    full = statistics(data, jnp.ones(4))
    assert np.isnan(full.uno).all()  # nobody is under observation after 3
    assert np.isfinite(full.auc).all()
    absent = statistics(data, jnp.array([1.0, 1.0, 0.0, 1.0]))
    assert np.isfinite(absent.uno).all()  # a row that was not drawn does not count, whatever its weight would be


def test_intervals_and_tests_of_two_models(cohort):
    risk, time, event, survival_at = cohort
    found = compare_survival(risk, time, event, HORIZONS, survival_at=survival_at, resamples=RESAMPLES)
    assert (found.pairs, found.patients) == (((0, 1),), ROWS)
    assert_close(found.estimates, on_host(risk, time, event, survival_at), 1e-12)
    for estimate, interval, test, apart in zip(
        found.estimates, found.intervals, found.differences, found.difference_intervals, strict=True
    ):
        assert interval.low.shape == estimate.shape
        assert np.all((interval.low < estimate) & (estimate < interval.high))
        assert_close(test.difference, estimate[:1] - estimate[1:], 1e-12)
        assert apart.low.shape == test.difference.shape == (1, *estimate.shape[1:])
    assert found.differences.harrell.p_value[0] < 0.05
    assert found.difference_intervals.harrell.low[0] > 0

    # One set of draws: the spread of the difference is that of one model minus the other in the same resamples.
    data = survival_data(risk, time, event, HORIZONS, survival_at=survival_at)
    draws = bootstrap(survival_statistics, data, survival_design(event), resamples=RESAMPLES).harrell
    assert_close(found.differences.harrell.sd[0], np.std(draws[:, 0] - draws[:, 1], ddof=1), 1e-5)
    assert "No patient ids were given" in " ".join(found.notes)
    assert "estimated from the rows that are judged, again in every resample" in " ".join(found.notes)


def test_identical_models_do_not_differ(cohort):
    risk, time, event, survival_at = cohort
    found = compare_survival(
        risk[:, [0, 0]], time, event, HORIZONS, survival_at=survival_at[[0, 0]], resamples=RESAMPLES
    )
    for test in found.differences or ():
        assert not np.any(test.difference)
        assert np.all(test.p_value == 1)


def test_rows_of_one_patient_are_drawn_together(cohort):
    risk, time, event, survival_at = cohort
    one = compare_survival(risk, time, event, HORIZONS, survival_at=survival_at, resamples=RESAMPLES)
    ids = [f"p{row:03d}" for row in range(ROWS)]
    named = compare_survival(risk, time, event, HORIZONS, survival_at=survival_at, patients=ids, resamples=RESAMPLES)
    assert_close(named.intervals, one.intervals, 1e-12)  # every patient one row
    assert not any("No patient ids" in note for note in named.notes)

    # Every row twice: the same patients, the same intervals; as rows of their own they would be far too narrow.
    twice = [np.concatenate([values, values]) for values in (risk, time, event)]
    together = compare_survival(*twice, HORIZONS, patients=ids * 2, resamples=RESAMPLES)
    assert together.patients == ROWS
    assert_close(together.intervals.harrell, one.intervals.harrell, 1e-5)
    apart = compare_survival(*twice, HORIZONS, resamples=RESAMPLES)

    def width(found):
        return (found.intervals.harrell.high - found.intervals.harrell.low)[0]

    assert width(apart) < 0.85 * width(together)


def test_every_resample_keeps_the_number_of_events(cohort):
    event = cohort[2]
    design = survival_design(event)
    for resample in range(3):
        assert draw_weights(design, resample)[event].sum() == event.sum()


@pytest.mark.usefixtures("unchecked")
def test_what_an_interval_cannot_be_read_off_is_refused(cohort):
    risk, time, event, survival_at = cohort
    with pytest.raises(ValueError, match="1 patient of 2 with an event; an interval needs at least two"):
        survival_design(np.array([1, 1, 0]), ["a", "a", "b"])
    with pytest.raises(ValueError, match=r"survival_at has shape \(1, 60, 2\); expected \(models, rows, horizons\)"):
        compare_survival(risk, time, event, HORIZONS, survival_at=survival_at[:1])
    with pytest.raises(ValueError, match="event of 60 rows is neither 0 nor 1"):
        compare_survival(risk, time, event + 2.0, HORIZONS)


def test_a_plan_grows_as_n_log_n():
    rng = np.random.default_rng(0)
    plan = pair_plan(rng.random(4096), rng.random(4096), rng.random(4096) < 0.5)
    assert plan.later.size == 4096 * 12 // 2
    assert plan.earlier.size < 4096 * 12 // 3


@pytest.mark.slow
@pytest.mark.parametrize(("known", "least", "most"), [(True, 0.02, 0.09), (False, 0.2, 0.6)])
def test_equally_good_models_are_told_apart_as_often_as_the_level_says(known, least, most):
    """100 patients with four rows each: 5 % of 300 cohorts with patient ids, several times as many without."""
    rng = np.random.default_rng(11)
    until_event, until_end = rng.exponential(size=100), rng.exponential(size=100) * 2
    patients = np.repeat(np.arange(100), 4)
    # Follow-up stays and risks are drawn anew, so that one program serves all cohorts.
    time, event = np.minimum(until_event, until_end)[patients], (until_event <= until_end)[patients]
    design = survival_design(event, patients if known else None)
    rejected = 0
    for seed in range(300):
        noise = np.random.default_rng([11, seed]).normal(size=(2, 100))
        risk = (noise - np.log(until_event)).T[patients]
        draws = bootstrap(survival_statistics, survival_data(risk, time, event, [0.5]), design, resamples=300).harrell
        found = [harrell_c(column, time, event).c for column in risk.T]
        rejected += z_test(found[0] - found[1], draws[:, 0] - draws[:, 1]).p_value < 0.05
    assert least < rejected / 300 < most
