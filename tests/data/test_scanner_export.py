import datetime as dt
import re

import pytest

from fusion_jax.data.scanner_export import (
    Rule,
    Subject,
    case_columns,
    inventory,
    inventory_rows,
    open_rows,
    read_id_map,
    read_rules,
    select_series,
    source_tables,
)
from tests.data.exports import RULES, write_export, write_regions, write_series

IDS = {"c1": Subject("PAT-A"), "c2": Subject("PAT-B"), "c3": Subject("PAT-C")}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return inventory(write_export(tmp_path_factory.mktemp("export")))


def select(export, *rules, case="c1", ids=IDS, **dates):
    return select_series(export, [case], ids, rules, {name: {case: date} for name, date in dates.items()})


# Inventory


def test_the_inventory_tells_series_apart_within_one_folder(export):
    found = [(s.patient_id, s.modality, s.series_number, s.kernel, s.slices) for s in export.series]
    assert sorted(found) == sorted(
        [
            ("PAT-A", "CT", "1", "", 1),
            ("PAT-A", "CT", "2", "B30f", 4),
            ("PAT-A", "CT", "3", "B30f", 4),
            ("PAT-A", "CT", "4", "B70f", 4),
            ("PAT-A", "PT", "5", "", 4),
            ("PAT-A", "RTSTRUCT", "", "", 0),
            ("PAT-A", "RTSTRUCT", "", "", 0),
            ("PAT-B", "CT", "6", "B30f", 4),
            ("PAT-B", "CT", "7", "B30f", 4),
            ("PAT-B", "RTSTRUCT", "", "", 0),
            ("PAT-C", "CT", "8", "", 1),
        ]
    )
    portal = next(s for s in export.series if s.series_number == "3")
    assert (portal.study_date, portal.phase_seconds, portal.spacing) == ("2020-01-10", 70.0, (2.0, 1.0, 1.0))
    assert (portal.rows, portal.columns, portal.folders) == (20, 20, ("A",))
    assert portal.files == tuple(f"A/s03_{k:03d}.dcm" for k in range(4))


def test_regions_and_what_they_were_drawn_on_are_in_the_inventory(export):
    drawn = [s for s in export.series if s.modality == "RTSTRUCT"]
    assert {s.regions for s in drawn} == {("Heart", "GTV")}
    by_file = {s.files[0]: s for s in drawn}
    portal = next(s for s in export.series if s.series_number == "3")
    assert by_file["A/rs.dcm"].references == (portal.series_uid,)
    assert by_file["A/rs.dcm"].frame_of_reference == portal.frame_of_reference
    assert by_file["B/second/rs.dcm"].references == ()
    assert by_file["B/second/rs.dcm"].frame_of_reference != ""


def test_files_that_are_no_dicom_are_listed_and_a_dicomdir_is_passed_over(export):
    assert export.unreadable == (("readme.txt", "is no DICOM file (DICM is not at byte 128)"),)


def test_a_truncated_file_is_listed_and_the_rest_read(tmp_path):
    write_series(tmp_path, 1, patient="P")
    whole = (tmp_path / "s01_000.dcm").read_bytes()
    (tmp_path / "s01_000.dcm").write_bytes(whole[:150])
    found = inventory(tmp_path)
    assert [name for name, _ in found.unreadable] == ["s01_000.dcm"]
    assert found.series[0].slices == 3


def test_progress_counts_all_files(tmp_path):
    write_series(tmp_path, 1, patient="P")
    seen = []
    inventory(tmp_path, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(ValueError, match=r"1 files, none of them DICOM \(a\.txt is no DICOM file"):
        inventory(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        inventory(tmp_path / "absent")


def test_rows_of_the_inventory_are_flat_and_name_who_took_a_series(export):
    rows = inventory_rows(export, select(export, Rule("ct", "CT", kernel="B70")))
    [row] = [row for row in rows if row["chosen_for"]]
    assert (row["chosen_for"], row["files"], row["folder"], row["spacing"]) == ("c1 ct", 4, "A", "2 x 1 x 1")
    assert all(isinstance(cell, str | int | float | None) for row in rows for cell in row.values())


# Selection


def test_rules_pick_the_series(export):
    found = select(export, Rule("ct", "CT", description="(?i)portal", kernel="B30"))
    assert [(c.series.series_number, c.path, c.region) for c in found.chosen] == [("3", "A", None)]
    assert found.unmatched == found.ambiguous == ()


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        ({"phase_seconds": (20, 40)}, "2"),
        ({"max_slices": 1}, "1"),
        ({"min_slices": 4, "max_slices": 4, "kernel": "B70"}, "4"),
        ({"exclude": "(?i)scout|arterial", "kernel": "B30"}, "3"),
        ({"kernel": "B7"}, "4"),
        ({"min_slices": 2, "description": "^arterial$"}, "2"),
    ],
)
def test_every_rule_cuts_down(export, rule, number):
    [choice] = select(export, Rule("ct", "CT", **rule)).chosen
    assert choice.series.series_number == number


