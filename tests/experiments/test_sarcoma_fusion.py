"""The main job end to end at small size, and what its cohort and its baselines are."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.sarcoma_fusion import run as experiment
from experiments.sarcoma_fusion.cohort import make_cohort, shortly_followed
from experiments.sarcoma_fusion.config import NETWORKS, SINGLES, SURVIVAL_SINGLES, Config, label_models, survival_models
from experiments.sarcoma_fusion.single_numbers import single_numbers
from fusion_jax.data.samples import soft_tissue_sarcoma
from fusion_jax.models.comparison import open_plan
from fusion_jax.models.deep import DeepRecipe
from fusion_jax.models.registry import make_recipe

SMALL = {
    "encoder": {"name": "cnn", "widths": [2]},
    "features": 2,
    "head": [],
    "inputs": ["pet", "clinical"],
    "augment": "none",
    "quality": "none",
}
KEPT = ("all, concatenated", "tumour volume", "SUVmax", "volume + SUVmax", "clinical, logistic")
KEPT_OF_SURVIVAL = ("clinical", "tumour volume", "volume + SUVmax")


def _small(models: dict, kept: tuple[str, ...]) -> dict:
    chosen = {name: models[name] for name in kept}
    for name, one in chosen.items():
        if "epochs" in one["arguments"]:
            inputs = {"inputs": ["clinical"]} if name == "clinical" else {}
            one["arguments"] = {**one["arguments"], **SMALL, **inputs}
    return chosen


def _config(out: Path) -> Config:
    return Config(
        out=out, folds=2, repeats=1, epochs=1, resamples=100, importance=0, null=0, explained=0, workers=1
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "label_models", lambda: _small(label_models(), KEPT))
        patch.setattr(experiment, "survival_models", lambda: _small(survival_models(), KEPT_OF_SURVIVAL))
        assert experiment.run(_config(out)) == out / "report.html"
    return out


def test_a_second_call_has_nothing_to_train(results):
    for part, kept in ((".", KEPT), ("time_to_metastasis", KEPT_OF_SURVIVAL)):
        made = open_plan(results / part)
        assert len(made.tasks) == 2 * len(kept)
        assert made.waiting == ()


def test_the_report_answers_with_differences_intervals_and_limits(results):
    page = " ".join((results / "report.html").read_text(encoding="utf-8").split())
    for words in (
        "9 of 24 patients counted as “no metastasis” were followed for less than two years",
        "cannot be told apart",
        "What single numbers say",
        "0.745 [0.604, 0.886]",
        "Time to metastasis",
        "Images were chosen beforehand",
        "training ends at a fixed epoch",
    ):
        assert words in page, words
    assert "of pet_volume alone" not in page, "volume and SUVmax read that source alone"
    evaluation = json.loads((results / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["patients"], evaluation["config"]["folds"]) == (48, 2)
    verdicts = evaluation["verdicts"]["all"]
    assert [line.split(" beats ")[0] for line in verdicts] == [
        "No evidence that all, concatenated",
        "No evidence that volume + SUVmax",
    ]
    assert (results / "figures" / "auc.svg").stat().st_size < 100_000
    assert (results / "time_to_metastasis" / "report.html").exists()


def test_label_and_time_are_predicted_on_the_same_folds(results):
    both = [
        json.loads((results / part / "splits.json").read_text(encoding="utf-8")) for part in (".", "time_to_metastasis")
    ]
    assert both[0]["splits"] == both[1]["splits"]
    tested = [case for split in both[0]["splits"] for case in split["test"]]
    assert sorted(tested) == sorted(make_cohort().case_id)
    for split in both[0]["splits"]:
        assert not set(split["train"]) & set(split["test"])


def test_the_main_job_is_six_folds_three_times():
    config = Config()
    assert (config.folds, config.repeats, config.epochs) == (6, 3, None)


def test_the_cohort_holds_what_is_known_at_diagnosis():
    cohort, sample = make_cohort(), soft_tissue_sarcoma(paper_cohort=True)
    assert (len(cohort), int(cohort.label.sum())) == (48, 24)
    assert cohort.columns("input") == ("age_years", "sex", "grade")
    assert shortly_followed(cohort) == (9, 24)
    event = cohort.table["metastasis"].to_numpy() == 1
    days, metastasis, last = (
        table[column].to_numpy(float)
        for table, column in (
            (cohort.table, "days_to_metastasis_or_last_follow_up"),
            (sample.table, "days_diagnosis_to_outcome"),
            (sample.table, "days_diagnosis_to_last_follow_up"),
        )
    )
    np.testing.assert_array_equal(days, np.where(event, metastasis, last))
    for row in range(len(cohort)):
        pet, ct = (cohort.image(name, row).values for name in ("pet", "ct"))
        assert pet.shape == ct.shape == (64, 64, 1)
        # Nothing outside the contour is seen, and the hottest voxel inside it is.
        hottest = sample.pet[row][sample.mask[row]].max()
        np.testing.assert_allclose(pet.max() * 20, min(hottest, 20.0), rtol=1e-3)
        assert ct.min() >= 0
        assert ct.max() <= 1


def test_networks_read_images_and_the_sheet_and_have_one_budget():
    cohort = make_cohort()
    for models, singles in ((label_models(), SINGLES), (survival_models(), SURVIVAL_SINGLES)):
        assert set(singles) < set(models)
        budgets = set()
        for name, model in models.items():
            recipe = make_recipe(model["recipe"], model["arguments"])
            read = recipe.sources(cohort)
            if isinstance(recipe, DeepRecipe):
                assert set(read) <= {"pet", "ct", "clinical"}
                batches = -(-40 // (recipe.batch_size or 1))
                budgets.add((recipe.epochs, batches, recipe.learning_rate, recipe.head, str(recipe.encoder)))
                assert (len(read) > 1) == (name not in singles)
            elif name in ("tumour volume", "SUVmax", "volume + SUVmax"):
                assert read == ("pet_volume", "mask")
        assert len(budgets) == 1
    assert NETWORKS["epochs"] == 40


def test_single_numbers_are_those_of_the_specification():
    found = single_numbers(make_cohort(), partitions=20)
    areas = [auc for auc, _, _ in found.rows.values()]
    assert [round(area, 3) for area in areas[:2]] == [0.745, 0.738]
    assert areas[2] == pytest.approx(0.800, abs=0.01)
    assert found.spread == pytest.approx(0.015, abs=0.005)
    _, low, high = list(found.rows.values())[2]
    assert (round(low, 1), round(high, 1)) == (0.7, 0.9)
