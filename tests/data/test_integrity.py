"""One defect planted in a clean cohort folder at a time: the report must find that, and nothing else."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture

from fusion_jax.data.cohort import Arrays, Boxes, Cohort
from fusion_jax.data.folder import open_cohort
from fusion_jax.data.integrity import CHECKS, Finding, Report, check_cohort
from fusion_jax.data.integrity.opening import Opened, open_leniently
from fusion_jax.data.integrity.pixels import read_pixels
from fusion_jax.records import write_json
from tests.data.folders import CONFIG, edit, write_folder
from tests.helpers import real_data

CLEAN = CONFIG.replace('never = ["name"]\n', "")
N = 24


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder without a fault: the column of names, which the sample has on purpose, is taken out."""
    folder = write_folder(tmp_path_factory.mktemp("clean") / "cohort", n=N, size=32, config=CLEAN)
    table = pd.read_csv(folder / "cases.csv").drop(columns="name")
    table["weight"] = np.random.default_rng(5).normal(75, 12, N).round(1)
    table.to_csv(folder / "cases.csv", index=False)
    edit(folder / "cohort.toml", 'input = ["age", "sex"]', 'input = ["age", "sex", "weight"]')
    edit(folder / "cohort.toml", 'age = "years"', 'age = "years"\nweight = "kg"')
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "cohort")


def change(folder, **columns):
    """Columns of the table, given as a function of the old one or as values."""
    table = pd.read_csv(folder / "cases.csv")
    for name, values in columns.items():
        table[name] = values(table) if callable(values) else values
    table.to_csv(folder / "cases.csv", index=False)
    return table


def set_cell(folder, row, column, value):
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    table.loc[row, column] = value
    table.to_csv(folder / "cases.csv", index=False)


def as_input(folder, *names):
    inputs = ", ".join(f'"{name}"' for name in ("age", "sex", "weight", *names))
    edit(folder / "cohort.toml", 'input = ["age", "sex", "weight"]', f"input = [{inputs}]")


def picture(folder, case, values, kind="images"):
    Picture.fromarray(values).save(folder / kind / f"{case}.png")


def pixels(folder, case, kind="images"):
    with Picture.open(folder / kind / f"{case}.png") as image:
        return np.array(image)


def found(folder, **options):
    """Severity and check of every finding."""
    return [(one.severity, one.check) for one in check_cohort(folder, **options).findings]


def only(folder, check, severity, **options):
    """The one finding there must be."""
    report = check_cohort(folder, **options)
    assert [(one.severity, one.check) for one in report.findings] == [(severity, check)], report.findings
    return report.findings[0]


def test_a_clean_folder_has_no_finding(template):
    report = check_cohort(template)
    assert report.findings == ()
    assert report.facts["cases"] == N
    assert report.facts["sources"]["xray"]["shapes"] == {"32 x 32 x 1": N}
    assert report.facts["classes"] == {"malignant": {"no": 12, "yes": 12}}


# Rows and cells


def test_what_is_checked_is_what_opens(folder):
    change(folder, hospital=lambda table: table["hospital"].where(table.index != 4))
    edit(
        folder / "cohort.toml",
        "[units]",
        '[[derive]]\nname = "age_days"\nformula = "365 * age"\nunit = "days"\n\n[units]',
    )
    found, opened = open_leniently(folder).cohort, open_cohort(folder)
    assert found.fingerprint == opened.fingerprint
    assert found.units == opened.units == {"age_days": "days", "age": "years", "weight": "kg"}
    assert found.site is not None
    assert found.site[4] == ""
    assert (found.roles, found.levels, found.boxes_of, found.flow) == (
        opened.roles,
        opened.levels,
        opened.boxes_of,
        opened.flow,
    )
    assert check_cohort(folder).facts["sites"] == 2


def test_rows_without_an_id_and_doubled_rows_are_left_out_and_the_rest_is_checked(folder):
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    extra = table.iloc[[0, 1]].assign(case_id=["", "c003"])
    pd.concat([table, extra]).to_csv(folder / "cases.csv", index=False)
    report = check_cohort(folder)
    assert report.facts["cases"] == N
    messages = [one.message for one in report.about("row")]
    assert messages == [
        f"cases.csv: 1 rows repeat the case_id of an earlier row (row {N + 3}); the rest was checked.",
        f"cases.csv: 1 rows have no case_id (row {N + 2}); the rest was checked.",
    ]
    assert report.counts == {"error": 2, "warning": 0, "note": 0}


