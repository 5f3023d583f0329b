import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fusion_jax.data.synthetic import BREAST_FEATURES, area_under_curve, auc_of_d_prime, breast_mri


@pytest.fixture(scope="module")
def published():
    return breast_mri()


def by_split(table, column, levels):
    return table.groupby("split")[column].value_counts().unstack(fill_value=0).loc[["train", "val", "test"], levels]


def test_cases_and_malignancy_are_the_printed_ones(published):
    np.testing.assert_array_equal(
        by_split(published.cohort.table, "malignant", [0, 1]), [[8_376, 2_090], [1_346, 325], [3_903, 1_006]]
    )


@pytest.mark.parametrize(
    ("column", "levels", "printed"),
    [
        ("laterality", ["left", "right"], [[5_229, 5_237], [842, 829], [2_476, 2_433]]),
        (
            "indication",
            ["other", "screening", "diagnostic", "extent"],
            [[1_075, 6_906, 1_135, 1_350], [175, 1_150, 152, 194], [557, 3_186, 566, 600]],
        ),
        (
            "breast_density",
            ["a", "b", "c", "d"],
            [[207, 2_157, 6_953, 1_149], [28, 374, 1_071, 198], [116, 880, 3_285, 628]],
        ),
        (
            "background_enhancement",
            ["minimal", "mild", "moderate", "marked"],
            [[6_132, 2_563, 1_169, 602], [1_002, 382, 208, 79], [2_819, 1_241, 561, 288]],
        ),
    ],
)
def test_levels_come_as_often_as_printed_after_imputing_the_commonest(published, column, levels, printed):
    table = published.cohort.table
    mode = table.loc[table["split"] == "train", column].mode()[0]
    np.testing.assert_array_equal(by_split(table.fillna({column: mode}), column, levels), printed)


def test_age_has_the_printed_mean_and_spread(published):
    table = published.cohort.table
    age = table.groupby("split")["age_years"].agg(["mean", "std"]).loc[["train", "val", "test"]]
    np.testing.assert_allclose(age["mean"], [51.5, 51.9, 51.5], atol=0.06)
    np.testing.assert_allclose(age["std"], [11.1, 10.7, 11.5], atol=0.06)
    assert table["age_years"].between(18, 92).sum() == table["age_years"].notna().sum()


def test_about_2_percent_miss_age_density_or_enhancement(published):
    missing = published.cohort.table[list(BREAST_FEATURES)].isna()
    assert missing.any(axis=1).mean() == pytest.approx(0.023, abs=0.001)
    assert set(missing.columns[missing.any()]) == {"age_years", "breast_density", "background_enhancement"}


def test_women_have_exams_and_exams_have_breasts(published):
    cohort, _ = published
    table = cohort.table.assign(woman=cohort.patient_id)
    assert (table["woman"].nunique(), table["exam_id"].nunique()) == (5_248, 10_185)
    exams = table.groupby("exam_id")
    assert exams.size().max() == 2
    shared = [name for name in BREAST_FEATURES if name not in ("laterality", "max_intensity")]
    shared = [name for name in shared if not name.startswith("crop_")] + ["woman", "split"]
    assert (exams[shared].nunique(dropna=False) == 1).to_numpy().all()
    assert not table.duplicated(["exam_id", "laterality"]).any()
    # Exams of one woman are years apart at most, but for the few at the end of a density.
    ages = table.groupby("woman")["age_years"]
    assert (ages.max() - ages.min()).quantile(0.95) < 6


def test_a_known_cancer_is_malignant_and_came_for_its_extent(published):
    table = published.cohort.table
    known = table[table["bi_rads"] == 6]
    assert len(known) > 500
    assert (known["malignant"] == 1).all()
    assert (known["indication"] == "extent").all()
    assert published.cohort.role("bi_rads") == "never"


def test_the_image_bound_is_that_of_its_distance(published):
    auc = published.truth.auc("image")
    assert abs(auc.value - auc_of_d_prime(1.4657)) < 4 * auc.standard_error
    assert auc_of_d_prime(1.4657) == pytest.approx(0.85, abs=1e-4)


def test_table_and_both_reach_the_stated_bounds(published):
    assert published.truth.auc("clinical").value == pytest.approx(0.822, abs=0.015)
    assert published.truth.auc().value == pytest.approx(0.917, abs=0.012)


def test_a_regression_on_the_table_comes_close_to_the_bound_and_not_past_it(published):
    import pandas as pd

    table = published.cohort.table.fillna({"age_years": 51.5})
    words = pd.get_dummies(table[["indication", "software_version"]], dtype=float)
    numbers = table[["age_years", "max_intensity", "crop_height_mm", "crop_width_mm"]]
    x = StandardScaler().fit_transform(np.concatenate([words, numbers], axis=1))
    test = (table["split"] == "test").to_numpy()
    model = LogisticRegression(max_iter=300).fit(x[~test], table["malignant"][~test])
    auc = area_under_curve(model.predict_proba(x[test])[:, 1], table["malignant"].to_numpy()[test] == 1)
    bound = area_under_curve(published.truth.evidence["clinical"][test, 0], table["malignant"].to_numpy()[test] == 1)
    assert bound.value - 0.02 < auc.value < bound.value + 3 * auc.standard_error


def test_order_of_the_table_does_not_tell_the_class(published):
    malignant = published.cohort.table["malignant"].to_numpy()
    assert abs(area_under_curve(np.arange(len(malignant), dtype=float), malignant == 1).value - 0.5) < 0.03


def test_a_mass_shows_the_signal():
    cohort, truth = breast_mri(60, size=64, seed=5)
    signal = truth.hidden["image_signal"]
    pixels = np.stack([cohort.sources["image"][i][6:56, :, 0] for i in range(60)])
    # Enhancing glands can be as bright as a mass: look at breasts without much of them.
    plain = truth.hidden["enhancement"] <= 1
    bright = np.quantile(pixels, 0.995, axis=(1, 2)) / np.quantile(pixels, 0.9, axis=(1, 2))
    assert np.corrcoef(bright[plain], signal[plain])[0, 1] > 0.5
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("n", [60, 61, 77, 131])
def test_small_cohorts_of_any_size_exist(n):
    cohort, _ = breast_mri(n, seed=n)
    assert len(cohort) == n
    assert cohort.label.sum() == pytest.approx(n * 3_421 / 17_046, abs=1)
