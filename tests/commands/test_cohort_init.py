"""`fusion-jax cohort init` from end to end: what it writes, says and refuses."""

import csv
import tomllib

import numpy as np
import pandas as pd
import pytest

from fusion_jax.commands.main import main
from fusion_jax.data.folder import open_cohort
from fusion_jax.records import write_text
from tests.data.exports import RULES, UID, write_series, write_study
from tests.data.folders import edit, write_folder
from tests.data.readers.conftest import save, seg


@pytest.fixture
def init(capsys):
    """Exit code, standard output and standard error of the command."""

    def ask(*words):
        code = main(["cohort", "init", *map(str, words)])
        answer = capsys.readouterr()
        return code, answer.out, answer.err

    return ask


@pytest.fixture
def folder(tmp_path):
    """A folder as a researcher has it: a table and images, no cohort.toml."""
    folder = write_folder(tmp_path / "study")
    (folder / "cohort.toml").unlink()
    return folder


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Table and images


def test_the_written_cohort_opens_at_once(init, folder):
    code, out, err = init(folder / "cases.csv", folder, "--label", "malignant")
    assert (code, err) == (0, "")
    assert "Ids: case case_id, patient patient, site hospital." in out
    assert "Sources: image, mask, clinical." in out
    assert f"It opens: 8 cases of 8 patients. Next: fusion-jax cohort check {folder}" in out
    cohort = open_cohort(folder)
    assert cohort.classes == ("no", "yes")
    assert cohort.role("name") == "never"


def test_a_table_alone(init, folder):
    code, out, _ = init(folder / "cases.csv", "--label", "malignant")
    assert code == 0
    assert "Sources: clinical." in out


def test_without_a_label_the_candidates_are_named(init, folder):
    code, out, _ = init(folder / "cases.csv", folder)
    assert code == 0
    assert "  - no label: name one with --label (columns that could be: malignant, " in out
    assert '# label = ["malignant"]' in (folder / "cohort.toml").read_text(encoding="utf-8")


def test_an_existing_file_is_not_replaced_unasked(init, folder):
    init(folder / "cases.csv", folder, "--label", "malignant")
    edit(folder / "cohort.toml", 'name = "study"', 'name = "mine"')
    before = (folder / "cohort.toml").read_bytes()
    code, out, err = init(folder / "cases.csv", folder)
    assert (code, out) == (2, "")
    assert "cohort.toml exists. Keep what it says with --update, replace it with --force" in err
    assert (folder / "cohort.toml").read_bytes() == before
    assert init(folder / "cases.csv", folder, "--force")[0] == 0
    assert open_cohort(folder).name == "study"


def test_update_asks_nothing_twice(init, folder):
    init(folder / "cases.csv", folder, "--label", "malignant")
    edit(folder / "cohort.toml", 'name = "study"', 'name = "mine"')
    edit(folder / "cohort.toml", 'age = ""', 'age = "years"')
    edit(folder / "cohort.toml", "# age", "age")
    before = (folder / "cohort.toml").read_bytes()
    code, out, _ = init(folder / "cases.csv", folder, "--update")
    assert code == 0
    assert "the former one is cohort.toml.bak" in out
    assert (folder / "cohort.toml.bak").read_bytes() == before
    content = tomllib.loads((folder / "cohort.toml").read_text(encoding="utf-8"))
    assert content == tomllib.loads(before.decode())
    assert "units unknown" not in out


def test_update_without_a_former_file_writes_the_first(init, folder):
    assert init(folder / "cases.csv", folder, "--update")[0] == 0


