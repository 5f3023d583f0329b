"""NIfTI-1 and NIfTI-2 in one file, through nibabel's header."""

import gzip
import io
import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.grid import CanonicalGrid, canonical_grid
from fusion_jax.data.readers.guard import choice, file_size, open_file, optional, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size

__all__ = ["peek_nifti", "read_nifti"]

GZIP = b"\x1f\x8b"
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Spatial unit codes of NIfTI: unknown (taken for mm, as everywhere), metre, millimetre, micrometre."""

LARGEST_OFFSET = 2**26
"""Where voxels may begin at the latest; extensions before them are text of some kilobytes."""


class _Stored(NamedTuple):
    """What the header of a NIfTI file says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    grid: CanonicalGrid
    channels: int
    colours: bool

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    def header(self, unit: str) -> ImageHeader:
        base = np.dtype(np.uint8) if self.colours else self.dtype.newbyteorder("=")
        dtype = np.dtype(np.float32) if self.scaled else base
        return ImageHeader((*self.grid.shape, self.channels), dtype, self.grid.spacing, self.grid.affine, unit)


def read_nifti(
    path: str | os.PathLike[str],
    *,
    fourth_axis: str = "error",
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """A volume of a `.nii` or `.nii.gz` file in canonical order, not interpolated; oblique grids stay oblique.

    The affine is the sform where its code is above zero, else the qform, else spacing alone. `scl_slope` and
    `scl_inter` are applied, in float32, where they change anything; other values keep the dtype of the file. The
    checksum of a compressed file is verified.

    Args:
      path: the file.
      fourth_axis: "error" where a fourth axis (time, direction, echo) is refused unless it has one entry; "channels"
        where it becomes the channels.
      unit: of the values; NIfTI does not say.
      max_voxels: most values the volume may hold; compared with the header before any is read.

    Raises:
      UnreadableFile: damaged, truncated, too large, a spacing that is no length above zero, complex numbers, or a
        fourth axis that was not asked for.
      ImportError: nibabel is not installed.

    Example:
      >>> ct = read_nifti("CT_image.nii.gz", unit="HU")  # doctest: +SKIP
      >>> ct.values.shape, ct.spacing  # doctest: +SKIP
      ((60, 166, 202, 1), (3.27, 0.9765625, 0.9765625))

    References:
      NIfTI-1.1 standard; orientation by the rules of nibabel's `get_best_affine`.
    """
    choice("fourth_axis", fourth_axis, ("error", "channels"))
    optional("nibabel", "nibabel")
    with reading(path), _unpacked(path) as (file, size, packed):
        stored = _header(path, file, size, packed, fourth_axis, max_voxels)
        needed = math.prod(stored.shape) * stored.dtype.itemsize
        file.seek(stored.offset)
        content = file.read(needed)
        if len(content) != needed:
            raise UnreadableFile(
                path,
                f"ends after {len(content):,} of the {needed:,} bytes of voxels that its header promises",
                "The file is truncated: copy it again from its source.",
            )
        # gzip compares its checksum at the end of the stream only.
        while file.read(2**20):
            pass
        if stored.colours:
            values = np.moveaxis(np.frombuffer(content, np.uint8).reshape((3, *stored.shape), order="F"), 0, -1)
        else:
            values = np.frombuffer(content, stored.dtype).reshape(stored.shape, order="F")
        values = values.reshape(*stored.shape[:3], stored.channels)
        if stored.scaled:
            # float32 holds 16-bit numbers exactly, wider ones are scaled in float64 first.
            wide = np.result_type(values.dtype.newbyteorder("="), np.float32)
            values = (values.astype(wide) * wide.type(stored.slope) + wide.type(stored.inter)).astype(np.float32)
        header = stored.header(unit)
        values = stored.grid.arrange(values.astype(header.dtype, copy=False))
    return Image(values, header.spacing, header.affine, unit)


def peek_nifti(
    path: str | os.PathLike[str],
    *,
    fourth_axis: str = "error",
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_nifti` with the same arguments would return, from the header.

    Raises:
      UnreadableFile, ImportError: see `read_nifti`.
    """
    choice("fourth_axis", fourth_axis, ("error", "channels"))
    optional("nibabel", "nibabel")
    with reading(path), _unpacked(path) as (file, size, packed):
        return _header(path, file, size, packed, fourth_axis, max_voxels).header(unit)


@contextmanager
def _unpacked(
    path: str | os.PathLike[str],
) -> Generator[tuple[io.BytesIO | io.BufferedReader | gzip.GzipFile, int, bool]]:
    """The file without its gzip, its size as stored, and whether it is compressed."""
    with open_file(path) as file:
        size = file_size(file)
        packed = file.read(2) == GZIP
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as opened:
                yield opened, size, True
        else:
            yield file, size, False


def _header(
    path: str | os.PathLike[str], file: Any, size: int, packed: bool, fourth_axis: str, max_voxels: int
) -> _Stored:
    import nibabel

    start = file.read(540)
    kinds = (
        (348, 344, (b"n+1\0",), nibabel.Nifti1Header),
        (540, 4, (b"n+2\0",), nibabel.Nifti2Header),
    )
    for length, at, magic, kind in kinds:
        if len(start) >= length and start[at : at + 4] in magic:
            # Not checked by nibabel, which mends a spacing of zero by making it 1.
            raw = kind.from_fileobj(io.BytesIO(start[:length]), check=False)
            break
    else:
        advice = "Join header and image into one `.nii` file." if start[344:348] == b"ni1\0" else "Give a NIfTI file."
        raise UnreadableFile(path, "has no NIfTI header of one file (magic n+1 or n+2)", advice)
    if int(raw["sizeof_hdr"]) != length:
        raise UnreadableFile(path, f"gives its header a length of {int(raw['sizeof_hdr'])}", "The file is damaged.")
    dimensions = [int(value) for value in raw["dim"]]
    if not 2 <= dimensions[0] <= 7:
        raise UnreadableFile(path, f"has {dimensions[0]} axes", "Save a volume of three axes, or of four.")
    shape = tuple(dimensions[1 : dimensions[0] + 1])
    shape = shape if len(shape) > 2 else (*shape, 1)
    # Beyond the third, axes of length 1 hold nothing.
    extra = [length for length in shape[3:] if length != 1]
    colours = int(raw["datatype"]) == 128
    channels = 3 if colours else math.prod(extra)
    if extra and (fourth_axis == "error" or len(extra) > 1 or colours):
        raise UnreadableFile(
            path,
            f"has the shape {shape}: more than a volume",
            "Take the volume you mean, or read the fourth axis as channels with `fourth_axis='channels'`.",
        )
    dtype = np.dtype([("rgb", np.uint8, 3)]) if colours else raw.get_data_dtype()
    if not colours and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise UnreadableFile(path, f"holds values of type {dtype}", "Save integers or floats of at most 64 bits.")
    check_size(path, (*shape[:3], channels), max_voxels, stored_bytes=size if packed else None, itemsize=dtype.itemsize)
    offset = float(raw["vox_offset"])
    if not (length <= offset <= LARGEST_OFFSET and offset == int(offset)):
        raise UnreadableFile(path, f"lets its voxels begin at byte {offset:g}", "The header is damaged.")
    needed = int(offset) + math.prod(shape) * dtype.itemsize
    if not packed and size < needed:
        raise UnreadableFile(
            path,
            f"has {size:,} bytes, its header promises {needed:,}",
            "The file is truncated: copy it again from its source.",
        )
    slope, inter = _scaling(path, raw, colours)
    grid = _grid(path, raw, dimensions[0], (shape[0], shape[1], shape[2]))
    return _Stored(shape, dtype, int(offset), slope, inter, grid, channels, colours)


def _scaling(path: str | os.PathLike[str], raw: Any, colours: bool) -> tuple[float, float]:
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or math.isnan(slope) or colours:  # the standard's and nibabel's words for "not scaled"
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise UnreadableFile(path, f"scales its values by {slope:g} and {inter:g}", "Correct scl_slope and scl_inter.")
    return slope, inter


def _grid(path: str | os.PathLike[str], raw: Any, axes: int, shape: tuple[int, int, int]) -> CanonicalGrid:
    pixdim = [float(value) for value in raw["pixdim"][1:4]]
    if axes == 2:
        pixdim[2] = pixdim[2] if math.isfinite(pixdim[2]) and pixdim[2] > 0 else 1.0
        raw["pixdim"][3] = pixdim[2]
    if not all(math.isfinite(length) and length > 0 for length in pixdim):
        raise UnreadableFile(
            path,
            f"gives the spacing {', '.join(f'{length:g}' for length in pixdim)} (pixdim)",
            "Correct pixdim in its header; expected three lengths in mm above zero.",
        )
    scale = MILLIMETRES.get(int(raw["xyzt_units"]) & 7)
    if scale is None:
        raise UnreadableFile(path, f"names the unit of length {int(raw['xyzt_units']) & 7}", "Correct xyzt_units.")
    try:
        affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(raw.get_best_affine(), np.float64)
        return canonical_grid(shape, affine)
    except ValueError as error:
        raise UnreadableFile(path, str(error), "Correct its sform or qform.") from error
