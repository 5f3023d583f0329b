import inspect
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fusion_jax.data.tabular import (
    Category,
    Cutoff,
    Flag,
    Number,
    Selection,
    chi_squared,
    fit,
    select,
    selection_frequency,
)

# Factor, counts (without, with early recurrence) of each level, chi-squared, p without correction, with Yates', by
# Fisher's exact test, and as printed: specs/hcc_fusion.md, section 6.2, from Table 1 of Wang W. et al. 2020.
FACTORS = [
    ("sex", [[17, 10], [85, 55]], 0.048, 0.8263, 0.9969, 1.000, ".826"),
    ("age", [[55, 47], [47, 18]], 5.645, 0.0175, 0.0269, 0.0225, ".018"),
    ("tumour_size", [[74, 28], [28, 37]], 14.506, 0.0001, 0.0003, 0.0002, "<.001"),
    ("tumour_number", [[97, 58], [5, 7]], 2.049, 0.1523, 0.2609, 0.2184, ".152"),
    ("portal_vein_invasion", [[95, 48], [7, 17]], 12.006, 0.0005, 0.0012, 0.0011, ".001"),
    ("cirrhosis", [[31, 21], [71, 44]], 0.068, 0.7944, 0.9289, 0.8644, ".794"),
    ("hbv", [[25, 8], [77, 57]], 3.728, 0.0535, 0.0834, 0.0722, ".054"),
    ("nl_ratio", [[71, 35], [31, 30]], 4.254, 0.0392, 0.0577, 0.0482, ".039"),
    ("alt", [[66, 38], [36, 27]], 0.659, 0.4169, 0.5170, 0.4193, ".417"),
    ("ast", [[77, 46], [25, 19]], 0.456, 0.4995, 0.6205, 0.5893, ".500"),
    ("akp", [[85, 46], [17, 19]], 3.706, 0.0542, 0.0832, 0.0814, ".054"),
    ("ggt", [[46, 20], [56, 45]], 3.410, 0.0648, 0.0921, 0.0752, ".065"),
    ("albumin", [[100, 65], [2, 0]], 1.290, 0.2561, 0.6846, 0.5217, ".256"),
    ("total_bilirubin", [[81, 41], [21, 24]], 5.381, 0.0204, 0.0323, 0.0311, ".020"),
    ("afp", [[39, 11], [63, 54]], 8.597, 0.0034, 0.0058, 0.0034, ".003"),
    ("child_pugh", [[89, 51], [13, 14]], 2.265, 0.1323, 0.1973, 0.1387, ".132"),
    ("bclc", [[17, 5], [78, 39], [1, 3], [6, 18]], 19.295, 0.0002, 0.0002, None, "<.001"),
]
SEVEN = ("age", "tumour_size", "portal_vein_invasion", "nl_ratio", "total_bilirubin", "afp", "bclc")
SMALL = {"tumour_number": "4.67", "albumin": "0.78", "bclc": "1.56"}


def printed_table() -> tuple[pd.DataFrame, np.ndarray]:
    """167 patients with the printed counts of every factor by class, 102 without and 65 with early recurrence."""
    label = np.repeat([0, 1], [102, 65])
    columns = {
        factor: np.concatenate([np.repeat(np.arange(len(counts)), column) for column in zip(*counts, strict=True)])
        for factor, counts, *_ in FACTORS
    }
    return pd.DataFrame(columns, index=[f"P{i:03d}" for i in range(167)]), label


COLUMNS = [Category(name=factor) if factor == "bclc" else Flag(name=factor) for factor, *_ in FACTORS]


# The test


@pytest.mark.parametrize(
    ("counts", "statistic", "p", "yates", "fisher", "printed"),
    [pytest.param(*row[1:], id=row[0]) for row in FACTORS],
)
def test_the_printed_table_is_reproduced(counts, statistic, p, yates, fisher, printed):
    counts = np.array(counts)
    found = chi_squared(counts)
    reference = stats.chi2_contingency(counts, correction=False)
    assert found.statistic == pytest.approx(reference.statistic, rel=1e-10)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-10)
    assert found.df == reference.dof
    np.testing.assert_allclose(found.expected, reference.expected_freq, rtol=1e-12)
    assert f"{found.statistic:.3f}" == f"{statistic:.3f}"
    assert f"{found.p:.4f}" == f"{p:.4f}"
    three = f"{found.p:.3f}".lstrip("0")
    assert printed == ("<.001" if three == ".000" else three)

    corrected = chi_squared(counts, "yates")
    assert corrected.p == pytest.approx(stats.chi2_contingency(counts, correction=True).pvalue, rel=1e-10)
    assert f"{corrected.p:.4f}" == f"{yates:.4f}"
    if fisher is not None:
        assert f"{chi_squared(counts, 'fisher').p:.4f}" == f"{fisher:.4f}"


