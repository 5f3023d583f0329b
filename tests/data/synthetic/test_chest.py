import numpy as np
import pytest

from fusion_jax.data.synthetic import LESIONS, TRIAGE, chest_xray


@pytest.fixture(scope="module")
def published():
    return chest_xray(size=96)


def test_positives_are_the_printed_ones(published):
    table = published.cohort.table
    found = table.groupby("split")[list(LESIONS)].sum().loc[["train", "val", "test"]]
    np.testing.assert_array_equal(found, [[115, 91, 101, 71, 61], [21, 27, 17, 23, 14], [18, 25, 20, 18, 10]])
    assert table["split"].value_counts().to_dict() == {"train": 468, "val": 101, "test": 101}
    assert table["view"].value_counts().to_dict() == {"AP": 365, "PA": 305}
    assert len(set(published.cohort.patient_id)) == 540


def test_vitals_have_the_printed_means_and_gaps(published):
    table = published.cohort.table[list(TRIAGE[1:9])]
    # Whole numbers: rounding moves a mean by 0.03 at most.
    np.testing.assert_allclose(table.mean(), [98.1, 85.7, 18.5, 97.6, 132.3, 72.4, 4.1, 2.2], atol=0.05)
    assert table.isna().sum().tolist() == [75, 61, 69, 65, 62, 64, 83, 24]
    assert table["temperature_f"].between(93, 105).sum() == 595
    assert table["o2sat_percent"].max() <= 100
    assert set(published.cohort.table["gender"]) == {"F", "M"}


@pytest.mark.parametrize(
    ("vital", "lesion", "printed"),
    [
        ("age_years", "enlarged_cardiac_silhouette", 0.21),
        ("age_years", "pulmonary_edema", 0.19),
        ("resprate_per_min", "consolidation", 0.21),
        ("resprate_per_min", "enlarged_cardiac_silhouette", 0.16),
        ("o2sat_percent", "consolidation", -0.12),
        ("pain", "pulmonary_edema", 0.11),
        ("dbp_mmhg", "pleural_abnormality", -0.13),
        ("temperature_f", "atelectasis", 0.0),
    ],
)
def test_vitals_correlate_with_lesions_as_printed(large, vital, lesion, printed):
    assert large.cohort.table[vital].corr(large.cohort.table[lesion]) == pytest.approx(printed, abs=0.04)


@pytest.fixture(scope="module")
def large():
    return chest_xray(5_000, size=64)


def test_the_bounds_are_the_stated_ones(large):
    for lesion, stated in zip(LESIONS, (0.676, 0.5, 0.587, 0.680, 0.679), strict=True):
        auc = large.truth.auc("clinical", lesion)
        assert abs(auc.value - stated) < 4 * auc.standard_error


def test_images_have_no_bound_in_closed_form(large):
    with pytest.raises(ValueError, match="'image' has no likelihood ratio in closed form; sources that have: clinical"):
        large.truth.auc("image")


def test_every_lesion_has_a_box_and_a_mask_and_nothing_else_has(published):
    cohort, truth = published
    for row in range(0, 670, 15):
        corners, classes = cohort.boxes[row]
        assert set(classes.tolist()) == set(np.flatnonzero(truth.label[row]))
        masks = cohort.sources["lesion_masks"][row]
        np.testing.assert_array_equal(masks.any(axis=(0, 1)), truth.label[row] == 1)
        assert (corners[:, 2:] - corners[:, :2] > 2).all()
        for kind in set(classes.tolist()):
            y, x = np.nonzero(masks[..., kind])
            own = corners[classes == kind]
            assert np.abs([own[:, 0].min() - x.min(), own[:, 3].max() - 1 - y.max()]).max() <= 1
    np.testing.assert_array_equal(truth.hidden["contrast"] > 0, truth.label == 1)


@pytest.mark.parametrize("lesion", LESIONS[1:])
def test_a_lesion_is_brighter_than_the_lung_without_it(published, lesion):
    cohort, truth = published
    kind = LESIONS.index(lesion)
    with_it = np.flatnonzero((truth.label[:, kind] == 1) & (truth.hidden["contrast"][:, kind] > 0.6))[:5]
    clear = np.flatnonzero(truth.label.sum(axis=1) == 0)[:5]
    empty = np.mean([cohort.sources["image"][int(row)] for row in clear], axis=0)[..., 0]
    for row in with_it:
        mask = cohort.sources["lesion_masks"][int(row)][..., kind] == 1
        lung = mask & (empty < 0.35)
        assert cohort.sources["image"][int(row)][..., 0][lung].mean() > empty[lung].mean() + 0.02


def test_an_enlarged_heart_fills_more_than_half_of_the_chest(published):
    cohort, _ = published
    for row in range(670):
        corners, classes = cohort.boxes[row]
        for box in corners[classes == 0]:
            assert (box[2] - box[0]) / 96 > 0.39
