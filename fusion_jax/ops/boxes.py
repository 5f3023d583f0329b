r"""Boxes in an image: area, overlap, clipping, coding relative to anchors, and conversion between conventions.

A box is :math:`(x_0, y_0, x_1, y_1)` in pixels, continuous, so that its width is :math:`x_1 - x_0`. A box without width
or height is degenerate: its area and its overlap with anything are 0, and gradients through it are finite. Padded rows
can therefore hold zeros. NaN coordinates are no degenerate boxes; they give NaN, so that a diverged head is seen.

Half precision is widened (a bfloat16 coordinate above 256 is off by a pixel): results are at least single precision.
"""

import math
from typing import Literal

import jax.numpy as jnp

from fusion_jax.arrays import Array, ArrayLike, Float, Num, as_floats

__all__ = [
    "BoxConvention",
    "box_area",
    "box_giou",
    "box_iobb",
    "box_iou",
    "clip_boxes",
    "convert_boxes",
    "decode_boxes",
    "encode_boxes",
]

BoxConvention = Literal["xyxy", "xywh", "cxcywh"]
"""Two corners; upper left corner and extents; centre and extents."""


def box_area(boxes: Float[ArrayLike, "*b 4"]) -> Float[Array, "*b"]:
    r"""Area :math:`\max(x_1 - x_0, 0) \max(y_1 - y_0, 0)`, in square pixels; 0 for degenerate boxes.

    Example:
      >>> box_area(jnp.array([[0.0, 0.0, 4.0, 2.0], [3.0, 3.0, 1.0, 1.0]])).tolist()
      [8.0, 0.0]
    """
    x0, y0, x1, y1 = _coordinates(boxes)
    return jnp.maximum(x1 - x0, 0) * jnp.maximum(y1 - y0, 0)


def clip_boxes(boxes: Float[ArrayLike, "*b 4"], height: Num[ArrayLike, ""], width: Num[ArrayLike, ""]) -> Array:
    """Boxes cut at the border of an image of `height` by `width` pixels, with the shape of `boxes`.

    A box that lies outside becomes degenerate.

    Example:
      >>> clip_boxes(jnp.array([-5.0, 2.0, 30.0, 8.0]), height=10, width=20).tolist()
      [0.0, 2.0, 20.0, 8.0]
    """
    boxes, height, width = as_floats(boxes, height, width)
    x0, y0, x1, y1 = _coordinates(boxes)
    clipped = jnp.clip(x0, 0, width), jnp.clip(y0, 0, height), jnp.clip(x1, 0, width), jnp.clip(y1, 0, height)
    return jnp.stack(clipped, axis=-1)


def box_iou(a: Float[ArrayLike, "*b m 4"], b: Float[ArrayLike, "*b n 4"]) -> Float[Array, "*b m n"]:
    r"""Intersection over union :math:`|a \cap b| / |a \cup b|` of every pair of boxes, in [0, 1].

    Args:
      a, b: boxes in pixels, shapes `(…, m, 4)` and `(…, n, 4)` with the same leading axes.

    Returns:
      Overlap, shape `(…, m, n)`; 0 where either box is degenerate.

    Example:
      >>> box_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]])).tolist()
      [[0.5, 0.0]]
    """
    intersection, area_a, area_b, _ = _overlaps(*as_floats(a, b))
    return _ratio(intersection, area_a + area_b - intersection)


def box_iobb(predicted: Float[ArrayLike, "*b m 4"], truth: Float[ArrayLike, "*b n 4"]) -> Float[Array, "*b m n"]:
    r"""Intersection over the predicted box, :math:`|p \cap t| / |p|`, of every pair, in [0, 1]; not symmetric.

    1 for any prediction inside the truth, however small: it rewards small boxes and says nothing of coverage.

    Args:
      predicted: boxes whose area divides, in pixels, shape `(…, m, 4)`.
      truth: boxes of the reference, shape `(…, n, 4)`, the same leading axes.

    Returns:
      Overlap, shape `(…, m, n)`; 0 where either box is degenerate.

    Example:
      >>> box_iobb(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 9.0, 9.0]])).tolist()
      [[0.5, 1.0]]

    References:
      Hsieh et al., MDF-Net; specs/mdf_net.md, section 3.
    """
    intersection, area, _, _ = _overlaps(*as_floats(predicted, truth))
    return _ratio(intersection, jnp.broadcast_to(area, intersection.shape))


