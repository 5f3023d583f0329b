import json
import logging
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler

from fusion_jax.data import clinical_inputs, soft_tissue_sarcoma
from fusion_jax.data.cohort import Cohort, Columns
from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.tabular import (
    MOLAR_MASSES,
    Category,
    Cutoff,
    FittedTable,
    Flag,
    Number,
    Ordinal,
    TrainingCases,
    columns_from_json,
    columns_to_json,
    convert,
    fit,
    read_fitted,
    suggest_columns,
)
from fusion_jax.data.tabular.units import find_conversion
from tests.helpers import assert_close, real_data

GAP = float("nan")


def frame(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=pd.Index([f"P{i}" for i in range(n)], name="case_id"))


def encode(column, cells, train=None, **others):
    """Outputs of one column, fitted on the first `train` cases (all, if None)."""
    table = frame(x=cells)
    train_cases = table.index[:train]
    fitted = fit([column], table, train_cases, fold="f0", **others)
    return fitted.apply(table, train_cases=train_cases).values


def mixed_table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng([seed])
    gap = lambda values, p: np.where(rng.random(n) < p, None, values)  # noqa: E731 - one line, used three times
    return frame(
        age=pd.to_numeric(pd.Series(gap(rng.normal(60, 10, n), 0.2))).to_numpy(),
        stage=gap(rng.choice(["I", "II", "III"], n), 0.1),
        grade=rng.choice(["low", "mid", "high"], n),
        cirrhosis=gap(rng.choice(["yes", "no"], n), 0.1),
        bilirubin=rng.lognormal(0, 1, n),
        scanner=rng.choice(["A", "B"], n),
    )


MIXED = (
    Number(name="age", unit="years", impute="median", indicator=True),
    Category(name="stage", reference="II", impute="mode", indicator=True),
    Ordinal(name="grade", levels=("low", "mid", "high"), scale="standard"),
    Flag(name="cirrhosis", yes=("yes",), no=("no",), impute="mode"),
    Cutoff(name="bilirubin", at=20.5, unit="µmol/L", substance="bilirubin"),
    Number(name="bilirubin", unit="mg/dL", scale="robust"),
    Category(name="scanner", unseen="column", impute="level"),
)
MIXED_COLUMNS = ("age", "stage", "grade", "cirrhosis", "bilirubin", "scanner")
UNITS = {"bilirubin": "mg/dL", "image": "HU"}
MIXED_NAMES = (
    *("age", "age=missing", "stage=I", "stage=III", "stage=missing", "grade", "cirrhosis"),
    *("bilirubin>=20.5", "bilirubin", "scanner=B", "scanner=missing", "scanner=unseen"),
)


@pytest.fixture
def fitted() -> FittedTable:
    table = mixed_table()
    return fit(MIXED, table, table.index[:40], fold="r0_f1", units=UNITS)


# Numbers


@pytest.mark.parametrize("cells", [[40.0, 55.5, 61.0, 90.0, 3.0], [1, 2, 3, 4, 10], [1e6, 1e6 + 1, 1e6 + 2, 0, 5]])
def test_standard_scaling_has_mean_0_and_sample_sd_1_on_the_training_cases(cells):
    values = encode(Number(name="x"), cells, train=4)[:, 0]
    assert abs(values[:4].mean()) < 1e-12
    assert values[:4].std(ddof=1) == pytest.approx(1, abs=1e-12)
    series = pd.Series(cells, dtype=float)
    assert_close(values, (series - series[:4].mean()) / series[:4].std(), rtol=1e-12)


@pytest.mark.parametrize(("scale", "reference"), [("robust", RobustScaler()), ("minmax", MinMaxScaler())])
def test_robust_and_minmax_equal_scikit_learn(scale, reference):
    cells = np.random.default_rng([1]).lognormal(size=37)
    reference.fit(cells[:25, None])
    assert_close(encode(Number(name="x", scale=scale), cells, train=25), reference.transform(cells[:, None]), 1e-12)


def test_without_scaling_numbers_stay_bit_for_bit():
    cells = [0.1, 0.2, 0.1 + 0.2, -7e-30]
    assert encode(Number(name="x", scale="none"), cells)[:, 0].tolist() == cells


@pytest.mark.parametrize(("impute", "strategy"), [("mean", "mean"), ("median", "median"), ("mode", "most_frequent")])
def test_imputation_equals_scikit_learn_and_uses_training_cases_only(impute, strategy):
    cells = np.array([3.0, GAP, 8.0, 3.0, 9.5, GAP, 1e6, GAP])
    reference = SimpleImputer(strategy=strategy).fit(cells[:6, None])
    values = encode(Number(name="x", scale="none", impute=impute), cells, train=6)
    np.testing.assert_array_equal(values, reference.transform(cells[:, None]))