def test_several_series_are_ambiguous_with_what_tells_them_apart(export):
    found = select(export, Rule("ct", "CT", min_slices=2))
    assert found.chosen == ()
    [entry] = found.ambiguous
    assert len(entry.candidates) == 3
    assert entry.reason.startswith("3 series left; they differ in series number ('2', '3', '4'); description (")
    assert "kernel ('B30f', 'B70f')" in entry.reason
    assert open_rows([entry])["case_id"] == ["c1"] * 3


def test_a_rule_that_nothing_passes_says_where_the_last_were_lost(export):
    [entry] = select(export, Rule("ct", "CT", description="portal", kernel="B50")).unmatched
    assert entry.reason == (
        "7 series of patient 'PAT-A', 4 with modality CT, 1 with a description like 'portal', 0 with a kernel like "
        "'B50'; found 'B70f'"
    )


def test_a_rule_that_nothing_passes_says_what_there_is(export):
    [entry] = select(export, Rule("ct", "CT", description="Portal")).unmatched
    assert entry.reason.endswith("; found 'scout', 'arterial', 'PORTAL venous', 'portal venous'")
    [entry] = select(export, Rule("ct", "CT", min_slices=9)).unmatched
    assert entry.reason.endswith("0 with 9 to inf slices; found 1, 4")
    found = select(export, Rule("ct", "CT", description="PORTAL"), Rule("gtv", "RTSTRUCT", of="ct", region="Gtv"))
    assert found.unmatched[0].reason.endswith("0 with a region 'Gtv'; found 'Heart', 'GTV'")


def test_an_unknown_contrast_time_is_said_and_not_guessed(export):
    [entry] = select(export, Rule("pet", "PT", phase_seconds=(0, 100))).unmatched
    assert entry.reason.endswith("0 with the times of contrast agent and acquisition")


def test_ids_that_lead_nowhere_are_unmatched(export):
    [entry] = select(export, Rule("ct", "CT"), case="c9").unmatched
    assert entry.reason == "the id map does not name the case"
    [entry] = select(export, Rule("ct", "CT"), ids={"c1": Subject("PAT-Z")}).unmatched
    assert entry.reason == "the export has no patient 'PAT-Z'"
    [entry] = select(export, Rule("ct", "CT"), ids={"c1": Subject("PAT-A", "2019-01-01")}).unmatched
    assert entry.reason == "patient 'PAT-A' has no study of 2019-01-01"


def test_the_map_may_name_the_study(export):
    ids = {"c2": Subject("PAT-B", study_date="2020-02-01")}
    [choice] = select(export, Rule("ct", "CT"), case="c2", ids=ids).chosen
    assert choice.series.series_number == "6"


def test_the_study_nearest_to_a_date_is_taken(export):
    rule = Rule("ct", "CT", nearest="day")
    [choice] = select(export, rule, case="c2", day=dt.date(2020, 2, 20)).chosen
    assert choice.series.series_number == "7"
    [choice] = select(export, rule, case="c2", day=dt.date(2020, 2, 10)).chosen
    assert choice.series.series_number == "6"


def test_two_studies_at_the_same_distance_are_ambiguous(tmp_path):
    write_series(tmp_path / "a", 1, patient="P", date="20200101")
    write_series(tmp_path / "b", 2, patient="P", date="20200105")
    rule = Rule("ct", "CT", nearest="day")
    found = select(inventory(tmp_path), rule, ids={"c1": Subject("P")}, day=dt.date(2020, 1, 3))
    assert "study date ('2020-01-01', '2020-01-05')" in found.ambiguous[0].reason


