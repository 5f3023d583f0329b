"""Folds are never mixed unawares; the printed tables of the papers follow from their counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.evaluation import classification as points
from fusion_jax.evaluation.classification import Counts, auc
from fusion_jax.evaluation.folds import (
    fold_counts,
    per_fold,
    pooled_and_within,
    pooled_counts,
    within_fold_auc,
)

PRINTED = {
    "HC+RF": (0.750, 0.792, 0.708, 0.731, 0.760, 19, 17),
    "DLHN": (0.729, 0.792, 0.667, 0.703, 0.745, 19, 16),
    "3DMCL": (0.854, 0.917, 0.792, 0.815, 0.863, 22, 19),
    "2-D MM-NAS": (0.750, 0.833, 0.667, 0.714, 0.769, 20, 16),
    "3-D MM-NAS": (0.896, 0.917, 0.875, 0.880, 0.898, 22, 21),
    "2-D CT CNN": (0.583, 0.708, 0.458, 0.567, 0.630, 17, 11),
    "2-D PET CNN": (0.729, 0.542, 0.917, 0.867, 0.667, 13, 22),
    "3-D CT CNN": (0.667, 0.667, 0.667, 0.667, 0.667, 16, 16),
    "3-D PET CNN": (0.771, 0.750, 0.792, 0.783, 0.766, 18, 19),
    "3-D PET-CT CNN": (0.792, 0.792, 0.792, 0.792, 0.792, 19, 19),
}
"""Peng et al. 2020: accuracy, sensitivity, specificity, precision, F1, and the true positives and negatives implied."""


@pytest.mark.parametrize("method", PRINTED)
def test_the_printed_rates_of_48_patients_are_those_of_the_pooled_matrix(method):
    *printed, tp, tn = PRINTED[method]
    labels, folds = np.repeat([1, 0], 24), np.tile(np.arange(6), 8)
    # Which patients are decided wrongly does not matter to the pooled matrix.
    order = np.random.default_rng(0).permutation(24)
    decisions = np.concatenate([order < tp, order >= tn]).astype(int)
    counts = fold_counts(labels, decisions, folds)
    assert (counts.tp + counts.fn == 4).all()
    pooled = pooled_counts(counts)
    assert pooled == points.confusion_counts(labels, decisions) == Counts(tp, 24 - tn, 24 - tp, tn)
    metrics = (points.accuracy, points.sensitivity, points.specificity, points.precision, points.f1)
    # One precision, 19/27, was cut and not rounded in print.
    assert [float(metric(pooled)) for metric in metrics] == pytest.approx(printed, abs=7.1e-4)


def test_the_auc_of_hard_labels_is_the_mean_of_sensitivity_and_specificity():
    # As printed for 3-D MM-NAS, .896: the area of its decisions, not of its scores.
    labels = np.repeat([1, 0], 24)
    decisions = np.concatenate([np.arange(24) < 22, np.arange(24) >= 21]).astype(int)
    assert round(auc(labels, decisions), 3) == 0.896


def test_rates_of_the_pooled_matrix_are_not_means_of_the_folds_rates():
    labels, decisions, folds = np.array([1, 1, 1, 1]), np.array([1, 0, 0, 0]), np.array([0, 1, 1, 1])
    counts = fold_counts(labels, decisions, folds)
    assert points.sensitivity(counts).mean() == 0.5
    assert points.sensitivity(pooled_counts(counts)) == 0.25


def by_pairs(labels, scores, folds):
    """Every pair of the same fold in turn."""
    wins, pairs = 0.0, 0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero((labels == 0) & (folds == folds[i])):
            wins, pairs = wins + (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]), pairs + 1
    return wins / pairs if pairs else math.nan


rows_in_folds = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=25)


@given(rows_in_folds)
def test_the_within_fold_auc_is_over_pairs_of_one_fold(rows):
    labels, scores, folds = np.array(rows).T
    assert within_fold_auc(labels, scores, folds) == pytest.approx(by_pairs(labels, scores, folds), nan_ok=True)
    # Each fold may have a scale of its own.
    stretched = scores * (1 + folds) - 7.0 * folds
    assert within_fold_auc(labels, stretched, folds) == pytest.approx(by_pairs(labels, scores, folds), nan_ok=True)


def test_mean_and_sd_are_over_folds_that_have_a_value():
    labels, scores = np.array([0, 1, 0, 1, 1, 1]), np.array([0.1, 0.9, 0.6, 0.4, 0.2, 0.3])
    found = per_fold(auc, labels, scores, np.array(["a", "a", "b", "b", "c", "c"]))
    assert found.folds == ("a", "b", "c")
    assert (found.rows.tolist(), found.events.tolist()) == ([2, 2, 2], [1, 1, 2])
    np.testing.assert_array_equal(found.values, [1.0, 0.0, np.nan])
    assert (found.mean, found.undefined) == (0.5, ("c",))
    assert found.sd == pytest.approx(np.std([1.0, 0.0], ddof=1))
    alone = per_fold(auc, labels[:2], scores[:2], np.zeros(2, int))
    assert alone.mean == 1.0
    assert math.isnan(alone.sd)
    nowhere = per_fold(auc, labels[4:], scores[4:], np.zeros(2, int))
    assert math.isnan(nowhere.mean)


def cross_validated(seed, n=120, shift=0.0):
    """Out-of-fold scores of five folds of 24 cases, 10 of them positive; fold f adds f times `shift`."""
    rng = np.random.default_rng(seed)
    labels, folds = (np.arange(n) // 5 % 12 < 5).astype(int), np.arange(n) % 5
    return labels, rng.normal(size=n) + labels + shift * folds, folds


def test_folds_on_different_scales_are_noticed():
    found = pooled_and_within(*cross_validated(0, shift=2.0))
    assert found.pooled < found.within - 0.1
    assert "different scales" in found.warning
    assert f"{found.pooled:.3f}" in found.warning
    same = pooled_and_within(*cross_validated(0))
    assert same.warning == ""
    assert (same.pairs, same.pairs_within) == (50 * 70, 50 * 70 / 5)


def test_one_fold_has_no_difference_and_no_error():
    labels, scores, _ = cross_validated(1)
    found = pooled_and_within(labels, scores, np.zeros(120, int))
    assert (found.difference, found.warning, found.pairs) == (0.0, "", found.pairs_within)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_without_a_fold_of_both_classes_there_is_no_within_fold_auc():
    labels = np.array([0, 1, 0, 1])
    found = pooled_and_within(labels, np.array([0.1, 0.5, 0.2, 0.6]), labels)
    assert found.pooled == 1.0
    assert math.isnan(found.within)
    assert "no fold holds both classes" in found.warning


def test_copies_of_rows_leave_the_standard_error_of_the_difference():
    labels, scores, folds = cross_validated(2)
    single = pooled_and_within(labels, scores, folds)
    patients = np.tile(np.arange(120), 2)
    twice = pooled_and_within(np.tile(labels, 2), np.tile(scores, 2), np.tile(folds, 2), patients)
    assert twice.difference == pytest.approx(single.difference)
    assert twice.standard_error == pytest.approx(single.standard_error, rel=0.05)


def test_the_standard_error_is_the_spread_of_the_difference_over_cohorts():
    def spread_and_error(shift):
        found = [pooled_and_within(*cross_validated([4, seed], shift=shift)) for seed in range(300)]
        warned = np.mean([cohort.warning != "" for cohort in found])
        spread = np.std([cohort.difference for cohort in found], ddof=1)
        return spread, np.mean([cohort.standard_error for cohort in found]), warned

    spread, error, warned = spread_and_error(0.5)
    assert error == pytest.approx(spread, rel=0.15)
    assert warned > 0.5
    spread, error, warned = spread_and_error(0.0)
    assert spread < error < 1.5 * spread
    assert warned < 0.05


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: within_fold_auc(np.array([0, 1]), np.array([0, 1]), np.array([0])), r"folds: shape \(1,\) for 2 rows"),
        (lambda: fold_counts(np.array([0, 1]), np.array([0, 1]), np.array([0, np.nan])), "folds: no fold in 1 row"),
        (lambda: pooled_and_within(np.ones(3, int), np.arange(3), np.zeros(3)), "only class 1 occurs in 3 rows"),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
