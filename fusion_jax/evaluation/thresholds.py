"""Where a threshold comes from, and what may be said of decisions made with it.

Three origins, from the strongest claim to the weakest: given beforehand; chosen on validation rows and carried over to
the test rows of the same fold; read off the test rows themselves. The last is optimistic, since the rows that are
judged chose the threshold, and is always called what it is. Host functions in double precision.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

from fusion_jax.evaluation.classification import (
    OperatingPoint,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    youden_point,
)
from fusion_jax.evaluation.proportions import clustered_proportion
from fusion_jax.evaluation.rows import Labels, Patients, both_classes, check_scores, patient_codes, positives
from fusion_jax.wording import counted, listed

__all__ = ["Operating", "Rule", "carried_over", "decide", "given", "read_off"]

Rule: TypeAlias = Literal["sensitivity", "specificity", "youden"]

FEW_BEYOND = 20
"""Rows of the held class on the wrong side of the threshold, below which their share is known too badly to be held."""

ORIGINS = {"given": "given", "carried over": "carried over from validation rows", "read off": "read off the test ROC"}


class Operating(NamedTuple):
    """A threshold for every fold, and where it comes from.

    Attributes:
      kind: "given", "carried over" or "read off".
      origin: the same as a phrase for a report, with the rule.
      thresholds: fold to threshold; a row is positive at or above it. Without folds there is one, under None.
      warnings: what to say beside every figure that rests on them.
    """

    kind: Literal["given", "carried over", "read off"]
    origin: str
    thresholds: dict[Hashable, float]
    warnings: tuple[str, ...] = ()


def given(threshold: float, folds: Shaped[np.ndarray, "n"] | None = None) -> Operating:
    """A threshold that was fixed beforehand, the same in every fold.

    Args:
      threshold: on the scale of the scores.
      folds: fold of each test row, shape `(n,)`; None without folds.

    Raises:
      ValueError: a threshold that is not finite.

    Example:
      >>> given(0.5).origin
      'given (0.5)'
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold: {threshold}; expected a finite number on the scale of the scores.")
    return Operating("given", f"given ({threshold:g})", dict.fromkeys(_names(folds), float(threshold)))


