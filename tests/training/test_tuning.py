"""Settings are chosen inside the training patients, with one budget for all models."""

import json

import numpy as np
import pytest

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import k_fold, nested
from fusion_jax.training.tuning import (
    Choice,
    check_budget,
    inner_folds,
    nested_choice,
    read_choice,
    winners,
    write_choice,
)

CANDIDATES = {"C = 0.01": 0.01, "C = 1": 1.0, "C = 100": 100.0}


@pytest.fixture(scope="module")
def cohort():
    """60 patients with two cases each."""
    return Cohort.from_arrays(
        {"clinical": np.zeros((120, 1))},
        label=np.repeat(np.arange(60) % 2, 2),
        case_id=[f"c{row}" for row in range(120)],
        patient_id=np.repeat([f"p{number}" for number in range(60)], 2),
    )


@pytest.fixture(scope="module")
def split(cohort):
    return k_fold(cohort, 4, seed=0, repeats=2, validation=0.2).splits[5]


def test_no_test_case_is_ever_touched_and_patients_stay_together(cohort, split):
    touched, patient = set(), dict(zip(cohort.case_id, cohort.patient_id, strict=True))

    def score(settings, inner):
        touched.update(inner.train, inner.validation)
        assert not {patient[case] for case in inner.train} & {patient[case] for case in inner.validation}
        return 0.5

    nested_choice(cohort, split, CANDIDATES, score, model="add", seed=0)
    assert touched == {*split.train, *split.validation}
    assert not touched & set(split.test)


def test_every_candidate_is_judged_on_the_same_folds_once(cohort, split):
    calls = []
    choice = nested_choice(
        cohort, split, CANDIDATES, lambda c, inner: calls.append((c, inner)) or 0.0, model="add", folds=3, seed=0
    )
    assert [c for c, _ in calls] == [0.01] * 3 + [1.0] * 3 + [100.0] * 3
    assert calls[0][1] == calls[3][1] == calls[6][1]
    assert sorted(case for _, inner in calls[:3] for case in inner.validation) == sorted(split.train + split.validation)
    assert choice.trainings == 9
    # Another model of the same study is judged on these folds, too.
    assert inner_folds(cohort, split, 3, seed=0)[0] == calls[0][1]


def test_cohort_without_test_cases_draws_the_same_folds(cohort, split):
    rows = split.rows(cohort)
    part = cohort.take(np.sort(np.concatenate([rows.train, rows.validation])))
    assert inner_folds(part, split, seed=3) == inner_folds(cohort, split, seed=3)
    assert inner_folds(part, split, seed=3) != inner_folds(part, split, seed=4)


def test_inner_folds_of_nested_splits_are_taken(cohort):
    split = nested(cohort, 3, 4, seed=0).splits[1]
    assert inner_folds(cohort, split, 2, seed=9) == split.inner


@pytest.mark.parametrize(("mode", "winner"), [("max", "C = 1"), ("min", "C = 0.01")])
def test_the_best_mean_wins(cohort, split, mode, winner):
    means = {0.01: 0.6, 1.0: 0.8, 100.0: 0.7}
    choice = nested_choice(
        cohort, split, CANDIDATES, lambda c, inner: means[c] + 0.1 * inner.fold, model="add", seed=0, mode=mode
    )
    assert choice.winner == winner
    assert choice.scores["C = 1"] == pytest.approx((0.8, 0.9, 1.0, 1.1, 1.2))


def test_the_first_of_equals_wins(cohort, split):
    assert nested_choice(cohort, split, CANDIDATES, lambda *_: 0.5, model="add", seed=0).winner == "C = 0.01"


def test_candidate_without_a_number_cannot_win(cohort, split):
    def score(c, inner):
        return np.nan if c == 1.0 and inner.fold == 2 else c

    choice = nested_choice(cohort, split, {"a": 0.1, "b": 1.0}, score, model="add", seed=0)
    assert choice.winner == "a"
    assert choice.scores["b"] == (1.0, 1.0, None, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"add, repeat 1, fold 1: none of 2 candidates has a score in every one of 5"):
        nested_choice(cohort, split, {"b": 1.0, "c": 1.0}, score, model="add", seed=0)


def test_single_candidate_costs_nothing(cohort, split):
    def score(*_):
        raise AssertionError

    choice = nested_choice(cohort, split, {"only": 1}, score, model="add", seed=0)
    assert choice == Choice("add", 1, 1, "only", {"only": ()})
    assert choice.trainings == 0


def test_choices_are_recorded_and_counted(cohort, split, tmp_path):
    choice = nested_choice(cohort, split, CANDIDATES, lambda c, inner: -abs(c - 1), model="add", seed=0)
    write_choice(tmp_path / "choice.json", choice)
    assert read_choice(tmp_path / "choice.json") == choice
    assert json.loads((tmp_path / "choice.json").read_text())["winner"] == "C = 1"
    other = choice._replace(fold=2, winner="C = 100")
    assert winners([choice, other, choice._replace(fold=3)]) == {"add": {"C = 1": 2, "C = 100": 1}}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json: no file of a choice"):
        read_choice(tmp_path / "other.json")


def test_unequal_budgets_are_refused(cohort, split):
    with pytest.raises(ValueError, match=r"different numbers of candidate settings \(add: 2, gated: 1\)"):
        check_budget({"add": {"a": 0, "b": 0}, "gated": {"a": 0}})
    with pytest.raises(ValueError, match="no candidate settings of gated"):
        check_budget({"add": {"a": 0}, "gated": {}})
    with pytest.raises(ValueError, match="add: 2, gated: 3"):
        winners([Choice("add", 0, 0, "a", {"a": (), "b": ()}), Choice("gated", 0, 0, "a", {"a": (), "b": (), "c": ()})])
    with pytest.raises(ValueError, match="no candidate settings"):
        nested_choice(cohort, split, {}, lambda *_: 0.0, model="add", seed=0)


def test_inner_folds_that_hold_test_cases_are_refused(cohort):
    one, other = nested(cohort, 3, 4, seed=0).splits[:2]
    with pytest.raises(ValueError, match="cases of its test part"):
        nested_choice(cohort, one._replace(inner=other.inner), CANDIDATES, lambda *_: 0.0, model="add", seed=0)
