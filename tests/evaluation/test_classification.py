"""Points of classification equal scikit-learn, are NaN where undefined, and say what is wrong with the rows."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from fusion_jax.data.collections.breast import breast_mri_predictions
from fusion_jax.evaluation import classification as ours
from fusion_jax.evaluation.classification import (
    METRICS,
    Counts,
    auc,
    classification_metrics,
    confusion_counts,
    metric_value,
    precision_recall_curve,
    roc_curve,
    rows_needed,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    youden_point,
)
from fusion_jax.evaluation.multiclass import (
    MULTICLASS_METRICS,
    confusion_matrix,
    multiclass_brier,
    multiclass_log_loss,
    multiclass_metrics,
    one_versus_rest,
)

PEERS = {
    "auc": lambda y, s, t: sk.roc_auc_score(y, s),
    "average_precision": lambda y, s, t: sk.average_precision_score(y, s),
    "accuracy": lambda y, s, t: sk.accuracy_score(y, s >= t),
    "sensitivity": lambda y, s, t: sk.recall_score(y, s >= t),
    "specificity": lambda y, s, t: sk.recall_score(y, s >= t, pos_label=0),
    "precision": lambda y, s, t: sk.precision_score(y, s >= t),
    "f1": lambda y, s, t: sk.f1_score(y, s >= t),
    "balanced_accuracy": lambda y, s, t: sk.balanced_accuracy_score(y, s >= t),
    "mcc": lambda y, s, t: sk.matthews_corrcoef(y, s >= t),
    "brier": lambda y, s, t: sk.brier_score_loss(y, s),
    "log_loss": lambda y, s, t: sk.log_loss(y, s),
}


def cohort(n=400, levels=41, seed=0):
    """Scores from 0 to 1 with many ties, better than chance."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    return labels, np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1) * (levels - 1)) / (levels - 1)


def held_by_search(labels, scores, target):
    """Every threshold tried in turn, the slow way."""
    best = []
    for threshold in [*np.unique(scores), math.inf]:
        counts = confusion_counts(labels, scores >= threshold)
        sensitivity, specificity = counts.tp / (counts.tp + counts.fn), counts.tn / (counts.tn + counts.fp)
        best.append((sensitivity, specificity))
    specificity = max(specificity for sensitivity, specificity in best if sensitivity >= target)
    sensitivity = max(sensitivity for sensitivity, specificity in best if specificity >= target)
    return specificity, sensitivity


@pytest.mark.parametrize("name", PEERS)
def test_every_metric_equals_scikit_learn(name):
    labels, scores = cohort()
    assert metric_value(name, labels, scores, threshold=0.5) == pytest.approx(
        PEERS[name](labels, scores, 0.5), rel=1e-12
    )


def test_every_metric_of_the_table_has_a_peer_here():
    assert set(PEERS) | {"specificity_at_sensitivity", "sensitivity_at_specificity"} == set(METRICS)


rows_of_few_levels = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


@given(rows_of_few_levels)
def test_rankings_with_ties_equal_scikit_learn(rows):
    labels, scores = np.array(rows).T
    assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12)
    expected = sk.average_precision_score(labels, scores)
    assert ours.average_precision(labels, scores) == pytest.approx(expected, rel=1e-12)
    false_positive, sensitivity, threshold = sk.roc_curve(labels, scores, drop_intermediate=False)
    curve = roc_curve(labels, scores)
    np.testing.assert_allclose(curve.threshold, threshold)
    np.testing.assert_allclose(curve.sensitivity, sensitivity)
    np.testing.assert_allclose(curve.specificity, 1 - false_positive, atol=1e-12)
    precision, recall, threshold = sk.precision_recall_curve(labels, scores)
    points = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(points.precision[::-1], precision[:-1])
    np.testing.assert_allclose(points.recall[::-1], recall[:-1])
    np.testing.assert_allclose(points.threshold[::-1], threshold)


