"""Weighted metrics equal scikit-learn's on rows that are repeated as often as they weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.evaluation.ranked import (
    ClassificationData,
    Counts,
    classification_statistics,
    curve_statistics,
    exact_ratio,
    make_fold_pairs,
    make_ranked,
    rates,
    row_losses,
    stack_ranked,
    weighted_auc,
    weighted_roc_curve,
    weighted_sensitivity_at_specificity,
    weighted_specificity_at_sensitivity,
)
from tests.helpers import assert_close

LABELS = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0])
FOLDS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
TARGETS = (0.95, 0.8, 0.5)
GRID = np.linspace(0, 1, 101)

statistics = jax.jit(classification_statistics)
curves = jax.jit(curve_statistics)

tied_scores = st.lists(st.integers(0, 6), min_size=12, max_size=12).map(lambda s: np.array(s) / 6)
weight_lists = st.lists(st.integers(0, 3), min_size=12, max_size=12).map(np.array)


def all_data(scores):
    """Two models, the second the first upside down, with everything there is to compute."""
    models = np.stack([scores, 1 - scores])
    return ClassificationData(
        ranked=make_ranked(LABELS, models),
        positive=LABELS,
        pairs=make_fold_pairs(LABELS, models, FOLDS),
        sensitivities=np.stack([exact_ratio(target) for target in TARGETS]),
        specificities=np.stack([exact_ratio(target) for target in TARGETS]),
        decisions={"at 0.4": models >= 0.4},
        losses=row_losses(LABELS, models),
    )


def operating_points(labels, scores):
    """Specificity and sensitivity at every threshold, by definition."""
    thresholds = [*np.unique(scores), np.inf]
    called = np.array([scores >= threshold for threshold in thresholds])
    return 1 - called[:, labels == 0].mean(axis=1), called[:, labels == 1].mean(axis=1)


def expected(labels, scores, folds):
    """Every metric of the repeated rows of one model, by scikit-learn or by definition; NaN where undefined."""
    both, one = len(set(labels)) == 2, 1 in labels
    called = (scores >= 0.4).astype(int)
    tn, fp, fn, tp = sklearn.metrics.confusion_matrix(labels, called, labels=[0, 1]).ravel()
    found = {
        "auc": sklearn.metrics.roc_auc_score(labels, scores) if both else np.nan,
        "average_precision": sklearn.metrics.average_precision_score(labels, scores) if one else np.nan,
        "brier": sklearn.metrics.brier_score_loss(labels, scores),
        "log_loss": sklearn.metrics.log_loss(labels, scores, labels=[0, 1]),
        "accuracy": sklearn.metrics.accuracy_score(labels, called),
        "sensitivity": tp / (tp + fn) if one else np.nan,
        "specificity": tn / (tn + fp) if 0 in labels else np.nan,
        "precision": tp / (tp + fp) if tp + fp else np.nan,
        "f1": sklearn.metrics.f1_score(labels, called) if tp + fp + fn else np.nan,
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, called) if both else np.nan,
        "mcc": sklearn.metrics.matthews_corrcoef(labels, called) if both and tp + fp and tn + fn else np.nan,
    }
    won = pairs = 0.0
    for fold in set(folds):
        of, against = scores[(folds == fold) & (labels == 1)], scores[(folds == fold) & (labels == 0)]
        won += np.sum(of[:, None] > against) + 0.5 * np.sum(of[:, None] == against)
        pairs += of.size * against.size
    found["within_fold_auc"] = won / pairs if pairs else np.nan
    for target in TARGETS:
        found[f"specificity at {target}"] = found[f"sensitivity at {target}"] = np.nan
        if both:
            specificity, sensitivity = operating_points(labels, scores)
            found[f"specificity at {target}"] = specificity[sensitivity >= target - 1e-9].max()
            found[f"sensitivity at {target}"] = sensitivity[specificity >= target - 1e-9].max()
    return found


def flatten(found, model):
    flat = {"auc": found.auc, "average_precision": found.average_precision, "within_fold_auc": found.within_fold_auc}
    flat |= found.decisions["at 0.4"]._asdict() | found.losses
    for column, target in enumerate(TARGETS):
        flat[f"specificity at {target}"] = found.specificity_at_sensitivity[:, column]
        flat[f"sensitivity at {target}"] = found.sensitivity_at_specificity[:, column]
    return {name: float(value[model]) for name, value in flat.items()}


def compare(scores, weights):
    found = statistics(all_data(scores), weights.astype(float))
    labels, folds = np.repeat(LABELS, weights), np.repeat(FOLDS, weights)
    for model, one in enumerate((scores, 1 - scores)):
        wanted = expected(labels, np.repeat(one, weights), folds)
        assert flatten(found, model) == pytest.approx(wanted, abs=2e-6, nan_ok=True)


@given(tied_scores, weight_lists.filter(lambda weights: weights.sum() > 1))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_every_metric_equals_that_of_repeated_rows(scores, weights):
    compare(scores, weights)


@given(tied_scores)
def test_with_equal_weights_every_metric_is_that_of_scikit_learn(scores):
    compare(scores, np.ones(12, int))


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:.*single label.*:UserWarning")
def test_with_one_class_only_what_needs_both_is_undefined(kept):
    compare(np.linspace(0, 1, 12), (kept == LABELS).astype(int))


def test_without_weight_everything_is_undefined():
    found = statistics(all_data(np.linspace(0, 1, 12)), np.zeros(12))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_what_is_not_asked_for_is_not_there():
    found = jax.jit(classification_statistics)(
        ClassificationData(make_ranked(LABELS, LABELS[None] / 2), LABELS), LABELS * 0 + 1
    )
    assert found.auc.tolist() == [1.0]
    assert found[2:] == (None, None, None, {}, {})


def test_scores_that_single_precision_cannot_tell_apart_are_no_ties():
    labels = np.tile([0, 1], 6)
    ranked = make_ranked(labels, (0.5 + 1e-12 * np.arange(12))[None])
    assert float(jax.vmap(weighted_auc, (0, None))(ranked, np.ones(12))[0]) == pytest.approx(21 / 36)


@given(tied_scores, weight_lists.filter(lambda w: w[LABELS == 0].sum() > 0 and w[LABELS == 1].sum() > 0))
def test_curves_equal_scikit_learn_on_the_grid(scores, weights):
    found = curves(make_ranked(LABELS, scores[None]), weights.astype(float))
    labels, repeated = np.repeat(LABELS, weights), np.repeat(scores, weights)
    fpr, tpr, _ = sklearn.metrics.roc_curve(labels, repeated, drop_intermediate=False)
    # On a vertical piece the upper end: of equal false-positive rates the last.
    corner = np.searchsorted(fpr, GRID + 1e-9, side="right") - 1
    ahead = np.minimum(corner + 1, len(fpr) - 1)
    run = np.where(ahead > corner, fpr[ahead] - fpr[corner], 1)
    wanted = tpr[corner] + (GRID - fpr[corner]) / run * (tpr[ahead] - tpr[corner])
    np.testing.assert_allclose(found.sensitivity[0], wanted, atol=2e-6)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, repeated)
    # Thresholds ascend and recall falls; the last point stands for no threshold.
    rows = [np.flatnonzero((recall[:-1] >= level - 1e-9) & (recall[:-1] > 0))[-1] for level in GRID]
    np.testing.assert_allclose(found.precision[0], precision[rows], atol=2e-6)


def test_the_area_under_the_curve_on_a_fine_grid_is_the_auc():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    ranked = make_ranked(labels, rng.integers(0, 5, 40) / 5 + labels / 5)
    weights = rng.integers(0, 3, 40)
    curve = jax.jit(lambda r, w: weighted_roc_curve(r, w, points=20 * int(weights[labels == 0].sum()) + 1))(
        ranked, weights
    )
    # Between neighbouring points the curve is straight or, where it jumps, off by at most one step.
    assert float(jnp.mean((curve[1:] + curve[:-1]) / 2)) == pytest.approx(
        float(weighted_auc(ranked, weights)), abs=0.01
    )


def test_targets_are_compared_in_integers():
    # In double precision 0.55 * 100 is 55.00000000000001 and 0.57 * 100 is 56.99999999999999.
    missed = {
        (100, 0.55): 45,
        (100, 0.57): 43,
        (20, 0.95): 1,
        (1006, 0.95): 50,
        (40, 0.9): 4,
        (3, 1.0): 0,
        (7, 0.0001): 6,
    }
    # The positive of score k has k negatives below it, so the specificity is the fraction that may be missed.
    ranked = [make_ranked(np.repeat([1, 0], p), np.concatenate([np.arange(p), np.arange(p) + 0.5])) for p, _ in missed]
    ratios = np.stack([exact_ratio(target) for _, target in missed])
    kernel = jax.jit(jax.vmap(weighted_specificity_at_sensitivity, (0, 0, None)))
    found = kernel(stack_ranked(ranked, rows=2012), ratios, np.ones(2012))
    wanted = [count / positives for (positives, _), count in missed.items()]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_mirror_swaps_the_classes():
    rng = np.random.default_rng(2)
    labels, scores = rng.permutation(np.repeat([0, 1], 30)), rng.normal(size=60)
    one, mirrored = make_ranked(labels, scores), make_ranked(1 - labels, -scores)
    for target in TARGETS:
        ratio = exact_ratio(target)
        assert_close(
            weighted_sensitivity_at_specificity(one, ratio, np.ones(60)),
            weighted_specificity_at_sensitivity(mirrored, ratio, np.ones(60)),
        )


@pytest.mark.parametrize("target", [0, -0.1, 1.01, 95, 0.123456])
def test_a_target_that_is_no_fraction_is_refused(target):
    with pytest.raises(ValueError, match=f"target {target}; expected a fraction above 0, up to 1"):
        exact_ratio(target)


def test_large_cohorts_lose_nothing():
    rng = np.random.default_rng(0)
    n = 200_000
    labels = rng.permutation(np.repeat([0, 1], n // 2))
    scores = rng.normal(size=n) + 0.1 * labels
    weights = rng.integers(0, 4, n)
    wanted = sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weights)
    # The numerator is about 2e10 and does not fit 32 bits; the one rounding is that of the quotient.
    found = float(jax.jit(weighted_auc)(make_ranked(labels, scores), weights.astype(np.float32)))
    assert abs(found - wanted) < 1.5e-7


def test_a_mean_over_large_cohorts_is_good_to_seven_digits():
    rng = np.random.default_rng(1)
    labels, probabilities = rng.integers(0, 2, 100_000), rng.uniform(size=100_000)
    data = ClassificationData(
        make_ranked(labels[:4] * 0 + [0, 1, 0, 1], probabilities[None, :4]),
        labels,
        losses=row_losses(labels, probabilities[None]),
    )
    found = statistics(data, np.ones(100_000))
    assert float(found.losses["brier"][0]) == pytest.approx(
        sklearn.metrics.brier_score_loss(labels, probabilities), rel=1e-6
    )


def test_classes_against_the_rest_equal_scikit_learn():
    rng = np.random.default_rng(5)
    classes = rng.permutation(np.repeat([0, 1, 2], [5, 11, 24]))
    probabilities = rng.dirichlet(np.ones(3), 40)
    ranked = stack_ranked([make_ranked(classes == k, probabilities[:, k]) for k in range(3)], rows=40)
    data = ClassificationData(
        ranked,
        np.stack([classes == k for k in range(3)]),
        sensitivities=exact_ratio(0.8)[None],
        decisions={"argmax": np.stack([probabilities.argmax(axis=1) == k for k in range(3)])},
    )
    weights = rng.integers(0, 3, 40)
    found, drawn = statistics(data, weights), np.repeat(np.arange(40), weights)
    wanted = [sklearn.metrics.roc_auc_score(classes[drawn] == k, probabilities[drawn, k]) for k in range(3)]
    assert_close(found.auc, np.array(wanted), 1e-6)
    macro = sklearn.metrics.roc_auc_score(classes[drawn], probabilities[drawn], multi_class="ovr")
    assert float(found.auc.mean()) == pytest.approx(macro, rel=1e-6)
    of_class = [sklearn.metrics.average_precision_score(classes[drawn] == k, probabilities[drawn, k]) for k in range(3)]
    assert_close(found.average_precision, np.array(of_class), 1e-6)
    recalls = sklearn.metrics.recall_score(classes[drawn], probabilities[drawn].argmax(axis=1), average=None)
    assert_close(found.decisions["argmax"].sensitivity, recalls, 1e-6)
    for k in range(3):
        specificity, sensitivity = operating_points(classes[drawn] == k, probabilities[drawn, k])
        best = specificity[sensitivity >= 0.8 - 1e-9].max()
        assert float(found.specificity_at_sensitivity[k, 0]) == pytest.approx(best, abs=1e-6)
    # Padding changes no curve.
    padded, alone = (
        curves(one, weights)
        for one in (ranked, jax.tree.map(lambda a: a[None], make_ranked(classes == 0, probabilities[:, 0])))
    )
    np.testing.assert_allclose(padded.sensitivity[0], alone.sensitivity[0], atol=1e-6)
    np.testing.assert_allclose(padded.precision[0], alone.precision[0], atol=1e-6)


def test_folds_on_different_scales_are_compared_within_only():
    labels, fold = np.tile([0, 1], 10), np.repeat([4, 9], 10)
    scores = np.tile([0.2, 0.3], 10) + 100.0 * fold
    pairs = make_fold_pairs(labels, scores[None], fold)
    found = statistics(ClassificationData(make_ranked(labels, scores[None]), labels, pairs), np.ones(20))
    assert found.within_fold_auc.tolist() == [1.0]
    assert found.auc.tolist() == [0.75]


def test_correlation_of_large_counts_does_not_overflow():
    counts = np.array([30_000, 2_000, 9_000, 59_000])
    found = rates(Counts(*map(jnp.asarray, counts)))
    tp, fp, fn, tn = counts.astype(float)
    wanted = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert float(found.mcc) == pytest.approx(wanted, rel=1e-6)


def test_a_sure_mistake_costs_36_as_in_scikit_learn():
    labels, sure = np.array([0, 1, 1]), np.array([1.0, 1.0, 0.25])
    losses = row_losses(labels, sure)["log_loss"]
    assert losses.mean() == pytest.approx(sklearn.metrics.log_loss(labels, sure))
    assert losses[0] == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize("sort", [make_ranked, lambda y, s: make_fold_pairs(y, s, np.zeros(len(s), int))])
def test_scores_and_labels_that_cannot_be_ranked_are_refused(sort):
    with pytest.raises(ValueError, match="scores: NaN in row 1"):
        sort(np.array([0, 1]), np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="labels: 2 in row 1; expected 0 or 1"):
        sort(np.array([0, 2]), np.array([0.1, 0.2]))


def test_labels_and_scores_of_different_lengths_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) and scores of shape \(3,\)"):
        make_ranked(np.array([0, 1]), np.array([0.1, 0.2, 0.3]))
