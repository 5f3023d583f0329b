import json
import logging
import tomllib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.definition import (
    Definition,
    Dropped,
    Flow,
    Step,
    apply_definition,
    check_roles,
    parse_definition,
)
from fusion_jax.records import write_json

WINDOW = """
[index]
date = "ct_date"

[[measure]]
name = "hvpg"
file = "labs.csv"
by = "patient_id"
date = "date"
value = "value"
where = "item == 'HVPG'"
before_days = 14
after_days = 14
unit = "mmHg"
"""


def definition(text) -> Definition:
    return parse_definition(tomllib.loads(text))


def table(ids=None, **columns):
    frame = pd.DataFrame(columns)
    frame.index = pd.Index(ids or [f"c{i}" for i in range(1, len(frame) + 1)], name="case_id")
    return frame


def apply(frame, text, *, patient=None, **files):
    return apply_definition(frame, definition(text), read_table=lambda name: files[name.split(".")[0]], patient=patient)


def labs(*rows, item="HVPG"):
    return pd.DataFrame([(p, d, v, item) for p, d, v in rows], columns=["patient_id", "date", "value", "item"])


def counts(flow):
    return [(step.cases, {dropped.reason: len(dropped.case_id) for dropped in step.dropped}) for step in flow.steps]


# The cohorts of the papers


def test_331_screened_patients_become_167():
    """Wang 2020: resected carcinoma, CT at most a month before surgery, a year of follow-up; 65 recur within it.

    The paper states both ends; the numbers in between are made up here.
    """
    n = 331
    days, recurred = np.full(n, 800.0), np.zeros(n)
    days[134:164] = 200  # lost to follow-up within the year
    days[164:229] = np.linspace(30, 365, 65)
    recurred[164:229] = 1
    days[229:239], recurred[229:239] = 500, 1  # late recurrence is no early recurrence
    ct = np.full(n, 20.0)
    ct[40:75], ct[75:80] = 45, np.nan
    frame = table(
        proven_hcc=(np.arange(n) >= 40).astype(int),
        ct_to_surgery=ct,
        treated_before=((np.arange(n) >= 80) & (np.arange(n) < 120)).astype(int),
        margin=np.where((np.arange(n) >= 120) & (np.arange(n) < 134), "positive", "negative"),
        days=days,
        recurred=recurred,
    )
    found, flow = apply(
        frame,
        """
        [[include]]
        rule = "proven_hcc"
        reason = "no proven hepatocellular carcinoma"
        [[include]]
        rule = "0 <= ct_to_surgery <= 31"
        reason = "CT more than a month before surgery"
        [[include]]
        rule = "margin == 'negative'"
        reason = "positive margin"
        [[exclude]]
        rule = "treated_before"
        reason = "treated before"
        [[horizon]]
        name = "early_recurrence"
        time = "days"
        event = "recurred"
        days = 365
        """,
    )
    assert counts(flow) == [
        (331, {}),
        (291, {"no proven hepatocellular carcinoma": 40}),
        (
            251,
            {
                "CT more than a month before surgery": 35,
                "not known whether CT more than a month before surgery (missing: ct_to_surgery)": 5,
            },
        ),
        (237, {"positive margin": 14}),
        (197, {"treated before": 40}),
        (167, {"censored before 365 days": 30}),
    ]
    assert found["early_recurrence"].value_counts().to_dict() == {0: 102, 1: 65}
    assert found["early_recurrence"].dtype == np.int64
    assert flow.steps[5].dropped[0].case_id[0] == "c135"


def test_51_sarcoma_patients_become_48():
    sample = soft_tissue_sarcoma()
    found, flow = apply(
        sample.table,
        """
        [[exclude]]
        rule = "local_or_regional_recurrence"
        reason = "local or regional recurrence"
        """,
    )
    assert [step.cases for step in flow.steps] == [51, 48]
    assert flow.steps[1].dropped == (Dropped("local or regional recurrence", ("STS_020", "STS_034", "STS_051")),)
    assert found.index.tolist() == sample.table.index[sample.table["paper_cohort_48"]].tolist()
    assert found["distant_metastases"].tolist().count(1) == 24


