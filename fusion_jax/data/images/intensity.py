"""Grey values of one image: clipping, scaling and normalising. Nothing here is fitted to other cases.

Every function takes an `Image` and returns one on the same grid, in floating point: float64 stays, everything else
becomes float32. Statistics are taken over all channels together; stack channels afterwards to normalise each alone.
"""

import numpy as np

from fusion_jax.data.image import Image
from fusion_jax.data.images.operation import Count, Percent, Positive, operation
from fusion_jax.data.images.voxels import as_floats, inside

__all__ = [
    "clip_percentiles",
    "min_max",
    "normalise_channels",
    "repeat_channels",
    "scale_suv",
    "standardise",
    "window",
]


@operation
def clip_percentiles(image: Image, mask: Image | None = None, *, low: Percent = 0.0, high: Percent = 100.0) -> Image:
    """Move values beyond two percentiles of this image to those percentiles.

    Args:
      image: values of any shape `(*space, c)`.
      mask: take the percentiles over its voxels only; all voxels are clipped.
      low: lower percentile, percent; 0 clips nothing below.
      high: upper percentile, percent; 99.5 clips the top 0.5 %.

    Returns:
      The image, its unit kept. Percentiles between two values are interpolated linearly.

    Raises:
      ValueError: values are not finite; the mask is empty or does not fit.

    Example:
      >>> image = Image(np.arange(201.0).reshape(1, 201, 1))
      >>> float(clip_percentiles(image, high=99.5).values.max())
      199.0

    References:
      Holste et al. 2021: top 0.5 % of a breast MRI projection; specs/breast_mri_fusion.md, 2.2.
    """
    values = as_floats(image)
    ends = np.percentile(values if mask is None else values[inside(image, mask)], (low, high))
    return image._replace(values=np.clip(values, *ends.astype(values.dtype)))


@operation
def min_max(image: Image) -> Image:
    r"""Smallest value to 0, largest to 1: :math:`(v - \min v) / (\max v - \min v)`.

    Args:
      image: values of any shape `(*space, c)`.

    Returns:
      The image in [0, 1], without unit.

    Raises:
      ValueError: values are not finite, or all are equal.

    Example:
      >>> min_max(Image(np.array([[[10], [20], [30]]]))).values.ravel().tolist()
      [0.0, 0.5, 1.0]

    References:
      Per image, as in Holste et al. 2021; specs/breast_mri_fusion.md, 2.2.
    """
    values = as_floats(image)
    low, high = values.min(), values.max()
    if low == high:
        raise ValueError(
            f"all values of the image are {low:g}; expected at least two different ones to scale. "
            "Look at the image, and leave the case out if it is blank."
        )
    return image._replace(values=(values - low) / (high - low), unit="")


@operation
def standardise(image: Image, mask: Image | None = None) -> Image:
    r"""Mean 0 and standard deviation 1 within this image (z-score): :math:`(v - \bar v) / s`.

    Args:
      image: values of any shape `(*space, c)`.
      mask: take mean and standard deviation over its voxels only; all voxels are scaled.

    Returns:
      The image, without unit. The standard deviation is the population's (divisor `n`), in float64.

    Raises:
      ValueError: values are not finite, or all are equal; the mask is empty or does not fit.

    Example:
      >>> standardise(Image(np.array([[[1.0], [3.0]]]))).values.ravel().tolist()
      [-1.0, 1.0]
    """
    values = as_floats(image)
    chosen = values if mask is None else values[inside(image, mask)]
    mean, deviation = chosen.mean(dtype=np.float64), chosen.std(dtype=np.float64)
    # The deviation of a constant float32 image is a rounding error, not always zero.
    if chosen.min() == chosen.max():
        raise ValueError(
            f"all values {'inside the mask' if mask is not None else 'of the image'} are {chosen.flat[0]:g}; expected "
            "at least two different ones to scale. Look at the image, and leave the case out if it is blank."
        )
    return image._replace(values=((values - mean) / deviation).astype(values.dtype), unit="")


