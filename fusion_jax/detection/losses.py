r"""Losses of detectors, and the objectives that put them together.

Each loss takes a whole batch and masks of what counts, and is normalised over the batch as the published detectors are:
those of two stages by the candidates that were sampled in all images, those of one stage by the positives of each image
and then by the images. Where nothing counts a loss is exactly 0, with gradients of 0. Entries that do not count never
reach it, NaN included.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Array, ArrayLike, Batch, Bool, Float, Int, as_floats
from fusion_jax.ops import box_giou
from fusion_jax.training import Objective
from fusion_jax.wording import listed

__all__ = [
    "binary_cross_entropy",
    "box_regression_loss",
    "classification_loss",
    "focal_loss",
    "giou_loss",
    "homoscedastic",
    "l1_loss",
    "mask_loss",
    "objectness_loss",
    "smooth_l1",
    "summed",
]

SHOWN = 8
"""Names that a message lists."""


# Of single entries.


def smooth_l1(difference: Float[ArrayLike, "*n"], *, beta: float = 1 / 9) -> Float[Array, "*n"]:
    r"""Quadratic near zero, linear beyond.

    .. math:: \ell(d) = \begin{cases} d^2 / (2\beta) & |d| < \beta \\ |d| - \beta/2 & \text{otherwise} \end{cases}

    Args:
      difference: of the deltas, any shape.
      beta: where the two meet, at least 0; 0 gives the absolute value.

    Returns:
      The loss of every entry.

    Example:
      >>> smooth_l1(jnp.array([0.0, 0.5, -2.0]), beta=1.0).tolist()
      [0.0, 0.125, 1.5]

    References:
      Girshick 2015, "Fast R-CNN", Eq. 3; Hsieh et al., MDF-Net, Eq. 5 with :math:`\beta = 1/9`.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; expected a number of at least 0.")
    (difference,) = as_floats(difference)
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, jnp.square(difference) * (0.5 / beta), size - 0.5 * beta)


