"""One case on its way through a detector: anchors, proposals, detections, masks and feature maps."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Num, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from fusion_jax.ops import box_iou
from fusion_jax.reporting.detection.marks import (
    Marks,
    checked_marks,
    class_handles,
    draw_marks,
    draw_picture,
    kept_marks,
    told_marks,
)
from fusion_jax.reporting.figure_parts import draw_literally
from fusion_jax.reporting.figures import WIDTH, Palette
from fusion_jax.reporting.html import Figure, format_number

__all__ = ["best_anchors", "stage_figure"]

COLUMNS = 3
GAP = 0.08
TITLE = 0.33
"""Height of the two lines above a panel, inches."""
FONT_SIZE = 7.0
MOST_PROPOSALS = 60
"""Proposals that are drawn: of more, nothing of the image is seen."""

Panel = tuple[str, str, Callable[[Axes], None]]
"""Title, second line, and what fills the panel."""


def best_anchors(anchors: Num[np.ndarray, "a 4"], truth: Marks) -> Marks:
    """For every box that is there the anchor that overlaps it most, with the overlap (IoU) as its score.

    Args:
      anchors: from `fusion_jax.detection.make_anchors`, in the pixels of the boxes.
      truth: boxes that are there.

    Raises:
      ValueError: no anchor.

    Example:
      >>> anchors = np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 8.0, 8.0]])
      >>> found = best_anchors(anchors, Marks(np.array([[0.0, 0.0, 8.0, 6.0]]), np.array([2])))
      >>> found.boxes.tolist(), found.label.tolist(), found.score.tolist()
      ([[0.0, 0.0, 8.0, 8.0]], [2], [0.75])
    """
    if not len(anchors):
        raise ValueError("the best of no anchors; expected at least one.")
    if not len(truth.boxes):
        return Marks(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    overlaps = np.asarray(box_iou(np.asarray(truth.boxes, np.float32), np.asarray(anchors, np.float32)))
    return Marks(anchors[overlaps.argmax(axis=1)], truth.label, overlaps.max(axis=1))


def stage_figure(
    picture: UInt8[np.ndarray, "h w c"],
    *,
    classes: Sequence[str],
    size: tuple[int, int] | None = None,
    truth: Marks | None = None,
    anchors: Marks | None = None,
    proposals: Num[np.ndarray, "p 4"] | None = None,
    objectness: Num[np.ndarray, "p"] | None = None,
    detections: Marks | None = None,
    maps: Mapping[str, Num[np.ndarray, "_ _ _"]] | None = None,
    spatialised: Num[np.ndarray, "_ _ _"] | None = None,
    caption: str,
) -> Figure:
    """What a detector does with one case, stage by stage; stages that are not given are left out.

    Args:
      picture: grey or RGB, 0 to 255, of any resolution.
      classes: names, in the order of the labels.
      size: height and width in the pixels that boxes are told in; those of the picture unless given.
      truth: boxes that are there.
      anchors: from `best_anchors`: what the box regression starts from.
      proposals: boxes of the region proposal network after suppression, shape `(p, 4)`; the 60 of the highest
        objectness are drawn, the more opaque the higher.
      objectness: of the proposals, any scale, shape `(p,)`; proposals are in falling order of it unless given.
      detections: after the suppression within each class; their masks have a panel of their own.
      maps: name to feature map, `(h, w, c)`; the root mean square over the channels is shown, on a scale of its own.
      spatialised: the map that the clinical values became, `(h, w, c)`; three channels are shown as colours.
      caption: says which case and model.

    Raises:
      ValueError: no stage at all, or labels beyond the classes.

    Example:
      >>> box = np.array([[2.0, 2.0, 6.0, 6.0]])
      >>> stage_figure(
      ...     np.zeros((8, 8, 1), np.uint8), classes=["nodule"], truth=Marks(box, np.array([0])),
      ...     anchors=Marks(box + 1, np.array([0]), np.array([0.39])), caption="Case 7.",
      ... ).alt
      'Stages of a detector: truth (nodule); best anchors (overlap 0.390 to 0.390).'
    """
    pixels = size or (picture.shape[0], picture.shape[1])
    many = len(classes) > 1
    panels: list[Panel] = []
    told: list[str] = []

    def over(*layers: tuple[Marks, dict]) -> Callable[[Axes], None]:
        def fill(axes: Axes) -> None:
            draw_picture(axes, picture, pixels)
            for marks, style in layers:
                draw_marks(axes, marks, pixels, numbered=many, **style)

        return fill

    there = [] if truth is None else [(checked_marks(truth, classes, "truth"), {"dashed": True})]
    silent = [(marks, style | {"text": False}) for marks, style in there]
    if truth is not None:
        panels.append(("Truth", _boxes(truth), over(*there)))
        told.append(f"truth ({told_marks(truth, classes)})")
    if anchors is not None and anchors.score is not None:
        checked_marks(anchors, classes, "anchors")
        line, words = _ends(anchors.score, "overlap")
        panels.append(("Best anchor of each box", line, over(*silent, (anchors, {}))))
        told.append(f"best anchors ({words})")
    if proposals is not None:
        panels.append(_proposal_panel(proposals, objectness, over, silent))
        told.append(f"{len(proposals)} proposals")
    if detections is not None:
        found = kept_marks(checked_marks(detections, classes, "detections"))
        panels.append(("Detections", _boxes(found), over(*silent, (found._replace(masks=None), {}))))
        told.append(f"detections ({told_marks(found, classes)})")
        if found.masks is not None:
            panels.append(("Masks", "probability 0.5 and more", over((found, {"text": False}))))
    for name, values in (maps or {}).items():
        line, fill = _map_panel(np.asarray(values, np.float32))
        panels.append((name, line, fill))
        told.append(f"{name} ({line})")
    if spatialised is not None:
        values = np.asarray(spatialised, np.float32)
        line, fill = _colour_panel(values) if values.shape[-1] == 3 else _map_panel(values)
        panels.append(("Clinical values, spatialised", line, fill))
        told.append(f"spatialised clinical values ({line})")
    if not panels:
        raise ValueError("a picture of no stage; give at least one of truth, anchors, proposals, detections and maps.")

    width = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    own = width * min(1.6, pixels[0] / pixels[1])
    rows = -(-len(panels) // COLUMNS)
    legend = 0.145 * -(-len(classes) // 2) + 0.1 if many else 0.0
    height = legend + rows * (own + TITLE)

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        if many:
            handles, texts = class_handles(palette, classes)
            figure.legend(
                handles, texts, loc="upper left", ncols=2, fontsize=FONT_SIZE, borderaxespad=0.1, labelspacing=0.35
            )
        for number, (title, line, fill) in enumerate(panels):
            row, place = divmod(number, COLUMNS)
            left, top = place * (width + GAP) / WIDTH, height - legend - row * (own + TITLE)
            figure.text(left, (top - 0.13) / height, title, fontsize=FONT_SIZE, fontweight="bold")
            figure.text(left, (top - 0.26) / height, line, fontsize=FONT_SIZE - 0.5, color=palette.soft)
            axes = figure.add_axes((left, (top - TITLE - own) / height, width / WIDTH, own / height))
            fill(axes)

    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=f"Stages of a detector: {'; '.join(told)}.")


def _boxes(marks: Marks) -> str:
    count = len(marks.boxes)
    return f"{count} box{'' if count == 1 else 'es'}"


def _ends(values: Num[np.ndarray, "n"], what: str) -> tuple[str, str]:
    """The smallest and largest of some values, for a panel and for a description."""
    known = np.asarray(values, float)
    if not known.size:
        return "no box", "no box"
    text = f"{what} {format_number(float(known.min()))} to {format_number(float(known.max()))}"
    return text, text


def _proposal_panel(
    proposals: Num[np.ndarray, "p 4"],
    objectness: Num[np.ndarray, "p"] | None,
    over: Callable[..., Callable[[Axes], None]],
    silent: list,
) -> Panel:
    boxes = np.asarray(proposals, float)
    falling = -np.arange(len(boxes)) if objectness is None else np.asarray(objectness, float)
    order = np.argsort(-falling, kind="stable")[:MOST_PROPOSALS]
    # By rank: objectness has no scale that would hold for all detectors.
    opacity = np.linspace(1.0, 0.2, max(1, len(order)))[: len(order)]
    marks = Marks(boxes[order], np.full(len(order), 5))
    drawn = f"the first {len(order)} of {len(boxes):,}" if len(order) < len(boxes) else f"{len(boxes)}"
    return "Proposals", f"{drawn}, by objectness", over((marks, {"text": False, "opacity": opacity}), *silent)


def _map_panel(values: Float[np.ndarray, "h w c"]) -> tuple[str, Callable[[Axes], None]]:
    """The root mean square over the channels."""
    strength = np.sqrt(np.mean(np.square(values), axis=-1))
    low, high = float(strength.min()), float(strength.max())
    line = f"{' × '.join(map(str, values.shape))}, {format_number(low)} to {format_number(high)}"

    def fill(axes: Axes) -> None:
        _bare(axes)
        axes.imshow(
            strength,
            cmap=mpl.colormaps["cividis"],
            vmin=low,
            vmax=high if high > low else low + 1.0,
            interpolation="nearest",
            aspect="auto",
        )

    return line, fill


def _colour_panel(values: Float[np.ndarray, "h w 3"]) -> tuple[str, Callable[[Axes], None]]:
    """Three channels as red, green and blue, each between its ends."""
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    colours = (values - low) / np.where(high > low, high - low, 1.0)
    line = (
        f"{' × '.join(map(str, values.shape))}, {format_number(float(low.min()))} to {format_number(float(high.max()))}"
    )

    def fill(axes: Axes) -> None:
        _bare(axes)
        axes.imshow(colours, interpolation="nearest", aspect="auto")

    return line, fill


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