def test_out_leaves_the_folder_of_the_table_alone(init, folder, tmp_path):
    code, _, _ = init(folder / "cases.csv", folder / "images", "--out", tmp_path / "new" / "cohort")
    assert code == 0
    assert not (folder / "cohort.toml").exists()
    assert len(open_cohort(tmp_path / "new" / "cohort")) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "malignent"], "no column 'malignent' (--label). Did you mean 'malignant'?"),
        (["--case", "hospital"], "stands in several rows"),
        (["--update", "--force"], "--update and --force are both given"),
        (["--rules", "rules.toml"], "--rules is given without --id-map CSV"),
        (["--id-map", "ids.csv"], "--id-map is given without --rules TOML"),
        (["--rules", "r.toml", "--id-map", "i.csv"], "--rules is given and no folder"),
    ],
)
def test_options_that_cannot_be_used(init, folder, options, message):
    code, _, err = init(folder / "cases.csv", *options)
    assert code == 2
    assert message in err
    assert not (folder / "cohort.toml").exists()


def test_images_of_other_cases_are_refused(init, folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "images" / "c001.png").rename(tmp_path / "other" / "C001.png")
    code, _, err = init(folder / "cases.csv", tmp_path / "other")
    assert code == 2
    assert "none of 1 image files is named after a case" in err
    assert "they differ in capital letters" in err
    assert not (folder / "cohort.toml").exists()


def test_a_cohort_that_does_not_open_yet_says_why(init, folder):
    for path in (folder / "images").iterdir():
        if path.name > "c002.png":
            path.unlink()
    write_text(folder / "cases.csv", "case_id,died\n" + "".join(f"c{n:03d},{n % 2}\n" for n in range(8)))
    code, out, _ = init(folder / "cases.csv", folder / "images", "--label", "died")
    assert code == 1
    assert "image is missing in 5 cases: c003, c004" in out
    assert "The cohort does not open yet: " in out
    assert "case c003 has no source at all (5 such cases)" in out


# Scanner exports


