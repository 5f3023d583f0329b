import inspect
import json
import pickle
import re
import tomllib

import numpy as np
import pytest

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.image import Image
from fusion_jax.data.images import pipeline as pipeline_module
from fusion_jax.data.images.geometry import crop_to_mask, onto, resample
from fusion_jax.data.images.intensity import scale_suv, standardise, window
from fusion_jax.data.images.operation import arguments
from fusion_jax.data.images.pipeline import (
    OPERATIONS,
    build_pipeline,
    chest_radiograph,
    ct_body,
    ct_liver_slice,
    ct_three_phases,
    pet_suv,
    subtraction_mip,
)
from tests.helpers import assert_close

WHERE = "cohort.toml: sources.ct.preprocess"

COHORT_FILE = """
[sources.pet]
preprocess = [
  {op = "onto", reference = "ct", spacing = [4, 4, 4], antialias = false},
  {op = "crop_to_mask", mask = "tumour", margin_mm = 20},
  {op = "scale_suv", maximum = 20},
  {op = "standardise", mask = "near"},
]
"""


@pytest.fixture(scope="module")
def case():
    """PET, CT and tumour of one patient; the masks are read by name."""
    sample = soft_tissue_sarcoma()
    pet, ct, mask = (
        Image(values[0][..., None], sample.spacing, sample.affine[0], unit)
        for values, unit in ((sample.pet, "SUV"), (sample.ct, "HU"), (sample.mask, "label"))
    )
    return {"pet": pet, "ct": ct, "tumour": mask, "near": crop_to_mask(mask, mask, margin_mm=20)}


def readers(case, log=None):
    """Functions that read each source and tell `log`."""

    def reader(name):
        def read():
            if log is not None:
                log.append(name)
            return case[name]

        return read

    return {name: reader(name) for name in case}


def test_a_cohort_file_becomes_the_functions_it_names(case):
    pipeline = build_pipeline(tomllib.loads(COHORT_FILE)["sources"]["pet"]["preprocess"], where=WHERE)
    assert pipeline.needs == ("ct", "tumour", "near")
    after = pipeline(case["pet"], readers(case))
    image = onto(case["pet"], case["ct"], spacing=(4.0, 4.0, 4.0), antialias=False)
    image = crop_to_mask(image, case["tumour"], margin_mm=20)
    expected = standardise(scale_suv(image, maximum=20), case["near"])
    np.testing.assert_array_equal(after.values, expected.values)
    np.testing.assert_array_equal(after.affine, expected.affine)


def test_other_sources_are_read_when_needed_and_once(case):
    log = []
    pipeline = build_pipeline(
        [
            {"op": "clip_percentiles", "mask": "tumour", "high": 99},
            {"op": "standardise", "mask": "tumour"},
            {"op": "onto", "reference": "ct"},
        ]
    )
    assert pipeline.needs == ("tumour", "ct")
    pipeline(case["pet"], readers(case, log))
    assert log == ["tumour", "ct"]
    log.clear()
    with pytest.raises(ValueError, match="values are NaN"):
        pipeline(case["pet"]._replace(values=np.full_like(case["pet"].values, np.nan)), readers(case, log))
    assert log == ["tumour"]


def test_lists_of_sources_are_read_in_order(case):
    pipeline = build_pipeline([{"op": "stack_channels", "others": ["pet", "tumour", "pet"]}])
    assert pipeline.needs == ("pet", "tumour")
    after = pipeline(case["ct"], readers(case))
    expected = [case[name].values for name in ("ct", "pet", "tumour", "pet")]
    np.testing.assert_array_equal(after.values, np.concatenate(expected, axis=-1))


def test_no_steps_change_nothing(case):
    assert build_pipeline([])(case["ct"]) is case["ct"]


def test_a_pipeline_survives_pickle_and_json(case):
    steps = tomllib.loads(COHORT_FILE)["sources"]["pet"]["preprocess"]
    pipeline = build_pipeline(steps, where=WHERE)
    sent = pickle.loads(pickle.dumps(pipeline))  # noqa: S301 - what loader workers do with it
    stored = build_pipeline(json.loads(json.dumps(pipeline.steps)))
    assert sent == pipeline == stored
    assert sent.where == WHERE
    for other in (sent, stored):
        np.testing.assert_array_equal(
            other(case["pet"], readers(case)).values, pipeline(case["pet"], readers(case)).values
        )
    assert pipeline != build_pipeline(steps[:-1])