def test_scaling_statistics_come_before_imputation():
    cells = [40.0, 50.0, GAP, GAP, GAP, 90.0]
    values = encode(Number(name="x", impute="median"), cells)[:, 0]
    there = np.array([40.0, 50.0, 90.0])
    assert_close(values[[0, 1, 5]], (there - there.mean()) / there.std(ddof=1), rtol=1e-12)
    np.testing.assert_array_equal(values[2:5], (50 - there.mean()) / there.std(ddof=1))


def test_the_indicator_marks_gaps_and_is_there_when_training_has_none():
    column = Number(name="x", impute="mean", indicator=True)
    np.testing.assert_array_equal(encode(column, [1.0, 2.0, 3.0, GAP], train=3)[:, 1], [0, 0, 0, 1])


@pytest.mark.parametrize("dtype", ["object", "str", "Float64", "float32", "category"])
def test_numbers_are_read_from_any_dtype(dtype):
    cells = pd.Series(["1", "2.5", "-3e1"] if dtype == "str" else [1, 2.5, -30.0]).astype(dtype).to_numpy()
    table = frame(x=pd.Series(cells).astype(dtype).array)
    values = fit([Number(name="x", scale="none")], table, table.index, fold="a").apply_to_new(
        table.rename(index="new_{}".format)
    )
    np.testing.assert_array_equal(values.values[:, 0], [1, 2.5, -30])


