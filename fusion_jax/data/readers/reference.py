"""The image on whose grid a mask from another file is laid."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.dicom_series import frame_of_reference, peek_dicom_series
from fusion_jax.data.readers.header import ImageHeader

__all__ = ["Grid", "Reference", "reference_grid"]

Reference = Image | ImageHeader | str | os.PathLike[str]
"""An image, its header, or the path of its DICOM series."""


class Grid(NamedTuple):
    """Shape `(d, h, w)`, spacing in mm and affine (RAS+) of a volume in canonical order."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]


def reference_grid(path: str | os.PathLike[str], image: Reference, frame_uid: object) -> Grid:
    """Grid of the image that the mask of `path` belongs to.

    Args:
      path: file of the mask; a relative path in `image` starts at its folder.
      image: see `Reference`.
      frame_uid: FrameOfReferenceUID of the mask; compared with that of a series given by path, where both have one.

    Raises:
      ValueError: an image that is no volume with an affine.
      UnreadableFile: the two do not share their coordinates, or the series cannot be used.
    """
    if isinstance(image, Image | ImageHeader):
        shape = image.shape if isinstance(image, ImageHeader) else image.values.shape
        spacing, affine = image.spacing, image.affine
    else:
        series = Path(path).parent / image
        uid = frame_of_reference(series)
        if uid and frame_uid and uid != str(frame_uid):
            raise UnreadableFile(
                path,
                f"was drawn in the coordinates {frame_uid} (FrameOfReferenceUID), {series} has {uid}",
                "Give the series that it was drawn on.",
            )
        header = peek_dicom_series(series)
        shape, spacing, affine = header.shape, header.spacing, header.affine
    if len(shape) != 4 or affine is None or spacing is None or len(spacing) != 3:
        raise ValueError(f"{path}: image of shape {shape} for its grid; expected a volume (d, h, w, c) with an affine.")
    return Grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]), affine)
