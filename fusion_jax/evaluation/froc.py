"""Free-response curves: how many boxes are found at so many false detections an image, and which images hold one.

Images without any box stand in every denominator: false detections on normal images are what a reader works through.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from fusion_jax.arrays import Array, ArrayLike
from fusion_jax.evaluation.classification import auc
from fusion_jax.evaluation.detection import (
    PrecisionData,
    View,
    hits_and_misses,
    make_precision_data,
    weighted_average_precision,
    whole_weights,
    with_mean,
)
from fusion_jax.evaluation.detection_matching import COCO_OVERLAPS, Matches
from fusion_jax.evaluation.ranked import Ranked, make_ranked, stack_ranked, weighted_auc

__all__ = [
    "FALSE_POSITIVE_RATES",
    "DetectionData",
    "DetectionStatistics",
    "FrocCurve",
    "FrocData",
    "case_auc",
    "case_scores",
    "detection_statistics",
    "froc_curve",
    "make_detection_data",
    "make_froc_data",
    "sensitivity_at",
    "weighted_froc",
]

FALSE_POSITIVE_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False detections per image at which sensitivity is read (LUNA16, CAMELYON16 and others)."""


class FrocCurve(NamedTuple):
    """Operating points from the strictest score to the mildest, one for each different score `c`.

    Attributes:
      false_positives: false detections per image, all images counted.
      sensitivity: fraction of the boxes that are found; NaN without boxes.
      score: detections of this score or more count.
      boxes, cases: the denominators.
    """

    false_positives: Float[np.ndarray, "c"]
    sensitivity: Float[np.ndarray, "c"]
    score: Num[np.ndarray, "c"]
    boxes: int
    cases: int


def froc_curve(matches: Matches, *, overlap: float = 0.5, label: int | None = None, area: int = 0) -> FrocCurve:
    """Sensitivity for boxes over false detections per image.

    A detection finds a box of its own class that no surer detection found; a second detection of a box is false.

    Args:
      matches: of one model.
      overlap: one of the thresholds of the matching.
      label: the class; None pools the boxes and detections of all classes.
      area: number of the area among those of the matching.

    Raises:
      ValueError: the matching has no such overlap.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> truth, found = np.array([[0.0, 0, 9, 9]]), np.array([[0.0, 0, 9, 9], [50.0, 50, 60, 60]])
      >>> zero, case = np.zeros(2, int), np.array([0, 1])
      >>> scores = np.array([0.5, 0.9])
      >>> matches = match_boxes(truth, zero[:1], zero[:1], found, case, zero, scores, cases=2, classes=1)
      >>> curve = froc_curve(matches)
      >>> curve.false_positives.tolist(), curve.sensitivity.tolist()
      ([0.5, 0.5], [0.0, 1.0])

    References:
      Bunch et al. 1978; Chakraborty 1989.
    """
    right, false, score, _ = _ordered(matches, overlap, area, label)
    boxes = len(_truth(matches, area, label))
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], [True] * bool(len(score))))
    found = np.cumsum(right)[ends]
    sensitivity = found / boxes if boxes else np.full(len(found), math.nan)
    return FrocCurve(np.cumsum(false)[ends] / matches.cases, sensitivity, score[ends], boxes, matches.cases)


def sensitivity_at(curve: FrocCurve, false_positives: Sequence[float] = FALSE_POSITIVE_RATES) -> Float[np.ndarray, "x"]:
    """Highest sensitivity with at most so many false detections per image; nothing is interpolated.

    A detector that never makes so many keeps the sensitivity that it has with all its detections.

    Example:
      >>> curve = FrocCurve(np.array([0.0, 0.5]), np.array([0.25, 1.0]), np.array([0.9, 0.1]), 4, 2)
      >>> sensitivity_at(curve, [0.125, 0.5, 8.0]).tolist()
      [0.25, 1.0, 1.0]
    """
    places = np.searchsorted(curve.false_positives, np.asarray(false_positives), side="right")
    reached = np.concatenate([np.zeros(1), curve.sensitivity])[places]
    return reached if curve.boxes else np.full(len(reached), math.nan)


