"""Panels hold every training of every model for the same rows; views give each row one score."""

import numpy as np
import pandas as pd
import pytest

from fusion_jax.evaluation.panel import make_panel
from fusion_jax.records.predictions import check_predictions


def predictions(frame, **options):
    return check_predictions(frame if isinstance(frame, dict) else {"p.csv": frame}, **options)


def rows(**columns):
    return pd.DataFrame(columns)


def repeated(order=("a", "b", "c", "d")):
    """Two repeats of four cases, the second in another order and with other folds."""
    first = rows(case_id=list("abcd"), label=[0, 1, 0, 1], score=[0.1, 0.9, 0.3, 0.7], repeat=0, fold=[0, 0, 1, 1])
    second = rows(case_id=list("dcba"), label=[1, 0, 1, 0], score=[0.5, 0.5, 0.7, 0.3], repeat=1, fold=[0, 0, 1, 1])
    return pd.concat([first, second]).assign(model="CNN")


def test_repeats_do_not_add_rows_and_are_aligned_by_case():
    panel = make_panel(predictions(repeated()))
    assert len(panel) == 4
    assert [run.name for run in panel.runs["CNN"]] == ["repeat 0", "repeat 1"]
    np.testing.assert_array_equal(panel.runs["CNN"][1].scores, [0.3, 0.7, 0.5, 0.5])


def test_an_ensemble_is_the_mean_score_and_is_labelled_so():
    view = make_panel(predictions(repeated())).ensemble()
    np.testing.assert_allclose(view.scores, [[0.2, 0.8, 0.4, 0.6]])
    assert view.name == "ensemble of 2 trainings"
    assert view.folds is None  # the two repeats have different partitions


def test_each_training_is_a_view_of_its_own_with_its_folds():
    views = make_panel(predictions(repeated())).each()
    assert [view.name for view in views] == ["repeat 0", "repeat 1"]
    np.testing.assert_array_equal(views[1].folds, [1, 1, 0, 0])


def test_a_model_trained_once_stands_in_every_view():
    once = rows(case_id=list("abcd"), label=[0, 1, 0, 1], score=[0.4, 0.6, 0.4, 0.6], model="forest", repeat=0, fold=0)
    panel = make_panel(predictions(pd.concat([repeated(), once])))
    assert [view.scores[1].tolist() for view in panel.each()] == [[0.4, 0.6, 0.4, 0.6]] * 2


def test_trainings_that_differ_between_models_are_not_compared_one_by_one():
    other = repeated().assign(model="MLP")
    other["repeat"] += 1
    panel = make_panel(predictions(pd.concat([repeated(), other])))
    with pytest.raises(ValueError, match="--trainings ensemble"):
        panel.each()


def slices():
    return rows(
        case_id=["a", "a", "b", "b", "c"],
        patient_id=["p", "p", "p", "p", "q"],
        instance=["1", "2", "1", "2", "1"],
        model="CNN",
        label=[0, 0, 1, 1, 0],
        score=[0.2, 0.6, 0.6, 0.8, 0.4],
    )


@pytest.mark.parametrize(
    ("level", "aggregate", "scores", "labels"),
    [
        ("case", "mean", [0.4, 0.7, 0.4], [0, 1, 0]),
        ("case", "max", [0.6, 0.8, 0.4], [0, 1, 0]),
        ("case", "vote", [0.5, 1.0, 0.0], [0, 1, 0]),
        ("patient", "mean", [0.55, 0.4], [1, 0]),
        ("instance", "mean", [0.2, 0.6, 0.6, 0.8, 0.4], [0, 0, 1, 1, 0]),
    ],
)
def test_levels_aggregate_slices_and_breasts(level, aggregate, scores, labels):
    panel = make_panel(predictions(slices()), level=level, aggregate=aggregate)
    np.testing.assert_allclose(panel.runs["CNN"][0].scores, scores)
    assert panel.labels.tolist() == labels
    assert panel.clustered == (level != "patient")
    assert panel.patient_count == 2


def test_identical_slices_score_as_the_slice():
    frame = slices().assign(score=[0.3, 0.3, 0.7, 0.7, 0.4])
    for aggregate in ("mean", "max"):
        panel = make_panel(predictions(frame), aggregate=aggregate)
        np.testing.assert_allclose(panel.runs["CNN"][0].scores, [0.3, 0.7, 0.4])


def test_instances_without_patients_are_clustered_by_case():
    panel = make_panel(predictions(slices().drop(columns="patient_id")), level="instance")
    assert panel.patients.tolist() == ["a", "a", "b", "b", "c"]
    assert any("clustered by case" in note for note in panel.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": "patient"}, "needs a column 'patient_id'"), ({"level": "instance"}, "needs a column 'instance'")],
)
def test_levels_need_their_column(options, message):
    with pytest.raises(ValueError, match=message):
        make_panel(predictions(repeated()), **options)


def test_votes_need_probabilities():
    with pytest.raises(ValueError, match="some scores are no probabilities"):
        make_panel(predictions(slices().assign(score=[1.0, 2.0, 3.0, 4.0, 5.0])), aggregate="vote")


