"""What detectors found in images, over what was there, beside what is known of the patients."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from fusion_jax.reporting.detection.marks import (
    ClinicalValue,
    Marks,
    View,
    checked_marks,
    class_colour,
    class_handles,
    draw_marks,
    draw_picture,
    kept_marks,
    told_marks,
    truth_colour,
)
from fusion_jax.reporting.figure_parts import draw_literally, text_width
from fusion_jax.reporting.figures import WIDTH, Palette
from fusion_jax.reporting.html import Figure
from fusion_jax.wording import counted, listed

__all__ = ["ShownCase", "prediction_figure"]

LINE = 0.135
"""Height of a line beside a picture, inches."""
FONT_SIZE = 7.0
BESIDE = 1.72
"""Width of the clinical values, inches."""
GAP = 0.06
LARGEST = 2.9
MOST_MODELS = 4


class ShownCase(NamedTuple):
    """One case of a picture of predictions.

    Attributes:
      name: of the case.
      picture: grey or RGB, 0 to 255, of any resolution.
      found: by model, what it found.
      truth: what is there; None where nobody knows.
      clinical: values that stand beside it; none for a detector that reads none.
      size: height and width in the pixels that boxes are told in; those of the picture unless given.
      view: part of the image to show, `(x0, y0, x1, y1)` in these pixels, as for small lesions; all unless given.
    """

    name: str
    picture: UInt8[np.ndarray, "h w c"]
    found: Mapping[str, Marks]
    truth: Marks | None = None
    clinical: Sequence[ClinicalValue] = ()
    size: tuple[int, int] | None = None
    view: View | None = None

    def pixels(self) -> tuple[int, int]:
        """Height and width in which boxes are told."""
        return self.size or (self.picture.shape[0], self.picture.shape[1])

    def shape(self) -> float:
        """Height of what is shown over its width."""
        x0, y0, x1, y1 = self.view or (0.0, 0.0, *self.pixels()[::-1])
        return (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0


def prediction_figure(
    cases: Sequence[ShownCase], *, classes: Sequence[str], score: float = 0.05, most: int = 10, caption: str
) -> Figure:
    """Images with the boxes that each model found over those that are there, a case a row and a model a column.

    Boxes that are there are dashed, with their class below; detections are whole, with class and score above, and
    masks are translucent. Clinical values stand beside the case; those that are missing say so.

    Args:
      cases: in reading order, of the same models.
      classes: names, in the order of the labels.
      score: detections below this are not drawn.
      most: detections of an image that are drawn, those of the highest score.
      caption: says how the cases were chosen.

    Raises:
      ValueError: no case, different or more than four models, labels beyond the classes, parts that disagree, or an
        empty view.

    Example:
      >>> box = np.array([[2.0, 2.0, 6.0, 6.0]])
      >>> case = ShownCase(
      ...     "case 7", np.zeros((8, 8, 1), np.uint8), {"MDF-Net": Marks(box, np.array([0]), np.array([0.83]))},
      ...     truth=Marks(box, np.array([0])), clinical=[ClinicalValue("age", 71.0, "years")],
      ... )
      >>> prediction_figure([case], classes=["nodule"], caption="One case.").alt
      'Detections of score 0.05 and above in 1 case: case 7, there: nodule; MDF-Net found nodule 0.83; age 71 years.'
    """
    if not cases:
        raise ValueError("a picture of the predictions for no cases; expected at least one.")
    models = list(cases[0].found)
    if not 1 <= len(models) <= MOST_MODELS:
        raise ValueError(
            f"case {cases[0].name!r}: {counted(len(models), 'model')}; expected 1 to {MOST_MODELS} beside each other. "
            "Draw a figure for some of them."
        )
    shown: list[dict[str, Marks]] = []
    for case in cases:
        if list(case.found) != models:
            raise ValueError(
                f"case {case.name!r}: models {listed(case.found)}; expected those of {cases[0].name!r}, "
                f"{listed(models)}."
            )
        if not 0 < case.shape() < math.inf:
            raise ValueError(f"case {case.name!r}: view {case.view} shows nothing; expected x0 < x1 and y0 < y1.")
        if case.truth is not None:
            checked_marks(case.truth, classes, f"case {case.name!r}, truth")
        shown.append(
            {
                name: kept_marks(checked_marks(marks, classes, f"case {case.name!r}, {name}"), score=score, most=most)
                for name, marks in case.found.items()
            }
        )
    beside = BESIDE if any(case.clinical for case in cases) else 0.0
    width = min(LARGEST, (WIDTH - beside - GAP * len(models)) / len(models))
    words = [_beside(case) for case in cases]
    has_truth, many = any(case.truth is not None for case in cases), len(classes) > 1
    # The name of an only model is in the caption.
    top = LINE * (1 if len(models) == 1 else 2) + 0.06
    heights = [
        max(width * case.shape(), LINE * len(lines) if beside else 0.0)
        for case, lines in zip(cases, words, strict=True)
    ]
    named = [f"{k + 1}  {name}" for k, name in enumerate(classes)] if many else []
    entries = [*named, "there" if many else f"{classes[0]}, there", f"found, score {score:g} or more"]
    columns = _columns(entries)
    legend = 0.145 * -(-len(entries) // columns) + 0.08
    height = legend + sum(heights) + (top + GAP) * len(cases)

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        # Of an only class the colours tell what is there from what was found.
        handles, texts = class_handles(palette, classes) if many else ([], [])
        if has_truth:
            colour = palette.ink if many else truth_colour(0, many=False)
            handles.append(Line2D([], [], color=colour, linewidth=1.1, linestyle=(0, (3.0, 1.6))))
            texts.append("there" if many else f"{classes[0]}, there")
        handles.append(Line2D([], [], color=palette.ink if many else class_colour(0), linewidth=1.1))
        texts.append(f"found, score {score:g} or more")
        figure.legend(
            handles,
            texts,
            loc="upper left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=columns,
            fontsize=FONT_SIZE,
            borderaxespad=0.2,
            handlelength=1.8,
            columnspacing=1.0,
            labelspacing=0.35,
        )
        down = height - legend
        for case, marks, lines, tall in zip(cases, shown, words, heights, strict=True):
            title = _fitting(case.name, WIDTH, bold=True)
            figure.text(0.0, (down - LINE) / height, title, fontsize=FONT_SIZE, fontweight="bold")
            for place, name in enumerate(models):
                left = place * (width + GAP) / WIDTH
                if len(models) > 1:
                    figure.text(left, (down - 2 * LINE) / height, _fitting(name, width), fontsize=FONT_SIZE)
                own = width * case.shape()
                axes = figure.add_axes((left, (down - top - own) / height, width / WIDTH, own / height))
                draw_picture(axes, case.picture, case.pixels(), case.view)
                if case.truth is not None:
                    draw_marks(axes, case.truth, case.pixels(), numbered=many, dashed=True, view=case.view)
                draw_marks(axes, marks[name], case.pixels(), numbered=many, view=case.view)
            left = len(models) * (width + GAP) + 0.06
            for number, (text, soft) in enumerate(lines):
                figure.text(
                    left / WIDTH,
                    (down - top - LINE * (number + 0.85)) / height,
                    text,
                    fontsize=FONT_SIZE,
                    color=palette.soft if soft else palette.ink,
                    fontstyle="italic" if soft else "normal",
                )
            down -= top + tall + GAP

    told = []
    for case, marks in zip(cases, shown, strict=True):
        parts = [] if case.truth is None else [f"there: {told_marks(case.truth, classes)}"]
        parts += [f"{name} found {told_marks(found, classes)}" for name, found in marks.items()]
        parts += [", ".join(f"{one.name} {one.text()}" for one in case.clinical)] if case.clinical else []
        told.append(f"{case.name}, {'; '.join(parts)}")
    alt = f"Detections of score {score:g} and above in {counted(len(cases), 'case')}: {'. '.join(told)}."
    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=alt)


def _beside(case: ShownCase) -> list[tuple[str, bool]]:
    """Lines beside a case, and whether they tell of something missing."""
    lines = []
    for one in case.clinical:
        text = f"{one.name}: {one.text()}"
        room = max(8, int(len(text) * (BESIDE - 0.1) / max(text_width(text, FONT_SIZE), 1e-6)))
        wrapped = textwrap.wrap(text, room, subsequent_indent="   ")
        lines += [(line, one.value is None) for line in wrapped]
    return lines


def _columns(entries: Sequence[str]) -> int:
    """Columns of the legend that fit."""
    widest = max(text_width(entry, FONT_SIZE) for entry in entries) + 0.36
    return max(1, min(len(entries), int(WIDTH / widest)))


def _fitting(text: str, width: float, *, bold: bool = False) -> str:
    """The text, cut to what fits above a picture."""
    if text_width(text, FONT_SIZE, bold=bold) <= width:
        return text
    while text and text_width(f"{text} …", FONT_SIZE, bold=bold) > width:
        text = text[:-1]
    return f"{text.rstrip()} …"