def test_a_pipeline_does_not_follow_later_changes_of_the_list():
    spacing = [4, 4, 4]
    pipeline = build_pipeline([{"op": "resample", "spacing": spacing}])
    spacing[0] = 1
    assert pipeline.steps[0]["spacing"] == [4, 4, 4]


def test_nothing_is_fitted():
    assert build_pipeline(subtraction_mip()).fitted is False


def test_a_source_that_the_case_lacks_is_named(case):
    pipeline = build_pipeline([{"op": "window", "low": 0, "high": 1}, {"op": "onto", "reference": "ct"}], where=WHERE)
    with pytest.raises(ValueError, match="source 'ct' is needed and not there; the case has 'tumour'") as caught:
        pipeline(case["pet"], {"tumour": lambda: case["tumour"]})
    assert caught.value.__notes__ == [f"{WHERE}[1]: onto"]
    with pytest.raises(ValueError, match="the case has no other"):
        pipeline(case["pet"])


def test_a_refusal_names_the_step(case):
    pipeline = build_pipeline([{"op": "flip", "axis": "w"}, {"op": "scale_suv"}], where=WHERE)
    with pytest.raises(ValueError, match="the image has the unit 'HU'") as caught:
        pipeline(case["ct"])
    assert caught.value.__notes__ == [f"{WHERE}[1]: scale_suv"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "windw"}, "no operation 'windw'; did you mean 'window'?"),
        ({"op": "qqq"}, "no operation 'qqq'; there is 'adjacent_slices', 'align_phases',"),
        ({"low": 1}, "{'low': 1} names no operation; expected a table such as {op = 'min_max'}."),
        ("min_max", "'min_max' names no operation; expected a table"),
        ({"op": 3}, "{'op': 3} names no operation"),
        ({"op": "window", "low": 1}, "window needs the argument 'high'; expected a number."),
        ({"op": "window", "low": 1, "higth": 2}, "window has no argument 'higth'; did you mean 'high'?"),
        ({"op": "flip", "qqq": 2}, "flip has no argument 'qqq'; there is 'axis'."),
        ({"op": "window", "low": "-160", "high": 240}, "window: low is '-160'; expected a number."),
        ({"op": "window", "low": True, "high": 240}, "window: low is True; expected a number."),
        ({"op": "window", "low": 5, "high": 5}, "window: low is 5 and high is 5; expected low below high."),
        ({"op": "resample", "spacing": [4, 0]}, "spacing is [4, 0]; expected a number above 0 or a list of these."),
        ({"op": "resample", "spacing": []}, "resample: spacing is []; expected a number above 0 or"),
        ({"op": "resample", "spacing": 4, "method": "linar"}, "method is 'linar'; expected one of 'nearest', "),
        ({"op": "resample", "spacing": 4, "antialias": 1}, "resample: antialias is 1; expected true or false."),
        ({"op": "resize", "size": 22.4}, "resize: size is 22.4; expected a whole number of at least 1 or a list"),
        ({"op": "resize", "size": True}, "resize: size is True; expected a whole number of at least 1 or a list"),
        ({"op": "crop_to_mask"}, "crop_to_mask needs the argument 'mask'; expected the name of a source."),
        ({"op": "crop_to_mask", "mask": ["a"]}, "crop_to_mask: mask is ['a']; expected the name of a source."),
        ({"op": "crop_to_mask", "mask": ""}, "crop_to_mask: mask is ''; expected the name of a source."),
        ({"op": "crop_to_mask", "mask": "a", "margin_mm": -1}, "margin_mm is -1; expected a number of at least 0 or"),
        ({"op": "stack_channels", "others": "ct"}, "others is 'ct'; expected a list of names of sources."),
        ({"op": "stack_channels", "others": ["ct", 3]}, "others is ['ct', 3]; expected a list of names of sources."),
        ({"op": "clip_percentiles", "high": 995}, "clip_percentiles: high is 995; expected a number from 0 to 100."),
        ({"op": "breast", "side": "L"}, "breast: side is 'L'; expected one of 'right', 'left'."),
        ({"op": "adjacent_slices", "mask": "a", "count": 4}, "adjacent_slices: count is 4; expected one of 3, 5, 7."),
    ],
)  # fmt: skip
def test_a_step_that_cannot_run_is_refused_before_any_image_is_read(step, message):
    with pytest.raises(ValueError, match=re.escape(f"{WHERE}[1]: ") + ".*" + re.escape(message)):
        build_pipeline([{"op": "min_max"}, step], where=WHERE)


