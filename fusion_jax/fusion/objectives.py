r"""Objectives: what training minimises, as pairs of functions that combine.

The first group (`binary_cross_entropy`, `softmax_cross_entropy`, `focal`, `cox`) looks at the fused logits. The second
(`joint`, `multiloss`, `uncertainty_weighted`, `energy_gap_regularised`) takes any objective of the first and applies it
to the logits of the sources as well, or adds a term. Every loss is a mean over the rows that count: the valid ones, and
for the head of a source those that have the source. A batch without any is worth 0.

Class numbers: with one logit it belongs to class 1, and labels are 0 and 1; with more, column `k` belongs to label `k`.
A table that lists the positive class first, as Eq. 1 of Wang W. et al. 2020 does, is therefore reversed: class 1 is
early recurrence. Weights and smoothing are those of training; to follow a loss on validation cases as published, build
the objective again without smoothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Array, ArrayLike, Batch, Bool, Float, Outputs
from fusion_jax.fusion.cox import cox
from fusion_jax.quality import energy_gap_penalty
from fusion_jax.training.state import Objective
from fusion_jax.wording import listed

__all__ = [
    "FUSED",
    "binary_cross_entropy",
    "cox",
    "energy_gap_regularised",
    "focal",
    "joint",
    "multiloss",
    "softmax_cross_entropy",
    "uncertainty_weighted",
]

FUSED = "fused"
"""Name of the fused logits among the terms of a joint loss."""

SHOWN = 5
"""Names that a message lists."""


# Losses of the fused logits.


def binary_cross_entropy(*, positive_weight: float = 1.0, smoothing: float = 0.0) -> Objective:
    r"""Cross-entropy of one logit, with a weight on the positive term and smoothed labels.

    .. math:: L = -\frac1n \sum_i \bigl[\pi\,y_i' \log\sigma(z_i) + (1 - y_i') \log\sigma(-z_i)\bigr], \qquad
              y' = y(1 - \epsilon) + \epsilon/2

    Args:
      positive_weight: :math:`\pi`; negatives over positives among the training cases balances the classes.
      smoothing: :math:`\epsilon`, at least 0 and below 1.

    Returns:
      The objective, for logits `(b, 1)` and labels 0 and 1.

    Raises:
      ValueError: a weight that is not positive, or a smoothing outside its range.

    Example:
      >>> rows = jnp.ones(2, bool)
      >>> batch = Batch({}, {"label": jnp.array([0, 1])}, rows, {}, jnp.arange(2))
      >>> loss, _ = binary_cross_entropy().loss({}, Outputs(jnp.zeros((2, 1)), {}, {}), batch)
      >>> round(float(loss), 4)
      0.6931

    References:
      Holste et al. 2021; specs/breast_mri_fusion.md, section 3 and B10.
    """
    _check_positive("positive_weight", positive_weight)
    _check_smoothing(smoothing)

    def per_row(logits: Array, label: Array) -> Array:
        z = _one_logit(logits, "binary_cross_entropy")
        target = label.astype(z.dtype) * (1.0 - smoothing) + 0.5 * smoothing
        return -(positive_weight * target * jax.nn.log_sigmoid(z) + (1.0 - target) * jax.nn.log_sigmoid(-z))

    return _of_label(per_row)


def softmax_cross_entropy(*, class_weights: Sequence[float] | None = None, smoothing: float = 0.0) -> Objective:
    r"""Cross-entropy of a softmax over the classes, with class weights and smoothed labels.

    .. math:: L = -\frac1n \sum_i \sum_k w_k\,y_{ik}' \log p_{ik}, \qquad
              y_{ik}' = (1 - \epsilon)[y_i = k] + \epsilon/K

    The mean is over cases, not over weights, so that two classes with weights (1, pi) give what
    `binary_cross_entropy` gives for the difference of the logits, and a batch's composition scales nothing.

    Args:
      class_weights: :math:`w_k`, one a class; :math:`n / (K n_k)` balances the classes. All 1 unless given.
      smoothing: :math:`\epsilon`, at least 0 and below 1.

    Returns:
      The objective, for logits `(b, k)`, k > 1, and labels 0 to k - 1.

    Raises:
      ValueError: a weight that is not positive, or a smoothing outside its range.

    Example:
      >>> batch = Batch({}, {"label": jnp.array([2])}, jnp.ones(1, bool), {}, jnp.arange(1))
      >>> loss, _ = softmax_cross_entropy().loss({}, Outputs(jnp.zeros((1, 3)), {}, {}), batch)
      >>> round(float(loss), 4)
      1.0986

    References:
      Wang W. et al. 2020, Eq. 1; Wang Y. et al. 2023 (smoothing).
    """
    weights = _class_weights(class_weights)
    _check_smoothing(smoothing)

    def per_row(logits: Array, label: Array) -> Array:
        classes = _classes(logits, weights, "softmax_cross_entropy")
        target = jax.nn.one_hot(label, classes, dtype=logits.dtype) * (1.0 - smoothing) + smoothing / classes
        scale = jnp.ones(classes, logits.dtype) if weights is None else jnp.asarray(weights, logits.dtype)
        return -jnp.sum(scale[None] * target * jax.nn.log_softmax(logits, axis=-1), axis=-1)

    return _of_label(per_row)


def focal(*, focusing: float = 2.0, class_weights: Sequence[float] | None = None) -> Objective:
    r"""Focal loss: cross-entropy that fades for cases which are already right.

    .. math:: L = -\frac1n \sum_i w_{y_i} (1 - p_i)^\gamma \log p_i

    with the probability :math:`p_i` of the true class.

    Args:
      focusing: :math:`\gamma`, at least 0; 0 is cross-entropy.
      class_weights: :math:`w_k`, one a class, two of them for one logit; all 1 unless given.

    Returns:
      The objective, for logits `(b, 1)` or `(b, k)`.

    Raises:
      ValueError: a negative `focusing`, or a weight that is not positive.

    Example:
      >>> batch = Batch({}, {"label": jnp.array([1])}, jnp.ones(1, bool), {}, jnp.arange(1))
      >>> loss, _ = focal(focusing=2.0).loss({}, Outputs(jnp.zeros((1, 1)), {}, {}), batch)
      >>> round(float(loss), 4)  # a quarter of log 2
      0.1733

    References:
      Lin et al. 2017, Eq. 5.
    """
    if focusing < 0:
        raise ValueError(f"focusing is {focusing}; expected a number of at least 0.")
    weights = _class_weights(class_weights)

    def per_row(logits: Array, label: Array) -> Array:
        # One logit is the second of two whose first is 0.
        full = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits
        classes = _classes(full, weights, "focal")
        true = jax.nn.one_hot(label, classes, dtype=jnp.bool_)
        total = jax.nn.logsumexp(full, axis=-1)
        log_p = jnp.sum(jnp.where(true, full, 0.0), axis=-1) - total
        # log(1 - p) over the other classes: 1 - exp(log p) would lose every digit of a sure case, and its gradient.
        log_rest = jax.nn.logsumexp(full, axis=-1, b=jnp.where(true, 0.0, 1.0)) - total
        scale = 1.0 if weights is None else jnp.asarray(weights, full.dtype)[label]
        return -scale * jnp.exp(focusing * log_rest) * log_p

    return _of_label(per_row)


# Losses over several heads.


def joint(objective: Objective, weights: Mapping[str, float]) -> Objective:
    r"""Weighted sum of one objective over the fused logits and those of the sources.

    .. math:: L = \sum_h w_h L_h

    A head of weight 0 is left out. The loss of each head is reported as `loss_<name>`.

    Args:
      objective: of one head, without parameters of its own, such as `softmax_cross_entropy()`.
      weights: name of a source with a head, or "fused", to its weight. Nothing asks for a sum of 1.

    Returns:
      The objective.

    Raises:
      ValueError: a negative weight, or none that is positive; at the first batch, a source without a head.

    Example:
      >>> objective = joint(binary_cross_entropy(), {"image": 0.25, "clinical": 0.25, "fused": 0.5})
      >>> zero, rows = jnp.zeros((2, 1)), jnp.ones(2, bool)
      >>> batch = Batch({}, {"label": jnp.array([0, 1])}, rows, {"image": rows, "clinical": rows}, jnp.arange(2))
      >>> loss, heads = objective.loss({}, Outputs(zero, {"image": zero, "clinical": zero}, {}), batch)
      >>> round(float(loss), 4), sorted(heads)
      (0.6931, ['loss_clinical', 'loss_fused', 'loss_image'])

    References:
      Wang W. et al. 2020, Eq. 4, weights 1/4, 1/4 and 1/2.
    """
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"the weight of {name!r} is {weight}; expected a number of at least 0.")
    counted = {name: weight for name, weight in weights.items() if weight > 0}
    if not counted:
        raise ValueError(f"weights are {dict(weights)}; expected at least one above 0.")

    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        losses, scalars = _head_losses(objective, parameters, outputs, batch, tuple(counted))
        return _total([weight * losses[name] for name, weight in counted.items()]), scalars

    return Objective(objective.init, loss)


def multiloss(objective: Objective) -> Objective:
    r"""Sum of one objective over the fused logits and every head that the model has, with unit weights.

    .. math:: L = L_\text{fused} + \sum_s L_s

    With `FusionClassifier(stop_fused_gradient=True)` one Adam on this sum moves every parameter as separate ones
    would, bit for bit: the groups of parameters and their gradients are disjoint, and Adam knows no other parameters.

    Args:
      objective: of one head.

    Raises:
      ValueError: at the first batch, a model without heads of its sources.

    Example:
      >>> zero, rows = jnp.zeros((2, 1)), jnp.ones(2, bool)
      >>> batch = Batch({}, {"label": jnp.array([0, 1])}, rows, {"image": rows}, jnp.arange(2))
      >>> loss, _ = multiloss(binary_cross_entropy()).loss({}, Outputs(zero, {"image": zero}, {}), batch)
      >>> round(float(loss), 4)
      1.3863

    References:
      Holste et al. 2021, training variants; specs/breast_mri_fusion.md, section 3.
    """

    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        if not outputs.source_logits:
            raise ValueError(
                "multiloss: no source has a head of its own. Name the sources under source_heads of the model."
            )
        names = (FUSED, *sorted(outputs.source_logits))
        losses, scalars = _head_losses(objective, parameters, outputs, batch, names)
        return _total([losses[name] for name in names]), scalars

    return Objective(objective.init, loss)


def uncertainty_weighted(objective: Objective, heads: Sequence[str]) -> Objective:
    r"""Heads weighted by learned uncertainties.

    .. math:: L = \sum_h \Bigl(e^{-s_h} L_h + \frac{s_h}{2}\Bigr), \qquad s_h = \log\sigma_h^2

    At rest :math:`e^{s_h} = 2 L_h`. The :math:`s_h` are trained with the model, from 0; each is reported as
    `log_variance_<name>`. A head without a row that counts adds nothing, so that its :math:`s_h` stays.

    Args:
      objective: of one head, without parameters of its own.
      heads: names of the sources with a head that take part, and "fused".

    Returns:
      The objective, with parameters `log_variance`, name to `()`.

    Raises:
      ValueError: no head, or one named twice; at the first batch, a source without a head.

    Example:
      >>> objective = uncertainty_weighted(binary_cross_entropy(), ("fused", "image"))
      >>> {name: float(value) for name, value in objective.init()["log_variance"].items()}
      {'fused': 0.0, 'image': 0.0}

    References:
      Kendall, Gal and Cipolla 2018, Eq. 9 and 10 (classification).
    """
    names = tuple(heads)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"heads are {list(names)}; expected names, each once, such as 'fused' and a source.")

    def init() -> dict[str, Any]:
        return {"log_variance": {name: jnp.zeros((), jnp.float32) for name in names}}

    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        log_variance = parameters["log_variance"]
        losses, scalars = _head_losses(objective, objective.init(), outputs, batch, names)
        terms = []
        for name in names:
            term = jnp.exp(-log_variance[name]) * losses[name] + 0.5 * log_variance[name]
            terms.append(jnp.where(jnp.any(_rows(batch, name)), term, 0.0))
        scalars |= {f"log_variance_{name}": log_variance[name] for name in names}
        return _total(terms), scalars

    return Objective(init, loss)


def energy_gap_regularised(objective: Objective, pair: tuple[str, str], weight: float, bandwidth: float) -> Objective:
    r"""An objective plus the squared energy gap of two sources in the live fused layer.

    .. math:: L = L_0 + \frac{\lambda}{n} \sum_i
              \left(\frac{R_{x_i} - \gamma^2 R_{y_i}}{R_{x_i} + \gamma^2 R_{y_i}}\right)^2

    over the cases that have both sources. The penalty is reported as `energy_gap`. It costs the square of the number of
    features of every case.

    Args:
      objective: :math:`L_0`.
      pair: names of the sources `x` and `y`.
      weight: :math:`\lambda`, at least 0.
      bandwidth: standard deviation of the kernel, in units of the features.

    Returns:
      The objective.

    Raises:
      ValueError: one source twice, a negative weight, or a bandwidth that is not positive; at the first batch, a source
        that the model does not have.

    Example:
      >>> objective = energy_gap_regularised(binary_cross_entropy(), ("image", "clinical"), 0.1, bandwidth=0.5)
      >>> rows, x = jnp.ones(2, bool), jnp.array([[0.0, 1.0], [0.0, 1.0]])
      >>> batch = Batch({}, {"label": jnp.array([0, 1])}, rows, {"image": rows, "clinical": rows}, jnp.arange(2))
      >>> outputs = Outputs(jnp.zeros((2, 1)), {}, {"image": x, "clinical": x})
      >>> float(objective.loss({}, outputs, batch)[1]["energy_gap"])
      0.0

    References:
      Wang et al. 2023, Eq. 5; specs/fusion_quality.md, reading N and section 10.
    """
    x, y = pair
    if x == y:
        raise ValueError(f"pair is {pair}; expected the names of two sources.")
    if not weight >= 0:
        raise ValueError(f"weight is {weight}; expected a number of at least 0.")
    _check_positive("bandwidth", bandwidth)

    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        for name in pair:
            if name not in outputs.features:
                raise ValueError(
                    f"energy_gap_regularised: no features of source {name!r}; the model has "
                    f"{listed(sorted(outputs.features), SHOWN)}. Name two of them as pair."
                )
        base, scalars = objective.loss(parameters, outputs, batch)
        rows = _rows(batch, x) & _rows(batch, y)
        # Rows that do not count hold zeros, whose gap is as finite as any.
        gaps = jax.vmap(lambda a, b: energy_gap_penalty(a, b, bandwidth))(outputs.features[x], outputs.features[y])
        gap = _mean(gaps, rows)
        return base + weight * gap, {**scalars, "energy_gap": gap}

    return Objective(objective.init, loss)


# Parts.


def _of_label(per_row: Callable[[Array, Array], Array]) -> Objective:
    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        if "label" not in batch.target:
            raise ValueError(
                f"the batch has no label, only {listed(sorted(batch.target), SHOWN) or 'nothing'}; expected one for a "
                "loss over classes. Take cox for times and events."
            )
        valid = jnp.asarray(batch.valid)
        # Padding may hold any label; 0 exists in every loss.
        label = jnp.where(valid, jnp.asarray(batch.target["label"]), 0)
        return _mean(per_row(outputs.logits, label), valid), {}

    return Objective(dict, loss)


def _head_losses(
    objective: Objective, parameters: Any, outputs: Outputs, batch: Batch, names: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Loss of every head, each over its own rows, and all as scalars to report."""
    if FUSED in outputs.source_logits:
        raise ValueError("a source is called 'fused', which means the fused logits here; give it another name.")
    losses = {}
    for name in names:
        if name != FUSED and name not in outputs.source_logits:
            raise ValueError(
                f"source {name!r} has no head of its own; those that have one: "
                f"{listed(sorted(outputs.source_logits), SHOWN) or 'none'}. Name it under source_heads of the model."
            )
        logits = outputs.logits if name == FUSED else outputs.source_logits[name]
        losses[name], _ = objective.loss(
            parameters, Outputs(logits, {}, outputs.features), batch._replace(valid=_rows(batch, name))
        )
    return losses, {f"loss_{name}": value for name, value in losses.items()}