@pytest.mark.parametrize("cell", ["old", "<5", "3,5", "1_000", "nan?", "inf", True, np.inf, -np.inf, "12 mg"])
def test_a_cell_that_is_no_number_is_named(cell):
    cells = pd.Series([1, 2, cell, 4], dtype=object).to_numpy()
    with pytest.raises(ValueError, match=rf"column 'x', case 'P2' holds {re.escape(repr(cell))}; expected a number"):
        encode(Number(name="x"), cells)


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, "", "  "])
@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (Number(name="x"), [1, 2, 3]),
        (Category(name="x"), ["a", "b", "a"]),
        (Ordinal(name="x", levels=(1, 2, 3)), [1, 2, 3]),
        (Flag(name="x"), [0, 1, 1]),
        (Cutoff(name="x", at=2), [1, 2, 3]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_gap_without_imputation_is_an_error_at_fit_and_at_apply(column, cells, gap):
    table = frame(x=pd.Series([*cells, gap], dtype=object).to_numpy())
    message = r"column 'x', case 'P3' is empty, and no imputation is declared.*set impute to '"
    with pytest.raises(ValueError, match=message):
        fit([column], table, table.index, fold="a")
    fitted = fit([column], table, table.index[:3], fold="a")
    with pytest.raises(ValueError, match=message):
        fitted.apply(table, train_cases=table.index[:3])


def test_a_constant_training_column_is_refused_and_named():
    with pytest.raises(ValueError, match=r"column 'x', fold 'f0': every one of 3 training cases.*holds 7.*Leave"):
        encode(Number(name="x"), [7.0, 7.0, 7.0, 8.0], train=3)
    with pytest.raises(ValueError, match=r"column 'x', fold 'f0'.*every one of 2 training cases holds 'a'"):
        encode(Category(name="x"), ["a", "a", "b"], train=2)


def test_a_zero_interquartile_range_is_refused():
    with pytest.raises(ValueError, match=r"column 'x'.*interquartile range is 0.*'standard'"):
        encode(Number(name="x", scale="robust"), [0.0] * 9 + [5.0])


@pytest.mark.parametrize("column", [Number(name="x", impute="median"), Category(name="x", impute="mode")])
def test_a_column_that_is_missing_in_all_training_cases_is_refused(column):
    cells = [GAP, GAP, 3.0] if isinstance(column, Number) else [None, None, "a"]
    with pytest.raises(ValueError, match=r"column 'x', fold 'f0': the value is missing in all 2 training cases"):
        encode(column, cells, train=2)


def test_a_value_beyond_the_floats_is_named_and_not_returned_as_infinity():
    with pytest.raises(ValueError, match=r"case 'P3': output 'x' is inf, too large"):
        encode(Number(name="x", scale="minmax"), [0.0, 1e-200, 0.0, 1e200], train=3)
    with pytest.raises(ValueError, match=r"column 'x'.*no finite standard scale"):
        encode(Number(name="x"), [-1.7e308, 1.7e308, 1e308])


@given(st.lists(st.floats(-1e100, 1e100) | st.none(), min_size=3, max_size=30), st.sampled_from(["standard", "minmax"]))
def test_what_is_returned_is_finite_or_refused_by_name(cells, scale):
    table = frame(x=pd.Series(cells, dtype=object).to_numpy())
    try:
        fitted = fit([Number(name="x", scale=scale, impute="mean")], table, table.index, fold="a")
        values, _ = fitted.apply(table, train_cases=table.index)
    except ValueError as error:
        assert "column 'x'" in str(error) or "output 'x'" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert np.isfinite(values).all()


# Categories, ranks, flags and cut-offs


def test_dummies_equal_scikit_learn_with_the_first_level_dropped():
    cells = np.random.default_rng([2]).choice(["c", "a", "b", "d"], 50)
    reference = OneHotEncoder(drop="first", sparse_output=False).fit(cells[:40, None])
    np.testing.assert_array_equal(encode(Category(name="x"), cells, train=40), reference.transform(cells[:, None]))


def test_a_named_reference_is_the_level_without_a_dummy():
    table = frame(x=["mild", "none", "severe", "none"])
    fitted = fit([Category(name="x", reference="none")], table, table.index, fold="a")
    values, names = fitted.apply(table, train_cases=table.index)
    assert names == ("x=mild", "x=severe")
    np.testing.assert_array_equal(values, [[1, 0], [0, 0], [0, 1], [0, 0]])


def test_the_order_of_declared_levels_is_the_order_of_the_outputs():
    values = encode(Category(name="x", levels=("0", "C", "B", "A"), reference="0"), ["0", "A", "B", "C"])
    np.testing.assert_array_equal(values, [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def test_levels_that_are_numbers_sort_as_numbers_and_do_not_depend_on_gaps():
    whole = frame(x=[10, 9, 1, 10])
    gaps = frame(x=[10, 9, 1, None])  # pandas now holds 10.0, 9.0, 1.0
    assert gaps["x"].dtype == float
    for table in (whole, gaps, whole.astype(str), whole.astype(object)):
        fitted = fit([Category(name="x", impute="level")], table, table.index, fold="a")
        assert fitted.names == ("x=9", "x=10", "x=missing")


def test_unseen_levels_are_zeros_with_a_logged_count(caplog):
    with caplog.at_level(logging.WARNING, "fusion_jax.data.tabular"):
        values = encode(Category(name="x"), ["a", "b", "c", "z", "z", "y"], train=3)
    np.testing.assert_array_equal(values[3:], np.zeros((3, 2)))
    assert "column 'x': 3 of 6 cases hold levels that the training cases do not have ('z', 'y')" in caplog.text


def test_unseen_levels_can_be_an_error_or_a_column():
    cells = ["a", "b", "z"]
    with pytest.raises(ValueError, match=r"column 'x', case 'P2' holds 'z', a level that.*one of 'a', 'b'"):
        encode(Category(name="x", unseen="error"), cells, train=2)
    np.testing.assert_array_equal(encode(Category(name="x", unseen="column"), cells, train=2), [[0, 0], [1, 0], [0, 1]])


def test_a_training_level_outside_the_declared_ones_is_an_error():
    with pytest.raises(ValueError, match=r"case 'P1' holds 'E'; expected one of 'A', 'B'. Fix the cell or declare"):
        encode(Category(name="x", levels=("A", "B")), ["A", "E"])


@pytest.mark.parametrize("cases", [60, 3000])
def test_an_identifier_is_no_category(cases):
    names = [f"id_{i}" for i in range(cases)]
    with pytest.raises(
        ValueError, match=rf"column 'x', fold 'f0': {cases} levels among {cases} training cases \('id_0'"
    ):
        encode(Category(name="x"), names)
    assert encode(Category(name="x", levels=tuple(names)), names).shape == (cases, cases - 1)
    assert encode(Category(name="x"), names[:50]).shape == (50, 49)


@pytest.mark.parametrize(
    ("impute", "row"), [("mode", [0, 1]), ("level", [0, 0, 1])], ids=["mode of the training cases", "own level"]
)
def test_a_missing_category_is_the_mode_or_a_level_of_its_own(impute, row):
    cells = ["a", "c", "c", "b", None]
    np.testing.assert_array_equal(encode(Category(name="x", impute=impute), cells, train=4)[-1], row)


def test_the_mode_of_a_tie_is_the_first_level():
    np.testing.assert_array_equal(encode(Category(name="x", impute="mode"), ["b", "a", None])[-1], [0])
    np.testing.assert_array_equal(encode(Number(name="x", impute="mode", scale="none"), [5.0, 2.0, GAP])[-1], [2])


def test_ranks_equal_scikit_learn_and_fill_with_a_level():
    levels = ["low", "mid", "high"]
    cells = ["high", "low", "low", "mid"]
    reference = OrdinalEncoder(categories=[levels]).fit_transform(np.array(cells)[:, None])
    np.testing.assert_array_equal(encode(Ordinal(name="x", levels=tuple(levels)), cells), reference)
    # Between two levels lies no level: the lower median, not 0.5.
    filled = encode(Ordinal(name="x", levels=tuple(levels), impute="median"), ["low", "mid", None])
    np.testing.assert_array_equal(filled[:, 0], [0, 1, 0])
    with pytest.raises(ValueError, match="case 'P1' holds 'G3'; expected one of 'low', 'mid', 'high'"):
        encode(Ordinal(name="x", levels=tuple(levels)), ["low", "G3"])


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        ([1, 0, 1], Flag(name="x")),
        ([1.0, 0.0, 1.0], Flag(name="x")),
        ([True, False, True], Flag(name="x")),
        (["1", "0", "1"], Flag(name="x")),
        (["yes", "no", "y"], Flag(name="x", yes=("yes", "y"), no=("no",))),
        ([2, 1, 2], Flag(name="x", yes=(2,), no=(1,))),
        (pd.array([True, False, True], dtype="boolean"), Flag(name="x")),
        (pd.Series([True, False, 1], dtype=object).to_numpy(), Flag(name="x")),
    ],
)
def test_flags_are_read_from_numbers_words_and_truth_values(cells, column):
    np.testing.assert_array_equal(encode(column, cells)[:, 0], [1, 0, 1])


def test_another_answer_than_the_declared_ones_is_named():
    with pytest.raises(ValueError, match=r"case 'P2' holds 'maybe'; expected one of 'yes', 'no'.*`yes` or `no`"):
        encode(Flag(name="x", yes=("yes",), no=("no",)), ["yes", "no", "maybe"])


def test_equality_at_a_cut_off_gives_one():
    np.testing.assert_array_equal(
        encode(Cutoff(name="x", at=2.8), [2.79, 2.8, 2.81, np.nextafter(2.8, 0)])[:, 0], [0, 1, 1, 0]
    )


# Units


@pytest.mark.parametrize(
    ("value", "source", "target", "substance", "expected"),
    [
        (5, "cm", "mm", "", 50),
        (98.6, "°F", "°C", "", 37),
        (310.15, "K", "°C", "", 37),
        (150, "10^3/µL", "G/L", "", 150),
        (150, "K/uL", "10⁹/l", "", 150),
        (92000, "/mm3", "G/L", "", 92),
        (4.5, "10^6/uL", "T/L", "", 4.5),
        (9, "ng/ml", "µg/L", "", 9),
        (9, "ng/ml", "mcg/l", "", 9),
        (3.4, "g/dL", "g/L", "", 34),
        (40, "U/l", "IU/L", "", 40),
        (2, "years", "months", "", 24),
        (1, "mg/dL", "µmol/L", "bilirubin", 17.1040),  # the customary 17.1
        (1, "mg/dL", "µmol/L", "creatinine", 88.402),  # 88.4
        (1, "mg/dL", "mmol/L", "glucose", 0.0555),
        (100, "mg/dL", "mmol/L", "cholesterol", 2.586),
        (1, "mmol/L", "mg/dL", "calcium", 4.0078),
        (6.3, "kPa", "mmHg", "", 47.254),
        (70, "kg", "lb", "", 154.324),
        (97, "%", "fraction", "", 0.97),
        (1.2, "h", "min", "", 72),
    ],
)
def test_clinical_units_convert(value, source, target, substance, expected):
    there = convert(np.array([float(value), GAP]), source, target, substance=substance)
    assert there[0] == pytest.approx(expected, rel=3e-4 if substance else 1e-5)
    assert np.isnan(there[1])
    assert_close(convert(there[:1], target, source, substance=substance), np.array([float(value)]), rtol=1e-14)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("µmol/L", "mg/dL", r"'µmol/L' cannot be converted to 'mg/dL' without the molar mass: name the `substance`"),
        ("mm", "mg", r"'mm' cannot be converted to 'mg': one is a length, the other a mass"),
        ("days", "years", r"months and years have no fixed number of days"),
        ("g/L", "G/L", r"one is a mass per volume, the other a count per volume"),
        ("furlong", "mm", r"unit 'furlong' is not known, so 'furlong' cannot be converted to 'mm'"),
        ("U/L", "µkat/L", r"unit 'µkat/L' is not known"),
    ],
)
def test_what_does_not_convert_is_refused_with_both_names(source, target, message):
    with pytest.raises(ValueError, match=message):
        convert(np.ones(2), source, target)


