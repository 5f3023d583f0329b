r"""DeLong: how well areas under ROC curves are known, and whether models on the same cases differ.

The placement of a positive is the share of negatives below it, ties counted half; that of a negative the share of
positives above it. Their means are the area, and their variances its variance (DeLong 1988). Placements are differences
of mid-ranks, so one sort a model is all the work (Sun & Xu 2014). Where patients have several rows, placements are
summed over each patient first, and a patient with rows of both classes adds a covariance (Obuchowski 1997).

Host functions in double precision. The interval is conditional on the trained models: it says nothing about other
trainings.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from fusion_jax.evaluation.resampling import Interval
from fusion_jax.evaluation.rows import Labels, Patients, both_classes, check_scores, patient_codes

__all__ = [
    "DeLong",
    "DeLongTest",
    "delong",
    "delong_interval",
    "delong_test",
    "smallest_detectable_difference",
]


class DeLong(NamedTuple):
    """Areas of m models on the same rows, and how they vary together.

    Attributes:
      auc: areas, shape `(m,)`.
      covariance: of the areas, shape `(m, m)`; NaN where a class occurs in one patient only.
      difference_variance: of the difference of every pair of areas, shape `(m, m)`; exactly 0 for equal rankings.
      events, others: rows of class 1 and of class 0.
      event_patients, other_patients: patients with a row of class 1, and with one of class 0.
      patients: all of them; a patient with both kinds of rows counts once.
      clustered: whether any patient has several rows.
    """

    auc: Float[np.ndarray, "m"]
    covariance: Float[np.ndarray, "m m"]
    difference_variance: Float[np.ndarray, "m m"]
    events: int
    others: int
    event_patients: int
    other_patients: int
    patients: int
    clustered: bool

    @property
    def standard_error(self) -> Float[np.ndarray, "m"]:
        """Of every area."""
        return np.sqrt(np.diag(self.covariance))


class DeLongTest(NamedTuple):
    """Every pair of models compared; entry `[i, j]` is of model i less model j, each of shape `(m, m)`.

    Attributes:
      difference: of the areas.
      standard_error: of the difference.
      z: difference over standard error; 0 where both are 0, NaN where only the latter is.
      p_value: two-sided; 1 for models of equal rankings.
      low, high: ends of the interval of the difference.
    """

    difference: Float[np.ndarray, "m m"]
    standard_error: Float[np.ndarray, "m m"]
    z: Float[np.ndarray, "m m"]
    p_value: Float[np.ndarray, "m m"]
    low: Float[np.ndarray, "m m"]
    high: Float[np.ndarray, "m m"]


def delong(labels: Labels, scores: Num[np.ndarray, "n *m"], patients: Patients | None = None) -> DeLong:
    r"""Areas under the ROC curves of several models on the same rows, with their covariance.

    With the placements :math:`V_i` of positives and :math:`W_j` of negatives, summed over the rows of patient u to
    :math:`V_u, W_u` and centred at the area times the number of rows,

    .. math:: \mathrm{var}(A) = \frac{u_+}{u_+ - 1} \sum_u \frac{V_u^2}{P^2}
              + \frac{u_-}{u_- - 1} \sum_u \frac{W_u^2}{N^2} + \frac{2 u}{u - 1} \sum_u \frac{V_u W_u}{P N}

    over :math:`u_+` patients with one of P positive rows, :math:`u_-` with one of N negative rows, u in all. With one
    row a patient the last sum is 0, and this is DeLong's variance.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1; one column a model, shape `(n, m)`, or `(n,)` for one model.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.

    Returns:
      Areas and covariance. The variance is NaN where a class occurs in one patient only, or where the sum above is
      negative, as it can be in a handful of patients.

    Raises:
      ValueError: one class only, scores that are not finite, or ids that do not fit.

    Example:
      >>> scores = np.array([[0.1, 0.3], [0.4, 0.2], [0.35, 0.9], [0.8, 0.7]])
      >>> found = delong(np.array([0, 0, 1, 1]), scores)
      >>> found.auc.tolist(), found.standard_error.round(3).tolist()
      ([0.75, 1.0], [0.354, 0.0])

    References:
      DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44: 837-845; Sun & Xu 2014, IEEE Signal Processing Letters 21:
      1389-1393; Obuchowski 1997, Biometrics 53: 567-578.
    """
    from scipy.stats import rankdata

    positive = both_classes(labels, "an AUC")
    values = check_scores(scores, len(positive)).reshape(len(positive), -1)
    patient = patient_codes(patients, len(positive))
    count = int(patient.max()) + 1
    events, others = int(positive.sum()), int((~positive).sum())

    ranks = rankdata(values, axis=0)
    of_events = (ranks[positive] - rankdata(values[positive], axis=0)) / others
    of_others = 1.0 - (ranks[~positive] - rankdata(values[~positive], axis=0)) / events
    area = of_events.mean(axis=0)

    sums_of_events = _per_patient(of_events - area, patient[positive], count) / events
    sums_of_others = _per_patient(of_others - area, patient[~positive], count) / others
    event_patients, other_patients = len(np.unique(patient[positive])), len(np.unique(patient[~positive]))
    factors = (_correction(event_patients), _correction(other_patients), _correction(count))

    a, b = sums_of_events, sums_of_others
    cross = a.T @ b
    covariance = factors[0] * (a.T @ a) + factors[1] * (b.T @ b) + factors[2] * (cross + cross.T)
    # From differences of placements, not from the covariance, where equal rankings would leave a rounding error.
    variance = np.zeros_like(covariance)
    for i in range(len(area)):
        for j in range(i):
            d, e = a[:, i] - a[:, j], b[:, i] - b[:, j]
            variance[i, j] = variance[j, i] = factors[0] * (d @ d) + factors[1] * (e @ e) + 2 * factors[2] * (d @ e)
    negative = np.diag(covariance) < 0
    covariance[negative] = covariance[:, negative] = np.nan
    variance[variance < 0] = np.nan
    if min(event_patients, other_patients) < 2:
        variance[:] = np.nan
    np.fill_diagonal(variance, 0.0)
    clustered = count < len(positive)
    return DeLong(area, covariance, variance, events, others, event_patients, other_patients, count, clustered)


def delong_interval(found: DeLong, level: float = 0.95, *, scale: Literal["area", "logit"] = "area") -> Interval:
    r"""Interval of every area.

    On the scale of the area, :math:`A \pm z \sqrt{\mathrm{var}(A)}` cut at 0 and 1. On the logit scale,
    :math:`\mathrm{logit}(A) \pm z \sqrt{\mathrm{var}(A)} / (A (1 - A))` mapped back: it stays inside 0 and 1 by itself
    and is asymmetric, which covers better where the area is near 1 or cases are few.

    Args:
      found: of `delong`.
      level: of confidence.
      scale: on which the area is taken to be normal.

    Returns:
      Ends of shape `(m,)`. NaN where the variance is, and where the area is 0 or 1: placements without any spread say
      nothing about how far from perfect the model may be.

    Raises:
      ValueError: a level outside 0 to 1.

    Example:
      >>> labels, scores = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.5, 0.4, 0.7, 0.9])
      >>> interval = delong_interval(delong(labels, scores), scale="logit")
      >>> interval.low.round(3).tolist(), interval.high.round(3).tolist()
      ([0.261], [0.995])

    References:
      Pepe 2003, "The Statistical Evaluation of Medical Tests", section 5.2 (logit scale).
    """
    reach = _normal_quantile(level) * found.standard_error
    area = found.auc.copy()
    area[(area == 0) | (area == 1)] = np.nan
    if scale == "area":
        return Interval(np.maximum(area - reach, 0.0), np.minimum(area + reach, 1.0))
    if scale != "logit":
        raise ValueError(f"scale: {scale!r}; expected 'area' or 'logit'.")
    centre, wide = np.log(area / (1 - area)), reach / (area * (1 - area))
    return Interval(1 / (1 + np.exp(wide - centre)), 1 / (1 + np.exp(-wide - centre)))


def delong_test(found: DeLong, level: float = 0.95) -> DeLongTest:
    """Every pair of models on the same rows: difference of areas, its interval and its two-sided p-value.

    Args:
      found: of `delong`.
      level: of the intervals.

    Raises:
      ValueError: a level outside 0 to 1.

    Example:
      >>> labels = np.array([0, 0, 0, 1, 1, 1])
      >>> scores = np.array([[0.1, 0.2, 0.5, 0.4, 0.7, 0.9], [0.3, 0.2, 0.5, 0.4, 0.1, 0.9]]).T
      >>> test = delong_test(delong(labels, scores))
      >>> float(test.difference[0, 1]), float(test.p_value[0, 0])
      (0.333..., 1.0)
    """
    from scipy.stats import norm

    difference = found.auc[:, None] - found.auc[None, :]
    error = np.sqrt(found.difference_variance)
    # Areas of equal rankings may differ in the last bit.
    difference[(error == 0) & (np.abs(difference) < 1e-12)] = 0.0
    z = np.divide(difference, error, out=np.where(difference == 0, 0.0, np.nan), where=error != 0)
    reach = _normal_quantile(level) * error
    reach[(error == 0) & (difference != 0)] = np.nan
    low, high = np.maximum(difference - reach, -1.0), np.minimum(difference + reach, 1.0)
    return DeLongTest(difference, error, z, 2 * norm.sf(np.abs(z)), low, high)


def smallest_detectable_difference(standard_error: Any, power: float = 0.8, level: float = 0.05) -> Any:
    r"""The difference that a study like this one would have found significant with the given power.

    .. math:: \left( z_{1 - \alpha / 2} + z_{\text{power}} \right) \mathrm{se}

    A property of the design: of the number of events and other cases and of how strongly the two models' scores agree,
    all of which enter through the standard error of the difference. It does not look at the difference that was found,
    and so is no post-hoc power: "this cohort could hardly have shown less than 0.05", never "the effect is there but
    the power was low".

    Args:
      standard_error: of the difference of two models, a number or an array.
      power: chance of a significant result if the true difference is the one returned.
      level: of the two-sided test.

    Returns:
      The difference, in the units and shape of `standard_error`.

    Raises:
      ValueError: a negative standard error, or a power or level outside 0 to 1.

    Example:
      >>> float(smallest_detectable_difference(0.01))
      0.0280...

    References:
      Hoenig & Heisey 2001, The American Statistician 55: 19-24 (why not the power at the difference found).
    """
    from scipy.stats import norm

    if not 0 < power < 1 or not 0 < level < 1:
        raise ValueError(f"power {power} at level {level}; expected fractions between 0 and 1, such as 0.8 and 0.05.")
    if np.any(np.asarray(standard_error) < 0):
        raise ValueError(f"standard error: {standard_error}; expected 0 or more.")
    return (norm.isf(level / 2) + norm.ppf(power)) * np.asarray(standard_error)


def _per_patient(values: Float[np.ndarray, "p m"], patient: np.ndarray, count: int) -> Float[np.ndarray, "u m"]:
    sums = [np.bincount(patient, weights=column, minlength=count) for column in values.T]
    return np.stack(sums, axis=1)


def _correction(patients: int) -> float:
    return patients / (patients - 1) if patients > 1 else math.nan


def _normal_quantile(level: float) -> float:
    from scipy.stats import norm

    if not 0 < level < 1:
        raise ValueError(f"level: {level}; expected a fraction between 0 and 1, such as 0.95.")
    return float(norm.isf((1 - level) / 2))
