r"""RoIAlign: a feature map read inside boxes, on a small regular grid, by bilinear interpolation.

Every output is the mean of `sampling_ratio`² samples of its bin. A sample is a product of interpolation along the two
axes, so that the whole is linear in the features, :math:`y_p = A_p F B_p^\top` with sparse :math:`A_p, B_p`. The value
gathers the few features that count; its derivative in the features, hence the gradient, is computed with dense
:math:`A_p, B_p`, because the transpose of a gather is a scatter, which is slow on CPU.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, as_floats
from fusion_jax.ops.boxes import box_area
from fusion_jax.ops.windows import PerAxis, per_axis

__all__ = ["multilevel_roi_align", "roi_align"]

CHUNK = 32
"""Boxes whose dense gradient is computed together: on CPU their intermediate should stay in cache."""


def roi_align(
    features: Float[ArrayLike, "h w c"],
    boxes: Float[ArrayLike, "p 4"],
    *,
    size: PerAxis = (7, 7),
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    valid: Bool[ArrayLike, "p"] | None = None,
) -> Float[Array, "p i j c"]:
    r"""Features inside boxes, resampled to one size.

    Bin :math:`i` of :math:`n` of a box :math:`[x_0, x_1]` has its samples at
    :math:`s x_0 + (i + \frac{k + 1/2}{r}) \frac{s (x_1 - x_0)}{n},\; k < r`, in coordinates where feature 0 is at 0.
    A sample more than one feature outside the map is 0, one nearer takes the border. Exact on linear ramps.

    Args:
      features: feature map of one image, shape `(h, w, c)`.
      boxes: (x0, y0, x1, y1) in pixels of the image, shape `(p, 4)`.
      size: bins (height, width) of the output.
      scale: features per pixel, 1 / stride.
      sampling_ratio: samples per bin and axis.
      aligned: feature 0 covers pixels 0 to 1, its centre at 1/2 (Detectron2). Otherwise its centre is at 0, and a box
        has at least the extent of one feature, as in Mask R-CNN's usual implementations.
      valid: rows to read, shape `(p,)`; all unless given. The others give zeros and no gradient, whatever they hold.

    Returns:
      Features, shape `(p, *size, c)`, in the dtype of `features`. Differentiable in features and boxes (where a sample
      meets a feature or the border, one of the one-sided slopes), to any order.

    Raises:
      ValueError: an empty map, `size` or `sampling_ratio` below 1, a `scale` that is not positive.

    Example:
      >>> ramp = jnp.arange(8.0)[None, :, None] * jnp.ones((8, 1, 1))
      >>> roi_align(ramp, jnp.array([[1.0, 1.0, 5.0, 5.0]]), size=2)[0, :, :, 0].tolist()
      [[2.0, 4.0], [2.0, 4.0]]

    References:
      He et al. 2017, "Mask R-CNN", section 3; the border rule of torchvision.ops.roi_align.
    """
    geometry = _geometry((scale,), size, sampling_ratio, aligned)
    return _align(geometry, (features,), boxes, valid, None)


def multilevel_roi_align(
    levels: Sequence[Float[ArrayLike, "_h _w c"]],
    boxes: Float[ArrayLike, "p 4"],
    *,
    scales: Sequence[float],
    size: PerAxis = (7, 7),
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    valid: Bool[ArrayLike, "p"] | None = None,
) -> Float[Array, "p i j c"]:
    r"""`roi_align` on the level of a feature pyramid that suits each box.

    .. math:: k = \lfloor k_0 + \log_2(\sqrt{|b|} / 224) \rfloor

    limited to the levels there are; level :math:`k` has :math:`2^{-k}` features per pixel. A box of exactly a limit
    takes the coarser level, a degenerate one the finest.

    Args:
      levels: feature maps of one image, finest first, shapes `(h_l, w_l, c)` with one c.
      boxes: (x0, y0, x1, y1) in pixels of the image, shape `(p, 4)`.
      scales: features per pixel of each level, each half of the one before, such as (1/4, 1/8, 1/16, 1/32).
      size, sampling_ratio, aligned, valid: as in `roi_align`.
      canonical_size: extent in pixels of the box that belongs to `canonical_level`.
      canonical_level: :math:`k_0`, the level of scale :math:`2^{-k_0}`.

    Returns:
      Features, shape `(p, *size, c)`, in the dtype of the levels. With several levels there is no gradient under
      `jax.vmap`: map over images with `jax.lax.map`.

    Raises:
      ValueError: no level, one scale too many or too few, scales that do not halve, levels of different channels or
        dtypes, and what `roi_align` raises.

    Example:
      >>> levels = [jnp.full((64, 64, 1), 2.0), jnp.full((32, 32, 1), 3.0)]
      >>> boxes = jnp.array([[0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 200.0, 200.0]])
      >>> multilevel_roi_align(levels, boxes, scales=(1 / 4, 1 / 8), size=1).ravel().tolist()
      [2.0, 3.0]

    References:
      Lin et al. 2017, "Feature Pyramid Networks", Eq. 1.
    """
    if len(levels) == 0 or len(levels) != len(scales):
        raise ValueError(f"there are {len(levels)} levels and {len(scales)} scales; give one scale for every level.")
    geometry = _geometry(tuple(scales), size, sampling_ratio, aligned)
    if any(not math.isclose(fine, 2 * coarse, rel_tol=1e-6) for fine, coarse in itertools.pairwise(scales)):
        raise ValueError(f"scales are {tuple(scales)}; expected each to be half of the one before, finest level first.")
    finest = -math.log2(scales[0])
    # In areas, not logarithms: exact at the limits, and defined for degenerate boxes.
    (area,) = as_floats(box_area(boxes))
    limits = [(canonical_size * 2.0 ** (finest + step - canonical_level)) ** 2 for step in range(1, len(levels))]
    level = sum(((area >= limit).astype(jnp.int32) for limit in limits), start=jnp.zeros(area.shape, jnp.int32))
    return _align(geometry, tuple(levels), boxes, valid, level)


class _Geometry(NamedTuple):
    """What is known before tracing."""

    scales: tuple[float, ...]
    size: tuple[int, int]
    ratio: int
    aligned: bool


def _geometry(scales: tuple[float, ...], size: PerAxis, sampling_ratio: int, aligned: bool) -> _Geometry:
    if any(not scale > 0 for scale in scales):
        raise ValueError(f"scale is {scales}; expected features per pixel, 1 / stride.")
    rows, columns = per_axis(size, 2, "size")
    (ratio,) = per_axis(sampling_ratio, 1, "sampling_ratio")
    return _Geometry(scales, (rows, columns), ratio, aligned)


def _align(
    geometry: _Geometry,
    levels: tuple[ArrayLike, ...],
    boxes: ArrayLike,
    valid: ArrayLike | None,
    level: Array | None,
) -> Array:
    maps = [jnp.asarray(one) for one in levels]
    shapes = [one.shape for one in maps]
    if any(0 in shape[:2] for shape in shapes):
        raise ValueError(f"features have shapes {shapes}; a map needs at least one row and one column.")
    if len({(shape[-1], one.dtype) for shape, one in zip(shapes, maps, strict=True)}) > 1:
        found = [(*shape, str(one.dtype)) for shape, one in zip(shapes, maps, strict=True)]
        raise ValueError(f"levels are {found}; expected one number of channels and one dtype.")
    *wide, boxes = as_floats(*maps, boxes)
    count = boxes.shape[0]
    level = jnp.zeros(count, jnp.int32) if level is None else level
    valid = jnp.ones(count, bool) if valid is None else jnp.asarray(valid)
    # Before anything is computed from them: what is NaN times 0 stays NaN, forwards and backwards.
    boxes = jnp.where(valid[:, None], boxes, 0)
    return _interpolate(geometry, tuple(wide), boxes, level, valid).astype(maps[0].dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _interpolate(geometry: _Geometry, levels: tuple[Array, ...], boxes: Array, level: Array, valid: Array) -> Array:
    # On 2 cores, milliseconds for the value, and for value and gradient in the features, 7 x 7 bins: 512 boxes on
    # 16 x 16 x 64, this 0.6 and 4.7, dense both ways 1.6 and 5.8, gather and its scatter 0.6 and 23; 256 boxes on
    # 64 x 64 x 256, this 2 and 29, dense 14 and 41, gather and scatter 2 and 50.
    read = partial(_gathered, geometry, levels)
    # XLA's CPU compiler would flatten the features, as a dense layer wants them, in the loop that gathers them, which
    # then looks every number up by itself: 512 boxes of each of 4 images and that layer 83 ms, in chunks 10.
    chunked = read if boxes.shape[0] <= CHUNK else partial(_in_chunks, read)
    return lax.platform_dependent(boxes, level, valid, cpu=chunked, default=read)


def _interpolate_jvp(geometry: _Geometry, primals: tuple, tangents: tuple) -> tuple[Array, Array | SymbolicZero]:
    levels, boxes, level, valid = primals
    levels_dot, boxes_dot, *_ = tangents
    value = _interpolate(geometry, levels, boxes, level, valid)
    parts = []
    if not all(isinstance(one, SymbolicZero) for one in levels_dot):
        dense_in = tuple(
            jnp.zeros_like(one) if isinstance(dot, SymbolicZero) else dot
            for one, dot in zip(levels, levels_dot, strict=True)
        )
        parts.append(_dense(geometry, dense_in, boxes, level, valid))
    if not isinstance(boxes_dot, SymbolicZero):
        # In chunks: its transpose wants every gathered feature, (2 ratio)² times the output.
        read = partial(_gathered, geometry, levels)
        parts.append(jax.jvp(lambda moved: _in_chunks(read, moved, level, valid), (boxes,), (boxes_dot,))[1])
    return value, sum(parts[1:], start=parts[0]) if parts else jnp.zeros_like(value)


_interpolate.defjvp(_interpolate_jvp, symbolic_zeros=True)


def _samples(geometry: _Geometry, low: Array, high: Array, bins: int, scale: Array | float) -> Array:
    """Coordinates of the samples of each box along one axis, in features, shape `(p, bins, ratio)`."""
    shift = 0.5 if geometry.aligned else 0.0
    low, high = low * scale - shift, high * scale - shift
    extent = high - low if geometry.aligned else jnp.maximum(high - low, 1)
    at = jnp.arange(bins * geometry.ratio, dtype=low.dtype) + 0.5
    return (low[:, None] + (extent / bins)[:, None] * (at / geometry.ratio)[None, :]).reshape(-1, bins, geometry.ratio)


def _gathered(geometry: _Geometry, levels: tuple[Array, ...], boxes: Array, level: Array, valid: Array) -> Array:
    """Features at the samples' neighbours, weighted."""
    rows, columns = geometry.size

    def of_level(values: list) -> Array:
        return jnp.asarray(values, jnp.int32)[level]

    starts = [sum(one.shape[0] * one.shape[1] for one in levels[:before]) for before in range(len(levels))]
    flat = jnp.concatenate([one.reshape(-1, one.shape[-1]) for one in levels])
    start, height, width = (
        of_level(values) for values in (starts, [one.shape[0] for one in levels], [one.shape[1] for one in levels])
    )
    scale = jnp.asarray(geometry.scales, boxes.dtype)[level]

    def neighbours(low: Array, high: Array, bins: int, extent: Array) -> tuple[Array, Array]:
        """Index and weight of two features for every sample, shape `(p, bins, 2 ratio)`."""
        at = _samples(geometry, low, high, bins, scale)
        extent = extent[:, None, None]
        end = extent.astype(at.dtype)
        inside = (at >= -1) & (at <= end) & valid[:, None, None]
        at = jnp.clip(at, 0, end - 1)
        below = jnp.floor(lax.stop_gradient(at))
        first = below.astype(jnp.int32)
        fraction = at - below
        index = jnp.concatenate([first, jnp.minimum(first + 1, extent - 1)], axis=-1)
        weight = jnp.concatenate([1 - fraction, fraction], axis=-1) / geometry.ratio
        return index, jnp.where(jnp.concatenate([inside, inside], axis=-1), weight, 0)

    row, row_weight = neighbours(boxes[:, 1], boxes[:, 3], rows, height)
    column, column_weight = neighbours(boxes[:, 0], boxes[:, 2], columns, width)
    row = start[:, None, None] + row * width[:, None, None]
    taps = 2 * geometry.ratio
    total = jnp.zeros((boxes.shape[0], rows, columns, flat.shape[-1]), flat.dtype)
    for i in range(taps):
        for j in range(taps):
            index = row[:, :, None, i] + column[:, None, :, j]
            weight = row_weight[:, :, None, i] * column_weight[:, None, :, j]
            total += flat.at[index].get(mode="clip") * weight[..., None]
    # A weight of zero does not silence a feature that is not finite.
    return jnp.where(valid[:, None, None, None], total, 0)


