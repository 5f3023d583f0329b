"""The number that decides on the epoch equals that of the evaluation."""

import numpy as np
import pytest

from fusion_jax.data.cohort import Boxes
from fusion_jax.detection.judging import judge

NONE = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64))
ONE = Boxes(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([0]))


def found(*rows):
    """Case, class, score and box of each detection."""
    table = np.array(rows, float).reshape(-1, 7)
    return table[:, 3:], table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]


def test_a_false_detection_above_the_true_one_halves_the_precision():
    rows = found((0, 0, 0.9, 20, 20, 30, 30), (0, 0, 0.8, 0, 0, 10, 9))
    judged = judge([ONE, NONE], *rows, classes=1)
    assert judged.ap == pytest.approx(0.5)
    assert judged.ar == 1.0


def test_a_small_box_inside_is_a_hit_of_iobb_alone():
    rows = found((0, 0, 0.9, 2, 2, 4, 4))
    assert judge([ONE], *rows, classes=1, overlap="iobb").ap == pytest.approx(1.0)
    assert judge([ONE], *rows, classes=1).ap == 0.0


def test_classes_without_boxes_take_no_part_in_the_mean():
    judged = judge([ONE], *found((0, 0, 0.9, 0, 0, 10, 10), (0, 1, 0.9, 0, 0, 10, 10)), classes=2)
    assert judged.ap == pytest.approx(1.0)
    assert np.isnan(judged.ap_by_class[1])


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    assert judge([ONE], *found(), classes=1)[:2] == (0.0, 0.0)
    assert np.isnan(judge([NONE], *found((0, 0, 0.9, 0, 0, 1, 1)), classes=1).ap)


def test_boxes_without_extent_are_left_out():
    assert judge([ONE], *found((0, 0, 0.9, 3, 3, 3, 8), (0, 0, 0.5, 0, 0, 10, 10)), classes=1).ap == pytest.approx(1.0)


def test_stretching_images_changes_nothing():
    rows = found((0, 0, 0.9, 1, 2, 9, 9), (0, 0, 0.8, 3, 3, 12, 12))
    scale = np.array([3.0, 0.5, 3.0, 0.5])
    wide = Boxes(ONE.corners * scale, ONE.classes)
    assert judge([ONE], *rows, classes=1) == judge([wide], rows[0] * scale, *rows[1:], classes=1)
