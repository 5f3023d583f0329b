"""What every host function asks of its rows before it computes anything: labels, scores and patients."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Num, Shaped

from fusion_jax.wording import counted, listed

__all__ = ["Labels", "Patients", "both_classes", "check_scores", "in_unit_interval", "patient_codes", "positives"]

Labels: TypeAlias = Int[np.ndarray, "n"] | Bool[np.ndarray, "n"]
"""0 or 1 a row, or False and True."""

Patients: TypeAlias = Shaped[np.ndarray, "n"] | Sequence[object]
"""Patient id a row: whole numbers or words."""


def positives(labels: Labels, what: str = "labels") -> Bool[np.ndarray, "n"]:
    """Which rows are of class 1.

    Args:
      labels: 0 or 1, shape `(n,)`.
      what: their name in messages.

    Raises:
      ValueError: a label that is neither 0 nor 1.

    Example:
      >>> positives(np.array([0, 1])).tolist()
      [False, True]
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{what}: shape {labels.shape}; expected one a row, shape (n,).")
    strange = np.unique(labels[(labels != 0) & (labels != 1)])
    if len(strange):
        raise ValueError(
            f"{what}: found {listed(strange.tolist())}; expected 0 and 1, 1 being the class that is looked for."
        )
    return labels == 1


def both_classes(labels: Labels, purpose: str) -> Bool[np.ndarray, "n"]:
    """Which rows are of class 1, where both classes occur.

    Args:
      labels: 0 or 1, shape `(n,)`.
      purpose: what needs both, for the message: "an AUC".

    Raises:
      ValueError: no row, or rows of one class only.
    """
    positive = positives(labels)
    if not len(positive):
        raise ValueError(f"labels: no rows; {purpose} needs rows of both classes.")
    if positive.all() or not positive.any():
        only = int(positive[0])
        raise ValueError(
            f"labels: only class {only} occurs in {counted(len(positive), 'row')}; {purpose} needs both classes."
        )
    return positive


def check_scores(scores: Num[np.ndarray, "n *m"], rows: int) -> Num[np.ndarray, "n *m"]:
    """Scores in double precision, one row a label.

    Raises:
      ValueError: another number of rows, or a value that is not finite.
    """
    scores = np.asarray(scores)
    if not scores.ndim or len(scores) != rows:
        raise ValueError(f"scores: shape {scores.shape} beside {counted(rows, 'label')}; expected one a label.")
    scores = scores.astype(float)
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=tuple(range(1, scores.ndim))))
    if len(bad):
        value = scores[bad[0]][~np.isfinite(scores[bad[0]])].ravel()[0]
        raise ValueError(
            f"scores: {value} in row {bad[0]} ({counted(len(bad), 'row')} in all); expected finite numbers. Leave "
            "cases without a score out for every model, and say how many they were."
        )
    return scores


def in_unit_interval(scores: Num[np.ndarray, "n *k"]) -> Num[np.ndarray, "n *k"]:
    """The scores, if they can be probabilities.

    Raises:
      ValueError: a score below 0 or above 1.

    Example:
      >>> in_unit_interval(np.array([0.0, 1.0])).tolist()
      [0.0, 1.0]
    """
    outside = np.flatnonzero(((scores < 0) | (scores > 1)).any(axis=tuple(range(1, scores.ndim))))
    if len(outside):
        raise ValueError(
            f"scores: {scores[outside[0]]} in row {outside[0]} ({len(outside)} in all) is no probability; expected "
            "numbers from 0 to 1. Logits become probabilities by the logistic function; other scores have no Brier "
            "score and no log loss."
        )
    return scores


def patient_codes(patients: Patients | None, rows: int) -> Int[np.ndarray, "n"]:
    """Patient of every row as a number from 0; every row is its own patient where `patients` is None.

    Raises:
      ValueError: another number of rows, or a row without a patient.

    Example:
      >>> patient_codes(["b", "a", "b"], 3).tolist()
      [1, 0, 1]
    """
    if patients is None:
        return np.arange(rows)
    if len(patients) != rows:
        raise ValueError(f"patients: {len(patients)} ids for {counted(rows, 'row')}; expected one a row.")
    array = np.asarray(patients)
    if array.dtype.kind in "OSU":
        words = array.astype(object).tolist()
        lacking = [row for row, word in enumerate(words) if word is None or word != word or word == ""]
        array = np.array([str(word) for word in words])
    else:
        lacking = np.flatnonzero(array != array).tolist()
    if lacking:
        raise ValueError(
            f"patients: no id in row {listed(lacking)} ({len(lacking)} of {len(array)} rows). Give every row the id of "
            "its patient, or no ids at all: then every row counts as a patient of its own."
        )
    return np.unique(array, return_inverse=True)[1]
