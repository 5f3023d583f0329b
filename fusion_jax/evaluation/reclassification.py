"""Which cases change sides when one model's decisions replace another's."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fusion_jax.evaluation.rows import both_classes

__all__ = ["Change", "changed_sides", "outcome_names"]


class Change(NamedTuple):
    """How decisions for one class change from one model to another.

    Attributes:
      rule: how scores became decisions.
      first, second: models; the change is from the first to the second.
      of_class: 0 or 1.
      rows: of the class.
      first_right, second_right: rows that each decides rightly.
      gained, lost: rows that only the second decides rightly, and only the first.
      net: gained less lost.
    """

    rule: str
    first: str
    second: str
    of_class: int
    rows: int
    first_right: int
    second_right: int
    gained: int
    lost: int
    net: int


def changed_sides(
    labels: Int[np.ndarray, "n"],
    first: Int[np.ndarray, "n"] | Bool[np.ndarray, "n"],
    second: Int[np.ndarray, "n"] | Bool[np.ndarray, "n"],
    *,
    rule: str = "",
    names: tuple[str, str] = ("first", "second"),
) -> tuple[Change, Change]:
    """Counts of decisions that become right and that become wrong, by class.

    Counts by class, and no single index over both: a net reclassification index can be made positive by a model that
    is merely badly calibrated.

    Args:
      labels: 0 or 1, shape `(n,)`.
      first, second: decisions of the two models on the same rows, shape `(n,)`.
      rule, names: for the result.

    Returns:
      The change among rows of class 0, and among rows of class 1.

    Raises:
      ValueError: one class only.

    Example:
      >>> benign, cancer = changed_sides(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), np.array([0, 0, 1, 1]))
      >>> benign.gained, benign.lost, benign.net, cancer.net
      (2, 1, 1, 0)

    References:
      Holste et al. 2021, section 4.1 (743 more benign cases recognised at 95 % sensitivity); Pepe et al. 2015,
      Statistics in Biosciences 7: 282-295 (against the net reclassification index).
    """
    positive = both_classes(labels, "a reclassification table")
    right = (np.asarray(first) == positive, np.asarray(second) == positive)
    found = []
    for number in (0, 1):
        rows = positive == number
        one, other = right[0][rows], right[1][rows]
        gained, lost = int((other & ~one).sum()), int((one & ~other).sum())
        found.append(
            Change(rule, *names, number, int(rows.sum()), int(one.sum()), int(other.sum()), gained, lost, gained - lost)
        )
    return (found[0], found[1])


def outcome_names(labels: Int[np.ndarray, "n"], decisions: Int[np.ndarray, "n"]) -> np.ndarray:
    """TP, FP, FN or TN of every row.

    Example:
      >>> outcome_names(np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0])).tolist()
      ['TP', 'FP', 'FN', 'TN']
    """
    return np.array([["TN", "FN"], ["FP", "TP"]], dtype=object)[np.asarray(decisions, int), np.asarray(labels, int)]
