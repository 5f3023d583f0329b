"""How good a classifier's scores are: points of ranking, decision and probability, without their uncertainty.

One convention everywhere: a row is called positive where its score is at or above the threshold, ties in rank count
half, and what cannot be computed (a precision without a positive call, an AUC of one class) is NaN, never 0. Host
functions in double precision.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Num

from fusion_jax.evaluation.rows import Labels, check_scores, in_unit_interval, positives
from fusion_jax.wording import listed

__all__ = [
    "METRICS",
    "PROBABILITY_CLIP",
    "Counts",
    "Metric",
    "OperatingPoint",
    "PrecisionRecallCurve",
    "RocCurve",
    "accuracy",
    "auc",
    "average_precision",
    "balanced_accuracy",
    "brier",
    "classification_metrics",
    "confusion_counts",
    "f1",
    "log_loss",
    "mcc",
    "metric_value",
    "precision",
    "precision_recall_curve",
    "roc_curve",
    "rows_needed",
    "sensitivity",
    "sensitivity_at_specificity",
    "specificity",
    "specificity_at_sensitivity",
    "youden_point",
]

Value: TypeAlias = float | Float[np.ndarray, "..."]

PROBABILITY_CLIP = float(np.finfo(float).eps)
"""Probabilities are kept this far from 0 and 1 in the log loss, so that one certain mistake costs 36, not infinity."""


class Counts(NamedTuple):
    """Decisions against the truth; numbers, or arrays of one shape (a count a fold, a model, a threshold).

    Attributes:
      tp, fp, fn, tn: true positives, false positives, false negatives, true negatives.
    """

    tp: Any
    fp: Any
    fn: Any
    tn: Any


class OperatingPoint(NamedTuple):
    """A point of the ROC curve.

    Attributes:
      threshold: a row is positive at or above it; infinite where no row is called positive.
      sensitivity, specificity: on the rows it was read from.
    """

    threshold: float
    sensitivity: float
    specificity: float


class RocCurve(NamedTuple):
    """All points of the ROC curve, from the strictest threshold to the loosest, each of shape `(t,)`.

    Attributes:
      threshold: infinity, then every score that occurs, from the highest.
      sensitivity, specificity: of the rows at or above it; NaN for a class that does not occur.
    """

    threshold: Float[np.ndarray, "t"]
    sensitivity: Float[np.ndarray, "t"]
    specificity: Float[np.ndarray, "t"]


class PrecisionRecallCurve(NamedTuple):
    """All points of the precision-recall curve, from the strictest threshold to the loosest, each of shape `(t,)`.

    Attributes:
      threshold: every score that occurs, from the highest.
      precision, recall: of the rows at or above it.
    """

    threshold: Float[np.ndarray, "t"]
    precision: Float[np.ndarray, "t"]
    recall: Float[np.ndarray, "t"]


def confusion_counts(labels: Labels, decisions: Labels) -> Counts:
    """How decisions agree with the truth.

    Args:
      labels: 0 or 1, shape `(n,)`.
      decisions: what was decided, 0 or 1, shape `(n,)`.

    Raises:
      ValueError: values other than 0 and 1, or another number of decisions.

    Example:
      >>> confusion_counts(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
      Counts(tp=2, fp=1, fn=0, tn=1)
    """
    positive, called = positives(labels), positives(decisions, "decisions")
    if len(positive) != len(called):
        raise ValueError(f"{len(called)} decisions for {len(positive)} labels; expected one a label.")
    tp, fp = int((positive & called).sum()), int((~positive & called).sum())
    return Counts(tp, fp, int(positive.sum()) - tp, int((~positive).sum()) - fp)


def accuracy(counts: Counts) -> Value:
    r"""Share of right decisions, :math:`(TP + TN) / n`.

    Example:
      >>> float(accuracy(Counts(tp=22, fp=3, fn=2, tn=21)))
      0.895833...
    """
    return _ratio(np.add(counts.tp, counts.tn), _total(counts))


def sensitivity(counts: Counts) -> Value:
    r"""Share of the positives that are found (recall), :math:`TP / (TP + FN)`.

    Example:
      >>> float(sensitivity(Counts(tp=22, fp=3, fn=2, tn=21)))
      0.916666...
    """
    return _ratio(counts.tp, np.add(counts.tp, counts.fn))


def specificity(counts: Counts) -> Value:
    r"""Share of the negatives that are left alone, :math:`TN / (TN + FP)`.

    Example:
      >>> float(specificity(Counts(tp=22, fp=3, fn=2, tn=21)))
      0.875
    """
    return _ratio(counts.tn, np.add(counts.tn, counts.fp))


def precision(counts: Counts) -> Value:
    r"""Share of the positive calls that are right (positive predictive value), :math:`TP / (TP + FP)`.

    Example:
      >>> float(precision(Counts(tp=22, fp=3, fn=2, tn=21)))
      0.88
    """
    return _ratio(counts.tp, np.add(counts.tp, counts.fp))


def f1(counts: Counts) -> Value:
    r"""Harmonic mean of precision and sensitivity, :math:`2 TP / (2 TP + FP + FN)`.

    Example:
      >>> float(f1(Counts(tp=22, fp=3, fn=2, tn=21)))
      0.897959...
    """
    doubled = 2 * np.asarray(counts.tp)
    return _ratio(doubled, doubled + counts.fp + counts.fn)


def balanced_accuracy(counts: Counts) -> Value:
    """Mean of sensitivity and specificity; NaN where a class does not occur.

    Example:
      >>> float(balanced_accuracy(Counts(tp=1, fp=0, fn=1, tn=2)))
      0.75
    """
    return (sensitivity(counts) + specificity(counts)) / 2


def mcc(counts: Counts) -> Value:
    r"""Matthews correlation coefficient.

    .. math:: \frac{TP \cdot TN - FP \cdot FN}{\sqrt{(TP+FP)(TP+FN)(TN+FP)(TN+FN)}}

    NaN where a class or a decision does not occur: the correlation with a constant is undefined.

    Example:
      >>> float(mcc(Counts(tp=2, fp=0, fn=0, tn=2)))
      1.0
    """
    tp, fp, fn, tn = (np.asarray(count, float) for count in counts)  # the product of four counts overflows integers
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn)))


def auc(labels: Labels, scores: Num[np.ndarray, "n"]) -> float:
    r"""Area under the ROC curve: how often a positive scores above a negative, ties counted half.

    .. math:: \frac{1}{P N} \sum_{i \in +} \sum_{j \in -} [s_i > s_j] + \tfrac{1}{2} [s_i = s_j]

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, of any scale, shape `(n,)`.

    Returns:
      The area; NaN where a class does not occur.

    Raises:
      ValueError: labels other than 0 and 1, or scores that are not finite.

    Example:
      >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
      0.875

    References:
      Bamber 1975; Hanley & McNeil 1982, Radiology 143: 29-36.
    """
    _, tp, fp = _cumulative(labels, scores)
    if not len(tp) or not tp[-1] or not fp[-1]:
        return math.nan
    # In whole numbers, so that equal rankings give equal bits: twice the count of pairs in the right order.
    rising, falling = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
    doubled = int(np.sum(rising * (2 * (fp[-1] - fp) + falling)))
    return doubled / (2 * int(tp[-1]) * int(fp[-1]))


def average_precision(labels: Labels, scores: Num[np.ndarray, "n"]) -> float:
    r"""Mean precision at the positives, without interpolation; tied scores enter together.

    .. math:: \sum_t (R_t - R_{t-1}) P_t

    Its value for a worthless score is the share of positives.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.

    Returns:
      The average precision; NaN where no positive occurs.

    Example:
      >>> average_precision(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
      0.8333333333333333

    References:
      The definition of scikit-learn's `average_precision_score`.
    """
    curve = precision_recall_curve(labels, scores)
    if not len(curve.recall) or math.isnan(curve.recall[-1]):
        return math.nan
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def roc_curve(labels: Labels, scores: Num[np.ndarray, "n"]) -> RocCurve:
    """Every point of the ROC curve, none left out.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.

    Example:
      >>> roc_curve(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9])).sensitivity.tolist()
      [0.0, 0.5, 1.0]
    """
    threshold, tp, fp = _cumulative(labels, scores)
    tp, fp = np.append(0, tp), np.append(0, fp)
    return RocCurve(np.append(np.inf, threshold), _ratio(tp, tp[-1]), _ratio(fp[-1] - fp, fp[-1]))


def precision_recall_curve(labels: Labels, scores: Num[np.ndarray, "n"]) -> PrecisionRecallCurve:
    """Every point of the precision-recall curve; it starts at the highest score, not at an invented precision of 1.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.

    Example:
      >>> precision_recall_curve(np.array([0, 1, 1]), np.array([0.5, 0.2, 0.9])).precision.tolist()
      [1.0, 0.5, 0.6666666666666666]
    """
    threshold, tp, fp = _cumulative(labels, scores)
    return PrecisionRecallCurve(threshold, _ratio(tp, tp + fp), _ratio(tp, tp[-1] if len(tp) else 0))


def specificity_at_sensitivity(labels: Labels, scores: Num[np.ndarray, "n"], target: float = 0.95) -> OperatingPoint:
    """The highest specificity of a threshold whose sensitivity reaches the target; no interpolation.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.
      target: sensitivity, above 0 and at most 1.

    Returns:
      The point; all NaN where a class does not occur.

    Raises:
      ValueError: a target that is no share.

    Example:
      >>> specificity_at_sensitivity(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), 0.95)
      OperatingPoint(threshold=0.35, sensitivity=1.0, specificity=0.5)

    References:
      Holste et al. 2021, Table 2; specs/breast_mri_fusion.md, section on evaluation.
    """
    _check_target(target, "sensitivity")
    threshold, tp, fp = _cumulative(labels, scores)
    if not len(tp) or not tp[-1] or not fp[-1]:
        return OperatingPoint(math.nan, math.nan, math.nan)
    at = int(np.searchsorted(tp, rows_needed(target, int(tp[-1]))))
    return OperatingPoint(float(threshold[at]), float(tp[at] / tp[-1]), float((fp[-1] - fp[at]) / fp[-1]))


def sensitivity_at_specificity(labels: Labels, scores: Num[np.ndarray, "n"], target: float = 0.95) -> OperatingPoint:
    """The highest sensitivity of a threshold whose specificity reaches the target; no interpolation.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.
      target: specificity, above 0 and at most 1.

    Returns:
      The point; all NaN where a class does not occur. Where even the highest score calls too many negatives, the
      threshold is infinite and the sensitivity 0.

    Raises:
      ValueError: a target that is no share.

    Example:
      >>> sensitivity_at_specificity(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), 0.95)
      OperatingPoint(threshold=0.8, sensitivity=0.5, specificity=1.0)
    """
    _check_target(target, "specificity")
    threshold, tp, fp = _cumulative(labels, scores)
    if not len(tp) or not tp[-1] or not fp[-1]:
        return OperatingPoint(math.nan, math.nan, math.nan)
    allowed = int(fp[-1]) - rows_needed(target, int(fp[-1]))
    at = int(np.searchsorted(fp, allowed, side="right")) - 1  # the loosest threshold with no more false positives
    if at < 0:
        return OperatingPoint(math.inf, 0.0, 1.0)
    return OperatingPoint(float(threshold[at]), float(tp[at] / tp[-1]), float((fp[-1] - fp[at]) / fp[-1]))


def youden_point(labels: Labels, scores: Num[np.ndarray, "n"]) -> OperatingPoint:
    """The threshold with the largest sum of sensitivity and specificity; among equals the most sensitive one.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.

    Returns:
      The point; all NaN where a class does not occur.

    Example:
      >>> youden_point(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
      OperatingPoint(threshold=0.35, sensitivity=1.0, specificity=0.5)

    References:
      Youden 1950, Cancer 3: 32-35.
    """
    threshold, tp, fp = _cumulative(labels, scores)
    if not len(tp) or not tp[-1] or not fp[-1]:
        return OperatingPoint(math.nan, math.nan, math.nan)
    # In whole numbers, so that ties are ties.
    gain = tp * int(fp[-1]) - fp * int(tp[-1])
    at = len(gain) - 1 - int(np.argmax(gain[::-1]))
    return OperatingPoint(float(threshold[at]), float(tp[at] / tp[-1]), float((fp[-1] - fp[at]) / fp[-1]))


def rows_needed(target: float, rows: int) -> int:
    """The smallest number of rows whose share reaches the target, in exact arithmetic.

    The target is taken as it is written: 0.95 of 20 rows are 19, whatever 0.95 is in binary.

    Example:
      >>> rows_needed(0.95, 20), rows_needed(0.7, 10), rows_needed(0.95, 21)
      (19, 7, 20)
    """
    return math.ceil(Fraction(repr(float(target))) * rows)


def brier(labels: Labels, probabilities: Num[np.ndarray, "n"]) -> float:
    r"""Brier score, the mean squared error of probabilities, :math:`\frac{1}{n} \sum (p - y)^2`; 0 is best.

    Args:
      labels: 0 or 1, shape `(n,)`.
      probabilities: of class 1, shape `(n,)`.

    Returns:
      The score; NaN without rows.

    Raises:
      ValueError: scores that are no probabilities.

    Example:
      >>> brier(np.array([0, 1]), np.array([0.5, 1.0]))
      0.125
    """
    positive = positives(labels)
    checked = in_unit_interval(check_scores(probabilities, len(positive)))
    return float(np.mean(np.square(checked - positive))) if len(positive) else math.nan


def log_loss(labels: Labels, probabilities: Num[np.ndarray, "n"]) -> float:
    r"""Log loss, :math:`-\frac{1}{n} \sum y \ln p + (1 - y) \ln (1 - p)`; 0 is best.

    Probabilities are clipped to [2.2e-16, 1 - 2.2e-16]: one certain mistake costs 36, not infinity.

    Args:
      labels: 0 or 1, shape `(n,)`.
      probabilities: of class 1, shape `(n,)`.

    Returns:
      The loss in nats; NaN without rows.

    Raises:
      ValueError: scores that are no probabilities.

    Example:
      >>> log_loss(np.array([0, 1]), np.array([0.5, 0.5]))
      0.693147...
    """
    positive = positives(labels)
    checked = in_unit_interval(check_scores(probabilities, len(positive)))
    if not len(positive):
        return math.nan
    of_truth = np.where(positive, checked, 1 - checked)
    return -float(np.mean(np.log(np.clip(of_truth, PROBABILITY_CLIP, 1 - PROBABILITY_CLIP))))


class Metric(NamedTuple):
    """What a metric is called and needs.

    Attributes:
      label: for people; `{target}` stands for the sensitivity or specificity that is held.
      larger_is_better: or smaller.
      needs_probabilities: scores of any scale will not do.
      needs_threshold: it judges decisions; without a threshold there are none.
      needs_target: it depends on a sensitivity or specificity that is held.
      function: of `(counts)` where it needs a threshold, of `(labels, scores, target)` where it needs a target, else of
        `(labels, scores)`.
    """

    label: str
    larger_is_better: bool
    needs_probabilities: bool
    needs_threshold: bool
    needs_target: bool
    function: Callable[..., Any]

    def title(self, target: float = 0.95) -> str:
        """The label, with the target filled in."""
        return self.label.format(target=f"{100 * target:g} %")


def _ranking(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, True, False, False, False, function)


def _held(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, True, False, False, True, function)


def _decision(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, True, False, True, False, function)


def _loss(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, False, True, False, False, function)


def _specificity_held(labels: Any, scores: Any, target: float) -> float:
    return specificity_at_sensitivity(labels, scores, target).specificity


def _sensitivity_held(labels: Any, scores: Any, target: float) -> float:
    return sensitivity_at_specificity(labels, scores, target).sensitivity


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auc": _ranking("AUC", auc),
        "average_precision": _ranking("Average precision", average_precision),
        "specificity_at_sensitivity": _held("Specificity at {target} sensitivity", _specificity_held),
        "sensitivity_at_specificity": _held("Sensitivity at {target} specificity", _sensitivity_held),
        "accuracy": _decision("Accuracy", accuracy),
        "sensitivity": _decision("Sensitivity", sensitivity),
        "specificity": _decision("Specificity", specificity),
        "precision": _decision("Precision (PPV)", precision),
        "f1": _decision("F1", f1),
        "balanced_accuracy": _decision("Balanced accuracy", balanced_accuracy),
        "mcc": _decision("MCC", mcc),
        "brier": _loss("Brier score", brier),
        "log_loss": _loss("Log loss", log_loss),
    }
)
"""Every metric of a binary classifier, in the order in which tables show them."""


def metric_value(
    name: str,
    labels: Labels,
    scores: Num[np.ndarray, "n"],
    *,
    threshold: float | None = None,
    target: float = 0.95,
) -> float:
    """One metric by its name in `METRICS`.

    Args:
      name: of the metric.
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.
      threshold: a row is positive at or above it; needed by metrics of decisions.
      target: sensitivity or specificity that is held, where the metric holds one.

    Raises:
      ValueError: an unknown name, or no threshold for a metric that needs one.

    Example:
      >>> metric_value("accuracy", np.array([0, 1]), np.array([0.2, 0.5]), threshold=0.5)
      1.0
    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r}; there are {listed(METRICS, len(METRICS))}.")
    metric = METRICS[name]
    if metric.needs_threshold:
        if threshold is None:
            raise ValueError(
                f"{name} judges decisions, and no threshold was given; give one, or choose another metric."
            )
        decided = check_scores(scores, len(labels)) >= threshold
        return float(metric.function(confusion_counts(labels, decided)))
    return float(metric.function(labels, scores, target) if metric.needs_target else metric.function(labels, scores))


