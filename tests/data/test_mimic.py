import inspect
import logging
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.mimic import (
    ABNORMALITIES,
    VITALS,
    age_at_exam,
    ed_stays_from_transfers,
    ellipses_to_boxes,
    fill_missing,
    join_all,
    join_triage,
    match_stay,
    merge_labels,
    read_reflacx,
    read_table,
    repair_units,
    study_time,
)
from tests.helpers import real_data

NO_VITALS = dict.fromkeys(VITALS, np.nan)


def stays(*rows):
    return pd.DataFrame(rows, columns=["subject_id", "stay_id", "intime", "outtime"])


def xrays(*rows):
    table = pd.DataFrame(rows, columns=["subject_id", "study_time"])
    return table.assign(study_time=pd.to_datetime(table["study_time"], format="ISO8601"))


# Study time


@pytest.mark.parametrize(
    ("time_of_day", "expected"),
    [
        (213014.531, "21:30:14.531"),
        (5430.125, "00:54:30.125"),
        ("005430.125", "00:54:30.125"),
        (7, "00:00:07"),
        (0, "00:00:00"),
        (235959.999, "23:59:59.999"),
    ],
)
def test_lost_leading_zeros_of_the_study_time_come_back(time_of_day, expected):
    taken = study_time(pd.DataFrame({"StudyDate": [21800506], "StudyTime": [time_of_day]}))
    assert taken.tolist() == [pd.Timestamp(f"2180-05-06 {expected}")]


def test_a_study_without_date_or_time_has_no_time():
    taken = study_time(pd.DataFrame({"StudyDate": [21800506, np.nan], "StudyTime": [np.nan, 120000.0]}))
    assert taken.isna().tolist() == [True, True]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("StudyTime", value) for value in (240000.0, 126000, 60, -1.0, "noon", np.inf)),
        *(("StudyDate", value) for value in (21801306, 218005, "today")),
    ],
)
def test_what_is_no_date_or_time_of_day_is_refused_by_row(column, value):
    table = pd.DataFrame({"StudyDate": [21800506, 21800506], "StudyTime": [120000.0, 120000.0]}).astype(object)
    table.loc[1, column] = value
    with pytest.raises(
        ValueError, match=rf"cxr: column '{column}' holds {re.escape(repr(value))} in row 1 .*expected a"
    ):
        study_time(table)


# Stays


def test_an_xray_in_no_one_or_two_stays():
    edstays = stays(
        (1, 10, "2180-01-01 08:00", "2180-01-01 12:00"),
        (1, 11, "2180-01-01 11:00", "2180-01-01 16:00"),
        (2, 20, "2180-01-01 08:00", "2180-01-01 12:00"),
    )
    cxr = xrays(
        (1, "2180-01-01 09:00"),
        (1, "2180-01-01 11:30"),
        (1, "2180-01-01 13:00"),
        (1, "2180-01-02 13:00"),
        (2, "2180-01-01 11:30"),
        (3, "2180-01-01 11:30"),
        (2, None),
    )
    found = match_stay(cxr, edstays)
    assert found["match"].tolist() == ["within", "ambiguous", "within", "outside", "within", "no stay", "no time"]
    assert found["stay_id"].tolist() == [10, pd.NA, 11, pd.NA, 20, pd.NA, pd.NA]


def test_the_ends_of_a_stay_are_outside():
    edstays = stays((1, 10, "2180-01-01 08:00", "2180-01-01 12:00"), (1, 11, "2180-01-01 12:00", "2180-01-01 16:00"))
    cxr = xrays((1, "2180-01-01 08:00"), (1, "2180-01-01 12:00"), (1, "2180-01-01 11:59:59.999999"))
    assert match_stay(cxr, edstays)["match"].tolist() == ["outside", "outside", "within"]