@pytest.mark.parametrize(("days", "chosen"), [(10, 1), (9, 0)])
def test_the_limit_in_days_includes_its_last_day(export, days, chosen):
    rule = Rule("ct", "CT", nearest="day", within_days=days)
    assert len(select(export, rule, case="c2", day=dt.date(2020, 2, 20)).chosen) == chosen


def test_a_case_without_its_date_is_unmatched(export):
    [entry] = select(export, Rule("ct", "CT", nearest="day"), day=None).unmatched
    assert entry.reason == "no date in column 'day'"
    with pytest.raises(ValueError, match="nearest is 'day'; expected a column of the table with dates"):
        select(export, Rule("ct", "CT", nearest="day"))


def test_regions_belong_to_the_chosen_series(export):
    rules = Rule("ct", "CT", description="PORTAL"), Rule("gtv", "RTSTRUCT", of="ct", region="GTV")
    choice = select(export, *rules).chosen[1]
    assert (choice.path, choice.region) == ("A/rs.dcm", "GTV")
    rules = Rule("ct", "CT", description="arterial"), Rule("gtv", "RTSTRUCT", of="ct", pattern="^gtv")
    assert select(export, *rules).chosen[1].path == "A/rs_old.dcm"


def test_regions_without_references_go_by_the_frame_of_reference(export):
    rules = Rule("ct", "CT", nearest="day"), Rule("gtv", "RTSTRUCT", of="ct", region="GTV")
    assert select(export, *rules, case="c2", day=dt.date(2020, 3, 1)).chosen[1].path == "B/second/rs.dcm"
    [entry] = select(export, *rules, case="c2", day=dt.date(2020, 2, 1)).unmatched
    assert entry.reason.endswith("0 drawn on the series of ct")


def test_regions_wait_for_their_image(export):
    rules = Rule("ct", "CT", description="nothing"), Rule("gtv", "RTSTRUCT", of="ct", region="GTV")
    assert select(export, *rules).unmatched[1].reason == "no series was chosen for ct, which it must have been drawn on"


def test_a_pattern_of_several_regions_is_ambiguous(tmp_path):
    write_series(tmp_path, 1, patient="P")
    write_regions(tmp_path / "rs.dcm", 1, patient="P", names=("GTV mass", "GTV oedema"))
    rules = Rule("ct", "CT"), Rule("gtv", "RTSTRUCT", of="ct", pattern="gtv")
    found = select(inventory(tmp_path), *rules, ids={"c1": Subject("P")})
    assert found.ambiguous[0].reason == "2 regions like 'gtv': 'GTV mass', 'GTV oedema'"


def test_two_structure_sets_on_one_series_are_ambiguous(tmp_path):
    write_series(tmp_path, 1, patient="P")
    for name in ("a.dcm", "b.dcm"):
        write_regions(tmp_path / name, 1, patient="P")
    rules = Rule("ct", "CT"), Rule("gtv", "RTSTRUCT", of="ct", region="GTV")
    found = select(inventory(tmp_path), *rules, ids={"c1": Subject("P")})
    assert len(found.ambiguous[0].candidates) == 2
    assert "nothing in their headers tells them apart" in found.ambiguous[0].reason


def test_slices_in_several_folders_and_copies_are_not_chosen(tmp_path):
    write_series(tmp_path / "a", 1, patient="P")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "s01_003.dcm").rename(tmp_path / "b" / "s01_003.dcm")
    found = select(inventory(tmp_path), Rule("ct", "CT"), ids={"c1": Subject("P")})
    assert found.ambiguous[0].reason == "its slices lie in 2 folders (a, b). Put them into one"
    (tmp_path / "a" / "copy.dcm").write_bytes((tmp_path / "a" / "s01_000.dcm").read_bytes())
    found = select(inventory(tmp_path), Rule("ct", "CT"), ids={"c1": Subject("P")})
    assert found.ambiguous[0].reason == "5 files for 4 slices: some were exported twice. Remove the copies"


