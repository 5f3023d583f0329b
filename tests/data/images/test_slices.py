import numpy as np
import pytest

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.image import Image
from fusion_jax.data.images.slices import (
    adjacent_slices,
    breast,
    largest_slice,
    maximum_intensity_projection,
    peak_minus_background,
    slices_with_mask,
    split_breasts,
)

SPACING = (5.0, 0.8, 0.7)


@pytest.fixture
def volume():
    return Image(np.random.default_rng(0).normal(size=(6, 5, 4, 2)), SPACING, np.eye(4), "HU")


def mask_of_areas(*areas, shape=(5, 4)):
    values = np.zeros((len(areas), shape[0] * shape[1]), np.uint8)
    for index, area in enumerate(areas):
        values[index, :area] = 1
    return Image(values.reshape(len(areas), *shape, 1), SPACING, np.eye(4), "label")


def test_the_first_of_the_largest_slices_is_taken(volume):
    plane = largest_slice(volume, mask_of_areas(0, 3, 7, 2, 7, 0))
    np.testing.assert_array_equal(plane.values, volume.values[2])
    assert (plane.spacing, plane.affine, plane.unit) == ((0.8, 0.7), None, "HU")


def test_a_mask_of_any_value_counts_its_voxels(volume):
    mask = mask_of_areas(0, 3, 7, 8, 2, 0)
    weighted = mask._replace(values=mask.values * np.array([1, 200, 1, 1, 1, 1], np.uint8)[:, None, None, None])
    np.testing.assert_array_equal(largest_slice(volume, weighted).values, volume.values[3])


@pytest.mark.parametrize(
    ("areas", "slices"),
    [((0, 1, 4, 2, 0, 0), (1, 2, 3)), ((3, 1, 0, 0, 0, 0), (0, 0, 1)), ((0, 0, 0, 0, 0, 1), (4, 5, 5))],
)
def test_neighbours_become_channels_and_the_end_repeats(volume, areas, slices):
    after = adjacent_slices(volume, mask_of_areas(*areas))
    np.testing.assert_array_equal(after.values, np.concatenate([volume.values[i] for i in slices], axis=-1))
    assert after.spacing == (0.8, 0.7)


def test_an_even_number_of_slices_has_no_middle(volume):
    with pytest.raises(ValueError, match="count is 4; expected one of 3, 5, 7"):
        adjacent_slices(volume, mask_of_areas(0, 1, 4, 2, 0, 0), count=4)


def test_every_slice_with_the_mask_is_found(volume):
    found = slices_with_mask(volume, mask_of_areas(0, 3, 0, 9, 1, 0))
    assert [(slice_.position, slice_.area) for slice_ in found] == [(1, 3), (3, 9), (4, 1)]
    np.testing.assert_array_equal(found[1].image.values, volume.values[3])
    assert [s.position for s in slices_with_mask(volume, mask_of_areas(0, 3, 0, 9, 1, 0), least_area=3)] == [1, 3]
    with pytest.raises(ValueError, match="no slice holds 10 voxels of the mask, at most 9"):
        slices_with_mask(volume, mask_of_areas(0, 3, 0, 9, 1, 0), least_area=10)


