"""Kaplan–Meier curves of groups with the numbers at risk."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from fusion_jax.reporting.figure_parts import (
    Curve,
    draw_literally,
    model_style,
    plot_curve,
    row_legend,
    row_legend_height,
    text_width,
)
from fusion_jax.reporting.figures import WIDTH, Palette, wrapped
from fusion_jax.reporting.html import Figure, format_number

__all__ = ["SurvivalCurve", "kaplan_meier_figure"]

TICKS = 80
"""Censored cases up to which each has its own mark."""


class SurvivalCurve(NamedTuple):
    """A Kaplan–Meier estimate and the cases behind it.

    Attributes:
      time: times at which the curve steps, ascending.
      survival, low, high: from each time on, with the pointwise interval.
      follow_up: of every case, in the unit of `time`.
      event: whether its follow-up ended with the event; otherwise it was censored.
      note: behind the name in the legend.
    """

    time: Float[np.ndarray, "t"]
    survival: Float[np.ndarray, "t"]
    low: Float[np.ndarray, "t"]
    high: Float[np.ndarray, "t"]
    follow_up: Float[np.ndarray, "n"]
    event: Bool[np.ndarray, "n"]
    note: str = ""


def kaplan_meier_figure(
    groups: Mapping[str, SurvivalCurve],
    *,
    xlabel: str,
    caption: str,
    ylabel: str = "survival",
    end: float | None = None,
) -> Figure:
    """Survival of each group with its band, marks where cases were censored, and the numbers at risk below.

    Args:
      groups: in the order of the legend and the table.
      xlabel: name and unit of time.
      caption: says n, events, how groups were made and from which cases.
      ylabel: what survives: "overall survival", "free of recurrence".
      end: of the time axis; the longest follow-up unless given.

    Raises:
      ValueError: no group, or one without cases.

    Example:
      >>> time = np.array([2.0, 5.0])
      >>> curve = SurvivalCurve(time, np.array([0.8, 0.5]), np.array([0.4, 0.2]), np.array([1.0, 0.8]),
      ...                       np.array([2.0, 3.0, 5.0, 6.0, 7.0]), np.array([True, False, True, False, False]))
      >>> kaplan_meier_figure({"low risk": curve}, xlabel="time (months)", caption="n = 5.").alt
      'Kaplan–Meier curves, survival over time (months): low risk, n = 5, 2 events, 0.500 at the last follow-up.'
    """
    if not groups:
        raise ValueError("a figure of no groups; expected at least one.")
    for name, group in groups.items():
        if not len(group.follow_up):
            raise ValueError(f"group {name!r} holds no cases; leave it out, or draw the cut between groups elsewhere.")
    follow_ups = [np.asarray(group.follow_up, float) for group in groups.values()]
    right = float(max(times.max() for times in follow_ups)) if end is None else end
    curves = [_from_the_start(group, float(t.max())) for group, t in zip(groups.values(), follow_ups, strict=True)]
    entries = [(name, group.note) for name, group in groups.items()]
    labels = [wrapped(name) for name in groups]
    ticks = [
        tick for tick in MaxNLocator(nbins=6, steps=[1, 2, 3, 4, 5, 6, 10]).tick_values(0, right) if 0 <= tick <= right
    ]
    lines = sum(label.count("\n") + 1 for label in labels)

    def plot(figure: Canvas, palette: Palette) -> None:
        table_height = 0.28 + 0.18 * lines
        axes, table = figure.subplots(2, 1, sharex=True, height_ratios=(3.1, table_height))
        handles = []
        for index, (group, curve, times) in enumerate(zip(groups.values(), curves, follow_ups, strict=True)):
            handles.append(plot_curve(axes, palette, index, curve, of=len(groups), step=True))
            censored = times[~np.asarray(group.event, bool)]
            if censored.size <= TICKS:
                height = _survival_at(curve, censored)
                colour = model_style(palette, index)["color"]
                axes.plot(censored, height, "|", color=colour, markersize=6, markeredgewidth=1)
        axes.set(ylim=(0, 1.03), ylabel=ylabel, xlabel=xlabel)
        axes.set_xlim(0, right)
        axes.set_xticks(ticks)
        axes.tick_params(labelbottom=True)
        row_legend(figure, handles, entries)
        table.set(ylim=(lines - 0.5, -0.5))
        table.set_title("at risk", fontsize=9, loc="left", pad=2)
        table.grid(visible=False)
        table.spines[:].set_visible(False)
        table.tick_params(length=0, labelbottom=False)
        places = []
        down = 0.0
        for label in labels:
            high = label.count("\n") + 1
            places.append(down + (high - 1) / 2)
            down += high
        table.set_yticks(places, labels, fontsize=9)
        # The numbers at time 0 stand half outside of the axes.
        table.tick_params(axis="y", pad=8 + 72 * max(text_width(f"{times.size:,}", 9) for times in follow_ups) / 2)
        for place, times in zip(places, follow_ups, strict=True):
            for tick in ticks:
                at_risk = int(np.count_nonzero(times >= tick))
                table.text(tick, place, f"{at_risk:,}", ha="center", va="center", fontsize=9)

    told = [
        f"{name}, n = {len(group.follow_up):,}, {int(np.count_nonzero(group.event)):,} events, "
        f"{format_number(float(curve.y[-1]))} at the last follow-up"
        for (name, group), curve in zip(groups.items(), curves, strict=True)
    ]
    alt = f"Kaplan–Meier curves, {ylabel} over {xlabel}: {'; '.join(told)}."
    size = (WIDTH, 3.9 + 0.2 * lines + row_legend_height(entries))
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def _from_the_start(group: SurvivalCurve, last: float) -> Curve:
    """The step function from time 0, where everybody survives, to the last follow-up."""
    time = np.asarray(group.time, float)
    survival, low, high = (
        np.concatenate([[1.0], np.asarray(values, float), np.asarray(values, float)[-1:]])
        for values in (group.survival, group.low, group.high)
    )
    x = np.concatenate([[0.0], time, [last] if time.size else []])
    return Curve(x, survival, low, high)


def _survival_at(curve: Curve, times: Float[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
    return curve.y[np.searchsorted(curve.x, times, "right") - 1]
