"""The experiment end to end at small size, on a folder in the layout of the study, and what its protocol rests on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.breast_mri.cohort import FRACTIONS, skin_lesions
from experiments.breast_mri.config import PRESETS, Config, Settings
from experiments.breast_mri.encoding import ACQUISITION, COLUMNS, INPUTS, feature_groups
from experiments.breast_mri.folder import folder_cohort
from experiments.breast_mri.importance import FOUR, PAPER_MEDIANS, tabular_model
from experiments.breast_mri.results import PAIRS, PAPER, Best, difference
from experiments.breast_mri.run import parts, run, write_results
from experiments.breast_mri.study import LEARNED, TABULAR, open_study, side_models, table_models
from fusion_jax.data import given
from fusion_jax.data.image import UnreadableFile
from fusion_jax.evaluation.importance import rank_product
from fusion_jax.models.comparison import Comparison, open_comparison, open_plan
from fusion_jax.models.deep import DeepRecipe
from fusion_jax.models.published import PUBLISHED
from fusion_jax.models.registry import load_recipe, make_recipe
from fusion_jax.training.cross_validation import Task
from tests.helpers import real_data

CPU = PRESETS["cpu"]

TINY = replace(
    CPU,
    size=32,
    breasts=240,
    encoder={"name": "cnn", "widths": [4], "norm": "batch"},
    training={**CPU.training, "epochs": 2, "augment": "none", "test_augment": "horizontal-flip", "test_copies": 2},
    models=("Image-Only", TABULAR, LEARNED),
    variants=(),
    audit=False,
    seeds=2,
    side_seeds=1,
    permutations=2,
    resamples=200,
)


def write_folder(root: Path, *, sizes: tuple[int, int, int] = (48, 16, 24), inputs: int = 33) -> Path:
    """Projections and inputs that both tell the class, in the layout of the study."""
    rng = np.random.default_rng(0)
    for part, size in zip(("Train", "Val", "Test"), sizes, strict=True):
        (root / part).mkdir(parents=True)
        for number in range(1, size + 1):
            raw = int(rng.choice([0, 1, 2], p=[0.4, 0.2, 0.4])) if number > 3 else number - 1
            image = np.clip(rng.uniform(0, 0.6, (16, 16, 1)) + 0.3 * (raw == 2), 0, 1)
            meta = rng.normal(size=inputs) + (raw == 2)
            np.save(root / part / f"{number}_x.npy", image.astype(np.float32))
            np.save(root / part / f"{number}_meta.npy", meta)
            np.save(root / part / f"{number}_y.npy", np.array([raw]))
    return root


class Ran(NamedTuple):
    """A run of the experiment."""

    report: Path
    comparison: Comparison
    best: Best


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("breasts")
    folder = write_folder(root / "mine")
    seen = {}

    def kept(config, study, comparison, best, *others):
        seen.update(comparison=comparison, best=best)
        return write_results(config, study, comparison, best, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.breast_mri.run.write_results", kept)
        report = run(Config(cohort=str(folder), out=root / "out"), TINY)
    return Ran(report, seen["comparison"], seen["best"])


@pytest.fixture(scope="module")
def results(ran: Ran) -> Path:
    return ran.report.parent


@pytest.fixture(scope="module")
def comparison(ran: Ran) -> Comparison:
    return ran.comparison


def _folder(comparison: Comparison, model: str, seed: int = 0) -> Path:
    return comparison.plan.task_folder(Task(model, 0, 0, seed))


# The run.


def test_models_are_trained_on_the_given_parts_and_set_beside_the_paper(results, comparison):
    [split] = comparison.plan.splits.splits
    assert [len(part) for part in (split.train, split.validation, split.test)] == [48, 16, 24]
    assert {case.split("_")[0] for case in split.test} == {"test"}
    table = json.loads((results / "results.json").read_text(encoding="utf-8"))["tables"]["holste_table"]
    assert [row[0] for row in table["rows"]] == list(TINY.models)
    assert table["rows"][0][2] == ".849 [.834, .864]"
    page = (results / "report.html").read_text(encoding="utf-8")
    for heading in ("Table 2 of the paper", "Paired tests of the paper", "Permutation importance"):
        assert heading in page


def test_every_model_is_trained_with_every_seed_and_nothing_waits(ran):
    assert ran.report.name == "report.html"
    assert ran.report.parent.name == "mine-cpu"
    assert [len(runs) for runs in ran.comparison.panel.runs.values()] == [2, 2, 2]
    assert open_plan(ran.report.parent).waiting == ()


def test_the_best_run_is_chosen_on_validation_cases(results, comparison, ran):
    stored = json.loads((results / "results.json").read_text(encoding="utf-8"))
    for model in comparison.models:
        best = []
        for seed in (0, 1):
            lines = (_folder(comparison, model, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            best.append(max(json.loads(line)["validation_auc"] for line in lines))
        assert stored["best_seeds"][model] == int(np.argmax(best))
        assert stored["validation_auc"][model] == max(best)
    for number, model in enumerate(comparison.models):
        scores = comparison.panel.runs[model][stored["best_seeds"][model]].scores
        np.testing.assert_array_equal(ran.best.evaluation.view.scores[number], scores)


def test_epochs_are_chosen_on_clean_validation_cases_and_tests_judged_on_copies(comparison):
    folder, cohort = _folder(comparison, "Image-Only"), comparison.plan.cohort
    recipe = load_recipe(folder)
    assert isinstance(recipe, DeepRecipe)
    rows = comparison.plan.splits.splits[0].rows(cohort)
    clean = replace(recipe, test_copies=0, test_augment=None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held = clean.predict(folder, cohort, rows.validation)[:, 1]
    assert roc_auc_score(cohort.label[rows.validation], held) == pytest.approx(
        max(line["validation_auc"] for line in lines)
    )
    run_of = comparison.panel.runs["Image-Only"][0]
    order = [cohort.case_id.index(case) for case in comparison.panel.cases]
    np.testing.assert_allclose(recipe.predict(folder, cohort, np.array(order))[:, 1], run_of.scores, rtol=1e-5)
    assert np.abs(clean.predict(folder, cohort, np.array(order))[:, 1] - run_of.scores).max() > 1e-6


@pytest.mark.parametrize("model", [TABULAR, LEARNED])
def test_importance_asks_the_trained_model_itself(comparison, model):
    _asks_the_trained_model(comparison, model)


def _asks_the_trained_model(comparison: Comparison, model: str) -> None:
    cohort, [split] = comparison.plan.cohort, comparison.plan.splits.splits
    folder = _folder(comparison, model)
    answer, inputs, names = tabular_model(folder, cohort, split)
    recipe = load_recipe(folder)
    assert isinstance(recipe, DeepRecipe)
    clean = replace(recipe, test_copies=0, test_augment=None)
    expected = clean.predict(folder, cohort, split.rows(cohort).test)[:, 1]
    np.testing.assert_allclose(answer(inputs), expected, atol=2e-6)
    assert names == INPUTS
    shuffled = {**inputs, "clinical": inputs["clinical"][::-1]}
    assert np.abs(answer(shuffled) - expected).max() > 1e-3


def test_differences_change_their_sign_with_the_order(comparison):
    there = difference(comparison.evaluation, LEARNED, TABULAR, "auc")
    back = difference(comparison.evaluation, TABULAR, LEARNED, "auc")
    assert there[1] == back[1]
    assert there[0].split()[0].lstrip("+−") == back[0].split()[0].lstrip("+−")
    value = float(there[0].split()[0].replace("−", "-").replace("+", ""))
    scores = dict(zip(comparison.models, comparison.evaluation.view.scores, strict=True))
    labels = comparison.panel.labels
    assert value == pytest.approx(
        roc_auc_score(labels, scores[LEARNED]) - roc_auc_score(labels, scores[TABULAR]), abs=6e-4
    )


# The protocol.


def test_the_paper_preset_is_the_published_recipe():
    settings = PRESETS["paper"]
    models = table_models(open_study(Config(preset="paper"), settings), settings)
    assert list(models) == list(PAPER)
    assert len(models) == 7
    assert (settings.seeds, settings.side_seeds, settings.permutations, settings.resamples) == (5, 5, 30, 5000)
    assert (settings.size, settings.breasts) == (224, 17_046)
    for name, model in models.items():
        recipe = make_recipe(model["recipe"], model["arguments"])
        assert isinstance(recipe, DeepRecipe)
        assert (recipe.optimiser, recipe.learning_rate, recipe.schedule, recipe.weight_decay) == (
            "adam", 1e-4, "constant", 0,
        )  # fmt: skip
        assert (recipe.batch_size, recipe.epochs, recipe.patience, recipe.monitor) == (256, 100, 20, "auc")
        assert (recipe.balanced, recipe.smoothing, recipe.standardise) == (True, 0.1, False)
        assert (recipe.encoder, recipe.weights) == (None, {})  # ResNet-50 from random weights
        copies = ("none", 0) if name == TABULAR else ("projection", 5)
        assert (recipe.augment, recipe.test_copies, recipe.test_identity) == (*copies, False)


def test_variants_and_audit_train_what_they_say():
    study = open_study(Config(), CPU)
    models = {name: model["arguments"] for name, model in side_models(study, CPU).items()}
    objectives = {name: arguments.get("objective") for name, arguments in models.items()}
    assert objectives["[L,L] multiloss"] == "multiloss"
    assert objectives["[L,L] multiopt"] == "multiopt"
    assert objectives["[L,L] stage-wise"] == "staged"
    assert PUBLISHED[models["[L,L] multiopt"]["model"]]().stop_fused_gradient
    names = {name: {column["name"] for column in arguments["columns"]} for name, arguments in models.items()}
    alone, without = (
        names[f"{TABULAR}, {what}"] for what in ("acquisition features alone", "without acquisition features")
    )
    assert alone == set(ACQUISITION)
    assert without == names[f"{LEARNED}, without acquisition features"]
    assert alone.isdisjoint(without)
    assert alone | without == {column.name for column in COLUMNS}
    assert len(alone | without) == 18
    assert table_models(study, CPU)[LEARNED] == side_models(study, CPU)[LEARNED]  # trained once


def test_the_papers_order_of_features_follows_from_its_medians():
    product = rank_product(np.array([[row[at] for row in PAPER_MEDIANS.values()] for at in range(4)]))
    assert set(PAPER_MEDIANS) == {column.name for column in COLUMNS}
    order = [list(PAPER_MEDIANS)[place] for place in product.order]
    assert order[:4] == ["indication", "software_version", "age_years", "crop_height_mm"]
    assert product.rank[0][list(PAPER_MEDIANS).index("indication")] == 1
    assert len(FOUR) == 4
    assert {first for first, _, _, _ in PAIRS} | {second for _, second, _, _ in PAIRS} == set(PAPER) - {TABULAR}


def test_dummies_of_a_feature_move_together():
    groups = feature_groups(INPUTS)
    assert len(INPUTS) == 33
    assert len(groups) == 18
    assert groups["indication"] == [30, 31, 32]
    assert groups["software_version"] == list(range(20, 30))
    assert list(groups) == [column.name for column in COLUMNS]


# Cohorts.


def test_a_folder_has_raw_classes_and_33_named_inputs(tmp_path):
    cohort = folder_cohort(str(write_folder(tmp_path / "mine", sizes=(6, 4, 4))))
    raw = [int(np.load(tmp_path / "mine" / "Train" / f"{number}_y.npy")[0]) for number in range(1, 7)]
    assert cohort.label[:6].tolist() == [int(one == 2) for one in raw]
    assert set(raw) == {0, 1, 2}
    assert cohort.columns("input") == INPUTS
    np.testing.assert_array_equal(
        cohort.table[list(INPUTS)].iloc[7].to_numpy(float), np.load(tmp_path / "mine" / "Val" / "2_meta.npy")
    )
    np.testing.assert_array_equal(cohort.sources["image"][10], np.load(tmp_path / "mine" / "Test" / "1_x.npy"))
    [split] = parts(cohort).splits
    assert [len(part) for part in (split.train, split.validation, split.test)] == [6, 4, 4]


def test_classes_0_and_1_are_taken_as_they_are(tmp_path):
    folder = write_folder(tmp_path / "mine", sizes=(4, 4, 4))
    for path in folder.rglob("*_y.npy"):
        np.save(path, np.minimum(np.load(path), 1))
    assert folder_cohort(str(folder)).label[:3].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("Val/2_meta.npy", np.array([{"a": 1}], dtype=object), r"2_meta.npy: cannot be read.*numpy.save"),
        ("Val/2_meta.npy", np.full(33, np.nan), r"Val/2_meta.npy: has no number at 0"),
        ("Test/3_meta.npy", np.zeros(30), r"Test/3_meta.npy: has 30 values. Expected 33"),
        ("Train/1_y.npy", np.array([3]), r"Train/1_y.npy: holds \[3\]"),
    ],
)
def test_errors_name_the_file(tmp_path, name, value, message):
    folder = write_folder(tmp_path / "mine", sizes=(4, 4, 4))
    np.save(folder / name, value, allow_pickle=True)
    with pytest.raises(UnreadableFile, match=message):
        folder_cohort(str(folder))


def test_an_absent_file_and_an_image_beyond_0_to_1_are_named(tmp_path):
    folder = write_folder(tmp_path / "mine", sizes=(4, 4, 4))
    np.save(folder / "Train" / "2_x.npy", np.full((16, 16, 1), 300.0))
    with pytest.raises(UnreadableFile, match=r"Train/2_x.npy: has values outside 0 to 1"):
        folder_cohort(str(folder)).sources["image"][1]
    (folder / "Val" / "3_y.npy").unlink()
    with pytest.raises(UnreadableFile, match=r"Val/3_y.npy: is not there"):
        folder_cohort(str(folder))
    with pytest.raises(UnreadableFile, match=r"other/Train: is not there. Expected the folders Train, Val, Test"):
        folder_cohort(str(tmp_path / "other"))


def test_other_inputs_need_names(tmp_path):
    folder = write_folder(tmp_path / "mine", sizes=(4, 4, 4), inputs=3)
    with pytest.raises(ValueError, match=r"cases have 3 inputs, and 33 have names.*columns.txt"):
        folder_cohort(str(folder))
    (folder / "columns.txt").write_text("age\nsex=male\nechotime\n", encoding="utf-8")
    study = open_study(Config(cohort=str(folder)), CPU)
    assert [column["name"] for column in study.columns] == ["age", "sex=male", "echotime"]
    assert study.acquisition == ()
    assert not [name for name in side_models(study, CPU) if "acquisition" in name]


def test_a_patient_in_two_parts_is_refused(tmp_path):
    folder = write_folder(tmp_path / "mine", sizes=(4, 4, 4))
    rows = [f"{part},{number},p{number}" for part in ("Train", "Val", "Test") for number in range(1, 5)]
    path = folder / "patients.csv"
    path.write_text("\n".join(["part,case,patient", *rows]), encoding="utf-8")
    cohort = folder_cohort(str(folder))
    assert len(set(cohort.patient_id)) == 4
    with pytest.raises(ValueError, match="p1"):
        given(cohort, "split")
    path.write_text("\n".join(["part,case,patient", *rows[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"patients.csv: no patient of .*Train/1_x.npy"):
        folder_cohort(str(folder))


def test_skin_lesions_are_melanomas_or_not_in_the_published_shares():
    real_data("ham10000_small")
    cohort = skin_lesions(600, size=24, seed=1)
    assert cohort.classes == ("no", "yes")
    assert cohort.label.mean() == pytest.approx(483 / 5928, abs=0.002)
    assert set(cohort.columns("input")) == {"age", "sex", "localization"}
    [split] = parts(cohort).splits
    shares = [len(part) / len(cohort) for part in (split.train, split.validation, split.test)]
    np.testing.assert_allclose(shares, FRACTIONS, atol=0.01)
    image = cohort.sources["image"][0]
    assert image.shape == (24, 24, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1
    whole = skin_lesions(size=24)
    assert len(whole) == 5928
    row = whole.case_id.index(cohort.case_id[5])
    np.testing.assert_array_equal(whole.sources["image"][row], cohort.sources["image"][5])


def test_lesions_that_were_drawn_keep_their_own_image_and_row():
    real_data("ham10000_small")
    cohort = skin_lesions(80, size=16, seed=3)
    few = cohort.take(np.array([7, 2]))
    np.testing.assert_array_equal(few.sources["image"][0], cohort.sources["image"][7])
    melanoma = np.asarray(cohort.table["dx"] == "mel")
    np.testing.assert_array_equal(cohort.label, melanoma.astype(int))


@pytest.mark.slow
def test_all_models_variants_and_the_audit_on_synthetic_breasts(tmp_path):
    settings = replace(
        TINY, models=CPU.models, variants=CPU.variants, audit=True, training={**TINY.training, "augment": "projection"}
    )
    assert isinstance(settings, Settings)
    report = run(Config(out=tmp_path), settings)
    stored = json.loads((report.parent / "results.json").read_text(encoding="utf-8"))["tables"]
    assert [row[0] for row in stored["holste_table"]["rows"]] == list(PAPER)
    assert len(stored["holste_tests"]["rows"]) == 2 * len(PAIRS)
    assert len(stored["holste_variants"]["rows"]) == 4
    assert len(stored["holste_audit"]["rows"]) == 5
    assert len(stored["holste_importance"]["rows"]) == 18
    assert "paper, mean rank" in stored["holste_importance"]["columns"]
    found = open_comparison(report.parent)
    for model in FOUR:
        cohort, [split] = found.plan.cohort, found.plan.splits.splits
        answer, inputs, _ = tabular_model(_folder(found, model), cohort, split)
        recipe = load_recipe(_folder(found, model))
        assert isinstance(recipe, DeepRecipe)
        clean = replace(recipe, test_copies=0, test_augment=None)
        expected = clean.predict(_folder(found, model), cohort, split.rows(cohort).test)[:, 1]
        np.testing.assert_allclose(answer(inputs), expected, atol=2e-6)
