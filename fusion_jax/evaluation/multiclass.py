"""Three or more classes: every class against the rest, the confusion matrix, and probabilities of all classes.

The decision is the class of the largest score, the first among equals. Host functions in double precision.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from fusion_jax.evaluation.classification import (
    METRICS,
    PROBABILITY_CLIP,
    Counts,
    Metric,
    f1,
    metric_value,
    sensitivity,
)
from fusion_jax.evaluation.rows import check_scores, in_unit_interval

__all__ = [
    "MULTICLASS_METRICS",
    "OneVersusRest",
    "confusion_matrix",
    "multiclass_brier",
    "multiclass_log_loss",
    "multiclass_metrics",
    "one_versus_rest",
]

SUM_TOLERANCE = 1e-2
"""Class probabilities of a row may miss a sum of 1 by this much: twenty rounded to three digits do."""


class OneVersusRest(NamedTuple):
    """A metric of every class against all others.

    Attributes:
      values: one a class, shape `(k,)`.
      macro: their unweighted mean; NaN if any is, since a mean over the other classes is another quantity.
    """

    values: Float[np.ndarray, "k"]
    macro: float


def one_versus_rest(
    labels: Int[np.ndarray, "n"],
    scores: Num[np.ndarray, "n k"],
    metric: str = "auc",
    *,
    target: float = 0.95,
) -> OneVersusRest:
    """A ranking metric of every class against all others, and the mean over classes.

    Args:
      labels: classes 0 to k - 1, shape `(n,)`.
      scores: one column a class, shape `(n, k)`.
      metric: a name in `METRICS` that needs no threshold.
      target: sensitivity or specificity that is held, where the metric holds one.

    Raises:
      ValueError: labels that are no column, or a metric of decisions.

    Example:
      >>> scores = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
      >>> one_versus_rest(np.array([0, 1, 2]), scores).macro
      1.0

    References:
      Provost & Domingos 2000 (one against the rest); the mean is unweighted ("macro").
    """
    labels, scores = _check_classes(labels, scores)
    if metric in METRICS and METRICS[metric].needs_threshold:
        raise ValueError(
            f"{metric} judges decisions; against the rest, take it from the confusion matrix of the largest score."
        )
    values = [
        metric_value(metric, (labels == column).astype(int), scores[:, column], target=target)
        for column in range(scores.shape[1])
    ]
    return OneVersusRest(np.array(values), float(np.mean(values)))


def confusion_matrix(
    labels: Int[np.ndarray, "n"], decisions: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "k k"]:
    """Counts of every true class (row) decided as every class (column).

    Args:
      labels: classes 0 to `classes` - 1, shape `(n,)`.
      decisions: the same, shape `(n,)`; `scores.argmax(axis=1)` takes the largest score, the first among equals.
      classes: number of classes.

    Raises:
      ValueError: a class outside 0 to `classes` - 1.

    Example:
      >>> confusion_matrix(np.array([0, 1, 2]), np.array([0, 2, 2]), 3).tolist()
      [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    for name, found in (("labels", labels), ("decisions", decisions)):
        if len(found) and (found.min() < 0 or found.max() >= classes):
            raise ValueError(f"{name}: from {found.min()} to {found.max()}; expected classes 0 to {classes - 1}.")
    return np.bincount(labels * classes + decisions, minlength=classes**2).reshape(classes, classes)


def multiclass_brier(labels: Int[np.ndarray, "n"], probabilities: Num[np.ndarray, "n k"]) -> float:
    r"""Brier score over all classes, :math:`\frac{1}{n} \sum_i \sum_c (p_{ic} - y_{ic})^2`, from 0 to 2.

    With two classes it is twice the binary score.

    Args:
      labels: classes 0 to k - 1, shape `(n,)`.
      probabilities: one column a class, each row of sum 1, shape `(n, k)`.

    Raises:
      ValueError: scores that are no probabilities, or rows that do not sum to 1.

    Example:
      >>> multiclass_brier(np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]]))
      0.25

    References:
      Brier 1950, Monthly Weather Review 78: 1-3, Eq. 2.
    """
    labels, checked = _check_class_probabilities(labels, probabilities)
    truth = np.eye(checked.shape[1])[labels]
    return float(np.mean(np.sum(np.square(checked - truth), axis=1))) if len(labels) else math.nan


def multiclass_log_loss(labels: Int[np.ndarray, "n"], probabilities: Num[np.ndarray, "n k"]) -> float:
    r"""Log loss, :math:`-\frac{1}{n} \sum_i \ln p_{i, y_i}`, with probabilities clipped as in `log_loss`.

    Args:
      labels: classes 0 to k - 1, shape `(n,)`.
      probabilities: one column a class, each row of sum 1, shape `(n, k)`.

    Raises:
      ValueError: scores that are no probabilities, or rows that do not sum to 1.

    Example:
      >>> multiclass_log_loss(np.array([0, 2]), np.full((2, 4), 0.25))
      1.386294...
    """
    labels, checked = _check_class_probabilities(labels, probabilities)
    if not len(labels):
        return math.nan
    of_truth = checked[np.arange(len(labels)), labels]
    return -float(np.mean(np.log(np.clip(of_truth, PROBABILITY_CLIP, 1 - PROBABILITY_CLIP))))


def _macro(metric: str) -> Callable[..., float]:
    def value(labels: Any, scores: Any) -> float:
        return one_versus_rest(labels, scores, metric).macro

    return value


def _of_matrix(function: Callable[[np.ndarray], Any]) -> Callable[..., float]:
    def value(labels: Any, scores: Any) -> float:
        matrix = confusion_matrix(labels, scores.argmax(axis=1), scores.shape[1])
        return float(function(matrix))

    return value


def _per_class(matrix: np.ndarray) -> Counts:
    """Counts of every class against the rest."""
    tp = np.diag(matrix)
    fp, fn = matrix.sum(axis=0) - tp, matrix.sum(axis=1) - tp
    return Counts(tp, fp, fn, matrix.sum() - tp - fp - fn)


def _ranked(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, True, False, False, False, function)


def _loss(label: str, function: Callable[..., Any]) -> Metric:
    return Metric(label, False, True, False, False, function)


MULTICLASS_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "macro_auc": _ranked("AUC, mean over classes", _macro("auc")),
        "macro_average_precision": _ranked("Average precision, mean over classes", _macro("average_precision")),
        "accuracy": _ranked("Accuracy", _of_matrix(lambda m: np.trace(m) / m.sum() if m.sum() else np.nan)),
        "balanced_accuracy": _ranked("Balanced accuracy", _of_matrix(lambda m: np.mean(sensitivity(_per_class(m))))),
        "macro_f1": _ranked("F1, mean over classes", _of_matrix(lambda m: np.mean(f1(_per_class(m))))),
        "brier": _loss("Brier score, all classes", multiclass_brier),
        "log_loss": _loss("Log loss", multiclass_log_loss),
    }
)
"""Metrics of three or more classes; the decision is the class of the largest score, so none needs a threshold."""


