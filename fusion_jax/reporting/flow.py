"""Flow diagram of a cohort: who was screened, who was left out and why, who is in."""

import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyBboxPatch

from fusion_jax.data.definition import Flow, Step
from fusion_jax.reporting.figures import WIDTH, Palette, draw
from fusion_jax.reporting.html import Figure

__all__ = ["flow_figure"]

# Inches. Text of 9 points is 0.16 high and 0.079 a character wide on average.
LINE = 0.165
PADDING = 0.09
GAP = 0.2
MAIN = 2.35
SIDE = 2.75
MAIN_CHARACTERS = 28
SIDE_CHARACTERS = 34
FONT_SIZE = 9


class _Box(NamedTuple):
    """A box of text; its heading is set in bold, its body is indented where it lists reasons."""

    lines: tuple[str, ...]
    bold: int = 0

    @property
    def height(self) -> float:
        return LINE * len(self.lines) + 2 * PADDING


def flow_figure(flow: Flow, *, caption: str | None = None) -> Figure:
    """Boxes of those who are left from top to bottom, and beside each arrow who was dropped there and why.

    Args:
      flow: as from `fusion_jax.data.definition`.
      caption: by default the first and the last count.

    Returns:
      The figure for light and dark pages.

    Raises:
      ValueError: if the flow has no step.

    Example:
      >>> from fusion_jax.data.definition import Dropped, Step
      >>> recurred = Dropped("local or regional recurrence", ("STS_020", "STS_034", "STS_051"))
      >>> flow_figure(Flow((Step("screened", 51, 51), Step("cohort", 48, 48, (recurred,))))).caption
      'From 51 patients to 48 patients.'
    """
    if not flow.steps:
        raise ValueError("a flow without steps; expected at least the table before anybody is dropped.")
    main = [_main_box(flow, step) for step in flow.steps]
    side = [_side_box(flow, index) for index in range(1, len(flow.steps))]
    between = [max(2 * GAP, box.height + GAP) if box else 2 * GAP for box in side]
    height = sum(box.height for box in main) + sum(between) + 2 * PADDING

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(-height, 0))
        axes.axis("off")
        top = -PADDING
        for index, box in enumerate(main):
            _draw_box(axes, palette, box, left=PADDING, top=top, width=MAIN)
            bottom = top - box.height
            if index < len(side):
                middle = PADDING + MAIN / 2
                _arrow(axes, palette, (middle, bottom), (middle, bottom - between[index]))
                dropped = side[index]
                if dropped:
                    at = bottom - between[index] / 2
                    _arrow(axes, palette, (middle, at), (WIDTH - PADDING - SIDE, at))
                    _draw_box(
                        axes, palette, dropped, left=WIDTH - PADDING - SIDE, top=at + dropped.height / 2, width=SIDE
                    )
                bottom -= between[index]
            top = bottom

    first, last = flow.size(flow.steps[0]), flow.size(flow.steps[-1])
    return draw(plot, size=(WIDTH, height), caption=caption or f"From {first} to {last}.", alt=_described(flow))


def _main_box(flow: Flow, step: Step) -> _Box:
    label = textwrap.wrap(step.label, MAIN_CHARACTERS)
    count = textwrap.wrap(flow.size(step), MAIN_CHARACTERS)
    kept = len(step.kept_undecided)
    more = textwrap.wrap(f"{kept:,} of them undecided", MAIN_CHARACTERS) if kept else []
    return _Box((*count, *label, *more), bold=len(count))


def _side_box(flow: Flow, index: int) -> _Box | None:
    step, before = flow.steps[index], flow.steps[index - 1]
    if not step.dropped:
        return None
    lines = []
    total = sum(len(dropped.case_id) for dropped in step.dropped)
    if len(step.dropped) > 1 or total != before.patients - step.patients:
        lines.append(f"{total:,} left out" + _of_patients(flow, before.patients - step.patients))
    bold = len(lines)
    for dropped in step.dropped:
        lines += textwrap.wrap(f"{len(dropped.case_id):,}  {dropped.reason}", SIDE_CHARACTERS, subsequent_indent="    ")
    return _Box(tuple(lines), bold)


def _of_patients(flow: Flow, patients: int) -> str:
    if all(step.cases == step.patients for step in flow.steps):
        return ""
    return f", {patients:,} patient{'' if patients == 1 else 's'} fewer"


def _draw_box(axes: Axes, palette: Palette, box: _Box, *, left: float, top: float, width: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, top - box.height),
            width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=palette.background,
            edgecolor=palette.soft,
            linewidth=1,
        )
    )
    for number, text in enumerate(box.lines):
        axes.text(
            left + PADDING,
            top - PADDING - LINE * (number + 0.5),
            text,
            ha="left",
            va="center",
            fontsize=FONT_SIZE,
            fontweight="bold" if number < box.bold else "normal",
            parse_math=False,  # a dollar sign in a reason is a dollar sign
            color=palette.ink,
        )


def _arrow(axes: Axes, palette: Palette, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>", "color": palette.soft, "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
    )


def _described(flow: Flow) -> str:
    parts = [f"{flow.size(flow.steps[0])} {flow.steps[0].label}".strip()]
    for step in flow.steps[1:]:
        parts += [f"{len(dropped.case_id):,} left out: {dropped.reason}" for dropped in step.dropped]
        parts.append(f"{flow.size(step)} left" + (f" ({step.label})" if step.label else ""))
    return f"Flow diagram: {'; '.join(parts)}."
