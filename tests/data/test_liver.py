"""Landmarks and crops of the left hepatic lobe, on an analytic liver and on a real one."""

import inspect
import logging
import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from fusion_jax.data.image import Image
from fusion_jax.data.liver import (
    DividingPlane,
    LobeAxis,
    box_corners,
    cantlie_plane,
    left_lobe,
    left_lobe_image,
    liver_mask,
    lobe_axis,
    lobe_sections,
    lobe_surface,
    sagittal_plane,
    surface_crop,
)
from tests.helpers import ROOT, assert_close, real_data

ANGLES = range(0, 360, 20)
SPACING = (4.0, 1.5, 1.5)
LIVER_HU, FAT_HU = 60.0, -90.0
MIDDLE = 20
"""Slice of the phantom's equator, which has the largest section of the lobe."""


class Phantom(NamedTuple):
    ct: np.ndarray
    liver: np.ndarray
    gallbladder: np.ndarray
    vena_cava: np.ndarray


def depth(y, x, z, nodules: float):
    """Below 0 in the liver, about mm from its surface: a right lobe, a flat left one to its front, nodules on both."""
    bumps = nodules * (np.sin(x / 3.1) + np.sin(y / 2.7 + 1) + np.sin(z / 3.3 + 2)) / 3
    right = 50 * (np.sqrt(((x + 25) / 60) ** 2 + ((y - 5) / 50) ** 2 + (z / 70) ** 2) - 1)
    turn = math.radians(-15)
    along = (x - 40) * math.cos(turn) + (y + 18) * math.sin(turn)
    across = (y + 18) * math.cos(turn) - (x - 40) * math.sin(turn)
    left = 25 * (np.sqrt((along / 60) ** 2 + (across / 25) ** 2 + (z / 45) ** 2) - 1)
    return np.minimum(right, left) + bumps


def turned(y, x, degrees: float):
    """Points after the patient was turned, seen from the feet against the clock."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return y * cosine - x * sine, x * cosine + y * sine


def phantom(
    degrees: float = 0.0, spacing=SPACING, nodules: float = 0.0, sides: tuple[int, int] = (160, 184)
) -> Phantom:
    """The liver, turned in the plane, with partial volume at its surface; made anew at every angle, not resampled."""
    shape = (2 * MIDDLE + 1, *(round(side * 1.5 / step) for side, step in zip(sides, spacing[1:], strict=True)))
    z, y, x = (
        (np.arange(n) - (n - 1) / 2).reshape([-1 if axis == i else 1 for i in range(3)]) * step
        for axis, (n, step) in enumerate(zip(shape, spacing, strict=True))
    )
    y, x = turned(y, x, -degrees)
    inside = depth(y, x, z, nodules)
    ct = FAT_HU + (LIVER_HU - FAT_HU) * np.clip(0.5 - inside / 3.0, 0, 1)
    # A vessel behind the axis: a mirrored crop would show it in front.
    ct = ct + 80 * np.exp(-((y + 5) ** 2 + (x - 25) ** 2) / 20)
    gallbladder = (y + 20) ** 2 + (x + 15) ** 2 + (z + 40) ** 2 < 12**2
    vena_cava = ((y - 30) ** 2 + (x - 8) ** 2 < 10**2) & np.ones(shape, dtype=bool)
    return Phantom(ct.astype(np.float32), inside < 0, gallbladder, vena_cava)


def landmarks_of(it: Phantom, spacing=SPACING, section: int = MIDDLE) -> LobeAxis:
    liver = liver_mask(it.liver, spacing)
    lobe = left_lobe(liver, cantlie_plane(liver, it.gallbladder, it.vena_cava, spacing), spacing)
    return lobe_axis(liver, lobe, spacing, section=section)


def in_patient(point, it: Phantom, degrees: float, spacing=SPACING) -> np.ndarray:
    """Pixel position as millimetres of the patient who was not turned."""
    middle = (np.array(it.liver.shape[1:]) - 1) / 2
    return np.array(turned(*((np.array(point) - middle) * spacing[1:]), -degrees))


def true_landmarks(nodules: float) -> tuple[np.ndarray, np.ndarray]:
    """Centre and tip of the equator's section from its formula, on a grid of 0.1 mm."""
    y, x = np.mgrid[-70:70:0.1, -100:120:0.1]
    inside = depth(y, x, 0.0, nodules) < 0
    centre = np.array([y[inside].mean(), x[inside].mean()])
    # Left of the line from the vena cava to the gallbladder.
    left = inside & ((y - 30) * -23 + (x - 8) * 50 > 0)
    distance = np.where(left, np.hypot(y - centre[0], x - centre[1]), 0)
    at = np.unravel_index(distance.argmax(), distance.shape)
    return centre, np.array([y[at], x[at]])


