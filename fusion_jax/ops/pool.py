r"""Pooling over one, two or three spatial axes, channels last, differentiable to every order.

A window of several axes is pooled axis by axis: maxima of maxima, sums of sums. The backward pass of a maximum is
written out, because that of `jax.lax.reduce_window` takes 5 to 20 times as long on CPU (`benchmarks/conv.py`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.arrays import Array, ArrayLike, Float, as_floats
from fusion_jax.ops.windows import Padding, PerAxis, output_sizes, padding_pairs, per_axis

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "global_average_pool",
    "global_max_pool",
    "max_pool",
]


def max_pool(
    x: Float[ArrayLike, "b *n c"], window: PerAxis, *, strides: PerAxis | None = None, padding: Padding = "VALID"
) -> Float[Array, "b *m c"]:
    r"""Largest value in every window.

    .. math:: y_o = \max_{0 \le k < w} x_{so + k - p}

    Padding never wins, NaN always does. The derivative is that of the winner; among equals the first along the last
    axis wins, then along the axis before it, and so on.

    Args:
      x: shape `(b, *spatial, c)` with one to three spatial axes.
      window: positions :math:`w` of a window, one number or one an axis.
      strides: positions :math:`s` between windows; those of a window unless given.
      padding: "SAME", "VALID", or positions :math:`p` before and after every axis.

    Returns:
      Maxima, shape `(b, *windows, c)`, dtype of `x`.

    Raises:
      ValueError: `x` has another rank, no window fits, or a window holds nothing but padding.
      TypeError: `x` is not floating.

    Example:
      >>> max_pool(jnp.array([[[1.0], [3.0], [2.0], [-1.0]]]), 2).ravel().tolist()
      [3.0, 2.0]
    """
    pooled = _as_images(x)
    for axis, width, stride, pad in _windows(pooled, window, strides, padding):
        pooled = _max_along(pooled, axis, width, stride, pad)
    return pooled


def average_pool(
    x: Float[ArrayLike, "b *n c"],
    window: PerAxis,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    count_padding: bool = False,
) -> Float[Array, "b *m c"]:
    r"""Mean of every window, over its positions inside the image.

    .. math:: y_o = \frac{1}{|K_o|} \sum_{k \in K_o} x_{so + k - p}

    Half precision is summed in single precision.

    Args:
      x, window, strides, padding: as in `max_pool`.
      count_padding: divide by the whole window instead, padding being zeros.

    Returns:
      Means, shape `(b, *windows, c)`, dtype of `x`.

    Raises:
      ValueError, TypeError: as `max_pool`.

    Example:
      >>> average_pool(jnp.array([[[1.0], [3.0], [2.0]]]), 3, strides=1, padding="SAME").ravel().tolist()
      [2.0, 2.0, 2.5]
    """
    x = _as_images(x)
    (pooled,) = as_floats(x)
    scale = 1.0
    for axis, width, stride, (before, after) in _windows(x, window, strides, padding):
        # Linear in x, hence right to every order; the way back is a sum over windows too, five times as fast as the
        # transpose of padded and sliced sums.
        pooled = _reduce_along(pooled, axis, width, stride, (before, after), lax.add, 0.0)
        counts = _positions_inside(x.shape[axis], width, stride, before, pooled.shape[axis])
        if count_padding or (counts == width).all():
            scale /= width
        else:
            pooled = pooled * _along(axis, x.ndim, 1.0 / counts, pooled.dtype)
    return (pooled * jnp.asarray(scale, pooled.dtype)).astype(x.dtype)


def global_max_pool(x: Float[ArrayLike, "b *n c"]) -> Float[Array, "b c"]:
    """Largest value of every channel over all positions; shares no derivative among equals, like `max_pool`.

    Example:
      >>> global_max_pool(jnp.array([[[1.0, 5.0], [3.0, 4.0]]])).tolist()
      [[3.0, 5.0]]
    """
    x = _as_images(x)
    return max_pool(x, x.shape[1:-1]).reshape(x.shape[0], x.shape[-1])


def global_average_pool(x: Float[ArrayLike, "b *n c"]) -> Float[Array, "b c"]:
    """Mean of every channel over all positions.

    Example:
      >>> global_average_pool(jnp.array([[[1.0, 5.0], [3.0, 4.0]]])).tolist()
      [[2.0, 4.5]]
    """
    x = _as_images(x)
    return average_pool(x, x.shape[1:-1]).reshape(x.shape[0], x.shape[-1])


def adaptive_max_pool(x: Float[ArrayLike, "b *n c"], sizes: PerAxis) -> Float[Array, "b *m c"]:
    r"""Largest value in each of `sizes` bins along every axis.

    Bin :math:`i` of :math:`m` covers positions :math:`\lfloor in/m \rfloor` to :math:`\lceil (i+1)n/m \rceil`, the end
    excluded; bins overlap where :math:`m` does not divide :math:`n`.

    Args:
      x: shape `(b, *spatial, c)` with one to three spatial axes.
      sizes: bins :math:`m`, one number or one an axis; more bins than positions repeat positions.

    Returns:
      Maxima, shape `(b, *sizes, c)`.

    Raises:
      ValueError: `x` has another rank or an empty axis.
      TypeError: `x` is not floating.

    Example:
      >>> adaptive_max_pool(jnp.array([[[1.0], [5.0], [2.0]]]), 2).ravel().tolist()
      [5.0, 5.0]

    References:
      The rule of PyTorch's `adaptive_max_pool3d`.
    """
    pooled = _as_images(x)
    for axis, bins in _bins(pooled, sizes):
        size = pooled.shape[axis]
        taps, _ = _bin_taps(size, bins)
        width = taps.shape[1]
        if size != bins * width:
            pooled = jnp.take(pooled, taps.ravel(), axis=axis, mode="clip")
        pooled = _max_along(pooled, axis, width, width, (0, 0))
    return pooled


def adaptive_average_pool(x: Float[ArrayLike, "b *n c"], sizes: PerAxis) -> Float[Array, "b *m c"]:
    """Mean of each of `sizes` bins along every axis; bins as in `adaptive_max_pool`.

    Half precision is summed in single precision.

    Example:
      >>> adaptive_average_pool(jnp.array([[[1.0], [5.0], [2.0]]]), 2).ravel().tolist()
      [3.0, 3.5]

    References:
      The rule of PyTorch's `adaptive_avg_pool3d`.
    """
    x = _as_images(x)
    (pooled,) = as_floats(x)
    for axis, bins in _bins(x, sizes):
        taps, counts = _bin_taps(x.shape[axis], bins)
        width = taps.shape[1]
        if x.shape[axis] != bins * width:
            pooled = jnp.take(pooled, taps.ravel(), axis=axis, mode="clip")
            # Selected, not multiplied by zero: a NaN or infinity of the neighbouring bin stays there.
            inside = _along(axis, x.ndim, (np.arange(width) < counts[:, None]).ravel(), np.dtype(bool))
            pooled = jnp.where(jnp.broadcast_to(inside, pooled.shape), pooled, jnp.zeros((), pooled.dtype))
        pooled = _reduce_along(pooled, axis, width, width, (0, 0), lax.add, 0.0)
        pooled = pooled * _along(axis, x.ndim, 1.0 / counts, pooled.dtype)
    return pooled.astype(x.dtype)


# Maxima.


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _max_along(x: Array, axis: int, width: int, stride: int, pad: tuple[int, int]) -> Array:
    return _reduce_along(x, axis, width, stride, pad, lax.max, -np.inf)


@_max_along.defjvp
def _max_along_jvp(
    axis: int, width: int, stride: int, pad: tuple[int, int], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    y = _max_along(x, axis, width, stride, pad)
    winner = _first_equal(_around(x, axis), _around(y, axis), width, stride, pad)
    # The way back must be fast, so that is what is written out. Transposed it is the way forward; reverse mode
    # transposes again and restores it. Both are plain linear operations: every order and vmap follow.
    sent_back = partial(_send_back, winner, size=x.shape[axis], stride=stride, width=width, before=pad[0])
    forward = jax.linear_transpose(sent_back, jax.ShapeDtypeStruct(winner.shape, x.dtype))
    (change,) = forward(_around(tangent, axis))
    return y, change.reshape(y.shape)


def _first_equal(x: Array, y: Array, width: int, stride: int, pad: tuple[int, int]) -> Array:
    """Tap of every window that holds its maximum, `(b, before, windows, after)`; the first one, the last for NaN."""
    windows = y.shape[2]
    # One byte where it can: the winner is all that is kept for the way back.
    dtype = jnp.int8 if width + stride < 128 else jnp.int32
    last = jnp.asarray(width - 1, dtype)
    # Wide windows side by side, as whole axes are, would be hundreds of slices to compile.
    blockwise = stride >= width > 8
    reach = windows * stride if blockwise else (windows - 1) * stride + width
    edges = (pad[0], reach - pad[0] - x.shape[2], 0)
    x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), (0, 0, 0), edges, (0, 0, 0)))
    if blockwise:
        blocks = x.reshape(*y.shape[:3], stride, y.shape[3])[:, :, :, :width]
        equal = blocks == jnp.broadcast_to(y[:, :, :, None], blocks.shape)
        return jnp.min(jnp.where(equal, lax.broadcasted_iota(dtype, blocks.shape, 3), last), axis=3)
    winner = jnp.full(y.shape, last)
    for tap in reversed(range(width - 1)):
        values = lax.slice_in_dim(x, tap, tap + (windows - 1) * stride + 1, stride, axis=2)
        winner = jnp.where(values == y, jnp.asarray(tap, dtype), winner)
    return winner


def _send_back(winner: Array, y: Array, *, size: int, stride: int, width: int, before: int) -> Array:
    """Values of windows added up at their winners, `(b, before, size, after)`; linear in `y`.

    Every position asks the few windows that hold it whether it won. Positions are written as (block, phase) of
    `stride`; five axes also where the phase is one, since XLA:CPU then fuses this better.
    """
    batch, leading, windows, trailing = y.shape
    reach = -(-width // stride) - 1
    blocks = -(-(size + before) // stride)
    edges = ((0, 0, 0), (0, 0, 0), (reach, blocks - windows, 0), (0, 0, 0))
    y = lax.pad(y, jnp.zeros((), y.dtype), edges)
    winner = lax.pad(winner, jnp.asarray(-1, winner.dtype), edges)
    shape = (batch, leading, blocks, stride, trailing)
    phase = lax.broadcasted_iota(winner.dtype, shape, 3)
    total = jnp.zeros(shape, y.dtype)
    for back in range(reach + 1):
        rows = slice(reach - back, reach - back + blocks)
        won = jnp.broadcast_to(winner[:, :, rows, None], shape) == phase + jnp.asarray(back * stride, winner.dtype)
        total = total + jnp.where(won, jnp.broadcast_to(y[:, :, rows, None], shape), jnp.zeros((), y.dtype))
    return total.reshape(batch, leading, blocks * stride, trailing)[:, :, before : before + size]


# Geometry.


def _as_images(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"x has shape {x.shape}; expected (b, *spatial, c) with one to three spatial axes. "
            "Add a batch axis in front, or a channel axis at the end."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype.name}; expected a floating dtype. Convert it with `x.astype` first.")
    return x


def _windows(
    x: Array, window: PerAxis, strides: PerAxis | None, padding: Padding
) -> list[tuple[int, int, int, tuple[int, int]]]:
    """(axis, width, stride, padding) of every spatial axis that has anything to do."""
    sizes = x.shape[1:-1]
    axes = len(sizes)
    widths = per_axis(window, axes, "window")
    steps = widths if strides is None else per_axis(strides, axes, "strides")
    dense = (1,) * axes
    pairs = padding_pairs(padding, sizes, widths, steps, dense)
    outputs = output_sizes(sizes, widths, steps, dense, pairs)
    for axis in range(axes):
        size, width, step, (before, after), out = sizes[axis], widths[axis], steps[axis], pairs[axis], outputs[axis]
        if out == 0:
            raise ValueError(
                f"window {width} does not fit into the {size} + {before + after} padded positions of axis {axis + 1} "
                f"of x with shape {x.shape}; use a smaller window or more padding."
            )
        if before >= width or (out - 1) * step - before >= size:
            raise ValueError(
                f"padding {(before, after)} along axis {axis + 1} of x with shape {x.shape} makes windows of {width} "
                "that hold nothing else; pad by less than a window."
            )
    every = zip(range(1, axes + 1), widths, steps, pairs, strict=True)
    return [(axis, width, step, pair) for axis, width, step, pair in every if (width, step) != (1, 1)]


def _bins(x: Array, sizes: PerAxis) -> list[tuple[int, int]]:
    if 0 in x.shape[1:-1]:
        raise ValueError(f"x has shape {x.shape}; an axis without positions cannot be divided into bins.")
    return list(enumerate(per_axis(sizes, x.ndim - 2, "sizes"), start=1))


def _bin_taps(size: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of every bin, `(bins, longest)`, the last one repeated in shorter bins, and their numbers."""
    index = np.arange(bins)
    starts, ends = index * size // bins, -(-(index + 1) * size // bins)
    taps = np.minimum(starts[:, None] + np.arange((ends - starts).max()), ends[:, None] - 1)
    return taps, ends - starts


def _positions_inside(size: int, width: int, stride: int, before: int, windows: int) -> np.ndarray:
    starts = np.arange(windows) * stride - before
    return np.minimum(starts + width, size) - np.maximum(starts, 0)


def _reduce_along(
    x: Array, axis: int, width: int, stride: int, pad: tuple[int, int], combine: Callable, start: float
) -> Array:
    def along(value: object, other: object) -> Sequence:
        return [value if other_axis == axis else other for other_axis in range(x.ndim)]

    # A NumPy scalar: JAX knows the reduction, and its derivative, by the value of its start.
    return lax.reduce_window(
        x, np.asarray(start, x.dtype), combine, along(width, 1), along(stride, 1), along(pad, (0, 0))
    )


def _around(x: Array, axis: int) -> Array:
    """View `(b, before, size, after)` of one axis; long inner loops whatever the number of channels."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _along(axis: int, axes: int, values: np.ndarray, dtype: np.dtype) -> Array:
    return jnp.asarray(values, dtype).reshape([-1 if other == axis else 1 for other in range(axes)])
