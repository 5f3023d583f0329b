import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy.spatial.transform import Rotation

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import (
    AIR_HU,
    axis_number,
    crop_or_pad,
    crop_to_mask,
    cut,
    flip,
    linear_weights,
    onto,
    resample,
    resize,
)
from fusion_jax.ops import resize as device_resize
from tests.helpers import assert_close, real_data

CANONICAL = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0.0]])
"""Directions of (d, h, w) in RAS+."""


def grid(shape=(7, 8, 9), spacing=(3.0, 1.5, 1.0), turn=(0.0, 0.0, 0.0), origin=(-40.0, 25.0, 7.0)):
    """Affine of a volume; `turn` in degrees about x, y and z."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ CANONICAL @ np.diag(spacing)
    affine[:3, 3] = origin
    return shape, tuple(spacing), affine


def places(image: Any) -> Any:
    """Position in mm of every voxel, shape `(d, h, w, 3)`."""
    index = np.stack(np.meshgrid(*map(np.arange, image.values.shape[:-1]), indexing="ij"), axis=-1)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


def place_image(**options) -> Any:
    """A volume whose values are the places of its voxels: linear interpolation keeps them."""
    shape, spacing, affine = grid(**options)
    return Image(places(Image(np.zeros((*shape, 1)), spacing, affine)), spacing, affine)


def noise_image(seed=0, channels=1, unit="", **options) -> Any:
    shape, spacing, affine = grid(**options)
    values = np.random.default_rng(seed).normal(size=(*shape, channels))
    return Image(values, spacing, affine, unit)


def ball(radius=12.0, shape=(24, 30, 36), spacing=(2.0, 1.5, 1.0), turn=(0.0, 0.0, 0.0)) -> Any:
    _, _, affine = grid(shape, spacing, turn)
    image = Image(np.zeros((*shape, 1)), spacing, affine, "label")
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    near = np.linalg.norm(places(image) - middle, axis=-1) <= radius
    return image._replace(values=near[..., None].astype(np.uint8))


# Places


MOVES = {
    "resample": lambda image: resample(image, spacing=(2.0, 2.0, 1.7), antialias=False),
    "resample_cubic": lambda image: resample(image, spacing=1.1, method="cubic"),
    "resize": lambda image: resize(image, size=(5, 9, 4), antialias=False),
    "crop": lambda image: crop_or_pad(image, size=(4, 5, 3), centre=(3.0, 3.2, 5.0)),
    "crop_to_mask": lambda image: crop_to_mask(
        image, Image((places(image)[..., :1] > -45).astype(np.uint8), image.spacing, image.affine, "label")
    ),
    "flip_d": lambda image: flip(image, axis="d"),
    "flip_w": lambda image: flip(image, axis="w"),
    "onto_itself": lambda image: onto(image, image, spacing=(2.5, 2.0, 1.2), antialias=False),
}


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (10.0, -20.0, 30.0)], ids=["straight", "oblique"])
@pytest.mark.parametrize("name", MOVES)
def test_a_voxel_keeps_its_place_in_the_patient(name, turn):
    before = place_image(turn=turn)
    after: Any = MOVES[name](before)
    # Where a new voxel centre lies among old ones, its value must be its own place; at the rim the edge goes on.
    index = (places(after) - before.affine[:3, 3]) @ np.linalg.inv(before.affine[:3, :3]).T
    # Holding the edge bends a spline there, which fades by a factor of 3.7 a voxel.
    rim, tolerance = (2, 0.05) if name == "resample_cubic" else (0, 1e-9)
    among = ((index >= rim) & (index <= np.array(before.values.shape[:-1]) - 1 - rim)).all(axis=-1)
    assert among.sum() >= 20
    np.testing.assert_allclose(after.values[among], places(after)[among], atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(after.affine[:3, :3], axis=0), after.spacing, rtol=1e-12)


@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    marked=st.tuples(st.integers(0, 6), st.integers(0, 7), st.integers(0, 8)),
    size=st.tuples(*[st.integers(1, 15)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 1.0)] * 3),
)
def test_a_marked_voxel_is_found_within_half_a_voxel(turn, marked, size, spacing):
    shape, old, affine = grid(turn=turn)
    values = np.zeros((*shape, 1), np.int16)
    values[marked] = 1
    image = Image(values, old, affine, "label")
    place = affine[:3, :3] @ marked + affine[:3, 3]
    for after in (resample(image, spacing=spacing), crop_or_pad(image, image, size=size), flip(image, axis="h")):
        found = places(after)[after.values[..., 0] == 1]
        assert len(found)
        # Of a voxel cut into several, the pieces surround its centre.
        error = np.linalg.inv(affine[:3, :3]) @ (found.mean(axis=0) - place)
        assert np.abs(error).max() <= 0.5 + 1e-6


# Resampling


def test_the_new_grid_covers_the_old_about_the_same_centre():
    image = place_image(shape=(10, 7, 5), spacing=(1.0, 1.0, 2.0))
    after = resample(image, spacing=(3.0, 2.0, 2.0))
    assert after.values.shape == (4, 4, 5, 3)
    assert after.spacing == (3.0, 2.0, 2.0)
    centre = places(image).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(places(after).mean(axis=(0, 1, 2)), centre, atol=1e-9)


def test_rounding_in_the_spacing_costs_no_voxel():
    image = Image(np.zeros((10, 10, 1)), (0.9999999, 1.0000001))
    assert resample(image, spacing=2.0).values.shape == (5, 5, 1)


def sitk_image(image):
    """One channel for SimpleITK, which has (x, y, z) order and LPS+ places."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(image.values[..., 0])
    lps = np.diag([-1.0, -1.0, 1.0])
    directions = lps @ image.affine[:3, :3] / np.array(image.spacing)
    made.SetSpacing(image.spacing[::-1])
    made.SetDirection(directions[:, ::-1].ravel().tolist())
    made.SetOrigin((lps @ image.affine[:3, 3]).tolist())
    return made


