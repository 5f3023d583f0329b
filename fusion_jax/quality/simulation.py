r"""The simulated fusion of Wang et al. 2023, section 2.1.3: a Gaussian process and sparse samples of it.

The image features `x` are one path of a Gaussian process. The clinical values are a few of its values, drawn anew in
every iteration; their positional encodings are averaged over draws and iterations into :math:`y^*`, whose size sweeps
:math:`\gamma` (specs/fusion_quality.md, A8 to A10).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Float, Key, as_floats
from fusion_jax.quality.density import fft_size
from fusion_jax.quality.encoding import BASE, chebyshev_nodes, masked_positional_encoding, mean_positional_encoding
from fusion_jax.quality.measure import GammaSweep, Rescaling, sweep_gamma

__all__ = ["Simulation", "gaussian_process", "simulate", "sparse_samples"]

PAPER_SIZES = (10, 100, 500, 1000, 10_000, 100_000)
Combine = Literal["mean", "concat", "sum", "single"]


class Simulation(NamedTuple):
    """One simulated case.

    Attributes:
      x: path of the process, shape `(f,)`.
      draws: values drawn from it, shape `(iterations, markers)`.
      sweep: fusion quality at every size.
    """

    x: Array
    draws: Array
    sweep: GammaSweep


def gaussian_process(
    key: Key, size: int, *, covariance: Literal["white", "rbf"] = "white", length_scale: float = 50.0
) -> Float[Array, "f"]:
    r"""Path of a Gaussian process of unit variance at the points 0, 1, ..., `size - 1`.

    .. math:: k(i, j) = \delta_{ij} \quad\text{or}\quad e^{-(i-j)^2/2\ell^2}

    Args:
      key: random key.
      size: number of points.
      covariance: `white` (independent values, the paper's reading here) or `rbf`.
      length_scale: :math:`\ell` of `rbf`, in points; static.

    Example:
      >>> gaussian_process(jax.random.key(0), 5, covariance="rbf").shape
      (5,)

    References:
      Wang et al. 2023, section 2.1.3; specs/fusion_quality.md, A8.
    """
    if covariance == "white":
        return jax.random.normal(key, (size,))
    if covariance != "rbf":
        raise ValueError(f"covariance is {covariance!r}; expected 'white' or 'rbf'.")
    # Cut from a longer, periodic path, whose covariance is circulant: its root is a filter, exact to exp(-32).
    period = fft_size(size + math.ceil(8.0 * length_scale))
    noise = jax.random.normal(key, (period,))
    position = jnp.arange(period, dtype=noise.dtype)
    distance = jnp.minimum(position, period - position) / length_scale
    spectrum = jnp.fft.rfft(noise)
    variance = jnp.fft.rfft(jnp.exp(-0.5 * jnp.square(distance))).real
    gain = jnp.sqrt(jnp.maximum(variance, 0.0)).astype(spectrum.dtype)
    return jnp.fft.irfft(gain * spectrum, n=period)[:size]


def sparse_samples(key: Key, x: Float[ArrayLike, "f"], iterations: int, markers: int) -> Float[Array, "iterations t"]:
    """Draws of `markers` different values of `x`, one row an iteration.

    Example:
      >>> sparse_samples(jax.random.key(0), jnp.arange(10.0), 4, 3).shape
      (4, 3)
    """
    (x,) = as_floats(x)
    keys = jax.random.split(key, iterations)
    return jax.vmap(lambda one: jax.random.choice(one, x, (markers,), replace=False))(keys)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _path_and_draws(key, length_scale, size, covariance, iterations, markers) -> tuple[Array, Array]:
    path_key, draw_key = jax.random.split(key)
    x = gaussian_process(path_key, size, covariance=covariance, length_scale=length_scale)
    return x, sparse_samples(draw_key, x, iterations, markers)


class MeanEncode(NamedTuple):
    """Mean encoding of all draws, as `sweep_gamma` takes it: `mean` over markers, or their `concat`, or their `sum`."""

    nodes: int
    markers: int
    combine: Combine
    base: float

    def __call__(self, draws: Array, size: Array, padded_size: int) -> tuple[Array, Array]:
        if self.combine == "concat":
            columns = draws.reshape(-1, self.markers).T
            blocks, weights = jax.vmap(
                lambda column: mean_positional_encoding(
                    column, size / self.markers, padded_size // self.markers, base=self.base, nodes=self.nodes
                )
            )(columns)
            return blocks.reshape(padded_size), weights.reshape(padded_size)
        mean, weights = mean_positional_encoding(draws, size, padded_size, base=self.base, nodes=self.nodes)
        return mean * (self.markers if self.combine == "sum" else 1), weights


class EveryIteration(NamedTuple):
    """Encodings of every iteration side by side, so that densities, not encodings, are averaged over iterations."""

    markers: int
    base: float

    def __call__(self, draws: Array, size: Array, padded_size: int) -> tuple[Array, Array]:
        def one(row):
            coordinates, weights = jax.vmap(
                lambda value: masked_positional_encoding(value[None], size, padded_size, base=self.base)
            )(row)
            return jnp.mean(coordinates, axis=0), weights[0]

        coordinates, weights = jax.lax.map(one, draws.reshape(-1, self.markers))
        return coordinates.reshape(-1), weights.reshape(-1)


def simulate(
    key: Key,
    *,
    size_x: int = 1000,
    markers: int = 3,
    sizes: Sequence[float] | Float[ArrayLike, "g"] = PAPER_SIZES,
    iterations: int = 1000,
    covariance: Literal["white", "rbf"] = "white",
    length_scale: float = 50.0,
    bandwidth: Float[ArrayLike, "*k"] = 0.5,
    rescaling: Rescaling = "none",
    combine: Combine = "mean",
    average: Literal["encoding", "density"] = "encoding",
    grid: Float[ArrayLike, "n"] | None = None,
    normalise: bool = False,
    base: float = BASE,
) -> Simulation:
    r"""Simulated fusion of a Gaussian process with sparse samples of it, at every encoding size.

    Args:
      key: random key; the same key gives the same path and draws at every setting below.
      size_x: number of image features :math:`d_1`.
      markers: number of values drawn in an iteration, :math:`d_2`.
      sizes: encoding sizes :math:`d_2^*`, shape `(g,)`; any real numbers.
      iterations: number of iterations that are averaged.
      covariance, length_scale: of the process, see `gaussian_process`.
      bandwidth: standard deviation of the kernel, units of the scaled features; several at once if of shape `(k,)`.
      rescaling: of `x` and :math:`y^*` before their densities.
      combine: the draws of an iteration are encoded at full size and averaged (`mean`), summed (`sum`), encoded at a
        third of the size and concatenated (`concat`); `single` is the mean of one iteration.
      average: over iterations, of the `encoding` (the text's) or of the `density`, which keeps the spread over
        iterations; that one needs memory for `iterations` encodings of the largest size.
      grid: as in `sweep_gamma`; a common one spares paths of other ranges their compilation.
      normalise: normalised kernels, or the paper's of peak 1.
      base: of the positional encoding.

    Returns:
      `Simulation`.

    Raises:
      ValueError: more markers than features, an unknown choice, or a `sweep_gamma` that cannot be made.

    Example:
      >>> gap = simulate(jax.random.key(0), size_x=50, sizes=(5, 50, 500), iterations=20).sweep.energy_gap
      >>> bool(gap[0] > 0 > gap[2])
      True

    References:
      Wang et al. 2023, section 2.1.3, Figures 3 to 5; specs/fusion_quality.md, section 4.
    """
    if markers > size_x:
        raise ValueError(f"{markers} markers cannot be drawn from {size_x} features without repetition.")
    if combine not in ("mean", "concat", "sum", "single"):
        raise ValueError(f"combine is {combine!r}; expected 'mean', 'concat', 'sum' or 'single'.")
    x, draws = _path_and_draws(key, length_scale, size_x, covariance, iterations, markers)
    if combine == "single":
        draws = draws[:1]
    if average == "density":
        if combine not in ("mean", "single"):
            raise ValueError(f"densities are averaged over iterations for combine='mean'; found {combine!r}.")
        encode = EveryIteration(markers, base)
    elif average == "encoding":
        # Rounded up, so that paths with other largest values share one compilation.
        nodes = -(-chebyshev_nodes(float(np.abs(x).max())) // 16) * 16
        encode = MeanEncode(nodes, markers, combine, base)
    else:
        raise ValueError(f"average is {average!r}; expected 'encoding' or 'density'.")
    sweep = sweep_gamma(
        x,
        draws.reshape(-1),
        np.asarray(sizes, float) / size_x,
        vary="size",
        bandwidth=bandwidth,
        rescaling=rescaling,
        encode=encode,
        markers=markers if combine == "concat" else 1,
        grid=grid,
        normalise=normalise,
    )
    return Simulation(x, draws, sweep)
