"""Cohorts of several hospitals become one whose sites can be left out."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Boxes, Cohort, Columns
from fusion_jax.data.concatenation import concatenate
from fusion_jax.data.splits import leave_site_out


def hospital(letter, n=4, sources=("ct",), **others):
    table = pd.DataFrame({"age": np.arange(n) + 50.0, "outcome": ["no", "yes"] * (n // 2)})
    values = {name: np.full((n, 3, 3, 1), ord(letter) + i, float) for i, name in enumerate(sources)}
    settings = {
        "table": table,
        "roles": {"age": "input", "outcome": "label"},
        "case_id": [f"{letter}{row}" for row in range(n)],
        "name": letter,
    }
    return Cohort.from_arrays({**values, "clinical": Columns(("age",), n)}, **{**settings, **others})


def test_cases_follow_each_other_and_sites_can_be_left_out():
    both = concatenate([hospital("a"), hospital("b", 6, ("ct", "pet"))], name="study")
    assert len(both) == 10
    assert both.site.tolist() == ["a"] * 4 + ["b"] * 6
    assert both.label.tolist() == [0, 1] * 5
    assert both.present["pet"].tolist() == [False] * 4 + [True] * 6
    assert both.inputs["age"].tolist() == [50, 51, 52, 53, 50, 51, 52, 53, 54, 55]
    assert [split.name for split in leave_site_out(both).splits] == ["a", "b"]
    part = both.take([9, 0, 4]).with_source("clinical", np.zeros((3, 1)))
    batch = Batches(part, np.arange(3), 3, seed=(0,), sampler="sequential").at(0)
    assert batch.inputs["ct"][:, 0, 0, 0].tolist() == [98, 97, 98]
    assert batch.inputs["pet"][:, 0, 0, 0].tolist() == [99, 0, 99]
    assert both.fingerprint != concatenate([hospital("b", 6, ("ct", "pet")), hospital("a")], name="study").fingerprint


def test_boxes_of_one_hospital_stay_with_its_cases():
    boxes = [Boxes(np.array([[0.0, 0, 2, 2]]), np.array([0]))] * 4
    with_boxes = dataclasses.replace(hospital("b"), boxes=boxes, box_classes=("nodule",), boxes_of="ct")
    both = concatenate([hospital("a"), with_boxes], name="study")
    assert [len(both[row].boxes.corners) for row in range(8)] == [0] * 4 + [1] * 4
    assert (both.box_classes, both.boxes_of) == (("nodule",), "ct")


def test_a_cohort_without_boxes_does_not_shift_whose_boxes_differ():
    boxes = [Boxes(np.array([[0.0, 0, 2, 2]]), np.array([0]))] * 4
    cohorts = [hospital("a")]
    cohorts += [dataclasses.replace(hospital(x), boxes=boxes, box_classes=(x,), boxes_of="ct") for x in "bc"]
    with pytest.raises(ValueError, match=r"classes of 'boxes' is \('c',\) in c and \('b',\) before"):
        concatenate(cohorts, name="study")


def test_declared_levels_of_an_input_stay():
    table = pd.DataFrame({"grade": ["low", "high"] * 2, "outcome": ["no", "yes"] * 2})
    roles = {"grade": "input", "outcome": "label"}
    others = {"table": table, "roles": roles, "levels": {"grade": ("low", "high")}}
    parts = [
        Cohort.from_arrays({"x": np.ones((4, 3, 3, 1))}, name=x, case_id=[f"{x}{i}" for i in range(4)], **others)
        for x in "ab"
    ]
    assert concatenate(parts, name="study").levels == {"grade": ("low", "high"), "outcome": ("no", "yes")}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"case_id": ["a0", "b1", "b2", "b3"]}, "case a0 is in a and in b"),
        (
            {"roles": {"age": "input", "outcome": "never"}},
            "role of column 'outcome' is 'never' in b and 'label' before",
        ),
        ({"units": {"age": "months"}}, "unit of 'age' is 'months' in b and 'years' before"),
        ({"levels": {"outcome": ("yes", "no")}}, "classes of label 'outcome' is"),
    ],
)
def test_what_means_different_things_is_named(second, message):
    with pytest.raises(ValueError, match=message):
        concatenate([hospital("a", units={"age": "years"}), hospital("b", **second)], name="study")