def test_a_tolerance_takes_the_nearest_start_within_those_days():
    edstays = stays((1, 10, "2180-01-01 08:00", "2180-01-01 12:00"), (1, 11, "2180-02-01 08:00", "2180-02-01 12:00"))
    cxr = xrays(
        (1, "2180-01-08 08:00"),  # seven days to the minute after the start
        (1, "2180-01-08 08:01"),
        (1, "2180-01-25 08:00"),
        (1, "2180-01-01 09:00"),
        (2, "2180-01-01 09:00"),
    )
    found = match_stay(cxr, edstays, tolerance_days=7)
    assert found["match"].tolist() == ["nearest", "outside", "nearest", "within", "no stay"]
    assert found["stay_id"].tolist() == [10, pd.NA, 11, 10, pd.NA]


def test_two_equally_near_stays_are_ambiguous():
    edstays = stays((1, 10, "2180-01-01 08:00", "2180-01-01 09:00"), (1, 11, "2180-01-03 08:00", "2180-01-03 09:00"))
    found = match_stay(xrays((1, "2180-01-02 08:00"), (1, "2180-01-02 08:01")), edstays, tolerance_days=2)
    assert found["match"].tolist() == ["ambiguous", "nearest"]
    assert found["stay_id"].tolist() == [pd.NA, 11]


def test_a_tolerance_leaves_several_holding_stays_ambiguous():
    edstays = stays((1, 10, "2180-01-01 08:00", "2180-01-01 12:00"), (1, 11, "2180-01-01 11:00", "2180-01-01 16:00"))
    assert match_stay(xrays((1, "2180-01-01 11:30")), edstays, tolerance_days=7)["match"].tolist() == ["ambiguous"]


def test_a_stay_without_a_span_holds_nothing_and_is_reported(caplog):
    edstays = stays(
        (1, 10, "2180-01-01 08:00", None),
        (1, 11, "2180-01-01 12:00", "2180-01-01 08:00"),
        (1, 12, "2180-01-01 09:00", "2180-01-01 09:00"),
    )
    cxr = xrays((1, "2180-01-01 09:00"), (1, "2180-01-01 10:00"))
    with caplog.at_level(logging.WARNING, "fusion_jax.data.mimic"):
        assert match_stay(cxr, edstays)["match"].tolist() == ["outside", "outside"]
    assert "3 of 3 stays have no end after their start" in caplog.text
    assert match_stay(cxr, edstays, tolerance_days=1)["stay_id"].tolist() == [12, 12]


def test_no_stays_and_no_xrays_are_no_trouble():
    nobody = stays().astype(
        {"intime": "datetime64[us]", "outtime": "datetime64[us]", "subject_id": int, "stay_id": int}
    )
    assert match_stay(xrays((1, "2180-01-01 09:00")), nobody, tolerance_days=3)["match"].tolist() == ["no stay"]
    assert len(match_stay(xrays(), stays((1, 10, "2180-01-01 08:00", "2180-01-01 12:00")), tolerance_days=3)) == 0


def brute_force(cxr, edstays, tolerance):
    found = []
    for subject, t in zip(cxr["subject_id"], cxr["study_time"], strict=True):
        own = edstays[edstays["subject_id"] == subject]
        holding = own[(own["intime"] < t) & (t < own["outtime"])]
        distance = (own["intime"] - t).abs()
        near = own[(distance == distance.min()) & (distance <= pd.Timedelta(days=tolerance))] if tolerance else own[:0]
        chosen = holding if len(holding) else near
        found.append(chosen["stay_id"].iloc[0] if len(chosen) == 1 else None)
    return found


moment = st.integers(0, 12)


@given(
    spans=st.lists(st.tuples(st.integers(0, 2), moment, moment), max_size=8),
    queries=st.lists(st.tuples(st.integers(0, 3), moment), min_size=1, max_size=8),
    tolerance=st.integers(0, 4),
)
def test_matching_equals_looking_at_every_pair(spans, queries, tolerance):
    days = pd.to_datetime("2180-01-01") + pd.to_timedelta(range(13), unit="D")
    edstays = stays(*((who, 100 + i, days[a], days[b]) for i, (who, a, b) in enumerate(spans)))
    edstays = edstays.astype({"subject_id": int, "stay_id": int, "intime": days.dtype, "outtime": days.dtype})
    cxr = xrays(*((who, days[t]) for who, t in queries))
    found = match_stay(cxr, edstays, tolerance)["stay_id"]
    assert [None if pd.isna(stay) else stay for stay in found] == brute_force(cxr, edstays, tolerance)


