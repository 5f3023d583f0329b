"""What the table of a cohort gives away, mixes up or contradicts."""

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.cohort import Arrays, Cohort
from fusion_jax.data.integrity import check_cohort
from fusion_jax.data.integrity.leakage import area_under_curve, cramers_v, left_out_rates
from fusion_jax.data.plausible import QUANTITIES, find_mixed_units, find_quantity, range_in
from tests.helpers import assert_close, real_data

N = 60


def cohort(n=N, *, inputs=(), **columns):
    """A cohort of the table alone, whose inputs `age` and `grade` are fine and whose label nothing tells."""
    rng = np.random.default_rng(11)
    patient_id = columns.pop("patient_id", None)
    case_id = columns.pop("case_id", [f"c{number:03d}" for number in range(n)])
    site = columns.pop("site", None)
    roles = columns.pop("roles", {})
    units = columns.pop("units", {})
    levels = columns.pop("levels", {})
    data = {
        "age": rng.integers(30, 85, n).astype(float),
        "grade": rng.choice(["low", "high"], n),
        "marker": rng.normal(5, 1, n).round(4),
        "outcome": rng.permutation(np.arange(n) % 2),
    }
    roles = {"outcome": "label", **dict.fromkeys(("age", "grade", "marker", *inputs), "input"), **roles}
    table = pd.DataFrame({**data, **columns}, index=case_id)
    return Cohort.from_arrays(
        {"features": rng.normal(size=(n, 2))}, table=table, roles=roles, patient_id=patient_id, site=site, units=units,
        levels=levels,
    )  # fmt: skip


def label(n=N):
    return cohort(n).label


def only(it, check, severity):
    report = check_cohort(it)
    assert [(one.severity, one.check) for one in report.findings] == [(severity, check)], report.findings
    return report.findings[0]


def test_a_clean_table_has_no_finding():
    assert check_cohort(cohort()).findings == ()


# Labels and outcomes


def test_one_class_is_an_error():
    one = only(cohort(outcome=1), "label", "error")
    assert one.message == "All cases are of the class '1'; expected two classes or more."


def test_a_class_with_few_patients_is_a_warning():
    outcome = label().astype(str)
    outcome[[5, 30, 51]] = "rare"
    one = only(cohort(outcome=outcome), "label", "warning")
    assert "'rare' (3)" in one.message
    assert one.cases == ("c005", "c030", "c051")


def test_many_cases_of_few_patients_are_few():
    patients = ["a", "b"] * 15 + [f"p{number}" for number in range(30)]
    outcome = np.r_[np.ones(30, int), np.zeros(30, int)]
    report = check_cohort(cohort(outcome=outcome, patient_id=patients))
    assert any("'1' (2)" in one.message for one in report.about("label"))


def test_a_class_in_two_spellings_is_an_error():
    outcome = np.where(label() == 1, "Yes", "no").astype(object)
    rows = np.flatnonzero(label() == 1)[:7]
    outcome[rows] = "yes "
    one = only(cohort(outcome=outcome), "label", "error")
    assert "'Yes' and 'yes '" in one.message or "'yes ' and 'Yes'" in one.message
    assert len(one.cases) == 7


def test_missing_labels_are_counted():
    outcome = label().astype(float)
    outcome[[2, 5]] = np.nan
    one = only(cohort(outcome=outcome), "label", "warning")
    assert one.cases == ("c002", "c005")


def test_a_declared_class_without_a_case_is_a_warning():
    one = only(cohort(levels={"outcome": ("0", "1", "2")}), "label", "warning")
    assert "No case is of the class '2'" in one.message


def test_a_measurement_is_no_label():
    one = only(cohort(outcome=np.random.default_rng(0).permutation(N)), "label", "error")
    assert "a measurement, no class" in one.message


def test_times_and_events_are_checked():
    rng = np.random.default_rng(2)
    days = rng.integers(10, 900, N).astype(float)
    days[0], days[1] = -4, 0
    event = rng.integers(0, 2, N)
    event[5] = 2
    report = check_cohort(cohort(days=days, died=event, roles={"days": "time", "died": "event"}))
    assert [(one.severity, one.column, one.cases) for one in report.about("outcome")] == [
        ("error", "days", ("c000",)),
        ("error", "died", ("c005",)),
        ("warning", "days", ("c001",)),
    ]