def carried_over(
    validation_labels: Labels | None,
    validation_scores: Num[np.ndarray, "n"] | None,
    *,
    rule: Rule,
    target: float = 0.95,
    validation_folds: Shaped[np.ndarray, "n"] | None = None,
    folds: Shaped[np.ndarray, "t"] | None = None,
    validation_patients: Patients | None = None,
) -> Operating:
    """A threshold chosen on the validation rows of each fold, for the test rows of the same fold.

    Args:
      validation_labels: 0 or 1, shape `(v,)`; None where there are no validation rows.
      validation_scores: of the same training as the test scores of the fold, shape `(v,)`.
      rule: "sensitivity" or "specificity" for the threshold that holds `target`, the other being as high as it can;
        "youden" for the largest sum of both.
      target: sensitivity or specificity to hold.
      validation_folds: fold of each validation row, shape `(v,)`; None without folds.
      folds: fold of each test row, shape `(t,)`; None without folds.
      validation_patients: id of the patient of each validation row, shape `(v,)`; None where every row is a patient.

    Returns:
      The thresholds. A warning says so where fewer than 20 validation rows of the held class lie beyond a threshold,
      with the interval of the sensitivity or specificity in the fold where it is widest: 20 give their share to within
      about 45 % of itself.

    Raises:
      ValueError: no validation rows, in all or in some fold, or rows of one class only there.

    Example:
      >>> operating = carried_over(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.8]), rule="sensitivity")
      >>> operating.thresholds, operating.origin
      ({None: 0.3}, 'carried over from validation rows (at 95 % sensitivity)')
      >>> operating.warnings[0]
      'few validation cases for a sensitivity of 95 %: 2 of 2 positives lie at or above the threshold (95 % interval
      34.2 to 100.0 %), and 0 below it; with fewer than 20 there, the sensitivity that the threshold will hold is not
      known well.'
    """
    if validation_labels is None or validation_scores is None or not len(validation_labels):
        raise ValueError(
            "no validation rows: a threshold that is carried over to the test rows must come from rows that are not "
            "judged with it. Add rows with split = validation to the table, give a threshold, or read one off the test "
            "ROC, which the report will call optimistic."
        )
    positive = positives(validation_labels)
    scores = check_scores(validation_scores, len(positive))
    patient = patient_codes(validation_patients, len(positive))
    if (validation_folds is None) != (folds is None):
        having, lacking = ("test", "validation") if validation_folds is None else ("validation", "test")
        raise ValueError(
            f"the {having} rows have folds and the {lacking} rows have none; a threshold belongs to a fold."
        )
    wanted = _names(folds)
    thresholds: dict[Hashable, float] = {}
    held: list[_Held] = []
    missing = []
    for fold in wanted:
        rows = np.ones(len(positive), bool) if validation_folds is None else np.asarray(validation_folds) == fold
        if not rows.any():
            missing.append(fold)
            continue
        place = "" if fold is None else f"fold {fold}, validation rows: "
        try:
            labels = both_classes(positive[rows].astype(int), "a threshold")
        except ValueError as error:
            raise ValueError(f"{place}{error} Take larger validation parts, or give a threshold.") from None
        point = _point(labels.astype(int), scores[rows], rule, target)
        thresholds[fold] = point.threshold
        held += _held(fold, labels, scores[rows], patient[rows], point, rule)
    if missing:
        raise ValueError(
            f"no validation rows in fold {listed(missing)}, which has test rows; a threshold of another fold belongs "
            "to another training. Add them, give a threshold, or read one off the test ROC."
        )
    origin = f"{ORIGINS['carried over']} ({_rule_text(rule, target)})"
    return Operating("carried over", origin, thresholds, _warnings(held, thresholds, rule, target, "validation"))


def read_off(
    labels: Labels,
    scores: Num[np.ndarray, "n"],
    *,
    rule: Rule,
    target: float = 0.95,
    folds: Shaped[np.ndarray, "n"] | None = None,
    patients: Patients | None = None,
) -> Operating:
    """A threshold read off the ROC curve of the test rows themselves, one for all folds; labelled so.

    Args:
      labels: of the test rows, 0 or 1, shape `(n,)`.
      scores: of the test rows, shape `(n,)`.
      rule, target: as in `carried_over`.
      folds: fold of each test row, shape `(n,)`; all get the same threshold, that of the pooled curve.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.

    Raises:
      ValueError: rows of one class only.

    Example:
      >>> read_off(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.8]), rule="youden").origin
      'read off the test ROC (at the largest Youden index)'
    """
    positive = both_classes(labels, "a threshold")
    scores = check_scores(scores, len(positive))
    point = _point(positive.astype(int), scores, rule, target)
    thresholds = dict.fromkeys(_names(folds), point.threshold)
    optimistic = (
        "the threshold was read off the test ROC: figures at it are optimistic, because the cases that are judged "
        "chose it."
    )
    held = _held(None, positive, scores, patient_codes(patients, len(positive)), point, rule)
    few = _warnings(held, {None: point.threshold}, rule, target, "test")
    return Operating("read off", f"{ORIGINS['read off']} ({_rule_text(rule, target)})", thresholds, (optimistic, *few))


