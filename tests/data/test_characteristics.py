import csv
import inspect
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import mahalanobis

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.characteristics import (
    Group,
    characteristics,
    standardised_difference,
    standardised_difference_of_levels,
)

HCC = {
    "sex": ("17/10; 85/55", 0.048, 0.8263, 1.000),
    "age": ("55/47; 47/18", 5.645, 0.0175, 0.0225),
    "tumour size": ("74/28; 28/37", 14.506, 0.0001, 0.0002),
    "tumour number": ("97/58; 5/7", 2.049, 0.1523, 0.2184),
    "portal vein invasion": ("95/48; 7/17", 12.006, 0.0005, 0.0011),
    "cirrhosis": ("31/21; 71/44", 0.068, 0.7944, 0.8644),
    "HBV": ("25/8; 77/57", 3.728, 0.0535, 0.0722),
    "N/L ratio": ("71/35; 31/30", 4.254, 0.0392, 0.0482),
    "ALT": ("66/38; 36/27", 0.659, 0.4169, 0.4193),
    "AST": ("77/46; 25/19", 0.456, 0.4995, 0.5893),
    "AKP": ("85/46; 17/19", 3.706, 0.0542, 0.0814),
    "GGT": ("46/20; 56/45", 3.410, 0.0648, 0.0752),
    "ALB": ("100/65; 2/0", 1.290, 0.2561, 0.5217),
    "TB": ("81/41; 21/24", 5.381, 0.0204, 0.0311),
    "AFP": ("39/11; 63/54", 8.597, 0.0034, 0.0034),
    "Child-Pugh": ("89/51; 13/14", 2.265, 0.1323, 0.1387),
    "BCLC": ("17/5; 78/39; 1/3; 6/18", 19.295, 0.0002, None),
}
"""Table 1 of Wang 2020: level by recurrence (no/early), X², p uncorrected, p of Fisher (specs/hcc_fusion.md, 6.2)."""


def hcc_counts(factor):
    return np.array([[int(n) for n in level.split("/")] for level in HCC[factor][0].split(";")])


@pytest.fixture(scope="module")
def hcc():
    columns = {"recurrence": ["no"] * 102 + ["early"] * 65}
    for factor in HCC:
        counts = hcc_counts(factor)
        columns[factor] = [f"level {k}" for group in counts.T for k, n in enumerate(group) for _ in range(n)]
    return pd.DataFrame(columns)


BREAST = {
    "laterality": {"left": (5229, 842, 2476), "right": (5237, 829, 2433)},
    "indication": {
        "other": (1075, 175, 557),
        "screening": (6906, 1150, 3186),
        "diagnostic": (1135, 152, 566),
        "extent": (1350, 194, 600),
    },
    "density": {"a": (207, 28, 116), "b": (2157, 374, 880), "c": (6953, 1071, 3285), "d": (1149, 198, 628)},
    "BPE": {"min": (6132, 1002, 2819), "mild": (2563, 382, 1241), "mod": (1169, 208, 561), "marked": (602, 79, 288)},
    "malignant": {"0": (8376, 1346, 3903), "1": (2090, 325, 1006)},
}
"""Table 1 of Holste 2021, train, validation, test (specs/breast_mri_fusion.md, 2.3)."""
BREAST_AGE = {"train": (51.5, 11.1), "val": (51.9, 10.7), "test": (51.5, 11.5)}
BREAST_N = {"train": 10_466, "val": 1_671, "test": 4_909}


@pytest.fixture(scope="module")
def breast():
    parts = []
    for k, (split, n) in enumerate(BREAST_N.items()):
        mean, sd = BREAST_AGE[split]
        draw = np.random.default_rng(k).normal(size=n)
        draw = (draw - draw.mean()) / draw.std(ddof=1)
        part = {"split": [split] * n, "age": mean + sd * draw}
        for column, levels in BREAST.items():
            part[column] = np.repeat(list(levels), [of_split[k] for of_split in levels.values()])
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    table["malignant"] = table["malignant"].astype(int)
    for column in ("indication", "density", "BPE"):
        table[column] = pd.Categorical(table[column], list(BREAST[column]))
    table["patient_id"] = [f"p{i % 5248}" for i in range(len(table))]
    return table


def row(found, variable, group, level=None):
    [one] = [r for r in found.rows if (r.variable, r.group, r.level) == (variable, group, level)]
    return one