def test_3052_readings_become_670_of_540_patients():
    """Hsieh 2024: readings without eye tracking or outside a stay are dropped; steps in between are made up here."""
    n = 3052
    reading = np.arange(n)
    frame = table(
        patient_id=[f"p{i % 540}" if i < 670 else f"q{i % 1500}" for i in range(n)],
        eye_tracking_discarded=reading % 7 == 0,
        stay_id=np.where(reading < 670, 30_000_000.0 + reading, np.nan),
    )
    frame.loc[frame.index[:670], "eye_tracking_discarded"] = False
    found, flow = apply(
        frame,
        """
        [[exclude]]
        rule = "eye_tracking_discarded"
        reason = "eye tracking discarded"
        [[exclude]]
        rule = "missing(stay_id)"
        reason = "outside an emergency stay"
        """,
        patient="patient_id",
    )
    discarded = sum(i % 7 == 0 for i in range(670, n))
    assert counts(flow) == [
        (3052, {}),
        (3052 - discarded, {"eye tracking discarded": discarded}),
        (670, {"outside an emergency stay": n - 670 - discarded}),
    ]
    assert (flow.steps[0].patients, flow.steps[-1].patients) == (2040, 540)
    assert flow.to_text().splitlines()[0] == "3,052 cases of 2,040 patients: in the table"
    assert found.index.tolist() == frame.index[:670].tolist()


# Measurements


def measured(dates, *rows, extra="", index=None, **columns):
    frame = table(patient_id=[f"p{i}" for i in range(1, len(dates) + 1)], ct_date=dates, **columns)
    found, flow = apply(frame, WINDOW + extra, labs=labs(*rows))
    return found["hvpg"].tolist(), found["hvpg_days"].tolist(), flow


def test_the_nearest_measurement_inside_the_window_is_taken():
    values, days, flow = measured(
        ["2020-03-15", "2020-03-15", "2020-03-15"],
        ("p1", "2020-03-01", 5.0),  # 14 days before: inside
        ("p1", "2020-03-20", 9.0),  # nearer
        ("p2", "2020-02-29", 5.0),  # 15 days before: outside
        ("p2", "2020-03-29", 12.0),  # 14 days after: inside
        ("p3", "2020-03-30", 7.0),  # 15 days after: outside
    )
    np.testing.assert_array_equal(values, [9.0, 12.0, np.nan])
    np.testing.assert_array_equal(days, [5.0, 14.0, np.nan])
    assert flow.notes == ("hvpg: 2 of 3 cases have a measurement from 14 days before to 14 days after ct_date",)


def test_other_items_of_the_file_do_not_count():
    frame = table(patient_id=["p1"], ct_date=["2020-03-15"])
    both = pd.concat([labs(("p1", "2020-03-15", 99.0), item="albumin"), labs(("p1", "2020-03-10", 6.0))])
    found, _ = apply(frame, WINDOW, labs=both)
    assert found["hvpg"].tolist() == [6.0]


@pytest.mark.parametrize(
    ("tie", "value", "days"), [('"earlier"', 4.0, -3.0), ('"later"', 8.0, 3.0), ('"mean"', 6.0, 0.0)]
)
def test_a_tie_is_resolved_as_the_file_says(tie, value, days):
    rows = [("p1", "2020-03-18", 8.0), ("p1", "2020-03-12", 4.0)]
    values, apart, _ = measured(["2020-03-15"], *rows, extra=f"tie = {tie}")
    assert (values, apart) == ([value], [days])


def test_a_tie_is_an_error_where_the_file_says_so():
    rows = [("p1", "2020-03-18", 8.0), ("p1", "2020-03-12", 8.0)]
    with pytest.raises(
        ValueError, match=r"measure 'hvpg': 1 case with several measurements equally near.*'c1'.*earlier"
    ):
        measured(["2020-03-15"], *rows, extra='tie = "error"')


@pytest.mark.parametrize("tie", ["earlier", "later"])
def test_different_values_of_one_day_are_never_chosen_from_silently(tie):
    rows = [("p1", "2020-03-14", 8.0), ("p1", "2020-03-14", 4.0)]
    with pytest.raises(ValueError, match=r"case 'c1' has 8\.0, 4\.0.*one row a day"):
        measured(["2020-03-15"], *rows, extra=f'tie = "{tie}"')
    assert measured(["2020-03-15"], rows[0], rows[0], extra=f'tie = "{tie}"')[0] == [8.0]


