"""Average precision and recall of boxes as COCO defines them, on the host and under the weights of a resample.

Precision rises only where a detection is right, so both versions look at the hits alone and read the number of false
ones before each off running sums of all detections, which are sorted once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from fusion_jax.arrays import Array, ArrayLike
from fusion_jax.evaluation.detection_matching import COCO_OVERLAPS, Matches

__all__ = [
    "RECALL_LEVELS",
    "AveragePrecision",
    "BoxCounts",
    "PrecisionData",
    "View",
    "average_precision",
    "box_counts",
    "coco_summary",
    "make_precision_data",
    "weighted_average_precision",
    "with_mean",
]

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
STEPS = len(RECALL_LEVELS) - 1
NEEDS_MORE = np.array([level > step / STEPS for step, level in enumerate(RECALL_LEVELS)])
"""Levels of COCO that round to more than their hundredth, so that a recall of just that hundredth is not enough."""


class AveragePrecision(NamedTuple):
    """Precision and recall for every overlap `t`, class `k`, area `a` and limit of detections `m`.

    NaN where a class has no box that counts.

    Attributes:
      precision: highest precision at each of 101 levels of recall or beyond, shape `(t, 101, k, a, m)`.
      recall: of all detections, shape `(t, k, a, m)`.
      thresholds, areas, max_detections: along the axes; areas by name.
    """

    precision: Float[np.ndarray, "t 101 k a m"]
    recall: Float[np.ndarray, "t k a m"]
    thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    max_detections: tuple[int, ...]

    def of(self, area: str = "all", max_detections: int = 100) -> tuple[Float[np.ndarray, "k t"], ...]:
        """Average precision and recall of each class at each overlap, both of shape `(k, t)`."""
        at = self.areas.index(area), self.max_detections.index(max_detections)
        return self.precision[:, :, :, at[0], at[1]].mean(axis=1).T, self.recall[:, :, at[0], at[1]].T


def average_precision(matches: Matches, *, max_detections: Sequence[int] = MAX_DETECTIONS) -> AveragePrecision:
    """Interpolated precision and recall, as COCO's evaluation program accumulates them.

    Args:
      matches: of one model.
      max_detections: limits of detections of a case and class, none above that of the matching.

    Raises:
      ValueError: a limit that the matching did not keep.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> truth = np.array([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
      >>> zero = np.zeros(2, int)
      >>> found = match_boxes(truth, zero, zero, truth + [[0, 0, 0, 1]], zero, zero, np.ones(2), cases=1, classes=1)
      >>> precision, recall = average_precision(found).of()
      >>> precision[0, :9].tolist(), precision[0, 9].item(), recall[0, 0].item()
      ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.0, 1.0)

    References:
      Lin et al. 2014; the program published with it, whose tables these equal to 1e-9.
    """
    limits = tuple(max_detections)
    if not limits or min(limits) < 1 or max(limits) > matches.max_detections:
        raise ValueError(
            f"max_detections are {limits}; expected 1 to {matches.max_detections}, which the matching kept."
        )
    shape = (len(matches.thresholds), matches.classes, len(matches.areas), len(limits))
    precision = np.full((shape[0], len(RECALL_LEVELS), *shape[1:]), np.nan)
    recall = np.full(shape, np.nan)
    bounds = np.searchsorted(matches.label, np.arange(matches.classes + 1))
    hits = np.searchsorted(matches.hit, bounds)
    for k in range(matches.classes):
        flags = slice(hits[k], hits[k + 1])
        own = slice(bounds[k], bounds[k + 1])
        at = matches.hit[flags] - bounds[k]
        matched, ignored = matches.matched[flags], matches.ignored[flags]
        in_area, rank = matches.in_area[own], matches.rank[own]
        counted = matches.counted[matches.truth_label == k]
        for a in range(shape[2]):
            boxes = int(counted[:, a].sum())
            if not boxes:
                continue
            levels = np.searchsorted(np.arange(boxes + 1) / boxes, RECALL_LEVELS)
            for m, limit in enumerate(limits):
                kept = rank < limit
                judged = in_area[:, a] & kept
                until = np.cumsum(judged)[at]
                spent = matched[:, :, a].T & judged[at]
                right = matched[:, :, a].T & ~ignored[:, :, a].T & kept[at]
                true = np.cumsum(right, axis=1)
                false = until - np.cumsum(spent, axis=1)
                best = true / (true + false + np.spacing(1))
                best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
                padded = np.concatenate([best, np.zeros((shape[0], 1))], axis=1)
                for t in range(shape[0]):
                    precision[t, :, k, a, m] = padded[t, np.searchsorted(true[t], levels)]
                recall[:, k, a, m] = true[:, -1] / boxes if len(at) else 0.0
    names = tuple(area.name for area in matches.areas)
    return AveragePrecision(precision, recall, matches.thresholds, names, limits)


def coco_summary(found: AveragePrecision) -> dict[str, float]:
    """The summary numbers of COCO: means over classes and over its ten overlaps.

    `AP`, `AP50` and `AP75` at most detections, `AP_small` and so on by area, `AR1` and so on by limit of detections,
    `AR_small` and so on by area; NaN where nothing counts. Classes without a box are left out of the means.

    Args:
      found: at all of `COCO_OVERLAPS`, and any others.

    Raises:
      ValueError: an overlap of COCO is missing.
    """
    at = [found.thresholds.index(overlap) for overlap in COCO_OVERLAPS if overlap in found.thresholds]
    if len(at) < len(COCO_OVERLAPS):
        raise ValueError(f"overlaps {found.thresholds}; expected those of COCO, .5 to .95, among them.")

    def mean(values: Float[np.ndarray, "..."]) -> float:
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else float("nan")

    first = found.areas.index("all") if "all" in found.areas else 0
    most = found.precision[..., -1]
    summary = {"AP": mean(most[at, :, :, first])}
    summary |= {f"AP{round(100 * t)}": mean(most[found.thresholds.index(t), :, :, first]) for t in (0.5, 0.75)}
    parts = [(number, name) for number, name in enumerate(found.areas) if number != first]
    summary |= {f"AP_{name}": mean(most[at, :, :, a]) for a, name in parts}
    summary |= {f"AR{limit}": mean(found.recall[at, :, first, m]) for m, limit in enumerate(found.max_detections)}
    return summary | {f"AR_{name}": mean(found.recall[at, :, a, -1]) for a, name in parts}


class BoxCounts(NamedTuple):
    """Detections and boxes of each class, and of all classes last, shape `(k + 1,)`; `tp + fn` is the number of boxes.

    Attributes:
      tp: boxes found.
      fp: detections that hit no box, or one that was found already.
      fn: boxes missed.
    """

    tp: Int[np.ndarray, "k1"]
    fp: Int[np.ndarray, "k1"]
    fn: Int[np.ndarray, "k1"]


def box_counts(matches: Matches, *, overlap: float = 0.5, score: float | None = None, area: int = 0) -> BoxCounts:
    """Right and false detections and missed boxes, at one overlap and one score.

    Args:
      matches: of one model.
      overlap: one of the thresholds of the matching.
      score: only detections of at least this score count; None for all.
      area: number of the area among those of the matching.

    Raises:
      ValueError: the matching has no such overlap.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> truth, zero = np.array([[0.0, 0, 10, 10]]), np.zeros(2, int)
      >>> twice = np.repeat(truth, 2, axis=0)
      >>> found = match_boxes(truth, zero[:1], zero[:1], twice, zero, zero, np.array([0.9, 0.8]), cases=1, classes=1)
      >>> box_counts(found, overlap=0.5)
      BoxCounts(tp=array([1, 1]), fp=array([1, 1]), fn=array([0, 0]))

    References:
      specs/mdf_net.md, section 6: state the score beside the counts.
    """
    right, false = hits_and_misses(matches, overlap=overlap, area=area)
    called = np.ones(len(matches.score), bool) if score is None else matches.score >= score

    def each(labels: np.ndarray) -> np.ndarray:
        found = np.bincount(labels, minlength=matches.classes)
        return np.append(found, found.sum())

    tp = each(matches.label[right & called])
    boxes = each(matches.truth_label[matches.counted[:, area]])
    return BoxCounts(tp, each(matches.label[false & called]), boxes - tp)


def hits_and_misses(
    matches: Matches, *, overlap: float, area: int = 0
) -> tuple[Bool[np.ndarray, "d"], Bool[np.ndarray, "d"]]:
    """Which detections are right, and which are false, at one overlap; some are neither.

    Raises:
      ValueError: the matching has no such overlap.
    """
    t = threshold_index(matches.thresholds, overlap)
    matched, ignored = np.zeros((2, len(matches.row)), bool)
    matched[matches.hit] = matches.matched[:, t, area]
    ignored[matches.hit] = matches.ignored[:, t, area]
    return matched & ~ignored, ~matched & matches.in_area[:, area]


def threshold_index(thresholds: Sequence[float], overlap: float) -> int:
    """Place of an overlap among thresholds that may be rounded otherwise.

    Raises:
      ValueError: it is not among them.
    """
    near = np.flatnonzero(np.abs(np.asarray(thresholds) - overlap) < 1e-9)
    if not len(near):
        raise ValueError(f"overlap {overlap}; expected one of {', '.join(f'{t:.3g}' for t in thresholds)}.")
    return int(near[0])


# Under weights.


class View(NamedTuple):
    """Matches as one number sees them: those of one area, with a limit of detections (None: that of the matching)."""

    matches: Matches
    area: int = 0
    max_detections: int | None = None


class PrecisionData(NamedTuple):
    """What `weighted_average_precision` reads, for views (models, overlaps, areas) `e` and classes `k`.

    Padding: case n, beyond the last, never counts.

    Attributes:
      case: of each detection, the highest score first, shape `(e, k, d)`.
      judged: whether it can be false, shape `(e, k, d)`.
      at: place of each hit among them, shape `(e, k, h)`.
      spent: whether the hit cannot be false since it took a box, shape `(e, k, t, h)`.
      right: whether it found a box that counts, shape `(e, k, t, h)`.
      truth_case: of each box that counts, shape `(e, k, g)`.
    """

    case: Any
    judged: Any
    at: Any
    spent: Any
    right: Any
    truth_case: Any


def make_precision_data(views: Sequence[View], *, thresholds: Sequence[float] | None = None) -> PrecisionData:
    """Matches of several models, stacked for `fusion_jax.evaluation.resampling.bootstrap`.

    Args:
      views: matches against the same truth with the same thresholds and areas.
      thresholds: those of the matching that are wanted; all unless given.

    Raises:
      ValueError: matches of other cases, classes, boxes or thresholds.
    """
    first = views[0].matches
    for matches, _, _ in views:
        if (
            (matches.cases, matches.classes, matches.thresholds, matches.areas)
            != (first.cases, first.classes, first.thresholds, first.areas)
            or not np.array_equal(matches.truth_case, first.truth_case)
            or not np.array_equal(matches.counted, first.counted)
        ):
            raise ValueError("views: matched against different truths or thresholds; match all models alike.")
    wanted = first.thresholds if thresholds is None else thresholds
    at = [threshold_index(first.thresholds, threshold) for threshold in wanted]
    parts = [[_of_class(view, k, at) for k in range(first.classes)] for view in views]
    flat = [part for row in parts for part in row]
    d, h, g = (max(1, *(len(part[column]) for part in flat)) for column in (0, 2, 5))

    def stacked(column: int, size: int, fill: int | bool) -> np.ndarray:
        return np.stack([np.stack([_padded(part[column], size, fill) for part in row]) for row in parts])

    return PrecisionData(
        case=stacked(0, d, first.cases),
        judged=stacked(1, d, False),
        # A padded hit lies at the end and has no flags: it repeats what was known before it.
        at=stacked(2, h, d - 1),
        spent=stacked(3, h, False),
        right=stacked(4, h, False),
        truth_case=stacked(5, g, first.cases),
    )


def _of_class(view: View, k: int, thresholds: Sequence[int]) -> tuple[np.ndarray, ...]:
    matches, area, max_detections = view
    low, high = np.searchsorted(matches.label, [k, k + 1])
    start, stop = np.searchsorted(matches.hit, [low, high])
    at = matches.hit[start:stop] - low
    high = low + (int(at[-1]) + 1 if len(at) else 0)  # nothing after the last hit can change a precision
    limit = matches.max_detections if max_detections is None else max_detections
    kept = matches.rank[low:high] < limit
    judged = matches.in_area[low:high, area] & kept
    matched, ignored = (flags[start:stop, thresholds, area].T for flags in (matches.matched, matches.ignored))
    case = matches.case[low:high].astype(np.int32)
    truth = matches.truth_case[matches.counted[:, area] & (matches.truth_label == k)].astype(np.int32)
    return case, judged, at.astype(np.int32), matched & judged[at], matched & ~ignored & kept[at], truth


def _padded(array: np.ndarray, size: int, fill: int | bool) -> np.ndarray:
    width = [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])]
    return np.pad(array, width, constant_values=fill)


def whole_weights(weights: Num[ArrayLike, "n"]) -> Int[Array, "n+1"]:
    """Weights as integers, with that of the case that never counts: running sums stay exact beyond 2^24."""
    whole = jnp.asarray(weights).astype(jnp.int32)
    return jnp.concatenate([whole, jnp.zeros_like(whole[:1])])


def weighted_average_precision(
    data: PrecisionData, weights: Num[ArrayLike, "n"]
) -> tuple[Float[Array, "e k t"], Float[Array, "e k t"]]:
    r"""Average precision and recall of all models, classes and overlaps where case i counts :math:`w_i` times.

    Equal to repeating the cases: copies of a detection are all right or all false. With running weights of right
    detections :math:`T_i` and :math:`b` the weight of all boxes,

    .. math:: \mathrm{AP} = \tfrac{1}{101} \sum_i (L(T_i) - L(T_{i-1})) \max_{j \ge i} P_j, \qquad
              L(T) = |\{r : r \le T / b\}|

    Args:
      data: of all models.
      weights: how often each case counts, whole numbers, shape `(n,)`.

    Returns:
      Average precision, and recall; NaN where no box of the class was drawn.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> truth, zero = np.array([[0.0, 0, 10, 10]]), np.zeros(1, int)
      >>> found = match_boxes(truth, zero, zero, truth, zero, zero, np.ones(1), cases=2, classes=1, thresholds=[0.5])
      >>> data = make_precision_data([View(found)])
      >>> [weighted_average_precision(data, np.array(w))[0].item() for w in ([1.0, 1.0], [0.0, 2.0])]
      [1.0, nan]
    """
    of_views = jax.vmap(jax.vmap(_weighted_class, in_axes=(0, 0, 0, 0, 0, 0, None)), in_axes=(0, 0, 0, 0, 0, 0, None))
    return of_views(*data, whole_weights(weights))


def _weighted_class(
    case: Array, judged: Array, at: Array, spent: Array, right: Array, truth_case: Array, whole: Array
) -> tuple[Array, Array]:
    of_case = whole[case]
    until = jnp.cumsum(jnp.where(judged, of_case, 0))[at]
    of_hit = of_case[at]
    true = jnp.cumsum(jnp.where(right, of_hit, 0), axis=1)
    false = until[None] - jnp.cumsum(jnp.where(spent, of_hit, 0), axis=1)
    dtype = jnp.result_type(float)
    best = true.astype(dtype) / jnp.maximum(true + false, 1).astype(dtype)
    best = jax.lax.cummax(best, axis=1, reverse=True)

    boxes = jnp.sum(whole[truth_case])
    # Whole numbers decide which of the 101 levels a recall reaches: 100 T / b rounds otherwise.
    scaled, divisor = STEPS * true, jnp.maximum(boxes, 1)
    step = scaled // divisor
    short = (scaled == step * divisor) & jnp.asarray(NEEDS_MORE)[step]
    levels = step + 1 - short.astype(step.dtype)
    gained = jnp.diff(levels, axis=1, prepend=jnp.zeros_like(levels[:, :1]))
    precision = jnp.sum(gained.astype(dtype) * best, axis=1) / (STEPS + 1)
    recall = true[:, -1].astype(dtype) / divisor.astype(dtype)
    return jnp.where(boxes > 0, precision, jnp.nan), jnp.where(boxes > 0, recall, jnp.nan)


def with_mean(values: Num[ArrayLike, "*e k t"]) -> Float[Array, "*e k1 t"]:
    """Values of the classes, and their mean as one more; classes without a box (NaN) are left out of it."""
    values = jnp.asarray(values)
    known = ~jnp.isnan(values)
    count = jnp.sum(known, axis=-2, keepdims=True)
    total = jnp.sum(jnp.where(known, values, 0), axis=-2, keepdims=True)
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1).astype(total.dtype), jnp.nan)
    return jnp.concatenate([values, mean], axis=-2)
