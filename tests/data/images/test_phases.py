import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import crop_or_pad, resize
from fusion_jax.data.images.intensity import min_max
from fusion_jax.data.images.phases import align_phases, lesion_box, stack_channels, stack_phases
from tests.helpers import assert_close

ROWS, COLUMNS = 60, 70


def lesion(x, y, contrast=1.0):
    """A phase with a textured lesion of 16 × 12 pixels about `(x, y)` in pixels from the corner, on a plain liver."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS] + 0.5
    bump = np.exp(-(((columns - x) / 5) ** 2) - ((rows - y) / 4) ** 2) * (1 + 0.3 * np.sin(columns - x))
    return Image((100 + 50 * contrast * bump)[..., None], (0.8, 0.8), unit="HU")


def box(x, y, width=16.0, height=12.0):
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def test_a_known_translation_is_undone():
    centres = [(30.0, 25.0), (41.0, 19.0), (22.0, 37.0)]
    phases = [lesion(*centre) for centre in centres]
    after = stack_phases(phases, np.array([box(*centre) for centre in centres]), size=(24, 32))
    assert after.values.shape == (24, 32, 3)
    np.testing.assert_allclose(after.values[..., 1:], after.values[..., :1].repeat(2, axis=-1), atol=1e-10)
    assert np.ptp(after.values) > 40
    # Read without moving, the phases do not agree.
    still = stack_phases(phases, np.array([box(*centres[0])] * 3), size=(24, 32))
    assert np.abs(still.values[..., 1] - still.values[..., 0]).max() > 20


@given(x=st.floats(25, 45), y=st.floats(20, 40))
def test_a_translation_by_parts_of_a_pixel_is_undone(x, y):
    after = stack_phases([lesion(35.0, 30.0), lesion(x, y)], np.array([box(35.0, 30.0), box(x, y)]), size=48).values
    assert np.abs(after[..., 0] - after[..., 1]).max() < 0.08 * np.ptp(after)


def test_boxes_of_different_size_do_not_scale_the_lesion():
    centre = (30.0, 25.0)
    boxes = np.array([box(*centre), box(*centre, width=10.0, height=14.0)])
    after = stack_phases([lesion(*centre)] * 2, boxes, size=20)
    np.testing.assert_array_equal(after.values[..., 0], after.values[..., 1])
    # The window is 16 × 14 pixels: the largest width and the largest height.
    np.testing.assert_allclose(after.spacing, (0.8 * 14 / 20, 0.8 * 16 / 20))


def test_a_window_of_whole_pixels_is_a_crop():
    phase = lesion(30.0, 25.0)
    after = stack_phases([phase], box(30.0, 25.0)[None], size=(16, 20), margin=2.0)
    np.testing.assert_array_equal(after.values, phase.values[17:33, 20:40])


def test_the_whole_image_as_window_is_a_resize():
    phase = lesion(30.0, 25.0)
    after = stack_phases([phase], np.array([[0.0, 0.0, COLUMNS, ROWS]]), size=(75, 18))
    assert_close(after.values, resize(phase, size=(75, 18)).values, 1e-12)
    np.testing.assert_allclose(after.spacing, resize(phase, size=(75, 18)).spacing)


def test_beyond_the_border_the_edge_goes_on():
    phase = Image(np.arange(16.0).reshape(4, 4, 1))
    after = stack_phases([phase], np.array([[-2.0, 0.0, 2.0, 4.0]]), size=4)
    np.testing.assert_array_equal(after.values[..., 0], phase.values[:, [0, 0, 0, 1], 0])


def test_masks_of_volumes_choose_slice_and_box():
    volumes, masks = [], []
    for number, centre in enumerate([(30.0, 25.0), (41.0, 19.0)]):
        values = np.zeros((5, ROWS, COLUMNS, 1))
        mask = np.zeros((5, ROWS, COLUMNS, 1), np.uint8)
        x0, y0, x1, y1 = box(*centre).astype(int)
        values[1 + number] = lesion(*centre).values
        mask[1 + number, y0:y1, x0:x1] = 1
        mask[3, y0, x0] = 1
        volumes.append(Image(values, (5.0, 0.8, 0.8), unit="HU"))
        masks.append(Image(mask, (5.0, 0.8, 0.8), unit="label"))
    after = align_phases(volumes[0], volumes[1:], masks, size=24)
    assert after.unit == "HU"
    np.testing.assert_allclose(after.values[..., 0], after.values[..., 1], atol=1e-10)
    expected = stack_phases([lesion(30.0, 25.0)], box(30.0, 25.0)[None], size=24)
    np.testing.assert_allclose(after.values[..., :1], expected.values)


def test_the_box_of_a_mask_reaches_the_faces_of_its_pixels():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3] = True
    assert lesion_box(mask).tolist() == [3, 2, 4, 5]


@pytest.mark.parametrize(
    ("phases", "boxes", "message"),
    [
        ([lesion(30, 25)], np.zeros((2, 4)), "2 boxes for 1 phases; expected one each"),
        ([], np.zeros((0, 4)), "0 boxes for 0 phases"),
        ([lesion(30, 25)], np.array([[3.0, 3.0, 3.0, 9.0]]), r"box of phase 0 is \[3.0, .*; expected x0 < x1"),
        ([lesion(30, 25)], np.array([[np.nan, 3.0, 4.0, 9.0]]), "the box of phase 0 is"),
        ([lesion(30, 25)], box(200, 10)[None], "is centred outside its image of 70 × 60 pixels"),
        ([Image(np.zeros((2, 3, 3, 1)))], box(1, 1)[None], r"phase 0 has shape \(2, 3, 3, 1\); expected a slice"),
        (
            [lesion(30, 25), lesion(30, 25)._replace(spacing=(0.7, 0.7))],
            np.array([box(30, 25)] * 2),
            r"phase 1 has the spacing \(0.7, 0.7\) mm, phase 0 \(0.8, 0.8\) mm.*Use `resample` first",
        ),
    ],
)
def test_phases_that_cannot_be_aligned_are_refused(phases, boxes, message):
    with pytest.raises(ValueError, match=message):
        stack_phases(phases, boxes, size=8)


def test_a_mask_on_the_grid_of_another_phase_is_read_at_its_place():
    affine = np.array([[0, 0, -0.8, 9], [0, -0.8, 0, 8], [5.0, 0, 0, 7], [0, 0, 0, 1]])
    values = np.random.default_rng(0).normal(size=(6, 20, 20, 1))
    mask = np.zeros((6, 20, 20, 1), np.uint8)
    mask[3, 6:10, 8:14] = 1
    phase = Image(values, (5.0, 0.8, 0.8), affine, "HU")
    cropped = crop_or_pad(phase, size=(3, 12, 14), centre=(3.0, 8.0, 10.0))
    seen = align_phases(cropped, [phase], [Image(mask, phase.spacing, affine, "label")] * 2, size=(4, 6)).values
    np.testing.assert_array_equal(seen, values[3, 6:10, 8:14].repeat(2, axis=-1))


def test_every_phase_needs_its_mask():
    with pytest.raises(ValueError, match="1 masks for 2 phases; expected one each"):
        align_phases(lesion(30, 25), [lesion(30, 25)], [lesion(30, 25)], size=8)


# Channels on one grid


def test_channels_keep_order_place_and_common_unit():
    ct = Image(np.zeros((2, 3, 4, 1)), (1.0, 1.0, 1.0), np.eye(4), "HU")
    late = ct._replace(values=np.ones((2, 3, 4, 2)))
    pet = ct._replace(values=np.full((2, 3, 4, 1), 5.0), unit="SUV")
    after = stack_channels(ct, [late, pet])
    assert after.values[0, 0, 0].tolist() == [0, 1, 1, 5]
    assert (after.unit, after.spacing, after.affine is ct.affine) == ("", ct.spacing, True)
    assert stack_channels(ct, [late]).unit == "HU"


def test_channels_on_another_grid_are_refused():
    ct = Image(np.zeros((2, 3, 4, 1)), (1.0, 1.0, 1.0), np.eye(4))
    moved = ct._replace(affine=np.diag([1.0, 1.0, 1.1, 1.0]))
    for other in (moved, Image(np.zeros((2, 3, 5, 1)))):
        with pytest.raises(
            ValueError, match=r"image 2 of those to stack, of shape .* lies on another grid than the first"
        ):
            stack_channels(ct, [ct, other])


def test_phases_are_stacked_as_floats():
    counts = lesion(30, 25)._replace(values=(lesion(30, 25).values).astype(np.int16))
    assert min_max(stack_phases([counts], box(30, 25)[None], size=8)).values.dtype == np.float32
