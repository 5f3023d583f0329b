"""Matching and average precision against COCO's own program, a matcher written out, and repeated cases."""

import contextlib
import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fusion_jax.evaluation.detection import (
    NEEDS_MORE,
    RECALL_LEVELS,
    View,
    average_precision,
    box_counts,
    coco_summary,
    make_precision_data,
    weighted_average_precision,
    with_mean,
)
from fusion_jax.evaluation.detection_matching import (
    ALMOST_ONE,
    AREAS,
    COCO_OVERLAPS,
    OVERLAP_GRID,
    match_boxes,
    pairwise_overlap,
)
from fusion_jax.ops.boxes import box_iobb, box_iou
from tests.helpers import assert_close

ALL_SIZES = AREAS[:1]


class Boxes(NamedTuple):
    """Arguments of `match_boxes`."""

    truth_boxes: np.ndarray
    truth_case: np.ndarray
    truth_label: np.ndarray
    boxes: np.ndarray
    case: np.ndarray
    label: np.ndarray
    score: np.ndarray


def draw_boxes(seed: int, *, cases: int, classes: int, truths: float, detections: int) -> Boxes:
    """Whole-numbered boxes, so that overlaps tie, scores of one decimal, and cases without boxes of either kind."""
    rng = np.random.default_rng(seed)
    truth_case = np.repeat(np.arange(cases), rng.poisson(truths, cases))
    corner = rng.uniform(0, 250, (len(truth_case), 2))
    sides = rng.choice([12.0, 40.0, 110.0], (len(truth_case), 1)) * rng.uniform(0.7, 1.4, (len(truth_case), 2))
    truth = np.concatenate([corner, corner + sides], axis=1).round()
    case = np.repeat(np.arange(cases), rng.integers(0, detections + 1, cases))
    corner = rng.uniform(0, 250, (len(case), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 120, (len(case), 2))], axis=1)
    label = rng.integers(0, classes, len(case))
    truth_label = rng.integers(0, classes, len(truth_case))
    for row in range(len(case)):
        own = np.flatnonzero(truth_case == case[row])
        if own.size and rng.random() < 0.7:
            near = rng.choice(own)
            boxes[row], label[row] = truth[near] + rng.normal(0, 4, 4), truth_label[near]
    boxes = boxes.round()
    for some in (truth, boxes):
        some[:, 2:] = np.maximum(some[:, 2:], some[:, :2] + 1)
    return Boxes(truth, truth_case, truth_label, boxes, case, label, rng.random(len(case)).round(1))