def test_the_hour_decides_only_where_both_tables_have_hours():
    rows = [("p1", "2020-03-15 09:00", 1.0), ("p1", "2020-03-15 13:00", 2.0)]
    values, days, _ = measured(["2020-03-15 12:30"], *rows)
    assert (values, days) == ([2.0], [0.0])
    with pytest.raises(ValueError, match="several measurements equally near"):
        measured(["2020-03-15"], *rows)
    # Fourteen days before stays inside whatever the hour.
    assert measured(["2020-03-15 23:00"], ("p1", "2020-03-01 01:00", 3.0))[0] == [3.0]


def test_rows_that_cannot_count_are_noted():
    values, _, flow = measured(
        ["2020-03-15", None],
        ("p1", None, 5.0),
        ("p1", "2020-03-14", None),
        ("p1", "2020-03-10", 7.0),
        ("p2", "2020-03-10", 1.0),
    )
    np.testing.assert_array_equal(values, [7.0, np.nan])
    assert flow.notes[0] == "hvpg: 2 rows of labs.csv lack id, date or value"


def test_texts_can_be_measured():
    rows = [("p1", "2020-03-14", "A"), ("p2", "2020-03-14", "B")]
    assert measured(["2020-03-15", "2020-03-14"], *rows)[0] == ["A", "B"]
    with pytest.raises(ValueError, match=r"tie is 'mean', and column 'value' of labs\.csv holds no numbers"):
        measured(["2020-03-15", "2020-03-14"], *rows, extra='tie = "mean"')


def test_a_window_may_be_of_the_case_itself():
    frame = table(ct_date=["2020-03-15"])
    text = WINDOW.replace('by = "patient_id"', 'by = "case_id"')
    found, _ = apply(frame, text, labs=labs(("c1", "2020-03-15", 5.0)).rename(columns={"patient_id": "case_id"}))
    assert found["hvpg"].tolist() == [5.0]


def test_no_measurement_at_all_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        values, _, _ = measured(["2020-03-15"], ("p1", "2000-01-01", 5.0))
    assert np.isnan(values).all()
    assert "no case has a measurement inside the window" in caplog.text


@settings(max_examples=25)  # each one merges tables
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(-20, 20), st.integers(0, 99)), min_size=1, max_size=25),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_the_nearest_equals_a_search_by_hand(rows, before, after):
    day = pd.Timestamp("2020-03-15")
    rows = list({(patient, offset): (patient, offset, value) for patient, offset, value in rows}.values())
    frame = table(patient_id=[f"p{i}" for i in range(1, 5)], ct_date=[day] * 4)
    text = WINDOW.replace("before_days = 14", f"before_days = {before}").replace(
        "after_days = 14", f"after_days = {after}"
    )
    other = labs(*[(f"p{p}", day + pd.Timedelta(days=o), float(v)) for p, o, v in rows])
    found, _ = apply(frame, text, labs=other)
    for patient in range(1, 5):
        inside = [(abs(o), o, v) for p, o, v in rows if p == patient and -before <= o <= after]
        expected = min(inside)[1:] if inside else (np.nan, np.nan)
        row = found.loc[f"c{patient}"]
        np.testing.assert_array_equal([row["hvpg_days"], row["hvpg"]], expected)


