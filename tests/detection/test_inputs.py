"""Images of any size on one grid, boxes moved along, detections back in the image's own pixels."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.data import Batches, Boxes, Cohort
from fusion_jax.data.images.pipeline import IMAGENET_MEAN, IMAGENET_STD
from fusion_jax.detection.columns import fit_clinical
from fusion_jax.detection.inputs import DetectorInputs, at_size, box_image, fit_window, own_boxes, to_original
from tests.detection.squares import squares
from tests.helpers import assert_close

SIZE = (64, 96)


def inputs_of(cohort, **changes) -> Any:
    vector = fit_clinical(cohort, cohort.case_id, fold="all")
    return dataclasses.replace(DetectorInputs("xray", SIZE, (0.0, 255.0), vector, cohort.box_classes), **changes)


def test_images_of_all_sizes_come_out_as_three_channels_on_the_scale_of_imagenet():
    cohort = squares()
    ready = inputs_of(cohort).apply(cohort, cohort.case_id)
    batch = Batches(ready, np.arange(12), 12, (0,), sampler="sequential").at(0)
    assert batch.inputs["image"].shape == (12, 64, 96, 3)
    assert batch.inputs["clinical"].shape == (12, 3)
    grey = cohort.sources["xray"][1].astype(np.float32) / 255
    expected = (grey - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    assert_close(batch.inputs["image"][1], expected, 1e-6)
    assert batch.target["boxes"].shape == (12, 2, 4)
    assert set(batch.target) == {"boxes", "classes", "box_valid"}  # the gap in the label refuses nobody


def test_boxes_follow_their_image_and_come_back():
    cohort = squares()
    inputs = inputs_of(cohort)
    sized = at_size(cohort, "xray", SIZE)
    ready = inputs.apply(sized, cohort.case_id)
    assert inputs.shape(sized, 0) == (128, 96)
    for row in range(12):
        moved, own = own_boxes(ready)[row].corners, own_boxes(cohort)[row].corners
        assert moved[:, 1::2].tolist() == (own[:, 1::2] * 64 / inputs.shape(sized, row)[0]).tolist()
        assert_close(to_original(moved, SIZE, inputs.shape(sized, row)), own, 1e-12)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 600), st.integers(16, 600))
def test_a_box_that_fills_the_grid_fills_the_image(height, width, rows, columns):
    box = np.array([[0.0, 0.0, columns, rows]])
    assert_close(to_original(box, (rows, columns), (height, width)), np.array([[0.0, 0.0, width, height]]), 1e-12)


def test_what_reaches_over_the_grid_ends_at_the_border():
    assert to_original(np.array([[-3.0, 2.0, 40.0, 40.0]]), (32, 32), (64, 64)).tolist() == [[0.0, 4.0, 64.0, 64.0]]


def test_parts_of_a_cohort_share_the_images_that_were_read(monkeypatch):
    cohort = squares()
    sized = at_size(cohort, "xray", SIZE)
    assert at_size(sized, "xray", SIZE) is sized
    reads = []
    image = Cohort.image

    def counted(self, source, row):
        if self is cohort:
            reads.append(row)
        return image(self, source, row)

    monkeypatch.setattr(Cohort, "image", counted)
    for part in (sized.take([3, 5]), sized.take([5, 3])):
        inputs_of(cohort).apply(part, cohort.case_id, boxes=False).sources["image"][0]
    again = inputs_of(cohort).apply(sized.take([5]), cohort.case_id, boxes=False)
    assert again.sources["image"][0].shape == (64, 96, 3)
    assert sorted(reads) == [3, 5]
    assert pickle.loads(pickle.dumps(sized.sources["xray"])).read.kept == {}  # noqa: S301 - what workers get


@pytest.mark.parametrize(
    ("values", "window"),
    [([0, 1], (0, 1)), ([0, 1.5], (0, 255)), ([3, 4000], (0, 4095)), ([0, 4096], (0, 65535)), ([-2, 2], (-2, 2))],
)
def test_the_window_is_the_smallest_full_scale_that_holds_the_images(values, window):
    cohort = Cohort.from_arrays({"x": np.array(values, float).reshape(2, 1, 1, 1)})
    assert fit_window(cohort, "x", np.arange(2)) == window


def test_classes_are_found_by_name():
    cohort = squares()
    swapped = dataclasses.replace(cohort, box_classes=("dark", "bright"))
    ready = inputs_of(cohort).apply(swapped, cohort.case_id)
    assert own_boxes(ready)[1].classes.tolist() == [1, 0]
    with pytest.raises(ValueError, match="boxes of class 'mass'; the detector knows bright, dark"):
        inputs_of(cohort).apply(dataclasses.replace(cohort, box_classes=("bright", "mass")), cohort.case_id)


def test_absent_clinical_rows_are_zeros():
    cohort = squares()
    present = dict(cohort.present) | {"clinical": np.arange(12) != 4}
    cohort = dataclasses.replace(cohort, present=present)
    ready = inputs_of(cohort).apply(cohort, cohort.case_id)
    assert ready.present["clinical"].tolist() == [row != 4 for row in range(12)]
    batch = Batches(ready, np.arange(12), 12, (0,), sampler="sequential").at(0)
    assert not batch.inputs["clinical"][4].any()


def test_it_survives_json():
    inputs = inputs_of(squares())
    assert DetectorInputs.from_json(inputs.to_json()) == inputs


def test_images_that_cannot_be_used_are_named():
    cohort = squares()
    bad = cohort.with_source("xray", [np.zeros((8, 8, 2))] * 12)
    with pytest.raises(ValueError, match=r"squares: xray of case c00: has the shape \(8, 8, 2\); expected an image"):
        inputs_of(cohort).apply(bad, cohort.case_id)
    lacking = dataclasses.replace(cohort, present=dict(cohort.present) | {"xray": np.arange(12) != 7})
    with pytest.raises(ValueError, match=r"case c07 has no 'xray' \(1 such cases\)"):
        inputs_of(cohort).apply(lacking, cohort.case_id)


def test_the_image_of_the_boxes_is_found_or_asked_for():
    cohort = squares()
    assert box_image(cohort) == "xray"
    two = cohort.with_source("lateral", np.zeros((12, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"2 images a case \(xray, lateral\); expected one, or the argument `image`"):
        box_image(two)
    assert box_image(two, "lateral") == "lateral"
    with pytest.raises(ValueError, match="the boxes lie on 'xray', not on 'lateral'"):
        box_image(dataclasses.replace(two, boxes_of="xray"), "lateral")
    with pytest.raises(ValueError, match=r"squares: no boxes; .*\(--coco\)"):
        box_image(dataclasses.replace(cohort, boxes=None))
    with pytest.raises(ValueError, match="no image 'ct'; it has xray"):
        box_image(cohort, "ct")


def test_a_case_without_a_box_has_none_on_the_grid():
    cohort = squares()
    assert len(own_boxes(inputs_of(cohort).apply(cohort, cohort.case_id))[11].corners) == 0
    assert isinstance(own_boxes(cohort)[11], Boxes)