@given(
    arrays.arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(2, 4)), elements=st.integers(0, 400)),
    st.sampled_from(["none", "yates"]),
)
def test_any_table_equals_scipy(counts, correction):
    assume((counts.sum(axis=0) > 0).all() and (counts.sum(axis=1) > 0).all())
    found = chi_squared(counts, correction)
    reference = stats.chi2_contingency(counts, correction=correction == "yates")
    assert found.statistic == pytest.approx(reference.statistic, rel=1e-10, abs=1e-10)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-10, abs=1e-300)


def test_swapping_rows_or_classes_changes_nothing():
    counts = np.array(FACTORS[-1][1])
    for turned in (counts[::-1], counts[:, ::-1], counts.T):
        assert chi_squared(turned).p == pytest.approx(chi_squared(counts).p, rel=1e-12)


def test_the_correction_never_moves_a_count_past_its_expectation():
    """Independent to within half a case: the statistic is 0, not the square of what is left of the half."""
    assert chi_squared(np.array([[10, 10], [10, 11]]), "yates").statistic == pytest.approx(0, abs=1e-30)


def test_random_tables_agree_with_the_chi_squared_distribution_where_counts_are_large():
    counts = np.array([[60, 45], [50, 62], [71, 70]])
    p = chi_squared(counts).p
    standard_error = np.sqrt(p * (1 - p) / 9999)
    for correction in ("fisher", "permutation"):
        # The distribution itself is an approximation here; 0.01 is left to it.
        assert abs(chi_squared(counts, correction).p - p) < 4 * standard_error + 0.01


def test_random_tables_follow_from_the_seed():
    counts = np.array(FACTORS[-1][1])
    first, again, other = (chi_squared(counts, "permutation", resamples=199, seed=seed).p for seed in (3, 3, 4))
    assert first == again
    assert 0.005 <= first <= 0.05
    assert 0.005 <= other <= 0.05
    common = np.array([[12, 9], [8, 11], [10, 10]])
    assert len({chi_squared(common, "permutation", resamples=199, seed=seed).p for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.array([[3, 4]]), r"shape 1×2; expected at least two levels"),
        (np.array([[3, -1], [2, 2]]), r"expected whole numbers from 0"),
        (np.array([[3.5, 1], [2, 2]]), r"expected whole numbers from 0"),
        (np.array([[np.nan, 1], [2, 2]]), r"expected whole numbers from 0"),
        (np.array([[3, 1], [0, 0]]), r"row 1 of the counts is all zero"),
        (np.array([[0, 1], [0, 4]]), r"column 0 of the counts is all zero"),
    ],
)
def test_impossible_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        chi_squared(counts)


# Selection


def selection(correction="none", **others) -> Selection:
    table, label = printed_table()
    arguments = {"train_cases": table.index, "fold": "all", "correction": correction} | others
    return select(COLUMNS, table, label, **arguments)


@pytest.mark.parametrize(
    ("correction", "names"),
    [
        ("none", SEVEN),
        ("yates", tuple(name for name in SEVEN if name != "nl_ratio")),
        ("fisher", SEVEN),
    ],
)
def test_seven_factors_are_selected_without_correction_and_six_with_yates(correction, names):
    assert selection(correction).names == names


def test_small_expected_counts_are_logged_with_factor_and_count(caplog):
    with caplog.at_level(logging.WARNING, "fusion_jax.data.tabular"):
        found = selection()
    assert re.findall(r"factor '(\w+)'", " ".join(caplog.messages)) == list(SMALL)
    for line, (factor, count) in zip(caplog.messages, SMALL.items(), strict=True):
        assert f"the smallest expected count is {count}" in line
        assert "correction='fisher' or 'permutation'" in line
        assert f"{found.table().loc[factor, 'smallest_expected']:.2f}" == count
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fusion_jax.data.tabular"):
        selection("fisher")
    assert caplog.messages == []