def box_giou(a: Float[ArrayLike, "*b m 4"], b: Float[ArrayLike, "*b n 4"]) -> Float[Array, "*b m n"]:
    r"""Generalised intersection over union of every pair of boxes, in (-1, 1].

    .. math:: \mathrm{GIoU} = \mathrm{IoU} - \frac{|h| - |a \cup b|}{|h|}

    with the smallest box :math:`h` around both. Unlike IoU it has a gradient where the boxes do not meet.

    Args:
      a, b: boxes in pixels, shapes `(…, m, 4)` and `(…, n, 4)` with the same leading axes.

    Returns:
      Overlap, shape `(…, m, n)`. Two degenerate boxes whose hull has no area give 0.

    Example:
      >>> box_giou(jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[0.0, 0.0, 1.0, 1.0], [3.0, 0.0, 4.0, 1.0]])).tolist()
      [[1.0, -0.5]]

    References:
      Rezatofighi et al. 2019, "Generalized Intersection over Union", Algorithm 1.
    """
    intersection, area_a, area_b, hull = _overlaps(*as_floats(a, b))
    union = area_a + area_b - intersection
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def encode_boxes(
    boxes: Float[ArrayLike, "*b 4"],
    anchors: Float[ArrayLike, "*b 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b 4"]:
    r"""Boxes relative to their anchors, as the regression target of a detector.

    .. math:: (w_x \tfrac{c_x - a_x}{a_w},\; w_y \tfrac{c_y - a_y}{a_h},\; w_w \log\tfrac{b_w}{a_w},\;
              w_h \log\tfrac{b_h}{a_h})

    Args:
      boxes: boxes in pixels, shape `(…, 4)`.
      anchors: an anchor or proposal for each box, the same shape.
      weights: factors :math:`w`; MDF-Net has (1, 1, 1, 1) for its proposals and (10, 10, 5, 5) for its head.

    Returns:
      Deltas (dx, dy, dw, dh), shape `(…, 4)`, finite for finite boxes: an extent of a box or an anchor that is not
      above the spacing of the dtype at 1 is coded as 1 pixel, with no gradient into that extent.

    Example:
      >>> encode_boxes(jnp.array([2.0, 0.0, 6.0, 4.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
      [0.5, 0.0, 0.0, 0.0]

    References:
      Girshick et al. 2014, appendix C; the weights of specs/mdf_net.md, section 3.
    """
    boxes, anchors = as_floats(boxes, anchors)
    x, y, width, height = _centre_and_extent(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_extent(anchors)
    deltas = (
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        jnp.log(width) - jnp.log(anchor_width),
        jnp.log(height) - jnp.log(anchor_height),
    )
    return jnp.stack([factor * delta for factor, delta in zip(weights, deltas, strict=True)], axis=-1)


def decode_boxes(
    deltas: Float[ArrayLike, "*b 4"],
    anchors: Float[ArrayLike, "*b 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    limit: float = math.log(1000 / 16),
) -> Float[Array, "*b 4"]:
    """Boxes from the deltas of `encode_boxes`, not clipped to any image.

    Args:
      deltas: (dx, dy, dw, dh), shape `(…, 4)`.
      anchors: an anchor or proposal for each delta, in pixels, the same shape.
      weights: the factors given to `encode_boxes`.
      limit: largest logarithm of an extent relative to its anchor; beyond it the gradient is zero. It keeps the
        exponential of an untrained head finite; boxes more than 62.5 times their anchor do not come back.

    Returns:
      Boxes in pixels, shape `(…, 4)`.

    Example:
      >>> decode_boxes(jnp.array([0.5, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
      [2.0, 0.0, 6.0, 4.0]
    """
    deltas, anchors = as_floats(deltas, anchors)
    dx, dy, dw, dh = (delta / factor for delta, factor in zip(_coordinates(deltas), weights, strict=True))
    x, y, width, height = _centre_and_extent(anchors)
    x, y = x + dx * width, y + dy * height
    half_width = 0.5 * width * jnp.exp(jnp.minimum(dw, limit))
    half_height = 0.5 * height * jnp.exp(jnp.minimum(dh, limit))
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def convert_boxes(boxes: Float[ArrayLike, "*b 4"], source: BoxConvention, target: BoxConvention) -> Array:
    """Boxes of one convention in another, with the shape of `boxes`.

    Args:
      boxes: shape `(…, 4)`, pixels.
      source, target: "xyxy" two corners, "xywh" upper left corner and extents (COCO), "cxcywh" centre and extents.

    Raises:
      ValueError: an unknown convention.

    Example:
      >>> convert_boxes(jnp.array([2.0, 4.0, 6.0, 5.0]), "xyxy", "cxcywh").tolist()
      [4.0, 4.5, 4.0, 1.0]
    """
    for name, value in (("source", source), ("target", target)):
        if value not in ("xyxy", "xywh", "cxcywh"):
            raise ValueError(f"{name} is {value!r}; expected 'xyxy', 'xywh' or 'cxcywh'.")
    (boxes,) = as_floats(boxes)
    if source == target:
        return boxes
    x, y, right, lower = _coordinates(boxes)
    if source == "xywh":
        right, lower = x + right, y + lower
    elif source == "cxcywh":
        half_width, half_height = 0.5 * right, 0.5 * lower
        x, y, right, lower = x - half_width, y - half_height, x + half_width, y + half_height
    if target == "xywh":
        right, lower = right - x, lower - y
    elif target == "cxcywh":
        x, y, right, lower = 0.5 * (x + right), 0.5 * (y + lower), right - x, lower - y
    return jnp.stack([x, y, right, lower], axis=-1)


def _coordinates(boxes: ArrayLike) -> tuple[Array, Array, Array, Array]:
    (boxes,) = as_floats(boxes)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _centre_and_extent(boxes: Array) -> tuple[Array, Array, Array, Array]:
    """Centre, and extents in which degenerate ones are 1."""
    x0, y0, x1, y1 = _coordinates(boxes)
    width, height = (
        # Not `extent > eps`: NaN must not turn into 1.
        jnp.where(extent <= jnp.finfo(extent.dtype).eps, 1, extent)
        for extent in (x1 - x0, y1 - y0)
    )
    return 0.5 * (x0 + x1), 0.5 * (y0 + y1), width, height


def _overlaps(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Intersection `(…, m, n)`, areas `(…, m, 1)` and `(…, 1, n)`, and area of the hull `(…, m, n)` of every pair."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    ax0, ay0, ax1, ay1 = _coordinates(a)
    bx0, by0, bx1, by1 = _coordinates(b)
    width = jnp.minimum(ax1, bx1) - jnp.maximum(ax0, bx0)
    height = jnp.minimum(ay1, by1) - jnp.maximum(ay0, by0)
    hull_width = jnp.maximum(ax1, bx1) - jnp.minimum(ax0, bx0)
    hull_height = jnp.maximum(ay1, by1) - jnp.minimum(ay0, by0)
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    hull = jnp.maximum(hull_width, 0) * jnp.maximum(hull_height, 0)
    return intersection, box_area(a), box_area(b), hull


def _ratio(part: Array, whole: Array) -> Array:
    """`part / whole`, 0 with zero gradients where `whole` is 0; NaN stays."""
    empty = whole <= 0
    return jnp.where(empty, 0, part / jnp.where(empty, 1, whole))
