"""Several images of one case as the channels of one: on a shared grid, or about a lesion that moved between them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import linear_weights
from fusion_jax.data.images.operation import Count, NonNegative, operation
from fusion_jax.data.images.slices import largest_position, plane
from fusion_jax.data.images.voxels import as_floats, inside, same_grid

__all__ = ["align_phases", "lesion_box", "stack_channels", "stack_phases"]


@operation
def stack_channels(image: Image, others: Sequence[Image]) -> Image:
    """Images on one grid as the channels of one image.

    Args:
      image: shape `(*space, c)`, the first channels.
      others: on the same grid, in the order of the channels.

    Returns:
      Shape `(*space, c + ...)` with the place of the first; its unit if all have it, else none.

    Raises:
      ValueError: an image lies on another grid.

    Example:
      >>> one, two = Image(np.zeros((2, 2, 1))), Image(np.ones((2, 2, 1)))
      >>> stack_channels(one, [two]).values[0, 0].tolist()
      [0.0, 1.0]
    """
    for number, other in enumerate(others, start=1):
        if not same_grid(image, other):
            raise ValueError(
                f"image {number} of those to stack, of shape {other.values.shape[:-1]}, lies on another grid than the "
                f"first, of shape {image.values.shape[:-1]}; expected one. Use `onto` first, or `align_phases`."
            )
    units = {image.unit, *(other.unit for other in others)}
    values = np.concatenate([image.values, *(other.values for other in others)], axis=-1)
    return image._replace(values=values, unit=image.unit if len(units) == 1 else "")


def stack_phases(
    phases: Sequence[Image],
    boxes: Float[np.ndarray, "p 4"],
    *,
    size: int | tuple[int, int],
    margin: float = 0.0,
) -> Image:
    r"""A lesion in several phases, aligned by the centres of its boxes, as channels.

    Translation only: every phase is read in a window of the same size, the largest width and the largest height of the
    boxes plus the margin, centred on its own box. One linear interpolation, smoothed where the window shrinks as in
    `resize`, reads the window to `size`; its aspect is not kept. Pixels just outside the window count at its rim, and
    beyond the border of an image the edge value goes on.

    Args:
      phases: images in the plane, shape `(h, w, c)`, of one spacing; in the order of the channels.
      boxes: lesion in each phase, `(x0, y0, x1, y1)` in pixels: a box around the pixels of columns 3 and 4 is
        `(3, y0, 5, y1)`.
      size: rows and columns of the result.
      margin: pixels to add on every side.

    Returns:
      Shape `(*size, sum of channels)`; the unit if all phases have one.

    Raises:
      ValueError: a volume; another number of boxes than phases; a box without area; differing spacings.

    Example:
      >>> early = np.zeros((8, 8, 1))
      >>> early[2:4, 2:4] = 1
      >>> late = np.roll(early, (1, 3), axis=(0, 1))  # the lesion one row down, three columns right
      >>> boxes = np.array([[2.0, 2.0, 4.0, 4.0], [5.0, 3.0, 7.0, 5.0]])
      >>> stacked = stack_phases([Image(early), Image(late)], boxes, size=2)
      >>> stacked.values.shape, float(stacked.values.min())
      ((2, 2, 2), 1.0)

    References:
      Wang W. et al. 2020; specs/hcc_fusion.md, 2. The size of the window is our reading: with a window of its own size
      in each phase the lesion would be scaled as well.
    """
    _check_phases(phases, boxes)
    height, width = (size, size) if isinstance(size, int) else size
    extent = (boxes[:, 2:] - boxes[:, :2]).max(axis=0) + 2 * margin
    columns = []
    for phase, (x0, y0, x1, y1) in zip(phases, boxes, strict=True):
        values = as_floats(phase)
        start_x, start_y = (x0 + x1 - extent[0]) / 2, (y0 + y1 - extent[1]) / 2
        down = linear_weights(values.shape[0], height, start_y, extent[1], antialias=True).astype(values.dtype)
        across = linear_weights(values.shape[1], width, start_x, extent[0], antialias=True).astype(values.dtype)
        columns.append(np.einsum("ih,jw,hwc->ijc", down, across, values, optimize=True))
    units = {phase.unit for phase in phases}
    spacing = phases[0].spacing
    if spacing is not None:
        spacing = (float(spacing[0] * extent[1] / height), float(spacing[1] * extent[0] / width))
    return Image(np.concatenate(columns, axis=-1), spacing, None, units.pop() if len(units) == 1 else "")


@operation
def align_phases(
    image: Image,
    others: Sequence[Image],
    masks: Sequence[Image],
    *,
    size: Count | tuple[Count, ...],
    margin: NonNegative = 0.0,
) -> Image:
    """`stack_phases` with boxes around masks, each phase in the slice where its mask is largest if it is a volume.

    Args:
      image: first phase, `(h, w, c)` or `(d, h, w, c)`.
      others: further phases, in the order of the channels.
      masks: lesion of every phase, that of `image` first; each on the grid of its phase, or elsewhere with affines.
      size: rows and columns of the result.
      margin: pixels to add on every side of the largest box.

    Raises:
      ValueError: another number of masks than phases; a mask that is empty or on another grid; differing spacings.

    Example:
      >>> phase = Image(np.arange(16.0).reshape(4, 4, 1))
      >>> mask = Image(np.isin(phase.values, (5, 6, 9, 10)), unit="label")
      >>> align_phases(phase, [phase], [mask, mask], size=2).values[..., 1].tolist()
      [[5.0, 6.0], [9.0, 10.0]]
    """
    phases = [image, *others]
    if len(masks) != len(phases):
        raise ValueError(
            f"{len(masks)} masks for {len(phases)} phases; expected one each, that of the first phase first."
        )
    planes, boxes = [], []
    for phase, mask in zip(phases, masks, strict=True):
        chosen = inside(phase, mask)
        if chosen.ndim == 3:
            position = largest_position(chosen)
            phase, chosen = plane(phase, position), chosen[position]
        planes.append(phase)
        boxes.append(lesion_box(chosen))
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    if len(height_width) != 2:
        raise ValueError(f"size holds {len(height_width)} numbers; expected rows and columns.")
    return stack_phases(planes, np.array(boxes), size=height_width, margin=margin)


def lesion_box(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    """Box around a mask in the plane, `(x0, y0, x1, y1)` in pixels: the outer faces of its outermost pixels.

    Raises:
      ValueError: the mask is empty.

    Example:
      >>> lesion_box(np.array([[False, True, True]])).tolist()
      [1.0, 0.0, 3.0, 1.0]
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("the mask is empty; expected at least one pixel.")
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


def _check_phases(phases: Sequence[Image], boxes: Float[np.ndarray, "p 4"]) -> None:
    if len(phases) != len(boxes) or not len(phases):
        raise ValueError(f"{len(boxes)} boxes for {len(phases)} phases; expected one each.")
    for number, (phase, box) in enumerate(zip(phases, boxes, strict=True)):
        if phase.values.ndim != 3:
            raise ValueError(f"phase {number} has shape {phase.values.shape}; expected a slice (h, w, c).")
        if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"the box of phase {number} is {box.tolist()}; expected x0 < x1 and y0 < y1 in pixels.")
        centre = (box[:2] + box[2:]) / 2
        if not ((centre >= 0).all() and (centre <= phase.values.shape[1::-1]).all()):
            raise ValueError(
                f"the box of phase {number}, {box.tolist()}, is centred outside its image of "
                f"{phase.values.shape[1]} × {phase.values.shape[0]} pixels."
            )
        first = phases[0].spacing
        if phase.spacing is not None and first is not None and not np.allclose(phase.spacing, first, rtol=1e-3):
            raise ValueError(
                f"phase {number} has the spacing {phase.spacing} mm, phase 0 {first} mm; expected one spacing, since "
                "phases are only moved. Use `resample` first."
            )
