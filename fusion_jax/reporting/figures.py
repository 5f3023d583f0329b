"""Figures as SVG, drawn once for light and once for dark pages.

Colours are those of Okabe and Ito, which stay apart under every common colour blindness; line styles tell apart what
colours alone would not. Text is drawn as outlines, so that a figure looks the same wherever it is opened. The same
input gives the same bytes.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from fusion_jax.records import write_text
from fusion_jax.reporting.html import Figure, format_number

__all__ = [
    "Palette",
    "density_figure",
    "distribution_figure",
    "draw",
    "gamma_figure",
    "heatmap_figure",
    "legend",
    "legend_height",
    "save_figure",
    "stability_figure",
    "wrapped",
]

WIDTH = 5.6  # inches; at this width text keeps 8 px on a phone of 360 px
CURVE_POINTS = 400  # more than a figure resolves
DRAWN_DOTS = 1000  # a vector dot costs 60 bytes; more are drawn as pixels
LINE_STYLES = ("-", "--", "-.", ":")


class Palette(NamedTuple):
    """Colours of a page.

    Attributes:
      background, ink, soft, rule: of the page, its text, secondary text and rules.
      colours: one for each source or curve, in the same order of hues on every palette.
      diverging, sequential: names of matplotlib colour maps whose middle, or start, recedes into the page.
    """

    background: str
    ink: str
    soft: str
    rule: str
    colours: tuple[str, ...]
    diverging: str
    sequential: str

    def style(self, index: int) -> dict[str, Any]:
        """Colour and line style of the curve with this index."""
        cycle, hue = divmod(index, len(self.colours))
        return {"color": self.colours[hue], "linestyle": LINE_STYLES[(hue + cycle) % len(LINE_STYLES)]}


LIGHT = Palette(
    background="#ffffff",
    ink="#1c1f23",
    soft="#565c64",
    rule="#d5d9de",
    colours=("#0072b2", "#d55e00", "#009e73", "#b3628f", "#c98a00", "#3d9bd1"),
    diverging="RdBu_r",
    sequential="Blues",
)
DARK = Palette(
    background="#14171b",
    ink="#e3e6ea",
    soft="#a4abb5",
    rule="#363c45",
    colours=("#56b4e9", "#f0803c", "#2fc79b", "#d793b8", "#f0c04a", "#9ccdf0"),
    diverging="berlin",
    sequential="cividis",
)


def draw(plot: Callable[[Canvas, Palette], object], *, size: tuple[float, float], caption: str, alt: str) -> Figure:
    """What `plot` draws, once in each palette.

    Args:
      plot: `plot(figure, palette)` fills an empty figure; called twice.
      size: width and height, inches.
      caption, alt: as in `Figure`.

    Example:
      >>> figure = draw(lambda f, palette: None, size=(2.0, 1.0), caption="Nothing.", alt="An empty figure.")
      >>> figure.light.lstrip().startswith("<?xml"), figure.caption
      (True, 'Nothing.')
    """
    light, dark = (_svg(plot, palette, size) for palette in (LIGHT, DARK))
    return Figure(light, dark, caption, alt)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the light SVG to `path`, whole or not at all."""
    write_text(path, figure.light)


