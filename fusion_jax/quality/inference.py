r"""Could it be chance, and does it depend on the bandwidth? Permutation nulls and a stability check.

The unit of every null is the case. Feature values of one case are not exchangeable (neighbouring voxels resemble each
other, a sine and its cosine are one angle), so permuting values would give p-values far too small.
Host functions.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Key, Sources, map_in_batches
from fusion_jax.quality import energy
from fusion_jax.quality.density import PADDING, grid_step, uniform_grid
from fusion_jax.quality.measure import FusionQuality, Pair, fusion_quality

__all__ = [
    "NullTest",
    "Stability",
    "bandwidth_stability",
    "dominant_source",
    "outcome_null",
    "pairing_null",
]

PERMUTATIONS_AT_ONCE = 8


class NullTest(NamedTuple):
    """A permutation test.

    Attributes:
      statistic: its value on the data.
      null: its values under permutation, shape `(r,)`.
      p_value: two-sided, `(1 + number as extreme) / (1 + r)`.
      hypothesis: the null hypothesis, in words.
      cases: number of cases.
    """

    statistic: float
    null: np.ndarray
    p_value: float
    hypothesis: str
    cases: int


class Stability(NamedTuple):
    """A conclusion over a range of bandwidths.

    Attributes:
      bandwidths: those tried, shape `(k,)`.
      conclusions: what was concluded at each.
      stable: whether all agree.
      qualities: what they were concluded from, without densities.
    """

    bandwidths: np.ndarray
    conclusions: tuple[Hashable, ...]
    stable: bool
    qualities: tuple[FusionQuality, ...]


def pairing_null(
    quality: FusionQuality,
    pair: Pair,
    key: Key,
    *,
    statistic: Literal["total_variation", "energy_gap"] = "total_variation",
    permutations: int = 999,
) -> NullTest:
    r"""Does it matter which case's `b` is fused with which case's `a`?

    Null hypothesis: the two sources are paired at random, so that re-pairing them across cases leaves the mean
    statistic over cases unchanged. Statistics: :math:`TV(p_a, p_b)`, or the magnitude of the pooled energy gap. The
    signed gap at equal sizes is a sum over the sources and does not depend on the pairing at all.

    Args:
      quality: of a batch of cases, with densities kept.
      pair: the two sources.
      key: random key.
      statistic: which.
      permutations: number of random re-pairings.

    Returns:
      `NullTest`. A small p-value says that sources of one case resemble (or avoid) each other more than those of
      different cases; it says nothing about the outcome.

    Raises:
      ValueError: one case, or densities not kept.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (12, 30)) + jnp.arange(12.0)[:, None]
      >>> quality = fusion_quality({"a": x, "b": x + 0.1}, bandwidth=0.5)
      >>> pairing_null(quality, ("a", "b"), jax.random.key(1), permutations=99).p_value
      0.01
    """
    cases = _cases(quality, pair)
    first, second = (quality.densities[name] for name in pair)
    step = grid_step(quality.grid)
    if statistic == "total_variation":
        observed, null = _repaired(_mean_variation, first, second, key, permutations)
        observed, null = observed * step, null * step
    elif statistic == "energy_gap":
        of_each = [jnp.stack([quality.sizes[name], quality.energies[name]], axis=-1) for name in pair]
        observed, null = _repaired(_mean_gap, *of_each, key, permutations)
    else:
        raise ValueError(f"statistic is {statistic!r}; expected 'total_variation' or 'energy_gap'.")
    return _two_sided(
        float(observed),
        np.asarray(null, float),
        float(np.mean(np.append(np.asarray(null, float), float(observed)))),  # the data are one of the pairings
        f"{pair[0]} and {pair[1]} are paired at random across cases (statistic: mean {statistic.replace('_', ' ')})",
        cases,
    )


def _mean_variation(first: Array, second: Array) -> Array:
    return jnp.mean(energy.total_variation(first, second, grid_step=1.0))


def _mean_gap(first: Array, second: Array) -> Array:
    ratio = second[:, 0] / first[:, 0]
    return jnp.mean(energy.energy_gap_from_energies(first[:, 1], second[:, 1], ratio, absolute=True))


@partial(jax.jit, static_argnums=(0, 4))
def _repaired(mean_statistic, first: Array, second: Array, key: Key, permutations: int) -> tuple[Array, Array]:
    """A mean over the cases as they are paired, and under random re-pairings."""

    def repair(one):
        return mean_statistic(first, second[jax.random.permutation(one, first.shape[0])])

    keys = jax.random.split(key, permutations)
    return mean_statistic(first, second), map_in_batches(repair, keys, PERMUTATIONS_AT_ONCE)


def outcome_null(
    values: Float[ArrayLike, "b"],
    outcome: Bool[ArrayLike, "b"],
    *,
    covariates: Float[ArrayLike, "b c"] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> NullTest:
    r"""Is a quantity of the cases related to their outcome?

    Null hypothesis: the outcome is exchangeable across cases given the covariates. The statistic is the area under
    the ROC curve of the quantity, ties counted half; with covariates, of its residuals after linear regression on
    them, which are permuted.

    Args:
      values: one number a case, such as a source bias, shape `(b,)`.
      outcome: shape `(b,)`.
      covariates: numbers to adjust for, shape `(b, c)`.
      permutations: number of random permutations.
      seed: of the permutations.

    Returns:
      `NullTest`; two-sided about an area of 0.5.

    Raises:
      ValueError: shapes that differ, values that are not finite, or one outcome only.

    Example:
      >>> outcome_null(np.arange(20.0), np.arange(20) > 9).statistic
      1.0
    """
    sample, found = np.asarray(values, float), np.asarray(outcome)
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"outcome holds {sorted(set(found.ravel().tolist()), key=str)[:5]}; expected False and True.")
    positive = found.astype(bool)
    if sample.ndim != 1 or sample.shape != positive.shape:
        raise ValueError(
            f"values and outcome have shapes {sample.shape} and {positive.shape}; expected (cases,) twice."
        )
    if not np.isfinite(sample).all():
        raise ValueError(f"values of {int((~np.isfinite(sample)).sum())} cases are not finite; leave those cases out.")
    if positive.all() or not positive.any():
        raise ValueError(f"all {positive.size} cases have the same outcome; a relation needs both.")
    hypothesis = "the outcome is exchangeable across cases"
    if covariates is not None:
        adjusted = np.asarray(covariates, float)
        if adjusted.ndim != 2 or len(adjusted) != sample.size or not np.isfinite(adjusted).all():
            raise ValueError(
                f"covariates have shape {adjusted.shape}, {int((~np.isfinite(adjusted)).sum())} of them not finite; "
                f"expected finite numbers, shape ({sample.size}, covariates). Leave incomplete cases out."
            )
        spread = adjusted.std(axis=0)
        adjusted = (adjusted - adjusted.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        design = np.column_stack([np.ones(sample.size), adjusted])
        unit = 1e-9 * max(float(np.ptp(sample)), np.finfo(float).tiny)
        sample = sample - design @ np.linalg.lstsq(design, sample, rcond=None)[0]
        # What the covariates explain wholly leaves rounding, whose ranks mean nothing: make those residuals tie.
        sample = np.round(sample / unit)
        hypothesis += f" given {design.shape[1] - 1} covariates"
    generator = np.random.default_rng(seed)
    ranks = rankdata(sample)
    pairs = positive.sum() * (~positive).sum()
    smallest = positive.sum() * (positive.sum() + 1) / 2
    sums = np.asarray([generator.permutation(ranks)[positive].sum() for _ in range(permutations)])
    null = (sums - smallest) / pairs
    observed = (ranks[positive].sum() - smallest) / pairs
    return _two_sided(float(observed), null, 0.5, f"{hypothesis} (statistic: area under the ROC curve)", sample.size)


def dominant_source(quality: FusionQuality) -> str:
    """Source with the largest mean share of the fused energy: the default conclusion of a stability check."""
    shares = {name: float(jnp.mean(share)) for name, share in quality.energy_shares.items()}
    return max(shares, key=lambda name: shares[name])


def bandwidth_stability(
    sources: Sources,
    bandwidth: float,
    *,
    weights: Sources | None = None,
    conclude: Callable[[FusionQuality], Hashable] = dominant_source,
    factor: float = 2.0,
    count: int = 7,
) -> Stability:
    """Whether a conclusion holds at every bandwidth within a factor of the one chosen.

    Args:
      sources, weights: as in `fusion_quality`.
      bandwidth: the one chosen, feature units.
      conclude: from a measurement to anything that can be compared.
      factor: bandwidths run from `bandwidth / factor` to `bandwidth * factor`.
      count: number of bandwidths, evenly spaced in their logarithm; odd, so that the chosen one is among them.

    Returns:
      `Stability`.

    Example:
      >>> sources = {"a": jnp.zeros(10), "b": jnp.linspace(-3.0, 3.0, 10)}
      >>> bandwidth_stability(sources, 0.5, count=3).conclusions
      ('a', 'a', 'a')
    """
    bandwidths = bandwidth * np.geomspace(1.0 / factor, factor, count)
    # One grid, fine enough for the narrowest kernel and long enough for the widest: one compilation for all.
    present = [
        np.asarray(values)[np.asarray(weights[name]) > 0] if weights and name in weights else values
        for name, values in sources.items()
    ]
    grid = uniform_grid(*present, bandwidth=bandwidths[0], padding=PADDING * factor**2)
    qualities = tuple(
        fusion_quality(sources, bandwidth=float(one), weights=weights, grid=grid, keep_densities=False)
        for one in bandwidths
    )
    conclusions = tuple(conclude(quality) for quality in qualities)
    return Stability(bandwidths, conclusions, len(set(conclusions)) == 1, qualities)


def _cases(quality: FusionQuality, pair: Pair) -> int:
    missing = [name for name in pair if name not in quality.densities]
    if missing:
        raise ValueError(
            f"no densities of {missing}; measure with keep_densities=True and take names from the sources."
        )
    density = quality.densities[pair[0]]
    if density.ndim != 2 or density.shape[0] < 2:
        raise ValueError("a null over cases needs a batch of at least two cases; found one.")
    return density.shape[0]


def _two_sided(observed: float, null: np.ndarray, centre: float, hypothesis: str, cases: int) -> NullTest:
    # Ties by rounding count as extreme: the identity is among the permutations.
    extreme = np.abs(null - centre) >= abs(observed - centre) * (1.0 - 1e-6)
    return NullTest(observed, null, float((1 + extreme.sum()) / (1 + null.size)), hypothesis, cases)