# The tables of the papers


@pytest.mark.parametrize("factor", HCC)
def test_hcc_table_1(hcc, factor):
    found = characteristics(hcc, [factor], by="recurrence", test="chi2")
    counts, (_, statistic, p, _) = hcc_counts(factor), HCC[factor]
    assert found.groups == (Group("", "overall", 167), Group("recurrence", "no", 102), Group("recurrence", "early", 65))
    for level, (no, early) in enumerate(counts):
        assert row(found, factor, "no", f"level {level}").n == no
        assert row(found, factor, "early", f"level {level}").percent == pytest.approx(100 * early / 65)
        assert row(found, factor, "overall", f"level {level}").n == no + early
    [compared] = found.comparisons
    assert compared.test == "chi-squared test"
    assert compared.statistic == pytest.approx(statistic, abs=5e-4)
    assert compared.p == pytest.approx(p, abs=5e-5)
    assert compared.freedom == len(counts) - 1


@pytest.mark.parametrize("factor", [factor for factor in HCC if HCC[factor][3] is not None])
def test_hcc_table_1_with_fishers_test(hcc, factor):
    [compared] = characteristics(hcc, [factor], by="recurrence", test="fisher").comparisons
    assert compared.test == "Fisher's exact test"
    assert compared.p == pytest.approx(HCC[factor][3], abs=5e-5)


def test_small_expected_counts_are_pointed_out(hcc):
    compared = characteristics(hcc, list(HCC), by="recurrence", test="chi2").comparisons
    assert {c.variable: c.note for c in compared if c.note} == {
        "tumour number": "smallest expected count 4.67",
        "ALB": "smallest expected count 0.78",
        "BCLC": "smallest expected count 1.56",
    }


def test_auto_takes_fishers_test_where_counts_are_small(hcc):
    found = characteristics(hcc, list(HCC), by="recurrence", test="auto")
    exact = {c.variable for c in found.comparisons if c.test == "Fisher's exact test"}
    assert exact == {"tumour number", "ALB", "BCLC"}
    assert any("By 99,999 random tables: BCLC" in note for note in found.notes)


def test_fishers_test_on_larger_tables_agrees_with_counting_all_tables():
    counts = np.array([[4, 0], [1, 3], [1, 4]])
    table = pd.DataFrame(
        [(f"l{i}", f"g{j}") for i, j in np.ndindex(3, 2) for _ in range(counts[i, j])], columns=["level", "group"]
    )
    rows, columns = counts.sum(1), counts.sum(0)

    def weight(first):
        return math.prod(math.comb(int(n), k) for n, k in zip(rows, first, strict=True))

    tables = [t for t in itertools.product(*(range(n + 1) for n in rows)) if sum(t) == columns[0]]
    weights = np.array([weight(t) for t in tables], float)
    exact = weights[weights <= weight(counts[:, 0]) * (1 + 1e-9)].sum() / weights.sum()
    [compared] = characteristics(table, ["level"], by="group", test="fisher").comparisons
    assert compared.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 99_999))
    assert compared.note == "by 99,999 random tables"
    assert characteristics(table, ["level"], by="group", test="fisher").comparisons == (compared,)


def test_breast_table_1(breast):
    found = characteristics(breast, ["age", *BREAST], by="split", units={"age": "years"}, patient="patient_id")
    assert found.groups == (Group("", "overall", 17_046), *(Group("split", s, n) for s, n in BREAST_N.items()))
    for column, levels in BREAST.items():
        assert list(dict.fromkeys(r.level for r in found.rows if r.variable == column)) == list(levels)
        for level, counts in levels.items():
            assert tuple(row(found, column, split, level).n for split in BREAST_N) == counts
    for split, (mean, sd) in BREAST_AGE.items():
        age = row(found, "age", split)
        assert (age.mean, age.sd) == (pytest.approx(mean), pytest.approx(sd))
        assert (age.known, age.missing, age.unit) == (BREAST_N[split], 0, "years")
    text = found.to_markdown()
    assert (
        "| age, years, mean ± SD | 17,046 | 0 | 51.5 ± 11.2 | 51.5 ± 11.1 | 51.9 ± 10.7 | 51.5 ± 11.5 | 0.037 |" in text
    )
    assert (
        "| malignant = 1, n (%) | 17,046 | 0 | 3,421 (20.1) | 2,090 (20.0) | 325 (19.4) | 1,006 (20.5) | 0.026 |"
        in text
    )
    assert "n counts 17,046 cases of 5,248 patients." in found.notes


