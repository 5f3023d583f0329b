import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from fusion_jax.data.collections import covid_cxr, jsrt
from fusion_jax.detection.anchors import (
    PUBLISHED,
    Anchors,
    anchor_recall,
    anchors_per_cell,
    anchors_per_level,
    fit_anchors,
    make_anchors,
    read_anchors,
)
from tests.helpers import assert_close, real_data

TWO_LEVELS = Anchors(((12.0, 20.0), (33.0, 51.0)), (0.6, 1.0, 2.5), (8, 16))
IMAGE = (512, 512)


def slow_anchors(design, height, width):
    """One anchor at a time, as the reference generator places them."""
    boxes = []
    for sizes, stride in zip(design.sizes, design.strides, strict=True):
        for row, column in itertools.product(range(math.ceil(height / stride)), range(math.ceil(width / stride))):
            for ratio, size in itertools.product(design.ratios, sizes):
                half_height, half_width = (
                    round(size * math.sqrt(ratio) / 2),
                    round(size / math.sqrt(ratio) / 2),
                )
                x, y = stride * column, stride * row
                boxes.append([x - half_width, y - half_height, x + half_width, y + half_height])
    return np.array(boxes, np.float64)


def slow_overlaps(a, b):
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    inside = np.maximum(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0).prod(axis=-1)
    areas = [np.maximum(c[:, 2:] - c[:, :2], 0).prod(axis=1) for c in (a, b)]
    return inside / np.maximum(areas[0][:, None] + areas[1][None, :] - inside, 1e-9)


