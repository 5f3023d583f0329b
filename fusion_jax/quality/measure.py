r"""Fusion quality of cases, sweeps over gamma, and the encoding size that balances two sources.

The functions here look at their input on the host (they choose grids, check values, group sizes) and call jitted
kernels; give `bandwidth` and `grid` to call `fusion_quality` inside a trace.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, ArrayLike, Float, Sources, as_floats, is_concrete, map_in_batches
from fusion_jax.quality import density as densities_of
from fusion_jax.quality import energy
from fusion_jax.quality.density import Method, grid_step, interpolate, kernel_density, uniform_grid
from fusion_jax.quality.encoding import masked_positional_encoding

__all__ = [
    "EncodingPlan",
    "FusionQuality",
    "GammaSweep",
    "cohort_bandwidth",
    "fusion_quality",
    "plan_encoding",
    "rescale",
    "summarise",
    "sweep_gamma",
]

Pair = tuple[str, str]
Rescaling = Literal["none", "zscore", "minmax"]
# encode(values, size, padded_size) -> coordinates and weights, as masked_positional_encoding
MaskedEncode = Callable[[Array, Array, int], tuple[Array, Array]]

CASES_AT_ONCE = 16
SIZES_AT_ONCE = 8
GAMMAS_AT_ONCE = 256
SMALLEST_BUCKET, BUCKET_RATIO = 1024, 10
MERGED_COORDINATES = 2**20
PLANNED_CASES = 32
COARSEST_STEP = 0.5  # bandwidths; integrals of squared densities are exact to rounding there
KERNEL_REACH = 4.0  # bandwidths that a grid has to reach beyond the values: 3e-5 of the mass of the outermost


class FusionQuality(NamedTuple):
    r"""How balanced the fusion of the named sources is, for one case (shapes `()`) or a batch (shapes `(b,)`).

    Entries are keyed by source, or by an ordered pair of sources, so that no order of sources matters.

    Attributes:
      sizes: number of coordinates :math:`d_s` of each source (the sum of its weights).
      energies: :math:`R_s = \int\varphi_s^2`.
      energy_shares: share of each source in the fused energy.
      overlap: overlap of each source's density with the fused density, in [0, 1].
      total_variation: source bias :math:`TV(p_f, p_s)`, in [0, 1]; 0 for a source that is the whole layer.
      jensen_shannon: divergence of each source from the fused density, in nats.
      balanced_sizes: sizes :math:`\propto\sqrt{w_s/R_s}` with the same total that would balance the energies.
      gamma: `gamma[a, b]` is the size of `b` relative to `a` (Eq. 11).
      gamma_star: the relative size of `b` at which `energy_gap[a, b]` is zero.
      energy_gap: pooled gap; `energy_gap[a, b]` is positive where `a` dominates.
      scale_free_gap: the same gap as a fraction of the two energies, in [-1, 1].
      densities: normalised density of each source on the grid, shape `(n,)` or `(b, n)`; `{}` if not kept.
      fused_density: density of the fused layer, same shape; None if not kept.
      error_bound: largest error of the densities that the grid causes, relative to their peaks; see `Density`.
      grid: grid points, feature units, shape `(n,)`.
      bandwidth: standard deviation of the kernel, feature units, shape `()`.
    """

    sizes: dict[str, Array]
    energies: dict[str, Array]
    energy_shares: dict[str, Array]
    overlap: dict[str, Array]
    total_variation: dict[str, Array]
    jensen_shannon: dict[str, Array]
    balanced_sizes: dict[str, Array]
    gamma: dict[Pair, Array]
    gamma_star: dict[Pair, Array]
    energy_gap: dict[Pair, Array]
    scale_free_gap: dict[Pair, Array]
    densities: dict[str, Array]
    fused_density: Array | None
    error_bound: Array
    grid: Array
    bandwidth: Array


class GammaSweep(NamedTuple):
    r"""Fusion quality of two sources as a function of :math:`\gamma`; every curve has shape `(g,)`.

    A sweep over `k` bandwidths too has a leading axis of `k` on everything but `gamma` and `grid`.

    Attributes:
      gamma: size of `y` relative to `x`.
      energy_x, energy_y: :math:`R_x`, :math:`R_y`.
      energy_gap: pooled gap (reading B), signed.
      literal_gap, scale_free_gap, sample_gap: readings A, N and S, signed.
      overlap_x, overlap_y: overlap of the fused density with each source.
      total_variation_x, total_variation_y: source bias.
      jensen_shannon_x, jensen_shannon_y: divergence of each source from the fused density, nats.
      grid: grid points, feature units, shape `(n,)`.
      density_x: normalised density of `x`, shape `(n,)`.
      density_y: normalised density of `y` at every gamma, shape `(g, n)`; `(1, n)` where only the mass varies.
    """

    gamma: Array
    energy_x: Array
    energy_y: Array
    energy_gap: Array
    literal_gap: Array
    scale_free_gap: Array
    sample_gap: Array
    overlap_x: Array
    overlap_y: Array
    total_variation_x: Array
    total_variation_y: Array
    jensen_shannon_x: Array
    jensen_shannon_y: Array
    grid: Array
    density_x: Array
    density_y: Array


class EncodingPlan(NamedTuple):
    """The encoding size that balances given features.

    Attributes:
      size: number of coordinates of the whole encoding, an even multiple of the number of markers.
      gamma: its size relative to the features.
      energy_gap: pooled gap at that size, mean over the cases.
      balanced: whether the gap changes sign within the sizes tried; else `size` is the best of them.
      sizes, gaps: the sizes tried and their mean gaps, shape `(g,)`.
      assumptions: what the plan rests on, in words.
    """

    size: int
    gamma: float
    energy_gap: float
    balanced: bool
    sizes: np.ndarray
    gaps: np.ndarray
    assumptions: str


def rescale(
    values: Float[ArrayLike, "*b"], rescaling: Rescaling, weights: Float[ArrayLike, "*b"] | None = None
) -> Array:
    """Values scaled as one sample: `none`, `zscore` (mean 0, standard deviation 1) or `minmax` (0 to 1).

    Values of weight 0 count for nothing; a constant sample is only centred.

    Example:
      >>> rescale(jnp.array([1.0, 3.0]), "zscore").tolist()
      [-1.0, 1.0]
    """
    values, mass = as_floats(values, 1.0 if weights is None else weights)
    mass = jnp.broadcast_to(mass, values.shape)
    if rescaling == "none":
        return values
    if rescaling == "zscore":
        total = jnp.sum(mass)
        centre = jnp.sum(mass * values) / total
        variance = jnp.sum(mass * jnp.square(values - centre)) / total
        # Equal values have the variance of their rounding.
        rounding = jnp.square(8.0 * jnp.finfo(values.dtype).eps * centre)
        variance = jnp.where(variance > rounding, variance, jnp.zeros_like(variance))
        spread = jnp.sqrt(jnp.where(variance > 0, variance, jnp.ones_like(variance)))  # finite gradient where constant
    elif rescaling == "minmax":
        centre = jnp.min(jnp.where(mass > 0, values, jnp.inf))
        spread = jnp.max(jnp.where(mass > 0, values, -jnp.inf)) - centre
    else:
        raise ValueError(f"rescaling is {rescaling!r}; expected 'none', 'zscore' or 'minmax'.")
    scaled = (values - centre) / jnp.where(spread > 0, spread, jnp.ones_like(spread))
    return jnp.where(mass > 0, scaled, jnp.zeros_like(scaled))


def cohort_bandwidth(sources: Sources, rule: Literal["scott", "silverman"], *, weights: Sources | None = None) -> float:
    """One bandwidth for all sources of a cohort: the median of the rule over every source of every case.

    Values of weight 0 count for nothing.
    A host function. Cases in which a source is constant, and sources of one value, have no rule and are left out.

    Raises:
      ValueError: an unknown rule, or no source with two different values in a case.

    Example:
      >>> round(cohort_bandwidth({"x": jnp.arange(4.0), "y": jnp.arange(4.0)}, "scott"), 4)
      0.9784
    """
    rules = {"scott": densities_of.scott_bandwidth, "silverman": densities_of.silverman_bandwidth}
    if rule not in rules:
        raise ValueError(f"bandwidth rule is {rule!r}; expected a number, 'scott' or 'silverman'.")
    found = []
    for name, values in sources.items():
        cases = np.atleast_2d(np.asarray(values, float))
        masses = np.ones_like(cases) if weights is None or name not in weights else np.asarray(weights[name], float)
        for case, mass in zip(cases, np.atleast_2d(masses), strict=True):
            present = case[mass > 0]
            if present.size > 1 and np.ptp(present) > 0:
                found.append(rules[rule](present, weights=mass[mass > 0]))
    if not found:
        raise ValueError(f"{rule} needs a source with two different values in a case; give the bandwidth as a number.")
    return float(np.median(found))


def fusion_quality(
    sources: Sources,
    *,
    bandwidth: Float[ArrayLike, ""] | Literal["scott", "silverman"],
    weights: Sources | None = None,
    target: Mapping[str, float] | None = None,
    grid: Float[ArrayLike, "n"] | None = None,
    grid_size: int | None = None,
    normalise: bool = True,
    method: Method | None = None,
    keep_densities: bool = True,
) -> FusionQuality:
    r"""Fusion quality of any number of sources, for one case or a batch of cases.

    The fused layer is the concatenation of the sources; its density is the mixture of theirs with masses
    :math:`d_s`. See `FusionQuality` for what is measured.

    Args:
      sources: features by source name, each `(f,)` for one case or `(b, f)` for a batch; `f` differs by source.
      bandwidth: standard deviation of the kernel, the same for all sources, in feature units; or a rule, applied by
        `cohort_bandwidth`. Scale the sources by cohort first, never per case.
      weights: weight of each value by source name, shapes as `sources`; 0 for a value that is missing.
      target: wanted share of the fused energy by source name, for `balanced_sizes`; equal unless given.
      grid, grid_size, method: as in `kernel_density`. Under a trace give the bandwidth and one of the first two.
      normalise: energies of normalised kernels, or of the paper's kernels of peak 1 (larger by
        :math:`2\pi\sigma^2`). Densities, overlaps and shares do not depend on it.
      keep_densities: keep the density of every case, `b n` numbers a source.

    Returns:
      `FusionQuality`.

    Raises:
      ValueError: fewer than two sources, different numbers of cases, values that are missing or not finite, weights
        that do not fit, or a grid that `kernel_density` refuses.

    Example:
      >>> quality = fusion_quality({"image": jnp.array([0.0, 1.0]), "clinical": jnp.array([0.0])}, bandwidth=0.5)
      >>> float(quality.gamma["image", "clinical"]), bool(quality.energy_gap["image", "clinical"] > 0)
      (0.5, True)

    References:
      Wang et al. 2023, Eq. 1 to 11; specs/fusion_quality.md, sections 3 to 5 and 10.
    """
    single = _check_sources(sources, weights)
    if target is not None and (sorted(target) != sorted(sources) or not all(share > 0 for share in target.values())):
        raise ValueError(f"target is {dict(target)}; expected a positive share for each of {sorted(sources)}.")
    if isinstance(bandwidth, str):
        bandwidth = cohort_bandwidth(sources, bandwidth, weights=weights)
    names = sorted(sources)
    width, *arrays = as_floats(bandwidth, *(sources[name] for name in names))
    values = {name: jnp.atleast_2d(array) for name, array in zip(names, arrays, strict=True)}
    present = {name: jnp.ones_like(array) for name, array in values.items()}
    for name, mass in (weights or {}).items():
        present[name] = jnp.asarray(mass, width.dtype).reshape(values[name].shape)
        # A number that stands for a missing value must not stretch the grid: put one that is there in its place.
        there = ~(present[name] <= 0)
        typical = jnp.sum(jnp.where(there, values[name], 0.0)) / jnp.maximum(jnp.sum(there.astype(width.dtype)), 1)
        values[name] = jnp.where(there, values[name], typical)
    if grid is None:
        grid = uniform_grid(*values.values(), bandwidth=width, grid_size=grid_size)
    grid = jnp.asarray(grid, width.dtype)
    _check_cover(grid, width, values, method)
    wanted = {name: jnp.asarray(1.0 if target is None else target[name], width.dtype) for name in names}
    result = _quality_of_cases(
        values, present, wanted, grid, width, normalise=normalise, method=method, keep_densities=keep_densities
    )
    if single:
        result = jax.tree.map(lambda a: a[0], result)
    return result._replace(grid=grid, bandwidth=width)


def summarise(quality: FusionQuality) -> dict[str, Array]:
    r"""Means over the cases as named scalars, for the log of a training run.

    Works inside a jitted step: measure the live features of the fused layer with a fixed bandwidth and grid, and log
    what balances them (`gamma_star/a/b`), the pooled gap (`energy_gap/a/b`) and the source bias (`total_variation/a`).

    Example:
      >>> quality = fusion_quality({"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.0])}, bandwidth=0.5)
      >>> sorted(summarise(quality))[:3]
      ['energy_gap/a/b', 'gamma_star/a/b', 'total_variation/a']

    References:
      specs/fusion_quality.md, section 10.
    """
    pairs = [pair for pair in quality.energy_gap if pair[0] < pair[1]]
    return (
        {f"energy_gap/{a}/{b}": jnp.mean(quality.energy_gap[a, b]) for a, b in pairs}
        | {f"gamma_star/{a}/{b}": jnp.mean(quality.gamma_star[a, b]) for a, b in pairs}
        | {f"total_variation/{name}": jnp.mean(bias) for name, bias in quality.total_variation.items()}
    )


@partial(jax.jit, static_argnames=("normalise", "method", "keep_densities"))
def _quality_of_cases(values, weights, target, grid, width, *, normalise, method, keep_densities) -> FusionQuality:
    measure = partial(
        _quality_of_case,
        target=target,
        grid=grid,
        width=width,
        normalise=normalise,
        method=method,
        keep_densities=keep_densities,
    )
    return map_in_batches(lambda case: measure(*case), (values, weights), CASES_AT_ONCE)


def _quality_of_case(values, weights, *, target, grid, width, normalise, method, keep_densities) -> FusionQuality:
    names = sorted(values)
    step = grid_step(grid)
    found = [kernel_density(values[n], width, weights=weights[n], grid=grid, method=method) for n in names]
    density = jnp.stack([f.values for f in found])
    sizes = jnp.stack([jnp.sum(weights[n]) for n in names])
    peak = 1.0 if normalise else 2.0 * math.pi * width**2
    energies = peak * jnp.sum(jnp.square(density), axis=-1) * step
    fused = energy.fused_density(density, sizes)
    everyone = jnp.broadcast_to(fused, density.shape)
    gaps = energy.pairwise_energy_gaps(energies, sizes)
    shares = energy.energy_shares(energies, sizes)
    balanced = energy.balanced_masses(energies, target=jnp.stack([target[n] for n in names]))

    def by_source(per_source):
        return dict(zip(names, per_source, strict=True))

    def by_pair(entry):
        return {(names[i], names[j]): entry(i, j) for i, j in itertools.permutations(range(len(names)), 2)}

    return FusionQuality(
        sizes=by_source(sizes),
        energies=by_source(energies),
        energy_shares=by_source(shares),
        overlap=by_source(energy.overlap(density, everyone, grid_step=step)),
        total_variation=by_source(energy.total_variation(density, everyone, grid_step=step)),
        jensen_shannon=by_source(energy.jensen_shannon(density, everyone, grid_step=step)),
        balanced_sizes=by_source(balanced * jnp.sum(sizes) / jnp.sum(balanced)),
        gamma=by_pair(lambda i, j: energy.gamma(sizes[i], sizes[j])),
        gamma_star=by_pair(lambda i, j: energy.gamma_star(energies[i], energies[j])),
        energy_gap=by_pair(lambda i, j: gaps[i, j]),
        scale_free_gap=by_pair(lambda i, j: (shares[i] - shares[j]) / (shares[i] + shares[j])),
        densities=by_source(density) if keep_densities else {},
        fused_density=fused if keep_densities else None,
        error_bound=jnp.max(jnp.stack([f.error_bound for f in found])),
        grid=jnp.zeros(()),  # the same for all cases: set by fusion_quality
        bandwidth=jnp.zeros(()),
    )


def sweep_gamma(
    x: Float[ArrayLike, "f"],
    y: Float[ArrayLike, "t"],
    gammas: Float[ArrayLike, "g"],
    *,
    vary: Literal["mass", "size"] = "mass",
    bandwidth: Float[ArrayLike, "*k"],
    rescaling: Rescaling = "none",
    encode: MaskedEncode = masked_positional_encoding,
    markers: int | None = None,
    grid: Float[ArrayLike, "n"] | None = None,
    normalise: bool = True,
) -> GammaSweep:
    r"""Fusion quality of two sources of one case over many values of :math:`\gamma`.

    Two different curves bear this name. `vary="mass"` takes `y` as it is and changes its mass in the mixture: one
    density a source, then the closed forms of specs/fusion_quality.md, I2 and I6. `vary="size"` takes `y` as clinical
    values and encodes them anew at every size :math:`\gamma f`, so that the density of :math:`y^*` changes too: the
    paper's experiment. Sizes that are not whole give their last coordinate the fractional weight; sizes are computed
    in a few padded shapes, one compilation each.

    Args:
      x: image features, shape `(f,)`.
      y: features of the second source (`mass`), or its clinical values (`size`), shape `(t,)`.
      gammas: sizes of `y` relative to `x`, positive, shape `(g,)`.
      vary: which curve.
      bandwidth: standard deviation of the kernel, units of the scaled features; one, or several at once, shape `(k,)`.
      rescaling: of each source before its density, see `rescale`.
      encode: `size` only: `encode(y, size, padded_size) -> coordinates, weights`.
      markers: `size` only: number of blocks that `encode` divides its coordinates into; `t` unless given.
      grid: as in `kernel_density`.
      normalise: as in `fusion_quality`.

    Returns:
      `GammaSweep`.

    Raises:
      ValueError: sources that are not vectors of finite numbers, gammas that are not positive, an unknown `vary`.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 100)
      >>> sweep = sweep_gamma(x, x, jnp.array([0.5, 1.0, 2.0]), bandwidth=0.2)
      >>> [round(float(gap), 3) + 0.0 for gap in sweep.energy_gap]
      [0.147, 0.0, -0.147]

    References:
      Wang et al. 2023, section 2.1.3, Figures 4 and 5.
    """
    _check_sources({"x": x, "y": y}, None)
    if np.ndim(x) != 1 or np.ndim(y) != 1:
        raise ValueError(
            f"a sweep takes one case, x and y of shapes (f,) and (t,); found {np.shape(x)}, {np.shape(y)}."
        )
    ratios = np.atleast_1d(np.asarray(gammas, float))
    if ratios.ndim != 1 or not ratios.size or not np.isfinite(ratios).all() or not (ratios > 0).all():
        raise ValueError(f"gammas have to be positive numbers, shape (g,); found {gammas}.")
    x, y, widths = as_floats(x, y, bandwidth)
    for width in np.atleast_1d(np.asarray(widths)):
        densities_of.check_bandwidth(width)
    narrow, wide = jnp.min(widths), jnp.max(widths)
    padding = densities_of.PADDING * float(wide / narrow)
    gamma = jnp.asarray(ratios, x.dtype)
    x = jnp.asarray(_rescale(x, rescaling))
    if vary == "mass":
        y = jnp.asarray(_rescale(y, rescaling))
        grid = uniform_grid(x, y, bandwidth=narrow, padding=padding) if grid is None else jnp.asarray(grid, x.dtype)
        _check_cover(grid, narrow, {"x": x, "y": y}, None)
        curves = _at_widths(lambda width: _sweep_mass(x, y, gamma, grid, width, normalise=normalise), widths)
        return curves._replace(gamma=gamma, grid=grid)
    if vary != "size":
        raise ValueError(f"vary is {vary!r}; expected 'mass' or 'size'.")
    scaled_encode = _ScaledEncode(encode, rescaling)
    buckets = _buckets(ratios * x.size, y.size if markers is None else markers)
    if grid is None:
        grid = uniform_grid(x, *_encoded_ends(y, buckets, scaled_encode), bandwidth=narrow, padding=padding)
    grid = jnp.asarray(grid, x.dtype)
    _check_cover(grid, narrow, {"x": x}, None)
    at_sizes = partial(_sweep_size, x, y, grid=grid, encode=scaled_encode, normalise=normalise)
    parts = [
        _at_widths(lambda width, b=bucket: at_sizes(b.sizes, width, padded_size=b.shape), widths) for bucket in buckets
    ]
    ends = np.concatenate([np.asarray(part.encoded_ends).ravel() for part in parts])
    _check_cover(grid, narrow, {"encoded y": jnp.asarray(ends, x.dtype)}, None)
    order = np.argsort(np.concatenate([bucket.rows for bucket in buckets]))

    def in_order(*curves: Array) -> Array:
        # On the host: every new shape of a slice would be compiled.
        axis = widths.ndim
        found = [np.asarray(c).take(range(b.rows.size), axis) for c, b in zip(curves, buckets, strict=True)]
        return jnp.asarray(np.concatenate(found, axis).take(order, axis))

    whole = jax.tree.map(in_order, *(part.curves._replace(grid=None, density_x=None) for part in parts))
    return whole._replace(gamma=gamma, grid=grid, density_x=parts[0].curves.density_x)


@partial(jax.jit, static_argnums=1)
def _rescale(values: Array, rescaling: Rescaling) -> Array:
    return rescale(values, rescaling)


class _SizeSweep(NamedTuple):
    """Curves over the sizes of one bucket, and the smallest and largest coordinate that went into them."""

    curves: GammaSweep
    encoded_ends: Array


def _at_widths(sweep: Callable[[Array], Any], widths: Array) -> Any:
    return jax.vmap(sweep)(widths) if widths.ndim else sweep(widths)


class _ScaledEncode(NamedTuple):
    """An encoding followed by a rescaling of its coordinates; hashable, so that jit knows it again."""

    encode: MaskedEncode
    rescaling: Rescaling

    def __call__(self, values: Array, size: Array, padded_size: int) -> tuple[Array, Array]:
        coordinates, weights = self.encode(values, size, padded_size)
        return rescale(coordinates, self.rescaling, weights), weights


class _Bucket(NamedTuple):
    """Sizes that are computed in one padded shape: their rows, and the sizes filled up to whole batches."""

    rows: np.ndarray
    sizes: np.ndarray
    shape: int


def _buckets(sizes: np.ndarray, markers: int) -> list[_Bucket]:
    exponent = np.maximum(0, np.ceil(np.log(np.maximum(sizes, 1.0) / SMALLEST_BUCKET) / np.log(BUCKET_RATIO) - 1e-9))
    shapes = SMALLEST_BUCKET * BUCKET_RATIO ** exponent.astype(int)
    padded = -(-shapes // markers) * markers
    kinds, counts = np.unique(padded, return_counts=True)
    # A few sizes more at the largest shape cost less than a compilation of their own.
    while len(kinds) > 1 and (counts[-1] + counts[-2]) * kinds[-1] <= MERGED_COORDINATES:
        padded[padded == kinds[-2]] = kinds[-1]
        kinds, counts = np.unique(padded, return_counts=True)
    buckets: list[_Bucket] = []
    for shape in kinds:
        rows = np.flatnonzero(padded == shape)
        filled = np.pad(sizes[rows], (0, -rows.size % SIZES_AT_ONCE), mode="edge")
        buckets.append(_Bucket(rows, filled, int(shape)))
    return buckets


def _encoded_ends(y: Array, buckets: list[_Bucket], encode: "_ScaledEncode") -> list[Array]:
    """Smallest and largest coordinate of every bucket."""
    return [_encoded_range(y, bucket.sizes, encode=encode, padded_size=bucket.shape) for bucket in buckets]


@partial(jax.jit, static_argnames=("encode", "padded_size"))
def _encoded_range(y, sizes, *, encode, padded_size):
    ends = map_in_batches(lambda size: _ends(*encode(y, size, padded_size)), sizes.astype(y.dtype), SIZES_AT_ONCE)
    return jnp.stack([jnp.min(ends), jnp.max(ends)])


def _ends(coordinates: Array, weights: Array) -> Array:
    present = weights > 0
    low = jnp.min(jnp.where(present, coordinates, jnp.inf))
    return jnp.stack([low, jnp.max(jnp.where(present, coordinates, -jnp.inf))])


@partial(jax.jit, static_argnames="normalise")
def _sweep_mass(x, y, gamma, grid, width, *, normalise) -> GammaSweep:
    density_x, square_x = _source(x, jnp.ones_like(x), grid, width)
    density_y, square_y = _source(y, jnp.ones_like(y), grid, width)
    at_gamma = partial(_at_gamma, density_x, square_x, density_y, square_y, x.size, grid, width, normalise=normalise)
    curves = map_in_batches(at_gamma, gamma, GAMMAS_AT_ONCE)
    return curves._replace(density_x=density_x, density_y=density_y[None])


@partial(jax.jit, static_argnames=("encode", "padded_size", "normalise"))
def _sweep_size(x, y, sizes, width, *, grid, encode, padded_size, normalise) -> _SizeSweep:
    density_x, square_x = _source(x, jnp.ones_like(x), grid, width)

    def at_size(size):
        coordinates, weights = encode(y, size, padded_size)
        density_y, square_y = _source(coordinates, weights, grid, width)
        curves = _at_gamma(
            density_x, square_x, density_y, square_y, x.size, grid, width, size / x.size, normalise=normalise
        )
        return _SizeSweep(curves, _ends(coordinates, weights))

    found = map_in_batches(at_size, sizes.astype(width.dtype), SIZES_AT_ONCE)
    return found._replace(curves=found.curves._replace(density_x=density_x))


def _source(values, weights, grid, width):
    """Normalised density of a source, and its mean square over the source's own values."""
    density = kernel_density(values, width, weights=weights, grid=grid).values
    at_values = interpolate(grid, density, values)
    return density, jnp.sum(weights * jnp.square(at_values)) / jnp.sum(weights)


def _at_gamma(density_x, square_x, density_y, square_y, size_x, grid, width, gamma, *, normalise) -> GammaSweep:
    step = grid_step(grid)
    peak = 1.0 if normalise else 2.0 * math.pi * width**2
    energy_x = peak * jnp.sum(jnp.square(density_x)) * step
    energy_y = peak * jnp.sum(jnp.square(density_y)) * step
    gaps = {
        reading: energy.energy_gap_from_energies(energy_x, energy_y, gamma, reading=reading)
        for reading in ("pooled", "literal", "scale_free")
    }
    fused = (density_x + gamma * density_y) / (1.0 + gamma)
    sources = jnp.stack([density_x, density_y])
    both = jnp.broadcast_to(fused, sources.shape)
    overlap = energy.overlap(sources, both, grid_step=step)
    variation = energy.total_variation(sources, both, grid_step=step)
    divergence = energy.jensen_shannon(sources, both, grid_step=step)
    return GammaSweep(
        gamma=gamma,
        energy_x=energy_x,
        energy_y=energy_y,
        energy_gap=gaps["pooled"],
        literal_gap=gaps["literal"],
        scale_free_gap=gaps["scale_free"],
        sample_gap=energy.sample_energy_gap(peak * square_x, peak * square_y, gamma, size_x=size_x),
        overlap_x=overlap[0],
        overlap_y=overlap[1],
        total_variation_x=variation[0],
        total_variation_y=variation[1],
        jensen_shannon_x=divergence[0],
        jensen_shannon_y=divergence[1],
        grid=jnp.zeros(()),  # set outside the map
        density_x=jnp.zeros(()),
        density_y=density_y,
    )


def plan_encoding(
    features: Float[ArrayLike, "*b f"],
    values: Float[ArrayLike, "*b t"],
    *,
    bandwidth: Float[ArrayLike, ""],
    rescaling: Rescaling = "none",
    largest_gamma: float = 10.0,
    encode: MaskedEncode = masked_positional_encoding,
) -> EncodingPlan:
    r"""Encoding size at which clinical values balance given image features.

    The gap :math:`R_x - \gamma^2 R_{y^*}` has to be read at every size, because encoding changes :math:`R_{y^*}`: sizes
    from one coordinate pair a marker up to `largest_gamma` are tried, then the even multiples around the change of
    sign. A host function.

    Args:
      features: image features of one case or a cohort, shape `(f,)` or `(b, f)`.
      values: clinical values of the same cases as they will enter the encoding, shape `(t,)` or `(b, t)`.
      bandwidth, rescaling, encode: as in `sweep_gamma`.
      largest_gamma: largest encoding considered, relative to `f`.

    Returns:
      `EncodingPlan`, whose `assumptions` say what it took for granted.

    Raises:
      ValueError: numbers of cases that differ, values that are not finite, or too many markers for the sizes allowed.

    Example:
      >>> plan = plan_encoding(jnp.linspace(-2.0, 2.0, 200), jnp.array([0.3, -1.0]), bandwidth=0.5)
      >>> plan.balanced, plan.size % 4
      (True, 0)

    References:
      specs/fusion_quality.md, section 5: :math:`d_2^* = \gamma^* d_1`.
    """
    _check_sources({"features": features, "values": values}, None)
    images, clinical = np.atleast_2d(np.asarray(features)), np.atleast_2d(np.asarray(values))
    cases = np.unique(np.linspace(0, len(images) - 1, min(PLANNED_CASES, len(images))).astype(int))
    markers, width = clinical.shape[1], images.shape[1]
    smallest, largest = 2 * markers, int(largest_gamma * width) // (2 * markers) * 2 * markers
    if largest < smallest:
        raise ValueError(
            f"{markers} markers need at least {smallest} coordinates, more than {largest_gamma:g} times the {width} "
            "features. Raise `largest_gamma`."
        )

    scaled = [_rescale(images[case], rescaling) for case in cases]
    encode_scaled = _ScaledEncode(encode, rescaling)
    shapes = _buckets(np.geomspace(smallest, largest, 8), markers)
    ends = [end for case in cases for end in _encoded_ends(jnp.asarray(clinical[case]), shapes, encode_scaled)]
    # One grid for all cases, and so one compilation; its margin covers what other sizes add to the range.
    grid = uniform_grid(*scaled, *ends, bandwidth=bandwidth, padding=2 * densities_of.PADDING)

    def mean_gaps(sizes: np.ndarray) -> np.ndarray:
        sweeps = [
            sweep_gamma(
                images[case],
                clinical[case],
                sizes / width,
                vary="size",
                bandwidth=bandwidth,
                rescaling=rescaling,
                encode=encode,
                grid=grid,
            ).energy_gap
            for case in cases
        ]
        return np.mean(np.asarray(sweeps, float), axis=0)

    def even_multiples(sizes: np.ndarray) -> np.ndarray:
        return np.unique(np.clip(np.round(sizes / smallest), 1, largest // smallest).astype(int)) * smallest

    sizes = even_multiples(np.geomspace(smallest, largest, 48))
    gaps = mean_gaps(sizes)
    crossings = np.flatnonzero(np.sign(gaps[:-1]) != np.sign(gaps[1:]))
    if crossings.size:
        first = crossings[0]
        between = np.setdiff1d(even_multiples(np.linspace(sizes[first], sizes[first + 1], 34)), sizes)
        if between.size:
            sizes, gaps = np.concatenate([sizes, between]), np.concatenate([gaps, mean_gaps(between)])
            order = np.argsort(sizes)
            sizes, gaps = sizes[order], gaps[order]
    best = int(np.argmin(np.abs(gaps)))
    averaged = "one case" if len(images) == 1 else f"the mean over {len(cases)} of {len(images)} cases"
    return EncodingPlan(
        size=int(sizes[best]),
        gamma=float(sizes[best] / width),
        energy_gap=float(gaps[best]),
        balanced=bool(crossings.size),
        sizes=sizes,
        gaps=gaps,
        assumptions=(
            f"pooled energy gap of {averaged}; {width} image features and {markers} markers, bandwidth "
            f"{float(np.asarray(bandwidth)):g}, rescaling {rescaling!r}; sizes are even multiples of the number of "
            f"markers from {smallest} to {largest}. Balanced means equal energy, which says nothing about accuracy."
        ),
    )


# Checks, before anything is compiled.


def _check_sources(sources: Sources, weights: Sources | None) -> bool:
    """Whether the sources hold one case; refuses what cannot be measured."""
    if len(sources) < 2:
        raise ValueError(f"fusion takes at least two sources; found {sorted(sources)}.")
    shapes = {name: np.shape(values) for name, values in sources.items()}
    for name, shape in shapes.items():
        if len(shape) not in (1, 2) or 0 in shape:
            raise ValueError(
                f"source {name!r} has shape {shape}; expected (features,) for one case or (cases, features)."
            )
    cases = {name: shape[0] if len(shape) == 2 else None for name, shape in shapes.items()}
    if len(set(cases.values())) > 1:
        listed = ", ".join(f"{name}: {'one case' if n is None else n}" for name, n in cases.items())
        raise ValueError(f"sources differ in their number of cases ({listed}); rows are cases and have to match.")
    for name, values in (weights or {}).items():
        if name not in sources:
            raise ValueError(f"weights are given for {name!r}, which is not among the sources {sorted(sources)}.")
        if np.shape(values) != shapes[name]:
            raise ValueError(f"weights of {name!r} have shape {np.shape(values)}; its values have {shapes[name]}.")
        if is_concrete(values) and not (np.asarray(values, float) >= 0).all():
            raise ValueError(f"weights of {name!r} have to be non-negative numbers; 0 marks a missing value.")
    for name, values in sources.items():
        if is_concrete(values):
            bad = np.argwhere(~np.isfinite(np.asarray(values, float)))
            if len(bad):
                raise ValueError(
                    f"source {name!r} holds {len(bad)} values that are not finite, the first at index "
                    f"{tuple(int(i) for i in bad[0])}. Put any number there and weight 0 for a missing value."
                )
    return None in cases.values()


def _check_cover(grid: Array, width: Array, values: dict[str, Array], method: Method | None) -> None:
    if not is_concrete(grid, width, *values.values()):
        return
    densities_of.check_grid(grid)
    low = min(float(np.min(np.asarray(v))) for v in values.values())
    high = max(float(np.max(np.asarray(v))) for v in values.values())
    ends = np.asarray(grid, float)[[0, -1]]
    reach = KERNEL_REACH * float(np.asarray(width))
    if low - reach < ends[0] or high + reach > ends[1]:
        raise ValueError(
            f"the grid runs from {ends[0]:g} to {ends[1]:g}, feature values from {low:g} to {high:g}; expected "
            f"{KERNEL_REACH:g} bandwidths more on either side, or the densities lose mass. Use uniform_grid, or leave "
            "`grid` out."
        )
    if method != "exact":
        densities_of.check_step(grid, width)
    elif float(densities_of.grid_step(grid) / width) > COARSEST_STEP:
        raise ValueError(
            f"a grid with a step of {float(densities_of.grid_step(grid) / width):.3g} bandwidths is too coarse to "
            f"integrate over, even for exact densities; expected at most {COARSEST_STEP:g}. Use uniform_grid."
        )