def binary_cross_entropy(logits: Float[ArrayLike, "*n"], target: Float[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    r"""Cross-entropy of every logit with a probability, :math:`\max(z, 0) - z y + \log(1 + e^{-|z|})`; never infinite.

    Example:
      >>> binary_cross_entropy(jnp.array([0.0, 200.0, -200.0]), jnp.array([1.0, 0.0, 0.0])).round(4).tolist()
      [0.6931, 200.0, 0.0]
    """
    logits, target = as_floats(logits, target)
    return jax.nn.softplus(logits) - logits * target


# Of a detector with two stages.


def objectness_loss(
    logits: Float[ArrayLike, "*n"], positive: Bool[ArrayLike, "*n"], valid: Bool[ArrayLike, "*n"]
) -> Float[Array, ""]:
    """Mean binary cross-entropy over the sampled anchors of all images.

    Args:
      logits: that there is an object, shape `(b, k)` or any other.
      positive: whether the anchor stands for a box, the same shape.
      valid: whether the anchor was sampled, the same shape.

    Example:
      >>> some = jnp.array([True, False, False])
      >>> round(float(objectness_loss(jnp.array([0.0, 0.0, 9.0]), some, jnp.array([True, True, False]))), 4)
      0.6931
    """
    (logits,) = as_floats(logits)
    positive, valid = jnp.asarray(positive), jnp.asarray(valid)
    losses = binary_cross_entropy(jnp.where(valid, logits, 0), positive.astype(logits.dtype))
    return _mean(losses, valid)


def box_regression_loss(
    predicted: Float[ArrayLike, "*n 4"],
    target: Float[ArrayLike, "*n 4"],
    positive: Bool[ArrayLike, "*n"],
    valid: Bool[ArrayLike, "*n"],
    *,
    beta: float = 1 / 9,
) -> Float[Array, ""]:
    """Smooth L1 summed over the coordinates of the positives, over the number of all sampled candidates.

    Args:
      predicted, target: deltas as `encode_boxes` gives them, shape `(b, k, 4)` or any other.
      positive: whether the candidate stands for a box, shape `(b, k)`.
      valid: whether the candidate was sampled, negatives included, shape `(b, k)`.
      beta: of `smooth_l1`.

    Example:
      >>> positive, valid = jnp.array([True, False]), jnp.array([True, True])
      >>> float(box_regression_loss(jnp.ones((2, 4)), jnp.zeros((2, 4)), positive, valid, beta=0.0))
      2.0

    References:
      specs/mdf_net.md, section 3.
    """
    predicted, target = as_floats(predicted, target)
    valid = jnp.asarray(valid)
    counts = (jnp.asarray(positive) & valid)[..., None]
    losses = smooth_l1(jnp.where(counts, predicted, 0) - jnp.where(counts, target, 0), beta=beta)
    return jnp.sum(losses) / _at_least_one(valid, losses)


def classification_loss(
    logits: Float[ArrayLike, "*n k"], labels: Int[ArrayLike, "*n"], valid: Bool[ArrayLike, "*n"]
) -> Float[Array, ""]:
    """Mean softmax cross-entropy over the sampled proposals of all images.

    Args:
      logits: of background and the classes, shape `(b, p, k + 1)` or any other.
      labels: 0 for background, class `j` of the cohort is `j + 1`, shape `(b, p)`.
      valid: whether the proposal was sampled, shape `(b, p)`.

    Example:
      >>> round(float(classification_loss(jnp.zeros((2, 6)), jnp.array([0, 3]), jnp.array([True, True]))), 4)
      1.7918
    """
    (logits,) = as_floats(logits)
    valid = jnp.asarray(valid)
    scores = jax.nn.log_softmax(jnp.where(valid[..., None], logits, 0), axis=-1)
    picked = jnp.where(valid, jnp.asarray(labels), 0)[..., None]
    return _mean(-jnp.take_along_axis(scores, picked, axis=-1)[..., 0], valid)


def mask_loss(
    logits: Float[ArrayLike, "*n h w"], target: Float[ArrayLike, "*n h w"], positive: Bool[ArrayLike, "*n"]
) -> Float[Array, ""]:
    """Mean binary cross-entropy over the pixels of the masks of the positives.

    Args:
      logits: of each proposal's own class, shape `(b, p, h, w)` or any other.
      target: the truth's mask cut out at the proposal, in [0, 1], the same shape.
      positive: whose masks count, shape `(b, p)`.

    Example:
      >>> round(float(mask_loss(jnp.zeros((1, 28, 28)), jnp.ones((1, 28, 28)), jnp.array([True]))), 4)
      0.6931
    """
    logits, target = as_floats(logits, target)
    counts = jnp.asarray(positive)[..., None, None]
    losses = binary_cross_entropy(jnp.where(counts, logits, 0), jnp.where(counts, target, 0))
    return _mean(losses, jnp.broadcast_to(counts, losses.shape))


# Of a detector with one stage.


def focal_loss(
    logits: Float[ArrayLike, "b p k"],
    labels: Int[ArrayLike, "b p"],
    positive: Bool[ArrayLike, "b p"],
    valid: Bool[ArrayLike, "b p"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, ""]:
    r"""Sigmoid focal loss of all anchors, over the positives of each image, then averaged over the images.

    .. math:: L = \frac1b \sum_i \frac{1}{\max(n_i, 1)} \sum_{p,k} \alpha_t (1 - p_t)^\gamma (-\log p_t)

    with :math:`p_t` the probability of the right answer, :math:`\alpha_t = \alpha` where that is yes and
    :math:`1 - \alpha` where it is no, and :math:`n_i` the positives of image :math:`i`.

    Args:
      logits: of the classes, without background, shape `(b, p, k)`.
      labels: class from 0, read where positive, shape `(b, p)`.
      positive: whether the anchor stands for a box, shape `(b, p)`.
      valid: whether the anchor counts: positives and negatives, of images that are no padding, shape `(b, p)`.
      alpha: weight of the positive answers, in [0, 1].
      gamma: how little easy answers count, at least 0; 0 gives the cross-entropy.

    Example:
      >>> one = jnp.ones((1, 1), bool)
      >>> loss = focal_loss(jnp.zeros((1, 1, 1)), jnp.zeros((1, 1), jnp.int32), one, one)
      >>> round(float(loss / jnp.log(2.0)), 4)
      0.0625

    References:
      Lin et al. 2017, "Focal Loss for Dense Object Detection", Eq. 5 and section 4.1.
    """
    (logits,) = as_floats(logits)
    positive, valid = jnp.asarray(positive), jnp.asarray(valid)
    hit = jnp.asarray(labels)[..., None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    target = (hit & positive[..., None]).astype(logits.dtype)
    logits = jnp.where(valid[..., None], logits, 0)
    probability = jax.nn.sigmoid(logits)
    # The wrong answer's probability, not 1 - p_t: no cancellation where p_t is near 1.
    wrong = jnp.where(target > 0, jax.nn.sigmoid(-logits), probability)
    weight = jnp.where(target > 0, alpha, 1 - alpha)
    losses = weight * wrong**gamma * binary_cross_entropy(logits, target)
    return _mean_of_images(jnp.sum(jnp.where(valid[..., None], losses, 0), axis=(1, 2)), positive, valid)


def l1_loss(
    predicted: Float[ArrayLike, "b p 4"],
    target: Float[ArrayLike, "b p 4"],
    positive: Bool[ArrayLike, "b p"],
    valid: Bool[ArrayLike, "b p"],
    *,
    beta: float = 0.0,
) -> Float[Array, ""]:
    """Absolute differences of the deltas of positives, over the positives of each image, averaged over the images.

    Args:
      predicted, target: deltas as `encode_boxes` gives them, shape `(b, p, 4)`.
      positive: whether the anchor stands for a box, shape `(b, p)`.
      valid: whether the anchor counts, negatives included, shape `(b, p)`.
      beta: of `smooth_l1`.

    Example:
      >>> positive, valid = jnp.array([[True, False]]), jnp.array([[True, True]])
      >>> float(l1_loss(jnp.ones((1, 2, 4)), jnp.zeros((1, 2, 4)), positive, valid))
      4.0
    """
    predicted, target = as_floats(predicted, target)
    valid = jnp.asarray(valid)
    positive = jnp.asarray(positive) & valid
    counts = positive[..., None]
    losses = smooth_l1(jnp.where(counts, predicted, 0) - jnp.where(counts, target, 0), beta=beta)
    return _mean_of_images(jnp.sum(losses, axis=(1, 2)), positive, valid)


def giou_loss(
    predicted: Float[ArrayLike, "b p 4"],
    target: Float[ArrayLike, "b p 4"],
    positive: Bool[ArrayLike, "b p"],
    valid: Bool[ArrayLike, "b p"],
) -> Float[Array, ""]:
    r"""One minus the generalised overlap of positives, over the positives of each image, averaged over the images.

    Args:
      predicted, target: boxes in pixels, not deltas, shape `(b, p, 4)`.
      positive: whether the anchor stands for a box, shape `(b, p)`.
      valid: whether the anchor counts, negatives included, shape `(b, p)`.

    Example:
      >>> box, one = jnp.array([[[0.0, 0.0, 4.0, 4.0]]]), jnp.ones((1, 1), bool)
      >>> float(giou_loss(box, jnp.array([[[0.0, 0.0, 4.0, 2.0]]]), one, one))
      0.5

    References:
      Rezatofighi et al. 2019, "Generalized Intersection over Union", Algorithm 2.
    """
    predicted, target = as_floats(predicted, target)
    valid = jnp.asarray(valid)
    positive = jnp.asarray(positive) & valid
    counts = positive[..., None]
    unit = jnp.array([0.0, 0.0, 1.0, 1.0], predicted.dtype)
    predicted = jnp.where(counts, predicted, unit)
    overlap = box_giou(predicted[..., None, :], jnp.where(counts, target, unit)[..., None, :])[..., 0, 0]
    return _mean_of_images(jnp.sum(jnp.where(positive, 1 - overlap, 0), axis=1), positive, valid)


# Together.


def homoscedastic(names: Sequence[str], *, form: Literal["code", "paper"] = "code") -> Objective:
    r"""Losses weighted by uncertainties that are trained along.

    .. math:: \sum_l \frac{L_l}{2\alpha_l^2} + \log(1 + \alpha_l^2) \quad\text{("code")}, \qquad
              \sum_l \frac{L_l}{2\alpha_l^2} + \log \alpha_l^2 \quad\text{("paper")}

    from :math:`\alpha_l = 1`. For fixed losses the first is least at :math:`\alpha^2 = (L + \sqrt{L^2 + 8L})/4` and
    never negative; the second at :math:`\alpha^2 = L/2`, and without bound below as a loss goes to 0.

    Args:
      names: of the losses of the detector (`outputs.losses`) that take part.
      form: which of the two.

    Returns:
      The objective, with parameters `alpha`, name to `()`. Its scalars are the losses by name and `alpha_<name>`.
      A batch of padding alone is worth 0.

    Raises:
      ValueError: no name, one named twice, or an unknown form; at the first batch, a loss that the detector lacks.

    Example:
      >>> objective = homoscedastic(("classes", "boxes"))
      >>> class Found:
      ...     losses = {"classes": jnp.float32(2.0), "boxes": jnp.float32(0.0)}
      >>> batch = Batch({}, {}, jnp.ones(1, bool), {}, jnp.arange(1))
      >>> loss, scalars = objective.loss(objective.init(), Found(), batch)
      >>> round(float(loss), 4), sorted(scalars)
      (2.3863, ['alpha_boxes', 'alpha_classes', 'boxes', 'classes'])

    References:
      Kendall, Gal and Cipolla 2018; specs/mdf_net.md, section 3 and M4.
    """
    names = _checked_names(names)
    if form not in ("code", "paper"):
        raise ValueError(f"form is {form!r}; expected 'code' or 'paper'.")

    def init() -> dict[str, Any]:
        return {"alpha": {name: jnp.ones((), jnp.float32) for name in names}}

    def loss(parameters: Any, outputs: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        losses, alpha = _named_losses(outputs, names), parameters["alpha"]
        squares = {name: jnp.square(alpha[name]) for name in names}
        terms = [
            0.5 * losses[name] / squares[name] + (jnp.log1p if form == "code" else jnp.log)(squares[name])
            for name in names
        ]
        total = jnp.where(jnp.any(jnp.asarray(batch.valid)), sum(terms), 0.0)
        return total, losses | {f"alpha_{name}": alpha[name] for name in names}

    return Objective(init, loss)


def summed(names: Sequence[str]) -> Objective:
    """The plain sum of the losses.

    Args:
      names: of the losses of the detector (`outputs.losses`) that take part.

    Returns:
      The objective, without parameters. Its scalars are the losses by name.

    Raises:
      ValueError: no name, or one named twice; at the first batch, a loss that the detector lacks.

    Example:
      >>> class Found:
      ...     losses = {"classes": jnp.float32(2.0), "boxes": jnp.float32(0.5)}
      >>> float(summed(("classes", "boxes")).loss({}, Found(), Batch({}, {}, jnp.ones(1, bool), {}, 0))[0])
      2.5
    """
    names = _checked_names(names)

    def loss(parameters: Any, outputs: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        losses = _named_losses(outputs, names)
        return jnp.asarray(sum(losses.values())), losses

    return Objective(dict, loss)


def _named_losses(outputs: Any, names: tuple[str, ...]) -> dict[str, Array]:
    for name in names:
        if name not in outputs.losses:
            raise ValueError(
                f"the objective weighs the loss {name!r}, but the detector gives "
                f"{listed(sorted(outputs.losses), SHOWN)}. Name those of its head; "
                "'masks' needs a detector with masks, and none are given at inference."
            )
    return {name: outputs.losses[name] for name in names}


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names are {list(names)}; expected losses of the detector, each once, such as 'classes'.")
    return names


def _at_least_one(counts: Array, like: Array) -> Array:
    return jnp.maximum(jnp.sum(counts), 1).astype(like.dtype)


def _mean(losses: Array, counts: Array) -> Array:
    """Mean over what counts, 0 without any."""
    return jnp.sum(jnp.where(counts, losses, 0)) / _at_least_one(counts, losses)


def _mean_of_images(sums: Array, positive: Array, valid: Array) -> Array:
    """Sums over anchors by the positives of their image, averaged over the images with an anchor that counts."""
    positives = jnp.maximum(jnp.sum(positive & valid, axis=1), 1).astype(sums.dtype)
    return _mean(sums / positives, jnp.any(valid, axis=1))