def test_the_same_unknown_unit_needs_no_conversion():
    np.testing.assert_array_equal(convert(np.array([3.0]), "Likert points", "Likert points"), [3.0])


@pytest.mark.parametrize(
    ("substance", "formula"),
    [
        ("bilirubin", {"C": 33, "H": 36, "N": 4, "O": 6}),
        ("creatinine", {"C": 4, "H": 7, "N": 3, "O": 1}),
        ("glucose", {"C": 6, "H": 12, "O": 6}),
        ("cholesterol", {"C": 27, "H": 46, "O": 1}),
        ("urea", {"C": 1, "H": 4, "N": 2, "O": 1}),
        ("calcium", {"Ca": 1}),
        ("iron", {"Fe": 1}),
    ],
)
def test_molar_masses_agree_with_the_formula(substance, formula):
    weights = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "Ca": 40.078, "Fe": 55.845}
    assert float(MOLAR_MASSES[substance]) == pytest.approx(sum(weights[e] * k for e, k in formula.items()), rel=1e-4)


@pytest.mark.parametrize("tenths", range(1, 100))
def test_a_cut_off_in_another_unit_is_hit_exactly(tenths):
    """In floats 0.29 m is 28.999999999999996 cm; the threshold is converted as a decimal."""
    threshold = tenths / 100
    for unit, factor in (("cm", 100), ("mm", 1000)):
        at = find_conversion("m", unit).exactly(threshold)
        assert at == float(f"{tenths * factor // 100}"), unit
    table = frame(x=[float(tenths), np.nextafter(tenths, 0)])
    fitted = fit([Cutoff(name="x", at=threshold, unit="m")], table, table.index, fold="a", units={"x": "cm"})
    np.testing.assert_array_equal(fitted.apply(table, train_cases=table.index).values[:, 0], [1, 0])


