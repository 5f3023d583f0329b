"""Comparisons: what is planned, what variants of cases are, and what fold models are asked."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Cohort, Columns, cohort_address, load
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import is_network
from fusion_jax.models.comparison import Choice, compare, default_models, open_comparison, plan
from fusion_jax.models.fold_models import FoldModels, measure, source_groups, train_test_gaps
from fusion_jax.models.importance import comparison_importance
from fusion_jax.models.retraining import retraining_null
from fusion_jax.models.variants import variants

FOREST = {"recipe": "random-forest", "arguments": {"trees": 5}}
RIDGE = {"recipe": "logistic-regression", "arguments": {"strength": 0.1}}


def told_cohort(cases=60, seed=0):
    """A cohort in which `told` says the label and `noise` nothing; two cases a patient."""
    rng = np.random.default_rng(seed)
    label = np.arange(cases) // 2 % 2
    table = pd.DataFrame({"told": label + 0.3 * rng.normal(size=cases), "noise": rng.normal(size=cases // 2).repeat(2)})
    return Cohort.from_arrays(
        {"clinical": Columns(("told", "noise"), cases)},
        label=label,
        table=table,
        roles={"told": "input", "noise": "input"},
        patient_id=[f"p{row // 2}" for row in range(cases)],
        name="told",
    )


def told_in_time(cases=60):
    cohort = told_cohort(cases)
    table = cohort.table.assign(days=np.arange(cases) % 17 + 1.0, died=(np.arange(cases) % 3 > 0).astype(int))
    return dataclasses.replace(cohort, table=table, roles={**cohort.roles, "days": "time", "died": "event"})


HERE = {"function": f"{__name__}:told_cohort", "arguments": {}}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    protocol = Protocol(resamples=200, curves=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion_jax.models.comparison.open_address", lambda address: told_cohort())
        patch.setattr("fusion_jax.models.task.open_address", lambda address: told_cohort())
        out = tmp_path_factory.mktemp("told")
        return compare(HERE, {"forest": FOREST, "ridge": RIDGE}, out=out, folds=3, protocol=protocol)


def test_patients_stay_together_in_every_fold(told):
    for split in told.plan.splits.splits:
        parts = [{case_patient(told, case) for case in part} for part in (split.train, split.test)]
        assert not parts[0] & parts[1]


def case_patient(told, case):
    cohort = told.plan.cohort
    return cohort.patient_id[cohort.case_id.index(case)]


def test_fold_models_give_the_scores_of_the_predictions_table(told):
    for model in told.models:
        models = FoldModels(told, model)
        scores = models.scores(models.tested)
        table = pd.read_csv(told.folder / "predictions.csv").query("model == @model and split == 'test'")
        expected = table.set_index("case_id").loc[list(models.cohort.case_id), "score"]
        np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_importance_names_the_column_that_tells_the_label(told):
    found = comparison_importance(told, "ridge", repeats=5)
    by_name = dict(zip(found.names, found.median, strict=True))
    assert by_name["told"] > 0.3
    assert abs(by_name["noise"]) < 0.1
    # Without one column or without all of its source the model knows nothing.
    assert by_name["clinical"] > 0.3
    assert found.unit == "difference"


def test_what_was_chosen_among_networks_alone_is_a_network(told):
    net, mixed = {"small": {"recipe": "clinical-only"}}, {"small": {"recipe": "clinical-only"}, "forest": FOREST}
    choices = {
        "net": Choice("pet-only", {}),
        "tuned": Choice("tuned", {"candidates": net}),
        "mixed": Choice("tuned", {"candidates": mixed}),
        "forest": Choice("random-forest", {}),
    }
    made = dataclasses.replace(told, plan=dataclasses.replace(told.plan, choices=choices))
    assert [is_network(made, model) for model in choices] == [True, True, False, False]


def test_training_cases_are_scored_better_than_test_cases(told):
    gap = train_test_gaps(told, "forest")
    assert gap.train.shape == gap.test.shape == (3,)
    assert (gap.train >= gap.test).all()


def test_the_retraining_null_sees_that_the_source_helped(told):
    [found] = retraining_null(told, "ridge", permutations=19, minutes=5)
    assert found.null is not None
    assert found.null.p_value == 0.05
    assert found.null.gain > 0.2
    [found] = retraining_null(told, "ridge", permutations=10**9, minutes=5)
    assert found.null is None
    assert found.reason.startswith("about")


def test_a_comparison_is_read_from_its_folder(told, monkeypatch):
    monkeypatch.setattr("fusion_jax.models.comparison.open_address", lambda address: told_cohort())
    again = open_comparison(told.folder)
    assert again.models == told.models
    assert again.plan.protocol == told.plan.protocol
    monkeypatch.setattr("fusion_jax.models.comparison.open_address", lambda address: told_cohort(seed=1))
    with pytest.raises(ValueError, match=r"cohort told has changed since it was compared"):
        open_comparison(told.folder)
    with pytest.raises(FileNotFoundError, match=r"comparison.json: not there"):
        open_comparison(told.folder / "tasks")


def test_predictions_are_those_of_the_models_that_were_asked_for(told):
    stored = json.loads((told.folder / "comparison.json").read_text())
    assert stored["splits"] == told.plan.splits.hash
    assert list(stored["models"]) == ["forest", "ridge"]
    # Both read one source: there is nothing to beat, and no verdict.
    assert told.evaluation.benefits == ()


def test_variants_take_cells_and_images_from_other_rows():
    cohort = told_cohort(6).with_source("image", np.arange(6.0).reshape(6, 1, 1, 1))
    rows, donors = np.array([1, 1, 4]), np.array([0, 5, 2])
    found = variants(cohort, rows, columns={"noise": donors}, sources={"image": donors})
    assert found.case_id == ("case_1 #0", "case_1 #1", "case_4 #2")
    assert found.patient_id.tolist() == ["p0", "p0", "p2"]
    table = cohort.table
    assert found.table["noise"].tolist() == table["noise"].iloc[donors].tolist()
    assert found.table["told"].tolist() == table["told"].iloc[rows].tolist()
    assert [found.sources["image"][row].item() for row in range(3)] == [0.0, 5.0, 2.0]
    assert found.take(np.array([2, 1])).sources["image"][0].item() == 2.0
    assert variants(cohort, np.array([3, 0])).case_id == ("case_3", "case_0")


def test_a_source_of_columns_moves_as_a_whole_and_a_case_keeps_its_only_source():
    cohort = told_cohort(4)
    found = variants(cohort, np.arange(4), sources={"clinical": np.array([3, 2, 1, 0])})
    assert (
        found.table[["told", "noise"]].to_numpy().tolist() == cohort.table[["told", "noise"]][::-1].to_numpy().tolist()
    )
    both = cohort.with_source("image", np.zeros((4, 1, 1, 1)), np.array([True, True, False, True]))
    left = variants(both, np.arange(4), absent={"clinical": np.ones(4, bool)})
    assert left.present["clinical"].tolist() == [False, False, True, False]


def test_images_and_their_masks_are_exchanged_together():
    from fusion_jax.data import Arrays

    cohort = told_cohort(4).with_source("pet", np.zeros((4, 2, 2, 1)))
    cohort = cohort.with_source("mask", Arrays(np.zeros((4, 2, 2, 1), np.uint8), "mask"))
    assert source_groups(cohort, ("pet", "clinical")) == {"pet": ("pet",), "clinical": ("clinical",)}
    assert source_groups(cohort, ("pet", "mask", "clinical")) == {
        "pet + mask": ("pet", "mask"),
        "clinical": ("clinical",),
    }


def test_survival_is_measured_by_concordance():
    labels = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]])
    assert measure(labels, np.array([3.0, 2.0, 1.0])) == 1.0
    assert measure(labels, np.array([1.0, 2.0, 3.0])) == 0.0


def test_survival_goes_through_the_same_comparison(tmp_path, monkeypatch):
    for module in ("comparison", "task"):
        monkeypatch.setattr(f"fusion_jax.models.{module}.open_address", lambda address: told_in_time())
    found = compare(
        {"function": f"{__name__}:told_in_time"},
        ["cox"],
        out=tmp_path,
        folds=2,
        task="survival",
        protocol=Protocol(resamples=200),
    )
    assert found.plan.protocol.primary == "harrell_c"
    assert found.evaluation.survival is not None
    assert found.plan.choices["cox"] == Choice("cox", {"task": "survival"})


def test_default_models_are_those_that_suit_the_cohort():
    assert default_models(load("hcc_survival")) == (
        "clinical-only",
        "logistic-regression",
        "random-forest",
        "gradient-boosting",
    )
    names = default_models(load("soft_tissue_sarcoma"))
    assert names[:4] == ("pet-only", "ct-only", "image-only", "clinical-only")
    assert {"concatenate", "gated", "probability", "logistic-regression+measurements"} <= set(names)


def test_an_image_measured_inside_its_mask_is_a_single_source(tmp_path):
    one = {"features": "measurements", "images": ["pet"]}
    models = {
        "SUV": {"recipe": "logistic-regression+measurements", "arguments": one},
        "CT": "ct-only",
        "both": {"recipe": "concatenate", "arguments": {"inputs": ["pet", "ct"]}},
    }
    made = plan("soft_tissue_sarcoma", models, out=tmp_path, folds=3, copies=False)
    assert made.sources["SUV"] == ("pet", "mask")
    assert made.protocol.singles == ("SUV", "CT")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"a": {"name": "x"}}}, r"model 'a' has the keys name; expected 'recipe'"),
        ({"models": []}, r"no model was chosen"),
        ({"seeds": (1, 1)}, r"seeds are 1, 1; expected different"),
        ({"protocol": Protocol(singles=("tree",))}, r"single source 'tree' is no model of this comparison: forest"),
        ({"cohort": {"folder": "x", "load": "y"}}, r"cohort has the keys folder, load"),
        (
            {"models": {"wide": {"recipe": "clinical-only", "arguments": {"features": "64"}}}},
            r"model 'wide': recipe 'clinical-only': features is '64'; expected a whole number",
        ),
        (
            {"models": {"a": {"recipe": "clinical-only", "arguments": {"encoders": {"clinical": "mlb"}}}}},
            r"encoder of source 'clinical': no 'mlb'; did you mean 'mlp'",
        ),
        (
            {"models": {"a": {"recipe": "clinical-only", "arguments": {"encoders": {"clinic": "mlp"}}}}},
            r"encoders: hcc_survival has no source 'clinic'; did you mean 'clinical'",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change, message, tmp_path):
    given = {"cohort": "hcc_survival", "models": {"forest": FOREST}, "copies": False} | change
    with pytest.raises(ValueError, match=message):
        plan(given.pop("cohort"), given.pop("models"), out=tmp_path, **given)


@pytest.mark.parametrize(
    ("recipe", "task", "message"),
    [
        ("logistic-regression", "survival", r"it predicts a label, and the task is survival. Choose cox"),
        ("cox", "auto", r"model 'mine' predicts survival, and the task of this comparison is label"),
    ],
)
def test_a_model_of_another_task_is_refused_before_any_training(recipe, task, message, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_jax.models.comparison.open_address", lambda address: told_in_time())
    with pytest.raises(ValueError, match=message):
        plan(HERE, {"mine": recipe}, out=tmp_path, folds=2, task=task)
    assert not (tmp_path / "splits.json").exists()


def test_addresses_are_found_by_what_lies_there(tmp_path):
    (tmp_path / "cohort.toml").touch()
    assert cohort_address(tmp_path) == {"folder": str(tmp_path.resolve())}
    assert cohort_address("hcc_survival") == {"load": "hcc_survival"}
    with pytest.raises(TypeError, match=r"cohort told is in memory.*a function that makes it"):
        cohort_address(told_cohort())
