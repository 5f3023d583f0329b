import dataclasses
import inspect

import numpy as np
import pytest

from fusion_jax.data.synthetic import (
    LESIONS,
    OPACITIES,
    TELLING_VITALS,
    TRIAGE,
    chest_opacities,
    chest_xray,
    oracle_detections,
)
from fusion_jax.data.synthetic.opacities import opacity_posterior
from fusion_jax.evaluation.detection import average_precision
from fusion_jax.evaluation.detection_matching import match_boxes


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


# Opacities that look alike


@pytest.fixture(scope="module")
def arms():
    return {arm: chest_opacities(120, size=64, seed=5, vitals=arm) for arm in ("informative", "uninformative")}


@pytest.fixture(scope="module")
def many():
    return {arm: chest_opacities(6_000, size=64, seed=6, vitals=arm) for arm in ("informative", "uninformative")}


def test_the_published_cohort_is_what_it_was():
    """Of the table, the boxes and all else that was drawn; images follow from the same plan."""
    assert chest_xray(60, size=64, seed=3).cohort.fingerprint.startswith("32c697e068cdec06")


def test_arms_share_all_but_the_vitals(arms):
    first, second = (arms[arm].cohort for arm in arms)
    for row in range(0, 120, 13):
        np.testing.assert_array_equal(first.sources["image"][row], second.sources["image"][row])
        np.testing.assert_array_equal(first.sources["lesion_masks"][row], second.sources["lesion_masks"][row])
    for own, other in zip(first.boxes, second.boxes, strict=True):
        np.testing.assert_array_equal(own.corners, other.corners)
        np.testing.assert_array_equal(own.classes, other.classes)
    same = [column for column in first.table.columns if first.table[column].equals(second.table[column])]
    assert set(first.table.columns) - set(same) == set(TELLING_VITALS)
    assert first.fingerprint != second.fingerprint
    assert first.table.isna().equals(second.table.isna())


def test_strength_changes_no_image():
    weak, strong = (chest_opacities(40, size=64, seed=1, strength=strength).cohort for strength in (0.5, 3.0))
    assert weak.sources["image"].fingerprint() == strong.sources["image"].fingerprint()
    np.testing.assert_array_equal(weak.sources["image"][3], strong.sources["image"][3])


def test_an_image_does_not_tell_which_opacity_it_shows(arms):
    """The same case with its opacity renamed is the same image with the same boxes."""
    cohort, truth = arms["informative"]
    drawn = cohort.sources["image"].read
    alike = [LESIONS.index(lesion) for lesion in OPACITIES]
    label = drawn.label.copy()
    label[:, alike] = label[:, np.roll(alike, 1)]
    renamed = dataclasses.replace(drawn, label=label)
    for row in np.flatnonzero(truth.hidden["opacity"] < 3)[:8].tolist():
        np.testing.assert_array_equal(drawn(row).values, renamed(row).values)
        places = [[(it.y, it.x, it.ry, it.rx) for it in one.plan(row)] for one in (drawn, renamed)]
        assert sorted(places[0]) == sorted(places[1])
        assert [it.kind for it in drawn.plan(row)] != [it.kind for it in renamed.plan(row)]


def test_lesions_come_as_often_as_stated_in_every_split(many):
    table = many["informative"].cohort.table
    for _, part in table.groupby("split"):
        shares = part[list(LESIONS)].mean()
        np.testing.assert_allclose(shares, [0.3, 0.3, 0.3, 0.3, 0.3], atol=0.002)
    assert (table[list(OPACITIES)].sum(axis=1) <= 1).all()
    assert table[list(OPACITIES)].sum(axis=1).mean() == pytest.approx(0.9, abs=0.002)


def test_every_lesion_has_a_box_that_a_coarse_grid_can_find(arms):
    cohort, truth = arms["informative"]
    sides = np.concatenate([boxes.corners[:, 2:] - boxes.corners[:, :2] for boxes in cohort.boxes]) / 64
    assert sides.min() > 0.07
    for row in range(120):
        corners, classes = cohort.boxes[row]
        assert set(classes.tolist()) == set(np.flatnonzero(truth.label[row]))
        assert (corners >= 0).all()
        assert (corners <= 64).all()


def test_vitals_keep_the_published_means_in_both_arms(many):
    for cohort, _ in many.values():
        table = cohort.table[list(TRIAGE[1:9])]
        np.testing.assert_allclose(table.mean(), [98.1, 85.7, 18.5, 97.6, 132.3, 72.4, 4.1, 2.2], atol=0.05)


