"""Resizing on a regular grid: the field of view stays, the number of positions changes."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Num, as_floats
from fusion_jax.ops.windows import PerAxis, per_axis

__all__ = ["resize"]


def resize(
    x: Num[ArrayLike, "b *n c"],
    sizes: PerAxis,
    *,
    method: Literal["linear", "nearest"] = "linear",
    antialias: bool = False,
) -> Num[Array, "b *m c"]:
    r"""Image with `sizes` positions over the same field of view.

    Centres of positions, not their corners, keep their places: output :math:`i` of :math:`m` is read at

    .. math:: (i + \tfrac12)\,\frac{n}{m} - \tfrac12

    and beyond the outermost centres the image goes on with its edge value.

    Args:
      x: shape `(b, *spatial, c)` with one to three spatial axes.
      sizes: positions :math:`m`, one number or one an axis; the spacing changes by :math:`n/m`.
      method: `linear` for images; `nearest` for label maps, which keeps dtype and values.
      antialias: when shrinking, widen the linear kernel to :math:`n/m` positions, so that all of them count.
        A NaN or infinity then, and with `linear` in general, spoils every position on the same lines.

    Returns:
      Image, shape `(b, *sizes, c)`, dtype of `x`.

    Raises:
      ValueError: `x` has another rank or an empty axis; unknown method; `antialias` with `nearest`.
      TypeError: integers with `linear`.

    Example:
      >>> resize(jnp.array([[[0.0], [1.0]]]), 4).ravel().tolist()
      [0.0, 0.25, 0.75, 1.0]
      >>> resize(jnp.array([[[3], [7]]]), 4, method="nearest").ravel().tolist()
      [3, 3, 7, 7]

    References:
      `scipy.ndimage.zoom(..., grid_mode=True, mode="nearest")`; `jax.image.resize` for `linear`.
    """
    x = jnp.asarray(x)
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x has shape {x.shape}; expected (b, *spatial, c) with one to three spatial axes.")
    wanted = per_axis(sizes, x.ndim - 2, "sizes")
    if 0 in x.shape[1:-1]:
        raise ValueError(f"x has shape {x.shape}; an axis without positions cannot be resized.")
    if method == "nearest":
        if antialias:
            raise ValueError("antialias needs method='linear'; nearest takes one position and mixes none.")
        for axis, size in enumerate(wanted, start=1):
            # Integers on the host: floor((i + 1/2) n / m) in floating point picks the wrong side of exact ties.
            index = (2 * np.arange(size) + 1) * x.shape[axis] // (2 * size)
            x = x if size == x.shape[axis] else jnp.take(x, index, axis=axis, mode="clip")
        return x
    if method != "linear":
        raise ValueError(f"method is {method!r}; expected 'linear' or 'nearest'.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype.name}; linear resizing needs a floating dtype, or use method='nearest'.")
    # Rounded once, at the end; JAX would round weights and every axis to half precision.
    (wide,) = as_floats(x)
    shape = (x.shape[0], *wanted, x.shape[-1])
    return jax.image.resize(wide, shape, "linear", antialias=antialias).astype(x.dtype)