def test_a_row_without_a_patient_is_an_error(folder):
    set_cell(folder, 4, "patient", "")
    report = check_cohort(folder)
    assert report.facts["cases"] == N - 1
    assert [(one.check, one.cases, one.column) for one in report.findings if one.severity == "error"] == [
        ("row", ("c004",), "patient")
    ]


def test_a_cell_that_is_no_number_is_named_and_emptied(folder):
    set_cell(folder, 2, "age", "old")
    one = only(folder, "row", "error")
    assert "'age' is declared to hold numbers, but holds 'old' in case c002" in one.message
    assert one.cases == ("c002",)


def with_dates(folder, cells):
    edit(folder / "cohort.toml", "[units]", '[types]\nscanned = "date"\n\n[units]')
    change(folder, scanned=cells)


def test_infinity_is_no_number_here_either(folder):
    set_cell(folder, 2, "age", "inf")
    (one,) = check_cohort(folder).findings
    assert (one.severity, one.cases, one.column) == ("error", ("c002",), "age")
    assert "holds inf in case c002; taken as empty" in one.message


def test_dates_without_hyphens_are_dates_and_a_year_alone_is_named(folder):
    with_dates(folder, [f"202001{day:02d}" for day in range(1, N + 1)])
    assert not check_cohort(folder).about("row")
    set_cell(folder, 3, "scanned", "2020")
    (one,) = check_cohort(folder).about("row")
    assert (one.cases, one.column) == (("c003",), "scanned")
    assert "dates such as 2020-01-31, but holds '2020' in case c003" in one.message


def test_dates_of_several_time_zones_are_one_error_and_the_rest_is_checked(folder):
    with_dates(folder, [f"2020-01-{day:02d}T08:00+0{1 + day % 2}:00" for day in range(1, N + 1)])
    set_cell(folder, 2, "age", "old")
    zones, cell = sorted(check_cohort(folder).about("row"), key=lambda one: one.column, reverse=True)
    assert (zones.severity, zones.check, zones.column, zones.cases) == ("error", "row", "scanned", ())
    assert "'scanned' is declared to hold dates" in zones.message
    assert "several time zones; expected one. Write dates without a zone. All of it is taken as empty" in zones.message
    assert cell.column == "age"


def test_a_column_that_is_not_there_is_an_error_and_the_rest_is_checked(folder):
    edit(folder / "cohort.toml", 'group = "hospital"', 'group = ["hospital", "scanner"]')
    one = only(folder, "column", "error")
    assert "'scanner'" in one.message
    assert "no such column" in one.message


def test_a_label_that_is_no_class_is_an_error(folder):
    change(folder, malignant=np.linspace(0.5, 9.1, N))
    one, note = check_cohort(folder).findings
    assert (one.severity, one.check, note.severity) == ("error", "label", "note")
    assert "holds 0.5" in one.message
    assert "expected classes" in one.message


def test_a_label_outside_its_levels_is_named_and_emptied(folder):
    set_cell(folder, 5, "malignant", "perhaps")
    with (folder / "cohort.toml").open("a") as file:
        file.write('\n[levels]\nmalignant = ["no", "yes"]\n')
    report = check_cohort(folder)
    assert [(one.severity, one.cases) for one in report.about("label")] == [
        ("error", ("c005",)),
        ("warning", ("c005",)),
    ]
    assert "holds 'perhaps' in case c005; expected one of no, yes" in report.findings[0].message


def test_a_definition_that_cannot_be_applied_is_an_error(folder):
    with (folder / "cohort.toml").open("a") as file:
        file.write('\n[[include]]\nrule = "stage >= 2"\nreason = "early"\n')
    one = only(folder, "definition", "error")
    assert "stage" in one.message


def test_without_a_config_there_is_nothing_to_check(tmp_path):
    with pytest.raises(FileNotFoundError, match="cohort init"):
        check_cohort(tmp_path)


