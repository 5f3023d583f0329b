r"""Anchors: the boxes a detector starts from, how much of a cohort they can reach, and a design that fits its boxes.

An anchor stands on a cell of a feature map. A truth box that no anchor overlaps by half can hardly be learned: the part
that some anchor does overlap is a ceiling, known before any training. It depends on the stride as much as on the sizes,
since a small box between two cells is out of reach of any size. A square of `s` pixels that lies worst between the
cells reaches IoU 0.5 only for strides up to :math:`(\sqrt2 - 1)\,s \approx 0.41\,s`, with anchors of
:math:`\sqrt2\,s` that just contain it.

Everything here is NumPy on the host: anchors are constants of the compiled program.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.wording import listed

__all__ = [
    "PUBLISHED",
    "AnchorRecall",
    "Anchors",
    "anchor_recall",
    "anchors_per_cell",
    "anchors_per_level",
    "fit_anchors",
    "make_anchors",
    "read_anchors",
]

FITTED_BOXES = 2000
"""Boxes that a fit looks at, evenly over the sizes."""

SIZES_AN_OCTAVE, RATIOS_AN_OCTAVE = 8, 4
"""The lattice of a fit. Fixed, so that folds of one cohort often come to the same design and share a program."""

WIDEST = 8.0
"""Largest ratio a fit considers, and its inverse the smallest."""

RECALL_WEIGHT, LEAST_GAIN = 4.0, 0.01
"""What recall weighs against mean overlap, and the rise of their sum that one more size or ratio must bring."""

TIE = 1e-6
"""Rise below which a place is no better: single precision, and no reason to move."""


class Anchors(NamedTuple):
    """A design: which boxes stand on every cell of which maps.

    Attributes:
      sizes: square root of the area in pixels, one tuple a level; every level has the same number.
      ratios: height over width.
      strides: pixels between cells, one a level.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    strides: tuple[int, ...]


PUBLISHED = Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),), (0.5, 1.0, 2.0), (32,))
"""Those of MDF-Net: 15 a cell, 3,840 in an image of 512 pixels (specs/mdf_net.md, section 4.3)."""


class AnchorRecall(NamedTuple):
    """How much of a cohort's boxes anchors can reach.

    Attributes:
      overall: part of the boxes whose best anchor reaches the overlap; NaN without boxes.
      by_class: the same for every class from 0, NaN for a class without boxes; empty without classes.
      best: intersection over union of each box with its best anchor, shape `(m,)`.
    """

    overall: float
    by_class: tuple[float, ...]
    best: Float[np.ndarray, "m"]


def read_anchors(value: Anchors | Mapping[str, Any]) -> Anchors:
    """A design from its JSON form (the mapping of its attributes), checked.

    Raises:
      TypeError: something else than a design or a mapping.
      ValueError: unknown or missing names, numbers that are not positive, or levels that do not fit together.

    Example:
      >>> read_anchors({"sizes": [[16, 32]], "ratios": [1], "strides": [8]})
      Anchors(sizes=((16.0, 32.0),), ratios=(1.0,), strides=(8,))
    """
    if not isinstance(value, Anchors | Mapping):
        raise TypeError(f"anchors are a {type(value).__name__}; expected a mapping with sizes, ratios and strides.")
    given = value._asdict() if isinstance(value, Anchors) else value
    if sorted(given) != sorted(Anchors._fields):
        raise ValueError(f"anchors name {listed(sorted(given), 5)}; expected exactly sizes, ratios and strides.")
    try:
        sizes = tuple(tuple(float(size) for size in level) for level in given["sizes"])
        ratios = tuple(float(ratio) for ratio in given["ratios"])
        strides = tuple(int(stride) for stride in given["strides"])
        whole = all(stride == given_stride for stride, given_stride in zip(strides, given["strides"], strict=True))
    except (TypeError, ValueError):
        raise ValueError(
            f"anchors are {dict(given)!r}; expected sizes as one list of pixels a level, ratios as one list of heights "
            "over widths, and strides as one list of pixels."
        ) from None
    if not sizes or len(sizes) != len(strides):
        raise ValueError(
            f"anchors have sizes for {len(sizes)} levels and {len(strides)} strides; expected one a level."
        )
    if len({len(level) for level in sizes}) > 1 or not sizes[0] or not ratios:
        raise ValueError(
            f"anchors have {[len(level) for level in sizes]} sizes a level and {len(ratios)} ratios; expected at least "
            "one of each, and as many sizes on every level, since one head serves all levels."
        )
    numbers = (*(size for level in sizes for size in level), *ratios, *strides)
    if not whole or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"anchors are {dict(given)!r}; expected positive numbers, and whole pixels for strides.")
    return Anchors(sizes, ratios, strides)


