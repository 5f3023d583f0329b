import re
import string
import tomllib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from fusion_jax.data.folder import open_cohort
from fusion_jax.data.sketch import Answers, NoFiles, find_ids, find_sources, look_at_columns, match_files, sketch_cohort
from fusion_jax.data.sketch.write import toml
from fusion_jax.data.tables import read_table
from tests.data.folders import write_folder
from tests.data.readers.conftest import write_slices
from tests.helpers import real_data


def columns_of(cells, *, label=None, case="id"):
    """Columns by name, of a table given as name to cells; an id is added."""
    rows = len(next(iter(cells.values())))
    table = pd.DataFrame({case: [f"c{row:03d}" for row in range(rows)], **cells})
    written = table.astype(object).map(lambda cell: None if pd.isna(cell) else str(cell))
    ids = find_ids(written, where="cases.csv")
    labels = [] if label is None else [label]
    return {column.name: column for column in look_at_columns(table, written, ids, labels=labels, where="cases.csv")}


def ids_of(**cells):
    return find_ids(pd.DataFrame(cells), where="cases.csv")


# Ids


@pytest.mark.parametrize(
    ("cells", "case", "patient"),
    [
        ({"case_id": ["a", "b"], "patient_id": ["p", "p"]}, "case_id", "patient_id"),
        ({"patient_id": ["a", "b"], "age": ["1", "2"]}, "patient_id", "patient_id"),
        ({"subject_id": ["p", "p"], "study_id": ["a", "b"]}, "study_id", "subject_id"),
        ({"Patient ID": ["a", "b"], "studyId": ["c", "d"]}, "studyId", "Patient ID"),
        ({"hadm_id": ["a", "b"], "subject_id": ["p", "p"]}, "hadm_id", "subject_id"),
        ({"ID": ["a", "b"], "name": ["c", "d"]}, "ID", "ID"),
    ],
)
def test_ids_go_by_names_and_cells(cells, case, patient):
    assert ids_of(**cells)[:2] == (case, patient)


def test_the_column_that_files_are_named_after_is_the_case():
    table = pd.DataFrame({"case_id": ["1", "2"], "scan_id": ["x1", "x2"]})
    found = find_ids(table, where="cases.csv", matched=lambda ids: sum(one.startswith("x") for one in ids))
    assert found.case == "scan_id"
    assert "2 files are named after it" in found.reasons["case"]


def test_a_site_needs_a_name_that_is_only_that():
    assert ids_of(id=["a", "b"], hospital=["x", "y"]).site == "hospital"
    assert ids_of(id=["a", "b"], site_of_primary_sts=["x", "y"]).site is None
    assert ids_of(id=["a", "b"], hospital=["x", "x"]).site is None
    both = ids_of(id=["a", "b"], hospital=["x", "y"], center_id=["x", "y"])
    assert both.site is None
    assert "name one with --site" in both.reasons["site"]


