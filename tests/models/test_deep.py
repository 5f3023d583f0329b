"""Networks as recipes: what is fitted, what decides on the epoch, what is kept, and what is refused at once."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from fusion_jax.data import Cohort, Image, Lazy, k_fold
from fusion_jax.data.augment import Flip
from fusion_jax.data.augment import Recipe as Augmentation
from fusion_jax.encoders.stored import load_arrays, save_arrays
from fusion_jax.models.augmentation import AUGMENTATIONS, augmentation
from fusion_jax.models.deep import DeepRecipe, features
from fusion_jax.models.images import ImageScale, check_shapes, fit_scale, remembered
from fusion_jax.models.network import native_fill, probabilities
from fusion_jax.models.preparation import Preparation, prepare
from fusion_jax.models.recipe import open_recipe
from fusion_jax.models.registry import make_recipe
from fusion_jax.models.strategies import Design, build
from fusion_jax.models.target import Target, with_target
from fusion_jax.models.training_run import optimiser_settings, validation_metrics
from fusion_jax.training.keys import run_key
from tests.helpers import assert_close

BINARY = Target("label", "label", ("no", "yes"))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_best_epoch_on_the_validation_cases_is_what_predicts(trained):
    cohort, facts = trained.tiny.cohort, open_recipe(trained.folder)["facts"]
    rows = trained.split.rows(cohort).validation
    scores = trained.recipe.predict(trained.folder, cohort, rows)
    history = lines(trained.folder)
    assert len(history) == facts["epochs"] == 3
    best = history[facts["best_epoch"]]
    assert_close(roc_auc_score(cohort.label[rows], scores[:, 1]), best["validation_auc"])
    assert_close(log_loss(cohort.label[rows], scores[:, 1]), best["validation_loss"], rtol=1e-5)
    assert best["validation_auc"] == max(line["validation_auc"] for line in history)


def test_the_record_says_how_it_was_trained(trained):
    facts = open_recipe(trained.folder)["facts"]
    arrays = load_arrays(trained.folder / "weights.npz")
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(arrays["params"]))
    assert facts["initialisation"] == {"image": {"kind": "random"}, "clinical": {"kind": "random"}}
    assert facts["cases"] == {"train": len(trained.split.train), "validation": len(trained.split.validation)}
    assert not facts["fixed_epochs"]


def test_features_enter_the_fusion_and_are_zero_where_a_source_is_absent(trained):
    found = features(trained.folder, trained.tiny.cohort, np.arange(5))
    assert {name: x.shape for name, x in found.items()} == {"image": (5, 8), "clinical": (5, 8)}
    assert not found["image"][2].any()
    assert not found["clinical"][3].any()
    assert found["image"][0].any()
    assert found["clinical"][0].any()


@pytest.mark.parametrize("row", [2, 3], ids=["no image", "no clinical data"])
def test_a_case_is_answered_alike_alone_and_among_others_that_have_what_it_lacks(trained, row):
    cohort = trained.tiny.cohort
    among = trained.recipe.predict(trained.folder, cohort, np.arange(6))[row]
    alone = trained.recipe.predict(trained.folder, cohort.take([row]), np.arange(1))[0]
    assert_close(alone, among, rtol=1e-6)


def test_a_folder_of_other_settings_is_refused(trained):
    cohort = trained.tiny.cohort.take(np.concatenate(trained.split.rows(trained.tiny.cohort)[:2]))
    other = dataclasses.replace(trained.recipe, dropout=0.5)
    weights = (trained.folder / "weights.npz").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"dropout"):
        other.fit(cohort, trained.split._replace(test=()), run_key(0), trained.folder)
    assert (trained.folder / "weights.npz").stat().st_mtime_ns == weights


# Preparation.


def test_everything_is_fitted_to_training_cases(tiny):
    cohort = tiny.cohort
    train = np.arange(0, 10)
    preparation = prepare(cohort, ("image", "clinical"), train, fold="f0")
    ready = preparation.apply(cohort, cohort.case_id[:10])
    pixels = np.stack([ready.sources["image"][row] for row in (0, 1, *range(3, 10))])
    assert abs(pixels.mean()) < 1e-6
    assert_close(pixels.std(), 1.0, rtol=1e-5)
    ages = np.stack([ready.sources["clinical"][row] for row in range(10)])[:, 0]
    assert abs(ages.mean()) < 1e-6
    assert_close(ages.std(ddof=1), 1.0, rtol=1e-5)
    assert ready.sources["clinical"][0].shape == (2,), "a column of one value says nothing"
    again = Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    assert again == preparation


def test_native_values_stay_in_their_unit(tiny):
    preparation = prepare(tiny.cohort, ("clinical",), np.arange(10), fold="f0", values="native")
    ready = preparation.apply(tiny.cohort, tiny.cohort.case_id[:10])
    ages = [float(ready.sources["clinical"][row][0]) for row in range(16)]
    assert_close(np.array(ages), tiny.cohort.table["age"].to_numpy(np.float32))


def test_a_scale_is_of_all_voxels_of_a_channel(tiny):
    rows = np.array([0, 1, 2, 4])
    scale = fit_scale(tiny.cohort, "image", rows)
    values = tiny.reader.values[[0, 1, 4]].astype(np.float64)
    assert_close(np.array(scale.centre), values.mean(axis=(0, 1, 2)))
    assert_close(np.array(scale.spread), values.std(axis=(0, 1, 2)))
    constant = Cohort.from_arrays({"ct": np.full((2, 2, 2, 1), 0.1)}, label=[0, 1])
    assert fit_scale(constant, "ct", np.arange(2)).spread == (1.0,)


def test_images_of_two_shapes_name_both_cases_before_anything_is_compiled(tiny, tmp_path):
    shapes = {5: (8, 7, 1)}
    odd = Lazy(lambda row: Image(np.zeros(shapes.get(row, (8, 8, 1)))), np.arange(16), "image", "odd")
    cohort = tiny.cohort.with_source("image", odd)
    split = k_fold(cohort, 2, seed=0).splits[0]
    split = split._replace(train=cohort.case_id[:8], test=cohort.case_id[8:])
    with pytest.raises(ValueError, match=r"image of case case_5 has shape \(8, 7, 1\), that of case case_0 \(8"):
        make_recipe("image-only").fit(cohort, split, run_key(0), tmp_path)
    with pytest.raises(ValueError, match=r"no training case has 'image'"):
        check_shapes(tiny.cohort.take([2]), ["image"])
    broken = tiny.reader.values.copy()
    broken[5, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image of case case_5 holds NaN or infinity; .*`preprocess`"):
        check_shapes(tiny.cohort.with_source("image", broken), ["image"])


def test_images_are_read_once_in_all_folds_as_far_as_memory_goes(tiny):
    kept = remembered(tiny.cohort, gigabytes=1.0)
    for part in (kept.take([0, 1]), kept.take([1, 4])):
        for row in range(2):
            part.image("image", row)
    assert sorted(tiny.reader.asked) == [0, 1, 4]
    small = remembered(tiny.cohort, gigabytes=8 * 8 * 4 / 1e9)
    tiny.reader.asked.clear()
    for row in (5, 5, 6, 6):
        small.image("image", row)
    assert tiny.reader.asked == [5, 6, 6]


# Targets and metrics.


def test_probabilities_of_one_logit_and_of_many():
    assert_close(probabilities(np.array([[np.log(3.0)]]), BINARY), np.array([[0.25, 0.75]]))
    assert_close(probabilities(np.log(np.array([[1.0, 3.0]])), BINARY), np.array([[0.25, 0.75]]))
    assert probabilities(np.array([[2.0]]), Target("survival", "died")).tolist() == [[2.0]]


def test_validation_metrics_equal_scikit_learn(make_tiny):
    rng = np.random.default_rng(0)
    cohort = make_tiny(30, classes=3).cohort
    scores = rng.dirichlet(np.ones(3), 30)
    found = validation_metrics(scores, cohort, np.arange(30), Target("label", "label", cohort.classes))
    assert_close(found["auc"], roc_auc_score(cohort.label, scores, multi_class="ovr"))
    assert_close(found["loss"], log_loss(cohort.label, scores))


def test_a_validation_part_of_one_class_has_no_auc(tiny):
    rows = np.array([0, 4, 6])
    found = validation_metrics(np.full((3, 2), 0.5), tiny.cohort, rows, Target("label", "label", tiny.cohort.classes))
    assert np.isnan(found["auc"])
    assert_close(found["loss"], np.log(2))


def test_survival_is_judged_by_concordance(make_tiny):
    cohort = make_tiny(survival=True).cohort
    days = cohort.table["days"].to_numpy()
    target = Target("survival", "died")
    found = [validation_metrics(sign * days[:, None], cohort, np.arange(16), target) for sign in (-1.0, 1.0)]
    assert [one["auc"] for one in found] == [1.0, 0.0]
    assert found[0]["loss"] < found[1]["loss"]


def test_columns_of_another_task_refuse_nobody(make_tiny):
    cohort = make_tiny(survival=True).cohort
    roles = with_target(cohort, Target("label", "label", ("a", "b"))).roles
    assert {roles["days"], roles["died"]} == {"never"}
    assert roles["age"] == "input"
    assert with_target(cohort, Target("survival", "died")).roles == cohort.roles


def test_without_validation_cases_no_plateau_is_waited_for():
    recipe = make_recipe("gated", {"schedule": "plateau"})
    assert isinstance(recipe, DeepRecipe)
    assert optimiser_settings(recipe).schedule == "plateau"
    assert optimiser_settings(recipe, validated=False).schedule == "constant"


# Designs and augmentation.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnet17"}, r"encoder of source 'ct': no 'resnet17'; did you mean 'resnet1"),
        ({"encoder": {"name": "cnn", "width": 3}}, r"encoder 'cnn' of source 'ct': no setting 'width'; did you mean"),
        ({"encoders": {"clinical": "cnn"}}, r"encoder of source 'clinical': no 'cnn'; there is 'mlp'"),
    ],
)
def test_an_encoder_that_is_not_there_is_named(change, message):
    design = Design("gated", ("ct", "clinical"), {"ct": (8, 8, 1), "clinical": (3,)}, 1)
    with pytest.raises(ValueError, match=message):
        build(design._replace(**change))


def test_an_encoding_has_about_the_size_of_the_image_features():
    design = Design("positional", ("ct", "clinical"), {"ct": (8, 8, 1), "clinical": (3,)}, 1, features=32)
    module = build(design)
    assert module.encoders["clinical"].size == 30
    assert build(design._replace(encoding={"kind": "repetition", "size": 3})).encoders["clinical"].kind == "repetition"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_has_transforms(name):
    found = augmentation(name, 32)
    assert (found is None) == (name == "none")
    assert found is None or found.transforms


def test_the_border_of_a_scaled_image_is_the_native_value():
    recipe = Augmentation((Flip(-1),), fill={"ct": -1000.0})
    filled = native_fill(recipe, {"ct": ImageScale((-500.0,), (250.0,)), "pet": ImageScale((2.0,), (4.0,))})
    assert filled.fill_of("ct") == -2.0
    assert filled.fill_of("pet") == -0.5


def test_arrays_are_kept_as_they_are(tmp_path):
    variables = {"params": {"a": {"kernel": np.arange(4.0, dtype=np.float32)}}, "encoding": {"centre": np.ones(2)}}
    save_arrays(tmp_path / "weights.npz", variables)
    assert_close(load_arrays(tmp_path / "weights.npz"), variables)


# Trainings of two sources of vectors, which compile in seconds.


def vectors(cases=20):
    rng = np.random.default_rng(0)
    label = np.arange(cases) % 2
    blocks = {name: rng.normal(size=(cases, 4)) + label[:, None] for name in ("first", "second")}
    return Cohort.from_arrays(blocks, label=label, name="vectors")


def trained_on(cohort, arguments, folder):
    split = k_fold(cohort, 2, seed=0).splits[0]
    recipe = make_recipe("concatenate", {"epochs": 2, "features": 4, "head": [], "quality": "none"} | arguments)
    recipe.fit(cohort, split, run_key(0), folder)
    return recipe


def test_training_in_stages_leaves_encoders_as_the_sources_trained_them(tmp_path):
    cohort = vectors()
    recipe = trained_on(cohort, {"objective": "staged", "optimiser": "adamw", "weight_decay": 0.1}, tmp_path)
    assert recipe.predict(tmp_path, cohort, np.arange(20)).shape == (20, 2)
    before, after = (load_arrays(tmp_path / part / "weights.npz")["params"] for part in ("sources", "."))
    for name in ("encoders_first", "encoders_second"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert np.abs(after["classifier"]["kernel"] - before["classifier"]["kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["focal", "joint", "multiloss", "multiopt", "uncertainty", "energy-gap"])
def test_every_objective_trains(objective, tmp_path):
    cohort = vectors()
    recipe = trained_on(cohort, {"objective": objective, "balanced": objective == "focal"}, tmp_path)
    assert np.isfinite(recipe.predict(tmp_path, cohort, np.arange(20))).all()


@pytest.mark.slow
def test_an_encoder_of_another_training_starts_a_new_one(tmp_path):
    from safetensors.numpy import save_file

    from fusion_jax.encoders.pretrained import flatten

    cohort = vectors()
    trained_on(cohort, {}, tmp_path / "first")
    save_file(flatten(load_arrays(tmp_path / "first/weights.npz")), tmp_path / "net.safetensors")
    weights = {"first": {"file": str(tmp_path / "net.safetensors"), "origin": "a test"}}
    trained_on(cohort, {"weights": weights, "learning_rate": 1e-12}, tmp_path / "second")
    before, after = (load_arrays(tmp_path / name / "weights.npz")["params"] for name in ("first", "second"))
    assert_close(after["encoders_first"], before["encoders_first"], rtol=1e-4)
    record = open_recipe(tmp_path / "second")["facts"]["initialisation"]
    assert record["first"]["kind"] == "pretrained"
    assert record["first"]["file"] == "net.safetensors"
    assert record["second"] == {"kind": "random"}


@pytest.mark.slow
def test_copies_of_a_case_do_not_depend_on_the_others(make_tiny, tmp_path):
    cohort = make_tiny().cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    arguments = {"epochs": 1, "features": 4, "head": [], "encoder": {"name": "cnn", "widths": [4]}, "quality": "none"}
    recipe = make_recipe("image-only", arguments | {"augment": "flips", "test_copies": 3})
    recipe.fit(cohort, split, run_key(0), tmp_path)
    rows = np.arange(16)
    whole = recipe.predict(tmp_path, cohort, rows)
    assert_close(recipe.predict(tmp_path, cohort, rows[::-3]), whole[::-3])
    clean = dataclasses.replace(recipe, test_copies=0).predict(tmp_path, cohort, rows)
    assert np.abs(clean - whole).max() > 1e-4


@pytest.mark.slow
def test_a_network_learns_survival(make_tiny, tmp_path):
    cohort = make_tiny(40, survival=True).cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    recipe = make_recipe("clinical-only", {"epochs": 30, "learning_rate": 0.02})
    recipe.fit(cohort, split, run_key(0), tmp_path)
    scores = recipe.predict(tmp_path, cohort, split.rows(cohort).train)
    found = validation_metrics(scores, cohort, split.rows(cohort).train, Target("survival", "died"))
    assert found["auc"] > 0.55
