"""Figure 2 of Wang et al. 2023: liver, centre, tip and box, and the image that a model reads.

python -m experiments.portal_hypertension.figure      # the synthetic liver, and the real CT where it is at hand

The CT is `liver_ct_totalseg` in the folder that FUSION_JAX_DATA names.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from fusion_jax.data.image import Image
from fusion_jax.data.liver import (
    LobeAxis,
    box_corners,
    cantlie_plane,
    left_lobe,
    liver_mask,
    lobe_axis,
    lobe_sections,
    surface_crop,
)
from fusion_jax.data.readers.nifti import read_nifti
from fusion_jax.data.synthetic.liver import LIVER_LABELS, portal_hypertension_ct
from fusion_jax.reporting.figures import WIDTH, Palette, draw, save_figure
from fusion_jax.reporting.html import Figure

WINDOW_HU = (-100.0, 240.0)  # not stated in the paper
AIR_HU = -1000.0
PHANTOM_SHAPE, PHANTOM_SPACING = (60, 165, 225), (3.0, 1.5, 1.5)
REAL_LABELS = {"liver": 5, "gallbladder": 4, "vena cava": 8}
DRAWN_PIXELS = (112, 112)  # what the figure resolves
SHOWN_MM = 15.0  # beyond the body's outline

# Over grey values, so not of the page's palette; told apart by line style and marker as well.
LIVER_COLOUR, LOBE_COLOUR, BOX_COLOUR = "#56b4e9", "#f0c040", "#ff8040"


@dataclass(frozen=True)
class Config:
    """Figure 2 of Wang et al. 2023, on the synthetic liver and on a real CT.

    Attributes:
      data: folder with `liver_ct_totalseg`; without it only the synthetic liver is drawn.
      seed: of the synthetic patients.
      out: folder of the figures.
    """

    data: Path = Path(os.environ.get("FUSION_JAX_DATA", "../shared/data"))
    seed: int = 0
    out: Path = Path("results/portal_hypertension")


class Found(NamedTuple):
    """One patient's volume with what was found in it."""

    ct: Image
    liver: np.ndarray
    lobe: np.ndarray
    axis: LobeAxis


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    for path in run(config):
        print(path)


def run(config: Config) -> list[Path]:
    """Draw what there is; returns the paths of the figures."""
    config.out.mkdir(parents=True, exist_ok=True)
    figures = {"left_lobe_synthetic.svg": lobe_figure(synthetic(config.seed), "synthetic patient")}
    folder = config.data / "liver_ct_totalseg"
    if folder.is_dir():
        figures["left_lobe_ct.svg"] = lobe_figure(real(folder), "CT of one patient, labels by TotalSegmentator v1")
    else:
        logging.getLogger(__name__).warning("%s is absent: no figure of a real CT; set FUSION_JAX_DATA", folder)
    for name, figure in figures.items():
        save_figure(figure, config.out / name)
    return [config.out / name for name in figures]


def synthetic(seed: int) -> Found:
    """The patient with the most nodular surface among 198."""
    cohort, truth = portal_hypertension_ct(shape=PHANTOM_SHAPE, spacing=PHANTOM_SPACING, seed=seed)
    patient = int(truth.hidden["nodularity_mm"].argmax())
    labels = cohort.sources["labels"].image(patient).values[..., 0]
    inside = np.isin(labels, (LIVER_LABELS["liver"], LIVER_LABELS["left lateral segment"]))
    gallbladder, cava = (labels == LIVER_LABELS[name] for name in ("gallbladder", "inferior vena cava"))
    return find(cohort.sources["ct"].image(patient), inside, gallbladder, cava)


def real(folder: Path) -> Found:
    """The CT with the labels of a segmentation model."""
    ct, labels = read_nifti(folder / "ct.nii.gz", unit="HU"), read_nifti(folder / "labels.nii.gz", unit="label")
    return find(ct, *(labels.values[..., 0] == value for value in REAL_LABELS.values()))


def find(ct: Image, liver: np.ndarray, gallbladder: np.ndarray, vena_cava: np.ndarray) -> Found:
    """Lobe, section and landmarks of one patient."""
    if ct.spacing is None:
        raise ValueError("the CT has no spacing.")
    dz, dy, dx = ct.spacing
    spacing = (dz, dy, dx)
    whole = liver_mask(liver, spacing)
    lobe = left_lobe(whole, cantlie_plane(whole, gallbladder, vena_cava, spacing), spacing)
    return Found(ct, whole, lobe, lobe_axis(whole, lobe, spacing, section=lobe_sections(whole, lobe)[0]))


