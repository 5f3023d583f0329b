"""How much would a number differ with other patients? The bootstrap over patients, and what is read off its draws.

Patients are drawn, not rows: all rows of a patient share one weight, so rows from repeats, slices or both breasts
never add to n. Strata keep the number of patients of every label pattern as it is. A statistic is written once, as a
function of the data and of how often each row was drawn; all statistics of all models come from the same draws.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, Num

from fusion_jax.arrays import map_in_batches
from fusion_jax.evaluation.rows import patient_codes

__all__ = [
    "Design",
    "Interval",
    "Jackknife",
    "Statistic",
    "ZTest",
    "batch_size",
    "bca_interval",
    "bootstrap",
    "draw_weights",
    "jackknife",
    "make_design",
    "patients_alone",
    "percentile_interval",
    "z_test",
]

Statistic = Callable[[Any, Array], Any]
"""`statistic(data, weights) -> pytree of arrays`: pure, of module level, with weights (n,) how often a row counts."""

LARGEST_GROUPS = 5_000
"""Deletions of a jackknife: as many evaluations as a bootstrap of the default size."""

BATCH_ELEMENTS = 2**18
"""Elements of the data times resamples that are worked on together: arrays of 1 MB, which stay in the cache."""

SMALLEST_BATCH, LARGEST_BATCH = 4, 64
"""One resample at a time leaves cores idle; at 100,000 rows of two models with all metrics, four take 0.1 GiB."""


class Design(NamedTuple):
    """What is drawn, and from where.

    Attributes:
      cluster: patient of each row, 0 to u - 1, shape `(n,)`.
      stratum: stratum of each patient, 0 upwards, shape `(u,)`.
    """

    cluster: Int[np.ndarray, "n"]
    stratum: Int[np.ndarray, "u"]


class Interval(NamedTuple):
    """An interval and how well its ends are known; arrays where the draws are of arrays.

    Attributes:
      low, high: the ends.
      low_error, high_error: Monte-Carlo standard errors of the ends, or None where nothing was resampled.
      undefined: resamples in which the statistic was NaN, and which were left out.
    """

    low: Any
    high: Any
    low_error: Any = None
    high_error: Any = None
    undefined: Any = 0


class ZTest(NamedTuple):
    """A two-sided normal test of a difference with a resampled standard deviation.

    Attributes:
      difference: the point estimate.
      sd: standard deviation of the resampled differences.
      z: difference over sd; 0 where both are 0, NaN where only sd is.
      p_value: two-sided.
      p_error: Monte-Carlo standard error of the p-value.
      undefined: resamples in which the difference was NaN, and which were left out.
    """

    difference: Any
    sd: Any
    z: Any
    p_value: Any
    p_error: Any
    undefined: Any = 0


class Jackknife(NamedTuple):
    """Values of a statistic without one patient, or without one group of patients of a stratum.

    Attributes:
      values: pytree of arrays with leading axis j, the deletions.
      stratum: of the patients that each deletion left out, shape `(j,)`.
      exact: whether every deletion left out a single patient.
    """

    values: Any
    stratum: Int[np.ndarray, "j"]
    exact: bool


def make_design(
    pattern: Int[np.ndarray, "n"] | None = None, patients: Any = None, *, rows: int | None = None
) -> Design:
    """Patients as clusters, and the sets of their labels as strata.

    A patient with one malignant and one benign breast is of another stratum than one with two benign breasts, so that
    every resample holds as many patients of each kind as the data.

    Args:
      pattern: label code of each row, shape `(n,)`; None for one stratum.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.
      rows: their number, needed only where both are None.

    Returns:
      The design. Patients are numbered in the order of their ids, so that the order of rows changes no draw.

    Raises:
      ValueError: lengths differ, there are no rows, or a patient id is missing.

    Example:
      >>> make_design(np.array([0, 1, 0, 0]), ["a", "a", "b", "c"])
      Design(cluster=array([0, 0, 1, 2]), stratum=array([1, 0, 0]))
    """
    codes = None if pattern is None else np.asarray(pattern)
    ids = None if patients is None else patient_codes(patients, len(patients))
    counts = [len(found) for found in (codes, ids) if found is not None] + ([] if rows is None else [rows])
    if len(set(counts)) != 1 or counts[0] == 0:
        raise ValueError(
            f"label pattern, patients and rows: {counts or 'nothing'} given; expected one number of rows, at least 1."
        )
    n = counts[0]
    cluster = np.arange(n) if ids is None else ids
    if codes is None:
        return Design(cluster, np.zeros(cluster.max() + 1, cluster.dtype))
    if ids is None:
        return Design(cluster, np.unique(codes, return_inverse=True)[1].reshape(-1))
    # Each pair of patient and label once, in the order of patients and then of labels.
    pairs = np.unique(np.stack([cluster, codes.astype(cluster.dtype)], axis=1), axis=0)
    starts = np.searchsorted(pairs[:, 0], np.arange(1, cluster.max() + 1))
    sets = [tuple(labels) for labels in np.split(pairs[:, 1], starts)]
    order = {labels: number for number, labels in enumerate(sorted(set(sets)))}
    return Design(cluster, np.array([order[labels] for labels in sets], cluster.dtype))


def patients_alone(design: Design) -> int:
    """Number of patients that are alone in their stratum: they are in every resample once, so they never vary.

    Example:
      >>> patients_alone(make_design(np.array([0, 0, 1])))
      1
    """
    return int((np.bincount(design.stratum) == 1).sum())


# Drawing.


class _Plan(NamedTuple):
    """A design as the program takes it: patients in the order of their strata.

    Attributes:
      start, size: first position and number of patients of the stratum, for each position, shape `(u,)`.
      place: position of the patient of each row, shape `(n,)`.
    """

    start: Any
    size: Any
    place: Any


def _plan(design: Design) -> _Plan:
    order = np.argsort(design.stratum, kind="stable")
    sizes = np.bincount(design.stratum)
    starts = np.cumsum(sizes) - sizes
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order))
    stratum = design.stratum[order]
    return _Plan(starts[stratum].astype(np.int32), sizes[stratum].astype(np.uint32), position[design.cluster])


def _high_product(bits: Array, size: Array) -> Array:
    """High 32 bits of the product of two 32-bit numbers, without 64-bit integers."""
    half = jnp.asarray(16, bits.dtype)
    mask = jnp.asarray(0xFFFF, bits.dtype)
    high, low = bits >> half, bits & mask
    size_high, size_low = size >> half, size & mask
    middle = high * size_low + (low * size_low >> half)
    return high * size_high + (middle >> half) + (low * size_high + (middle & mask) >> half)


def _weights(plan: _Plan, key: Array, resample: Array) -> Float[Array, "n"]:
    # A counter-based generator gives resample i the same draws however many resamples or batches there are. Its
    # primitive yields a word per position; jax.random.bits computes two and folds them, at twice the time.
    words = jax.random.key_data(jax.random.fold_in(key, resample))
    bits = threefry_2x32(words, jnp.arange(plan.size.shape[0], dtype=words.dtype))
    # Multiply-shift maps 32 bits to a size with a bias of at most size / 2^32: 2e-5 at 100,000 patients.
    drawn = plan.start + _high_product(bits, plan.size).astype(plan.start.dtype)
    counts = jnp.zeros_like(plan.start).at[drawn].add(1)
    return counts[plan.place].astype(jnp.result_type(float))


def draw_weights(design: Design, resample: int, *, seed: int = 0) -> Float[np.ndarray, "n"]:
    """How often each row is in one resample of `bootstrap`: what a single draw can be recomputed with.

    Example:
      >>> float(draw_weights(make_design(np.array([0, 0, 1])), 0)[2])
      1.0
    """
    weights = jax.jit(_weights)(_plan(design), jax.random.key(seed), np.int32(resample))
    return np.asarray(weights)


@partial(jax.jit, static_argnames=("statistic", "batch"))
def _bootstrap(statistic: Statistic, data: Any, plan: _Plan, key: Array, resamples: Array, *, batch: int) -> Any:
    return map_in_batches(lambda resample: statistic(data, _weights(plan, key, resample)), resamples, batch)


def bootstrap(statistic: Statistic, data: Any, design: Design, *, resamples: int = 5000, seed: int = 0) -> Any:
    """Values of a statistic in resamples of the patients, drawn with replacement within their strata.

    Args:
      statistic: `statistic(data, weights) -> pytree of arrays`, a pure function of module level (it is compiled once
        for each function and shape); `weights` (n,) are whole numbers that say how often each row was drawn.
      data: pytree of arrays; rows need not come first, as only the statistic reads it.
      design: patients and strata of the n rows.
      resamples: r.
      seed: of the draws. Resample i is the same whatever `resamples` is.

    Returns:
      The pytree of the statistic as NumPy arrays with leading axis r; NaN where it is undefined in a resample.

    Raises:
      ValueError: fewer than one resample.

    Example:
      >>> def mean(data, weights):
      ...     return jnp.sum(weights * data) / jnp.sum(weights)
      >>> draws = bootstrap(mean, np.arange(10.0), make_design(rows=10), resamples=2000)
      >>> draws.shape, round(float(draws.mean()), 1)
      ((2000,), 4.5)

    References:
      Efron & Tibshirani 1993, "An Introduction to the Bootstrap"; Holste et al. 2021, section 3.4 (5,000 stratified
      resamples); specs/breast_mri_fusion.md.
    """
    if resamples < 1:
        raise ValueError(f"resamples: {resamples}; expected at least 1, and some thousands for an interval.")
    numbers = np.arange(resamples, dtype=np.int32)
    batch = batch_size(data, len(design.cluster))
    return _on_host(_bootstrap(statistic, data, _plan(design), jax.random.key(seed), numbers, batch=batch))


def batch_size(data: Any, rows: int) -> int:
    """Resamples that are worked on together: as many as stay in the cache."""
    elements = max(rows, sum(np.size(leaf) for leaf in jax.tree.leaves(data)))
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, BATCH_ELEMENTS // elements))


def _on_host(values: Any) -> Any:
    return jax.tree.map(np.asarray, values)


# Deleting.


@partial(jax.jit, static_argnames=("statistic", "batch"))
def _without(statistic: Statistic, data: Any, group: Array, deleted: Array, *, batch: int) -> Any:
    def value(number: Array) -> Any:
        return statistic(data, (group != number).astype(jnp.result_type(float)))

    return map_in_batches(value, deleted, batch)


def jackknife(
    statistic: Statistic, data: Any, design: Design, *, groups: int = LARGEST_GROUPS, seed: int = 0
) -> Jackknife:
    """Values of a statistic without each patient in turn; what BCa intervals need beside the draws.

    Beyond `groups` patients, random groups of patients of one stratum are left out together, about `groups` in all,
    shared out by the sizes of the strata. Influences of patients add up, and so do their third moments, so the
    acceleration that is read off groups estimates the same number, with a standard error of about
    sqrt(6 / groups) / 6, 0.006 for 5,000. Patients alone in their stratum never vary, and are not deleted.

    Args:
      statistic, data, design: as for `bootstrap`.
      groups: most deletions.
      seed: of the groups.

    Example:
      >>> def mean(data, weights):
      ...     return jnp.sum(weights * data) / jnp.sum(weights)
      >>> jackknife(mean, np.array([0.0, 1.0, 5.0]), make_design(rows=3)).values.tolist()
      [3.0, 2.5, 0.5]

    References:
      Efron & Tibshirani 1993, chapters 11 and 14; Davison & Hinkley 1997, section 3.2 (several samples).
    """
    sizes = np.bincount(design.stratum)
    varying = int(sizes[sizes > 1].sum())
    exact = varying <= groups
    shares = sizes if exact else np.minimum(sizes, np.maximum(2, sizes * groups // varying))
    rng = np.random.default_rng([seed, len(design.stratum)])
    member = np.full(len(design.stratum), -1, np.int32)
    strata = []
    for stratum in np.flatnonzero(sizes > 1):
        patients = np.flatnonzero(design.stratum == stratum)
        if not exact:
            patients = rng.permutation(patients)
        member[patients] = len(strata) + np.arange(len(patients)) % shares[stratum]
        strata += [stratum] * int(shares[stratum])
    if not strata:
        raise ValueError(
            "every patient is alone in the stratum of its labels, so nothing varies. Give more patients, or no strata."
        )
    deleted = np.arange(len(strata), dtype=np.int32)
    batch = batch_size(data, len(design.cluster))
    values = _without(statistic, data, member[design.cluster], deleted, batch=batch)
    return Jackknife(_on_host(values), np.array(strata), exact)


# Reading off.


class _Sorted(NamedTuple):
    """Draws in ascending order, NaN last, and how many are not NaN, for each element of the statistic."""

    values: Float[np.ndarray, "r *a"]
    known: Int[np.ndarray, "*a"]

    def quantile(self, fraction: Any) -> Any:
        """Linear interpolation of order statistics: type 7 of R, and NumPy's default; NaN without draws."""
        if self.values.shape[0] == 0:
            return np.full(self.known.shape, np.nan)[()]
        position = np.clip(fraction, 0.0, 1.0) * np.maximum(self.known - 1, 0)
        unknown = np.isnan(position)
        position = np.where(unknown, 0.0, position)
        below = np.floor(position).astype(int)
        above = np.minimum(below + 1, np.maximum(self.known - 1, 0))
        low, high = (np.take_along_axis(self.values, index[None], axis=0)[0] for index in (below, above))
        # Infinite draws are values, and their difference is none.
        step = np.subtract(high, low, out=np.zeros_like(low), where=high != low)
        found = np.where(step == 0, low, low + (position - below) * step)
        return np.where(unknown, np.nan, found)[()]

    def quantile_error(self, fraction: Any, spread: Any) -> Any:
        """Standard error of a quantile: half the distance of the quantiles one `spread` below and above."""
        low, high = self.quantile(fraction - spread), self.quantile(fraction + spread)
        return np.subtract(high, low, out=np.zeros(self.known.shape), where=high != low)[()] / 2