def decide(
    operating: Operating, scores: Num[np.ndarray, "n"], folds: Shaped[np.ndarray, "n"] | None = None
) -> Bool[np.ndarray, "n"]:
    """Which rows are called positive: those at or above the threshold of their fold.

    Args:
      operating: the thresholds.
      scores: shape `(n,)`.
      folds: fold of each row, shape `(n,)`; None without folds.

    Raises:
      ValueError: a fold without a threshold, or folds on one side only.

    Example:
      >>> decide(given(0.5), np.array([0.4, 0.5])).tolist()
      [False, True]
    """
    lacking = [fold for fold in _names(folds) if fold not in operating.thresholds]
    if lacking:
        known = listed("rows without folds" if fold is None else f"fold {fold}" for fold in operating.thresholds)
        wanted = "rows without folds" if lacking == [None] else f"fold {listed(lacking)}"
        raise ValueError(f"no threshold for {wanted}; there is one for {known}.")
    if folds is None:
        return np.asarray(scores) >= operating.thresholds[None]
    return np.asarray(scores) >= _per_row(operating, folds)


class _Held(NamedTuple):
    """How well the rows that chose a threshold know the share that it holds."""

    fold: Hashable
    inside: int
    rows: int
    low: float
    high: float


def _held(
    fold: Hashable,
    positive: Bool[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    patient: np.ndarray,
    point: OperatingPoint,
    rule: Rule,
) -> list[_Held]:
    """Nothing for Youden's index, which holds no share."""
    if rule == "youden":
        return []
    kind = positive if rule == "sensitivity" else ~positive
    inside = (scores >= point.threshold)[kind] == (rule == "sensitivity")
    share = clustered_proportion(inside, patient[kind])
    return [_Held(fold, int(inside.sum()), len(inside), share.low, share.high)]


def _warnings(
    held: Sequence[_Held], thresholds: dict[Hashable, float], rule: Rule, target: float, part: str
) -> tuple[str, ...]:
    found = []
    few = [fold for fold in held if fold.rows - fold.inside < FEW_BEYOND]
    if few:
        # A single patient has an interval of NaN: nothing is known.
        worst = max(few, key=lambda fold: math.inf if math.isnan(fold.low) else fold.high - fold.low)
        kind, side, other = (
            ("positives", "at or above", "below") if rule == "sensitivity" else ("negatives", "below", "at or above")
        )
        known = f"95 % interval {100 * worst.low:.1f} to {100 * worst.high:.1f} %"
        if math.isnan(worst.low):
            known = "all of one patient: no interval"
        where = "" if worst.fold is None else f" in {len(few)} of {counted(len(held), 'fold')}; in fold {worst.fold}"
        found.append(
            f"few {part} cases for a {rule} of {100 * target:g} %{where}: {worst.inside} of {worst.rows} {kind} lie "
            f"{side} the threshold ({known}), and {worst.rows - worst.inside} {other} it; with fewer than {FEW_BEYOND} "
            f"there, the {rule} that the threshold will hold is not known well."
        )
    never = [fold for fold, threshold in thresholds.items() if math.isinf(threshold)]
    if never:
        place = "" if never == [None] else f" in fold {listed(never)}"
        found.append(
            f"no threshold{place} reaches a specificity of {100 * target:g} % on the {part} rows but one above every "
            "score: no case is called positive."
        )
    return tuple(found)


def _point(labels: Labels, scores: Float[np.ndarray, "n"], rule: Rule, target: float) -> OperatingPoint:
    if rule == "sensitivity":
        return specificity_at_sensitivity(labels, scores, target)
    if rule == "specificity":
        return sensitivity_at_specificity(labels, scores, target)
    if rule == "youden":
        return youden_point(labels, scores)
    raise ValueError(f"rule: {rule!r}; expected 'sensitivity', 'specificity' or 'youden'.")


def _rule_text(rule: Rule, target: float) -> str:
    return "at the largest Youden index" if rule == "youden" else f"at {100 * target:g} % {rule}"


def _names(folds: Shaped[np.ndarray, "n"] | None) -> list[Hashable]:
    return [None] if folds is None else np.unique(np.asarray(folds)).tolist()


def _per_row(operating: Operating, folds: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    names, codes = np.unique(np.asarray(folds), return_inverse=True)
    return np.array([operating.thresholds[name] for name in names.tolist()])[codes]
