"""The experiment end to end at small size, and what its test of the central claim rests on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from experiments.command_line import pretrained
from experiments.portal_hypertension.blocks import CONTROLS, block_sizes, marker_block
from experiments.portal_hypertension.claim import bootstrapped_mean_auc, judge, mean_auc, run_study
from experiments.portal_hypertension.cohort import other_livers, sarcoma, with_markers, with_surfaces
from experiments.portal_hypertension.config import PAPER_GAMMAS, PRESETS, Config
from experiments.portal_hypertension.heads import PENALTIES, ridge_heads, standardised
from experiments.portal_hypertension.run import IMAGENET, image_width, run
from experiments.portal_hypertension.study import open_study
from experiments.portal_hypertension.table import PAPER, rows_of_table
from experiments.portal_hypertension.trained_heads import HeadTraining, fit_layers
from experiments.portal_hypertension.words import has_peak, sentences
from fusion_jax.data import Arrays, Cohort
from fusion_jax.data.splits import Rows
from fusion_jax.data.synthetic import dial, portal_hypertension_ct
from fusion_jax.models.deep import DeepRecipe
from fusion_jax.models.published import PUBLISHED
from fusion_jax.models.registry import make_recipe

TINY = replace(
    PRESETS["cpu"],
    livers=120,
    encoder={"name": "cnn", "projection": 8},
    training={**PRESETS["cpu"].training, "epochs": 2},
    head_training={"learning_rate": 4e-3, "batch_size": 32, "epochs": 2, "patience": 1},
    table_splits=1,
    splits=3,
    gammas=(0.5, 1.0, 3.0),
    trained_gammas=(1.0, 3.0),
    resamples=100,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert run(Config(cohort="dial", out=out), TINY) == out / "dial-cpu" / "report.html"
    return out / "dial-cpu"


def _numbers(results: Path) -> dict:
    return json.loads((results / "results.json").read_text(encoding="utf-8"))


def _markers(n: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    markers = rng.normal(size=(n, 3)) * (1.0, 0.5, 120.0) + (2.0, 3.5, 180.0)
    return markers, rng.normal(size=(n, 8)), rng.integers(0, 2, n)


def _splits(n: int, count: int) -> list[Rows]:
    rng, half = np.random.default_rng(1), n // 2
    orders = [rng.permutation(n).astype(np.int32) for _ in range(count)]
    return [Rows(order[:half], order[half : half + n // 4], order[half + n // 4 :]) for order in orders]


# The ten rows.


@pytest.mark.slow  # ten networks are compiled
def test_ten_rows_are_trained_on_the_same_splits_and_set_beside_the_paper(results):
    rows = _numbers(results)["table"]
    assert [row["model"] for row in rows] == list(PAPER)
    assert [row["gamma"] for row in rows[3:]] == [0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0]  # of 8 features and 4 markers
    assert all(row["low"] <= row["auc"] <= row["high"] for row in rows)
    splits = json.loads((results / "table" / "splits.json").read_text(encoding="utf-8"))
    parts = [[len(split[part]) for part in ("train", "validation", "test")] for split in splits["splits"]]
    assert parts == [[96, 12, 12]]
    assert (splits["kind"], splits["settings"]["patients"]) == ("monte-carlo", "together")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "0.74" in page
    assert "Did fusion help" in page


@pytest.mark.slow  # ten networks are compiled
def test_the_report_says_what_no_model_can_exceed(results):
    optimal = _numbers(results)["optimal"]
    assert optimal["both"] > max(optimal["features"], optimal["clinical"])
    assert f"{optimal['both']:.3f} from both" in (results / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow  # ten networks are compiled
def test_a_second_call_trains_nothing(results):
    stamps = {path: path.stat().st_mtime_ns for path in (results / "table" / "tasks").rglob("weights.npz")}
    assert len(stamps) == 10
    run(Config(cohort="dial", out=results.parent), TINY)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_the_paper_preset_is_the_published_recipe():
    settings = PRESETS["paper"]
    cohort = Cohort.from_arrays({"image": np.zeros((4, 8, 8, 3)), "clinical": np.zeros((4, 3))}, label=[0, 1, 0, 1])
    rows = rows_of_table(cohort, "image", image_width(settings), settings.encoder, settings.training)
    sizes = [row["arguments"]["encoders"]["clinical"]["size"] for row in list(rows.values())[4:]]
    assert sizes == [192, 384, 768, 2046, 3072, 6144]
    assert [f"image + PE, {size}" in PUBLISHED for size in sizes] == [True] * 6
    for model in rows.values():
        recipe = make_recipe(model["recipe"], model["arguments"])
        assert isinstance(recipe, DeepRecipe)
        assert (recipe.optimiser, recipe.learning_rate, recipe.momentum, recipe.batch_size) == ("sgd", 1e-3, 0.9, 8)
        assert (recipe.epochs, recipe.smoothing, recipe.augment, recipe.head) == (80, 0.1, "horizontal-flip", ())
    assert (settings.livers, settings.size, settings.fractions) == (198, 224, (0.8, 0.1, 0.1))


def test_the_published_trunk_asks_for_its_weights_or_for_random_ones():
    with pytest.raises(ValueError, match=r"ImageNet weights.*--init random"):
        pretrained(Config(preset="paper"), IMAGENET)
    with pytest.raises(ValueError, match="without --weights-sha256"):
        pretrained(Config(preset="paper", weights=Path("resnet152.pth")), IMAGENET)
    assert pretrained(Config(preset="paper", init="random"), IMAGENET) is None
    found = pretrained(Config(weights=Path("a.pth"), weights_sha256="00"), IMAGENET)
    assert found == {"file": "a.pth", "sha256": "00", "origin": ""}


# Cohorts.


def test_the_stand_in_has_three_slices_and_numbers_for_every_patient():
    cohort = sarcoma()
    assert (len(cohort), int(cohort.label.sum())) == (48, 24)
    assert cohort.sources["image"][0].shape == (64, 64, 3)
    assert np.isfinite([cohort.sources["clinical"][row] for row in range(48)]).all()


def test_masks_of_a_user_give_the_image_that_the_labels_of_the_synthetic_liver_give():
    volumes, _ = portal_hypertension_ct(10, seed=0)
    volumes = volumes.take(np.array([3]))
    labels = volumes.image("labels", 0)
    values = {"liver": [1, 2], "gallbladder": [3], "vena_cava": [4]}
    masks = {name: np.isin(labels.values, own).astype(np.uint8)[None] for name, own in values.items()}
    place: dict = {"spacing": [labels.spacing], "affine": [labels.affine]}
    sources = {"ct": Arrays(volumes.image("ct", 0).values[None], unit="HU", **place)}
    own = Cohort.from_arrays(sources | {name: Arrays(mask, "mask", **place) for name, mask in masks.items()})
    expected = with_surfaces(volumes, 32).image("image", 0).values
    np.testing.assert_array_equal(with_surfaces(own, 32).image("image", 0).values, expected)


def test_livers_for_the_trunk_tell_their_relief_and_no_pressure():
    cohort = other_livers(12, size=16, seed=3)
    assert np.bincount(cohort.label).tolist() == [3, 3, 3, 3]
    assert list(cohort.sources) == ["image"]
    assert "hvpg" not in " ".join(cohort.table.columns)


def test_a_marker_that_is_missing_is_named():
    import pandas as pd

    table = pd.DataFrame({"platelets": [100.0, None], "y": [0, 1]}, index=["a", "b"])
    cohort = Cohort.from_arrays(
        {"image": np.zeros((2, 4, 4, 3))}, table=table, roles={"platelets": "input", "y": "label"}
    )
    with pytest.raises(ValueError, match="'platelets' holds 'nan' in case b"):
        with_markers(cohort)


def test_a_folder_without_markers_says_what_is_expected(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)):
        open_study(str(tmp_path / "nothing"), TINY, tmp_path, seed=0)


# Blocks.


def test_sizes_are_those_of_the_paper():
    assert block_sizes(PAPER_GAMMAS, 2048, 3) == (192, 384, 768, 2046, 3072, 6144)


@pytest.mark.parametrize("control", CONTROLS)
def test_blocks_have_the_norm_of_the_encoding_over_the_training_patients(control):
    markers, _, _ = _markers()
    train = np.arange(50)
    block = marker_block(control, markers, 24, train, seed=3)
    assert block.shape == (90, 3 if control == "raw" else 24)
    np.testing.assert_allclose(np.mean(np.sum(np.square(block[train]), axis=1)), 12)


def test_shuffled_encodings_are_the_encodings_of_others():
    markers, _, _ = _markers()
    own, others = (marker_block(control, markers, 24, np.arange(90), seed=3) for control in ("positional", "shuffled"))
    np.testing.assert_allclose(np.sort(own, axis=0), np.sort(others, axis=0), atol=1e-6)
    assert np.mean(np.all(np.isclose(own, others), axis=1)) < 0.1


def test_controls_are_fitted_to_training_patients_alone():
    markers, _, _ = _markers()
    changed = markers.copy()
    changed[60:] *= 5
    for control in ("repetition", "fourier", "raw"):
        one, other = (marker_block(control, values, 24, np.arange(50), seed=3)[:50] for values in (markers, changed))
        np.testing.assert_array_equal(one, other)


# Heads.


@pytest.mark.parametrize("width", [6, 300])
def test_heads_are_the_exact_minimisers(width):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)) @ rng.normal(size=(6, width))
    label = (features[:, 0] + rng.normal(size=120) > 0).astype(int)
    found = ridge_heads(features, label, np.arange(80), np.arange(80, 100))
    for penalty, logits in zip(PENALTIES, found.logits, strict=True):
        model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
        expected = model.fit(features[:80], label[:80]).decision_function(features)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert found.chosen == np.argmin(found.validation_loss)


def test_repetition_is_raw_markers_of_the_same_norm_to_a_penalised_linear_head():
    markers, image, label = _markers()
    [split] = _splits(90, 1)
    repeated, raw = (
        ridge_heads(
            np.concatenate([image, marker_block(control, markers, 24, split.train, seed=0)], axis=1),
            label,
            split.train,
            split.validation,
        ).logits
        for control in ("repetition", "raw")
    )
    np.testing.assert_allclose(repeated, raw, atol=1e-4)


def test_scaling_looks_at_training_patients_alone_and_leaves_constants():
    features = np.array([[0.0, 1.0], [2.0, 1.0], [50.0, 1.0]])
    np.testing.assert_allclose(standardised(features, np.array([0, 1])), [[-1, 0], [1, 0], [49, 0]])


def test_no_head_sees_the_labels_of_test_patients():
    markers, image, label = _markers()
    rows = _splits(90, 1)
    changed = label.copy()
    changed[rows[0].test] = 1 - changed[rows[0].test]
    training = HeadTraining(batch_size=45, epochs=2, learning_rate=0.01)
    one, other = (
        run_study([image], markers, found, rows, (1.0,), controls=("positional",)).logits for found in (label, changed)
    )
    np.testing.assert_array_equal(one, other)
    one, other = (fit_layers([[image]], found, rows, training, 0) for found in (label, changed))
    np.testing.assert_array_equal(one, other)
    changed[rows[0].train] = 1 - changed[rows[0].train]
    assert not np.array_equal(one, fit_layers([[image]], changed, rows, training, 0))


# The claim.


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits, label = np.round(rng.normal(size=(2, 3, 60)), 1), rng.integers(0, 2, 60)
    part = rng.random((3, 60)) < 0.7
    expected = [[roc_auc_score(label[part[s]], logits[m, s, part[s]]) for s in range(3)] for m in range(2)]
    np.testing.assert_allclose(mean_auc(logits, label, part), expected)


def test_bootstrap_weighs_every_split_by_one_draw_of_patients():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    logits = (label + rng.normal(size=(1, 1, 200))).repeat(2, axis=1)
    part = np.ones((2, 200), bool)
    one = bootstrapped_mean_auc(logits[:, :1], label, part[:1], resamples=300, seed=0)
    both = bootstrapped_mean_auc(logits, label, part, resamples=300, seed=0)
    np.testing.assert_allclose(one, both)  # two equal splits hold no more patients than one
    area = mean_auc(logits[:, :1], label, part[:1])[0, 0]
    assert abs(one.mean() - area) < 0.01
    # Hanley and McNeil 1982, for the same area and numbers.
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    positive = int(label.sum())
    negative = 200 - positive
    variance = (area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)) / (
        positive * negative
    )
    assert one.std() == pytest.approx(np.sqrt(variance), rel=0.2)


def test_markers_without_signal_have_no_peak_and_markers_with_signal_beat_those_of_others():
    cohort, _ = dial(400, unique={"image": 0.5, "clinical": 1.5}, dimension={"image": 16, "clinical": 4}, seed=1)
    image, markers = (np.stack([cohort.sources[name][row] for row in range(400)]) for name in ("image", "clinical"))
    rows = _splits(400, 4)
    asked: dict = {"controls": ("positional", "shuffled")}
    found = judge(run_study([image] * 4, markers, cohort.label, rows, (0.5, 1.0, 3.0), **asked), resamples=200)
    shuffled = next(one for one in found.over_controls if one.what == "shuffled")
    assert shuffled.low > 0.05
    assert found.benefit.what == "over markers alone"
    assert sum(found.curves[0].best) == pytest.approx(4)
    noise = np.random.default_rng(0).normal(size=markers.shape)
    nothing = judge(run_study([image] * 4, noise, cohort.label, rows, (0.5, 1.0, 3.0), **asked), resamples=200)
    assert not has_peak(nothing)
    assert sentences(nothing)[0].startswith("No evidence of a peak")


def test_a_peak_that_is_there_is_found():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    rows = _splits(400, 4)
    noise = [rng.normal(size=(400, 16))] * 4, rng.normal(size=(400, 4)), label, rows
    study = run_study(*noise, (0.5, 1.0, 3.0), controls=("positional", "shuffled"))
    logits = rng.normal(size=study.logits.shape).astype(np.float32)
    logits[study.row(("positional", 16))] += 2 * label
    found = judge(study._replace(logits=logits), resamples=200)
    assert has_peak(found)
    assert sentences(found)[0].startswith("There is a peak at γ ≈ 1")
