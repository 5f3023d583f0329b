"""Boxes that follow the preprocessing of their image, as far as sizes alone tell where its pixels go."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.cohort import Boxes
from fusion_jax.data.images.pipeline import Step

__all__ = ["check_moves", "move_boxes", "moved_boxes", "moves_pixels"]

STILL = frozenset(
    {
        "clip_percentiles",
        "min_max",
        "normalise_channels",
        "repeat_channels",
        "scale_suv",
        "stack_channels",
        "standardise",
        "window",
    }
)
"""Operations after which every pixel is where it was."""

FOLLOWED = ("crop_or_pad", "flip", "resize")
"""Operations whose effect on a box follows from sizes; a crop around a mask would have to read the mask."""


def moves_pixels(steps: Iterable[Step]) -> bool:
    """Whether pixels are elsewhere after the steps.

    Example:
      >>> moves_pixels([{"op": "window", "low": 0, "high": 1}]), moves_pixels([{"op": "flip", "axis": "w"}])
      (False, True)
    """
    return any(step["op"] not in STILL for step in steps)


def check_moves(steps: Iterable[Step], where: str) -> None:
    """Refuse steps that boxes cannot follow.

    Raises:
      ValueError: naming place and operation.
    """
    for number, step in enumerate(steps):
        if step["op"] not in STILL and (step["op"] not in FOLLOWED or "mask" in step):
            raise ValueError(
                f"{where}[{number}]: boxes do not follow {step['op']!r}{' around a mask' if 'mask' in step else ''}; "
                f"expected {', '.join(FOLLOWED)} without a mask. Apply the step to files and boxes beforehand."
            )


def moved_boxes(
    boxes: Sequence[Boxes],
    steps: Iterable[Step],
    present: Bool[np.ndarray, "n"],
    shape: Callable[[int], Sequence[int]],
) -> list[Boxes]:
    """Boxes of every case on its image after the steps.

    Args:
      boxes: one entry a case, in pixels of the image before the steps.
      steps: of the image, checked by `check_moves`.
      present: whether each case has the image, shape `(n,)`; boxes of the others stay as they are.
      shape: from a row to rows and columns of its image before the steps; asked only where there are boxes to move.
    """
    steps = tuple(steps)
    if not moves_pixels(steps):
        return list(boxes)
    return [
        move_boxes(own, steps, shape(row)) if present[row] and len(own.corners) else own
        for row, own in enumerate(boxes)
    ]


def move_boxes(boxes: Boxes, steps: Iterable[Step], shape: Sequence[int]) -> Boxes:
    """Boxes on an image after its steps; what is cut off is cut off them, and boxes without a rest are left out.

    Args:
      boxes: in pixels of the image before the steps; a box around the pixels of columns 3 and 4 is `(3, y0, 5, y1)`.
      steps: checked by `check_moves`.
      shape: rows and columns of the image before the steps.

    Example:
      >>> boxes = Boxes(np.array([[2.0, 1.0, 4.0, 3.0]]), np.array([0]))
      >>> move_boxes(boxes, [{"op": "flip", "axis": "w"}, {"op": "resize", "size": 16}], (8, 8)).corners.tolist()
      [[8.0, 2.0, 12.0, 6.0]]
    """
    rows, columns = (int(size) for size in shape)
    corners = np.array(boxes.corners, float)
    for step in steps:
        if step["op"] == "flip":
            if step["axis"] == "w":
                corners = np.stack([columns - corners[:, 2], corners[:, 1], columns - corners[:, 0], corners[:, 3]], 1)
            else:
                corners = np.stack([corners[:, 0], rows - corners[:, 3], corners[:, 2], rows - corners[:, 1]], 1)
            continue
        if step["op"] in STILL:
            continue
        size = step["size"]
        new_rows, new_columns = (size, size) if isinstance(size, int) else size
        if step["op"] == "resize":
            corners = corners * np.tile([new_columns / columns, new_rows / rows], 2)
        else:  # as in `crop_or_pad`: the first pixel of the window
            middle = np.array(step.get("centre") or ((rows - 1) / 2, (columns - 1) / 2))
            start = np.floor(middle - (np.array([new_rows, new_columns]) - 1) / 2 + 0.5)
            corners = corners - np.tile(start[::-1], 2)
        rows, columns = int(new_rows), int(new_columns)
        corners = np.clip(corners, 0, np.tile([columns, rows], 2))
    left = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return Boxes(corners[left], boxes.classes[left])
