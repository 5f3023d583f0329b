"""Out-of-fold predictions: what each fold shows, and what all show together.

Scores of one fold come from one training, so only they are sure to share a scale. The pooled AUC also compares cases
of different folds; the within-fold AUC does not. Host functions in double precision.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from fusion_jax.evaluation.classification import Counts, auc, confusion_counts
from fusion_jax.evaluation.rows import Labels, Patients, both_classes, check_scores, patient_codes, positives
from fusion_jax.wording import counted

__all__ = [
    "FoldValues",
    "PooledWithin",
    "fold_counts",
    "per_fold",
    "pooled_and_within",
    "pooled_counts",
    "within_fold_auc",
]

STANDARD_ERRORS = 1.96
"""Pooled and within-fold AUC are said to differ beyond this many standard errors of their difference."""


class FoldValues(NamedTuple):
    """A metric in every fold.

    Attributes:
      folds: their names, in order.
      values: of the metric, shape `(f,)`; NaN in a fold where it is undefined.
      rows, events: rows and rows of class 1 in each fold, shape `(f,)`.
      mean, sd: over the folds where it is defined; the sd is that of a sample (ddof 1), NaN for a single fold. The sd
        over folds is a spread and no standard error: folds share their training cases.
      undefined: folds in which the metric is NaN.
    """

    folds: tuple[Hashable, ...]
    values: Float[np.ndarray, "f"]
    rows: Int[np.ndarray, "f"]
    events: Int[np.ndarray, "f"]
    mean: float
    sd: float
    undefined: tuple[Hashable, ...]


class PooledWithin(NamedTuple):
    """The AUC over all pairs of cases, and over pairs of the same fold.

    Attributes:
      pooled, within: the two areas; `within` is NaN where no fold holds both classes.
      difference: pooled less within.
      standard_error: of the difference, with the numbers of each class in each fold as they are.
      pairs, pairs_within: pairs of a positive and a negative behind each.
      warning: what to think of the difference; "" where it is no larger than chance makes it.
    """

    pooled: float
    within: float
    difference: float
    standard_error: float
    pairs: int
    pairs_within: int
    warning: str


def per_fold(
    metric: Callable[[Any, Any], float], labels: Labels, scores: Num[np.ndarray, "n"], folds: Shaped[np.ndarray, "n"]
) -> FoldValues:
    """A metric in every fold, with mean and standard deviation over folds.

    Args:
      metric: `metric(labels, scores) -> float`, such as `auc`; NaN where it is undefined.
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.
      folds: fold in which each row was tested, shape `(n,)`.

    Raises:
      ValueError: numbers of rows that differ, or scores that are not finite.

    Example:
      >>> labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.6, 0.4])
      >>> found = per_fold(auc, labels, scores, np.array([0, 0, 1, 1]))
      >>> found.mean, found.sd
      (0.5, 0.707...)

    References:
      Wang W. et al. 2020 print mean and sd over ten folds; specs/hcc_fusion.md, reading H11 (ddof 1).
    """
    positive = positives(labels)
    scores = check_scores(scores, len(positive))
    names, codes = _fold_codes(folds, len(positive))
    values = np.array([metric(positive[codes == f].astype(int), scores[codes == f]) for f in range(len(names))], float)
    known = values[~np.isnan(values)]
    return FoldValues(
        names,
        values,
        np.bincount(codes, minlength=len(names)),
        np.bincount(codes[positive], minlength=len(names)),
        float(known.mean()) if len(known) else math.nan,
        float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        tuple(name for name, value in zip(names, values, strict=True) if math.isnan(value)),
    )


def within_fold_auc(labels: Labels, scores: Num[np.ndarray, "n"], folds: Shaped[np.ndarray, "n"]) -> float:
    r"""Area under the ROC curve over pairs of the same fold only: :math:`\sum_f P_f N_f A_f / \sum_f P_f N_f`.

    Every pair counts alike, so that large folds weigh more, and a fold with one class not at all.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`; scales may differ between folds.
      folds: fold in which each row was tested, shape `(n,)`.

    Returns:
      The area; NaN where no fold holds both classes.

    Example:
      >>> labels, folds = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
      >>> within_fold_auc(labels, np.array([0.1, 0.2, 0.8, 0.9]), folds), auc(labels, np.array([0.1, 0.2, 0.8, 0.9]))
      (1.0, 0.75)

    References:
      Airola et al. 2011, Computational Statistics & Data Analysis 55: 1828-1844 (pooling and averaging in
      cross-validation).
    """
    found = per_fold(auc, labels, scores, folds)
    pairs = found.events * (found.rows - found.events)
    defined = pairs > 0
    return float(np.sum(pairs[defined] * found.values[defined]) / pairs.sum()) if defined.any() else math.nan


def pooled_and_within(
    labels: Labels,
    scores: Num[np.ndarray, "n"],
    folds: Shaped[np.ndarray, "n"],
    patients: Patients | None = None,
) -> PooledWithin:
    """Pooled and within-fold AUC, and whether they differ by more than chance.

    Each area is a mean over rows to first order, so that their difference has a standard error in closed form: the
    placements of a row among all rows and among those of its fold, weighted as in the two areas, centred in each fold
    and class, summed over patients. Where folds do share a scale, these terms nearly cancel, and the standard error is
    up to sqrt(2) too large: the warning then comes in fewer than 5 % of cohorts. It is right where scales differ.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`, one a case: out-of-fold predictions of one cross-validation.
      folds: fold in which each row was tested, shape `(n,)`.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.

    Raises:
      ValueError: one class only, or numbers of rows that differ.

    Example:
      >>> labels, folds = np.tile([0, 1], 20), np.repeat([0, 1], 20)
      >>> scores = 7 * np.arange(40) % 20 + 8.0 * labels + 100 * folds
      >>> pooled_and_within(labels, scores, folds).warning
      'the pooled AUC (0.675) lies below the within-fold AUC (0.850) by 0.175, 5.8 standard errors: ...'
    """
    positive = both_classes(labels, "an AUC")
    scores = check_scores(scores, len(positive))
    names, codes = _fold_codes(folds, len(positive))
    patient = patient_codes(patients, len(positive))
    events = np.bincount(codes[positive], minlength=len(names))
    others = np.bincount(codes[~positive], minlength=len(names))
    pairs, pairs_within = int(events.sum()) * int(others.sum()), int(events @ others)
    pooled = auc(positive.astype(int), scores)
    if pairs_within == 0:
        warning = "no fold holds both classes: there is no within-fold AUC, and whether folds share a scale is unknown."
        return PooledWithin(pooled, math.nan, math.nan, math.nan, pairs, 0, warning)
    within = within_fold_auc(positive.astype(int), scores, folds)

    influence = _wins(positive, scores) / pairs
    for fold in range(len(names)):
        rows = codes == fold
        influence[rows] -= _wins(positive[rows], scores[rows]) / pairs_within
    for kind in (positive, ~positive):
        # The only case of its class in a fold has no spread there; about the mean of all folds it has enough.
        overall = influence[kind].mean()
        for fold in range(len(names)):
            rows = kind & (codes == fold)
            count = int(rows.sum())
            if count > 1:
                influence[rows] = (influence[rows] - influence[rows].mean()) * math.sqrt(count / (count - 1))
            else:
                influence[rows] -= overall
    error = math.sqrt(float(np.sum(np.square(np.bincount(patient, weights=influence)))))
    difference = pooled - within
    # Equal areas differ in the last bit.
    difference = 0.0 if abs(difference) < 1e-12 else difference
    warning = ""
    if abs(difference) > STANDARD_ERRORS * error:
        side = "below" if difference < 0 else "above"
        errors = f"{abs(difference) / error:.1f} standard errors" if error else "and by more than chance"
        warning = (
            f"the pooled AUC ({pooled:.3f}) lies {side} the within-fold AUC ({within:.3f}) by {abs(difference):.3f}, "
            f"{errors}: scores of different folds are on different scales, or folds differ in difficulty. Trust the "
            "within-fold AUC, and no threshold that is shared by all folds."
        )
    return PooledWithin(pooled, within, difference, error, pairs, pairs_within, warning)


def fold_counts(labels: Labels, decisions: Labels, folds: Shaped[np.ndarray, "n"]) -> Counts:
    """Decisions against the truth in every fold, in the order of the folds' names; each count of shape `(f,)`.

    Args:
      labels: 0 or 1, shape `(n,)`.
      decisions: 0 or 1, shape `(n,)`.
      folds: fold in which each row was tested, shape `(n,)`.

    Example:
      >>> fold_counts(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0, 0, 1])).fn.tolist()
      [0, 1]
    """
    positive, called = positives(labels), positives(decisions, "decisions")
    names, codes = _fold_codes(folds, len(positive))
    parts = [confusion_counts(positive[codes == fold], called[codes == fold]) for fold in range(len(names))]
    return Counts(*(np.array(kind, int) for kind in (zip(*parts, strict=True) if parts else ((), (), (), ()))))


def pooled_counts(counts: Counts) -> Counts:
    """The confusion matrix of all folds together; rates of it are not the means of the folds' rates.

    Args:
      counts: of `fold_counts`.

    Example:
      >>> pooled_counts(Counts(np.array([3, 4]), np.array([0, 1]), np.array([1, 0]), np.array([4, 3])))
      Counts(tp=7, fp=1, fn=1, tn=7)

    References:
      Peng et al. 2020 print rates of the pooled matrix: all are multiples of 1/24; specs/mm_nas.md, section 7.
    """
    return Counts(*(int(np.sum(count)) for count in counts))


def _wins(positive: np.ndarray, scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """For each row, the rows of the other class that it is ranked rightly against, ties half."""
    from scipy.stats import rankdata

    wins = np.empty(len(scores))
    if not len(scores):
        return wins
    ranks = rankdata(scores)
    for kind in (positive, ~positive):
        if kind.any():
            wins[kind] = ranks[kind] - rankdata(scores[kind])
    wins[~positive] = positive.sum() - wins[~positive]
    return wins


def _fold_codes(folds: Shaped[np.ndarray, "n"], rows: int) -> tuple[tuple[Hashable, ...], Int[np.ndarray, "n"]]:
    array = np.asarray(folds)
    if array.shape != (rows,):
        raise ValueError(f"folds: shape {array.shape} for {counted(rows, 'row')}; expected one fold a row.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(
            f"folds: no fold in {counted(int(np.isnan(array).sum()), 'row')}; expected one a row, or no folds at all."
        )
    names, codes = np.unique(array, return_inverse=True)
    return tuple(names.tolist()), codes
