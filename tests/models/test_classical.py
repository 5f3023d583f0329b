"""Classical models equal their references, and each case is scored by a fit that has not seen it."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sksurv.linear_model import CoxPHSurvivalAnalysis

from fusion_jax.data import Arrays, Cohort, Split, k_fold
from fusion_jax.models.classical import ClassicalRecipe
from fusion_jax.models.cox import fit_cox, partial_likelihood
from fusion_jax.models.features import Numbers, fit_features
from fusion_jax.models.measurements import measurable, measure
from fusion_jax.models.registry import make_recipe
from fusion_jax.training.keys import run_key
from tests.helpers import assert_close


def survival_data(cases=60, columns=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(cases, columns))
    time = np.ceil(rng.exponential(np.exp(-x[:, 0])) * 6)  # ties
    return x, time, rng.random(cases) < 0.7


@pytest.mark.parametrize("alpha", [0.1, 3.0])
def test_cox_equals_scikit_survival_with_ties(alpha):
    x, time, event = survival_data()
    outcome = np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])
    reference = CoxPHSurvivalAnalysis(alpha=alpha, ties="efron", n_iter=200, tol=1e-12).fit(x, outcome)
    # Their penalty stands beside the mean of the likelihood too.
    assert_close(fit_cox(x, time, event, penalty=alpha / len(x)), reference.coef_, rtol=1e-5)


def test_derivatives_of_the_partial_likelihood_are_those_of_differences():
    x, time, event = survival_data(20, 3)
    beta, step = np.array([0.3, -0.2, 0.1]), 1e-5
    found = partial_likelihood(beta, x, time, event)
    for axis in range(3):
        moved = [partial_likelihood(beta + sign * step * np.eye(3)[axis], x, time, event) for sign in (1, -1)]
        assert_close(found.gradient[axis], (moved[0].value - moved[1].value) / (2 * step), rtol=1e-6)
        assert_close(found.information[axis], -(moved[0].gradient - moved[1].gradient) / (2 * step), rtol=1e-6)


def test_cox_needs_an_event_and_a_penalty():
    x, time, event = survival_data(10, 2)
    with pytest.raises(ValueError, match="no training case has the event"):
        fit_cox(x, time, np.zeros(10, bool), penalty=1.0)
    with pytest.raises(ValueError, match="penalty is 0"):
        fit_cox(x, time, event, penalty=0.0)


def fit(recipe, cohort, split, folder):
    recipe.fit(cohort, split, run_key(0), folder)
    return recipe


def test_logistic_regression_equals_scikit_learn_on_standardised_columns(make_tiny, tmp_path):
    cohort = make_tiny(24).cohort
    split = k_fold(cohort, 3, seed=0).splits[0]
    recipe = fit(make_recipe("logistic-regression", {"strength": 0.5}), cohort, split, tmp_path)
    rows = split.rows(cohort)
    table = cohort.table
    age, male = table["age"].to_numpy(), (table["sex"] == "m").to_numpy(float)
    train = age[rows.train]
    x = np.c_[(age - train.mean()) / train.std(ddof=1), male]
    reference = LogisticRegression(C=0.5, max_iter=1000).fit(x[rows.train], cohort.label[rows.train])
    assert_close(recipe.predict(tmp_path, cohort, rows.test), reference.predict_proba(x[rows.test]), rtol=1e-6)


@pytest.mark.parametrize("name", ["logistic-regression", "random-forest"])
def test_validation_cases_are_scored_by_the_fit_without_them_and_others_by_the_whole(name, make_tiny, tmp_path):
    cohort = make_tiny(24).cohort
    split = k_fold(cohort, 3, seed=0, validation=0.25).splits[0]
    recipe = make_recipe(name, {"trees": 10, "strength": 1.0})
    fit(recipe, cohort, split, tmp_path / "both")
    fit(recipe, cohort, split._replace(validation=()), tmp_path / "without")
    fit(recipe, cohort, split._replace(train=split.train + split.validation, validation=()), tmp_path / "joined")
    rows = split.rows(cohort)
    everybody = np.concatenate([rows.test, rows.validation])
    found = recipe.predict(tmp_path / "both", cohort, everybody)
    whole = recipe.predict(tmp_path / "joined", cohort, rows.test)
    alone = recipe.predict(tmp_path / "without", cohort, rows.validation)
    assert_close(found, np.concatenate([whole, alone]), rtol=1e-6)
    assert np.isfinite(recipe.predict(tmp_path / "both", cohort, np.arange(24))).all(), "training cases too"
    assert np.abs(recipe.predict(tmp_path / "joined", cohort, rows.validation) - alone).max() > 1e-3


def test_forests_store_rows_and_nothing_pickled(make_tiny, tmp_path):
    cohort = make_tiny().cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    fit(make_recipe("random-forest", {"trees": 5}), cohort, split, tmp_path)
    with np.load(tmp_path / "training_rows.npz", allow_pickle=False) as rows:
        assert {name: rows[name].dtype.kind for name in rows.files} == {"all_x": "f", "all_y": "i"}
    assert json.loads((tmp_path / "fitted.json").read_text())["all"]["outputs"] == ["age", "sex=m"]


def test_a_task_that_the_model_cannot_do_is_refused(make_tiny, tmp_path):
    both = make_tiny(survival=True).cohort
    with pytest.raises(ValueError, match=r"random-forest on tiny: it predicts a label, and the task is survival"):
        make_recipe("random-forest").target(both)
    with pytest.raises(ValueError, match=r"no column has the role 'time'"):
        make_recipe("cox").target(make_tiny().cohort)


def test_a_training_part_without_a_class_is_refused(tiny, tmp_path):
    cohort = tiny.cohort
    split = k_fold(cohort, 2, seed=0).splits[0]
    zeros = tuple(case for case, code in zip(cohort.case_id, cohort.label, strict=True) if code == 0)
    with pytest.raises(ValueError, match=r"no training case of class 'class 1' among 8 cases"):
        fit(make_recipe("logistic-regression"), cohort, split._replace(train=zeros, test=()), tmp_path)


# Measurements and features.


def test_measurements_are_those_of_the_voxels_inside(tiny):
    cohort = tiny.cohort
    assert measurable(cohort) == {"lesion": ("image",)}
    names = ("log_volume", "volume", "mean", "deviation", "minimum", "maximum", "median", "skewness", "kurtosis")
    values, columns = measure(cohort, np.array([0, 1, 2]), names)
    inside = np.asarray(cohort.sources["lesion"][1])[..., 0] > 0
    voxels = np.asarray(cohort.sources["image"][1])[..., 0][inside].astype(float)
    centred = voxels - voxels.mean()
    row = dict(zip(columns, values[1], strict=True))
    assert row["lesion:volume"] == 16
    assert_close(row["lesion:log_volume"], np.log(16))
    assert values[0, columns.index("lesion:volume")] == 15
    expected = {
        "mean": voxels.mean(),
        "deviation": voxels.std(ddof=1),
        "minimum": voxels.min(),
        "maximum": voxels.max(),
        "median": np.median(voxels),
        "skewness": np.mean(centred**3) / np.mean(centred**2) ** 1.5,
        "kurtosis": np.mean(centred**4) / np.mean(centred**2) ** 2 - 3,
    }
    for name, value in expected.items():
        assert_close(row[f"image:{name}"], value, rtol=1e-6)
    assert np.isnan(values[2, columns.index("image:mean")]), "the third case has no image"


def test_volume_is_in_cubic_millimetres():
    mask = np.zeros((1, 4, 4, 4, 1), np.uint8)
    mask[0, 1:3, 1:3, 1:3] = 1
    cohort = Cohort.from_arrays(
        {
            "ct": Arrays(mask.astype(float), spacing=[(2.0, 1.0, 1.5)]),
            "lesion": Arrays(mask, "mask", [(2.0, 1.0, 1.5)]),
        },
        label=[0],
    )
    assert measure(cohort, np.array([0]), ("volume",))[0].tolist() == [[8 * 3.0]]


def test_each_image_is_read_once_for_measurements(tiny):
    cohort = dataclasses.replace(tiny.cohort, sources={**tiny.cohort.sources})
    from fusion_jax.data import Image, Lazy

    masks = cohort.sources["lesion"]
    lazy = Lazy(lambda row: Image(masks[row], (1.0, 1.0)), np.arange(len(cohort)), "mask", "masks")
    cohort = cohort.with_source("lesion", lazy)
    for part in (cohort.take(np.arange(0, 10)), cohort.take(np.arange(5, 16))):
        measure(part, np.arange(len(part)), ("mean",))
    # The first case with both is also looked at for its grid, in each part.
    asked = [row for row in tiny.reader.asked if row not in (0, 5)]
    assert sorted(asked) == [row for row in range(16) if row not in (0, 2, 5)]


def test_numbers_are_standardised_by_training_cases_and_gaps_are_marked():
    values = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]])
    numbers = Numbers.of("radiomics", ("a", "b", "c"), values)
    assert numbers.outputs == ("a", "b", "c", "c=missing")
    found = numbers.apply(np.array([[3.0, 6.0, np.nan], [np.nan, 5.0, 3.0]]))
    assert_close(found, np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))


def test_vectors_that_nobody_of_a_cohort_has_are_gaps(tmp_path):
    label, there = np.arange(12) % 2, np.arange(12) > 1
    cohort = Cohort.from_arrays({"markers": label[:, None] + np.eye(12, 3), "others": np.eye(12, 2)}, label=label)
    cohort = dataclasses.replace(cohort, present={**cohort.present, "markers": there})
    recipe = make_recipe("logistic-regression")
    recipe.fit(cohort, Split(0, 0, cohort.case_id, (), ()), run_key(0), tmp_path)
    among = recipe.predict(tmp_path, cohort, np.arange(4))[:2]
    assert_close(recipe.predict(tmp_path, cohort.take([0, 1]), np.arange(2)), among)
    with pytest.raises(ValueError, match="no case has 'markers'"):
        recipe.fit(cohort.take([0, 1]), Split(0, 0, cohort.case_id[:2], (), ()), run_key(0), tmp_path)


def test_a_table_of_measurements_is_joined_by_case(tiny, tmp_path):
    cohort = tiny.cohort
    path = tmp_path / "radiomics.csv"
    ids = list(cohort.case_id)[::-1]
    pd.DataFrame({"case_id": ids, "entropy": np.arange(16.0)}).to_csv(path, index=False)
    features = fit_features(cohort, cohort.case_id, fold="all", features="measurements", table=str(path))
    found = features.apply(cohort, np.arange(16), cohort.case_id)[:, 0]
    assert_close(found, (np.arange(16.0)[::-1] - 7.5) / np.arange(16.0).std(ddof=1))
    path.write_text("case,entropy\nx,1\n")
    with pytest.raises(ValueError, match=r"radiomics.csv: no column 'case_id'; its columns are case, entropy"):
        fit_features(cohort, cohort.case_id, fold="all", features="measurements", table=str(path))


def test_measurements_need_a_mask(tiny):
    cohort = tiny.cohort.only("image", "clinical")
    with pytest.raises(ValueError, match=r"tiny: no source of kind 'mask'"):
        make_recipe("random-forest+measurements").sources(cohort)
    with pytest.raises(ValueError, match=r"'imgae' is no image on the grid of a mask; expected one of image"):
        measure(tiny.cohort, np.array([0]), ("mean",), sources=("imgae",))


def test_a_recipe_is_plain_settings():
    assert ClassicalRecipe(name="cox", family="cox") == make_recipe("cox")