def _sort(draws: Num[np.ndarray, "r *a"]) -> _Sorted:
    # Quantiles of a million draws in single precision would round twice.
    values = np.sort(np.asarray(draws, float), axis=0)
    return _Sorted(values, np.asarray((~np.isnan(values)).sum(axis=0)))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; expected a fraction between 0 and 1, such as 0.95.")


def percentile_interval(draws: Num[np.ndarray, "r *a"], level: float = 0.95) -> Interval:
    r"""Percentile interval: the quantiles of the draws that leave equal tails.

    The Monte-Carlo standard error of the quantile of fraction q of r draws is half the distance of the quantiles of
    fractions :math:`q \pm \sqrt{q (1 - q) / r}`.

    Args:
      draws: values of a statistic in resamples, along the first axis; NaN are left out and counted.
      level: of confidence.

    Raises:
      ValueError: a level outside 0 to 1.

    Example:
      >>> interval = percentile_interval(np.arange(1001.0))
      >>> float(interval.low), float(interval.high)
      (25.0, 975.0)

    References:
      Holste et al. 2021, Table 2; R's pROC `ci.auc(method = "bootstrap")` reads off the same quantiles.
    """
    _check_level(level)
    ordered = _sort(draws)
    tail = (1 - level) / 2
    spread = np.sqrt(tail * (1 - tail) / np.maximum(ordered.known, 1))
    low, high = (ordered.quantile(fraction) for fraction in (tail, 1 - tail))
    errors = (ordered.quantile_error(fraction, spread) for fraction in (tail, 1 - tail))
    return Interval(low, high, *errors, undefined=(len(draws) - ordered.known)[()])


