"""A DICOM series, one file a slice, as a volume."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.dicom import (
    frame_plane,
    frame_shape,
    numbers,
    pixel_values,
    read_dataset,
    unit_of,
    value_dtype,
)
from fusion_jax.data.readers.grid import CanonicalGrid, canonical_grid
from fusion_jax.data.readers.guard import reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size
from fusion_jax.data.readers.slices import stack_planes
from fusion_jax.data.readers.suv import first_acquired, suv_bodyweight_factor

if TYPE_CHECKING:
    import pydicom

__all__ = ["frame_of_reference", "peek_dicom_series", "read_dicom_series"]

NOT_SLICES = ("dicomdir", "thumbs.db", "desktop.ini")
"""Files that lie in folders of slices and are none; so are those whose name begins with a dot."""


class _Series(NamedTuple):
    """Files in canonical order of their slices, their headers, and the grid."""

    files: tuple[Path, ...]
    datasets: tuple["pydicom.Dataset", ...]
    grid: CanonicalGrid
    header: ImageHeader


def read_dicom_series(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    series: str | None = None,
    suv: bool = False,
    tolerance_mm: float = 0.1,
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """The slices of one series as a volume in canonical order, ordered by position, each rescaled by its own tags.

    Args:
      path: a folder with one file a slice and nothing else (folders below it are not entered), or the files.
      series: SeriesInstanceUID of the one to take where there are several.
      suv: PET activity to SUV by body weight, see `suv_bodyweight_factor`.
      tolerance_mm: by how much distances of slices may differ from each other, and slices lie beside the normal.
      max_voxels: most values the volume may hold; compared with the headers before any slice is decoded.

    Raises:
      FileNotFoundError: no such folder or file.
      UnreadableFile: no slices, a file of another kind among them, several series, mixed sizes or orientations,
        doubled, missing, unevenly spaced or tilted slices, a damaged file; the message names the files.
      ImportError: pydicom is not installed.

    Example:
      >>> ct = read_dicom_series("STS_001/ct")  # doctest: +SKIP
      >>> ct.unit, ct.spacing  # doctest: +SKIP
      ('HU', (3.27, 0.9765625, 0.9765625))
    """
    found = _series(path, series, suv, tolerance_mm, max_voxels)
    shape = (len(found.files), *_slice_shape(found.files[0], found.datasets[0], max_voxels)[1:])
    values = np.empty(shape, found.header.dtype)
    first: list[pydicom.Dataset] = []
    if suv and found.datasets[0].get("DecayCorrection") == "START":
        with reading(found.files[0]):
            # Looked for once, and not again for every slice.
            first = [first_acquired(found.files[0], found.datasets)]
    for at, (file, header) in enumerate(zip(found.files, found.datasets, strict=True)):
        dataset = read_dataset(file, pixels=True)
        with reading(file):
            if dataset.get("SOPInstanceUID") != header.get("SOPInstanceUID"):
                raise UnreadableFile(file, "changed while its series was read", "Read the series again.")
            pixels = pixel_values(file, dataset, max_voxels)
            if suv:
                factor = suv_bodyweight_factor(file, dataset, first)
                pixels = (pixels.astype(np.float64) * factor).astype(np.float32)
            values[at] = pixels[0]
    return Image(found.grid.arrange(values), found.header.spacing, found.header.affine, found.header.unit)


def peek_dicom_series(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    series: str | None = None,
    suv: bool = False,
    tolerance_mm: float = 0.1,
    max_voxels: int = MAX_VOXELS,
) -> ImageHeader:
    """What `read_dicom_series` with the same arguments would return, without reading pixels; positions are checked.

    Raises:
      FileNotFoundError, UnreadableFile, ImportError: see `read_dicom_series`.
    """
    return _series(path, series, suv, tolerance_mm, max_voxels).header


def frame_of_reference(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str | None:
    """FrameOfReferenceUID of the first slice: images with the same one share their coordinates.

    Raises:
      FileNotFoundError, UnreadableFile: see `read_dicom_series`.
    """
    dataset = read_dataset(_files(path)[0], pixels=False)
    with reading(os.fspath(_files(path)[0])):
        uid = dataset.get("FrameOfReferenceUID")
        return None if uid is None else str(uid)


def _files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if not isinstance(path, str | os.PathLike):
        files = [Path(file) for file in path]
        if not files:
            raise ValueError("expected the files of a DICOM series, found an empty list.")
        return files
    folder = Path(path)
    if not folder.is_dir():
        if not folder.exists():
            raise FileNotFoundError(f"{folder}: no such folder of DICOM slices.")
        return [folder]
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.lower() not in NOT_SLICES
    )
    if not files:
        below = sum(file.is_dir() for file in folder.iterdir())
        raise UnreadableFile(folder, f"holds no files ({below} folders)", "Give the folder that holds the slices.")
    return files


def _series(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    series: str | None,
    suv: bool,
    tolerance_mm: float,
    max_voxels: int,
) -> _Series:
    files = _files(path)
    label = os.fspath(path) if isinstance(path, str | os.PathLike) else os.fspath(files[0].parent)
    datasets = [read_dataset(file, pixels=False) for file in files]
    with reading(label):
        files, datasets = _one_series(label, files, datasets, series)
        _check_copies(label, files, datasets)
        shapes = [_slice_shape(file, dataset, max_voxels) for file, dataset in zip(files, datasets, strict=True)]
        planes = [
            frame_plane(file, file.name, dataset, dataset, dataset, dataset)
            for file, dataset in zip(files, datasets, strict=True)
        ]
        stack = stack_planes(label, planes, thickness=_thickness(files[0], datasets[0]), tolerance_mm=tolerance_mm)
        channels = {shape[3] for shape in shapes}
        if len(channels) > 1:
            raise UnreadableFile(label, "mixes grey and coloured slices", "Keep the slices of one acquisition.")
        grid = canonical_grid(stack.shape, stack.affine)
        check_size(label, (*grid.shape, *channels), max_voxels)
        files = tuple(files[i] for i in stack.order)
        datasets = tuple(datasets[i] for i in stack.order)
        dtypes = {value_dtype(file, dataset) for file, dataset in zip(files, datasets, strict=True)}
        units = {unit_of(dataset) for dataset in datasets}
        if len(units) > 1:
            raise UnreadableFile(label, f"mixes the units {sorted(units)}", "Keep the slices of one acquisition.")
        if suv:
            suv_bodyweight_factor(files[0], datasets[0], [*datasets])
        dtype = np.dtype(np.float32) if suv else np.result_type(*dtypes)
        if any(kind.kind == "f" for kind in dtypes):
            dtype = np.dtype(np.float32)
        unit = "SUV" if suv else units.pop()
    return _Series(files, datasets, grid, ImageHeader((*grid.shape, *channels), dtype, grid.spacing, grid.affine, unit))


def _one_series(
    label: str, files: list[Path], datasets: list["pydicom.Dataset"], series: str | None
) -> tuple[list[Path], list["pydicom.Dataset"]]:
    members: dict[str, list[int]] = {}
    for i, dataset in enumerate(datasets):
        uid = dataset.get("SeriesInstanceUID")
        if not uid:
            raise UnreadableFile(
                files[i], "has no SeriesInstanceUID", "Export it again; slices of one series share it."
            )
        members.setdefault(str(uid), []).append(i)
    if series is None and len(members) > 1:
        lines = [
            f"{uid} ({first.get('Modality')}, {first.get('SeriesDescription') or 'no description'}, {len(rows)} files)"
            for uid, rows in members.items()
            for first in (datasets[rows[0]],)
        ]
        raise UnreadableFile(
            label, f"holds {len(members)} series: {'; '.join(lines)}", "Choose one with `series`, or split the folder."
        )
    if series is not None and series not in members:
        raise UnreadableFile(label, f"does not hold series {series}", f"It holds {', '.join(members)}.")
    rows = members[series if series is not None else next(iter(members))]
    return [files[i] for i in rows], [datasets[i] for i in rows]


def _check_copies(label: str, files: Sequence[Path], datasets: Sequence["pydicom.Dataset"]) -> None:
    seen: dict[str, Path] = {}
    for file, dataset in zip(files, datasets, strict=True):
        uid = str(dataset.get("SOPInstanceUID") or file)
        if uid in seen:
            raise UnreadableFile(label, f"{seen[uid].name} and {file.name} are one image twice", "Remove one of them.")
        seen[uid] = file


def _slice_shape(file: Path, dataset: "pydicom.Dataset", max_voxels: int) -> tuple[int, int, int, int]:
    shape = frame_shape(file, dataset, max_voxels)
    if shape[0] != 1:
        raise UnreadableFile(
            file, f"holds {shape[0]} frames, not one slice", "Read that file alone, with reader='dicom'."
        )
    return shape


def _thickness(file: Path, dataset: "pydicom.Dataset") -> float | None:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        if dataset.get(name) is not None:
            return numbers(file, dataset, name, 1)[0]
    return None
