"""Which detection found which box: COCO's greedy matching for all overlaps and areas at once.

The matching runs on the host in double precision, since one rounded overlap moves a detection across a threshold.
Thresholds and areas are the bits of one integer, so that a pair of boxes is looked at once for all of them; pairs that
overlap less than the smallest threshold are never looked at; cases and classes go in step, each with its next pair.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from fusion_jax.wording import listed

__all__ = [
    "AREAS",
    "COCO_OVERLAPS",
    "OVERLAP_GRID",
    "Area",
    "Matches",
    "Overlap",
    "check_boxes",
    "match_boxes",
    "pairwise_overlap",
]

Overlap = Literal["iou", "iobb"]
"""Intersection over union; intersection over the detection's own box (not symmetric)."""

COCO_OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).tolist())
OVERLAP_GRID = (*(step / 20 for step in range(10)), *COCO_OVERLAPS, 1.0)
"""From 0 to 1 in steps of .05, with the ten of COCO among them bit for bit."""

BITS = 64
PAIRS_AT_ONCE = 2_000_000
ALMOST_ONE = 1 - 1e-10
"""Overlaps of equal boxes may round to less than 1; COCO asks for this much."""


class Area(NamedTuple):
    """Boxes of `low` to `high` square pixels, both ends included.

    The limits of COCO suit photographs of about 640 pixels; name your own for other images.
    """

    name: str
    low: float
    high: float


AREAS = (
    Area("all", 0, 1e10),
    Area("small", 0, 32**2),
    Area("medium", 32**2, 96**2),
    Area("large", 96**2, 1e10),
)


class Matches(NamedTuple):
    """Detections in the order in which they are judged, and what each one hit.

    Detections `d` are sorted by class, then from the highest score to the lowest (equal scores in the order of cases,
    then of rows). Only those that hit something at some threshold, `h`, carry flags; all others missed everywhere.

    Attributes:
      row: of the detection in the table given, shape `(d,)`.
      case, label, score: of the detection, shape `(d,)`.
      rank: place by score among the detections of its case and class, from 0, shape `(d,)`.
      in_area: whether its own box is of this area, shape `(d, a)`.
      hit: which detections have flags, ascending, shape `(h,)`.
      matched: hit a box at this threshold, counted or not, shape `(h, t, a)`.
      ignored: the box hit does not count (crowd, or of another area), shape `(h, t, a)`.
      truth_case, truth_label: of the true boxes, shape `(g,)`.
      counted: whether a true box counts for this area, shape `(g, a)`.
      cases, classes: how many there are, with and without boxes.
      overlap: the measure.
      thresholds: smallest overlap of a hit, length `t`.
      areas: length `a`.
      max_detections: most detections of a case and class that were kept.
    """

    row: Int[np.ndarray, "d"]
    case: Int[np.ndarray, "d"]
    label: Int[np.ndarray, "d"]
    score: Num[np.ndarray, "d"]
    rank: Int[np.ndarray, "d"]
    in_area: Bool[np.ndarray, "d a"]
    hit: Int[np.ndarray, "h"]
    matched: Bool[np.ndarray, "h t a"]
    ignored: Bool[np.ndarray, "h t a"]
    truth_case: Int[np.ndarray, "g"]
    truth_label: Int[np.ndarray, "g"]
    counted: Bool[np.ndarray, "g a"]
    cases: int
    classes: int
    overlap: Overlap
    thresholds: tuple[float, ...]
    areas: tuple[Area, ...]
    max_detections: int


