"""Tables of boxes: what was there, and what detectors found.

A table of truth has one row a box and, for a case without any box, one row whose box is empty: false detections on
normal images count, so images without a finding have to be known. Whatever a table says of boxes that cannot be, of
cases or classes that nobody knows, or twice, is an error that names the row.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "BOX_COLUMNS",
    "NUMBER_COLUMNS",
    "TEXT_COLUMNS",
    "BoxDetections",
    "BoxTruth",
    "check_case_list",
    "check_detections",
    "check_truth",
    "coco_detections",
    "coco_truth",
]

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
TEXT_COLUMNS = ("case_id", "patient_id", "class", "model", "crowd")
"""Columns to be read as they are written: ids may have leading zeros."""

NUMBER_COLUMNS = (*BOX_COLUMNS, "score", "area")

TRUE = frozenset({"1", "1.0", "true", "yes"})
FALSE = frozenset({"", "0", "0.0", "false", "no"})

Row = Callable[[int], str]
"""How a message calls the row with this number."""


class BoxTruth(NamedTuple):
    """What is there to be found.

    Attributes:
      cases: ids of all images, those without a box included.
      patients: of each case; None where no patients are known.
      classes: names.
      case, label: index into `cases` and `classes` of each box, shape `(g,)`.
      boxes: `(x0, y0, x1, y1)` in pixels, shape `(g, 4)`.
      crowd: boxes that never count, shape `(g,)`.
      area: of the objects in square pixels, shape `(g,)`.
      categories: COCO's number of each class; None for a table.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...] | None
    classes: tuple[str, ...]
    case: Int[np.ndarray, "g"]
    label: Int[np.ndarray, "g"]
    boxes: Float[np.ndarray, "g 4"]
    crowd: Bool[np.ndarray, "g"]
    area: Float[np.ndarray, "g"]
    categories: tuple[int, ...] | None = None


class BoxDetections(NamedTuple):
    """What one model found: index of case and class, box and score of each detection, in the order of the rows."""

    model: str
    case: Int[np.ndarray, "d"]
    label: Int[np.ndarray, "d"]
    boxes: Float[np.ndarray, "d 4"]
    score: Float[np.ndarray, "d"]


def check_case_list(table: "pandas.DataFrame", *, where: str) -> dict[str, str]:
    """Cases that were looked at, and the patient of each ("" where none is given).

    Args:
      table: column `case_id`, and `patient_id` if there are patients.
      where: the file, for messages.

    Raises:
      ValueError: no column `case_id`, an empty id, or a case twice.

    Example:
      >>> import pandas as pd
      >>> check_case_list(pd.DataFrame({"case_id": ["a", "b"]}), where="cases.csv")
      {'a': '', 'b': ''}
    """
    _need(table, ("case_id",), where)
    names, patients = _words(table, "case_id"), _words(table, "patient_id")
    found: dict[str, str] = {}
    for row, (name, patient) in enumerate(zip(names, patients, strict=True)):
        if not name or name in found:
            what = f"case {name!r} stands there twice" if name else "no case_id"
            raise ValueError(f"{where}: {_line(row)}: {what}; expected every case once.")
        found[name] = patient
    return found


