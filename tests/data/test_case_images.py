"""Preprocessing a cohort: read when asked for, other images of the case at hand, circles refused."""

import dataclasses
import pickle

import numpy as np
import pytest

from fusion_jax.data.case_images import in_memory, preprocessed
from fusion_jax.data.cohort import Arrays, Boxes, Cohort
from fusion_jax.data.samples import soft_tissue_sarcoma

HALVE = [{"op": "window", "low": 0, "high": 2}]


def boxes_in(cohort, row=0):
    assert cohort.boxes is not None
    return cohort.boxes[row]


def make(n=3):
    values = np.arange(n, dtype=float)[:, None, None, None] * np.ones((n, 6, 6, 1))
    mask = np.zeros((n, 6, 6, 1), np.uint8)
    mask[:, 2:4, 2:5] = 1
    sources = {"ct": values, "pet": values / 2, "tumour": Arrays(mask, "mask", unit="label")}
    return Cohort.from_arrays(sources, label=[row % 2 for row in range(n)])


def test_steps_run_when_a_case_is_read_and_subsets_follow():
    cohort = preprocessed(make(), {"ct": HALVE})
    assert [float(cohort.sources["ct"][row].max()) for row in range(3)] == [0.0, 0.5, 1.0]
    assert float(cohort.take([2]).sources["ct"][0].max()) == 1.0
    assert float(cohort.sources["pet"][2].max()) == 1.0  # untouched
    again = pickle.loads(pickle.dumps(cohort))  # noqa: S301 - our own object
    np.testing.assert_array_equal(again.sources["ct"][1], cohort.sources["ct"][1])


def test_another_image_is_meant_after_its_steps_or_as_it_was_read():
    cut = {"op": "crop_or_pad", "mask": "tumour.file", "size": [4, 4]}
    cohort = preprocessed(
        make(), {"ct": [cut], "tumour": [cut], "pet": [{"op": "crop_or_pad", "mask": "tumour", "size": [2, 2]}]}
    )
    assert cohort.sources["ct"][0].shape == cohort.sources["tumour"][0].shape == (4, 4, 1)
    assert cohort.sources["tumour"][0].sum() == 6


