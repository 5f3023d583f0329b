import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fusion_jax.data.synthetic import Truth, area_under_curve, auc_of_d_prime


def scores_with_ties(n=400):
    rng = np.random.default_rng(3)
    label = rng.random(n) < 0.4
    return np.round(rng.normal(size=n) + label, 1), label


def test_the_auc_is_that_of_sklearn_with_ties():
    scores, label = scores_with_ties()
    assert area_under_curve(scores, label).value == pytest.approx(roc_auc_score(label, scores), abs=1e-12)


def test_the_standard_error_is_the_spread_over_draws():
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2 == 1
    found = [area_under_curve(rng.normal(size=200) + label, label) for _ in range(600)]
    spread = np.std([auc.value for auc in found])
    # 600 draws tell a standard deviation to about 3 %.
    assert np.mean([auc.standard_error for auc in found]) == pytest.approx(spread, rel=0.1)


def test_perfect_scores_have_no_error():
    assert area_under_curve(np.arange(6.0), np.arange(6) > 2) == (1.0, 0.0)


def test_one_case_of_a_class_has_an_unknown_error():
    assert np.isnan(area_under_curve(np.arange(3.0), np.array([True, False, False])).standard_error)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="0 positive and 3 negative cases; an AUC needs both classes"):
        area_under_curve(np.arange(3.0), np.zeros(3, bool))


def test_the_auc_of_a_distance_is_that_of_normal_classes():
    rng = np.random.default_rng(1)
    label = np.arange(100_000) % 2 == 1
    auc = area_under_curve(rng.normal(size=100_000) + 1.3 * label, label)
    assert abs(auc.value - auc_of_d_prime(1.3)) < 4 * auc.standard_error


def test_what_a_truth_does_not_know_is_named():
    label = np.array([[0, 1], [1, 0], [1, 1]])
    truth = Truth(("death", "relapse"), label, {"ct": label.astype(float)}, None, {})
    assert truth.auc("ct").value == truth.auc("ct", "relapse").value == 1
    with pytest.raises(ValueError, match="source 'pet' has no likelihood ratio in closed form; sources that have: ct"):
        truth.auc("pet")
    with pytest.raises(ValueError, match="target 'cure': this truth knows death, relapse"):
        truth.auc("ct", "cure")
    with pytest.raises(ValueError, match="sources together have no likelihood ratio"):
        truth.auc()