@pytest.mark.parametrize(
    ("columns", "other", "message"),
    [
        ({"patient_id": ["p1"]}, labs(("p1", "2020-01-01", 1.0)), "index: no column 'ct_date'"),
        ({"ct_date": ["2020-01-01"]}, labs(("p1", "2020-01-01", 1.0)), "by is 'patient_id', and the table has no such"),
        (
            {"patient_id": ["p1"], "ct_date": ["1.1.2020"]},
            labs(("p1", "2020-01-01", 1.0)),
            "column 'ct_date': holds '1.1.2020' in case 'c1'; expected a date",
        ),
        (
            {"patient_id": ["p1"], "ct_date": ["2020-01-01"]},
            labs(("p1", "1/1/2020", 1.0)),
            "labs.csv: column 'date': holds '1/1/2020' in row '0'; expected a date",
        ),
        (
            {"patient_id": ["p1"], "ct_date": ["2020-01-01"]},
            labs(("p1", "2020-01-01", 1.0)).drop(columns="value"),
            "labs.csv has no column 'value'",
        ),
        (
            {"patient_id": ["p1"], "ct_date": ["2020-01-01"]},
            labs(("p1", "2020-01-01", 1.0)).rename(columns={"item": "kind"}),
            "no column 'item'",
        ),
        (
            {"patient_id": ["p1"], "ct_date": ["2020-01-01"]},
            labs(("p1", "2020-01-01", 1.0), item="hvpg"),
            "no row of labs.csv meets",
        ),
        (
            {"patient_id": ["007"], "ct_date": ["2020-01-01"]},
            labs((7, "2020-01-01", 1.0)),
            "no 'patient_id' of the table stands in labs.csv: there are '007' here and 7 there",
        ),
    ],
)
def test_a_measurement_that_cannot_be_found_is_explained(columns, other, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below, without escapes
        apply(table(**columns), WINDOW, labs=other)
    assert message in str(error.value)


# Derived columns


def test_derived_columns_may_build_on_measurements_and_each_other():
    frame = table(patient_id=["p1", "p2"], ct_date=["2020-03-15"] * 2, born=["1960-03-15", "1990-01-01"])
    text = """
    [[derive]]
    name = "hypertension"
    formula = "hvpg >= 5"
    [[derive]]
    name = "age"
    formula = "years_between(born, ct_date)"
    unit = "years"
    [[derive]]
    name = "old_and_ill"
    formula = "age >= 60 and hypertension"
    """
    found, flow = apply(frame, WINDOW + text, labs=labs(("p1", "2020-03-15", 5.0)))
    np.testing.assert_array_equal(found["hypertension"], [1, np.nan])
    assert found["age"].iloc[0] == 60.0
    assert found["old_and_ill"].tolist() == [1, 0]
    assert found["old_and_ill"].dtype == np.int64
    assert "hypertension: no result in 1 of 2 cases" in flow.notes
    assert definition(WINDOW + text).units == {"hvpg": "mmHg", "age": "years", "hvpg_days": "days"}


def test_a_division_by_zero_is_noted_with_its_case():
    _, flow = apply(table(a=[1.0, 1.0, None], b=[1.0, 0.0, 1.0]), '[[derive]]\nname = "r"\nformula = "a / b"')
    assert flow.notes == ("r: no result in 2 of 3 cases, in 'c2' although nothing it reads is missing",)


# Outcomes at a horizon

HORIZON = '[[horizon]]\nname = "y1"\ntime = "days"\nevent = "event"\ndays = 365\n'


@pytest.mark.parametrize(
    ("days", "event", "label"),
    [
        (100, 1, 1),
        (365, 1, 1),
        (366, 1, 0),
        (365, 0, 0),
        (1000, 0, 0),
        (364, 0, "censored before 365 days"),
        (0, 0, "censored before 365 days"),
        (0, 1, 1),
        (1000, None, 0),  # nobody knows what came later, and it does not matter
        (100, None, "y1 not known: days or event missing"),
        (365, None, "y1 not known: days or event missing"),
        (None, 1, "y1 not known: days or event missing"),
        (None, None, "y1 not known: days or event missing"),
    ],
)
def test_an_outcome_at_a_horizon(days, event, label):
    found, flow = apply(table(days=[days, 800.0], event=[event, 1.0]), HORIZON)
    if isinstance(label, str):
        assert found.index.tolist() == ["c2"]
        assert [d.reason for d in flow.steps[1].dropped if d.case_id == ("c1",)] == [label]
    else:
        assert found["y1"].tolist() == [label, 0]


def test_several_horizons_each_drop_their_own():
    text = HORIZON + HORIZON.replace("y1", "y2").replace("365", "730")
    found, flow = apply(table(days=[100.0, 400.0, 800.0, 500.0], event=[0, 0, 0, 1]), text)
    assert found[["y1", "y2"]].to_numpy().tolist() == [[0, 0], [0, 1]]
    assert [step.cases for step in flow.steps] == [4, 3, 2]


def test_rules_may_use_the_outcome_and_come_first():
    frame = table(days=[100.0, 100.0, 900.0], event=[0, 0, 0], age=[10.0, 30.0, 30.0])
    _, flow = apply(frame, HORIZON + '[[exclude]]\nrule = "y1 == 1 or age < 18"\nreason = "child"\nmissing = "keep"\n')
    assert [(step.cases, [d.case_id for d in step.dropped]) for step in flow.steps[1:]] == [
        (2, [("c1",)]),
        (1, [("c2",)]),
    ]


def test_impossible_times_and_events_are_refused():
    with pytest.raises(ValueError, match=r"horizon 'y1': column 'days' is negative in 'c1'"):
        apply(table(days=[-3.0, 4.0], event=[1, 0]), HORIZON)
    with pytest.raises(ValueError, match=r"column 'event' is 2 in case 'c1'; a condition is needed here, or 0 and 1"):
        apply(table(days=[3.0, 4.0], event=[2, 0]), HORIZON)
    with pytest.raises(
        ValueError, match=r"horizon 'y1': time is 'days', and there is no such column\. Did you mean 'day'"
    ):
        apply(table(day=[3.0, 4.0], event=[1, 0]), HORIZON)


# Rules


def test_what_cannot_be_decided_is_dropped_kept_or_refused():
    frame = table(age=[10.0, np.nan, 30.0])
    rule = '[[include]]\nrule = "age >= 18"\nreason = "child"\n'
    found, flow = apply(frame, rule)
    assert found.index.tolist() == ["c3"]
    assert flow.steps[1].dropped == (
        Dropped("child", ("c1",)),
        Dropped("not known whether child (missing: age)", ("c2",)),
    )
    found, flow = apply(frame, rule + 'missing = "keep"')
    assert found.index.tolist() == ["c2", "c3"]
    assert flow.steps[1].kept_undecided == ("c2",)
    assert "1 kept although this could not be decided" in flow.to_text()
    with pytest.raises(ValueError, match=r"include rule 1: 'age >= 18' cannot be decided for 1 case \('c2'\): 'age'"):
        apply(frame, rule + 'missing = "error"')


def test_an_empty_text_is_named_as_missing():
    _, flow = apply(table(sex=["F", "", "M"]), "[[include]]\nrule = \"sex in ['F', 'M']\"\nreason = 'neither'")
    assert flow.steps[1].dropped[1] == Dropped("not known whether neither (missing: sex)", ("c2",))


def test_rules_apply_in_order_and_nobody_is_dropped_twice():
    frame = table(a=[1, 1, 0, 0], b=[1, 0, 1, 0])
    text = '[[exclude]]\nrule = "a"\n[[include]]\nrule = "b"\n'
    found, flow = apply(frame, text)
    assert counts(flow) == [(4, {}), (2, {"a": 2}), (1, {"not: b": 1})]
    assert found.index.tolist() == ["c3"]
    swapped = '[[include]]\nrule = "b"\n[[exclude]]\nrule = "a"\n'
    assert counts(apply(frame, swapped).flow) == [(4, {}), (2, {"not: b": 2}), (1, {"a": 1})]


def test_a_rule_that_drops_nobody_is_listed_too():
    assert counts(apply(table(a=[1]), '[[include]]\nrule = "a"\nreason = "no a"').flow) == [(1, {}), (1, {"no a": 0})]


def test_a_patient_is_counted_once():
    frame = table(patient_id=["p1", "p1", "p2"], a=[1, 0, 0])
    _, flow = apply(frame, '[[exclude]]\nrule = "a"', patient="patient_id")
    assert [(step.cases, step.patients) for step in flow.steps] == [(3, 2), (2, 2)]


def test_an_empty_definition_keeps_everybody():
    frame = table(a=[1, 2])
    found, flow = apply(frame, "")
    pd.testing.assert_frame_equal(found, frame)
    assert flow == Flow((Step("in the table", 2, 2),))


def test_a_definition_that_leaves_nobody_says_how():
    with pytest.raises(ValueError, match=r"nobody is left\.\n3 patients: in the table\n  − 3: too old") as error:
        apply(table(age=[50, 60, 70]), '[[exclude]]\nrule = "age > 18"\nreason = "too old"')
    assert "cohort.toml" in str(error.value)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0, None])), min_size=1, max_size=20)
)
def test_everybody_is_either_in_or_dropped_once(rows):
    frame = table(a=[a for a, _ in rows] + [1.0], b=[b for _, b in rows] + [0.0]).astype(float)
    found, flow = apply(frame, '[[include]]\nrule = "a"\n[[exclude]]\nrule = "b"\n')
    everybody = [*found.index, *(case for step in flow.steps for dropped in step.dropped for case in dropped.case_id)]
    assert sorted(everybody) == sorted(frame.index)
    for before, after in zip(flow.steps, flow.steps[1:], strict=False):
        assert before.cases - after.cases == sum(len(dropped.case_id) for dropped in after.dropped)