def coco_evaluation(boxes: Boxes, *, cases: int, classes: int, crowd: np.ndarray, area: np.ndarray) -> COCOeval:
    def side_form(corners: np.ndarray) -> list[float]:
        return [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]

    annotations = [
        {
            "id": row + 1,
            "image_id": int(boxes.truth_case[row]) + 1,
            "category_id": int(boxes.truth_label[row]) + 1,
            "bbox": side_form(boxes.truth_boxes[row]),
            "area": float(area[row]),
            "iscrowd": int(crowd[row]),
        }
        for row in range(len(boxes.truth_case))
    ]
    results = [
        {
            "image_id": int(boxes.case[row]) + 1,
            "category_id": int(boxes.label[row]) + 1,
            "bbox": side_form(boxes.boxes[row]),
            "score": float(boxes.score[row]),
        }
        for row in range(len(boxes.case))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": case + 1} for case in range(cases)],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_every_number_is_that_of_coco(seed):
    cases, classes = 25, 3
    # Few boxes leave classes and sizes without any; many detections of an image reach the limits of 1 and 10.
    boxes = draw_boxes(seed, cases=cases, classes=classes, truths=[0.3, 2.0, 6.0][seed % 3], detections=60)
    rng = np.random.default_rng(seed)
    crowd = rng.random(len(boxes.truth_case)) < (0.25 if seed % 2 else 0)
    area = rng.uniform(1, 20_000, len(crowd))  # of masks: not those of the boxes
    matches = match_boxes(*boxes, cases=cases, classes=classes, crowd=crowd, area=area)
    found = average_precision(matches)
    wanted = coco_evaluation(boxes, cases=cases, classes=classes, crowd=crowd, area=area)
    assert (wanted.eval["precision"] > 0).sum() > 100
    np.testing.assert_allclose(np.nan_to_num(found.precision, nan=-1), wanted.eval["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.nan_to_num(found.recall, nan=-1), wanted.eval["recall"], rtol=0, atol=1e-12)
    summary = np.nan_to_num(list(coco_summary(found).values()), nan=-1)
    np.testing.assert_allclose(summary, wanted.stats, rtol=0, atol=1e-9)


def brute_force(boxes: Boxes, overlap, threshold: float) -> list[bool]:
    """Which detections find a box, one after another, the highest score first; no crowd, all sizes."""
    found, taken = [False] * len(boxes.case), set()
    for row in sorted(range(len(boxes.case)), key=lambda row: (-boxes.score[row], row)):
        best, partner = min(threshold, ALMOST_ONE), None
        for other in range(len(boxes.truth_case)):
            same = (boxes.truth_case[other], boxes.truth_label[other]) == (boxes.case[row], boxes.label[row])
            if same and other not in taken and overlap(boxes.boxes[row], boxes.truth_boxes[other]) >= best:
                best, partner = overlap(boxes.boxes[row], boxes.truth_boxes[other]), other
        if partner is not None:
            taken.add(partner)
            found[row] = True
    return found


def iobb(detected, truth):
    width = min(detected[2], truth[2]) - max(detected[0], truth[0])
    height = min(detected[3], truth[3]) - max(detected[1], truth[1])
    inside = width * height if min(width, height) > 0 else 0
    return inside / ((detected[2] - detected[0]) * (detected[3] - detected[1]))


@pytest.mark.parametrize("seed", range(3))
def test_matches_by_iobb_are_those_of_a_loop(seed):
    boxes = draw_boxes(seed, cases=12, classes=2, truths=3, detections=12)
    matches = match_boxes(
        *boxes, cases=12, classes=2, overlap="iobb", thresholds=OVERLAP_GRID, areas=ALL_SIZES, max_detections=100
    )
    for t, threshold in enumerate(OVERLAP_GRID):
        ours = np.zeros(len(boxes.case), bool)
        ours[matches.row[matches.hit]] = matches.matched[:, t, 0]
        assert ours.tolist() == brute_force(boxes, iobb, threshold)


def test_more_settings_than_bits_change_nothing():
    boxes = draw_boxes(1, cases=12, classes=2, truths=3, detections=12)
    many = match_boxes(*boxes, cases=12, classes=2, thresholds=OVERLAP_GRID, areas=AREAS)  # 84 in integers of 64 bits
    few = match_boxes(*boxes, cases=12, classes=2, thresholds=OVERLAP_GRID[-4:], areas=AREAS)
    shared = np.isin(many.hit, few.hit)
    np.testing.assert_array_equal(many.matched[shared][:, -4:], few.matched)
    assert not many.matched[~shared][:, -4:].any()


# Overlaps.

iou_of, iobb_of = jax.jit(box_iou), jax.jit(box_iobb)


@given(
    st.lists(
        st.tuples(*[st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)] * 2),
        min_size=5,
        max_size=5,
    )
)
def test_overlaps_are_those_of_the_kernels_and_iou_is_the_smaller(rows):
    numbers = np.array(rows, float)
    detected, truth = (
        np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]], axis=1) for part in (numbers[:, :4], numbers[:, 4:])
    )
    iou, iobb_found = (pairwise_overlap(detected, truth, over_detection=over) for over in (False, True))
    for ours, kernel in ((iou, iou_of), (iobb_found, iobb_of)):
        np.testing.assert_allclose(ours, np.diag(kernel(detected, truth)), rtol=1e-6, atol=1e-7)
    assert (iou <= iobb_found + 1e-15).all()


def test_iobb_is_1_inside_and_the_ratio_of_areas_around():
    inner, outer = np.array([[2.0, 2, 4, 5]]), np.array([[0.0, 0, 10, 10]])
    assert pairwise_overlap(inner, outer, over_detection=True).item() == 1
    assert pairwise_overlap(outer, inner, over_detection=True).item() == 6 / 100
    assert pairwise_overlap(inner, inner + 20, over_detection=True).item() == 0


# By hand.


