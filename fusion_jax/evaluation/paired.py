"""Two models on the same cases, and many p-values at once: closed forms beside the bootstrap and DeLong.

Host functions in double precision.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from fusion_jax.evaluation.rows import Labels, Patients, patient_codes, positives
from fusion_jax.wording import counted, listed

__all__ = [
    "ClusteredMcNemar",
    "CorrectedTTest",
    "McNemar",
    "benjamini_hochberg",
    "clustered_mcnemar",
    "corrected_t_test",
    "holm",
    "mcnemar",
]


class McNemar(NamedTuple):
    """Two decisions a row, compared where they differ.

    Attributes:
      both, first_only, second_only, neither: rows by which of the two is 1.
      difference: share of the first less share of the second; NaN without rows.
      exact_p: two-sided binomial test of the discordant rows; never too small, usually too large.
      mid_p: the same with half the probability of the observed table; the one to report.
      chi_squared: (first_only - second_only)² / (first_only + second_only), without continuity correction.
      chi_squared_p: of the chi-squared distribution with one degree of freedom; for many discordant rows.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    difference: float
    exact_p: float
    mid_p: float
    chi_squared: float
    chi_squared_p: float


class ClusteredMcNemar(NamedTuple):
    """McNemar's test over patients.

    Attributes:
      first_only, second_only: discordant rows.
      discordant_patients: whose discordant rows do not cancel out; the patients that the test rests on.
      patients: all of them.
      difference: share of the first less share of the second over all rows; NaN without rows.
      standard_error: of the difference, not assuming that it is 0.
      chi_squared, p_value: of the null hypothesis of no difference, one degree of freedom.
    """

    first_only: int
    second_only: int
    discordant_patients: int
    patients: int
    difference: float
    standard_error: float
    chi_squared: float
    p_value: float


class CorrectedTTest(NamedTuple):
    """Corrected resampled t-test.

    Attributes:
      difference: mean over the folds.
      sd: of the differences over the folds, ddof 1.
      t: statistic; 0 where every fold shows no difference, NaN where every fold shows the same one.
      degrees: of freedom, folds less 1.
      p_value: two-sided.
      low, high: ends of the interval of the difference.
      n_test, n_train: mean numbers of patients a fold.
      ratio: n_test / n_train, the correction.
      folds: number of values.
    """

    difference: float
    sd: float
    t: float
    degrees: int
    p_value: float
    low: float
    high: float
    n_test: float
    n_train: float
    ratio: float
    folds: int


def mcnemar(first: Labels, second: Labels) -> McNemar:
    """McNemar's test: do two models decide differently on the same rows?

    Feed it correct decisions (1 where right) of all rows for accuracy, decisions of the positive rows for sensitivity,
    of the negative rows for 1 - specificity. Rows must be of different patients; else take `clustered_mcnemar`.

    Args:
      first: of one model, 0 or 1, shape `(n,)`.
      second: of the other, in the same order.

    Raises:
      ValueError: values other than 0 and 1, or different numbers of rows.

    Example:
      >>> found = mcnemar(np.array([1, 1, 1, 1, 0]), np.array([1, 0, 0, 0, 0]))
      >>> found.first_only, found.second_only, found.exact_p, found.mid_p
      (3, 0, 0.25, 0.125)

    References:
      McNemar 1947, Psychometrika 12: 153-157; Fagerland, Lydersen & Laake 2013, BMC Medical Research Methodology 13:
      91 (mid-p keeps its level and loses little power; the exact test is conservative, the continuity correction more).
    """
    from scipy.stats import binom, chi2

    a, b = _decisions(first, second)
    both, first_only, second_only = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    discordant, fewer = first_only + second_only, min(first_only, second_only)
    difference = (first_only - second_only) / len(a) if len(a) else math.nan
    neither = len(a) - both - discordant
    if discordant == 0:
        return McNemar(both, 0, 0, neither, difference, 1.0, 1.0, 0.0, 1.0)
    exact = min(1.0, 2 * float(binom.cdf(fewer, discordant, 0.5)))
    middle = float(binom.pmf(fewer, discordant, 0.5))
    # The observed table counts half; its mirror image is as extreme, unless it is the table itself.
    mid = exact - middle if first_only != second_only else 1.0 - middle / 2
    chi_squared = (first_only - second_only) ** 2 / discordant
    p_value = float(chi2.sf(chi_squared, 1))
    return McNemar(both, first_only, second_only, neither, difference, exact, mid, chi_squared, p_value)


