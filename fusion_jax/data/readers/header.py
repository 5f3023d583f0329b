"""What a file says about its image before any voxel is decoded, and the limit on its size."""

import math
import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.data.image import UnreadableFile

__all__ = ["MAX_VOXELS", "ImageHeader", "check_size"]

MAX_VOXELS = 2**28
"""Most values an image may hold unless the caller allows more: 512 x 512 x 1024 voxels, 1 GiB in float32."""

# zlib cannot pack more than 1032 bytes into one (its own documentation, "Maximum expansion factor").
LARGEST_DEFLATE_RATIO = 1032


class ImageHeader(NamedTuple):
    """Shape, kind and place of an image as `read_image` with the same arguments would return it.

    Attributes:
      shape: shape of the values, channels last: `(h, w, c)` or `(d, h, w, c)`.
      dtype: of the values.
      spacing: mm, as in `Image`.
      affine: as in `Image`.
      unit: as in `Image`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    spacing: tuple[float, ...] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    unit: str = ""


def check_size(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    max_voxels: int,
    *,
    stored_bytes: int | None = None,
    itemsize: int | None = None,
) -> None:
    """Refuse a header that promises more than the limit, nothing, or more than deflate can hold in the file.

    Args:
      path: for the message.
      shape: of the values, channels included.
      max_voxels: the limit on their number.
      stored_bytes: bytes of the file that may hold the values, compressed with zlib or gzip; None not to compare.
      itemsize: bytes of a value; with `stored_bytes`.

    Raises:
      UnreadableFile: if so.

    Example:
      >>> check_size("ct.nii", (40, 512, 512, 1), MAX_VOXELS)
    """
    size = math.prod(shape)
    text = " x ".join(map(str, shape))
    if any(length < 1 for length in shape):
        raise UnreadableFile(path, f"its header gives the shape {text}", "Export it again; an image has voxels.")
    if size > max_voxels:
        raise UnreadableFile(
            path,
            f"its header promises {text} = {size:,} values, more than the limit of {max_voxels:,}",
            "If the image really is that large, read it with a larger `max_voxels`; otherwise the file is damaged.",
        )
    if stored_bytes is not None and itemsize is not None:
        needed = size * itemsize
        if needed > LARGEST_DEFLATE_RATIO * (stored_bytes + 1024):
            raise UnreadableFile(
                path,
                f"its header promises {needed:,} bytes of values, which {stored_bytes:,} bytes cannot hold",
                "The file is truncated or its header is damaged: copy it again from its source.",
            )
