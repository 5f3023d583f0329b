"""How the values of a column are distributed, by class."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure as Canvas

from fusion_jax.reporting.figures import WIDTH, Palette, draw, legend, legend_height, wrapped
from fusion_jax.reporting.html import Figure, format_number

__all__ = ["category_figure", "number_figure"]

MOST_BARS = 12
SKEWED = 30.0
"""Ratio of the largest value to the median from which values, all of them positive, are shown on a log axis."""


def number_figure(values: Mapping[str, Float[np.ndarray, "_"]], *, xlabel: str, caption: str) -> Figure:
    """Histograms of numbers over shared bins, one outline a class, each as a share of its class.

    Args:
      values: class to its values; NaN is not drawn nor counted.
      xlabel: name and unit.
      caption: says how many are missing.

    Raises:
      ValueError: no value is finite.

    Example:
      >>> figure = number_figure({"no": np.array([1.0, 2.0]), "yes": np.array([3.0])}, xlabel="size (mm)", caption="")
      >>> figure.alt
      'Histograms of size (mm): no, n = 2, median 1.50; yes, n = 1, median 3.00.'
    """
    finite = {name: group[np.isfinite(group)] for name, group in values.items()}
    pooled = np.concatenate([*finite.values()])
    if not pooled.size:
        raise ValueError(f"{xlabel}: no value is finite; expected at least one.")
    low, high = float(pooled.min()), float(pooled.max())
    is_log = low > 0 and high > SKEWED * float(np.median(pooled))
    whole = bool((pooled == np.round(pooled)).all()) and high - low <= 30
    if whole:
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        # Sturges' rule is too coarse for skewed and too fine for few values; between 8 and 30 bins either shows.
        count = int(np.clip(np.sqrt(pooled.size), 8, 30))
        edges = np.geomspace(low, high, count + 1) if is_log else np.linspace(low, high, count + 1)
        if high == low:
            edges = np.array([low - 0.5, low + 0.5])
    entries = [f"{name} (n = {group.size})" for name, group in finite.items()]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        if is_log:
            axes.set_xscale("log")
        for index, (entry, group) in enumerate(zip(entries, finite.values(), strict=True)):
            share = np.histogram(group, edges)[0] / max(1, group.size)
            style = palette.style(index)
            axes.stairs(share, edges, fill=True, color=style["color"], alpha=0.18)
            axes.stairs(share, edges, label=wrapped(entry), linewidth=1.6, **style)
        axes.set(xlabel=xlabel, ylabel="share of the class" if len(finite) > 1 else "share of cases", ylim=(0, None))
        legend(axes, entries)

    medians = [
        f"{name}, n = {group.size}, median {format_number(float(np.median(group))) if group.size else 'none'}"
        for name, group in finite.items()
    ]
    alt = f"Histograms of {xlabel}: {'; '.join(medians)}."
    return draw(plot, size=(WIDTH, 2.3 + legend_height(entries)), caption=caption, alt=alt)


def category_figure(counts: Mapping[str, Sequence[int]], levels: Sequence[str], *, label: str, caption: str) -> Figure:
    """Bars of the levels of a category, one a class, each as a share of its class.

    Args:
      counts: class to the number of its cases at every level.
      levels: names of the levels; beyond the twelve most frequent they are joined.
      label: of the column.
      caption: says how many are missing.

    Example:
      >>> category_figure({"no": [3, 1], "yes": [0, 4]}, ["f", "m"], label="sex", caption="").alt
      'Shares of the levels of sex: no, n = 4: f 75 %, m 25 %; yes, n = 4: f 0 %, m 100 %.'
    """
    table = np.array([*counts.values()], float).reshape(len(counts), len(levels))
    order = np.argsort(-table.sum(axis=0), kind="stable") if len(levels) > MOST_BARS else np.arange(len(levels))
    names = [str(levels[k]) for k in order.tolist()]
    table = table[:, order]
    if len(names) > MOST_BARS:
        table = np.hstack([table[:, : MOST_BARS - 1], table[:, MOST_BARS - 1 :].sum(axis=1, keepdims=True)])
        names = [*names[: MOST_BARS - 1], f"{len(levels) - MOST_BARS + 1} others"]
    total = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    entries = [f"{name} (n = {int(n)})" for name, n in zip(counts, total[:, 0], strict=True)]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        thickness = 0.8 / len(entries)
        for index, entry in enumerate(entries):
            places = np.arange(len(names)) + (index - (len(entries) - 1) / 2) * thickness
            colour = palette.style(index)["color"]
            axes.barh(places, shares[index], height=0.9 * thickness, color=colour, label=wrapped(entry))
        axes.set_yticks(range(len(names)), [wrapped(name) for name in names])
        # Not beside the bars: two bars are lower than most names of columns are long.
        share = "share of the class" if len(entries) > 1 else "share of cases"
        axes.set(xlabel=textwrap.fill(f"{label}: {share}", 60), ylim=(len(names) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        legend(axes, entries)

    said = []
    for name, n, row in zip(counts, total[:, 0], shares, strict=True):
        parts = ", ".join(f"{level} {100 * part:.0f} %" for level, part in zip(names, row, strict=True))
        said.append(f"{name}, n = {int(n)}: {parts}")
    size = (WIDTH, 0.9 + len(names) * max(0.22, 0.11 * len(entries) + 0.08) + legend_height(entries))
    return draw(plot, size=size, caption=caption, alt=f"Shares of the levels of {label}: {'; '.join(said)}.")
