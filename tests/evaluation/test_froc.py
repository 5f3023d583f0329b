"""Free-response curves by hand, and all statistics of boxes under weights."""

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fusion_jax.evaluation.detection import average_precision, box_counts
from fusion_jax.evaluation.detection_matching import AREAS, Matches, match_boxes
from fusion_jax.evaluation.froc import (
    case_auc,
    case_scores,
    detection_statistics,
    froc_curve,
    make_detection_data,
    sensitivity_at,
)
from fusion_jax.evaluation.resampling import bootstrap, draw_weights, make_design

BOX, FAR = [0.0, 0, 10, 10], [50.0, 50, 60, 60]


def by_hand(scores=(0.9, 0.8, 0.8, 0.7, 0.2)) -> Matches:
    """Four images, two with one box each: false, found, false, found, found again."""
    truth = np.array([BOX, BOX])
    found = np.array([FAR, BOX, FAR, BOX, BOX])
    return match_boxes(
        truth,
        np.array([0, 1]),
        np.array([0, 1]),
        found,
        np.array([2, 0, 3, 1, 1]),
        np.array([0, 0, 0, 1, 1]),
        np.array(scores),
        cases=4,
        classes=2,
        areas=AREAS[:1],
    )


def test_a_curve_by_hand_counts_all_images_and_equal_scores_together():
    curve = froc_curve(by_hand())
    assert curve.false_positives.tolist() == [0.25, 0.5, 0.5, 0.75]
    assert curve.sensitivity.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.score.tolist() == [0.9, 0.8, 0.7, 0.2]
    assert (curve.boxes, curve.cases) == (2, 4)
    assert sensitivity_at(curve).tolist() == [0, 0, 1, 1, 1, 1, 1]
    of_class = froc_curve(by_hand(), label=1)
    assert sensitivity_at(of_class).tolist() == [1] * 7
    assert of_class.boxes == 1


def test_without_boxes_sensitivity_is_unknown_and_without_detections_0():
    none = np.zeros(0, int)
    empty = {"case": none, "label": none, "score": np.zeros(0), "boxes": np.zeros((0, 4))}
    truth = {"truth_boxes": np.array([BOX]), "truth_case": np.array([0]), "truth_label": np.array([0])}
    matches = match_boxes(**truth, **empty, cases=2, classes=2)
    assert sensitivity_at(froc_curve(matches)).tolist() == [0] * 7
    assert np.isnan(sensitivity_at(froc_curve(matches, label=1))).all()
    assert froc_curve(matches).score.size == 0
    np.testing.assert_array_equal(case_auc(matches), [0.5, np.nan, 0.5])


def test_where_every_image_has_a_box_images_cannot_be_told_apart():
    zero = np.zeros(2, int)
    boxes = np.array([BOX, BOX])
    matches = match_boxes(boxes, np.arange(2), zero, boxes, np.arange(2), zero, np.ones(2), cases=2, classes=1)
    found = detection_statistics(make_detection_data([matches]), np.ones(2))
    assert np.isnan(found.case_auc).all()
    assert np.allclose(found.average_precision[..., 0], 1.0)


def test_images_are_ranked_by_their_highest_score_and_silent_ones_come_last():
    matches = by_hand()
    holds, places = case_scores(matches)
    assert holds.tolist() == [True, True, False, False]
    assert places.tolist() == [3, 2, 4, 3]
    holds, places = case_scores(matches, label=1)
    assert places.tolist() == [0, 2, 0, 0]
    highest = [0.8, 0.7, 0.9, 0.8]
    assert case_auc(matches)[-1] == roc_auc_score([1, 1, 0, 0], highest)


# Under weights.