@pytest.mark.parametrize("select", [largest_slice, adjacent_slices, slices_with_mask])
def test_what_cannot_be_sliced_is_refused(select, volume):
    with pytest.raises(ValueError, match="the mask is empty"):
        select(volume, mask_of_areas(0, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"expected a volume \(d, h, w, c\)"):
        select(Image(volume.values[0]), mask_of_areas(1))
    with pytest.raises(ValueError, match=r"the mask has shape \(5, 5, 4\), the image \(6, 5, 4\); expected one grid"):
        select(volume, mask_of_areas(1, 1, 1, 1, 1)._replace(affine=None))


def test_slices_of_a_real_tumour():
    sample = soft_tissue_sarcoma()
    ct = Image(sample.ct[0][..., None], sample.spacing, sample.affine[0], "HU")
    mask = Image(sample.mask[0][..., None], sample.spacing, sample.affine[0], "label")
    areas = mask.values.sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(largest_slice(ct, mask).values, ct.values[areas.argmax()])
    assert sum(found.area for found in slices_with_mask(ct, mask)) == mask.values.sum()


# Projection and subtraction


@pytest.mark.parametrize(
    ("axis", "number", "spacing"), [("d", 0, (0.8, 0.7)), ("h", 1, (5.0, 0.7)), ("w", 2, (5.0, 0.8))]
)
def test_the_projection_is_the_largest_value_along_the_axis(volume, axis, number, spacing):
    after = maximum_intensity_projection(volume, axis=axis)
    np.testing.assert_array_equal(after.values, volume.values.max(axis=number))
    assert (after.spacing, after.affine, after.unit) == (spacing, None, "HU")


def test_only_volumes_are_projected():
    with pytest.raises(ValueError, match="expected a volume"):
        maximum_intensity_projection(Image(np.zeros((3, 3, 1))))


def test_unsigned_series_do_not_wrap_around():
    series = Image(np.array([[[100, 40, 90]]], np.uint16))
    assert peak_minus_background(series).values.ravel().tolist() == [-10]
    assert peak_minus_background(series, background=1).values.ravel().tolist() == [60]
    assert peak_minus_background(series, peak=1).values.ravel().tolist() == [-60]


def test_every_voxel_has_its_own_peak():
    series = Image(np.random.default_rng(0).normal(size=(3, 4, 5, 6)))
    after = peak_minus_background(series, background=2).values
    expected = np.max([series.values[..., t] - series.values[..., 2] for t in (0, 1, 3, 4, 5)], axis=0)
    np.testing.assert_allclose(after[..., 0], expected)


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (1, {}, "the series has 1 frame; expected the background and at least one"),
        (3, {"background": 3}, "background is frame 3; expected one from 0 to 2"),
        (3, {"peak": 3}, "peak is frame 3"),
        (3, {"background": -1}, "background is -1; expected a whole number of at least 0"),
        (3, {"peak": 0}, "peak and background are both frame 0"),
    ],
)
def test_frames_that_are_not_there_are_refused(frames, arguments, message):
    with pytest.raises(ValueError, match=message):
        peak_minus_background(Image(np.zeros((2, 2, frames))), **arguments)


# Breasts


def chest(middle, width=120, height=80):
    """Axial projection: two bright half ellipses in front, off the middle, before a heart that is brighter still."""
    y, x = np.mgrid[:height, :width].astype(float)
    values = np.zeros((height, width))
    for centre in (middle - 26, middle + 26):
        values[((x - centre) / 24) ** 2 + ((y - 45) / 40) ** 2 < 1] = 100
    values[((x - middle - 5) / 22) ** 2 + ((y - 62) / 15) ** 2 < 1] = 250
    return Image(values[..., None] + np.random.default_rng(0).uniform(0, 5, (height, width, 1)), (0.7, 0.7))


@pytest.mark.parametrize("middle", [47, 52, 60, 66, 73])
def test_the_valley_lies_between_the_breasts(middle):
    image = chest(middle)
    right, left = split_breasts(image)
    assert abs(right.values.shape[1] - middle) <= 2
    np.testing.assert_array_equal(np.concatenate([right.values, left.values], axis=1), image.values)
    assert right.spacing == left.spacing == image.spacing


def test_the_tuple_tells_the_laterality_flag():
    image = chest(60)
    both = split_breasts(image, split="middle")
    assert (both.right is both[0], both.left is both[1]) == (True, True)
    # The patient's right is on the left of the picture.
    np.testing.assert_array_equal(both[0].values, image.values[:, :60])
    for side in ("right", "left"):
        np.testing.assert_array_equal(breast(image, side=side).values, getattr(split_breasts(image), side).values)


def test_equally_dark_columns_give_the_one_nearest_the_middle():
    right, left = split_breasts(Image(np.ones((4, 31, 1))))
    assert (right.values.shape[1], left.values.shape[1]) == (15, 16)


def test_what_is_no_projection_of_two_breasts_is_refused(volume):
    with pytest.raises(ValueError, match=r"expected a projection \(h, w, c\). Use `maximum_intensity_projection`"):
        split_breasts(volume)
    with pytest.raises(ValueError, match="has 5 columns; expected at least 6"):
        split_breasts(Image(np.zeros((4, 5, 1))))
