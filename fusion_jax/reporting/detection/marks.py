"""Boxes with class, score and mask, and how they are drawn over an image; clinical values as they are told.

Images are grey or dark, whatever the page is: marks have the light colours of the palette for dark pages, with a dark
edge, on every page. Classes have a number beside their colour, since colours alone are not told apart by everybody.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Num, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fusion_jax.reporting.figures import DARK, Palette
from fusion_jax.reporting.html import format_number

__all__ = [
    "ClinicalValue",
    "Marks",
    "View",
    "checked_marks",
    "class_colour",
    "class_handles",
    "clinical_values",
    "draw_marks",
    "draw_picture",
    "kept_marks",
    "told_marks",
    "truth_colour",
]

EDGE = "#101214"
MASK_OPACITY = 0.38
UNIT_ENDINGS = ("_years", "_percent", "_per_min", "_bpm", "_mmhg", "_cm", "_mm", "_kg", "_f", "_c")
"""How names of columns tell their unit."""
SIGNS = {"degF": "°F", "degC": "°C"}


View = tuple[float, float, float, float]
"""Part of an image, (x0, y0, x1, y1) in the pixels of its boxes."""


class Marks(NamedTuple):
    """Boxes of one image.

    Attributes:
      boxes: `(x0, y0, x1, y1)` in pixels of the image, shape `(n, 4)`.
      label: index of the class, shape `(n,)`.
      score: of a detection, shape `(n,)`; None for the truth.
      masks: probability or membership of every pixel of the image, shape `(n, h, w)`; None without masks.

    Example:
      >>> Marks(np.array([[4.0, 2.0, 9.0, 8.0]]), np.array([0]), np.array([0.9])).masks is None
      True
    """

    boxes: Num[np.ndarray, "n 4"]
    label: Int[np.ndarray, "n"]
    score: Num[np.ndarray, "n"] | None = None
    masks: Shaped[np.ndarray, "n h w"] | None = None


class ClinicalValue(NamedTuple):
    """One clinical value of a patient.

    Attributes:
      name: of the column, in words.
      value: a number or a word; None where it was not measured.
      unit: "" where there is none.
      filled: what a model is given in place of a missing value; None where that is not told.
    """

    name: str
    value: float | str | None
    unit: str = ""
    filled: float | str | None = None

    def text(self) -> str:
        """The value with its unit, or that it is missing.

        Example:
          >>> ClinicalValue("heart rate", 85.0, "bpm").text(), ClinicalValue("heart rate", None, "bpm", 85.7).text()
          ('85 bpm', 'missing (85.7 bpm used)')
        """
        if self.value is not None:
            return _with_unit(self.value, self.unit)
        return "missing" if self.filled is None else f"missing ({_with_unit(self.filled, self.unit)} used)"


def clinical_values(
    row: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    filled: Mapping[str, float | str] | None = None,
) -> list[ClinicalValue]:
    """Clinical values out of a row of a table, such as `cohort[i].row` with `cohort.units`.

    Args:
      row: column to cell; None, NaN and "" are missing.
      columns: which to tell, in order; all unless given.
      units: column to unit.
      filled: column to what a model is given where the cell is missing.

    Raises:
      ValueError: a column that the row does not have.

    Example:
      >>> row = {"o2sat_percent": 97.0, "pain": float("nan"), "gender": "F"}
      >>> [(one.name, one.text()) for one in clinical_values(row, units={"o2sat_percent": "%"})]
      [('o2sat', '97 %'), ('pain', 'missing'), ('gender', 'F')]
    """
    units, filled = units or {}, filled or {}
    chosen = list(row) if columns is None else list(columns)
    absent = [name for name in chosen if name not in row]
    if absent:
        raise ValueError(
            f"clinical values: no column {absent[0]!r} in the row; it has {', '.join(map(str, row))}. "
            "Name columns of the table."
        )
    found = []
    for name in chosen:
        cell, unit = row[name], units.get(name, "")
        value = None if cell is None or cell == "" else cell if isinstance(cell, str) else float(cell)
        value = None if isinstance(value, float) and math.isnan(value) else value
        found.append(ClinicalValue(_words(name, unit), value, unit, filled.get(name)))
    return found


def _words(name: str, unit: str) -> str:
    """A column's name without the unit that it ends with, where the unit is told beside the value."""
    if unit:
        for ending in UNIT_ENDINGS:
            name = name.removesuffix(ending)
    return name.replace("_", " ")


def _with_unit(value: float | str, unit: str) -> str:
    """A scale, such as 0-10, is no unit to follow a number."""
    unit = f"({unit})" if unit[:1].isdigit() else SIGNS.get(unit, unit)
    return f"{_shown(value)} {unit}".strip()


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e6 else format_number(float(value))


def checked_marks(marks: Marks, classes: Sequence[str], where: str) -> Marks:
    """The marks, if their lengths agree and their classes exist.

    Raises:
      ValueError: they do not.
    """
    count = len(marks.boxes)
    lengths = {name: len(part) for name, part in marks._asdict().items() if part is not None}
    if set(lengths.values()) - {count}:
        raise ValueError(f"{where}: {lengths}; boxes, labels, scores and masks must be of one length.")
    labels = np.asarray(marks.label)
    if count and (labels.min() < 0 or labels.max() >= len(classes)):
        raise ValueError(
            f"{where}: labels from {labels.min()} to {labels.max()} and {len(classes)} classes; expected 0 to "
            f"{len(classes) - 1}. Labels count the classes from 0, without the background."
        )
    return marks