def test_welchs_test_agrees_with_the_printed_means(breast):
    two = breast[breast["split"] != "val"]
    [compared] = characteristics(two, ["age"], by="split", test="chi2").comparisons
    expected = stats.ttest_ind_from_stats(51.5, 11.1, 10_466, 51.5, 11.5, 4_909, equal_var=False)
    assert compared.p == pytest.approx(expected.pvalue)
    assert compared.test == "Welch's t-test"


def test_sarcoma_characteristics_by_outcome():
    table = soft_tissue_sarcoma(paper_cohort=True).table
    found = characteristics(
        table,
        ["age_years", "sex", "grade", "tumour_volume_ml"],
        by="distant_metastases",
        statistic={"tumour_volume_ml": "median"},
        units={"tumour_volume_ml": "ml"},
        test="auto",
    )
    assert [group.cases for group in found.groups] == [48, 24, 24]
    grade = row(found, "grade", "overall", "High")
    assert (grade.known + grade.missing, grade.missing) == (48, int(table["grade"].isna().sum()))
    volumes = [table.loc[table["distant_metastases"] == k, "tumour_volume_ml"] for k in (0, 1)]
    compared = {c.variable: c for c in found.comparisons}
    assert compared["tumour_volume_ml"].p == pytest.approx(stats.mannwhitneyu(*volumes).pvalue)
    # U over both sizes is the AUC, which the sample's README gives as 0.745.
    u = compared["tumour_volume_ml"].statistic
    assert u is not None
    assert 1 - u / 24**2 == pytest.approx(0.745, abs=5e-4)
    assert row(found, "tumour_volume_ml", "1").median == pytest.approx(volumes[1].median())


# Standardised differences


def test_the_difference_of_numbers_in_closed_form():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([5.0, 9.0])
    assert standardised_difference(first, second) == pytest.approx((2 - 7) / math.sqrt((1 + 8) / 2))
    assert standardised_difference(second, first) == -standardised_difference(first, second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 1.0], [1.0, 1.0], 0.0),
        ([2.0, 2.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [2.0, 2.0], -math.inf),
        ([1.0], [1.0, 2.0], math.nan),
        ([], [1.0, 2.0], math.nan),
    ],
)
def test_the_difference_of_numbers_at_the_edges(first, second, expected):
    assert standardised_difference(np.array(first), np.array(second)) == pytest.approx(expected, nan_ok=True)


@given(*[st.integers(1, 500)] * 4)
def test_the_difference_of_two_levels_in_closed_form(a, b, c, d):
    p, q = a / (a + b), c / (c + d)
    expected = abs(p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / 2)
    assert standardised_difference_of_levels(np.array([a, b]), np.array([c, d])) == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 6).flatmap(lambda k: st.tuples(*[st.lists(st.integers(1, 200), min_size=k, max_size=k)] * 2)))
def test_the_difference_of_levels_is_mahalanobis_distance(counts):
    first, second = np.array(counts[0]), np.array(counts[1])
    p, q = first / first.sum(), second / second.sum()
    found = standardised_difference_of_levels(first, second)
    for left_out in range(first.size):
        rest = np.arange(first.size) != left_out
        covariance = (np.diag(p) - np.outer(p, p) + np.diag(q) - np.outer(q, q)) / 2
        inverse = np.linalg.inv(covariance[np.ix_(rest, rest)])
        assert found == pytest.approx(mahalanobis(p[rest], q[rest], inverse), abs=1e-6)
    order = np.random.default_rng(0).permutation(first.size)
    assert standardised_difference_of_levels(first[order], second[order]) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([3, 0], [0, 5], math.inf),
        ([3, 0, 2], [0, 5, 0], math.inf),
        ([3, 0], [5, 0], 0.0),
        ([3, 5, 0], [3, 5, 0], 0.0),
        ([0, 0], [3, 5], math.nan),
    ],
)
def test_the_difference_of_levels_at_the_edges(first, second, expected):
    assert standardised_difference_of_levels(np.array(first), np.array(second)) == pytest.approx(expected, nan_ok=True)


# Kinds, groups, missing values


