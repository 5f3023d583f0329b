"""Settings are chosen inside the training patients, with one budget for all."""

import dataclasses
import json

import numpy as np
import pytest

from fusion_jax.data import k_fold
from fusion_jax.models.comparison import plan
from fusion_jax.models.export import export_run
from fusion_jax.models.prediction import predict_cohort
from fusion_jax.models.registry import load_recipe, make_recipe
from fusion_jax.models.task import run_split
from fusion_jax.training.keys import run_key
from fusion_jax.training.scalars import DivergedError
from fusion_jax.training.tuning import read_choice

STRENGTHS = {
    "weak": {"recipe": "logistic-regression", "arguments": {"strength": 1.0}},
    "blind": {"recipe": "logistic-regression", "arguments": {"strength": 1e-9}},
}


def tuned(candidates=STRENGTHS, **others):
    return make_recipe("tuned", {"candidates": candidates, "folds": 2, **others})


def test_the_candidate_that_ranks_patients_left_out_best_is_trained_on_all(make_tiny, tmp_path):
    cohort = make_tiny(40, seed=1).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    run_split(tuned(choose_by="loss"), cohort, split, seed=0, folder=tmp_path, model="chosen")
    choice = read_choice(tmp_path / "choice.json")
    means = {name: np.mean(values) for name, values in choice.scores.items()}
    assert choice.winner == min(means, key=means.get)
    assert json.loads((tmp_path / "recipe.json").read_text())["facts"]["choice"]["winner"] == choice.winner
    rows = split.rows(cohort).test
    found = load_recipe(tmp_path).predict(tmp_path, cohort, rows)
    alone = make_recipe("logistic-regression", STRENGTHS[choice.winner]["arguments"])
    seen = cohort.take(np.sort(split.rows(cohort).train))
    alone.fit(seen, split._replace(test=()), run_key(0), tmp_path / "alone")
    np.testing.assert_allclose(found, alone.predict(tmp_path / "alone", cohort, rows), atol=1e-12)


def test_inner_trainings_see_none_of_the_patients_that_judge_them(make_tiny, tmp_path, monkeypatch):
    cohort = make_tiny(40, seed=2).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    from fusion_jax.models.classical import ClassicalRecipe

    seen, judged, fit, predict = [], [], ClassicalRecipe.fit, ClassicalRecipe.predict

    def watched_fit(self, cohort, split, *others, **named):
        seen.append(set(cohort.case_id))
        return fit(self, cohort, split, *others, **named)

    def watched_predict(self, folder, cohort, rows):
        judged.append({cohort.case_id[int(row)] for row in rows})
        return predict(self, folder, cohort, rows)

    monkeypatch.setattr(ClassicalRecipe, "fit", watched_fit)
    monkeypatch.setattr(ClassicalRecipe, "predict", watched_predict)
    part = cohort.take(np.sort(split.rows(cohort).train))
    tuned().fit(part, split._replace(test=()), run_key(0), tmp_path)
    assert len(seen) == 2 * 2 + 1
    assert len(judged) == 2 * 2
    for trained, others in zip(seen, judged, strict=False):
        assert trained | others == set(split.train)
        assert not trained & others
    assert seen[-1] == set(split.train)


def test_inner_trainings_that_ended_are_not_repeated(make_tiny, tmp_path, monkeypatch):
    cohort = make_tiny(40).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]._replace(test=())
    part = cohort.take(np.sort(split.rows(cohort).train))
    tuned().fit(part, split, run_key(0), tmp_path)
    from fusion_jax.models.classical import ClassicalRecipe

    fits, fit = [], ClassicalRecipe.fit
    monkeypatch.setattr(ClassicalRecipe, "fit", lambda self, *a, **k: fits.append(self.name) or fit(self, *a, **k))
    tuned().fit(part, split, run_key(0), tmp_path)
    assert len(fits) == 1