def grid(it: np.ndarray, spacing=SPACING, unit: str = "label") -> Image:
    return Image((it if unit == "HU" else it.astype(np.uint8))[..., None], spacing, None, unit)


# Landmarks


@pytest.mark.parametrize("nodules", [0.0, 4.0])
def test_landmarks_are_those_of_the_formula_at_every_angle(nodules):
    centre, tip = true_landmarks(nodules)
    errors = []
    for degrees in ANGLES:
        it = phantom(degrees, nodules=nodules)
        found = landmarks_of(it)
        errors.append(
            [
                np.hypot(*(in_patient(found.centre, it, degrees) - centre)),
                np.hypot(*(in_patient(found.tip, it, degrees) - tip)),
                abs(found.length - np.hypot(*(tip - centre))),
            ]
        )
    voxel = SPACING[1]
    assert (np.max(errors, axis=0) < [0.1 * voxel, voxel, 0.6 * voxel]).all(), np.max(errors, axis=0) / voxel


def test_the_angle_is_the_turn_to_the_front():
    first = landmarks_of(phantom()).angle
    # Turned by +20 degrees in (h, w), the left goes to the front by as much.
    assert landmarks_of(phantom(20)).angle - first == pytest.approx(20, abs=1)


def test_landmarks_do_not_depend_on_the_voxels():
    coarse_spacing = (4.0, 3.0, 2.0)
    fine, coarse = phantom(), phantom(spacing=coarse_spacing)
    one, other = landmarks_of(fine), landmarks_of(coarse, coarse_spacing)
    for point, same in ((one.centre, other.centre), (one.tip, other.tip)):
        distance = in_patient(point, fine, 0) - in_patient(same, coarse, 0, coarse_spacing)
        assert np.hypot(*distance) < max(coarse_spacing[1:])


def test_cantlies_plane_turns_with_the_patient():
    for degrees in (0, 70, 200):
        it = phantom(degrees)
        plane = cantlie_plane(it.liver, it.gallbladder, it.vena_cava, SPACING)
        np.testing.assert_allclose(in_patient(plane.point, it, degrees), [30, 8], atol=0.2)
        # A quarter turn from the line, (-50, -23) mm from vena cava to gallbladder.
        np.testing.assert_allclose(turned(*plane.left, -degrees), np.array([-23, 50]) / math.hypot(50, 23), atol=0.01)


def test_only_the_vena_cava_beside_the_liver_counts():
    it = phantom()
    bent = it.vena_cava.copy()
    without_liver = ~it.liver.any(axis=(1, 2))
    assert without_liver.any()
    bent[without_liver] = False
    bent[without_liver, 5:20, 5:20] = True
    assert cantlie_plane(it.liver, it.gallbladder, bent, SPACING) == cantlie_plane(
        it.liver, it.gallbladder, it.vena_cava, SPACING
    )


def test_of_two_prongs_that_reach_as_far_the_tip_is_on_one():
    liver = np.zeros((3, 61, 61), dtype=bool)
    liver[:, 10:51, 10:31] = True
    liver[:, 10:15, 30:51] = liver[:, 46:51, 30:51] = True
    axis = lobe_axis(liver, left_lobe(liver, sagittal_plane(liver), (3.0, 3.0, 3.0)), (3.0, 3.0, 3.0), section=1)
    assert liver[1, round(axis.tip[0]), round(axis.tip[1] - 0.5)]


