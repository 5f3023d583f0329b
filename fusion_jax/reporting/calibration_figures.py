"""Whether probabilities are what they say, and what deciding by them is worth."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from fusion_jax.reporting.figure_parts import (
    Curve,
    draw_literally,
    plot_curve,
    reference_line,
    row_legend,
    row_legend_height,
    rows_of,
)
from fusion_jax.reporting.figures import WIDTH, Palette, wrapped
from fusion_jax.reporting.html import Figure, format_number

__all__ = ["Reliability", "calibration_figure", "decision_curve_figure"]


class Reliability(NamedTuple):
    """Predicted probabilities of one model against what was observed.

    Attributes:
      predicted, observed: mean probability and share of positives of every bin.
      low, high: interval of the share observed.
      counts: cases of every bin; bins without any are not drawn.
      edges: of the histograms, `k + 1` ascending probabilities.
      negatives, positives: cases of each class between the edges.
      curve: smooth estimate of the share observed over the probability; None without one.
      note: below the name: slope, intercept, calibration error.
    """

    predicted: Float[np.ndarray, "b"]
    observed: Float[np.ndarray, "b"]
    low: Float[np.ndarray, "b"]
    high: Float[np.ndarray, "b"]
    counts: Int[np.ndarray, "b"]
    edges: Float[np.ndarray, "k+1"]
    negatives: Int[np.ndarray, "k"]
    positives: Int[np.ndarray, "k"]
    curve: Curve | None = None
    note: str = ""


def calibration_figure(
    models: Mapping[str, Reliability], *, caption: str, classes: tuple[str, str] = ("negative", "positive")
) -> Figure:
    """Share observed over probability predicted, with the scores of each class in a strip below.

    Args:
      models: one panel each; raw and recalibrated scores are two panels.
      caption: says n, positives, the bins and how intervals and curve were made.
      classes: names of the negative and the positive class.

    Raises:
      ValueError: no model.

    Example:
      >>> bins = [np.array(x, float) for x in ([0.2, 0.8], [0.3, 0.7], [0.1, 0.5], [0.5, 0.9])]
      >>> counts = [np.array(x) for x in ([20, 10], [14, 3], [6, 7])]
      >>> model = Reliability(*bins, counts[0], np.array([0, 0.5, 1]), counts[1], counts[2], note="slope 0.70")
      >>> calibration_figure({"Image-Only": model}, caption="n = 30.").alt
      'Share observed over probability predicted: Image-Only (slope 0.70), bins from 0.300 at 0.200 to 0.700 at 0.800.'
    """
    if not models:
        raise ValueError("a calibration figure of no models; expected at least one.")
    for name, one in models.items():
        if not np.any(np.asarray(one.counts) > 0):
            raise ValueError(f"{name}: no bin of the calibration figure holds a case; expected at least one.")
    rows, columns = rows_of(len(models), 2)
    side = 3.3 if columns == 1 else 2.35
    titles = [wrapped(name) + (f"\n{one.note}" if one.note else "") for name, one in models.items()]
    lines = max(title.count("\n") + 1 for title in titles)
    sizes = {(int(np.sum(one.negatives)), int(np.sum(one.positives))) for one in models.values()}
    counts = [f" (n = {n:,})" for n in min(sizes)] if len(sizes) == 1 else ["", ""]
    entries = [
        "ideal",
        "bins with interval",
        *(["smooth curve"] if any(one.curve for one in models.values()) else []),
        *(f"{name}{count}" for name, count in zip(classes, counts, strict=True)),
    ]

    def plot(figure: Canvas, palette: Palette) -> None:
        grid = figure.add_gridspec(2 * rows, columns, height_ratios=(4, 1) * rows)
        handles: list[Any] = []
        for number, (title, one) in enumerate(zip(titles, models.values(), strict=True)):
            row, column = divmod(number, columns)
            upper = figure.add_subplot(grid[2 * row, column])
            lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
            upper.set_title(title, fontsize=9.5, loc="left")
            found = _reliability(upper, palette, one)
            strips = _strip(lower, palette, one)
            if len(found) + len(strips) > len(handles):
                handles = [*found, *strips]
            if column == 0:
                upper.set_ylabel("share observed")
                lower.set_ylabel("cases", fontsize=9)
            if number + columns >= len(models):
                lower.set_xlabel("probability predicted")
        figure.legend(handles, entries, loc="outside upper left", ncols=2, fontsize=9, borderaxespad=0.1)

    told = []
    for name, one in models.items():
        filled = np.flatnonzero(np.asarray(one.counts) > 0).tolist()
        ends = [
            f"{format_number(float(one.observed[k]))} at {format_number(float(one.predicted[k]))}"
            for k in (filled[0], filled[-1])
        ]
        told.append(f"{name}{f' ({one.note})' if one.note else ''}, bins from {' to '.join(ends)}")
    alt = f"Share observed over probability predicted: {'; '.join(told)}."
    size = (WIDTH, 0.9 + rows * (side * 1.2 + 0.17 * lines + 0.2))
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def decision_curve_figure(
    models: Mapping[str, Curve], *, treat_all: Curve, caption: str, floor: float | None = None
) -> Figure:
    """Net benefit over the threshold probability, beside treating all and treating none.

    Args:
      models: of each model, `x` the threshold probability, `y` the net benefit per case.
      treat_all: the same of calling everybody positive.
      caption: says n, positives, and how the bands were made.
      floor: lowest net benefit shown; a tenth of the highest below zero unless given, since treating all falls without
        bound.

    Raises:
      ValueError: no model.

    Example:
      >>> x = np.array([0.1, 0.3, 0.5])
      >>> model, everybody = Curve(x, np.array([0.18, 0.12, 0.08])), Curve(x, np.array([0.12, -0.14, -0.6]))
      >>> decision_curve_figure({"Image-Only": model}, treat_all=everybody, caption="n = 4,909.").alt
      'Net benefit over threshold probability: Image-Only from 0.180 at 0.100 to 0.0800 at 0.500; above treating all
      and none from 0.100 to 0.500.'
    """
    if not models:
        raise ValueError("a decision curve of no models; expected at least one.")
    drawn = [
        values for curve in (*models.values(), treat_all) for values in (curve.y, curve.high) if values is not None
    ]
    heights = np.concatenate([np.asarray(values, float) for values in drawn])
    top = max(float(np.max(heights[np.isfinite(heights)], initial=0.0)), 1e-3)
    bottom = -0.1 * top if floor is None else floor
    # Beyond the last threshold at which anything is seen there is nothing to read.
    seen = [np.asarray(c.x, float)[np.asarray(c.y, float) > bottom] for c in (*models.values(), treat_all)]
    right = min(1.0, 1.05 * max((float(x.max()) for x in seen if x.size), default=1.0))
    entries = [*((name, curve.note) for name, curve in models.items()), ("treat all", ""), ("treat none", "")]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = [
            plot_curve(axes, palette, index, curve, of=len(models)) for index, curve in enumerate(models.values())
        ]
        everybody = axes.plot(
            np.asarray(treat_all.x, float), np.asarray(treat_all.y, float), color=palette.ink, linewidth=1.1
        )
        nobody = reference_line(axes, palette, 0.0, upright=False)
        axes.set(
            ylim=(bottom, 1.05 * top), xlabel="threshold probability", ylabel="net benefit (true positives per case)"
        )
        axes.set_xlim(0, right)
        row_legend(figure, [*handles, *everybody, nobody], entries)

    told = [_benefit(name, curve, treat_all) for name, curve in models.items()]
    alt = f"Net benefit over threshold probability: {'; '.join(told)}."
    return draw_literally(plot, size=(WIDTH, 3.3 + row_legend_height(entries)), caption=caption, alt=alt)


def _reliability(axes: Axes, palette: Palette, one: Reliability) -> list[Any]:
    [ideal] = axes.plot([0, 1], [0, 1], color=palette.soft, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    filled = np.asarray(one.counts) > 0
    x, y, low, high = (np.asarray(values, float)[filled] for values in one[:4])
    # A Wilson interval may not hold the share itself where the estimate is at an end; bars have no negative length.
    reach = np.vstack([np.clip(y - low, 0, None), np.clip(high - y, 0, None)])
    bins = axes.errorbar(
        x, y, yerr=np.nan_to_num(reach), fmt="o", color=palette.colours[0], markersize=4.5, elinewidth=1.3, zorder=3
    )
    found: list[Any] = [ideal, bins]
    if one.curve is not None:
        found.append(plot_curve(axes, palette, 1, one.curve, of=1))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), yticks=np.arange(0, 1.1, 0.2), xticks=np.arange(0, 1.1, 0.2))
    axes.tick_params(labelbottom=False)
    return found


def _strip(axes: Axes, palette: Palette, one: Reliability) -> list[Any]:
    """Histograms back to back, positives upwards, each relative to its own fullest bin: one class may be rare."""
    edges = np.asarray(one.edges, float)
    shapes = []
    for counts, sign, index in ((one.negatives, -1, 2), (one.positives, 1, 1)):
        height = np.asarray(counts, float)
        shapes.append(
            axes.stairs(
                sign * height / max(1.0, float(height.max(initial=0.0))),
                edges,
                fill=True,
                color=palette.colours[index],
                alpha=0.75,
            )
        )
    axes.axhline(0, color=palette.soft, linewidth=0.8)
    axes.set(ylim=(-1.15, 1.15), yticks=[])
    axes.grid(visible=False, axis="y")
    return shapes


def _benefit(name: str, curve: Curve, treat_all: Curve) -> str:
    """Ends of a decision curve, and where it lies above both simple rules."""
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    finite = np.flatnonzero(np.isfinite(y)).tolist()
    if not finite:
        return f"{name} nowhere known"
    everybody = np.interp(x, np.asarray(treat_all.x, float), np.asarray(treat_all.y, float))
    better = np.flatnonzero(y > np.maximum(everybody, 0.0))
    where = (
        f"above treating all and none from {format_number(float(x[better[0]]))} to "
        f"{format_number(float(x[better[-1]]))}"
        if better.size and np.array_equal(better, np.arange(better[0], better[-1] + 1))
        else f"above treating all and none at {better.size} of {x.size} thresholds"
    )
    ends = [f"{format_number(float(y[k]))} at {format_number(float(x[k]))}" for k in (finite[0], finite[-1])]
    return f"{name} from {' to '.join(ends)}; {where}"