def test_an_image_that_others_need_is_read_once_a_case():
    reads = []

    class Counted(Arrays):
        def image(self, row):
            reads.append(row)
            return super().image(row)

    cohort = make().with_source("tumour", Counted(np.ones((3, 6, 6, 1), np.uint8), "mask"))
    cut = [{"op": "crop_or_pad", "mask": "tumour.file", "size": [4, 4]}]
    cohort = preprocessed(cohort, {"ct": cut, "pet": cut, "tumour": cut})
    for row in (0, 1):
        for name in ("ct", "pet", "tumour"):
            cohort.image(name, row)
    assert reads == [0, 1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"mri": HALVE}, "'mri' is no image; expected one of ct, pet, tumour"),
        ({"ct": [{"op": "windw"}]}, r"cohort: ct\[0\].*windw"),
        ({"ct": [{"op": "onto", "reference": "mri"}]}, "preprocessing of ct needs 'mri'; expected one of the images"),
        (
            {"ct": [{"op": "onto", "reference": "pet"}], "pet": [{"op": "onto", "reference": "ct"}]},
            "ct needs pet needs ct: a circle. Write `ct.file`",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_an_image_is_read(steps, message):
    with pytest.raises(ValueError, match=message):
        preprocessed(make(), steps)


def test_a_step_that_fails_names_case_and_step():
    cohort = preprocessed(make(), {"ct": [{"op": "resample", "spacing": 2}]})
    with pytest.raises(ValueError, match=r"cohort: ct of case case_1: cohort: ct\[0\]: resample: .*spacing"):
        cohort.image("ct", 1)


def test_a_step_that_warns_names_the_case(caplog):
    cohort = preprocessed(make(), {"ct": [{"op": "crop_or_pad", "mask": "tumour.file", "size": [1, 6]}]})
    cohort.image("ct", 1)
    assert caplog.messages == [
        "cohort: ct of case case_1: a window of [1, 6] voxels cuts 3 of 6 voxels of the mask off"
    ]


def test_what_is_in_memory_is_what_was_read():
    sample = soft_tissue_sarcoma()
    cohort = Cohort.from_arrays(
        {
            "pet": Arrays(
                [pet[..., None] for pet in sample.pet[:4]], spacing=[sample.spacing] * 4, affine=sample.affine[:4]
            )
        }
    )
    lazy = preprocessed(cohort, {"pet": [{"op": "resample", "spacing": 8}]})
    seen = []
    kept = in_memory(lazy, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    for row in range(4):
        expected, found = lazy.image("pet", row), kept.image("pet", row)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.affine, expected.affine)
        assert found.spacing == (8.0, 8.0, 8.0)


STEPS = [
    {"op": "flip", "axis": "w"},
    {"op": "flip", "axis": "h"},
    {"op": "resize", "size": [40, 20]},
    {"op": "crop_or_pad", "size": [16, 30]},
    {"op": "crop_or_pad", "size": 13},
    {"op": "crop_or_pad", "size": [9, 11], "centre": [5, 12]},
]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_around_what_they_were_around(seed):
    rng = np.random.default_rng(seed)
    values = np.zeros((1, 20, 20, 1))
    x0, y0 = rng.integers(1, 14, 2)
    x1, y1 = x0 + rng.integers(2, 6), y0 + rng.integers(2, 6)
    values[0, y0:y1, x0:x1] = 1
    boxes = [Boxes(np.array([[x0, y0, x1, y1]], float), np.array([3]))]
    steps = [STEPS[number] for number in rng.permutation(len(STEPS))[: rng.integers(1, 5)]]
    cohort = preprocessed(Cohort.from_arrays({"xray": values}, boxes=boxes), {"xray": steps})
    seen = cohort.sources["xray"][0][..., 0] > 0.5
    if not seen.any():
        assert (
            len(boxes_in(cohort).corners) == 0
            or np.prod(boxes_in(cohort).corners[0, 2:] - boxes_in(cohort).corners[0, :2]) < 2
        )
        return
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(boxes_in(cohort).corners[0], expected, atol=0.51)
    assert boxes_in(cohort).classes.tolist() == [3]


def test_boxes_that_cannot_follow_are_refused():
    boxes = [Boxes(np.array([[1.0, 1, 3, 3]]), np.array([0]))] * 3
    cohort = dataclasses.replace(make(), boxes=boxes)
    with pytest.raises(ValueError, match="boxes lie on one of ct, pet, and ct is moved; expected `boxes_of`"):
        preprocessed(cohort, {"ct": [{"op": "resize", "size": 4}]})
    named = dataclasses.replace(cohort, boxes_of="ct")
    with pytest.raises(ValueError, match="boxes do not follow 'crop_or_pad' around a mask"):
        preprocessed(named, {"ct": [{"op": "crop_or_pad", "mask": "tumour", "size": 4}]})
    assert boxes_in(preprocessed(named, {"pet": [{"op": "resize", "size": 4}], "ct": HALVE})).corners[0, 2] == 3


def test_sizes_are_read_only_where_there_are_boxes_to_move():
    reads = []

    class Counted(Arrays):
        def image(self, row):
            reads.append(row)
            return super().image(row)

    boxes = [Boxes(np.array([[1.0, 1, 3, 3]])[:count], np.zeros(count, int)) for count in (0, 1, 0)]
    cohort = dataclasses.replace(make(), boxes=boxes, boxes_of="ct")
    cohort = cohort.with_source("ct", Counted(np.ones((3, 6, 6, 1))))
    moved = preprocessed(cohort, {"ct": [{"op": "resize", "size": 12}]})
    assert reads == [1]
    assert boxes_in(moved, 1).corners.tolist() == [[2, 2, 6, 6]]
    assert len(boxes_in(moved, 2).corners) == 0


def test_data_is_hashed_when_a_fingerprint_is_asked_for_and_once_for_all_folds():
    hashed = []

    class Hashed(Arrays):
        def fingerprint(self):
            hashed.append(1)
            return super().fingerprint()

    def cohort(value=1.0, high=2):
        images = Hashed(np.full((3, 6, 6, 1), value))
        return preprocessed(make().with_source("ct", images), {"ct": [{"op": "window", "low": 0, "high": high}]})

    one = cohort()
    assert not hashed
    folds = [one.take([0, 1]).fingerprint, one.take([1, 2]).fingerprint]
    assert folds[0] != folds[1]
    assert len(hashed) == 1
    prints = [made.sources["ct"].fingerprint() for made in (one, cohort(), cohort(value=0.5), cohort(high=3))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_what_others_are_given_cannot_be_written_into():
    cut = [{"op": "crop_or_pad", "mask": "tumour.file", "size": [4, 4]}]
    cohort = preprocessed(make(), {"ct": cut, "tumour": cut})
    file = cohort.sources["ct"].read.func("tumour.file", 0)
    with pytest.raises(ValueError, match="read-only"):
        file.values[:] = 0


def test_absent_images_stay_absent_in_memory():
    images = [np.ones((4, 4, 1)), None, np.ones((4, 4, 1))]
    cohort = Cohort.from_arrays({"xray": images, "age": np.zeros((3, 1))})
    kept = in_memory(preprocessed(cohort, {"xray": HALVE}))
    assert kept.present["xray"].tolist() == [True, False, True]
    assert float(kept.sources["xray"][2].max()) == 0.5


def test_a_source_that_no_case_has_stays_as_it_is():
    cohort = Cohort.from_arrays({"xray": np.ones((2, 4, 4, 1)), "age": np.zeros((2, 1))})
    nowhere = cohort.with_source("xray", cohort.sources["xray"], present=np.zeros(2, bool))
    kept = in_memory(nowhere)
    assert kept.sources["xray"] is nowhere.sources["xray"]
    assert kept.present["xray"].tolist() == [False, False]
    assert kept.sources["age"] is not nowhere.sources["age"]