def test_a_candidate_without_a_number_cannot_win_also_after_a_restart(make_tiny, tmp_path, monkeypatch):
    cohort = make_tiny(40).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]._replace(test=())
    part = cohort.take(np.sort(split.rows(cohort).train))
    from fusion_jax.models.classical import ClassicalRecipe

    fits, fit = [], ClassicalRecipe.fit

    def diverging(self, cohort, split, key, folder, **others):
        fits.append(folder)
        if self.strength == 1.0:
            raise DivergedError("the loss is not finite", 0, 3, ("P001",))
        return fit(self, cohort, split, key, folder, **others)

    monkeypatch.setattr(ClassicalRecipe, "fit", diverging)
    for trainings in (2 * 2 + 1, 1):
        fits.clear()
        tuned().fit(part, split, run_key(0), tmp_path)
        assert len(fits) == trainings
        choice = read_choice(tmp_path / "choice.json")
        assert (choice.winner, choice.scores["weak"]) == ("blind", (None, None))


def test_trials_stay_in_the_folder_whatever_a_candidate_is_called(make_tiny, tmp_path):
    cohort = make_tiny(40).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]._replace(test=())
    part = cohort.take(np.sort(split.rows(cohort).train))
    strange = dict(zip(("../[L,L]", "a/b"), STRENGTHS.values(), strict=True))
    tuned(strange).fit(part, split, run_key(0), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    trials = list((tmp_path / "run" / "trials").iterdir())
    assert len(trials) == len(strange)
    assert not any(set("[]*?") & set(path.name) for path in trials)


def test_cases_of_its_training_are_known_to_predictions(make_tiny, tmp_path):
    cohort = make_tiny(40).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    run_split(tuned(), cohort, split, seed=0, folder=tmp_path, model="chosen")
    assert set(predict_cohort([tmp_path], cohort).known) == set(split.train)


def test_an_export_of_a_tuned_run_is_of_what_was_chosen(make_tiny, tmp_path):
    cohort = make_tiny(24).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    small = {"recipe": "clinical-only", "arguments": {"features": 4, "epochs": 1}}
    run_split(tuned({"small": small}), cohort, split, seed=0, folder=tmp_path / "run", model="chosen")
    export_run(tmp_path / "run", tmp_path / "out")
    found = predict_cohort([tmp_path / "out"], cohort).rows
    assert [row["score"] for row in found] == [row["score"] for row in predict_cohort([tmp_path / "run"], cohort).rows]


def test_candidates_that_predict_something_else_are_refused_before_any_training(make_tiny, tmp_path):
    survival = make_tiny(survival=True).cohort
    label = make_tiny().cohort
    both = dataclasses.replace(
        survival,
        table=survival.table.assign(label=label.table["label"].array),
        roles={**survival.roles, "label": "label"},
    )
    recipe = tuned({"risk": {"recipe": "cox"}, **STRENGTHS})
    with pytest.raises(ValueError, match="candidate 'risk' predicts the survival, the others the label"):
        recipe.target(both)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "no candidates; expected names with a recipe each"),
        ({"a": {"recipe": "tuned"}}, "candidate 'a' is tuned itself"),
        ({"a": {"name": "cox"}}, "candidate 'a' has the keys name"),
        ({"a": {"recipe": "forest"}}, "no recipe 'forest'; did you mean 'random-forest'"),
    ],
)
def test_candidates_that_cannot_be_are_refused(candidates, message):
    with pytest.raises(ValueError, match=message):
        tuned(candidates)


def test_a_comparison_gives_every_network_the_same_number_of_tries(tmp_path):
    two = {"small": {"recipe": "clinical-only"}, "wide": {"recipe": "clinical-only", "arguments": {"features": 64}}}
    models = {"chosen": {"recipe": "tuned", "arguments": {"candidates": two}}, "clinical-only": "clinical-only"}
    with pytest.raises(ValueError, match="chosen: 2, clinical-only: 1"):
        plan("hcc_survival", models, out=tmp_path, folds=3)
    del models["clinical-only"]
    made = plan("hcc_survival", models, out=tmp_path, folds=3, settings={"epochs": 4})
    candidates = made.choices["chosen"].arguments["candidates"]
    assert candidates["small"]["arguments"] == {"epochs": 4}
    assert candidates["wide"]["arguments"] == {"epochs": 4, "features": 64}
