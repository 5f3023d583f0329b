"""Factors selected in the fold, patients that count once, and trees behind a LASSO."""

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from fusion_jax.data import Cohort, Columns
from fusion_jax.data.clinical import fit_columns
from fusion_jax.data.splits import Split
from fusion_jax.models import classical
from fusion_jax.models.registry import make_recipe
from fusion_jax.training.keys import run_key
from tests.helpers import assert_close

SELECTION = {"alpha": 0.05, "correction": "none"}
COLUMNS = [{"kind": "flag", "name": "a"}, {"kind": "flag", "name": "b"}, {"kind": "flag", "name": "c"}]


def slices(patients=60, seed=0):
    """One to four slices of every patient; factor a goes with the label in the first half, b in the second."""
    rng = np.random.default_rng([seed])
    label = np.arange(patients) % 2
    half = np.arange(patients) < patients // 2
    noise = rng.integers(0, 2, (3, patients))
    table = pd.DataFrame({"a": np.where(half, label, noise[0]), "b": np.where(half, noise[1], label), "c": noise[2]})
    count = rng.integers(1, 5, patients)
    whose = np.repeat(np.arange(patients), count)
    table = table.iloc[whose].reset_index(drop=True)
    vectors = rng.normal(size=(len(whose), 12))
    vectors[:, 3] += 2 * label[whose]
    return Cohort.from_arrays(
        {"clinical": Columns(("a", "b", "c"), len(whose)), "texture": vectors},
        table=table,
        roles=dict.fromkeys("abc", "input"),
        label=label[whose],
        patient_id=[f"P{number:02d}" for number in whose],
        name="slices",
    )


def halves(cohort):
    first = np.array([int(name[1:]) < 30 for name in cohort.patient_id])
    cases = np.array(cohort.case_id, dtype=object)
    return Split(0, 0, tuple(cases[first]), (), tuple(cases[~first])), Split(
        0, 1, tuple(cases[~first]), (), tuple(cases[first])
    )


def test_every_fold_selects_on_its_own_training_cases():
    cohort = slices()
    for split, chosen in zip(halves(cohort), ("a", "b"), strict=True):
        fitted = fit_columns(cohort, split.train, fold="f", columns=COLUMNS, selection={"alpha": 1e-4})
        assert fitted.names == (chosen,)


def test_labels_of_other_cases_do_not_change_the_selection():
    cohort = slices()
    split, _ = halves(cohort)
    label = cohort.label.copy()
    tested = split.rows(cohort).test
    label[tested] = 1 - label[tested]
    table = cohort.table.assign(label=label)
    changed = dataclasses.replace(cohort, table=table)
    assert not np.array_equal(changed.label, cohort.label)
    one, other = (
        fit_columns(each, split.train, fold="f", columns=COLUMNS, selection=SELECTION).to_json()
        for each in (cohort, changed)
    )
    assert one == other


def test_where_no_factor_passes_the_best_one_is_kept(caplog):
    cohort = slices()
    fitted = fit_columns(cohort, cohort.case_id, fold="f", columns=COLUMNS, selection={"alpha": 1e-30})
    assert len(fitted.names) == 1
    assert "no column has p < 1e-30" in caplog.text


def test_an_unknown_setting_of_the_selection_is_named():
    cohort = slices()
    with pytest.raises(ValueError, match="selection: no setting 'alfa'; did you mean 'alpha'"):
        fit_columns(cohort, cohort.case_id, fold="f", columns=COLUMNS, selection={"alfa": 0.1})


@pytest.mark.parametrize("name", ["random-forest", "logistic-regression"])
def test_recipes_read_what_their_fold_selects(name, tmp_path):
    cohort = slices().only("clinical")
    for number, (split, chosen) in enumerate(zip(halves(cohort), ("a", "b"), strict=True)):
        recipe = make_recipe(name, {"columns": COLUMNS, "selection": {"alpha": 1e-4}, "trees": 5, "strength": 1.0})
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe.fit(cohort, split, run_key(0), folder)
        assert json.loads((folder / "fitted.json").read_text())["all"]["outputs"] == [chosen]


def test_patients_count_once_whatever_their_slices(tmp_path):
    cohort = slices().only("clinical")
    split, _ = halves(cohort)
    recipe = make_recipe("random-forest", {"columns": COLUMNS, "unit": "patient", "trees": 7, "leaf": 1})
    recipe.fit(cohort, split, run_key(0), tmp_path)
    rows = split.rows(cohort)
    first = np.unique(cohort.patient_id[rows.train], return_index=True)[1]
    once = rows.train[first]
    with np.load(tmp_path / "training_rows.npz", allow_pickle=False) as stored:
        assert_close(stored["all_x"], cohort.table[["a", "b", "c"]].to_numpy(float)[once])
        assert stored["all_y"].tolist() == cohort.label[once].tolist()
    scores = recipe.predict(tmp_path, cohort, rows.test)[:, 1]
    assert len(scores) == len(rows.test)
    for patient in set(cohort.patient_id[rows.test]):
        assert len(set(scores[cohort.patient_id[rows.test] == patient])) == 1


