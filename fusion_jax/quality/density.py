r"""Kernel densities of scalar feature values on a uniform grid.

A source of a case is a vector of feature values; each value is one sample of a density over the scalar axis `t`
(Wang et al. 2023, Eq. 2 and 3; specs/fusion_quality.md, reading A1a):

.. math:: \varphi(t) = \sum_i w_i K_\sigma(t - x_i), \qquad K_\sigma(u) = e^{-u^2 / 2\sigma^2},
          \qquad \sum_i w_i = 1

Three ways to the same sum. *exact* adds every kernel, in blocks. *binned* spreads each sample over four grid points
with cubic B-spline weights and convolves by FFT. `log_density` adds positive terms under a running maximum, because
the rounding of an FFT is absolute and leaves nothing of :math:`-\log\varphi` in the tails.

The B-spline widens every sample by a variance of :math:`h^2/3`, whatever its position between two grid points, so
binned kernels use :math:`\sigma'^2 = \sigma^2 - h^2/3`. What remains is of order :math:`(h/\sigma)^4`, against
:math:`(h/\sigma)^2/8` for linear binning, and all masses stay positive.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import next_fast_len

from fusion_jax.arrays import Array, ArrayLike, Float, as_floats, is_concrete

__all__ = [
    "Density",
    "binning_error_bound",
    "fwhm_to_bandwidth",
    "information_potential",
    "interpolate",
    "kernel_density",
    "log_density",
    "mean_square_density",
    "multivariate_density",
    "scott_bandwidth",
    "silverman_bandwidth",
    "uniform_grid",
]

Method = Literal["exact", "binned"]

PADDING = 6.0  # bandwidths beyond the outermost sample; the mass left out is below 1e-9
STEPS_PER_BANDWIDTH = 100
BINNING_ERROR = 0.011  # of the peak, times the fourth power of the step in bandwidths
LARGEST_GRID = 2**22
# Measured on 2 cores: adding all kernels costs about 0.4 ns a pair, an FFT of a default grid about 0.15 ms.
EXACT_PAIRS = 2**18
PAIRWISE_SAMPLES = 2048
BLOCK_PAIRS = 2**18  # kernel values held at once; a block of 2**20 took a thousand samples 14 times as long
SUMMED_ROWS, PARTIAL_SUMS, PARTIAL_BINS = 4096, 64, 2**22  # samples in one sum of bins, sums, and their bins in all


class Density(NamedTuple):
    """A density on a uniform grid.

    Attributes:
      grid: grid points, feature units, shape `(n,)`.
      values: density at the grid points, shape `(n,)`; per feature unit if normalised.
      error_bound: largest error of `values` that the grid causes, relative to the peak, shape `()`; 0 for exact sums.
        Rounding comes on top: about 1e-6 in float32, up to 1e-4 where most of a million values are equal; 1e-15 in
        float64.
    """

    grid: Float[Array, "n"]
    values: Float[Array, "n"]
    error_bound: Float[Array, ""]


# Bandwidths: host functions, they look at the values.


def fwhm_to_bandwidth(fwhm: float) -> float:
    r"""Standard deviation of a Gaussian kernel from its full width at half maximum, in the same units.

    .. math:: \sigma = \mathrm{FWHM} / (2\sqrt{2 \ln 2})

    Example:
      >>> round(fwhm_to_bandwidth(2.355), 3)
      1.0

    References:
      Wang et al. 2023 call their bandwidth a full width but use it as a standard deviation; see
      specs/fusion_quality.md, A6.
    """
    return fwhm / (2.0 * math.sqrt(2.0 * math.log(2.0)))


def scott_bandwidth(values: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    r"""Scott's rule :math:`\sigma = s\, n^{-1/5}`, in feature units, with the sample standard deviation `s`.

    With weights, `n` is the effective sample size :math:`(\sum w)^2 / \sum w^2`, as in `scipy.stats.gaussian_kde`.

    Raises:
      ValueError: fewer than two values, values that are all equal, or values that are not finite.

    Example:
      >>> round(scott_bandwidth(jnp.arange(4.0)), 4)
      0.9784
    """
    deviation, size = _spread(values, weights)
    return deviation * size ** (-1 / 5)


def silverman_bandwidth(values: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    r"""Silverman's rule :math:`\sigma = s\,(3n/4)^{-1/5}`, in feature units; weights as in `scott_bandwidth`.

    Raises:
      ValueError: fewer than two values, values that are all equal, or values that are not finite.

    Example:
      >>> round(silverman_bandwidth(jnp.arange(4.0)), 4)
      1.0363
    """
    deviation, size = _spread(values, weights)
    return deviation * (0.75 * size) ** (-1 / 5)


def _spread(values: ArrayLike, weights: ArrayLike | None) -> tuple[float, float]:
    sample = np.asarray(values, float).ravel()
    mass = np.ones_like(sample) if weights is None else np.asarray(weights, float).ravel()
    if mass.shape != sample.shape or not (mass >= 0).all():
        raise ValueError(f"weights of shape {mass.shape} do not fit; expected {sample.size} non-negative numbers.")
    sample, mass = sample[mass > 0], mass[mass > 0]
    if sample.size < 2 or not np.isfinite(sample).all() or np.ptp(sample) == 0:
        raise ValueError(
            f"a bandwidth cannot be read off {sample.size} values between "
            f"{sample.min(initial=np.inf):g} and {sample.max(initial=-np.inf):g}; expected at least two different, "
            "finite values. Give `bandwidth` as a number instead."
        )
    mass = mass / mass.sum()
    squares = float(np.sum(mass**2))
    variance = float(np.sum(mass * (sample - np.sum(mass * sample)) ** 2)) / (1.0 - squares)
    return math.sqrt(variance), 1.0 / squares


# Grids.


def uniform_grid(
    *values: Float[ArrayLike, "..."],
    bandwidth: Float[ArrayLike, ""],
    grid_size: int | None = None,
    padding: float = PADDING,
) -> Float[Array, "n"]:
    r"""Uniform grid over all the values and `padding` bandwidths to either side.

    Without `grid_size` this is a host function: the step is the largest power of two that is at most
    :math:`\sigma/100`, and every grid point a multiple of it, so that positions are exact in floating point.
    With `grid_size`, which is static, it works under a trace too.

    Args:
      values: feature values that the grid has to cover, any shapes.
      bandwidth: standard deviation of the narrowest kernel to be used on the grid, feature units.
      grid_size: number of points; chosen from range and bandwidth unless given.
      padding: margin to either side, in bandwidths.

    Returns:
      Grid points, feature units, shape `(grid_size,)`.

    Raises:
      ValueError: no values, values or bandwidth not finite, bandwidth not positive, or a range so wide for the
        bandwidth that the grid would need more than four million points.

    Example:
      >>> grid = uniform_grid(jnp.array([0.0, 1.0]), bandwidth=0.5)
      >>> grid.shape, float(grid[0]), float(grid[1] - grid[0])
      ((2048,), -3.0, 0.00390625)
    """
    if not values or any(np.size(v) == 0 for v in values):
        raise ValueError("a grid needs at least one feature value; found an empty source.")
    if grid_size is not None:
        width, *arrays = as_floats(bandwidth, *values)
        lowest = jnp.min(jnp.stack([jnp.min(a) for a in arrays]))
        highest = jnp.max(jnp.stack([jnp.max(a) for a in arrays]))
        return jnp.linspace(lowest - padding * width, highest + padding * width, grid_size)
    if not is_concrete(bandwidth, *values):
        raise ValueError("the size of a grid cannot be chosen under a trace; give `grid_size` or `grid`.")
    check_bandwidth(bandwidth)
    low = min(float(np.min(np.asarray(v))) for v in values)
    high = max(float(np.max(np.asarray(v))) for v in values)
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(
            f"feature values run from {low} to {high}; expected finite numbers. Remove or impute missing values."
        )
    width = float(np.asarray(bandwidth))
    step = 2.0 ** math.floor(math.log2(width / STEPS_PER_BANDWIDTH))
    first, last = math.floor((low - padding * width) / step), math.ceil((high + padding * width) / step)
    # Similar data get grids of one size, and so one compilation: at most a quarter longer, to the right.
    rounding = 2 ** max(0, (last - first).bit_length() - 3)
    last = first + -(-(last - first + 1) // rounding) * rounding - 1
    dtype = as_floats(bandwidth, *values)[0].dtype
    exact_integers = 2 ** jnp.finfo(dtype).nmant
    if last - first >= LARGEST_GRID or max(abs(first), abs(last)) >= exact_integers:
        raise ValueError(
            f"feature values from {low:g} to {high:g} are too wide or too far from zero for a bandwidth of {width:g}: "
            f"the grid would need {last - first + 1:,} points of step {step:g}. Scale or centre the features, or "
            "widen the bandwidth."
        )
    return jnp.asarray(np.arange(first, last + 1) * step, dtype)


def binning_error_bound(step_per_bandwidth: Float[ArrayLike, "*b"]) -> Float[Array, "*b"]:
    r"""Largest error of a binned density, relative to its peak, for a grid step in bandwidths :math:`\rho = h/\sigma`.

    .. math:: \epsilon(\rho) = 0.011\,\rho^4

    From the Fourier series of the binned kernel: 0.0042 for what the corrected variance leaves, 0.0039 for the two
    nearest aliases of the cubic B-spline, at one sample; the rest covers mixtures, whose fourth derivative can
    exceed that of one kernel by a fifth, and terms of higher order, which bring the worst case found to 0.0109 at half
    a bandwidth. Valid for steps up to that.

    Example:
      >>> f"{float(binning_error_bound(0.1)):.0e}"
      '1e-06'
    """
    (ratio,) = as_floats(step_per_bandwidth)
    return BINNING_ERROR * ratio**4


# Densities.


def kernel_density(
    values: Float[ArrayLike, "f"],
    bandwidth: Float[ArrayLike, ""],
    *,
    weights: Float[ArrayLike, "f"] | None = None,
    grid: Float[ArrayLike, "n"] | None = None,
    grid_size: int | None = None,
    normalise: bool = True,
    method: Method | None = None,
    tolerance: float = 1e-6,
) -> Density:
    r"""Kernel density of scalar feature values.

    .. math:: \varphi(t) = \frac{c}{\sum_i w_i} \sum_i w_i \exp\left(-\frac{(t - x_i)^2}{2\sigma^2}\right)

    with :math:`c = 1/(\sigma\sqrt{2\pi})` if normalised, else 1 (the paper's kernel of peak 1).

    Args:
      values: feature values of one case, shape `(f,)`.
      bandwidth: standard deviation of the kernel, feature units.
      weights: non-negative weight of each value, shape `(f,)`; equal unless given. A value of weight 0 is absent.
      grid: uniform, increasing grid, shape `(n,)`; else one is made by `uniform_grid`.
      grid_size: number of points of that grid; static. Needed under a trace when no grid is given.
      normalise: divide the kernel by its integral, so that the density integrates to 1.
      method: `exact` or `binned`; chosen by size unless given. Binned costs `f + n log n`, exact `f n`, in blocks.
      tolerance: largest error of a binned density that is accepted, relative to the peak.

    Returns:
      `Density`. Under a trace a coarse grid cannot be refused; compare `error_bound` with your tolerance there.

    Raises:
      ValueError: values not one-dimensional or empty, weights of another shape, bandwidth not positive, a grid that
        is not uniform, or too coarse or too short for the tolerance.

    Example:
      >>> result = kernel_density(jnp.array([0.0]), 1.0, grid=jnp.linspace(-1.0, 1.0, 3))
      >>> [round(float(v), 4) for v in result.values]
      [0.242, 0.3989, 0.242]

    References:
      Wang et al. 2023, Eq. 2 and 3.
    """
    values, width, mass = _samples(values, bandwidth, weights)
    grid = (
        uniform_grid(values, bandwidth=width, grid_size=grid_size) if grid is None else jnp.asarray(grid, width.dtype)
    )
    check_grid(grid)
    _check_method(method, "exact", "binned")
    if method is None:
        method = "exact" if values.size * grid.size <= EXACT_PAIRS else "binned"
    if method == "exact":
        # An infinite value has no kernel anywhere: it must not vanish unseen.
        result = _kernel_sum(grid, values, mass + 0.0 * values, width) / (width * math.sqrt(2.0 * math.pi))
        bound = jnp.zeros_like(width)
    else:
        result, bound = _binned_density(grid, values, mass, width, tolerance)
    return Density(grid, result * _kernel_scale(width, normalise), bound)


def log_density(
    values: Float[ArrayLike, "f"],
    bandwidth: Float[ArrayLike, ""],
    *,
    weights: Float[ArrayLike, "f"] | None = None,
    grid: Float[ArrayLike, "n"] | None = None,
    grid_size: int | None = None,
    normalise: bool = True,
    method: Method | None = None,
) -> Float[Array, "n"]:
    r"""Logarithm of the kernel density, finite and accurate however far a grid point is from the samples.

    .. math:: \log\varphi(t) = \log c + \log \sum_i w_i e^{-(t-x_i)^2/2\sigma^2} - \log\sum_i w_i

    Every term is positive and the largest is taken out first, so nothing cancels or underflows; use it wherever
    :math:`-\log\varphi` is meant, such as the Gibbs potential. `binned` sums over occupied grid points instead of
    samples (chosen when there are more samples than points); its relative error in :math:`\varphi` at a distance of
    `u` bandwidths from the samples is at most :math:`0.02\,\rho^4 (1+u)^4` for steps of :math:`\rho` bandwidths,
    as long as that is small.

    Args and errors as in `kernel_density`. Returns the logarithm at the grid points, shape `(n,)`.

    Example:
      >>> float(log_density(jnp.array([0.0]), 1.0, grid=jnp.array([0.0, 50.0, 100.0]), normalise=False)[2])
      -5000.0
    """
    values, width, mass = _samples(values, bandwidth, weights)
    grid = (
        uniform_grid(values, bandwidth=width, grid_size=grid_size) if grid is None else jnp.asarray(grid, width.dtype)
    )
    check_grid(grid)
    _check_method(method, "exact", "binned")
    if method is None:
        method = "binned" if values.size > grid.size and _covers(grid, values) else "exact"
    scale = jnp.log(_kernel_scale(width, normalise) / (width * math.sqrt(2.0 * math.pi)))
    if method == "exact":
        return scale + _log_kernel_sum(grid, values, mass, width)
    step = grid_step(grid)
    beyond = max(4, _bandwidth_points(width, step) or grid.size // 2)
    masses, outside = _bin(values, mass, grid[0] - beyond * step, step, grid.size + 2 * beyond)
    centres = grid[0] + step * (jnp.arange(masses.size, dtype=width.dtype) - beyond)
    narrow = _binned_bandwidth(width, step)
    # Samples out of reach of the bins must not vanish.
    lost = jnp.where(outside > 0, jnp.nan, jnp.zeros_like(outside))
    return scale + jnp.log(width / narrow) + _log_kernel_sum(grid, centres, masses, narrow) + lost


def interpolate(
    grid: Float[ArrayLike, "n"], density: Float[ArrayLike, "n"], at: Float[ArrayLike, "f"]
) -> Float[Array, "f"]:
    r"""Density between grid points by cubic interpolation through the four nearest.

    Error at most :math:`0.071 (h/\sigma)^4` of the peak; `at` has to lie inside the grid, a step or more from its ends.

    Example:
      >>> grid = jnp.arange(5.0)
      >>> float(interpolate(grid, grid**3, jnp.array([1.5]))[0])
      3.375
    """
    grid, values, at = as_floats(grid, density, at)
    if grid.size < 4:
        raise ValueError(f"cubic interpolation needs at least four grid points; found {grid.size}.")
    step = grid_step(grid)
    position = (at - grid[0]) / step
    lower = jnp.clip(jnp.floor(position), 1, grid.size - 3)
    u = position - lower
    weights = (
        -u * (u - 1) * (u - 2) / 6,
        (u + 1) * (u - 1) * (u - 2) / 2,
        -(u + 1) * u * (u - 2) / 2,
        (u + 1) * u * (u - 1) / 6,
    )
    index = lower.astype(int) - 1
    return sum((w * values[index + k] for k, w in enumerate(weights)), start=jnp.zeros_like(at))


def information_potential(
    values: Float[ArrayLike, "f"],
    bandwidth: Float[ArrayLike, ""],
    *,
    weights: Float[ArrayLike, "f"] | None = None,
    normalise: bool = True,
    method: Literal["pairwise", "fft"] | None = None,
    grid_size: int | None = None,
) -> Float[Array, ""]:
    r"""Information potential :math:`R = \int \varphi(t)^2 dt` of a source, the energy that gaps compare.

    .. math:: R = \frac{k}{(\sum_i w_i)^2} \sum_{i,j} w_i w_j \exp\left(-\frac{(x_i - x_j)^2}{4\sigma^2}\right)

    with :math:`k = 1/(2\sigma\sqrt\pi)` if normalised, else :math:`\sigma\sqrt\pi`. :math:`-\log R` is the quadratic
    Rényi entropy of the density.

    Args:
      values: feature values, shape `(f,)`.
      bandwidth: standard deviation of the kernel, feature units.
      weights: weight of each value, shape `(f,)`.
      normalise: as in `kernel_density`.
      method: `pairwise` needs no grid and costs `f²` in blocks; `fft` sums the squares of a binned density. Pairwise
        up to 2,048 values, and under a trace without `grid_size`, unless given.
      grid_size: number of grid points of `fft`; static.

    Returns:
      The potential, shape `()`: per feature unit if normalised, else in feature units.

    Raises:
      ValueError: as `kernel_density`.

    Example:
      >>> float(information_potential(jnp.array([0.0, 0.0]), 1.0))  # 1 / (2 sqrt(pi))
      0.2820948...

    References:
      specs/fusion_quality.md, I4; the integrals of Wang et al. 2023, Eq. 5.
    """
    values, width, mass = _samples(values, bandwidth, weights)
    _check_method(method, "pairwise", "fft")
    if method is None:
        gridded = is_concrete(values, width) or grid_size is not None
        method = "fft" if values.size > PAIRWISE_SAMPLES and gridded else "pairwise"
    if method == "fft":
        result = kernel_density(values, width, weights=mass, grid_size=grid_size, normalise=normalise, method="binned")
        return jnp.sum(jnp.square(result.values)) * grid_step(result.grid)
    pairs = jnp.sum(mass * _kernel_sum(values, values, mass, math.sqrt(2.0) * width))
    return pairs / (2.0 * width * math.sqrt(math.pi)) * _kernel_scale(width, normalise) ** 2


def mean_square_density(
    values: Float[ArrayLike, "f"],
    bandwidth: Float[ArrayLike, ""],
    *,
    weights: Float[ArrayLike, "f"] | None = None,
    normalise: bool = True,
) -> Float[Array, ""]:
    r"""Mean of the squared density over the source's own values, :math:`m = \sum_i w_i \varphi(x_i)^2 / \sum_i w_i`.

    The summand of the sample-sum reading of the energy gap; costs `f²`, in blocks. Args, units and errors as in
    `information_potential` (units squared).

    Example:
      >>> float(mean_square_density(jnp.array([0.0]), 1.0, normalise=False))
      1.0

    References:
      specs/fusion_quality.md, I5, I7 and reading S.
    """
    values, width, mass = _samples(values, bandwidth, weights)
    at_samples = _kernel_sum(values, values, mass, width) / (width * math.sqrt(2.0 * math.pi))
    return jnp.sum(mass * jnp.square(at_samples * _kernel_scale(width, normalise)))


def multivariate_density(
    at: Float[ArrayLike, "m f"],
    samples: Float[ArrayLike, "n f"],
    bandwidth: Float[ArrayLike, ""],
    *,
    scale_with_dimension: bool = True,
) -> Float[Array, "m"]:
    r"""Kernel density of whole feature vectors, for research only: it collapses as the dimension grows.

    .. math:: \varphi(t) = \frac1n \sum_i \exp\left(-\frac{\lVert t - x_i\rVert^2}{2\sigma_f^2}\right),
              \qquad \sigma_f = \sigma\sqrt f

    Squared distances between encodings grow with `f`: with a fixed :math:`\sigma` of 1 every kernel is 0.8 to 0.9 at
    10 dimensions and 0 at 10,000. Scaling :math:`\sigma` by :math:`\sqrt f` keeps the kernels apart from 0 and 1, not
    the estimate useful. `fusion_quality` therefore uses densities of scalar values.

    Args:
      at: points, shape `(m, f)`.
      samples: feature vectors, one a case, shape `(n, f)`.
      bandwidth: standard deviation of the kernel per square root of dimension, feature units.
      scale_with_dimension: multiply the bandwidth by :math:`\sqrt f`.

    Returns:
      Density with kernels of peak 1, shape `(m,)`.

    Example:
      >>> float(multivariate_density(jnp.zeros((1, 4)), jnp.zeros((2, 4)), 1.0)[0])
      1.0

    References:
      specs/fusion_quality.md, A1b.
    """
    at, samples, width = as_floats(at, samples, bandwidth)
    if scale_with_dimension:
        width = width * math.sqrt(samples.shape[-1])

    def add(total, sample):
        squares = jnp.sum(jnp.square((at - sample[None]) / width), axis=-1)
        return total + jnp.exp(-0.5 * squares), None

    total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros(at.shape[0], at.dtype), samples)
    return total / samples.shape[0]


# What the public functions share.


def _samples(values: ArrayLike, bandwidth: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Values, bandwidth and weights that sum to 1, in one dtype, checked as far as the trace allows."""
    if np.ndim(values) != 1 or np.size(values) == 0:
        raise ValueError(
            f"a density takes the feature values of one case, shape (f,) with f > 0; found shape {np.shape(values)}. "
            "Use jax.vmap, or fusion_quality, for a batch of cases."
        )
    if weights is not None and np.shape(weights) != np.shape(values):
        raise ValueError(f"weights of shape {np.shape(weights)} do not fit values of shape {np.shape(values)}.")
    if is_concrete(bandwidth):
        check_bandwidth(bandwidth)
    values, width, mass = as_floats(values, bandwidth, 1.0 if weights is None else weights)
    if weights is not None and is_concrete(mass) and not (np.asarray(mass) >= 0).all():
        raise ValueError("weights have to be non-negative numbers.")
    mass = jnp.broadcast_to(mass, values.shape)
    total = jnp.sum(mass)
    # A source without any weight has no density: zero everywhere, not NaN.
    return values, width, mass / jnp.where(total > 0, total, jnp.ones_like(total))


def fft_size(at_least: int) -> int:
    """Smallest length from `at_least` on whose Fourier transform is fast."""
    return next_fast_len(at_least, real=True) or at_least


def check_bandwidth(bandwidth: ArrayLike) -> None:
    width = np.asarray(bandwidth)
    if width.ndim or not np.isfinite(width) or width <= 0:
        raise ValueError(
            f"bandwidth is {bandwidth}; expected one positive number, the standard deviation of the kernel in feature "
            "units. scott_bandwidth and silverman_bandwidth read one off the values; fwhm_to_bandwidth converts widths."
        )


def _check_method(method: str | None, *known: str) -> None:
    if method is not None and method not in known:
        raise ValueError(f"method is {method!r}; expected {' or '.join(map(repr, known))}, or None to choose by size.")


def check_grid(grid: Array) -> None:
    """Refuse what is not a uniform, increasing grid."""
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"a grid has shape (n,) with n > 1; found shape {grid.shape}.")
    if is_concrete(grid):
        points = np.asarray(grid, float)
        steps, mean = np.diff(points), (points[-1] - points[0]) / (points.size - 1)
        # Rounding of the points themselves is no unevenness.
        slack = 1e-3 * mean + 4 * np.finfo(grid.dtype).eps * np.abs(points).max()
        if not mean > 0 or np.abs(steps - mean).max() > slack:
            raise ValueError(
                f"a grid is uniform and increasing; found steps from {steps.min():g} to {steps.max():g}. "
                "Use uniform_grid or jnp.linspace."
            )


