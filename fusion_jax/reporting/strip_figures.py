"""Every fold, every draw, every score: spreads that a mean would hide."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike

from fusion_jax.reporting.figure_parts import MARKERS, draw_literally, model_style, quiet_axis, reference_line
from fusion_jax.reporting.figures import WIDTH, Palette, legend, legend_height, wrapped
from fusion_jax.reporting.html import Figure, format_number
from fusion_jax.wording import counted

__all__ = ["fold_strip_figure", "importance_figure", "score_figure"]

SHOWN_COLUMNS = 20
REPEATS_APART = 5
"""Repeats that have a marker of their own."""


def fold_strip_figure(
    values: Mapping[str, Float[np.ndarray, "r f"]], *, xlabel: str, caption: str, replicate: str = "repeat"
) -> Figure:
    """A metric on every fold of every repeat, and its mean ± standard deviation.

    Args:
      values: of each model, one row a repeat (or seed) and one column a fold; NaN where a fold has no value.
      xlabel: name and unit of the metric.
      caption: says cases per fold, and that the spread is no interval: folds share their training cases.
      replicate: what a row is.

    Raises:
      ValueError: no model.

    Example:
      >>> fold_strip_figure({"Image-Only": np.array([[0.7, 0.8, 0.9]])}, xlabel="AUC", caption="3 folds.").alt
      'AUC of every fold: Image-Only 0.800 ± 0.100 (3 folds).'
    """
    if not values:
        raise ValueError("a figure of no models; expected at least one.")
    arrays = {name: np.atleast_2d(np.asarray(array, float)) for name, array in values.items()}
    repeats = max(array.shape[0] for array in arrays.values())
    told_apart = 1 < repeats <= REPEATS_APART
    entries = [f"{replicate} {k + 1}" for k in range(repeats)] if told_apart else []
    texts = [_mean_sd(array) for array in arrays.values()]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        for place, (array, text) in enumerate(zip(arrays.values(), texts, strict=True)):
            # Repeats below each other: a repeat that is off as a whole shows as a row.
            offsets = np.linspace(-0.28, 0.28, array.shape[0]) if array.shape[0] > 1 else np.zeros(1)
            for k, (row, offset) in enumerate(zip(array, offsets, strict=True)):
                axes.plot(
                    row,
                    np.full(row.size, place + offset),
                    MARKERS[k] if told_apart else "o",
                    color=palette.colours[k if told_apart else 0],
                    alpha=0.75,
                    markersize=5 if array.size <= 60 else 3,
                    markeredgewidth=0,
                    label=entries[k] if told_apart and place == 0 else None,
                )
            finite = array[np.isfinite(array)]
            if finite.size:
                mean, sd = float(finite.mean()), float(finite.std(ddof=1)) if finite.size > 1 else 0.0
                axes.plot([mean - sd, mean + sd], [place, place], color=palette.ink, linewidth=1.6)
                axes.plot([mean, mean], [place - 0.36, place + 0.36], color=palette.ink, linewidth=2)
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, clip_on=False)
        axes.set_yticks(range(len(arrays)), [wrapped(name) for name in arrays])
        axes.set(xlabel=f"{xlabel} (line: mean ± SD)", ylim=(len(arrays) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=5)
        quiet_axis(axes, "y")
        if entries:
            legend(axes, entries)

    folds = [counted(int(np.isfinite(array).sum()), "fold") for array in arrays.values()]
    told = [f"{name} {text} ({n})" for name, text, n in zip(arrays, texts, folds, strict=True)]
    lines = max(wrapped(name).count("\n") + 1 for name in arrays)
    size = (WIDTH, 0.75 + len(arrays) * (0.34 + 0.12 * lines) + (legend_height(entries) + 0.2 if entries else 0.0))
    return draw_literally(plot, size=size, caption=caption, alt=f"{xlabel} of every fold: {'; '.join(told)}.")


def score_figure(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    *,
    xlabel: str,
    caption: str,
    thresholds: Mapping[str, float] | None = None,
    bins: int = 40,
) -> Figure:
    """Distribution of the scores of each class, one row a model, with its threshold.

    Args:
      scores: of each model, the scores of the cases of each class; the classes are the same for all models.
      xlabel: what the scores are.
      caption: says n of each class and where thresholds came from.
      thresholds: of models that have one.
      bins: of the histograms.

    Raises:
      ValueError: no model, or a model of other classes.

    Example:
      >>> scores = {"Image-Only": {"benign": [0.1, 0.2, 0.4], "cancer": [0.7, 0.3]}}
      >>> score_figure(scores, xlabel="probability of cancer", caption="n = 5.", thresholds={"Image-Only": 0.35}).alt
      'Distribution of probability of cancer: Image-Only, benign median 0.200 (n = 3), cancer median 0.500 (n = 2),
      threshold 0.350.'
    """
    if not scores:
        raise ValueError("a figure of no models; expected at least one.")
    classes = list(next(iter(scores.values())))
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, of_classes in scores.items():
        if list(of_classes) != classes:
            raise ValueError(f"{name}: classes {list(of_classes)}; other models have {classes}. They must agree.")
        arrays = {label: np.asarray(array, float) for label, array in of_classes.items()}
        groups[name] = {label: array[np.isfinite(array)] for label, array in arrays.items()}
    pooled = np.concatenate([array for of_classes in groups.values() for array in of_classes.values()])
    # Probabilities share one axis; scores of different models otherwise have no common scale.
    shared = bool(pooled.size == 0 or (pooled.min() >= 0 and pooled.max() <= 1))
    marks = dict(thresholds or {})
    entries = [*classes, *(["threshold"] if marks else [])]

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = figure.subplots(len(groups), 1, squeeze=False, sharex=shared)[:, 0]
        for axes, (name, of_classes) in zip(panels, groups.items(), strict=True):
            edges = _edges(of_classes, bins, shared)
            for index, (label, array) in enumerate(of_classes.items()):
                share = np.histogram(array, edges)[0] / max(1, array.size)
                style = palette.style(index)
                axes.stairs(share, edges, fill=True, color=style["color"], alpha=0.22)
                axes.stairs(share, edges, linewidth=1.5, label=label, **style)
            if name in marks:
                line = reference_line(axes, palette, marks[name], label="threshold")
                line.set(color=palette.ink, linestyle="-", linewidth=1.2)
            axes.set(ylim=(0, None), yticks=[])
            axes.grid(visible=False, axis="y")
            axes.set_title(name, fontsize=9.5, loc="left", pad=3)
        panels[-1].set_xlabel(xlabel)
        figure.supylabel("share of the class", fontsize=10)
        handles: dict[str, Any] = {}
        for axes in panels:  # a threshold may be on some models only
            shapes, names = axes.get_legend_handles_labels()
            handles.update(zip(names, shapes, strict=True))
        figure.legend(
            [handles[entry] for entry in entries if entry in handles],
            [wrapped(entry) for entry in entries if entry in handles],
            loc="outside upper left",
            ncols=min(3, len(entries)),
            borderaxespad=0.1,
        )

    told = []
    for name, of_classes in groups.items():
        parts = [
            f"{label} median {format_number(float(np.median(array))) if array.size else 'none'} (n = {array.size:,})"
            for label, array in of_classes.items()
        ]
        mark = [f"threshold {format_number(float(marks[name]))}"] if name in marks else []
        told.append(f"{name}, {', '.join([*parts, *mark])}")
    size = (WIDTH, 0.85 + len(groups) * ((1.0 if len(groups) > 2 else 1.5) + (0.0 if shared else 0.2)))
    return draw_literally(plot, size=size, caption=caption, alt=f"Distribution of {xlabel}: {'; '.join(told)}.")


def importance_figure(
    draws: Mapping[str, Float[np.ndarray, "t r"]], columns: Sequence[str], *, xlabel: str, caption: str
) -> Figure:
    """Permutation importance of clinical columns: every draw, and the median of each model.

    Args:
      draws: of each model, one row a column and one value a permutation.
      columns: names of the rows.
      xlabel: what importance is, as "drop of AUC when permuted".
      caption: says n, the number of permutations, and how groups of columns were permuted.

    Raises:
      ValueError: no model, or draws of another number of columns.

    Example:
      >>> draws = {"Fusion": np.array([[0.01, 0.02, 0.03], [0.1, 0.1, 0.2]])}
      >>> importance_figure(draws, ["age", "density"], xlabel="drop of AUC", caption="n = 48.").alt
      'Permutation importance, drop of AUC, medians: density, Fusion 0.100; age, Fusion 0.0200.'
    """
    if not draws:
        raise ValueError("an importance figure of no models; expected at least one.")
    arrays = {name: np.asarray(array, float) for name, array in draws.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[0] != len(columns) or not array.shape[1]:
            raise ValueError(
                f"{name}: importance of shape {array.shape} for {counted(len(columns), 'column')}; expected one row a "
                "column and at least one draw."
            )
    medians = np.stack([np.median(array, axis=1) for array in arrays.values()])
    order = np.argsort(-np.nanmean(medians, axis=0), kind="stable")
    shown = order[:SHOWN_COLUMNS].tolist()
    left_out = len(columns) - len(shown)
    entries = list(arrays)
    step = 0.8 / len(arrays)

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        for index, array in enumerate(arrays.values()):
            colour = model_style(palette, index)["color"]
            offsets = np.arange(len(shown)) + (index - (len(arrays) - 1) / 2) * step
            values = array[shown]
            axes.plot(
                values.ravel(),
                np.repeat(offsets, values.shape[1]),
                ".",
                color=colour,
                alpha=0.3,
                markersize=4,
                markeredgewidth=0,
                rasterized=values.size > 1000,
            )
            axes.plot(
                np.median(values, axis=1),
                offsets,
                MARKERS[index % len(MARKERS)],
                color=colour,
                markeredgecolor=palette.background,
                markeredgewidth=0.6,
                markersize=6 if len(arrays) < 4 else 5,
                label=wrapped(entries[index]),
            )
        reference_line(axes, palette, 0.0)
        for place in range(1, len(shown)):
            axes.axhline(place - 0.5, color=palette.rule, linewidth=0.6, zorder=0.5)
        axes.set_yticks(range(len(shown)), [wrapped(str(columns[k])) for k in shown], fontsize=9)
        more = f"; {counted(left_out, 'column')} of less importance not shown" if left_out else ""
        axes.set(xlabel=f"{xlabel}{more}", ylim=(len(shown) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=6)
        quiet_axis(axes, "y")
        legend(axes, entries)

    told = [
        f"{columns[k]}, " + ", ".join(f"{name} {format_number(float(medians[m, k]))}" for m, name in enumerate(arrays))
        for k in shown
    ]
    lines = max(wrapped(str(columns[k])).count("\n") + 1 for k in shown)
    row = max(0.17 * lines + 0.06, 0.085 * len(arrays) + 0.08, 0.22)
    size = (WIDTH, 0.75 + row * len(shown) + legend_height(entries))
    alt = f"Permutation importance, {xlabel}, medians: {'; '.join(told)}."
    return draw_literally(plot, size=size, caption=caption, alt=alt)


def _mean_sd(array: Float[np.ndarray, "r f"]) -> str:
    finite = array[np.isfinite(array)]
    if not finite.size:
        return "–"
    mean = f"{finite.mean():.3f}"
    return f"{mean} ± {finite.std(ddof=1):.3f}" if finite.size > 1 else mean


def _edges(groups: Mapping[str, Float[np.ndarray, "_"]], bins: int, shared: bool) -> Float[np.ndarray, "_"]:
    if shared:
        return np.linspace(0.0, 1.0, bins + 1)
    pooled = np.concatenate([*groups.values()])
    low, high = (float(pooled.min()), float(pooled.max())) if pooled.size else (0.0, 1.0)
    if math.isclose(low, high):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)