def lobe_figure(found: Found, what: str) -> Figure:
    """The section with its landmarks and box; below, the three slices in the box."""
    ct, liver, lobe, axis = found
    section, (dy, dx) = ct.values[axis.section, ..., 0], axis.spacing
    crop = surface_crop(ct.values[..., 0], axis, size=DRAWN_PIXELS, fill=AIR_HU)
    rows, columns = (np.arange(n) * step for n, step in zip(section.shape, axis.spacing, strict=True))
    corners = box_corners(axis) * axis.spacing
    outline = np.concatenate([corners, corners[:1]])
    centre, tip = (np.array(point) * axis.spacing for point in (axis.centre, axis.tip))
    margin, width = 0.1 * axis.length, 1.2 * axis.length

    def show(axes: Axes, image: np.ndarray, extent: tuple[float, float, float, float]) -> None:
        low, high = WINDOW_HU
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="none")
        axes.grid(visible=False)

    def mark(axes: Axes, middle: np.ndarray, end: np.ndarray) -> None:
        axes.plot(*zip(middle[::-1], end[::-1], strict=True), ":", color=BOX_COLOUR, linewidth=1.2)
        axes.plot(*middle[::-1], "+", color=BOX_COLOUR, markersize=9, markeredgewidth=2, label="centre of mass")
        axes.plot(*end[::-1], "o", color=BOX_COLOUR, markersize=6, markerfacecolor="none", label="tip of the left lobe")

    def plot(figure: Canvas, palette: Palette) -> None:
        panels = figure.subplot_mosaic([["section"] * 3, ["0", "1", "2"]], height_ratios=(2.1, 1))
        whole = panels["section"]
        show(whole, section, (-dx / 2, columns[-1] + dx / 2, rows[-1] + dy / 2, -dy / 2))
        whole.contour(columns, rows, liver[axis.section], [0.5], colors=LIVER_COLOUR, linewidths=1.2)
        whole.contour(columns, rows, lobe[axis.section], [0.5], colors=LOBE_COLOUR, linewidths=1.4, linestyles="--")
        whole.plot([], [], color=LIVER_COLOUR, label="liver")
        whole.plot([], [], "--", color=LOBE_COLOUR, label="left lobe")
        whole.plot(outline[:, 1], outline[:, 0], color=BOX_COLOUR, linewidth=1.4, label="box")
        mark(whole, centre, tip)
        body = np.argwhere(section > WINDOW_HU[0])
        (top, left), (bottom, right) = body.min(0) * axis.spacing - SHOWN_MM, body.max(0) * axis.spacing + SHOWN_MM
        whole.set(
            xlim=(max(left, 0), min(right, columns[-1])),
            ylim=(min(bottom, rows[-1]), min(max(top, 0), outline[:, 0].min() - 5)),
            xlabel="from the patient's right to the left, mm",
            ylabel="from front to back, mm",
            facecolor="black",
        )
        # The handles are light: the legend keeps the darkness of the image.
        whole.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, facecolor="#2b2f35", labelcolor="white", frameon=True
        )
        for channel in range(crop.shape[2]):
            axes = panels[str(channel)]
            show(axes, crop[..., channel], (-margin, width - margin, width / 2, -width / 2))
            mark(axes, np.zeros(2), np.array((0.0, axis.length)))
            axes.set_title(f"slice {axis.section + channel - 1}", fontsize=9)
            axes.set_xlabel("along the axis, mm")
            axes.tick_params(labelleft=channel == 0)
        panels["0"].set_ylabel("across, mm")

    caption = (
        f"Left hepatic lobe of n = 1 {what}: section {axis.section} of {len(ct.values)}, {axis.length:.0f} mm from "
        f"centre to tip, turned by {axis.angle:.0f} degrees. Below, the channels that a model reads, at half their "
        "pixels (Wang et al. 2023, Figure 2)."
    )
    alt = "An axial slice with the outlines of liver and left lobe and a turned box; three upright crops of the box."
    return draw(plot, size=(WIDTH, 6.4), caption=caption, alt=alt)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