def density_figure(
    grid: ArrayLike, densities: Mapping[str, ArrayLike], fused: ArrayLike, *, xlabel: str, caption: str
) -> Figure:
    """Densities of the sources and of the fused layer.

    Args:
      grid: grid points, shape `(n,)`.
      densities: density of each source, shape `(n,)`.
      fused: density of the fused layer, shape `(n,)`.
      xlabel: name and unit of the feature values.
      caption: says of how many cases.
    """
    points = np.asarray(grid, float)
    curves = {name: np.asarray(values, float) for name, values in densities.items()}
    layer = np.asarray(fused, float)
    peaks = np.array([curve.max() for curve in (*curves.values(), layer)])
    seen = np.flatnonzero(
        np.any([curve > 1e-3 * peak for curve, peak in zip((*curves.values(), layer), peaks, strict=True)], 0)
    )
    shown = slice(seen[0], seen[-1] + 1, max(1, (seen[-1] - seen[0]) // CURVE_POINTS))

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.fill_between(points[shown], layer[shown], color=palette.soft, alpha=0.25, linewidth=0, label="fused layer")
        for index, (name, curve) in enumerate(curves.items()):
            axes.plot(points[shown], curve[shown], label=wrapped(name), **palette.style(index))
        axes.set(xlabel=xlabel, ylabel="probability density", ylim=(0, None))
        axes.margins(x=0)
        legend(axes, entries)

    entries = ["fused layer", *curves]
    tops = [f"{name} peaks at {format_number(points[curve.argmax()])}" for name, curve in curves.items()]
    alt = f"Densities over {xlabel}: {', '.join(tops)}, the fused layer at {format_number(points[layer.argmax()])}."
    return draw(plot, size=(WIDTH, 3.2 + legend_height(entries)), caption=caption, alt=alt)


def gamma_figure(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str,
    caption: str,
    mark: float | None = None,
    mark_label: str = "γ*",
) -> Figure:
    r"""Curves over a logarithmic axis of :math:`\gamma`.

    Args:
      curves: gamma and value of each curve, both of shape `(g,)`.
      ylabel: name and unit of the values.
      caption: says of how many cases.
      mark: a gamma to point out.
      mark_label: what it is.
    """
    lines = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in curves.items()}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for index, (name, (x, y)) in enumerate(lines.items()):
            axes.plot(x, y, label=wrapped(name), **palette.style(index))
        _zero_line(axes, palette)
        if mark is not None:
            _vertical(axes, palette, mark, f"{mark_label} = {format_number(mark)}")
        axes.set(xlabel="γ, relative size of the second source", ylabel=ylabel)
        _log_ticks(axes)
        legend(axes, lines)

    ends = [
        f"{name} from {format_number(y[0])} at γ = {format_number(x[0])} to {format_number(y[-1])} at "
        f"{format_number(x[-1])}"
        for name, (x, y) in lines.items()
    ]
    marked = "" if mark is None else f" {mark_label} = {format_number(mark)} is marked."
    size = (WIDTH, 3.2 + legend_height(lines))
    return draw(plot, size=size, caption=caption, alt=f"{ylabel} over γ: {'; '.join(ends)}.{marked}")


def distribution_figure(
    values: Mapping[str, ArrayLike], *, xlabel: str, caption: str, reference: float | None = None
) -> Figure:
    """Every case as a dot, with median and quartiles; one row a group, with its n.

    Args:
      values: one number a case for each group, shape `(b,)`; values that are not finite are not drawn nor counted.
      xlabel: name and unit of the values.
      caption: what a dot is.
      reference: a value to compare with, drawn as a line.
    """
    groups = {name: np.asarray(group, float) for name, group in values.items()}
    groups = {name: group[np.isfinite(group)] for name, group in groups.items()}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        if reference is not None:
            axes.axvline(reference, color=palette.soft, linewidth=1, linestyle=(0, (4, 3)))
        for index, group in enumerate(groups.values()):
            # Drawn anew for every group and palette: the same dots wherever they are drawn.
            height = index + np.random.default_rng(0).uniform(-0.28, 0.28, group.size)
            axes.plot(
                group,
                height,
                "o",
                color=palette.colours[0],  # rows have names: a colour would claim to mean a source
                alpha=0.45,
                markersize=3.5 if group.size <= 300 else 2,
                markeredgewidth=0,
                rasterized=group.size > DRAWN_DOTS,
            )
            if group.size:
                low, middle, high = np.quantile(group, (0.25, 0.5, 0.75))
                axes.plot([low, high], [index, index], color=palette.ink, linewidth=2.2, solid_capstyle="butt")
                axes.plot([middle, middle], [index - 0.3, index + 0.3], color=palette.ink, linewidth=2.2)
        labels = [f"{wrapped(name)}\nn = {group.size}" for name, group in groups.items()]
        axes.set_yticks(range(len(groups)), labels)
        axes.set(xlabel=xlabel, ylim=(len(groups) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)

    medians = [
        f"{name} {format_number(float(np.median(group))) if group.size else 'none'} (n = {group.size})"
        for name, group in groups.items()
    ]
    alt = f"{xlabel} of every case; medians: {', '.join(medians)}."
    size = (WIDTH, 0.8 + (0.4 + 0.18 * _lines(groups)) * len(groups))
    return draw(plot, size=size, caption=caption, alt=alt)


def stability_figure(
    bandwidths: ArrayLike, curves: Mapping[str, ArrayLike], *, ylabel: str, caption: str, chosen: float
) -> Figure:
    """What a measurement becomes at other bandwidths.

    Args:
      bandwidths: shape `(k,)`, feature units.
      curves: value at each bandwidth, shape `(k,)`.
      ylabel: name and unit of the values.
      caption: says of how many cases.
      chosen: the bandwidth that the results use.
    """
    widths = np.asarray(bandwidths, float)
    lines = {name: np.asarray(curve, float) for name, curve in curves.items()}

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for index, (name, curve) in enumerate(lines.items()):
            axes.plot(widths, curve, marker="o", markersize=4, label=wrapped(name), **palette.style(index))
        _zero_line(axes, palette)
        _vertical(axes, palette, chosen, f"chosen: {format_number(chosen)}")
        axes.set(xlabel="bandwidth (standard deviation of the kernel, feature units)", ylabel=ylabel)
        axes.set_xticks(widths, [f"{width:.3g}" for width in widths])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        legend(axes, lines)

    ends = [f"{name} from {format_number(float(c[0]))} to {format_number(float(c[-1]))}" for name, c in lines.items()]
    alt = (
        f"{ylabel} at bandwidths from {format_number(float(widths[0]))} to {format_number(float(widths[-1]))}: "
        f"{'; '.join(ends)}. The bandwidth chosen is {format_number(chosen)}."
    )
    return draw(plot, size=(WIDTH, 3.0 + legend_height(lines)), caption=caption, alt=alt)


def heatmap_figure(
    values: ArrayLike,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    annotations: Sequence[Sequence[str]] | None = None,
    colour_label: str,
    caption: str,
    centre: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """A matrix of values as colours, with their numbers.

    Args:
      values: shape `(r, c)`; values that are not finite stay blank.
      row_labels, column_labels: of lengths `r` and `c`.
      annotations: text of every cell; its value unless given.
      colour_label: name and unit of the values.
      caption: says of how many cases.
      centre: value of the neutral colour, about which colours diverge evenly; a sequential scale without it.
      xlabel, ylabel: what the columns and rows are.
    """
    matrix = np.asarray(values, float)
    if matrix.shape != (len(row_labels), len(column_labels)):
        raise ValueError(
            f"a matrix of shape {matrix.shape} has {len(row_labels)} row labels and {len(column_labels)} column "
            "labels; they must agree."
        )
    finite = matrix[np.isfinite(matrix)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm: Normalize
    if centre is None:
        norm = Normalize(low, high)
    else:
        reach = max(high - centre, centre - low) or 1.0
        norm = TwoSlopeNorm(centre, centre - reach, centre + reach)
    texts: Sequence[Sequence[str]] = annotations or [[format_number(float(cell)) for cell in row] for row in matrix]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        colours = mpl.colormaps[palette.sequential if centre is None else palette.diverging]
        image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, norm=norm, aspect="auto")
        crowded = max(map(len, column_labels)) * len(column_labels) > 48
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(range(len(column_labels)), [wrapped(label) for label in column_labels], **slanted)
        axes.set_yticks(range(len(row_labels)), [wrapped(label) for label in row_labels])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in itertools.product(range(len(row_labels)), range(len(column_labels))):
            value = float(matrix[row, column])
            colour = _readable(colours, float(norm(value)), palette) if math.isfinite(value) else palette.soft
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=9)
        bar = figure.colorbar(image, ax=axes, label=colour_label, pad=0.02)
        bar.ax.spines[:].set_visible(False)
        bar.ax.tick_params(length=0)

    alt = f"{colour_label} from {format_number(low)} to {format_number(high)}; rows {', '.join(row_labels)}; columns "
    size = (WIDTH, 1.2 + (0.24 + 0.18 * _lines(row_labels)) * len(row_labels))
    return draw(plot, size=size, caption=caption, alt=f"{alt}{', '.join(column_labels)}.")


# What the figures share.


def _svg(plot: Callable[[Canvas, Palette], object], palette: Palette, size: tuple[float, float]) -> str:
    style: dict[Any, Any] = {
        "svg.hashsalt": "fusion_jax",  # else identifiers are random
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 10,
        "figure.facecolor": palette.background,
        "savefig.facecolor": palette.background,
        "axes.facecolor": palette.background,
        "axes.edgecolor": palette.soft,
        "axes.labelcolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.rule,
        "grid.linewidth": 0.6,
        "text.color": palette.ink,
        "xtick.color": palette.soft,
        "ytick.color": palette.soft,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "path.simplify_threshold": 0.3,
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a user's own settings are
        mpl.rcParams.update(style)
        # No pyplot: nothing to close, and no backend to choose.
        figure = Canvas(figsize=size, layout="constrained")
        plot(figure, palette)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, dpi=150)
    return buffer.getvalue()


def wrapped(name: str) -> str:
    """A name in lines of at most 24 characters."""
    return textwrap.fill(name, 24)


def _lines(names: Iterable[str]) -> int:
    """Lines of text that the longest of these names takes."""
    return max((wrapped(name).count("\n") + 1 for name in names), default=0)


def _legend_columns(names: Collection[str]) -> int:
    return min(len(names), 3 if max(map(len, names), default=0) < 16 else 2)


def legend_height(names: Collection[str]) -> float:
    """Inches that `legend` takes beyond its first line."""
    rows = -(-len(names) // max(1, _legend_columns(names)))
    return 0.19 * (rows * _lines(names) - 1)


def legend(axes: Axes, names: Collection[str]) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=_legend_columns(names), borderaxespad=0.2, handlelength=2.2
    )


def _vertical(axes: Axes, palette: Palette, at: float, label: str) -> None:
    axes.axvline(at, color=palette.soft, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        label,
        (at, 1),
        (5, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=9,
        bbox={"facecolor": palette.background, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


def _zero_line(axes: Axes, palette: Palette) -> None:
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=palette.soft, linewidth=1, zorder=1)


def _log_ticks(axes: Axes) -> None:
    axes.margins(x=0)
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _readable(colours: Colormap, position: float, palette: Palette) -> str:
    """Ink that can be read on this colour."""
    red, green, blue, _ = colours(position)
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    # Where black and white have the same contrast.
    return "#000000" if luminance > 0.18 else "#ffffff"
