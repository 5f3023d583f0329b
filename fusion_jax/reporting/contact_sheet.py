"""A sheet of small pictures of cases, with outlines of masks, boxes and what is known about them."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from fusion_jax.data.cohort import Boxes
from fusion_jax.data.image import Image
from fusion_jax.reporting.figures import WIDTH, Palette, draw
from fusion_jax.reporting.html import Figure

__all__ = ["Tile", "contact_sheet", "picture_of"]

WINDOWS = {
    # Soft tissue: fat is at -100, contrast-enhanced vessels below 240.
    "HU": (-160.0, 240.0),
    # What the liver shows is at 2, most tumours below 10.
    "SUV": (0.0, 10.0),
}
FONT_SIZE = 6.5
CHARACTERS = 30
LINE = 0.108
LARGEST = 256  # pixels along an edge: more than the sheet prints


class Tile(NamedTuple):
    """One case on a sheet.

    Attributes:
      picture: grey or RGB, 0 to 255; of no pixels where there is nothing to see.
      title: the case.
      lines: what is known about it, one line each.
      labels: mask on the pixels of the picture, 0 outside; None without.
      boxes: in pixels of the picture; None without.
      aspect: height of a pixel relative to its width.
    """

    picture: UInt8[np.ndarray, "h w c"]
    title: str
    lines: Sequence[str] = ()
    labels: Int[np.ndarray, "h w"] | None = None
    boxes: Boxes | None = None
    aspect: float = 1.0


def picture_of(
    image: Image, mask: Image | None = None
) -> tuple[UInt8[np.ndarray, "h w c"], Int[np.ndarray, "h w"], float]:
    """An image as a picture to look at, the mask on its pixels, and the aspect of a pixel.

    Of volumes: the maximum from front to back where the unit is SUV, otherwise the axial slice with most of the mask,
    the middle one without a mask. CT is shown from −160 to 240 HU, PET from 0 to 10 SUV and dark where uptake is high,
    three channels of 0 to 255 as colours, anything else between its percentiles 0.5 and 99.5. Of more channels the
    first is shown. Of large images every second, third ... pixel is taken.

    Args:
      image: `(h, w, c)` or `(d, h, w, c)`.
      mask: on the same grid; None without.

    Returns:
      The picture, the labels of its pixels (0 outside of the mask), and the height of a pixel relative to its width.

    Example:
      >>> volume = Image(np.zeros((5, 40, 30, 1)), spacing=(4.0, 2.0, 1.0))
      >>> picture, labels, aspect = picture_of(volume)
      >>> picture.shape, aspect
      ((40, 30, 1), 2.0)
    """
    values = image.values
    inside = np.zeros((*values.shape[:-1], 1), np.int64) if mask is None else mask.values[..., :1].astype(np.int64)
    spacing = image.spacing or (1.0,) * (values.ndim - 1)
    if values.ndim == 4:
        if image.unit == "SUV":
            # Seen from the front, head up: the patient's right stays on the left.
            values, inside = values.max(axis=1)[::-1], inside.max(axis=1)[::-1]
            spacing = (spacing[0], spacing[2])
        else:
            areas = np.count_nonzero(inside, axis=(1, 2, 3))
            middle = int(areas.argmax()) if areas.any() else values.shape[0] // 2
            values, inside, spacing = values[middle], inside[middle], spacing[1:]
    colours = values.shape[-1] == 3 and values.dtype == np.uint8
    shown = values if colours else values[..., :1]
    step = max(1, -(-max(shown.shape[:2]) // LARGEST))
    aspect = float(spacing[0] / spacing[1])
    if not colours:
        shown = _grey(shown.astype(np.float32), image.unit)
    return np.ascontiguousarray(shown[::step, ::step]), inside[::step, ::step, 0], aspect


def _grey(values: Shaped[np.ndarray, "h w 1"], unit: str) -> UInt8[np.ndarray, "h w 1"]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    low, high = WINDOWS.get(unit) or np.percentile(finite, (0.5, 99.5)).tolist()
    if high <= low:
        low, high = float(finite.min()), float(finite.max()) + 1.0
    scaled = np.clip((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low), 0.0, 1.0)
    return np.round(255.0 * (1.0 - scaled if unit == "SUV" else scaled)).astype(np.uint8)


def contact_sheet(tiles: Sequence[Tile], *, columns: int = 4, caption: str) -> Figure:
    """Pictures of cases side by side, each with its name, what is known about it, mask and boxes.

    Args:
      tiles: in reading order.
      columns: pictures in a row.
      caption: what is shown, with n.

    Raises:
      ValueError: no tile.

    Example:
      >>> tile = Tile(np.zeros((8, 8, 1), np.uint8), "case_0", ["benign", "age 50 years"])
      >>> contact_sheet([tile], caption="One case.").alt
      'Pictures of 1 case: case_0 (benign, age 50 years).'
    """
    if not tiles:
        raise ValueError("a contact sheet of no cases; expected at least one.")
    words = [
        [*textwrap.wrap(tile.title, CHARACTERS - 4), *(part for line in tile.lines for part in wrapped(line))]
        for tile in tiles
    ]
    width = WIDTH / columns
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    # A row is as high as its tallest picture and its longest text.
    heights = [max(_shape(tiles[k]) for k in row) * (width - 0.08) for row in rows]
    texts = [max(len(words[k]) for k in row) * LINE + 0.1 for row in rows]
    height = sum(heights) + sum(texts)

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        top = height
        for row, picture_height, text_height in zip(rows, heights, texts, strict=True):
            for place, k in enumerate(row):
                bottom = top - picture_height
                axes = figure.add_axes(
                    (
                        (place * width + 0.04) / WIDTH,
                        bottom / height,
                        (width - 0.08) / WIDTH,
                        picture_height / height,
                    )
                )
                _draw_tile(axes, palette, tiles[k])
                for number, line in enumerate(words[k]):
                    figure.text(
                        (place * width + 0.04) / WIDTH,
                        (bottom - LINE * (number + 0.85)) / height,
                        line,
                        fontsize=FONT_SIZE,
                        fontweight="bold" if number == 0 else "normal",
                        color=palette.ink if number == 0 else palette.soft,
                        parse_math=False,
                        va="baseline",
                    )
            top -= picture_height + text_height

    shown = [f"{tile.title} ({', '.join(tile.lines)})" if tile.lines else tile.title for tile in tiles]
    alt = f"Pictures of {len(tiles)} case{'' if len(tiles) == 1 else 's'}: {'; '.join(shown)}."
    return draw(plot, size=(WIDTH, height), caption=caption, alt=alt)


def wrapped(line: str) -> list[str]:
    lines = textwrap.wrap(line, CHARACTERS)
    return lines if len(lines) <= 2 else [lines[0], lines[1][: CHARACTERS - 2] + " …"]


def _shape(tile: Tile) -> float:
    """Height of the picture relative to its width; a square where there is none."""
    height, width = tile.picture.shape[:2]
    return min(2.0, height * tile.aspect / width) if tile.picture.size else 1.0


def _draw_tile(axes: Axes, palette: Palette, tile: Tile) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if not tile.picture.size:
        axes.set_facecolor(palette.rule)
        axes.text(0.5, 0.5, "not shown", ha="center", va="center", fontsize=8, color=palette.soft)
        return
    axes.set_anchor("N")
    picture = tile.picture if tile.picture.shape[-1] == 3 else np.repeat(tile.picture[..., :1], 3, axis=-1)
    axes.imshow(picture, aspect=tile.aspect, interpolation="nearest")
    if tile.labels is not None:
        for index, label in enumerate(int(value) for value in np.unique(tile.labels) if value):
            # A frame of zeros closes outlines at the border.
            inside = np.pad(tile.labels == label, 1).astype(float)
            rows, columns = (np.arange(-1, length + 1) for length in tile.labels.shape)
            colour = palette.colours[(index + 1) % len(palette.colours)]
            axes.contour(columns, rows, inside, levels=[0.5], colors=[colour], linewidths=0.9)
    if tile.boxes is not None:
        for corners, kind in zip(tile.boxes.corners, tile.boxes.classes, strict=True):
            x0, y0, x1, y1 = (float(value) - 0.5 for value in corners)  # pixel centres are whole numbers here
            # Blue and light boxes are seen on grey, on skin and on either page.
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#ffffff", linewidth=1.8))
            colour = ("#0072b2", "#d55e00", "#009e73", "#b3628f", "#c98a00")[int(kind) % 5]
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.0))