def _dense(geometry: _Geometry, levels: tuple[Array, ...], boxes: Array, level: Array, valid: Array) -> Array:
    """The same by matrices of interpolation, in chunks of boxes; linear in the levels."""
    rows, columns = geometry.size
    channels = levels[0].shape[-1]

    def matrix(low: Array, high: Array, bins: int, extent: int, scale: float) -> Array:
        """Weights of `extent` features in each bin, shape `(p, bins, extent)`."""
        at = _samples(geometry, low, high, bins, scale)
        inside = (at >= -1) & (at <= extent)
        at = jnp.clip(at, 0, extent - 1)
        distance = jnp.abs(at[..., None] - jnp.arange(extent, dtype=at.dtype)[None, None, None, :])
        return jnp.mean(jnp.where(inside[..., None], jnp.maximum(1 - distance, 0), 0), axis=2)

    def read(features: Array, scale: float, boxes: Array, member: Array) -> Array:
        of_rows = matrix(boxes[:, 1], boxes[:, 3], rows, features.shape[0], scale)
        of_columns = matrix(boxes[:, 0], boxes[:, 2], columns, features.shape[1], scale)
        of_rows = jnp.where(member[:, None, None], of_rows, 0)
        of_columns = jnp.broadcast_to(of_columns[:, None], (boxes.shape[0], rows, columns, features.shape[1]))
        return jnp.einsum("pijw,piwc->pijc", of_columns, jnp.einsum("pih,hwc->piwc", of_rows, features))

    def nothing(boxes: Array, member: Array) -> Array:
        return jnp.zeros((CHUNK, rows, columns, channels), levels[0].dtype)

    # Rows of one level lie together, so that most chunks skip most levels: with four levels, value and gradient take
    # 0.4 of the time of reading every box on every level. Under vmap a condition is computed both ways, which is no
    # worse than that.
    order = jnp.argsort(level, stable=True) if len(levels) > 1 else None
    ordered = (boxes, level, valid) if order is None else (boxes[order], level[order], valid[order])

    def chunk(boxes: Array, level: Array, valid: Array) -> Array:
        total = nothing(boxes, valid)
        for number, (features, scale) in enumerate(zip(levels, geometry.scales, strict=True)):
            member = valid & (level == number)
            one = partial(read, features, scale)
            if len(levels) == 1:
                return one(boxes, member)
            total += lax.cond(jnp.any(member), one, nothing, boxes, member)
        return total

    outputs = _in_chunks(chunk, *ordered)
    return outputs if order is None else jnp.zeros_like(outputs).at[order].set(outputs, unique_indices=True)


def _in_chunks(read: Callable, boxes: Array, level: Array, valid: Array) -> Array:
    """`read(boxes, level, valid)` for `CHUNK` boxes at a time, of which a gradient stores nothing but the boxes."""
    count = boxes.shape[0]
    chunks = -(-count // CHUNK)

    def split(rows: Array) -> Array:
        padded = jnp.pad(rows, [(0, chunks * CHUNK - count)] + [(0, 0)] * (rows.ndim - 1))
        return padded.reshape((chunks, CHUNK, *rows.shape[1:]))

    outputs = lax.map(jax.checkpoint(lambda rows: read(*rows)), (split(boxes), split(level), split(valid)))
    return outputs.reshape((chunks * CHUNK, *outputs.shape[2:]))[:count]
