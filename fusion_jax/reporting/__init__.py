"""Figures, tables and the self-contained HTML page that carries them."""

from fusion_jax.reporting.figures import (
    Palette,
    density_figure,
    distribution_figure,
    draw,
    gamma_figure,
    heatmap_figure,
    save_figure,
    stability_figure,
)
from fusion_jax.reporting.html import Figure, Section, Table, format_number, write_report

__all__ = [
    "Figure",
    "Palette",
    "Section",
    "Table",
    "density_figure",
    "distribution_figure",
    "draw",
    "format_number",
    "gamma_figure",
    "heatmap_figure",
    "save_figure",
    "stability_figure",
    "write_report",
]
