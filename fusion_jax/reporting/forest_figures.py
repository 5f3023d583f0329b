"""Forest plots: estimates with intervals below each other, the numbers printed beside them."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import blended_transform_factory

from fusion_jax.reporting.figure_parts import draw_literally, quiet_axis, text_width
from fusion_jax.reporting.figures import WIDTH, Palette
from fusion_jax.reporting.html import Figure, format_number

__all__ = ["ForestRow", "Subgroup", "forest_figure", "subgroup_forest_figure"]

LABEL_CHARACTERS = 26
TEXT_CHARACTERS = 30
LINE = 0.165
ROW = 0.11
"""Space between rows, inches."""


class ForestRow(NamedTuple):
    """A row of a forest plot.

    Attributes:
      label: of the row.
      group: heading above the first of successive rows that share it; "" without one.
      estimate, low, high: NaN where there is nothing to draw.
      text: printed at the right, in one line or several.
    """

    label: str
    group: str
    estimate: float
    low: float
    high: float
    text: str


class Subgroup(NamedTuple):
    """A subgroup of the cases.

    Attributes:
      column, level: which cases these are.
      n, events: cases, and positives among them.
      estimate, low, high: NaN where it could not be estimated.
      reason: why it could not be; "" where it could.
    """

    column: str
    level: str
    n: int
    events: int
    estimate: float
    low: float
    high: float
    reason: str = ""


def forest_figure(
    rows: Sequence[ForestRow],
    *,
    xlabel: str,
    caption: str,
    reference: float | None = None,
    reference_label: str = "",
    heading: str = "",
    row_heading: str = "",
) -> Figure:
    """Estimates and intervals in rows, with their numbers at the right.

    Args:
      rows: from top to bottom.
      xlabel: name and unit of the estimates.
      caption: says n and how the intervals were made.
      reference: a value to compare with: no difference, chance, the whole cohort.
      reference_label: what it is.
      heading: of the column of numbers.
      row_heading: of the column of labels.

    Raises:
      ValueError: no row.

    Example:
      >>> rows = [ForestRow("Image-Only", "AUC", 0.849, 0.834, 0.864, "0.849 [0.834, 0.864]")]
      >>> forest_figure(rows, xlabel="AUC", caption="n = 4,909.").alt
      'Forest plot of AUC: AUC, Image-Only 0.849 [0.834, 0.864].'
    """
    if not rows:
        raise ValueError(f"a forest plot of {xlabel} without rows; expected at least one.")
    labels = [textwrap.fill(row.label, LABEL_CHARACTERS) for row in rows]
    texts = ["\n".join(textwrap.fill(line, TEXT_CHARACTERS) for line in row.text.split("\n")) for row in rows]
    # Rows are placed from the top, in inches, so that a label of three lines has the room it needs.
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    top = LINE + ROW if heading or row_heading or reference_label else 0.0
    down = top
    group = ""
    for row, label, text in zip(rows, labels, texts, strict=True):
        if row.group and row.group != group:
            down += ROW
            headings.append((down + LINE / 2, row.group))
            down += LINE + ROW / 2
        group = row.group
        high = LINE * (1 + max(label.count("\n"), text.count("\n"))) + ROW
        places.append(down + high / 2)
        down += high
    number_width = text_width("\n".join([*texts, heading]), 9) + 0.15
    name_width = text_width("\n".join([*labels, row_heading]), 9) + 0.25
    plot_width = WIDTH - name_width - number_width
    below = 0.5
    height = down + below

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((name_width / WIDTH, below / height, plot_width / WIDTH, down / height))
        axes.set(ylim=(down, 0), yticks=[])
        quiet_axis(axes, "y")
        axes.set_xlabel(xlabel)
        if reference is not None:
            # Not through its own label above the rows.
            axes.plot([reference, reference], [top, down], color=palette.soft, linewidth=1, linestyle=(0, (4, 3)))
        for row, place in zip(rows, places, strict=True):
            _interval(axes, palette, row, place)
        _even_limits(axes, rows, reference, ticks=int(plot_width / 0.6))
        # Names stand left of the axes and numbers right of them, in inches from the edges of the figure.
        left = blended_transform_factory(figure.transFigure, axes.transData)
        for place, name in headings:
            axes.text(0.03 / WIDTH, place, name, transform=left, va="center", fontsize=9, fontweight="bold")
        for label, text, place, row in zip(labels, texts, places, rows, strict=True):
            inset = (0.03 + (0.1 if row.group else 0.0)) / WIDTH
            axes.text(inset, place, label, transform=left, va="center", fontsize=9, linespacing=1.1)
            colour = palette.ink if math.isfinite(row.estimate) else palette.soft
            axes.text(1 - 0.03 / WIDTH, place, text, transform=left, va="center", ha="right", fontsize=9, color=colour)
        style: dict[str, Any] = {"va": "center", "fontsize": 9, "color": palette.soft}
        axes.text(1 - 0.03 / WIDTH, 0.7 * LINE, heading, transform=left, ha="right", **style)
        axes.text(0.03 / WIDTH, 0.7 * LINE, row_heading, transform=left, **style)
        if reference is not None and reference_label:
            first, last = axes.get_xlim()
            side = (reference - first) / (last - first)
            along = "left" if side < 0.3 else "right" if side > 0.7 else "center"
            axes.text(reference, 0.7 * LINE, reference_label, ha=along, **style)

    told = [f"{row.group + ', ' if row.group else ''}{row.label} {row.text}" for row in rows]
    compared = "" if reference is None else f" Compared with {reference_label or format_number(float(reference))}."
    alt = f"Forest plot of {xlabel}: {'; '.join(told)}.{compared}"
    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=alt)


def subgroup_forest_figure(
    subgroups: Sequence[Subgroup],
    *,
    minimum: int,
    xlabel: str,
    caption: str,
    overall: float | None = None,
    text: Callable[[float, float, float], str],
) -> Figure:
    """Estimates in subgroups; small ones are named and their numbers withheld.

    Args:
      subgroups: in the order of the figure, those of one column together.
      minimum: cases below which nothing of a subgroup is shown, not even how many they are.
      xlabel: name and unit of the estimates.
      caption: says of which model, and how the intervals were made.
      overall: the estimate over all cases, drawn as a line.
      text: turns estimate and interval into what is printed.

    Raises:
      ValueError: no subgroup.

    Example:
      >>> groups = [Subgroup("sex", "f", 40, 12, 0.8, 0.6, 0.9), Subgroup("sex", "m", 4, 1, 1.0, 1.0, 1.0)]
      >>> text = "{:.2f} [{:.2f}, {:.2f}]".format
      >>> subgroup_forest_figure(groups, minimum=10, xlabel="AUC", caption="", text=text).alt
      'Forest plot of AUC: sex, f (12 of 40) 0.80 [0.60, 0.90]; sex, m withheld: n < 10.'
    """
    rows = []
    for group in subgroups:
        if group.n < minimum:
            rows.append(ForestRow(group.level, group.column, math.nan, math.nan, math.nan, f"withheld: n < {minimum}"))
            continue
        label = f"{group.level} ({group.events:,} of {group.n:,})"
        if not math.isfinite(group.estimate):
            rows.append(ForestRow(label, group.column, math.nan, math.nan, math.nan, group.reason or "not estimated"))
            continue
        numbers = (group.estimate, group.low, group.high)
        rows.append(ForestRow(label, group.column, *numbers, text(*numbers)))
    return forest_figure(
        rows,
        xlabel=xlabel,
        caption=caption,
        reference=overall,
        reference_label="" if overall is None else f"all cases: {format_number(overall)}",
        row_heading="positives of cases",
    )


def _interval(axes: Axes, palette: Palette, row: ForestRow, place: float) -> None:
    colour = palette.colours[0]  # rows have names: a colour would claim to mean something
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        for end in (row.low, row.high):
            axes.plot([end, end], [place - 0.04, place + 0.04], color=colour, linewidth=1.2)
    if math.isfinite(row.estimate):
        axes.plot(row.estimate, place, "s", color=colour, markersize=5)


def _even_limits(axes: Axes, rows: Sequence[ForestRow], reference: float | None, *, ticks: int) -> None:
    """Limits that hold everything, with as many ticks as have room."""
    shown = [x for row in rows for x in (row.estimate, row.low, row.high)]
    values = np.array([*shown, *([] if reference is None else [reference])], float)
    finite = values[np.isfinite(values)]
    if not finite.size:
        axes.set_xticks([])
        return
    low, high = float(finite.min()), float(finite.max())
    margin = 0.05 * (high - low) or 0.05 * (abs(high) or 1.0)
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=max(1, ticks))
