"""From volumes to what a 2-D network reads: slices with a mask, 2.5-D, projections, single breasts, subtraction."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import Axis, axis_number, cut
from fusion_jax.data.images.operation import Index, NonNegative, operation
from fusion_jax.data.images.voxels import as_floats, inside

__all__ = [
    "Breasts",
    "MaskedSlice",
    "adjacent_slices",
    "breast",
    "largest_position",
    "largest_slice",
    "maximum_intensity_projection",
    "peak_minus_background",
    "plane",
    "slices_with_mask",
    "split_breasts",
]


class MaskedSlice(NamedTuple):
    """One axial slice that a mask meets.

    Attributes:
      position: along `d`.
      area: voxels of the mask in it.
      image: the slice, shape `(h, w, c)`.
    """

    position: int
    area: int
    image: Image


class Breasts(NamedTuple):
    """Both breasts of one projection; the position in the tuple is the flag "left": 0 right, 1 left."""

    right: Image
    left: Image


@operation
def largest_slice(image: Image, mask: Image) -> Image:
    """The axial slice in which the mask is largest; the one nearest the feet where several are.

    Args:
      image: volume of shape `(d, h, w, c)`.
      mask: on the grid of the image, or elsewhere with affines.

    Returns:
      The slice, shape `(h, w, c)`, spacing `(dy, dx)`, without affine.

    Raises:
      ValueError: the image is no volume; the mask is empty or does not fit.

    Example:
      >>> volume = Image(np.arange(12.0).reshape(3, 2, 2, 1))
      >>> mask = Image((volume.values > 4).astype(np.uint8), unit="label")
      >>> largest_slice(volume, mask).values.ravel().tolist()
      [8.0, 9.0, 10.0, 11.0]
    """
    return plane(image, largest_position(_inside(image, mask)))


@operation
def adjacent_slices(image: Image, mask: Image, *, count: Literal[3, 5, 7] = 3) -> Image:
    """Neighbouring axial slices as channels (2.5-D), about the one in which the mask is largest.

    Args:
      image: volume of shape `(d, h, w, c)`.
      mask: on the grid of the image, or elsewhere with affines.
      count: slices, 3, 5 or 7; 3 are z−1, z and z+1, from feet to head.

    Returns:
      Shape `(h, w, count * c)`: all channels of the lowest slice first. At the end of the volume the last slice stands
      for those that are not there.

    Raises:
      ValueError: another `count`; the image is no volume; the mask is empty or does not fit.

    Example:
      >>> volume = Image(np.arange(4.0).reshape(4, 1, 1, 1))
      >>> mask = Image(np.array([0, 0, 0, 1]).reshape(4, 1, 1, 1), unit="label")
      >>> adjacent_slices(volume, mask).values.ravel().tolist()
      [2.0, 3.0, 3.0]

    References:
      specs/fusion_quality.md, 6.1.
    """
    middle = largest_position(_inside(image, mask))
    wanted = np.clip(np.arange(count) - count // 2 + middle, 0, len(image.values) - 1)
    values = np.concatenate([image.values[index] for index in wanted], axis=-1)
    return plane(image, middle)._replace(values=values)


def slices_with_mask(image: Image, mask: Image, *, least_area: int = 1) -> tuple[MaskedSlice, ...]:
    """All axial slices that a mask meets, from feet to head; each may become a training example.

    Args:
      image: volume of shape `(d, h, w, c)`.
      mask: on the grid of the image, or elsewhere with affines.
      least_area: leave out slices with fewer voxels of the mask.

    Raises:
      ValueError: the image is no volume; the mask is empty, does not fit, or is smaller than that in every slice.

    Example:
      >>> volume = Image(np.arange(4.0).reshape(4, 1, 1, 1))
      >>> mask = Image(np.array([0, 1, 1, 0]).reshape(4, 1, 1, 1), unit="label")
      >>> [found.position for found in slices_with_mask(volume, mask)]
      [1, 2]
    """
    areas = _inside(image, mask).sum(axis=(1, 2))
    found = np.flatnonzero(areas >= max(1, least_area)).tolist()
    if not found:
        raise ValueError(
            f"no slice holds {least_area} voxels of the mask, at most {areas.max()}; lower `least_area`, or leave the "
            "case out."
        )
    return tuple(MaskedSlice(index, int(areas[index]), plane(image, index)) for index in found)


@operation
def maximum_intensity_projection(image: Image, *, axis: Axis = "d") -> Image:
    """Largest value along one axis of a volume.

    Args:
      image: volume of shape `(d, h, w, c)`.
      axis: along which to look: `d` gives the axial view `(h, w, c)`, `h` the frontal one `(d, w, c)` and `w` that from
        the side `(d, h, c)`; the last two have the feet on top, as the volume has.

    Returns:
      The projection with the spacing of the two axes left, without affine; dtype and unit kept.

    Raises:
      ValueError: the image is no volume.

    Example:
      >>> volume = Image(np.arange(8.0).reshape(2, 2, 2, 1), spacing=(3.0, 2.0, 1.0))
      >>> projection = maximum_intensity_projection(volume, axis="h")
      >>> projection.values[..., 0].tolist(), projection.spacing
      ([[2.0, 3.0], [6.0, 7.0]], (3.0, 1.0))
    """
    _check_volume(image)
    number = axis_number(image, axis)
    spacing = image.spacing and image.spacing[:number] + image.spacing[number + 1 :]
    return Image(image.values.max(axis=number), spacing, None, image.unit)


@operation
def peak_minus_background(image: Image, *, background: Index = 0, peak: Index | None = None) -> Image:
    r"""Enhancement of a dynamic series: :math:`\max_{t \ne t_0} v_t - v_{t_0}`, or :math:`v_t - v_{t_0}` of one frame.

    Args:
      image: series with time as channels, shape `(*space, t)`; `stack_channels` makes one of separate images.
      background: frame before contrast, :math:`t_0`.
      peak: frame of the peak; by default each voxel takes its own largest frame.

    Returns:
      Shape `(*space, 1)`, floating point. What loses signal is negative and stays so.

    Raises:
      ValueError: fewer than two frames; a frame that is not there; `peak` is `background`; values are not finite.

    Example:
      >>> series = Image(np.array([[[100, 180, 150]]], np.uint16))
      >>> peak_minus_background(series).values.ravel().tolist()
      [80.0]

    References:
      Holste et al. 2021, peak enhancement minus background; the paper leaves open whether the peak is that of the voxel
      or of the examination, and the vendor's software did it.
    """
    frames = image.values.shape[-1]
    if frames < 2:
        raise ValueError(f"the series has {frames} frame; expected the background and at least one after contrast.")
    for name, frame in (("background", background), ("peak", peak)):
        if frame is not None and frame >= frames:
            raise ValueError(f"peak_minus_background: {name} is frame {frame}; expected one from 0 to {frames - 1}.")
    if peak == background:
        raise ValueError(f"peak_minus_background: peak and background are both frame {peak}; expected two frames.")
    values = as_floats(image)  # before subtracting: unsigned integers would wrap around
    after = np.delete(values, background, axis=-1).max(axis=-1) if peak is None else values[..., peak]
    return image._replace(values=(after - values[..., background])[..., None])


@operation
def breast(image: Image, *, side: Literal["right", "left"], split: Literal["valley", "middle"] = "valley") -> Image:
    """One breast of a projection of both; `split_breasts` says how they are parted.

    Args:
      image: axial projection, shape `(h, w, c)`, front on top, the patient's right on the left of the picture.
      side: the patient's.
      split: rule for the column between them.

    Example:
      >>> breast(Image(np.arange(6).reshape(1, 6, 1)), side="left", split="middle").values.ravel().tolist()
      [3, 4, 5]
    """
    return getattr(split_breasts(image, split=split), side)


@operation
def split_breasts(
    image: Image, *, split: Literal["valley", "middle"] = "valley", smoothing: NonNegative = 0.02
) -> Breasts:
    """Part a projection of both breasts at the column between them.

    `middle` takes the middle column. `valley` takes the darkest column of the middle third, by the mean over the front
    half of the rows, where air or the sternum's skin fold parts the breasts; the back half holds the heart and the
    large vessels, which enhance. Of equally dark columns it takes the one nearest the middle.

    Args:
      image: axial projection, shape `(h, w, c)`, front on top, the patient's right on the left of the picture.
      split: rule.
      smoothing: standard deviation of the Gaussian that smooths the profile of columns, as a part of the width.

    Returns:
      Right breast, columns before the split, and left breast, the split column and those after. Neither is mirrored.

    Raises:
      ValueError: a volume, or fewer than six columns.

    Example:
      >>> bright = np.array([9, 9, 9, 9, 0, 9, 9, 9, 9, 9.0])
      >>> right, left = split_breasts(Image(np.tile(bright, (4, 1))[..., None]))
      >>> right.values.shape, left.values.shape
      ((4, 4, 1), (4, 6, 1))
    """
    from scipy import ndimage

    if image.values.ndim != 3:
        raise ValueError(
            f"the image has shape {image.values.shape}; expected a projection (h, w, c). Use "
            "`maximum_intensity_projection` first."
        )
    height, width = image.values.shape[:2]
    if width < 6:
        raise ValueError(f"the projection has {width} columns; expected at least 6, with two breasts.")
    column = width // 2
    if split == "valley":
        profile = as_floats(image)[: max(1, height // 2)].mean(axis=(0, 2), dtype=np.float64)
        profile = ndimage.gaussian_filter1d(profile, smoothing * width, mode="nearest") if smoothing else profile
        columns = np.arange(width // 3, width - width // 3)
        darkest = columns[profile[columns] <= profile[columns].min() + 1e-9 * np.abs(profile).max()]
        column = int(darkest[np.argmin(np.abs(darkest - (width - 1) / 2))])
    top, bottom = 0, height
    return Breasts(
        cut(image, np.array([top, 0]), np.array([bottom, column])),
        cut(image, np.array([top, column]), np.array([bottom, width])),
    )


def _check_volume(image: Image) -> None:
    if image.values.ndim != 4:
        raise ValueError(f"the image has shape {image.values.shape}; expected a volume (d, h, w, c).")


def _inside(image: Image, mask: Image) -> Bool[np.ndarray, "d h w"]:
    _check_volume(image)
    return inside(image, mask)


def largest_position(mask: Bool[np.ndarray, "d h w"]) -> int:
    """Position of the axial slice in which a mask has most voxels; the first of several.

    Example:
      >>> largest_position(np.array([False, True, True]).reshape(3, 1, 1))
      1
    """
    return int(mask.sum(axis=(1, 2)).argmax())


def plane(image: Image, position: int) -> Image:
    """One axial slice of a volume, shape `(h, w, c)`, spacing `(dy, dx)`, without affine.

    Example:
      >>> plane(Image(np.zeros((3, 4, 5, 1)), (5.0, 0.8, 0.7)), 2).spacing
      (0.8, 0.7)
    """
    return Image(image.values[position], image.spacing and image.spacing[1:], None, image.unit)