def test_no_patient_column_is_said():
    assert "CHECK THIS" in ids_of(case_id=["a", "b"]).reasons["patient"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"patient_id": ["p", "p"], "x": ["1", "2"]}, "found patient_id (1 different in 2 rows)"),
        ({"age": ["1", "2"]}, "Different in every row: age. Name it with --case"),
        ({"image_id": ["a", "b"], "study_id": ["c", "d"]}, "image_id, study_id may all be the case"),
        ({"id": ["a", "b"], "patient": ["c", "c"], "subject": ["d", "d"]}, "patient, subject may all be the patient"),
        ({"id": ["a", "b"], "patient": ["c", None]}, "looks like the patient and is empty in 1 rows"),
    ],
)
def test_ids_that_cannot_be_told_are_not_guessed(cells, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ids_of(**cells)


def test_a_named_case_must_be_unique_and_there():
    table = pd.DataFrame({"id": ["a", "b"], "group": ["x", "x"], "gap": ["y", None]})
    with pytest.raises(ValueError, match=r"group 'x' stands in several rows \(1 different in 2 rows\)"):
        find_ids(table, where="cases.csv", case="group")
    with pytest.raises(ValueError, match="'gap' is empty in row 3"):
        find_ids(table, where="cases.csv", case="gap")
    with pytest.raises(ValueError, match=r"no column 'grup' \(--case\). Did you mean 'group'"):
        find_ids(table, where="cases.csv", case="grup")


# Columns


@pytest.mark.parametrize(
    ("name", "cells", "role"),
    [
        ("age_years", [50, 61, 47, 80], "input"),
        ("sex", ["f", "m", "f", "m"], "input"),
        ("performance_status", [0, 1, 2, 1], "input"),
        ("prior_recurrence", [0, 1, 0, 1], "input"),
        ("recurrence", [0, 1, 0, 1], "never"),
        ("OS", [120, 300, 41, 77], "never"),
        ("diedWithin1Year", [0, 1, 1, 0], "never"),
        ("time", [120, 300, 41, 77], "never"),
        ("time_months", [12.5, 3.1, 41.0, 7.2], "never"),
        ("echo_time", [1.2, 1.3, 1.25, 1.41], "input"),
        ("surname", ["Li", "Roe", "Li", "Roe"], "never"),
        ("accession_number", [11, 12, 14, 19], "never"),
        ("ct_date", ["2020-01-02", "2020-02-03", "2020-02-03", None], "never"),
        ("seen", ["31.01.2020", "01.02.2020", "01.02.2020", "01.02.2020"], "never"),
        ("anchor_year", [2125, 2134, 2134, 2209], "never"),
        ("scan", ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"], "never"),
        ("constant", [1, 1, 1, 1], "never"),
        ("nothing", [None, None, None, None], "never"),
        ("afp", ["12", "7.5", ">400", "3"], "never"),
        ("fold", [0, 1, 2, 0], "never"),
        ("scanner", ["a", "b", "a", "b"], "group"),
    ],
)
def test_roles_go_by_names_and_cells(name, cells, role):
    column = columns_of({name: cells})[name]
    assert column.role == role, column.reason
    assert column.reason


def test_free_text_and_row_numbers_are_no_inputs():
    texts = [f"{word} seen in {row}" for row, word in enumerate(["mass", "cyst"] * 15)]
    found = columns_of({"remark": texts, "order": list(range(30)), "value": [row**2 for row in range(30)]})
    assert found["remark"].reason == "free text or an identifier; 30 different in 30 rows"
    assert found["order"].reason == "counts the rows"
    assert found["value"].role == "input"


def test_numbers_mixed_with_text_name_the_cell():
    assert columns_of({"afp": [12, 7, ">400", 3]})["afp"].reason.startswith(
        "numbers mixed with text in 1 cells, first '>400' in row 4"
    )


def test_decimal_commas_name_the_cell_and_are_told(tmp_path):
    columns = columns_of({"age": ["59,5", "61", "70,1"], "size": ["1.5", "2.5", "3.5"], "grade": ["I,II", "I", "1"]})
    assert columns["age"].role == "never"
    assert columns["age"].reason.startswith("numbers with a comma in 2 cells, first '59,5' in row 2: write them with")
    assert [columns[name].role for name in ("size", "grade")] == ["input", "input"]
    (tmp_path / "cases.csv").write_text('id,age,sex\na,"59,5",m\nb,61,f\nc,"70,1",f\n', encoding="utf-8")
    assert (
        "numbers that cannot be read as such: age (which cells: under [roles])"
        in sketch_cohort(tmp_path / "cases.csv").remarks
    )


def test_codes_of_columns_with_gaps_are_shown_as_whole_numbers():
    assert columns_of({"ascites": [0, 1, 1, None]})["ascites"].reason == "'1' (2), '0' (1), 1 missing"


def test_what_tells_the_label_is_never():
    rows = 12
    label = ["yes", "no"] * (rows // 2)
    cells = {
        "malignant": label,
        "same": ["m", "b"] * (rows // 2),
        "size": [cell for row in range(6) for cell in (3.5 + row, None)],
        "sex": ["f", "m", "m"] * (rows // 3),
    }
    found = columns_of(cells, label="malignant")
    assert found["same"].reason == "each of its 2 levels stands with one class of malignant"
    assert found["size"].reason == "empty exactly in the class 'no' of malignant"
    assert (found["sex"].role, found["malignant"].role) == ("input", "label")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("age_years", "years"),
        ("size_mm", "mm"),
        ("days_mri_to_pet", "days"),
        ("Tumour size [cm]", "cm"),
        ("Temp (°C)", "°C"),
        ("bilirubin_mg_dl", "mg/dl"),
        ("hvpg_mmhg", "mmHg"),
        ("albumin", ""),
        ("dose (1=high)", ""),
        ("packs_per_year", ""),
    ],
)
def test_units_come_from_the_name_or_not_at_all(name, unit):
    column = columns_of({name: [1.5, 2.25, 7.125, 3.0]})[name]
    assert (column.unit, column.needs_unit) == (unit, unit == "")


def test_codes_need_no_unit():
    found = columns_of({"grade": [1, 2, 3, 2], "age": [61, 47, 47, 80], "dose": [50, 60, 50, 60]})
    assert [found[name].needs_unit for name in ("grade", "age", "dose")] == [False, True, True]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("ag", "no column 'ag' (--label)"),
        ("id", "column 'id' (--label) is an id"),
        ("value", "holds 30 different values; expected 2 to 20"),
        ("one", "holds 1 different values"),
    ],
)
def test_labels_that_cannot_be_one(label, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        columns_of({"value": list(np.arange(30) / 7), "one": ["a"] * 30}, label=label)


# Files


def test_an_id_must_stand_alone_and_exactly():
    found = match_files(["7.png", "07.png", "70.png", "x7.png", "a7b.png", "s-7_ct.png", "7/8.png"], ["7"])
    assert set(found.patterns) == {"{case_id}.png", "s-{case_id}_ct.png", "{case_id}/8.png"}
    assert found.unmatched == ("07.png", "70.png", "x7.png", "a7b.png")


def test_the_longer_id_wins_and_two_ids_are_ambiguous():
    found = match_files(["STS_001/ct.png", "001/ct.png", "a_STS_001_002.png"], ["STS_001", "001", "002"])
    assert found.patterns["{case_id}/ct.png"] == {"STS_001": "STS_001/ct.png", "001": "001/ct.png"}
    assert found.ambiguous == (("a_STS_001_002.png", ("STS_001", "002")),)


def test_an_id_may_stand_several_times():
    found = match_files(["c1/c1_ct.png"], ["c1"])
    assert found.patterns == {"{case_id}/{case_id}_ct.png": {"c1": "c1/c1_ct.png"}}


def test_the_hospital_may_stand_in_the_path():
    cells = {"site": {"c1": "a", "c2": "b", "c3": "a"}}
    paths = ["site_a/c1_ct.png", "site_b/c2_ct.png", "site_a/c3_ct.png"]
    assert set(match_files(paths, cells["site"], cells).patterns) == {"site_{site}/{case_id}_ct.png"}
    # A cell that happens to stand in some names makes more patterns, and is left alone.
    paths = ["c1_a.png", "c2_a.png", "c3_a.png"]
    assert set(match_files(paths, cells["site"], cells).patterns) == {"{case_id}_a.png"}


def test_folders_that_no_column_names_are_told(tmp_path):
    write_pictures(tmp_path, "x/c1.png", "x/c2.png", "y/c3.png", "y/c4.png")
    (tmp_path / "cases.csv").write_text("id,age\nc1,50\nc2,61\nc3,64\nc4,61\n")
    remarks = sketch_cohort(tmp_path / "cases.csv", tmp_path).remarks
    assert any("x/{case_id}.png and y/{case_id}.png are named alike and no case has both" in one for one in remarks)


def test_folders_by_hospital_are_one_source(tmp_path):
    write_pictures(tmp_path, "x/c1.png", "x/c2.png", "y/c3.png", "y/c4.png")
    (tmp_path / "cases.csv").write_text("id,hospital,age\nc1,x,50\nc2,x,61\nc3,y,64\nc4,y,61\n")
    sketch = sketch_cohort(tmp_path / "cases.csv", tmp_path)
    assert sketch.sources == ("image", "clinical")
    assert sketch.lacking == {}
    assert open_written(tmp_path, sketch).image("image", 3).values.shape == (6, 5, 1)


def test_ids_may_end_in_signs():
    assert match_files(["(a)-1.png"], ["(a)-1", "b"]).patterns == {"{case_id}.png": {"(a)-1": "(a)-1.png"}}


NAMES = st.text(alphabet=string.ascii_lowercase + string.digits + "_-. {}", min_size=1, max_size=6).filter(str.strip)


@given(ids=st.sets(NAMES, min_size=1, max_size=5), before=NAMES, after=NAMES)
def test_every_pattern_gives_its_path_back(ids, before, after):
    paths = [f"{before}/{case}_{after}.png" for case in sorted(ids)]
    found = match_files(paths, ids)
    for pattern, files in found.patterns.items():
        for case, path in files.items():
            assert pattern.format(case_id=case) == path
    listed = [path for files in found.patterns.values() for path in files.values()]
    assert sorted(listed + [path for path, _ in found.ambiguous] + list(found.unmatched)) == sorted(set(paths))


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(np.zeros((6, 5), np.uint8)).save(folder / name)


def test_sources_are_named_after_what_is_constant(tmp_path):
    names = [f"{case}/{part}.png" for case in ("c1", "c2") for part in ("t1", "t2", "t1_mask")]
    write_pictures(tmp_path, *names, "images/c1.png", "images/c2.png", "c1_extra_a.png")
    sources, rare = find_sources(
        tmp_path, match_files([*names, "images/c1.png", "images/c2.png", "x_c1_a.png"], ["c1", "c2"]), 2
    )
    assert [(one.name, one.kind, one.of) for one in sources] == [
        ("image", "image", None),
        ("t1", "image", None),
        ("t2", "image", None),
        ("t1_mask", "mask", "t1"),
    ]
    assert rare == ("x_{case_id}_a.png",)
    assert sources[0].note == "case c1: 6 x 5 x 1 uint8"


def test_a_mask_beside_an_image_of_the_same_name_lies_on_it(tmp_path):
    names = [f"{case}/{name}.png" for case in ("c1", "c2") for name in ("CT_image", "CT_mask", "PET_image", "PET_mask")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Picture.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / name)
    found, _ = find_sources(tmp_path, match_files(names, ["c1", "c2"]), 2)
    assert {one.name: one.of for one in found if one.kind == "mask"} == {"ct_mask": "ct_image", "pet_mask": "pet_image"}


def test_a_mask_of_nobody_knows_which_image_is_left_open(tmp_path):
    names = [f"{part}/{case}.png" for case in ("c1", "c2") for part in ("t1", "t2", "masks")]
    write_pictures(tmp_path, *names)
    sources, _ = find_sources(tmp_path, match_files(names, ["c1", "c2"]), 2)
    assert (sources[2].name, sources[2].of) == ("mask", None)
    assert sources[2].open == "which image is it a mask of? There are t1, t2"


# The file


def open_written(folder, sketch):
    (folder / "cohort.toml").write_text(sketch.text, encoding="utf-8")
    return open_cohort(folder)


def test_a_folder_is_found_again(tmp_path):
    """What the sketch says of a folder is what its author wrote by hand."""
    folder = write_folder(tmp_path / "study")
    by_hand = open_cohort(folder)
    (folder / "cohort.toml").unlink()
    sketch = sketch_cohort(folder / "cases.csv", folder, answers=Answers(labels=("malignant",)))
    cohort = open_written(folder, sketch)
    assert cohort.case_id == by_hand.case_id
    assert cohort.patient_id.tolist() == by_hand.patient_id.tolist()
    assert cohort.site is not None
    assert cohort.columns("input") == ("age", "sex")
    assert cohort.classes == ("no", "yes")
    assert list(cohort.sources) == ["image", "mask", "clinical"]
    assert cohort.sources["mask"].kind == "mask"
    np.testing.assert_array_equal(cohort.image("mask", 3).values, by_hand.image("nodule", 3).values)


def test_a_table_alone_is_a_cohort(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id;age_years;died\n007;50;0\n008;61;1\n009;72;\n", encoding="utf-8")
    sketch = sketch_cohort(path, answers=Answers(labels=("died",)))
    cohort = open_written(tmp_path, sketch)
    assert cohort.case_id == ("007", "008", "009")
    assert cohort.label.tolist() == [0, 1, -1]
    assert cohort.units == {"age_years": "years"}


def test_names_that_toml_must_have_escaped_survive(tmp_path):
    names = ['size "big" [mm]', "a\\b", "c.d", "tab\there", "größe", "del\x7f", "#x"]
    table = pd.DataFrame({"id": ["a", "b", "c"], **{name: [1.5, 2.5, 4.5] for name in names}})
    table.to_csv(tmp_path / "cases.csv", index=False)
    cohort = open_written(tmp_path, sketch_cohort(tmp_path / "cases.csv"))
    assert cohort.columns("input") == tuple(names)
    assert cohort.units == {names[0]: "mm"}


@given(
    st.recursive(
        st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_toml_is_read_back(value):
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def test_missing_files_make_a_source_optional_and_are_listed(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "cohort.toml").unlink()
    (folder / "masks" / "c003.png").unlink()
    sketch = sketch_cohort(folder / "cases.csv", folder, answers=Answers(labels=("malignant",)))
    assert sketch.lacking == {"mask": ("c003",)}
    cohort = open_written(folder, sketch)
    assert np.flatnonzero(~cohort.present["mask"]).tolist() == [3]


def test_images_elsewhere_are_found_from_the_folder(tmp_path):
    folder = write_folder(tmp_path / "raw")
    (tmp_path / "study").mkdir()
    sketch = sketch_cohort(folder / "cases.csv", folder / "images", folder=tmp_path / "study")
    content = tomllib.loads(sketch.text)
    assert (content["table"], content["sources"]["image"]["root"]) == ("../raw/cases.csv", "../raw/images")
    assert len(open_written(tmp_path / "study", sketch)) == 8


def test_no_file_of_a_case_says_in_what_they_differ(tmp_path):
    (tmp_path / "cases.csv").write_text("id,age\n007,50\n008,61\n")
    write_pictures(tmp_path / "images", "7.png", "8.png")
    with pytest.raises(NoFiles, match=r"id '007', a file is '7\.png'; they differ in leading zeros"):
        sketch_cohort(tmp_path / "cases.csv", tmp_path / "images")
    (tmp_path / "cases.csv").write_text("id,age\nS1,50\nS2,61\n")
    write_pictures(tmp_path / "other", "s1.png")
    with pytest.raises(NoFiles, match="they differ in capital letters"):
        sketch_cohort(tmp_path / "cases.csv", tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoFiles, match="no image file in it or below"):
        sketch_cohort(tmp_path / "cases.csv", tmp_path / "empty")


def test_nothing_that_a_model_may_read_is_refused(tmp_path):
    (tmp_path / "cases.csv").write_text("id,died\na,0\nb,1\nc,1\n")
    with pytest.raises(
        ValueError, match=r"no column that a model may read(.|\n)*died: by its name known only afterwards"
    ):
        sketch_cohort(tmp_path / "cases.csv")


def test_ambiguous_and_foreign_files_are_told(tmp_path):
    folder = write_folder(tmp_path)
    write_pictures(folder, "images/c001_c002.png", "images/logo.png")
    remarks = "\n".join(sketch_cohort(folder / "cases.csv", folder / "images").remarks)
    assert "c001_c002.png carries the ids of c001 and c002: left out" in remarks
    assert "1 files of no case, such as logo.png" in remarks
    assert "no label: name one with --label (columns that could be: malignant" in remarks


def test_a_damaged_first_file_is_told_and_the_file_still_written(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "images" / "c000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    sketch = sketch_cohort(folder / "cases.csv", folder / "images")
    assert any("COULD NOT BE READ at case c000" in remark for remark in sketch.remarks)
    assert "[sources.image]" in sketch.text


def test_a_folder_of_slices_is_one_image(tmp_path):
    for number, case in enumerate(("c1", "c2")):
        write_slices(tmp_path / "dicom" / case / "ct", np.full((3, 4, 5), number, np.int16))
    (tmp_path / "cases.csv").write_text("case_id,age\nc1,50\nc2,61\n")
    cohort = open_written(tmp_path, sketch_cohort(tmp_path / "cases.csv", tmp_path / "dicom"))
    assert cohort.image("ct", 1).values.shape == (3, 4, 5, 1)
    assert cohort.image("ct", 1).unit == "HU"


def test_arrays_of_one_file_are_sources_with_their_affine(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    for case in ("c1", "c2"):
        arrays = {"ct": rng.normal(size=(7, 6, 5)), "ct_mask": np.ones((7, 6, 5), np.uint8), "ct_affine": affine}
        np.savez(tmp_path / f"{case}.npz", **arrays, age=50)
    (tmp_path / "cases.csv").write_text("case_id,age\nc1,50\nc2,61\n")
    sketch = sketch_cohort(tmp_path / "cases.csv", tmp_path)
    assert sketch.sources == ("ct", "ct_mask", "clinical")
    cohort = open_written(tmp_path, sketch)
    assert cohort.image("ct", 0).values.shape == (5, 6, 7, 1)
    assert cohort.image("ct_mask", 0).spacing == (3.0, 2.0, 2.0)


# Again


def test_answers_of_the_former_file_stay(tmp_path):
    folder = write_folder(tmp_path)
    table = pd.read_csv(folder / "cases.csv").assign(weight_kg=70.5 + np.arange(8))
    table.to_csv(folder / "cases.csv", index=False)
    with (folder / "cohort.toml").open("a", encoding="utf-8") as file:
        file.write('\n[[exclude]]\nrule = "age < 20"\nreason = "too young"\n')
    before = tomllib.loads((folder / "cohort.toml").read_text(encoding="utf-8"))
    sketch = sketch_cohort(folder / "cases.csv", folder, answers=Answers(former=folder / "cohort.toml"))
    after = tomllib.loads(sketch.text)
    for key in ("name", "table", "ids", "units", "sources", "boxes", "exclude"):
        assert after[key] == before[key], key
    assert after["roles"]["never"] == ["name", "weight_kg"]
    assert after["roles"]["input"] == before["roles"]["input"]
    assert "not named before; looks like input" in sketch.text
    assert len(open_written(folder, sketch)) == 8


def test_a_new_label_replaces_the_former(tmp_path):
    folder = write_folder(tmp_path)
    answers = Answers(labels=("sex",), former=folder / "cohort.toml")
    sketch = sketch_cohort(folder / "cases.csv", folder, answers=answers)
    content = tomllib.loads(sketch.text)
    assert content["roles"]["label"] == ["sex"]
    assert "malignant" in content["roles"]["never"]
    assert content["sources"]["clinical"]["columns"] == ["age"]


def test_a_label_named_later_is_compared_with_the_inputs(tmp_path):
    rows = "".join(f"c{n},{n % 2},{n if n % 2 else ''},{50 + n}\n" for n in range(12))
    (tmp_path / "cases.csv").write_text("case_id,nodule,size_mm,age_years\n" + rows, encoding="utf-8")
    (tmp_path / "cohort.toml").write_text(sketch_cohort(tmp_path / "cases.csv").text, encoding="utf-8")
    former = Answers(labels=("nodule",), former=tmp_path / "cohort.toml")
    second = sketch_cohort(tmp_path / "cases.csv", answers=former)
    assert "inputs that tell nodule without error: size_mm. Known before it? (under [roles])" in second.remarks
    assert "as before, but empty exactly in the class '0' of nodule. CHECK THIS" in second.text
    (tmp_path / "cohort.toml").write_text(second.text, encoding="utf-8")
    third = sketch_cohort(tmp_path / "cases.csv", answers=former._replace(labels=()))
    assert not [remark for remark in third.remarks if "size_mm" in remark]


def test_a_folder_called_cohort_has_the_name_of_the_study(tmp_path):
    (tmp_path / "cases.csv").write_text("id,age\na,1\nb,20\n", encoding="utf-8")
    study = tmp_path / "liver"
    assert 'name = "liver"' in sketch_cohort(tmp_path / "cases.csv", folder=study / "cohort").text
    assert 'name = "liver"' in sketch_cohort(tmp_path / "cases.csv", folder=study).text


def test_writing_twice_changes_nothing(tmp_path):
    folder = write_folder(tmp_path)
    answers = Answers(labels=("malignant",))
    (folder / "cohort.toml").write_text(sketch_cohort(folder / "cases.csv", folder, answers=answers).text)
    once = tomllib.loads((folder / "cohort.toml").read_text())
    again = sketch_cohort(folder / "cases.csv", folder, answers=Answers(former=folder / "cohort.toml"))
    assert tomllib.loads(again.text) == once


# Real data


def test_sarcoma_volumes_are_found_with_their_masks(tmp_path):
    data = real_data("sts_petct")
    answers = Answers(labels=("distant_metastases",))
    sketch = sketch_cohort(data / "clinical.csv", data / "volumes", folder=tmp_path, answers=answers)
    assert sketch.sources == ("ct", "pet", "ct_mask", "pet_mask", "clinical")
    roles = {column.name: column.role for column in sketch.columns}
    outcomes = (
        "outcome_text",
        "days_diagnosis_to_outcome",
        "status",
        "lung_metastases",
        "local_or_regional_recurrence",
    )
    assert {roles[name] for name in outcomes} == {"never"}
    cohort = open_written(tmp_path, sketch)
    assert (len(cohort), int(cohort.label.sum())) == (51, 24)
    image = cohort.image("ct_mask", 0)
    assert image.values.shape == cohort.image("ct", 0).values.shape


def test_nothing_of_the_liver_table_is_lost(tmp_path):
    path = real_data("hcc_tables") / "hcc_survival_uci.csv"
    sketch = sketch_cohort(path, folder=tmp_path, answers=Answers(labels=("survived_1_year",)))
    names = [column.name for column in sketch.columns]
    assert sorted([*names, "case_id"]) == sorted(read_table(path).columns)
    assert len(open_written(tmp_path, sketch)) == 132