# Crops


def test_crops_agree_at_every_angle():
    reference = surface_crop(phantom().ct, landmarks_of(phantom()), fill=FAT_HU)
    assert np.ptp(reference) > LIVER_HU - FAT_HU
    for degrees in ANGLES[1:]:
        it = phantom(degrees)
        crop = surface_crop(it.ct, landmarks_of(it), fill=FAT_HU)
        error = np.abs(crop - reference)
        # Of 150 HU between liver and fat; a crop that was not turned back differs by tens of HU.
        assert error.mean() < 2.5, degrees
        assert np.quantile(error, 0.9) < 8, degrees


def test_without_landmarks_crops_agree_up_to_45_degrees():
    def crop(degrees: float) -> np.ndarray:
        it = phantom(degrees)
        return left_lobe_image(grid(it.ct, unit="HU"), grid(it.liver), section=MIDDLE, fill=FAT_HU).values

    reference = crop(0)
    for degrees in (-45, -20, 20, 45):
        assert np.abs(crop(degrees) - reference).mean() < 2.5, degrees
    assert np.abs(crop(180) - reference).mean() > 20


def test_a_crop_shows_the_tip_at_its_right_and_is_not_mirrored():
    for degrees in (0, 90, 250):
        it = phantom(degrees)
        crop = surface_crop(it.ct, landmarks_of(it), fill=FAT_HU)[..., 1]
        tip = 224 * 1.1 / 1.2
        # Liver before the tip, fat beyond it, on the middle row.
        assert crop[112, int(tip) - 12] > 40
        assert crop[112, int(tip) + 8] < -60
        # The vessel lies behind the axis, so below it.
        row, _ = np.unravel_index(crop.argmax(), crop.shape)
        assert 120 < row < 160


def test_channels_are_the_slice_below_the_section_and_the_slice_above():
    volume = np.broadcast_to(np.arange(5, dtype=np.int16)[:, None, None], (5, 40, 60))
    axis = LobeAxis(section=3, centre=(20.0, 15.0), tip=(22.0, 40.0), spacing=(1.0, 1.0))
    crop = surface_crop(volume, axis, size=(4, 6), fill=-9.0)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, np.broadcast_to(np.float32([2, 3, 4]), (4, 6, 3)))


def test_outside_of_the_volume_is_the_fill():
    axis = LobeAxis(section=1, centre=(5.0, 5.0), tip=(5.0, 30.0), spacing=(1.0, 1.0))
    crop = surface_crop(np.ones((3, 10, 40)), axis, size=(60, 60), fill=-1000.0)
    assert (crop[0] == -1000).all()
    assert (crop[30, 5:] == 1).all()


def test_the_box_holds_the_crop_in_millimetres():
    axis = LobeAxis(section=1, centre=(20.0, 10.0), tip=(35.0, 40.0), spacing=(2.0, 1.0))
    assert axis.length == pytest.approx(math.hypot(30, 30))
    assert axis.angle == pytest.approx(-45)
    corners = box_corners(axis, margin=0.2, half_width=0.5) * axis.spacing
    sides = np.hypot(*np.diff(corners, axis=0, append=corners[:1]).T)
    np.testing.assert_allclose(sides / axis.length, [1.4, 1.0, 1.4, 1.0])
    # Pixel centres of the first row and column lie half a pixel inside the first corner.
    rows, columns = np.mgrid[:60.0, :60.0]
    volume = np.stack([rows, columns, rows])
    row, column = surface_crop(volume, axis, size=(10, 14), margin=0.2, half_width=0.5, fill=np.nan)[0, 0, :2]
    step = axis.length / 10
    inward = corners[0] + step / 2 * np.array([1, 1]) / math.sqrt(2) + step / 2 * np.array([1, -1]) / math.sqrt(2)
    np.testing.assert_allclose(np.array([row, column]) * axis.spacing, inward, rtol=1e-5)


