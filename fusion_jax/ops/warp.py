"""Sampling at any place: affine and elastic deformations, per example, of images and label maps."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Float, Key, Num, as_floats
from fusion_jax.ops.windows import per_axis

__all__ = ["affine_matrix", "affine_warp", "elastic_displacement", "elastic_warp", "warp"]

Method = Literal["linear", "nearest"]
Mode = Literal["constant", "nearest"]


def warp(
    x: Num[ArrayLike, "*n c"],
    coordinates: Float[ArrayLike, "axes *m"],
    *,
    method: Method = "linear",
    mode: Mode = "constant",
    fill: Num[ArrayLike, "*#c"] = 0.0,
) -> Num[Array, "*m c"]:
    r"""Image sampled at `coordinates`, between positions by linear interpolation.

    .. math:: y(o) = \sum_{k \in \{0, 1\}^a} x(\lfloor u \rfloor + k)
              \prod_i \left|1 - k_i - (u_i - \lfloor u_i \rfloor)\right|, \qquad u = u(o)

    One rule at the border: the image lies in an endless grid, of `fill` or of its edge values, and interpolation knows
    no border. It is continuous, unlike SciPy's `constant`, which drops to the fill right beyond the last centre.

    Args:
      x: one example, shape `(*spatial, c)`; `vmap` over a batch.
      coordinates: where to sample, in positions of `x` counted from 0, order of its axes, shape `(axes, *sizes)`.
      method: `linear`, differentiable in `x` and `coordinates`; `nearest` for label maps, which keeps dtype and values
        and rounds halves up.
      mode: `constant` continues with `fill`, `nearest` with the edge.
      fill: one number, or one a channel (air in CT is -1000 HU).

    Returns:
      Samples, shape `(*sizes, c)`, dtype of `x`. A NaN reaches all places less than two positions away.

    Raises:
      ValueError: coordinates for another number of axes; an empty axis; unknown method or mode.
      TypeError: integers with `linear`.

    Example:
      >>> warp(jnp.array([[1.0], [3.0]]), jnp.array([[0.5, 1.0, 1.5]])).ravel().tolist()
      [2.0, 3.0, 1.5]

    References:
      `scipy.ndimage.map_coordinates` with order 0 or 1 and mode `grid-constant` or `nearest`.
    """
    x = jnp.asarray(x)
    (coordinates,) = as_floats(coordinates)
    sizes, axes = x.shape[:-1], x.ndim - 1
    if axes < 1 or coordinates.ndim < 1 or coordinates.shape[0] != axes:
        raise ValueError(
            f"coordinates have shape {coordinates.shape} for x with shape {x.shape}; expected (axes, *sizes) with "
            "one row for each axis of x but the last, its channels."
        )
    if 0 in sizes:
        raise ValueError(f"x has shape {x.shape}; an axis without positions cannot be sampled.")
    if mode not in ("constant", "nearest"):
        raise ValueError(f"mode is {mode!r}; expected 'constant' or 'nearest'.")
    if method not in ("linear", "nearest"):
        raise ValueError(f"method is {method!r}; expected 'linear' or 'nearest'.")
    if method == "linear" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype.name}; linear sampling needs a floating dtype, or use method='nearest'.")

    # Beyond these everything is fill, or edge; integers could not hold coordinates far outside.
    last = np.asarray(sizes) - 1
    low, high = (0 * last, last) if mode == "nearest" else (0 * last - 1, last + 1)
    places = [jnp.clip(coordinates[i], int(low[i]), int(high[i])) for i in range(axes)]
    rows = x.reshape(-1, x.shape[-1])
    fill = jnp.broadcast_to(jnp.asarray(fill, x.dtype), x.shape[-1:])

    def values(index: Sequence[Array]) -> Array:
        inside = jnp.ones(coordinates.shape[1:], bool)
        row = jnp.zeros(coordinates.shape[1:], jnp.int32)
        for one, size in zip(index, sizes, strict=True):
            inside = inside & (one >= 0) & (one < size)
            row = row * size + jnp.clip(one, 0, size - 1)
        found = jnp.take(rows, row, axis=0, mode="clip")
        if mode == "nearest":
            return found
        return jnp.where(inside[..., None], found, jnp.broadcast_to(fill, found.shape))

    if method == "nearest":
        return values([jnp.floor(place + 0.5).astype(jnp.int32) for place in places])

    dtype = as_floats(jnp.zeros((), x.dtype))[0].dtype
    lower = [jnp.floor(place) for place in places]
    index = [place.astype(jnp.int32) for place in lower]
    above = [(place - down).astype(dtype) for place, down in zip(places, lower, strict=True)]
    total = jnp.zeros((*coordinates.shape[1:], x.shape[-1]), dtype)
    for corner in itertools.product((0, 1), repeat=axes):
        weight = jnp.ones((), dtype)
        for part, k in zip(above, corner, strict=True):
            weight = weight * (part if k else 1.0 - part)
        value = values([i + k for i, k in zip(index, corner, strict=True)]).astype(dtype)
        # A corner without weight says nothing, whatever it holds: NaN as `fill` stays outside.
        weight = jnp.broadcast_to(weight[..., None], value.shape)
        total = total + jnp.where(weight == 0, 0, weight * jnp.where(weight == 0, 0, value))
    return total.astype(x.dtype)


def affine_warp(
    x: Num[ArrayLike, "*n c"],
    matrix: Float[ArrayLike, "axes axes"],
    offset: Float[ArrayLike, "*#axes"] = 0.0,
    *,
    sizes: Sequence[int] | None = None,
    method: Method = "linear",
    mode: Mode = "constant",
    fill: Num[ArrayLike, "*#c"] = 0.0,
) -> Num[Array, "*m c"]:
    r"""Image whose position :math:`o` shows position :math:`A o + t` of `x`.

    Args:
      x: one example, shape `(*spatial, c)`; `vmap` over a batch.
      matrix: :math:`A`, from positions of the output to positions of `x`, axes in the order of the array.
      offset: :math:`t`, positions of `x`, one number or one an axis.
      sizes: positions of the output; those of `x` unless given.
      method, mode, fill: as in `warp`.

    Returns:
      Image, shape `(*sizes, c)`, dtype of `x`; differentiable in `x`, `matrix` and `offset`.

    Raises:
      ValueError, TypeError: as `warp`; a matrix or sizes for another number of axes.

    Example:
      >>> x = jnp.arange(4.0).reshape(2, 2, 1)
      >>> affine_warp(x, *affine_matrix((2, 2), rotation=jnp.pi / 2), mode="nearest")[..., 0].round(4).tolist()
      [[1.0, 3.0], [0.0, 2.0]]

    References:
      `scipy.ndimage.affine_transform`.
    """
    x = jnp.asarray(x)
    axes = x.ndim - 1
    matrix, offset = as_floats(matrix, offset)
    if matrix.shape != (axes, axes) or offset.shape not in ((), (1,), (axes,)):
        raise ValueError(
            f"matrix has shape {matrix.shape} and offset {offset.shape} for x with shape {x.shape}; expected "
            f"{(axes, axes)} and {(axes,)}. Use vmap for a batch."
        )
    grid = _grid(x.shape[:-1] if sizes is None else per_axis(sizes, axes, "sizes"), matrix.dtype)
    # Products in full precision: the short ones of an accelerator would misplace by a position.
    turned = jnp.einsum("ij,j...->i...", matrix, grid, precision=jax.lax.Precision.HIGHEST)
    offset = jnp.broadcast_to(offset, (axes,)).reshape(axes, *(1,) * axes)
    return warp(x, turned + offset, method=method, mode=mode, fill=fill)


def affine_matrix(
    sizes: Sequence[int],
    *,
    rotation: Float[ArrayLike, "*r"] | None = None,
    scale: Float[ArrayLike, "*#axes"] = 1.0,
    shear: Float[ArrayLike, "*s"] = 0.0,
    flip: Sequence[bool] | None = None,
    translation: Float[ArrayLike, "*#axes"] = 0.0,
    spacing: Float[ArrayLike, "*#axes"] = 1.0,
) -> tuple[Float[Array, "axes axes"], Float[Array, "axes"]]:
    r"""Matrix and offset for `affine_warp` that flip, scale, shear, turn and then shift an image about its centre.

    .. math:: A = S^{-1} (R H D)^{-1} S, \qquad t = q - A\,(q + S^{-1} v), \qquad q = (n - 1)/2

    with flips and scales :math:`D`, shears :math:`H`, rotations :math:`R`, translation :math:`v` and spacing
    :math:`S`: everything happens in millimetres, so that a turned anisotropic image is turned and not sheared.

    Args:
      sizes: positions :math:`n` of the image, two or three axes.
      rotation: angles in radians. In 2-D one, from the first axis towards the second, as `np.rot90` turns. In 3-D one
        about each axis, `(d, h, w)`, each from the lower to the higher of the other two axes, done in this order.
      scale: larger than one enlarges; one number or one an axis.
      shear: shift of the lower axis per length along the higher: of `(h, w)` in 2-D; of `(d, h)`, `(d, w)` and
        `(h, w)` in 3-D. One number stands for all.
      flip: axes to mirror.
      translation: in the units of `spacing`, along each axis.
      spacing: distance between positions, `(dz, dy, dx)` in mm; one number or one an axis.

    Returns:
      Matrix `(axes, axes)` and offset `(axes,)`, differentiable in every number.

    Raises:
      ValueError: other than two or three axes, or a wrong number of values.

    Example:
      >>> matrix, offset = affine_matrix((3, 5), scale=2.0)
      >>> matrix.tolist(), offset.tolist()
      ([[0.5, 0.0], [0.0, 0.5]], [0.5, 1.0])
    """
    axes = len(sizes)
    if axes not in (2, 3):
        raise ValueError(f"sizes is {tuple(sizes)!r}; expected two or three axes.")
    planes = [(0, 1)] if axes == 2 else [(1, 2), (0, 2), (0, 1)]
    pairs = list(itertools.combinations(range(axes), 2))
    rotation = np.zeros(len(planes), np.float16) if rotation is None else rotation
    rotation, scale, shear, translation, spacing = as_floats(rotation, scale, shear, translation, spacing)

    def each(values: Array, count: int, name: str) -> Array:
        if values.shape not in ((), (1,), (count,)):
            raise ValueError(f"{name} has shape {values.shape}; expected one number or {count} for {axes} axes.")
        return jnp.broadcast_to(values, (count,))

    if axes == 3 and rotation.shape != (3,):
        raise ValueError(f"rotation has shape {rotation.shape}; 3-D needs three angles, about each of (d, h, w).")
    angles = each(rotation, len(planes), "rotation")
    mirrored = np.ones(axes) if flip is None else np.where(np.asarray(flip, bool), -1.0, 1.0)
    if mirrored.shape != (axes,):
        raise ValueError(f"flip is {flip!r}; expected one truth value for each of {axes} axes.")
    stretch = each(scale, axes, "scale") * jnp.asarray(mirrored, scale.dtype)
    unit = each(spacing, axes, "spacing")
    product = jax.lax.Precision.HIGHEST

    # The inverse is written down factor by factor: exact, and no solver in the way of derivatives.
    inverse = jnp.eye(axes, dtype=scale.dtype)
    for angle, (low, high) in zip(angles, planes, strict=True):
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.eye(axes, dtype=scale.dtype).at[[low, high], [low, high]].set(cosine)
        turn = turn.at[low, high].set(sine).at[high, low].set(-sine)
        inverse = jnp.matmul(inverse, turn, precision=product)
    lean = jnp.zeros((axes, axes), scale.dtype)
    for amount, (low, high) in zip(each(shear, len(pairs), "shear"), pairs, strict=True):
        lean = lean.at[low, high].set(amount)
    unlean = jnp.eye(axes, dtype=scale.dtype) - lean + jnp.matmul(lean, lean, precision=product)
    inverse = jnp.matmul(unlean, inverse, precision=product) / stretch[:, None]

    matrix = inverse * unit[None, :] / unit[:, None]
    centre = jnp.asarray((np.asarray(sizes) - 1) / 2, scale.dtype)
    shifted = centre + each(translation, axes, "translation") / unit
    return matrix, centre - jnp.matmul(matrix, shifted, precision=product)


def elastic_displacement(
    key: Key,
    sizes: Sequence[int],
    *,
    magnitude: Float[ArrayLike, "*#axes"],
    smoothness: float | Sequence[float],
) -> Float[Array, "axes *n"]:
    r"""Random smooth displacement: uniform noise under a Gaussian, one independent field an axis.

    .. math:: u_i = \alpha_i \frac{(G_\sigma * \epsilon_i)}{\lVert G_\sigma \rVert_2}, \qquad
              \epsilon_i \sim U(-\sqrt3, \sqrt3)

    The noise goes on beyond the image, so the field is as large at its border as inside.

    Args:
      key: random key.
      sizes: positions of the image.
      magnitude: standard deviation :math:`\alpha` of a displacement, in positions, one number or one an axis.
        Displacements rarely exceed three times this; below about half of `smoothness` the map seldom folds.
      smoothness: standard deviation :math:`\sigma` of the Gaussian, in positions, one number or one an axis; a Python
        number, since it decides shapes.

    Returns:
      Displacements, shape `(axes, *sizes)`, positions.

    Raises:
      ValueError: a wrong number of values, or a smoothness that is negative or not finite.

    Example:
      >>> elastic_displacement(jax.random.key(0), (8, 9), magnitude=2.0, smoothness=3.0).shape
      (2, 8, 9)

    References:
      Simard et al. 2003, section 2; there :math:`\alpha` is not relative to the norm of the Gaussian.
    """
    axes = len(sizes)
    widths = tuple(smoothness) if isinstance(smoothness, Sequence) else (smoothness,) * axes
    if len(widths) != axes or not all(math.isfinite(width) and width >= 0 for width in widths):
        raise ValueError(f"smoothness is {smoothness!r}; expected one finite number from 0, or {axes}.")
    (magnitude,) = as_floats(magnitude)
    if magnitude.shape not in ((), (1,), (axes,)):
        raise ValueError(f"magnitude has shape {magnitude.shape}; expected one number or {axes}.")
    reaches = [math.ceil(4 * width) for width in widths]
    shape = [size + 2 * reach for size, reach in zip(sizes, reaches, strict=True)]
    limit = math.sqrt(3.0)
    field = jax.random.uniform(key, (axes, *shape), magnitude.dtype, -limit, limit)
    for axis, (size, reach, width) in enumerate(zip(sizes, reaches, widths, strict=True), start=1):
        if reach == 0:
            continue
        taps = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / width))
        # A product with a banded matrix: convolutions along one axis are slow on XLA:CPU, and shapes here are small.
        band = np.zeros((size, size + 2 * reach))
        for row in range(size):
            band[row, row : row + taps.size] = taps / np.linalg.norm(taps)
        smooth = jnp.tensordot(
            jnp.asarray(band, field.dtype), field, axes=(1, axis), precision=jax.lax.Precision.HIGHEST
        )
        field = jnp.moveaxis(smooth, 0, axis)
    return field * jnp.broadcast_to(magnitude, (axes,)).reshape(axes, *(1,) * axes)


def elastic_warp(
    x: Num[ArrayLike, "*n c"],
    displacement: Float[ArrayLike, "axes *n"],
    *,
    method: Method = "linear",
    mode: Mode = "constant",
    fill: Num[ArrayLike, "*#c"] = 0.0,
) -> Num[Array, "*n c"]:
    r"""Image whose position :math:`o` shows position :math:`o + u(o)` of `x`.

    Args:
      x: one example, shape `(*spatial, c)`; `vmap` over a batch.
      displacement: :math:`u` in positions, shape `(axes, *spatial)`, from `elastic_displacement`. Images and label map
        of a case share it.
      method, mode, fill: as in `warp`.

    Returns:
      Image, shape and dtype of `x`; differentiable in `x` and `displacement`.

    Raises:
      ValueError, TypeError: as `warp`; a displacement of another shape.

    Example:
      >>> elastic_warp(jnp.array([[1.0], [3.0]]), jnp.array([[0.5, 0.0]])).ravel().tolist()
      [2.0, 3.0]
    """
    x = jnp.asarray(x)
    (displacement,) = as_floats(displacement)
    sizes = x.shape[:-1]
    if displacement.shape != (len(sizes), *sizes):
        raise ValueError(
            f"displacement has shape {displacement.shape} for x with shape {x.shape}; expected {(len(sizes), *sizes)}."
        )
    return warp(x, _grid(sizes, displacement.dtype) + displacement, method=method, mode=mode, fill=fill)


def _grid(sizes: Sequence[int], dtype: np.dtype) -> Array:
    """Positions of an image, shape `(axes, *sizes)`."""
    return jnp.stack(jnp.meshgrid(*(jnp.arange(size, dtype=dtype) for size in sizes), indexing="ij"))
