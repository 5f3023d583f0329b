"""Cohort folders: opened without reading an image, and refused with file, key and column."""

import pickle
import re
import shutil
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture

from fusion_jax.data import config as config_module
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Columns, Role
from fusion_jax.data.config import read_config
from fusion_jax.data.folder import build_pipelines, case_options, open_cohort
from fusion_jax.data.image import UnreadableFile
from tests.data.folders import CONFIG, edit, write_folder
from tests.helpers import real_data


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def folder(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "cohort")


def test_a_folder_opens_as_it_was_written(clean):
    cohort = open_cohort(clean)
    assert len(cohort) == 8
    assert cohort.name == "nodules"
    assert cohort.classes == ("no", "yes")
    assert cohort.label.tolist() == [0, 1] * 4
    assert set(cohort.site) == {"a", "b"}
    assert cohort.patient_id[3] == "p003"
    assert cohort.columns("input") == ("age", "sex")
    assert list(cohort.inputs) == ["age", "sex"]
    assert cohort.units["age"] == "years"
    case = cohort[2]
    assert set(case.images) == {"xray", "nodule"}
    assert case.images["xray"].values.shape == (24, 24, 1)
    assert 0 <= case.images["xray"].values.min() < case.images["xray"].values.max() <= 1  # preprocessed
    assert "name" not in case.row
    [box] = case.boxes.corners
    x0, y0, x1, y1 = box.astype(int)
    assert case.images["nodule"].values[y0:y1, x0:x1].all()
    assert case.images["nodule"].values.sum() == 25
    assert cohort.box_classes == ("nodule",)


def test_opening_reads_no_image(clean, monkeypatch):
    monkeypatch.setattr("fusion_jax.data.folder.read_image", lambda *_, **__: pytest.fail("an image was read"))
    cohort = open_cohort(clean)
    assert cohort.fingerprint == open_cohort(clean).fingerprint
    assert isinstance(cohort.sources["clinical"], Columns)


def test_cohorts_travel_to_workers(clean):
    cohort = pickle.loads(pickle.dumps(open_cohort(clean)))  # noqa: S301 - our own object
    np.testing.assert_array_equal(cohort[1].images["xray"].values, open_cohort(clean)[1].images["xray"].values)


def test_batches_of_a_folder(clean):
    cohort = open_cohort(clean).with_source("clinical", np.ones((8, 2)))
    batch = Batches(cohort, np.arange(8), 3, seed=(0,)).at(1)
    assert batch.inputs["xray"].shape == (3, 24, 24, 1)
    assert batch.target["masks"]["nodule"].sum() == 75
    assert batch.target["box_valid"].all()


def test_subsets_keep_cases_boxes_and_classes_together(clean):
    cohort = open_cohort(clean)
    part = cohort.take([6, 0, 2])
    assert part.case_id == ("c006", "c000", "c002")
    assert part.classes == ("no", "yes")  # though only one is left
    assert part.label.tolist() == [0, 0, 0]
    for new, old in enumerate((6, 0, 2)):
        np.testing.assert_array_equal(part[new].images["xray"].values, cohort[old].images["xray"].values)
        np.testing.assert_array_equal(part[new].boxes.corners, cohort[old].boxes.corners)


