"""The clinical inputs of two papers from raw tables: 33 columns of a breast MRI study, nine bits of a liver study."""

import logging

import numpy as np
import pandas as pd
import pytest

from experiments.breast_mri.encoding import COLUMNS
from experiments.hcc_recurrence.encoding import FACTORS, NINE_BITS
from fusion_jax.data.synthetic import breast_mri, liver_cancer_ct
from fusion_jax.data.tabular import FittedTable, fit, select
from tests.helpers import assert_close

SOFTWARE = [f"v{number:02d}" for number in range(1, 12)]
SCALED = (
    *("age_years", "shift_days", "max_intensity", "pixel_spacing_mm", "crop_height_mm", "crop_width_mm"),
    *("flip_angle_deg", "reconstruction_diameter_mm", "imaging_frequency_mhz", "echo_time_ms", "repetition_time_ms"),
    "echo_train_length",
)
# specs/breast_mri_fusion.md, section 2.1: index, columns and their feature, in the published order.
PUBLISHED = [
    "age_years",
    "laterality",
    *SCALED[1:],
    *(f"background_enhancement={level}" for level in ("mild", "moderate", "marked")),
    *(f"breast_density={level}" for level in "bcd"),
    "field_strength_t=3",
    *(f"software_version={version}" for version in SOFTWARE[1:]),
    *(f"indication={level}" for level in ("screening", "diagnostic", "extent")),
]


def breast_table(n: int = 400) -> pd.DataFrame:
    """Raw features; the first 300 cases train. Age, density and enhancement have gaps in and outside training."""
    rng = np.random.default_rng([2021])
    table = pd.DataFrame(
        {name: rng.normal(50, 10, n).round(2) for name in SCALED},
        index=pd.Index([f"breast_{i}" for i in range(n)], name="case_id"),
    )
    table["laterality"] = rng.choice(["left", "right"], n)
    table["background_enhancement"] = rng.choice(["minimal", "mild", "moderate", "marked"], n, p=[0.6, 0.25, 0.1, 0.05])
    table["breast_density"] = rng.choice(list("abcd"), n, p=[0.02, 0.2, 0.67, 0.11])
    table["field_strength_t"] = rng.choice([1.5, 3.0], n)
    table["software_version"] = np.resize(SOFTWARE, n)
    table["indication"] = rng.choice(["other", "screening", "diagnostic", "extent"], n)
    # The training cases are older and denser, so that a statistic of the wrong cases would show.
    table.loc[table.index[300:], "age_years"] += 30
    table.loc[table.index[300:], "breast_density"] = "b"
    table.loc[table.index[300:], "background_enhancement"] = "marked"
    for column, rows in {"age_years": [3, 310], "breast_density": [4, 311], "background_enhancement": [5, 312]}.items():
        table.loc[table.index[rows], column] = np.nan
    table.loc[table.index[320], "software_version"] = "v99"
    return table


@pytest.fixture
def breast() -> tuple[pd.DataFrame, pd.Index, FittedTable]:
    table = breast_table()
    train = table.index[:300]
    return table, train, fit(COLUMNS, table, train, fold="train")


def test_18_features_become_the_33_published_columns_in_order(breast):
    table, train, fitted = breast
    values, names = fitted.apply(table, train_cases=train)
    assert len(COLUMNS) == 18
    assert list(names) == PUBLISHED
    assert values.shape == (400, 33)
    assert np.isfinite(values).all()
    assert sorted(len(columns) for columns in fitted.groups.values()) == [1] * 14 + [3, 3, 3, 10]