# The mask of the liver


def block(shape=(20, 40, 60)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[5:15, 10:30, 10:50] = True
    return mask


def test_crumbs_are_removed_and_told(caplog):
    mask = block()
    mask[1, 2, 2:5] = True
    with caplog.at_level(logging.WARNING, logger="fusion_jax.data.liver"):
        np.testing.assert_array_equal(liver_mask(mask, (4.0, 4.0, 4.0)), block())
    assert caplog.messages == ["liver mask: removed 1 small components, 3 voxels"]


def test_a_scan_that_ends_inside_the_liver_is_a_liver():
    mask = block()
    mask[15:, 10:30, 10:50] = True
    np.testing.assert_array_equal(liver_mask(mask, (4.0, 4.0, 4.0)), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask & False, "no voxel is set"),
        (lambda mask: mask & (np.arange(60) % 30 != 0), "2 components, the largest with 51% of"),
        (lambda mask: np.roll(mask, -10, axis=1), r"\d+ voxels lie at the front side"),
        (lambda mask: np.roll(mask, 10, axis=1), r"\d+ voxels lie at the back side"),
        (lambda mask: np.roll(mask, -10, axis=2), r"\d+ voxels lie at the right side"),
        (lambda mask: np.roll(mask, 10, axis=2), r"\d+ voxels lie at the left side"),
    ],
)
def test_a_bad_mask_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        liver_mask(change(block()), (4.0, 4.0, 4.0))


@pytest.mark.parametrize("spacing", [(0.4, 0.4, 0.4), (40.0, 40.0, 40.0)])
def test_a_volume_that_no_liver_has_is_refused(spacing):
    with pytest.raises(ValueError, match=r"a volume of .* ml at a spacing of .*expected 50 to 20000 ml.*millimetres"):
        liver_mask(block(), spacing)


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, math.nan)])
def test_a_bad_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match=r"expected three distances in mm above 0, \(dz, dy, dx\)"):
        liver_mask(block(), spacing)


# Lobe, surface, sections


def test_the_surface_has_neither_the_dividing_plane_nor_the_cut_of_the_scan():
    it = phantom()
    liver = it.liver[: MIDDLE + 5]
    lobe = left_lobe(liver, sagittal_plane(liver), SPACING)
    surface = lobe_surface(liver, lobe)
    assert not (surface & ~lobe).any()
    dividing = lobe & ~np.roll(lobe, 1, axis=2) & np.roll(liver, 1, axis=2)
    inner: np.ndarray = ndimage.binary_erosion(liver, border_value=1)
    assert (dividing & inner).sum() > 100
    assert not (surface & dividing & inner).any()
    top = np.count_nonzero(surface[-1]) / np.count_nonzero(lobe[-1])
    # What is left of the cut is the outline of the section.
    assert 0 < top < 0.15
    # The whole liver, by contrast, ends in a cap.
    whole = lobe_surface(it.liver, it.liver)
    last = np.flatnonzero(it.liver.any(axis=(1, 2)))[-1]
    np.testing.assert_array_equal(whole[last], it.liver[last])