def test_a_selection_looks_at_training_cases_only():
    table, label = printed_table()
    rng = np.random.default_rng([5])
    train = list(rng.permutation(table.index)[:120])
    held_out = ~table.index.isin(train)
    changed, other = table.copy(), label.copy()
    changed.loc[held_out] = 1
    other[held_out] = -1
    first = select(COLUMNS, table, label, train, fold="f0")
    assert select(COLUMNS, changed, other, train[::-1], fold="f0") == first
    reference = pd.crosstab(table.loc[train, "afp"], pd.Series(label, table.index).loc[train])
    assert first.table().loc["afp", "p"] == pytest.approx(
        stats.chi2_contingency(reference.to_numpy(), correction=False).pvalue, rel=1e-10
    )
    assert {test.n for test in first.tests} == {120}


def test_a_global_selection_cannot_be_used_in_a_fold():
    table, label = printed_table()
    train = table.index[:150]
    with pytest.raises(ValueError, match=r"this selection of factors was fitted in fold 'all' on 167 cases.*17 cases"):
        selection().keep(COLUMNS, train_cases=train)
    chosen = select(COLUMNS, table, label, train, fold="f0")
    kept = chosen.keep(COLUMNS, train_cases=train)
    assert tuple(column.name for column in kept) == chosen.names
    fit(kept, table, train, fold="f0")
    with pytest.raises(ValueError, match="columns 'ferritin' were not tested"):
        chosen.keep([Flag(name="ferritin")], train_cases=train)


def test_continuous_factors_are_cut_in_their_unit():
    table, label = printed_table()
    rng = np.random.default_rng([6])
    years = np.where(table["age"] == 1, rng.uniform(60, 80, 167), rng.uniform(30, 59.9, 167))
    months = pd.DataFrame({"age": years * 12}, index=table.index)
    column = Cutoff(name="age", at=60, unit="years")
    found = select([column], months, label, table.index, fold="all", units={"age": "months"})
    assert f"{found.tests[0].p:.4f}" == "0.0175"
    assert select([column], months, label, table.index, fold="all").tests[0].p == 1  # everybody is above 60 months


def test_missing_values_are_left_out_and_counted():
    table, label = printed_table()
    table = table.astype({"age": float})
    table.iloc[:10, table.columns.get_loc("age")] = np.nan
    test = select([Flag(name="age")], table, label, table.index, fold="all").tests[0]
    assert (test.n, test.missing) == (157, 10)
    reference = pd.crosstab(table["age"], label).to_numpy()
    assert test.p == pytest.approx(stats.chi2_contingency(reference, correction=False).pvalue, rel=1e-10)


def test_a_patient_with_many_cases_counts_once():
    table, label = printed_table()
    slices = np.random.default_rng([8]).integers(1, 8, 167)
    by_slice = table.loc[table.index.repeat(slices)]
    patients = by_slice.index.to_numpy()
    by_slice = by_slice.set_axis([f"slice_{i}" for i in range(len(by_slice))], axis=0)
    labels = np.repeat(label, slices)
    found = select(COLUMNS, by_slice, labels, by_slice.index, fold="all", patients=patients)
    assert found.tests == selection().tests
    inflated = select(COLUMNS, by_slice, labels, by_slice.index, fold="all")
    assert len(inflated.names) > len(SEVEN)

    changed = by_slice.copy()
    row = int(np.flatnonzero(patients == patients[0])[-1]) if slices[0] > 1 else 0
    assert row > 0
    changed.loc[f"slice_{row}", "afp"] = 1 - changed.loc[f"slice_{row}", "afp"]
    with pytest.raises(ValueError, match=rf"factor 'afp': cases 'slice_0' and 'slice_{row}' of one patient differ"):
        select(COLUMNS, changed, labels, by_slice.index, fold="all", patients=patients)
    labels[row] = 1 - labels[row]
    with pytest.raises(ValueError, match=rf"label: cases 'slice_0' and 'slice_{row}' of one patient differ"):
        select(COLUMNS, by_slice, labels, by_slice.index, fold="all", patients=patients)


