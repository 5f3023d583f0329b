r"""Intervals of proportions: sensitivity, specificity, accuracy and every other share of rows.

Host functions in double precision, in closed form.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from fusion_jax.evaluation.resampling import Interval
from fusion_jax.evaluation.rows import Labels, Patients, patient_codes, positives

__all__ = [
    "Proportion",
    "clopper_pearson_interval",
    "clustered_proportion",
    "wilson_interval",
]


class Proportion(NamedTuple):
    """A share of rows, with an interval that knows whose rows they are.

    Attributes:
      estimate: the share; NaN without rows.
      low, high: ends of the interval; NaN where it cannot be had.
      successes, rows, patients: the counts behind it.
      design_effect: by how much rows of one patient resemble each other inflates the variance, at least 1.
      effective_rows: rows over design effect: as many independent rows would be known as well.
    """

    estimate: float
    low: float
    high: float
    successes: int
    rows: int
    patients: int
    design_effect: float
    effective_rows: float


def wilson_interval(successes: int, rows: int, level: float = 0.95) -> Interval:
    r"""Wilson's score interval of a proportion of independent rows.

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    Args:
      successes: how many rows have it.
      rows: n.
      level: of confidence.

    Returns:
      The ends; NaN without rows.

    Raises:
      ValueError: counts that are impossible, or a level outside 0 to 1.

    Example:
      >>> interval = wilson_interval(43, 48)
      >>> round(interval.low, 3), round(interval.high, 3)
      (0.778, 0.955)

    References:
      Wilson 1927, JASA 22: 209-212.
    """
    return _binomial_interval(successes, rows, level, "wilson")


def clopper_pearson_interval(successes: int, rows: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion of independent rows: never covers less than its level, usually more.

    Args:
      successes: how many rows have it.
      rows: their number.
      level: of confidence.

    Returns:
      The ends; NaN without rows.

    Raises:
      ValueError: counts that are impossible, or a level outside 0 to 1.

    Example:
      >>> interval = clopper_pearson_interval(43, 48)
      >>> round(interval.low, 3), round(interval.high, 3)
      (0.773, 0.965)

    References:
      Clopper & Pearson 1934, Biometrika 26: 404-413.
    """
    return _binomial_interval(successes, rows, level, "exact")


def clustered_proportion(outcomes: Labels, patients: Patients | None = None, level: float = 0.95) -> Proportion:
    r"""A proportion of rows with an interval over patients: Wilson's, at the effective number of rows.

    The share is a ratio, successes :math:`x_u` over rows :math:`n_u` of patient u, and so is its variance estimated:

    .. math:: v = \frac{\sum_u (x_u - \hat p \, n_u)^2}{n^2}, \qquad
              d = \max\left(1, \frac{v}{\hat p (1 - \hat p) / n}\right), \qquad n_\text{eff} = n / d

    There is no factor u / (u - 1) in v, as there is none in Wilson's interval: so one row a patient gives Wilson's
    interval, and every row written twice gives that of the single copies. A design effect below 1 is not used: rows of
    a patient never add to n. Where all outcomes are equal, resemblance inside patients cannot be seen and is taken to
    be complete, :math:`n_\text{eff} = n^2 / \sum_u n_u^2`. The interval is NaN for a single patient with both outcomes,
    whose spread over patients is unknown.

    Args:
      outcomes: 0 or 1, shape `(n,)`: for a sensitivity, the decisions of the positive rows.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.
      level: of confidence.

    Raises:
      ValueError: outcomes other than 0 and 1, ids that do not fit, or a level outside 0 to 1.

    Example:
      >>> twice = clustered_proportion(np.repeat([1, 1, 1, 0], 2), np.repeat(["a", "b", "c", "d"], 2))
      >>> twice.effective_rows, round(twice.low, 4), round(wilson_interval(3, 4).low, 4)
      (4.0, 0.3006, 0.3006)

    References:
      Rao & Scott 1992, Biometrics 48: 577-585 (ratio variance, design effect); Saha, Miller & Wang 2016, International
      Journal of Biostatistics 12 (comparison of such intervals, Wilson's among them).
    """
    success = positives(outcomes, "outcomes")
    patient = patient_codes(patients, len(success))
    _check_level(level)
    rows, successes = len(success), int(success.sum())
    if rows == 0:
        return Proportion(math.nan, math.nan, math.nan, 0, 0, 0, math.nan, math.nan)
    sizes, hits = np.bincount(patient), np.bincount(patient, weights=success)
    share = successes / rows
    if successes in (0, rows):
        effect = float(np.sum(np.square(sizes))) / rows
    elif len(sizes) == 1:
        return Proportion(share, math.nan, math.nan, successes, rows, 1, math.nan, math.nan)
    else:
        spread = float(np.sum(np.square(hits - share * sizes)))
        # Rounding must not part one row a patient from Wilson's interval.
        effect = max(1.0, spread / (rows * share * (1 - share))) if len(sizes) < rows else 1.0
    effective = rows / effect
    low, high = _wilson(share, effective, level)
    return Proportion(share, low, high, successes, rows, len(sizes), effect, effective)


def _wilson(share: float, rows: float, level: float) -> tuple[float, float]:
    """Wilson's interval at a number of rows that need not be whole."""
    from scipy.stats import norm

    z = float(norm.isf((1 - level) / 2))
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2) / (1 + z**2 / rows)
    low = 0.0 if share == 0 else max(0.0, middle - reach)
    high = 1.0 if share == 1 else min(1.0, middle + reach)
    return low, high


def _binomial_interval(successes: Any, rows: Any, level: float, method: Literal["wilson", "exact"]) -> Interval:
    from scipy.stats import binomtest

    _check_level(level)
    if not 0 <= successes <= rows:
        raise ValueError(f"{successes} of {rows} rows; expected a count from 0 to the number of rows.")
    if rows == 0:
        return Interval(math.nan, math.nan)
    interval = binomtest(int(successes), int(rows)).proportion_ci(level, method)
    return Interval(float(interval.low), float(interval.high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; expected a fraction between 0 and 1, such as 0.95.")
