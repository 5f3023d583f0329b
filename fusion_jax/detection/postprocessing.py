"""From a head's outputs to detections: a fixed number of boxes with class and score.

Per image; the caller maps over images. Padded and NaN rows never become detections.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Int, as_floats
from fusion_jax.detection.proposals import Proposals
from fusion_jax.ops import clip_boxes, decode_boxes, nms

__all__ = ["Detections", "paste_masks", "postprocess", "postprocess_anchors"]

MIN_SIDE = 1e-2
"""Boxes with a smaller side, in pixels, are no detections."""


class Detections(NamedTuple):
    """Found objects, by falling score.

    Attributes:
      boxes: in pixels, inside the image, shape `(n, 4)`; zeros where not `valid`.
      label: class from 0, without background, int32, shape `(n,)`.
      score: probability of that class, shape `(n,)`; 0 where not `valid`.
      valid: whether there is a detection in this place, bool, shape `(n,)`.
      source: row of the proposal or anchor that it came from, int32, shape `(n,)`; 0 where not `valid`.
    """

    boxes: Float[Array, "n 4"]
    label: Int[Array, "n"]
    score: Float[Array, "n"]
    valid: Bool[Array, "n"]
    source: Int[Array, "n"]


def postprocess(
    class_logits: Float[ArrayLike, "p k1"],
    deltas: Float[ArrayLike, "p k1 4"],
    proposals: Proposals,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    overlap: float = 0.2,
    size: int = 10,
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
) -> Detections:
    """Detections of a two-stage head: a box of its own for every class, suppressed class by class.

    A proposal can give several detections, one a class.

    Args:
      class_logits: of background and the classes, shape `(p, k + 1)`.
      deltas: for every class, background included, shape `(p, k + 1, 4)`.
      proposals: what the deltas move, `p` of them.
      image_size: height and width in pixels.
      score_threshold: probability that a detection must exceed.
      overlap: intersection over union above which the lesser box of a class goes.
      size: detections to return, over all classes.
      weights: of the box coding.

    Returns:
      `Detections`, of `size` places.

    Example:
      >>> proposals = Proposals(jnp.array([[2.0, 2.0, 8.0, 8.0]]), jnp.zeros(1), jnp.ones(1, bool))
      >>> found = postprocess(jnp.array([[0.0, 9.0, -9.0]]), jnp.zeros((1, 3, 4)), proposals, (16, 16), size=2)
      >>> found.boxes.tolist(), found.label.tolist(), found.valid.tolist()
      ([[2.0, 2.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0]], [0, 0], [True, False])

    References:
      Girshick 2015, "Fast R-CNN"; settings of MDF-Net in specs/mdf_net.md, section 4.3.
    """
    class_logits, deltas, candidates = as_floats(class_logits, deltas, proposals.boxes)
    scores = jax.nn.softmax(class_logits, axis=-1)[:, 1:]
    count, classes = scores.shape
    moved = deltas[:, 1:]
    boxes = decode_boxes(moved, jnp.broadcast_to(candidates[:, None, :], moved.shape), weights=weights)
    boxes = clip_boxes(boxes, *image_size).reshape(-1, 4)
    scores, valid = scores.reshape(-1), jnp.repeat(proposals.valid, classes)
    label, source = jnp.tile(jnp.arange(classes, dtype=jnp.int32), count), jnp.arange(count * classes) // classes
    return _best(boxes, scores, label, source.astype(jnp.int32), valid, score_threshold, overlap, size)


def postprocess_anchors(
    class_logits: Float[ArrayLike, "a k"],
    deltas: Float[ArrayLike, "a 4"],
    anchors: Float[ArrayLike, "a 4"],
    image_size: tuple[int, int],
    *,
    levels: Sequence[int],
    before: int = 1000,
    score_threshold: float = 0.05,
    overlap: float = 0.5,
    size: int = 10,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Detections:
    """Detections of a one-stage head: one box an anchor, a sigmoid for every class, suppressed class by class.

    Args:
      class_logits: of the classes, without background, shape `(a, k)`.
      deltas: of every anchor, shape `(a, 4)`.
      anchors: in pixels, shape `(a, 4)`.
      image_size: height and width in pixels.
      levels: anchors of each level, in their order.
      before: most pairs of an anchor and a class of a level that are decoded, those of the highest scores.
      score_threshold: probability that a detection must exceed.
      overlap: intersection over union above which the lesser box of a class goes, whatever its level.
      size: detections to return, over all classes.
      weights: of the box coding.

    Returns:
      `Detections`, of `size` places.

    Raises:
      ValueError: levels that do not add up to the anchors.

    Example:
      >>> anchors = jnp.array([[2.0, 2.0, 8.0, 8.0]])
      >>> logits = jnp.array([[9.0, -9.0]])
      >>> found = postprocess_anchors(logits, jnp.zeros((1, 4)), anchors, (16, 16), levels=(1,), size=1)
      >>> found.boxes.tolist(), found.label.tolist()
      ([[2.0, 2.0, 8.0, 8.0]], [0])

    References:
      Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1.
    """
    class_logits, deltas, anchors = as_floats(class_logits, deltas, anchors)
    if sum(levels) != class_logits.shape[0]:
        raise ValueError(f"levels {tuple(levels)} have {sum(levels)} anchors; expected {class_logits.shape[0]}.")
    classes = class_logits.shape[1]
    scores = jax.nn.sigmoid(class_logits).reshape(-1)
    ranked = jnp.where(jnp.isnan(scores), -1, scores)
    starts = np.cumsum([0, *levels]) * classes
    pairs = jnp.concatenate(
        [
            start + jax.lax.top_k(ranked[start : start + count * classes], min(before, count * classes))[1]
            for start, count in zip(starts.astype(np.int32), levels, strict=False)
        ]
    ).astype(jnp.int32)
    source, label = pairs // classes, pairs % classes
    boxes = clip_boxes(decode_boxes(deltas[source], anchors[source], weights=weights), *image_size)
    valid = jnp.ones(pairs.shape, bool)
    return _best(boxes, scores[pairs], label, source, valid, score_threshold, overlap, size)


def paste_masks(
    masks: Float[np.ndarray, "n y x"], boxes: Float[np.ndarray, "n 4"], height: int, width: int
) -> Float[np.ndarray, "n h w"]:
    """Masks of boxes as masks of the image, for pictures and files; on the host.

    The value at the centre of a pixel is interpolated linearly between the centres of the mask's cells, which are
    spread over the box; beyond the outermost centres it falls to 0 within one cell.

    Args:
      masks: probabilities inside each box, shape `(n, y, x)`.
      boxes: in pixels, shape `(n, 4)`; boxes without area give empty masks.
      height, width: of the image, in pixels.

    Returns:
      Probabilities, float32, shape `(n, height, width)`; above 0.5 is the object.

    Example:
      >>> pasted = paste_masks(np.ones((1, 28, 28)), np.array([[2.0, 1.0, 6.0, 3.0]]), 5, 8)
      >>> (pasted[0] > 0.5).astype(int).tolist()[1]
      [0, 0, 1, 1, 1, 1, 0, 0]
    """
    pasted = np.zeros((len(masks), height, width), np.float32)
    for place, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks, boxes, strict=True)):
        if x1 > x0 and y1 > y0:
            rows = _interpolation(y0, y1, mask.shape[0], height)
            columns = _interpolation(x0, x1, mask.shape[1], width)
            pasted[place] = rows @ mask @ columns.T
    return pasted


def _interpolation(start: float, end: float, cells: int, pixels: int) -> np.ndarray:
    """Weights of the cells between `start` and `end` at the centres of the pixels, shape `(pixels, cells)`."""
    place = (np.arange(pixels) + 0.5 - start) / (end - start) * cells - 0.5
    return np.maximum(1 - np.abs(place[:, None] - np.arange(cells)), 0)


def _best(
    boxes: Array,
    scores: Array,
    label: Array,
    source: Array,
    valid: Array,
    score_threshold: float,
    overlap: float,
    size: int,
) -> Detections:
    """The best `size` of the boxes that stay, class by class."""
    valid = valid & (scores > score_threshold) & jnp.all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=-1)
    kept = nms(boxes, scores, threshold=overlap, size=size, valid=valid, classes=label)

    def taken(values: Array) -> Array:
        there = kept.valid.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(there, values[kept.rows], 0)

    boxes, scores = jax.lax.stop_gradient((boxes, scores))
    return Detections(taken(boxes), taken(label), taken(scores), kept.valid, taken(source))
