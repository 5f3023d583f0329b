"""A task: text in, a folder with predictions out; addresses of cohorts; the schema that a new cohort has to have."""

import dataclasses
import json
import os

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data import Cohort, k_fold, load, open_address, save_splits
from fusion_jax.models import task
from fusion_jax.models.registry import make_recipe
from fusion_jax.models.schema import Schema, check_schema, schema_of
from fusion_jax.models.target import Target, survival_of, target_of
from fusion_jax.models.task import prediction_rows, run_split, run_task, united
from fusion_jax.records.predictions import check_predictions

TREES = {"trees": 5}


@pytest.fixture
def config(tmp_path):
    cohort = load("hcc_survival")
    save_splits(tmp_path / "splits.json", k_fold(cohort, 3, seed=1))
    models = {"forest": {"recipe": "random-forest", "arguments": TREES}, "ridge": {"recipe": "logistic-regression"}}
    return json.dumps(
        {"cohort": {"load": "hcc_survival"}, "splits": os.fspath(tmp_path / "splits.json"), "models": models}
    )


def test_checkpoints_are_gone_once_the_weights_are_kept_and_predictions_written(tmp_path, monkeypatch):
    from fusion_jax.models.classical import ClassicalRecipe

    fit = ClassicalRecipe.fit

    def like_a_network(self, cohort, split, key, folder, **others):
        fit(self, cohort, split, key, folder, **others)
        for place in (folder, folder / "sources"):
            (place / "checkpoints" / "final").mkdir(parents=True)
            (place / "checkpoints" / "final" / "moments").write_text("large")

    monkeypatch.setattr(ClassicalRecipe, "fit", like_a_network)
    cohort = load("hcc_survival")
    split = k_fold(cohort, 3, seed=1).splits[0]
    run_split(make_recipe("logistic-regression"), cohort, split, seed=0, folder=tmp_path, model="ridge")
    assert not list(tmp_path.rglob("checkpoints"))
    assert (tmp_path / "predictions.csv").exists()


def test_a_task_writes_predictions_that_evaluation_reads(config, tmp_path):
    tables = {}
    for model in ("forest", "ridge"):
        for fold in range(3):
            folder = tmp_path / model / f"r0_f{fold}_s0"
            run_task(config, model, 0, fold, 0, os.fspath(folder))
            tables[f"{model} {fold}"] = pd.read_csv(folder / "predictions.csv", dtype=str).astype(
                {"score": float, "fold": int}
            )
    found = check_predictions(tables)
    assert found.models == ("forest", "ridge")
    assert found.score_kind == {"forest": "probability", "ridge": "probability"}
    assert len(found.table) == 2 * 132
    assert set(found.table.columns) >= {"case_id", "patient_id", "label", "score", "fold", "repeat", "seed"}
    record = json.loads((tmp_path / "forest/r0_f1_s0/run.json").read_text())
    assert record["recipe"] == "random-forest"
    assert record["arguments"] == TREES
    assert record["cases"] == {"train": 88, "validation": 0, "test": 44}
    assert "of them and 50 are needed" in record["inner_split"]
    assert not (tmp_path / "forest/r0_f1_s0/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tree"}, r"no model 'tree' in the configuration; there is 'forest', 'ridge'"),
        ({"fold": 7}, r"splits.json: no split of repeat 0 and fold 7"),
        ({"config": {"cohort": {"load": "hcc_survival"}}}, r"the configuration of a task has no 'splits'"),
    ],
)
def test_a_task_that_is_not_there_is_refused(change, message, config, tmp_path):
    given = {"model": "forest", "fold": 0, "config": json.loads(config)} | change
    with pytest.raises(ValueError, match=message):
        run_task(json.dumps(given["config"]), given["model"], 0, given["fold"], 0, os.fspath(tmp_path / "run"))


OFFSET = {"x": 0.0}


def moving_cohort():
    """A feature that another value has been typed in for when the cohort is opened again."""
    values = np.arange(12.0)[:, None] + OFFSET["x"]
    return Cohort.from_arrays({"x": values}, label=[row % 2 for row in range(12)], name="moving")


