"""Thresholds say where they come from, what they rest on, and are refused where they would have to be made up."""

import math

import numpy as np
import pytest

from fusion_jax.evaluation.classification import confusion_counts, sensitivity, specificity
from fusion_jax.evaluation.proportions import wilson_interval
from fusion_jax.evaluation.thresholds import carried_over, decide, given, read_off


def rows(n, seed=0, shift=1.5, share=0.4):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(int)
    return labels, rng.normal(size=n) + shift * labels


def test_a_fold_gets_the_threshold_of_its_own_validation_rows():
    labels, scores = rows(400)
    folds = np.arange(400) % 4
    operating = carried_over(labels, scores + 10 * folds, rule="sensitivity", validation_folds=folds, folds=folds)
    assert operating.kind == "carried over"
    assert operating.origin == "carried over from validation rows (at 95 % sensitivity)"
    assert list(operating.thresholds) == [0, 1, 2, 3]
    for fold in range(4):
        own = folds == fold
        alone = carried_over(labels[own], scores[own] + 10.0 * fold, rule="sensitivity")
        assert operating.thresholds[fold] == alone.thresholds[None]
    decided = decide(operating, scores + 10 * folds, folds)
    assert sensitivity(confusion_counts(labels, decided)) >= 0.95


@pytest.mark.parametrize(("rule", "held"), [("sensitivity", sensitivity), ("specificity", specificity)])
def test_the_target_is_held_on_the_validation_rows(rule, held):
    labels, scores = rows(2000)
    operating = carried_over(labels, scores, rule=rule, target=0.9)
    counts = confusion_counts(labels, decide(operating, scores))
    assert 0.9 <= held(counts) < 0.91
    assert operating.warnings == ()  # 80 of 800 and 120 of 1,200 lie beyond it


def test_other_thresholds_say_what_they_are():
    assert given(0.25, np.array(["b", "a"])).thresholds == {"a": 0.25, "b": 0.25}
    assert given(0.25).origin == "given (0.25)"
    labels, scores = rows(2000)
    read = read_off(labels, scores, rule="specificity", target=0.9)
    assert read.kind == "read off"
    assert read.origin == "read off the test ROC (at 90 % specificity)"
    assert len(read.warnings) == 1
    assert "optimistic" in read.warnings[0]
    folds = np.arange(2000) % 3
    assert set(read_off(labels, scores, rule="youden", folds=folds).thresholds) == {0, 1, 2}


def test_few_positives_are_warned_of_with_the_interval_of_what_they_hold():
    labels = np.repeat([1, 0], [40, 60])
    scores = np.concatenate([np.arange(40), np.arange(60) - 30]).astype(float)
    operating = carried_over(labels, scores, rule="sensitivity")
    [warning] = operating.warnings
    low, high = wilson_interval(38, 40)[:2]
    assert "few validation cases for a sensitivity of 95 %: 38 of 40 positives" in warning
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in warning
    [_, test_warning] = read_off(labels, scores, rule="sensitivity").warnings
    assert "few test cases for a sensitivity" in test_warning
    mirrored = carried_over(1 - labels, -scores, rule="specificity")
    assert "38 of 40 negatives lie below the threshold" in mirrored.warnings[0]
    assert carried_over(labels, scores, rule="youden").warnings == ()


def test_of_several_folds_the_least_known_is_named():
    labels = np.tile([0, 1], 1000)
    folds = np.where(np.arange(2000) < 60, 1, np.where(np.arange(2000) < 200, 2, 3))
    scores = np.random.default_rng(0).normal(size=2000) + labels
    [warning] = carried_over(labels, scores, rule="sensitivity", validation_folds=folds, folds=folds).warnings
    assert "in 2 of 3 folds; in fold 1: 29 of 30 positives" in warning


def test_rows_of_one_patient_hold_less_than_rows_of_many():
    labels, scores = np.repeat([1, 0], [40, 40]), np.arange(80.0)
    scores[:40] += 50
    patients = np.concatenate([np.repeat(np.arange(4), 10), np.arange(40) + 4])
    alone = carried_over(labels, scores, rule="sensitivity").warnings[0]
    together = carried_over(labels, scores, rule="sensitivity", validation_patients=patients).warnings[0]
    assert alone != together
    one = carried_over(labels, scores, rule="sensitivity", validation_patients=np.where(labels == 1, 0, patients))
    assert "all of one patient: no interval" in one.warnings[0]


def test_a_specificity_that_no_score_reaches_calls_nobody_positive_and_says_so():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.9, 0.5, 0.1, 0.2])
    operating = carried_over(labels, scores, rule="specificity", target=1.0)
    assert math.isinf(operating.thresholds[None])
    assert "no case is called positive" in operating.warnings[-1]
    assert not decide(operating, scores).any()


FOLDS = np.array([0, 0, 1, 1])
LABELS, SCORES = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: carried_over(None, None, rule="youden"), "no validation rows: .*split = validation.*optimistic"),
        (lambda: carried_over(LABELS[:0], SCORES[:0], rule="youden"), "no validation rows: "),
        (
            lambda: carried_over(LABELS, SCORES, rule="youden", validation_folds=FOLDS, folds=np.array([0, 1, 2])),
            "no validation rows in fold 2, which has test rows",
        ),
        (
            lambda: carried_over(FOLDS, SCORES, rule="youden", validation_folds=FOLDS, folds=FOLDS),
            "fold 0, validation rows: labels: only class 0 occurs in 2 rows; a threshold needs both",
        ),
        (
            lambda: carried_over(LABELS, SCORES, rule="youden", folds=FOLDS),
            "the test rows have folds and the validation rows have none",
        ),
        (
            lambda: carried_over(LABELS, SCORES, rule="youden", validation_folds=FOLDS),
            "the validation rows have folds and the test rows have none",
        ),
        (lambda: carried_over(LABELS, SCORES, rule="recall"), "rule: 'recall'; expected 'sensitivity', 'specificity'"),
        (lambda: carried_over(LABELS, SCORES, rule="sensitivity", target=95), "a sensitivity of 95 is to be reached"),
        (lambda: read_off(np.zeros(3, int), np.arange(3), rule="youden"), "only class 0 occurs in 3 rows"),
        (lambda: given(math.nan), "threshold: nan; expected a finite number"),
        (
            lambda: decide(given(0.5, FOLDS), SCORES[:3], np.array([0, 1, 2])),
            "no threshold for fold 2; there is one for",
        ),
        (
            lambda: decide(given(0.5, FOLDS), SCORES),
            "no threshold for rows without folds; there is one for fold 0, fold 1",
        ),
        (lambda: decide(given(0.5), SCORES, FOLDS), "no threshold for fold 0, 1; there is one for rows without folds"),
    ],
)
def test_what_would_have_to_be_made_up_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
