"""Metrics of scores and of decisions as functions of how often each row counts: nothing is sorted twice.

Scores are sorted once, on the host and in double precision. A resample changes only the weights of the rows, and every
metric of it follows from gathers and running sums in the stored order. All counts are integers: they are exact up to a
million rows, where a running sum in single precision is not beyond 2^24, and a sum of its products earlier.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from fusion_jax.arrays import Array, ArrayLike
from fusion_jax.evaluation.classification import Counts

__all__ = [
    "ClassificationData",
    "ClassificationStatistics",
    "Curves",
    "FoldPairs",
    "Ranked",
    "Rates",
    "classification_statistics",
    "curve_statistics",
    "exact_ratio",
    "make_fold_pairs",
    "make_ranked",
    "rates",
    "row_losses",
    "stack_ranked",
    "weighted_auc",
    "weighted_average_precision",
    "weighted_counts",
    "weighted_mean",
    "weighted_precision_curve",
    "weighted_roc_curve",
    "weighted_sensitivity_at_specificity",
    "weighted_specificity_at_sensitivity",
    "weighted_within_fold_auc",
]

CURVE_POINTS = 101
LARGEST_DENOMINATOR = 10_000
LOW_BITS = 8


class Ranked(NamedTuple):
    """Positive and negative rows in ascending order of their scores, and where the one stand among the other.

    For p positives and q negatives; with a leading axis for stacked models or classes. Row n, one beyond the last, is
    padding and never counts.

    Attributes:
      positives: rows, shape `(p,)`.
      negatives: rows, shape `(q,)`.
      low, high: number of negatives that score lower than each positive, and that do not score higher, shape `(p,)`.
      first, last: first and last positive of the same score as each positive, shape `(p,)`.
    """

    positives: Any
    negatives: Any
    low: Any
    high: Any
    first: Any
    last: Any


class FoldPairs(NamedTuple):
    """The same within each fold: rows in the order of folds, then of scores.

    Attributes:
      positives, negatives: rows, shapes `(p,)` and `(q,)`.
      start, low, high, end: where the negatives of the positive's fold start, where those of a lower score and those
        of no higher score end, and where the fold ends, shape `(p,)`.
    """

    positives: Any
    negatives: Any
    start: Any
    low: Any
    high: Any
    end: Any


class Rates(NamedTuple):
    """What follows from a confusion matrix; NaN where a denominator is 0."""

    accuracy: Any
    sensitivity: Any
    specificity: Any
    precision: Any
    f1: Any
    balanced_accuracy: Any
    mcc: Any


class Curves(NamedTuple):
    """Curves on a fixed grid of g points from 0 to 1, shape `(m, g)`.

    Attributes:
      sensitivity: by false-positive rate.
      precision: by sensitivity.
    """

    sensitivity: Any
    precision: Any


class ClassificationData(NamedTuple):
    """Everything that `classification_statistics` reads, for m models (or classes) and n rows.

    Attributes:
      ranked: models stacked along the first axis (`make_ranked` of scores (m, n), or `stack_ranked`).
      positive: 1 for a positive row, 0 for another, shape `(n,)`, or `(m, n)` for classes.
      pairs: for the AUC within folds, stacked like `ranked`; or None.
      sensitivities: targets of the specificity, `exact_ratio` each, shape `(t, 2)`; or None.
      specificities: targets of the sensitivity, in the same form; or None.
      decisions: name of a rule to decisions 0 or 1, each of shape `(m, n)`.
      losses: name to loss of every row, each of shape `(m, n)`; its weighted mean is reported.
    """

    ranked: Ranked
    positive: Any
    pairs: FoldPairs | None = None
    sensitivities: Any = None
    specificities: Any = None
    decisions: Mapping[str, Any] = {}
    losses: Mapping[str, Any] = {}


class ClassificationStatistics(NamedTuple):
    """Metrics of m models from one vector of weights; None where the data have nothing for them.

    Attributes:
      auc, average_precision: shape `(m,)`.
      within_fold_auc: shape `(m,)`.
      specificity_at_sensitivity, sensitivity_at_specificity: shape `(m, t)`.
      decisions: name of a rule to `Rates` of shape `(m,)`.
      losses: name to mean loss, shape `(m,)`.
    """

    auc: Any
    average_precision: Any
    within_fold_auc: Any
    specificity_at_sensitivity: Any
    sensitivity_at_specificity: Any
    decisions: dict[str, Rates]
    losses: dict[str, Any]


# On the host: sorting.


def make_ranked(
    positive: Num[np.ndarray, "n"] | Bool[np.ndarray, "n"], scores: Num[np.ndarray, "*m n"] | Bool[np.ndarray, "*m n"]
) -> Ranked:
    """Sorts the scores of one model, or of several models of the same rows.

    Args:
      positive: 1 or True for a positive row, shape `(n,)`.
      scores: higher for rows that are rather positive, shape `(n,)` or `(m, n)`.

    Raises:
      ValueError: a score is NaN, or a label neither 0 nor 1.

    Example:
      >>> ranked = make_ranked(np.array([0, 1, 1]), np.array([0.2, 0.9, 0.2]))
      >>> ranked.positives.tolist(), ranked.low.tolist(), ranked.high.tolist()
      ([2, 1], [0, 1], [1, 1])
    """
    if scores.ndim == 2:
        return stack_ranked([make_ranked(positive, model) for model in scores], rows=len(positive))
    _check(positive, scores)
    order = np.argsort(scores, kind="stable")
    positives, negatives = order[positive[order] == 1], order[positive[order] == 0]
    of_positives, of_negatives = scores[positives], scores[negatives]
    parts = (
        positives,
        negatives,
        np.searchsorted(of_negatives, of_positives, "left"),
        np.searchsorted(of_negatives, of_positives, "right"),
        np.searchsorted(of_positives, of_positives, "left"),
        np.searchsorted(of_positives, of_positives, "right") - 1,
    )
    return Ranked(*(part.astype(np.int32) for part in parts))


def stack_ranked(ranked: Sequence[Ranked], *, rows: int) -> Ranked:
    """Several rankings of the same n rows along a first axis, for `jax.vmap`.

    Classes have different numbers of positives: shorter ones are padded with row n, which never counts. One row of
    padding stands where nobody is positive, or nobody negative.

    Args:
      ranked: one for each model, or for each class against the rest.
      rows: n.

    Example:
      >>> classes = np.array([0, 1, 2, 2])
      >>> one_against_rest = [make_ranked(classes == k, np.arange(4.0)) for k in range(3)]
      >>> stack_ranked(one_against_rest, rows=4).positives.tolist()
      [[0, 4], [1, 4], [2, 3]]
    """
    positives = max(1, *(len(one.positives) for one in ranked))
    negatives = max(1, *(len(one.negatives) for one in ranked))

    def padded(one: Ranked) -> Ranked:
        more, others = positives - len(one.positives), negatives - len(one.negatives)
        itself = np.arange(len(one.positives), positives)
        q = len(one.negatives)
        return Ranked(
            _extend(one.positives, np.full(more, rows)),
            _extend(one.negatives, np.full(others, rows)),
            _extend(one.low, np.full(more, q)),
            _extend(one.high, np.full(more, q)),
            _extend(one.first, itself),
            _extend(one.last, itself),
        )

    return Ranked(*(np.stack(parts) for parts in zip(*map(padded, ranked), strict=True)))


def _extend(array: Int[np.ndarray, "p"], more: Int[np.ndarray, "q"]) -> Int[np.ndarray, "r"]:
    return np.concatenate([array, more.astype(array.dtype)])


def make_fold_pairs(
    positive: Num[np.ndarray, "n"] | Bool[np.ndarray, "n"],
    scores: Num[np.ndarray, "*m n"] | Bool[np.ndarray, "*m n"],
    fold: Int[np.ndarray, "n"],
) -> FoldPairs:
    """Sorts scores within folds, for the AUC over pairs of the same fold.

    Args:
      positive, scores: as for `make_ranked`.
      fold: code of the fold whose model scored the row, shape `(n,)`.

    Raises:
      ValueError: a score is NaN, or a label neither 0 nor 1.
    """
    if scores.ndim == 2:
        models = [make_fold_pairs(positive, model, fold) for model in scores]
        return FoldPairs(*(np.stack(parts) for parts in zip(*models, strict=True)))
    _check(positive, scores)
    # Ranks make fold and score one sorted key: equal keys are equal scores of one fold.
    rank = np.unique(scores, return_inverse=True)[1].reshape(-1)
    block = np.unique(fold, return_inverse=True)[1].reshape(-1) * (len(scores) + 1)
    key = block + rank
    order = np.argsort(key, kind="stable")
    positives, negatives = order[positive[order] == 1], order[positive[order] == 0]
    among = key[negatives]
    parts = (
        positives,
        negatives,
        np.searchsorted(among, block[positives], "left"),
        np.searchsorted(among, key[positives], "left"),
        np.searchsorted(among, key[positives], "right"),
        np.searchsorted(among, block[positives] + len(scores), "right"),
    )
    return FoldPairs(*(part.astype(np.int32) for part in parts))


def _check(positive: np.ndarray, scores: np.ndarray) -> None:
    if positive.shape != scores.shape:
        raise ValueError(f"labels of shape {positive.shape} and scores of shape {scores.shape}; expected one each row.")
    known = (positive == 0) | (positive == 1)
    if not known.all():
        raise ValueError(f"labels: {positive[~known][0]} in row {np.flatnonzero(~known)[0]}; expected 0 or 1.")
    unknown = np.isnan(scores)
    if unknown.any():
        raise ValueError(f"scores: NaN in row {np.flatnonzero(unknown)[0]}; expected a number in every row.")


def exact_ratio(target: float) -> Int[np.ndarray, "2"]:
    """A target such as 0.95 as the fraction it stands for, 19 / 20, so that "at least 95 %" is decided in integers.

    Raises:
      ValueError: outside 0 to 1, 0 included, or with more than four decimals.

    Example:
      >>> exact_ratio(0.95).tolist()
      [19, 20]
    """
    ratio = Fraction(str(target))
    if not 0 < ratio <= 1 or ratio.denominator > LARGEST_DENOMINATOR:
        raise ValueError(f"target {target}; expected a fraction above 0, up to 1, with at most four decimals.")
    return np.array([ratio.numerator, ratio.denominator], np.int32)


def row_losses(positive: Num[np.ndarray, "n"], probabilities: Float[np.ndarray, "*m n"]) -> dict[str, Any]:
    """Squared error and negative log-likelihood of every row, whose means are the Brier score and the log loss.

    Probabilities of 0 and 1 are moved inwards by the resolution of their dtype, as scikit-learn does, so that one
    sure mistake costs 36 instead of infinity.

    Example:
      >>> losses = row_losses(np.array([0, 1]), np.array([0.5, 1.0]))
      >>> losses["brier"].tolist(), losses["log_loss"].round(3).tolist()
      ([0.25, 0.0], [0.693, 0.0])
    """
    least = np.finfo(probabilities.dtype).eps
    inside = np.clip(probabilities, least, 1 - least)
    log_loss = -np.where(positive == 1, np.log(inside), np.log1p(-inside))
    return {"brier": np.square(probabilities - positive), "log_loss": log_loss}


# One vector of weights, one model.


class _Running(NamedTuple):
    """Running counts of one resample.

    Attributes:
      each: weight of each positive, shape `(p,)`.
      below: weight of the negatives in front of each place, shape `(q + 1,)`.
      above: weight of the positives from each place upwards, shape `(p + 1,)`.
    """

    each: Array
    below: Array
    above: Array

    @property
    def negatives(self) -> Array:
        return self.below[-1]

    @property
    def positives(self) -> Array:
        return self.above[0]


def _run(ranked: Ranked, weights: Num[ArrayLike, "n"]) -> _Running:
    padded = _padded(weights)
    each = padded[ranked.positives]
    return _Running(each, _cumulated(padded[ranked.negatives]), jnp.flip(_cumulated(jnp.flip(each))))


def _padded(weights: Num[ArrayLike, "n"]) -> Int[Array, "n+1"]:
    """Weights as integers, and 0 for the row that never counts."""
    whole = jnp.asarray(weights).astype(jnp.int32)
    return jnp.concatenate([whole, jnp.zeros_like(whole[:1])])


def _cumulated(weights: Int[Array, "n"]) -> Int[Array, "n+1"]:
    return jnp.concatenate([jnp.zeros_like(weights[:1]), jnp.cumsum(weights)])


def _real(*counts: Array) -> tuple[Array, ...]:
    dtype = jnp.result_type(float)
    return tuple(count.astype(dtype) for count in counts)


def _product_sum(each: Int[Array, "p"], places: Int[Array, "p"]) -> Float[Array, ""]:
    """Sum of products of counts, exact before its one rounding.

    At 100,000 rows the sum exceeds 2^32. High and low bits of the products are added apart, each in 32 bits without
    overflow up to 1.4 million rows.
    """
    products = (each * places).astype(jnp.uint32)
    bits = jnp.asarray(LOW_BITS, products.dtype)
    high, low = jnp.sum(products >> bits), jnp.sum(products & ((1 << bits) - 1))
    high, low = _real(high, low)
    return high * 2**LOW_BITS + low


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, NaN where the denominator is 0."""
    numerator, denominator = _real(numerator, denominator)
    empty = denominator == 0
    return jnp.where(empty, jnp.nan, numerator / jnp.where(empty, 1, denominator))