def anchors_per_cell(design: Anchors) -> int:
    """Boxes on every cell: sizes of a level times ratios.

    Example:
      >>> anchors_per_cell(PUBLISHED)
      15
    """
    return len(design.sizes[0]) * len(design.ratios)


def anchors_per_level(design: Anchors, height: int, width: int) -> tuple[int, ...]:
    """Boxes of every level in an image of `height` by `width` pixels, whose maps have ceil(pixels / stride) cells.

    Example:
      >>> anchors_per_level(PUBLISHED, 512, 512)
      (3840,)
    """
    cells = [-(-height // stride) * -(-width // stride) for stride in design.strides]
    return tuple(count * anchors_per_cell(design) for count in cells)


def make_anchors(design: Anchors, height: int, width: int) -> Float[np.ndarray, "a 4"]:
    """Every anchor of an image, in the order of a head's outputs: level, row, column, ratio, size.

    The definition of torchvision: cell (row, column) stands at (stride * row, stride * column), not half a cell
    further, and the half extents of an anchor are rounded to whole pixels. Anchors reach beyond the border.

    Args:
      design: sizes, ratios and strides.
      height, width: of the image, in pixels; a map has ceil(pixels / stride) cells.

    Returns:
      Boxes (x0, y0, x1, y1) in pixels, float32, shape `(a, 4)`.

    Raises:
      ValueError: a design that cannot be, or an image without pixels.

    Example:
      >>> make_anchors(Anchors(((4.0,),), (1.0,), (8,)), 8, 16).tolist()
      [[-2.0, -2.0, 2.0, 2.0], [6.0, -2.0, 10.0, 2.0]]

    References:
      specs/mdf_net.md, section 4.3 and M9.
    """
    design = read_anchors(design)
    _check_image((height, width))
    levels = []
    for sizes, stride in zip(design.sizes, design.strides, strict=True):
        half = _half_extents(np.asarray(sizes)[None, :], np.asarray(design.ratios)[:, None]).reshape(-1, 2)
        base = np.concatenate([-half, half], axis=1)
        y, x = np.meshgrid(
            np.arange(0, -(-height // stride)) * stride, np.arange(0, -(-width // stride)) * stride, indexing="ij"
        )
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        levels.append((centres + base).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def anchor_recall(
    design: Anchors,
    boxes: Float[np.ndarray, "m 4"],
    image_size: tuple[int, int],
    *,
    overlap: float = 0.5,
    classes: Int[np.ndarray, "m"] | None = None,
) -> AnchorRecall:
    """The part of the boxes that some anchor overlaps by at least `overlap`: the ceiling of a detector's recall.

    Box regression can move proposals further than anchors reach, and low-quality matches give every box an anchor;
    nevertheless a detector seldom finds boxes that start below 0.5. Worth a warning below 90 %.

    Args:
      design: sizes, ratios and strides.
      boxes: (x0, y0, x1, y1) in pixels of the image as the detector sees it, shape `(m, 4)`.
      image_size: height and width of that image.
      overlap: intersection over union that counts as reached, in (0, 1].
      classes: class of each box, from 0, shape `(m,)`.

    Returns:
      Recall over all boxes and by class, and the best overlap of every box; 0 for a box without area.

    Raises:
      ValueError: a design or an overlap that cannot be, or boxes that are not finite.

    Example:
      >>> boxes = np.array([[20.0, 20.0, 44.0, 44.0], [70.0, 70.0, 80.0, 80.0]])
      >>> recall = anchor_recall(PUBLISHED, boxes, (512, 512))
      >>> recall.overall, recall.best.round(2).tolist()
      (0.5, [0.56, 0.1])
    """
    design = read_anchors(design)
    _check_image(image_size)
    _check_overlap(overlap)
    boxes = np.asarray(boxes, np.float64)
    _check_finite(boxes)
    best = np.zeros(len(boxes))
    for sizes, stride in zip(design.sizes, design.strides, strict=True):
        half = _half_extents(np.asarray(sizes)[:, None], np.asarray(design.ratios)[None, :]).reshape(-1, 2)
        offset = _offsets(boxes, stride, image_size)
        for shape in half:  # one shape at a time: 500,000 boxes need no matrix of boxes and shapes
            best = np.maximum(best, _overlap(boxes, offset, shape))
    reached = best >= overlap
    by_class: tuple[float, ...] = ()
    if classes is not None and len(classes):
        by_class = tuple(_mean(reached[classes == label]) for label in range(int(classes.max()) + 1))
    return AnchorRecall(_mean(reached), by_class, best)


def fit_anchors(
    boxes: Float[np.ndarray, "m 4"],
    image_size: tuple[int, int],
    *,
    strides: Sequence[int] = (8, 16, 32),
    pyramid: bool = False,
    per_cell: int | None = None,
    overlap: float = 0.5,
    ceiling: float = 0.98,
) -> Anchors:
    """Sizes, ratios and stride that reach the given boxes, from no more anchors than they need.

    A lattice of eight sizes an octave and four ratios an octave is spanned over the boxes. For a stride, sizes and
    ratios are chosen by exchange: each in turn takes the place on the lattice with the highest worth, four times the
    recall (as far as `ceiling`) plus the mean best overlap, until none moves. One size and one ratio come first; then
    whichever of a size and a ratio brings more for the anchors it costs, while it brings at least 0.01. Overlaps are
    exact: they know the place of each box between the cells and the rounding of anchors. Nothing is random.

    Args:
      boxes: of the training cases only, (x0, y0, x1, y1) in pixels of the image as the detector sees it, `(m, 4)`.
      image_size: height and width of that image.
      strides: of the maps the detector can read. One of them is chosen: the coarsest whose recall reaches `ceiling`,
        and if none does the one with the highest recall. Anchors grow with the square of its inverse.
      pyramid: read all the maps instead; sizes then rise with the strides.
      per_cell: most anchors a cell, sizes of a level times ratios; as published, 15 on one map and 9 in a pyramid.
      overlap: intersection over union from which a box is reached, in (0, 1].
      ceiling: recall that is enough, in [0, 1].

    Returns:
      The design.

    Raises:
      ValueError: no boxes, boxes without area, or settings that cannot be.

    Example:
      >>> corner = np.arange(0.0, 400.0, 7.0)
      >>> boxes = np.stack([corner, corner, corner + 60, corner + 60], axis=1)
      >>> design = fit_anchors(boxes, (512, 512))
      >>> design, anchor_recall(design, boxes, (512, 512)).overall
      (Anchors(sizes=((58.7,),), ratios=(1.0,), strides=(16,)), 1.0)

    References:
      Redmon and Farhadi 2017, "YOLO9000", section 2 (anchors from the boxes of a training set); 15 a cell as in
      MDF-Net, 9 as in Lin et al. 2017, "Focal Loss for Dense Object Detection".
    """
    _check_image(image_size)
    _check_overlap(overlap)
    if not 0 <= ceiling <= 1:
        raise ValueError(f"ceiling is {ceiling}; expected a recall between 0 and 1.")
    if not strides or any(stride < 1 or stride != int(stride) for stride in strides):
        raise ValueError(f"strides are {list(strides)}; expected whole pixels, at least one stride.")
    boxes = np.asarray(boxes, np.float64)
    _check_finite(boxes)
    if len(boxes) == 0:
        raise ValueError("no boxes to fit anchors to; give the boxes of the training cases, or take PUBLISHED anchors.")
    extent = boxes[:, 2:] - boxes[:, :2]
    if not (extent > 0).all():
        row = int(np.argmin((extent > 0).all(axis=1)))
        raise ValueError(f"box {row} is {boxes[row].tolist()}; expected x1 > x0 and y1 > y0. Leave such boxes out.")
    levels = sorted({int(stride) for stride in strides})
    most = (9 if pyramid else 15) if per_cell is None else per_cell
    if most < 1:
        raise ValueError(f"per_cell is {most}; expected at least 1 anchor a cell.")
    seen = _thinned(boxes)
    if pyramid:
        return _fit(seen, image_size, levels, most, overlap, ceiling)
    found = []
    for stride in reversed(levels):
        design = _fit(seen, image_size, [stride], most, overlap, ceiling)
        found.append((anchor_recall(design, boxes, image_size, overlap=overlap).overall, design))
        if found[-1][0] >= ceiling:
            break
    return max(found, key=lambda entry: entry[0])[1]


class _Lattice(NamedTuple):
    """What a fit chooses from."""

    sizes: np.ndarray
    ratios: np.ndarray
    reach: np.ndarray
    """Overlap of every box with every shape on every level, shape `(levels, sizes, ratios, boxes)`."""
    overlap: float
    ceiling: float

    def worth(self, best: np.ndarray) -> np.ndarray:
        """Of the best overlaps of the boxes, shape `(…, boxes)`, the value that a fit raises, shape `(…,)`."""
        recall = np.minimum((best >= self.overlap).mean(axis=-1), self.ceiling)
        return np.asarray(RECALL_WEIGHT * recall + best.mean(axis=-1))


class _Choice(NamedTuple):
    """Places on the lattice: rising sizes, as many on every level from the first, and ratios."""

    sizes: list[int]
    ratios: list[int]


def _fit(
    boxes: np.ndarray, image_size: tuple[int, int], strides: list[int], per_cell: int, overlap: float, ceiling: float
) -> Anchors:
    """Design on the maps of all the strides, rising."""
    lattice = _lattice(boxes, image_size, strides, overlap, ceiling)
    levels = len(strides)
    extents = np.log(boxes[:, 2:] - boxes[:, :2])
    log_sizes, log_ratio = extents.mean(axis=1), float((extents[:, 1] - extents[:, 0]).mean())

    def spread(count: int) -> list[int]:
        """Places at even quantiles of the sizes of the boxes."""
        wanted = np.quantile(log_sizes, (np.arange(count) + 0.5) / count)
        return _rising([_nearest(lattice.sizes, value) for value in wanted], len(lattice.sizes))

    choice = _exchanged(lattice, _Choice(spread(levels), [_nearest(lattice.ratios, log_ratio)]))
    while True:
        now, cost = float(lattice.worth(_best(lattice, choice))), len(choice.sizes) * len(choice.ratios)
        larger = []
        if (len(choice.sizes) + levels) * len(choice.ratios) <= per_cell * levels:
            # From afresh and from what there is: either alone stays behind in one cohort or another.
            starts = (spread(len(choice.sizes) + levels), _one_more_size(lattice, choice))
            larger = [_Choice(start, choice.ratios) for start in starts if len(start) <= len(lattice.sizes)]
        if len(choice.sizes) * (len(choice.ratios) + 1) <= per_cell * levels:
            larger.append(_Choice(choice.sizes, _one_more_ratio(lattice, choice)))
        gains = []
        for option in (_exchanged(lattice, option) for option in larger):
            gain = float(lattice.worth(_best(lattice, option))) - now
            if gain >= LEAST_GAIN:
                gains.append((gain / (len(option.sizes) * len(option.ratios) - cost), option))
        if not gains:
            break
        choice = max(gains, key=lambda gain: gain[0])[1]
    of_level = len(choice.sizes) // levels
    sizes = [float(lattice.sizes[place]) for place in choice.sizes]
    return Anchors(
        tuple(tuple(sizes[level * of_level : (level + 1) * of_level]) for level in range(levels)),
        tuple(float(lattice.ratios[place]) for place in sorted(choice.ratios)),
        tuple(strides),
    )


def _lattice(
    boxes: np.ndarray, image_size: tuple[int, int], strides: list[int], overlap: float, ceiling: float
) -> _Lattice:
    extent = np.log2(boxes[:, 2:] - boxes[:, :2])
    size, ratio = extent.mean(axis=1) * SIZES_AN_OCTAVE, (extent[:, 1] - extent[:, 0]) * RATIOS_AN_OCTAVE
    # At least half an octave more above: an anchor that contains a box between the cells is up to sqrt(2) larger.
    places = np.arange(math.floor(size.min()), math.ceil(size.max()) + 5 + len(strides))
    sizes = np.maximum((2.0 ** (places / SIZES_AN_OCTAVE)).round(1), 1.0)
    most = int(RATIOS_AN_OCTAVE * math.log2(WIDEST))
    low, high = (int(np.clip(value, -most, most)) for value in (round(ratio.min()) - 1, round(ratio.max()) + 1))
    ratios = (2.0 ** (np.arange(low, high + 1) / RATIOS_AN_OCTAVE)).round(3)
    half = _half_extents(sizes[:, None], ratios[None, :])
    # 31 MB for 5 levels, 60 sizes, 13 ratios and 2000 boxes.
    reach = np.empty((len(strides), len(sizes), len(ratios), len(boxes)), np.float32)
    for level, stride in enumerate(strides):
        offset = _offsets(boxes, stride, image_size)
        for place in np.ndindex(half.shape[:2]):
            reach[level, *place] = _overlap(boxes, offset, half[place])
    return _Lattice(sizes, ratios, reach, overlap, ceiling)


def _exchanged(lattice: _Lattice, choice: _Choice) -> _Choice:
    """Every size and ratio in turn at its best place, until none moves."""
    slots, ratios = list(choice.sizes), list(choice.ratios)
    of_level = len(slots) // len(lattice.reach)
    score = float(lattice.worth(_best(lattice, choice)))

    def better(candidates: np.ndarray, others: np.ndarray, now: int) -> int:
        worth = lattice.worth(np.maximum(candidates, others))
        place = int(np.argmax(worth))
        return place if worth[place] > worth[now] + TIE else now

    while True:
        for slot, place in enumerate(slots):
            # Between its neighbours, so that sizes rise with strides: of nested grids the finest always overlaps
            # best, and would take all of them.
            low = slots[slot - 1] + 1 if slot else 0
            high = slots[slot + 1] - 1 if slot + 1 < len(slots) else len(lattice.sizes) - 1
            free = lattice.reach[slot // of_level, low : high + 1][:, ratios].max(axis=1)
            slots[slot] = low + better(free, _best(lattice, _Choice(slots, ratios), but_slot=slot), place - low)
        by_ratio = _by_ratio(lattice, slots)
        for index, place in enumerate(ratios):
            others = [by_ratio[other] for position, other in enumerate(ratios) if position != index]
            ratios[index] = better(by_ratio, np.max([*others, np.zeros_like(by_ratio[0])], axis=0), place)
        moved = float(lattice.worth(_best(lattice, _Choice(slots, ratios))))
        if moved <= score + TIE:
            return _Choice(slots, ratios)
        score = moved


def _best(lattice: _Lattice, choice: _Choice, but_slot: int | None = None) -> np.ndarray:
    """Best overlap of every box, one of the sizes left out where it is given."""
    of_level = len(choice.sizes) // len(lattice.reach)
    best = np.zeros(lattice.reach.shape[-1], np.float32)
    for slot, size in enumerate(choice.sizes):
        if slot != but_slot:
            best = np.maximum(best, lattice.reach[slot // of_level, size][choice.ratios].max(axis=0))
    return best


def _by_ratio(lattice: _Lattice, slots: list[int]) -> np.ndarray:
    """Best overlap of every box for each ratio of the lattice, shape `(ratios, boxes)`."""
    of_level = len(slots) // len(lattice.reach)
    return np.max([lattice.reach[slot // of_level, size] for slot, size in enumerate(slots)], axis=0)


def _one_more_size(lattice: _Lattice, choice: _Choice) -> list[int]:
    """The sizes with another on every level, each at the best place between those of the levels around."""
    levels = len(lattice.reach)
    of_level = len(choice.sizes) // levels
    groups = [choice.sizes[level * of_level : (level + 1) * of_level] for level in range(levels)]
    best = _best(lattice, choice)
    for level, group in enumerate(groups):
        low = groups[level - 1][-1] if level else 0
        high = groups[level + 1][0] if level + 1 < levels else len(lattice.sizes) - 1
        free = lattice.reach[level, low : high + 1][:, choice.ratios].max(axis=1)
        added = int(np.argmax(lattice.worth(np.maximum(free, best))))
        groups[level], best = sorted([*group, low + added]), np.maximum(best, free[added])
    return _rising([place for group in groups for place in group], len(lattice.sizes))


def _one_more_ratio(lattice: _Lattice, choice: _Choice) -> list[int]:
    by_ratio = _by_ratio(lattice, choice.sizes)
    added = int(np.argmax(lattice.worth(np.maximum(by_ratio, by_ratio[choice.ratios].max(axis=0)))))
    return [*choice.ratios, added]


def _rising(places: list[int], room: int) -> list[int]:
    """The places moved apart, below `room` as far as they fit."""
    for slot in range(1, len(places)):
        places[slot] = max(places[slot], places[slot - 1] + 1)
    return [min(place, room - len(places) + slot) for slot, place in enumerate(places)]


def _nearest(lattice: np.ndarray, log_value: float) -> int:
    return int(np.argmin(np.abs(np.log(lattice) - log_value)))


def _thinned(boxes: np.ndarray) -> np.ndarray:
    """At most FITTED_BOXES of the boxes, evenly over their sizes."""
    if len(boxes) <= FITTED_BOXES:
        return boxes
    order = np.argsort(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    return boxes[order[np.linspace(0, len(boxes) - 1, FITTED_BOXES).round().astype(int)]]


def _half_extents(sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Half width and half height in whole pixels, shape `(…, 2)`."""
    root = np.sqrt(ratios)
    return np.stack(np.broadcast_arrays((0.5 * sizes / root).round(), (0.5 * sizes * root).round()), axis=-1)


def _offsets(boxes: np.ndarray, stride: int, image_size: tuple[int, int]) -> np.ndarray:
    """From the nearest cell to the centre of each box (x, y): the intersection falls with either distance alone."""
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    last = np.array([-(-image_size[1] // stride), -(-image_size[0] // stride)]) - 1
    return centre - stride * np.clip((centre / stride).round(), 0, last)


def _overlap(boxes: np.ndarray, offset: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Intersection over union of each box with an anchor of these half extents at its nearest cell."""
    extent = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    inside = np.minimum(offset + 0.5 * extent, half) - np.maximum(offset - 0.5 * extent, -half)
    intersection = np.maximum(inside, 0).prod(axis=1)
    area = extent.prod(axis=1)
    union = area + 4 * half.prod() - intersection
    return np.where(area > 0, intersection / np.where(union > 0, union, 1), 0.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _check_image(image_size: tuple[int, int]) -> None:
    if len(image_size) != 2 or any(side < 1 for side in image_size):
        raise ValueError(f"image size is {tuple(image_size)}; expected height and width in pixels, each at least 1.")


def _check_overlap(overlap: float) -> None:
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap is {overlap}; expected an intersection over union above 0, at most 1.")


def _check_finite(boxes: np.ndarray) -> None:
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"box {row} is {boxes[row].tolist()}; expected finite corners (x0, y0, x1, y1) in pixels.")
