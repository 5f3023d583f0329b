import contextlib
import io
import json
import logging
import pickle
import re

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from fusion_jax.data import Boxes, Cohort, k_fold
from fusion_jax.data.coco import coco_ids, read_coco, write_coco, write_coco_results
from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.run_length import run_length
from fusion_jax.records.detections import coco_detections, coco_truth

SIZES = {"a/one.png": (20, 30), "a/two.jpg": (24, 18), "b/three.png": (16, 16)}


def content():
    images = [
        {"id": 10 * (i + 1), "file_name": name, "width": w, "height": h, "patient_id": f"p{i // 2}"}
        for i, (name, (h, w)) in enumerate(SIZES.items())
    ]
    boxes = [
        {"id": 1, "image_id": 20, "category_id": 7, "bbox": [1, 2, 10, 11.5], "area": 50},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 30, 20]},
        {"id": 3, "image_id": 20, "category_id": 3, "bbox": [4, 4, 8, 8]},
    ]
    categories = [{"id": 7, "name": "nodule"}, {"id": 3, "name": "mass"}]
    return {"images": images, "categories": categories, "annotations": boxes}


def boxes_of(cohort):
    return [*(cohort.boxes or ())]


def written(folder, changed=None):
    """The three images and their annotations in a folder; gives the path of the JSON."""
    rng = np.random.default_rng([8, 1])
    for name, size in SIZES.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(path)
    path = folder / "truth.json"
    path.write_text(json.dumps(content() if changed is None else changed), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    written(tmp_path)
    return tmp_path


def test_images_boxes_and_patients_are_those_of_the_file(folder):
    cohort = read_coco(folder / "truth.json", folder / "images")
    assert cohort.case_id == ("10", "20", "30")
    assert cohort.patient_id.tolist() == ["p0", "p0", "p1"]
    assert cohort.box_classes == ("mass", "nodule")  # by the number of the category, not in the order of the file
    assert [boxes.corners.tolist() for boxes in boxes_of(cohort)] == [
        [[0, 0, 30, 20]],
        [[1, 2, 11, 13.5], [4, 4, 12, 12]],
        [],
    ]
    assert [boxes.classes.tolist() for boxes in boxes_of(cohort)] == [[0], [1, 0], []]
    assert [cohort.sources["image"][row].shape for row in range(3)] == [(20, 30, 1), (24, 18, 1), (16, 16, 1)]
    stored = np.asarray(PIL.Image.open(folder / "images" / "a" / "one.png"))
    np.testing.assert_array_equal(cohort.sources["image"][0][..., 0], stored)
    assert cohort.columns("input") == ()
    assert set(k_fold(cohort, 2, seed=0).splits[0].test) in ({"10", "20"}, {"30"})


def test_images_are_read_when_asked_for_and_in_another_process(folder):
    source = read_coco(folder / "truth.json", folder / "images").sources["image"]
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - what a loader's worker does
    np.testing.assert_array_equal(source.take(np.array([2]))[0], again[2])
    before = source.fingerprint()
    PIL.Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "images" / "b" / "three.png")
    assert source.fingerprint() != before