def test_a_table_in_another_unit_gives_the_same_outputs():
    inches, cm = frame(x=[60.0, 65.0, 72.0, 70.0]), frame(x=[152.4, 165.1, 182.88, 177.8])
    column = Number(name="x", unit="cm")
    first = fit([column], inches, inches.index, fold="a", units={"x": "in"})
    second = fit([column], cm, cm.index, fold="a")
    values = first.apply(inches, train_cases=inches.index).values
    assert_close(values, second.apply(cm, train_cases=cm.index).values, rtol=1e-12)
    # The unit of the fit holds until another is named.
    assert_close(first.apply(cm, train_cases=cm.index, units={"x": "cm"}).values, values, rtol=1e-12)
    assert first.explain().loc["x", "unit"] == "cm"


def test_a_unit_that_cannot_be_converted_names_the_column():
    with pytest.raises(ValueError, match=r"column 'x': 'mg/dL' cannot be converted to 'µmol/L' without the molar mass"):
        encode(Number(name="x", unit="µmol/L"), [1.0, 2.0], units={"x": "mg/dL"})


# Folds


def test_the_fit_looks_at_training_cases_only():
    table = mixed_table()
    train = table.index[:40]
    changed = table.copy()
    changed.iloc[40:, :] = None
    changed.loc["P41", "age"] = 1e9
    first = fit(MIXED, table, train, fold="f", units=UNITS)
    assert fit(MIXED, changed.astype({"age": float, "bilirubin": float}), train, fold="f", units=UNITS) == first
    assert fit(MIXED, table, table.index[:41], fold="f", units=UNITS) != first


def test_the_order_of_rows_and_cases_changes_nothing(fitted):
    table = mixed_table()
    again = fit(MIXED, table.iloc[::-1], list(table.index[:40])[::-1], fold="r0_f1", units=UNITS)
    assert again.names == fitted.names
    assert again.fitted_on == fitted.fitted_on
    values = fitted.apply(table, train_cases=table.index[:40]).values
    assert_close(again.apply(table.iloc[::-1], train_cases=table.index[:40]).values[::-1], values, rtol=1e-12)


def test_another_fold_is_refused_and_the_leaked_cases_are_named(fitted):
    table = mixed_table()
    other = [*table.index[:30], *table.index[50:60]]  # P30 … P39 are held out now
    with pytest.raises(ValueError, match=r"fitted in fold 'r0_f1' on 40 cases") as error:
        fitted.apply(table.loc[table.index[30:50]], train_cases=other)
    message = str(error.value)
    assert (
        "it was fitted on 10 cases outside that training set, among them 'P30', 'P31', 'P32', 'P33', 'P34'" in message
    )
    assert "has not seen 10 cases of it ('P50'" in message
    assert "Fit again" in message


@pytest.mark.parametrize("train_cases", [[], ["P0"], [f"P{i}" for i in range(41)], [f"P{i}" for i in range(39)]])
def test_any_other_training_set_is_refused(fitted, train_cases):
    with pytest.raises(ValueError, match="this encoder was fitted in fold 'r0_f1'"):
        fitted.apply(mixed_table(), train_cases=train_cases)
    with pytest.raises(ValueError, match="was fitted in fold 'r0_f1'"):
        fitted.fitted_on.check(train_cases)


def test_new_cases_need_no_fold_and_known_ones_are_not_new(fitted):
    table = mixed_table()
    inside = fitted.apply(table, train_cases=table.index[:40])
    new = table.rename(index="site2_{}".format)
    np.testing.assert_array_equal(fitted.apply_to_new(new).values, inside.values)
    with pytest.raises(ValueError, match=r"'P39' of the table to be encoded as new.*make the ids unique"):
        fitted.apply_to_new(table.iloc[39:])
    np.testing.assert_array_equal(fitted.apply_to_new(table.iloc[40:]).values, inside.values[40:])


def test_a_single_text_is_no_list_of_cases():
    table = mixed_table()
    with pytest.raises(TypeError, match="a single text; give a list"):
        TrainingCases.of("P1", fold="f")
    with pytest.raises(ValueError, match=r"name 'P1' more than once"):
        fit(MIXED, table, ["P1", "P2", "P1"], fold="f")
    with pytest.raises(ValueError, match="fold 'f' has no training cases"):
        fit(MIXED, table, [], fold="f")