def bca_interval(
    estimate: Any,
    draws: Num[np.ndarray, "r *a"],
    values: Num[np.ndarray, "j *a"],
    stratum: Int[np.ndarray, "j"],
    level: float = 0.95,
) -> Interval:
    r"""Bias-corrected and accelerated interval: quantiles moved for the bias and the skewness of the statistic.

    .. math:: \alpha = \Phi\left(z_0 + \frac{z_0 + z}{1 - a (z_0 + z)}\right), \qquad
              a = \frac{\sum_h \sum_j L_{hj}^3}{6 (\sum_h \sum_j L_{hj}^2)^{3/2}}, \qquad
              L_{hj} = \frac{g_h - 1}{g_h} (\bar\theta_h - \theta_{hj})

    with :math:`z_0` from the fraction of draws below the estimate, equal ones counted half, and the j-th of
    :math:`g_h` deletions in stratum h. Second-order correct, where the percentile interval is first-order; its ends
    vary about 1.3 times as much between runs, and more if the statistic is skewed.

    Args:
      estimate: of all data, shape `a`.
      draws: values in resamples; NaN are left out and counted.
      values, stratum: `jackknife(...)` of the same statistic; undefined deletions are left out.
      level: of confidence.

    Returns:
      The interval; NaN where all draws lie on one side of the estimate. Its errors include that of :math:`z_0`.

    Raises:
      ValueError: a level outside 0 to 1.

    Example:
      >>> def mean(data, weights):
      ...     return jnp.sum(weights * data) / jnp.sum(weights)
      >>> data, design = np.square(np.arange(20.0)), make_design(rows=20)
      >>> draws, left_out = bootstrap(mean, data, design), jackknife(mean, data, design)
      >>> bca = bca_interval(data.mean(), draws, left_out.values, left_out.stratum)
      >>> bool(bca.high > percentile_interval(draws).high)
      True

    References:
      Efron 1987; Efron & Tibshirani 1993, Eq. 14.9 to 14.15; Davison & Hinkley 1997, Eq. 5.24 and 5.35 (strata).
    """
    from scipy.stats import norm

    _check_level(level)
    ordered = _sort(draws)
    below = _fraction_below(ordered, np.asarray(estimate, float))
    acceleration = _acceleration(np.asarray(values, float), stratum)
    known = (below > 0) & (below < 1)
    bias = norm.ppf(np.where(known, below, 0.5))
    ends, errors = [], []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        moved = bias + norm.ppf(tail)
        divisor = 1 - acceleration * moved
        point = bias + moved / np.where(divisor > 0, divisor, np.nan)
        fraction = np.where(known, norm.cdf(point), np.nan)
        # d fraction / d below. Both fractions are estimated from the same draws, hence the covariance.
        slope = norm.pdf(point) / norm.pdf(bias) * (1 + 1 / np.square(divisor))
        together = np.minimum(fraction, below) - fraction * below
        variance = slope**2 * below * (1 - below) + fraction * (1 - fraction) - 2 * slope * together
        spread = np.sqrt(np.maximum(variance, 0.0) / np.maximum(ordered.known, 1))
        ends.append(ordered.quantile(fraction))
        errors.append(ordered.quantile_error(fraction, spread))
    return Interval(*ends, *errors, undefined=(len(draws) - ordered.known)[()])


