"""A trained detector, read from its folder: what it finds in images, and what happens inside it on the way."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.detection.inputs import DetectorInputs, at_size, box_image, to_original
from fusion_jax.detection.tables import detection_table

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["DIVISION", "FORMAT", "KIND", "RECORD", "WEIGHTS", "Found", "Viewed", "find", "load_detector", "stages_of"]

RECORD, DIVISION, WEIGHTS = "recipe.json", "division.json", "weights.npz"
"""Of the folder of a training: what was trained, on whom, and what came of it."""

FORMAT, KIND = 1, "detection"

logger = logging.getLogger("fusion_jax.detection.trained")


class Found(NamedTuple):
    """Detections of a trained detector.

    Attributes:
      table: one row a detection, see `DetectionRecipe.predict`.
      rows: row of the cohort of each.
      masks: probability in each cell of its box, shape `(d, 28, 28)`; None for a detector without masks.
      images: number of images that were looked at.
    """

    table: "pandas.DataFrame"
    rows: Int[np.ndarray, "d"]
    masks: Float[np.ndarray, "d 28 28"] | None
    images: int


def find(
    folder: str | Path,
    cohort: Cohort,
    rows: Int[np.ndarray, "n"] | None = None,
    *,
    report: Callable[[int, int], None] | None = None,
) -> Found:
    """Detections of a trained detector in images of a cohort.

    Args:
      folder: of the training.
      cohort: of such images, of any size; boxes are not needed, and not looked at.
      rows: of it; all by default. Detections come in this order, the highest score of an image first. Cases without
        an image are left out, as in training, and a warning names the first of them.
      report: called with the number of batches that are done and of all.

    Raises:
      FileNotFoundError: the folder holds no trained detector.
      ValueError: a source or column that is missing, no image at all, an image that cannot be used.
    """
    from fusion_jax.data.batches import Batches
    from fusion_jax.detection.training import inference

    fitted = _fitted(Path(folder))
    rows = np.arange(len(cohort)) if rows is None else np.asarray(rows)
    image = fitted.image_of(cohort)
    there = cohort.present[image][rows]
    if there.any() and not there.all():
        lacking = rows[~there]
        logger.warning(
            "%s: %d of %d cases have no %r and are left out, case %s first",
            cohort.name,
            len(lacking),
            len(rows),
            image,
            cohort.case_id[int(lacking[0])],
        )
        rows = rows[there]
    unique, place = np.unique(rows, return_inverse=True)
    # Every image is read once, and none is kept, unless the cohort does.
    part = at_size(dataclasses.replace(cohort, boxes=None).take(unique), image, fitted.inputs.size, gigabytes=0.0)
    inputs = dataclasses.replace(fitted.inputs, image=image)
    ready = inputs.apply(part, fitted.train, boxes=False)
    batches = Batches(ready, np.arange(len(unique)), fitted.batch_size, (0,), sampler="sequential", targets=False)
    run = inference(fitted.config)
    steps = batches.steps_per_epoch
    of_case: dict[int, tuple[Any, ...]] = {}
    for step, batch in enumerate(batches.iterate(stop=steps)):
        detections, masks = run(fitted.variables, batch)
        detections = type(detections)(*map(np.asarray, detections))
        masks = None if masks is None else np.asarray(masks)
        for at, row in enumerate(batch.index.tolist()):
            if row < 0:
                continue
            kept = _kept(detections, at, inputs.size, inputs.shape(part, row))
            of_case[row] = *kept[1:], None if masks is None else masks[at][kept.rows]
        if report is not None:
            report(step + 1, steps)
    found = [of_case[int(row)] for row in place.reshape(-1)]
    counts = [len(one[0]) for one in found]
    boxes = np.concatenate([np.zeros((0, 4)), *(one[0] for one in found)])
    label = np.concatenate([np.zeros(0, np.int64), *(one[1] for one in found)]).astype(np.int64)
    score = np.concatenate([np.zeros(0), *(one[2] for one in found)])
    at = np.repeat(rows, counts)
    masks = None
    if found and found[0][3] is not None:
        masks = np.concatenate([one[3] for one in found]).astype(np.float32)
    table = detection_table(cohort, at, boxes, label, score, classes=fitted.inputs.classes, model=fitted.name)
    return Found(table, at, masks, len(unique))


class Viewed(NamedTuple):
    """What happens inside a detector on one image, to be looked at; boxes in the pixels of the cohort's image.

    Attributes:
      proposals: boxes that go on to the head, shape `(p, 4)`; with one stage, candidates before suppression.
      proposal_score: logit of each, shape `(p,)`.
      detections: one row a detection, see `DetectionRecipe.predict`, the highest score first.
      masks: of the detections, shape `(d, 28, 28)`; None without.
      maps: "image", "clinical" (where there is one) and "fused" feature maps of the finest level, `(h, w, c)`.
      spatialised: the clinical vector as an image, `(h, w, 3)`; None where none is made.
    """

    proposals: Float[np.ndarray, "p 4"]
    proposal_score: Float[np.ndarray, "p"]
    detections: "pandas.DataFrame"
    masks: Float[np.ndarray, "d 28 28"] | None
    maps: dict[str, np.ndarray]
    spatialised: np.ndarray | None


def stages_of(folder: str | Path, cohort: Cohort, row: int) -> Viewed:
    """The stages of a trained detector on one image of a cohort.

    Args:
      folder: of the training.
      cohort: of such images; boxes are not looked at.
      row: of the case.

    Raises:
      FileNotFoundError, ValueError: as `find`.
    """
    from fusion_jax.data.batches import Batches
    from fusion_jax.detection.training import inside

    fitted = _fitted(Path(folder))
    image = fitted.image_of(cohort)
    part = at_size(dataclasses.replace(cohort, boxes=None).take([row]), image, fitted.inputs.size)
    inputs = dataclasses.replace(fitted.inputs, image=image)
    ready = inputs.apply(part, fitted.train, boxes=False)
    batch = Batches(ready, np.arange(1), 1, (0,), sampler="sequential", targets=False).at(0)
    stages = inside(fitted.config)(fitted.variables, batch)
    shape = inputs.shape(part, 0)
    kept = np.asarray(stages.proposals.valid)[0]
    proposals = to_original(np.asarray(stages.proposals.boxes)[0][kept], inputs.size, shape)
    found = _kept(stages.detections, 0, inputs.size, shape)
    table = detection_table(
        part,
        np.zeros(len(found.rows), np.int64),
        found.boxes,
        found.label,
        found.score,
        classes=inputs.classes,
        model=fitted.name,
    )
    return Viewed(
        proposals,
        np.asarray(stages.proposals.score, np.float64)[0][kept],
        table,
        None if stages.masks is None else np.asarray(stages.masks, np.float32)[0][found.rows],
        {name: np.asarray(values, np.float32)[0] for name, values in stages.maps.items()},
        None if stages.spatialised is None else np.asarray(stages.spatialised, np.float32)[0],
    )


class _Kept(NamedTuple):
    rows: Int[np.ndarray, "d"]
    boxes: Float[np.ndarray, "d 4"]
    label: Int[np.ndarray, "d"]
    score: Float[np.ndarray, "d"]


def _kept(detections: Any, at: int, size: tuple[int, int], shape: tuple[int, int]) -> _Kept:
    """Detections of one image of a batch that are some, in its pixels, the highest score first."""
    rows = np.flatnonzero(np.asarray(detections.valid)[at])
    rows = rows[np.argsort(-np.asarray(detections.score)[at][rows], kind="stable")]
    boxes = to_original(np.asarray(detections.boxes)[at][rows], size, shape)
    # A box beyond the border has no extent left.
    there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    rows, boxes = rows[there], boxes[there]
    label = np.asarray(detections.label)[at][rows].astype(np.int64)
    return _Kept(rows, boxes, label, np.asarray(detections.score)[at][rows].astype(np.float64))


def load_detector(folder: str | Path) -> dict[str, Any]:
    """The record of a trained detector, checked: name, arguments, config, inputs, facts and what produced it.

    Raises:
      FileNotFoundError: the folder holds no trained detector.
      ValueError: the record is damaged, or of something else than a detector.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; expected a folder in which a detector was trained.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}). Train the detector again.") from None
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("format") != FORMAT:
        raise ValueError(f"{path}: no record of a detector; expected one that `fusion-jax detect train` wrote.")
    return content


class _Fitted:
    """A trained detector, read from its folder."""

    def __init__(self, folder: Path) -> None:
        from fusion_jax.encoders.stored import load_arrays

        record = load_detector(folder)
        self.name = str(record["name"])
        self.inputs = DetectorInputs.from_json(record["inputs"])
        self.config = DetectorConfig.from_json(record["config"], str(folder / RECORD))
        self.variables = load_arrays(folder / WEIGHTS)
        self.batch_size = int(record["facts"]["batch_size"])
        division = folder / DIVISION
        self.train = json.loads(division.read_text(encoding="utf-8"))["train"] if division.exists() else []

    def image_of(self, cohort: Cohort) -> str:
        """The source to look at: that of the training, or the only image of another cohort."""
        return box_image(cohort, self.inputs.image if self.inputs.image in cohort.sources else None, boxes=False)


def _fitted(folder: Path) -> _Fitted:
    if not (folder / WEIGHTS).exists():
        load_detector(folder)
        raise FileNotFoundError(f"{folder / WEIGHTS}: not there; the training has not ended. Run it again.")
    return _read(str(folder.resolve()), (folder / WEIGHTS).stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(folder: str, _changed: int) -> _Fitted:
    return _Fitted(Path(folder))