def test_every_source_of_every_case_is_in_one_of_the_three_lists(export):
    rules = Rule("ct", "CT", min_slices=2), Rule("pet", "PT"), Rule("gtv", "RTSTRUCT", of="ct", region="GTV")
    cases = ["c1", "c2", "c3", "c4"]
    found = select_series(export, cases, IDS, rules, {})
    keys = [(one.case_id, one.source) for part in found for one in part]
    assert sorted(keys) == sorted((case, rule.source) for case in cases for rule in rules)


def test_columns_and_sources_of_the_cohort(export):
    rules = Rule("ct", "CT", max_slices=1), Rule("pet", "PT", required=False, options={"suv": True})
    found = select_series(export, ["c3", "c1"], IDS, rules, {})
    columns = case_columns(found, ["c3", "c1"], rules)
    assert columns["ct_path"] == ["C/s08_000.dcm", "A/s01_000.dcm"]
    assert columns["pet_path"] == [None, "A/pet"]
    tables = source_tables(found, rules, "../export")
    assert tables["ct"] == {"column": "ct_path", "root": "../export"}
    assert tables["pet"] == {
        "column": "pet_path",
        "root": "../export",
        "reader": "dicom_series",
        "options": {"series": "{pet_series}", "suv": True},
        "required": False,
    }


# Rules and id map


def test_rules_from_toml(tmp_path):
    (tmp_path / "rules.toml").write_text(RULES)
    ct, pet, tumour = read_rules(tmp_path / "rules.toml")
    assert (ct.source, ct.phase_seconds, ct.nearest, ct.within_days) == ("ct", (50, 80), "ct_date", 30)
    assert (pet.source, pet.required, tumour.source, tumour.of) == ("pet", False, "tumour", "ct")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[series.ct]\nmodality = 3", "series.ct: `modality` is 3; expected text"),
        ("[series.ct]\ndescription = 'x'", "series.ct: no `modality`"),
        ("[series.ct]\nmodality = 'CT'\nslices = 3", "unknown key 'slices'; expected modality, description"),
        ("[series.ct]\nmodality = 'CT'\ndescription = '('", "series.ct: description is '(', no regular expression"),
        ("[series.ct]\nmodality = 'CT'\nwithin_days = 3", "`within_days` without `nearest`"),
        ("[series.ct]\nmodality = 'CT'\nphase_seconds = [80, 50]", "expected the smaller number first"),
        ("[series.ct]\nmodality = 'CT'\nphase_seconds = [80]", "expected two numbers"),
        ("[series.ct]\nmodality = 'CT'\nmin_slices = true", "expected a whole number"),
        ("[series.ct]\nmodality = 'CT'\nregion = 'GTV'", "regions are of RTSTRUCT and SEG"),
        ("[series.m]\nmodality = 'RTSTRUCT'\nregion = 'GTV'", "expected `of` = the source they were drawn on"),
        ("[series.m]\nmodality = 'RTSTRUCT'\nof = 'ct'\nregion = 'GTV'", "`of` names 'ct'; expected one of no image"),
        ("[series.ct]\nmodality = 'CT'\n[series.m]\nmodality = 'SEG'\nof = 'ct'", "expected one of them to choose"),
        ("name = 3", "found name; expected tables [series.NAME]"),
        ("[series.ct", "no TOML in UTF-8"),
    ],
)
def test_rules_that_cannot_be_used_name_the_key(tmp_path, text, message):
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_rules(tmp_path / "rules.toml")
    assert "rules.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,dicom_patient_id\na,b\n", "no column 'case_id'; it has case, dicom_patient_id"),
        ("case_id,dicom_patient_id,note\na,b,c\n", "unknown column 'note'"),
        ("case_id,dicom_patient_id\na,b\na,c\n", "case_id 'a' stands there twice, again in row 3"),
        ("case_id,dicom_patient_id\na,\n", "row 2 has no dicom_patient_id"),
        ("case_id,dicom_patient_id,study_date\na,b,31.1.2020\n", "study_date is '31.1.2020' in row 2"),
    ],
)
def test_id_maps_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "ids.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_id_map(tmp_path / "ids.csv")


def test_ids_stay_as_they_are_written(tmp_path):
    (tmp_path / "ids.csv").write_text("case_id,dicom_patient_id,study_date,accession\n007,0042,2020-01-31,0009\n")
    assert read_id_map(tmp_path / "ids.csv") == {"007": Subject("0042", "2020-01-31", "0009")}