def match_boxes(
    truth_boxes: Num[np.ndarray, "g 4"],
    truth_case: Int[np.ndarray, "g"],
    truth_label: Int[np.ndarray, "g"],
    boxes: Num[np.ndarray, "d 4"],
    case: Int[np.ndarray, "d"],
    label: Int[np.ndarray, "d"],
    score: Num[np.ndarray, "d"],
    *,
    cases: int,
    classes: int,
    crowd: Bool[np.ndarray, "g"] | None = None,
    area: Num[np.ndarray, "g"] | None = None,
    overlap: Overlap = "iou",
    thresholds: Sequence[float] = COCO_OVERLAPS,
    areas: Sequence[Area] = AREAS,
    max_detections: int = 100,
) -> Matches:
    """Match detections to true boxes of the same case and class, the highest score first.

    Each detection takes the free box that it overlaps most, at least by the threshold; among equals the later one. A
    box that counts goes before one that does not. Boxes of a crowd never count and can be hit by any number of
    detections, whose overlap with them is over the detection's box. A detection that hits a box that does not count,
    or that hits nothing and is itself of another area, is neither right nor wrong. At a threshold of 0 boxes need not
    meet.

    Args:
      truth_boxes, boxes: `(x0, y0, x1, y1)` in pixels.
      truth_case, case: index of the case (image), 0 to `cases - 1`.
      truth_label, label: index of the class, 0 to `classes - 1`.
      score: higher is more certain; of any scale.
      cases: number of images, those without any box included.
      classes: number of classes.
      crowd: true boxes that stand for many, or that must not count; none by default.
      area: of the true objects in square pixels, such as of their masks; by default of their boxes.
      overlap: "iou", or "iobb", which divides by the detection's box alone: a tiny box inside a large finding has
        overlap 1, and coverage does not count. Report IoU beside it.
      thresholds: smallest overlap of a hit.
      areas: ranges of sizes that are judged apart.
      max_detections: only so many of a case and class are judged, the highest scores.

    Raises:
      ValueError: boxes without extent, values that are not finite, indices or settings out of range.

    Example:
      >>> truth, found = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 8], [0.0, 0, 10, 9]])
      >>> zero = np.zeros(2, int)
      >>> matches = match_boxes(truth, zero[:1], zero[:1], found, zero, zero, np.array([0.3, 0.6]), cases=1, classes=1)
      >>> matches.row.tolist(), matches.hit.tolist(), int(matches.matched[0, :, 0].sum())
      ([1, 0], [0], 9)

    References:
      Lin et al. 2014, "Microsoft COCO", and its published evaluation program; IoBB: specs/mdf_net.md, section 6.
    """
    _check_settings(thresholds, areas, max_detections, cases, classes, overlap)
    check_boxes("truth_boxes", truth_boxes)
    check_boxes("boxes", boxes)
    _check_indices("truth_case", truth_case, cases, "cases")
    _check_indices("case", case, cases, "cases")
    _check_indices("truth_label", truth_label, classes, "classes")
    _check_indices("label", label, classes, "classes")
    if not np.isfinite(score).all():
        row = int(np.flatnonzero(~np.isfinite(score))[0])
        raise ValueError(f"score[{row}] is {score[row]}; expected a finite number for every detection.")
    if crowd is None:
        crowd = np.zeros(len(truth_boxes), bool)
    if area is None:
        area = _extent(truth_boxes)

    # Group by group (class and case), the highest score first, ties in the order of the rows.
    group = label.astype(np.int64) * cases + case
    order = np.lexsort((-score, group))
    rank = _place(group[order])
    order, rank = order[rank < max_detections], rank[rank < max_detections]
    boxes, group = np.asarray(boxes[order], float), group[order]

    truth_group = truth_label.astype(np.int64) * cases + truth_case
    truth_order = np.argsort(truth_group, kind="stable")
    ranges = np.array([(low, high) for _, low, high in areas])
    counted = (area[:, None] >= ranges[:, 0]) & (area[:, None] <= ranges[:, 1]) & ~crowd[:, None]
    own = _extent(boxes)[:, None]
    in_area = (own >= ranges[:, 0]) & (own <= ranges[:, 1])

    pairs = _candidates(
        np.asarray(truth_boxes[truth_order], float),
        crowd[truth_order],
        truth_group[truth_order],
        boxes,
        group,
        min(min(thresholds), ALMOST_ONE),
        overlap,
    )
    hit = pairs.detection[_place(pairs.detection) == 0]
    matched, ignored = _greedy(pairs, hit, group, counted[truth_order], crowd[truth_order], thresholds)

    took = matched.any(axis=(1, 2))
    hit, matched, ignored = hit[took], matched[took], ignored[took]

    # From groups to classes: COCO sorts the detections of all cases by score, stably.
    by_class = np.lexsort((-score[order], label[order]))
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(by_class))
    by_place = np.argsort(place[hit])
    row = order[by_class]
    return Matches(
        row=row,
        case=case[row],
        label=label[row],
        score=score[row],
        rank=rank[by_class],
        in_area=in_area[by_class],
        hit=place[hit][by_place],
        matched=matched[by_place],
        ignored=ignored[by_place],
        truth_case=truth_case,
        truth_label=truth_label,
        counted=counted,
        cases=cases,
        classes=classes,
        overlap=overlap,
        thresholds=tuple(map(float, thresholds)),
        areas=tuple(areas),
        max_detections=max_detections,
    )