def sitk_onto(image, after, interpolator, fill=0.0):
    import SimpleITK as sitk

    moved = sitk.Resample(sitk_image(image), sitk_image(after), sitk.Transform(), getattr(sitk, interpolator), fill)
    return sitk.GetArrayFromImage(moved)[..., None]


@pytest.mark.parametrize(("method", "interpolator"), [("linear", "sitkLinear"), ("nearest", "sitkNearestNeighbor")])
def test_resampling_equals_simpleitk(method, interpolator):
    pytest.importorskip("SimpleITK")
    image = noise_image()
    after = resample(image, spacing=(2.1, 1.3, 1.7), method=method, antialias=False)
    assert_close(after.values, sitk_onto(image, after, interpolator), 1e-9)


def test_cubic_resampling_equals_simpleitk_away_from_the_border():
    pytest.importorskip("SimpleITK")
    image = noise_image(shape=(30, 30, 30))
    after = resample(image, spacing=(2.1, 1.3, 0.7), method="cubic", antialias=False)
    inner = tuple(slice(n // 3, 2 * n // 3) for n in after.values.shape[:-1])
    # The splines differ in how they go on beyond the border, which fades by a factor of 3.7 a voxel.
    assert_close(after.values[inner], sitk_onto(image, after, "sitkBSpline")[inner], 1e-4)


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (10.0, -20.0, 30.0)], ids=["straight", "oblique"])
@pytest.mark.parametrize(("method", "interpolator"), [("linear", "sitkLinear"), ("nearest", "sitkNearestNeighbor")])
def test_onto_another_grid_equals_simpleitk(method, interpolator, turn):
    pytest.importorskip("SimpleITK")
    image = noise_image(unit="HU")
    reference = noise_image(
        shape=(11, 12, 13), spacing=(1.7, 1.1, 0.9), turn=turn, origin=(-41.03, 26.07, 5.02), channels=2
    )
    after = onto(image, reference, method=method, antialias=False)
    assert after.values.shape == (11, 12, 13, 1)
    assert after.unit == "HU"
    np.testing.assert_array_equal(after.affine, reference.affine)
    expected = sitk_onto(image, after, interpolator, AIR_HU)
    assert 0.1 < np.mean(expected == AIR_HU) < 0.9
    assert_close(after.values, expected, 1e-9)


def test_channels_are_resampled_alike():
    image = noise_image(channels=3)
    together = resample(image, spacing=2.0).values
    alone = [resample(image._replace(values=image.values[..., c : c + 1]), spacing=2.0).values for c in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=-1))


def test_smoothing_keeps_fine_patterns_from_turning_into_coarse_ones():
    stripes = Image(np.where(np.arange(40) % 2, 1.0, -1.0).reshape(1, 40, 1), (1.0, 1.0))
    smooth, sharp = (resample(stripes, spacing=(1.0, 5.0), antialias=choice).values for choice in (True, False))
    assert np.abs(smooth[:, 1:-1]).max() < 0.001
    assert np.abs(sharp).min() == 1


