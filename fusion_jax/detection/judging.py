"""How good detections are, in a number that is cheap enough for every epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Boxes
from fusion_jax.evaluation.detection import average_precision
from fusion_jax.evaluation.detection_matching import AREAS, Overlap, match_boxes

__all__ = ["Judgement", "judge"]

HIT = 0.5
"""Overlap from which a detection is right, as the published study judges by."""

LIMIT = 100


class Judgement(NamedTuple):
    """Average precision and recall at an overlap of .5; means over the classes that have boxes.

    Attributes:
      ap: mean average precision; NaN without any true box.
      ar: mean recall of all detections.
      ap_by_class, ar_by_class: NaN for classes without boxes.
    """

    ap: float
    ar: float
    ap_by_class: tuple[float, ...]
    ar_by_class: tuple[float, ...]


def judge(
    truth: Sequence[Boxes],
    boxes: Float[np.ndarray, "d 4"],
    case: Int[np.ndarray, "d"],
    label: Int[np.ndarray, "d"],
    score: Float[np.ndarray, "d"],
    *,
    classes: int,
    overlap: Overlap = "iou",
) -> Judgement:
    """Judge the detections of some images.

    Overlaps do not change when an image is stretched along its axes, so that boxes may be on any grid that both share.

    Args:
      truth: one entry an image.
      boxes: detections `(x0, y0, x1, y1)`.
      case: image of each, as an index into `truth`.
      label: class of each.
      score: of each.
      classes: number of classes.
      overlap: "iou", or "iobb", over the detection's own box.

    Example:
      >>> truth = [Boxes(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([0]))]
      >>> found = np.array([[0.0, 0.0, 10.0, 8.0]]), np.zeros(1, int), np.zeros(1, int), np.ones(1)
      >>> judge(truth, *found, classes=1)[:2]
      (1.0, 1.0)

    References:
      specs/mdf_net.md, section 6.
    """
    counts = [len(own.corners) for own in truth]
    corners = np.concatenate([np.zeros((0, 4)), *(np.asarray(own.corners, float) for own in truth)])
    codes = np.concatenate([np.zeros(0, np.int64), *(np.asarray(own.classes, np.int64) for own in truth)])
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    matches = match_boxes(
        corners,
        np.repeat(np.arange(len(truth)), counts),
        codes,
        np.asarray(boxes, float)[kept],
        np.asarray(case, np.int64)[kept],
        np.asarray(label, np.int64)[kept],
        np.asarray(score, float)[kept],
        cases=len(truth),
        classes=classes,
        overlap=overlap,
        thresholds=(HIT,),
        areas=AREAS[:1],
        max_detections=LIMIT,
    )
    precision, recall = average_precision(matches, max_detections=(LIMIT,)).of(AREAS[0].name, LIMIT)
    means = [float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for values in (precision, recall)]
    return Judgement(means[0], means[1], tuple(precision[:, 0].tolist()), tuple(recall[:, 0].tolist()))