def pairwise_overlap(
    detected: Num[np.ndarray, "p 4"], truth: Num[np.ndarray, "p 4"], *, over_detection: Bool[np.ndarray, "p"] | bool
) -> Float[np.ndarray, "p"]:
    """Overlap of each detection with the true box of the same row, in double precision.

    `fusion_jax.ops` has the same overlaps of all pairs, as JAX kernels in single precision.

    Args:
      detected, truth: boxes with an area, in pixels.
      over_detection: where to divide by the area of the detection (IoBB) and not of the union (IoU).

    Example:
      >>> detected, truth = np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 4]])
      >>> [pairwise_overlap(detected, truth, over_detection=over).item() for over in (False, True)]
      [0.5, 1.0]
    """
    detected, truth = np.asarray(detected, float), np.asarray(truth, float)
    width = np.minimum(detected[:, 2], truth[:, 2]) - np.maximum(detected[:, 0], truth[:, 0])
    height = np.minimum(detected[:, 3], truth[:, 3]) - np.maximum(detected[:, 1], truth[:, 1])
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    own = _extent(detected)
    return shared / np.where(over_detection, own, own + _extent(truth) - shared)


def check_boxes(name: str, boxes: Num[np.ndarray, "n 4"]) -> None:
    """Refuse boxes that are not finite or have no extent.

    Raises:
      ValueError: with the first such row.
    """
    bad = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}[{row}] is {listed(boxes[row].tolist())} ({int(bad.sum())} such in all); expected finite x0, "
            "y0, x1, y1 with x0 < x1 and y0 < y1."
        )


class _Pairs(NamedTuple):
    """Pairs that overlap enough for some threshold: by detection, then in the order in which it would take them."""

    detection: Int[np.ndarray, "p"]
    truth: Int[np.ndarray, "p"]
    overlap: Float[np.ndarray, "p"]


def _candidates(
    truth_boxes: np.ndarray,
    crowd: np.ndarray,
    truth_group: np.ndarray,
    boxes: np.ndarray,
    group: np.ndarray,
    least: float,
    overlap: Overlap,
) -> _Pairs:
    first = np.searchsorted(truth_group, group, side="left")
    partners = np.searchsorted(truth_group, group, side="right") - first
    total = np.cumsum(partners)
    found: list[_Pairs] = []
    start = 0
    while start < len(boxes):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + PAIRS_AT_ONCE, side="right")))
        count = partners[start:stop]
        detection = np.repeat(np.arange(start, stop), count)
        truth = first[detection] + _place(detection)
        over = True if overlap == "iobb" else crowd[truth]
        value = pairwise_overlap(boxes[detection], truth_boxes[truth], over_detection=over)
        near = value >= least
        detection, truth, value = detection[near], truth[near], value[near]
        preferred = np.lexsort((-truth, -value, detection))
        found.append(_Pairs(detection[preferred], truth[preferred], value[preferred]))
        start = stop
    nothing = np.zeros(0, np.int64)
    return _Pairs(*map(np.concatenate, zip(_Pairs(nothing, nothing, np.zeros(0)), *found, strict=True)))