def test_a_cohort_that_has_changed_is_not_taken_for_the_one_before(monkeypatch):
    address = json.dumps({"function": "tests.models.test_task:moving_cohort"})
    found = []
    for offset in (0.0, 1.0):
        monkeypatch.setitem(OFFSET, "x", offset)
        found.append(float(task._opened(address, moving_cohort().fingerprint).sources["x"][0][0]))
    assert found == [0.0, 1.0]


def test_inner_validation_rows_are_the_same_for_every_model_and_seed(make_tiny, tmp_path):
    cohort = make_tiny(32).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    found = []
    for model, seed in (("logistic-regression", 0), ("logistic-regression", 1), ("gradient-boosting", 0)):
        folder = tmp_path / f"{model}{seed}"
        recipe = make_recipe(model, TREES)
        run_split(recipe, cohort, split, seed=seed, folder=folder, model=model, inner={"least": 4, "fraction": 0.25})
        table = pd.read_csv(folder / "predictions.csv")
        found.append(set(table.case_id[table.split == "validation"]))
        assert set(table.case_id[table.split == "test"]) == set(split.test)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 4
    assert found[0] < set(split.train)


def test_no_inner_division_parts_two_patients_with_one_image(make_tiny, tmp_path):
    cohort = make_tiny(32).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    settings = {"least": 4, "fraction": 0.25}
    recipe = make_recipe("logistic-regression")

    def held(name, copies):
        folder = tmp_path / name
        run_split(recipe, cohort, split, seed=0, folder=folder, model="ridge", inner=settings, copies=copies)
        table = pd.read_csv(folder / "predictions.csv")
        return {str(case) for case in table.case_id[table.split == "validation"]}

    alone = held("alone", ())
    # Without the groups these pairs are parted; every validation case is paired with a training case of its class.
    label = dict(zip(cohort.case_id, cohort.label.tolist(), strict=True))
    rest = [case for case in split.train if case not in alone]
    copies = []
    for case in sorted(alone):
        other = next(one for one in rest if label[one] == label[case])
        rest.remove(other)
        copies.append((case, other))
    together = held("together", copies)
    assert together
    for pair in copies:
        assert len(together & set(pair)) in (0, 2), pair


def test_patients_are_united_through_a_chain_of_copies(make_tiny):
    cohort = make_tiny(8).cohort
    ids = cohort.case_id
    found = united(cohort, [(ids[0], ids[1]), (ids[2], ids[3]), (ids[1], ids[2]), (ids[5], "elsewhere")])
    assert len(set(found.patient_id[:4].tolist())) == 1
    assert len(set(found.patient_id.tolist())) == 5


def test_survival_is_written_with_time_and_event(make_tiny, tmp_path):
    cohort = make_tiny(survival=True).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    run_split(make_recipe("cox", {"strength": 1.0}), cohort, split, seed=0, folder=tmp_path, model="cox")
    table = pd.read_csv(tmp_path / "predictions.csv", index_col="case_id")
    assert "label" not in table
    follow_up = survival_of(cohort, split.rows(cohort).test)
    np.testing.assert_allclose(table.time, follow_up.time)
    np.testing.assert_array_equal(table.event == 1, follow_up.event)


def test_three_classes_get_a_column_each(make_tiny, tmp_path):
    cohort = make_tiny(24, classes=3).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    run_split(make_recipe("logistic-regression"), cohort, split, seed=0, folder=tmp_path, model="ridge")
    table = pd.read_csv(tmp_path / "predictions.csv")
    scores = table[[f"score_class {code}" for code in range(3)]]
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-9)
    assert check_predictions({"ridge": table}).classes == ("class 0", "class 1", "class 2")


def test_a_score_that_is_no_number_names_the_case(tiny):
    with pytest.raises(ValueError, match=r"net: the prediction of case case_1 is \[nan, 0.5\] \(1 such cases\)"):
        prediction_rows(
            tiny.cohort,
            np.array([0, 1]),
            np.array([[0.5, 0.5], [np.nan, 0.5]]),
            target_of(tiny.cohort),
            model="net",
            split="test",
        )