def test_the_33_columns_equal_the_published_recipe_in_pandas(breast):
    """Mean and sd of the training frame with its gaps, then fill, then dummies without the first level, then scale."""
    table, train, fitted = breast
    mean, sd = table.loc[train, list(SCALED)].mean(), table.loc[train, list(SCALED)].std()
    filled = table.fillna({"age_years": table.loc[train, "age_years"].median()})
    for column in ("breast_density", "background_enhancement"):
        filled[column] = filled[column].fillna(table.loc[train, column].mode()[0])
    expected = {name: (filled[name] - mean[name]) / sd[name] for name in SCALED}
    expected["laterality"] = filled["laterality"] == "left"
    for name in PUBLISHED:
        if "=" in name:
            column, level = name.split("=")
            expected[name] = filled[column] == (3.0 if column == "field_strength_t" else level)
    values, _ = fitted.apply(table, train_cases=train)
    assert_close(values, pd.DataFrame(expected)[PUBLISHED].to_numpy(dtype=float), rtol=1e-12)


def test_training_z_scores_have_mean_0_and_sd_1_where_nothing_was_filled(breast):
    table, train, fitted = breast
    values, names = fitted.apply(table.loc[train], train_cases=train)
    for name in SCALED:
        z = values[table.loc[train, name].notna().to_numpy(), names.index(name)]
        assert abs(z.mean()) < 1e-12, name
        assert abs(z.std(ddof=1) - 1) < 1e-12, name


def test_gaps_are_filled_from_the_training_cases(breast):
    table, train, fitted = breast
    values, names = fitted.apply(table, train_cases=train)
    age = table.loc[train, "age_years"]
    for row in (3, 310):
        assert values[row, 0] == pytest.approx((age.median() - age.mean()) / age.std())
    for row in (4, 311):
        assert values[row, names.index("breast_density=c")] == 1
    for row in (5, 312):
        assert not values[row, 13:16].any()  # minimal, the commonest, is the reference


def test_an_unseen_software_version_is_all_zero_and_logged(breast, caplog):
    table, train, fitted = breast
    with caplog.at_level(logging.WARNING, "fusion_jax.data.tabular"):
        values, names = fitted.apply(table.iloc[300:], train_cases=train)
    block = [i for i, name in enumerate(names) if name.startswith("software_version=")]
    assert len(block) == 10
    assert not values[20, block].any()
    assert "column 'software_version': 1 of 100 cases" in caplog.text


def test_a_gap_in_a_feature_without_imputation_is_an_error(breast):
    table, train, fitted = breast
    table.loc["breast_333", "echo_time_ms"] = np.nan
    with pytest.raises(ValueError, match="column 'echo_time_ms', case 'breast_333' is empty"):
        fitted.apply(table, train_cases=train)


def test_the_synthetic_cohort_has_the_published_width():
    cohort = breast_mri(600, size=32).cohort
    train = [case for case, split in zip(cohort.case_id, cohort.table["split"], strict=True) if split == "train"]
    fitted = fit(COLUMNS, cohort.inputs, train, fold="train", units=cohort.units)
    values, _ = fitted.apply(cohort.inputs, train_cases=train, units=cohort.units)
    assert values.shape == (600, 33)
    assert cohort.inputs.isna().to_numpy().any()


# Nine bits


def liver_table(**columns) -> pd.DataFrame:
    """Four patients below every cut-off, one of each BCLC stage."""
    complete = {
        "age_years": [59.9, 40.0, 50.0, 59.0],
        "tumour_size_cm": [4.9, 1.0, 2.0, 3.0],
        "portal_vein_invasion": ["no"] * 4,
        "neutrophil_lymphocyte_ratio": [2.79, 1.0, 1.5, 2.0],
        "total_bilirubin_umol_l": [20.4, 10.0, 12.0, 15.0],
        "afp_ug_l": [8.9, 1.0, 2.0, 3.0],
        "bclc": ["0", "A", "B", "C"],
    } | columns
    return pd.DataFrame(complete, index=["P0", "P1", "P2", "P3"])


def nine_bits(table: pd.DataFrame, **others) -> np.ndarray:
    fitted = fit(NINE_BITS, table, table.index, fold="f0", **others)
    values, names = fitted.apply(table, train_cases=table.index)
    assert len(names) == 9
    return values


