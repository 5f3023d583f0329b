"""How good detectors are: over overlaps, over epochs, in counts, and beside what clinical values should tell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Num
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from fusion_jax.evaluation.detection import BoxCounts
from fusion_jax.reporting.figure_parts import (
    Curve,
    draw_literally,
    ink_on,
    plot_curve,
    reference_line,
    row_legend,
    row_legend_height,
    rows_of,
    text_width,
)
from fusion_jax.reporting.figures import WIDTH, Palette, heatmap_figure, wrapped
from fusion_jax.reporting.html import MINUS, Figure, Table, format_number
from fusion_jax.wording import counted

__all__ = [
    "Generalisation",
    "anchor_figure",
    "correlation_figure",
    "count_table",
    "generalisation_figure",
    "overlap_figure",
    "relevance_figure",
]

PANELS = 2
PANEL_HEIGHT = 2.0
WITHDRAWN = 0.75
"""Share of a diverging scale that is used: its ends are too dark for text."""


def overlap_figure(
    curves: Mapping[str, Curve],
    *,
    measure: str,
    at: float = 0.5,
    ylabel: str = "average precision, mean over classes",
    caption: str,
) -> Figure:
    """Average precision over the overlap that a hit needs, with bands.

    Args:
      curves: by model, `x` the smallest overlap of a hit, `y` the average precision, both from 0 to 1.
      measure: of overlap: "IoU" or "IoBB".
      at: the overlap that is pointed out.
      ylabel: what is drawn.
      caption: says n, and how bands were made.

    Raises:
      ValueError: no curve.

    Example:
      >>> curve = Curve(np.array([0.0, 0.5, 1.0]), np.array([0.6, 0.4, 0.0]))
      >>> overlap_figure({"MDF-Net": curve}, measure="IoBB", caption="101 images.").alt
      'average precision, mean over classes over the smallest IoBB of a hit: MDF-Net has 0.400 at 0.500.'
    """
    if not curves:
        raise ValueError("average precision of no models; expected at least one curve.")
    entries = [(name, curve.note) for name, curve in curves.items()]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = [
            plot_curve(axes, palette, index, curve, of=len(curves)) for index, curve in enumerate(curves.values())
        ]
        reference_line(axes, palette, at)
        highest = max(float(np.nanmax(curve.y if curve.high is None else curve.high)) for curve in curves.values())
        axes.set(
            xlim=(0, 1),
            ylim=(0, min(1.02, 1.08 * highest or 1.0)),
            xlabel=f"smallest {measure} of a hit",
            ylabel=ylabel,
        )
        row_legend(figure, handles, entries)

    told = [f"{name} has {_read(curve, at)} at {format_number(at)}" for name, curve in curves.items()]
    alt = f"{ylabel} over the smallest {measure} of a hit: {'; '.join(told)}."
    return draw_literally(plot, size=(WIDTH, 3.4 + row_legend_height(entries)), caption=caption, alt=alt)


def _read(curve: Curve, at: float) -> str:
    order = np.argsort(np.asarray(curve.x, float), kind="stable")
    return format_number(float(np.interp(at, np.asarray(curve.x, float)[order], np.asarray(curve.y, float)[order])))


def anchor_figure(designs: Mapping[str, Num[np.ndarray, "m"]], *, overlap: float = 0.5, caption: str) -> Figure:
    """Share of boxes that some anchor overlaps at least so much: the ceiling of a detector before box regression.

    Args:
      designs: by design of the anchors, the best overlap (IoU) of each box, shape `(m,)`.
      overlap: that is pointed out, with the share in the legend.
      caption: says whose boxes these are.

    Raises:
      ValueError: no design, or no box.

    Example:
      >>> best = {"published": np.array([0.2, 0.3, 0.6]), "fitted": np.array([0.7, 0.6, 0.8])}
      >>> anchor_figure(best, caption="Boxes of the training fold, n = 3.").alt
      'Share of boxes with an anchor of at least an overlap: published 33 % at 0.5; fitted 100 % at 0.5.'
    """
    if not designs or any(not len(best) for best in designs.values()):
        raise ValueError("anchors of no design, or for no box; expected at least one of each.")
    curves, shares = {}, {}
    for name, best in designs.items():
        rising = np.sort(np.asarray(best, float))
        shares[name] = f"{100 * float(np.mean(rising >= overlap)):.0f} %"
        x = np.concatenate([[0.0], rising, [1.0]])
        y = np.concatenate([[1.0], np.arange(len(rising) - 1, -1, -1) / len(rising), [0.0]])
        curves[name] = Curve(x, y, note=f"{shares[name]} at {overlap:g}")
    entries = [(name, curve.note) for name, curve in curves.items()]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = [
            plot_curve(axes, palette, index, curve, of=len(curves), step=True)
            for index, curve in enumerate(curves.values())
        ]
        reference_line(axes, palette, overlap)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="IoU with the best anchor, at least", ylabel="share of boxes")
        row_legend(figure, handles, entries)

    told = "; ".join(f"{name} {share} at {overlap:g}" for name, share in shares.items())
    alt = f"Share of boxes with an anchor of at least an overlap: {told}."
    return draw_literally(plot, size=(WIDTH, 3.0 + row_legend_height(entries)), caption=caption, alt=alt)


class Generalisation(NamedTuple):
    """One number of one model over the epochs, on what it was trained on and on what was held out.

    Attributes:
      epochs: at which it was measured, counted from 1, shape `(e,)`.
      train, held_out: a row a training, NaN where there is none, shape `(r, e)`.
      best: epoch that each training kept; empty where the last one was.
    """

    epochs: Num[np.ndarray, "e"]
    train: Float[np.ndarray, "r e"]
    held_out: Float[np.ndarray, "r e"]
    best: Sequence[int] = ()


def generalisation_figure(
    courses: Mapping[str, Generalisation], *, metric: str, held_out: str = "validation", caption: str
) -> Figure:
    """A metric over the epochs on training and on held-out images: a panel a model, a thin line a training.

    The thick line is the mean over the trainings, the dot the epoch that a training kept. Where the two means part,
    the model learns its training images by heart.

    Args:
      courses: by model.
      metric: what is drawn, as "AP at IoBB 0.5".
      held_out: which images are held out, as "validation" or "test".
      caption: says n and how many trainings.

    Raises:
      ValueError: no model, or arrays whose shapes disagree.

    Example:
      >>> course = Generalisation(np.array([1, 2]), np.array([[0.2, 0.9]]), np.array([[0.2, 0.3]]), [2])
      >>> generalisation_figure({"MDF-Net": course}, metric="AP", caption="One training.").alt
      'AP over epochs: MDF-Net, 1 training, after 2 epochs 0.900 on training and 0.300 on validation images.'
    """
    if not courses:
        raise ValueError("generalisation of no models; expected at least one.")
    for name, course in courses.items():
        shapes = {np.shape(course.train), np.shape(course.held_out)}
        if len(shapes) > 1 or np.shape(course.train)[1:] != np.shape(course.epochs):
            raise ValueError(
                f"{name}: train {np.shape(course.train)}, held_out {np.shape(course.held_out)} and epochs "
                f"{np.shape(course.epochs)}; expected (r, e), (r, e) and (e,)."
            )
    rows, columns = rows_of(len(courses), PANELS)
    entries = [("training images", ""), (f"{held_out} images", "")]
    everything = [part for course in courses.values() for part in (course.train, course.held_out)]
    highest = max((float(np.nanmax(part)) for part in everything if np.isfinite(part).any()), default=1.0)

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharex=False, sharey=True)).ravel()
        handles: list[Any] = []
        for axes, (name, course) in zip(panels, courses.items(), strict=False):
            handles = []
            for index, values in enumerate((course.train, course.held_out)):
                style = {"color": palette.colours[index], "linestyle": ("--", "-")[index]}
                if len(values) > 1:
                    for line in values:
                        axes.plot(course.epochs, line, **style, linewidth=0.7, alpha=0.35)
                handles += axes.plot(course.epochs, _mean(values), **style, linewidth=1.8)
            for line, best in zip(course.held_out, course.best, strict=False):
                at = np.flatnonzero(np.asarray(course.epochs) == best)
                if at.size:
                    axes.plot(best, line[at[0]], "o", color=palette.colours[1], markersize=4)
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_xlabel("epoch", fontsize=9)
            # Shares end at 1; losses may lie anywhere above.
            axes.set_ylim(0, 1.08 * highest if highest > 1 else min(1.02, 1.08 * highest or 1.0))
            axes.locator_params(axis="x", nbins=6, integer=True)
        for axes in panels[len(courses) :]:
            axes.set_visible(False)
        figure.supylabel(metric, fontsize=10)
        row_legend(figure, handles, entries)

    told = []
    for name, course in courses.items():
        last = [format_number(float(_mean(part)[-1])) for part in (course.train, course.held_out)]
        told.append(
            f"{name}, {counted(len(course.train), 'training')}, after {counted(int(course.epochs[-1]), 'epoch')} "
            f"{last[0]} on training and {last[1]} on {held_out} images"
        )
    size = (WIDTH, PANEL_HEIGHT * rows + 0.2 + row_legend_height(entries))
    return draw_literally(plot, size=size, caption=caption, alt=f"{metric} over epochs: {'; '.join(told)}.")


def _mean(values: Float[np.ndarray, "r e"]) -> Float[np.ndarray, "e"]:
    """Mean over the trainings that have a value; NaN where none has."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def count_table(
    counts: Mapping[str, BoxCounts], *, classes: Sequence[str], score: float, overlap: str, caption: str = ""
) -> Table:
    """Boxes found and missed and false detections of every model, of each class and of all.

    Args:
      counts: by model, from `fusion_jax.evaluation.detection.box_counts`.
      classes: names, in the order of the counts.
      score: detections of at least this count.
      overlap: what a hit is, as "IoBB 0.5".
      caption: goes before what is said of score and overlap: how many images and patients.

    Raises:
      ValueError: counts of another number of classes.

    Example:
      >>> one = BoxCounts(np.array([3, 3]), np.array([1, 1]), np.array([2, 2]))
      >>> table = count_table({"MDF-Net": one}, classes=["nodule"], score=0.05, overlap="IoBB 0.5")
      >>> table.rows[-1]
      ['MDF-Net', 'all', 5, 3, 1, 2, '0.750', '0.600']
    """
    rows: list[list[str | int | float]] = []
    for name, one in counts.items():
        if len(one.tp) != len(classes) + 1:
            raise ValueError(f"{name}: counts of {len(one.tp) - 1} classes, and {len(classes)} names; they must agree.")
        for k, kind in enumerate((*classes, "all")):
            tp, fp, fn = (int(part[k]) for part in (one.tp, one.fp, one.fn))
            rows.append([name, kind, tp + fn, tp, fp, fn, _share(tp, tp + fp), _share(tp, tp + fn)])
    if len(classes) == 1:
        rows = [row for row in rows if row[1] == "all"]
    what = f"Detections of score {score:g} and above; found: {overlap} or more with a box of the class."
    return Table(
        ("model", "class", "boxes", "found (TP)", "false (FP)", "missed (FN)", "precision", "recall"),
        rows,
        f"{caption} {what}".strip(),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def correlation_figure(
    values: Num[np.ndarray, "r c"], rows: Sequence[str], columns: Sequence[str], *, caption: str
) -> Figure:
    """Correlations as a matrix of colours with their numbers, about a neutral zero.

    Args:
      values: from -1 to 1, shape `(r, c)`; NaN stays blank.
      rows, columns: names.
      caption: says n, and which coefficient it is.

    Raises:
      ValueError: a value beyond 1, or names that do not agree with the shape.

    Example:
      >>> correlation_figure(np.array([[0.21, -0.12]]), ["resprate"], ["consolidation", "edema"], caption="").alt
      'correlation from −0.120 to 0.210; rows resprate; columns consolidation, edema.'
    """
    matrix = np.asarray(values, float)
    if np.isfinite(matrix).any() and float(np.nanmax(np.abs(matrix))) > 1 + 1e-9:
        raise ValueError(f"a correlation of {float(np.nanmax(np.abs(matrix))):.3g}; expected −1 to 1.")
    texts = [[_signed(cell) for cell in row] for row in matrix]
    return heatmap_figure(
        matrix, rows, columns, annotations=texts, colour_label="correlation", caption=caption, centre=0.0
    )


def relevance_figure(
    relevance: Num[np.ndarray, "r c"],
    gain: Num[np.ndarray, "r c"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    expected: str = "relevance, radiologists",
    measured: str = "gain of AP, points",
    texts: Sequence[Sequence[str]] | None = None,
    caption: str,
) -> Figure:
    """What readers hold relevant beside what a model gained: two maps of the same rows and columns.

    Args:
      relevance: of each clinical value (rows) for each finding (columns), from 0 to 1.
      gain: measured, of the same cells, about a neutral zero; NaN where it was not measured.
      rows, columns: names.
      expected, measured: titles of the two.
      texts: of the cells of `gain`, as with intervals; their values unless given.
      caption: says n, what the gain is over, and how sure it is.

    Raises:
      ValueError: names that do not agree with the shapes.

    Example:
      >>> relevance_figure(np.array([[0.9, 0.1]]), np.array([[5.0, -2.0]]), ["resprate"], ["edema", "atelectasis"],
      ...                  caption="").alt
      'relevance, radiologists beside gain of AP, points: resprate, edema 0.9 and +5.0, atelectasis 0.1 and −2.0.'
    """
    parts = [np.asarray(part, float) for part in (relevance, gain)]
    if any(part.shape != (len(rows), len(columns)) for part in parts):
        raise ValueError(
            f"relevance {parts[0].shape} and gain {parts[1].shape} with {len(rows)} rows and {len(columns)} columns; "
            "they must agree."
        )
    known = parts[1][np.isfinite(parts[1])]
    reach = float(np.abs(known).max()) if known.size else 1.0
    norms: list[Normalize] = [
        Normalize(0.0, 1.0 / WITHDRAWN),
        TwoSlopeNorm(0.0, -(reach or 1.0) / WITHDRAWN, (reach or 1.0) / WITHDRAWN),
    ]
    shown = [
        [[_plain(cell) for cell in row] for row in parts[0]],
        texts or [[_signed(cell, 1) for cell in row] for row in parts[1]],
    ]
    names = [wrapped(name) for name in rows]
    below = [wrapped(name) for name in columns]
    lines = max(name.count("\n") + 1 for name in names)
    slant = max(text_width(name, 8.5) for name in below)

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        colours = [mpl.colormaps[palette.sequential], mpl.colormaps[palette.diverging]]
        for axes, part, norm, colour, cells, title in zip(
            panels, parts, norms, colours, shown, (expected, measured), strict=True
        ):
            axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
            for (row, column), value in np.ndenumerate(part):
                if not np.isfinite(value):
                    axes.text(column, row, "–", ha="center", va="center", fontsize=8.5, color=palette.soft)
                    continue
                face = colour(float(norm(value)))
                axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, facecolor=face, linewidth=0))
                axes.text(column, row, cells[row][column], ha="center", va="center", fontsize=8.5, color=ink_on(face))
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xticks(range(len(columns)), below, fontsize=8.5, rotation=40, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(rows)), names, fontsize=8.5)
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)

    told = []
    for row, name in enumerate(rows):
        cells = [f"{kind} {shown[0][row][k]} and {shown[1][row][k]}" for k, kind in enumerate(columns)]
        told.append(f"{name}, {', '.join(cells)}")
    height = 0.6 + 0.66 * slant + len(rows) * max(0.27, 0.15 * lines + 0.1)
    alt = f"{expected} beside {measured}: {'; '.join(told)}."
    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=alt)


def _plain(value: float) -> str:
    return f"{value:g}" if np.isfinite(value) else "–"


def _signed(value: float, digits: int = 2) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", MINUS)