def check_truth(
    table: "pandas.DataFrame",
    *,
    where: str,
    cases: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> BoxTruth:
    """Truth from a table with columns `case_id, x0, y0, x1, y1, class`.

    Optional columns: `patient_id`; `crowd` (1 for boxes that never count, such as those a reader was not sure of);
    `area` of the object in square pixels, by default of the box.

    Args:
      table: one row a box; the four cells of a box are empty in a row that only says that there is such a case.
      where: the file, for messages.
      cases: all cases and their patients, from `check_case_list`; by default every case in the table.
      classes: their names in order; by default those in the table, sorted.

    Raises:
      ValueError: boxes that cannot be, unknown cases or classes, doubled rows, patients that contradict each other.

    Example:
      >>> import pandas as pd
      >>> rows = {"case_id": ["a", "b"], "x0": [1, None], "y0": [1, None], "x1": [5, None], "y1": [4, None]}
      >>> truth = check_truth(pd.DataFrame(rows | {"class": ["mass", None]}), where="truth.csv")
      >>> truth.cases, truth.classes, truth.area.tolist()
      (('a', 'b'), ('mass',), [12.0])
    """
    _need(table, ("case_id", *BOX_COLUMNS, "class"), where)
    return _truth(table, where, _line, cases, classes)


def check_detections(table: "pandas.DataFrame", truth: BoxTruth, *, where: str, model: str) -> list[BoxDetections]:
    """Detections from a table with columns `case_id, x0, y0, x1, y1, class, score` and, for several models, `model`.

    Args:
      table: one row a detection.
      truth: of the same cases.
      where: the file, for messages.
      model: its name where the table has no column of models.

    Raises:
      ValueError: boxes that cannot be, scores missing, cases or classes that the truth does not know, doubled rows.
    """
    _need(table, ("case_id", *BOX_COLUMNS, "class", "score"), where)
    return _detections(table, truth, where, _line, model)


def coco_truth(content: Any, *, where: str) -> BoxTruth:
    """Truth from COCO's JSON: `images`, `categories`, `annotations` with `bbox` [x, y, width, height].

    Cases are called by the `id` of their image, in its order; an image may have a `patient_id`. Classes are called by
    the name of their category. `iscrowd` and `area` are taken over; an area of 0, which tools write that do not measure
    it, is that of the box.

    Args:
      content: as `json.load` gives it.
      where: the file, for messages.

    Raises:
      ValueError: it is no such file, or its boxes cannot be.

    Example:
      >>> box = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 2]}
      >>> content = {"images": [{"id": 7}], "categories": [{"id": 1, "name": "mass"}], "annotations": [box]}
      >>> coco_truth(content, where="truth.json").boxes.tolist()
      [[0.0, 0.0, 4.0, 2.0]]
    """
    expected = "expected COCO's object with images, categories and annotations"
    if not isinstance(content, Mapping) or not {"images", "categories", "annotations"} <= content.keys():
        raise ValueError(f"{where}: no truth of COCO; {expected}.")
    try:
        images = sorted(content["images"], key=lambda image: image["id"])
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = {category["id"]: str(category["name"]) for category in categories}
        listed_cases = {str(image["id"]): _patient(image.get("patient_id")) for image in images}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: an image or a category lacks {error}; {expected}.") from None
    if len(listed_cases) < len(images) or len(set(names.values())) < len(categories):
        raise ValueError(f"{where}: an image id or a category name stands there twice; expected every one once.")
    table = _coco_table(content["annotations"], names, where, "annotations", ("area",))
    crowd = [str(int(bool(item.get("iscrowd", 0)))) for item in content["annotations"]]
    area: Any = table["area"]
    found = _truth(
        table.assign(crowd=crowd, area=area.where(area != 0)),
        where,
        lambda row: f"annotations[{row}]",
        listed_cases,
        [*names.values()],
        repeated=True,  # annotations have ids of their own
    )
    return found._replace(categories=tuple(names))


def coco_detections(content: Any, truth: BoxTruth, *, where: str, model: str) -> list[BoxDetections]:
    """Detections from COCO's JSON of results: a list with `image_id`, `category_id`, `bbox` and `score`.

    Args:
      content: as `json.load` gives it.
      truth: from `coco_truth`, which knows the categories.
      where: the file, for messages.
      model: its name.

    Raises:
      ValueError: it is no such file, the truth is a table, or as for `check_detections`.
    """
    if truth.categories is None:
        raise ValueError(
            f"{where}: detections of COCO name their classes by number, and the truth is a table. Give the truth as "
            "COCO's JSON, too, or the detections as a table."
        )
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(f"{where}: no results of COCO; expected a list of image_id, category_id, bbox and score.")
    names = dict(zip(truth.categories, truth.classes, strict=True))
    table = _coco_table(content, names, where, "result", ("score",))
    return _detections(table, truth, where, lambda row: f"result[{row}]", model)


# Both forms as one table.


def _patient(value: Any) -> str:
    """Empty where there is none."""
    return "" if value is None else str(value)


def _line(row: int) -> str:
    return f"row {row + 2}"  # of a file whose row 1 is the header


def _coco_table(
    items: Sequence[Any], names: Mapping[int, str], where: str, what: str, more: tuple[str, ...]
) -> "pandas.DataFrame":
    import pandas as pd

    columns: dict[str, list[Any]] = {name: [] for name in ("case_id", *BOX_COLUMNS, "class", *more)}
    for row, item in enumerate(items):
        try:
            x, y, width, height = map(float, item["bbox"])
            values = (str(item["image_id"]), x, y, x + width, y + height)
            category = item["category_id"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: {what}[{row}]: {type(error).__name__} {error}; expected image_id, category_id and bbox "
                "[x, y, width, height]."
            ) from None
        if category not in names:
            raise ValueError(f"{where}: {what}[{row}]: category {category}; expected one of {listed(names, 12)}.")
        extra = tuple(item.get(name) for name in more)
        for column, value in zip(columns.values(), (*values, names[category], *extra), strict=True):
            column.append(value)
    return pd.DataFrame(columns)


def _truth(
    table: "pandas.DataFrame",
    where: str,
    line: Row,
    cases: Mapping[str, str] | None,
    classes: Sequence[str] | None,
    *,
    repeated: bool = False,
) -> BoxTruth:
    names = _words(table, "case_id")
    _refuse(where, line, [not name for name in names], "no case_id", "Name the image")
    boxes = _numbers(table, BOX_COLUMNS)
    empty = np.asarray(np.isnan(boxes).all(axis=1))
    _check_boxes(where, line, boxes, ~empty, "A row without a box leaves all four cells empty")
    labels = _words(table, "class")
    _refuse(
        where,
        line,
        [not label and not none for label, none in zip(labels, empty, strict=True)],
        "a box without a class",
        "Fill it in",
    )

    patients = _patients_of(table, where, line, names)
    if cases is None:
        every = dict.fromkeys(names, "") | patients
    else:
        every = dict(cases)
        _refuse(
            where,
            line,
            [name not in every for name in names],
            "its case is not in the list of cases",
            "Add it there, or leave its rows out",
            names,
        )
        for name, patient in patients.items():
            if every[name] and every[name] != patient:
                raise ValueError(
                    f"{where}: case {name} is of patient {patient}, and of {every[name]} in the list of cases; they "
                    "must agree."
                )
            every[name] = patient
    ids = tuple(every.values())
    if any(ids) and not all(ids):
        lacking = [name for name, patient in every.items() if not patient]
        raise ValueError(
            f"{where}: case {listed(lacking)} has no patient_id, others have one. Give it for every case, or for none: "
            "then every case counts as a patient of its own."
        )
    known = _classes(where, line, labels, empty, classes)
    kept = np.flatnonzero(~empty)
    if not repeated:
        keys = [(names[row], labels[row], *boxes[row].tolist()) for row in kept]
        _refuse_doubled(where, line, kept, keys, "the same box")
    _check_empty_rows(where, line, names, empty)
    crowd = np.array([_is_true(where, line(row), word) for row, word in enumerate(_words(table, "crowd"))], bool)
    extents = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area = _numbers(table, ("area",))[:, 0]
    _refuse(
        where, line, (area <= 0) & ~empty, "an area that is not positive", "Leave the cell empty for that of the box"
    )
    area = np.where(np.isnan(area), extents, area)
    index = {name: number for number, name in enumerate(every)}
    place = {name: number for number, name in enumerate(known)}
    return BoxTruth(
        cases=tuple(every),
        patients=ids if any(ids) else None,
        classes=known,
        case=np.array([index[names[row]] for row in kept], np.int64),
        label=np.array([place[labels[row]] for row in kept], np.int64),
        boxes=boxes[kept],
        crowd=crowd[kept],
        area=area[kept],
    )


def _detections(table: "pandas.DataFrame", truth: BoxTruth, where: str, line: Row, model: str) -> list[BoxDetections]:
    names, labels = _words(table, "case_id"), _words(table, "class")
    index = {name: number for number, name in enumerate(truth.cases)}
    place = {name: number for number, name in enumerate(truth.classes)}
    _refuse(
        where,
        line,
        [name not in index for name in names],
        "a case that the truth does not know",
        "An image without any box needs a row with an empty box in the truth, or a list of all cases (--cases)",
        names,
    )
    unknown = [row for row, label in enumerate(labels) if label not in place]
    if unknown:
        label = labels[unknown[0]]
        close = difflib.get_close_matches(label, truth.classes, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{where}: {line(unknown[0])}: class {label!r}{_all_of(unknown)}; expected one of "
            f"{listed(truth.classes, 12)}.{hint} A class without any true box has to be named (--classes)."
        )
    boxes, score = _numbers(table, BOX_COLUMNS), _numbers(table, ("score",))[:, 0]
    _check_boxes(where, line, boxes, np.ones(len(boxes), bool), "Leave out detections without extent")
    _refuse(where, line, ~np.isfinite(score), "no finite score", "Give every detection its score")
    _check_patients(table, truth, where, line, names)
    models = [word or model for word in _words(table, "model")]
    keys = [
        (name, label, *box, value, own)
        for name, label, box, value, own in zip(names, labels, boxes.tolist(), score.tolist(), models, strict=True)
    ]
    _refuse_doubled(where, line, np.arange(len(keys)), keys, "the same detection")
    case = np.array([index[name] for name in names], np.int64)
    label = np.array([place[name] for name in labels], np.int64)
    own = np.array(models, object)
    return [
        BoxDetections(name, case[own == name], label[own == name], boxes[own == name], score[own == name])
        for name in dict.fromkeys(models or [model])
    ]


# Cells.


def _need(table: "pandas.DataFrame", columns: Sequence[str], where: str) -> None:
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise ValueError(
            f"{where}: no column {listed(lacking, len(columns))}; expected {', '.join(columns)}, found "
            f"{listed(table.columns, 12)}."
        )


def _words(table: "pandas.DataFrame", column: str) -> list[str]:
    """Cells as text, "" where missing."""
    if column not in table.columns:
        return [""] * len(table)
    missing = table[column].isna().tolist()
    return ["" if none else _word(cell) for cell, none in zip(table[column].tolist(), missing, strict=True)]


def _word(cell: Any) -> str:
    """A cell as text; a column of whole numbers with gaps holds 1.0 for 1."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _numbers(table: "pandas.DataFrame", columns: Sequence[str]) -> Float[np.ndarray, "n c"]:
    """Cells as numbers, NaN where missing."""
    given = table.reindex(columns=list(columns))
    return given.astype(float).to_numpy().reshape(len(table), len(columns))


def _all_of(rows: Sequence[int]) -> str:
    return f" ({len(rows)} such rows)" if len(rows) > 1 else ""


def _refuse(where: str, line: Row, bad: Any, what: str, way_out: str, names: Sequence[str] | None = None) -> None:
    rows = np.flatnonzero(np.asarray(bad, bool)).tolist()
    if rows:
        called = "" if names is None else f": {names[rows[0]]}"
        raise ValueError(f"{where}: {line(rows[0])}: {what}{called}{_all_of(rows)}. {way_out}.")


def _check_boxes(where: str, line: Row, boxes: np.ndarray, given: np.ndarray, way_out: str) -> None:
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    bad = given & ~(finite & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]))
    rows = np.flatnonzero(bad).tolist()
    if rows:
        found = ", ".join(f"{name} {value:g}" for name, value in zip(BOX_COLUMNS, boxes[rows[0]].tolist(), strict=True))
        raise ValueError(
            f"{where}: {line(rows[0])} is no box ({found}){_all_of(rows)}; expected x0 < x1 and y0 < y1, in pixels. "
            f"{way_out}."
        )


def _classes(
    where: str, line: Row, labels: Sequence[str], empty: np.ndarray, classes: Sequence[str] | None
) -> tuple[str, ...]:
    found = {label for label, none in zip(labels, empty, strict=True) if not none}
    if classes is None:
        if not found:
            raise ValueError(f"{where}: no box in {counted(len(labels), 'row')}; nothing can be found or missed.")
        return tuple(sorted(found, key=_natural))
    if len(set(classes)) < len(classes):
        raise ValueError(f"{where}: classes {listed(classes, 12)}; expected every one once.")
    _refuse(
        where,
        line,
        [not none and label not in classes for label, none in zip(labels, empty, strict=True)],
        f"a class that is not among {listed(classes, 12)}",
        "Name it, or leave its rows out",
        labels,
    )
    return tuple(classes)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _patients_of(table: "pandas.DataFrame", where: str, line: Row, names: Sequence[str]) -> dict[str, str]:
    """Patient of each case that has one."""
    found: dict[str, str] = {}
    for row, (name, patient) in enumerate(zip(names, _words(table, "patient_id"), strict=True)):
        if patient and found.setdefault(name, patient) != patient:
            raise ValueError(
                f"{where}: {line(row)}: case {name} is of patient {patient}, and of {found[name]} above; expected one "
                "patient a case."
            )
    return found


def _check_patients(table: "pandas.DataFrame", truth: BoxTruth, where: str, line: Row, names: Sequence[str]) -> None:
    found = _patients_of(table, where, line, names)
    if truth.patients is None:
        if len(set(found.values())) < len(found):
            raise ValueError(
                f"{where}: several cases are of one patient, and the truth has no column patient_id. Add it there, or "
                "to the list of cases (--cases): patients are drawn for intervals, and cases without a detection count."
            )
        return
    known = dict(zip(truth.cases, truth.patients, strict=True))
    for name, patient in found.items():
        if known[name] != patient:
            raise ValueError(
                f"{where}: case {name} is of patient {patient}, and of {known[name]} in the truth; they must agree."
            )


def _refuse_doubled(where: str, line: Row, rows: Any, keys: Sequence[Any], what: str) -> None:
    first: dict[Any, int] = {}
    for row, key in zip(rows, keys, strict=True):
        if first.setdefault(key, int(row)) != row:
            raise ValueError(
                f"{where}: {line(first[key])} and {line(int(row))} are {what}, of case {key[0]}. Leave one out."
            )


def _check_empty_rows(where: str, line: Row, names: Sequence[str], empty: np.ndarray) -> None:
    first: dict[str, int] = {}
    for row, (name, none) in enumerate(zip(names, empty.tolist(), strict=True)):
        before = first.setdefault(name, row)
        if before != row and (none or empty[before]):
            raise ValueError(
                f"{where}: {line(before)} and {line(row)} are of case {name}, and one has no box. A case without any "
                "box has one row, and a case with boxes one a box."
            )


def _is_true(where: str, row: str, word: str) -> bool:
    if word.lower() in TRUE:
        return True
    if word.lower() in FALSE:
        return False
    raise ValueError(f"{where}: {row}: crowd is {word!r}; expected 1 or 0, yes or no, true or false.")
