"""Figures of trained models: how training went, where an image mattered, and how balanced a fusion was."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure as Canvas

from fusion_jax.reporting.figure_parts import (
    MARKERS,
    draw_literally,
    model_style,
    row_legend,
    row_legend_height,
    rows_of,
)
from fusion_jax.reporting.figures import WIDTH, Palette
from fusion_jax.reporting.html import Figure, format_number
from fusion_jax.wording import counted

__all__ = ["Balance", "Course", "Heat", "heat_figure", "quality_figure", "training_figure"]

PANELS = 3
PANEL_HEIGHT = 1.75


class Course(NamedTuple):
    """How the trainings of one model went.

    Attributes:
      loss: of every training a value an epoch, of any length.
      metric: on the inner validation cases, likewise; empty where there were none.
      best: epoch that was kept, of every training.
    """

    loss: Sequence[Float[np.ndarray, "_"]]
    metric: Sequence[Float[np.ndarray, "_"]]
    best: Sequence[int]


def training_figure(courses: Mapping[str, Course], *, metric: str, caption: str) -> Figure:
    """Loss and validation metric over the epochs, a panel a model and a line a training.

    Args:
      courses: by model.
      metric: name of what is monitored.
      caption: says how many trainings.

    Raises:
      ValueError: no model.

    Example:
      >>> course = Course([np.array([0.7, 0.5])], [np.array([0.6, 0.8])], [1])
      >>> training_figure({"CNN": course}, metric="AUC", caption="One training.").alt
      'Loss over epochs: CNN, from 0.700 to 0.500 in 2 epochs at most; AUC of validation cases at most 0.800.'
    """
    if not courses:
        raise ValueError("training curves of no models; expected at least one.")
    rows, columns = rows_of(len(courses), PANELS)
    watched = any(course.metric for course in courses.values())
    entries = [("loss on training cases", ""), *([(f"{metric} on inner validation cases", "")] if watched else [])]

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        handles: dict[str, Any] = {}
        for axes, (name, course) in zip(panels, courses.items(), strict=False):
            for losses in course.loss:
                [handles["loss"]] = axes.plot(
                    range(1, len(losses) + 1), losses, color=palette.colours[0], alpha=_alpha(course), linewidth=1.2
                )
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_xlabel("epoch", fontsize=9)
            axes.set_ylim(0, None)
            axes.tick_params(axis="y", labelcolor=palette.colours[0])
            axes.locator_params(axis="both", nbins=4, integer=False)
            if course.metric:
                other = axes.twinx()
                for values, best in zip(course.metric, course.best, strict=True):
                    [handles["metric"]] = other.plot(
                        range(1, len(values) + 1),
                        values,
                        color=palette.colours[1],
                        linestyle="--",
                        alpha=_alpha(course),
                        linewidth=1.2,
                    )
                    if 0 <= best < len(values):
                        other.plot(best + 1, values[best], "o", color=palette.colours[1], markersize=3.5)
                other.set_ylim(0, 1.02)
                other.grid(visible=False)
                other.tick_params(axis="y", labelcolor=palette.colours[1])
        for axes in panels[len(courses) :]:
            axes.set_visible(False)
        row_legend(figure, list(handles.values()), entries[: len(handles)])

    told = [f"{name}, {_told(course)}" for name, course in courses.items()]
    best = [float(np.nanmax(values)) for course in courses.values() for values in course.metric if len(values)]
    most = f"; {metric} of validation cases at most {format_number(max(best))}" if best else ""
    size = (WIDTH, PANEL_HEIGHT * rows + 0.2 + row_legend_height(entries))
    return draw_literally(plot, size=size, caption=caption, alt=f"Loss over epochs: {'; '.join(told)}{most}.")


def _alpha(course: Course) -> float:
    return max(0.35, 1.0 / max(1, len(course.loss)) ** 0.5)


def _told(course: Course) -> str:
    first = np.mean([losses[0] for losses in course.loss])
    last = np.mean([losses[-1] for losses in course.loss])
    epochs = max(len(losses) for losses in course.loss)
    return f"from {format_number(float(first))} to {format_number(float(last))} in {counted(epochs, 'epoch')} at most"


class Heat(NamedTuple):
    """A picture and what covering its parts did.

    Attributes:
      title, line: of the panel: the case and source, and what is known of it, in two lines each.
      picture: grey or RGB, 0 to 255.
      loss: of the score by patch of a grid over the picture.
      aspect: height of a pixel relative to its width.
    """

    title: str
    line: str
    picture: UInt8[np.ndarray, "h w c"]
    loss: Float[np.ndarray, "p q"]
    aspect: float = 1.0


def heat_figure(panels: Sequence[Heat], *, caption: str) -> Figure:
    """Pictures of cases, each beside itself under a map of where the score hangs; every map has its own scale.

    Args:
      panels: in reading order.
      caption: what is shown, and that it is qualitative.

    Raises:
      ValueError: no panel.
    """
    if not panels:
        raise ValueError("maps of no cases; expected at least one.")
    per_row = 2
    rows = -(-len(panels) // per_row)
    tallest = max(min(1.6, one.picture.shape[0] * one.aspect / one.picture.shape[1]) for one in panels)
    height = (WIDTH / 4) * tallest + 0.5

    def plot(figure: Canvas, palette: Palette) -> None:
        grid = figure.subplots(rows, 2 * per_row, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for number, one in enumerate(panels):
            row, place = divmod(number, per_row)
            plain, covered = grid[row, 2 * place], grid[row, 2 * place + 1]
            _picture(plain, one)
            _picture(covered, one)
            reach = float(np.abs(one.loss).max()) or 1.0
            shape = one.picture.shape
            covered.imshow(
                one.loss,
                cmap=mpl.colormaps["RdBu_r"],
                norm=TwoSlopeNorm(0.0, -reach, reach),
                alpha=0.5,
                extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
                interpolation="nearest",
                aspect=one.aspect,
            )
            plain.set_title(one.title.replace(", ", "\n", 1), fontsize=7, loc="left")
            covered.set_title(one.line, fontsize=7, loc="left", color=palette.soft)

    told = [
        f"{one.title}, {one.line}: covering a patch takes at most {format_number(float(one.loss.max()))} from the "
        f"score and adds at most {format_number(float(max(0.0, -one.loss.min())))}"
        for one in panels
    ]
    return draw_literally(plot, size=(WIDTH, height * rows), caption=caption, alt=f"Maps: {'; '.join(told)}.")


def _picture(axes: Axes, one: Heat) -> None:
    grey = one.picture.shape[-1] == 1
    axes.imshow(
        one.picture[..., 0] if grey else one.picture,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        aspect=one.aspect,
        interpolation="nearest",
    )


class Balance(NamedTuple):
    """How balanced the fusion of one model was, beside how well it did.

    Attributes:
      model: name.
      value: of the quality on the horizontal axis, one a training, shape `(r,)`.
      metric: of the same trainings, on their test cases, shape `(r,)`.
    """

    model: str
    value: Float[np.ndarray, "r"]
    metric: Float[np.ndarray, "r"]


def quality_figure(balances: Sequence[Balance], *, xlabel: str, ylabel: str, caption: str) -> Figure:
    """Fusion quality beside the metric, a dot a training and a large one for the mean of a model.

    Args:
      balances: by model.
      xlabel: name of the quality.
      ylabel: name of the metric.
      caption: says how many trainings.

    Raises:
      ValueError: no model.
    """
    if not balances:
        raise ValueError("fusion quality of no models; expected at least one.")
    entries = [(one.model, "") for one in balances]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = []
        for index, one in enumerate(balances):
            colour = model_style(palette, index)["color"]
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(one.value, one.metric, marker, color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
            [handle] = axes.plot(
                np.nanmean(one.value),
                np.nanmean(one.metric),
                marker,
                color=colour,
                markersize=9,
                markeredgecolor=palette.background,
            )
            handles.append(handle)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        row_legend(figure, handles, entries)

    told = [
        f"{one.model} {format_number(float(np.nanmean(one.value)))} with {format_number(float(np.nanmean(one.metric)))}"
        for one in balances
    ]
    size = (WIDTH, 3.2 + row_legend_height(entries))
    return draw_literally(plot, size=size, caption=caption, alt=f"{xlabel} and {ylabel}, means: {'; '.join(told)}.")