# Addresses.


def test_a_cohort_is_found_by_function(tiny, monkeypatch):
    monkeypatch.setattr(task, "planted", lambda size: tiny.cohort.take(np.arange(size)), raising=False)
    found = open_address({"function": "fusion_jax.models.task:planted", "arguments": {"size": 3}})
    assert len(found) == 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ({}, r"the address of the cohort is {}; expected one of 'folder', 'shards', 'load', 'function'"),
        ({"folder": "a", "load": "b"}, r"expected one of"),
        ({"load": "hcc_survival", "arguments": {}}, r"arguments, which only a function takes, not 'load'"),
        ({"load": "hcc_surviva"}, r"Did you mean 'hcc_survival'"),
        ({"function": "os"}, r"expected 'package.module:name'"),
        ({"function": "os:nothing"}, r"module os has no function 'nothing'"),
        ({"function": "os:getcwd"}, r"os:getcwd returned a str; expected a Cohort"),
    ],
)
def test_an_address_of_another_form_is_refused(address, message):
    with pytest.raises(ValueError, match=message):
        open_address(address)


# Target and schema.


def test_the_label_goes_before_times_unless_asked(make_tiny):
    cohort = make_tiny(survival=True).cohort
    assert target_of(cohort) == Target("survival", "died")
    assert target_of(make_tiny().cohort) == Target("label", "label", ("class 0", "class 1"))
    with pytest.raises(ValueError, match=r"tiny: no column has the role 'label'"):
        target_of(cohort, "label")


def changed(cohort, **sources):
    return dataclasses.replace(cohort, **sources)


def test_a_schema_survives_json_and_lets_its_own_cohort_pass(tiny):
    schema = schema_of(tiny.cohort, ("image", "clinical"))
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert schema.sources["image"].shape == (8, 8, 1)
    assert schema.sources["image"].spacing == (1.0, 1.0)
    assert schema.sources["image"].unit == "HU"
    check_schema(again, tiny.cohort, classes=("class 0", "class 1"))


def test_a_cohort_of_another_schema_is_refused(tiny, make_tiny):
    schema = schema_of(tiny.cohort, ("image", "clinical"))
    other = make_tiny(size=6).cohort
    with pytest.raises(ValueError, match=r"cases of 'image' have the shape \(6, 6, 1\); expected \(8, 8, 1\)"):
        check_schema(schema, other)
    with pytest.raises(ValueError, match=r"no source 'image'; it has clinical, lesion"):
        check_schema(schema, tiny.cohort.take([0, 1]).only("clinical", "lesion"))
    with pytest.raises(ValueError, match=r"the label has the class 'class 1'; expected some of class 0, other"):
        check_schema(schema, tiny.cohort, classes=("class 0", "other"))
    wide = make_tiny()
    wide.reader.unit = "SUV"
    with pytest.raises(ValueError, match=r"'image' is in SUV; expected HU"):
        check_schema(schema, wide.cohort)
    roles = {**tiny.cohort.roles, "age": "never"}
    sources = {**tiny.cohort.sources, "clinical": dataclasses.replace(tiny.cohort.sources["clinical"], names=("sex",))}
    with pytest.raises(ValueError, match=r"column 'age' has the role 'never', expected 'input'"):
        check_schema(schema, dataclasses.replace(tiny.cohort, roles=roles, sources=sources))


def test_another_spacing_is_refused_with_the_step_that_helps(tiny):
    schema = schema_of(tiny.cohort, ("image",))
    from fusion_jax.data import Image, Lazy

    finer = Lazy(lambda row: Image(np.zeros((8, 8, 1)), (0.5, 0.5), None, "HU"), np.arange(16), "image", "finer")
    with pytest.raises(ValueError, match=r"'image' has a spacing of 0.5 x 0.5 mm; expected 1 x 1 mm. Resample"):
        check_schema(schema, tiny.cohort.with_source("image", finer))