def test_an_export_becomes_a_cohort(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study")
    out_folder = tmp_path / "cohort"
    words = (table, export, "--rules", rules, "--id-map", ids, "--out", out_folder, "--label", "died")
    code, out, err = init(*words)
    assert (code, err) == (0, ""), out
    assert "ct: chosen for 2 of 2 cases" in out
    assert "Absent, not required (unmatched.csv): 1\n  c2 pet: 3 series of patient 'PAT-B', 0 with modality PT" in out
    assert "pet: PET is read as activity; for SUV write options = {suv = true}" in out
    assert "# 1 of 2 cases have it\n[sources.pet]" in (out_folder / "cohort.toml").read_text(encoding="utf-8")
    assert "Patients of the export that no case took a series from: 'PAT-C'" in out
    cohort = open_cohort(out_folder)
    assert cohort.case_id == ("c1", "c2")
    assert (cohort.columns("input"), cohort.classes) == (("age_years",), ("0", "1"))
    image = cohort.image("ct", 0)
    assert image.unit == "HU"
    # The value of a series is its number: 3 is the portal venous one with the soft kernel, 7 the nearer study.
    assert sorted(set(image.values.ravel().tolist())) == [1003 - 1024 + k for k in range(4)]
    assert cohort.image("ct", 1).values.min() == 1007 - 1024
    mask = cohort.image("tumour", 0).values
    assert (mask.shape, int(mask.sum())) == (image.values.shape, 6 * 8)
    assert cohort.present["pet"].tolist() == [True, False]
    chosen = rows_of(out_folder / "series.csv")
    assert [(row["case_id"], row["source"], row["region"]) for row in chosen] == [
        ("c1", "ct", ""),
        ("c1", "pet", ""),
        ("c1", "tumour", "GTV"),
        ("c2", "ct", ""),
        ("c2", "tumour", "GTV"),
    ]
    assert rows_of(out_folder / "unreadable.csv")[0]["file"] == "readme.txt"
    assert rows_of(out_folder / "ambiguous.csv") == []
    assert len(rows_of(out_folder / "inventory.csv")) == 11
    # Cells of the table are as they were written.
    assert [row["age_years"] for row in rows_of(out_folder / "cases.csv")] == ["61", "055"]


@pytest.mark.parametrize("suffix", [".xlsx", ".parquet"])
def test_tables_of_excel_and_parquet(init, tmp_path, suffix):
    table, export, rules, ids = write_study(tmp_path / "study")
    cells = pd.read_csv(table, dtype={"age_years": int}, parse_dates=["ct_date"])
    other = table.with_suffix(suffix)
    cells.to_excel(other, index=False) if suffix == ".xlsx" else cells.to_parquet(other)
    words = (other, export, "--rules", rules, "--id-map", ids, "--out", tmp_path / "cohort", "--label", "died")
    code, out, err = init(*words)
    assert (code, err) == (0, ""), out
    cohort = open_cohort(tmp_path / "cohort")
    assert (cohort.case_id, cohort.table["age_years"].tolist()) == (("c1", "c2"), [61, 55])


def test_cases_left_open_are_listed_and_the_code_is_1(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study", cases=4)
    edit(rules, 'kernel = "B30"\n', "")
    out_folder = tmp_path / "cohort"
    code, out, _ = init(table, export, "--rules", rules, "--id-map", ids, "--out", out_folder)
    assert code == 1
    assert "Ambiguous (ambiguous.csv): 1\n  c1 ct: 2 series left; they differ in series number ('3', '4')" in out
    assert "c3 ct: 1 series of patient 'PAT-C', 1 with modality CT, 0 with a description like" in out
    assert "c4 ct: the id map does not name the case" in out
    assert "The cohort does not open yet" in out
    assert {row["case_id"] for row in rows_of(out_folder / "unmatched.csv")} == {"c1", "c2", "c3", "c4"}
    assert [row["kernel"] for row in rows_of(out_folder / "ambiguous.csv")] == ["B30f", "B70f"]
    assert [row["case_id"] for row in rows_of(out_folder / "cases.csv")] == ["c1", "c2", "c3", "c4"]


def test_a_case_left_open_counts_even_where_the_cohort_leaves_it_out(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study", cases=3)
    words = (table, export, "--rules", rules, "--id-map", ids, "--out", tmp_path / "cohort")
    assert init(*words)[0] == 1
    with (tmp_path / "cohort" / "cohort.toml").open("a", encoding="utf-8") as file:
        file.write('\n[[exclude]]\nrule = "age_years == 70"\nreason = "no portal venous phase"\n')
    code, out, _ = init(*words, "--update")
    assert "It opens: 2 cases of 2 patients." in out
    assert "c3 ct: 1 series of patient 'PAT-C'" in out
    assert code == 1


def test_cases_of_one_patient_of_the_export_must_be_one_patient_of_the_table(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study")
    edit(ids, "c2,PAT-B", "c2,PAT-A")
    edit(table, "2020-02-25", "2020-01-14")
    words = ("--rules", rules, "--id-map", ids, "--label", "died")
    code, out, _ = init(table, export, *words, "--out", tmp_path / "cohort")
    assert "'PAT-A' of the export is one patient, and 2 in the table: c1, c2. Splits would part them." in out
    assert code == 1
    for case, age in (("c1", "61"), ("c2", "055")):
        edit(table, f"{case},{age}", f"{case},{age},p1")
    edit(table, "age_years", "age_years,patient")
    code, out, _ = init(table, export, *words, "--out", tmp_path / "second")
    assert (code, "Splits would part them" in out) == (0, False), out


def test_rules_once_corrected_update_the_cohort_and_keep_its_answers(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study")
    out_folder = tmp_path / "cohort"
    words = (table, export, "--rules", rules, "--id-map", ids, "--out", out_folder, "--label", "died")
    assert init(*words)[0] == 0
    edit(
        out_folder / "cohort.toml",
        "[sources.ct]\n",
        '[sources.ct]\npreprocess = [{op = "window", low = -50, high = 0}]\n',
    )
    edit(rules, 'kernel = "B30"', 'kernel = "B70"')
    edit(rules, 'region = "GTV"', 'region = "GTV"\nrequired = false')
    write_series(export / "B" / "third", 9, patient="PAT-B", date="20200301", kernel="B70f")
    assert init(*words)[0] == 2
    code, _, _ = init(*words, "--update")
    assert code == 0
    cohort = open_cohort(out_folder)
    assert cohort.image("ct", 0).values.max() <= 1
    assert not cohort.present["tumour"].any()
    assert f"{UID}9.9" in (out_folder / "cases.csv").read_text(encoding="utf-8")


def test_an_export_without_rules_gets_an_inventory_and_the_way_on(init, tmp_path):
    table, export, _, _ = write_study(tmp_path / "study")
    code, out, _ = init(table, export)
    assert code == 1
    assert "it holds DICOM: 29 DICOM files, 11 series of 3 patients" in out
    assert "--rules rules.toml --id-map ids.csv" in out
    assert len(rows_of(table.parent / "inventory.csv")) == 11
    assert not (table.parent / "cohort.toml").exists()


def test_the_table_of_the_study_is_never_replaced(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path)
    table = table.rename(tmp_path / "cases.csv")
    before = table.read_bytes()
    code, _, err = init(table, export, "--rules", rules, "--id-map", ids, "--force")
    assert code == 2
    assert "would be replaced by the table with paths" in err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('nearest = "ct_date"', 'nearest = "date_of_ct"', "no column 'date_of_ct' (`nearest` of the rules)"),
        ('nearest = "ct_date"', 'nearest = "died"', "expected a date such as 2020-01-31"),
        ('modality = "CT"', "", "series.ct: no `modality`"),
    ],
)
def test_rules_that_do_not_fit_the_table(init, tmp_path, old, new, message):
    table, export, rules, ids = write_study(tmp_path / "study")
    write_text(rules, RULES.replace(old, new))
    write_text(table, table.read_text().replace(",0\n", ",alive\n").replace(",1\n", ",dead\n"))
    code, _, err = init(table, export, "--rules", rules, "--id-map", ids, "--out", tmp_path / "cohort")
    assert code == 2
    assert message in err
    assert not (tmp_path / "cohort").exists()


def test_a_dicom_segmentation_on_the_chosen_series(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study")
    for case, (patient, number, date) in {"A": ("PAT-A", 3, "20200110"), "B": ("PAT-B", 7, "20200301")}.items():
        frames = np.zeros((2, 20, 20), np.uint8)
        frames[:, 3:7, 5:11] = 1
        found = seg(frames, [(1, (0.0, 0.0, 2.0)), (1, (0.0, 0.0, 4.0))])
        found.PatientID, found.StudyDate, found.SeriesInstanceUID = patient, date, f"{UID}4.{number}"
        found.FrameOfReferenceUID = f"{UID}7.{number}"
        save(export / case / "seg" / "seg.dcm", found)
    write_text(rules, RULES.replace('modality = "RTSTRUCT"', 'modality = "SEG"').replace('"GTV"', '"region 1"'))
    code, out, _ = init(table, export, "--rules", rules, "--id-map", ids, "--out", tmp_path / "cohort")
    assert code == 0, out
    cohort = open_cohort(tmp_path / "cohort")
    mask = cohort.image("tumour", 1).values
    assert (mask.shape, int(mask.sum())) == (cohort.image("ct", 1).values.shape, 2 * 4 * 6)


def test_radiographs_are_read_file_by_file(init, tmp_path):
    table, export, rules, ids = write_study(tmp_path / "study")
    write_series(export / "B", 9, patient="PAT-B", description="scout", slices=1)
    write_text(rules, '[series.scout]\nmodality = "CT"\nmax_slices = 1\n')
    code, _, _ = init(table, export, "--rules", rules, "--id-map", ids, "--out", tmp_path / "cohort")
    assert code == 0
    cohort = open_cohort(tmp_path / "cohort")
    np.testing.assert_array_equal(cohort.image("scout", 1).values, np.full((20, 20, 1), 1009.0 - 1024))