def test_smoothing_has_the_point_spread_of_the_new_voxel():
    # How much each of 81 voxels counts in the middle one of 21 new ones, which lies on the middle of the old.
    points = Image(np.eye(81)[None], (1.0, 1.0))
    weights = resample(points, spacing=(1.0, 4.0)).values[0, 10]
    assert weights.sum() == pytest.approx(1)
    variance = weights @ (np.arange(81) - 40.0) ** 2
    assert variance == pytest.approx(15 / (8 * np.log(2)), rel=0.01)


@pytest.mark.parametrize("unit", ["", "label"])
def test_a_straight_grid_is_read_like_an_oblique_one(unit):
    # A turn by 1e-6 degrees takes the general path and moves no voxel by more than 1e-6 mm.
    image = noise_image(channels=2, shape=(20, 21, 22))
    if unit == "label":
        image = image._replace(values=(image.values > 0.8).astype(np.uint8), unit=unit)
    method = "half" if unit == "label" else "linear"
    straight, turned = (
        noise_image(shape=(9, 12, 9), spacing=(5.1, 3.2, 1.4), turn=(turn, turn, turn), origin=(-41.0, 24.0, 10.0))
        for turn in (0.0, 1e-6)
    )
    expected = onto(image, turned, method=method).values
    assert np.mean(expected != 0) > 0.01
    np.testing.assert_allclose(onto(image, straight, method=method).values, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "cubic", "nearest"])
def test_the_order_of_the_axes_of_the_new_grid_does_not_matter(method):
    image = noise_image(shape=(12, 21, 22))
    reference = noise_image(shape=(9, 6, 9), spacing=(2.1, 6.2, 1.1))
    turned = Image(reference.values.transpose(2, 0, 1, 3), (1.1, 2.1, 6.2), reference.affine[:, [2, 0, 1, 3]])
    expected = onto(image, reference, method=method).values.transpose(2, 0, 1, 3)
    assert_close(onto(image, turned, method=method).values, expected, 1e-9)


def test_growing_an_image_smooths_nothing():
    image = noise_image()
    np.testing.assert_array_equal(
        resample(image, spacing=0.8).values, resample(image, spacing=0.8, antialias=False).values
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, bool])
def test_masks_keep_dtype_and_values(dtype):
    mask = ball()._replace(values=ball().values.astype(dtype))
    after = resample(mask, spacing=2.5)
    assert after.values.dtype == dtype
    assert set(np.unique(after.values).tolist()) == {0, 1}


def test_images_become_floating_point():
    image = noise_image()
    for dtype, expected in (
        (np.int16, np.float32), (np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)
    ):  # fmt: skip
        values = (100 * image.values).astype(dtype)
        assert resample(image._replace(values=values), spacing=2.0).values.dtype == expected
    half = image._replace(values=image.values.astype(np.float16))
    assert resample(half, spacing=2.0, method="nearest").values.dtype == np.float32


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (25.0, 5.0, -40.0)], ids=["straight", "oblique"])
def test_half_keeps_the_volume_of_a_ball(turn):
    mask = ball()
    shape, spacing, affine = grid((16, 16, 16), (3.0, 3.0, 3.0), turn)
    middle = mask.affine[:3, :3] @ ((np.array(mask.values.shape[:-1]) - 1) / 2) + mask.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ [7.3, 7.6, 7.9]
    after = onto(mask, Image(np.zeros((*shape, 1)), spacing, affine), method="half")
    volume = 4 / 3 * np.pi * 12**3
    assert mask.values.sum() * 3.0 == pytest.approx(volume, rel=0.01)
    assert after.values.sum() * 27.0 == pytest.approx(volume, rel=0.02)
    assert after.values.dtype == np.uint8


def test_half_keeps_labels_apart_and_gives_ties_to_the_lowest():
    labels = Image(np.array([2, 2, 2, 5, 5, 0, 5, 5]).reshape(1, 8, 1), (1.0, 1.0), unit="label")
    after = resample(labels, spacing=(1.0, 2.0), method="half", antialias=False)
    assert after.values.ravel().tolist() == [2, 2, 5, 5]
    assert after.values.dtype == labels.values.dtype