def test_the_lobe_is_the_connected_part_on_the_left():
    liver = np.zeros((3, 20, 40), dtype=bool)
    liver[:, 5:15, 5:25] = True
    liver[:, 5:15, 25:35] = True
    liver[:, 4, 21] = True
    lobe = left_lobe(liver, DividingPlane((0.0, 20.0), (0.0, 1.0)), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(lobe, liver & (np.arange(40) > 20))
    right = left_lobe(liver, DividingPlane((0.0, 20.0), (0.0, -1.0)), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(right, liver & (np.arange(40) < 20))


def test_no_liver_on_the_left_is_told():
    with pytest.raises(ValueError, match=r"no liver on the left of the plane through \(0.0, 55.0\).*orientation"):
        left_lobe(block(), DividingPlane((0.0, 55.0), (0.0, 1.0)), (4.0, 4.0, 4.0))


def test_sections_come_by_area_and_have_neighbours(caplog):
    it = phantom()
    lobe = left_lobe(it.liver, sagittal_plane(it.liver), SPACING)
    sections = lobe_sections(it.liver, lobe)
    area = lobe.sum(axis=(1, 2))
    assert sections[0] == MIDDLE
    assert (np.diff(area[list(sections)]) <= 0).all()
    holds = np.flatnonzero(it.liver.any(axis=(1, 2)))
    assert set(sections) == set(np.flatnonzero(area).tolist()) - {holds[0], holds[-1]}
    assert not caplog.messages


@pytest.mark.parametrize(("kept", "end"), [(slice(None, MIDDLE - 3), "upper"), (slice(MIDDLE + 4, None), "lower")])
def test_a_largest_section_at_the_cut_is_told(caplog, kept, end):
    liver = phantom().liver[kept]
    lobe = left_lobe(liver, sagittal_plane(liver), SPACING)
    sections = lobe_sections(liver, lobe)
    assert 0 not in sections
    assert len(liver) - 1 not in sections
    [message] = caplog.messages
    assert f"ends inside the liver at its {end} end; a larger section may lie beyond" in message


def test_a_lobe_without_three_slices_is_refused():
    liver = np.zeros((5, 9, 9), dtype=bool)
    liver[2:4, 2:7, 2:7] = True
    with pytest.raises(ValueError, match=r"no slice of 5 holds it between two slices with liver .* in 2, .* in 2"):
        lobe_sections(liver, liver)


@pytest.mark.parametrize(
    ("section", "message"),
    [(20, r"slices 0 to 19"), (-1, r"slices 0 to 19"), (2, r"section 2: no boundary .*lobe_sections")],
)
def test_a_section_without_the_lobe_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        lobe_axis(block(), block(), (4.0, 4.0, 4.0), section=section)


def test_the_dividing_plane_is_no_boundary():
    inner = np.zeros_like(block())
    inner[5:15, 15:25, 30:45] = True
    with pytest.raises(ValueError, match="section 8: no boundary of the liver belongs to the left lobe"):
        lobe_axis(block(), inner, (4.0, 4.0, 4.0), section=8)


def test_an_axis_of_a_few_pixels_is_refused():
    liver = np.zeros((3, 9, 9), dtype=bool)
    liver[:, 3:6, 3:6] = True
    with pytest.raises(ValueError, match=r"1\.8 mm from the centre .* within 4 pixels"):
        lobe_axis(liver, liver, (1.0, 1.0, 1.0), section=1)


def test_landmarks_that_define_no_line_are_refused():
    it = phantom()
    empty = np.zeros_like(it.liver)
    with pytest.raises(ValueError, match=r"gallbladder mask: no voxel is set.*cholecystectomy"):
        cantlie_plane(it.liver, empty, it.vena_cava, SPACING)
    with pytest.raises(ValueError, match="vena cava mask: no voxel is set"):
        cantlie_plane(it.liver, it.gallbladder, empty, SPACING)
    with pytest.raises(ValueError, match="no slice holds both"):
        cantlie_plane(it.liver, it.gallbladder, it.vena_cava & ~np.any(it.liver, axis=(1, 2), keepdims=True), SPACING)
    with pytest.raises(ValueError, match=r"centres 0\.0 mm apart"):
        cantlie_plane(it.liver, it.liver, it.liver, SPACING)


def test_masks_on_different_grids_are_refused():
    it = phantom()
    # The tests' own check of annotations would be first to object.
    plane, surface = inspect.unwrap(cantlie_plane), inspect.unwrap(lobe_surface)
    with pytest.raises(
        ValueError, match=r"gallbladder mask: shape \(41, 160, 183\), the liver's mask has \(41, 160, 184\)"
    ):
        plane(it.liver, it.gallbladder[..., 1:], it.vena_cava, SPACING)
    with pytest.raises(ValueError, match=r"left lobe mask: shape \(40, 160, 184\)"):
        surface(it.liver, it.liver[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": -0.1}, "margin -0.1"),
        ({"half_width": 0.0}, "half_width 0.0"),
        ({"margin": math.nan}, "margin nan"),
        ({"size": (0, 5)}, r"size \(0, 5\)"),
    ],
)
def test_a_box_without_extent_is_refused(arguments, message):
    axis = LobeAxis(section=1, centre=(5.0, 5.0), tip=(5.0, 30.0), spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        surface_crop(np.ones((3, 10, 40)), axis, fill=0.0, **arguments)


@pytest.mark.parametrize("section", [0, 2])
def test_a_section_without_neighbours_is_refused(section):
    axis = LobeAxis(section=section, centre=(5.0, 5.0), tip=(5.0, 30.0), spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match=rf"section {section} of 3 slices: its neighbours are needed"):
        surface_crop(np.ones((3, 10, 40)), axis, fill=0.0)


# From images


def test_an_image_is_the_crop_of_its_landmarks():
    it = phantom()
    image = left_lobe_image(
        grid(it.ct, unit="HU"), grid(it.liver), gallbladder=grid(it.gallbladder), vena_cava=grid(it.vena_cava)
    )
    axis = landmarks_of(it)
    assert_close(image.values, surface_crop(it.ct, axis, fill=-1000.0), rtol=0)
    assert image.spacing == pytest.approx((1.2 * axis.length / 224,) * 2)
    assert (image.affine, image.unit) == (None, "HU")


def test_a_mask_of_the_lobe_tells_where_left_is():
    it = phantom(180)
    lobe = it.liver & (np.arange(it.liver.shape[2]) < 70)
    image = left_lobe_image(grid(it.ct, unit="HU"), grid(it.liver), lobe=grid(lobe), fill=FAT_HU)
    reference = surface_crop(phantom().ct, landmarks_of(phantom()), fill=FAT_HU)
    assert np.abs(image.values - reference).mean() < 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ct, liver: (ct, grid(liver[1:])), r"liver mask: shape .*expected one grid"),
        (
            lambda ct, liver: (ct, grid(liver, (4.0, 1.5, 1.6))),
            r"liver mask: spacing .*1\.6\] differs from the image's",
        ),
        (
            lambda ct, liver: (ct._replace(affine=np.eye(4)), grid(liver)._replace(affine=np.diag([-1.0, 1, 1, 1]))),
            "liver mask: affine .* differs",
        ),
        (
            lambda ct, liver: (
                ct,
                grid(liver)._replace(values=(liver * np.arange(len(liver))[:, None, None])[..., None]),
            ),
            r"liver mask: holds \d+ labels \(\d+, .*, …\); expected one. Pick the label",
        ),
        (lambda ct, liver: (ct._replace(spacing=None), grid(liver)), "image: spacing is None"),
        (lambda ct, liver: (ct._replace(values=ct.values[0]), grid(liver)), r"expected a volume with one channel"),
    ],
)
def test_images_on_different_grids_are_refused(change, message):
    it = phantom()
    with pytest.raises(ValueError, match=message):
        left_lobe_image(*change(grid(it.ct, unit="HU"), it.liver))