def clustered_mcnemar(first: Labels, second: Labels, patients: Patients | None = None) -> ClusteredMcNemar:
    r"""McNemar's test where patients have several rows.

    With :math:`d_u` the rows of patient u that only the first decided as 1 less those that only the second did,

    .. math:: X^2 = \frac{(\sum_u d_u)^2}{\sum_u d_u^2}

    Obuchowski's test: it tests the difference of the two shares over all rows, the difference that is printed beside
    it. (Durkalski's test weights every patient alike and so tests the mean difference within patients.) Her null
    variance is taken without the factor u / (u - 1), so that one row a patient gives McNemar's chi-squared.

    Args:
      first, second: 0 or 1 a row, as for `mcnemar`.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.

    Raises:
      ValueError: values other than 0 and 1, different numbers of rows, or ids that do not fit.

    Example:
      >>> found = clustered_mcnemar(np.array([1, 1, 1, 0]), np.array([0, 0, 1, 1]), ["a", "a", "b", "c"])
      >>> found.chi_squared, found.discordant_patients
      (0.2, 2)

    References:
      Obuchowski 1998, Statistics in Medicine 17: 1495-1507; Durkalski et al. 2003, Statistics in Medicine 22:
      2417-2428; Yang, Sun & Hardin 2010, Biometrical Journal 52: 638-652 (comparison of both).
    """
    from scipy.stats import chi2

    a, b = _decisions(first, second)
    patient = patient_codes(patients, len(a))
    if not len(a):
        return ClusteredMcNemar(0, 0, 0, 0, math.nan, math.nan, 0.0, 1.0)
    first_only, second_only = int((a & ~b).sum()), int((~a & b).sum())
    excess = np.bincount(patient, weights=a.astype(int) - b.astype(int))
    sizes, count = np.bincount(patient), len(excess)
    difference = float(excess.sum()) / len(a)
    squares = float(np.sum(np.square(excess)))
    chi_squared = float(excess.sum()) ** 2 / squares if squares else 0.0
    centred = float(np.sum(np.square(excess - difference * sizes)))
    error = math.sqrt(count / (count - 1) * centred) / len(a) if count > 1 else math.nan
    return ClusteredMcNemar(
        first_only,
        second_only,
        int((excess != 0).sum()),
        count,
        difference,
        error,
        chi_squared,
        float(chi2.sf(chi_squared, 1)),
    )