def _greedy(
    pairs: _Pairs,
    hit: np.ndarray,
    group: np.ndarray,
    counted: np.ndarray,
    crowd: np.ndarray,
    thresholds: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Flags `(h, t, a)`: matched, and matched with a box that does not count."""
    areas = counted.shape[1]
    shape = (len(hit), len(thresholds), areas)
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    detection = np.searchsorted(hit, pairs.detection)
    together = BITS // areas  # thresholds whose bits fit into one integer
    for start in range(0, len(thresholds), together):
        part = slice(start, start + together)
        limits = np.minimum(np.array(thresholds[part]), ALMOST_ONE)
        bits = 1 << np.arange(len(limits) * areas, dtype=np.uint64).reshape(len(limits), areas)
        # Thresholds passed by a pair, as the bits of all their areas.
        ladder = np.sort(limits)
        passed = np.array([bits[limits <= limit].sum(dtype=np.uint64) for limit in ladder], np.uint64)
        passed = np.concatenate([np.zeros(1, np.uint64), passed])
        pair_bits = passed[np.searchsorted(ladder, pairs.overlap, side="right")]
        of_area = bits.sum(axis=0, dtype=np.uint64)
        counting = np.where(counted, of_area, np.zeros(1, np.uint64)).sum(axis=1, dtype=np.uint64)[pairs.truth]
        taken, skipped = _in_step(
            detection, pairs.truth, pair_bits & counting, pair_bits & ~counting, group[pairs.detection], len(hit), crowd
        )
        matched[:, part] = _flags(taken, bits.shape)
        ignored[:, part] = _flags(skipped, bits.shape)
    return matched, ignored


def _in_step(
    detection: np.ndarray,
    truth: np.ndarray,
    counting: np.ndarray,
    other: np.ndarray,
    group: np.ndarray,
    detections: int,
    crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the settings in which each detection took a box, and took one that does not count.

    The pairs of a group take turns: those of one detection after another, first boxes that count. At every turn all
    groups move at once.
    """
    pair = np.concatenate([np.flatnonzero(counting), np.flatnonzero(other)])
    counts = np.arange(len(pair)) < np.count_nonzero(counting)
    turn = np.lexsort((~counts, detection[pair]))  # stable: keeps the order of preference
    pair, counts = pair[turn], counts[turn]
    wanted = np.where(counts, counting[pair], other[pair])
    step = _place(group[pair])
    by_step = np.argsort(step, kind="stable")
    ends = np.cumsum(np.bincount(step)) if len(step) else np.zeros(0, np.int64)

    everything = np.uint64(2**BITS - 1)
    nothing = np.uint64(0)
    open_ = np.full(detections, everything)
    skipped = np.zeros(detections, np.uint64)
    free = np.full(len(crowd), everything)
    held = np.where(crowd, nothing, everything)  # a crowd is never used up
    columns = (detection[pair], truth[pair], wanted, np.where(counts, nothing, everything))
    columns = tuple(column[by_step] for column in columns)
    start = 0
    for end in ends.tolist():
        at, of, bits, not_counting = (column[start:end] for column in columns)
        took = bits & open_[at] & free[of]
        open_[at] &= ~took
        free[of] &= ~(took & held[of])
        skipped[at] |= took & not_counting
        start = end
    return ~open_, skipped


def _flags(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Integers as flags of this shape, the lowest bit first."""
    octets = bits.astype("<u8").view(np.uint8).reshape(len(bits), BITS // 8)
    flags = np.unpackbits(octets, axis=1, bitorder="little", count=math.prod(shape))
    return flags.reshape(len(bits), *shape).astype(bool)


def _place(sorted_keys: np.ndarray) -> np.ndarray:
    """Place of every entry among those of its key, from 0; equal keys stand together."""
    count = len(sorted_keys)
    if not count:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    return np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))


def _extent(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, float)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _check_indices(name: str, values: np.ndarray, count: int, of: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < count):
        raise ValueError(
            f"{name} holds {values.min()} to {values.max()}; expected 0 to {count - 1}, since there are {count} {of}."
        )


def _check_settings(
    thresholds: Sequence[float], areas: Sequence[Area], max_detections: int, cases: int, classes: int, overlap: str
) -> None:
    if not thresholds or not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds are {listed(thresholds)}; expected overlaps from 0 to 1.")
    if not 1 <= len(areas) <= BITS or any(not low < high for _, low, high in areas):
        raise ValueError(f"areas are {listed(areas)}; expected 1 to {BITS} ranges with low < high.")
    if min(max_detections, cases, classes) < 1:
        raise ValueError(
            f"max_detections is {max_detections}, cases {cases}, classes {classes}; expected 1 or more of each."
        )
    if overlap not in ("iou", "iobb"):
        raise ValueError(f"overlap is {overlap!r}; expected 'iou' or 'iobb'.")
