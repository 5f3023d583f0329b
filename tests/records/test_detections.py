"""Tables of boxes: what is read from them, and the row that an error names."""

from typing import Any

import pandas as pd
import pytest

from fusion_jax.records.detections import (
    check_case_list,
    check_detections,
    check_truth,
    coco_detections,
    coco_truth,
)

HEADER = ["case_id", "x0", "y0", "x1", "y1", "class"]
NONE = [None] * 5


def table(*rows: list[Any], more: tuple[str, ...] = ()) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*HEADER, *more])


def truth_of(*rows: list[Any], more: tuple[str, ...] = (), **options: Any) -> Any:
    return check_truth(table(*rows, more=more), where="truth.csv", **options)


MASS = ["a", 1, 1, 5, 4, "mass"]
NODULE = ["b", 0, 0, 9, 9, "nodule 10"]
TRUTH = truth_of(MASS, NODULE, ["b", 0, 0, 9, 9, "nodule 9"], ["n", *NONE])


def found_in(*rows: list[Any], more: tuple[str, ...] = (), truth: Any = TRUTH) -> Any:
    return check_detections(table(*rows, more=("score", *more)), truth, where="found.csv", model="net")


def test_cases_without_a_box_are_known_and_classes_are_sorted_as_people_do():
    assert TRUTH.cases == ("a", "b", "n")
    assert TRUTH.classes == ("mass", "nodule 9", "nodule 10")
    assert TRUTH.case.tolist() == [0, 1, 1]
    assert TRUTH.label.tolist() == [0, 2, 1]
    assert TRUTH.area.tolist() == [12, 81, 81]
    assert TRUTH.patients is None
    assert not TRUTH.crowd.any()


def test_crowds_areas_and_patients_are_taken_over():
    more = ("crowd", "area", "patient_id")
    truth = truth_of([*MASS, "yes", None, "p1"], [*NODULE, 0, 20.5, "p1"], ["c", *NONE, None, None, 2.0], more=more)
    assert truth.crowd.tolist() == [True, False]
    assert truth.area.tolist() == [12, 20.5]
    assert truth.patients == ("p1", "p1", "2")


def test_a_list_of_cases_adds_those_without_a_box_and_patients():
    cases = check_case_list(
        pd.DataFrame({"case_id": [3.0, "a", "b"], "patient_id": ["q", "p", "p"]}), where="cases.csv"
    )
    truth = truth_of(MASS, NODULE, cases=cases, classes=["nodule 10", "mass", "oedema"])
    assert (truth.cases, truth.patients) == (("3", "a", "b"), ("q", "p", "p"))
    assert truth.classes == ("nodule 10", "mass", "oedema")
    assert truth.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [MASS, ["b", 5, 0, 5, 9, "mass"]],
            r"row 3 is no box \(x0 5, y0 0, x1 5, y1 9\); expected x0 < x1 and y0 < y1",
        ),
        ([MASS, ["b", None, 0, 5, 9, "mass"]], r"row 3 is no box \(x0 nan,.*leaves all four cells empty"),
        ([["", 1, 1, 2, 2, "mass"]], "row 2: no case_id"),
        ([MASS, ["b", 1, 1, 2, 2, None]], "row 3: a box without a class"),
        ([MASS, NODULE, MASS], "row 2 and row 4 are the same box, of case a"),
        ([MASS, ["a", *NONE]], "row 2 and row 3 are of case a, and one has no box"),
        ([["a", *NONE], ["b", *NONE]], "no box in 2 rows; nothing can be found"),
    ],
)
def test_truth_that_cannot_be_is_named_by_row(rows, message):
    with pytest.raises(ValueError, match=f"truth.csv: {message}"):
        truth_of(*rows)


@pytest.mark.parametrize(
    ("options", "more", "rows", "message"),
    [
        ({}, ("patient_id",), [[*MASS, "p"], [*NODULE, None]], "case b has no patient_id, others have one"),
        ({}, ("patient_id",), [[*MASS, "p"], ["a", 5, 5, 6, 6, "x", "q"]], "row 3: case a is of patient q, and of p"),
        ({}, ("crowd",), [[*MASS, "maybe"]], "row 2: crowd is 'maybe'"),
        ({}, ("area",), [[*MASS, -1.0]], "row 2: an area that is not positive"),
        ({"cases": {"b": ""}}, (), [MASS], "row 2: its case is not in the list of cases: a"),
        ({"cases": {"a": "q"}}, ("patient_id",), [[*MASS, "p"]], "case a is of patient p, and of q in the list"),
        ({"classes": ["nodule"]}, (), [MASS], "row 2: a class that is not among nodule: mass"),
        ({"classes": ["mass", "mass"]}, (), [MASS], "expected every one once"),
    ],
)
def test_contradictions_are_named(options, more, rows, message):
    with pytest.raises(ValueError, match=message):
        truth_of(*rows, more=more, **options)


def test_a_table_needs_its_columns():
    with pytest.raises(ValueError, match=r"truth.csv: no column class; expected case_id, x0, y0, x1, y1, class, found"):
        check_truth(table(MASS).drop(columns="class"), where="truth.csv")
    with pytest.raises(ValueError, match=r"found.csv: no column score"):
        check_detections(table(MASS), TRUTH, where="found.csv", model="net")


