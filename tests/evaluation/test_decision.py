"""Decision curves and figures at another prevalence: by hand, by scikit-learn, and by closed-form errors."""

import re

import jax
import numpy as np
import pytest
from scipy.special import expit

from fusion_jax.data.collections.breast import breast_mri_predictions
from fusion_jax.evaluation.decision import (
    DecisionRows,
    _exact_statistics,
    decision_curve,
    decision_statistics,
    default_thresholds,
    metrics_at_prevalence,
    reweight,
)
from tests.helpers import assert_close

N = 400
THRESHOLDS = np.array([0.05, 0.1, 0.3, 0.5])
QUICK = {"thresholds": THRESHOLDS, "resamples": 1000}


@pytest.fixture(scope="module")
def cases():
    """Labels and three models: two single sources and one that sees both."""
    rng = np.random.default_rng(0)
    image, clinical = rng.normal(size=(2, N))
    labels = (rng.random(N) < expit(1.5 * (image + clinical) - 1)).astype(int)
    probabilities = expit(np.stack([0.9 * image - 1, 0.9 * clinical - 1, 1.5 * (image + clinical) - 1])).round(2)
    return labels, probabilities


@pytest.fixture(scope="module")
def curve(cases):
    return decision_curve(*cases, single_sources=(0, 1), **QUICK)


def by_hand(labels, probabilities, threshold, prevalence=None):
    called = probabilities >= threshold
    if prevalence is None:
        true, false = np.mean(called & (labels == 1)), np.mean(called & (labels == 0))
    else:
        true, false = prevalence * called[labels == 1].mean(), (1 - prevalence) * called[labels == 0].mean()
    return true - false * threshold / (1 - threshold)


def test_net_benefit_is_the_formula_of_vickers_and_elkin(cases, curve):
    labels, probabilities = cases
    expected = [[by_hand(labels, model, t) for t in THRESHOLDS] for model in probabilities]
    everybody = [by_hand(labels, np.ones(N), t) for t in THRESHOLDS]
    assert_close(curve.net_benefit.value, np.array(expected), rtol=1e-12)
    assert_close(curve.treat_all.value, np.array(everybody), rtol=1e-12)
    avoided = 100 * (np.array(expected) - everybody) * (1 - THRESHOLDS) / THRESHOLDS
    assert_close(curve.interventions_avoided.value, avoided, rtol=1e-12)
    assert (curve.n, curve.events, curve.unit, curve.given) == (N, labels.sum(), "rows", False)


def test_the_advantage_is_over_the_best_alternative_other_than_itself(curve):
    benefit, everybody = curve.net_benefit.value, curve.treat_all.value
    for model, rivals in ((0, [1]), (1, [0]), (2, [0, 1])):
        best = np.max([everybody, np.zeros(4), *benefit[rivals]], axis=0)
        assert_close(curve.advantage.value[model], benefit[model] - best, rtol=1e-9)
    assert (curve.advantage.interval.low[2] <= curve.advantage.value[2]).all()
    assert curve.advantage.interval.low[2, 2] > 0  # fusion is of use at 30 %


def test_intervals_agree_with_the_error_of_a_mean(cases, curve):
    labels, probabilities = cases
    for model in range(3):
        for place, threshold in enumerate(THRESHOLDS):
            called = probabilities[model] >= threshold
            each = called * (labels - (1 - labels) * threshold / (1 - threshold))
            width = curve.net_benefit.interval.high - curve.net_benefit.interval.low
            assert width[model, place] == pytest.approx(2 * 1.96 * each.std() / np.sqrt(N), rel=0.12)


def test_weights_are_repeated_rows(cases):
    labels, probabilities = cases
    reached = np.searchsorted(THRESHOLDS, probabilities.ravel(), side="right").reshape(3, N).astype(np.int32)
    rival = np.array([[False, True, False], [True, False, False], [True, True, False]])
    rows = DecisionRows(labels.astype(float), reached, THRESHOLDS / (1 - THRESHOLDS), rival, None)
    weights = np.random.default_rng(1).integers(0, 4, N)
    repeated = np.repeat(np.arange(N), weights)
    again = rows._replace(label=rows.label[repeated], reached=reached[:, repeated])
    found = jax.jit(decision_statistics)(rows, weights.astype(float))
    assert_close(found, _exact_statistics(again), rtol=1e-5)


