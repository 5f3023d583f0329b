"""Figures of `fusion-jax evaluate-boxes` that no other report has."""

from collections.abc import Mapping

from matplotlib.figure import Figure as Canvas

from fusion_jax.reporting import Figure, Palette, format_number
from fusion_jax.reporting.figure_parts import Curve, draw_literally, plot_curve, row_legend, row_legend_height
from fusion_jax.reporting.figures import WIDTH

__all__ = ["curve_figure"]


def curve_figure(
    curves: Mapping[str, Curve], *, xlabel: str, ylabel: str, at: float, caption: str, step: bool = False
) -> Figure:
    """Curves with bands between 0 and 1 on both axes.

    Args:
      curves: by name; their notes stand in the legend.
      xlabel, ylabel: names of the axes.
      at: where the text for those who cannot see reads the curves.
      caption: says n, and how the bands were made.
      step: each value holds back to the point before.
    """
    entries = [(name, curve.note) for name, curve in curves.items()]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        handles = [
            plot_curve(axes, palette, index, curve, of=len(curves), step=step)
            for index, curve in enumerate(curves.values())
        ]
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=xlabel, ylabel=ylabel)
        row_legend(figure, handles, entries)

    told = []
    for name, curve in curves.items():
        point = min(range(len(curve.x)), key=lambda index, x=curve.x: abs(float(x[index]) - at))
        told.append(f"{name} has {format_number(float(curve.y[point]))} at {format_number(float(curve.x[point]))}")
    alt = f"{ylabel} over {xlabel}: {'; '.join(told)}."
    return draw_literally(plot, size=(WIDTH, 3.4 + row_legend_height(entries)), caption=caption, alt=alt)