@pytest.fixture
def small():
    return pd.DataFrame(
        {
            "age": [50, 60, 70, 80, None, 90],
            "stage": ["B", "A", None, "A", "B", "A"],
            "score": [1, 1, 2, 2, 1, 2],
            "treated": [True, False, True, None, True, True],
            "split": ["train", "train", "test", "test", "test", None],
            "died": [0, 1, 0, 1, 0, 1],
        }
    )


def test_kinds_are_seen_or_given(small):
    columns = ["age", "stage", "score", "treated", "died"]
    found = {r.variable: r.kind for r in characteristics(small, columns).rows}
    assert found == dict.fromkeys(columns, "category") | {"age": "number"}
    given_kinds = characteristics(small, ["score", "treated"], kinds={"score": "number", "treated": "number"})
    assert row(given_kinds, "score", "overall").mean == 1.5
    assert row(given_kinds, "treated", "overall").mean == 0.8


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1], "category"),
        ([1, 2, 3, 4, 5] * 3, "category"),
        ([1, 2, 3, 4, 5, 6] * 3, "number"),
        ([61, 62, 63], "number"),  # three ages of three patients are no stages
        ([0.5, 1.5] * 9, "number"),
        ([np.nan, np.nan], "number"),
    ],
)
def test_few_whole_numbers_are_categories(values, kind):
    assert {r.kind for r in characteristics(pd.DataFrame({"x": values}), ["x"]).rows} <= {kind}


def test_missing_values_are_counted_in_every_group(small):
    found = characteristics(small, ["age", "stage"], by=["split", "died"])
    assert [(r.by, r.group, r.known, r.missing) for r in found.rows if r.variable == "age"] == [
        ("", "overall", 5, 1),
        ("split", "train", 2, 0),
        ("split", "test", 2, 1),
        ("died", "0", 2, 1),
        ("died", "1", 3, 0),
    ]
    a = row(found, "stage", "test", "A")
    assert (a.n, a.known, a.missing, a.percent) == (1, 2, 1, 50.0)
    assert "Without split, and so in no group of it: 1." in found.notes
    assert "| &nbsp;&nbsp;missing, n (%) |  |  | 1 (16.7) | 0 (0.0) | 1 (33.3) |" in found.to_markdown()


def test_groups_of_text_stand_as_they_appear_and_levels_are_sorted(small):
    found = characteristics(small, ["stage"], by="split")
    assert [group.name for group in found.groups] == ["overall", "train", "test"]
    assert list(dict.fromkeys(r.level for r in found.rows)) == ["A", "B"]


def test_a_categorical_keeps_its_order_and_its_empty_levels():
    stage = pd.Categorical(["III", "I"], ["I", "II", "III"], ordered=True)
    found = characteristics(pd.DataFrame({"stage": stage}), ["stage"])
    assert [(r.level, r.n) for r in found.rows] == [("I", 1), ("II", 0), ("III", 1)]


def test_bands_keep_their_order_and_no_row_begins_with_a_bracket():
    bands = pd.cut([3, 12, 4, np.nan], [0, 5, 10, 15], right=False)
    found = characteristics(pd.DataFrame({"[age]": bands}), ["[age]"])
    assert [(r.level, r.n) for r in found.rows] == [("[0, 5)", 2), ("[5, 10)", 0), ("[10, 15)", 1)]
    assert not re.search(r"\\\\\s*(\\quad )?\[", found.to_latex())


def test_the_largest_of_all_pairs_is_shown():
    table = pd.DataFrame({"x": [0.0, 2.0, 1.0, 3.0, 8.0, 10.0], "g": list("aabbcc")})
    found = characteristics(table, ["x"], by="g")
    assert [(d.first, d.second) for d in found.differences] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.largest_difference("x", "g") == pytest.approx(8 / math.sqrt(2))