def classification_metrics(
    labels: Labels,
    scores: Num[np.ndarray, "n"],
    *,
    threshold: float | None = None,
    target: float = 0.95,
    probabilities: bool = True,
) -> dict[str, float]:
    """Every metric that these scores have, by name, in the order of `METRICS`.

    Args:
      labels: 0 or 1, shape `(n,)`.
      scores: larger for class 1, shape `(n,)`.
      threshold: a row is positive at or above it; without one, metrics of decisions are left out.
      target: sensitivity or specificity that is held.
      probabilities: whether the scores are probabilities; if not, Brier score and log loss are left out.

    Example:
      >>> found = classification_metrics(np.array([0, 1]), np.array([-3.0, 2.5]), probabilities=False)
      >>> list(found)
      ['auc', 'average_precision', 'specificity_at_sensitivity', 'sensitivity_at_specificity']
    """
    return {
        name: metric_value(name, labels, scores, threshold=threshold, target=target)
        for name, metric in METRICS.items()
        if (threshold is not None or not metric.needs_threshold) and (probabilities or not metric.needs_probabilities)
    }


def _cumulative(
    labels: Labels, scores: Num[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Int[np.ndarray, "t"], Int[np.ndarray, "t"]]:
    """Every score that occurs, from the highest, with the positives and negatives at or above it."""
    positive = positives(labels)
    scores = check_scores(scores, len(positive))
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0)[: len(ordered)])
    tp = np.cumsum(positive[order])[last]
    return ordered[last], tp, last + 1 - tp


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Elementwise quotient, NaN where nothing is divided by nothing."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)[()]


def _total(counts: Counts) -> Any:
    return np.add(np.add(counts.tp, counts.fp), np.add(counts.fn, counts.tn))


def _check_target(target: float, name: str) -> None:
    if not 0 < target <= 1:
        raise ValueError(
            f"a {name} of {target} is to be reached; expected a share above 0 and at most 1, such as 0.95."
        )