def test_a_training_case_that_is_not_in_the_table_is_named():
    table = mixed_table()
    with pytest.raises(ValueError, match=r"training cases 'P99' are not in the table, whose index starts 'P0', 'P1'"):
        fit(MIXED, table, ["P1", "P99"], fold="f")
    with pytest.raises(ValueError, match=r"several rows for 'P1'; expected one row a case"):
        fit(MIXED, pd.concat([table, table.loc[["P1"]]]), ["P2"], fold="f")


def test_a_column_that_is_absent_is_named_with_the_close_one():
    with pytest.raises(ValueError, match=r"the table has no column 'agee'; did you mean 'age'"):
        fit([Number(name="agee")], mixed_table(), ["P1", "P2"], fold="f")


def test_columns_that_are_no_inputs_cannot_be_fitted():
    table = mixed_table()[["age", "grade"]].fillna({"age": 50})
    cohort = Cohort.from_arrays(
        {"image": np.zeros((60, 4, 4, 1))}, table=table, label=[0, 1] * 30, roles={"age": "input", "grade": "never"}
    )
    fit([Number(name="age")], cohort.inputs, cohort.case_id[:40], fold="f", units=cohort.units)
    with pytest.raises(ValueError, match=r"no column 'grade'"):
        fit([Category(name="grade")], cohort.inputs, cohort.case_id[:40], fold="f")


def test_an_encoded_table_takes_the_place_of_the_columns_in_a_cohort():
    table = mixed_table()
    cohort = Cohort.from_arrays(
        {"clinical": Columns(MIXED_COLUMNS, 60)},
        table=table,
        label=[0, 1] * 30,
        roles=dict.fromkeys(MIXED_COLUMNS, "input"),
        units={"bilirubin": "mg/dL"},
    )
    train = cohort.case_id[:40]
    fitted = fit(MIXED, cohort.inputs, train, fold="r0_f1", units=cohort.units)
    encoded = fitted.apply(cohort.inputs, train_cases=train, units=cohort.units)
    with pytest.raises(TypeError, match="not encoded yet"):
        cohort.sources["clinical"][0]
    np.testing.assert_array_equal(
        cohort.with_source("clinical", encoded.values).sources["clinical"][7], encoded.values[7]
    )


# The whole table


def test_names_groups_and_values_belong_together(fitted):
    table = mixed_table()
    values, names = fitted.apply(table, train_cases=table.index[:40])
    assert names == fitted.names == MIXED_NAMES
    assert values.shape == (60, len(names))
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert [names[i] for i in fitted.groups["stage"]] == ["stage=I", "stage=III", "stage=missing"]
    assert [names[i] for i in fitted.groups["bilirubin"]] == ["bilirubin>=20.5", "bilirubin"]
    assert sorted(i for group in fitted.groups.values() for i in group) == list(range(len(names)))


def test_every_output_is_explained(fitted):
    table = fitted.explain()
    assert tuple(table.index) == fitted.names
    assert table.loc["stage=I", "meaning"] == "1 where I; reference II"
    assert table.loc["bilirubin>=20.5", "unit"] == "µmol/L"
    assert table.loc["age", "missing"].startswith("median ")
    training = mixed_table()["age"][:40]
    assert table.loc["age", ["n", "n_missing"]].tolist() == [training.notna().sum(), training.isna().sum()]


def test_outputs_that_arise_twice_are_refused():
    with pytest.raises(ValueError, match="outputs 'age' arise twice"):
        fit([Number(name="age", impute="mean")] * 2, mixed_table(), [f"P{i}" for i in range(40)], fold="f")


def test_importing_the_tables_loads_nothing_heavy():
    code = (
        "import sys, fusion_jax.data.tabular; print(*sorted({'jax', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


# A table that nobody has declared


def test_suggestions_follow_from_the_cells():
    table = frame(
        age=[40.0, 61.5, GAP, 70.0],
        grade=[1, 2, 2, 1],
        male=[0, 1, 1, 0],
        ascites=["No", "yes", None, "no"],
        treated=[True, False, True, True],
        stage=["A", "B", None, "C"],
        size=["1.5", "2", "3", "4e1"],
    )
    assert suggest_columns(table, units={"age": "years", "ct": "HU"}) == (
        Number(name="age", unit="years", impute="median", indicator=True),
        Category(name="grade"),
        Flag(name="male", impute="mode"),
        Flag(name="ascites", yes=("yes",), no=("No", "no"), impute="mode", indicator=True),
        Flag(name="treated", yes=("True",), no=("False",), impute="mode"),
        Category(name="stage", impute="level"),
        Number(name="size", impute="median"),
    )


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1.5, "<0.5", 2.5, 3], r"column 'x', case 'P1' holds '<0.5'; expected a number"),
        ([None, None], r"column 'x' is empty in all 2 cases"),
        (pd.to_datetime(["2020-01-31", "2021-05-01"]), r"column 'x' holds dates.*Derive a number"),
    ],
)
def test_what_cannot_be_suggested_is_named(cells, message):
    with pytest.raises(ValueError, match=message):
        suggest_columns(frame(x=cells))


