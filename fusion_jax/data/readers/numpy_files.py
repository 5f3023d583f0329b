"""NPY and NPZ, never unpickled."""

import math
import os
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.grid import CanonicalGrid, canonical_grid
from fusion_jax.data.readers.guard import archive_member, file_size, open_file, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size

__all__ = ["peek_npy", "peek_npz", "read_npy", "read_npz"]

AXES = ("hw", "hwc", "dhw", "dhwc", "xyz", "xyzc")
"""What the axes of an array may be; x, y and z are the voxel axes of a NIfTI file, in its order."""

MOST_CHANNELS, FEWEST_COLUMNS = 4, 16
"""Lengths of a last axis up to which it is channels, and from which it is a row of voxels."""


class _Layout(NamedTuple):
    """How a stored array becomes the values of an image."""

    axes: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    grid: CanonicalGrid | None

    def arrange(self, values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*space c"]:
        values = values if self.axes.endswith("c") else values[..., None]
        if self.grid is not None:
            return self.grid.arrange(values)
        if self.axes.startswith("xyz"):
            values = np.swapaxes(values, 0, 2)
        return values if values.flags.c_contiguous else np.ascontiguousarray(values)


def read_npy(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
    unit: str = "",
    memory_map: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """One array of an NPY file.

    Args:
      path: the file.
      axes: what the axes of the array are: "hw", "hwc", "dhw", "dhwc" or, in the order of NIfTI, "xyz", "xyzc". Without
        it, two axes are "hw", four "dhwc", and three "hwc" or "dhw" where the last axis has up to 4 or at least 16
        entries; between them the caller has to say.
      spacing: mm along the axes of space, in the order of `axes`.
      affine: of a volume, from index in the order of `axes` to mm in RAS+, `(4, 4)`; the volume is then turned into
        canonical order. Without it, "dhw" is taken to be in that order.
      unit: of the values.
      memory_map: leave the values on disk until they are used; only where they need not be rearranged.
      max_voxels: most values the array may hold; compared with the header before any is read.

    Raises:
      UnreadableFile: damaged, truncated, too large, or an array of objects, text or complex numbers.
      ValueError: arguments that do not fit the array.

    Example:
      >>> read_npy("mip.npy", spacing=(0.7, 0.7)).values.shape  # doctest: +SKIP
      (512, 1024, 1)
    """
    with reading(path), open_file(path) as file:
        stored, dtype, fortran = _array_header(path, file, file_size(file), max_voxels)
        position = file.tell()
    layout = _layout(path, stored, axes, spacing, affine)
    with reading(path):
        if memory_map and not fortran and archive_member(path) is None:
            values = np.memmap(path, dtype, "r", position, stored)
        else:
            with open_file(path) as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
    return Image(_native(layout.arrange(values)), layout.spacing, _affine(layout), unit)


def peek_npy(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
    unit: str = "",
    memory_map: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_npy` with the same arguments would return, from the header.

    Raises:
      UnreadableFile, ValueError: see `read_npy`.
    """
    del memory_map
    with reading(path), open_file(path) as file:
        stored, dtype, _ = _array_header(path, file, file_size(file), max_voxels)
    layout = _layout(path, stored, axes, spacing, affine)
    return ImageHeader(layout.shape, dtype.newbyteorder("="), layout.spacing, _affine(layout), unit)


def read_npz(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    axes: str | None = None,
    spacing: str | Sequence[float] | None = None,
    affine: Any = None,
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """One array of an NPZ file.

    Args:
      path: the file.
      array: name of the array; may be left out where the file holds one.
      axes: see `read_npy`.
      spacing: see `read_npy`; a text is the name of another array of the file that holds it.
      affine: see `read_npy`; a text is the name of another array of the file that holds it.
      unit: of the values.
      max_voxels: see `read_npy`.

    Raises:
      UnreadableFile: see `read_npy`; also where the file has no array of such a name.
      ValueError: arguments that do not fit the array.

    Example:
      >>> ct = read_npz("STS_001.npz", array="ct", axes="xyz", affine="ct_affine", unit="HU")  # doctest: +SKIP
      >>> ct.values.shape, ct.spacing  # doctest: +SKIP
      ((50, 105, 141, 1), (3.27, 0.9765625, 0.9765625))
    """
    with reading(path), open_file(path) as file, zipfile.ZipFile(file) as archive:
        name = _array_name(path, archive, array)
        stored, _, _ = _member_header(path, archive, name, max_voxels)
        spacing, affine = (_named(path, archive, value) for value in (spacing, affine))
    layout = _layout(path, stored, axes, spacing, affine)
    with reading(path), open_file(path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
        values = np.lib.format.read_array(member, allow_pickle=False)
    return Image(_native(layout.arrange(values)), layout.spacing, _affine(layout), unit)


def peek_npz(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    axes: str | None = None,
    spacing: str | Sequence[float] | None = None,
    affine: Any = None,
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_npz` with the same arguments would return, from the headers.

    Raises:
      UnreadableFile, ValueError: see `read_npz`.
    """
    with reading(path), open_file(path) as file, zipfile.ZipFile(file) as archive:
        name = _array_name(path, archive, array)
        stored, dtype, _ = _member_header(path, archive, name, max_voxels)
        spacing, affine = (_named(path, archive, value) for value in (spacing, affine))
    layout = _layout(path, stored, axes, spacing, affine)
    return ImageHeader(layout.shape, dtype.newbyteorder("="), layout.spacing, _affine(layout), unit)


def _array_header(
    path: str | os.PathLike[str], file: Any, size: int, max_voxels: int
) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, dtype and Fortran order of the array at the position of `file`; `size` bytes are there in all."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise UnreadableFile(path, f"is of NPY version {version}", "Save the array with `numpy.save`.")
    if dtype.hasobject or dtype.kind not in "buif" or dtype.itemsize > 8:
        raise UnreadableFile(
            path, f"holds {dtype}", "Save an array of booleans, integers or floats; nothing is unpickled."
        )
    check_size(path, shape, max_voxels)
    needed = math.prod(shape) * dtype.itemsize
    if size - file.tell() != needed:
        raise UnreadableFile(
            path,
            f"holds {size - file.tell():,} bytes of values, its header promises {needed:,}",
            "The file is truncated or damaged: copy it again from its source.",
        )
    return shape, dtype, fortran


def _member_header(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str, max_voxels: int
) -> tuple[tuple[int, ...], np.dtype, bool]:
    with archive.open(name) as member:
        return _array_header(path, member, archive.getinfo(name).file_size, max_voxels)


def _array_name(path: str | os.PathLike[str], archive: zipfile.ZipFile, array: str | None) -> str:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    listed = ", ".join(names[:20]) or "none"
    if array is None:
        if len(names) != 1:
            raise UnreadableFile(path, f"holds {len(names)} arrays ({listed})", "Name one with `array`.")
        return names[0] + ".npy"
    if array not in names:
        raise UnreadableFile(path, f"has no array {array!r}; it holds {listed}", "Name one of them with `array`.")
    return array + ".npy"


def _named(path: str | os.PathLike[str], archive: zipfile.ZipFile, value: Any) -> Any:
    """The small array that a text names; anything else as it is."""
    if not isinstance(value, str):
        return value
    name = _array_name(path, archive, value)
    _member_header(path, archive, name, max_voxels=16)
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _native(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _affine(layout: _Layout) -> np.ndarray | None:
    return None if layout.grid is None else layout.grid.affine


def _layout(
    path: str | os.PathLike[str], shape: tuple[int, ...], axes: str | None, spacing: Any, affine: Any
) -> _Layout:
    axes = _axes(path, shape, axes)
    values_shape = shape if axes.endswith("c") else (*shape, 1)
    space = axes.removesuffix("c")
    if spacing is not None:
        lengths = np.asarray(spacing, dtype=float)
        if lengths.shape != (len(space),) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError(f"{path}: spacing is {spacing!r}; expected {len(space)} lengths in mm above zero.")
        spacing = tuple(lengths.tolist())
    if affine is None:
        if space == "xyz":
            values_shape = (*values_shape[2::-1], *values_shape[3:])
            spacing = None if spacing is None else spacing[::-1]
        return _Layout(axes, values_shape, spacing, None)
    matrix = np.asarray(affine, dtype=np.float64)
    if len(space) != 3 or matrix.shape != (4, 4):
        raise ValueError(f"{path}: affine of shape {matrix.shape} for axes {axes!r}; expected (4, 4) and a volume.")
    try:
        grid = canonical_grid((shape[0], shape[1], shape[2]), matrix)
    except ValueError as error:
        raise UnreadableFile(path, str(error), "Correct the affine.") from error
    if spacing is not None and not np.allclose([spacing[axis] for axis in grid.axes], grid.spacing, rtol=1e-3):
        raise ValueError(
            f"{path}: spacing {spacing} differs from that of the affine, {grid.spacing}; give one of them."
        )
    return _Layout(axes, (*grid.shape, *values_shape[3:]), grid.spacing, grid)


def _axes(path: str | os.PathLike[str], shape: tuple[int, ...], axes: str | None) -> str:
    if axes is not None:
        if axes not in AXES or len(axes) != len(shape):
            raise ValueError(
                f"{path}: axes={axes!r} for an array of shape {shape}; expected {len(shape)} letters, one of "
                f"{', '.join(AXES)}."
            )
        return axes
    if len(shape) not in (2, 3, 4):
        raise UnreadableFile(path, f"holds an array of {len(shape)} axes", "Save images of 2 to 4 axes.")
    if len(shape) == 3 and MOST_CHANNELS < shape[-1] < FEWEST_COLUMNS:
        raise UnreadableFile(
            path, f"holds an array {shape} whose last axis may be channels or voxels", "Say which: axes='hwc' or 'dhw'."
        )
    return {2: "hw", 3: "hwc" if shape[-1] <= MOST_CHANNELS else "dhw", 4: "dhwc"}[len(shape)]
