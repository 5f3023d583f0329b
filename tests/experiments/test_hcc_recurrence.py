"""The experiment end to end at small size, and its protocol: folds, selection, units, models and their arguments."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from experiments.command_line import pretrained
from experiments.hcc_recurrence.cohort import AlignedPhases, chemoembolisation, patients_of, user_phases
from experiments.hcc_recurrence.config import PRESETS, Config
from experiments.hcc_recurrence.encoding import FACTORS, NINE_BITS
from experiments.hcc_recurrence.models import CLAIMS, CLINICAL, IMAGE, PAPER, RADIOMICS, SELECTION, models_of
from experiments.hcc_recurrence.run import IMAGENET, run
from experiments.hcc_recurrence.study import (
    clinical_cohorts,
    declared_factors,
    folds_of,
    is_published,
    selected_on_all,
    selections,
    ten_folds,
)
from experiments.hcc_recurrence.tables import Config as TablesConfig
from experiments.hcc_recurrence.tables import compare_outcome, figures
from fusion_jax.data import Boxes, open_shards
from fusion_jax.data.synthetic import PHASES, liver_cancer_ct
from fusion_jax.data.tabular import columns_to_json
from fusion_jax.models.comparison import open_comparison
from fusion_jax.models.deep import DeepRecipe
from fusion_jax.models.published import PUBLISHED
from fusion_jax.models.registry import make_recipe
from tests.helpers import real_data

JOINT = "fusion D + joint loss"

TINY = replace(
    PRESETS["cpu"],
    size=16,
    patients=40,
    slice_size=64,
    encoder={"name": "cnn", "widths": [4]},
    training={**PRESETS["cpu"].training, "epochs": 1},
    folds=2,
    trees=10,
    models=(RADIOMICS, CLINICAL, JOINT),
    clinical_cohorts=0,
    resamples=200,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert run(Config(out=out), TINY) == out / "synthetic-cpu" / "report.html"
    return out / "synthetic-cpu"


@pytest.fixture(scope="module")
def whole():
    """All 167 patients; no slice is drawn."""
    return liver_cancer_ct(size=64).cohort


def _numbers(results: Path) -> dict:
    return json.loads((results / "results.json").read_text(encoding="utf-8"))


# The run.


def test_a_run_ends_with_slices_and_patients_beside_the_paper(results):
    means = _numbers(results)["means"]
    assert set(means) == {"slice", "patient"}
    assert set(means["patient"]) == set(TINY.models)
    page = (results / "report.html").read_text(encoding="utf-8")
    for said in ("80.5 ± 4.3", "0.833 ± 0.030", "No model can exceed an AUC of 0.746", "Did fusion help?"):
        assert said in page.replace("\N{NO-BREAK SPACE}", " "), said


def test_fold_means_and_pooled_figures_are_those_of_the_predictions(results):
    found = _numbers(results)
    table: Any = pd.read_csv(results / "predictions.csv")
    table = table[table["split"] == "test"]
    for model, part in table.groupby("model"):
        patients = part.groupby(["fold", "patient_id"], as_index=False)[["score", "label"]].mean()
        for unit, rows in (("slice", part), ("patient", patients)):
            areas = [roc_auc_score(fold["label"], fold["score"]) for _, fold in rows.groupby("fold")]
            right = [100 * np.mean((fold["score"] >= 0.5) == fold["label"]) for _, fold in rows.groupby("fold")]
            expected = [np.mean(right), np.std(right, ddof=1), np.mean(areas), np.std(areas, ddof=1)]
            np.testing.assert_allclose(list(found["means"][unit][model].values()), expected, rtol=1e-9)
        assert found["pooled"][model]["auc"] == pytest.approx(roc_auc_score(patients["label"], patients["score"]))
        assert found["pooled"][model]["low"] < found["pooled"][model]["auc"] < found["pooled"][model]["high"]


def test_every_model_of_a_fold_read_what_its_training_patients_selected(results):
    comparison = open_comparison(results)
    made = comparison.plan
    chosen = selections(made.cohort, made.splits)
    for split, selection in zip(made.splits.splits, chosen, strict=True):
        wanted = set(selection.names) or {min(selection.tests, key=lambda test: test.p).factor}
        for task in made.tasks:
            if task.fold != split.fold or task.model == RADIOMICS:
                continue
            folder = made.task_folder(task)
            if task.model == CLINICAL:
                stored = json.loads((folder / "fitted.json").read_text())["all"]["features"]["table"]
            else:
                stored = json.loads((folder / "preparation.json").read_text())["tables"]["clinical"]
            assert {column["declared"]["name"] for column in stored["columns"]} == wanted
    frequency = {row["factor"]: row["selected"] for row in _numbers(results)["selection"]}
    assert frequency == {column.name: sum(column.name in selection.names for selection in chosen) for column in FACTORS}


def test_gamma_is_the_number_of_clinical_features_over_those_of_the_image(results):
    [row] = _numbers(results)["quality"]
    assert (row["model"], row["image"], row["clinical"], row["gamma"]) == (JOINT, 16, 16, 1)


def test_radiomic_stand_ins_are_22_numbers_a_slice(results):
    table = pd.read_csv(results.parent / "synthetic-16px-seed0" / "measurements.csv")
    cohort = open_shards(results.parent / "synthetic-16px-seed0" / "cohort")
    assert table.shape == (len(cohort), 23)
    assert table["case_id"].tolist() == list(cohort.case_id)
    assert {name.split(":")[0] for name in table.columns[1:]} == {"lesion", *PHASES}
    # The box grows with the tumour; the arterial phase is brighter than the plain one.
    size = cohort.table["tumour_size_cm"].to_numpy()
    assert np.corrcoef(table["lesion:log_area"], np.log(size))[0, 1] > 0.7
    assert np.mean(table["art:mean"].to_numpy() > table["nc:mean"].to_numpy()) > 0.9


def test_a_second_call_trains_nothing(results):
    stamps = {path: path.stat().st_mtime_ns for path in (results / "tasks").rglob("predictions.csv")}
    assert len(stamps) == 7  # 3 models x 2 folds, and all of them together
    for path in stamps:
        if path.parent.name == "tasks":
            continue
        assert path.with_name("run.json").exists()
    made = open_comparison(results).plan
    assert made.waiting == ()


# Folds.


def test_the_ten_folds_are_those_of_table_2(whole):
    splits = ten_folds(whole)
    found = folds_of(whole, splits)
    assert [fold.name for fold in found] == [f"E{number:02d}" for number in range(1, 11)]
    assert [fold.slices for fold in found] == [70, 84, 82, 74, 71, 89, 65, 71, 85, 74]
    assert [fold.train_slices for fold in found] == [695, 681, 683, 691, 694, 676, 700, 694, 680, 691]
    assert [fold.patients for fold in found] == [17] * 7 + [16] * 3
    assert [(fold.without, fold.recurring) for fold in found] == [(10, 7)] * 5 + [(11, 6)] * 2 + [(10, 6)] * 3
    assert is_published(found)
    for split in splits.splits:
        rows = split.rows(whole)
        assert not set(whole.patient_id[rows.train]) & set(whole.patient_id[rows.test])


def test_without_named_folds_stratified_ones_have_the_same_patients(whole):
    roles = {name: role for name, role in whole.roles.items() if name != "fold"}
    unnamed = replace(whole, table=whole.table.drop(columns="fold"), roles=roles)
    composition = sorted((fold.without, fold.recurring) for fold in folds_of(unnamed, ten_folds(unnamed, seed=3)))
    assert composition == sorted([(10, 7)] * 5 + [(11, 6)] * 2 + [(10, 6)] * 3)


def test_folds_of_another_composition_are_refused(whole):
    table = whole.table.copy()
    patients = np.array([int(name[4:]) for name in whole.patient_id])
    table["fold"] = [f"E{number % 10}" for number in patients]
    with pytest.raises(ValueError, match=r"expected those of the paper's Table 2"):
        ten_folds(replace(whole, table=table))


# Selection.


def test_on_all_patients_the_seven_published_factors_are_selected(whole):
    assert selected_on_all(whole) == NINE_BITS
    assert declared_factors(whole) == FACTORS


def test_folds_select_most_of_the_seven_and_seldom_others(whole):
    chosen = selections(whole, ten_folds(whole))
    strong = {"tumour_size_cm", "portal_vein_invasion", "bclc", "afp_ug_l"}
    assert all(strong <= set(selection.names) for selection in chosen)
    assert len({selection.names for selection in chosen}) > 1
    assert all(not set(selection.names) & {"sex", "cirrhosis", "alt_u_l"} for selection in chosen)


def test_global_selection_hands_over_columns_and_warns(tmp_path, whole, capsys):
    models = models_of(TINY, selected_on_all(whole), selection=None, features=None)
    for name in (CLINICAL, JOINT):
        assert models[name]["arguments"]["columns"] == columns_to_json(NINE_BITS)
        assert "selection" not in models[name]["arguments"]
    assert RADIOMICS not in models
    settings = replace(TINY, models=(CLINICAL,))
    report = run(Config(out=tmp_path, selection="global"), settings)
    assert report.parent.name == "synthetic-cpu-global"
    assert "scores will be too good" in capsys.readouterr().out.replace("\n", " ")
    assert "figures of models with clinical factors are too good" in report.read_text(encoding="utf-8")


# Models.


def _recipes(preset, **others):
    models = models_of(
        PRESETS[preset], NINE_BITS, selection=SELECTION, features=Path("features.csv"), **{"weights": None, **others}
    )
    return models, {name: make_recipe(model["recipe"], model["arguments"]) for name, model in models.items()}


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_every_row_of_the_paper_and_every_variant_of_the_loss_is_a_recipe(preset):
    models, recipes = _recipes(preset)
    assert set(PAPER) <= set(models)
    assert {name for _, *pair in CLAIMS for name in pair} <= set(models)
    weights = {
        name: recipe.loss_weights for name, recipe in recipes.items() if getattr(recipe, "objective", "") == "joint"
    }
    assert weights[JOINT] == {"image": 0.25, "clinical": 0.25, "fused": 0.5}
    assert len(weights) == 3
    assert all(sum(each.values()) == pytest.approx(1) for each in weights.values())
    assert [recipe.objective for recipe in recipes.values() if getattr(recipe, "model", None)].count("uncertainty") == 1
    assert {recipe.model for recipe in recipes.values() if isinstance(recipe, DeepRecipe)} <= set(PUBLISHED)
    assert recipes[RADIOMICS].screen == "lasso"
    assert recipes[CLINICAL].unit == "patient"
    for name, recipe in recipes.items():
        reads_factors = name not in (IMAGE, RADIOMICS)
        assert (recipe.selection == SELECTION) is reads_factors, name


def test_the_paper_preset_is_the_published_recipe():
    _, recipes = _recipes("paper", weights={"file": "resnet50.pth", "sha256": "00"})
    deep = [recipe for recipe in recipes.values() if isinstance(recipe, DeepRecipe)]
    assert len(deep) == 10
    for recipe in deep:
        assert (recipe.optimiser, recipe.learning_rate, recipe.schedule) == ("adam", 1e-4, "constant")
        assert (recipe.batch_size, recipe.epochs, recipe.augment, recipe.encoder) == (16, 50, "none", None)
        assert recipe.weights == {"image": {"file": "resnet50.pth", "sha256": "00"}}
    assert (PRESETS["paper"].size, PRESETS["paper"].folds, PRESETS["paper"].patients) == (224, 10, 167)


def test_the_published_trunk_asks_for_its_weights_or_for_random_ones():
    with pytest.raises(ValueError, match=r"ImageNet weights.*resnet50.*--init random"):
        pretrained(Config(preset="paper"), IMAGENET)
    with pytest.raises(ValueError, match="without --weights-sha256"):
        pretrained(Config(preset="paper", weights=Path("resnet50.pth")), IMAGENET)
    assert pretrained(Config(preset="paper", init="random"), IMAGENET) is None
    assert pretrained(Config(weights=Path("a.pth"), weights_sha256="00"), IMAGENET) == {
        "file": "a.pth",
        "sha256": "00",
        "origin": "",
    }


# Cohorts.


def test_boxes_are_told_by_the_name_of_their_phase(whole):
    one = whole.take(np.array([7]))
    named = AlignedPhases(one, 16).lesion(0, 16)
    [boxes] = one.boxes
    other = replace(one, boxes=[boxes._replace(classes=(boxes.classes + 1) % 3)], box_classes=("pv", "nc", "art"))
    np.testing.assert_array_equal(AlignedPhases(other, 16).lesion(0, 16).values, named.values)
    without = replace(one, boxes=[Boxes(boxes.corners[:2], boxes.classes[:2])])
    with pytest.raises(
        ValueError, match=r"case hcc_\d+_s\d+ has boxes in nc, art; expected one in each of nc, art, pv"
    ):
        AlignedPhases(without, 16).lesion(0, 16)


def test_a_patient_is_one_case_with_its_factors(whole):
    patients = patients_of(whole)
    assert (len(patients), int(patients.label.sum())) == (167, 65)
    assert tuple(patients.sources) == ("clinical",)


def test_the_clinical_model_is_repeated_on_other_cohorts(tmp_path):
    found = clinical_cohorts(tmp_path, 2, trees=5)
    assert len(set(found.auc)) == 2
    assert all(0.5 < value < 0.95 for value in found.auc)
    assert all(0.03 < value < 0.25 for value in found.auc_fold_sd)


@pytest.mark.slow
def test_over_twelve_cohorts_the_clinical_auc_is_the_papers(tmp_path):
    found = clinical_cohorts(tmp_path, 12, trees=300)
    assert abs(np.mean(found.auc) - 0.755) < 0.03
    assert 0.07 < np.mean(found.auc_fold_sd) < 0.16


def test_a_folder_of_another_kind_says_what_is_expected(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 8), np.float32))
    (tmp_path / "cases.csv").write_text("case,age_years,er\na,50,0\nb,60,1\n")
    (tmp_path / "cohort.toml").write_text(
        'table = "cases.csv"\n[ids]\ncase = "case"\npatient = "case"\n[roles]\ninput = ["age_years"]\nlabel = "er"\n'
        '[sources.ct]\nfiles = "{case}.npy"\n'
    )
    with pytest.raises(ValueError, match=r"lacks the source 'nc', the source 'art', the source 'pv'. Expected a case"):
        user_phases(tmp_path)


# Real tables.


@pytest.mark.parametrize(("outcome", "events"), [("progression", 36), ("death", None)])
def test_the_survival_table_has_times_and_what_was_known_before_treatment(outcome, events):
    real_data("hcc_tables")
    cohort = chemoembolisation(outcome=outcome)
    assert len(cohort) == 84
    assert cohort.columns("time") == (("TTP",) if outcome == "progression" else ("OS",))
    assert not [name for name in cohort.columns("input") if "RECIST" in name or "EASL" in name or name in ("TTP", "OS")]
    if events is not None:
        assert int(cohort.table[cohort.columns("event")[0]].sum()) == events


@pytest.mark.slow
def test_cox_regression_and_a_network_are_judged_by_concordance(tmp_path):
    real_data("hcc_tables")
    config = TablesConfig(folds=2, repeats=1, epochs=1, resamples=100, out=tmp_path)
    found = compare_outcome("progression", config)
    rows = figures(found)
    assert [(model, metric) for model, metric, *_ in rows] == [
        (model, metric) for model in ("clinical-only", "cox") for metric in ("Harrell's C", "Uno's C")
    ]
    assert {row[3:] for row in rows} == {(84, 36)}
    assert "Harrell&#39;s C" in (tmp_path / "progression" / "report.html").read_text(encoding="utf-8")
