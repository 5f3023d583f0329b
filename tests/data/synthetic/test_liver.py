import numpy as np
import pytest
from scipy import ndimage

from fusion_jax.data.synthetic import LIVER_LABELS, MARKERS, portal_hypertension_ct
from fusion_jax.data.synthetic.liver import canonical_affine

FINE = {"shape": (54, 70, 84), "spacing": (3.0, 3.0, 3.0)}


@pytest.fixture(scope="module")
def published():
    return portal_hypertension_ct()


def centre_mm(image, *labels):
    """Centre of some labels as (x, y, z) in mm, RAS+."""
    index = np.argwhere(np.isin(image.values[..., 0], labels)).mean(axis=0)
    return (image.affine @ [*index, 1])[:3]


def test_counts_are_the_printed_ones(published):
    assert published.cohort.table["hvpg_at_least_5"].value_counts().to_dict() == {1: 119, 0: 79}


def test_the_label_is_the_pressure(published):
    table = published.cohort.table
    np.testing.assert_array_equal(table["hvpg_at_least_5"] == 1, table["hvpg_mmhg"] >= 5)
    np.testing.assert_array_equal(table["hvpg_at_least_5"] == 1, published.truth.hidden["hvpg_mmhg"] >= 5)
    assert published.cohort.role("hvpg_mmhg") == published.cohort.role("ast_u_l") == "never"
    assert published.cohort.columns("input") == MARKERS


def test_apri_follows_from_ast_and_platelets(published):
    table = published.cohort.table
    np.testing.assert_allclose(table["apri"], 100 * (table["ast_u_l"] / 40) / table["platelets_k_ul"], rtol=0.02)


def test_markers_are_plausible_and_correlated_with_the_pressure():
    table = portal_hypertension_ct(4_000).cohort.table
    assert table["platelets_k_ul"].between(4, 789).all()
    assert table["albumin_g_dl"].between(1.2, 5.6).all()
    logs = np.log(table[["hvpg_mmhg", "platelets_k_ul", "albumin_g_dl", "apri"]])
    correlation = np.corrcoef(logs.T)
    np.testing.assert_allclose(correlation[0, 1:3], [-0.30, -0.25], atol=0.05)
    assert correlation[0, 3] > 0.2
    assert correlation[1, 3] < -0.5


def test_the_bounds_are_the_stated_ones():
    _, truth = portal_hypertension_ct(60_000)
    for source, stated in (("ct", 0.661), ("labels", 0.661), ("clinical", 0.667), (None, 0.714)):
        auc = truth.auc(source)
        assert abs(auc.value - stated) < 4 * auc.standard_error + 5e-4


def test_organs_lie_where_they_belong(published):
    image = published.cohort.image("labels", 0)
    liver = centre_mm(image, 1, 2)
    left = centre_mm(image, LIVER_LABELS["left lateral segment"])
    gallbladder = centre_mm(image, LIVER_LABELS["gallbladder"])
    cava = centre_mm(image, LIVER_LABELS["inferior vena cava"])
    # x grows to the patient's right, y to the front, z to the head.
    assert liver[0] > 20
    assert left[0] < -20 < liver[0]
    assert left[1] > liver[1]
    assert gallbladder[2] < liver[2]
    assert cava[1] < liver[1]
    assert set(np.unique(image.values)) == {0, *LIVER_LABELS.values()}


def test_labels_and_ct_show_one_abdomen(published):
    ct, labels = (published.cohort.sources[name][3][..., 0] for name in ("ct", "labels"))
    inside = ndimage.binary_erosion(np.isin(labels, (1, 2)), iterations=2)
    assert ct[inside].mean() == pytest.approx(105, abs=6)
    assert ct[0, 0, 0] < -900
    assert ct[labels == LIVER_LABELS["gallbladder"]].mean() < 80


def test_nodularity_roughens_the_surface():
    cohort, truth = portal_hypertension_ct(16, **FINE)
    roughness = []
    for row in range(16):
        liver = np.isin(cohort.sources["labels"][row][..., 0], (1, 2))
        surface = np.logical_xor(liver, ndimage.binary_erosion(liver))
        roughness.append(surface.sum() / liver.sum() ** (2 / 3))
    assert np.corrcoef(roughness, truth.hidden["nodularity_mm"])[0, 1] > 0.85


def test_a_liver_is_one_piece():
    cohort, _ = portal_hypertension_ct(10, **FINE)
    for row in range(10):
        parts = np.empty(FINE["shape"], np.int32)
        ndimage.label(np.isin(cohort.sources["labels"][row][..., 0], (1, 2)), output=parts)
        sizes = np.bincount(parts.ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum(), (row, sizes)


def test_the_affine_puts_the_centre_at_the_origin():
    affine = canonical_affine((3, 5, 7), (5.0, 2.0, 1.0))
    np.testing.assert_allclose(affine @ [1, 2, 3, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(affine @ [2, 2, 3, 1], [0, 0, 5, 1])
    np.testing.assert_allclose(affine @ [1, 3, 4, 1], [-1, -2, 0, 1])