def test_vitals_differ_between_opacities_in_one_arm_only(many):
    informative, uninformative = (many[arm].cohort.table for arm in many)
    kinds = many["informative"].truth.hidden["opacity"]
    for vital in TRIAGE[:-1]:
        spread = informative[vital].std()
        between = [informative[vital][kinds == kind].mean() for kind in range(3)]
        assert (np.ptp(between) > 0.5 * spread) == (vital in TELLING_VITALS), vital
        between = [uninformative[vital][kinds == kind].mean() for kind in range(3)]
        assert np.ptp(between) < 0.12 * spread, vital  # five standard errors of 1,800 cases each


def test_evidence_of_opacities_is_a_likelihood_ratio(many):
    """In the uninformative arm there is none; elsewhere E[exp(l) | 0] = 1 = E[exp(-l) | 1]."""
    assert not many["uninformative"].truth.evidence["clinical"].any()
    weak = chest_opacities(6_000, size=64, seed=6, strength=0.7).truth
    for number, lesion in enumerate(LESIONS):
        evidence, positive = weak.evidence["clinical"][:, number], weak.label[:, number] == 1
        assert evidence.any() == (lesion in OPACITIES)
        for ratio in (np.exp(evidence[~positive]), np.exp(-evidence[positive])):
            assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio)) + 0.01, lesion


def test_the_posterior_is_calibrated_and_a_third_without_information(many):
    truth = chest_opacities(6_000, size=64, seed=7, strength=1.0).truth
    posterior, kinds = truth.hidden["posterior"], truth.hidden["opacity"]
    for kind in range(3):
        told = posterior[kinds < 3, kind]
        for low in np.arange(0, 1, 0.2):
            inside = (told >= low) & (told < low + 0.2)
            found = (kinds[kinds < 3][inside] == kind).mean()
            assert abs(found - told[inside].mean()) < 5 * 0.5 / np.sqrt(inside.sum())
    assert (many["uninformative"].truth.hidden["posterior"] == 1 / 3).all()


def test_the_posterior_leaves_missing_vitals_out(many):
    cohort, truth = many["informative"]
    empty = cohort.table.assign(**dict.fromkeys(TELLING_VITALS, np.nan))
    np.testing.assert_allclose(opacity_posterior(truth.hidden["scores"], empty, 2.0), 1 / 3)
    whole = cohort.table[list(TELLING_VITALS)].notna().all(axis=1).to_numpy()
    told = opacity_posterior(truth.hidden["scores"], cohort.table.fillna(0.0), 2.0)
    np.testing.assert_allclose(told[whole], truth.hidden["posterior"][whole], rtol=1e-9)
    assert np.abs(told - truth.hidden["posterior"])[~whole].max() > 0.1


def oracle_average_precision(synthetic, vitals):
    cohort, found = synthetic.cohort, oracle_detections(synthetic, vitals=vitals)
    row = {case: number for number, case in enumerate(cohort.case_id)}
    matches = match_boxes(
        np.concatenate([boxes.corners for boxes in cohort.boxes]),
        np.repeat(np.arange(len(cohort)), [len(boxes.corners) for boxes in cohort.boxes]),
        np.concatenate([boxes.classes for boxes in cohort.boxes]),
        found[["x0", "y0", "x1", "y1"]].to_numpy(),
        found["case_id"].map(row).to_numpy(),
        found["class"].map(LESIONS.index).to_numpy(),
        found["score"].to_numpy(),
        cases=len(cohort),
        classes=len(LESIONS),
        thresholds=(0.5, 0.95),
    )
    return average_precision(matches).of()[0]


def test_the_oracle_reaches_the_stated_precision(many):
    alone = oracle_average_precision(many["informative"], vitals=False)
    np.testing.assert_allclose(alone[:2], 1, atol=1e-9)
    np.testing.assert_allclose(alone[2:], 0.345, atol=0.03)
    np.testing.assert_array_equal(alone[:, 0], alone[:, 1])
    np.testing.assert_array_equal(oracle_average_precision(many["uninformative"], vitals=True), alone)
    with_vitals = oracle_average_precision(many["informative"], vitals=True)
    np.testing.assert_allclose(with_vitals[:, 0], [1, 1, 0.994, 0.992, 0.999], atol=0.006)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 10}, "chest_opacities: 10 cases; expected at least 40"),
        ({"size": 32}, "size 32 pixels; expected at least 64"),
        ({"strength": -1.0}, r"strength is -1\.0; expected 0 or more"),
        ({"strength": float("inf")}, "strength is inf"),
    ],
)
def test_opacities_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chest_opacities(**{"n": 40, "size": 64} | options)


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="vitals are 'random'; expected 'informative' or 'uninformative'"):
        inspect.unwrap(chest_opacities)(40, size=64, vitals="random")