@operation
def window(image: Image, *, low: float, high: float) -> Image:
    r"""`low` to 0, `high` to 1, clipped beyond: :math:`\min(1, \max(0, (v - low) / (high - low)))`.

    Args:
      image: values of any shape `(*space, c)`.
      low: value that becomes 0, in the unit of the image (HU for CT).
      high: value that becomes 1.

    Returns:
      The image in [0, 1], without unit.

    Raises:
      ValueError: values are not finite; `low` is not below `high`; a mask was given.

    Example:
      >>> ct = Image(np.array([[[-1000], [-70], [55], [400]]], np.int16), unit="HU")
      >>> window(ct, low=-70, high=180).values.ravel().tolist()
      [0.0, 0.0, 0.5, 1.0]

    References:
      Windows of the papers: specs/hcc_fusion.md, 2 (−70 to 180 HU); specs/mm_nas.md, 2 (−200 to 300 HU).
    """
    if image.unit == "label":
        raise ValueError("the image is a mask (unit 'label'); expected grey values for a window.")
    values = as_floats(image)
    return image._replace(values=np.clip((values - low) / (high - low), 0, 1).astype(values.dtype), unit="")


@operation
def scale_suv(image: Image, *, maximum: Positive = 20.0) -> Image:
    r"""Standardised uptake values from 0 to `maximum` to [0, 1], clipped beyond: :math:`\min(v, m)/m`.

    Args:
      image: SUV of any shape `(*space, c)`; its unit is `SUV` or not known.
      maximum: SUV that becomes 1.

    Returns:
      The image in [0, 1], without unit. Noise below SUV 0 becomes 0.

    Raises:
      ValueError: the image has another unit, or values are not finite.

    Example:
      >>> scale_suv(Image(np.array([[[-0.1], [5.0], [31.0]]]), unit="SUV")).values.ravel().tolist()
      [0.0, 0.25, 1.0]

    References:
      specs/mm_nas.md, 2: clip 0 to 20 SUV.
    """
    if image.unit not in ("SUV", ""):
        raise ValueError(f"the image has the unit {image.unit!r}; expected SUV. Use `window` for other units.")
    return window(image, low=0.0, high=maximum)


@operation
def normalise_channels(image: Image, *, mean: tuple[float, ...], std: tuple[Positive, ...]) -> Image:
    r"""Subtract a fixed mean and divide by a fixed standard deviation, channel by channel.

    Args:
      image: values of any shape `(*space, c)`.
      mean: one number a channel, in the unit of the image.
      std: one number a channel.

    Returns:
      The image, without unit.

    Raises:
      ValueError: `mean` or `std` has another length than the image has channels, or values are not finite.

    Example:
      >>> grey = Image(np.array([[[0.5, 0.5]]]))
      >>> normalise_channels(grey, mean=(0.5, 0.0), std=(0.2, 0.5)).values.ravel().tolist()
      [0.0, 1.0]
    """
    values = as_floats(image)
    channels = values.shape[-1]
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != channels:
            raise ValueError(f"{name} holds {len(numbers)} numbers; expected one for each of {channels} channels.")
    return image._replace(values=(values - np.array(mean, values.dtype)) / np.array(std, values.dtype), unit="")


@operation
def repeat_channels(image: Image, *, count: Count = 3) -> Image:
    """The one channel of a grey image, `count` times over, for networks that expect colour.

    Args:
      image: values of shape `(*space, 1)`.
      count: channels of the result.

    Returns:
      The image, shape `(*space, count)`; dtype and unit kept.

    Raises:
      ValueError: the image has more than one channel.

    Example:
      >>> repeat_channels(Image(np.ones((4, 5, 1)))).values.shape
      (4, 5, 3)
    """
    if image.values.shape[-1] != 1:
        raise ValueError(f"the image has {image.values.shape[-1]} channels; expected one to repeat.")
    return image._replace(values=np.repeat(image.values, count, axis=-1))