# Reading


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[includes]]\nrule = 'a'", "unknown table 'includes'. Did you mean 'include'"),
        ("[index]\ndates = 'a'", "expected the column of the index date"),
        ("[include]\nrule = 'a'", "expected a list of tables, written [[include]]"),
        ("[[include]]\nrules = 'a'", "include 1: unknown key 'rules'. Did you mean 'rule'"),
        ("[[include]]\nreason = 'a'", "include 1: no 'rule'; expected a text"),
        ("[[include]]\nrule = 'a'\nmissing = 'ignore'", "missing is 'ignore'; expected one of 'drop', 'keep', 'error'"),
        ("[[include]]\nrule = 3", "rule is 3; expected a text"),
        ("[[include]]\nrule = 'a >'", "include rule 1: expression 'a >'"),
        ("[[include]]\nrule = 'a'\nkind = 'exclude'", "unknown key 'kind'"),
        ("[[derive]]\nname = ''\nformula = 'a'", "name is ''; expected a text"),
        ("[[derive]]\nname = 'x'\nformula = 'a'\n[[derive]]\nname = 'x'\nformula = 'b'", "columns 'x' are made twice"),
        (HORIZON.replace("365", "-1"), "horizon 'y1': days is -1; expected a number of days, 0 or more"),
        (HORIZON.replace("365", "true"), "days is True; expected a number of days"),
        (HORIZON.replace("365", "nan"), "days is nan; expected a number of days"),
        (WINDOW.replace("14", "14.5", 1), "before_days is 14.5; expected a whole number of days"),
        (
            WINDOW.replace('[index]\ndate = "ct_date"', ""),
            "measure 'hvpg' has a window about the index date, and there",
        ),
        (WINDOW + "tie = 'first'", "tie is 'first'; expected one of 'earlier', 'later', 'mean', 'error'"),
        (WINDOW.replace("== 'HVPG'", "= 'HVPG'"), "measure 'hvpg', where: expression"),
    ],
)
def test_a_definition_is_read_strictly(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below, without escapes
        definition(text)
    assert message in str(error.value)
    assert str(error.value).startswith("cohort.toml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[derive]]\nname = 'age'\nformula = 'a'", "columns 'age' are in the table already"),
        (
            "[[derive]]\nname = 'x'\nformula = 'agee'",
            "derive 'x': expression 'agee', character 1: no column 'agee'. Did you",
        ),
        (
            "[[derive]]\nname = 'x'\nformula = 'y'\n[[derive]]\nname = 'y'\nformula = 'age'",
            "reads 'y', which is made only further down",
        ),
        ("[[include]]\nrule = 'agee > 3'", "include rule 1: expression 'agee > 3', character 1: no column 'agee'"),
    ],
)
def test_names_are_checked_before_anything_is_computed(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below, without escapes
        apply(table(age=[3.0], a=["not a number"]), text)
    assert message in str(error.value)


def test_a_table_has_one_row_a_case_and_its_patients():
    with pytest.raises(ValueError, match="case ids 'c1' stand in several rows"):
        apply(table(["c1", "c1"], a=[1, 2]), "")
    with pytest.raises(ValueError, match="no column 'patient' for the patients"):
        apply(table(patient_id=["p"]), "", patient="patient")


# Roles

LIVER = definition(
    WINDOW
    + """
    [[derive]]
    name = "hypertension"
    formula = "hvpg >= 5"
    [[derive]]
    name = "pressure"
    formula = "hvpg * 1.36"
    [[derive]]
    name = "age"
    formula = "years_between(born, ct_date)"
    [[derive]]
    name = "response"
    formula = "size_after < 0.7 * size_before"
    """
    + HORIZON
)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            {"hypertension": "label", "hvpg": "input"},
            "the label 'hypertension' is computed from 'hvpg', which is an input",
        ),
        ({"hypertension": "label", "pressure": "input"}, "the label 'hypertension' is computed from 'hvpg'"),
        ({"hypertension": "label", "y1": "input"}, "the input 'y1' is computed from 'days', 'event', 'y1'"),
        ({"days": "input"}, "column 'days' has the role input, but a horizon"),
        (
            {"hvpg": "time", "pressure": "input"},
            "the input 'pressure' is computed from 'hvpg', known only with the outcome",
        ),
        ({"response": "label", "size_before": "input", "size_after": "input"}, "the label 'response' is computed from"),
        ({"hypertension": "label", "age": "input", "born": "never"}, None),
        ({"response": "label", "size_before": "input"}, None),
        ({"y1": "label", "age": "input", "days": "time", "event": "event"}, None),
        ({"hypertension": "group", "hvpg": "input"}, None),
    ],
)
def test_an_outcome_cannot_reach_a_model_through_a_derived_column(roles, message):
    if message is None:
        check_roles(LIVER, roles)
    else:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below, without escapes
            check_roles(LIVER, roles)
        assert message in str(error.value)