def draw_matches(seed: int, cases: int, overlap="iou") -> Matches:
    rng = np.random.default_rng(seed)
    truth_case = np.sort(rng.integers(0, cases * 2 // 3, cases))
    corner = rng.uniform(0, 80, (cases, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10, 40, (cases, 2))], axis=1)
    case = np.concatenate([truth_case, rng.integers(0, cases, 2 * cases)])
    near = truth + rng.normal(0, 3, truth.shape)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    corner = rng.uniform(0, 80, (2 * cases, 2))
    false = np.concatenate([corner, corner + rng.uniform(10, 40, (2 * cases, 2))], axis=1)
    label = rng.integers(0, 2, cases)
    return match_boxes(
        truth,
        truth_case,
        label,
        np.concatenate([near, false]),
        case,
        np.concatenate([label, rng.integers(0, 2, 2 * cases)]),
        rng.random(3 * cases).round(2),
        cases=cases,
        classes=2,
        overlap=overlap,
        areas=AREAS[:1],
    )


statistics = jax.jit(detection_statistics)


@pytest.fixture(scope="module")
def entries():
    return [draw_matches(0, 30), draw_matches(0, 30, "iobb")]


@pytest.fixture(scope="module")
def data(entries):
    return make_detection_data(entries, score=0.4)


def test_weights_of_1_give_the_numbers_of_the_host(entries, data):
    found = statistics(data, np.ones(30, np.float32))
    for e, entry in enumerate(entries):
        tp, fp, fn = box_counts(entry, score=0.4)
        np.testing.assert_array_equal(found.tp[e], tp)
        np.testing.assert_array_equal(found.fp[e], fp)
        np.testing.assert_array_equal(found.boxes[e], tp + fn)
        wanted = [sensitivity_at(froc_curve(entry, label=label)) for label in (0, 1, None)]
        np.testing.assert_allclose(found.sensitivity[e], wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.average_precision[e, :2], average_precision(entry).of()[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.case_auc[e], case_auc(entry), rtol=0, atol=1e-6)
    assert 0 < found.sensitivity[0, -1, 0] < found.sensitivity[0, -1, 4]
    assert int(found.cases) == 30


def test_weights_count_as_often_as_they_say(entries, data):
    """FROC under weights by a loop over thresholds, with equal scores in both classes."""
    weights = np.random.default_rng(1).integers(0, 4, 30)
    found = statistics(data, weights.astype(np.float32))
    entry = entries[0]
    ones = statistics(data, np.ones(30, np.float32))
    right, false = (np.zeros(len(entry.row), bool) for _ in range(2))
    right[entry.hit] = entry.matched[:, 0, 0]
    false[:] = ~right
    of_case, boxes = weights[entry.case], weights[entry.truth_case].sum()
    for x, rate in enumerate((1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)):
        reached = [
            of_case[right & (entry.score >= cut)].sum()
            for cut in np.unique(entry.score)
            if of_case[false & (entry.score >= cut)].sum() <= rate * weights.sum()
        ]
        assert float(found.sensitivity[0, -1, x]) == pytest.approx(max(reached, default=0) / boxes, abs=1e-6)
    called = entry.score >= 0.4
    assert int(found.tp[0, -1]) == of_case[right & called].sum()
    assert int(found.fp[0, -1]) == of_case[false & called].sum()
    assert not np.allclose(found.sensitivity, ones.sensitivity)


def test_all_images_of_a_patient_are_drawn_together(data):
    patients = np.repeat(np.arange(10), 3)
    design = make_design(None, patients)
    draws = bootstrap(detection_statistics, data, design, resamples=8, seed=3)
    assert draws.sensitivity.shape == (8, 2, 3, 7)
    for r in range(8):
        weights = draw_weights(design, r, seed=3)
        assert (weights.reshape(10, 3) == weights.reshape(10, 3)[:, :1]).all()
        np.testing.assert_allclose(draws.sensitivity[r], statistics(data, weights).sensitivity, atol=1e-6)
        assert draws.cases[r] == 30
    assert draws.sensitivity[:, 0, -1, 2].std() > 0


def test_a_class_that_was_not_drawn_is_unknown(data, entries):
    weights = np.zeros(30, np.float32)
    weights[-1] = 2  # images without a box come last
    found = statistics(data, weights)
    assert np.isnan(found.average_precision).all()
    assert np.isnan(found.sensitivity).all()
    assert int(found.boxes.sum()) == 0
    assert entries[0].truth_case.max() < 29