def test_a_radiograph_in_dicom_is_read(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pixels = np.arange(80, dtype=np.uint16).reshape(8, 10)
    found = pydicom.dataset.FileDataset(str(tmp_path / "x.dcm"), {}, preamble=b"\0" * 128)
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.Modality, found.Rows, found.Columns = "DX", 8, 10
    found.PhotometricInterpretation, found.SamplesPerPixel, found.PixelRepresentation = "MONOCHROME2", 1, 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    found.PixelData = pixels.tobytes()
    found.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    (tmp_path / "truth.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "x.dcm", "patient_id": "p"}],
                "categories": [{"id": 1, "name": "nodule"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
            }
        )
    )
    cohort = read_coco(tmp_path / "truth.json")
    np.testing.assert_array_equal(cohort.sources["image"][0][..., 0], pixels)
    assert cohort.table[["image_height", "image_width"]].to_numpy().tolist() == [[8, 10]]


def test_sizes_that_are_not_stated_come_from_the_files(tmp_path):
    changed = content()
    for entry in changed["images"]:
        del entry["width"], entry["height"]
    cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert cohort.table[["image_height", "image_width"]].to_numpy().tolist() == [[20, 30], [24, 18], [16, 16]]


def test_a_cohort_written_and_read_again_is_the_same(folder):
    first = read_coco(folder / "truth.json", folder / "images")
    ids = write_coco(folder / "again.json", first)
    assert (ids.images, ids.categories) == ({"10": 10, "20": 20, "30": 30}, {"mass": 1, "nodule": 2})
    again = read_coco(folder / "again.json", folder / "images")
    assert again.fingerprint == first.fingerprint
    for own, other in zip(boxes_of(first), boxes_of(again), strict=True):
        np.testing.assert_array_equal(own.corners, other.corners)
    truth = coco_truth(json.loads((folder / "again.json").read_text()), where="again.json")
    assert truth.cases == first.case_id
    assert truth.patients == tuple(first.patient_id)


def made_up(n=4, size=40):
    rng = np.random.default_rng([8, 2])
    corners = np.concatenate([np.sort(rng.uniform(0, 0.4, (n, 1, 2))), np.sort(rng.uniform(0.5, 1, (n, 1, 2)))], -1)
    boxes = [Boxes(own * size, np.array([i % 2], np.int32)) for i, own in enumerate(corners[..., [0, 1, 2, 3]])]
    images = rng.integers(0, 255, (n, size, size, 1)).astype(np.uint8)
    return Cohort.from_arrays(
        {"image": images}, boxes=boxes, box_classes=("x", "y"), case_id=[f"c{i}" for i in range(n)]
    )


def found_in(cohort):
    """Every second box moved a little, each with a score, and one of the wrong class."""
    rows = []
    for i, (case, boxes) in enumerate(zip(cohort.case_id, boxes_of(cohort), strict=True)):
        for corners, kind in zip(boxes.corners + (i % 2) * 3, boxes.classes, strict=True):
            x0, y0, x1, y1 = corners
            label = cohort.box_classes[(int(kind) + (i == 3)) % 2]
            rows.append((case, x0, y0, x1, y1, label, 0.9 - 0.1 * i))
    return pd.DataFrame(rows, columns=["case_id", "x0", "y0", "x1", "y1", "class", "score"])


def test_results_are_those_that_evaluate_boxes_reads(tmp_path):
    cohort = made_up()
    ids = write_coco(tmp_path / "truth.json", cohort)
    detections = found_in(cohort)
    write_coco_results(tmp_path / "results.json", detections, ids)
    truth = coco_truth(json.loads((tmp_path / "truth.json").read_text()), where="truth.json")
    [read] = coco_detections(
        json.loads((tmp_path / "results.json").read_text()), truth, where="results.json", model="m"
    )
    np.testing.assert_allclose(read.boxes, detections[["x0", "y0", "x1", "y1"]], rtol=1e-12)
    assert [truth.classes[label] for label in read.label] == detections["class"].tolist()
    assert [truth.cases[case] for case in read.case] == detections["case_id"].tolist()
    assert coco_ids(tmp_path / "truth.json") == coco_ids(cohort) == ids


def test_the_program_published_with_coco_reads_both_files(tmp_path):
    """Average precision from the files by pycocotools equals that from the cohort's own boxes."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    from fusion_jax.evaluation.detection import average_precision, coco_summary
    from fusion_jax.evaluation.detection_matching import match_boxes

    cohort, size = made_up(), 40
    detections = found_in(cohort)
    masks = [np.zeros((size, size), bool) for _ in range(len(detections))]
    for mask, (x0, y0, x1, y1) in zip(masks, detections[["x0", "y0", "x1", "y1"]].to_numpy(int), strict=True):
        mask[y0:y1, x0:x1] = True
    ids = write_coco(tmp_path / "truth.json", cohort)
    write_coco_results(tmp_path / "results.json", detections, ids, segmentations=[run_length(mask) for mask in masks])
    plain = detections.assign(model="m")
    write_coco_results(tmp_path / "boxes.json", plain, ids)
    with contextlib.redirect_stdout(io.StringIO()):
        published = coco.COCO(str(tmp_path / "truth.json"))
        assert len(published.loadRes(str(tmp_path / "results.json")).anns) == 4
        judge = cocoeval.COCOeval(published, published.loadRes(str(tmp_path / "boxes.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    case = np.repeat(np.arange(4), [len(own.corners) for own in boxes_of(cohort)])
    truth_label = np.concatenate([own.classes for own in boxes_of(cohort)])
    matches = match_boxes(
        np.concatenate([own.corners for own in boxes_of(cohort)]),
        case,
        truth_label,
        detections[["x0", "y0", "x1", "y1"]].to_numpy(),
        np.array([cohort.case_id.index(name) for name in detections["case_id"]]),
        np.array([cohort.box_classes.index(name) for name in detections["class"]]),
        detections["score"].to_numpy(),
        cases=4,
        classes=2,
    )
    summary = coco_summary(average_precision(matches))
    assert 0 < summary["AP"] < 1
    np.testing.assert_allclose([summary["AP"], summary["AP50"]], judge.stats[:2], rtol=1e-9)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 4), bool),
        np.ones((5, 4), bool),
        np.eye(7, dtype=bool),
        np.random.default_rng([8, 3]).random((60, 50)) < 0.02,
        np.pad(np.ones((300, 200), np.uint8), ((7, 90), (33, 2))),
    ],
)
def test_masks_are_packed_as_coco_packs_them(mask):
    codes = pytest.importorskip("pycocotools.mask")
    published = codes.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = run_length(mask)
    assert (found["size"], found["counts"]) == (published["size"], published["counts"].decode())
    assert codes.area(found) == np.count_nonzero(mask)


# Boxes that are special


def test_boxes_of_a_crowd_are_left_out_and_counted(tmp_path, caplog):
    changed = content()
    changed["annotations"][0]["iscrowd"] = 1
    with caplog.at_level(logging.WARNING, "fusion_jax.data.coco"):
        cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert [boxes.corners.tolist() for boxes in boxes_of(cohort)] == [[[0, 0, 30, 20]], [[4, 4, 12, 12]], []]
    assert [boxes.classes.tolist() for boxes in boxes_of(cohort)] == [[0], [0], []]
    assert "1 annotation for a crowd left out" in caplog.text


def test_a_box_that_stands_there_twice_is_taken_once(tmp_path, caplog):
    changed = content()
    # Cut at the edge, the second is the first; the third is of another class.
    changed["annotations"] += [
        {"id": 4, "image_id": 10, "category_id": 3, "bbox": [-2, 0, 32, 20]},
        {"id": 5, "image_id": 10, "category_id": 7, "bbox": [0, 0, 30, 20]},
    ]
    with caplog.at_level(logging.WARNING, "fusion_jax.data.coco"):
        cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert boxes_of(cohort)[0].corners.tolist() == [[0, 0, 30, 20]] * 2
    assert boxes_of(cohort)[0].classes.tolist() == [0, 1]
    assert boxes_of(cohort)[1].corners.tolist() == [[1, 2, 11, 13.5], [4, 4, 12, 12]]
    assert "1 boxes left out that their image has already" in caplog.text


@pytest.mark.parametrize("none", [None, ""])
def test_patients_that_are_not_known_are_no_patient_of_that_name(tmp_path, none, caplog):
    changed = content()
    for image in changed["images"]:
        image["patient_id"] = none
    cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert len(set(cohort.patient_id)) == 3
    assert "no patient ids" in caplog.text
    changed["images"][0]["patient_id"] = "p0"
    with pytest.raises(ValueError, match="has no patient_id, others have one"):
        read_coco(written(tmp_path, changed), tmp_path / "images")


def test_an_area_of_zero_is_that_of_the_box():
    changed = content()
    changed["annotations"][0]["area"] = 0
    assert coco_truth(changed, where="truth.json").area.tolist() == [115, 600, 64]


def test_a_box_over_the_edge_ends_there_and_one_outside_is_refused(tmp_path, caplog):
    changed = content()
    changed["annotations"][1]["bbox"] = [-3, 5, 40, 10]
    with caplog.at_level(logging.WARNING, "fusion_jax.data.coco"):
        cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert boxes_of(cohort)[0].corners.tolist() == [[0, 5, 30, 15]]
    assert "1 boxes reach over the edge" in caplog.text
    changed["annotations"][1]["bbox"] = [31, 5, 4, 10]
    with pytest.raises(
        ValueError, match=r"image 10: a box from \(31, 5\) to \(35, 15\) lies outside of its image of 30 x 20 pixels"
    ):
        read_coco(written(tmp_path, changed), tmp_path / "images")


# The clinical table

VITALS = pd.DataFrame({"image_id": [30, 10, 20], "age": [50.0, 61.0, np.nan], "sex": ["F", "M", "F"]})


def with_key(key, cells):
    return VITALS.drop(columns="image_id").assign(**{key: cells})


@pytest.mark.parametrize(
    "table",
    [
        VITALS,
        VITALS.set_index("image_id"),
        with_key("case_id", ["30", "10", "20"]),
        with_key("file_name", ["b/three.png", "a/one.png", "a/two.jpg"]),
        with_key("filename", ["three.png", "one.png", "two.jpg"]),
        with_key("image_id", ["three", "one", "two"]),
        VITALS.assign(file_name="of another naming", case_id=["30", "10", "20"]),
    ],
)
def test_rows_find_their_image_by_id_or_file_name(folder, table):
    cohort = read_coco(folder / "truth.json", folder / "images", table=table)
    assert cohort.table["age"].fillna(-1).tolist() == [61, -1, 50]
    assert cohort.columns("input") == ("age", "sex")
    assert cohort.sources["clinical"].names == ("age", "sex")
    assert cohort.present["clinical"].all()


def test_a_table_from_a_file_keeps_ids_as_they_are_written(tmp_path):
    changed = content()
    for entry, name in zip(changed["images"], ("007", "008", "009"), strict=True):
        entry["id"] = name
    for box in changed["annotations"]:
        box["image_id"] = {10: "007", 20: "008"}[box["image_id"]]
    path = written(tmp_path, changed)
    (tmp_path / "vitals.csv").write_text("scan,age,who,died\n008,40,p0,0\n007,50,p0,1\n009,60,p1,0\n")
    cohort = read_coco(
        path, tmp_path / "images", table=tmp_path / "vitals.csv", case="scan", patient="who", inputs=["age"]
    )
    assert cohort.table["age"].tolist() == [50, 40, 60]
    assert cohort.patient_id.tolist() == ["p0", "p0", "p1"]
    assert cohort.columns("input") == ("age",)
    assert cohort.role("died") == "never"


def test_images_without_a_row_lack_the_source_and_rows_without_an_image_are_named(folder, caplog):
    table = VITALS.iloc[:2].assign(image_id=[30, 99])
    with caplog.at_level(logging.WARNING, "fusion_jax.data.coco"):
        cohort = read_coco(folder / "truth.json", folder / "images", table=table)
    assert cohort.present["clinical"].tolist() == [False, False, True]
    assert "1 of 2 rows are of no image, such as '99'" in caplog.text
    assert "no row for 2 of 3 images: 10, 20" in caplog.text


def test_a_row_is_there_whichever_of_its_cells_are_filled(folder):
    empty = VITALS.assign(age=[50.0, 61.0, np.nan], sex=["F", "M", None])
    for table in (empty, empty.assign(view=["AP", "PA", "AP"])):
        assert read_coco(folder / "truth.json", folder / "images", table=table).present["clinical"].all()


def test_without_patients_the_log_warns(tmp_path, caplog):
    changed = content()
    for entry in changed["images"]:
        del entry["patient_id"]
    with caplog.at_level(logging.WARNING, "fusion_jax.data.coco"):
        cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    assert cohort.patient_id.tolist() == ["10", "20", "30"]
    assert "no patient ids; each of 3 images counts as a patient of its own" in caplog.text
    cohort = read_coco(tmp_path / "truth.json", tmp_path / "images", table=VITALS.assign(patient_id=["x", "y", "y"]))
    assert cohort.patient_id.tolist() == ["y", "y", "x"]
    assert cohort.columns("input") == ("age", "sex")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (VITALS.assign(image_id=[30, 30, 10]), {}, r"table: image_id '30' stands in rows 0 and 1; expected one"),
        (
            VITALS.assign(image_id=[7, 8, 9]),
            {},
            r"names none of the 3 images; it holds 7, 8, 9, the images have the ids",
        ),
        (VITALS.assign(image_id=[30, None, 10]), {}, r"column 'image_id' is empty in row 1"),
        (VITALS.rename(columns={"image_id": "scan"}), {}, r"no column 'case_id' or .*'filename' that names the image"),
        (VITALS, {"inputs": ["age", "bmi"]}, r"no column 'bmi'; it has image_id, age, sex"),
        (VITALS, {"inputs": ["image_id"]}, r"column 'image_id' names the image or its patient and is no input"),
        (VITALS, {"patient": "who"}, r"no column 'who'"),
        (VITALS.assign(patient_id=["p1", "p0", "p9"]), {}, r"image 20 is of patient p9, and of p0 in the annotations"),
        (VITALS[["image_id"]], {}, r"no column beside 'image_id' is an input"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder, table, options, message):
    with pytest.raises(ValueError, match=message):
        read_coco(folder / "truth.json", folder / "images", table=table, **options)


def test_a_column_of_numbers_that_are_ids_and_file_names_is_refused(tmp_path):
    changed = content()
    changed["images"] = [
        {"id": i, "file_name": f"{4 - i}.png", "width": 9, "height": 9, "patient_id": "p"} for i in (1, 2, 3)
    ]
    changed["annotations"] = []
    (tmp_path / "truth.json").write_text(json.dumps(changed))
    for i in (1, 2, 3):
        PIL.Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / f"{i}.png")
    table = pd.DataFrame({"scan": [1, 2, 3], "age": [10.0, 20.0, 30.0]})
    with pytest.raises(ValueError, match="'scan' can be read as ids and as names of files, which say different images"):
        read_coco(tmp_path / "truth.json", table=table, case="scan")
    assert read_coco(tmp_path / "truth.json", table=table.rename(columns={"scan": "file_name"})).table[
        "age"
    ].tolist() == [30, 20, 10]


# Files that are wrong


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.pop("categories"), ValueError, r"truth\.json: no truth of COCO"),
        (lambda c: c["images"][1].pop("file_name"), ValueError, r"image 20 has no file_name"),
        (lambda c: c["images"][1].update(file_name="../x.png"), ValueError, r"image 20 .*leads out of the folder"),
        (lambda c: c["images"][1].update(file_name="/etc/x.png"), ValueError, r"image 20 .*leads out of the folder"),
        (lambda c: c["images"][0].update(width=30.5), ValueError, r"image 10 has height and width \(20, 30\.5\)"),
        (lambda c: c["images"][0].update(width="30"), ValueError, r"image 10 has height and width \(20, '30'\)"),
        (lambda c: c["images"][0].update(width=0), ValueError, r"image 10 has height and width \(20, 0\)"),
        (lambda c: c["images"][2].update(file_name="b/x.png"), FileNotFoundError, r"x\.png: no such file, of image 30"),
        (
            lambda c: c["annotations"][0].update(image_id=5),
            ValueError,
            r"annotations\[0\]: its case is not in the list",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=5),
            ValueError,
            r"annotations\[0\]: category 5; expected one",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), ValueError, r"annotations\[0\] is no box"),
    ],
)
def test_annotations_that_cannot_be_are_refused(tmp_path, change, error, message):
    changed = content()
    change(changed)
    path = written(tmp_path, changed)
    with pytest.raises(error, match=message):
        read_coco(path, tmp_path / "images")


def test_an_image_of_another_size_than_stated_is_refused_when_it_is_read(tmp_path):
    changed = content()
    changed["images"][0].update(width=60, height=40)
    cohort = read_coco(written(tmp_path, changed), tmp_path / "images")
    with pytest.raises(
        UnreadableFile, match=r"one\.png: image of case 10 is 30 pixels wide and 20 high, its annotations say 60 and 40"
    ):
        cohort.image("image", 0)


def test_what_is_no_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file; expected annotations of COCO"):
        read_coco(tmp_path / "none.json")
    (tmp_path / "truth.json").write_text("[1, 2")
    with pytest.raises(UnreadableFile, match=r"truth\.json: is no JSON"):
        read_coco(tmp_path / "truth.json")


def test_columns_without_a_table_are_refused(folder):
    with pytest.raises(ValueError, match="columns of a table are named, and no table is given"):
        read_coco(folder / "truth.json", folder / "images", patient="who")


# Results that are wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), r"detections: no column score; the table has case_id"),
        (lambda t: t.assign(case_id="c9"), r"row 0 is of case 'c9', which the truth does not have; it has c0, c1"),
        (lambda t: t.assign(**{"class": "z"}), r"row 0 is of class 'z'"),
        (lambda t: t.assign(score=np.nan), r"row 0 holds .*expected finite box and score"),
        (lambda t: t.assign(model=["m", "n", "m", "m"]), r"of several models \(m, n\)"),
    ],
)
def test_detections_that_are_no_results_are_refused(tmp_path, change, message):
    cohort = made_up()
    with pytest.raises(ValueError, match=message):
        write_coco_results(tmp_path / "results.json", change(found_in(cohort)), coco_ids(cohort))
    assert not (tmp_path / "results.json").exists()


def test_masks_are_one_a_row(tmp_path):
    cohort = made_up()
    with pytest.raises(ValueError, match="1 segmentations of 4 detections; expected one a row"):
        write_coco_results(
            tmp_path / "results.json", found_in(cohort), coco_ids(cohort), segmentations=[run_length(np.eye(3))]
        )


def test_a_cohort_without_boxes_has_no_truth(tmp_path):
    cohort = Cohort.from_arrays({"image": np.zeros((2, 4, 4, 1))})
    with pytest.raises(ValueError, match="cohort: no boxes; expected a cohort with boxes"):
        write_coco(tmp_path / "truth.json", cohort)
    two = Cohort.from_arrays(
        {"pa": np.zeros((1, 4, 4, 1)), "lateral": np.zeros((1, 4, 4, 1))},
        boxes=[Boxes(np.zeros((0, 4)), np.zeros(0, np.int32))],
        box_classes=("x",),
    )
    with pytest.raises(ValueError, match=re.escape("boxes lie on one of pa, lateral; expected `boxes_of`")):
        write_coco(tmp_path / "truth.json", two)