def corrected_t_test(
    first: Num[np.ndarray, "f"],
    second: Num[np.ndarray, "f"],
    *,
    n_test: Int[np.ndarray, "f"] | Sequence[int],
    n_train: Int[np.ndarray, "f"] | Sequence[int],
    level: float = 0.95,
) -> CorrectedTTest:
    r"""Corrected resampled t-test of a metric of two models in the folds of a cross-validation.

    .. math:: t = \frac{\bar d}{\sqrt{\left(\frac{1}{k} + \frac{n_\text{test}}{n_\text{train}}\right) s_d^2}}
              \sim t_{k - 1}

    Folds share their training cases, so their differences are no independent draws; the second term stands for that.
    Only for one value a fold (and repeat): scores of cases have no place here.

    Args:
      first, second: the metric of each model in every fold, or every fold of every repeat, shape `(k,)`.
      n_test, n_train: patients tested and trained on in each of these folds, shape `(k,)`.
      level: of the interval.

    Raises:
      ValueError: fewer than two folds, numbers of values and of folds that differ, a fold without a value, or folds
        whose sizes are no counts.

    Example:
      >>> test = corrected_t_test(
      ...     np.array([0.80, 0.75, 0.85, 0.78, 0.80]), np.array([0.76, 0.74, 0.78, 0.77, 0.77]),
      ...     n_test=[20] * 5, n_train=[80] * 5)
      >>> round(test.t, 2), test.ratio
      (1.92, 0.25)

    References:
      Nadeau & Bengio 2003, Machine Learning 52: 239-281; Bouckaert & Frank 2004 (repeats as further folds).
    """
    from scipy.stats import t as student

    a, b = np.asarray(first, float), np.asarray(second, float)
    tested, trained = np.asarray(n_test), np.asarray(n_train)
    if not a.ndim == b.ndim == tested.ndim == trained.ndim == 1:
        raise ValueError("first, second, n_test and n_train: expected one value a fold each, shape (k,).")
    lengths = (len(a), len(b), len(tested), len(trained))
    if len(set(lengths)) != 1:
        raise ValueError(
            f"{lengths[0]} and {lengths[1]} values for {lengths[2]} test and {lengths[3]} training sets; the corrected "
            "t-test takes exactly one value a fold. Compute the metric in every fold first."
        )
    if len(a) < 2:
        raise ValueError(f"{counted(len(a), 'fold')}; the spread over folds needs at least 2.")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; expected a fraction between 0 and 1, such as 0.95.")
    lacking = np.flatnonzero(~np.isfinite(a - b)).tolist()
    if lacking:
        raise ValueError(
            f"no value in fold {listed(lacking)}: a class is missing there. Take fewer folds, or a test on "
            "pooled cases."
        )
    if tested.min() < 1 or trained.min() < 1:
        raise ValueError(
            f"test sets of {tested.min()} and training sets of {trained.min()}; expected at least 1 patient."
        )
    difference, sd = float(np.mean(a - b)), float(np.std(a - b, ddof=1))
    ratio = float(tested.sum() / trained.sum())
    # Equal differences leave a rounding error for a standard deviation.
    rounding = 1e-14 * max(1.0, float(np.abs(a).max()), float(np.abs(b).max()))
    sd, difference = (0.0 if abs(value) <= rounding else value for value in (sd, difference))
    error = math.sqrt(1 / len(a) + ratio) * sd
    degrees = len(a) - 1
    if sd == 0:
        none = difference == 0
        statistic, p_value, reach = (0.0, 1.0, 0.0) if none else (math.nan, math.nan, math.nan)
    else:
        statistic = difference / error
        p_value = 2 * float(student.sf(abs(statistic), degrees))
        reach = float(student.isf((1 - level) / 2, degrees)) * error
    return CorrectedTTest(
        difference,
        sd,
        statistic,
        degrees,
        p_value,
        difference - reach,
        difference + reach,
        float(tested.mean()),
        float(trained.mean()),
        ratio,
        len(a),
    )


def holm(p_values: Float[np.ndarray, "m"] | Sequence[float]) -> Float[np.ndarray, "m"]:
    """P-values adjusted by Holm: the chance of any false claim stays below the level.

    Args:
      p_values: of a family of tests, shape `(m,)`; NaN, a test that could not be made, stays NaN and is not counted.

    Raises:
      ValueError: a p-value outside 0 to 1.

    Example:
      >>> holm(np.array([0.01, 0.04, 0.03, np.nan])).tolist()
      [0.03, 0.06, 0.06, nan]

    References:
      Holm 1979, Scandinavian Journal of Statistics 6: 65-70.
    """
    values, known = _p_values(p_values)
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


def benjamini_hochberg(p_values: Float[np.ndarray, "m"] | Sequence[float]) -> Float[np.ndarray, "m"]:
    """P-values adjusted by Benjamini and Hochberg: the expected share of false claims stays below the level.

    Args:
      p_values: of a family of tests, shape `(m,)`; NaN, a test that could not be made, stays NaN and is not counted.

    Raises:
      ValueError: a p-value outside 0 to 1.

    Example:
      >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, np.nan])).tolist()
      [0.03, 0.04, 0.04, nan]

    References:
      Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57: 289-300.
    """
    from scipy.stats import false_discovery_control

    values, known = _p_values(p_values)
    adjusted = np.full(len(values), np.nan)
    if len(known):
        adjusted[known] = false_discovery_control(values[known], method="bh")
    return adjusted


def _decisions(first: Labels, second: Labels) -> tuple[np.ndarray, np.ndarray]:
    a, b = positives(first, "first"), positives(second, "second")
    if len(a) != len(b):
        raise ValueError(f"{len(a)} decisions of the first and {len(b)} of the second; expected the same rows.")
    return a, b


def _p_values(p_values: Float[np.ndarray, "m"] | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(p_values, float)
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise ValueError(f"p-values: found {listed(outside.tolist())}; expected numbers from 0 to 1, or NaN.")
    return values, np.flatnonzero(~np.isnan(values))