def test_the_sarcoma_sheet_is_encoded():
    table = soft_tissue_sarcoma().table
    train = table.index[:40]
    columns = (
        Number(name="age_years", unit="years"),
        Flag(name="sex", yes=("Male",), no=("Female",)),
        Ordinal(name="grade", levels=("Low", "Intermediate", "High"), impute="median", indicator=True),
    )
    values, names = fit(columns, table, train, fold="f0").apply(table, train_cases=train)
    assert names == ("age_years", "sex", "grade", "grade=missing")
    coded, present, _ = clinical_inputs(table)
    np.testing.assert_array_equal(values[:, 1], coded[:, 1])
    np.testing.assert_array_equal(values[present[:, 2], 2] + 1, coded[present[:, 2], 2])
    np.testing.assert_array_equal(values[:, 3] == 1, ~present[:, 2])


def test_the_uci_liver_table_is_encoded_with_its_gaps():
    table = pd.read_csv(real_data("hcc_tables") / "hcc_survival_uci.csv", index_col="case_id")
    inputs = table.drop(columns="survived_1_year")
    share = inputs.isna().to_numpy().mean()
    assert 0.09 < share < 0.12
    train = inputs.index[::2]
    fitted = fit(suggest_columns(inputs), inputs, train, fold="f0")
    values, names = fitted.apply(inputs, train_cases=train)
    assert values.shape == (132, 49 + sum(inputs.isna().any()))
    assert np.isfinite(values).all()
    marked = values[:, [i for i, name in enumerate(names) if name.endswith("=missing")]]
    assert marked.sum() == inputs.isna().to_numpy().sum()
    # The paper's limit of bilirubin is in another unit than this table; AFP in one that only looks different.
    bits = (
        Cutoff(name="total_bilirubin", at=20.5, unit="µmol/L", substance="bilirubin", impute="mode"),
        Cutoff(name="alpha_fetoprotein", at=9, unit="µg/L", impute="mode"),
    )
    units = {"total_bilirubin": "mg/dl", "alpha_fetoprotein": "ng/ml"}
    found = fit(bits, inputs, train, fold="f0", units=units).apply(inputs, train_cases=train).values
    there = inputs[["total_bilirubin", "alpha_fetoprotein"]].notna().to_numpy()
    expected = np.column_stack([inputs["total_bilirubin"] * 17.104 >= 20.5, inputs["alpha_fetoprotein"] >= 9])
    np.testing.assert_array_equal(found[there], expected[there])


# JSON


def test_declarations_survive_json():
    written = json.loads(json.dumps(columns_to_json(MIXED)))
    assert columns_from_json(written) == MIXED


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"kind": "numbr", "name": "x"}, r"columns\[0\]: kind 'numbr'; expected one of 'number'"),
        ({"kind": "number", "name": "x", "impte": "mean"}, r"columns\[0\]: unknown key 'impte'; did you mean 'impute'"),
        ({"kind": "number"}, r"columns\[0\]: lacks 'name'"),
        ({"kind": "number", "name": ""}, r"the column has no name"),
        ({"kind": "number", "name": "x", "scale": "standrd"}, r"scale is 'standrd'; did you mean 'standard'"),
        ({"kind": "number", "name": "x", "indicator": True}, r"a missing-indicator stands beside an imputed value"),
        ({"kind": "number", "name": "x", "substance": "biliruben"}, r"did you mean 'bilirubin'"),
        ({"kind": "category", "name": "x", "levels": ["a", "b"], "reference": "c"}, r"reference 'c' is none of"),
        ({"kind": "category", "name": "x", "levels": ["1", 1.0]}, r"level '1' is declared more than once"),
        ({"kind": "ordinal", "name": "x", "levels": ["a"]}, r"an ordinal has at least two levels"),
        ({"kind": "ordinal", "name": "x"}, r"lacks 'levels'"),
        ({"kind": "flag", "name": "x", "yes": ["j"], "no": ["j"]}, r"'j' is declared as yes and as no"),
        ({"kind": "cutoff", "name": "x", "at": float("nan")}, r"the cut-off is nan"),
    ],
)
def test_a_bad_declaration_says_where_and_what(item, message):
    with pytest.raises(ValueError, match=message):
        columns_from_json([item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"kind": "number", "name": 3}, r"name is 3; expected text"),
        ({"kind": "number", "name": "x", "impute": "mean", "indicator": "yes"}, r"indicator is 'yes'; expected true"),
        ({"kind": "cutoff", "name": "x", "at": "60"}, r"at is '60'; expected a number"),
        ({"kind": "cutoff", "name": "x", "at": True}, r"at is True; expected a number"),
        ({"kind": "category", "name": "x", "levels": "abc"}, r"levels is 'abc'; expected a tuple"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_expected(item, message):
    with pytest.raises(TypeError, match=message):
        columns_from_json([item])


def test_a_fitted_table_survives_its_file_bit_for_bit(fitted, tmp_path):
    path = tmp_path / "encoder.json"
    fitted.save(path)
    again = read_fitted(path)
    assert again == fitted
    table = mixed_table()
    train = table.index[:40]
    np.testing.assert_array_equal(
        again.apply(table, train_cases=train).values, fitted.apply(table, train_cases=train).values
    )
    assert "P12" not in path.read_text()  # ids of patients do not travel with a model


def _set(*keys, to):
    def change(value):
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("centers", to=1), r"unknown key 'centers'"),
        (_set("columns", 0, "spred", to=1), r"columns\[0\]: unknown key 'spred'; did you mean 'spread'"),
        (_set("columns", 0, "spread", to=0.0), r"spread is 0.0; expected a number above 0"),
        (_set("columns", 0, "centre", to="60"), r"centre is '60'; expected a finite number"),
        (_set("columns", 0, "fill", to=None), r"fill is None, which does not go with impute 'median'"),
        (_set("columns", 0, "present", to=-1), r"present is -1; expected a count"),
        (_set("columns", 1, "levels", to=["I", "I"]), r"levels \['I', 'I'\]"),
        (_set("columns", 1, "levels", to=["I", "III"]), r"the reference 'II' is none of the levels"),
        (_set("columns", 1, "fill", to="IV"), r"fill is 'IV'"),
        (_set("columns", 2, "declared", "kind", to="number"), r"unknown key 'levels'"),
        (_set("outputs", to=["age"]), r"outputs \['age'\] are not those of the columns"),
        (_set("fold", to="r0_f2"), r"the fingerprint is not that of fold and training cases"),
        (_set("training_cases", 0, to="P0"), r"digests of 16 hexadecimal digits"),
        (_set("format", to="v2"), r"format 'v2'; expected"),
        (_set("columns", to=3), r"columns are 3"),
    ],
)
def test_a_changed_file_is_refused_by_name_and_place(fitted, tmp_path, change, message):
    value = json.loads(json.dumps(fitted.to_json()))
    change(value)
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UnreadableFile, match=message) as error:
        read_fitted(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000])
