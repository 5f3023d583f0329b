"""Random draws that meet printed counts exactly; every column and case has its own stream of random numbers."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

__all__ = [
    "case_stream",
    "checked_n",
    "class_counts",
    "column_stream",
    "normal_scores",
    "proportional",
    "shuffled_levels",
    "spread_over",
]


def checked_n(n: int, least: int, what: str) -> int:
    """The number of cases, if it is at least `least`."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"{what}: n is {n!r}; expected a whole number of cases.")
    if n < least:
        raise ValueError(f"{what}: {n} cases; expected at least {least}, so that every class and level is there.")
    return int(n)


def case_stream(seed: int, index: int, purpose: str = "") -> np.random.Generator:
    """Random numbers of one case, the same whichever cases were made before it; independent for every purpose."""
    # NumPy pads a short seed with zeros, so [seed, index] and [seed, index, 0] are one stream: a purpose is never 0.
    return np.random.default_rng([seed, index, *([zlib.crc32(purpose.encode()) + 2] if purpose else [])])


def column_stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one column over all cases, independent of every case's own and of other columns'."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), 1])


def proportional(counts: Sequence[float] | Shaped[np.ndarray, "k"], n: int) -> Int[np.ndarray, "k"]:
    """Counts that sum to `n` in the proportion of others, by the largest remainder; the counts themselves at their sum.

    Args:
      counts: non-negative, not all zero, shape `(k,)`.
      n: what to share out.

    Returns:
      Whole numbers, shape `(k,)`; among equal remainders the first wins.

    Raises:
      ValueError: counts that are negative, not finite or all zero.

    Example:
      >>> proportional([119, 79], 20).tolist(), proportional([119, 79], 198).tolist()
      ([12, 8], [119, 79])
    """
    weights = np.asarray(counts, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"counts {weights.tolist()}; expected numbers of at least 0, one of them above.")
    quotas = weights * n / weights.sum()
    # 1e-9: a whole quota must not lose a case to rounding.
    whole = np.floor(quotas + 1e-9).astype(np.int64)
    order = np.argsort(-np.round(quotas - whole, 9), kind="stable")
    whole[order[: n - whole.sum()]] += 1
    return whole


def class_counts(
    counts: Shaped[np.ndarray, "k"], odds: Sequence[float] | Float[np.ndarray, "k"], positives: int
) -> Int[np.ndarray, "2 k"]:
    r"""Counts of each level by class that keep both margins and have the wanted odds of the positive class.

    .. math:: n_{1k} = n_k \, \frac{a\, o_k}{1 + a\, o_k}, \qquad \textstyle\sum_k n_{1k} = n_1

    Args:
      counts: cases of each level, shape `(k,)`.
      odds: of the positive class in each level, relative to each other, shape `(k,)`.
      positives: cases of the positive class, at most the sum of `counts`.

    Returns:
      Negative and positive cases of each level, shape `(2, k)`.

    Example:
      >>> class_counts(np.array([60, 40]), [1.0, 1.0], 50).tolist()
      [[30, 20], [30, 20]]
      >>> class_counts(np.array([60, 40]), [1.0, 9.0], 50).tolist()
      [[42, 8], [18, 32]]
    """
    from scipy.optimize import root_scalar
    from scipy.special import expit

    counts = np.asarray(counts, np.int64)
    logits = np.log(np.asarray(odds, np.float64))
    if positives in (0, counts.sum()):
        positive = counts * (positives > 0)
        return np.stack([counts - positive, positive])

    def excess(shift: float) -> float:
        return float((counts * expit(logits + shift)).sum() - positives)

    positive = _rounded(
        counts * expit(logits + root_scalar(excess, bracket=(-60.0, 60.0), xtol=1e-10).root), counts, positives
    )
    return np.stack([counts - positive, positive])


def _rounded(values: np.ndarray, limit: np.ndarray, total: int) -> np.ndarray:
    whole = np.minimum(np.floor(values + 1e-9).astype(np.int64), limit)
    for k in np.argsort(whole - values, kind="stable"):
        if whole.sum() < total and whole[k] < limit[k]:
            whole[k] += 1
    return whole


def shuffled_levels(counts: Shaped[np.ndarray, "k"], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Every level as often as `counts` says, in random order, shape `(n,)`."""
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def normal_scores(n: int, rng: np.random.Generator) -> Float[np.ndarray, "n"]:
    r"""Standard normal numbers whose sample is as normal as `n` numbers can be, in random order.

    .. math:: z_i = \Phi^{-1}\bigl((\pi_i + \tfrac12) / n\bigr)

    Mean 0 and standard deviation close to 1 hold for every draw: small cohorts meet printed means as well.
    """
    from scipy.special import ndtri

    return ndtri((rng.permutation(n) + 0.5) / n)


def spread_over(total: int, groups: int, rng: np.random.Generator, most: int) -> Int[np.ndarray, "g"]:
    """`total` things over `groups` groups at random, at least one and at most `most` in each, shape `(g,)`."""
    sizes = np.ones(groups, np.int64)
    most = max(most, math.ceil(total / groups))
    while (left := total - sizes.sum()) > 0:
        np.add.at(sizes, rng.integers(0, groups, left), 1)
        np.minimum(sizes, most, out=sizes)
    return sizes