def test_rows_written_twice_tell_no_more_where_patients_are_known(cases, curve):
    labels, probabilities = cases
    twice = np.tile(np.arange(N), 2)
    known = decision_curve(labels[twice], probabilities[:, twice], single_sources=(0, 1), patients=twice, **QUICK)
    for name in ("net_benefit", "treat_all", "advantage"):
        ends = [np.array(getattr(found, name).interval[:2]) for found in (curve, known)]
        assert_close(ends[1], ends[0], rtol=1e-4)
    assert (known.n, known.patients, known.unit) == (2 * N, N, "patients")


def test_a_model_that_calls_everybody_is_exactly_treating_all(cases):
    labels, _ = cases
    found = decision_curve(labels, np.full((3, N), 0.9), **QUICK)
    assert (found.net_benefit.value == found.treat_all.value).all()
    assert (found.interventions_avoided.value == 0).all()
    assert (found.interventions_avoided.interval.low == 0).all()
    assert (found.interventions_avoided.interval.high == 0).all()


def test_a_perfect_model_is_worth_the_prevalence_and_a_threshold_is_reached_by_its_own_value(cases):
    labels, _ = cases
    found = decision_curve(labels, np.tile(np.where(labels == 1, 0.5, 0.049), (3, 1)), **QUICK)
    assert_close(found.net_benefit.value, np.full((3, 4), labels.mean()), rtol=1e-12)


def test_a_given_prevalence_weights_sensitivity_and_specificity(cases):
    labels, probabilities = cases
    found = decision_curve(labels, probabilities, prevalence=0.02, **QUICK)
    expected = [[by_hand(labels, model, t, 0.02) for t in THRESHOLDS] for model in probabilities]
    assert_close(found.net_benefit.value, np.array(expected), rtol=1e-12)
    assert_close(found.treat_all.value, 0.02 - 0.98 * THRESHOLDS / (1 - THRESHOLDS), rtol=1e-12)
    # Known, not estimated: treating all does not vary, whatever the resample holds.
    assert_close(found.treat_all.interval.low, found.treat_all.interval.high, rtol=1e-5)
    assert (found.prevalence, found.given) == (0.02, True)
    weights = reweight(labels, 0.02)
    called = probabilities[2] >= 0.1
    assert found.net_benefit.value[2, 1] == pytest.approx(np.mean(weights * called * (labels - (1 - labels) / 9)))


@pytest.mark.parametrize(("largest", "last"), [(0.305, 0.30), (0.9999, 0.99), (0.004, 0.02), (0.07, 0.07)])
def test_thresholds_end_where_hardly_anybody_is_called(largest, last):
    found = default_thresholds(np.concatenate([np.zeros(500), np.full(10, largest), [1.0]])[None])
    assert_close(found, np.arange(1, round(100 * last) + 1) / 100, rtol=1e-12)


def test_published_predictions_are_of_use_at_some_thresholds_only():
    table = breast_mri_predictions()
    parts = [part for _, part in table.groupby("model", sort=True)]
    labels, scores = parts[0]["label"].to_numpy(), np.stack([part["score"].to_numpy(float) for part in parts])
    found = decision_curve(
        labels, scores, thresholds=np.array([0.05, 0.2, 0.3, 0.5]), single_sources=(0,), resamples=200
    )
    assert_close(found.net_benefit.value[:, 0], np.full(2, found.treat_all.value[0]), rtol=1e-12)
    assert found.advantage.interval.low[1, 1] > 0
    assert found.advantage.interval.low[1, 2] > 0
    # Both overestimate risk, so that at 50 % treating nobody would do better.
    assert (found.net_benefit.value[:, 3] < 0).all()