def test_average_precision_by_hand():
    truth = np.array([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    found = np.array([[0.0, 0, 10, 10], [50.0, 0, 60, 10], [20.0, 0, 30, 10]])
    zero = np.zeros(3, int)
    matches = match_boxes(
        truth, zero[:2], zero[:2], found, zero, zero, np.array([0.9, 0.8, 0.7]), cases=1, classes=1, thresholds=[0.5]
    )
    precision, recall = average_precision(matches).of()
    # Precision 1 up to a recall of one half (levels 0 to 50), then 2/3 (the other 50 levels).
    assert precision.item() == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert recall.item() == 1
    assert [part.tolist() for part in box_counts(matches, score=0.75)] == [[1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("overlap", ["iou", "iobb"])
@pytest.mark.parametrize("score", [None, 0.5])
def test_found_and_missed_boxes_are_all_boxes(overlap, score):
    boxes = draw_boxes(4, cases=20, classes=3, truths=2, detections=15)
    matches = match_boxes(*boxes, cases=20, classes=3, overlap=overlap)
    tp, fp, fn = box_counts(matches, overlap=0.5, score=score)
    assert (tp + fn).tolist() == [*np.bincount(boxes.truth_label, minlength=3), len(boxes.truth_label)]
    called = boxes.score >= (-1 if score is None else score)
    assert (tp + fp).tolist() == [*np.bincount(boxes.label[called], minlength=3), called.sum()]


def test_a_threshold_of_0_asks_only_for_the_same_case_and_class():
    zero = np.zeros(1, int)
    apart = np.array([[0.0, 0, 5, 5]]), np.array([[50.0, 50, 60, 60]])
    matches = match_boxes(
        apart[0], zero, zero, apart[1], zero, zero, np.ones(1), cases=1, classes=1, thresholds=[0.0, 0.05]
    )
    assert matches.matched[:, :, 0].tolist() == [[True, False]]


# Nothing there.


def test_without_detections_recall_is_0_and_without_boxes_nothing_is_known():
    truth, none = np.array([[0.0, 0, 9, 9]]), np.zeros(0, int)
    matches = match_boxes(
        truth, np.zeros(1, int), np.zeros(1, int), np.zeros((0, 4)), none, none, np.zeros(0), cases=2, classes=2
    )
    precision, recall = average_precision(matches).of()
    assert precision[0].tolist() == recall[0].tolist() == [0.0] * 10
    assert np.isnan(precision[1]).all()
    assert coco_summary(average_precision(matches))["AP"] == 0
    assert [part.tolist() for part in box_counts(matches)] == [[0, 0, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[5.0, 0, 5, 9]]}, r"boxes\[0\] is 5.0, 0.0, 5.0, 9.0 .*x0 < x1"),
        ({"boxes": [[np.nan, 0, 5, 9]]}, r"boxes\[0\] is nan"),
        ({"case": [3]}, "case holds 3 to 3; expected 0 to 1, since there are 2 cases"),
        ({"label": [-1]}, "label holds -1 to -1"),
        ({"score": [np.nan]}, r"score\[0\] is nan"),
        ({"thresholds": [1.2]}, "thresholds are 1.2; expected overlaps from 0 to 1"),
        ({"max_detections": 0}, "max_detections is 0"),
    ],
)
def test_what_cannot_be_matched_is_named(change, message):
    arrays = {"boxes": [[0.0, 0, 5, 9]], "case": [0], "label": [0], "score": [0.5]}
    given_arrays = {name: np.array(change.get(name, value)) for name, value in arrays.items()}
    options = {name: value for name, value in change.items() if name not in arrays}
    zero = np.zeros(1, int)
    with pytest.raises(ValueError, match=message):
        match_boxes(np.array([[0.0, 0, 9, 9]]), zero, zero, **given_arrays, **options, cases=2, classes=1)


def test_settings_that_the_matching_lacks_are_named():
    boxes = draw_boxes(0, cases=5, classes=1, truths=2, detections=5)
    matches = match_boxes(*boxes, cases=5, classes=1, thresholds=[0.5], areas=ALL_SIZES, max_detections=10)
    with pytest.raises(ValueError, match="expected 1 to 10, which the matching kept"):
        average_precision(matches)
    with pytest.raises(ValueError, match=r"overlap 0\.3; expected one of 0\.5"):
        box_counts(matches, overlap=0.3)
    with pytest.raises(ValueError, match=r"expected those of COCO, .5 to .95"):
        coco_summary(average_precision(matches, max_detections=[10]))
    other = match_boxes(*boxes, cases=5, classes=1, thresholds=[0.75], areas=ALL_SIZES, max_detections=10)
    with pytest.raises(ValueError, match="match all models alike"):
        make_precision_data([View(matches), View(other)])


# Under weights.

weighted = jax.jit(weighted_average_precision)


def test_levels_of_recall_are_decided_as_coco_decides_them():
    for count in (7, 29, 57, 100, 200, 399):
        needed = np.searchsorted(np.arange(count + 1) / count, RECALL_LEVELS)
        exact = [-(-step * count // 100) + (NEEDS_MORE[step] and step * count % 100 == 0) for step in range(101)]
        assert needed.tolist() == exact
    assert NEEDS_MORE.any()


def test_a_recall_of_just_a_hundredth_counts_as_coco_has_it():
    step = int(np.flatnonzero(NEEDS_MORE)[-1])
    box, cases = np.array([[0.0, 0, 9, 9]]), np.arange(100)
    found = np.repeat(box, 101, axis=0)
    found[step] += 50  # false, right after the hundredth that is not enough
    case = np.insert(cases, step, 0)
    zero, score = np.zeros(101, int), -np.arange(101.0)
    matches = match_boxes(
        np.repeat(box, 100, axis=0), cases, zero[1:], found, case, zero, score, cases=100, classes=1, thresholds=[0.5]
    )
    wanted = average_precision(matches).of()[0].item()
    ours = weighted(make_precision_data([View(matches)]), np.ones(100, np.float32))[0].item()
    # The level `step` has the precision of 100 right ones of 101, as all above.
    assert wanted == pytest.approx((step + (101 - step) * 100 / 101) / 101, abs=1e-12)
    assert ours == pytest.approx(wanted, abs=1e-6)


def repeat_cases(boxes: Boxes, weights: np.ndarray) -> Boxes:
    drawn = np.repeat(np.arange(len(weights)), weights)

    def rows_of(cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = [np.flatnonzero(cases == case) for case in drawn]
        return np.concatenate(own), np.repeat(np.arange(len(drawn)), [len(rows) for rows in own])

    truth, truth_case = rows_of(boxes.truth_case)
    found, case = rows_of(boxes.case)
    return Boxes(
        boxes.truth_boxes[truth],
        truth_case,
        boxes.truth_label[truth],
        boxes.boxes[found],
        case,
        boxes.label[found],
        boxes.score[found],
    )


def test_weights_are_repeated_cases_for_all_views_at_once():
    cases, classes = 40, 3
    boxes = draw_boxes(5, cases=cases, classes=classes, truths=2, detections=12)
    # Copies of detections with equal scores stand elsewhere than their originals: no ties here.
    rng = np.random.default_rng(5)
    boxes = boxes._replace(score=rng.permutation(len(boxes.score)) / 7)
    entry = match_boxes(*boxes, cases=cases, classes=classes)
    views = [View(entry), View(entry, 2), View(entry, 0, 1)]
    data = make_precision_data(views)
    for weights in (np.ones(cases, int), rng.integers(0, 4, cases), np.where(np.arange(cases) < 2, 9, 0)):
        repeated = match_boxes(*repeat_cases(boxes, weights), cases=int(weights.sum()), classes=classes)
        wanted = average_precision(repeated)
        found = weighted(data, weights.astype(np.float32))
        for view, (area, limit) in enumerate((("all", 100), ("medium", 100), ("all", 1))):
            for ours, reference in zip(found, wanted.of(area, limit), strict=True):
                np.testing.assert_allclose(ours[view], reference, rtol=0, atol=1e-6)


def test_the_mean_leaves_out_classes_without_boxes():
    values = jnp.array([[[0.2], [jnp.nan], [0.4]], [[jnp.nan]] * 3])
    assert_close(with_mean(values)[0, -1], np.array([0.3]))
    assert jnp.isnan(with_mean(values)[1]).all()
    assert len(COCO_OVERLAPS) == 10