def test_models_are_told_apart_and_rows_keep_their_order():
    rows = [[*NODULE, 0.2, "A"], [*MASS, 0.9, "B"], [*NODULE, 0.1, "A"], [*MASS, 0.3, None]]
    first, second, unnamed = found_in(*rows, more=("model",))
    assert [part.model for part in (first, second, unnamed)] == ["A", "B", "net"]
    assert (first.case.tolist(), first.label.tolist(), first.score.tolist()) == ([1, 1], [2, 2], [0.2, 0.1])
    [nothing] = found_in()
    assert (nothing.model, nothing.boxes.shape) == ("net", (0, 4))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["z", 1, 1, 2, 2, "mass", 0.5]], "row 2: a case that the truth does not know: z.*row with an empty box"),
        ([["a", 1, 1, 2, 2, "Mass", 0.5]], r"row 2: class 'Mass'; expected one of .*Did you mean 'mass'\?.*--classes"),
        ([[*MASS, None]], "row 2: no finite score"),
        ([[*MASS, 0.5], ["a", 1, 4, 5, 4, "mass", 0.4]], "row 3 is no box"),
        ([["a", *NONE, 0.4]], "row 2: class ''"),
        ([[*MASS, 0.5], [*MASS, 0.4], [*MASS, 0.5]], "row 2 and row 4 are the same detection, of case a"),
    ],
)
def test_detections_that_cannot_be_are_named_by_row(rows, message):
    with pytest.raises(ValueError, match=f"found.csv: {message}"):
        found_in(*rows)


def test_patients_of_detections_agree_with_the_truth():
    more = ("patient_id",)
    with pytest.raises(ValueError, match="several cases are of one patient, and the truth has no column patient_id"):
        found_in([*MASS, 0.5, "p"], [*NODULE, 0.5, "p"], more=more)
    truth = truth_of([*MASS, "p"], [*NODULE, "q"], more=more)
    with pytest.raises(ValueError, match="case b is of patient p, and of q in the truth"):
        found_in([*NODULE, 0.5, "p"], more=more, truth=truth)


def test_a_list_names_every_case_once():
    with pytest.raises(ValueError, match=r"cases.csv: row 3: case 'a' stands there twice"):
        check_case_list(pd.DataFrame({"case_id": ["a", "a"]}), where="cases.csv")


# COCO.


def coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 10}, {"id": 9}],
        "categories": [{"id": 4, "name": "nodule"}, {"id": 2, "name": "mass"}],
        "annotations": [{"id": 1, "image_id": 10, "category_id": 4, "bbox": [1, 2, 3, 4], "area": 7, "iscrowd": 1}] * 2,
    }
    return content | changes


def test_coco_goes_by_its_ids():
    truth = coco_truth(coco(), where="truth.json")
    assert (truth.cases, truth.classes, truth.categories) == (("9", "10"), ("mass", "nodule"), (2, 4))
    assert truth.boxes.tolist() == [[1, 2, 4, 6]] * 2
    assert (truth.case.tolist(), truth.label.tolist()) == ([1, 1], [1, 1])
    assert (truth.area.tolist(), truth.crowd.tolist()) == ([7, 7], [True, True])
    result = {"image_id": 9, "category_id": 2, "bbox": [0, 0, 2, 2], "score": 0.5}
    [found] = coco_detections([result], truth, where="found.json", model="net")
    assert (found.case.tolist(), found.label.tolist(), found.boxes.tolist()) == ([0], [0], [[0, 0, 2, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no truth of COCO; expected COCO's object"),
        (coco(images=[{}]), "an image or a category lacks 'id'"),
        (coco(images=[{"id": 9}, {"id": 9}]), "an image id or a category name stands there twice"),
        (coco(annotations=[{"image_id": 9, "category_id": 2}]), r"annotations\[0\]: KeyError 'bbox'"),
        (
            coco(annotations=[{"image_id": 9, "category_id": 7, "bbox": [0, 0, 1, 1]}]),
            r"annotations\[0\]: category 7; expected one of 2, 4",
        ),
        (coco(annotations=[{"image_id": 8, "category_id": 2, "bbox": [0, 0, 1, 1]}]), "not in the list of cases: 8"),
        (coco(annotations=[{"image_id": 9, "category_id": 2, "bbox": [0, 0, 0, 1]}]), r"annotations\[0\] is no box"),
    ],
)
def test_coco_that_cannot_be_is_named(content, message):
    with pytest.raises(ValueError, match=f"truth.json: {message}" if "list" not in message else message):
        coco_truth(content, where="truth.json")


def test_results_of_coco_need_its_truth_and_scores():
    with pytest.raises(ValueError, match=r"name their classes by number, and the truth is a table"):
        coco_detections([], TRUTH, where="found.json", model="net")
    truth = coco_truth(coco(), where="truth.json")
    with pytest.raises(ValueError, match="no results of COCO; expected a list"):
        coco_detections({}, truth, where="found.json", model="net")
    with pytest.raises(ValueError, match=r"result\[0\]: no finite score"):
        coco_detections(
            [{"image_id": 9, "category_id": 2, "bbox": [0, 0, 2, 2]}], truth, where="found.json", model="net"
        )
