"""Curves over all thresholds: ROC, precision and recall, free-response ROC."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from fusion_jax.reporting.figure_parts import (
    MARKERS,
    Curve,
    draw_literally,
    plot_curve,
    reference_line,
    row_legend,
    row_legend_height,
)
from fusion_jax.reporting.figures import WIDTH, Palette
from fusion_jax.reporting.html import Figure, format_number
from fusion_jax.wording import listed

__all__ = ["OperatingPoint", "froc_figure", "precision_recall_figure", "roc_figure"]

SIDE = 4.4
"""Height of axes that show shares over shares, inches."""

FEWEST, MOST = 1 / 8, 8
"""False positives per image between which free-response curves are usually read."""


class OperatingPoint(NamedTuple):
    """Where a threshold puts a model on its curve.

    Attributes:
      model: name of its curve.
      x, y: on the axes of the figure.
      label: what the threshold is and where it came from; points of one label share a marker.
    """

    model: str
    x: float
    y: float
    label: str


def roc_figure(curves: Mapping[str, Curve], *, points: Sequence[OperatingPoint] = (), caption: str) -> Figure:
    """ROC curves with bands over the diagonal of no discrimination.

    Args:
      curves: of each model, `x` the false-positive rate, `y` the sensitivity.
      points: thresholds to mark on the curves.
      caption: says n, positives, and how the bands were made.

    Raises:
      ValueError: no curve, or a point of a model without one.

    Example:
      >>> curve = Curve(np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.7, 1.0]), note="AUC 0.750")
      >>> roc_figure({"Image-Only": curve}, caption="n = 48.").alt
      'ROC curves, sensitivity over false-positive rate: Image-Only (AUC 0.750) reaches 0.700 at 0.200.'
    """
    _checked(curves, points)

    def diagonal(axes: Axes, palette: Palette) -> None:
        axes.plot([0, 1], [0, 1], color=palette.soft, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        axes.set(xlabel="1 − specificity (false-positive rate)", ylabel="sensitivity")

    told = [f"{_named(name, curve)} reaches {_at(curve, 0.2)} at 0.200" for name, curve in curves.items()]
    alt = f"ROC curves, sensitivity over false-positive rate: {'; '.join(told)}.{_marked(points)}"
    return _unit_square(curves, points, diagonal, caption=caption, alt=alt)


def precision_recall_figure(
    curves: Mapping[str, Curve], *, prevalence: float, points: Sequence[OperatingPoint] = (), caption: str
) -> Figure:
    """Precision over recall with bands, and the precision of a guess: the prevalence.

    Args:
      curves: of each model, `x` the recall (sensitivity), `y` the precision (positive predictive value).
      prevalence: share of positives among the cases.
      points: thresholds to mark on the curves.
      caption: says n, positives, and how the bands were made.

    Raises:
      ValueError: no curve, or a point of a model without one.

    Example:
      >>> curve = Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.8, 0.25]))
      >>> precision_recall_figure({"Image-Only": curve}, prevalence=0.25, caption="n = 48.").alt
      'Precision over recall: Image-Only has 0.800 at 0.500; a guess has 0.250.'
    """
    _checked(curves, points)

    def guess(axes: Axes, palette: Palette) -> None:
        reference_line(axes, palette, prevalence, upright=False)
        below = prevalence > 0.9
        axes.annotate(
            f"prevalence {format_number(prevalence)}",
            (1.0, prevalence),
            (-3, -4 if below else 3),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            fontsize=9,
            color=palette.ink,
            bbox={"facecolor": palette.background, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)")

    told = [f"{_named(name, curve)} has {_at(curve, 0.5)} at 0.500" for name, curve in curves.items()]
    alt = f"Precision over recall: {'; '.join(told)}; a guess has {format_number(prevalence)}.{_marked(points)}"
    return _unit_square(curves, points, guess, caption=caption, alt=alt)


def froc_figure(curves: Mapping[str, Curve], *, points: Sequence[OperatingPoint] = (), caption: str) -> Figure:
    """Free-response ROC curves: sensitivity over false positives per image, on a logarithmic axis.

    Args:
      curves: of each model, `x` the false positives per image, ascending, `y` the share of lesions that are found.
        Curves keep each value until the next point; what lies below 1/8 false positives is read off at the left edge.
      points: thresholds to mark on the curves.
      caption: says images, patients, lesions, and what counts as found.

    Raises:
      ValueError: no curve, or a point of a model without one.

    Example:
      >>> curve = Curve(np.array([0.0, 0.5, 2.0]), np.array([0.1, 0.6, 0.9]))
      >>> froc_figure({"Image-Only": curve}, caption="120 images, 95 lesions.").alt
      'Sensitivity over false positives per image: Image-Only finds 0.600 at 1 false positive per image.'
    """
    _checked(curves, points)
    # A curve of scores that run out stays where it is: nothing more is found.
    ends = [float(np.max(np.asarray(curve.x, float), initial=0.0)) for curve in curves.values()]
    right = max(MOST, 2.0 ** np.ceil(np.log2(max(ends))) if max(ends) > 0 else MOST)
    shown = {name: _from(curve, FEWEST) for name, curve in curves.items()}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        handles = [
            plot_curve(axes, palette, index, curve, of=len(shown), step=True)
            for index, curve in enumerate(shown.values())
        ]
        axes.set(
            xlim=(FEWEST, right), ylim=(0, 1.02), xlabel="false positives per image", ylabel="sensitivity (lesions)"
        )
        ticks = 2.0 ** np.arange(-3, np.log2(right) + 1)
        axes.set_xticks(ticks[:: max(1, ticks.size // 8)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        _finish(figure, axes, palette, handles, curves, points)

    told = [
        f"{_named(name, curve)} finds {format_number(_step_at(curve, 1.0))} at 1 false positive per image"
        for name, curve in curves.items()
    ]
    alt = f"Sensitivity over false positives per image: {'; '.join(told)}.{_marked(points)}"
    size = (WIDTH, 3.4 + _legends_height(curves, points))
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def _unit_square(
    curves: Mapping[str, Curve],
    points: Sequence[OperatingPoint],
    furnish: Callable[[Axes, Palette], None],
    *,
    caption: str,
    alt: str,
) -> Figure:
    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = [
            plot_curve(axes, palette, index, curve, of=len(curves)) for index, curve in enumerate(curves.values())
        ]
        furnish(axes, palette)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xticks=np.arange(0, 1.1, 0.2), yticks=np.arange(0, 1.1, 0.2))
        _finish(figure, axes, palette, handles, curves, points)

    size = (WIDTH, SIDE + _legends_height(curves, points))
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def _finish(
    figure: Canvas,
    axes: Axes,
    palette: Palette,
    handles: Sequence[Any],
    curves: Mapping[str, Curve],
    points: Sequence[OperatingPoint],
) -> None:
    """Operating points, and one legend for curves and markers."""
    labels = list(dict.fromkeys(point.label for point in points))
    names = list(curves)
    for point in points:
        axes.plot(
            point.x,
            point.y,
            MARKERS[labels.index(point.label) % len(MARKERS)],
            color=palette.style(names.index(point.model))["color"],
            markeredgecolor=palette.ink,
            markersize=7,
            markeredgewidth=1,
            zorder=4,
        )
    shapes = [
        axes.plot(
            [], [], MARKERS[k % len(MARKERS)], color=palette.background, markeredgecolor=palette.ink, markersize=7
        )[0]
        for k in range(len(labels))
    ]
    row_legend(figure, [*handles, *shapes], _entries(curves, points))


def _legends_height(curves: Mapping[str, Curve], points: Sequence[OperatingPoint]) -> float:
    return row_legend_height(_entries(curves, points))


def _entries(curves: Mapping[str, Curve], points: Sequence[OperatingPoint]) -> list[tuple[str, str]]:
    labels = dict.fromkeys(point.label for point in points)
    return [*((name, curve.note) for name, curve in curves.items()), *((label, "") for label in labels)]


def _checked(curves: Mapping[str, Curve], points: Sequence[OperatingPoint]) -> None:
    if not curves:
        raise ValueError("a figure of no curves; expected at least one.")
    for name, curve in curves.items():
        lengths = {len(values) for values in curve[:4] if values is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"curve {name!r}: x, y, low and high have lengths "
                f"{[len(values) for values in curve[:4] if values is not None]}; they must agree, and none be empty."
            )
    for point in points:
        if point.model not in curves:
            raise ValueError(
                f"operating point {point.label!r}: no curve is called {point.model!r}; there are {listed(curves)}."
            )


def _from(curve: Curve, left: float) -> Curve:
    """The curve from `left` on, beginning with the value it has there."""
    x = np.asarray(curve.x, float)
    first = int(np.searchsorted(x, left, "right")) - 1
    kept = slice(max(0, first), None)
    start = x[kept].copy()
    if first >= 0:
        start[0] = left
    return curve._replace(
        x=start,
        y=np.asarray(curve.y, float)[kept],
        low=None if curve.low is None else np.asarray(curve.low, float)[kept],
        high=None if curve.high is None else np.asarray(curve.high, float)[kept],
    )


def _named(name: str, curve: Curve) -> str:
    return f"{name} ({curve.note})" if curve.note else name


def _at(curve: Curve, x: float) -> str:
    """Height of a piecewise linear curve above `x`."""
    order = np.argsort(np.asarray(curve.x, float), kind="stable")
    return format_number(float(np.interp(x, np.asarray(curve.x, float)[order], np.asarray(curve.y, float)[order])))


def _step_at(curve: Curve, x: float) -> float:
    place = int(np.searchsorted(np.asarray(curve.x, float), x, "right")) - 1
    return float(np.asarray(curve.y, float)[place]) if place >= 0 else 0.0


def _marked(points: Sequence[OperatingPoint]) -> str:
    told = [f"{p.model} at {p.label}: {format_number(p.y)} at {format_number(p.x)}" for p in points]
    return f" Marked: {'; '.join(told)}." if told else ""