def _at_least(ratio: Int[ArrayLike, "2"], total: Array) -> Array:
    """Smallest count that is at least a fraction of the total, at least 1; `numerator * total` may not fit."""
    numerator, denominator = jnp.asarray(ratio).astype(total.dtype)
    whole, rest = total // denominator, total % denominator
    return jnp.maximum(1, numerator * whole - (-numerator * rest) // denominator)


def weighted_auc(ranked: Ranked, weights: Num[ArrayLike, "n"]) -> Float[Array, ""]:
    r"""Area under the ROC curve: the fraction of pairs in which the positive scores higher, ties counted half.

    .. math:: \frac{\sum_{i \in P} w_i (C_{<i} + C_{\le i})}{2 \sum_{i \in P} w_i \sum_{j \in N} w_j}

    with the weight of the negatives that score lower, or not higher, than i.

    Args:
      ranked: of one model.
      weights: how often each row counts, whole numbers, shape `(n,)`.

    Returns:
      The area; NaN where a class is absent.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
      >>> float(weighted_auc(ranked, jnp.ones(4))), float(weighted_auc(ranked, jnp.array([0, 1, 1, 0])))
      (0.875, 0.5)

    References:
      Hanley & McNeil 1982; specs/breast_mri_fusion.md (Mann-Whitney with ties counted half).
    """
    padded = _padded(weights)
    each, below = padded[ranked.positives], _cumulated(padded[ranked.negatives])
    wins = _product_sum(each, below[ranked.low] + below[ranked.high])
    positives, negatives = _real(jnp.sum(each), below[-1])
    return _ratio(wins, 2 * positives * negatives)


def weighted_within_fold_auc(pairs: FoldPairs, weights: Num[ArrayLike, "n"]) -> Float[Array, ""]:
    """The same over pairs of one fold only: every pair is scored by one model.

    Scores of different folds come from different models, whose scales may differ; the pooled AUC compares across them.
    Folds weigh as many as their pairs are; those with one class have none.

    Example:
      >>> label, score, fold = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
      >>> float(weighted_auc(make_ranked(label, score), jnp.ones(4)))
      0.75
      >>> float(weighted_within_fold_auc(make_fold_pairs(label, score, fold), jnp.ones(4)))
      1.0
    """
    padded = _padded(weights)
    each, below = padded[pairs.positives], _cumulated(padded[pairs.negatives])
    start = below[pairs.start]
    wins = _product_sum(each, below[pairs.low] + below[pairs.high] - 2 * start)
    return _ratio(wins, 2 * _product_sum(each, below[pairs.end] - start))


def weighted_average_precision(ranked: Ranked, weights: Num[ArrayLike, "n"]) -> Float[Array, ""]:
    r"""Average precision: precision at the score of each positive, averaged over the positives.

    .. math:: \frac{1}{\sum_{i \in P} w_i} \sum_{i \in P} w_i \frac{TP_{\ge i}}{TP_{\ge i} + FP_{\ge i}}

    Rows of equal scores are one threshold. No interpolation; the definition of scikit-learn.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
      >>> round(float(weighted_average_precision(ranked, jnp.ones(4))), 4)
      0.8333
    """
    run = _run(ranked, weights)
    found = run.above[ranked.first]
    each, precision = _real(run.each)[0], _ratio(found, found + run.negatives - run.below[ranked.low])
    # A positive that was not drawn may stand where nothing was found.
    total = weighted_mean(jnp.where(run.each > 0, precision, 0), each)
    return jnp.where(run.positives > 0, total, jnp.nan)


def weighted_specificity_at_sensitivity(
    ranked: Ranked, ratio: Int[ArrayLike, "2"], weights: Num[ArrayLike, "n"]
) -> Float[Array, ""]:
    r"""Highest specificity over all thresholds whose sensitivity is at least the target.

    Positive means score >= threshold, thresholds are the scores themselves, and nothing is interpolated.

    Args:
      ranked: of one model.
      ratio: `exact_ratio` of the target.
      weights: how often each row counts, whole numbers, shape `(n,)`.

    Returns:
      The specificity; NaN where a class is absent.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.3, 0.5, 0.4, 0.8]))
      >>> round(float(weighted_specificity_at_sensitivity(ranked, exact_ratio(0.95), jnp.ones(5))), 4)
      0.6667

    References:
      Holste et al. 2021, section 3.4; specs/breast_mri_fusion.md: max{1 - FPR : TPR >= 0.95}.
    """
    run = _run(ranked, weights)
    # Of positives of equal scores the first has the whole group above it, and all have the same negatives below.
    enough = run.above[:-1] >= _at_least(ratio, run.positives)
    best = jnp.max(jnp.where(enough, run.below[ranked.low], 0), initial=0)
    return jnp.where(run.positives > 0, _ratio(best, run.negatives), jnp.nan)


def weighted_sensitivity_at_specificity(
    ranked: Ranked, ratio: Int[ArrayLike, "2"], weights: Num[ArrayLike, "n"]
) -> Float[Array, ""]:
    """Highest sensitivity over all thresholds whose specificity is at least the target; the mirror of the above.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.3, 0.5, 0.4, 0.8]))
      >>> float(weighted_sensitivity_at_specificity(ranked, exact_ratio(0.95), jnp.ones(5)))
      0.5
    """
    run = _run(ranked, weights)
    enough = run.below[ranked.low] >= _at_least(ratio, run.negatives)
    best = jnp.max(jnp.where(enough, run.above[:-1], 0), initial=0)
    return jnp.where(run.negatives > 0, _ratio(best, run.positives), jnp.nan)


def weighted_roc_curve(
    ranked: Ranked, weights: Num[ArrayLike, "n"], *, points: int = CURVE_POINTS
) -> Float[Array, "g"]:
    """Sensitivity at false-positive rates 0, 1 / (g - 1), ..., 1, along the empirical ROC curve.

    Where the curve rises vertically the upper end is taken; ties of both classes are its diagonal pieces, so the area
    under the whole curve is `weighted_auc`.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
      >>> weighted_roc_curve(ranked, jnp.ones(4), points=5).tolist()
      [0.5, 0.75, 1.0, 1.0, 1.0]
    """
    run = _run(ranked, weights)
    index = jnp.arange(len(ranked.positives))
    fp = run.negatives - run.below[ranked.low]
    tp = run.above[ranked.first]
    # From the highest of a group of ties the curve leaves where everything above it ends; the others are no corners.
    top = index == ranked.last
    fp_before = jnp.where(top, run.negatives - run.below[ranked.high], fp)
    tp_before = jnp.where(top, run.above[1:], tp)
    fps = jnp.flip(jnp.stack([fp, fp_before], axis=1).reshape(-1))
    tps = jnp.flip(jnp.stack([tp, tp_before], axis=1).reshape(-1))
    fps, tps = jnp.append(fps, run.negatives), jnp.append(tps, run.positives)
    # Both scaled by g - 1: corners and grid are whole numbers, and equal ones are equal.
    corners, grid, heights = _real(fps * (points - 1), jnp.arange(points) * run.negatives, tps)
    return jnp.where(run.negatives > 0, _ratio(jnp.interp(grid, corners, heights), run.positives), jnp.nan)


def weighted_precision_curve(
    ranked: Ranked, weights: Num[ArrayLike, "n"], *, points: int = CURVE_POINTS
) -> Float[Array, "g"]:
    """Precision at the highest threshold whose sensitivity is at least 0, 1 / (g - 1), ..., 1.

    The first is that of the highest-scoring positive. Not interpolated: precision is not linear between thresholds.

    Example:
      >>> ranked = make_ranked(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.8]))
      >>> weighted_precision_curve(ranked, jnp.ones(4), points=3).round(3).tolist()
      [1.0, 1.0, 0.667]

    References:
      Davis & Goadrich 2006, section 3 (interpolation).
    """
    run = _run(ranked, weights)
    steps = jnp.arange(points)
    needed = jax.vmap(lambda k: _at_least(jnp.stack([k, jnp.full_like(k, points - 1)]), run.positives))(steps)
    # Descending order makes the running count ascend; the place where it first suffices is the highest threshold.
    place = jnp.searchsorted(jnp.flip(run.above[:-1]), needed)
    row = len(ranked.positives) - 1 - jnp.minimum(place, len(ranked.positives) - 1)
    found = run.above[ranked.first[row]]
    precision = _ratio(found, found + run.negatives - run.below[ranked.low[row]])
    return jnp.where(run.positives > 0, precision, jnp.nan)


def weighted_counts(
    decisions: Num[ArrayLike, "n"] | Bool[ArrayLike, "n"],
    positive: Num[ArrayLike, "n"] | Bool[ArrayLike, "n"],
    weights: Num[ArrayLike, "n"],
) -> Counts:
    """Confusion matrix of given decisions.

    Args:
      decisions: 1 where a row is called positive, shape `(n,)`.
      positive: 1 where it is, shape `(n,)`.
      weights: how often each row counts, whole numbers, shape `(n,)`.

    Example:
      >>> counts = weighted_counts(jnp.array([1, 1, 0]), jnp.array([1, 0, 0]), jnp.array([2, 1, 3]))
      >>> [int(count) for count in counts]
      [2, 1, 0, 3]
    """
    whole = jnp.asarray(weights).astype(jnp.int32)
    called, truly = jnp.asarray(decisions).astype(bool), jnp.asarray(positive).astype(bool)
    groups = (called & truly, called & ~truly, ~called & truly, ~called & ~truly)
    return Counts(*(jnp.sum(jnp.where(group, whole, 0)) for group in groups))


def rates(counts: Counts) -> Rates:
    r"""What follows from a confusion matrix, NaN where a denominator is 0.

    .. math:: \mathrm{MCC} = \frac{TP \cdot TN - FP \cdot FN}
              {\sqrt{(TP + FP)(TP + FN)(TN + FP)(TN + FN)}}

    Example:
      >>> found = rates(Counts(*map(jnp.asarray, (6, 2, 3, 9))))
      >>> round(float(found.f1), 4), round(float(found.mcc), 4)
      (0.7059, 0.4924)
    """
    tp, fp, fn, tn = counts
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    precision, negative_value = _ratio(tp, tp + fp), _ratio(tn, tn + fn)
    # (TP TN - FP FN) / sqrt(...) as products of rates: products of counts exceed 32 bits.
    agreement = sensitivity * specificity * precision * negative_value
    conflict = (1 - sensitivity) * (1 - specificity) * (1 - precision) * (1 - negative_value)
    return Rates(
        accuracy=_ratio(tp + tn, tp + fp + fn + tn),
        sensitivity=sensitivity,
        specificity=specificity,
        precision=precision,
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        balanced_accuracy=(sensitivity + specificity) / 2,
        mcc=jnp.sqrt(agreement) - jnp.sqrt(conflict),
    )


def weighted_mean(values: Num[ArrayLike, "n"], weights: Num[ArrayLike, "n"]) -> Float[Array, ""]:
    """Weighted mean; NaN without weight. Rows of weight 0 may hold anything.

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 4.0, jnp.nan]), jnp.array([2, 1, 0])))
      2.0
    """
    amount = jnp.asarray(weights)
    [each] = _real(jnp.asarray(values))
    [share] = _real(amount)
    return _ratio(jnp.sum(jnp.where(amount > 0, share * each, 0)), jnp.sum(share))


# One vector of weights, everything.


def classification_statistics(data: ClassificationData, weights: Num[ArrayLike, "n"]) -> ClassificationStatistics:
    """All metrics of all models from one vector of weights: a statistic for `bootstrap` and `jackknife`.

    Args:
      data: models, targets, decisions and losses; all of one shape compile once.
      weights: how often each row counts, whole numbers, shape `(n,)`.

    Example:
      >>> label, scores = np.array([0, 0, 1, 1]), np.array([[0.1, 0.4, 0.35, 0.8], [0.1, 0.2, 0.3, 0.4]])
      >>> data = ClassificationData(make_ranked(label, scores), label, sensitivities=exact_ratio(0.95)[None])
      >>> found = jax.jit(classification_statistics)(data, jnp.ones(4))
      >>> found.auc.tolist(), found.specificity_at_sensitivity.tolist()
      ([0.75, 1.0], [[0.5], [1.0]])
    """
    models = len(data.ranked.positives)
    positive = jnp.broadcast_to(jnp.atleast_2d(jnp.asarray(data.positive)), (models, jnp.shape(data.positive)[-1]))

    def at_targets(kernel: Any, targets: Any) -> Any:
        if targets is None:
            return None
        return jax.vmap(lambda ranked: jax.vmap(lambda ratio: kernel(ranked, ratio, weights))(targets))(data.ranked)

    def over_models(kernel: Any, *stacked: Any) -> Any:
        return jax.vmap(lambda *one: kernel(*one, weights))(*stacked)

    return ClassificationStatistics(
        auc=over_models(weighted_auc, data.ranked),
        average_precision=over_models(weighted_average_precision, data.ranked),
        within_fold_auc=None if data.pairs is None else over_models(weighted_within_fold_auc, data.pairs),
        specificity_at_sensitivity=at_targets(weighted_specificity_at_sensitivity, data.sensitivities),
        sensitivity_at_specificity=at_targets(weighted_sensitivity_at_specificity, data.specificities),
        decisions={
            name: rates(over_models(weighted_counts, jnp.asarray(called), positive))
            for name, called in data.decisions.items()
        },
        losses={name: over_models(weighted_mean, jnp.asarray(loss)) for name, loss in data.losses.items()},
    )


def curve_statistics(ranked: Ranked, weights: Num[ArrayLike, "n"]) -> Curves:
    """ROC and precision-recall curves of stacked models on a fixed grid: a statistic for the bands of `bootstrap`.

    Example:
      >>> ranked = make_ranked(np.array([0, 1, 1]), np.array([[0.1, 0.4, 0.8]]))
      >>> curves = jax.jit(curve_statistics)(ranked, jnp.ones(3))
      >>> curves.sensitivity.shape, float(curves.precision.min())
      ((1, 101), 1.0)
    """
    return Curves(
        jax.vmap(lambda one: weighted_roc_curve(one, weights))(ranked),
        jax.vmap(lambda one: weighted_precision_curve(one, weights))(ranked),
    )