def kept_marks(marks: Marks, *, score: float | None = None, most: int | None = None) -> Marks:
    """The marks of at least this score, those of the highest score only, in falling order of the score.

    Example:
      >>> marks = Marks(np.zeros((3, 4)), np.array([0, 1, 2]), np.array([0.2, 0.9, 0.5]))
      >>> kept_marks(marks, score=0.3).label.tolist(), kept_marks(marks, most=1).label.tolist()
      ([1, 2], [1])
    """
    if marks.score is None:
        return marks
    order = np.argsort(-np.asarray(marks.score), kind="stable")
    order = order[np.isfinite(marks.score[order])]
    if score is not None:
        order = order[marks.score[order] >= score]
    order = order[:most]
    masks = None if marks.masks is None else marks.masks[order]
    return Marks(marks.boxes[order], marks.label[order], marks.score[order], masks)


def class_colour(number: int) -> str:
    """Colour of a class on images."""
    return DARK.colours[number % len(DARK.colours)]


def truth_colour(number: int, *, many: bool) -> str:
    """Colour of what is there: that of its class, but another one where an only class has no need of colours.

    Dashes are not seen on small boxes.
    """
    return class_colour(number if many else 4)


def class_handles(palette: Palette, classes: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Handles and texts of a legend of classes, each with the number that stands beside its boxes."""
    handles = [
        Line2D([], [], color=class_colour(k), linewidth=0, marker="s", markersize=7, markeredgecolor=palette.soft)
        for k in range(len(classes))
    ]
    return handles, [f"{k + 1}  {name}" if len(classes) > 1 else name for k, name in enumerate(classes)]


def draw_picture(
    axes: Axes, picture: UInt8[np.ndarray, "h w c"], size: tuple[int, int], view: View | None = None
) -> None:
    """An image of any resolution over the pixels `size`, (height, width), that boxes are told in; or a part of it."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    shown = picture if picture.shape[-1] == 3 else np.repeat(picture[..., :1], 3, axis=-1)
    height, width = size
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest", aspect="equal")
    x0, y0, x1, y1 = view or (0, 0, width, height)
    axes.set(xlim=(x0, x1), ylim=(y1, y0))


def draw_marks(
    axes: Axes,
    marks: Marks,
    size: tuple[int, int],
    *,
    numbered: bool,
    dashed: bool = False,
    text: bool = True,
    fontsize: float = 6.0,
    opacity: Num[np.ndarray, "n"] | None = None,
    view: View | None = None,
) -> None:
    """Boxes, translucent masks and scores over `draw_picture`.

    Args:
      size: height and width of the image in the pixels of the boxes.
      numbered: the number of the class stands beside a box.
      dashed: as the truth is drawn.
      text: numbers and scores; the lowest score is drawn first, so that the highest can be read.
      opacity: of each box; opaque unless given.
      view: part of the image that is seen; all of it unless given.
    """
    height, width = size
    left, top, right, bottom = view or (0.0, 0.0, width, height)
    if marks.masks is not None:
        for mask, label in zip(marks.masks, marks.label, strict=True):
            over = np.zeros((*mask.shape, 4))
            over[..., :3] = to_rgb(class_colour(int(label)))
            over[..., 3] = MASK_OPACITY * (np.asarray(mask, float) >= 0.5)
            axes.imshow(over, extent=(0, width, height, 0), interpolation="nearest", aspect="equal")
    for row in range(len(marks.boxes))[::-1]:
        x0, y0, x1, y1 = (float(value) for value in marks.boxes[row])
        if x1 <= left or x0 >= right or y1 <= top or y0 >= bottom:
            continue
        label, alpha = int(marks.label[row]), 1.0 if opacity is None else float(opacity[row])
        colour = truth_colour(label, many=numbered) if dashed else class_colour(label)
        line = (0, (3.0, 1.6)) if dashed else "-"
        for edge, thick in ((EDGE, 2.0), (colour, 1.1)):
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=thick, alpha=alpha)
            # The dark edge of a dashed box is whole: the box is seen on light ground, too.
            frame.set_linestyle(line if edge == colour else "-")
            frame.set_alpha(alpha if edge == colour else 0.45 * alpha)
            axes.add_patch(frame)
        if not text:
            continue
        parts = [str(label + 1)] if numbered else []
        parts += [f"{float(marks.score[row]):.2f}"] if marks.score is not None else []
        if not parts:
            continue
        # Truth below, detections above: where both are at one place, both can be read.
        edge = 0.06 * (bottom - top)
        inside = y1 > bottom - edge if dashed else y0 < top + edge
        axes.text(
            min(max(x0, left), left + 0.9 * (right - left)),
            min(y1, bottom) if dashed else max(y0, top),
            "  ".join(parts),
            fontsize=fontsize,
            color=colour,
            va=("bottom" if inside else "top") if dashed else ("top" if inside else "bottom"),
            ha="left",
            bbox={"facecolor": EDGE, "edgecolor": "none", "alpha": 0.62, "pad": 0.7},
            clip_on=True,
        )


def told_marks(marks: Marks, classes: Sequence[str]) -> str:
    """What the marks are, in words.

    Example:
      >>> told_marks(Marks(np.zeros((2, 4)), np.array([1, 0]), np.array([0.9, 0.5])), ["nodule", "edema"])
      'edema 0.90, nodule 0.50'
    """
    if not len(marks.boxes):
        return "nothing"
    names = [classes[int(label)] for label in marks.label]
    if marks.score is None:
        return ", ".join(names)
    return ", ".join(f"{name} {score:.2f}" for name, score in zip(names, np.asarray(marks.score, float), strict=True))
