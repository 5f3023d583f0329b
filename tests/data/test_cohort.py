"""Cohorts from arrays: what goes together, what is refused, and that `never` reaches nobody."""

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.cohort import Arrays, Cohort, Columns


def make(**settings):
    table = pd.DataFrame({"age": [50.0, 60.0, 70.0], "outcome": ["no", "yes", "no"], "secret": ["x", "y", "z"]})
    defaults = {
        "sources": {"image": np.zeros((3, 4, 4, 1))},
        "table": table,
        "roles": {"age": "input", "outcome": "label", "secret": "never"},
        "case_id": ["a", "b", "c"],
    }
    return Cohort.from_arrays(**{**defaults, **settings})


def test_a_cohort_of_arrays_has_ids_labels_and_presence():
    cohort = make(sources={"pet": np.zeros((3, 2, 2, 2, 1)), "marker": [np.ones(2), None, np.ones(2)]})
    assert cohort.case_id == ("a", "b", "c")
    assert cohort.patient_id.tolist() == ["a", "b", "c"]
    assert cohort.label.tolist() == [0, 1, 0]
    assert cohort.present["marker"].tolist() == [True, False, True]
    assert [source.kind for source in cohort.sources.values()] == ["image", "array"]
    case = cohort[1]
    assert set(case.images) == {"pet"}
    assert case.row == {"age": 60.0, "outcome": "yes"}
    assert cohort[-1].case_id == "c"
    with pytest.raises(IndexError):
        cohort[3]


def test_a_cohort_prints_as_a_summary():
    text = repr(make())
    assert text.splitlines() == [
        "Cohort 'cohort': 3 cases of 3 patients",
        "  image: image, 3 present",
        "  input: age",
        "  label: outcome",
        "  never: secret",
    ]
    assert repr(make().sources["image"]) == "Arrays(3 x image)"


@pytest.mark.parametrize(
    ("cells", "classes", "codes"),
    [
        ([2, 10, 2], ("2", "10"), [0, 1, 0]),
        ([1.0, np.nan, 0.0], ("0", "1"), [1, -1, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["b", None, "a"], ("a", "b"), [1, -1, 0]),
    ],
)
def test_labels_of_any_kind_become_classes(cells, classes, codes):
    cohort = Cohort.from_arrays({"f": np.zeros((3, 1))}, label=cells)
    assert (cohort.classes, cohort.label.tolist()) == (classes, codes)


def test_declared_levels_order_the_classes():
    cohort = make(levels={"outcome": ("yes", "no")})
    assert (cohort.classes, cohort.label.tolist()) == (("yes", "no"), [1, 0, 1])
    with pytest.raises(ValueError, match="column 'outcome' holds 'no' in case a; expected one of yes, maybe"):
        make(levels={"outcome": ("yes", "maybe")})


def test_never_columns_reach_no_source():
    table = pd.DataFrame({"age": [50.0], "secret": ["x"]})
    roles = {"age": "input", "secret": "never"}
    cohort = Cohort.from_arrays({"clinical": Columns(("age",), 1)}, table=table, roles=roles)
    assert list(cohort.inputs) == ["age"]
    for columns in (("secret",), ("age", "secret"), ("age", "unnamed")):
        with pytest.raises(ValueError, match=r"'secret', whose role is 'never'|'unnamed', which is not there"):
            Cohort.from_arrays({"clinical": Columns(columns, 1)}, table=table, roles=roles)
    with pytest.raises(ValueError, match="column 'age' has the role 'input', expected 'label'"):
        cohort.codes("age")


def test_columns_that_nobody_gave_a_role_are_never():
    assert make(roles={"outcome": "label"}).role("age") == "never"
    assert make(roles={"outcome": "label"}).inputs.shape == (3, 0)


def test_unencoded_columns_cannot_be_read():
    cohort = make(sources={"image": np.zeros((3, 4, 4, 1)), "clinical": Columns(("age",), 3)})
    with pytest.raises(TypeError, match=r"columns age are not encoded yet.*training cases"):
        cohort.image("clinical", 0)
    assert "clinical" not in cohort[0].images
    encoded = cohort.with_source("clinical", np.arange(3.0)[:, None])
    assert encoded[1].images["clinical"].values.tolist() == [1.0]
    assert cohort.fingerprint != encoded.fingerprint


def test_a_subset_is_the_cases_asked_for():
    cohort = make(site=["u", "v", "u"], boxes=None)
    for rows in ([2, 0], np.array([2, 0]), (row for row in (2, 0))):
        part = cohort.take(rows)
        assert part.case_id == ("c", "a")
        assert part.site.tolist() == ["u", "u"]
        assert part.classes == ("no", "yes")
    assert cohort.take(np.array([False, True, True])).case_id == ("b", "c")


def test_images_carry_their_place():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    source = Arrays(np.zeros((2, 3, 3, 3, 1)), spacing=[(3.0, 2.0, 2.0)] * 2, affine=[affine] * 2, unit="HU")
    image = Cohort.from_arrays({"ct": source}).take([1]).image("ct", 0)
    assert (image.spacing, image.unit) == ((3.0, 2.0, 2.0), "HU")
    np.testing.assert_array_equal(image.affine, affine)


def test_the_fingerprint_is_that_of_the_content():
    assert make().fingerprint == make().fingerprint
    values = np.zeros((3, 4, 4, 1))
    values[2, 1, 1] = 1e-3
    others = [make(sources={"image": values}), make(patient_id=["a", "a", "c"]), make(site=list("uuu"))]
    assert len({cohort.fingerprint for cohort in (make(), *others)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"case_id": ["a", "b"]}, "2 case ids for 3 cases"),
        ({"case_id": ["a", "b", "b"]}, "case id 'b' stands in several rows"),
        ({"case_id": ["a", "", "c"]}, "row 1 has no case id"),
        ({"patient_id": ["a", " ", "c"]}, "row 1 has no patient id"),
        ({"site": ["u"]}, "1 sites for 3 cases"),
        ({"sources": {"image": np.zeros((2, 4, 4, 1))}}, r"differ in their number of cases \(image: 2, table: 3\)"),
        ({"sources": {"image": np.zeros((3, 4, 4))}}, r"'image' has shape \(3, 4, 4\).*channel axis"),
        ({"sources": {"image": [np.zeros((4, 4))] * 3}}, "arrays of .2. axes"),
        ({"sources": {"image": [np.zeros(4), None, None]}}, r"case b has no source at all \(2 such cases\)"),
        ({"sources": {"tumour": Arrays(np.zeros((3, 4, 4, 1)), "mask")}}, "case a has no source at all"),
        ({"roles": {"weight": "input"}}, "role 'input' of column 'weight', which the table does not have"),
        ({"roles": {"age": "time", "outcome": "time"}}, "age, outcome all have the role 'time'"),
        ({"roles": {"outcome": "event"}}, "'outcome' is the event; expected a time"),
        ({"boxes": []}, "boxes of 0 cases; expected 3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_together_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_role_names_the_known():
    with pytest.raises(ValueError, match="column 'age' has role 'inputs'; expected input, label"):
        make(roles={"age": "inputs"})