def test_half_a_pair_of_landmarks_is_refused():
    it = phantom()
    with pytest.raises(ValueError, match="mask of the vena cava without the gallbladder"):
        left_lobe_image(grid(it.ct, unit="HU"), grid(it.liver), vena_cava=grid(it.vena_cava))
    with pytest.raises(ValueError, match="left lobe mask: no voxel lies inside the liver"):
        left_lobe_image(grid(it.ct, unit="HU"), grid(it.liver), lobe=grid(~it.liver))


# The real liver


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    """CT and labels of a patient, in canonical order."""
    folder = real_data("liver_ct_totalseg")
    nibabel = pytest.importorskip("nibabel")
    # The files are RAS+; canonical order runs to the head, to the back and to the left.
    ct, labels = (
        np.asanyarray(nibabel.load(folder / name).dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
        for name in ("ct.nii.gz", "labels.nii.gz")
    )
    return np.ascontiguousarray(ct), np.ascontiguousarray(labels)


def of_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spacing = (3.0, 3.0, 3.0)
    liver = liver_mask(labels == 5, spacing)
    return liver, left_lobe(liver, cantlie_plane(liver, labels == 4, labels == 8, spacing), spacing)


def test_the_left_lobe_of_a_real_liver(real, caplog):
    _, labels = real
    liver, lobe = of_labels(labels)
    # Left of Cantlie's line lies about a third of a liver.
    assert 0.25 < lobe.sum() / liver.sum() < 0.45
    sections = lobe_sections(liver, lobe)
    assert sections[0] == len(liver) - 2
    assert "the scan ends inside the liver at its upper end" in caplog.text
    # Of the last slice, where the scan ends, the outline is surface and the cut through the liver is not.
    cut = lobe_surface(liver, lobe)[-1]
    below = lobe[-1] & ~liver[-2]
    assert not (cut & ndimage.binary_erosion(liver[-1]) & ~below).any()
    assert 0 < cut.sum() < 0.2 * lobe[-1].sum()
    axis = lobe_axis(liver, lobe, (3.0, 3.0, 3.0), section=104)
    # The tip lies beyond the midline, at the front, beside the stomach (label 6) or the spleen's side.
    assert axis.tip[1] > labels.shape[2] / 2
    assert 20 < axis.angle < 45
    assert 100 < axis.length < 170


@pytest.mark.parametrize("degrees", [-25, 10, 130])
def test_the_crop_of_a_real_liver_turns_with_the_patient(real, degrees):
    ct, labels = (np.pad(volume[100:109], ((0, 0), (30, 30), (30, 30)), mode="edge") for volume in real)
    kinds = ndimage.rotate(labels, degrees, axes=(1, 2), order=0, reshape=False)
    turned_ct = ndimage.rotate(ct.astype(np.float32), degrees, axes=(1, 2), order=1, reshape=False, mode="nearest")
    # Landmarks of the whole labels: the gallbladder lies below these slices.
    axes = []
    for these, degrees_here in ((labels, 0), (kinds, degrees)):
        whole = np.pad(real[1], ((0, 0), (30, 30), (30, 30)))
        whole = ndimage.rotate(whole, degrees_here, axes=(1, 2), order=0, reshape=False) if degrees_here else whole
        liver, lobe = of_labels(whole)
        np.testing.assert_array_equal(these, whole[100:109])
        axes.append(lobe_axis(liver, lobe, (3.0, 3.0, 3.0), section=104)._replace(section=4))
    middle = (np.array(labels.shape[1:]) - 1) / 2
    for name in ("centre", "tip"):
        still, moved = (np.array(getattr(axis, name)) - middle for axis in axes)
        distance = np.hypot(*(np.array(turned(*moved, -degrees)) - still))
        assert distance < (0.1 if name == "centre" else 1), (name, distance)
    crops = [
        np.clip(surface_crop(volume, axis, fill=-1000.0), -100, 240)
        for volume, axis in zip((ct, turned_ct), axes, strict=True)
    ]
    inside = surface_crop(np.ones_like(ct), axes[0], fill=0.0) == 1
    # Turning the CT resamples it, which alone changes values; their standard deviation in the crop is 67 HU.
    assert np.abs(crops[0] - crops[1])[inside].mean() < 8


@pytest.mark.checkout
def test_the_figure_of_the_experiment_is_drawn(tmp_path, caplog):
    from experiments.portal_hypertension.figure import Config, run

    [path] = run(Config(data=tmp_path / "absent", out=tmp_path / "out"))
    assert path.name == "left_lobe_synthetic.svg"
    assert path.read_text().count("<image") == 4
    assert "no figure of a real CT; set FUSION_JAX_DATA" in caplog.text
    # What the README shows was drawn by this code: sizes agree, digits of coordinates may not.
    committed = (ROOT / "experiments" / "portal_hypertension" / "left_lobe.svg").read_text()
    assert len(committed) == pytest.approx(len(path.read_text()), rel=0.02)