def test_the_size_of_mimic_takes_seconds():
    rng = np.random.default_rng([20, 4])
    n_stays, n_images = 425_000, 377_000
    start = np.datetime64("2110-01-01", "us") + rng.integers(0, 90 * 365 * 86_400, n_stays).astype("timedelta64[s]")
    end = start + rng.integers(3600, 86_400, n_stays).astype("timedelta64[s]")
    who = rng.integers(0, 205_000, n_stays)
    edstays = pd.DataFrame({"subject_id": who, "stay_id": np.arange(n_stays), "intime": start, "outtime": end})
    stay = rng.integers(0, n_stays, n_images)
    cxr = pd.DataFrame({"subject_id": who[stay], "study_time": start[stay] + (end - start)[stay] // 2})
    began = time.process_time()
    found = match_stay(cxr, edstays, tolerance_days=7)
    assert time.process_time() - began < 15  # 2 s alone; a loop over the images takes half an hour
    assert np.mean(found["match"] == "within") > 0.999
    within = (found["match"] == "within").to_numpy()
    np.testing.assert_array_equal(found["stay_id"][within].to_numpy(dtype=int), stay[within])


@pytest.mark.parametrize("tolerance", [-1, np.nan, np.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"tolerance_days is .*expected 0"):
        match_stay(xrays(), stays(), tolerance)


def test_a_stay_that_stands_twice_is_refused():
    edstays = stays((1, 10, "2180-01-01 08:00", "2180-01-01 12:00"), (1, 10, "2180-01-02 08:00", "2180-01-02 12:00"))
    with pytest.raises(ValueError, match="edstays: stay_id 10 stands in several rows"):
        match_stay(xrays((1, "2180-01-01 09:00")), edstays)


def test_a_time_that_is_none_is_refused_by_table_column_and_row():
    edstays = stays((1, 10, "2180-01-01 08:00", "later"))
    with pytest.raises(ValueError, match=r"edstays: column 'outtime' holds 'later' in row 0 .*expected a time such as"):
        match_stay(xrays((1, "2180-01-01 09:00")), edstays)


# Age


def test_age_counts_years_from_the_anchor():
    patients = pd.DataFrame(
        {"subject_id": [1, 2], "gender": ["F", "M"], "anchor_age": [52, 91], "anchor_year": [2180, 2150]}
    )
    times = pd.Series(pd.to_datetime(["2180-01-01", "2178-12-31", "2183-06-01", "2151-01-01", None]))
    ages = age_at_exam(patients, pd.Series([1, 1, 1, 2, 1]), times)
    assert ages[:4].tolist() == [52, 50, 55, 92]
    assert np.isnan(ages[4])
    assert age_at_exam(patients, pd.Series([3]), times[:1]).isna().all()


# Triage


def triage_table(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"stay_id": range(n), **dict.fromkeys(VITALS, [3.0] * n), **columns})


def test_triage_keeps_every_row_of_the_left_table_and_its_order():
    triage = triage_table(sbp=[120, 130, 140]).assign(stay_id=[10, 11, 12])
    left = pd.DataFrame({"stay_id": pd.array([12, None, 10, 12, 99], dtype="Int64")})
    joined = join_triage(left, triage)
    np.testing.assert_array_equal(joined["sbp"], [140, np.nan, 120, 140, np.nan])


def test_words_for_pain_are_missing_and_counted(caplog):
    triage = triage_table(pain=["5", "unable", None, "ett", "88"])
    with caplog.at_level(logging.WARNING, "fusion_jax.data.mimic"):
        joined = join_triage(triage[["stay_id"]], triage)
    np.testing.assert_array_equal(joined["pain"], [5, np.nan, np.nan, np.nan, 88])
    assert "2 values of pain are words" in caplog.text


def test_a_word_for_another_vital_sign_is_refused():
    with pytest.raises(ValueError, match=r"triage: column 'o2sat' holds 'low' in row 1 .*expected a number"):
        join_triage(pd.DataFrame({"stay_id": [0]}), triage_table(o2sat=["97", "low"]))


def test_repairs_change_what_they_count_and_nothing_else():
    triage = triage_table(
        temperature=[37.0, 98.6, np.nan, 49.9, 50.0, 9.8], pain=["13", "10", "0", "-1", None, "unable"]
    )
    table, counts = repair_units(triage)
    np.testing.assert_allclose(table["temperature"], [98.6, 98.6, np.nan, 121.82, 50.0, 49.64])
    np.testing.assert_array_equal(table["pain"], [10, 10, 0, 0, np.nan, np.nan])
    assert counts == {"temperature_celsius": 3, "temperature_implausible": 3, "pain_clipped": 2, "pain_text": 1}
    untouched = [column for column in VITALS if column not in ("temperature", "pain")]
    pd.testing.assert_frame_equal(table[untouched], triage[untouched])
    assert triage["temperature"].tolist()[0] == 37.0


def test_means_of_the_spec_fill_the_vitals():
    """Columns made to the means that the spec prints, to one more digit."""
    printed = (98.1, 85.7, 18.5, 97.6, 132.3, 72.4, 4.1, 2.2)
    missing = (75, 61, 69, 65, 62, 64, 83, 24)
    table = pd.DataFrame(
        {
            column: [mean + 0.04, mean - 0.04] * ((670 - gaps) // 2) + [mean] * ((670 - gaps) % 2) + [np.nan] * gaps
            for column, mean, gaps in zip(VITALS, printed, missing, strict=True)
        }
    )
    filled = fill_missing(table)
    assert tuple(filled.values.values()) == printed
    assert tuple(filled.missing.values()) == missing
    assert not filled.table.isna().any(axis=None)


def test_means_come_from_the_training_rows_alone():
    table = pd.DataFrame({"sbp": [100.0, 110.04, 900.0, np.nan]})
    filled = fill_missing(table, ["sbp"], training=np.array([True, True, False, False]))
    assert filled.table["sbp"].tolist() == [100.0, 110.04, 900.0, 105.0]
    assert np.count_nonzero(table["sbp"].isna()) == 1


def test_a_column_without_training_values_is_refused():
    table = pd.DataFrame({"sbp": [np.nan, 120.0]})
    with pytest.raises(ValueError, match="column 'sbp' has no value in the 1 training rows"):
        fill_missing(table, ["sbp"], training=np.array([True, False]))


# Labels and boxes


def test_merged_labels_take_the_highest_certainty_of_their_columns():
    readings = pd.DataFrame(
        {
            "Pleural abnormality": [np.nan, np.nan, 3, 0],
            "Pleural effusion": [2, 0, np.nan, np.nan],
            "Pleural thickening": [4, 0, np.nan, np.nan],
            "Nodule": [1, 0, np.nan, np.nan],
            "Lung nodule or mass": [np.nan, np.nan, 5, np.nan],
            "Emphysema": [0, 2, np.nan, np.nan],
            "Atelectasis": [1, np.nan, 5, 0],
        }
    )
    labels = ["Atelectasis", "Pleural abnormality", "Lung nodule or mass", "High lung volume / emphysema"]
    certainty, present = merge_labels(readings, labels)
    assert certainty.to_numpy().tolist() == [[1, 4, 1, 0], [0, 0, 0, 2], [5, 3, 5, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(present, certainty.to_numpy() > 0)
    assert list(present.columns) == labels


@pytest.mark.parametrize("cell", [6, -1, "yes"])
def test_a_certainty_off_its_scale_is_refused(cell):
    with pytest.raises(ValueError, match=r"reflacx: column 'Atelectasis' holds .* in row 0 .*certainty from 0 to 5"):
        merge_labels(pd.DataFrame({"Atelectasis": [cell]}), ["Atelectasis"])


def test_a_label_without_any_column_is_refused():
    with pytest.raises(ValueError, match="no column for label 'Consolidation'; expected one of 'Consolidation'"):
        merge_labels(pd.DataFrame({"Atelectasis": [1]}), ["Atelectasis", "Consolidation"])


def ellipse_table(*rows, corners=(10.0, 20.0, 50.0, 80.0)):
    labels = ["Atelectasis", "Consolidation", "Enlarged cardiac silhouette", "Pleural effusion", "Pulmonary edema"]
    return pd.DataFrame(
        [
            dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
            | {"id": f"P{i}", "certainty": 3}
            | {label: label in row for label in [*labels, "Fracture"]}
            for i, row in enumerate(rows)
        ]
    )


def test_ellipses_of_other_findings_are_left_out_and_the_first_label_wins():
    ellipses = ellipse_table(
        ["Consolidation", "Atelectasis"], ["Fracture"], ["Pleural effusion"], [], ["Pulmonary edema", "Fracture"]
    )
    boxes = ellipses_to_boxes(ellipses)
    assert boxes["id"].tolist() == ["P0", "P2", "P4"]
    assert [ABNORMALITIES[k] for k in boxes["class"]] == ["Atelectasis", "Pleural abnormality", "Pulmonary edema"]
    np.testing.assert_array_equal(boxes[["x0", "y0", "x1", "y1"]], [[10, 20, 50, 80]] * 3)


def test_corners_are_put_in_order_and_ellipses_without_area_reported(caplog):
    turned = ellipse_table(["Atelectasis"], corners=(50.0, 80.0, 10.0, 20.0))
    np.testing.assert_array_equal(ellipses_to_boxes(turned)[["x0", "y0", "x1", "y1"]], [[10, 20, 50, 80]])
    flat = ellipse_table(["Atelectasis"], corners=(50.0, 20.0, 50.0, 80.0))
    with caplog.at_level(logging.WARNING, "fusion_jax.data.mimic"):
        assert len(ellipses_to_boxes(flat)) == 0
    assert "1 without area left out, of readings ['P0']" in caplog.text


def test_an_ellipse_without_a_corner_is_refused():
    ellipses = ellipse_table(["Atelectasis"], corners=(10.0, np.nan, 50.0, 80.0))
    with pytest.raises(ValueError, match="ellipses: column 'ymin' holds nan in row 0"):
        ellipses_to_boxes(ellipses)


# The join


def small_mimic():
    """Six readings of five images of four subjects, each for one way through the join."""
    names = ("dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime", "ViewPosition")
    cxr = pd.DataFrame(
        [
            ("d1", 1, 51, 21800101, 93000.0, "PA"),
            ("d2", 1, 52, 21800101, 113000.0, "AP"),
            ("d3", 2, 53, 21800301, 3000.5, "AP"),
            ("d4", 3, 54, 21800101, 93000.0, "PA"),
            ("d5", 4, 55, 21800101, 93000.0, "PA"),
        ],
        columns=list(names),
    )
    edstays = stays(
        (1, 10, "2180-01-01 08:00:00", "2180-01-01 12:00:00"),
        (1, 11, "2180-01-01 11:00:00", "2180-01-01 16:00:00"),
        (2, 20, "2180-02-29 20:00:00", "2180-03-01 06:00:00"),
        (4, 40, "2180-01-01 08:00:00", "2180-01-01 12:00:00"),
    )
    patients = pd.DataFrame(
        {
            "subject_id": [1, 2, 3, 4],
            "gender": list("FMFM"),
            "anchor_age": [60, 40, 20, 30],
            "anchor_year": [2178, 2181, 2180, 2180],
        }
    )
    triage = triage_table(temperature=[37.0, 98.0, 99.0, 97.0]).assign(
        stay_id=[10, 11, 20, 40], pain=["2", "3", "13", "x"]
    )
    reflacx = pd.DataFrame(
        [
            ("P1", "d1", 1, False),
            ("P2", "d2", 1, False),
            ("P3", "d3", 2, False),
            ("P4", "d3", 2, "True"),
            ("P5", "d4", 3, False),
            ("P6", "d9", 9, False),
        ],
        columns=["id", "dicom_id", "subject_id", "eye_tracking_data_discarded"],
    ).assign(image_size_x=2544, image_size_y=3056, **{label: [0, 1, 2, 3, 4, 5] for label in ABNORMALITIES})
    ellipses = ellipse_table(["Consolidation"], ["Atelectasis"], ["Pulmonary edema"], ["Consolidation"])
    ellipses["id"] = ["P3", "P3", "P4", "P1"]
    return {
        "reflacx": reflacx, "cxr": cxr, "patients": patients, "edstays": edstays, "triage": triage, "ellipses": ellipses
    }  # fmt: skip


def test_readings_arrive_with_all_that_is_known_and_the_others_are_listed():
    joined = join_all(**small_mimic())
    table = joined.table
    assert table.index.tolist() == ["P1", "P3"]
    assert table["stay_id"].tolist() == [10, 20]
    assert table["study_id"].tolist() == [51, 53]
    assert table["age"].tolist() == [62, 39]
    assert table["gender"].tolist() == ["F", "M"]
    assert table["view"].tolist() == ["PA", "AP"]
    assert table["study_time"].iloc[1] == pd.Timestamp("2180-03-01 00:30:00.5")
    assert table["temperature"].tolist() == [37.0, 99.0]
    assert table["Consolidation"].tolist() == [False, True]
    assert table["Consolidation certainty"].tolist() == [0, 2]
    assert joined.repairs == {}
    assert [(step.cases, step.patients) for step in joined.flow.steps] == [(6, 4), (5, 3), (4, 3), (2, 2)]
    assert [dict(step.dropped) for step in joined.flow.steps] == [
        {},
        {"no image metadata": ("P6",)},
        {"eye tracking discarded": ("P4",)},
        {"several stays hold its time": ("P2",), "its subject has no stay": ("P5",)},
    ]
    assert joined.flow.notes == ("6 readings of 5 images became 2 of 2",)
    assert joined.boxes is not None
    assert joined.boxes["id"].tolist() == ["P3", "P3", "P1"]


def test_the_join_repairs_units_when_asked():
    joined = join_all(**small_mimic(), repair=True)
    np.testing.assert_allclose(joined.table["temperature"], [98.6, 99.0])
    assert joined.table["pain"].tolist() == [2, 10]
    assert joined.repairs["temperature_celsius"] == joined.repairs["pain_clipped"] == 1


def test_a_reading_whose_image_belongs_to_another_subject_is_refused():
    tables = small_mimic()
    tables["reflacx"].loc[0, "subject_id"] = 2
    with pytest.raises(ValueError, match="reading P1 names subject 2, its image d1 in cxr another"):
        join_all(**tables)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("reflacx", "dicom_id"), ("cxr", "StudyTime"), ("patients", "anchor_age")),
        *(("edstays", "outtime"), ("triage", "acuity"), ("ellipses", "xmax")),
    ],
)
def test_a_missing_column_is_named_with_its_table_and_file(name, column, tmp_path):
    tables = small_mimic()
    path = tmp_path / f"{name}.csv"
    tables[name].drop(columns=column).to_csv(path, index=False)
    expected = rf"{name} \({re.escape(str(path))}\): no column '{column}'; it has '"
    with pytest.raises(ValueError, match=expected):
        read_table(path, name)
    tables[name] = tables[name].drop(columns=column)
    with pytest.raises(ValueError, match=rf"{name}: no column '{column}'"):
        join_all(**tables)


def write_reflacx(folder: Path, reflacx, ellipses):
    for phase, rows in ((1, reflacx.iloc[:2]), (2, reflacx.iloc[2:])):
        rows.to_csv(folder / f"metadata_phase_{phase}.csv", index=False)
    for reading in reflacx["id"]:
        (folder / reading).mkdir()
        own = ellipses[ellipses["id"] == reading].drop(columns="id")
        own.to_csv(folder / reading / "anomaly_location_ellipses.csv", index=False)


def test_tables_read_from_files_join_like_those_in_memory(tmp_path):
    tables = small_mimic()
    expected = join_all(**tables)
    for name in ("cxr", "patients", "edstays", "triage"):
        tables[name].to_csv(tmp_path / f"{name}.csv.gz", index=False)
        tables[name] = read_table(tmp_path / f"{name}.csv.gz", name)
    (tmp_path / "main_data").mkdir()
    write_reflacx(tmp_path / "main_data", tables["reflacx"], tables["ellipses"])
    tables["reflacx"], tables["ellipses"] = read_reflacx(tmp_path / "main_data")
    assert tables["reflacx"]["phase"].tolist() == [1, 1, 2, 2, 2, 2]
    found = join_all(**tables)
    pd.testing.assert_frame_equal(found.table, expected.table, check_dtype=False)
    assert found.flow == expected.flow
    assert found.boxes is not None
    assert expected.boxes is not None
    columns = ["id", "x0", "y0", "x1", "y1", "class"]
    assert sorted(found.boxes[columns].to_numpy().tolist()) == sorted(expected.boxes[columns].to_numpy().tolist())


def test_a_folder_without_reflacx_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metadata_phase_\*\.csv. Give the folder main_data"):
        read_reflacx(tmp_path)


def test_a_damaged_table_is_one_kind_of_error(tmp_path):
    path = tmp_path / "triage.csv.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(UnreadableFile, match=r"triage\.csv\.gz: is no CSV table .*Download the triage table again"):
        read_table(path, "triage")
    empty = tmp_path / "edstays.csv"
    empty.write_text("")
    with pytest.raises(UnreadableFile, match=r"edstays\.csv: is no CSV table"):
        read_table(empty, "edstays")


def test_a_reading_without_or_with_damaged_ellipses_is_named(tmp_path):
    tables = small_mimic()
    write_reflacx(tmp_path, tables["reflacx"], tables["ellipses"])
    file = tmp_path / "P4" / "anomaly_location_ellipses.csv"
    file.write_bytes(b"")
    with pytest.raises(UnreadableFile, match=r"P4.anomaly_location_ellipses\.csv: is no CSV table"):
        read_reflacx(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"P4.anomaly_location_ellipses\.csv is missing; expected the ellipses"):
        read_reflacx(tmp_path)


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table 'vitals' is not known; expected one of patients"):
        read_table(tmp_path / "vitals.csv", "vitals")


def test_counts_of_the_published_join_come_out_of_tables_of_that_size():
    """3,052 readings of 2,616 images; 670 readings of 590 images of 540 patients stay."""
    images = np.arange(2616)
    readings = np.concatenate([np.arange(590), np.arange(80), np.arange(590, 2616), np.arange(590, 946)])
    assert len(readings) == 3052
    # The first 590 images are of 540 patients and lie in a stay; the others are of patients without one, and of their
    # readings some have no eye tracking.
    subject = np.where(images < 590, images % 540, 1000 + images)
    cxr = pd.DataFrame(
        {
            "dicom_id": [f"d{i}" for i in images], "subject_id": subject, "study_id": images,
            "StudyDate": 21800101, "StudyTime": 93000.0, "ViewPosition": "AP",
        }
    )  # fmt: skip
    edstays = stays(*((s, 5000 + s, "2180-01-01 08:00", "2180-01-01 12:00") for s in range(540)))
    reflacx = pd.DataFrame(
        {
            "id": [f"P{i}" for i in range(3052)], "dicom_id": [f"d{i}" for i in readings],
            "subject_id": subject[readings], "eye_tracking_data_discarded": np.arange(3052) > 3000,
            "image_size_x": 1, "image_size_y": 1, **dict.fromkeys(ABNORMALITIES, 0),
        }
    )  # fmt: skip
    patients = pd.DataFrame({"subject_id": np.unique(subject), "gender": "F", "anchor_age": 50, "anchor_year": 2180})
    triage = triage_table(sbp=[120.0] * 540).assign(stay_id=5000 + np.arange(540))
    joined = join_all(reflacx=reflacx, cxr=cxr, patients=patients, edstays=edstays, triage=triage)
    assert [step.cases for step in joined.flow.steps] == [3052, 3052, 3001, 670]
    assert joined.flow.steps[-1].patients == 540
    assert joined.flow.notes == ("3052 readings of 2616 images became 670 of 590",)
    assert joined.boxes is None


# The open demo of MIMIC-IV


@pytest.fixture(scope="module")
def demo():
    folder = real_data("mimic_iv_demo")
    return {name: read_table(folder / f"{name}.csv", name) for name in ("patients", "transfers")}


def test_emergency_stays_of_the_demo_come_from_its_transfers(demo):
    edstays = ed_stays_from_transfers(demo["transfers"])
    assert len(edstays) == 236
    assert edstays["stay_id"].is_unique
    assert "transfers.csv" in edstays.attrs["file"]


def test_times_in_the_middle_of_the_demo_stays_find_them(demo):
    edstays = ed_stays_from_transfers(demo["transfers"])
    start, end = pd.to_datetime(edstays["intime"]), pd.to_datetime(edstays["outtime"])
    middle = edstays[["subject_id"]].assign(study_time=start + (end - start) / 2)
    found = match_stay(middle, edstays)
    assert np.all(found["match"] == "within")
    assert np.all(found["stay_id"] == edstays["stay_id"])
    # A stay ends where the next one begins when the patient moved within the emergency department.
    touching = match_stay(edstays[["subject_id"]].assign(study_time=end), edstays)
    assert np.all(touching["match"] == "outside")
    before = match_stay(
        edstays[["subject_id"]].assign(study_time=start - pd.Timedelta(hours=2)), edstays, tolerance_days=1
    )
    assert np.all(before["match"].isin(["nearest", "within"]))


def test_ages_of_the_demo_at_their_stays_are_those_of_adults(demo):
    edstays = ed_stays_from_transfers(demo["transfers"])
    ages = age_at_exam(demo["patients"], edstays["subject_id"], pd.to_datetime(edstays["intime"]))
    assert ages.notna().all()
    assert ages.min() >= 18
    assert ages.max() < 110
    subject = edstays["subject_id"][0]
    person = demo["patients"].set_index("subject_id").loc[subject]
    assert ages[0] == person["anchor_age"] + int(edstays["intime"][0][:4]) - person["anchor_year"]


# Ids and zones


def test_missing_subjects_are_not_one_subject():
    edstays = stays((None, 70, "2180-01-01 08:00", "2180-01-01 12:00"), (7, 71, "2180-01-01 08:00", "2180-01-01 12:00"))
    found = match_stay(xrays((None, "2180-01-01 09:00"), (7, "2180-01-01 09:00")), edstays, tolerance_days=3)
    assert found["match"].tolist() == ["no stay", "within"]
    assert found["stay_id"].isna().tolist() == [True, False]


def test_subjects_as_text_here_and_numbers_there_are_refused():
    edstays = stays((7, 70, "2180-01-01 08:00", "2180-01-01 12:00"))
    with pytest.raises(ValueError, match="subject_id is '7' in one and 7 in the other"):
        match_stay(xrays(("7", "2180-01-01 09:00")), edstays)
    triage = pd.DataFrame({"stay_id": [70], **NO_VITALS})
    with pytest.raises(ValueError, match="stay_id is '70' in one and 70 in the other"):
        join_triage(pd.DataFrame({"stay_id": ["70"]}), triage)


@pytest.mark.parametrize("time", ["2180-01-01 09:30:00+05:00", "2180-01-01T09:30:00Z", "2180-01-01 09:30:00.5-0800"])
def test_times_with_a_zone_are_refused(time):
    """As UTC beside times without a zone they would lie hours away, outside the stay."""
    edstays = stays((7, 70, "2180-01-01 08:00", "2180-01-01 12:00"))
    for taken in (time, pd.Timestamp(time)):
        cxr = pd.DataFrame({"subject_id": [7], "study_time": [taken]})
        with pytest.raises(ValueError, match=r"column 'study_time' holds .* in row 0 .*without a zone"):
            match_stay(cxr, edstays)


def test_training_rows_are_true_or_false_and_no_positions():
    unchecked = inspect.unwrap(fill_missing)  # without the tests' own check of annotations
    with pytest.raises(TypeError, match="training holds int64; expected True or False"):
        unchecked(pd.DataFrame({"sbp": [100.0, 200.0, np.nan]}), ["sbp"], training=np.array([0, 0, 1]))