@given(rows_of_few_levels, st.sampled_from([0.05, 0.5, 2 / 3, 0.8, 0.95, 1.0]))
def test_held_points_are_the_best_of_all_thresholds_and_can_be_reproduced(rows, target):
    labels, scores = np.array(rows).T
    specificity, sensitivity = held_by_search(labels, scores, target)
    for point in (
        specificity_at_sensitivity(labels, scores, target),
        sensitivity_at_specificity(labels, scores, target),
    ):
        counts = confusion_counts(labels, scores >= point.threshold)
        assert ours.sensitivity(counts) == point.sensitivity
        assert ours.specificity(counts) == point.specificity
    assert specificity_at_sensitivity(labels, scores, target).specificity == specificity
    assert sensitivity_at_specificity(labels, scores, target).sensitivity == sensitivity


@given(rows_of_few_levels)
def test_youden_is_the_largest_sum_and_among_equals_the_most_sensitive(rows):
    labels, scores = np.array(rows).T
    curve, point = roc_curve(labels, scores), youden_point(labels, scores)
    sums = curve.sensitivity + curve.specificity
    assert point.sensitivity + point.specificity == pytest.approx(sums[1:].max())
    best = np.isclose(sums[1:], sums[1:].max())
    assert point.sensitivity == curve.sensitivity[1:][best].max()


def test_the_published_predictions_give_the_published_figures():
    table = breast_mri_predictions()
    found = {}
    for model, rows in table.groupby("model", sort=False):
        labels, scores = rows["label"].to_numpy(), rows["score"].to_numpy()
        found[model] = (round(auc(labels, scores), 6), specificity_at_sensitivity(labels, scores, 0.95))
    image, fused = found["Image-Only"], found["Learned Feature Fusion"]
    assert (image[0], fused[0]) == (0.849128, 0.897873)
    assert round(100 * image[1].specificity, 3) == 30.105
    assert round(100 * fused[1].specificity, 3) == 49.142
    assert round(3903 * fused[1].specificity) - round(3903 * image[1].specificity) == 743
    assert min(image[1].sensitivity, fused[1].sensitivity) >= 0.95


def test_a_share_is_reached_as_it_is_written():
    # 0.07 * 100 and 0.57 * 100 are 7.000000000000001 and 56.99999999999999 in binary.
    assert [rows_needed(share, 100) for share in (0.07, 0.57, 0.95, 1.0)] == [7, 57, 95, 100]


def test_undefined_is_nan_and_never_zero():
    none = Counts(tp=0, fp=0, fn=3, tn=5)
    assert math.isnan(ours.precision(none))
    assert math.isnan(ours.mcc(none))
    assert ours.f1(none) == 0
    assert math.isnan(ours.sensitivity(Counts(0, 2, 0, 5)))
    assert math.isnan(ours.balanced_accuracy(Counts(0, 2, 0, 5)))
    assert math.isnan(ours.accuracy(Counts(0, 0, 0, 0)))
    empty, one = np.zeros(0, int), np.zeros(4, int)
    for labels in (empty, one):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = classification_metrics(labels, np.linspace(0.1, 0.9, len(labels)), threshold=0.5)
        for name in ("auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity", "mcc"):
            assert math.isnan(found[name]) or (name == "mcc" and len(labels)), name
        assert list(found) == list(METRICS)
    assert math.isnan(classification_metrics(empty, np.zeros(0))["brier"])


def test_counts_may_be_arrays_of_any_shape():
    folds = Counts(np.array([1, 0]), np.array([1, 0]), np.array([0, 2]), np.array([2, 2]))
    np.testing.assert_array_equal(ours.precision(folds), [0.5, np.nan])
    np.testing.assert_array_equal(ours.specificity(folds), [2 / 3, 1.0])


def test_mcc_of_a_hundred_million_rows_does_not_overflow():
    big = Counts(tp=40_000_000, fp=10_000_000, fn=10_000_000, tn=40_000_000)
    assert ours.mcc(big) == pytest.approx(0.6)


def test_a_certain_mistake_costs_36_nats_and_not_infinity():
    assert ours.log_loss(np.array([1]), np.array([0.0])) == pytest.approx(36.0437, abs=1e-4)