def test_the_fingerprint_changes_with_table_roles_and_files(clean, tmp_path):
    prints = {open_cohort(clean).fingerprint}
    for number, (file, old, new) in enumerate(
        [
            ("cases.csv", "p003", "p004"),
            ("cohort.toml", 'group = "hospital"', ""),
            ("cohort.toml", "high = 255", "high = 254"),
        ]
    ):
        copy = shutil.copytree(clean, tmp_path / str(number))
        edit(copy / file, old, new)
        prints.add(open_cohort(copy).fingerprint)
    copy = shutil.copytree(clean, tmp_path / "image")
    Picture.fromarray(np.zeros((24, 24), np.uint8)).save(copy / "images" / "c000.png")
    prints.add(open_cohort(copy).fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("kind", ["xlsx", "parquet", "csv with semicolons"])
def test_tables_of_every_kind_say_the_same(folder, kind):
    expected = open_cohort(folder).table
    table = pd.read_csv(folder / "cases.csv")
    if kind == "xlsx":
        table.to_excel(folder / "cases.xlsx", index=False)
    elif kind == "parquet":
        table.to_parquet(folder / "cases.parquet")
    else:
        table.to_csv(folder / "cases.csv", index=False, sep=";")
    if kind in ("xlsx", "parquet"):
        edit(folder / "cohort.toml", "cases.csv", f"cases.{kind}")
    found = open_cohort(folder).table
    assert found.index.tolist() == expected.index.tolist()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_ids_keep_their_leading_zeros(folder):
    edit(folder / "cases.csv", "p003", "007")
    assert open_cohort(folder).patient_id[3] == "007"


def test_a_definition_leaves_cases_out_and_says_so(folder):
    edit(
        folder / "cohort.toml",
        "[sources.xray]",
        '[[exclude]]\nrule = "hospital == \'b\'"\nreason = "hospital b"\n\n[sources.xray]',
    )
    cohort = open_cohort(folder)
    assert set(cohort.site) == {"a"}
    assert [len(dropped.case_id) for step in cohort.flow.steps for dropped in step.dropped] == [4]


def test_a_missing_file_stops_or_marks_the_case(folder):
    (folder / "images" / "c002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"c002\.png: no such file, xray of case c002 \(1 of 8 cases") as caught:
        open_cohort(folder)
    assert "cohort check" in str(caught.value)
    cohort = open_cohort(folder, missing="absent")
    assert cohort.present["xray"].tolist() == [True, True, False] + [True] * 5
    with pytest.raises(ValueError, match="case c002 has no xray"):
        cohort.image("xray", 2)
    edit(folder / "cohort.toml", 'files = "images/{case_id}.png"', 'files = "images/{case_id}.png"\nrequired = false')
    assert not open_cohort(folder).present["xray"][2]


def test_a_truncated_file_names_itself_and_its_case(folder):
    path = folder / "images" / "c004.png"
    path.write_bytes(path.read_bytes()[:200])
    cohort = open_cohort(folder)
    with pytest.raises(UnreadableFile, match=rf"{re.escape(str(path))}: xray of case c004"):
        cohort[4]
    assert cohort[3].images["xray"].values.shape == (24, 24, 1)


def test_a_step_that_fails_names_file_and_step(folder):
    edit(folder / "cohort.toml", '[boxes]\nfile = "boxes.csv"\nof = "xray"\n', "")
    edit(
        folder / "cohort.toml",
        '{op = "window", low = 0, high = 255}',
        '{op = "crop_to_mask", mask = "nodule", margin_mm = 1}',
    )
    with pytest.raises(ValueError, match=r"xray of case c000: .*c000\.png: .*preprocess\[0\].*crop_to_mask"):
        open_cohort(folder)[0]


def test_boxes_follow_the_steps_of_their_image(folder):
    steps = '{op = "flip", axis = "w"}, {op = "resize", size = [48, 72]}, {op = "window", low = 0, high = 255}'
    edit(folder / "cohort.toml", '{op = "window", low = 0, high = 255}', steps)
    edit(folder / "cohort.toml", 'kind = "mask"', f'kind = "mask"\npreprocess = [{steps.rpartition(", {")[0]}]')
    cohort = open_cohort(folder)
    assert cohort.boxes_of == "xray"
    for row in range(len(cohort)):
        [(x0, y0, x1, y1)] = cohort[row].boxes.corners.astype(int)
        inside = np.zeros((48, 72, 1), bool)
        inside[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(cohort[row].images["nodule"].values > 0.5, inside)


def test_steps_that_boxes_cannot_follow_are_refused(folder):
    edit(
        folder / "cohort.toml",
        '{op = "window", low = 0',
        '{op = "crop_or_pad", mask = "nodule.file", size = 8}, {op = "window", low = 0',
    )
    with pytest.raises(ValueError, match=r"preprocess\[0\]: boxes do not follow 'crop_or_pad' around a mask"):
        open_cohort(folder)


def test_a_source_may_need_another_before_its_own_steps(folder):
    edit(
        folder / "cohort.toml", "[sources.nodule]", '[sources.nodule]\npreprocess = [{op = "onto", reference = "xray"}]'
    )
    edit(
        folder / "cohort.toml",
        '{op = "window", low = 0, high = 255}',
        '{op = "crop_to_mask", mask = "nodule", margin_mm = 1}',
    )
    with pytest.raises(ValueError, match=r"preprocessing of xray needs nodule needs xray: a circle. Write `xray.file`"):
        open_cohort(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("cohort.toml", "[ids]", "[id]", "unknown key `id`; did you mean `ids`"),
        ("cohort.toml", 'patient = "patient"', "", "ids: no `patient`; expected text"),
        ("cohort.toml", 'site = "hospital"', 'site = "clinic"', "no column 'clinic', which .* names under ids"),
        ("cohort.toml", 'input = ["age", "sex"]', 'input = ["age", "sx"]', "column 'sex', whose role is 'never'"),
        ("cohort.toml", 'never = ["name"]', 'never = ["nam"]', "no column 'nam', .* under roles. Did you mean 'name'"),
        ("cohort.toml", 'never = ["name"]', 'never = ["age"]', "'age' is both input and never"),
        ("cohort.toml", 'never = ["name"]', 'nevr = ["name"]', "unknown key `nevr`; did you mean `never`"),
        ("cohort.toml", 'age = "years"', 'sex = "years"', "column 'sex' holds 'f' in row 2 .* expected a number"),
        ("cohort.toml", 'of = "xray"\n\n[sources.clinical]', "\n[sources.clinical]", "kind 'mask', of None"),
        (
            "cohort.toml",
            'files = "images/{case_id}.png"',
            'files = "images/{cse}.png"',
            "pattern .* names column 'cse'",
        ),
        ("cohort.toml", 'files = "images/{case_id}.png"', 'files = "images/all.png"', "names no column"),
        ("cohort.toml", 'files = "images/{case_id}.png"', 'files = "../{case_id}.png"', "c000 .* leads out of"),
        ("cohort.toml", 'files = "images/{case_id}.png"', "", "neither files nor column nor columns"),
        ("cohort.toml", 'op = "window"', 'op = "windw"', r"sources.xray.preprocess\[0\].*windw.*window"),
        ("cohort.toml", 'name = "nodules"', "name = nodules", "no TOML"),
        ("cohort.toml", 'table = "cases.csv"', 'table = "case.csv"', r"case\.csv: no such file"),
        ("cases.csv", "c003,", "c002,", "case_id 'c002' stands in rows 4 and 5"),
        ("cases.csv", "c003,", ",", "column 'case_id' is empty in row 5"),
        ("cases.csv", "p003", "", "column 'patient' is empty in row 5"),
        ("boxes.csv", "label", "class", "no column 'label', which .* names under boxes"),
    ],
)
def test_what_is_wrong_is_named(folder, file, old, new, message):
    edit(folder / file, old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_cohort(folder)


def test_a_box_without_extent_is_refused(folder):
    table = pd.read_csv(folder / "boxes.csv")
    table.loc[3, "x1"] = table.loc[3, "x0"]
    table.to_csv(folder / "boxes.csv", index=False)
    with pytest.raises(ValueError, match=r"boxes\.csv: row 5 is no box"):
        open_cohort(folder)


def test_an_empty_folder_says_how_to_begin(tmp_path):
    with pytest.raises(FileNotFoundError, match="fusion-jax cohort init"):
        open_cohort(tmp_path)


def test_a_config_keeps_what_it_says(clean):
    config = read_config(clean / "cohort.toml")
    assert config == read_config(clean)
    assert config.sources["nodule"].of == "xray"
    assert config.roles == {"age": "input", "sex": "input", "malignant": "label", "hospital": "group", "name": "never"}


def test_the_documented_file_is_one(tmp_path):
    documented = re.search(r"```toml\n(.*?)```", config_module.__doc__, re.DOTALL).group(1)
    (tmp_path / "cohort.toml").write_text(documented, encoding="utf-8")
    config = read_config(tmp_path)
    assert set(config.sources) == {"ct", "pet", "tumour", "xray", "clinical"}
    assert set(config.roles.values()) == set(get_args(Role))
    assert set(build_pipelines(config)) == {"ct", "pet", "tumour", "xray"}


def test_real_pet_ct_lies_on_one_grid_after_preprocessing(tmp_path):
    data = real_data("sts_petct")
    write = CONFIG.split("[roles]")[0].replace("cases.csv", "clinical.csv").replace('"case_id"', '"patient_id"')
    write = write.replace('patient = "patient"', 'patient = "patient_id"').replace('site = "hospital"\n', "")
    source = """
[sources.{name}]
root = "{root}"
files = "volumes/{{patient_id}}.npz"
options = {{array = "{array}", affine = "{grid}_affine", axes = "xyz"{unit}}}
"""
    for name, array, grid, rest in (
        ("ct", "ct", "ct", 'preprocess = [{op = "crop_to_mask", mask = "tumour.file", margin_mm = 5}]'),
        ("pet", "pet", "pet", 'preprocess = [{op = "onto", reference = "ct"}]'),
        ("tumour", "ct_mask", "ct", 'kind = "mask"\nof = "ct"\npreprocess = [{op = "onto", reference = "ct"}]'),
    ):
        write += source.format(name=name, root=data, array=array, grid=grid, unit="") + rest + "\n"
    (tmp_path / "cohort.toml").write_text(write)
    shutil.copy(data / "clinical.csv", tmp_path)
    cohort = open_cohort(tmp_path)
    case = cohort[7]
    ct, pet, tumour = (case.images[name] for name in ("ct", "pet", "tumour"))
    assert ct.values.shape == pet.values.shape == tumour.values.shape
    np.testing.assert_allclose(ct.affine, pet.affine)
    inside = tumour.values > 0.5
    assert pet.values[inside].mean() > 1.5 * pet.values[~inside].mean()


# Paths


def test_numbers_in_paths_are_as_the_table_has_them(folder):
    edit(folder / "cohort.toml", 'files = "images/{case_id}.png"', 'files = "images/{scan.no}.png"')
    edit(folder / "cohort.toml", 'files = "masks/{case_id}.png"', 'column = "mask path"\nrequired = false')
    table = pd.read_csv(folder / "cases.csv").assign(**{"scan.no": [f"{row:03d}" for row in range(8)]})
    table["mask path"] = [None, *(f"masks\\\\{case}.png".replace("\\\\", "\\") for case in table["case_id"][1:])]
    table.to_csv(folder / "cases.csv", index=False)
    for row, case in enumerate(table["case_id"]):
        (folder / "images" / f"{case}.png").rename(folder / "images" / f"{row:03d}.png")
    cohort = open_cohort(folder)
    assert cohort.present["nodule"].tolist() == [False] + [True] * 7
    assert cohort[3].images["nodule"].values.sum() == 25
    edit(folder / "cases.csv", ",004,", ",,")
    with pytest.raises(FileNotFoundError, match=r"the table has no path of xray of case c004 \(1 of 8"):
        open_cohort(folder)


def test_numbers_that_have_gaps_get_no_point(folder):
    """A column with a unit is a number, and one gap makes pandas hold the others as 7.0."""
    edit(folder / "cohort.toml", 'age = "years"', 'age = "years"\nscan = "1"')
    edit(folder / "cohort.toml", 'files = "images/{case_id}.png"', 'files = "images/{scan}.png"\nrequired = false')
    table = pd.read_csv(folder / "cases.csv").assign(scan=[None, *range(1, 8)])
    table.to_csv(folder / "cases.csv", index=False)
    for row, case in enumerate(table["case_id"]):
        (folder / "images" / f"{case}.png").rename(folder / "images" / f"{row}.png")
    assert open_cohort(folder).present["xray"].tolist() == [False] + [True] * 7


def test_an_exclamation_mark_in_a_folder_is_a_letter(folder):
    copy = shutil.copytree(folder, folder.parent / "new!" / "cohort")
    assert open_cohort(copy)[0].images["xray"].values.shape == (24, 24, 1)


def test_options_are_filled_in_case_by_case():
    table = pd.DataFrame({"roi": ["GTV", "{side}"], "side": ["l", "r"]}, index=pd.Index(["a", "b"], name="case_id"))
    options = {"region": "{roi}_{case_id}_{side}", "frames": 3}
    assert case_options(options, table) == [
        {"region": "GTV_a_l", "frames": 3},
        {"region": "{side}_b_r", "frames": 3},
    ]


def test_files_added_to_a_folder_of_slices_change_the_fingerprint(folder):
    for number in range(8):
        (folder / "series" / f"c{number:03d}").mkdir(parents=True)
        (folder / "series" / f"c{number:03d}" / "1.dcm").write_bytes(b"1")
    edit(folder / "cohort.toml", "[boxes]", '[sources.ct]\nfiles = "series/{case_id}/"\n\n[boxes]')
    before = open_cohort(folder)
    assert before.present["ct"].all()
    assert before.fingerprint == open_cohort(folder).fingerprint
    (folder / "series" / "c003" / "2.dcm").write_bytes(b"2")
    assert before.fingerprint != open_cohort(folder).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{case_id}.png", "{case_id:04d}.png", "formats a column; expected columns in braces"),
        ('input = ["age", "sex"]', 'input = ["age", "sex", "patient"]', "'patient', the patient id, is input"),
        ('of = "xray"\n\n[sources.clinical]', 'of = "nodule"\n\n[sources.clinical]', "`of` names 'nodule'"),
        ("images/{case_id}.png", "C:/images/{case_id}.png", "leads out of"),
    ],
)
def test_a_config_that_would_mislead_is_refused(folder, old, new, message):
    text = (folder / "cohort.toml").read_text()
    assert old in text
    (folder / "cohort.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        open_cohort(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c003,", "c03,", r"row 5 has a box of case 'c03', which cases\.csv does not have \(1 such rows\)"),
        ("c003,", ",", "column 'case_id' is empty in row 5"),
        ("c003,nodule", "c003,", "column 'label' is empty in row 5"),
        ("c003,nodule,", "c003,nodule,x", r"boxes\.csv: column 'x0' holds 'x\d+' in row 5"),
    ],
)
def test_no_box_is_dropped(folder, old, new, message):
    edit(folder / "boxes.csv", old, new)
    with pytest.raises(ValueError, match=message):
        open_cohort(folder)


