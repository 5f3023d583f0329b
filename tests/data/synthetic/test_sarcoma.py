import numpy as np
import pytest

from fusion_jax.data.synthetic import auc_of_d_prime, sarcoma_pet_ct


@pytest.fixture(scope="module")
def published():
    return sarcoma_pet_ct()


def points(image, where):
    """Positions in mm of the voxels of `where`, one a row."""
    index = np.argwhere(where)
    return (np.c_[index, np.ones(len(index))] @ image.affine.T)[:, :3]


def test_half_of_48_develop_metastases(published):
    assert published.cohort.label.sum() == 24
    assert len(published.cohort) == 48


def test_pet_and_ct_lie_on_different_grids_of_one_space(published):
    pet, ct, mask = (published.cohort.image(name, 0) for name in ("pet", "ct", "mask"))
    assert pet.values.shape == (24, 30, 30, 1) != ct.values.shape == mask.values.shape
    assert pet.spacing == pytest.approx((6.0, 6.4, 6.4))
    np.testing.assert_array_equal(ct.affine, mask.affine)
    assert not np.allclose(pet.affine[:3, 3], ct.affine[:3, 3])
    assert (pet.unit, ct.unit, mask.unit) == ("SUV", "HU", "label")


def test_uptake_lies_on_the_mask_in_millimetres(published):
    for row in range(0, 48, 6):
        pet, mask = (published.cohort.image(name, row) for name in ("pet", "mask"))
        hot = pet.values[..., 0] > 0.4 * published.truth.hidden["suv"][row]
        centres = points(pet, hot).mean(axis=0), points(mask, mask.values[..., 0] == 1).mean(axis=0)
        # Half a PET voxel off would be 3.2 mm in two axes.
        assert np.abs(centres[0] - centres[1]).max() < 2


def test_each_signal_shows_where_it_should(published):
    cohort, truth = published
    found = {"volume": [], "texture": [], "uptake": []}
    for row in range(0, 48, 2):
        pet, ct, mask = (cohort.image(name, row) for name in ("pet", "ct", "mask"))
        inside = mask.values[..., 0] == 1
        found["volume"].append(np.log(inside.sum()))
        soft = inside & (ct.values[..., 0] < 120)
        found["texture"].append(ct.values[..., 0][soft].std())
        found["uptake"].append(np.log(np.quantile(pet.values, 0.999)))
    for name, least in (("volume", 0.98), ("texture", 0.5), ("uptake", 0.9)):
        others = [other for other in found if other != name]
        assert np.corrcoef(found[name], truth.hidden[name][::2])[0, 1] > least
        assert all(abs(np.corrcoef(truth.hidden[name], truth.hidden[other])[0, 1]) < 0.45 for other in others)


def test_the_mask_has_the_stated_volume(published):
    for row in range(0, 48, 8):
        mask = published.cohort.image("mask", row)
        volume = mask.values.sum() * np.prod(mask.spacing) / 1000
        assert volume == pytest.approx(published.truth.hidden["volume_ml"][row], rel=0.2)


@pytest.mark.parametrize("strengths", [(0.8, 0.6, 0.7), (1.2, 0.0, 0.0), (0.0, 0.0, 0.9)])
def test_the_bounds_are_those_of_the_distances(strengths):
    uptake, texture, volume = strengths
    _, truth = sarcoma_pet_ct(20_000, uptake=uptake, texture=texture, volume=volume)
    expected = {"pet": (uptake, volume), "ct": (texture, volume), "mask": (volume,), None: strengths}
    for source, parts in expected.items():
        auc = truth.auc(source)
        assert abs(auc.value - auc_of_d_prime(float(np.linalg.norm(parts)))) < 4 * auc.standard_error + 1e-9


def test_plausible_values(published):
    pet, ct = (np.concatenate([published.cohort.sources[name][i].ravel() for i in range(6)]) for name in ("pet", "ct"))
    assert 0 <= pet.min() <= pet.max() < 50
    assert ct.min() >= -1024
    assert 30 < np.median(ct[ct > -50]) < 80


def test_the_published_size_can_be_asked_for():
    cohort, _ = sarcoma_pet_ct(4, shape=(144, 112, 112), spacing=(2.0, 2.0, 2.0))
    assert cohort.sources["mask"][0].shape == (144, 112, 112, 1)
    assert cohort.sources["pet"].image(0).values.shape == (144, 70, 70, 1)
