"""Proposals: the boxes that the first stage hands to the second, in a fixed number.

Per image; the caller maps over images. No gradient passes: the first stage learns from its own losses.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, as_floats
from fusion_jax.ops import clip_boxes, decode_boxes, nms

__all__ = ["Proposals", "add_truth", "propose"]


class Proposals(NamedTuple):
    """Boxes that may hold an object, by falling score.

    Attributes:
      boxes: in pixels, inside the image, shape `(p, 4)`; zeros where not `valid`.
      score: logit that there is an object, shape `(p,)`; 0 where not `valid` and for truth boxes.
      valid: whether there is a proposal in this place, bool, shape `(p,)`.
    """

    boxes: Float[Array, "p 4"]
    score: Float[Array, "p"]
    valid: Bool[Array, "p"]


def propose(
    objectness: Float[ArrayLike, "a"],
    deltas: Float[ArrayLike, "a 4"],
    anchors: Float[ArrayLike, "a 4"],
    image_size: tuple[int, int],
    *,
    levels: Sequence[int],
    before: int,
    after: int,
    overlap: float,
    min_side: float = 1e-3,
) -> Proposals:
    """The best boxes of the first stage: moved anchors, cut at the border, without those that a better one overlaps.

    Args:
      objectness: logit of every anchor, shape `(a,)`. Anchors whose logit or deltas are NaN propose nothing.
      deltas: of every anchor, coded with weights (1, 1, 1, 1), shape `(a, 4)`.
      anchors: in pixels, shape `(a, 4)`.
      image_size: height and width in pixels.
      levels: anchors of each level, in their order (`anchors_per_level`). Levels do not suppress each other.
      before: most anchors of a level that are decoded, those of the highest logits.
      after: proposals to return.
      overlap: intersection over union above which the lesser box goes.
      min_side: boxes with a smaller side, in pixels, are dropped.

    Returns:
      `Proposals`, of `after` places.

    Raises:
      ValueError: levels that do not add up to the anchors, or counts below 1.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 40.0, 40.0]])
      >>> found = propose(
      ...     jnp.array([1.0, 2.0, 0.5]),
      ...     jnp.zeros((3, 4)),
      ...     anchors,
      ...     (32, 32),
      ...     levels=(3,),
      ...     before=3,
      ...     after=3,
      ...     overlap=0.3,
      ... )
      >>> found.boxes.tolist(), found.valid.tolist()
      ([[0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 32.0, 32.0], [0.0, 0.0, 0.0, 0.0]], [True, True, False])

    References:
      Ren et al. 2015, "Faster R-CNN", section 3.1; settings of MDF-Net in specs/mdf_net.md, section 4.3.
    """
    objectness, deltas, anchors = jax.lax.stop_gradient(as_floats(objectness, deltas, anchors))
    if sum(levels) != objectness.shape[0]:
        raise ValueError(
            f"levels {tuple(levels)} have {sum(levels)} anchors; expected {objectness.shape[0]}, one a logit."
        )
    if before < 1 or after < 1:
        raise ValueError(f"before is {before} and after {after}; expected at least 1 of each.")
    usable = jnp.isfinite(objectness) & jnp.all(jnp.isfinite(deltas), axis=-1)
    ranked = jnp.where(usable, objectness, -jnp.inf)
    starts = np.cumsum([0, *levels])
    rows = jnp.concatenate(
        [
            start + jax.lax.top_k(ranked[start : start + count], min(before, count))[1].astype(jnp.int32)
            for start, count in zip(starts.astype(np.int32), levels, strict=False)
        ]
    )
    level = np.repeat(np.arange(len(levels), dtype=np.int32), [min(before, count) for count in levels])
    usable = usable[rows]
    boxes = clip_boxes(decode_boxes(jnp.where(usable[:, None], deltas[rows], 0), anchors[rows]), *image_size)
    usable &= jnp.all(boxes[:, 2:] - boxes[:, :2] >= min_side, axis=-1)
    kept = nms(boxes, objectness[rows], threshold=overlap, size=after, valid=usable, classes=level)
    return Proposals(
        jnp.where(kept.valid[:, None], boxes[kept.rows], 0),
        jnp.where(kept.valid, objectness[rows][kept.rows], 0),
        kept.valid,
    )


def add_truth(proposals: Proposals, truth: Float[ArrayLike, "m 4"], truth_valid: Bool[ArrayLike, "m"]) -> Proposals:
    """Proposals with the truth boxes behind them, so that the second stage sees positives from the first step on.

    For training only.

    Example:
      >>> none = Proposals(jnp.zeros((1, 4)), jnp.zeros(1), jnp.zeros(1, bool))
      >>> add_truth(none, jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([True])).boxes.tolist()
      [[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]
    """
    boxes, truth = as_floats(proposals.boxes, truth)
    counts = jnp.asarray(truth_valid) & jnp.all(jnp.isfinite(truth), axis=-1)
    return Proposals(
        jnp.concatenate([boxes, jnp.where(counts[:, None], truth, 0)]),
        jnp.concatenate([proposals.score, jnp.zeros(counts.shape, proposals.score.dtype)]),
        jnp.concatenate([proposals.valid, counts]),
    )