@given(rows_of_few_levels, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    labels, scores = np.array(rows).T
    order = list(range(len(labels)))
    random.shuffle(order)
    assert auc(labels[order], scores[order]) == auc(labels, scores)
    assert auc(1 - labels, -scores) == auc(labels, scores)


def test_metrics_that_scores_do_not_have_are_left_out():
    labels, scores = cohort()
    assert list(classification_metrics(labels, 4 * scores - 2, probabilities=False)) == list(METRICS)[:4]
    assert "accuracy" not in classification_metrics(labels, scores)
    assert METRICS["specificity_at_sensitivity"].title(0.9) == "Specificity at 90 % sensitivity"
    assert [name for name, metric in METRICS.items() if not metric.larger_is_better] == ["brier", "log_loss"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc(np.array([0, 2]), np.array([0.1, 0.2])), "labels: found 2; expected 0 and 1"),
        (lambda: auc(np.array([0, 1]), np.array([0.1, np.nan])), r"scores: nan in row 1 \(1 row in all\)"),
        (lambda: auc(np.array([0, 1]), np.array([0.1])), r"scores: shape \(1,\) beside 2 labels"),
        (lambda: confusion_counts(np.array([0, 1]), np.array([0])), "1 decisions for 2 labels"),
        (lambda: ours.brier(np.array([0, 1]), np.array([0.1, 1.5])), "1.5 in row 1 .* is no probability.*logistic"),
        (lambda: specificity_at_sensitivity(np.array([0, 1]), np.array([0, 1]), 95), "a sensitivity of 95 is to be"),
        (lambda: metric_value("acc", np.array([0, 1]), np.array([0, 1])), "no metric 'acc'; there are auc, "),
        (lambda: metric_value("f1", np.array([0, 1]), np.array([0, 1])), "f1 judges decisions, and no threshold"),
        (lambda: one_versus_rest(np.array([0, 3]), np.zeros((2, 3))), "labels: from 0 to 3 beside 3 columns"),
        (lambda: one_versus_rest(np.array([0, 1]), np.zeros((2, 1))), "one column a class"),
        (lambda: one_versus_rest(np.array([0, 1]), np.zeros((2, 2)), "f1"), "take it from the confusion matrix"),
        (lambda: multiclass_brier(np.array([0, 1]), np.full((2, 2), 0.4)), "row 0 sum to 0.8 .*softmax"),
        (
            lambda: confusion_matrix(np.array([0, 1]), np.array([0, 2]), 2),
            "decisions: from 0 to 2; expected classes 0 to 1",
        ),
    ],
)
def test_messages_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 1.2 * np.eye(4)[labels]
    odds = np.exp(logits)
    return labels, np.round(odds / odds.sum(axis=1, keepdims=True), 3)


def test_multiclass_metrics_equal_scikit_learn(classes):
    labels, scores = classes
    decisions = scores.argmax(axis=1)
    exact = scores / scores.sum(axis=1, keepdims=True)
    expected = {
        "macro_auc": sk.roc_auc_score(labels, exact, multi_class="ovr"),
        "macro_average_precision": sk.average_precision_score(np.eye(4)[labels], exact, average="macro"),
        "accuracy": sk.accuracy_score(labels, decisions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decisions),
        "macro_f1": sk.f1_score(labels, decisions, average="macro"),
        "brier": sk.brier_score_loss(labels, exact),
        "log_loss": sk.log_loss(labels, exact),
    }
    found = multiclass_metrics(labels, exact)
    assert list(found) == list(MULTICLASS_METRICS) == list(expected)
    assert found == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(confusion_matrix(labels, decisions, 4), sk.confusion_matrix(labels, decisions))


def test_probabilities_rounded_to_three_digits_are_probabilities(classes):
    labels, scores = classes
    assert np.abs(scores.sum(axis=1) - 1).max() > 1e-4
    assert math.isfinite(multiclass_log_loss(labels, scores))


def test_two_classes_agree_with_the_binary_metrics():
    labels, scores = cohort()
    both = np.stack([1 - scores, scores], axis=1)
    assert one_versus_rest(labels, both).values == pytest.approx([auc(labels, scores)] * 2)
    assert multiclass_brier(labels, both) == pytest.approx(2 * ours.brier(labels, scores))
    assert multiclass_log_loss(labels, both) == pytest.approx(ours.log_loss(labels, scores))


def test_a_class_that_does_not_occur_makes_the_mean_nan(classes):
    labels, scores = classes
    rows = labels != 3
    found = one_versus_rest(labels[rows], scores[rows])
    assert math.isnan(found.values[3])
    assert math.isnan(found.macro)
    assert math.isfinite(multiclass_metrics(labels[rows], scores[rows])["accuracy"])