def _fraction_below(ordered: _Sorted, estimate: Float[np.ndarray, "*a"]) -> Any:
    # Draws may be single precision, the estimate is double: equal means equal within the rounding of a sum.
    rounding = 1e-6 * np.abs(estimate)
    under = (ordered.values < estimate - rounding).sum(axis=0)
    until = (ordered.values <= estimate + rounding).sum(axis=0)
    return np.where(ordered.known > 0, (under + until) / (2 * np.maximum(ordered.known, 1)), np.nan)


def _acceleration(values: Float[np.ndarray, "j *a"], stratum: Int[np.ndarray, "j"]) -> Any:
    cubes, squares = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for one in np.unique(stratum):
        deleted = values[stratum == one]
        known = ~np.isnan(deleted)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, deleted, 0.0).sum(axis=0) / count
        influence = np.where(known, mean - deleted, 0.0) * (count - 1) / count
        cubes += (influence**3).sum(axis=0)
        squares += (influence**2).sum(axis=0)
    return np.divide(cubes, 6 * squares**1.5, out=np.zeros_like(cubes), where=squares > 0)


def z_test(difference: Any, draws: Num[np.ndarray, "r *a"]) -> ZTest:
    r"""Two-sided normal test of a paired difference, with the standard deviation of its draws.

    .. math:: z = \frac{\theta_1 - \theta_2}{\mathrm{sd}(\theta_1^* - \theta_2^*)}, \qquad p = 2 \Phi(-|z|)

    Args:
      difference: of the two models on all data, shape `a`.
      draws: the same difference in resamples, both models on the same patients; NaN are left out and counted.

    Returns:
      The test. A difference of 0 that never varies (identical rankings) has p = 1; another difference that never
      varies has no standard deviation to judge it by, and p is NaN.

    Example:
      >>> test = z_test(0.2, np.array([0.1, 0.3, 0.2, 0.2]))
      >>> round(float(test.z), 3), round(float(test.p_value), 4)
      (2.449, 0.0143)

    References:
      Holste et al. 2021, the test of their code, which is that of R's pROC `roc.test(method = "bootstrap")`;
      specs/breast_mri_fusion.md.
    """
    from scipy.stats import norm

    found = np.asarray(difference, float)
    values = np.asarray(draws, float)
    known = ~np.isnan(values)
    count = np.asarray(known.sum(axis=0))
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    centred = np.where(known, values - mean, 0.0)
    squares = np.square(centred).sum(axis=0)
    sd = np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
    # What single precision leaves of an exact zero.
    none = np.abs(found) <= 1e-12
    varies = sd > 0
    z = np.where(varies, found / np.where(varies, sd, 1.0), np.where(none & (sd == 0), 0.0, np.nan))
    p_value = 2 * norm.sf(np.abs(z))
    # Var(sd) / sd^2 = (kurtosis - 1) / (4 r), and dp / dsd = 2 phi(z) |z| / sd.
    kurtosis = np.divide(count * (centred**4).sum(axis=0), squares**2, out=np.ones_like(mean), where=squares > 0)
    relative = np.sqrt(np.maximum(kurtosis - 1, 0.0) / (4 * np.maximum(count, 1)))
    p_error = np.where(np.isnan(z), np.nan, 2 * norm.pdf(z) * np.abs(z) * relative)
    return ZTest(found[()], sd[()], z[()], p_value[()], p_error[()], (len(values) - count)[()])