def random_boxes(seed, count, low=5.0, high=150.0, size=512):
    rng = np.random.default_rng(seed)
    extent = np.exp(rng.uniform(np.log(low), np.log(high), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (size - extent)
    return np.concatenate([corner, corner + extent], axis=1)


# Placement.


def test_anchors_of_one_cell_are_those_of_the_reference():
    """Whole pixels, by ratio and then by size: the table that torchvision computes for 32 and 64 pixels."""
    found = make_anchors(Anchors(((32.0, 64.0),), (0.5, 1.0, 2.0), (32,)), 32, 32)
    half = [[23, 11], [45, 23], [16, 16], [32, 32], [11, 23], [23, 45]]
    assert found.tolist() == [[-w, -h, w, h] for w, h in half]


@pytest.mark.parametrize("design", [PUBLISHED, TWO_LEVELS])
@pytest.mark.parametrize("image", [(64, 64), (75, 50), (7, 100)])
def test_anchors_equal_a_loop_over_cells(design, image):
    found = make_anchors(design, *image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, slow_anchors(design, *image))


def test_published_anchors_are_3840_of_an_image_of_512_pixels():
    found = make_anchors(PUBLISHED, *IMAGE)
    assert found.shape == (3840, 4)
    assert anchors_per_cell(PUBLISHED) == 15
    centres = 0.5 * (found[:, :2] + found[:, 2:])
    assert centres.min() == 0
    assert centres.max() == 480  # not shifted by half a cell


def test_levels_add_up_to_the_anchors():
    assert anchors_per_level(TWO_LEVELS, 75, 50) == (10 * 7 * 6, 5 * 4 * 6)
    assert sum(anchors_per_level(TWO_LEVELS, 75, 50)) == len(make_anchors(TWO_LEVELS, 75, 50))


# The ceiling.


@pytest.mark.parametrize("design", [PUBLISHED, TWO_LEVELS])
def test_best_overlap_equals_that_with_every_anchor(design):
    boxes = random_boxes(0, 60, size=140)
    # Beyond every side of the image, exactly between cells, and without area.
    boxes = np.concatenate(
        [boxes, [[-30, -20, 5, 9], [120, 130, 190, 160], [4, 4, 20, 20], [16, 0, 16, 40], [9, 9, 5, 30]]]
    )
    found = anchor_recall(design, boxes, (140, 120))
    expected = slow_overlaps(boxes, slow_anchors(design, 140, 120)).max(axis=1)
    assert_close(found.best, expected, 1e-12)
    assert found.overall == (expected >= 0.5).mean()
    assert 0 < found.overall < 1
    assert found.best[-2:].tolist() == [0.0, 0.0]


def test_recall_by_class_counts_the_boxes_of_the_class():
    boxes = np.array([[16.0, 16.0, 48.0, 48.0], [70.0, 70.0, 76.0, 76.0], [0.0, 0.0, 500.0, 500.0]])
    found = anchor_recall(PUBLISHED, boxes, IMAGE, classes=np.array([0, 0, 2]))
    assert found.overall == pytest.approx(2 / 3)
    assert found.by_class[0] == 0.5
    assert math.isnan(found.by_class[1])
    assert found.by_class[2] == 1.0
    assert anchor_recall(PUBLISHED, boxes, IMAGE).by_class == ()


def test_recall_without_boxes_is_nan():
    found = anchor_recall(PUBLISHED, np.zeros((0, 4)), IMAGE, classes=np.zeros(0, np.int32))
    assert math.isnan(found.overall)
    assert found.best.shape == (0,)


def test_recall_counts_the_overlap_itself():
    box = np.array([[-16.0, -16.0, 16.0, 0.0]])  # half of the anchor of 32 pixels at the first cell
    assert anchor_recall(Anchors(((32.0,),), (1.0,), (32,)), box, IMAGE, overlap=0.5).overall == 1.0
    assert anchor_recall(Anchors(((32.0,),), (1.0,), (32,)), box, IMAGE, overlap=0.501).overall == 0.0


# The fit.


def test_one_shape_is_the_best_of_the_lattice():
    """Exhaustive search over all sizes and ratios of the documented lattice and range finds nothing better."""
    boxes = random_boxes(1, 40, 30.0, 60.0)
    design = fit_anchors(boxes, IMAGE, strides=(16,), per_cell=1, ceiling=1.0)

    def worth(design):
        found = anchor_recall(design, boxes, IMAGE)
        return 4 * found.overall + found.best.mean()

    best = max(
        worth(Anchors(((round(2 ** (size / 8), 1),),), (round(2 ** (ratio / 4), 3),), (16,)))
        for size, ratio in itertools.product(range(36, 54), range(-5, 6))
    )
    assert len(design.sizes[0]) == len(design.ratios) == 1
    assert worth(design) == pytest.approx(best, abs=1e-6)


def test_large_boxes_get_the_coarse_stride_and_small_ones_the_fine():
    assert fit_anchors(random_boxes(2, 200, 120.0, 300.0), IMAGE).strides == (32,)
    assert fit_anchors(random_boxes(2, 200, 20.0, 40.0), IMAGE).strides == (8,)


@pytest.mark.parametrize(("low", "high"), [(25.0, 60.0), (40.0, 400.0), (150.0, 160.0)])
def test_a_fit_reaches_its_boxes_and_others_of_the_cohort(low, high):
    boxes = random_boxes(3, 600, low, high)
    design = fit_anchors(boxes[:400], IMAGE)
    assert anchors_per_cell(design) <= 15
    assert anchor_recall(design, boxes[:400], IMAGE).overall >= 0.98
    assert anchor_recall(design, boxes[400:], IMAGE).overall >= 0.95


@pytest.mark.parametrize(("stride", "reached"), [(16, 1.0), (17, 0.0)])
def test_worst_placed_squares_are_reached_up_to_a_stride_of_two_fifths_of_their_side(stride, reached):
    """(sqrt(2) - 1) * 40 = 16.57 pixels: the fit finds the one size that does it."""
    centre = stride * (np.arange(4)[:, None] + 0.5)
    boxes = np.concatenate([centre - 20, centre - 20, centre + 20, centre + 20], axis=1)
    design = fit_anchors(boxes, IMAGE, strides=(stride,))
    assert anchor_recall(design, boxes, IMAGE).overall == reached
    every_square = Anchors((tuple(np.arange(20.0, 80.0)),), (1.0,), (stride,))
    assert anchor_recall(every_square, boxes, IMAGE).overall == reached


def test_square_boxes_get_no_more_ratios_than_they_need():
    boxes = random_boxes(4, 100, 100.0, 200.0)
    boxes[:, 3] = boxes[:, 1] + boxes[:, 2] - boxes[:, 0]
    design = fit_anchors(boxes, IMAGE, strides=(16,))
    assert design.ratios == (1.0,)
    assert len(design.sizes[0]) <= 4


def test_without_a_stride_that_suffices_the_one_with_the_highest_recall_is_taken():
    boxes = random_boxes(5, 200, 6.0, 14.0)
    recalls = {
        stride: anchor_recall(fit_anchors(boxes, IMAGE, strides=(stride,)), boxes, IMAGE).overall
        for stride in (8, 16, 32)
    }
    assert max(recalls.values()) < 0.98
    assert max(recalls, key=lambda stride: recalls[stride]) == 8
    assert fit_anchors(boxes, IMAGE) == fit_anchors(boxes, IMAGE, strides=(8,))


def test_sizes_of_a_pyramid_rise_with_its_strides():
    boxes = random_boxes(6, 400, 24.0, 240.0)
    design = fit_anchors(boxes, IMAGE, strides=(64, 8, 16, 32), pyramid=True)
    assert design.strides == (8, 16, 32, 64)
    flat = [size for level in design.sizes for size in level]
    assert flat == sorted(set(flat))
    assert len({len(level) for level in design.sizes}) == 1
    assert anchors_per_cell(design) <= 9
    assert anchor_recall(design, boxes, IMAGE).overall > 0.9


def test_the_order_of_the_boxes_does_not_matter():
    boxes = random_boxes(7, 300, 20.0, 200.0)
    assert fit_anchors(boxes[::-1].copy(), IMAGE) == fit_anchors(boxes, IMAGE)


def test_many_boxes_are_fitted_by_a_part_of_them():
    boxes = random_boxes(8, 20_000, 20.0, 300.0)
    design = fit_anchors(boxes, IMAGE, strides=(8,))
    assert anchor_recall(design, boxes, IMAGE).overall >= 0.97


def test_boxes_of_one_shape_get_anchors():
    box = np.array([[100.0, 60.0, 100.5, 60.5]])
    assert anchor_recall(fit_anchors(box + 0.0, IMAGE), box, IMAGE).overall <= 1.0
    same = np.tile([[100.0, 60.0, 180.0, 140.0]], (5, 1))
    design = fit_anchors(same, IMAGE, strides=(8, 16, 32), pyramid=True)
    assert anchor_recall(design, same, IMAGE).overall == 1.0


def boxes_of(cohort, scale):
    return np.concatenate([boxes.corners for boxes in cohort.boxes if len(boxes.corners)]) * scale


def test_nodules_of_jsrt_need_small_anchors_on_a_fine_stride():
    """The published design at 512 pixels reaches a tenth of them; of squares on stride 8, no sizes reach more."""
    real_data("jsrt")
    cohort = jsrt()
    boxes = boxes_of(cohort, 512 / 224)
    assert anchor_recall(PUBLISHED, boxes, IMAGE).overall == pytest.approx(14 / 123)
    design = fit_anchors(boxes, IMAGE)
    every_square = Anchors((tuple(np.arange(4.0, 120.0)),), (1.0,), (8,))
    assert anchor_recall(every_square, boxes, IMAGE).overall == pytest.approx(120 / 123)
    assert anchor_recall(design, boxes, IMAGE).overall == pytest.approx(120 / 123)
    assert anchors_per_level(design, *IMAGE) == (24_576,)
    boxes = boxes_of(cohort, 576 / 224)
    design = fit_anchors(boxes, (576, 576))
    assert anchor_recall(design, boxes, (576, 576)).overall >= 0.98
    assert sum(anchors_per_level(design, 576, 576)) < 30_000


def test_lungs_need_six_anchors_a_cell():
    real_data("covid_cxr")
    cohort = covid_cxr()
    assert cohort.boxes is not None
    boxes = boxes_of(cohort, 512 / 320)
    design = fit_anchors(boxes, IMAGE)
    assert design.strides == (32,)
    assert anchors_per_cell(design) <= 6
    assert anchor_recall(design, boxes, IMAGE).overall == 1.0


# What comes in.


def test_a_design_survives_json():
    assert read_anchors({name: list(value) for name, value in TWO_LEVELS._asdict().items()}) == TWO_LEVELS
    assert read_anchors(PUBLISHED) is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sizes": [[8]], "ratios": [1]}, "exactly sizes, ratios and strides"),
        ({"sizes": [[8]], "ratios": [1], "strides": [8], "scales": [1]}, "scales"),
        ({"sizes": [8], "ratios": [1], "strides": [8]}, "one list of pixels a level"),
        ({"sizes": [[8]], "ratios": ["wide"], "strides": [8]}, "wide"),
        ({"sizes": [[8], [9]], "ratios": [1], "strides": [8]}, "2 levels and 1 strides"),
        ({"sizes": [[8], [9, 10]], "ratios": [1], "strides": [8, 16]}, r"\[1, 2\] sizes a level"),
        ({"sizes": [[8]], "ratios": [], "strides": [8]}, "0 ratios"),
        ({"sizes": [[8]], "ratios": [0], "strides": [8]}, "positive numbers"),
        ({"sizes": [[8]], "ratios": [1], "strides": [8.5]}, "whole pixels"),
        ({"sizes": [[math.nan]], "ratios": [1], "strides": [8]}, "positive numbers"),
    ],
)
def test_designs_that_cannot_be_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_anchors(value)