def test_boxes_of_cases_that_the_definition_leaves_out_go_with_them(folder):
    rule = '[[exclude]]\nrule = "hospital == \'b\'"\nreason = "hospital b"\n\n[sources.xray]'
    edit(folder / "cohort.toml", "[sources.xray]", rule)
    cohort = open_cohort(folder)
    assert [len(cohort[row].boxes.corners) for row in range(len(cohort))] == [1] * 4


def test_rows_without_corners_are_cases_without_a_box(folder):
    table = pd.read_csv(folder / "boxes.csv")
    table.loc[[2, 5], ["label", "x0", "y0", "x1", "y1"]] = None
    table.to_csv(folder / "boxes.csv", index=False)
    cohort = open_cohort(folder)
    assert [len(cohort[row].boxes.corners) for row in range(8)] == [1, 1, 0, 1, 1, 0, 1, 1]
    table.loc[2, "x0"] = 3.0
    table.to_csv(folder / "boxes.csv", index=False)
    with pytest.raises(ValueError, match=r"boxes\.csv: column 'label' is empty in row 4"):
        open_cohort(folder)


def test_an_empty_path_is_said_to_be_one(folder):
    table = pd.read_csv(folder / "cases.csv").assign(path="images/c000.png")
    table.loc[3, "path"] = None
    table.to_csv(folder / "cases.csv", index=False)
    edit(folder / "cohort.toml", 'files = "images/{case_id}.png"', 'column = "path"')
    with pytest.raises(FileNotFoundError, match=r"cohort\.toml: the table has no path of xray of case c003 \(1 of 8"):
        open_cohort(folder)


def test_levels_of_inputs_are_kept_to(folder):
    edit(folder / "cohort.toml", "[units]", '[levels]\nsex = ["m", "f"]\n\n[units]')
    assert open_cohort(folder).levels["sex"] == ("m", "f")
    edit(folder / "cohort.toml", '["m", "f"]', '["m", "w"]')
    with pytest.raises(ValueError, match="column 'sex' holds 'f' in case c000; expected one of m, w"):
        open_cohort(folder)


def test_a_folder_of_shards_says_how_it_is_opened(tmp_path):
    (tmp_path / "cohort.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"a folder of shards.*open_shards"):
        open_cohort(tmp_path)