# Inputs


@pytest.mark.parametrize("empty", [None, pd.NaT], ids=str)
def test_times_that_are_all_missing_are_an_error_and_no_crash(empty):
    times = cohort(days=pd.Series([empty] * N).to_numpy(), roles={"days": "time"})
    (one,) = (one for one in check_cohort(times).findings if one.column == "days")
    assert (one.severity, one.check, one.message) == ("error", "outcome", "Times are no numbers: all are missing.")


def test_a_constant_input_is_a_warning():
    one = only(cohort(clinic="A", inputs=["clinic"]), "uninformative column", "warning")
    assert one.message == "The input is 'A' in every case."


def test_an_input_of_ids_is_a_warning():
    one = only(
        cohort(code=[f"x{k * 7919 % 1000}y" for k in range(N)], inputs=["code"]), "uninformative column", "warning"
    )
    assert one.message.startswith(f"{N} different texts in {N} cases")


def test_an_input_that_is_mostly_missing_is_a_warning():
    values = np.random.default_rng(3).normal(size=N)
    values[: N * 2 // 3] = np.nan
    values = np.random.default_rng(4).permutation(values)
    one = only(cohort(psa=values, inputs=["psa"]), "missing values", "warning")
    assert "40 of 60 values are missing (67%)" in one.message


def test_numbers_with_words_among_them_are_a_warning():
    values = [f"{k % 7}.{k % 10}" for k in range(N)]
    values[4], values[9] = "<0.5", "?"
    one = only(cohort(crp=values, inputs=["crp"]), "number", "warning")
    assert "58 of 60 cells are numbers, the others are '<0.5', '?'" in one.message
    assert one.cases == ("c004", "c009")


def test_decimal_commas_are_a_warning():
    one = only(cohort(crp=[f"{k % 7},{k % 10}" for k in range(N)], inputs=["crp"]), "number", "warning")
    assert "comma" in one.message


def test_an_input_level_in_two_spellings_is_a_warning():
    sex = np.random.default_rng(3).choice(["Male", "Female"], N).astype(object)
    sex[7] = "male "
    one = only(cohort(sex=sex, inputs=["sex"]), "spelling", "warning")
    assert one.cases == ("c007",)


# Leaks


def test_an_input_that_equals_the_label_is_an_error():
    one = only(cohort(status=np.where(label() == 1, "dead", "alive"), inputs=["status"]), "leak", "error")
    assert one.column == "status"
    assert one.message == f"The input equals the label 'outcome' in every case (n = {N} patients)."


def test_the_same_column_as_never_is_no_leak():
    assert check_cohort(cohort(status=np.where(label() == 1, "dead", "alive"))).findings == ()


def test_a_number_that_tells_the_label_is_an_error():
    rng = np.random.default_rng(3)
    one = only(cohort(dose=rng.normal(size=N) - 9 * label(), inputs=["dose"]), "leak", "error")
    assert "area under the ROC curve 1.000" in one.message


def test_a_category_that_encodes_the_label_is_an_error():
    # Several levels of each class: nothing one-to-one, and no order.
    ward = np.where(label() == 1, np.array(["A", "C"])[np.arange(N) % 2], np.array(["B", "D"])[np.arange(N) % 2])
    one = only(cohort(ward=ward, inputs=["ward"]), "leak", "error")
    assert "n = 60 patients" in one.message


def test_a_number_that_tells_the_lowest_of_three_classes_is_an_error():
    codes = np.random.default_rng(1).permutation(np.arange(N) % 3)
    dose = np.random.default_rng(3).normal(size=N) - 9 * (codes == 1)
    one = only(cohort(dose=dose, inputs=["dose"], outcome=codes), "leak", "error")
    assert "tells outcome '1' from the rest" in one.message


def test_a_good_predictor_is_no_leak():
    rng = np.random.default_rng(3)
    values = rng.normal(size=N) + 2.0 * label()
    assert 0.85 < area_under_curve(values, label() == 1)[0] < 0.98
    assert check_cohort(cohort(psa=values, inputs=["psa"])).findings == ()


def test_six_cases_are_too_few_to_speak_of_a_leak():
    it = cohort(6, dose=np.arange(6.0), outcome=np.array([0, 0, 0, 1, 1, 1]), inputs=["dose"])
    assert check_cohort(it).about("leak") == ()


def test_gaps_that_tell_the_label_are_an_error():
    values = np.random.default_rng(3).normal(size=N)
    values[label() == 1] = np.nan
    report = check_cohort(cohort(biopsy=values, inputs=["biopsy"]))
    [one] = report.about("leak")
    assert one.severity == "error"
    assert one.message.startswith("Whether there is a value tells outcome '1'") or "outcome '0'" in one.message
    assert "missing in 100%" in one.message or "missing in 0%" in one.message


def test_gaps_that_go_with_the_label_are_a_warning():
    values = np.random.default_rng(3).normal(size=N)
    values[np.flatnonzero(label() == 1)[:25]] = np.nan
    one = only(cohort(biopsy=values, inputs=["biopsy"]), "leak", "warning")
    assert (
        "missing in 83% of it and in 0% of the others" in one.message or "missing in 0% of it and in 83%" in one.message
    )


def test_masks_of_one_class_only_are_a_note():
    images = np.random.default_rng(0).integers(0, 255, (40, 12, 12, 1)).astype(np.uint8)
    mask = np.zeros((12, 12, 1), np.uint8)
    mask[3:6, 3:6] = 1
    codes = np.random.default_rng(1).permutation(np.arange(40) % 2)
    masks = Arrays([mask] * 40, "mask")
    it = Cohort.from_arrays({"xray": images}, label=codes).with_source("lesion", masks, codes == 1)
    one = only(it, "leak", "note")
    assert one.source == "lesion"


def test_ids_that_begin_with_the_class_are_a_warning():
    ids = [f"{'mal' if code else 'ben'}{k:03d}" for k, code in enumerate(label())]
    one = only(cohort(case_id=ids), "leak", "warning")
    assert "The beginning of the case ids tells outcome" in one.message


def test_a_table_sorted_by_class_is_noted():
    one = only(cohort(outcome=np.arange(N) // 30), "leak", "note")
    assert "The table is sorted by outcome" in one.message


@pytest.mark.parametrize("seed", range(12))
def test_noise_is_never_called_a_leak(seed):
    rng = np.random.default_rng([seed, 20])
    n = int(rng.integers(8, 80))
    columns = {f"n{k}": rng.normal(size=n).round(int(rng.integers(0, 4))) for k in range(15)}
    columns |= {f"c{k}": rng.choice(list("abcdefgh")[: 2 + k % 7], n) for k in range(15)}
    columns["n0"] = np.where(rng.random(n) < 0.5, np.nan, columns["n0"])
    outcome = rng.permutation(np.arange(n) % 2)
    it = cohort(n, inputs=list(columns), outcome=outcome, **columns)
    assert check_cohort(it).about("leak") == ()


def test_area_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.3
    assert_close(area_under_curve(scores, positive)[0], roc_auc_score(positive, scores), rtol=1e-12)


def test_left_out_rates_give_ids_no_credit():
    positive = np.random.default_rng(0).random(40) < 0.5
    assert np.unique(left_out_rates(np.arange(40), positive)).size == 1
    twice = np.repeat(np.arange(20), 2)
    np.testing.assert_array_equal(left_out_rates(twice, positive), positive.reshape(20, 2)[:, ::-1].ravel())


def test_cramers_v_is_that_of_scipy_but_for_the_correction():
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    rng = np.random.default_rng(4)
    a = rng.integers(0, 3, 900)
    b = np.where(rng.random(900) < 0.5, a, rng.integers(0, 3, 900))
    table = np.array([[np.sum((a == i) & (b == j)) for j in range(3)] for i in range(3)])
    value, p = cramers_v(a, b)
    assert abs(value - association(table, method="cramer")) < 0.01
    assert_close(p, chi2_contingency(table, correction=False).pvalue, rtol=1e-9)
    assert cramers_v(a, rng.permutation(b))[0] < 0.06
    assert cramers_v(a, np.zeros(900, np.int64)) == (0.0, 1.0)


# Confounding


def test_a_site_that_goes_with_the_label_is_a_warning():
    site = np.where(label() == 1, "east", "west").astype(object)
    site[:8] = "west"
    one = only(cohort(site=site), "confounding", "warning")
    assert one.message.startswith("Site goes with 'outcome': Cramér's V 0.")
    assert "Of one class only: east" in one.message


def test_a_site_of_one_class_is_a_warning_even_if_others_are_mixed():
    n = 200
    outcome = np.random.default_rng(0).permutation(np.arange(n) % 2)
    site = np.random.default_rng(1).choice(["a", "b", "c"], n).astype(object)
    site[np.flatnonzero(outcome == 1)[:12]] = "d"
    one = only(cohort(n, site=site, outcome=outcome), "confounding", "warning")
    assert "d (12 patients, all '1')" in one.message


@pytest.mark.parametrize("seed", range(12))
def test_chance_is_never_called_confounding(seed):
    rng = np.random.default_rng([seed, 21])
    n = int(rng.integers(10, 40))
    it = cohort(n, site=rng.choice(list("abcde"), n), outcome=rng.permutation(np.arange(n) % 2))
    assert check_cohort(it).about("confounding") == ()


def test_cases_of_one_patient_are_no_evidence():
    patients = [f"p{k // 30}" for k in range(N)]
    site = [f"s{k // 30}" for k in range(N)]
    report = check_cohort(cohort(site=site, patient_id=patients, outcome=np.arange(N) // 30))
    assert report.about("confounding") == ()
    assert report.about("leak") == ()


def test_a_format_that_goes_with_the_label_is_a_warning():
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.arange(40) % 2)
    images = [rng.integers(0, 255, (20 + 4 * code, 20, 1)).astype(np.uint8) for code in codes]
    report = check_cohort(Cohort.from_arrays({"xray": images}, label=codes))
    [one] = report.about("confounding")
    assert one.message.startswith("Shape of xray goes with 'label': Cramér's V ")
    assert one.source == "xray"


# Values


def test_an_age_of_430_is_found():
    age = np.random.default_rng(0).integers(30, 80, N).astype(float)
    age[3] = 430
    one = only(cohort(age=age, units={"age": "years"}), "implausible value", "warning")
    assert one.message == "1 of 60 values of age lie outside 0 to 122 years, and would fit in months: 430 in c003."


def test_a_code_for_missing_is_found():
    albumin = np.random.default_rng(0).normal(4, 0.4, N)
    albumin[3] = -99
    one = only(cohort(albumin=albumin, inputs=["albumin"], units={"albumin": "g/dL"}), "implausible value", "warning")
    assert "-99 in c003" in one.message


def test_celsius_among_fahrenheit_are_mixed_units():
    temperature = np.random.default_rng(0).normal(98.6, 0.8, N).round(1)
    temperature[[3, 8]] = 37.1, 38.0
    one = only(
        cohort(temperature=temperature, inputs=["temperature"], units={"temperature": "°F"}), "mixed units", "error"
    )
    assert "lie outside 78.8 to 113 °F, and would fit in °C: 37.1 in c003, 38 in c008" in one.message


def test_platelets_in_two_units_are_an_error():
    rng = np.random.default_rng(0)
    platelets = rng.lognormal(5, 0.5, N).round()
    platelets[:20] *= 1000
    one = only(cohort(platelets=platelets, inputs=["platelets"], units={"platelets": "G/L"}), "mixed units", "error")
    assert len(one.cases) == 20
    assert "would fit in cells/µL" in one.message


def test_two_units_of_an_unknown_quantity_are_a_warning():
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.4, N)
    values[:20] *= 1000
    one = only(cohort(factor_x=values, inputs=["factor_x"]), "mixed units", "warning")
    assert "two groups a factor of about 846 apart" in one.message


def test_skewed_values_are_no_two_units():
    rng = np.random.default_rng(0)
    assert not any(find_mixed_units(rng.lognormal(3, 2.5, 100)) for _ in range(200))
    assert not any(find_mixed_units(rng.choice([0.0, 1.0, 2.0, 5.0], 100)) for _ in range(20))


def test_pain_has_a_scale_of_ten():
    pain = np.random.default_rng(0).integers(0, 11, N).astype(float)
    pain[6] = 88
    one = only(cohort(pain=pain, inputs=["pain"]), "implausible value", "warning")
    assert "outside 0 to 10 0-10 (assumed): 88 in c006" in one.message


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("age_years", "age"),
        ("AgeAtDiagnosis", "age"),
        ("o2sat", "oxygen saturation"),
        ("SpO2", "oxygen saturation"),
        ("heartrate", "heart rate"),
        ("resprate", "respiratory rate"),
        ("sbp", "systolic blood pressure"),
        ("platelet_count", "platelets"),
        ("total_bilirubin", "bilirubin"),
        ("Direct_bilirubin_mg_dl", "bilirubin"),
        ("nodule_size_mm", "size of a lesion"),
        ("stage", None),
        ("percentage", None),
        ("sausage", None),
    ],
)
def test_quantities_are_known_by_their_names(column, name):
    found = find_quantity(column)
    assert (found.name if found else None) == name


def test_every_range_is_one_and_every_other_unit_can_be_converted():
    for quantity in QUANTITIES:
        assert quantity.low < quantity.high
        for other in quantity.others:
            if quantity.name == "age" and other == "days":
                continue  # no exact factor
            bounds = range_in(quantity, other)
            assert bounds is not None, (quantity.name, other)
            low, high = bounds
            assert low < high


def test_ranges_follow_their_unit():
    assert range_in(find_quantity("albumin"), "g/L") == (6.0, 60.0)
    assert range_in(find_quantity("albumin"), "furlong") is None


# Patients


def test_a_patient_of_two_sexes_is_an_error():
    patients = [f"p{k // 2}" for k in range(N)]
    sex = np.repeat(np.random.default_rng(0).choice(["f", "m"], N // 2), 2).astype(object)
    sex[1] = "m" if sex[0] == "f" else "f"
    report = check_cohort(cohort(sex=sex, patient_id=patients, outcome=np.repeat(np.arange(N // 2) % 2, 2)))
    [one] = report.about("patient")
    assert (one.severity, one.column, one.cases) == ("error", "sex", ("c000", "c001"))


def test_a_patient_of_two_labels_is_a_warning():
    outcome = np.repeat(np.random.default_rng(0).permutation(np.arange(N // 2) % 2), 2)
    outcome[1] = 1 - outcome[0]
    one = only(cohort(outcome=outcome, patient_id=[f"p{k // 2}" for k in range(N)]), "patient", "warning")
    assert one.message == "1 patients have cases of different 'outcome': p0."


def test_ids_that_differ_in_zeros_or_case_only_are_a_warning():
    patients = [f"P{k}" for k in range(N)]
    patients[10], patients[11] = "p07", "P 12"
    one = only(cohort(patient_id=patients), "patient", "warning")
    assert one.message.startswith(
        "1 groups of patient ids differ in case, blanks or leading zeros only: 'P7' and 'p07'"
    )
    assert one.cases == ("c007", "c010")


def test_rows_that_are_doubled_are_a_warning():
    it = cohort()
    table = it.table.copy()
    inputs = ["age", "grade", "marker"]
    table.loc["c009", inputs] = table.loc["c004", inputs]
    one = only(Cohort.from_arrays({"f": np.zeros((N, 1))}, table=table, roles=it.roles), "duplicate row", "warning")
    assert "c004 = c009" in one.message


def test_rows_of_few_categories_agree_by_chance():
    it = cohort(roles={"age": "never", "marker": "never"}, sex=np.arange(N) % 2, inputs=["sex"])
    assert it.inputs.duplicated().any()
    assert check_cohort(it).about("duplicate row") == ()


# Personal data


@pytest.mark.parametrize(
    ("column", "cells", "kind"),
    [
        ("patient_name", lambda k: f"Person {'ab'[k % 2]}{k}", "names of persons"),
        ("DateOfBirth", lambda k: f"19{k + 20}-03-01", "birth dates"),
        ("street_address", lambda k: f"Road {k}", "addresses"),
        ("contact", lambda k: f"someone{k}@example.org", "e-mail addresses"),
        ("call", lambda k: f"030 123 {4000 + k}", "telephone numbers"),
        ("mrn", lambda k: 100000 + 7 * k, "record or insurance numbers"),
        ("reader", lambda k: f"{['Miller', 'Jones', 'Chan'][k % 3]}^{['Anna', 'Bo'][k % 2]}", "names of persons"),
        ("surgeon", lambda k: f"Dr. {['Miller', 'Jones', 'Chan'][k % 3]}", "names of persons"),
    ],
)
def test_personal_columns_are_found_and_not_repeated(column, cells, kind):
    values = [cells(k) for k in range(N)]
    one = only(cohort(**{column: values}), "personal data", "warning")
    assert one.column == column
    assert kind in one.message
    assert not any(str(value) in one.message for value in values)


def test_a_personal_input_is_an_error():
    report = check_cohort(cohort(last_name=[f"{'abcde'[k % 5]}son" for k in range(N)], inputs=["last_name"]))
    [one] = report.about("personal data")
    assert one.severity == "error"


def test_dates_and_free_text_are_noted():
    dates = [f"2020-0{k % 9 + 1}-1{k % 9}" for k in range(N)]
    text = [f"Patient came on day {k} with fever and a cough" for k in range(N)]
    report = check_cohort(cohort(ct=dates, notes=text))
    assert [(one.severity, one.column) for one in report.about("personal data")] == [("note", "ct"), ("note", "notes")]


def test_ids_that_are_names_are_a_warning():
    ids = [f"{first}, {last}" for first in ("Miller", "Jones", "Chan", "Wood", "Sato", "Diaz") for last in
           ("Anna", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo")]  # fmt: skip
    report = check_cohort(cohort(case_id=ids))
    [one] = report.about("personal data")
    assert one.message == "The case ids look like names of persons."


@pytest.mark.parametrize("column", ["stage", "hospital_stay", "filename", "named_vessel", "email_sent", "email", "fax"])
def test_harmless_columns_are_left_alone(column):
    assert check_cohort(cohort(**{column: np.arange(N) % 2})).about("personal data") == ()


# Real data


def test_the_hcc_table_mixes_units():
    from fusion_jax.data.collections import hcc_survival

    report = check_cohort(hcc_survival())
    mixed = {one.column: one for one in report.about("mixed units")}
    assert set(mixed) == {"platelets", "leukocytes", "total_proteins"}
    assert len(mixed["platelets"].cases) == 89
    assert report.counts["error"] == 3
    assert report.about("leak") == ()


def test_jsrt_names_its_classes_in_its_ids(monkeypatch):
    from fusion_jax.data.collections import load

    monkeypatch.setenv("FUSION_JAX_DATA", str(real_data("jsrt").parent))
    report = check_cohort(load("jsrt"))
    warned = [one for one in report.about("leak") if one.severity == "warning"]
    assert len(warned) == 1
    assert warned[0].message == (
        "The beginning of the case ids tells label 'non-nodule' from the rest: area under the ROC curve 1.000 (n = 197 "
        "patients); 74 of 74 begin with 'JPCNN'."
    )
    assert report.counts["error"] == 0
    assert report.duplicates == ()


def test_covid_cxr_is_confounded_by_its_sites_and_holds_free_text(monkeypatch):
    from fusion_jax.data.collections import load

    monkeypatch.setenv("FUSION_JAX_DATA", str(real_data("covid_cxr").parent))
    report = check_cohort(load("covid_cxr"))
    assert any(one.message.startswith("Site goes with 'covid_19'") for one in report.about("confounding"))
    assert [one.column for one in report.about("personal data")] == ["clinical_notes"]
    assert report.about("near duplicate") == ()