def test_figures_at_another_prevalence_are_those_of_weighted_rows(cases):
    from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, precision_score

    labels, probabilities = cases
    decisions = probabilities >= 0.3
    found = metrics_at_prevalence(labels, decisions, prevalence=0.05, probabilities=probabilities, resamples=500)
    weights = reweight(labels, 0.05)
    assert weights.sum() == pytest.approx(N)
    assert weights[labels == 1].sum() / N == pytest.approx(0.05)
    for model in range(3):
        called = decisions[model].astype(int)
        expected = {
            "precision": precision_score(labels, called, sample_weight=weights),
            "negative_predictive_value": precision_score(1 - labels, 1 - called, sample_weight=weights),
            "f1": f1_score(labels, called, sample_weight=weights),
            "accuracy": accuracy_score(labels, called, sample_weight=weights),
            "brier": brier_score_loss(labels, probabilities[model], sample_weight=weights),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].value[model] == pytest.approx(value, rel=1e-9)
            assert found[name].interval.low[model] < value < found[name].interval.high[model]


def test_the_prevalence_of_the_rows_gives_the_figures_of_the_rows(cases):
    labels, probabilities = cases
    decisions = probabilities >= 0.3
    prevalence = float(labels.mean())
    found = metrics_at_prevalence(labels, decisions, prevalence=prevalence, probabilities=probabilities, resamples=500)
    assert_close(found["precision"].value, np.array([labels[called].mean() for called in decisions]), rtol=1e-12)


def test_nobody_called_positive_has_no_precision(cases):
    labels, _ = cases
    found = metrics_at_prevalence(labels, np.zeros((3, N), int), prevalence=0.1, resamples=500)
    assert "brier" not in found
    assert np.isnan(found["precision"].value).all()
    assert (found["precision"].interval.undefined == 500).all()
    assert_close(found["negative_predictive_value"].value, np.full(3, 0.9), rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "probabilities", "options", "message"),
    [
        ([0, 1], [[-1.0, 2.0]], {}, "2 of 2 lie outside [0, 1], from -1 to 2; a decision curve has no meaning"),
        ([1, 1], [[0.1, 0.2]], {}, "only class 1 occurs in 2 rows; a decision curve needs both classes"),
        ([0, 1], [0.1, 0.2], {}, "shape (2,); expected a row for each model"),
        ([0, 1], [[0.1, 0.2]], {"thresholds": [0.2, 0.1]}, "expected a list of rising probabilities"),
        ([0, 1], [[0.1, 0.2]], {"thresholds": [0.2, 1.0]}, "thresholds: 1; expected probabilities between 0 and 1"),
        ([0, 1], [[0.1, 0.2]], {"thresholds": [0.2, np.nan]}, "thresholds: nan; expected probabilities"),
        ([0, 1], [[0.1, 0.2]], {"prevalence": 2.0}, "prevalence: 2; expected a fraction"),
        ([0, 1], [[0.1, 0.2]], {"single_sources": [1]}, "single_sources: 1 among 1 model"),
        ([0, 1], [[0.1, 0.2]], {"patients": ["a"]}, "patients: 1 ids for 2 rows"),
    ],
)
def test_what_has_no_decision_curve_is_refused(labels, probabilities, options, message, unchecked):
    with pytest.raises(ValueError, match=re.escape(message)):
        decision_curve(np.array(labels), np.array(probabilities), **options)


def test_what_has_no_prevalence_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"decisions: shape \(2,\) beside 2 labels; expected a row for each model"):
        metrics_at_prevalence(np.array([0, 1]), np.array([0, 1]), prevalence=0.1)
    with pytest.raises(ValueError, match="only class 1 occurs in 2 rows; another prevalence needs both"):
        reweight(np.array([1, 1]), 0.1)
    with pytest.raises(ValueError, match="found 2; expected 0 and 1"):
        metrics_at_prevalence(np.array([0, 1]), np.array([[0, 2]]), prevalence=0.1)
