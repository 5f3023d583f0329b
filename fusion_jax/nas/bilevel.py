r"""Gradients of a bilevel problem: the architecture is judged by the weights that training gives it.

.. math:: \min_\alpha L_\text{val}(\theta^*(\alpha), \alpha) \quad\text{with}\quad
          \theta^*(\alpha) = \arg\min_\theta L_\text{train}(\theta, \alpha)

Weights are never trained to the end: the first order takes them as they are, the second order as one step of SGD would
leave them. Everything here is a pure function of any trees of arrays; nothing is jitted.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fusion_jax.arrays import Array, ArrayLike, Float, Key

__all__ = [
    "Gradients",
    "Loss",
    "difference",
    "dominant_eigenvalue",
    "first_order_gradient",
    "joined",
    "mixed_product",
    "probes",
    "quotient",
    "second_order_gradient",
    "through_step",
    "unrolled",
]

Loss = Callable[[Any, Any], Array]
"""`loss(weights, architecture) -> scalar`."""

Gradients = Callable[[Any, Any], tuple[Array, tuple[Any, Any]]]
"""`gradients(weights, architecture) -> (loss, (gradient of weights, gradient of architecture))`."""

PROBE = 0.01
"""Length of the step that the finite difference takes along the gradient, in units of the weights."""


def unrolled(
    weights: Any,
    gradient: Any,
    momentum_buffer: Any,
    *,
    rate: Float[ArrayLike, ""],
    momentum: float = 0.0,
    weight_decay: Any = 0.0,
) -> Any:
    r"""Weights after one step of SGD with momentum and weight decay.

    .. math:: \theta' = \theta - \xi (\mu v + \nabla_\theta L_\text{train} + \lambda \theta)

    Clipping of the gradient is left out, as the second-order product holds for the plain step only.

    Args:
      weights: :math:`\theta`, any tree.
      gradient: :math:`\nabla_\theta L_\text{train}`, of the same structure.
      momentum_buffer: :math:`v`, of the same structure; None before the first step or without momentum.
      rate: learning rate :math:`\xi` of the step.
      momentum: :math:`\mu`.
      weight_decay: :math:`\lambda`, one number for all, or a tree of numbers with the structure of the weights.

    Returns:
      :math:`\theta'`, of the same structure.

    Example:
      >>> float(unrolled(jnp.array(1.0), jnp.array(2.0), jnp.array(1.0), rate=0.1, momentum=0.5, weight_decay=0.5))
      0.7

    References:
      Liu et al. 2019 (DARTS), Eq. 7 with momentum; specs/mm_nas.md, section 3.
    """
    structure = jax.tree.structure(weights)
    leaves = jax.tree.leaves(weights)
    single = isinstance(weight_decay, int | float)
    decays = [weight_decay] * len(leaves) if single else structure.flatten_up_to(weight_decay)
    buffers = [None] * len(leaves) if momentum_buffer is None else structure.flatten_up_to(momentum_buffer)
    moved = []
    for weight, slope, buffer, decay in zip(leaves, structure.flatten_up_to(gradient), buffers, decays, strict=True):
        direction = slope + decay * weight
        if buffer is not None and momentum:
            direction = direction + momentum * buffer
        moved.append(weight - jnp.asarray(rate, weight.dtype) * direction)
    return structure.unflatten(moved)


def first_order_gradient(valid_loss: Loss, weights: Any, architecture: Any) -> tuple[Array, Any]:
    r"""Validation loss and its gradient with the weights as they are.

    .. math:: \nabla_\alpha L_\text{val}(\theta, \alpha)

    Args:
      valid_loss: `valid_loss(weights, architecture) -> scalar`.
      weights: :math:`\theta`, any tree.
      architecture: :math:`\alpha`, any tree.

    Returns:
      The loss, and the gradient with the structure of the architecture.

    Example:
      >>> first_order_gradient(lambda weights, architecture: weights * architecture, 3.0, 2.0)[1].item()
      3.0

    References:
      Liu et al. 2019 (DARTS), section 2.3 with ξ = 0.
    """
    return jax.value_and_grad(valid_loss, argnums=1)(weights, architecture)


def second_order_gradient(
    train_loss: Loss,
    valid_loss: Loss,
    weights: Any,
    architecture: Any,
    *,
    momentum_buffer: Any = None,
    rate: Float[ArrayLike, ""],
    momentum: float = 0.0,
    weight_decay: Any = 0.0,
    product: Literal["exact", "finite-difference"] = "exact",
) -> tuple[Array, Any]:
    r"""Validation loss after one step of SGD, and its gradient through that step.

    .. math::
        g &= \nabla_{\theta'} L_\text{val}(\theta', \alpha) \\
        \nabla_\alpha &= \nabla_\alpha L_\text{val}(\theta', \alpha)
            - \xi\, \nabla^2_{\alpha,\theta} L_\text{train}(\theta, \alpha)\, g

    with :math:`\theta'` of `unrolled`. The product of the mixed second derivative and :math:`g` is that of a jvp of
    :math:`\nabla_\alpha L_\text{train}` along :math:`g`, exact and without a step width. The finite difference of the
    published code, kept for parity, is

    .. math:: \frac{\nabla_\alpha L_\text{train}(\theta + \epsilon g, \alpha)
              - \nabla_\alpha L_\text{train}(\theta - \epsilon g, \alpha)}{2 \epsilon},
              \qquad \epsilon = \frac{0.01}{\lVert g \rVert_2}

    Args:
      train_loss: `train_loss(weights, architecture) -> scalar`, on training cases.
      valid_loss: the same on validation cases.
      weights: :math:`\theta`, any tree.
      architecture: :math:`\alpha`, any tree.
      momentum_buffer, rate, momentum, weight_decay: of the step, see `unrolled`.
      product: how the product is computed.

    Returns:
      :math:`L_\text{val}(\theta', \alpha)`, and the gradient with the structure of the architecture.

    Raises:
      ValueError: an unknown product.

    Example:
      >>> train = lambda weights, architecture: 0.5 * (weights - architecture) ** 2
      >>> valid = lambda weights, architecture: 0.5 * (weights - 1.0) ** 2
      >>> _, gradient = second_order_gradient(train, valid, jnp.array(0.0), jnp.array(0.0), rate=jnp.array(0.5))
      >>> float(gradient)  # ξ (θ' - 1) with θ' = 0
      -0.5

    References:
      Liu et al. 2019 (DARTS), Eq. 7 and 8; specs/mm_nas.md, section 3.
    """
    if product not in ("exact", "finite-difference"):
        raise ValueError(f"product is {product!r}; expected 'exact' or 'finite-difference'.")

    def train_gradients(weights: Any, architecture: Any) -> Any:
        return jax.value_and_grad(train_loss, argnums=(0, 1))(weights, architecture)

    def mixed(weights: Any, architecture: Any, along: Any) -> Any:
        if product == "exact":
            return mixed_product(train_loss, weights, architecture, along)
        return difference(lambda weights: train_gradients(weights, architecture)[1][1], weights, along)

    def look_ahead(gradient: Any) -> Any:
        return unrolled(weights, gradient, momentum_buffer, rate=rate, momentum=momentum, weight_decay=weight_decay)

    loss, direct, second = through_step(
        train_gradients,
        jax.value_and_grad(valid_loss, argnums=(0, 1)),
        look_ahead,
        mixed,
        weights,
        architecture,
    )
    return loss, joined(direct, second, rate)


def through_step(
    train_gradients: Gradients,
    valid_gradients: Gradients,
    look_ahead: Callable[[Any], Any],
    mixed: Callable[[Any, Any, Any], Any],
    weights: Any,
    architecture: Any,
) -> tuple[Array, Any, Any]:
    """The parts of `second_order_gradient`, from functions that the caller may have compiled one by one.

    Compiled as one program, three to five copies of one gradient take minutes; compiled by itself, one serves them all.

    Args:
      train_gradients, valid_gradients: `(weights, architecture) -> (loss, (gradient of weights, of architecture))`.
      look_ahead: `(gradient of weights) -> weights after the step`.
      mixed: `(weights, architecture, along) -> product of the mixed second derivative of the training loss`.
      weights, architecture: where the step starts.

    Returns:
      Validation loss after the step, its gradient with the step held fixed, and the mixed product, for `joined`.
    """
    _, (gradient, _) = train_gradients(weights, architecture)
    loss, (along, direct) = valid_gradients(look_ahead(gradient), architecture)
    return loss, direct, mixed(weights, architecture, along)


def joined(direct: Any, mixed: Any, rate: Float[ArrayLike, ""]) -> Any:
    r"""Both parts of the gradient, the second one less :math:`\xi` times the mixed product."""
    return jax.tree.map(lambda own, second: own - jnp.asarray(rate, own.dtype) * second, direct, mixed)


def mixed_product(train_loss: Loss, weights: Any, architecture: Any, along: Any) -> Any:
    r"""Mixed second derivative times a vector, :math:`\nabla^2_{\alpha,\theta} L\, g`, exact.

    Args:
      train_loss: `train_loss(weights, architecture) -> scalar`.
      weights: where the derivative is taken.
      architecture: likewise.
      along: :math:`g`, with the structure of the weights.

    Returns:
      The product, with the structure of the architecture.

    Example:
      >>> float(mixed_product(lambda weights, architecture: weights**2 * architecture, 3.0, 1.0, 0.5))
      3.0
    """

    def slope(weights: Any) -> Any:
        return jax.grad(train_loss, argnums=1)(weights, architecture)

    return jax.jvp(slope, (weights,), (along,))[1]


def probes(weights: Any, along: Any) -> tuple[Any, Any, Array]:
    r"""Weights on both sides of a finite difference, and its step :math:`\epsilon = 0.01 / \lVert g \rVert_2`."""
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(along))
    # A gradient of zero has a product of zero; the bound keeps 0 / 0 out.
    step = PROBE / jnp.maximum(jnp.sqrt(squares), 1e-12)

    def at(sign: float) -> Any:
        return jax.tree.map(lambda weight, leaf: weight + (sign * step).astype(weight.dtype) * leaf, weights, along)

    return at(1.0), at(-1.0), step


def difference(slope: Callable[[Any], Any], weights: Any, along: Any) -> Any:
    """The mixed product by a central difference of `slope`, the architecture's gradient as a function of weights."""
    ahead, behind, step = probes(weights, along)
    return quotient(slope(ahead), slope(behind), step)


def quotient(ahead: Any, behind: Any, step: Array) -> Any:
    """The central difference of two slopes that lie `step` to either side."""
    return jax.tree.map(lambda one, other: (one - other) / (2 * step), ahead, behind)


def dominant_eigenvalue(product: Callable[[Any], Any], like: Any, key: Key, *, iterations: int = 8) -> float:
    r"""Largest eigenvalue of a symmetric matrix that is known by its products with vectors, by Lanczos.

    Of the Hessian :math:`\nabla^2_\alpha L_\text{val}` it says how sharp the optimum is that the search sits in: where
    it grows, the discrete network will be much worse than the mixture it comes from (Zela et al. 2020).

    The basis is made orthogonal anew at every iteration, which a few hundred entries make cheap; with as many
    iterations as entries the value is exact. The loop runs on the host, so jit the product.

    Args:
      product: `product(vector) -> matrix times vector`, trees with the structure of `like`.
      like: a tree of arrays with the shapes of a vector.
      key: of the first vector.
      iterations: products that are computed, at most; fewer where the basis is complete.

    Returns:
      The algebraically largest eigenvalue, from below; NaN where a product is not finite.

    Raises:
      ValueError: no iteration.

    Example:
      >>> scales = jnp.array([3.0, -5.0, 1.0])
      >>> round(dominant_eigenvalue(lambda vector: scales * vector, scales, jax.random.key(0), iterations=3), 4)
      3.0

    References:
      Zela et al. 2020, "Understanding and robustifying differentiable architecture search".
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; expected 1 or more.")
    flat, restore = ravel_pytree(like)
    vector = np.asarray(jax.random.normal(key, flat.shape), np.float64)
    basis = [vector / np.linalg.norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(iterations, flat.size)):
        image = np.asarray(ravel_pytree(product(restore(jnp.asarray(basis[-1], flat.dtype))))[0], np.float64)
        if not np.isfinite(image).all():
            return float("nan")
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves rounding errors that grow from iteration to iteration
            for earlier in basis:
                image = image - (image @ earlier) * earlier
        length = float(np.linalg.norm(image))
        # Below the rounding of the products the rest is noise, and its direction would be no new one.
        if length <= 1e-6 * max(map(abs, diagonal)):
            break
        beside.append(length)
        basis.append(image / length)
    off = beside[: len(diagonal) - 1]
    matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    return float(np.linalg.eigvalsh(matrix)[-1])