# Flow

SMALL = Flow(
    (
        Step("in the table", 5, 4),
        Step("", 2, 2, (Dropped('says "no" & <left>', ("a", "b")), Dropped("x", ("c",))), kept_undecided=("e",)),
    ),
    ("one note",),
)


def test_a_flow_survives_json(tmp_path):
    write_json(tmp_path / "flow.json", SMALL.to_dict())
    assert Flow.from_dict(json.loads((tmp_path / "flow.json").read_text(encoding="utf-8"))) == SMALL


def test_a_flow_reads_as_text():
    assert SMALL.to_text().splitlines() == [
        "5 cases of 4 patients: in the table",
        '  − 2: says "no" & <left>',
        "  − 1: x",
        "2 cases of 2 patients",
        "  of them 1 kept although this could not be decided",
        "Note: one note",
    ]


def test_a_flow_is_a_mermaid_chart_whatever_the_reasons_hold():
    assert SMALL.to_mermaid().splitlines() == [
        "flowchart TD",
        '  s0["in the table<br>5 cases of 4 patients"]',
        '  s0 --> s1["2 cases of 2 patients"]',
        '  s0 --> d1["2: says &quot;no&quot; &amp; &lt;left&gt;<br>1: x"]',
    ]


# Ids and hours


@pytest.mark.parametrize(("here", "there"), [("8", 8), ("8", "8 "), ("08", "8"), ("p8", "P8")])
def test_ids_of_which_only_some_meet_are_refused_where_the_rest_differs_in_writing(here, there):
    frame = table(patient_id=["x1", here], ct_date=["2020-01-15"] * 2)
    file = labs(("x1", "2020-01-15", 5.0), (there, "2020-01-15", 6.0))
    with pytest.raises(ValueError, match=rf"'patient_id' is '{here}' in the table and '?{there}'? in labs.csv"):
        apply(frame, WINDOW, labs=file)


