import numpy as np
import pytest

from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import crop_or_pad, flip, onto, resample
from fusion_jax.data.images.voxels import inside, occupied, same_grid

SPACING = (3.0, 1.5, 1.0)
AFFINE = np.array([[0, 0, -1.0, 9], [0, -1.5, 0, 8], [3.0, 0, 0, 7], [0, 0, 0, 1]])


def volume(values):
    return Image(values, SPACING, AFFINE)


IMAGE = volume(np.random.default_rng(0).normal(size=(6, 7, 8, 1)))
MASK = volume((np.random.default_rng(1).uniform(size=(6, 7, 8, 1)) > 0.6).astype(np.uint8))._replace(unit="label")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: crop_or_pad(image, size=(3, 4, 5), centre=(2.0, 3.0, 3.0)),
        lambda image: crop_or_pad(image, size=12),
        lambda image: flip(image, axis="w"),
        lambda image: flip(crop_or_pad(image, size=(3, 9, 2)), axis="d"),
    ],
    ids=["same", "crop", "pad", "flip", "crop_flip"],
)
def test_a_mask_follows_an_image_that_was_cropped_or_flipped(change):
    np.testing.assert_array_equal(inside(change(IMAGE), MASK), change(MASK).values[..., 0] == 1)


def test_a_mask_on_another_grid_is_read_at_the_voxel_centres():
    for finer in (resample(IMAGE, spacing=0.7), onto(IMAGE, resample(IMAGE, spacing=(2.0, 2.0, 1.3)))):
        expected = onto(MASK, finer, method="nearest").values[..., 0] == 1
        np.testing.assert_array_equal(inside(finer, MASK), expected)


def test_any_value_but_zero_is_inside():
    for values in (np.array([0.0, -1, 0.5, 7]), np.array([False, True, True, True]), np.array([0, 3, 256, 9])):
        assert occupied(Image(values.reshape(1, 4, 1))).ravel().tolist() == [False, True, True, True]


def test_without_affines_shapes_must_agree():
    image, mask = Image(np.zeros((4, 4, 1))), Image(np.ones((4, 5, 1)))
    with pytest.raises(
        ValueError, match=r"shape \(4, 5\), the image \(4, 4\); expected one grid.* before those that crop"
    ):
        inside(image, mask)
    assert inside(image, Image(np.ones((4, 4, 1)))).all()


def test_grids_are_compared_in_every_corner():
    for place, apart in (((0, 3), 0.02), ((0, 2), 0.005), ((1, 0), 0.005)):
        moved = AFFINE.copy()
        moved[place] += apart
        assert not same_grid(IMAGE, IMAGE._replace(affine=moved))
    nearly = AFFINE + 1e-4 * np.array([[0, 0, 0, 1.0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert same_grid(IMAGE, IMAGE._replace(affine=nearly))
    assert same_grid(IMAGE, IMAGE._replace(affine=None))