def test_a_factor_that_is_constant_in_training_is_not_selected(caplog):
    table, label = printed_table()
    table["albumin"] = 0
    with caplog.at_level(logging.WARNING, "fusion_jax.data.tabular"):
        test = select([Flag(name="albumin")], table, label, table.index, fold="f3").tests[0]
    assert (test.p, test.df, test.selected) == (1.0, 0, False)
    assert "factor 'albumin': one level or one class among 167 training cases" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": [Number(name="age")]}, r"column 'age' is a Number, which has no levels to count"),
        ({"label": np.zeros(167, int)}, r"fold 'f': all 167 training cases have the label"),
        (
            {"label": np.full(167, -1)},
            r"training case 'P000' has no label, −1 or an empty cell \(167 such cases in fold 'f'\)",
        ),
        (
            {"label": np.array([None] * 100 + [1] * 67)},
            r"training case 'P000' has no label, −1 or an empty cell \(100 such cases",
        ),
        ({"label": np.where(np.arange(167) < 60, -1.0, 1.0)}, r"'P000' has no label, −1 or an empty cell \(60 such"),
        ({"label": np.zeros(3, int)}, r"3 labels for 167 rows"),
        ({"patients": ["P1"]}, r"1 patients for 167 rows"),
        ({"columns": [Flag(name="age"), Cutoff(name="age", at=1)]}, r"a factor is declared more than once"),
        ({"alpha": 5}, r"alpha is 5; expected a number above 0 and up to 1"),
        ({"train_cases": ["P000", "P900"]}, r"training cases 'P900' are not in the table"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(change, message):
    table, label = printed_table()
    arguments = {"columns": COLUMNS, "table": table, "label": label, "train_cases": table.index, "fold": "f"} | change
    with pytest.raises(ValueError, match=message):
        select(**arguments)


def test_how_often_each_factor_is_selected():
    table, label = printed_table()
    order = np.random.default_rng([7]).permutation(167)
    folds = [table.index[np.setdiff1d(order, order[k::10])] for k in range(10)]
    found = [select(COLUMNS, table, label, train, fold=f"f{k}") for k, train in enumerate(folds)]
    report = selection_frequency(found)
    assert set(report.index) == {factor for factor, *_ in FACTORS}
    assert set(report["folds"].tolist()) == {10}
    for factor in report.index:
        by_hand = [test for chosen in found for test in chosen.tests if test.factor == factor]
        assert report.loc[factor, "selected"] == sum(test.selected for test in by_hand)
        assert report.loc[factor, "p_max"] == max(test.p for test in by_hand)
    # The strong factors hold in every fold; what is near .05 does not.
    assert report.loc[["tumour_size", "bclc", "portal_vein_invasion"], "share"].tolist() == [1, 1, 1]
    share = dict(zip(report.index, report["share"], strict=True))
    assert 0 < share["nl_ratio"] < 1
    assert report["share"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="all made alike"):
        selection_frequency([found[0], selection("yates")])
    with pytest.raises(ValueError, match="0 selections"):
        selection_frequency([])


def test_a_selection_survives_json_and_a_changed_one_is_refused():
    chosen = selection()
    written = json.loads(json.dumps(chosen.to_json()))
    assert Selection.from_json(written) == chosen
    with pytest.raises(ValueError, match="unknown key 'alfa'; did you mean 'alpha'"):
        Selection.from_json(written | {"alfa": 0.1})
    with pytest.raises(ValueError, match=r"factor 'hbv' has p .* does not go with alpha 0.1"):
        Selection.from_json(written | {"alpha": 0.1})
    with pytest.raises(ValueError, match="the fingerprint is not that of fold and training cases"):
        Selection.from_json(written | {"fold": "f0"})


def test_labels_in_another_order_than_the_table_are_refused():
    table, label = printed_table()
    labels = pd.Series(label, index=table.index)
    unchecked = inspect.unwrap(select)  # without the tests' own check of annotations
    assert unchecked(COLUMNS, table, labels, table.index, fold="f0").names == SEVEN
    with pytest.raises(ValueError, match=r"labels are a Series whose index starts .*label.loc\[table.index\]"):
        unchecked(COLUMNS, table, labels.iloc[::-1], table.index, fold="f0")


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_text_is_no_label(empty):
    table, label = printed_table()
    words = label.astype(str).astype(object)
    words[3] = empty
    with pytest.raises(ValueError, match="training case 'P003' has no label"):
        select(COLUMNS, table, words, table.index, fold="f0")