def test_something_else_than_a_design_is_refused(unchecked):
    with pytest.raises(TypeError, match="mapping with sizes, ratios and strides"):
        read_anchors([[8.0]])


@pytest.mark.parametrize(
    ("boxes", "settings", "message"),
    [
        (np.zeros((0, 4)), {}, "no boxes to fit anchors to"),
        (np.array([[1.0, 1.0, 5.0, 5.0], [3.0, 3.0, 3.0, 9.0]]), {}, "box 1 .* expected x1 > x0"),
        (np.array([[1.0, 1.0, math.inf, 5.0]]), {}, "box 0 .* finite"),
        (np.array([[1.0, 1.0, 5.0, 5.0]]), {"strides": ()}, "at least one stride"),
        (np.array([[1.0, 1.0, 5.0, 5.0]]), {"per_cell": 0}, "at least 1 anchor a cell"),
        (np.array([[1.0, 1.0, 5.0, 5.0]]), {"overlap": 0.0}, "above 0"),
        (np.array([[1.0, 1.0, 5.0, 5.0]]), {"ceiling": 1.5}, "between 0 and 1"),
    ],
)
def test_fits_that_cannot_be_are_refused(boxes, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_anchors(boxes, IMAGE, **settings)


def test_images_without_pixels_are_refused():
    with pytest.raises(ValueError, match="height and width in pixels"):
        make_anchors(PUBLISHED, 0, 512)


def test_anchors_are_designed_without_jax():
    code = "import sys; from fusion_jax.detection import fit_anchors; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
