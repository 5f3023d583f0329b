"""Matrices of counts and differences, and the cases that change sides."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike

from fusion_jax.reporting.figure_parts import draw_literally, ink_on, quiet_axis, rows_of, text_width
from fusion_jax.reporting.figures import WIDTH, Palette, legend, legend_height, wrapped
from fusion_jax.reporting.html import MINUS, Figure
from fusion_jax.reporting.tables import format_interval, format_p

__all__ = ["Reclassification", "confusion_figure", "difference_matrix_figure", "reclassification_figure"]

WITHDRAWN = 0.55
"""Largest share of a colour scale that is used: both ends of it are too dark or too bright for text."""


class Reclassification(NamedTuple):
    """Cases of one class whose call changes from one model to another.

    Attributes:
      comparison: the two models, as "Learned Feature Fusion against Image-Only".
      label: the class.
      gained: called wrongly by the first model and rightly by the second.
      lost: called rightly by the first and wrongly by the second.
      total: cases of the class.
    """

    comparison: str
    label: str
    gained: int
    lost: int
    total: int


def difference_matrix_figure(
    names: Sequence[str],
    differences: Float[np.ndarray, "m m"],
    low: Float[np.ndarray, "m m"],
    high: Float[np.ndarray, "m m"],
    p_values: Float[np.ndarray, "m m"],
    *,
    metric: str,
    adjusted: str,
    caption: str,
    digits: int = 3,
) -> Figure:
    """Paired differences between models: row minus column with interval below the diagonal, p above it.

    Args:
      names: of the models.
      differences, low, high: of row minus column; only what lies below the diagonal is read.
      p_values: only what lies above the diagonal is read; NaN where there was no test.
      metric: what differs.
      adjusted: how p-values were adjusted, as "Holm over 6 comparisons" or "not adjusted".
      caption: says n and how intervals and tests were made.
      digits: of differences, after the decimal point.

    Raises:
      ValueError: fewer than two models, or a matrix of another size.

    Example:
      >>> empty, p = np.full((2, 2), np.nan), np.array([[np.nan, 0.0002], [0.0002, np.nan]])
      >>> difference, low, high = empty.copy(), empty.copy(), empty.copy()
      >>> difference[1, 0], low[1, 0], high[1, 0] = 0.049, 0.036, 0.061
      >>> figure = difference_matrix_figure(
      ...     ["Image-Only", "Fusion"], difference, low, high, p, metric="AUC", adjusted="not adjusted", caption=""
      ... )
      >>> figure.alt
      'Differences in AUC: Fusion minus Image-Only +0.049 [+0.036, +0.061], p < 0.001 (not adjusted).'
    """
    count = len(names)
    matrices = [np.asarray(matrix, float) for matrix in (differences, low, high, p_values)]
    if count < 2 or any(matrix.shape != (count, count) for matrix in matrices):
        raise ValueError(
            f"{count} models and matrices of shapes {[matrix.shape for matrix in matrices]}; "
            "expected at least two models and square matrices of as many."
        )
    difference, lower, upper, p = matrices
    below = [(row, column) for row in range(count) for column in range(row)]
    reach = max((abs(difference[cell]) for cell in below if math.isfinite(difference[cell])), default=0.0) or 1.0
    norm = TwoSlopeNorm(0.0, -reach / WITHDRAWN, reach / WITHDRAWN)
    # Rows and columns of many models have numbers, and the names stand below, so that the cells have room for text.
    numbered = count > 3
    labels = [str(k + 1) if numbered else wrapped(name) for k, name in enumerate(names)]
    key = "\n".join(f"{k + 1}   {name}" for k, name in enumerate(names)) if numbered else ""
    points = 9 if count <= 7 else 7.5
    cell = (WIDTH - 0.3 - text_width("\n".join(labels), 9)) / count
    sample = format_interval(-reach, -reach, -reach, digits, signed=True)
    broken = text_width(sample.split(" ", 1)[1], points) > 0.94 * cell
    legend_lines = [f"below the diagonal: {metric}, row minus column", f"above: p, {adjusted}"]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        colours = mpl.colormaps[palette.diverging]
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        axes.set_xticks(range(count), labels, fontsize=9)
        axes.xaxis.tick_top()
        axes.set_yticks(range(count), labels, fontsize=9)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in below:
            value = float(difference[row, column])
            if not math.isfinite(value):
                axes.text(column, row, "–", ha="center", va="center", color=palette.soft, fontsize=points)
                continue
            face = colours(float(norm(value)))
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=face, linewidth=0))
            shown = format_interval(value, lower[row, column], upper[row, column], digits, signed=True)
            text = shown.replace(" [", "\n[").replace(", ", ",\n" if broken else ", ")
            colour = ink_on(face)
            axes.text(column, row, text, ha="center", va="center", fontsize=points, color=colour, linespacing=1.15)
        for column, row in below:  # mirrored: above the diagonal
            shown = format_p(float(p[row, column]))
            text = shown if shown == "–" or broken else f"p {shown}" if shown[0] in "<>" else f"p = {shown}"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=points,
                color=palette.ink,
            )
        for k in range(count):
            axes.add_patch(Rectangle((k - 0.48, k - 0.48), 0.96, 0.96, facecolor=palette.rule, alpha=0.5, linewidth=0))
        axes.set_xlabel("\n".join([*legend_lines, *([key] if key else [])]), fontsize=9, loc="left")

    told = []
    for row, column in below:
        shown = format_interval(difference[row, column], lower[row, column], upper[row, column], digits, signed=True)
        chance = format_p(float(p[column, row]))
        sign = "" if chance[0] in "<>–" else "= "
        told.append(f"{names[row]} minus {names[column]} {shown}, p {sign}{chance}")
    alt = f"Differences in {metric}: {'; '.join(told)} ({adjusted})."
    height = max(0.6 if broken else 0.42, 0.17 * max(label.count("\n") + 1 for label in labels) + 0.12)
    size = (WIDTH, 0.75 + height * count + (0.16 * count if numbered else 0.0))
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def confusion_figure(matrices: Mapping[str, Int[np.ndarray, "k k"]], *, classes: Sequence[str], caption: str) -> Figure:
    """Confusion matrices: counts, and their share of the true class.

    Args:
      matrices: of each model, rows the true class, columns the class that was called.
      classes: names, in the order of rows and columns.
      caption: says n and where each threshold came from.

    Raises:
      ValueError: no matrix, or one of another size.

    Example:
      >>> matrix = np.array([[1918, 1985], [50, 956]])
      >>> confusion_figure({"Fusion": matrix}, classes=["benign", "cancer"], caption="n = 4,909.").alt
      'Confusion matrices: Fusion: benign called benign 1,918 (49 %), cancer 1,985 (51 %); cancer called benign 50
      (5 %), cancer 956 (95 %).'
    """
    count = len(classes)
    if not matrices:
        raise ValueError("a figure of no confusion matrices; expected at least one.")
    for name, matrix in matrices.items():
        if np.shape(matrix) != (count, count):
            raise ValueError(
                f"{name}: a confusion matrix of shape {np.shape(matrix)} and {count} classes; they must agree."
            )
    beside = 1 if count > 4 else 2 if count > 2 else 3
    rows, columns = rows_of(len(matrices), beside)
    titles = [textwrap.fill(name, 20 if columns == 3 else 24) for name in matrices]
    lines = max(title.count("\n") + 1 for title in titles)
    names = [wrapped(name) for name in classes]
    widest = max(text_width(name, 9) for name in names)
    # Names of columns that would touch are slanted.
    slanted = widest > 0.9 * (WIDTH - 0.5 - widest - 0.2 * columns) / (columns * count)
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        colours = mpl.colormaps[palette.sequential]
        for number, axes in enumerate(panels.flat):
            if number >= len(matrices):
                axes.set_visible(False)
                continue
            matrix = np.asarray([*matrices.values()][number])
            shares = _row_shares(matrix)
            axes.set_title(titles[number], fontsize=9.5)
            axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
            for (row, column), share in np.ndenumerate(shares):
                face = colours(WITHDRAWN * share if math.isfinite(share) else 0.0)
                axes.add_patch(Rectangle((column - 0.49, row - 0.49), 0.98, 0.98, facecolor=face, linewidth=0))
                text = f"{int(matrix[row, column]):,}\n{_percent(share)}"
                axes.text(column, row, text, ha="center", va="center", fontsize=9, color=ink_on(face))
            axes.set_xticks(range(count), names, fontsize=9, **slant)
            axes.set_yticks(range(count), names, fontsize=9)
            axes.tick_params(length=0, labelbottom=number + columns >= len(matrices))
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        figure.supxlabel("called", fontsize=10)
        figure.supylabel("true class", fontsize=10)

    told = []
    for name, matrix in matrices.items():
        shares = _row_shares(np.asarray(matrix))
        parts = []
        for row, true in enumerate(classes):
            called = ", ".join(
                f"{other} {int(np.asarray(matrix)[row, k]):,} ({_percent(shares[row, k])})"
                for k, other in enumerate(classes)
            )
            parts.append(f"{true} called {called}")
        told.append(f"{name}: {'; '.join(parts)}")
    height = 0.7 + rows * (0.25 + 0.17 * lines + 0.5 * count) + (0.6 * widest if slanted else 0.0)
    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=f"Confusion matrices: {'. '.join(told)}.")


def reclassification_figure(changes: Sequence[Reclassification], *, caption: str) -> Figure:
    """How many cases of each class change sides between two models, gains to the right and losses to the left.

    Args:
      changes: in the order of the figure, those of one comparison together.
      caption: says n, and the threshold or sensitivity at which cases are called.

    Raises:
      ValueError: nothing to show.

    Example:
      >>> changes = [Reclassification("Fusion against Image-Only", "benign", 1016, 273, 3903)]
      >>> reclassification_figure(changes, caption="At 95 % sensitivity, n = 4,909.").alt
      'Cases that change sides: Fusion against Image-Only, benign: 1,016 gained, 273 lost, net +743 of 3,903.'
    """
    if not changes:
        raise ValueError("a reclassification figure of no comparison; expected at least one.")
    entries = ["newly right", "newly wrong"]
    widest = max(1, *(max(change.gained, change.lost) for change in changes))
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    down = 0.0
    for number, change in enumerate(changes):
        if number == 0 or change.comparison != changes[number - 1].comparison:
            heading = textwrap.fill(change.comparison, 60)
            lines = heading.count("\n") + 1
            headings.append((down + 0.1 + 0.085 * lines, heading))
            down += 0.16 + 0.17 * lines
        places.append(down + 0.15)
        down += 0.32

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        for change, place in zip(changes, places, strict=True):
            first = change is changes[0]
            axes.barh(
                place,
                change.gained,
                height=0.22,
                color=palette.colours[0],
                label=entries[0] if first else None,
            )
            axes.barh(
                place,
                -change.lost,
                height=0.22,
                color=palette.colours[1],
                hatch="///",
                edgecolor=palette.background,
                linewidth=0,
                label=entries[1] if first else None,
            )
            axes.text(change.gained + 0.02 * widest, place, f"{change.gained:,}", va="center", fontsize=9)
            axes.text(-change.lost - 0.02 * widest, place, f"{change.lost:,}", va="center", ha="right", fontsize=9)
            axes.text(
                1.02, place, _net(change), transform=axes.get_yaxis_transform(), va="center", fontsize=9, clip_on=False
            )
        across = blended_transform_factory(figure.transFigure, axes.transData)
        for place, name in headings:
            axes.text(
                0.03 / WIDTH,
                place,
                name,
                transform=across,
                va="center",
                fontsize=9,
                fontweight="bold",
                clip_on=False,
                in_layout=False,
            )
        for place in places:
            axes.plot([0, 0], [place - 0.16, place + 0.16], color=palette.soft, linewidth=1)
        axes.grid(visible=False)
        axes.set(xlim=(-1.35 * widest, 1.35 * widest), ylim=(down, 0), xlabel="cases whose call changes")
        axes.set_yticks(places, [wrapped(change.label) for change in changes])
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):,.0f}")
        quiet_axis(axes, "y")
        legend(axes, entries)

    told = [
        f"{c.comparison}, {c.label}: {c.gained:,} gained, {c.lost:,} lost, {_net(c).replace(chr(10), ' ')}"
        for c in changes
    ]
    size = (WIDTH, 0.85 + down + legend_height(entries))
    return draw_literally(plot, size=size, caption=caption, alt=f"Cases that change sides: {'; '.join(told)}.")


def _net(change: Reclassification) -> str:
    return f"net {change.gained - change.lost:+,} of {change.total:,}".replace("-", MINUS).replace("+0 ", "0 ")


def _row_shares(matrix: ArrayLike) -> Float[np.ndarray, "k k"]:
    """Shares of the true class; NaN where it has no case."""
    counts = np.asarray(matrix, float)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, math.nan), where=totals > 0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"
