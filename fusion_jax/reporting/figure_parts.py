"""What figures of an evaluation share: curves with bands, legends with numbers, panels side by side."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from fusion_jax.reporting.figures import CURVE_POINTS, Palette, draw
from fusion_jax.reporting.html import Figure

__all__ = [
    "MARKERS",
    "Curve",
    "draw_literally",
    "ink_on",
    "model_style",
    "plot_curve",
    "quiet_axis",
    "reference_line",
    "row_legend",
    "row_legend_height",
    "rows_of",
    "text_width",
]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Shapes that stay apart where colours do not."""

LINE_STYLES = ("-", "--", "-.", ":", (0, (7, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1)), (0, (9, 1.5)))
LEGEND_CHARACTERS = 62
ROOM = 2.05
"""Inches up to which two entries of a legend fit beside each other."""
LINE = 0.19
"""Height of a line of a legend, inches."""

CLEAR_BANDS = 3
"""Curves whose bands can still be told apart where they overlap."""


class Curve(NamedTuple):
    """A curve with its pointwise interval.

    Attributes:
      x, y: points in drawing order.
      low, high: ends of the interval at every point; None without one, NaN where there is none.
      note: behind the name in the legend: the number that sums the curve up, with its interval.
    """

    x: Float[np.ndarray, "g"]
    y: Float[np.ndarray, "g"]
    low: Float[np.ndarray, "g"] | None = None
    high: Float[np.ndarray, "g"] | None = None
    note: str = ""


def draw_literally(
    plot: Callable[[Canvas, Palette], object], *, size: tuple[float, float], caption: str, alt: str
) -> Figure:
    """`draw` for names out of somebody's table: a dollar sign begins no formula."""

    def literal(figure: Canvas, palette: Palette) -> None:
        mpl.rcParams["text.parse_math"] = False  # `draw` restores the settings
        plot(figure, palette)

    return draw(literal, size=size, caption=caption, alt=alt)


def plot_curve(axes: Axes, palette: Palette, index: int, curve: Curve, *, of: int, step: bool = False) -> Any:
    """Draw a curve and its band, thinned to what a figure resolves; returns the line.

    Args:
      index: of its colour and line style.
      of: number of curves on these axes; the more, the fainter the bands.
      step: the curve keeps each value until the next point.
    """
    x, y = (np.asarray(values, float) for values in (curve.x, curve.y))
    kept = _thinned(x, y, CURVE_POINTS // 2 if step else CURVE_POINTS)  # a step is drawn as two points
    style = model_style(palette, index)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(
            x[kept],
            np.asarray(curve.low, float)[kept],
            np.asarray(curve.high, float)[kept],
            color=style["color"],
            alpha=0.2 if of <= CLEAR_BANDS else 0.07,
            linewidth=0,
            step="post" if step else None,
        )
    [line] = axes.plot(x[kept], y[kept], drawstyle="steps-post" if step else "default", **style)
    return line


def model_style(palette: Palette, index: int) -> dict[str, Any]:
    """Colour and line style of a model: seven of each before one comes again, the seventh in the colour of ink."""
    colours = (*palette.colours, palette.ink)
    cycle, hue = divmod(index, len(colours))
    return {"color": colours[hue], "linestyle": LINE_STYLES[(hue + cycle) % len(LINE_STYLES)]}


def _thinned(x: Float[np.ndarray, "g"], y: Float[np.ndarray, "g"], most: int) -> np.ndarray:
    """Indices of points that are drawn: evenly along the curve, both ends among them."""
    if x.size <= most:
        return np.arange(x.size)
    # Along the length and not along the index: a step of a ROC curve may be one point of thousands.
    steps = [np.abs(np.diff(values)) / (np.nanmax(values) - np.nanmin(values) or 1.0) for values in (x, y)]
    length = np.concatenate([[0.0], np.cumsum(np.nan_to_num(steps[0]) + np.nan_to_num(steps[1]))])
    return np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], most)).clip(0, x.size - 1))


def _row_entries(entries: Sequence[tuple[str, str]]) -> list[str]:
    return [textwrap.fill(f"{name}   {note}" if note else name, LEGEND_CHARACTERS) for name, note in entries]


def _row_columns(entries: Sequence[tuple[str, str]]) -> int:
    widest = max(text_width(entry, 9.5) for entry in _row_entries(entries))
    return 2 if len(entries) > 1 and widest < ROOM else 1


def row_legend(figure: Canvas, handles: Sequence[Any], entries: Sequence[tuple[str, str]]) -> None:
    """A legend above everything: a row for each handle, with its name and note; two in a row where all are short."""
    # Not of the axes, which may begin far to the right, behind long names.
    figure.legend(
        handles,
        _row_entries(entries),
        loc="outside upper left",
        ncols=_row_columns(entries),
        borderaxespad=0.2,
        handlelength=2.6,
        labelspacing=0.3,
    )


def row_legend_height(entries: Sequence[tuple[str, str]]) -> float:
    """Inches that `row_legend` takes."""
    lines = sum(entry.count("\n") + 1 for entry in _row_entries(entries))
    return LINE * -(-lines // _row_columns(entries))


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    r"""Inches that the longest line of a text takes.

    Example:
      >>> text_width("a\nbb", 9) == text_width("bb", 9) > text_width("b", 9)
      True
    """
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    lines = (text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n"))
    return max(lines) / 72.0


def ink_on(face: Sequence[float]) -> str:
    """Black or white, whichever has more contrast on a colour (red, green and blue from 0 to 1).

    Example:
      >>> ink_on((1.0, 1.0, 0.6)), ink_on((0.1, 0.2, 0.4))
      ('#000000', '#ffffff')
    """
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in face[:3])
    # Where black and white have the same contrast ratio of WCAG 2: (L + 0.05)² = 1.05 × 0.05.
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def reference_line(axes: Axes, palette: Palette, at: float, *, label: str = "", upright: bool = True) -> Any:
    """A dashed line at a value to compare with; returns it."""
    line = axes.axvline if upright else axes.axhline
    return line(at, color=palette.soft, linewidth=1, linestyle=(0, (4, 3)), label=label, zorder=1.5)


def quiet_axis(axes: Axes, which: str) -> None:
    """An axis of names: no ticks, no grid, no spine."""
    axes.tick_params(axis="y" if which == "y" else "x", length=0)
    axes.grid(visible=False, axis="y" if which == "y" else "x")
    axes.spines["left" if which == "y" else "bottom"].set_visible(False)


def rows_of(count: int, most: int) -> tuple[int, int]:
    """Rows and columns of a grid of panels, at most so many beside each other, evenly filled.

    Example:
      >>> [rows_of(n, 3) for n in (1, 2, 3, 4, 7)]
      [(1, 1), (1, 2), (1, 3), (2, 2), (3, 3)]
    """
    rows = -(-count // most)
    return rows, -(-count // rows)