def test_a_patient_with_two_outcomes_cannot_count_once(tmp_path):
    cohort = slices().only("clinical")
    split, _ = halves(cohort)
    twice = np.flatnonzero(cohort.patient_id == cohort.patient_id[split.rows(cohort).train[-1]])
    assert len(twice) > 1
    label = cohort.label.copy()
    label[twice[0]] = 1 - label[twice[0]]
    changed = dataclasses.replace(cohort, table=cohort.table.assign(label=label))
    with pytest.raises(ValueError, match=r"cases of patient P\d\d differ in the outcome"):
        make_recipe("random-forest", {"columns": COLUMNS, "unit": "patient"}).fit(changed, split, run_key(0), tmp_path)


def test_trees_behind_a_lasso_see_what_scikit_learns_lasso_keeps(tmp_path):
    cohort = slices().only("texture")
    roles = {column: role if role == "label" else "never" for column, role in cohort.roles.items()}
    cohort = dataclasses.replace(cohort, roles=roles)
    split, _ = halves(cohort)
    recipe = make_recipe("random-forest", {"screen": "lasso", "trees": 9, "leaf": 1})
    recipe.fit(cohort, split, run_key(0), tmp_path)
    fitted = json.loads((tmp_path / "fitted.json").read_text())["all"]["fitted"]
    rows = split.rows(cohort)
    x = np.stack([cohort.sources["texture"][row] for row in range(len(cohort))])
    mean, sd = x[rows.train].mean(axis=0), x[rows.train].std(axis=0, ddof=1)
    z, y = (x - mean) / sd, cohort.label
    lasso = LogisticRegression(C=fitted["strength"], l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=0)
    kept = np.flatnonzero(lasso.fit(z[rows.train], y[rows.train]).coef_[0])
    assert fitted["kept"] == kept.tolist()
    assert 3 in kept
    assert len(kept) < 12
    forest = RandomForestClassifier(9, min_samples_leaf=1, random_state=fitted["seed"])
    forest.fit(z[rows.train][:, kept], y[rows.train])
    assert_close(recipe.predict(tmp_path, cohort, rows.test), forest.predict_proba(z[rows.test][:, kept]))


def test_one_standard_error_takes_a_stronger_penalty_that_is_as_good(tmp_path):
    cohort = slices().only("texture")
    roles = {column: role if role == "label" else "never" for column, role in cohort.roles.items()}
    cohort = dataclasses.replace(cohort, roles=roles)
    split, _ = halves(cohort)
    found = {}
    for screen in ("lasso", "lasso-1se"):
        recipe: Any = make_recipe("random-forest", {"screen": screen, "trees": 2})
        recipe.fit(cohort, split, run_key(0), tmp_path / screen)
        found[screen] = json.loads((tmp_path / screen / "fitted.json").read_text())["all"]["fitted"]
    x, y = (np.load(tmp_path / "lasso" / "training_rows.npz")[name] for name in ("all_x", "all_y"))
    assert x.shape == (len(y), len(found["lasso"]["kept"]))
    assert found["lasso-1se"]["strength"] < found["lasso"]["strength"]
    assert len(found["lasso-1se"]["kept"]) <= len(found["lasso"]["kept"])
    assert 3 in found["lasso-1se"]["kept"]


def test_the_penalty_within_one_standard_error_by_hand(monkeypatch):
    losses = {0.001: (0.9, 0.9), 0.01: (0.61, 0.61), 0.1: (0.5, 0.7), 1.0: (0.45, 0.65), 10.0: (0.8, 0.8)}
    monkeypatch.setattr(classical, "_inner_folds", lambda *_: [("first", "a"), ("second", "b")])
    monkeypatch.setattr(classical, "_loss", lambda _r, c, _x, _y, train, _h: losses[c][train == "second"])
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    # The least mean is .55 with a standard error of .1: .61 is as good, .9 is not.
    for screen, expected in (("lasso", 1.0), ("lasso-1se", 0.01)):
        recipe: Any = make_recipe("random-forest", {"screen": screen})
        assert classical._best_strength(recipe, x, y, np.arange(4).astype(str), 0) == expected


def test_a_lasso_is_for_trees():
    with pytest.raises(ValueError, match="screen is 'lasso', which is for trees"):
        make_recipe("logistic-regression", {"screen": "lasso"})