def grid_step(grid: Array) -> Array:
    """Distance between the points of a uniform grid."""
    return (grid[-1] - grid[0]) / (grid.size - 1)


def _covers(grid: Array, values: Array) -> bool:
    """Whether the grid is known to hold every value."""
    if not is_concrete(grid, values):
        return False
    return bool((jnp.min(values) >= grid[0]) & (jnp.max(values) <= grid[-1]))


def _kernel_scale(width: Array, normalise: bool) -> Array:
    """Factor from the normalised kernel to the wanted one."""
    return jnp.ones_like(width) if normalise else width * math.sqrt(2.0 * math.pi)


def _binned_bandwidth(width: Array, step: Array) -> Array:
    variance = jnp.square(width) - jnp.square(step) / 3
    return jnp.sqrt(jnp.maximum(variance, 0.25 * jnp.square(width)))


def _bandwidth_points(width: Array, step: Array, bandwidths: float = 9.0) -> int | None:
    """Grid points in so many bandwidths, or nothing under a trace."""
    return math.ceil(bandwidths * float(width) / float(step)) if is_concrete(width, step) else None


def _bin(values: Array, mass: Array, start: Array, step: Array, size: int) -> tuple[Array, Array]:
    """Masses on a grid by cubic B-spline weights, and the mass that fell outside it."""
    sums = min(-(-values.size // SUMMED_ROWS), PARTIAL_SUMS, max(1, PARTIAL_BINS // size))
    if sums == 1:
        return _bin_rows(values, mass, start, step, size)
    # Equal values, the zeros of a rectifier say, all go into the same bins; one long sum of them in single precision
    # loses 3e-3 of the peak at a million. Up to 64 sums side by side lose 8e-5 and cost a tenth more; 256 leave the
    # cache and cost ten times more.
    rows = _in_blocks(values, mass, -(-values.size // sums))
    masses, outside = jax.vmap(lambda row, weights: _bin_rows(row, weights, start, step, size))(*rows)
    return jnp.sum(masses, axis=0), jnp.sum(outside)


def _bin_rows(values: Array, mass: Array, start: Array, step: Array, size: int) -> tuple[Array, Array]:
    position = (values - start) / step
    lower = jnp.floor(position)
    u = position - lower
    inside = (lower >= 1) & (lower <= size - 3)
    # Values that are not finite must not vanish: 0 * nan poisons the whole density.
    mass_inside = jnp.where(inside, mass, 0.0 * values)
    v = 1.0 - u
    weights = jnp.stack([v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3], axis=-1) / 6
    index = jnp.where(inside, lower, jnp.ones_like(lower)).astype(int) - 1
    # One scatter of windows of four: 1.5 times faster on CPU than four scatters.
    windows = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    masses = jax.lax.scatter_add(
        jnp.zeros(size, values.dtype),
        index[:, None],
        weights * mass_inside[:, None],
        windows,
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return masses, jnp.sum(jnp.where(inside, jnp.zeros_like(mass), mass))


def _binned_density(grid: Array, values: Array, mass: Array, width: Array, tolerance: float) -> tuple[Array, Array]:
    step = grid_step(grid)
    # Samples beyond the grid still reach into it, and the FFT is periodic: bin over a margin at either side.
    margin = max(grid.size // 2, _bandwidth_points(width, step) or 0)
    size = fft_size(grid.size + 2 * margin)
    masses, outside = _bin(values, mass, grid[0] - margin * step, step, size)
    frequency = 2.0 * math.pi * jnp.arange(size // 2 + 1, dtype=width.dtype) / (size * step)
    smoothing = jnp.exp(-0.5 * jnp.square(_binned_bandwidth(width, step) * frequency))
    spectrum = jnp.fft.rfft(masses)
    smooth = jnp.fft.irfft(spectrum * smoothing.astype(spectrum.dtype), n=size) / step
    result = jnp.maximum(smooth[margin : margin + grid.size], 0.0)
    peak = jnp.maximum(jnp.max(result), jnp.finfo(result.dtype).tiny)
    # Beside the samples the error is that of the whole density, and may exceed the little that is there.
    on_grid = binning_error_bound(step / width) * jnp.maximum(jnp.max(smooth) / peak, 1.0)
    beside = outside + jnp.sum(masses[:margin]) + jnp.sum(masses[margin + grid.size :])
    bound = on_grid + _margin_error(margin * step / width, peak, width, beside)
    if is_concrete(bound) and not float(bound) <= tolerance:
        _refuse_grid(grid, step, width, float(bound), tolerance)
    return result, bound


def _margin_error(margin: Array, peak: Array, width: Array, beside: Array) -> Array:
    """Error from mass beyond the margin, and from the period of the FFT, relative to the peak.

    Mass beside the grid comes back at least one margin away from it, mass on the grid at least two.
    """

    def kernel(away):
        return jnp.exp(-0.5 * jnp.square(away)) / (width * math.sqrt(2.0 * math.pi))

    return (beside * kernel(margin) + kernel(2.0 * margin)) / peak


def check_step(grid: Array, width: Array, tolerance: float = 1e-6) -> None:
    """Refuse a grid that is too coarse for a binned density, without computing one."""
    step = grid_step(grid)
    bound = float(binning_error_bound(step / width))
    if not bound <= tolerance:
        _refuse_grid(grid, step, width, bound, tolerance)


def _refuse_grid(grid: Array, step: Array, width: Array, bound: float, tolerance: float) -> None:
    raise ValueError(
        f"a grid of {grid.size} points with a step of {float(step / width):.3g} bandwidths gives a binned density with "
        f"an error of up to {bound:.1e} of its peak; accepted is {tolerance:.1e}. Leave `grid_size` out, use a step of "
        f"at most {(tolerance / BINNING_ERROR) ** 0.25:.2g} bandwidths over all the values, or method='exact'."
    )


def _blocks(at_size: int, sample_size: int) -> int:
    """Samples added at once: so many that a block of kernel values stays in cache and memory is bounded."""
    return max(1, min(sample_size, BLOCK_PAIRS // at_size))


def _in_blocks(values: Array, weights: Array, block: int, filler: float = 0.0) -> tuple[Array, Array]:
    """Values and weights as rows of `block`; repeats of the last value with weight `filler` fill the last row."""
    fill = (0, -values.size % block)
    weights = jnp.pad(weights, fill, constant_values=filler)
    return jnp.pad(values, fill, mode="edge").reshape(-1, block), weights.reshape(-1, block)


def _over_points(function, at: Array) -> Array:
    """`function` on stretches of at most 65,536 points, one after the other."""
    stretch = 2**16
    if at.size <= stretch:
        return function(at)
    padded = jnp.pad(at, (0, -at.size % stretch), mode="edge").reshape(-1, stretch)
    return jax.lax.map(jax.checkpoint(function), padded).reshape(-1)[: at.size]


def _kernel_sum(at: Array, values: Array, mass: Array, width: Array) -> Array:
    r""":math:`\sum_i w_i K_\sigma(t - x_i)` at the points `at`, with kernels of peak 1."""
    scale = math.sqrt(0.5 * math.log2(math.e)) / width  # exp2 is the cheaper exponential

    def stretch_sum(points):
        block = _blocks(points.size, values.size)

        def add(total, rows):
            samples, weights = rows
            # Samples on the major axis: XLA:CPU reduces over the minor one ten times slower.
            kernels = jnp.exp2(-jnp.square((points[None, :] - samples[:, None]) * scale))
            return total + jnp.sum(weights[:, None] * kernels, axis=0), None

        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(points), _in_blocks(values, mass, block))
        return total

    return _over_points(stretch_sum, at)


def _log_kernel_sum(at: Array, values: Array, mass: Array, width: Array) -> Array:
    r""":math:`\log\sum_i w_i K_\sigma(t - x_i)`: the largest term first, then the sum of the rest relative to it."""
    present = ~(mass <= 0)  # NaN is present, and poisons every point
    log_mass = jnp.where(present, jnp.log(jnp.where(present, mass, jnp.ones_like(mass))), -jnp.inf)

    def stretch_sum(points):
        block = _blocks(points.size, values.size)
        rows, log_masses = _in_blocks(values, log_mass, block, filler=-jnp.inf)

        def terms(samples, logs):
            return logs[:, None] - 0.5 * jnp.square((points[None, :] - samples[:, None]) / width)

        def largest(current, row):
            return jnp.maximum(current, jnp.max(terms(*row), axis=0)), None

        def add(total, row):
            return total + jnp.sum(jnp.exp(terms(*row) - top[None, :]), axis=0), None

        start = jnp.full_like(points, -jnp.inf)
        top = jax.lax.stop_gradient(jax.lax.scan(largest, start, jax.lax.stop_gradient((rows, log_masses)))[0])
        finite = jnp.isfinite(top)
        top = jnp.where(finite, top, jnp.zeros_like(top))
        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(points), (rows, log_masses))
        return top + jnp.log(total)

    return _over_points(stretch_sum, at)
