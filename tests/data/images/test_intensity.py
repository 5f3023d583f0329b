import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fusion_jax.data.image import Image
from fusion_jax.data.images.intensity import (
    clip_percentiles,
    min_max,
    normalise_channels,
    repeat_channels,
    scale_suv,
    standardise,
    window,
)
from tests.helpers import assert_close, real_data

VALUES = np.random.default_rng(0).normal(40.0, 30.0, size=(6, 7, 8, 1))
MASK = Image((VALUES > 40).astype(np.uint8), unit="label")

OPERATIONS = {
    "clip_percentiles": lambda image: clip_percentiles(image, low=1.0, high=99.5),
    "min_max": min_max,
    "standardise": standardise,
    "window": lambda image: window(image, low=0.0, high=80.0),
    "scale_suv": scale_suv,
    "normalise_channels": lambda image: normalise_channels(image, mean=(1.0,), std=(2.0,)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_grid_stays_and_the_result_is_floating_point(name, dtype):
    spacing, affine = (3.0, 2.0, 1.0), np.diag([1.0, 2.0, 3.0, 1.0])
    image = Image(VALUES.clip(0).astype(dtype), spacing, affine)
    before = image.values.copy()
    after = OPERATIONS[name](image)
    assert after.values.shape == image.values.shape
    assert after.values.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert (after.spacing, after.affine is affine) == (spacing, True)
    np.testing.assert_array_equal(image.values, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", OPERATIONS)
def test_values_that_are_not_finite_are_refused(name, bad):
    values = VALUES.copy()
    values[0, 0, :2] = bad
    with pytest.raises(ValueError, match="2 of 336 values are NaN or infinite; expected finite ones"):
        OPERATIONS[name](Image(values))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_without_voxels_is_refused(name):
    with pytest.raises(ValueError, match=r"shape \(0, 4, 1\); expected at least one voxel"):
        OPERATIONS[name](Image(np.zeros((0, 4, 1))))


@pytest.mark.parametrize("name", ["min_max", "standardise"])
@pytest.mark.parametrize("level", [0.1, 7])
def test_a_blank_image_is_refused(name, level):
    with pytest.raises(ValueError, match=f"are {level}; expected at least two different ones.*leave the case out"):
        OPERATIONS[name](Image(np.full((99, 99, 1), level, np.float32)))


def test_the_top_half_percent_is_clipped():
    image = Image(np.random.default_rng(1).permutation(10_001).reshape(1, -1, 1).astype(np.int16), unit="HU")
    after = clip_percentiles(image, high=99.5)
    assert after.unit == "HU"
    np.testing.assert_array_equal(after.values, np.minimum(image.values, 9950))
    assert (after.values == 9950).mean() == pytest.approx(0.005, abs=2e-4)
    both = clip_percentiles(image, low=10.0, high=90.0).values
    assert (both.min(), both.max()) == (1000, 9000)


def test_percentiles_and_moments_are_those_inside_the_mask():
    image, inside = Image(VALUES), MASK.values == 1
    low, high = np.percentile(VALUES[inside], (5, 95))
    assert_close(clip_percentiles(image, MASK, low=5.0, high=95.0).values, VALUES.clip(low, high), 1e-12)
    scaled = standardise(image, MASK).values
    assert_close(scaled, (VALUES - VALUES[inside].mean()) / VALUES[inside].std(), 1e-12)
    assert not np.isclose(scaled.mean(), 0, atol=0.1)


def test_a_blank_mask_interior_is_refused():
    image = Image(np.where(MASK.values == 1, 3.0, VALUES))
    with pytest.raises(ValueError, match="all values inside the mask are 3"):
        standardise(image, MASK)


@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=4, max_side=5), elements=st.floats(-1e6, 1e6)))
def test_scaled_images_fill_the_unit_interval(values):
    image = Image(values)
    if values.min() == values.max():
        with pytest.raises(ValueError, match="expected at least two"):
            min_max(image)
        return
    after = min_max(image).values
    assert (after.min(), after.max()) == (0, 1)
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(after.ravel()[order]) >= 0).all()


def test_standardised_images_have_mean_0_and_deviation_1():
    # Far from zero, where single precision would lose the deviation.
    after = standardise(Image((VALUES + 1e5).astype(np.float32))).values
    assert after.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert after.std(dtype=np.float64) == pytest.approx(1, rel=1e-6)


def test_a_window_maps_its_ends_to_0_and_1():
    ct = Image(np.array([-3000, -200, -75, 50, 300, 3000], np.int16).reshape(1, 6, 1), unit="HU")
    after = window(ct, low=-200, high=300)
    np.testing.assert_allclose(after.values.ravel(), [0, 0, 0.25, 0.5, 1, 1])
    assert after.unit == ""


def test_a_window_of_a_mask_is_refused():
    with pytest.raises(ValueError, match="the image is a mask"):
        window(MASK, low=0, high=1)


def test_only_suv_is_scaled_as_suv():
    with pytest.raises(ValueError, match=r"the image has the unit 'HU'; expected SUV. Use `window`"):
        scale_suv(Image(VALUES, unit="HU"))


def test_colour_is_normalised_channel_by_channel():
    grey = Image(np.full((2, 2, 1), 51, np.uint8))
    after = normalise_channels(
        repeat_channels(window(grey, low=0, high=255)), mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.4)
    )
    np.testing.assert_allclose(after.values[0, 0], [1, 0, -0.25], atol=1e-6)
    assert after.values.dtype == np.float32


def test_channels_must_fit():
    two = Image(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="the image has 2 channels; expected one to repeat"):
        repeat_channels(two)
    with pytest.raises(ValueError, match="std holds 3 numbers; expected one for each of 2 channels"):
        normalise_channels(two, mean=(0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: window(image, low=3, high=3), "window: low is 3 and high is 3; expected low below high"),
        (lambda image: clip_percentiles(image, high=100.5), "high is 100.5; expected a number from 0 to 100"),
        (lambda image: clip_percentiles(image, low=100.0), "low is 100.0 and high is 100.0"),
        (lambda image: scale_suv(image, maximum=0), "maximum is 0; expected a number above 0"),
        (lambda image: window(image, low=float("nan"), high=1), "low is nan; expected a number"),
        (lambda image: normalise_channels(image, mean=(), std=()), r"mean is \(\); expected a list, each a number"),
    ],
)
def test_arguments_out_of_bounds_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Image(VALUES))


def test_arguments_of_another_type_are_refused():
    with pytest.raises(TypeError, match="window: low is '0'; expected a number"):
        window(Image(VALUES), low="0", high=1)


def test_a_real_radiograph_keeps_its_picture():
    with np.load(real_data("jsrt") / "images.npz") as file:
        film = Image(file["images"][0][..., None])
    after = min_max(clip_percentiles(film, high=99.5)).values
    assert (after.min(), after.max()) == (0, 1)
    assert np.corrcoef(after.ravel(), film.values.ravel())[0, 1] > 0.999
