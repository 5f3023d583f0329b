"""Boxes of a cohort and detections of a model as tables, in the pixels of the images as the cohort has them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.records.detections import BOX_COLUMNS

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["DETECTION_COLUMNS", "detection_table", "truth_table"]

DETECTION_COLUMNS = ("case_id", "patient_id", *BOX_COLUMNS, "class", "score", "model")


def truth_table(cohort: Cohort, rows: Int[np.ndarray, "n"] | None = None) -> "pandas.DataFrame":
    """Boxes of cases as `fusion-jax evaluate-boxes` reads them; a case without a box has one row, without a box.

    Args:
      cohort: with boxes.
      rows: of it; all by default.

    Raises:
      ValueError: a cohort without boxes.

    Example:
      >>> from fusion_jax.data.cohort import Boxes
      >>> boxes = [Boxes(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([0])), Boxes(np.zeros((0, 4)), np.zeros(0, int))]
      >>> cohort = Cohort.from_arrays({"x": np.zeros((2, 8, 8, 1))}, boxes=boxes, box_classes=("mass",))
      >>> truth_table(cohort)[["case_id", "x0", "y1"]].to_numpy().tolist()
      [['case_0', 1.0, 4.0], ['case_1', nan, nan]]
    """
    import pandas as pd

    if cohort.boxes is None:
        raise ValueError(f"{cohort.name}: no boxes; expected a table of boxes in the cohort file.")
    found = []
    for row in range(len(cohort)) if rows is None else rows.tolist():
        case = {"case_id": cohort.case_id[row], "patient_id": str(cohort.patient_id[row])}
        own = cohort.boxes[row]
        for corners, code in zip(own.corners.tolist(), own.classes.tolist(), strict=True):
            box = dict(zip(BOX_COLUMNS, map(float, corners), strict=True))
            found.append({**case, **box, "class": cohort.box_classes[code]})
        if not len(own.corners):
            found.append({**case, **dict.fromkeys(BOX_COLUMNS, float("nan")), "class": None})
    return pd.DataFrame(found, columns=["case_id", "patient_id", *BOX_COLUMNS, "class"])


def detection_table(
    cohort: Cohort,
    rows: Int[np.ndarray, "d"],
    boxes: np.ndarray,
    label: Int[np.ndarray, "d"],
    score: np.ndarray,
    *,
    classes: Sequence[str],
    model: str,
) -> "pandas.DataFrame":
    """Detections as a table, the columns those of `DETECTION_COLUMNS`.

    Args:
      cohort: with the cases.
      rows: case of each detection.
      boxes: in the pixels of its image, shape `(d, 4)`.
      label: index into `classes`.
      score: of each, higher is more certain.
      classes: names.
      model: name of the model.
    """
    import pandas as pd

    values = np.asarray(boxes, float).reshape(-1, 4)
    return pd.DataFrame(
        {
            "case_id": [cohort.case_id[int(row)] for row in rows],
            "patient_id": [str(cohort.patient_id[int(row)]) for row in rows],
            **{name: values[:, place] for place, name in enumerate(BOX_COLUMNS)},
            "class": [classes[int(code)] for code in label],
            "score": np.asarray(score, float),
            "model": [model] * len(values),
        },
        columns=list(DETECTION_COLUMNS),
    )
