"""Where the boxes of an image go when its places move."""

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, Bool, Float
from fusion_jax.ops import clip_boxes, warp

__all__ = ["flipped_boxes", "warped_boxes"]

SIDE_POINTS = 17
"""Points along the side of a box that follow an elastic field, both corners among them."""

ROUNDS = 12
"""Of the fixed-point search; an error shrinks by the slope of the field, which below folding is under 1."""

Moved = tuple[Float[Array, "m 4"], Bool[Array, "m"]]


def flipped_boxes(
    boxes: Float[Array, "m 4"], valid: Bool[Array, "m"], mirrored: Bool[Array, "2"], sizes: tuple[int, ...]
) -> Moved:
    """Boxes of a mirrored image, exact, and which of them are left.

    Args:
      boxes: corners in pixels, shape `(m, 4)`.
      valid: which rows are boxes, shape `(m,)`.
      mirrored: whether h and w were mirrored, shape `(2,)`.
      sizes: `(h, w)`.

    Example:
      >>> flipped_boxes(jnp.array([[1.0, 0.0, 3.0, 2.0]]), jnp.array([True]), jnp.array([False, True]), (8, 10))[0]
      Array([[7., 0., 9., 2.]], dtype=float32)
    """
    height, width = (jnp.asarray(size, boxes.dtype) for size in sizes)
    x0, y0, x1, y1 = boxes.T
    x0, x1 = jnp.where(mirrored[1], width - x1, x0), jnp.where(mirrored[1], width - x0, x1)
    y0, y1 = jnp.where(mirrored[0], height - y1, y0), jnp.where(mirrored[0], height - y0, y1)
    return _left_in_image(jnp.stack([x0, y0, x1, y1], axis=-1), valid, sizes)


def warped_boxes(
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, "m"],
    matrix: Float[Array, "2 2"],
    offset: Float[Array, "2"],
    displacement: Float[Array, "2 h w"] | None,
    sizes: tuple[int, ...],
) -> Moved:
    r"""Boxes around what the boxes of an image become, and which of them are left.

    A point :math:`p` of the image goes to the :math:`o` with :math:`A o + t + u(o) = p`, which with an elastic field is
    found as the fixed point of :math:`o = A^{-1}(p - t - u(o))`.

    Args:
      boxes: corners in pixels, shape `(m, 4)`.
      valid: which rows are boxes, shape `(m,)`.
      matrix, offset: :math:`A, t` from positions of the result to positions of the image.
      displacement: :math:`u` at the positions of the result, shape `(2, h, w)`, or None.
      sizes: `(h, w)`.

    Returns:
      boxes: cut at the border, zeros where nothing is left, shape `(m, 4)`.
      valid: which rows are boxes, shape `(m,)`.

    Example:
      >>> shift = jnp.array([0.0, -2.0])
      >>> warped_boxes(jnp.array([[1.0, 0.0, 3.0, 2.0]]), jnp.array([True]), jnp.eye(2), shift, None, (8, 10))[0]
      Array([[3., 0., 5., 2.]], dtype=float32)
    """
    along = np.linspace(0, 1, 2 if displacement is None else SIDE_POINTS)
    zeros, ones = np.zeros_like(along), np.ones_like(along)
    # Parts of height and width, once around.
    around = np.stack(
        [np.concatenate([zeros, along, ones, along]), np.concatenate([along, ones, along, zeros])], axis=-1
    )
    low = jnp.stack([boxes[:, 1], boxes[:, 0]], axis=-1)[:, None, :]
    extent = jnp.stack([boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=-1)[:, None, :]
    # A box counts the borders of pixels, positions their centres.
    points = (low + jnp.asarray(around, boxes.dtype)[None] * extent - 0.5).astype(matrix.dtype)
    inverse = jnp.linalg.inv(matrix)

    def moved(displaced: Array) -> Array:
        place = displaced - offset[None, None, :]
        return jnp.einsum("ij,mkj->mki", inverse, place, precision=jax.lax.Precision.HIGHEST)

    found = moved(points)
    if displacement is not None:
        field = jnp.moveaxis(displacement, 0, -1)

        def closer(_, guess: Array) -> Array:
            return moved(points - warp(field, jnp.moveaxis(guess, -1, 0), mode="nearest"))

        found = jax.lax.fori_loop(0, ROUNDS, closer, found)
    first, last = found.min(axis=1) + 0.5, found.max(axis=1) + 0.5
    corners = jnp.stack([first[:, 1], first[:, 0], last[:, 1], last[:, 0]], axis=-1).astype(boxes.dtype)
    return _left_in_image(corners, valid, sizes)


def _left_in_image(boxes: Float[Array, "m 4"], valid: Bool[Array, "m"], sizes: tuple[int, ...]) -> Moved:
    boxes = clip_boxes(boxes, *sizes)
    valid = valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return jnp.where(valid[:, None], boxes, 0), valid