def case_scores(
    matches: Matches, *, label: int | None = None, area: int = 0
) -> tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Whether each case holds a box that counts, and the place of its highest score among all scores.

    Args:
      matches: of one model.
      label: the class; None for boxes of any class.
      area: number of the area among those of the matching.

    Returns:
      Labels, and ranks from 1 upwards; cases without a detection have rank 0, below every score.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> box, zero = np.array([[0.0, 0, 9, 9]]), np.zeros(1, int)
      >>> matches = match_boxes(box, zero, zero, box, zero + 1, zero, np.ones(1), cases=3, classes=1)
      >>> [values.tolist() for values in case_scores(matches)]
      [[True, False, False], [0, 1, 0]]
    """
    chosen = np.ones(len(matches.label), bool) if label is None else matches.label == label
    places = np.unique(matches.score[chosen], return_inverse=True)[1].reshape(-1) + 1
    highest = np.zeros(matches.cases, np.int64)
    np.maximum.at(highest, matches.case[chosen], places)
    holds = np.zeros(matches.cases, bool)
    holds[_truth(matches, area, label)] = True
    return holds, highest


def case_auc(matches: Matches, *, area: int = 0) -> Float[np.ndarray, "k1"]:
    """AUC of the highest score of a case for holding a box: of each class, and of any class last.

    NaN where all cases or none hold one.
    """
    return np.array(
        [
            auc(holds.astype(int), places)
            for holds, places in (case_scores(matches, label=label, area=area) for label in _rows(matches))
        ]
    )


def _rows(matches: Matches) -> list[int | None]:
    """Each class, and all pooled."""
    return [*range(matches.classes), None]


def _truth(matches: Matches, area: int, label: int | None) -> np.ndarray:
    """Case of every box that counts."""
    counted = matches.counted[:, area]
    return matches.truth_case[counted if label is None else counted & (matches.truth_label == label)]


def _ordered(
    matches: Matches, overlap: float, area: int, label: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Right, false, score and case of the detections of a class, or of all, the highest score first."""
    right, false = hits_and_misses(matches, overlap=overlap, area=area)
    if label is None:
        order = np.argsort(-matches.score, kind="stable")
    else:
        order = np.arange(*np.searchsorted(matches.label, [label, label + 1]))
    return right[order], false[order], matches.score[order], matches.case[order]


# Under weights.


class FrocData(NamedTuple):
    """What `weighted_froc` reads, for models (and measures of overlap) `e` and rows `k` (classes, or all pooled).

    Padding: case n, beyond the last, never counts.

    Attributes:
      case: of each detection, the highest score first, shape `(e, k, d)`.
      right, false: whether it found a box, whether it is false, shape `(e, k, d)`.
      end: place of the last detection of the same score, shape `(e, k, d)`.
      called: number of detections at or above the score that counts are taken at, shape `(e, k)`.
      truth_case: of each box, shape `(k, g)`.
      rates: false detections per image, shape `(x,)`.
    """

    case: Any
    right: Any
    false: Any
    end: Any
    called: Any
    truth_case: Any
    rates: Any


def make_froc_data(
    entries: Sequence[Matches],
    *,
    labels: Sequence[int | None],
    overlap: float = 0.5,
    score: float | None = None,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    area: int = 0,
) -> FrocData:
    """Matches of several models, stacked for `fusion_jax.evaluation.resampling.bootstrap`.

    Args:
      entries: matches against the same truth.
      labels: class of each row, or None for all pooled; rows of like length waste least.
      overlap, area: as for `froc_curve`.
      score: for the counts; None for all detections.
      rates: false detections per image at which sensitivity is read.
    """
    found = [[_ordered(entry, overlap, area, label) for label in labels] for entry in entries]
    d = max(1, *(len(row[0]) for rows in found for row in rows))
    truth = [_truth(entries[0], area, label).astype(np.int32) for label in labels]
    g = max(1, *map(len, truth))
    cases = entries[0].cases

    def filled(values: np.ndarray, size: int, fill: int | bool) -> np.ndarray:
        return np.pad(values, (0, size - len(values)), constant_values=fill)

    def stacked(column: Callable[[Sequence[np.ndarray]], np.ndarray], fill: int | bool) -> np.ndarray:
        return np.stack([np.stack([filled(column(row), d, fill) for row in rows]) for rows in found])

    return FrocData(
        case=stacked(lambda row: row[3].astype(np.int32), cases),
        right=stacked(lambda row: row[0], False),
        false=stacked(lambda row: row[1], False),
        end=stacked(lambda row: _ends(row[2]), d - 1),
        called=np.array(
            [[len(s) if score is None else int((s >= score).sum()) for _, _, s, _ in rows] for rows in found], np.int32
        ),
        truth_case=np.stack([filled(cases_of, g, cases) for cases_of in truth]),
        rates=np.asarray(rates, float),
    )


def _ends(score: np.ndarray) -> np.ndarray:
    """Place of the last of the scores that equal each one."""
    return (len(score) - 1 - np.searchsorted(score[::-1], score, side="left")).astype(np.int32)


