"""Clinical columns as a detector reads them: numbers first, codes of categories after them, gaps as asked."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Cohort
from fusion_jax.detection.columns import ClinicalVector, fit_clinical
from tests.detection.squares import squares

ALL = np.arange(12)


def test_numbers_come_first_and_categories_are_codes():
    cohort = squares()
    vector = fit_clinical(cohort, cohort.case_id, fold="all")
    values, there = vector.values(cohort, ALL, cohort.case_id)
    assert vector.names == ("age", "sbp", "sex")
    assert vector.levels == (2,)
    assert values.dtype == np.float32
    assert values[:, 2].tolist() == [0.0, 1.0] * 6
    assert there.all()
    age = cohort.table["age"].to_numpy()
    np.testing.assert_allclose(values[:, 0], (age - age.mean()) / age.std(ddof=1), rtol=1e-5)


def test_a_gap_is_the_mean_of_the_training_cases():
    cohort = squares()
    train = cohort.case_id[:8]
    vector = fit_clinical(cohort, train, fold="f0", values="native")
    known = cohort.table["sbp"].iloc[:8].mean()
    values = vector.values(cohort, ALL, train)[0]
    assert values[[4, 10], 1] == pytest.approx(known)
    assert values[0, 1] == cohort.table["sbp"].iloc[0]


def test_a_masked_gap_is_told_and_a_case_without_any_value_is_absent():
    cohort = squares()
    table = cohort.table.copy()
    table.loc["c03", ["age", "sbp", "sex"]] = None
    cohort = dataclasses.replace(cohort, table=table)
    vector = fit_clinical(cohort, cohort.case_id, fold="all", missing="mask")
    values, there = vector.values(cohort, ALL, cohort.case_id)
    assert vector.numbers == ("age", "age=missing", "sbp", "sbp=missing")
    assert values[:, 3].tolist() == [float(row in (3, 4, 10)) for row in range(12)]
    assert values[3, 4] == -1  # no level: its embedding is zero
    assert vector.levels == (2,)
    assert np.flatnonzero(~there).tolist() == [3]


def test_an_unseen_level_has_no_embedding():
    cohort = squares()
    table = cohort.table.copy()
    table.loc["c11", "sex"] = "X"
    cohort = dataclasses.replace(cohort, table=table)
    vector = fit_clinical(cohort, cohort.case_id[:11], fold="f0")
    assert vector.values(cohort, ALL, cohort.case_id[:11])[0][11, 2] == -1


def test_features_choose_columns_in_their_order():
    cohort = squares()
    vector = fit_clinical(cohort, cohort.case_id, fold="all", features=("sbp", "age"))
    assert vector.names == ("sbp", "age")
    assert vector.levels == ()


def test_declared_columns_are_read_as_they_are_declared():
    cohort = squares()
    columns = [
        {"kind": "category", "name": "sex", "levels": ["M", "F"]},
        {"kind": "number", "name": "age", "scale": "none"},
    ]
    vector = fit_clinical(cohort, cohort.case_id, fold="all", columns=columns)
    values = vector.values(cohort, ALL, cohort.case_id)[0]
    assert vector.names == ("age", "sex")
    assert values[:, 1].tolist() == [1.0, 0.0] * 6
    assert values[:, 0].tolist() == cohort.table["age"].tolist()


def test_three_levels_keep_their_codes_beside_other_columns():
    table = pd.DataFrame({"view": ["AP", "PA", "LL", "AP"], "age": [1.0, 2.0, 3.0, 4.0], "sex": ["M", "F", "F", "M"]})
    cohort = Cohort.from_arrays(
        {"image": np.zeros((4, 4, 4, 1))}, table=table, roles=dict.fromkeys(table.columns, "input")
    )
    vector = fit_clinical(cohort, cohort.case_id, fold="all", values="native")
    assert vector.levels == (3, 2)
    assert vector.values(cohort, np.arange(4), cohort.case_id)[0].tolist() == [
        [1.0, 0.0, 1.0],
        [2.0, 2.0, 0.0],
        [3.0, 1.0, 0.0],
        [4.0, 0.0, 1.0],
    ]


def test_it_survives_json():
    cohort = squares()
    vector = fit_clinical(cohort, cohort.case_id, fold="all", missing="mask")
    again = ClinicalVector.from_json(vector.to_json())
    assert again == vector


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ("agee",)}, "features: no input column 'agee'; did you mean 'age'"),
        ({"features": ("outcome",)}, "no input column 'outcome' \\(its role is 'label'\\)"),
        (
            {"columns": [{"kind": "number", "name": "age"}], "features": ("sex",)},
            "features: 'sex' is not declared in `columns`; there is 'age'",
        ),
    ],
)
def test_columns_that_are_not_there_are_named(arguments, message):
    cohort = squares()
    with pytest.raises(ValueError, match=message):
        fit_clinical(cohort, cohort.case_id, fold="all", **arguments)


def test_a_cohort_without_inputs_says_what_to_do():
    cohort = Cohort.from_arrays({"image": np.zeros((2, 4, 4, 1))})
    with pytest.raises(ValueError, match=r"no clinical column: .* or choose a model without clinical data"):
        fit_clinical(cohort, cohort.case_id, fold="all")
