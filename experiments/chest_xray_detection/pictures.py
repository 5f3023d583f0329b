"""What detectors found in single cases, and how one of them got there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.chest_xray_detection.models import NAMES
from fusion_jax.data import Cohort
from fusion_jax.detection.postprocessing import paste_masks
from fusion_jax.detection.study import DetectorStudy
from fusion_jax.detection.trained import stages_of
from fusion_jax.records.detections import BOX_COLUMNS
from fusion_jax.reporting.detection import Marks, ShownCase, clinical_values, prediction_figure, stage_figure
from fusion_jax.reporting.figures import Figure

__all__ = ["Shown", "prediction_section", "stage_section"]

CASES = 4
"""Cases of the picture: the first tested ones that have a box."""


class Shown(NamedTuple):
    """Paragraphs, and name to figure."""

    text: Sequence[str]
    items: Mapping[str, Figure]


def prediction_section(study: DetectorStudy, models: Sequence[str], *, cases: int = CASES) -> Shown:
    """Detections of the first seed over the images, beside what the patient's table says."""
    cohort, seed = study.plan.cohort, study.plan.seeds[0]
    detections: Any = study.detections
    detections = detections[(detections["split"] == "test") & (detections["seed"] == seed)]
    shown = []
    for row in _with_boxes(study)[:cases]:
        case = cohort.case_id[row]
        found = {}
        for model in models:
            own = detections[(detections["case_id"] == case) & (detections["model"] == model)]
            found[NAMES[model]] = _marks(cohort, own)
        shown.append(
            ShownCase(case, _picture(cohort, row), found, truth=_truth(cohort, row), clinical=_clinical(cohort, row))
        )
    figure = prediction_figure(
        shown, classes=_classes(cohort), score=0.3, caption="The first tested cases with a box; trainings of one seed."
    )
    return Shown(["Detections of score 0.3 and above; dashed: what is there."], {"predictions": figure})


def stage_section(study: DetectorStudy, model: str) -> Shown:
    """Proposals, maps and masks of one case."""
    cohort = study.plan.cohort
    task = next(task for task in study.done if task.model == model)
    row = _with_boxes(study)[0]
    seen = stages_of(study.plan.task_folder(task), cohort, row)
    figure = stage_figure(
        _picture(cohort, row),
        classes=_classes(cohort),
        truth=_truth(cohort, row),
        proposals=seen.proposals,
        objectness=seen.proposal_score,
        detections=_marks(cohort, seen.detections, masks=seen.masks, size=_picture(cohort, row).shape[:2]),
        maps=seen.maps,
        spatialised=seen.spatialised,
        caption=f"{NAMES[model]}, {cohort.case_id[row]}.",
    )
    return Shown(
        ["What the detector makes of one case; a map's brightness is its root mean square."], {"stages": figure}
    )


def _with_boxes(study: DetectorStudy) -> list[int]:
    """Rows of the tested cases of the first split that have a box, by case id."""
    split, cohort = study.plan.splits.splits[0], study.plan.cohort
    tested = set(split.test)
    boxes: Any = cohort.boxes
    return [row for row, case in enumerate(cohort.case_id) if case in tested and len(boxes[row].corners)]


def _picture(cohort: Cohort, row: int) -> np.ndarray:
    """The image as bytes, from its darkest to its brightest value."""
    image = next(name for name, source in cohort.sources.items() if source.kind == "image")
    values = np.asarray(cohort.sources[image][row], np.float64)
    low, high = values.min(), values.max()
    return np.round(255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)


def _marks(cohort: Cohort, table: Any, *, masks: Any = None, size: tuple[int, ...] = ()) -> Marks:
    boxes = table[list(BOX_COLUMNS)].to_numpy(float)
    label = np.array([cohort.box_classes.index(name) for name in table["class"]], np.int64)
    pasted = None if masks is None else paste_masks(masks, boxes, *size)
    return Marks(boxes, label, table["score"].to_numpy(float), pasted)


def _truth(cohort: Cohort, row: int) -> Marks:
    boxes: Any = cohort.boxes
    return Marks(np.asarray(boxes[row].corners, float), np.asarray(boxes[row].classes, np.int64))


def _clinical(cohort: Cohort, row: int) -> list[Any]:
    return clinical_values(cohort[row].row, list(cohort.columns("input")), units=cohort.units)


def _classes(cohort: Cohort) -> list[str]:
    return [name.replace("_", " ") for name in cohort.box_classes]