@pytest.mark.parametrize(
    ("statistic", "groups", "test", "reference"),
    [
        ("mean", 2, "Welch's t-test", lambda *s: stats.ttest_ind(*s, equal_var=False)),
        ("mean", 3, "Alexander–Govern test", stats.alexandergovern),
        ("median", 2, "Mann–Whitney U test", stats.mannwhitneyu),
        ("median", 3, "Kruskal–Wallis test", stats.kruskal),
    ],
)
def test_numbers_are_compared_by_what_is_shown(statistic, groups, test, reference):
    rng = np.random.default_rng(3)
    samples = [rng.gamma(2 + k, size=20 + k) for k in range(groups)]
    table = pd.DataFrame(
        {"x": np.concatenate(samples), "g": np.repeat(list("abc")[:groups], [len(s) for s in samples])}
    )
    table.loc[len(table)] = [np.nan, "a"]
    [compared] = characteristics(table, ["x"], by="g", statistic=statistic, test="auto").comparisons
    assert (compared.test, compared.p) == (test, pytest.approx(reference(*samples).pvalue))


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ({"x": [1.0, 2.5, 3.0], "g": ["a", "a", "b"]}, "a group has fewer than two values"),
        ({"x": [1.5, 1.5, 1.5, 1.5], "g": ["a", "a", "b", "b"]}, "a group has only one value"),
        ({"x": ["u", "u", "u"], "g": ["a", "a", "b"]}, "fewer than two levels or groups"),
        ({"x": ["u", "v", "u"], "g": ["a", "a", "a"]}, "fewer than two levels or groups"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(table, note):
    found = characteristics(pd.DataFrame(table), ["x"], by="g", test="chi2")
    [compared] = found.comparisons
    assert (compared.p, compared.note) == (None, note)
    assert "–" in found.to_markdown()


def test_cases_of_one_patient_are_pointed_out(small):
    twice = small.assign(patient=["p1", "p1", "p2", "p3", "p4", "p5"])
    notes = characteristics(twice, ["stage"], by="died", test="fisher", patient="patient").notes
    assert "n counts 6 cases of 5 patients; p-values take cases for independent and are too small." in notes
    once = small.assign(patient=range(6))
    assert "n counts patients; 6 in all." in characteristics(once, ["stage"], patient="patient").notes


def test_an_empty_group_and_an_empty_variable_are_shown():
    table = pd.DataFrame({"x": [np.nan, np.nan], "y": [1.5, 2.5], "g": pd.Categorical(["a", "a"], ["a", "b"])})
    found = characteristics(table, ["x", "y"], by="g", test="chi2")
    assert (row(found, "x", "overall").known, row(found, "x", "overall").mean) == (0, None)
    assert (row(found, "y", "b").known, row(found, "y", "b").missing) == (0, 0)
    assert found.differences[1].smd is None
    assert "| y, mean ± SD | 2 | 0 | 2.00 ± 0.71 | 2.00 ± 0.71 | – | – | – |" in found.to_markdown()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["Age"], {}, r"no column 'Age'\. Did you mean 'age'"),
        (["age", "age"], {}, "each once"),
        ([], {}, "at least one"),
        (["age"], {"by": "splits"}, "no column 'splits'"),
        (["age"], {"kinds": {"stage": "category"}}, "kinds has 'stage'"),
        (["age"], {"statistic": {"agee": "median"}}, "Did you mean 'age'"),
        (["stage"], {"kinds": {"stage": "number"}}, "column 'stage' is to be a number and holds 'B'"),
        (["when"], {}, "column 'when' holds dates"),
        (["name"], {}, "column 'name' has 60 different values; at most 50.*identifier"),
        (["infinite"], {}, "column 'infinite' holds an infinite number"),
    ],
)
def test_what_cannot_be_shown_is_refused(columns, options, message):
    table = pd.DataFrame(
        {
            "age": np.arange(60.0),
            "stage": ["B"] * 60,
            "when": pd.to_datetime(["2020-01-01"] * 60),
            "name": [f"name {i}" for i in range(60)],
            "infinite": [np.inf] * 60,
        }
    )
    with pytest.raises(ValueError, match=message):
        characteristics(table, columns, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "mode"}, "statistic is 'mode'; expected one of 'mean', 'median'"),
        ({"test": "t"}, "test is 't'; expected None or one of 'chi2', 'fisher', 'auto'"),
        ({"kinds": {"x": "numeric"}}, "kinds has 'x': 'numeric'; expected .* 'category', 'number'"),
    ],
)
def test_options_are_checked_where_annotations_are_not(options, message):
    unchecked = inspect.unwrap(characteristics)  # without the tests' own check of annotations
    with pytest.raises(ValueError, match=message):
        unchecked(pd.DataFrame({"x": [1]}), ["x"], **options)


# Writers