def test_masks_at_one_half_are_those_of_the_bundled_sample():
    # The sample counts the part of each 4 mm voxel that the contour fills; ours smooths and interpolates.
    folder, sample = real_data("sts_petct"), soft_tissue_sarcoma()
    for patient in ("STS_001", "STS_008", "STS_018"):
        row = sample.patient_id.index(patient)
        _, mask, _ = sts(folder, patient)
        after = resample(mask, spacing=4.0, method="half").values[..., 0]
        dice = 2 * (after * sample.mask[row]).sum() / (after.sum() + sample.mask[row].sum())
        assert dice > 0.985, patient
        assert after.sum() == pytest.approx(sample.mask[row].sum(), rel=0.01), patient


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (Image(np.zeros((4, 4, 1))), 1.0, r"shape \(4, 4, 1\) has no spacing; expected mm"),
        (Image(np.zeros((4, 4, 1)), (1.0, 1.0)), (1.0, 1.0, 1.0), "spacing holds 3 numbers; expected one, or one for"),
        (Image(np.zeros((400, 400, 1)), (1.0, 1.0)), 1e-3, "400000 × 400000 voxels, more than .*; expected a spacing"),
        (Image(np.full((4, 4, 1), np.nan), (1.0, 1.0)), 2.0, "16 of 16 values are NaN or infinite"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused(image, spacing, message):
    with pytest.raises(ValueError, match=message):
        resample(image, spacing=spacing)


def test_onto_refuses_images_that_do_not_say_where_they_lie():
    with pytest.raises(ValueError, match=r"the reference of shape \(4, 4, 1\) has no affine"):
        onto(noise_image(), Image(np.zeros((4, 4, 1))))


def test_onto_refuses_fields_of_view_that_do_not_meet():
    with pytest.raises(ValueError, match=r"do not meet; expected fields of view that overlap. See whether both"):
        onto(noise_image(), noise_image(origin=(500.0, 0.0, 0.0)))


# Real PET and CT


def sts(folder, patient):
    """CT, its mask and PET of a patient, in canonical order."""
    with np.load(folder / "volumes" / f"{patient}.npz") as file:
        made = []
        for name, place, unit in (
            ("ct", "ct_affine", "HU"),
            ("ct_mask", "ct_affine", "label"),
            ("pet", "pet_affine", "SUV"),
        ):
            affine = file[place][:, [2, 1, 0, 3]]
            spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
            made.append(Image(np.ascontiguousarray(file[name].T[..., None]), spacing, affine, unit))
        return made


def test_pet_lies_on_the_ct_grid_as_simpleitk_puts_it():
    pytest.importorskip("SimpleITK")
    ct, _, pet = sts(real_data("sts_petct"), "STS_008")
    after = onto(pet, ct)
    assert after.values.shape == ct.values.shape
    single = pet._replace(values=pet.values.astype(np.float32))
    expected = sitk_onto(single, after, "sitkLinear")
    assert expected.max() > 5
    assert_close(after.values, expected, 1e-5)


def test_pet_and_ct_meet_on_the_grid_of_the_bundled_sample():
    folder, sample = real_data("sts_petct"), soft_tissue_sarcoma()
    row = sample.patient_id.index("STS_008")
    ct, _, pet = sts(folder, "STS_008")
    pet, ct = onto(pet, ct, spacing=4.0), resample(ct, spacing=4.0)
    np.testing.assert_allclose(ct.affine, sample.affine[row], atol=1e-4)
    np.testing.assert_array_equal(ct.affine, pet.affine)
    # The PET is beyond its field of view at the rim, where the sample lets its edge go on. SUV were rounded there.
    inside = pet.values[..., 0] > 0
    assert inside.mean() > 0.95
    assert np.abs(pet.values[..., 0] - sample.pet[row])[inside].max() < 0.02
    # The sample averages over voxels, we smooth by a Gaussian of the same width.
    assert np.corrcoef(ct.values.ravel(), sample.ct[row].ravel())[0, 1] > 0.99


def test_cropping_with_a_margin_gives_the_published_cut():
    nibabel = pytest.importorskip("nibabel")
    folder = real_data("sts_petct")
    source = folder / "nifti_sample" / "STS_008"
    images = {}
    for name, unit in (("CT_image", "HU"), ("CT_mask", "label"), ("PET_image", "SUV")):
        file = nibabel.load(source / f"{name}.nii.gz")
        affine = file.affine[:, [2, 1, 0, 3]]
        spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
        images[name] = Image(np.asarray(file.dataobj).T[..., None], spacing, affine, unit)
    ct, mask, pet = sts(folder, "STS_008")
    cropped = crop_to_mask(images["CT_image"], images["CT_mask"], margin_mm=20)
    np.testing.assert_array_equal(cropped.values, ct.values)
    np.testing.assert_allclose(cropped.affine, ct.affine, atol=1e-5)
    np.testing.assert_array_equal(crop_to_mask(images["CT_mask"], images["CT_mask"], margin_mm=20).values, mask.values)
    # The PET has a grid of its own: the box of the CT's mask, in mm.
    # The published cut rounds the outermost voxel centres outwards, which takes in voxels that do not meet the box.
    on_pet = crop_to_mask(images["PET_image"], images["CT_mask"], margin_mm=20)
    published = pet.values[:, 1:-1, 1:].astype(np.float32)
    np.testing.assert_allclose(on_pet.values, published, rtol=1e-3, atol=1e-4)


# Resizing


@pytest.mark.parametrize("size", [(30, 50), (9, 7), (80, 11)])
def test_resizing_equals_pillow(size):
    values = np.random.default_rng(1).uniform(size=(31, 44)).astype(np.float32)
    expected = Picture.fromarray(values).resize(size[::-1], Picture.Resampling.BILINEAR)
    assert_close(resize(Image(values[..., None]), size=size).values[..., 0], np.asarray(expected), 1e-6)


@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_equals_the_kernel_on_device(antialias):
    values = np.random.default_rng(2).uniform(size=(9, 12, 10, 2)).astype(np.float32)
    sizes = (5, 12, 17)
    expected = device_resize(values[None], sizes, antialias=antialias)[0]
    assert_close(resize(Image(values), size=sizes, antialias=antialias).values, expected, 1e-5)


def test_resizing_masks_equals_pillow():
    values = np.random.default_rng(3).integers(0, 4, (31, 44)).astype(np.uint8)
    for size in ((30, 51), (9, 7), (62, 88)):  # 50 columns have ties, which Pillow rounds by chance
        expected = Picture.fromarray(values).resize(size[::-1], Picture.Resampling.NEAREST)
        after = resize(Image(values[..., None], unit="label"), size=size)
        np.testing.assert_array_equal(after.values[..., 0], np.asarray(expected))
        assert after.values.dtype == np.uint8


def test_resizing_says_the_new_spacing():
    image = Image(np.zeros((10, 20, 1)), (1.0, 0.5))
    assert resize(image, size=5).spacing == (2.0, 2.0)
    assert resize(Image(np.zeros((10, 20, 1))), size=5).spacing is None


def test_weights_beyond_the_axis_hold_the_edge():
    weights = linear_weights(3, 4, -2.0, 4.0, antialias=False)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])