def weighted_froc(data: FrocData, weights: Num[ArrayLike, "n"]) -> tuple[Array, Array, Array, Array]:
    """Sensitivity at every rate `(e, k, x)`, and right, false and all boxes `(e, k)`, where case i counts w_i times.

    The number of images is the sum of the weights, so that images of all kinds stay in the denominator.

    Args:
      data: of all models.
      weights: how often each case counts, whole numbers, shape `(n,)`.
    """
    whole = whole_weights(weights)
    rates = jnp.asarray(data.rates).astype(jnp.result_type(float))
    allowed = rates * jnp.sum(whole).astype(rates.dtype)

    def row(
        case: Array, right: Array, false: Array, end: Array, called: Array, truth_case: Array
    ) -> tuple[Array, Array, Array, Array]:
        of_case = whole[case]
        nothing = jnp.zeros_like(of_case[:1])
        found = jnp.concatenate([nothing, jnp.cumsum(jnp.where(right, of_case, 0))])
        wrong = jnp.concatenate([nothing, jnp.cumsum(jnp.where(false, of_case, 0))])
        boxes = jnp.sum(whole[truth_case])
        # Detections of one score come together: with the last of them, or not at all.
        reached = found[jnp.searchsorted(wrong[end + 1].astype(allowed.dtype), allowed, side="right")]
        share = reached.astype(allowed.dtype) / jnp.maximum(boxes, 1).astype(allowed.dtype)
        return jnp.where(boxes > 0, share, jnp.nan), found[called], wrong[called], boxes

    of_models = jax.vmap(jax.vmap(row), in_axes=(0, 0, 0, 0, 0, None))
    return of_models(data.case, data.right, data.false, data.end, data.called, data.truth_case)


# Everything of a report from one vector of weights.


class DetectionData(NamedTuple):
    """What `detection_statistics` reads: precision, FROC of the classes and of all pooled, images, and more views."""

    precision: PrecisionData
    of_classes: FrocData
    pooled: FrocData
    images: Ranked
    views: PrecisionData | None


class DetectionStatistics(NamedTuple):
    """Statistics of models (and measures of overlap) `e`; rows `k + 1` are the classes and, last, all of them.

    Attributes:
      average_precision, recall: at each overlap, last the mean over classes, shape `(e, k + 1, t)`.
      sensitivity: at each rate of false detections, last all classes pooled, shape `(e, k + 1, x)`.
      tp, fp, boxes: counts at the score given, shape `(e, k + 1)`.
      cases: sum of the weights.
      case_auc: of the highest score of each case, last for any class, shape `(e, k + 1)`.
      view_precision, view_recall: of the views `v`, means over the overlaps of COCO, shape `(v, k + 1)`; or None.
    """

    average_precision: Any
    recall: Any
    sensitivity: Any
    tp: Any
    fp: Any
    boxes: Any
    cases: Any
    case_auc: Any
    view_precision: Any
    view_recall: Any


def make_detection_data(
    entries: Sequence[Matches],
    *,
    overlap: float = 0.5,
    score: float | None = None,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    views: Sequence[View] = (),
) -> DetectionData:
    """Matches of several models as `detection_statistics` takes them, for boxes of the first area of the matching.

    Args:
      entries: matches against the same truth with the same thresholds, by "iou" or "iobb".
      overlap: of a hit, for FROC and counts.
      score: that the counts are taken at; None for all detections.
      rates: false detections per image at which sensitivity is read.
      views: other areas and limits of detections, whose precision and recall are wanted at COCO's overlaps.

    Raises:
      ValueError: matches of other cases, classes, boxes or thresholds, or without this overlap.
    """
    ranked = [
        make_ranked(*(values.astype(np.int64) for values in case_scores(entry, label=label)))
        for entry in entries
        for label in _rows(entry)
    ]
    stacked = stack_ranked(ranked, rows=entries[0].cases)
    of_rows = partial(make_froc_data, entries, overlap=overlap, score=score, rates=rates)
    return DetectionData(
        precision=make_precision_data([View(entry) for entry in entries]),
        of_classes=of_rows(labels=range(entries[0].classes)),
        pooled=of_rows(labels=[None]),
        images=Ranked(*(part.reshape(len(entries), -1, part.shape[-1]) for part in stacked)),
        views=make_precision_data(views, thresholds=COCO_OVERLAPS) if views else None,
    )


def detection_statistics(data: DetectionData, weights: Num[ArrayLike, "n"]) -> DetectionStatistics:
    """All statistics of all models where case i counts `weights[i]` times: one sort serves every resample.

    With weights of 1 these are the numbers of the host in single precision; with others those of repeated cases.

    Args:
      data: of all models.
      weights: how often each case counts, whole numbers, shape `(n,)`.
    """
    precision, recall = weighted_average_precision(data.precision, weights)
    parts = zip(weighted_froc(data.of_classes, weights), weighted_froc(data.pooled, weights), strict=True)
    sensitivity, tp, fp, boxes = (jnp.concatenate(part, axis=1) for part in parts)
    images = jax.tree.map(jnp.asarray, data.images)
    of_images = jax.vmap(jax.vmap(weighted_auc, in_axes=(0, None)), in_axes=(0, None))(images, jnp.asarray(weights))
    more: list[Any] = [None, None]
    if data.views is not None:
        more = [jnp.mean(with_mean(values), axis=-1) for values in weighted_average_precision(data.views, weights)]
    cases = jnp.sum(whole_weights(weights))
    return DetectionStatistics(
        with_mean(precision), with_mean(recall), sensitivity, tp, fp, boxes, cases, of_images, *more
    )
