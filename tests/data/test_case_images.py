"""Preprocessing a cohort: read when asked for, other images of the case at hand, circles refused."""

import pickle

import numpy as np
import pytest

from fusion_jax.data.case_images import in_memory, preprocessed
from fusion_jax.data.cohort import Arrays, Cohort
from fusion_jax.data.samples import soft_tissue_sarcoma

HALVE = [{"op": "window", "low": 0, "high": 2}]


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


def test_absent_images_stay_absent_in_memory():
    images = [np.ones((4, 4, 1)), None, np.ones((4, 4, 1))]
    cohort = Cohort.from_arrays({"xray": images, "age": np.zeros((3, 1))})
    kept = in_memory(preprocessed(cohort, {"xray": HALVE}))
    assert kept.present["xray"].tolist() == [True, False, True]
    assert float(kept.sources["xray"][2].max()) == 0.5
