"""Checked values of images and masks, for the operations on them."""

import itertools

import numpy as np
from jaxtyping import Bool, Float

from fusion_jax.data.image import Image

__all__ = ["as_floats", "inside", "occupied", "same_grid"]


def as_floats(image: Image) -> Float[np.ndarray, "*space c"]:
    """Values in floating point: float64 stays, everything else becomes float32.

    Raises:
      ValueError: the image has no voxels, or values that are not finite.
    """
    values = image.values
    if values.size == 0:
        raise ValueError(f"the image has shape {values.shape}; expected at least one voxel.")
    if values.dtype != np.float64:
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        count = int(np.sum(~np.isfinite(values)))
        raise ValueError(
            f"{count} of {values.size} values are NaN or infinite; expected finite ones. Leave the case out, or "
            "write the image anew without them."
        )
    return values


def inside(image: Image, mask: Image) -> Bool[np.ndarray, "*space"]:
    """Voxels of the image whose centre lies in a mask.

    Where both have affines, the mask may lie on another grid, so that it still fits an image that was cropped, turned
    or resampled: it is read at the place of each voxel centre, and ends at its field of view.

    Args:
      image: shape `(*space, c)`.
      mask: shape `(*space, 1)`; every value but 0 is inside.

    Raises:
      ValueError: the mask has several channels, is empty, does not meet the image, or has another shape where an
        affine is missing.

    Example:
      >>> mask = Image(np.array([0, 1, 1, 0]).reshape(1, 1, 4, 1), affine=np.eye(4), unit="label")
      >>> affine = np.eye(4)
      >>> affine[2, 3] = 2.0
      >>> part = Image(np.zeros((1, 1, 2, 1)), affine=affine)
      >>> inside(part, mask).ravel().tolist()
      [True, False]
    """
    if same_grid(image, mask):
        return occupied(mask)
    shape = image.values.shape[:-1]
    if image.affine is None or mask.affine is None:
        raise ValueError(
            f"the mask has shape {mask.values.shape[:-1]}, the image {shape}; expected one grid, since not both have "
            "affines. Put the steps that need the mask before those that crop, resample or take slices."
        )
    chosen = _read_mask(occupied(mask), np.linalg.inv(mask.affine) @ image.affine, shape)
    if not chosen.any():
        raise ValueError(
            f"no voxel of the image of shape {shape} at {_place(image)} mm lies in the mask of shape "
            f"{mask.values.shape[:-1]} at {_place(mask)} mm; expected some. Do both belong to one examination?"
        )
    return chosen


def occupied(mask: Image) -> Bool[np.ndarray, "*space"]:
    """Voxels of a mask that are not zero.

    Raises:
      ValueError: the mask has several channels, or is empty.
    """
    if mask.values.shape[-1] != 1:
        raise ValueError(f"the mask has {mask.values.shape[-1]} channels; expected one.")
    chosen = mask.values[..., 0] != 0
    if not chosen.any():
        raise ValueError("the mask is empty; expected at least one voxel. Leave the case out, or mend its mask.")
    return chosen


def same_grid(one: Image, other: Image) -> bool:
    """Whether shapes are equal and corners agree to a hundredth of a voxel; unknown places do not disagree.

    Example:
      >>> plane = Image(np.zeros((4, 5, 1)))
      >>> same_grid(plane, Image(np.zeros((4, 5, 3)))), same_grid(plane, Image(np.zeros((5, 4, 1))))
      (True, False)
    """
    shape = one.values.shape[:-1]
    if shape != other.values.shape[:-1]:
        return False
    if one.affine is None or other.affine is None:
        return True
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))]).T
    apart = np.abs((one.affine - other.affine) @ corners).max()
    return bool(apart <= 0.01 * np.linalg.norm(one.affine[:3, :3], axis=0).min())


def _read_mask(
    mask: Bool[np.ndarray, "*space"], index: Float[np.ndarray, "4 4"], shape: tuple[int, ...]
) -> Bool[np.ndarray, "..."]:
    from scipy import ndimage

    # Unlike "constant", this mode goes on to the faces of the outermost voxels, half a voxel beyond their centres.
    found = ndimage.affine_transform(
        mask.view(np.uint8), index[:3, :3], index[:3, 3].tolist(), shape, order=0, mode="grid-constant"
    )
    return found.view(bool)


def _place(image: Image) -> list[float]:
    return [] if image.affine is None else np.round(image.affine[:3, 3], 1).tolist()