def with_validation(seeds=(0, 1), shift=0):
    parts = []
    for seed in seeds:
        test = rows(
            case_id=list("abcd"), label=[0, 1, 0, 1], score=np.array([0.1, 0.8, 0.3, 0.6]) + 0.1 * seed, split="test"
        )
        tuned = rows(
            case_id=[f"v{i}{'x' * shift * seed}" for i in range(3)], label=[0, 1, 1], score=[0.2, 0.4, 0.6], split="val"
        )
        parts.append(pd.concat([test, tuned]).assign(seed=seed, model="CNN", fold=0))
    return pd.concat(parts)


def test_validation_rows_are_averaged_where_the_trainings_share_them():
    view = make_panel(predictions(with_validation())).ensemble()
    np.testing.assert_allclose(view.validation["CNN"].scores, [0.2, 0.4, 0.6])
    assert view.refused == ""


def test_validation_rows_that_differ_give_no_threshold_for_an_ensemble_and_say_why():
    panel = make_panel(predictions(with_validation(shift=1)))
    view = panel.ensemble()
    assert view.validation["CNN"] is None
    assert "--trainings each" in view.refused
    assert panel.each()[1].validation["CNN"].units.tolist() == ["v0x", "v1x", "v2x"]


def test_trainings_of_different_partitions_share_no_threshold_though_they_share_validation_rows():
    frame = with_validation().reset_index(drop=True)
    frame.loc[(frame["case_id"] == "d") & (frame["seed"] == 1), "fold"] = 1
    view = make_panel(predictions(frame)).ensemble()
    assert view.validation["CNN"] is None
    assert "--trainings each" in view.refused


def test_cases_in_several_folds_of_one_training_are_averaged():
    twice = rows(case_id=list("abab"), label=[0, 1, 0, 1], score=[0.1, 0.6, 0.3, 0.8], fold=[0, 0, 1, 1], model="CNN")
    panel = make_panel(predictions(twice))
    np.testing.assert_allclose(panel.runs["CNN"][0].scores, [0.2, 0.7])
    assert panel.runs["CNN"][0].folds is None
    assert any("several folds" in note for note in panel.notes)


def folded(model, fold, scale=1.0):
    """Test rows of two folds, each validated on the test rows of the other."""
    cases, labels = np.array(list("abcdefgh")), np.arange(8) % 2
    parts = []
    for number in (0, 1):
        for split, rows in (("test", fold == number), ("val", fold != number)):
            scores = scale * (labels + np.arange(8) / 10)[rows]
            parts.append(rows_of(cases[rows], labels[rows], scores).assign(split=split, fold=number, model=model))
    return pd.concat(parts)


def rows_of(cases, labels, scores):
    return rows(case_id=cases, label=labels, score=scores)


def test_folds_that_models_do_not_share_give_no_threshold_because_validation_rows_are_judged():
    fold = np.arange(8) // 2 % 2
    same = make_panel(predictions(pd.concat([folded("A", fold), folded("B", fold)])))
    assert same.ensemble().validation["A"] is not None
    other = make_panel(predictions(pd.concat([folded("A", fold), folded("B", np.arange(8) // 4)])))
    for view in (other.ensemble(), *other.each()):
        assert view.folds is None
        assert view.validation == {"A": None, "B": None}
        assert "seen cases it is judged by" in view.refused


def test_cases_that_several_folds_tested_get_no_threshold_of_one_of_them():
    test = rows(case_id=list("abab"), label=[0, 1, 0, 1], score=[0.1, 0.6, 0.3, 0.8], fold=[0, 0, 1, 1], split="test")
    tuned = rows(case_id=list("vwxy"), label=[0, 1, 0, 1], score=[0.2, 0.7, 0.1, 0.9], fold=[0, 0, 1, 1], split="val")
    panel = make_panel(predictions(pd.concat([test, tuned]).assign(model="CNN")))
    assert panel.runs["CNN"][0].validation.folds.tolist() == [0, 0, 1, 1]
    assert panel.ensemble().validation["CNN"] is None
    assert any("that ensemble" in note for note in panel.notes)


def test_a_model_without_folds_stands_beside_one_with_folds():
    with_folds = pd.concat([slices().assign(fold=[0, 0, 0, 0, 1]), slices().assign(model="clinical")])
    frame = predictions({"a": with_folds[:5], "b": with_folds[5:].drop(columns="fold")})
    panel = make_panel(frame)
    assert panel.runs["CNN"][0].folds.tolist() == [0, 0, 1]
    assert panel.runs["clinical"][0].folds is None
    np.testing.assert_allclose(panel.runs["clinical"][0].scores, [0.4, 0.7, 0.4])


def test_ensembles_of_different_sizes_are_named_so():
    once = rows(case_id=list("abcd"), label=[0, 1, 0, 1], score=[0.4, 0.6, 0.4, 0.6], model="forest", repeat=0, fold=0)
    assert make_panel(predictions(pd.concat([repeated(), once]))).ensemble().name == "ensemble of up to 2 trainings"


def test_patients_whose_cases_have_different_follow_up_are_refused():
    followed = slices().assign(time=[2.0, 2.0, 5.0, 5.0, 3.0], event=[0, 0, 1, 1, 0])
    with pytest.raises(ValueError, match="patient 'p' has cases with different times"):
        make_panel(predictions(followed), level="patient")


def test_rows_can_be_taken():
    panel = make_panel(predictions(slices()), level="case").take(np.array([True, False, True]))
    assert panel.units.tolist() == ["a", "c"]
    assert panel.runs["CNN"][0].scores.shape == (2,)
