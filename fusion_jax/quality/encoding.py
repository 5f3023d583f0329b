r"""Encodings that lift a few clinical values to as many coordinates as an image has features.

Positional encoding (Wang et al. 2023, Eq. 8 and 9) and the alternatives that the paper names as future work share one
pair of functions, an `Encoding`: `fit(values, key) -> params`, `encode(params, values, size) -> coordinates`. Only
`fit` looks at a cohort, so it is given training patients; `encode` is pure and differentiable in values and parameters.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Float, Key, as_floats, is_concrete

__all__ = [
    "ENCODINGS",
    "Encoding",
    "Scaling",
    "fourier",
    "linear",
    "masked_positional_encoding",
    "mean_positional_encoding",
    "pca",
    "positional",
    "positional_encoding",
    "positional_encoding_vector",
    "repetition",
]

Params = Any
Remainder = Literal["error", "pad"]
BASE = 10_000.0
# The one dtype that does not follow the input: normals drawn in double precision are other numbers, and x64 is to
# refine a fitted encoding, not to replace it.
DRAWN = jnp.float32


class Encoding(NamedTuple):
    """An encoding of clinical values.

    Attributes:
      fit: `fit(values, key) -> params` from a cohort's values, shape `(b, t)`.
      encode: `encode(params, values, size) -> coordinates` of shape `(*b, size)` for values of shape `(*b, t)`.
    """

    fit: Callable[[ArrayLike, Key], Params]
    encode: Callable[[Params, ArrayLike, int], Array]


class Scaling(NamedTuple):
    """Centre and scale of each column, shape `(t,)`: values enter an encoding as `(value - centre) / scale`."""

    centre: Float[Array, "t"]
    scale: Float[Array, "t"]


# Positional encoding.


def positional_encoding(
    values: Float[ArrayLike, "*b"], size: int, *, base: Float[ArrayLike, ""] = BASE
) -> Float[Array, "*b size"]:
    r"""Sinusoidal positional encoding of each value.

    .. math:: \mathrm{PE}(y)_{2k} = \sin(y\,\omega_k), \quad \mathrm{PE}(y)_{2k+1} = \cos(y\,\omega_k), \quad
              \omega_k = \mathrm{base}^{-2k/D}, \quad k = 0 \dots \lceil D/2\rceil - 1

    For odd sizes the last cosine is left out. Inner products depend on differences of values alone, and the squared
    norm is `D / 2` for even sizes.

    Args:
      values: values in native units (the paper's choice) or scaled, any shape.
      size: number of coordinates `D` of each value; static.
      base: the wavelengths run from :math:`2\pi` to :math:`2\pi\,\mathrm{base}`.

    Returns:
      Coordinates in [-1, 1], shape `(*values.shape, size)`.

    Raises:
      ValueError: `size` is not positive.

    Example:
      >>> positional_encoding(0.0, 4).tolist()
      [0.0, 1.0, 0.0, 1.0]

    References:
      Wang et al. 2023, Eq. 8 and 9; specs/fusion_quality.md, A13.
    """
    if size < 1:
        raise ValueError(f"an encoding needs at least one coordinate; found size={size}.")
    values, base = as_floats(values, base)
    coordinate = jnp.arange(size)
    return _sinusoids(values[..., None], coordinate, _frequencies(coordinate, size, base))


def positional_encoding_vector(
    values: Float[ArrayLike, "*b t"],
    size: int,
    *,
    base: Float[ArrayLike, ""] = BASE,
    remainder: Remainder = "error",
) -> Float[Array, "*b size"]:
    """Positional encodings of several markers, one after the other, `size / t` coordinates each.

    Args:
      values: marker values of each case, native units or scaled, shape `(*b, t)`.
      size: number of coordinates of the whole vector; static.
      base: as in `positional_encoding`.
      remainder: what to do when `t` does not divide `size`: raise an error, or `pad` with zeros at the end. Zeros
        are values like any other to a density; give them weight 0 there.

    Returns:
      Coordinates, shape `(*b, size)`.

    Raises:
      ValueError: `size` is below `t`, or not a multiple of it under `remainder="error"`.

    Example:
      >>> positional_encoding_vector(jnp.zeros(2), 4).tolist()
      [0.0, 1.0, 0.0, 1.0]

    References:
      Wang et al. 2023, Eq. 8 to 10; per marker by specs/fusion_quality.md, A11.
    """
    (values,) = as_floats(values)
    markers = values.shape[-1]
    if remainder not in ("error", "pad"):
        raise ValueError(f"remainder is {remainder!r}; expected 'error' or 'pad'.")
    if not markers:
        raise ValueError(f"an encoding needs at least one marker; found values of shape {values.shape}.")
    each = size // markers
    if each < 1 or (size % markers and remainder == "error"):
        raise ValueError(
            f"{size} coordinates do not divide among {markers} markers; the nearest sizes that do are "
            f"{max(each, 1) * markers} and {(max(each, 1) + 1) * markers}. Take one of them, or remainder='pad'."
        )
    blocks = positional_encoding(values, each, base=base)
    flat = blocks.reshape(*values.shape[:-1], markers * each)
    return jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, size % markers)])


def masked_positional_encoding(
    values: Float[ArrayLike, "t"],
    size: Float[ArrayLike, ""],
    padded_size: int,
    *,
    base: Float[ArrayLike, ""] = BASE,
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    r"""`positional_encoding_vector` of any real size in one static shape, for sweeps over sizes under `vmap`.

    Coordinate `c` of a marker with `D = size / t` coordinates has weight :math:`\min(\max(D - c, 0), 1)`: 1 inside the
    encoding, 0 beyond it, and the fractional rest for the last coordinate of a size that is not whole.

    Args:
      values: marker values of one case, shape `(t,)`.
      size: number of coordinates of the whole vector, real, shape `()`; may be traced.
      padded_size: number of coordinates that are computed; static, a multiple of `t` and at least `size`.
      base: as in `positional_encoding`.

    Returns:
      Coordinates and their weights, both of shape `(padded_size,)`.

    Raises:
      ValueError: `padded_size` is not a multiple of `t`, or known to be below `size`.

    Example:
      >>> coordinates, weights = masked_positional_encoding(jnp.zeros(1), 2.5, 4)
      >>> coordinates.tolist(), weights.tolist()
      ([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.5, 0.0])
    """
    values, size, base = as_floats(values, size, base)
    markers = values.size
    coordinate, each, weights = _masked_coordinates(size, markers, padded_size)
    blocks = _sinusoids(values[:, None], coordinate, _frequencies(coordinate, each, base))
    return blocks.reshape(padded_size), jnp.tile(weights, markers)


def mean_positional_encoding(
    values: Float[ArrayLike, "n"],
    size: Float[ArrayLike, ""],
    padded_size: int,
    *,
    base: Float[ArrayLike, ""] = BASE,
    nodes: int | None = None,
) -> tuple[Float[Array, "padded"], Float[Array, "padded"]]:
    r"""Mean of the positional encodings of many values, at the cost of a few dozen frequencies.

    The mean over values, :math:`\frac1n\sum_j e^{i y_j\omega}`, is their characteristic function; for :math:`|y| \le Y`
    it is entire and of exponential type `Y` in :math:`\omega \in [0, 1]`, so `nodes` Chebyshev points determine it to
    rounding once they exceed `Y / 2` by a few dozen, whatever the size of the encoding.

    Args:
      values: values, native units or scaled, shape `(n,)`.
      size: number of coordinates, real; may be traced.
      padded_size: number of coordinates that are computed; static.
      base: as in `positional_encoding`, at least 1.
      nodes: number of Chebyshev points; static, read off the largest value unless given.

    Returns:
      Mean coordinates and their weights (see `masked_positional_encoding`), both of shape `(padded_size,)`.

    Raises:
      ValueError: `nodes` left out under a trace.

    Example:
      >>> mean, weights = mean_positional_encoding(jnp.zeros(5), 2.0, 4)
      >>> weights.tolist()
      [1.0, 1.0, 0.0, 0.0]

    References:
      The simulation of Wang et al. 2023, section 2.1.3; specs/fusion_quality.md, A9 and I9.
    """
    values, size, base = as_floats(values, size, base)
    if nodes is None:
        if not is_concrete(values):
            raise ValueError("the number of Chebyshev points cannot be read off traced values; give `nodes`.")
        nodes = chebyshev_nodes(float(jnp.max(jnp.abs(values))))
    coordinate, each, weights = _masked_coordinates(size, 1, padded_size)
    order = jnp.arange(nodes, dtype=values.dtype)
    angle = math.pi * (order + 0.5) / nodes
    frequency = 0.5 * (jnp.cos(angle) + 1.0)
    # Coefficients of the sine part and the cosine part in Chebyshev polynomials of 2ω - 1.
    transform = jnp.cos(order[:, None] * angle[None, :]) * 2.0 / nodes
    transform = transform.at[0].multiply(0.5)
    phase = values[:, None] * frequency[None, :]
    parts = transform @ jnp.stack([jnp.mean(jnp.sin(phase), axis=0), jnp.mean(jnp.cos(phase), axis=0)], axis=-1)
    at = 2.0 * _frequencies(coordinate, each, base) - 1.0
    coefficients = jnp.where((coordinate % 2 == 0)[None, :], parts[:, :1], parts[:, 1:])

    def clenshaw(carry, coefficient):
        last, before = carry
        return (2.0 * at * last - before + coefficient, last), None

    zero = jnp.zeros(padded_size, values.dtype)
    (last, before), _ = jax.lax.scan(clenshaw, (zero, zero), coefficients[1:], reverse=True)
    return at * last - before + coefficients[0], weights


def chebyshev_nodes(largest: float) -> int:
    """Chebyshev points that give the characteristic function of values up to `largest` to double precision."""
    return math.ceil(0.5 * largest + 12.0 * (0.5 * largest + 1.0) ** (1 / 3)) + 16


def _frequencies(coordinate: Array, size: ArrayLike, base: Array) -> Array:
    """Frequency of each coordinate, the same for a sine and the cosine after it."""
    pair = (coordinate // 2).astype(base.dtype)
    return base ** (-2.0 * pair / size)


def _sinusoids(values: Array, coordinate: Array, frequency: Array) -> Array:
    shape = (1,) * (values.ndim - 1) + (-1,)
    phase = values * frequency.reshape(shape)
    # cos(a) as sin(a + π/2) would lose the digits of large phases.
    return jnp.where((coordinate % 2 == 0).reshape(shape), jnp.sin(phase), jnp.cos(phase))


def _masked_coordinates(size: Array, markers: int, padded_size: int) -> tuple[Array, Array, Array]:
    if padded_size % markers:
        raise ValueError(f"padded_size={padded_size} is not a multiple of the {markers} markers.")
    if is_concrete(size) and not float(size) <= padded_size:
        raise ValueError(f"padded_size={padded_size} does not hold an encoding of size {float(size):g}.")
    each = size / markers
    coordinate = jnp.arange(padded_size // markers)
    return coordinate, each, jnp.clip(each - coordinate.astype(size.dtype), 0.0, 1.0)


# Encodings: pairs of fit and encode.


def positional(*, scaling: Literal["native", "robust"] = "native", base: float = BASE) -> Encoding:
    r"""Positional encoding of each marker; no parameters but an optional scaling.

    The base suits positions from 0 to thousands: at the default, albumin in g/dL is almost constant in most
    coordinates. Robust scaling (median and interquartile range of the cohort) with a smaller base uses them.

    Example:
      >>> encoding = positional()
      >>> params = encoding.fit(jnp.zeros((4, 2)), jax.random.key(0))
      >>> encoding.encode(params, jnp.zeros(2), 4).tolist()
      [0.0, 1.0, 0.0, 1.0]

    References:
      Wang et al. 2023, Eq. 8 and 9; specs/fusion_quality.md, A15.
    """

    def encode(params, values, size):
        return positional_encoding_vector(_scaled(params, values), size, base=base)

    return Encoding(partial(_fit_scaling, scaling), encode)


class Projection(NamedTuple):
    """Scaling of the columns, principal axes (identity unless fitted), and the key that draws the coordinates."""

    scaling: Scaling
    axes: Float[Array, "t t"]
    key: Key


def linear(*, scaling: Literal["native", "robust"] = "robust") -> Encoding:
    r"""Random linear projection, :math:`y^*_c = \sum_t y_t W_{tc} / \sqrt t` with standard normal `W`.

    Example:
      >>> encoding = linear()
      >>> params = encoding.fit(jnp.arange(8.0).reshape(4, 2), jax.random.key(0))
      >>> encoding.encode(params, jnp.ones((3, 2)), 5).shape
      (3, 5)
    """

    def encode(params, values, size):
        scaled = _scaled(params.scaling, values)
        columns = _columns(params.key, scaled, size, lambda key: jax.random.normal(key, scaled.shape[-1:], DRAWN))
        return scaled @ columns / math.sqrt(scaled.shape[-1])

    return Encoding(partial(_fit_projection, scaling), encode)


def pca() -> Encoding:
    r"""Lift along principal axes: whitened principal scores, mapped to `size` coordinates by a random isometry.

    .. math:: y^* = Q\,\Lambda^{-1/2} V^\top (y - \bar y), \qquad Q^\top Q = I

    Distances between encodings are Mahalanobis distances between patients, whatever the size. For sizes below the
    number of markers, the leading scores themselves. Columns without spread are left out.

    Example:
      >>> encoding = pca()
      >>> params = encoding.fit(jnp.array([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0]]), jax.random.key(0))
      >>> encoding.encode(params, jnp.ones(2), 6).shape
      (6,)
    """

    def fit(values, key):
        sample = _cohort(values)
        unit = np.where(np.ptp(sample, axis=0) > 0, sample.std(axis=0), 1.0)  # units must not decide what is small
        centred = (sample - sample.mean(axis=0)) / unit
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
        deviation = spread / math.sqrt(max(len(sample) - 1, 1))
        used = deviation > 1e-6 * deviation.max(initial=0.0)
        whitened = np.zeros((sample.shape[1], sample.shape[1]))
        whitened[:, : len(axes)] = (axes / np.where(used, deviation, 1.0)[:, None] * used[:, None]).T
        scaling = Scaling(*as_floats(sample.mean(axis=0), unit))
        return Projection(scaling, as_floats(whitened)[0], key)

    def encode(params, values, size):
        scaled = _scaled(params.scaling, values)
        scores = scaled @ params.axes.astype(scaled.dtype)
        markers = scores.shape[-1]
        if size <= markers:
            return scores[..., :size]
        frame = jax.random.normal(params.key, (size, markers), DRAWN).astype(scaled.dtype)
        isometry, _ = jnp.linalg.qr(frame)
        return scores @ isometry.T

    return Encoding(fit, encode)


def fourier(*, scaling: Literal["native", "robust"] = "robust", length_scale: float = 1.0) -> Encoding:
    r"""Random Fourier features, :math:`y^*_c = \cos(\omega_c^\top y + b_c)`, :math:`\omega_c \sim N(0, I/\ell^2)`.

    :math:`2\langle y^*, y'^*\rangle / D` approaches the Gaussian kernel :math:`e^{-\lVert y-y'\rVert^2/2\ell^2}`.

    Args:
      scaling: of the values before the projection.
      length_scale: :math:`\ell`, in scaled units.

    Example:
      >>> encoding = fourier()
      >>> params = encoding.fit(jnp.arange(8.0).reshape(4, 2), jax.random.key(0))
      >>> encoding.encode(params, jnp.ones(2), 5).shape
      (5,)
    """

    def encode(params, values, size):
        scaled = _scaled(params.scaling, values)
        frequency_key, phase_key = jax.random.split(params.key)
        frequencies = _columns(
            frequency_key, scaled, size, lambda key: jax.random.normal(key, scaled.shape[-1:], DRAWN)
        )
        phases = _columns(phase_key, scaled, size, lambda key: jax.random.uniform(key, (1,), DRAWN))
        projected = scaled @ frequencies / length_scale
        shape = (1,) * (projected.ndim - 1) + (-1,)
        return jnp.cos(projected + 2.0 * math.pi * phases[0].reshape(shape))

    return Encoding(partial(_fit_projection, scaling), encode)


def repetition(*, scaling: Literal["native", "robust"] = "robust") -> Encoding:
    """The values over and over: coordinate `c` holds marker `c mod t`.

    Example:
      >>> encoding = repetition(scaling="native")
      >>> params = encoding.fit(jnp.zeros((4, 2)), jax.random.key(0))
      >>> encoding.encode(params, jnp.array([1.0, 2.0]), 5).tolist()
      [1.0, 2.0, 1.0, 2.0, 1.0]
    """

    def encode(params, values, size):
        scaled = _scaled(params, values)
        return scaled[..., jnp.arange(size) % scaled.shape[-1]]

    return Encoding(partial(_fit_scaling, scaling), encode)


ENCODINGS: Mapping[str, Callable[..., Encoding]] = {
    "positional": positional,
    "linear": linear,
    "pca": pca,
    "fourier": fourier,
    "repetition": repetition,
}


def _cohort(values: ArrayLike) -> np.ndarray:
    sample = np.asarray(values, float)
    if sample.ndim != 2 or not sample.size:
        raise ValueError(f"an encoding is fitted to a cohort's values, shape (cases, columns); found {sample.shape}.")
    bad = np.argwhere(~np.isfinite(sample))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"column {column} holds {sample[row, column]} in row {row}; expected numbers. Impute missing values on the "
            "training patients first."
        )
    return sample


def _fit_scaling(scaling: str, values: ArrayLike, key: Key) -> Scaling:
    sample = _cohort(values)
    columns = sample.shape[1]
    if scaling == "native":
        return Scaling(*as_floats(np.zeros(columns), np.ones(columns)))
    if scaling != "robust":
        raise ValueError(f"scaling is {scaling!r}; expected 'native' or 'robust'.")
    low, centre, high = np.quantile(sample, (0.25, 0.5, 0.75), axis=0)
    # A yes/no column can have no interquartile range: fall back to its standard deviation, then to its unit.
    spread = np.where(high > low, high - low, sample.std(axis=0))
    # By range, since the standard deviation of equal values is rounding, not zero.
    return Scaling(*as_floats(centre, np.where(np.ptp(sample, axis=0) > 0, spread, 1.0)))


def _fit_projection(scaling: str, values: ArrayLike, key: Key) -> Projection:
    columns = _fit_scaling(scaling, values, key)
    return Projection(columns, jnp.eye(columns.scale.size, dtype=columns.scale.dtype), key)


def _scaled(scaling: Scaling, values: ArrayLike) -> Array:
    values, centre, scale = as_floats(values, scaling.centre, scaling.scale)
    if values.shape[-1:] != centre.shape:
        raise ValueError(f"values with {values.shape[-1:]} columns do not fit an encoding of {centre.size} columns.")
    shape = (1,) * (values.ndim - 1) + (-1,)
    return (values - centre.reshape(shape)) / scale.reshape(shape)


def _columns(key: Key, like: Array, size: int, draw: Callable[[Key], Array]) -> Array:
    """Columns drawn one by one from their own keys, so that a longer encoding extends a shorter one."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(size))
    return jax.vmap(draw, out_axes=1)(keys).astype(like.dtype)