# Cropping, padding, flipping


def test_a_window_is_centred_on_the_box_of_the_mask():
    image = noise_image(shape=(9, 9, 9))
    mask = np.zeros((9, 9, 9, 1), np.uint8)
    mask[1:4, 5:8, 8] = 1
    after = crop_or_pad(image, Image(mask, image.spacing, image.affine, "label"), size=(3, 5, 3), fill=-7.0)
    np.testing.assert_array_equal(after.values[:, :4, :2], image.values[1:4, 4:8, 7:9])
    assert (after.values[:, 4:, :2] == image.values[1:4, 8:, 7:9]).all()
    assert (after.values[:, :, 2] == -7).all()


@pytest.mark.parametrize(("n", "m", "first"), [(5, 3, 1), (6, 3, 2), (5, 4, 1), (6, 4, 1), (3, 5, -1), (4, 7, -1)])
def test_even_and_odd_windows_lie_about_the_middle(n, m, first):
    row = Image(np.arange(1, n + 1, dtype=np.int16).reshape(1, n, 1))
    after = crop_or_pad(row, size=(1, m)).values.ravel()
    expected = [i + 1 if 0 <= i < n else 0 for i in range(first, first + m)]
    assert after.tolist() == expected


def test_a_window_that_cuts_the_mask_is_told_to_the_log(caplog):
    image = Image(np.zeros((1, 9, 1)))
    mask = Image(np.ones((1, 9, 1), np.uint8), unit="label")
    with caplog.at_level(logging.WARNING, "fusion_jax.data.images.geometry"):
        crop_or_pad(image, mask, size=(1, 9))
        assert caplog.text == ""
        crop_or_pad(image, mask, size=(1, 4))
    assert "a window of [1, 4] voxels cuts 5 of 9 voxels of the mask off" in caplog.text