def test_patients_that_only_one_of_the_tables_has_are_no_error():
    frame = table(patient_id=["x1", "x2"], ct_date=["2020-01-15"] * 2)
    found, _ = apply(frame, WINDOW, labs=labs(("x1", "2020-01-15", 5.0), ("x3", "2020-01-15", 6.0)))
    assert found["hvpg"].tolist() == [5.0, pytest.approx(np.nan, nan_ok=True)]


@pytest.mark.parametrize(("tie", "expected"), [("earlier", 5.0), ("later", 6.0)])
def test_of_two_as_many_hours_away_on_one_day_the_hour_chooses(tie, expected):
    frame = table(patient_id=["x1"], ct_date=["2020-01-15 12:00"])
    file = labs(("x1", "2020-01-15 18:00", 6.0), ("x1", "2020-01-15 06:00", 5.0))
    found, _ = apply(frame, f'{WINDOW}tie = "{tie}"', labs=file)
    assert found["hvpg"].tolist() == [expected]


@pytest.mark.parametrize("label", ["hvpg", "high"])
@pytest.mark.parametrize(("before", "after"), [(14, 14), (30, 0), (0, 0)])
def test_the_values_of_a_label_cannot_come_in_again_under_another_name(label, before, after):
    again = WINDOW.split("[[measure]]")[1].replace('"hvpg"', '"pressure"')
    again = again.replace("before_days = 14", f"before_days = {before}").replace(
        "after_days = 14", f"after_days = {after}"
    )
    found = definition(f'{WINDOW}[[measure]]{again}[[derive]]\nname = "high"\nformula = "hvpg >= 5"')
    roles = {label: "label", "pressure": "input"}
    with pytest.raises(ValueError, match=rf"the label '{label}' is computed from .*the model would see the answer"):
        check_roles(found, roles)


def test_a_follow_up_may_be_predicted_from_the_baseline_of_the_same_file():
    later = WINDOW.split("[[measure]]")[1].replace('"hvpg"', '"later"').replace("before_days = 14", "before_days = 0")
    found = definition(f"{WINDOW.replace('after_days = 14', 'after_days = 0')}[[measure]]{later}")
    check_roles(found, {"later": "label", "hvpg": "input"})