def test_nine_bits_stand_in_the_published_order():
    table = liver_table()
    names = fit(NINE_BITS, table, table.index, fold="f0").names
    assert names == (
        *(
            "age_years>=60",
            "tumour_size_cm>=5",
            "portal_vein_invasion",
            "neutrophil_lymphocyte_ratio>=2.8",
            "total_bilirubin_umol_l>=20.5",
            "afp_ug_l>=9",
        ),
        *("bclc=C", "bclc=B", "bclc=A"),
    )


def test_bclc_stages_have_the_published_codes():
    codes = nine_bits(liver_table())[:, 6:].astype(int).tolist()
    assert dict(zip("0ABC", codes, strict=True)) == {"0": [0, 0, 0], "A": [0, 0, 1], "B": [0, 1, 0], "C": [1, 0, 0]}


@pytest.mark.parametrize(
    ("column", "threshold", "bit"),
    [
        ("age_years", 60, 0),
        ("tumour_size_cm", 5.0, 1),
        ("neutrophil_lymphocyte_ratio", 2.8, 3),
        ("total_bilirubin_umol_l", 20.5, 4),
        ("afp_ug_l", 9, 5),
    ],
)
def test_equality_at_a_threshold_is_one(column, threshold, bit):
    values = [threshold, np.nextafter(threshold, 0), threshold + 1, 0.0]
    bits = nine_bits(liver_table(**{column: values}))[:, :6]
    np.testing.assert_array_equal(bits[:, bit], [1, 0, 1, 0])
    assert not np.delete(bits, bit, axis=1).any()


def test_portal_vein_invasion_is_the_third_bit():
    for cells in (["no", "yes", "no", "yes"], [0, 1, 0, 1], [False, True, False, True]):
        np.testing.assert_array_equal(nine_bits(liver_table(portal_vein_invasion=cells))[:, 2], [0, 1, 0, 1])


def test_units_of_another_laboratory_give_the_same_bits():
    metric = liver_table(total_bilirubin_umol_l=[20.5, 20.4, 34.2, 3.0], tumour_size_cm=[5.0, 4.9, 7.0, 1.0])
    other = metric.assign(
        total_bilirubin_umol_l=metric["total_bilirubin_umol_l"] * 584.66 / 10_000 * (1 + 1e-12),
        tumour_size_cm=[50.0, 49.0, 70.0, 10.0],
    )
    units = {"total_bilirubin_umol_l": "mg/dL", "tumour_size_cm": "mm", "afp_ug_l": "ng/mL"}
    np.testing.assert_array_equal(nine_bits(other, units=units), nine_bits(metric))


@pytest.mark.parametrize("column", ["age_years", "portal_vein_invasion", "afp_ug_l", "bclc"])
def test_a_missing_value_is_refused(column):
    table = liver_table().astype({column: object})
    table.loc["P2", column] = None
    with pytest.raises(ValueError, match=f"column '{column}', case 'P2' is empty"):
        nine_bits(table)


@pytest.mark.parametrize(("correction", "without"), [("none", ()), ("yates", ("neutrophil_lymphocyte_ratio",))])
def test_the_seven_factors_are_selected_from_a_cohort_with_the_printed_counts(correction, without):
    cohort = liver_cancer_ct(seed=3).cohort
    assert len(cohort) == 765
    assert {column.name for column in FACTORS} == set(cohort.columns("input"))
    chosen = select(
        FACTORS,
        cohort.inputs,
        cohort.label,
        cohort.case_id,
        fold="all",
        patients=cohort.patient_id,
        units=cohort.units,
        correction=correction,
    )
    assert {test.n for test in chosen.tests} == {167}
    assert chosen.names == tuple(column.name for column in NINE_BITS if column.name not in without)
    values = fit(NINE_BITS, cohort.inputs, cohort.case_id, fold="all", units=cohort.units).apply(
        cohort.inputs, train_cases=cohort.case_id
    )
    assert values.values.shape == (765, 9)


def test_a_stage_that_the_paper_does_not_have_is_refused():
    with pytest.raises(ValueError, match="column 'bclc', case 'P3' holds 'D'; expected one of '0', 'C', 'B', 'A'"):
        nine_bits(liver_table(bclc=["0", "A", "B", "D"]))