def test_padding_is_air_in_ct_and_zero_elsewhere():
    for unit, dtype, expected in (("HU", np.int16, -1024), ("SUV", np.float32, 0), ("label", np.uint8, 0)):
        image = Image(np.full((1, 1, 1), 3, dtype), unit=unit)
        assert crop_or_pad(image, size=3).values[0, 0, 0] == expected


@pytest.mark.parametrize("fill", [-1.0, 0.5, 256.0])
def test_a_fill_that_the_dtype_cannot_hold_is_refused(fill):
    with pytest.raises(ValueError, match="which uint8 of the image cannot hold"):
        crop_or_pad(Image(np.zeros((2, 2, 1), np.uint8)), size=3, fill=fill)


def test_cutting_may_miss_the_image_altogether():
    row = Image(np.ones((1, 3, 1)))
    assert cut(row, np.array([0, 5]), np.array([1, 7])).values.ravel().tolist() == [0, 0]
    assert cut(row, np.array([0, -4]), np.array([1, -2])).values.ravel().tolist() == [0, 0]


def test_a_crop_shares_no_memory_with_the_image():
    image = Image(np.zeros((4, 4, 1)))
    crop_or_pad(image, size=2).values[...] = 1
    assert image.values.max() == 0


def test_the_margin_goes_outwards_to_whole_voxels_and_stays_in_the_image():
    values = np.arange(10.0).reshape(1, 10, 1)
    mask = Image((values == 2).astype(np.uint8), (1.0, 3.0), unit="label")
    image = Image(values, (1.0, 3.0))
    cut_at = {margin: crop_to_mask(image, mask, margin_mm=(0, margin)).values.ravel() for margin in (0, 0.1, 3, 3.1, 7)}
    assert [(kept[0], kept[-1]) for kept in cut_at.values()] == [(2, 2), (1, 3), (1, 3), (0, 4), (0, 5)]


def test_a_mask_on_another_grid_crops_by_place():
    image, mask = noise_image(shape=(20, 20, 20), spacing=(1.0,) * 3), np.zeros((5, 5, 5, 1), np.uint8)
    mask[2, 2, 2] = 1
    affine = image.affine @ np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (image.affine @ [1.5, 1.5, 1.5, 1])[:3]  # voxel 0 of the mask covers voxels 0 to 3
    after = crop_to_mask(image, Image(mask, (4.0,) * 3, affine, "label"))
    np.testing.assert_array_equal(after.values, image.values[8:12, 8:12, 8:12])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image(np.zeros((4, 4, 1))), "the mask is empty; expected at least one voxel"),
        (Image(np.ones((4, 5, 1))), r"the mask has shape \(4, 5\), the image \(4, 4\); expected one grid"),
        (Image(np.ones((4, 4, 2))), "the mask has 2 channels; expected one"),
    ],
)
@pytest.mark.parametrize("crop", [crop_to_mask, lambda image, mask: crop_or_pad(image, mask, size=2)])
def test_a_mask_that_does_not_fit_is_refused(crop, mask, message):
    with pytest.raises(ValueError, match=message):
        crop(Image(np.zeros((4, 4, 1))), mask)


def test_a_mask_outside_the_image_is_refused():
    image = noise_image()
    mask = noise_image(origin=(400.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="the mask lies outside the image"):
        crop_to_mask(image, mask)
    with pytest.raises(ValueError, match=r"no voxel of the image .* lies in the mask .* at \[400.0, 0.0, 0.0\] mm"):
        crop_or_pad(image, mask, size=3)


def test_mask_and_centre_together_are_refused():
    image = Image(np.ones((4, 4, 1)))
    with pytest.raises(ValueError, match="both a mask and a centre"):
        crop_or_pad(image, image, size=2, centre=(1, 1))


def test_flipping_twice_changes_nothing():
    image = noise_image(turn=(10.0, 20.0, 30.0))
    for axis in ("d", "h", "w"):
        once, twice = flip(image, axis=axis), flip(flip(image, axis=axis), axis=axis)
        assert not np.array_equal(once.values, image.values)
        np.testing.assert_array_equal(twice.values, image.values)
        np.testing.assert_allclose(twice.affine, image.affine, atol=1e-12)


def test_an_image_in_the_plane_has_no_axis_d():
    image = Image(np.zeros((2, 3, 1)))
    assert (axis_number(image, "h"), axis_number(image, "w")) == (0, 1)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 1\) has no axis 'd'; it has h, w"):
        flip(image, axis="d")