def test_a_file_that_is_no_fitted_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "encoder.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=re.escape(str(path))):
        read_fitted(path)


def _leaves(value, path=()):
    """Where every value of a JSON object stands, containers too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _leaves(item, (*path, key))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.data())
def test_any_other_value_anywhere_is_read_or_refused_by_name(fitted, tmp_path, data):
    value = json.loads(json.dumps(fitted.to_json()))
    *keys, last = data.draw(st.sampled_from([path for path in _leaves(value) if path[0] != "training_cases"]))
    place = value
    for key in keys:
        place = place[key]
    place[last] = data.draw(JSON_VALUES)
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps(value))
    try:
        again = read_fitted(path)
    except UnreadableFile as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert again.names == fitted.names
        assert FittedTable.from_json(json.loads(json.dumps(again.to_json()))) == again


# Traps of real tables


@pytest.mark.parametrize("column", [Number("x"), Cutoff("x", at=2)])
def test_a_column_declared_without_a_unit_is_refused_in_another_unit_than_at_the_fit(column):
    table = frame(x=[1.0, 2.0, 3.0])
    fitted = fit([column], table, table.index, fold="f0", units={"x": "mg/dL"})
    new = frame(x=[1.0]).set_axis(["N1"], axis=0)
    with pytest.raises(ValueError, match=r"column 'x' is in 'g/L' here and was in 'mg/dL' at the fit"):
        fitted.apply_to_new(new, units={"x": "g/L"})
    same = fitted.apply_to_new(new, units={"x": "mg/dl"}).values
    assert same.tolist() == fitted.apply_to_new(new).values.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "Float32"])
def test_narrow_floats_are_the_decimals_they_stand_for(dtype):
    cells = pd.array([2.82, 2.81], dtype=dtype)
    assert encode(Cutoff("x", at=2.82), cells).ravel().tolist() == [1, 0]
    assert encode(Category("x", levels=(2.81, 2.82)), cells).ravel().tolist() == [1, 0]


@pytest.mark.parametrize("word", ["missing", "unseen"])
def test_a_reference_is_all_zero_whatever_its_name(word):
    column = Category("x", levels=(word, "B"), reference=word, impute="level", unseen="column")
    assert encode(column, [word, "B", None, "C"], train=3).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_declared_answers_come_before_true_and_false():
    assert encode(Flag("x", yes=(False,), no=(True,)), [True, False]).ravel().tolist() == [0, 1]


@pytest.mark.parametrize("scale", ["standard", "robust", "minmax"])
def test_rounding_errors_are_no_spread(scale):
    with pytest.raises(ValueError, match="cannot be scaled"):
        encode(Number("x", scale=scale), [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2])


def test_ids_that_are_the_same_text_are_one_case():
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index=[1, "1", 2])
    with pytest.raises(ValueError, match="several rows for '1'"):
        fit([Number("x")], table, ["1", "2"], fold="f0")
