"""Cohorts from arrays: what goes together, what is refused, and that `never` reaches nobody."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Arrays, Cohort, Columns
from fusion_jax.data.image import Image


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


def test_a_continuous_outcome_is_no_class():
    with pytest.raises(ValueError, match=r"label 'label' holds 0\.5; expected classes"):
        Cohort.from_arrays({"f": np.zeros((3, 1))}, label=[1.0, 0.5, 2.0])


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


def test_some_sources_make_a_cohort_of_their_own():
    cohort = make(sources={"image": np.zeros((3, 4, 4, 1)), "marker": [np.ones(2), None, np.ones(2)]})
    assert set(cohort.only("image").sources) == set(cohort.only("image").present) == {"image"}
    with pytest.raises(ValueError, match="case b has no source at all"):
        cohort.only("marker")
    with pytest.raises(ValueError, match="no source 'pet'; it has image, marker"):
        cohort.only("pet")


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
        ({"levels": {"outcom": ("yes", "no")}}, "levels of column 'outcom', which the table does not have"),
        (
            {"levels": {"outcome": ("yes", "no", "yes")}},
            "levels of 'outcome' are yes, no, yes; expected each of them once",
        ),
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


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
@pytest.mark.parametrize(("what", "name"), [("patient_id", "patient id"), ("case_id", "case id"), ("site", "site")])
def test_a_missing_id_is_refused_and_never_becomes_text(gap, what, name):
    with pytest.raises(ValueError, match=f"row 1 has no {name}"):
        make(**{what: ["a", gap, "c"]})


def test_numbers_as_ids_lose_the_point_that_pandas_gave_them():
    assert make(patient_id=[1.0, 2.0, 2.0]).patient_id.tolist() == ["1", "2", "2"]


def test_a_missing_label_among_text_is_missing():
    cohort = Cohort.from_arrays({"f": np.zeros((3, 1))}, label=[np.nan, "a", "b"])
    assert (cohort.classes, cohort.label.tolist()) == (("a", "b"), [-1, 0, 1])


def test_labels_go_by_position():
    label = pd.Series([1, 0, 0], index=["c", "b", "a"])
    assert make(label=label, roles={}).label.tolist() == [1, 0, 0]


def test_many_classes_take_time_in_proportion():
    cohort = Cohort.from_arrays({"f": np.zeros((100_000, 1), np.float32)}, label=np.arange(100_000))  # hours if squared
    assert cohort.label[-1] == 99_999


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.array([True, True]), IndexError, r"mask of shape \(2,\) for 3 cases"),
        (np.array([True, False, False, True]), IndexError, r"mask of shape \(4,\) for 3 cases"),
        ([0.7], ValueError, "rows are float64; expected whole numbers or a mask"),
        ([1, 3], IndexError, "row 3 of 3 cases"),
        ([-4], IndexError, "row -4 of 3 cases"),
        ([], ValueError, "no case is left"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rows_that_are_not_there_are_not_taken(rows, error, message):
    with pytest.raises(error, match=message):
        make().take(rows)


def test_a_new_source_does_not_make_absent_cases_present():
    assert make().with_source("marker", [np.ones(2), None, np.ones(2)]).present["marker"].tolist() == [
        True,
        False,
        True,
    ]
    cohort = make(sources={"image": np.zeros((3, 4, 4, 1)), "marker": [None, np.ones(2), np.ones(2)]})
    again = cohort.with_source("marker", [np.ones(2), None, np.ones(2)])
    assert again.present["marker"].tolist() == [False, False, True]
    assert cohort.with_source("marker", np.ones((3, 2)), np.ones(3, bool)).present["marker"].all()


def test_the_fingerprint_knows_classes_places_and_gaps():
    affine = [np.eye(4)] * 3
    volumes = np.zeros((3, 2, 2, 2, 1))
    table = pd.DataFrame({"note": ["a", "", "b"], "uid": [1, 2, 2**53]})
    cohorts = [
        make(),
        make(levels={"outcome": ("yes", "no")}),
        make(box_classes=("mass",)),
        make(sources={"ct": Arrays(volumes, affine=affine)}),
        make(sources={"ct": Arrays(volumes, affine=[2 * a for a in affine])}),
        make(table=table, roles={}),
        make(table=table.assign(note=["a", None, "b"]), roles={}),
        make(table=table.assign(uid=[1, 2, 2**53 + 1]), roles={}),
        make(table=table.assign(uid=["1", "2", str(2**53)]), roles={}),
    ]
    assert len({cohort.fingerprint for cohort in cohorts}) == len(cohorts)
    gaps = [table.assign(uid=[1.0, gap, 2.0]) for gap in (np.nan, -np.nan)]
    assert len({make(table=one, roles={}).fingerprint for one in gaps}) == 1


def test_frames_and_device_arrays_are_arrays():
    for values in (pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}), jnp.array([[1.0, 3.0], [2.0, 4.0]])):
        source = Cohort.from_arrays({"f": values}).sources["f"]
        assert isinstance(source.values, np.ndarray)
        assert source[1].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    "values", [np.array([["a"]] * 3), [np.array(["a"])] * 3, pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", "c"]})]
)
def test_text_is_no_source(values):
    with pytest.raises(ValueError, match=r"source 'f' holds .*; expected numbers.*`table`"):
        Cohort.from_arrays({"f": values})


def test_columns_are_told_apart():
    twice = pd.DataFrame([[1, 2]] * 3, columns=["a", "a"])
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        make(table=twice, roles={"a": "label"})
    with pytest.raises(ValueError, match="`label` and a column 'label' of the table"):
        make(table=pd.DataFrame({"label": [1, 0, 1]}), roles={}, label=[0, 1, 0])


def test_images_and_batches_print_without_their_values():
    affine = np.diag([3.0, 2.0, 2.0, 1.0])
    image = Image(np.zeros((4, 5, 6, 1), np.int16), (3.0, 1.5, 1.5), affine, "HU")
    assert repr(image) == "Image(4 x 5 x 6 x 1 int16, 3 x 1.5 x 1.5 mm, HU)"
    batch = Batches(make(), np.arange(3), 2, seed=(0,), sampler="sequential").at(0)
    assert repr(batch) == (
        "Batch(inputs={'image': 'float32[2, 4, 4, 1]'}, target={'label': 'int32[2]'}, index=array([0, 1], dtype=int32))"
    )