def test_what_is_no_list_is_refused():
    with pytest.raises(ValueError, match=f"{WHERE}: {{'op': 'min_max'}} is no list"):
        build_pipeline({"op": "min_max"}, where=WHERE)


def test_every_operation_takes_images_first_and_plain_values_by_name():
    for name, function in OPERATIONS.items():
        plain = arguments(function)
        assert "op" not in plain, name
        assert all(isinstance(value.default, (int, float, str, type(None), type)) for value in plain.values()), name
        assert function.__doc__, name


def test_an_operation_is_added_by_one_row(monkeypatch, case):
    monkeypatch.setitem(
        pipeline_module.OPERATIONS, "soft_tissue", lambda image, *, level: window(image, low=-level, high=level)
    )
    after = build_pipeline([{"op": "soft_tissue", "level": 160}])(case["ct"])
    np.testing.assert_array_equal(after.values, window(case["ct"], low=-160, high=160).values)


# Presets


def test_a_projection_of_a_breast_fills_the_unit_interval():
    values = np.random.default_rng(0).gamma(2.0, 60.0, (300, 260, 1)).astype(np.float32)
    values[0, 0] = 1e6  # one hot pixel
    after = build_pipeline(subtraction_mip())(Image(values, (0.7, 0.7)))
    assert after.values.shape == (224, 224, 1)
    assert (after.values.min(), after.values.max()) == (0, 1)
    assert np.median(after.values) > 0.1


def test_pet_and_ct_get_the_windows_of_the_specification(case):
    pet = build_pipeline(pet_suv())(case["pet"])
    np.testing.assert_allclose(pet.values, case["pet"].values.clip(0, 20) / 20, rtol=1e-6)
    ct = build_pipeline(ct_body())(case["ct"])
    np.testing.assert_allclose(ct.values, (case["ct"].values.clip(-200, 300) + 200) / 500, atol=1e-6)


def test_a_radiograph_has_the_scale_of_imagenet():
    film = Image(np.array([[0, 255], [255, 0]], np.uint8)[..., None])
    after = build_pipeline(chest_radiograph())(film).values
    assert after.shape == (512, 512, 3)
    assert_close(after[0, 0], np.array([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    assert_close(after[0, -1], np.array([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]))


def test_a_liver_lesion_is_cut_from_its_largest_slice(case):
    pipeline = build_pipeline(ct_liver_slice("tumour"))
    assert pipeline.needs == ("tumour",)
    after = pipeline(case["ct"], readers(case))
    assert after.values.shape == (224, 224, 3)
    back = after.values * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    np.testing.assert_allclose(back, back[..., :1].repeat(3, axis=-1), atol=1e-6)
    assert (back.min() >= -1e-6, back.max() <= 1 + 1e-6, np.ptp(back) > 0.3) == (True, True, True)
    # The mask's box in the slice in which it is largest.
    inside = case["tumour"].values[..., 0]
    plane = inside[inside.sum(axis=(1, 2)).argmax()]
    extents = [np.ptp(np.flatnonzero(plane.any(axis=axis))) + 1 for axis in (1, 0)]
    np.testing.assert_allclose(after.spacing, [4.0 * extent / 224 for extent in extents])


def test_three_phases_become_three_channels(case):
    pipeline = build_pipeline(ct_three_phases(["arterial", "portal"], ["tumour", "tumour", "tumour"], size=64))
    assert pipeline.needs == ("arterial", "portal", "tumour")
    phases = {"arterial": case["ct"], "portal": case["ct"]} | case
    after = pipeline(case["ct"], readers(phases))
    assert after.values.shape == (64, 64, 3)


def test_both_sources_meet_on_one_grid(case):
    pet = build_pipeline([{"op": "onto", "reference": "ct", "spacing": 6}])(case["pet"], readers(case))
    ct = resample(case["ct"], spacing=6)
    assert pet.values.shape == ct.values.shape
    np.testing.assert_allclose(pet.affine, ct.affine)
    assert pet.spacing == ct.spacing


def test_every_operation_is_documented_with_its_arguments():
    lines = [line for line in pipeline_module.__doc__.splitlines() if "(" in line]
    for name, function in OPERATIONS.items():
        [line] = [line for line in lines if line.startswith(f"{name}(")]
        for argument in [*inspect.signature(function).parameters][1:]:
            assert argument in line.partition(")")[0], name
