"""Test-time augmentation: predictions averaged over augmented copies of each case."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.arrays import ArrayLike, Bool, Int, Key
from fusion_jax.data.augment.apply import Recipe, Sample, augment_batch, case_keys

__all__ = ["augmented_predictions"]

# Compiled here, unlike kernels: one program serves all copies, and `predict` stays the caller's own.
_augment = jax.jit(augment_batch, static_argnums=0)


def augmented_predictions(
    predict: Callable[[Sample], Any],
    recipe: Recipe,
    samples: Sample,
    key: Key,
    index: Int[ArrayLike, "b"],
    *,
    copies: int,
    include_identity: bool = False,
    valid: Bool[ArrayLike, "b"] | None = None,
) -> Any:
    r"""Mean of the predictions for augmented copies of each case.

    .. math:: \bar p = \frac1n \sum_{j=1}^{n} p(T_j x)

    A copy depends on key, case and number of the copy, not on the batch.

    Args:
      predict: from a batch of samples to probabilities, an array `(b, ...)` or a pytree of them; average
        probabilities, not logits. `mirrored` of a sample says which cases were flipped, see `swap_flag`.
      recipe: of the copies.
      samples: the batch.
      key: random key; the same for the same predictions.
      index: rows of the cohort, shape `(b,)`, -1 for padding.
      copies: number of augmented copies :math:`n`.
      include_identity: count the cases as they are as one copy more.
      valid: as in `augment_batch`.

    Returns:
      Mean over the copies, as `predict` returns it.

    Raises:
      ValueError: fewer than one copy.

    Example:
      >>> from fusion_jax.data.augment import Flip
      >>> def right_half(batch):
      ...     return batch.images["x"][:, :, 1:].mean(axis=(1, 2, 3))
      >>> batch = Sample({"x": jnp.array([[[[0.25], [0.75]]]])})
      >>> flipped = Recipe((Flip(p=1.0),))
      >>> row, key = jnp.array([0]), jax.random.key(0)
      >>> augmented_predictions(right_half, flipped, batch, key, row, copies=1, include_identity=True).tolist()
      [0.5]

    References:
      specs/breast_mri_fusion.md, section 5: five copies, the clean image not among them.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}; expected at least one.")
    shown = [_augment(recipe, samples, case_keys(key, copy, index), valid) for copy in range(copies)]
    if include_identity:
        axes = next(iter(samples.images.values())).ndim - 2
        shown.append(samples._replace(mirrored=jnp.zeros((jnp.shape(index)[0], axes), bool)))
    total = predict(shown[0])
    for sample in shown[1:]:
        total = jax.tree.map(jnp.add, total, predict(sample))
    return jax.tree.map(lambda value: value / len(shown), total)