def _rows(batch: Batch, name: str) -> Bool[Array, "b"]:
    """Rows that count for a head: valid ones, that have the source where it is one of the cohort's."""
    valid = jnp.asarray(batch.valid)
    return valid & jnp.asarray(batch.present[name]) if name in batch.present else valid


def _total(terms: list[Array]) -> Array:
    return sum(terms[1:], terms[0])


def _mean(values: Float[Array, "b"], rows: Bool[ArrayLike, "b"]) -> Float[Array, ""]:
    """Mean over the rows that count; 0, with a gradient of 0, where none does."""
    rows = jnp.asarray(rows)
    count = jnp.maximum(jnp.sum(rows), 1).astype(values.dtype)
    return jnp.sum(jnp.where(rows, values, 0.0)) / count


def _one_logit(logits: Array, name: str) -> Array:
    if logits.shape[-1] != 1:
        raise ValueError(
            f"{name}: logits have shape {logits.shape}; expected (b, 1). Take softmax_cross_entropy for a model with "
            f"classes={logits.shape[-1]}."
        )
    return logits[:, 0]


def _classes(logits: Array, weights: tuple[float, ...] | None, name: str) -> int:
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(
            f"{name}: logits have shape {logits.shape}; expected one column a class. Take binary_cross_entropy for a "
            "model with classes=1."
        )
    if weights is not None and len(weights) != classes:
        raise ValueError(f"{name}: {len(weights)} class weights for {classes} classes; expected one a class.")
    return classes


def _class_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    if weights is None:
        return None
    for number, weight in enumerate(weights):
        _check_positive(f"the weight of class {number}", weight)
    return tuple(float(weight) for weight in weights)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a number above 0.")


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; expected a number of at least 0 and below 1.")