def test_without_its_table_there_is_nothing_to_check(folder):
    (folder / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"cases\.csv"):
        check_cohort(folder)


# Files


def test_missing_files_are_listed(folder):
    for case in ("c003", "c005"):
        (folder / "images" / f"{case}.png").unlink()
    report = check_cohort(folder)
    [one] = report.about("missing file")
    assert one.cases == ("c003", "c005")
    assert f"2 of {N} cases lack their file: images/c003.png of c003" in one.message
    assert "required = false" in one.advice


def test_optional_files_may_be_missing(folder):
    (folder / "masks" / "c003.png").unlink()
    edit(
        folder / "cohort.toml",
        'of = "xray"\n\n[sources.clinical]',
        'of = "xray"\nrequired = false\n\n[sources.clinical]',
    )
    assert found(folder) == []


def test_a_case_without_any_data_is_left_out(folder):
    edit(folder / "cohort.toml", '[sources.clinical]\ncolumns = ["age", "sex"]\n', "")
    (folder / "images" / "c003.png").unlink()
    report = check_cohort(folder)
    assert report.facts["cases"] == N - 1
    assert [one.cases for one in report.about("row")] == [("c003",)]


def test_files_of_no_case_are_noted(folder):
    picture(folder, "forgotten", pixels(folder, "c001") // 2)
    one = only(folder, "unused file", "note")
    assert "1 file in images, read by no source of any case: images/forgotten.png" in one.message


def test_files_that_no_source_reads_are_one_note_for_all_folders(folder):
    for path in sorted((folder / "images").glob("*.png")):
        place = folder / "scans" / path.stem
        place.mkdir(parents=True)
        (place / "xray.png").write_bytes(path.read_bytes())
        (place / "lateral.png").write_bytes(path.read_bytes())
    edit(folder / "cohort.toml", "images/{case_id}.png", "scans/{case_id}/xray.png")
    one = only(folder, "unused file", "note")
    assert one.message.startswith(f"{N} files in {N} folders, read by no source of any case: scans/c000/lateral.png, ")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no image", lambda data: b""])
def test_an_unreadable_image_is_an_error_and_the_others_are_read(folder, damage):
    path = folder / "images" / "c007.png"
    path.write_bytes(damage(path.read_bytes()))
    report = check_cohort(folder)
    [one] = report.about("unreadable file")
    assert (one.severity, one.cases, one.source) == ("error", ("c007",), "xray")
    assert "c007.png" in one.message
    assert report.counts["error"] == 1
    assert report.facts["sources"]["xray"]["read"] == N - 1


def test_a_path_that_leads_out_of_the_folder_is_an_error(folder):
    change(folder, path=lambda t: "images/" + t["case_id"] + ".png")
    set_cell(folder, 3, "path", "../secret.png")
    edit(folder / "cohort.toml", 'files = "images/{case_id}.png"', 'column = "path"')
    report = check_cohort(folder)
    assert any("leads out of" in one.message and one.cases == ("c003",) for one in report.about("missing file"))


# Images


def test_a_constant_image_is_an_error(folder):
    picture(folder, "c009", np.full((32, 32), 17, np.uint8))
    one = only(folder, "constant image", "error")
    assert one.message == "1 images are one value throughout: c009 is 17."


def test_an_image_that_preprocessing_flattens_is_an_error(folder):
    edit(folder / "cohort.toml", "low = 0, high = 255", "low = 254, high = 255")
    one = only(folder, "constant image", "error")
    assert f"{N} images are one value throughout after preprocessing" in one.message


def test_a_step_that_fails_is_an_error_for_every_case(folder):
    edit(folder / "cohort.toml", 'kind = "mask"', 'kind = "mask"\npreprocess = [{op = "resample", spacing = 1.0}]')
    one = only(folder, "preprocessing", "error")
    assert len(one.cases) == N
    assert "resample" in one.message


def test_nan_is_an_error(folder):
    for case in pd.read_csv(folder / "cases.csv")["case_id"]:
        values = pixels(folder, case).astype(np.float32)
        if case == "c004":
            values[3, 3:5] = np.nan
        np.save(folder / "images" / f"{case}.npy", values)
        (folder / "images" / f"{case}.png").unlink()
    edit(folder / "cohort.toml", "images/{case_id}.png", "images/{case_id}.npy")
    edit(folder / "cohort.toml", 'preprocess = [{op = "window", low = 0, high = 255}]', "")
    one = only(folder, "not finite", "error")
    assert one.message == "1 files hold NaN or infinity: 2 of 1024 values in c004."


def test_colour_among_grey_images_is_an_error(folder):
    picture(folder, "c001", np.stack([pixels(folder, "c001")] * 3, axis=-1))
    one = only(folder, "shape", "error")
    assert "c001 is 32 x 32 x 3" in one.message


def test_several_shapes_are_noted(folder):
    for kind in ("images", "masks"):
        picture(folder, "c001", np.pad(pixels(folder, "c001", kind), ((0, 4), (0, 0)), mode="wrap"), kind)
    report = check_cohort(folder)
    assert {(one.severity, one.source) for one in report.about("shape")} == {("note", "xray"), ("note", "nodule")}
    assert "from 32 x 32 x 1 to 36 x 32 x 1" in report.about("shape")[0].message


# Masks and boxes


def test_an_empty_mask_is_an_error(folder):
    picture(folder, "c002", np.zeros((32, 32), np.uint8), "masks")
    one = only(folder, "mask", "error")
    assert one.message == f"1 of {N} masks are empty: c002."


def test_a_mask_of_another_size_is_an_error(folder):
    picture(folder, "c002", pixels(folder, "c002", "masks")[:, :30], "masks")
    report = check_cohort(folder)
    [one] = report.about("grid")
    assert (one.severity, one.cases) == ("error", ("c002",))
    assert "c002 has 32 x 30 voxels, the image 32 x 32" in one.message
    assert 'op = "onto", reference = "xray"' in one.advice


def test_masks_of_255_are_noted(folder):
    for number in range(N):
        picture(folder, f"c{number:03d}", pixels(folder, f"c{number:03d}", "masks") * 255, "masks")
    one = only(folder, "mask", "note")
    assert one.message == f"{N} of {N} masks hold values other than 0 and 1, such as 255."


def test_masks_at_the_border_and_in_pieces_are_noted(folder):
    mask = pixels(folder, "c002", "masks")
    mask[0, 0] = 1
    picture(folder, "c002", mask, "masks")
    messages = [one.message for one in check_cohort(folder).findings]
    assert messages == [
        f"1 of {N} masks touch the border of the image: c002.",
        f"1 of {N} masks are in several pieces: c002.",
    ]


def test_a_box_outside_its_image_is_an_error(folder):
    with (folder / "boxes.csv").open("a") as file:
        file.write("c004,nodule,28,3,36,9\n")
    one = only(folder, "box", "error")
    assert "c004 (28, 3, 36, 9) in 32 x 32" in one.message


def test_boxes_that_are_none_and_of_no_case_are_found(folder):
    with (folder / "boxes.csv").open("a") as file:
        file.write("c004,nodule,9,3,5,9\nc999,nodule,1,1,4,4\n")
    report = check_cohort(folder)
    assert [(one.severity, one.cases) for one in report.about("box")] == [("error", ("c004",)), ("error", ("c999",))]


def test_boxes_of_resized_images_are_judged_by_the_file(folder):
    step = '{op = "resize", size = [16, 16]}'
    edit(folder / "cohort.toml", '{op = "window", low = 0, high = 255}', step)
    edit(folder / "cohort.toml", 'kind = "mask"', f'kind = "mask"\npreprocess = [{step}]')
    assert found(folder) == []


def test_what_only_opening_finds_is_an_error(folder, monkeypatch):
    from fusion_jax.data.integrity import opening

    def refuse(*_, **__):
        raise ValueError("cohort.toml: something new.")

    monkeypatch.setattr(opening, "open_cohort", refuse)
    one = only(folder, "cohort", "error")
    assert one.message == "cohort.toml: something new."


def test_sources_that_need_one_that_is_left_out_are_left_out_too(folder):
    edit(folder / "cohort.toml", "images/{case_id}.png", "images/{nothing}.png")
    edit(folder / "cohort.toml", 'file = "boxes.csv"', 'file = "boxes.csv"')
    report = check_cohort(folder)
    [one] = report.about("column")
    assert one.source == "xray"
    assert "names column 'nothing'" in one.message
    assert set(report.facts["sources"]) == {"clinical"}


def volumes(n=8, shift=0.0, unit="HU", low=-1000.0):
    """A cohort of CT volumes with a mask each, the mask of the last case moved by so many mm."""
    rng = np.random.default_rng(3)
    affine = np.array([[0, 0, -1.0, 9], [0, -1.0, 0, 9], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    moved = affine.copy()
    moved[0, 3] += shift
    ct = [rng.normal(40, 300, (6, 16, 16, 1)).clip(low, 1500).astype(np.float32) for _ in range(n)]
    mask = np.zeros((6, 16, 16, 1), np.uint8)
    mask[2:4, 5:9, 5:9] = 1
    return Cohort.from_arrays(
        {
            "ct": Arrays(ct, "image", [(2.0, 1.0, 1.0)] * n, [affine] * n, unit),
            "tumour": Arrays([mask] * n, "mask", [(2.0, 1.0, 1.0)] * n, [affine] * (n - 1) + [moved], "label"),
        },
        label=[0, 1] * (n // 2),
    )


def few_patients(report):
    """Findings but for that on the size of such a small cohort."""
    return [one for one in report.findings if "fewer than 5 patients" not in one.message]


def test_masks_on_the_grid_of_their_image_are_fine():
    assert few_patients(check_cohort(volumes(shift=5e-4))) == []


def test_a_mask_that_lies_elsewhere_is_an_error():
    [one] = few_patients(check_cohort(volumes(shift=2.5)))
    assert (one.check, one.severity, one.cases) == ("grid", "error", ("case_7",))
    assert "case_7 lies 2.5 mm away" in one.message


def test_what_is_kept_of_a_mask_is_right():
    cohort = volumes()
    facts = read_pixels(Opened(cohort, None, {}, []))["tumour"][0]
    assert facts is not None
    assert facts.mask is not None
    assert facts.mask.voxels == 32
    assert facts.mask.volume == pytest.approx(32 * 2 * 1 * 1 / 1000)  # ml
    # Voxels 2 to 3, 5 to 8, 5 to 8: x = 9 - w, y = 9 - h, z = 2 d.
    assert facts.mask.centre == pytest.approx((2.5, 2.5, 5.0))
    assert (facts.mask.values, facts.mask.parts, facts.mask.on_border) == ((0.0, 1.0), 1, False)


def test_two_masks_of_one_object_that_lie_apart_in_one_case_are_noted():
    cohort = volumes()
    moved = volumes(shift=7.0).sources["tumour"]
    report = check_cohort(cohort.with_source("again", moved).with_source("ct2", volumes(shift=0.0).sources["ct"]))
    notes = [one for one in report.about("grid") if one.severity == "note"]
    assert [one.cases for one in notes] == [("case_7",)]
    assert "7.0 mm in case_7" in notes[0].message


def test_stored_values_that_were_not_rescaled_are_found():
    [one] = few_patients(check_cohort(volumes(low=0.0)))
    assert one.check == "implausible value"
    assert "no value below 0 HU" in one.message


def test_values_outside_the_range_of_their_unit_are_found():
    cohort = volumes(unit="SUV")
    [one] = few_patients(check_cohort(cohort))
    assert one.check == "implausible value"
    assert "outside 0 to 200 SUV" in one.message
    assert len(one.cases) == 8


def test_voxel_sizes_that_differ_are_found():
    cohort = volumes()
    source = cohort.sources["ct"]
    wide = Arrays(source.values, "image", [(2.0, 1.0, 1.0)] * 7 + [(5.0, 1.0, 1.0)], None, "HU")
    [one] = few_patients(check_cohort(Cohort.from_arrays({"ct": wide}, label=[0, 1] * 4)))
    assert one.check == "spacing"
    assert "from 2 x 1 x 1 to 5 x 1 x 1 mm" in one.message


def test_a_cohort_in_memory_with_a_box_outside_is_found():
    images = np.random.default_rng(0).integers(0, 255, (10, 20, 30, 1)).astype(np.uint8)
    boxes = [Boxes(np.array([[0.0, 0.0, 30.0, 20.0]]), np.zeros(1, np.int32))] * 9
    boxes.append(Boxes(np.array([[0.0, 0.0, 20.0, 30.0]]), np.zeros(1, np.int32)))
    cohort = Cohort.from_arrays({"xray": images}, label=[0, 1] * 5, boxes=boxes, box_classes=("nodule",))
    [one] = few_patients(check_cohort(cohort))
    assert (one.check, one.cases) == ("box", ("case_9",))


# Copies


def smooth(seed, size=64):
    """A picture with structure: noise has no low frequencies to hash."""
    small = np.random.default_rng(seed).integers(20, 230, (7, 7)).astype(np.uint8)
    return np.array(Picture.fromarray(small).resize((size, size), Picture.Resampling.BICUBIC))


def copies(*pictures, labels=None, patients=None):
    """A cohort of 20 pictures, to which these are added; the findings about copies, and the groups."""
    images = [smooth(seed)[..., None] for seed in range(20)] + [one[..., None] for one in pictures]
    n = len(images)
    labels = np.arange(n) % 2 if labels is None else labels
    cohort = Cohort.from_arrays({"xray": images}, label=labels, patient_id=patients)
    return cohort


def about_copies(cohort, **options):
    report = check_cohort(cohort, **options)
    return [one for one in report.findings if "duplicate" in one.check], report.duplicates


def test_an_exact_copy_of_another_patient_is_an_error():
    [one], groups = about_copies(copies(smooth(4)))
    assert (one.severity, one.check) == ("error", "exact duplicate")
    assert one.message.startswith("1 images stand for several patients or labels (0 of them with different labels)")
    assert one.cases == ("case_4", "case_20")
    assert groups == (("case_4", "case_20"),)


def test_an_exact_copy_with_another_label_is_an_error_even_for_one_patient():
    patients = [f"p{k}" for k in range(20)] + ["p5"]
    [one], _ = about_copies(copies(smooth(5), patients=patients))
    assert one.severity == "error"
    assert "(1 of them with different labels)" in one.message


def test_an_exact_copy_of_the_same_patient_is_a_note():
    [one], groups = about_copies(copies(smooth(4), patients=[f"p{k}" for k in range(20)] + ["p4"]))
    assert (one.severity, one.check) == ("note", "exact duplicate")
    assert groups == (("case_4", "case_20"),)


def brighter(values):
    return (values // 2 + 90).astype(np.uint8)


def larger(values):
    return np.array(Picture.fromarray(values).resize((150, 150), Picture.Resampling.BILINEAR))


def noisy(values):
    noise = np.random.default_rng(0).normal(0, 5, values.shape)
    return np.clip(values + noise, 0, 255).astype(np.uint8)


def inverted(values):
    return 255 - values


@pytest.mark.parametrize("change", [brighter, larger, noisy, inverted])
def test_a_changed_copy_of_another_patient_is_a_warning(change):
    [one], groups = about_copies(copies(change(smooth(4))))
    assert (one.severity, one.check) == ("warning", "near duplicate")
    assert one.message.startswith(
        "1 pairs of images of two patients resemble each other like copies: case_4 and case_20"
    )
    assert ("inverted" in one.message) is (change is inverted)
    assert groups == (("case_4", "case_20"),)


def test_a_changed_copy_of_the_same_patient_is_a_note():
    [one], _ = about_copies(copies(brighter(smooth(4)), patients=[f"p{k}" for k in range(20)] + ["p4"]))
    assert (one.severity, one.check) == ("note", "near duplicate")


@pytest.mark.parametrize(("axis", "name"), [(1, "left-right"), (0, "upside down")])
def test_flipped_copies_are_found_when_asked_for(axis, name):
    cohort = copies(np.flip(smooth(4), axis).copy())
    assert about_copies(cohort)[0] == []
    [one], _ = about_copies(cohort, flips=True)
    assert name in one.message


def test_copies_of_copies_are_one_group():
    _, groups = about_copies(copies(smooth(4), brighter(smooth(4)), smooth(7)))
    assert groups == (("case_4", "case_20", "case_21"), ("case_7", "case_22"))


def test_blocks_change_nothing(monkeypatch):
    from fusion_jax.data.integrity import duplicates
    from fusion_jax.data.integrity.pixels import thumbnail

    partner = np.random.default_rng(0).permutation(30)
    pictures = [smooth(seed) for seed in range(30)] + [smooth(int(seed)) for seed in partner]
    thumbnails = np.stack([thumbnail(noisy(one)[..., None]) for one in pictures])
    whole = duplicates.near_pairs(thumbnails)
    assert [(pair.first, pair.second) for pair in whole] == [(k, 30 + int(np.argmax(partner == k))) for k in range(30)]
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    for one, other in zip(duplicates.near_pairs(thumbnails), whole, strict=True):
        assert one[:3] == other[:3]
        assert abs(one.correlation - other.correlation) < 1e-5


# DICOM


def test_names_in_dicom_files_are_found_and_not_repeated(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        data = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        data.PatientName = "Doe^Jane" if k == 3 else ""
        data.PatientID = f"P{k}"
        data.preamble = bytes(128)
        data.InstitutionName = ""
        for element in list(data):
            if element.VR == "PN" and element.keyword != "PatientName":
                element.value = ""
            elif element.tag.is_private or element.keyword in ("StationName", "AccessionNumber"):
                del data[element.tag]
        values = rng.integers(0, 1900, data.pixel_array.shape).astype(np.int16)
        data.PixelData = values.tobytes()
        data.save_as(tmp_path / "images" / f"c{k}.dcm")
    ids = [f"c{k}" for k in range(12)]
    pd.DataFrame({"case_id": ids, "y": np.arange(12) % 2}).to_csv(tmp_path / "cases.csv", index=False)
    (tmp_path / "cohort.toml").write_text(
        'table = "cases.csv"\n[ids]\ncase = "case_id"\npatient = "case_id"\n[roles]\nlabel = "y"\n'
        '[sources.mr]\nfiles = "images/{case_id}.dcm"\n'
    )
    report = check_cohort(tmp_path)
    [one] = report.about("personal data")
    assert (one.severity, one.source, one.cases) == ("warning", "mr", ("c3",))
    assert "PatientName" in one.message
    assert "Doe" not in str(report.to_dict())


# The report


def test_findings_are_sorted_and_survive_json(folder, tmp_path):
    (folder / "images" / "c003.png").unlink()
    picture(folder, "forgotten", pixels(folder, "c001") // 2)
    change(folder, constant=1)
    as_input(folder, "constant")
    report = check_cohort(folder)
    assert [one.severity for one in report.findings] == ["error", "warning", "note"]
    write_json(tmp_path / "integrity.json", report.to_dict())
    assert Report.from_dict(json.loads((tmp_path / "integrity.json").read_text())) == report


def test_a_finding_of_no_known_check_is_refused():
    with pytest.raises(ValueError, match="expected one of error, warning, note"):
        Finding("error", "colour", "It is blue.", "Paint it.")
    with pytest.raises(ValueError, match="no check 'colour'"):
        Report("demo", ()).about("colour")
    with pytest.raises(ValueError, match=r"expected the integrity\.json"):
        Report.from_dict({"name": "demo"})


def test_without_images_only_the_table_is_checked(folder):
    picture(folder, "c009", np.full((32, 32), 17, np.uint8))
    assert found(folder, images=False) == []


def test_progress_counts_every_case(folder):
    told = []
    check_cohort(folder, workers=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, N) for done in range(1, N + 1)]


def test_the_number_of_threads_changes_nothing(folder):
    (folder / "images" / "c003.png").write_bytes(b"")
    assert check_cohort(folder, workers=1) == check_cohort(folder, workers=4)


def test_every_check_says_what_it_asks():
    assert all(text and not text.endswith(".") for text in CHECKS.values())


# Real data


@pytest.mark.slow
def test_sarcoma_masks_lie_in_one_place_but_for_one_patient(monkeypatch):
    from fusion_jax.data.collections import load

    monkeypatch.setenv("FUSION_JAX_DATA", str(real_data("sts_petct").parent))
    report = check_cohort(load("sts_petct"))
    assert report.counts["error"] == 0
    [one] = report.about("grid")
    assert "STS_019" in one.cases