def multiclass_metrics(
    labels: Int[np.ndarray, "n"], scores: Num[np.ndarray, "n k"], *, probabilities: bool = True
) -> dict[str, float]:
    """Every metric of `MULTICLASS_METRICS` by name; the decision is the largest score, the first among equals.

    Args:
      labels: classes 0 to k - 1, shape `(n,)`.
      scores: one column a class, shape `(n, k)`.
      probabilities: whether the scores are probabilities; if not, Brier score and log loss are left out.

    Returns:
      Name to value; balanced accuracy and the means over classes are NaN where a class does not occur.

    Example:
      >>> scores = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
      >>> multiclass_metrics(np.array([0, 1, 1]), scores)["accuracy"]
      0.666666...
    """
    labels, scores = _check_classes(labels, scores)
    return {
        name: metric.function(labels, scores)
        for name, metric in MULTICLASS_METRICS.items()
        if probabilities or not metric.needs_probabilities
    }


def _check_classes(
    labels: Int[np.ndarray, "n"], scores: Num[np.ndarray, "n k"]
) -> tuple[Int[np.ndarray, "n"], Num[np.ndarray, "n k"]]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores: shape {scores.shape}; expected one column a class, shape (n, k) with two or more.")
    if len(labels) and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(
            f"labels: from {labels.min()} to {labels.max()} beside {scores.shape[1]} columns of scores; expected "
            f"classes 0 to {scores.shape[1] - 1}."
        )
    return labels, check_scores(scores, len(labels))


def _check_class_probabilities(
    labels: Int[np.ndarray, "n"], probabilities: Num[np.ndarray, "n k"]
) -> tuple[Int[np.ndarray, "n"], Num[np.ndarray, "n k"]]:
    labels, checked = _check_classes(labels, probabilities)
    in_unit_interval(checked)
    off = np.flatnonzero(np.abs(checked.sum(axis=1) - 1) > SUM_TOLERANCE)
    if len(off):
        raise ValueError(
            f"scores: the probabilities of row {off[0]} sum to {checked[off[0]].sum():.4g} ({len(off)} rows in all); "
            "expected 1. Give the softmax of the logits, or say that they are no probabilities."
        )
    return labels, checked