def test_files_hold_full_precision(small, tmp_path):
    found = characteristics(small, ["age", "stage"], by="died", test="chi2")
    csv_file, comparisons, markdown, latex = found.write(tmp_path)
    with csv_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.rows)
    assert float(rows[2]["sd"]) == found.rows[2].sd == pd.Series([60, 80, 90]).std()
    assert {r["known"] for r in rows} == {"5", "2", "3"}
    with comparisons.open(encoding="utf-8", newline="") as file:
        compared = list(csv.DictReader(file))
    assert [float(r["p"]) for r in compared if r["p"]] == [c.p for c in found.comparisons]
    assert markdown.read_text(encoding="utf-8") == found.to_markdown()
    assert latex.read_text(encoding="utf-8") == found.to_latex()


HOSTILE = pd.DataFrame(
    {"T_1 & |x| <b>": ["50 % ± $5", "{a}^~\\", "*é* `µ`", "line\nbreak"], "split": ["a|b", "a|b", "c_d", "c_d"]}
)


def test_markdown_keeps_its_columns_whatever_the_table_holds():
    text = characteristics(HOSTILE, ["T_1 & |x| <b>"], by="split").to_markdown()
    lines = text.split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "<b>" not in text


def test_latex_escapes_whatever_the_table_holds():
    text = characteristics(HOSTILE, ["T_1 & |x| <b>"], by="split", test="chi2").to_latex()
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {7}
    assert all(line.endswith(r" \\") for line in body)
    assert r"T\_1 \& $|$x$|$ $<$b$>$, n (\%)" in body[0]
    assert r"50 \% $\pm$ \$5" in text
    assert r"\{a\}\textasciicircum{}\textasciitilde{}\textbackslash{}" in text
    assert text.count(r"\begin{tabular}{lrrrrrrr}") == 1


def test_numbers_of_a_variable_have_the_same_decimals():
    table = pd.DataFrame({"creatinine": [0.81, 1.2, 0.95], "platelets": [150e3, 98e3, 210e3], "constant": [2.5] * 3})
    text = characteristics(table, list(table)).to_markdown()
    assert "0.99 ± 0.20" in text
    assert "152,667 ± 56,048" in text
    assert "2.5 ± 0.0" in text


@pytest.mark.parametrize("name", ["dose\\", "\\|", "x\\|y"])
def test_a_backslash_before_a_pipe_does_not_undo_its_escape(name):
    text = characteristics(pd.DataFrame({name: ["a", "b"]}), [name]).to_markdown()
    # As readers of Markdown do: pairs of backslash and sign first, then pipes.
    lines = [re.sub(r"\\[^\w\s]", "", line) for line in text.split("\n\n")[0].splitlines()]
    assert {line.count("|") for line in lines} == {5}


def test_a_name_cannot_make_a_link_of_itself():
    text = characteristics(pd.DataFrame({"[x](https://example.org)": [1.5, 2.5]}), ["[x](https://example.org)"])
    assert "](" not in text.to_markdown()


def test_equal_values_have_no_spread_of_rounding_errors():
    """Seven times 0.1 has a mean of 0.10000000000000002 or 0.09999999999999999, as the processor adds."""
    ten, seven = np.full(10, 0.1), np.full(7, 0.1)
    assert max(np.full(n, 0.1).var(ddof=1) for n in (7, 10)) > 0
    assert standardised_difference(ten, seven) == 0
    assert standardised_difference(ten, np.full(7, 0.2)) == -math.inf
    table = pd.DataFrame({"dose": np.r_[ten, seven], "arm": ["a"] * 10 + ["b"] * 7})
    found = characteristics(table, ["dose"], by="arm", kinds={"dose": "number"})
    assert [(row.mean, row.sd) for row in found.rows] == [(0.1, 0.0)] * 3
    assert "0.1 ± 0.0" in found.to_markdown()


def test_a_constant_group_beside_a_varying_one_is_compared_without_a_warning():
    table = pd.DataFrame({"x": [1.5] * 4 + [2.5, 3.5, 4, 5], "g": [0] * 4 + [1] * 4})
    [found] = characteristics(table, ["x"], by="g", test="auto").comparisons
    # Welch's test with no variance in one group is the t-test of the other one against its value.
    assert found.p == pytest.approx(stats.ttest_1samp([2.5, 3.5, 4, 5], 1.5).pvalue)


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match=r"several columns 'a'\. Rename"):
        characteristics(pd.DataFrame([[1, 2]], columns=["a", "a"]), ["a"])
